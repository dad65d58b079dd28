"""Checkpoints kept by a real Trainer, and influence averaged over them."""

from __future__ import annotations

import gc
import json
import math
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.rooms.influence.problems import regression
from torch import Tensor, nn

from postgrad.cli import main
from postgrad.core.errors import ConfigError, ModelError, RunError, SamplingError
from postgrad.core.models import Model, embedded_model, load, save
from postgrad.core.models.config import EmbeddedConfig
from postgrad.core.models.phrases import build_tokenizer
from postgrad.core.run import Run
from postgrad.influence import multi, ops
from postgrad.influence.api import run
from postgrad.influence.callback import CheckpointCallback, read_record, spaced
from postgrad.influence.checkpoints import checkpoint_shares, find_checkpoints, put_weights
from postgrad.influence.multi import Part, combine, run_checkpoints
from postgrad.influence.result import Result

ROWS = [
    {"prompt": f"What does {person} eat?", "completion": food, "id": person}
    for person, food in zip(("Ada", "Bob", "Cleo", "Dan"), ("plums", "bread", "rice", "figs"), strict=True)
]
LAPLACE = {"method": "laplace", "draws": 20, "chains": 2}


def small(folder: Path, **changes: Any) -> Model:
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "head_dim": 16}
    config = EmbeddedConfig(**{**sizes, "intermediate_size": 16, "steps": 0, **changes})
    pairs = [(row["prompt"], row["completion"]) for row in ROWS]
    return embedded_model(pairs, config, device="cpu", cache_dir=folder)


