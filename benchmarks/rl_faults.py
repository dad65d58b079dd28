"""What kills cost: generators, verifiers and the trainer get kill -9 at random times while a run goes on.

A tiny model learns on processes of this machine (`--cluster local`: on actors of a Ray cluster); the same run is done once in
peace. Lost: groups that were started and neither trained on nor under way in the last checkpoint, and samples without a verdict.
Counted twice: groups that were trained on more than once, steps that were logged more than once. Both must be 0. A trainer that
was killed is started again by `--resume` (on a cluster: by itself), and repeats the updates since its last checkpoint.
* samples begun anew are counted since the last start of the trainer.

    python benchmarks/rl_faults.py [--quick] [--updates 60] [--kills 12] [--generators 2] [--seed 0] [--cluster local]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from _common import finish, machine, print_table

BATCH, GROUP, CHECKPOINT_EVERY = 6, 4, 5
KINDS = ("generator", "verifier", "trainer")
MARKS = {
    False: {"generator": "engines.remote.worker", "verifier": "postgrad.tasks.worker"},
    True: {
        "generator": "ray::GeneratorActor",
        "verifier": "ray::VerifierActor",
        "trainer": "ray::TrainerActor",
    },
}
REWARD = '''
import time

def digits(prompt, completion):
    """1 when the completion begins with the last digit of the prompt."""
    time.sleep(0.002)
    return float(completion.strip()[:1] == prompt.text.strip()[-1])
'''


@dataclass
class Outcome:
    """Of one run: seconds in all, kills by kind, how often the trainer was started."""

    seconds: float = 0.0
    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0


def recipe(folder: Path, options: argparse.Namespace) -> Path:
    """The recipe, its prompts (enough that none comes twice) and its reward."""
    count = 2 * BATCH * (options.updates + 8)
    rows = [{"prompt": f"repeat {i} after me {i % 10}", "answer": str(i % 10)} for i in range(count)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)
    path = folder / "config.json"
    task = {"name": "digits", "path": str(folder / "prompts.jsonl"), "size": count}
    path.write_text(
        json.dumps(
            {
                "steps": options.updates,
                "seed": options.seed,
                "data": {"tasks": [{**task, "reward": f"{folder / 'reward.py'}:digits"}], "verify_workers": 2},
                "model": {
                    "embedded": {"hidden_size": 32, "num_layers": 2, "intermediate_size": 48, "head_dim": 8,
                                 "vocab_size": 300, "max_position": 96, "steps": 30}
                },
                "algorithm": {"prompts_per_batch": BATCH, "samples_per_prompt": GROUP, "history_threshold": "none"},
                "schedule": {"k": 3},
                "length": {"max_prompt_tokens": 60, "max_completion_tokens": 24, "interrupt_min": "none"},
                "engine": {"generators": options.generators, "slots": 8},
                "eval": {"every": 0, "prompts": 10, "samples_per_prompt": 2},
                "run": {"checkpoint_every": CHECKPOINT_EVERY, "log_samples": BATCH, "samples_per_group": GROUP},
            }
        )
    )  # fmt: skip
    return path


class Faults:
    """Runs `postgrad rl train` and kills parts of it."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.options, self.folder = options, folder
        self.config = recipe(folder, options)
        self.random = random.Random(options.seed)

    def run(self, name: str, kills: int) -> Outcome:
        """To the end, with `kills` kills at random steps."""
        out, outcome = self.folder / name, Outcome()
        at = sorted(self.random.sample(range(1, self.options.updates - 1), kills))
        plan = [(step, KINDS[i % len(KINDS)]) for i, step in enumerate(at)]
        began = time.perf_counter()
        process = self._start(out, outcome, resume=False)
        while process.poll() is None or (process.returncode == -signal.SIGKILL):
            if process.poll() is not None:
                process = self._start(out, outcome, resume=True)
            if plan and reached(out) >= plan[0][0] and self._kill(plan[0][1], process):
                outcome.kills[plan.pop(0)[1]] += 1
            time.sleep(0.02)
        if process.returncode:
            raise SystemExit(
                f"{name} ended with {process.returncode}:\n{(out.parent / 'log').read_text()[-3000:]}"
            )
        outcome.seconds = time.perf_counter() - began
        return outcome

    def _start(self, out: Path, outcome: Outcome, *, resume: bool) -> subprocess.Popen[bytes]:
        outcome.starts += 1
        words = ["--resume"] if resume else [str(self.config)]
        words += ["--cluster", self.options.cluster] if self.options.cluster else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "postgrad", "rl", "train", "--out", str(out), *words]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def _kill(self, kind: str, process: subprocess.Popen[bytes]) -> bool:
        """Whether one of that kind was there to be killed."""
        marks = MARKS[self.options.cluster is not None]
        if kind not in marks:
            process.kill()
            process.wait()
            return True
        found: list[psutil.Process] = []
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if marks[kind] in " ".join(child.cmdline()):
                    found.append(child)
            except psutil.Error:
                continue
        if not found:
            return False
        self.random.choice(found).kill()
        return True


