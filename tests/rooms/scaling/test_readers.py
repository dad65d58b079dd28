"""Logs as the real libraries write them, and what is said about those that cannot be read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from postgrad.core.config import Config
from postgrad.core.errors import DataError, MissingExtraError
from postgrad.core.run import Run
from postgrad.scaling.api import load_curve
from postgrad.scaling.config import ScalingConfig
from postgrad.scaling.curve import Curve, Log
from postgrad.scaling.readers import read, tensorboard


def curve_of(path: Path | str, **options: Any) -> Curve:
    return load_curve(path, ScalingConfig(**options))


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def rows_of(log: Log, *keys: str) -> list[tuple[Any, ...]]:
    return list(zip(*(log.columns[key] for key in keys), strict=True))


# -- TensorBoard -------------------------------------------------------------------------------------------


def events(directory: Path, scalars: list[tuple[str, float, int]], start: float = 1000.0) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(directory))
    writer.add_text("notes", "not a scalar", 0, walltime=start)
    writer.add_histogram("weights", np.arange(5.0), 0, walltime=start)
    for tag, value, step in scalars:
        writer.add_scalar(tag, value, step, walltime=start + 10 * step)
    writer.close()


def test_tensorboard_tags_of_a_step_are_one_row(tmp_path: Path) -> None:
    scalars = [
        (tag, step + add, step) for step in (1, 2, 3) for tag, add in (("loss", 0.5), ("eval/acc", -0.5))
    ]
    events(tmp_path / "run7", scalars)
    log = read(tmp_path / "run7")
    assert log.name == "run7"
    assert log.kind == "TensorBoard"
    assert rows_of(log, "step", "loss", "eval/acc") == [(1, 1.5, 0.5), (2, 2.5, 1.5), (3, 3.5, 2.5)]
    assert log.columns["wall_s"] == [0.0, 10.0, 20.0]
    assert "notes/text_summary" not in log.columns
    assert "weights" not in log.columns
    file = next((tmp_path / "run7").glob("*.tfevents.*"))
    assert dict(read(file).columns) == dict(log.columns)
    assert read(file).name == "run7"
    assert read(tmp_path).columns["loss"] == log.columns["loss"]  # the one run below


def test_tensorboard_tags_that_share_no_step_meet_over_the_steps(tmp_path: Path) -> None:
    tokens = [("train/total_tokens", 100.0 * step, step) for step in range(0, 40, 2)]
    evaluations = [("eval/acc", 0.01 * step, step) for step in (5, 15, 25, 35, 39)]
    events(tmp_path, [*tokens, *evaluations])
    curve = curve_of(tmp_path)
    assert curve.axis.unit == "tokens"
    np.testing.assert_allclose(
        curve.compute, [500, 1500, 2500, 3500, 3900]
    )  # the last one beyond the token counts
    np.testing.assert_allclose(curve.reward, [0.05, 0.15, 0.25, 0.35, 0.39], rtol=1e-6)
    assert curve.elapsed_s is not None
    np.testing.assert_allclose(np.diff(curve.elapsed_s), [100, 100, 100, 40])


def test_tensorboard_of_a_resumed_run(tmp_path: Path) -> None:
    events(tmp_path, [("eval/acc", 0.1 * step, step) for step in range(1, 7)])
    (first,) = tmp_path.glob("*.tfevents.*")
    first.rename(tmp_path / "events.out.tfevents.1000000000.host.1.0")
    events(tmp_path, [("eval/acc", 0.1 * step + 0.01, step) for step in range(4, 10)], start=5000.0)
    curve = curve_of(tmp_path)
    assert curve.compute.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    np.testing.assert_allclose(curve.reward, [0.1, 0.2, 0.3, 0.41, 0.51, 0.61, 0.71, 0.81, 0.91], rtol=1e-6)
    assert curve.notes == ("resumed once: 3 rows that were logged again later are dropped",)


def test_tensorboard_files_that_end_early_or_hold_nothing(tmp_path: Path) -> None:
    events(tmp_path / "a", [("eval/acc", 0.1 * step, step) for step in range(1, 7)])
    (file,) = (tmp_path / "a").glob("*.tfevents.*")
    file.write_bytes(file.read_bytes()[:-9])
    assert read(tmp_path / "a").columns["step"] == [1, 2, 3, 4, 5]
    events(tmp_path / "b", [])
    with pytest.raises(DataError, match=r"No scalars in .*tfevents"):
        read(tmp_path / "b")
    rubbish = write(tmp_path / "c" / "events.out.tfevents.1", b"\x00rubbish" * 20)
    with pytest.raises(DataError, match=r"No scalars in .*tfevents\.1"):
        read(rubbish)


def test_several_tensorboard_runs_are_named_and_sub_runs_are_not(tmp_path: Path) -> None:
    for name in ("first", "second"):
        events(tmp_path / "runs" / name, [("eval/acc", 0.5, 1)])
    with pytest.raises(DataError, match="2 runs: first, second. Name one of them"):
        read(tmp_path / "runs")
    events(tmp_path / "runs" / "first" / "hparams", [("eval/acc", 0.9, 1)])
    assert read(tmp_path / "runs" / "first").columns["eval/acc"] == [0.5]


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(tensorboard, "import_module", absent)
    with pytest.raises(MissingExtraError, match=r"postgrad\[logs\]"):
        read(write(tmp_path / "events.out.tfevents.1", b""))


# -- W&B ---------------------------------------------------------------------------------------------------

WANDB_SCRIPT = """
import sys, wandb
for name in sys.argv[2:]:
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True)
    run = wandb.init(mode="offline", dir=sys.argv[1], project="p", id=name, settings=settings)
    for step in range(300):
        run.log({"train/global_step": 10 * step, "long": "x" * 400})
        if step % 100 == 0:
            run.log({"eval": {"acc": step / 1000}, "train/global_step": 10 * step, "bad": float("nan")})
    run.finish()
