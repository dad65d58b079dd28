"""Teaching facts to a small model with memory: what changes and what does not, patches, streams, rivals, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.rooms.memory.small import PAIRS, TEXTS, Rows, batch_of, options, values

from postgrad.core.errors import DataError, ModelError, TrainingError
from postgrad.core.models import embedded_model, load
from postgrad.core.models.config import EmbeddedConfig
from postgrad.core.models.memory.patch import apply_patch, patch_files, read_patch, tables, write_patch
from postgrad.memory import ops
from postgrad.memory.batches import TokenBatch
from postgrad.memory.config import ProfileConfig
from postgrad.memory.data import contradictions, read_facts
from postgrad.memory.evaluate import exact_match, text_loss, word_f1
from postgrad.memory.learning import Probes, learn
from postgrad.memory.profiling import Profile, profile
from postgrad.memory.rivals import Rival
from postgrad.memory.sparse import Prefix, SparseLearner
from postgrad.memory.store import PatchStore

# -- which slots -----------------------------------------------------------------------------------------------------


def test_scores_equal_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    slots = torch.randint(0, 12, (30, 4), generator=generator)
    counted = torch.rand(30, generator=generator) < 0.7
    counts = ops.access_counts(slots, 15, counted)
    expected = [sum(int((s == i).sum()) for s, c in zip(slots, counted, strict=True) if c) for i in range(15)]
    assert counts.tolist() == expected
    batches = torch.randint(0, 9, (15,), generator=generator)
    import math

    total = sum(expected)
    wanted = [c / total * math.log(10 / (b + 1)) for c, b in zip(expected, batches.tolist(), strict=True)]
    assert ops.tf_idf(counts, batches, 9).tolist() == pytest.approx(wanted)
    rows = ops.choose_rows(ops.tf_idf(counts, batches, 9), counts, 5)
    best = sorted((i for i in range(15) if expected[i]), key=lambda i: (-wanted[i], i))[:5]
    assert rows.tolist() == sorted(best)
    assert ops.choose_rows(ops.term_frequency(counts), counts, 99).tolist() == [
        i for i in range(15) if expected[i]
    ]


def test_the_kl_score_sums_to_the_divergence() -> None:
    counts, background = torch.tensor([3, 0, 1]), torch.tensor([1.0, 2.0, 4.0])
    p, q = counts / 4, (background + 1 / 3) / 8
    expected = float((p[p > 0] * (p[p > 0] / q[p > 0]).log()).sum())
    assert float(ops.kl_score(counts, background).sum()) == pytest.approx(expected)


def test_the_profile_counts_batches_and_never_padding(folder: Path) -> None:
    model = load(folder, device="cpu")
    config = ProfileConfig(batches=3, batch_tokens=60)
    found = profile(model, TEXTS, config)
    again = profile(model, TEXTS, config)
    assert found.num_batches == 3
    for name, counts in found.counts.items():
        assert torch.equal(counts, again.counts[name])
        assert int(found.batch_counts[name].max()) <= 3
    alone = Profile.empty(model)
    layers = list(found.counts)
    padded = batch_of(model, [TEXTS[0], TEXTS[0] + " and much more of it"])
    from postgrad.memory.profiling import Recording, require_memory

    with torch.no_grad(), Recording(require_memory(model)) as recording:
        model.module(input_ids=padded.tokens, attention_mask=padded.counted.long())
        accesses = recording.take()
    for name in layers:
        alone.add(name, ops.access_counts(accesses[name].slots, 400, padded.counted.flatten()))
        assert int(alone.counts[name].sum()) == int(padded.counted.sum()) * 2 * 4
    loaded = Profile.load(folder, model)
    assert loaded.num_batches > 0
    with pytest.raises(DataError, match="no background profile"):
        Profile.load(folder.parent, model)


# -- one edit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("score", ["tf_idf", "tf", "kl", "all"])
def test_an_edit_changes_few_rows_and_nothing_else(folder: Path, optimizer: str, score: str) -> None:
    model = load(folder, device="cpu")
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    learner = SparseLearner(
        model,
        Profile.load(folder, model),
        options(optimizer=optimizer, score=score, lr=1.0 if optimizer == "sgd" else 0.1),
    )
    learned = learner.learn(batch_of(model))
    assert learned.losses[-1] < learned.losses[0]
    for name, tensor in model.module.state_dict().items():
        if name not in learned.patch.changes:
            assert torch.equal(tensor, before[name]), name
            continue
        change = learned.patch.changes[name]
        moved = (tensor != before[name]).any(-1).nonzero().squeeze(-1)
        assert set(moved.tolist()) <= set(change.rows.tolist())
        assert torch.equal(change.old, before[name][change.rows])
        assert torch.equal(change.new, tensor[change.rows])
    if score != "all":
        assert all(rows <= 16 * 2 for rows in learned.rows)  # the budget holds in each layer and update
    apply_patch(model.module, learned.patch, undo=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())


def test_one_sgd_step_equals_the_papers_mask_of_a_dense_gradient(folder: Path) -> None:
    model, dense = load(folder, device="cpu"), load(folder, device="cpu")
    learner = SparseLearner(model, Profile.load(folder, model), options(updates=1, lr=0.5, max_grad_norm=1e9))
    patch = learner.learn(batch_of(model)).patch
    dense.module.requires_grad_(False)
    for table in dense.module.parameters():
        table.requires_grad_(any(table is other for other in tables(dense.module).values()))
    batch = batch_of(dense)
    dense.module(
        input_ids=batch.tokens, attention_mask=batch.counted.long(), labels=batch.labels
    ).loss.backward()
    for name, table in tables(dense.module).items():
        rows = patch.changes[name].rows
        assert table.grad is not None
        mask = torch.zeros(len(table), 1)
        mask[rows] = 1
        expected = table.detach() - 0.5 * mask * table.grad
        torch.testing.assert_close(tables(model.module)[name].detach(), expected, rtol=1e-4, atol=1e-6)


def test_what_comes_before_the_memory_is_computed_once_and_exactly(folder: Path) -> None:
    model = load(folder, device="cpu")
    batch = batch_of(model)
    plain = model.module(input_ids=batch.tokens, attention_mask=batch.counted.long()).logits
    calls: list[int] = []
    first = model.module.model.layers[0].self_attn
    first.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad(), Prefix(model, 1) as prefix:
        for _ in range(3):
            assert torch.equal(prefix.run(batch).logits, plain)
    assert len(calls) == 1
    model.module(input_ids=batch.tokens)
    assert len(calls) == 2  # all is as it was


def test_a_loss_that_is_not_finite_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(folder, device="cpu")
    before = values(model)
    learner = SparseLearner(model, Profile.load(folder, model), options(lr=1.0))
    real, calls = learner._loss, []

    def breaking(batch: TokenBatch, prefix: Prefix) -> torch.Tensor:
        calls.append(values(model))
        return real(batch, prefix) * (float("nan") if len(calls) == 3 else 1.0)

    monkeypatch.setattr(learner, "_loss", breaking)
    with pytest.raises(TrainingError, match="Lower lr"):
        learner.learn(batch_of(model))
    assert not torch.equal(calls[2][0], before[0])  # two updates had been made
    assert all(torch.equal(a, b) for a, b in zip(values(model), before, strict=True))


# -- patches ---------------------------------------------------------------------------------------------------------


def teach(path: Path, text: str, **changes: Any) -> None:
    model = load(path, device="cpu")
    learned = SparseLearner(model, Profile.load(path, model), options(lr=0.5, **changes)).learn(
        batch_of(model, [text])
    )
    PatchStore(path).append(learned.patch)
    assert all(
        torch.equal(a, b) for a, b in zip(values(load(path, device="cpu")), values(model), strict=True)
    )


def test_patches_apply_on_loading_roll_back_exactly_and_move_to_copies(
    folder: Path, copied: Path, tmp_path: Path
) -> None:
    original = values(load(copied, device="cpu"))
    for text in ("Zorn is a city.", "Plim has two rivers.", "Zorn is a large city."):
        teach(copied, text)
    store = PatchStore(copied)
    taught = values(load(copied, device="cpu"))
    first, second, third = store.entries()
    assert (first.number, second.number, third.number) == (1, 2, 3)
    copies = store.export(store.entries(), tmp_path / "patches")
    with pytest.raises(ModelError, match="shares rows with later ones: .*3 [(]"):
        store.roll_back(first)
    for entry in (third, second, first):
        store.roll_back(store.find(entry.patch.id[:8]))
    assert all(torch.equal(a, b) for a, b in zip(values(load(copied, device="cpu")), original, strict=True))
    assert store.append(read_patch(copies[0])).number == 4  # numbers are not used twice
    store.roll_back(store.find("4"))
    model = load(folder, device="cpu")
    for path in copies:
        apply_patch(model.module, read_patch(path))
    assert all(torch.equal(a, b) for a, b in zip(values(model), taught, strict=True))
    with pytest.raises(ModelError, match="rows in .* have been changed by others"):
        apply_patch(model.module, read_patch(copies[0]))
    with pytest.raises(ModelError, match="has no patch 'abc'"):
        store.find("abc")


def test_a_patch_of_another_model_and_a_damaged_one_are_refused(copied: Path, tmp_path: Path) -> None:
    teach(copied, "Zorn is a city.")
    (path,) = patch_files(copied)
    model = load(copied, device="cpu")
    with torch.no_grad():
        model.module.get_input_embeddings().weight.add_(1.0)
    with pytest.raises(ModelError, match="was made for model"):
        apply_patch(model.module, read_patch(path), undo=True)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is damaged"):
        load(copied, device="cpu")


def test_a_full_disk_leaves_no_half_patch(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teach(copied, "Zorn is a city.")
    patch = PatchStore(copied).entries()[0].patch

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ModelError, match="space"):
        PatchStore(copied).append(patch)
    monkeypatch.undo()
    assert len(patch_files(copied)) == 1
    assert not list((copied / "memory" / "patches").glob(".*"))


_KILLED = """
import os, signal, sys
from pathlib import Path
from postgrad.core.models.memory.patch import read_patch, write_patch
patch, count = read_patch(Path(sys.argv[1])), int(sys.argv[3])
calls = {"n": 0}
def dying(real):
    def call(*args, **kwargs):
        if calls["n"] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        calls["n"] += 1
        return real(*args, **kwargs)
    return call