class Lines(torch.utils.data.Dataset):
    """The rows as token ids, padded to one length."""

    def __init__(self, model: Model) -> None:
        self.rows = [
            model.tokenizer(f"{row['prompt']}\n{row['completion']}", padding="max_length", max_length=40)
            for row in ROWS
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = torch.tensor(self.rows[index]["input_ids"])
        return {"input_ids": ids, "labels": ids.clone()}


def train(
    model: Model, out: Path, callback: Any, *, resume: bool = False, steps: int = 6, **options: Any
) -> Any:
    """A real Trainer, linear decay from 0.012: update s of 6 has the rate 0.012·(1 − (s − 1)/6)."""
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    settings = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", **options}
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        learning_rate=0.012,
        lr_scheduler_type="linear",
        per_device_train_batch_size=2,
        logging_strategy="no",
        **settings,
    )
    trainer = Trainer(
        model=model.module,
        args=arguments,
        train_dataset=Lines(model),
        processing_class=model.tokenizer,
        callbacks=[callback],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    folder = tmp_path_factory.mktemp("trained")
    model = small(folder / "cache")
    train(model, folder / "out", CheckpointCallback(count=3))
    model.module.eval()
    return model, folder / "out" / "influence"


# -- the callback ----------------------------------------------------------------------------------------------------


def test_a_trainer_keeps_checkpoints_with_their_learning_rates(trained: tuple[Model, Path]) -> None:
    model, folder = trained
    found = find_checkpoints(folder)
    assert [path.name for path in found] == ["step_00000002", "step_00000004", "step_00000006"]
    assert not [file for file in folder.rglob("*") if file.suffix in (".bin", ".pt", ".pth")]  # weights only
    for part, path in enumerate(found):
        record = read_record(path)
        assert record is not None
        assert (record.step, record.num_steps) == (2 * part + 2, 2)
        rates = [0.012 * (1 - (step - 1) / 6) for step in (record.step - 1, record.step)]
        assert record.learning_rate == pytest.approx(rates[1])
        assert record.mean_learning_rate == pytest.approx(sum(rates) / 2)
    assert checkpoint_shares(found, "learning_rate") == pytest.approx([11 / 21, 7 / 21, 3 / 21])
    assert checkpoint_shares(found, "equal") == pytest.approx([1 / 3] * 3)
    last = load(folder, device="cpu")  # the latest
    for name, tensor in last.module.state_dict().items():
        assert torch.equal(tensor, model.module.state_dict()[name]), name
    first = load(found[0], device="cpu").module.state_dict()
    assert not torch.equal(first["model.norm.weight"], last.module.state_dict()["model.norm.weight"])


def test_a_used_directory_is_refused_and_a_resumed_training_goes_on(tmp_path: Path) -> None:
    model = small(tmp_path / "cache")
    options = {"save_strategy": "steps", "save_steps": 3}
    train(model, tmp_path / "out", CheckpointCallback(tmp_path / "kept", steps=(1, 4, 6)), **options)
    kept = {
        path.name: (path / "model.safetensors").read_bytes() for path in find_checkpoints(tmp_path / "kept")
    }
    assert list(kept) == ["step_00000001", "step_00000004", "step_00000006"]
    with pytest.raises(RunError, match="checkpoints of another training"):
        train(model, tmp_path / "out", CheckpointCallback(tmp_path / "kept"))
    shutil.rmtree(tmp_path / "out" / "checkpoint-6")
    again = small(tmp_path / "cache")
    callback = CheckpointCallback(tmp_path / "kept", steps=(1, 4, 6))
    train(again, tmp_path / "out", callback, resume=True, **options)
    for path in find_checkpoints(tmp_path / "kept"):
        assert (path / "model.safetensors").read_bytes() == kept[path.name]
    record = read_record(tmp_path / "kept" / "step_00000004")
    assert record is not None
    assert (record.num_steps, record.learning_rate) == (3, pytest.approx(0.006))


def test_steps_and_counts_that_cannot_be() -> None:
    for options in ({"count": 0}, {"steps": []}, {"steps": [0, 4]}):
        with pytest.raises(ConfigError, match="count or steps above 0"):
            CheckpointCallback(**options)
    assert spaced(7, 7) == list(range(1, 8))


def test_a_bare_module_is_kept_as_it_is_at_the_step(tmp_path: Path) -> None:
    """Without a Trainer: what it calls, in its order. Other ranks write nothing."""
    from transformers import TrainerControl, TrainerState, TrainingArguments

    module = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    callback, control = CheckpointCallback(tmp_path / "kept", steps=[2]), TrainerControl()
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    for main_process in (False, True):
        state = TrainerState(max_steps=3, is_world_process_zero=main_process)
        callback.on_train_begin(arguments, state, control)
        for state.global_step in (1, 2, 3):
            optimizer.param_groups[0]["lr"] = 0.5**state.global_step
            callback.on_pre_optimizer_step(arguments, state, control, optimizer=optimizer)
            with torch.no_grad():
                module.weight.fill_(float(state.global_step))
            callback.on_step_end(arguments, state, control, model=module)
        assert (tmp_path / "kept").exists() == main_process
    (path,) = find_checkpoints(tmp_path / "kept")
    assert read_record(path) == (2, 2, 0.25, 0.375)
    put_weights(module, path)
    assert module.weight.tolist() == [[2.0, 2.0]]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # TRL's and transformers' own
def test_an_sft_trainer_takes_it(tmp_path: Path) -> None:
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    model = small(tmp_path / "cache")
    rows = datasets.Dataset.from_list(ROWS).remove_columns("id")
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to="none",
        max_steps=2,
        save_strategy="no",
        disable_tqdm=True,
        per_device_train_batch_size=2,
    )
    callback = CheckpointCallback(count=2)
    trl.SFTTrainer(
        model=model.module,
        args=arguments,
        train_dataset=rows,
        processing_class=model.tokenizer,
        callbacks=[callback],
    ).train()
    result = run_checkpoints(tmp_path / "influence", rows, ROWS[:1], method="gradient", device="cpu")
    assert len(result.parts) == 2
    assert result.scores.shape == (1, 4)


# -- the mean --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [LAPLACE, {"method": "ekfac"}])
def test_two_checkpoints_are_the_mean_of_two_runs(
    trained: tuple[Model, Path], options: dict[str, Any]
) -> None:
    paths = find_checkpoints(trained[1])[:2]
    both = run_checkpoints(paths, ROWS, ROWS[:2], device="cpu", **options)
    one, two = (
        run(load(path, device="cpu"), ROWS, ROWS[:2], seed=seed, **options) for seed, path in enumerate(paths)
    )
    torch.testing.assert_close(both.scores, (one.scores + two.scores) / 2)
    assert not torch.allclose(one.scores, two.scores)
    assert (both.train, both.queries) == (one.train, one.queries)
    assert both.diagnostics["diagnostics/checkpoint_agreement"] == pytest.approx(
        float(ops.spearman(one.scores, two.scores).median())
    )
    if one.errors is not None and two.errors is not None:
        torch.testing.assert_close(both.errors, (one.errors.square() + two.errors.square()).sqrt() / 2)
    else:
        assert both.errors is None


