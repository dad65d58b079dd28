"""On a local Ray cluster: actors as generators, verifiers and trainer; kill -9 of each costs no work and counts none twice."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tests.engines.test_remote import collect, requests
from tests.rooms.rl.conftest import build
from tests.rooms.rl.test_train import options, write_data

from postgrad.core.cluster import connect
from postgrad.core.config import nest
from postgrad.core.run import Run
from postgrad.core.types import Prompt
from postgrad.engines import generate
from postgrad.engines.config import EngineConfig
from postgrad.engines.make import build_engine
from postgrad.engines.remote.fleet import Fleet
from postgrad.engines.remote.ray import RayActors
from postgrad.tasks.config import TaskConfig
from postgrad.tasks.ray_judge import RayJudge

ray: Any = pytest.importorskip("ray", reason="needs the extra ray")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.xdist_group("ray"),
    pytest.mark.filterwarnings("default"),  # Ray's own
]


STEPS = 30


def actors(above: int, kind: str) -> list[psutil.Process]:
    """Processes of a kind of actor below a process."""
    found: list[psutil.Process] = []
    for process in psutil.Process(above).children(recursive=True):
        try:
            if any(word.startswith(f"ray::{kind}") for word in process.cmdline()[:1]):
                found.append(process)
        except psutil.Error:
            continue
    return found


# -- parts -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    connect("local")
    yield
    ray.shutdown()


def test_actors_give_the_samples_of_an_engine_here_take_new_weights_and_survive_a_kill(cluster: None) -> None:
    model, other = build(), build(seed=1)
    builder = partial(build_engine, config=EngineConfig(slots=4), max_length=90, fp32_head=True)
    expected = {sample.request_id: sample for sample in generate(builder(model), requests(24))}
    with Fleet(RayActors(ray, "local", model, builder), 2) as fleet:
        fleet.submit(requests(24))
        samples = fleet.step()
        os.kill(fleet._generators[0].pid, signal.SIGKILL)  # type: ignore[attr-defined]
        samples += collect(fleet, 24 - len(samples), seconds=300)
        assert sorted(sample.request_id for sample in samples) == list(range(24))
        for sample in samples:
            there = expected[sample.request_id]
            assert sample.token_ids.tolist() == there.token_ids.tolist()
            np.testing.assert_allclose(sample.behaviour_logp, there.behaviour_logp, atol=1e-5)
        assert fleet.usage().num_restarts == 1
        greedy = [replace(request, max_tokens=80, temperature=0.0) for request in requests(2, tokens=80)]
        fleet.load_weights(other.module.state_dict(), 1)
        fleet.submit(greedy)
        found = sorted(collect(fleet, 2, seconds=300), key=lambda sample: sample.request_id)
        for sample, there in zip(found, generate(builder(other), greedy), strict=True):
            assert sample.policy_version.tolist() == [1] * 80
            assert sample.token_ids.tolist() == there.token_ids.tolist()


def test_a_killed_verifier_is_replaced_and_every_ticket_has_one_verdict(
    cluster: None, tmp_path: Path
) -> None:
    data = write_data(tmp_path)
    task = TaskConfig(name="digits", path=str(data), reward=f"{tmp_path / 'my_rewards.py'}:slow_half")
    prompt = Prompt(id="p", text="x", task="digits", answer="1")
    with RayJudge(ray, "local", [task], num_actors=2) as judge:
        tickets = [judge.submit(prompt, "a" * (i % 7)) for i in range(60)]
        first = judge.collect(tickets[:2])
        victim = actors(os.getpid(), "VerifierActor")[0]
        victim.kill()
        verdicts = [*first, *judge.collect(tickets[2:])]
        assert [verdict.score for verdict in verdicts] == [i % 7 % 2 / 2 for i in range(60)]
        assert judge.num_restarts == 1
        with pytest.raises(Exception, match="collected once"):
            judge.collect(tickets[:1])


# -- whole runs ------------------------------------------------------------------------------------------------------


def start(folder: Path, *words: str, **changes: Any) -> subprocess.Popen[bytes]:
    recipe = folder / "recipe.json"
    chosen = {
        "engine.generators": 2,
        "engine.slots": 8,
        "run.log_samples": 6,
        "cluster.verifiers": 2,
        **changes,
    }
    recipe.write_text(json.dumps(nest(options(folder, **chosen))))
    command = [sys.executable, "-m", "postgrad", "rl", "train", str(recipe), "--out", str(folder / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [*command, "--cluster", "local", *words], env=environment, stderr=log, stdout=log
        )


def wait_for(
    what: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, seconds: float = 600
) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def num_logged(folder: Path) -> int:
    path = folder / "run" / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def check_complete(folder: Path, steps: int) -> list[dict[str, Any]]:
    """Every step is logged once, every group trained on once, nothing is missing."""
    run = Run.open(folder / "run")
    assert run.status == "finished"
    rows = run.metrics()
    assert [row["step"] for row in rows] == list(range(steps + 1))
    trained = [row["prompt_id"] for row in run.samples() if row["phase"] == "train"]
    assert len(trained) == len(set(trained)) == 6 * steps
    for row in rows[1:]:
        assert row["staleness/max"] <= 3
        assert row["rollout/verify_failed_fraction"] == 0
    generated = [row["compute/total_tokens"] for row in rows]
    assert generated == sorted(generated)
    return rows


@pytest.mark.parametrize("victim", ["GeneratorActor", "VerifierActor", "TrainerActor", "RankActor"])
def test_a_run_outlives_the_kill_of_an_actor(tmp_path: Path, victim: str) -> None:
    write_data(tmp_path, 300)
    ranks = {"cluster.trainer_ranks": 2} if victim == "RankActor" else {}
    process, log = start(tmp_path, steps=STEPS, **ranks), tmp_path / "log"
    try:
        wait_for(lambda: num_logged(tmp_path) > 3, process, log)
        found = actors(process.pid, victim)
        assert found, "\n".join(str(p) for p in psutil.Process(process.pid).children(recursive=True))
        found[0].kill()
        assert process.wait(600) == 0, log.read_text()
        rows = check_complete(tmp_path, STEPS)
    finally:
        process.kill()
    words = log.read_text()
    assert re.search(r"pass rate: .* -> ", words)
    if victim == "GeneratorActor":
        assert rows[-1]["idle/generator_restarts"] == 1
        assert "another one starts" in words
    if victim in ("TrainerActor", "RankActor"):
        assert "another one goes on from step_" in words
        assert len(Run.open(tmp_path / "run").info["resumed"]) == 1


def test_ctrl_c_asks_the_trainer_for_a_checkpoint(tmp_path: Path) -> None:
    process, log = start(tmp_path, steps=200), tmp_path / "log"
    try:
        wait_for(lambda: num_logged(tmp_path) > 2, process, log)
        process.send_signal(signal.SIGINT)
        assert process.wait(600) == 130, log.read_text()
    finally:
        process.kill()
    run = Run.open(tmp_path / "run")
    assert run.status == "interrupted"
    latest = run.latest_checkpoint()
    assert latest is not None
    assert latest[0] == run.last_step