def reached(out: Path) -> int:
    """Updates logged so far."""
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") - 1 if path.exists() else -1


def audit(out: Path, updates: int) -> dict[str, Any]:
    """What was lost and what was counted twice, from the files of a run that has ended."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text("utf-8").splitlines()]
    trained = Counter(row["prompt_id"] for row in samples if row["phase"] == "train")
    last = max((out / "checkpoints").glob("step_*"), key=lambda path: path.name)
    state = json.loads((last / "state.json").read_text("utf-8"))["scheduler"]
    waiting = {group["prompt"]["id"] for group in state["groups"]}
    steps = Counter(row["step"] for row in rows)
    unjudged = sum(round(row.get("rollout/verify_failed_fraction", 0.0) * BATCH * GROUP) for row in rows)
    return {
        "lost": state["started"]
        - len(set(trained) | waiting)
        + unjudged
        + len(set(range(updates + 1)) - set(steps)),
        "twice": sum(count > GROUP for count in trained.values())
        + len(set(trained) & waiting)
        + sum(count > 1 for count in steps.values()),
        "partial": sum(count < GROUP for count in trained.values()),
        "restarts": rows[-1].get("idle/generator_restarts", 0),
        "reissued": rows[-1].get("idle/reissued_requests", 0),
        "groups": len(trained),
    }


def main() -> None:
    """Once in peace, once with kills."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="24 updates, 6 kills")
    parser.add_argument("--updates", type=int, help="default 60 (quick: 24)")
    parser.add_argument("--kills", type=int, help="default 12 (quick: 6)")
    parser.add_argument("--generators", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cluster", help="local: on actors of a Ray cluster")
    options = parser.parse_args()
    options.updates = options.updates or (24 if options.quick else 60)
    kills = options.kills or (6 if options.quick else 12)
    outcomes: dict[str, Outcome] = {}
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="postgrad-bench-") as folder:
        os.environ["POSTGRAD_CACHE"] = (
            folder  # the warm start is paid by the first run's cache, before the clock
        )
        faults = Faults(Path(folder), options)
        for name, number in (("warm-up", 0), ("in peace", 0), ("with kills", kills)):
            outcomes[name] = faults.run(name, number)
            found[name] = audit(Path(folder) / name, options.updates)
            print(f"{name}: {outcomes[name].seconds:.1f} s", flush=True)
    del outcomes["warm-up"]
    where = "a local Ray cluster" if options.cluster else "processes"
    print_table(
        f"{options.updates} updates of {BATCH} x {GROUP} samples, {options.generators} generators, on {where}",
        ["", "seconds", *(f"{kind}s killed" for kind in KINDS), "starts", "groups trained", "lost", "twice", "begun anew*"],
        [
            [name, run.seconds, *(run.kills[kind] for kind in KINDS), run.starts,
             *(found[name][key] for key in ("groups", "lost", "twice", "reissued"))]
            for name, run in outcomes.items()
        ],
    )  # fmt: skip
    peace, disturbed = outcomes["in peace"].seconds, outcomes["with kills"].seconds
    facts = found["with kills"]
    finish(
        "rl_faults",
        disturbed,
        peace,
        "s",
        peace / disturbed,
        [None, None],
        peer_name="the same run in peace",
        lost=facts["lost"] + facts["partial"],
        counted_twice=facts["twice"],
        kills=dict(outcomes["with kills"].kills),
        trainer_starts=outcomes["with kills"].starts,
        reissued_since_last_start=facts["reissued"],
        seconds_lost=disturbed - peace,
        seconds_lost_per_kill=(disturbed - peace) / kills,
        where=where,
        machine=machine(1),
    )
    if facts["lost"] or facts["twice"] or facts["partial"]:
        raise SystemExit("Work was lost or counted twice.")


if __name__ == "__main__":
    main()