"""


@pytest.fixture(scope="module")
def wandb_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two offline runs, written by the real package in a process of its own."""
    folder = tmp_path_factory.mktemp("wandb")
    done = subprocess.run(
        [sys.executable, "-c", WANDB_SCRIPT, str(folder), "one", "two"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=folder,
        env={**os.environ, "WANDB_ERROR_REPORTING": "false", "HOME": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    return folder / "wandb"


def test_wandb_offline(wandb_folder: Path) -> None:
    (run,) = wandb_folder.glob("offline-run-*-one")
    log = read(run)
    assert log.kind == "W&B"
    assert len(log.columns["_step"]) == 303
    assert log.columns["_step"] == list(range(303))
    assert [x for x in log.columns["eval.acc"] if x is not None] == [0.0, 0.1, 0.2]
    assert [x for x in log.columns["bad"] if x is not None] == pytest.approx([np.nan] * 3, nan_ok=True)
    (file,) = run.glob("*.wandb")
    assert file.stat().st_size > 2 * 32768, "the records should cross blocks"
    assert read(file).columns["train/global_step"] == log.columns["train/global_step"]
    curve = curve_of(run)
    assert curve.axis.key == "train/global_step"  # not _step, which counts calls of log
    assert curve.compute.tolist() == [0, 1000, 2000]
    assert curve.reward_key == "eval.acc"
    assert curve.limits == (0, 1)


def test_wandb_files_that_are_torn_or_foreign(wandb_folder: Path, tmp_path: Path) -> None:
    (file,) = wandb_folder.glob("offline-run-*-one/*.wandb")
    data = file.read_bytes()
    torn = write(tmp_path / "run-torn.wandb", data[: len(data) // 2])
    steps = read(torn).columns["_step"]
    assert 100 < len(steps) < 303
    assert steps == list(range(len(steps)))
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0xFF  # the checksum tells
    assert len(read(write(tmp_path / "run-flipped.wandb", bytes(flipped))).columns["_step"]) < 303
    with pytest.raises(DataError, match=r"run-x\.wandb is not a file of W&B.*export a CSV"):
        read(write(tmp_path / "run-x.wandb", b"hello"))
    with pytest.raises(DataError, match="no history"):
        read(write(tmp_path / "run-y.wandb", data[:7]))


def test_several_wandb_runs_are_named(wandb_folder: Path) -> None:
    with pytest.raises(DataError, match=r"2 W&B runs: offline-run-\S+-one, offline-run-\S+-two\. Name one"):
        read(wandb_folder)


# -- Hugging Face ------------------------------------------------------------------------------------------


def trainer_state(path: Path, last_step: int) -> None:
    from transformers.trainer_callback import TrainerState

    history: list[dict[str, Any]] = []
    for step in range(1, last_step + 1):
        history.append(
            {"loss": 1 / step, "reward": 0.01 * step, "num_tokens": 1000.0 * step, "step": step, "epoch": 0.1}
        )
        if step % 2 == 0:
            rewards = {"eval_reward": 0.1 * step, "eval_rewards/accuracy_reward/mean": 0.5}
            history.append({"eval_loss": float("nan"), **rewards, "step": step, "epoch": 0.1})
    history.append({"train_runtime": 1.5, "total_flos": 3.0, "step": last_step})
    path.parent.mkdir(parents=True)
    TrainerState(log_history=history, global_step=last_step).save_to_json(str(path))


def test_trainer_state_of_trl(tmp_path: Path) -> None:
    for step in (4, 10):
        trainer_state(tmp_path / "grpo" / f"checkpoint-{step}" / "trainer_state.json", step)
    log = read(tmp_path / "grpo")
    assert log.columns["step"][-1] == 10  # 10 is newer than 4, though "4" sorts later
    assert log.name == "grpo"
    assert read(tmp_path / "grpo" / "checkpoint-4").name == "grpo"
    assert read(tmp_path / "grpo" / "checkpoint-4" / "trainer_state.json").columns["step"][-1] == 4
    curve = curve_of(tmp_path / "grpo")
    assert (curve.reward_key, curve.axis.unit) == ("eval_reward", "tokens")
    assert curve.compute.tolist() == [
        2000,
        4000,
        6000,
        8000,
        10000,
    ]  # evaluation rows have no tokens of their own
    np.testing.assert_allclose(curve.reward, [0.2, 0.4, 0.6, 0.8, 1.0])
    assert curve.limits == (-np.inf, np.inf)  # a reward need not end at 1
    train = curve_of(tmp_path / "grpo", y="reward", x="steps")
    assert train.compute.tolist() == list(range(1, 11))


def test_trainer_state_under_another_name_and_without_history(tmp_path: Path) -> None:
    trainer_state(tmp_path / "x" / "trainer_state.json", 3)
    (tmp_path / "x" / "trainer_state.json").rename(tmp_path / "saved.json")
    assert read(tmp_path / "saved.json").kind == "trainer_state.json"
    for text, words in (
        ('{"log_history": []}', "empty log_history: nothing was logged yet"),
        ('{"log_history": 3}', "no log_history"),
        ('{"log_his', "Cannot read"),
    ):
        with pytest.raises(DataError, match=rf"trainer_state\.json.*{words}|{words}.*trainer_state\.json"):
            read(write(tmp_path / "trainer_state.json", text))


# -- runs of postgrad --------------------------------------------------------------------------------------


class Nothing(Config):
    """No options."""


def make_run(path: Path, *, steps: int = 10) -> Run:
    with Run.create(path, Nothing(), command=["postgrad"], kind="rl.train", seed=0, quiet=True) as run:
        for step in range(steps):
            compute = {
                "compute/train_flops": 2e15 * step,
                "compute/generate_flops": 1e15 * step,
                "time/elapsed_s": 9.0 * step,
            }
            run.log(step, {"rollout/pass_rate": 0.5, "compute/total_tokens": 10 * step, **compute})
            if step % 2 == 0:
                run.log(
                    step, {"eval/pass_rate": step / 20, "eval/pass_rate_low": 0.0, "eval/pass_rate_high": 1.0}
                )
    return run


def test_a_run_of_ours(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine")
    for source in (run, run.path, run.path / "metrics.jsonl"):
        curve = load_curve(source, ScalingConfig())
        assert (curve.name, curve.reward_key, curve.axis.unit) == ("mine", "eval/pass_rate", "FLOP")
        np.testing.assert_allclose(curve.compute, 3e15 * np.arange(0, 10, 2))
        assert curve.limits == (0, 1)
        assert curve.elapsed_s is not None
        np.testing.assert_allclose(curve.elapsed_s, 9.0 * np.arange(0, 10, 2))
    both = curve_of(run.path, x="compute/train_flops + compute/total_tokens")
    np.testing.assert_allclose(both.compute, (2e15 + 10) * np.arange(0, 10, 2))
    hours = curve_of(run.path, num_gpus=8)
    assert hours.axis.unit == "GPU-hours"
    np.testing.assert_allclose(hours.compute, 8 * 9.0 * np.arange(0, 10, 2) / 3600)


def test_runs_without_metrics_and_folders_of_runs(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a", steps=0)
    make_run(tmp_path / "runs" / "b")
    with pytest.raises(DataError, match=r"runs/a has no metrics yet"):
        read(tmp_path / "runs" / "a")
    with pytest.raises(DataError, match=r"holds no log.*It holds runs; name one of them: a, b\."):
        read(tmp_path / "runs")


def test_a_fit_is_a_log_again_with_its_own_unit(tmp_path: Path) -> None:
    curve = {
        "x": "_runtime",
        "unit": "GPU-hours",
        "y": "odd name",
        "compute": [1, 2, 4],
        "reward": [0.1, 0.2, 0.3],
    }
    folder = write(
        tmp_path / "f" / "fit.json", json.dumps({"curve": {**curve, "elapsed_s": [9, 18, 36]}})
    ).parent
    again = curve_of(folder)
    assert (again.name, again.axis.unit, again.reward_key) == ("f", "GPU-hours", "odd name")
    assert again.compute.tolist() == [1, 2, 4]  # hours already, not seconds
    assert again.elapsed_s is not None
    assert again.elapsed_s.tolist() == [9, 18, 36]
    with pytest.raises(DataError, match=r"fit\.json is not a fit of `postgrad scaling fit`"):
        read(write(tmp_path / "g" / "fit.json", "{}"))


# -- tables ------------------------------------------------------------------------------------------------


def test_csv_as_wandbs_page_exports_it(tmp_path: Path) -> None:
    header = '"Step","brave-sky-7 - eval/acc","brave-sky-7 - eval/acc__MIN","brave-sky-7 - eval/acc__MAX"\n'
    path = write(tmp_path / "wandb_export.csv", header + '"10","0.25","0.2","0.3"\n"20","0.5","0.5","0.5"\n')
    curve = curve_of(path)
    assert (curve.reward_key, curve.axis.key) == ("eval/acc", "Step")
    assert (curve.compute.tolist(), curve.reward.tolist()) == ([10, 20], [0.25, 0.5])


def test_csv_of_two_wandb_runs_asks_which(tmp_path: Path) -> None:
    path = write(tmp_path / "two.csv", '"Step","a - eval/acc","b - eval/acc"\n1,0.1,0.2\n2,0.2,0.4\n')
    with pytest.raises(
        DataError, match="several columns could be the reward: a - eval/acc, b - eval/acc. Give --y"
    ):
        curve_of(path)
    assert curve_of(path, y="b - eval/acc").reward.tolist() == [0.2, 0.4]


def test_jsonl_with_a_torn_last_line(tmp_path: Path) -> None:
    lines = [
        '{"step": 1, "reward": 0.5}',
        "",
        '{"step": 2, "reward": NaN}',
        '{"step": 3, "reward": 0.75}',
        '{"step": 4, "rew',
    ]
    path = write(tmp_path / "log.jsonl", "\n".join(lines))
    curve = curve_of(path)
    assert curve.compute.tolist() == [1, 3]
    assert curve.notes == ("1 row with NaN or infinite values dropped",)
    with pytest.raises(DataError, match=r"log\.jsonl, line 1: not valid JSON .* Correct or remove"):
        read(write(path, '{"step"\n{"step": 3}\n'))
    with pytest.raises(DataError, match=r"log\.jsonl, line 2: expected an object of metrics, not list"):
        read(write(path, '{"step": 3}\n[1]\n'))
    with pytest.raises(DataError, match="no complete row"):
        read(write(path, '{"step": 4, "rew'))


def test_nan_and_empty_cells(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "gpu_hours,eval/acc\n1,0.1\n2,\n3,nan\n4,inf\n5,0.5\n\n")
    curve = curve_of(path)
    assert (curve.compute.tolist(), curve.reward.tolist()) == ([1, 5], [0.1, 0.5])
    assert curve.notes == ("2 rows with NaN or infinite values dropped",)  # nothing was logged at 2


@pytest.mark.parametrize(
    ("text", "compute", "reward"),
    [
        ("step;reward\r\n1;0,5\r\n2;0,75\r\n", [1, 2], [0.5, 0.75]),
        ("step;reward\n1.000;0,5\n12.000;1.234,75\n", [1000, 12000], [0.5, 1234.75]),
        ("step;reward\n1;0.5\n2;0.75\n", [1, 2], [0.5, 0.75]),
        ("step\treward\n1\t0.5\n2\t7.5e-1\n", [1, 2], [0.5, 0.75]),
        ("\ufeffstep,reward\n1,0.5\n2,0.75\n", [1, 2], [0.5, 0.75]),
        (",step,reward\n0,1,0.5\n1,2,0.75\n", [1, 2], [0.5, 0.75]),  # pandas' index
        ('step,"the\nnote",reward\n1,"a, b",0.5\n2,"c\nd",0.75\n', [1, 2], [0.5, 0.75]),
        ("step,reward\n1,0.5\n2,0.75\n3", [1, 2], [0.5, 0.75]),  # still being written
        ("what,ever\n1,0.5\n2,0.75\n", [1, 2], [0.5, 0.75]),  # two columns need no names that are known
    ],
)
def test_csv_dialects(tmp_path: Path, text: str, compute: list[float], reward: list[float]) -> None:
    curve = curve_of(write(tmp_path / "log.csv", text))
    assert (curve.compute.tolist(), curve.reward.tolist()) == (compute, reward)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "log.csv",
            "1,0.5\n2,0.6\n",
            r"log\.csv has no header: its first line is '1,0\.5'\. Name the columns",
        ),
        (
            "log.csv",
            "step,reward\n1,0.5\n\n2\n3,0.6\n",
            r"log\.csv, line 4: 1 cells, but the header has 2\. Correct",
        ),
        ("log.csv", "step,reward\n1,0.5,7\n", r"log\.csv, line 2: 3 cells, but the header has 2"),
        ("log.csv", "step,acc,acc\n1,0.5,7\n", r"log\.csv: several columns are called 'acc'\. Rename"),
        ("log.csv", "step,reward\n", r"log\.csv has a header and no complete row"),
        ("log.csv", "", r"log\.csv is empty"),
        ("log.csv", " \n\n", r"log\.csv is empty"),
        ("log.csv", b"step,re\xffward\n1,2\n", r"log\.csv is not UTF-8 text\. Save it as UTF-8"),
        ("log.json", "[1, 2]", r"log\.json is no table: expected a list of objects"),
        ("log.json", '{"step": [1], "reward": [1, 2]}', r"log\.json: its columns have different lengths"),
        ("log.json", '{"step": 1}\n{"step": 2}', r"log\.json is not valid JSON.*called \.jsonl"),
        (
            "log.txt",
            "step,reward\n1,2\n",
            r"log\.txt is not a log that is known here\. Known: run directories.*\.csv",
        ),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, name: str, text: str | bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(write(tmp_path / name, text))


def test_json_rows_and_columns_are_the_same_table(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "rows.json", '[{"step": 1, "a": {"b": 2}}, {"step": 2, "c": NaN}]'))
    assert rows.columns["a.b"] == [2, None]
    columns = read(write(tmp_path / "columns.json", '{"step": [1, 2], "a.b": [2, null]}'))
    assert columns.columns["a.b"] == rows.columns["a.b"]
    assert read(write(tmp_path / "UPPER.CSV", "step,reward\n1,2\n")).columns["reward"] == ["2"]


def test_places_without_a_log(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No log at .*nowhere\.csv\. Give a run directory"):
        read(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match=r"is no run and holds no log: neither run\.json.*\*\.wandb\.$"):
        read(tmp_path)
    write(tmp_path / "b.csv", "x")
    write(tmp_path / "a.jsonl", "x")
    with pytest.raises(DataError, match=r"It holds tables; name one of them: a\.jsonl, b\.csv\."):
        read(tmp_path)


# -- which column is which ---------------------------------------------------------------------------------

VERL = {
    "training/global_step": [0, 10, 20],
    "training/epoch": [0, 0, 1],
    "perf/total_num_tokens": [900, 850, 920],
    "perf/time_per_step": [60.0, 61.0, 59.0],
    "critic/score/mean": [0.1, 0.2, 0.3],
    "critic/rewards/mean": [0.1, 0.2, 0.3],
    "val-core/math_dapo/acc/mean@16": [0.2, 0.3, 0.4],
    "val-core/math_dapo/acc/best@16/mean": [0.5, 0.6, 0.7],
    "val-aux/math_dapo/reward/std@16": [0.1, 0.1, 0.1],
}
PRIME = {
    "step": [1, 2, 3],
    "_step": [4, 9, 14],
    "_runtime": [60.0, 120.0, 180.0],
    "progress/tokens": [900, 850, 920],
    "progress/total_tokens": [900, 1750, 2670],
    "progress/total_samples": [16, 32, 48],
    "reward/mean": [0.1, 0.2, 0.3],
    "eval/aime2024/avg@16": [0.2, 0.3, 0.4],
    "eval/aime2024/pass@8": [0.3, 0.4, 0.5],
}
FLOPS = {"total_flops": [1e18, 2e18, 3e18], "step": [1, 2, 3], "Accuracy": [0.1, 0.2, 0.3]}
HOURS = {"GPU hours": [1, 2, 3], "tokens": [5, 9, 12], "test_score": [1, 2, 3]}
SHUFFLED = {"gpu_hours": [16, 2, 14, 4, 12, 6, 10, 8], "reward": [8, 1, 7, 2, 6, 3, 5, 4]}
OPEN_INSTRUCT = {
    "training_step": [1, 2, 3],
    "episode": [512, 1024, 1536],
    "epoch": [0.1, 0.2, 0.3],
    "scores": [1.0, 2.0, 3.0],
    "objective/verifiable_reward": [1.0, 2.0, 3.0],
    "objective/verifiable_correct_rate": [0.1, 0.2, 0.3],
    "val/sequence_lengths": [900.0, 950.0, 990.0],
    "lr": [1e-6, 1e-6, 1e-6],
}


@pytest.mark.parametrize(
    ("columns", "x", "unit", "y", "limits"),
    [
        (VERL, "training/global_step", "steps", "val-core/math_dapo/acc/mean@16", (0, 1)),
        (PRIME, "progress/total_tokens", "tokens", "eval/aime2024/avg@16", (0, 1)),
        (OPEN_INSTRUCT, "episode", "samples", "objective/verifiable_correct_rate", (0, 1)),
        ({**OPEN_INSTRUCT, "eval/scores": [4.0, 5.0, 6.0]}, "episode", "samples", "eval/scores", (-np.inf, np.inf)),
        (FLOPS, "total_flops", "FLOP", "Accuracy", (0, 1)),
        (HOURS, "GPU hours", "GPU-hours", "test_score", (-np.inf, np.inf)),
        (SHUFFLED, "gpu_hours", "GPU-hours", "reward", (-np.inf, np.inf)),
    ],
)  # fmt: skip
def test_columns_of_other_frameworks(
    tmp_path: Path, columns: dict[str, list[float]], x: str, unit: str, y: str, limits: tuple[float, float]
) -> None:
    curve = curve_of(write(tmp_path / "log.json", json.dumps(columns)))
    assert (curve.axis.key, curve.axis.unit, curve.reward_key, curve.limits) == (x, unit, y, limits)
    assert curve.compute.tolist() == sorted(columns[x])


def test_axes_that_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "log.json", json.dumps(PRIME))
    assert curve_of(path, x="samples").compute.tolist() == [16, 32, 48]
    assert curve_of(path, x="steps").axis.key == "step"
    hours = curve_of(path, x="hours", num_gpus=4)
    assert hours.axis.unit == "GPU-hours"
    np.testing.assert_allclose(hours.compute, [4 / 60, 8 / 60, 12 / 60])
    named = curve_of(path, x="_runtime", num_gpus=4)  # a column by name is in its unit, too
    np.testing.assert_allclose(named.compute, hours.compute)
    assert curve_of(path, y="avg@16").reward_key == "eval/aime2024/avg@16"


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        (PRIME, {"y": "reward/men"}, r"no column 'reward/men'\. Did you mean 'reward/mean'\?"),
        (PRIME, {"x": "total_token"}, "no column 'total_token'"),
        (PRIME, {"x": "flops"}, r"no column is known to count flops; there are step.*Give --x"),
        (PRIME, {"x": "step+nothing"}, "no column 'nothing'"),
        ({"s": [1], "a": [2], "b": [3]}, {}, r"no column is known as a reward; there are s, a, b\. Give --y"),
        ({"s": [1], "a": [2], "reward": [3]}, {}, r"no column is known as compute; there are s, a\. Give --x"),
        ({"name": ["x"], "text": ["y"]}, {}, "no column holds numbers; there are name, text"),
        (
            {"a/total_tokens": [1, 2], "b/total_tokens": [1, 3], "reward": [3, 4]},
            {},
            r"several columns could be the compute: a/total_tokens, b/total_tokens\. Give --x",
        ),
        (
            {"step": [1, 2], "val-core/a/acc/mean@4": [0, 1], "val-core/b/acc/mean@4": [0, 1]},
            {},
            "several columns could be the reward: val-core/a/acc/mean@4, val-core/b/acc/mean@4",
        ),
        ({"step": [1, 2], "a/acc": [0, 1], "b/acc": [0, 1]}, {"y": "acc"}, "several columns end in 'acc': a/acc, b/acc"),
        ({"step": [1, 2], "reward": [None, float("nan")], "acc": [None, None]}, {}, "no finite point"),
        ({"step": [1, 2], "eval/acc": [0.2, 55]}, {"limits": (0, 1)}, r"should lie in 0 to 1, but is 55 .*--limits"),
    ],
)  # fmt: skip
def test_columns_that_are_not_there(
    tmp_path: Path, columns: dict[str, list[Any]], options: dict[str, Any], words: str
) -> None:
    path = write(tmp_path / "log.json", json.dumps(columns))
    with pytest.raises(DataError, match=rf"^log: .*{words}"):
        curve_of(path, **options)