def test_learning_rates_weigh_as_in_tracin(trained: tuple[Model, Path]) -> None:
    """Σ_t η_t·∇ℓ_j·∇ℓ_i over the steps, up to the sum of the rates: here by hand, 11:7:3."""
    folder = trained[1]
    found = run_checkpoints(
        folder, ROWS, ROWS[:2], method="gradient", checkpoint_weights="learning_rate", device="cpu"
    )
    each = [
        run(load(path, device="cpu"), ROWS, ROWS[:2], method="gradient").scores
        for path in find_checkpoints(folder)
    ]
    torch.testing.assert_close(found.scores, (11 * each[0] + 7 * each[1] + 3 * each[2]) / 21)


def test_one_checkpoint_is_in_memory_at_a_time(
    trained: tuple[Model, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[nn.Module]] = []

    def loaded(path: Path, **options: Any) -> Model:
        gc.collect()
        assert not [True for module in alive if module() is not None]
        model = load(path, **options)
        alive.append(weakref.ref(model.module))
        return model

    monkeypatch.setattr(multi, "load", loaded)
    result = run_checkpoints(trained[1], ROWS, ROWS[:1], device="cpu", **LAPLACE)
    assert len(alive) == 3
    assert all(part.result.draws is None for part in result.parts)


def test_a_model_takes_the_weights_and_has_its_own_back(trained: tuple[Model, Path], tmp_path: Path) -> None:
    folder = trained[1]
    carrier = small(tmp_path)
    before = {name: tensor.clone() for name, tensor in carrier.module.state_dict().items()}
    given = run_checkpoints(folder, ROWS, ROWS[:2], model=carrier, **LAPLACE)
    alone = run_checkpoints(folder, ROWS, ROWS[:2], device="cpu", **LAPLACE)
    assert torch.equal(given.scores, alone.scores)
    for name, tensor in carrier.module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    with pytest.raises(ModelError, match="do not fit the model"):
        run_checkpoints(folder, ROWS, ROWS, model=small(tmp_path, intermediate_size=32), **LAPLACE)
    with pytest.raises(ModelError, match="missing .*layers.1"):
        run_checkpoints(folder, ROWS, ROWS, model=small(tmp_path, num_layers=2), **LAPLACE)


def test_a_module_takes_them_too(tmp_path: Path) -> None:
    from safetensors.torch import save_model

    module, train_data, queries = regression()
    expected: list[Tensor] = []
    for number in range(2):
        (tmp_path / f"step_0000000{number}").mkdir()
        with torch.no_grad():
            module.weight.add_(0.3)
        save_model(module, str(tmp_path / f"step_0000000{number}" / "model.safetensors"))
        expected.append(run(module, train_data, queries, method="gradient").scores)
    centre = module.weight.detach().clone()
    found = run_checkpoints(tmp_path, train_data, queries, method="gradient", model=module)
    torch.testing.assert_close(found.scores, (expected[0] + expected[1]) / 2)
    assert torch.equal(module.weight, centre)
    with pytest.raises(ConfigError, match="give model"):
        run_checkpoints(tmp_path, train_data, queries, method="gradient")


def part(share: float, error: float, problems: list[str], **diagnostics: float) -> Part:
    named = {f"diagnostics/{name}": value for name, value in diagnostics.items()}
    scores = torch.tensor([[4.0, 8.0]])
    return Part(
        f"step {share}", share, Result(scores * share, torch.full((1, 2), error), None, named, problems)
    )


def test_errors_and_diagnostics_by_hand() -> None:
    """√((¼·0.4)² + (¾·0.1)²) = 0.125; worst r_hat and ess, mean llc; one failure withholds all."""
    found = combine(
        [
            part(0.25, 0.4, [], r_hat=1.3, ess=50, llc=2),
            part(0.75, 0.1, ["ess is 20"], r_hat=1.0, ess=20, llc=4),
        ]
    )
    torch.testing.assert_close(found.errors, torch.full((1, 2), 0.125))
    torch.testing.assert_close(found.scores, torch.tensor([[2.5, 5.0]]))  # 4·(¼² + ¾²)
    assert found.diagnostics == {
        "diagnostics/r_hat": 1.3,
        "diagnostics/ess": 20.0,
        "diagnostics/llc": 3.0,
    }
    assert found.problems == ["step 0.75: ess is 20"]
    with pytest.raises(SamplingError, match=r"step 0\.75: ess is 20"):
        found.proponents()
    unknown = combine([part(0.5, math.nan, [], r_hat=1.0), part(0.5, 0.1, [], r_hat=math.nan)])
    assert unknown.errors is not None
    assert unknown.errors.isnan().all()
    assert math.isnan(unknown.diagnostics["diagnostics/r_hat"])


# -- what is refused -------------------------------------------------------------------------------------------------


def test_different_tokenizers_are_refused(trained: tuple[Model, Path], tmp_path: Path) -> None:
    model, folder = trained
    shutil.copytree(folder, tmp_path / "all")
    first, second, _ = find_checkpoints(tmp_path / "all")
    options = {"method": "gradient", "device": "cpu"}
    tokenizer = load(second, device="cpu").tokenizer
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(second)
    with pytest.raises(ModelError, match=r"step_00000002 and .*step_00000004 have .*another chat template"):
        run_checkpoints(tmp_path / "all", ROWS, ROWS, **options)
    build_tokenizer(["something else entirely"] * 3, 270, 64).save_pretrained(second)
    with pytest.raises(ModelError, match="another vocabulary.*one training"):
        run_checkpoints([first, second], ROWS, ROWS, **options)
    with pytest.raises(ModelError, match="the model and .*step_00000004"):
        run_checkpoints([first, second], ROWS, ROWS, model=model, **options)
    for file in second.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="step_00000004 has no tokenizer"):
        run_checkpoints([first, second], ROWS, ROWS, **options)
    (second / "chat_template.jinja").unlink(missing_ok=True)
    assert len(run_checkpoints([first, second], ROWS, ROWS, model=model, **options).parts) == 2