os.fsync, os.open, Path.rename, Path.open = dying(os.fsync), dying(os.open), dying(Path.rename), dying(Path.open)
write_patch(patch, Path(sys.argv[2]))
"""


@pytest.mark.parametrize("count", range(6))
def test_a_kill_between_any_two_system_calls_leaves_all_or_nothing(copied: Path, count: int) -> None:
    teach(copied, "Zorn is a city.")
    (path,) = patch_files(copied)
    goal = path.with_name("000002.safetensors")
    done = subprocess.run([sys.executable, "-c", _KILLED, str(path), str(goal), str(count)], check=False)
    assert done.returncode in (0, -signal.SIGKILL)
    if goal.exists():
        assert read_patch(goal).id == read_patch(path).id
    found = PatchStore(copied).entries()
    assert len(found) in (1, 2)


def test_a_patch_cut_at_any_byte_is_not_taken_for_one(copied: Path, tmp_path: Path) -> None:
    teach(copied, "Zorn is a city.")
    content = patch_files(copied)[0].read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in (0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1):
        cut.write_bytes(content[:length])
        with pytest.raises(ModelError, match="no patch"):
            read_patch(cut)
    write_patch(read_patch(patch_files(copied)[0]), cut)
    assert read_patch(cut).id == read_patch(patch_files(copied)[0]).id


# -- streams ---------------------------------------------------------------------------------------------------------


def facts_file(tmp_path: Path, count: int = 3) -> Path:
    path = tmp_path / "facts.jsonl"
    names = ["Zorn", "Blim", "Kara", "Vost"][:count]
    rows = [
        {
            "id": n,
            "text": f"{n} has a dog.",
            "paraphrases": [f"A dog lives with {n}."],
            "question": f"What has {n}?",
            "answer": "dog",
        }
        for n in names
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_stream_goes_on_where_it_was_killed(folder: Path, copied: Path, tmp_path: Path) -> None:
    import shutil

    facts, config = read_facts(facts_file(tmp_path)), options(lr=0.5, evaluate_every=1)
    log, notes = Rows(), []
    probes = Probes(keep=tuple(facts[:1]), background=tuple(TEXTS[:4]), answer_tokens=4)
    learn(load(copied, device="cpu"), copied, facts, config, log, probes=probes)
    assert [step for step, _ in log.rows] == [0, 1, 2, 3]
    assert {"learn/rows", "learned/exact", "kept/exact", "kept/loss"} <= log.rows[-1][1].keys()
    whole = values(load(copied, device="cpu"))
    half = Path(shutil.copytree(copied, tmp_path / "half"))
    patch_files(half)[-1].unlink()  # killed before the last patch was there
    resumed = Rows()
    learn(load(half, device="cpu"), half, facts, config, resumed, probes=probes, note=notes.append)
    assert [step for step, _ in resumed.rows] == [3]
    assert "2 of 3 edits are in force already" in notes[0]
    assert all(torch.equal(a, b) for a, b in zip(values(load(half, device="cpu")), whole, strict=True))
    again = Rows()
    learn(load(half, device="cpu"), half, facts, config, again, probes=probes)
    assert again.rows == []


@pytest.mark.parametrize("method", ["full", "lora", "replay", "ewc"])
@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft on a newer transformers
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_rivals_learn_the_same_texts(folder: Path, method: str) -> None:
    if method == "lora":
        pytest.importorskip("peft")
    model = load(folder, device="cpu")
    rival = Rival(model, options(method=method, lr=1e-2, updates=5), TEXTS)
    losses = rival.learn(batch_of(model))
    assert losses[-1] < losses[0] - 0.1
    if method == "lora":
        assert all("lora" in name for name, p in model.module.named_parameters() if p.requires_grad)


def test_replay_and_ewc_hold_the_background_better_than_full_finetuning(folder: Path) -> None:
    kept = {}
    for method in ("full", "replay", "ewc"):
        model = load(folder, device="cpu")
        rival = Rival(model, options(method=method, lr=1e-2, updates=12, ewc_strength=1e4), TEXTS)
        rival.learn(batch_of(model))
        kept[method] = text_loss(model, TEXTS)
    assert kept["replay"] < kept["full"]
    assert kept["ewc"] < kept["full"]


# -- evaluation and input ----------------------------------------------------------------------------------------------


def test_answers_are_compared_as_squad_does() -> None:
    assert exact_match("The  Plim!", "plim") == 1.0
    assert word_f1("red dog", "the red, red dog") == pytest.approx(0.8)
    assert word_f1("", "x") == 0.0


def test_text_loss_is_the_mean_over_tokens_without_padding(folder: Path) -> None:
    model = load(folder, device="cpu")
    total, count = 0.0, 0
    for text in TEXTS[:3]:
        ids = torch.tensor([[*model.tokenizer(text)["input_ids"], model.tokenizer.eos_token_id]])
        with torch.no_grad():
            logps = model.module(ids).logits[0, :-1].log_softmax(-1)
        total -= float(logps.gather(1, ids[0, 1:, None]).sum())
        count += ids.shape[1] - 1
    assert text_loss(model, TEXTS[:3]) == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"question": "Who?"}', "no text"),
        ('{"text": "x", "question": "Who?"}', "a question needs an answer"),
        ('{"text": "x", "question": "Who?", "answer": ""}', "the answer is no text"),
        ('{"text": "x", "paraphrases": "y"}', "paraphrases are a list"),
        ("nonsense", "is no JSON"),
        ("[1]", "is no object"),
        ("", "is empty"),
    ],
)
def test_bad_facts_are_refused_with_their_place(line: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=words):
        read_facts(path)


def test_documents_and_contradictions(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("One.")
    (tmp_path / "docs" / "b.md").write_text("Two.")
    found = read_facts(tmp_path / "docs")
    assert [(fact.id, fact.texts, fact.question) for fact in found] == [
        ("a.txt", ("One.",), None),
        ("b.md", ("Two.",), None),
    ]
    path = tmp_path / "facts.jsonl"
    path.write_text(
        '{"text": "a", "question": "Who?", "answer": "Ada"}\n{"text": "b", "question": "who?", "answer": "Bob"}\n'
    )
    assert contradictions(read_facts(path)) == [("Who?", ["Ada", "Bob"])]
    path.write_text('{"id": "1", "text": "a"}\n{"id": "1", "text": "b"}\n')
    with pytest.raises(DataError, match="two different facts have the id '1'"):
        read_facts(path)


def test_a_text_beyond_the_context_is_refused_before_anything_is_learned(
    copied: Path, tmp_path: Path
) -> None:
    path = tmp_path / "facts.jsonl"
    long = "word " * 400
    path.write_text(
        '{"text": "short"}\n' + json.dumps({"text": long, "question": "Who?", "answer": "x"}) + "\n"
    )
    with pytest.raises(DataError, match="above max_tokens = 64"):
        learn(load(copied, device="cpu"), copied, read_facts(path), options(max_tokens=64), Rows())
    assert not patch_files(copied)
    with pytest.raises(ModelError, match="has no memory layers"):
        Profile.empty(
            embedded_model(
                PAIRS, EmbeddedConfig(hidden_size=16, num_layers=1, steps=1), device="cpu", cache_dir=tmp_path
            )
        )


def test_a_profile_made_with_another_tokenizer_or_model_is_refused(copied: Path) -> None:
    model = load(copied, device="cpu")
    model.tokenizer.add_tokens(["<another>"])
    with pytest.raises(DataError, match="made with another tokenizer"):
        Profile.load(copied, model)
    other = load(copied, device="cpu")
    with torch.no_grad():
        next(other.module.parameters())[0] += 1
    with pytest.raises(DataError, match="made with another model"):
        Profile.load(copied, other)
