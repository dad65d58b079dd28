"""How much staleness does the policy bear, and what does truncated importance sampling do about it? ppo-k, k = 1 … 64.

The recipe `embedded` with `schedule.mode = "ppo"`: of k batches generated with one version the last is trained on k − 1 versions
later. For each k three losses: CISPO with its cap of 5, the same without a cap (10⁹), and REINFORCE without importance weights.
Every arm runs over the same seeds; updates are a multiple of 64, so that every arm ends with whole phases. Ratio: final held-out
pass rate at the largest k over that at k = 1, both with the cap.

    python benchmarks/rl_staleness.py [--quick] [--seeds 5] [--jobs 1] [--out DIR]

--quick: k = 1 and 8, 16 updates. With --out it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import postgrad as pg
from _common import finish, machine, print_table
from rl_leave_one_out import show

LOSSES: dict[str, dict[str, Any]] = {
    "cap 5": {},
    "no cap": {"algorithm.cap": 1e9},
    "no weights": {"algorithm.loss": "reinforce"},
}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lags = (1, 8) if options.quick else (1, 2, 4, 8, 16, 32, 64)
    axes = {
        f"k{k}-{loss.replace(' ', '-')}": {"schedule.mode": "ppo", "schedule.k": k, **changes}
        for k in lags
        for loss, changes in LOSSES.items()
    }
    with tempfile.TemporaryDirectory() as scratch:
        out = options.out or Path(scratch) / "staleness"
        if (out / "run.json").is_file():
            found = pg.rl.ablate(out=out, resume=True, jobs=options.jobs)
        else:
            found = pg.rl.ablate(
                axes=axes,
                seeds=options.seeds or (1 if options.quick else 5),
                jobs=options.jobs,
                out=out,
                steps=16 if options.quick else 64,
                eval__every=0,
            )
    arms = {arm.name: arm for arm in found.arms}
    print_table(
        f"Final held-out pass rate under ppo-k, {len(found.arms[0].scores)} seeds, 95 % intervals; ScaleRL's pipeline-8: "
        f"{show(found.arms[0].score)}",
        ("k", *LOSSES),
        [(str(k), *(show(arms[f"k{k}-{loss.replace(' ', '-')}"].score) for loss in LOSSES)) for k in lags],
    )
    first, last = (arms[f"k{k}-cap-5"].score.mean for k in (lags[0], lags[-1]))
    finish(
        "rl_staleness",
        last,
        first,
        f"held-out pass rate at k = {lags[-1]} (peer: at k = 1)",
        None if math.isnan(last) or math.isnan(first) else last / first,
        (None, None),
        pass_rates={arm.name: list(arm.score) for arm in found.arms},
        failed={
            arm.name: {str(seed): why for seed, why in arm.failed.items()} for arm in found.arms if arm.failed
        },
        machine=machine(1),
    )


if __name__ == "__main__":
    main()