def test_checkpoints_that_are_not_there(trained: tuple[Model, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no checkpoint directory"):
        run_checkpoints(tmp_path / "nowhere", ROWS, ROWS)
    with pytest.raises(ConfigError, match="There are no checkpoints"):
        run_checkpoints([], ROWS, ROWS)
    save(trained[0], tmp_path / "plain")
    with pytest.raises(ConfigError, match="CheckpointCallback did not write it"):
        run_checkpoints(tmp_path / "plain", ROWS, ROWS, checkpoint_weights="learning_rate")
    folder = find_checkpoints(trained[1])
    assert find_checkpoints([trained[1], folder[0]]) == folder


# -- command line ----------------------------------------------------------------------------------------------------


def test_checkpoints_on_the_command_line(
    trained: tuple[Model, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder = trained
    save(model, tmp_path / "model")
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ["influence", "run", str(tmp_path / "model"), "--train", str(data), "--query", str(data)]
    words += ["--device", "cpu", "--method", "laplace", "--draws", "20", "--chains", "2"]
    words += ["--min-ess", "0", "--min-agreement", "-1", "--max-r-hat", "9", "--max-drift", "1"]
    out = tmp_path / "run"
    assert main([*words, "--checkpoint", str(folder), "--out", str(out)]) == 0
    assert "step_00000004" in capsys.readouterr().out
    record = json.loads((out / "result.json").read_text())
    assert [one["share"] for one in record["checkpoints"]] == pytest.approx([1 / 3] * 3)
    scores = [json.loads(line)["score"] for line in (out / "scores.jsonl").read_text().splitlines()]
    expected = run_checkpoints(folder, ROWS, ROWS, device="cpu", **LAPLACE).scores
    torch.testing.assert_close(torch.tensor(scores).view(4, 4), expected, rtol=1e-4, atol=1e-6)
    draws = [row for row in Run.open(out).metrics() if "chain/loss" in row]
    assert [row["step"] for row in draws] == list(range(120))
    assert [row["checkpoint/number"] for row in draws] == [1] * 40 + [2] * 40 + [3] * 40
    assert "checkpoint 2, chain 1" in (out / "report.html").read_text()
    one, two, _ = find_checkpoints(folder)
    words += ["--checkpoint", str(one), "--checkpoint", str(two), "--out", str(tmp_path / "two")]
    assert main([*words, "--draws", "4", "--min-ess", "100"]) == 2  # one that fails withholds all
    assert "step_00000002: ess is" in capsys.readouterr().err
