"""Two ranks do the update of one process, and write and read the same checkpoints."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.rooms.rl.conftest import build, make_groups

from postgrad.rl.config import AlgorithmConfig, OptimizerConfig
from postgrad.rl.learner import Learner

WORLD = 2
OPTIMIZER = OptimizerConfig(lr=1e-2, warmup_steps=0, micro_batch_tokens=24, max_grad_norm=0.5)
ALGORITHM = AlgorithmConfig()


def updates(learner: Learner, folder: Path | None, count: int) -> dict[str, Any]:
    """Some updates; the state is saved after the first where a folder is given."""
    metrics: list[dict[str, float]] = []
    for step in range(learner.num_updates, learner.num_updates + count):
        metrics.append(learner.update(make_groups(seed=step, num_groups=5)))
        if folder is not None and step == 0:
            learner.save(folder / "learner.safetensors")
            weights = {name: tensor.clone() for name, tensor in learner.weights().items()}
            torch.save(weights, folder / f"first-{torch.distributed.get_rank()}.pt")
    return {
        "metrics": metrics,
        "weights": {name: tensor.clone() for name, tensor in learner.weights().items()},
    }


def rank(number: int, port: int, folder: Path, resume: bool) -> None:
    """One rank: three updates, or the last two from a checkpoint."""
    from torch.distributed.device_mesh import init_device_mesh

    from postgrad.rl.parallel import ParallelLearner

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=WORLD
    )
    model = build()
    if resume:
        model.module.load_state_dict(torch.load(folder / "one.pt"))
    learner = ParallelLearner(model, ALGORITHM, OPTIMIZER, mesh=init_device_mesh("cpu", (WORLD,)))
    if resume:
        learner.load(folder / "one.safetensors")
    found = updates(learner, None if resume else folder, 2 if resume else 3)
    torch.save(found, folder / f"found-{number}.pt")
    torch.distributed.destroy_process_group()


def run_ranks(folder: Path, *, resume: bool) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        "import sys; from pathlib import Path; from tests.rooms.rl.test_parallel import rank; "
        "rank(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] == 'True')"
    )
    words = [str(port), str(folder), str(resume)]
    ranks = [
        subprocess.Popen([sys.executable, "-c", code, str(number), *words], stderr=subprocess.PIPE)
        for number in range(WORLD)
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors.decode()
    found = [torch.load(folder / f"found-{number}.pt") for number in range(WORLD)]
    for name, tensor in found[0]["weights"].items():
        assert torch.equal(tensor, found[1]["weights"][name])
    assert found[0]["metrics"] == found[1]["metrics"]
    return found[0]


def close(first: dict[str, Any], second: dict[str, Any]) -> None:
    for one, two in zip(first["metrics"], second["metrics"], strict=True):
        assert one == pytest.approx(two, rel=2e-4, abs=1e-6)
    for name, tensor in first["weights"].items():
        torch.testing.assert_close(tensor, second["weights"][name], rtol=1e-4, atol=2e-5, msg=name)


@pytest.mark.slow
def test_two_ranks_are_one_process_and_resume_from_its_checkpoints_as_it_does_from_theirs(
    tmp_path: Path,
) -> None:
    """Within fp32 rounding: three updates with clipped gradients, an odd number of rows, tied weights."""
    alone = Learner(build(), ALGORITHM, OPTIMIZER)
    expected_first = updates(alone, None, 1)
    alone.save(tmp_path / "one.safetensors")
    torch.save(expected_first["weights"], tmp_path / "one.pt")
    rest = updates(alone, None, 2)

    together = run_ranks(tmp_path, resume=False)
    close({**rest, "metrics": [*expected_first["metrics"], *rest["metrics"]]}, together)

    model = build()
    model.module.load_state_dict(torch.load(tmp_path / "first-0.pt"))
    resumed = Learner(model, ALGORITHM, OPTIMIZER)
    resumed.load(tmp_path / "learner.safetensors")
    close(rest, updates(resumed, None, 2))

    close(rest, run_ranks(tmp_path, resume=True))
