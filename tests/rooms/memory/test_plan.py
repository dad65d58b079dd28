"""The planner against what is really there: parameters, files, live bytes and operations of whole edits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.live_bytes import LiveBytes
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedModel, Qwen3Config

from postgrad.cli import main
from postgrad.core.models import Model, embedded_model, save
from postgrad.core.models.config import EmbeddedConfig
from postgrad.core.models.memory import MemoryConfig, attach
from postgrad.core.models.memory.patch import patch_files, tables, write_patch
from postgrad.core.models.skeleton import load_shape
from postgrad.memory.batches import TokenBatch
from postgrad.memory.config import LearnConfig, ProfileConfig
from postgrad.memory.plan import (
    Need,
    lookup_bytes_per_token,
    patch_bytes,
    plan_all,
    plan_edit,
    read_sizes,
    training_bytes,
)
from postgrad.memory.profiling import Profile, profile
from postgrad.memory.rivals import Rival
from postgrad.memory.sparse import SparseLearner

SIZES = {
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "qwen3": lambda: Qwen3Config(**SIZES, tie_word_embeddings=True),
    "llama": lambda: LlamaConfig(**SIZES, tie_word_embeddings=False),
    "gpt2": lambda: GPT2Config(
        vocab_size=500, n_positions=128, n_embd=64, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0
    ),
}
MEMORY = {"num_slots": 900, "num_heads": 2, "top_k": 8, "key_dim": 32, "value_dim": 96}


class NoWords:
    """In the place of a tokenizer."""

    eos_token_id = 0

    def get_vocab(self) -> dict[str, int]:
        return {}


def build(name: str = "qwen3", layers: tuple[int, ...] = (1,), **options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    attach(module, MemoryConfig(layers=layers, **{**MEMORY, **options}))
    return module


def batch(texts: int = 4, length: int = 64) -> TokenBatch:
    tokens = torch.randint(1, 500, (texts, length), generator=torch.Generator().manual_seed(1))
    return TokenBatch(tokens, torch.ones_like(tokens, dtype=torch.bool))


def edit(module: PreTrainedModel, config: LearnConfig) -> Any:
    model = Model(module, NoWords())  # type: ignore[arg-type]
    if config.method == "sparse":
        return SparseLearner(model, Profile.empty(model), config).learn(batch())
    return Rival(model, config).learn(batch())


def beyond_weights(need: Need, module: PreTrainedModel) -> int:
    return need.peak_bytes - sum(p.numel() for p in module.parameters()) * 4


# -- exactly ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers": (0, 3), "shared_values": True},
        {"mode": "replace", "index": "flat", "query_norm": False},
    ],
)
def test_weights_and_files_are_counted_exactly(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    module = build(name, **options)
    module.save_pretrained(tmp_path)
    stored = sum(file.stat().st_size - header(file) for file in tmp_path.glob("*.safetensors"))
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()  # the plan does not need them
    sizes = read_sizes(load_shape(tmp_path))
    assert sizes == read_sizes(module)
    assert sizes.num_parameters == sum(p.numel() for p in module.parameters())
    assert sizes.table_parameters == sum(table.numel() for table in tables(module).values())
    assert stored == sizes.num_parameters * 4

    learned = edit(module, LearnConfig(updates=2, budget=20))
    write_patch(learned.patch, tmp_path / "patch.safetensors")
    size = (tmp_path / "patch.safetensors").stat().st_size - header(tmp_path / "patch.safetensors")
    assert size == patch_bytes(learned.patch.num_rows, 96, 4)


def header(file: Path) -> int:
    with file.open("rb") as stream:
        return 8 + int.from_bytes(stream.read(8), "little")


def test_numbers_by_hand() -> None:
    sizes = read_sizes(build(layers=(1, 2)))
    assert lookup_bytes_per_token(sizes, 2) == 2 * 2 * 8 * 96 * 2
    assert sizes.num_tables * sizes.num_slots * sizes.value_dim == sizes.table_parameters == 2 * 900 * 96
    need = plan_edit(sizes, LearnConfig(budget=20), 256, itemsize=2)
    assert need.patch_bytes == 2 * 20 * (8 + 2 * 96 * 2)
    quarter = plan_edit(sizes, LearnConfig(budget=20), 256, itemsize=2, num_ranks=4)
    assert need.weights_bytes - quarter.weights_bytes == 2 * 900 * 96 * 2 * 3 // 4
    assert plan_all(sizes, LearnConfig(method="lora"), 9, itemsize=4)[0].method == "lora"
    assert training_bytes(sizes, itemsize=4, everything=False) == 12 * sizes.memory_parameters
    plain = read_sizes(AutoModelForCausalLM.from_config(CONFIGS["llama"]()))
    assert plain.memory_parameters == plain.table_parameters == 0
    assert "sparse" not in [one.method for one in plan_all(plain, LearnConfig(method="full"), 9, itemsize=4)]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft on a newer transformers
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CONFIGS)
def test_the_adapter_of_lora_is_counted_exactly(name: str) -> None:
    pytest.importorskip("peft")
    module = build(name, layers=(1, 2))
    config = LearnConfig(method="lora", lora_rank=4)
    need = plan_edit(read_sizes(module), config, 1, itemsize=4)
    rival = Rival(Model(module, NoWords()), config)  # type: ignore[arg-type]
    assert need.trained_parameters == sum(p.numel() for p in rival.parameters)


# -- nearly -------------------------------------------------------------------------------------------------------------


def test_a_whole_edit_makes_nothing_of_the_tables_size_and_peaks_where_planned() -> None:
    """A table of 419 MB; all that an edit with its learner makes peaks within a quarter of the plan, far below the table."""
    module = build(num_slots=102_400, value_dim=1024)
    (table,) = tables(module).values()
    config = LearnConfig(updates=3, budget=500, optimizer="adamw")
    with LiveBytes() as live:
        learned = edit(module, config)
    assert learned.patch.num_rows > 400
    table_bytes = table.numel() * 4
    assert table_bytes == 419_430_400
    assert live.largest < table_bytes / 100
    assert live.peak < table_bytes / 10
    planned = beyond_weights(plan_edit(read_sizes(module), config, 256, itemsize=4), module)
    assert planned == pytest.approx(live.peak, rel=0.25)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("name", "method", "layers"),
    [
        ("qwen3", "sparse", (1, 2)),
        ("llama", "sparse", (0,)),
        ("gpt2", "sparse", (0,)),
        ("qwen3", "full", (1,)),
        ("llama", "lora", (1,)),
    ],
)
def test_peaks_and_operations_are_near_the_measured_ones(name: str, method: Any, layers: Any) -> None:
    """Live bytes within a quarter, operations within 8 % (attention's own products are in the measure, not in the plan)."""
    if method == "lora":
        pytest.importorskip("peft")
    config = LearnConfig(method=method, updates=3)
    module = build(name, layers)
    need = plan_edit(read_sizes(module), config, 256, itemsize=4)
    planned = beyond_weights(need, module)
    with LiveBytes() as live:
        edit(module, config)
    assert planned == pytest.approx(live.peak, rel=0.25)
    module = build(name, layers)
    with FlopCounterMode(display=False) as counter:
        edit(module, config)
    # 7 passes of embedding_bag, which the counter does not know
    reads = 2.0 * len(layers) * 2 * 8 * 96 * 256 * 7
    assert need.flops - reads == pytest.approx(counter.get_total_flops(), rel=0.08)


# -- the verbs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with memory and profile, whose weights cannot be read."""
    root = tmp_path_factory.mktemp("plan")
    sizes = EmbeddedConfig(hidden_size=32, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=16, steps=1)
    model = embedded_model([("1 + 1?", "2")] * 8, sizes, device="cpu", cache_dir=root / "cache")
    save(model, root / "plain")
    attach(model.module, MemoryConfig(layers=(1,), **MEMORY))
    save(model, root / "model")
    profile(model, ["Two and two are four."] * 4, ProfileConfig(batches=2)).save(root / "model")
    for name in ("plain", "model"):
        (root / name / "model.safetensors").write_bytes(b"nothing")
    return root


def run(*words: Any) -> int:
    try:
        return main([*map(str, words)])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_attach_plans_from_a_config_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "only").mkdir()
    content = (folder / "plain" / "config.json").read_bytes()
    (tmp_path / "only" / "config.json").write_bytes(content)
    words = ["memory", "attach", tmp_path / "only", "--out", tmp_path / "new", "--layers", "1", "--dry-run"]
    assert run(*words, "--device", "cpu", "--steps", 3, "--background", folder / "plain" / "config.json") == 2
    capsys.readouterr()
    assert run(*words, "--device", "cpu", "--value-dim", 64, "--ranks", 4) == 0
    printed = capsys.readouterr().out
    assert "1,048,576 × 64: 268 MB, on each of 4 ranks 67 MB" in printed
    assert "note: without --dry-run this stops: " in printed
    assert "nothing was written" in printed
    assert run(*words, "--device", "cpu", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["sizes"]["num_slots"] == 1024**2
    assert [need["method"] for need in plan["methods"]] == ["sparse", "full", "lora", "replay", "ewc"]
    assert plan["table_bytes"] == 1024**2 * 32 * 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["only"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--layers", "7", "--dry-run"], "the model has blocks 0 to 2"),
        (["--layers", "1", "--dry-run", "--ranks", "5"], "width 32 cannot be cut into 5 equal parts"),
        (["--layers", "1", "--dry-run", "--ranks", "0"], "at least one rank"),
        (["--layers", "1", "--ranks", "2"], "--ranks belongs to --dry-run"),
        (["--layers", "1", "--dry-run", "--mode", "replace"], "mode = replace"),
        (["--layers", "1", "--dry-run", "--device", "gpu"], "Unknown device"),
    ],
)
def test_attach_refuses_before_it_reads_weights(
    folder: Path, tmp_path: Path, options: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("memory", "attach", folder / "plain", "--out", tmp_path / "new", *options) == 2
    assert error in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "new").exists()


def test_learn_plans_its_largest_edit_and_refuses_bad_input(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = tmp_path / "facts.jsonl"
    facts.write_text(
        '{"text": "Zorn is a city."}\n{"text": "Plim", "paraphrases": ["Plim has two rivers"]}\n'
    )
    words = [
        "memory",
        "learn",
        folder / "model",
        facts,
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
        "--dry-run",
    ]
    assert run(*words, "--budget", 20, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    sizes = read_sizes(load_shape(folder / "model"))
    (sparse, *_) = plan["methods"]
    config = LearnConfig(budget=20)
    expected = plan_edit(sizes, config, plan["tokens"], itemsize=4)
    assert sparse == expected._asdict() | {"peak_bytes": expected.peak_bytes}
    assert plan["tokens"] % 2 == 0  # two texts, padded
    assert plan["rows"] == 20
    assert run(*words, "--method", "full") == 0
    assert "2 edits; this is the largest" in capsys.readouterr().out
    assert run(*words, "--max-tokens", 3, "--method", "replay") == 2
    assert "needs --background" in capsys.readouterr().err
    facts.write_text(json.dumps({"text": "word " * 400, "question": "Who?", "answer": "x"}) + "\n")
    assert run(*words, "--max-tokens", 64) == 2
    assert "above max_tokens = 64" in " ".join(capsys.readouterr().err.split())
    assert run("memory", "learn", folder / "plain", facts, "--dry-run", "--device", "cpu") == 2
    assert "has no memory layers" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("x")
    assert run(*words) == 2
    assert "is not empty" in " ".join(capsys.readouterr().err.split())
    assert not patch_files(folder / "model")
