"""The embedded small model: its tokenizer, its warm start, its cache."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from postgrad.core.data import encode_prompt
from postgrad.core.errors import ModelError
from postgrad.core.models import EmbeddedConfig, embedded, embedded_model
from postgrad.core.models.embedded import (
    answer_loss,
    build,
    cache_root,
    content_key,
    lr_share,
    split_parameters,
    warm_start,
)
from postgrad.core.models.muon import Muon, orthogonalise
from postgrad.core.models.phrases import build_tokenizer, learn_phrases
from postgrad.core.types import Prompt

SUMS = [(f"State the sum of {a} and {b}.", str(a + b)) for a in range(20) for b in range(20)]
SPELL = [(f"Reverse 1 word: {a}{b}{c}xy", f"yx{c}{b}{a}") for a in "abcde" for b in "fghij" for c in "klmno"]
DEMOS = SUMS + SPELL
TINY = EmbeddedConfig(
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    intermediate_size=64,
    max_position=64,
    steps=6,
    batch_size=16,
)
TEXTS = [text for prompt, answer in DEMOS for text in (f"{prompt}\n", answer)]
TOKENIZER = build_tokenizer(TEXTS, 320, 64)


def pieces(text: str) -> list[str]:
    return [TOKENIZER.decode([token]) for token in TOKENIZER(text)["input_ids"]]


def test_templates_are_phrases_digits_and_rare_words_are_spelled() -> None:
    assert pieces("State the sum of 17 and 4.\n") == ["State the sum of ", "1", "7", " and ", "4", ".\n"]
    assert pieces("Reverse 1 word: afkxy\n") == ["Reverse 1 word:", " ", "a", "f", "k", "x", "y", "\n"]
    assert pieces("38") == ["3", "8"]


def test_phrases_never_cut_a_word() -> None:
    assert learn_phrases([f"the cat {digit} sat" for digit in range(9)], 10) == ["the cat ", " sat"]
    assert learn_phrases(["the cat 1 sat"] * 9, 10) == ["the cat "]
    tokenizer = build_tokenizer([f"cat{digit}" for digit in range(9)], 280, 64)
    assert tokenizer.tokenize("cat") == ["cat"]
    assert tokenizer.tokenize("concatenate") == list("concatenate")


def test_vocabulary_limit_and_fixed_tokens() -> None:
    assert len(build_tokenizer(TEXTS, 264, 64)) == 264
    assert TOKENIZER.convert_tokens_to_ids(["<|pad|>", "<|end|>", "<think>", "</think>"]) == [0, 1, 2, 3]
    assert (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id) == (0, 1)
    assert len(TOKENIZER("<think>")["input_ids"]) == 1


@given(st.text() | st.text(alphabet="State the sumof 0123.\n<>|'"))
def test_any_text_round_trips_and_digits_stay_single(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids) == text
    parts = [TOKENIZER.decode([token]) for token in ids]
    assert all(
        len(part) == 1 for part in parts if any(c in "0123456789" for c in part) and part != "Reverse 1 word:"
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A cache with the tiny model in it, and the losses of its warm start."""
    cache, losses = tmp_path_factory.mktemp("cache"), list[float]()
    embedded_model(
        DEMOS, TINY, device="cpu", cache_dir=cache, progress=lambda step, steps, loss: losses.append(loss)
    )
    return cache, losses


def test_hugging_face_tokenises_identically(built: tuple[Path, list[float]]) -> None:
    (folder,) = (built[0] / "models").iterdir()
    model, auto = (
        embedded_model(DEMOS, TINY, device="cpu", cache_dir=built[0]),
        AutoTokenizer.from_pretrained(folder),
    )
    original = build(DEMOS, TINY).tokenizer
    strange = [
        "",
        " ",
        "héllo 世界 🙂\t\r\n",
        "theory sum of 12 and",
        "<think>x</think><|end|>",
        "Reverse 1 word",
    ]
    for text in [*TEXTS, *strange]:
        expected = original(text)["input_ids"]
        assert auto(text)["input_ids"] == expected
        assert model.tokenizer(text)["input_ids"] == expected
    assert (auto.eos_token_id, auto.pad_token_id) == (1, 0)


def test_hugging_face_computes_identically(built: tuple[Path, list[float]]) -> None:
    (folder,) = (built[0] / "models").iterdir()
    model = embedded_model(DEMOS, TINY, device="cpu", cache_dir=built[0])
    tokens = torch.from_numpy(
        encode_prompt(model.tokenizer, Prompt(id="", text="State the sum of 3 and 4."))
    )[None]
    assert torch.equal(
        AutoModelForCausalLM.from_pretrained(folder)(tokens).logits, model.module(tokens).logits
    )
    assert (model.stop_token_ids, model.context_length, model.dtype) == ((1,), 64, torch.float32)


def test_cache_is_used_and_keyed_by_content(built: tuple[Path, list[float]]) -> None:
    cache, losses = built
    assert len(losses) == 6
    embedded_model(DEMOS, TINY, device="cpu", cache_dir=cache, progress=lambda *_: pytest.fail("built again"))
    keys = {
        content_key(DEMOS, TINY),
        content_key(DEMOS[::-1], TINY),
        content_key(DEMOS[1:], TINY),
        content_key(DEMOS, TINY.model_copy(update={"seed": 1})),
    }
    assert len(keys) == 4
    assert [folder.name for folder in (cache / "models").iterdir()] == [content_key(DEMOS, TINY)]


def test_same_seed_same_weights(built: tuple[Path, list[float]], tmp_path: Path) -> None:
    first = embedded_model(DEMOS, TINY, device="cpu", cache_dir=built[0]).module.state_dict()
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    again = embedded_model(DEMOS, TINY, device="cpu", cache_dir=tmp_path).module.state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    weights = [build(DEMOS, TINY.model_copy(update={"seed": seed})).module.lm_head.weight for seed in (0, 1)]
    assert not torch.equal(*weights)


def test_damaged_cache_is_built_again(built: tuple[Path, list[float]], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(built[0], cache)
    (cache / "models" / content_key(DEMOS, TINY) / "model.safetensors").unlink()
    steps: list[int] = []
    embedded_model(DEMOS, TINY, device="cpu", cache_dir=cache, progress=lambda step, *_: steps.append(step))
    assert steps == [1, 2, 3, 4, 5, 6]


def test_loser_of_a_race_takes_the_winners_model(tmp_path: Path) -> None:
    config = TINY.model_copy(update={"steps": 0})
    folder = tmp_path / "models" / "key"
    models = [build(DEMOS, config.model_copy(update={"seed": seed})) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda model: embedded._publish(model, folder), models))
    assert [path.name for path in folder.parent.iterdir()] == ["key"]
    assert (folder / "model.safetensors").is_file()


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("POSTGRAD_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root() == Path.home() / ".cache" / "postgrad"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "postgrad"
    monkeypatch.setenv("POSTGRAD_CACHE", str(tmp_path / "x"))
    assert cache_root() == tmp_path / "x"
    assert cache_root("given") == Path("given")


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="needs demonstrations"):
        embedded_model([], TINY, cache_dir=tmp_path)
    with pytest.raises(
        ModelError, match=r"has 103 tokens, above max_position 64: '1111.*Raise model\.embedded"
    ):
        embedded_model([("1" * 100, "2")], TINY, cache_dir=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"cannot be written .*Set POSTGRAD_CACHE"):
        embedded_model(DEMOS, TINY.model_copy(update={"steps": 0}), cache_dir=tmp_path / "file" / "x")


def test_loss_is_the_mean_over_answer_tokens_and_ignores_padding() -> None:
    """Against a loop over unpadded demonstrations."""
    model = build(DEMOS, TINY)
    pairs = embedded._encode(model.tokenizer, DEMOS[:3] + SPELL[:2], 64)
    tokens, targets = next(embedded._batches(pairs, 5, 0, 0))
    total, count = 0.0, 0
    for ids, prompt_length in pairs:
        logits = model.module(torch.from_numpy(ids)[None]).logits[0].detach()
        for position in range(prompt_length, len(ids)):
            total -= float(F.log_softmax(logits[position - 1], -1)[ids[position]])
            count += 1
    assert int((targets != -100).sum()) == count
    assert answer_loss(model.module, tokens, targets).item() == pytest.approx(total / count, rel=1e-5)
    ends = targets.gather(1, (targets != -100).cumsum(1).argmax(1, keepdim=True))
    assert ends.unique().tolist() == [model.tokenizer.eos_token_id]


def test_every_epoch_sees_every_demonstration_once() -> None:
    pairs = [(np.full(2 + i % 3, i, dtype=np.int64), 1) for i in range(50)]
    batches = embedded._batches(pairs, 8, -1, 0)
    for _ in range(2):
        seen: list[int] = []
        while len(seen) < 50:
            seen += next(batches)[0][:, 0].tolist()
        assert sorted(seen) == list(range(50))


def test_learning_rate_schedule() -> None:
    shares = [lr_share(step, 200) for step in range(200)]
    assert shares[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert np.all(np.diff(shares[9:]) < 0)
    assert shares[-1] == pytest.approx(0.1)
    assert lr_share(0, 1) == 1.0


def test_warm_start_learns_to_generalise() -> None:
    """Which of two far numbers is greater, held out: chance is 1/2; comparing the first digits gives all."""
    config = TINY.model_copy(update={"steps": 120, "lr": 5e-3})
    numbers = [(a, b) for a in range(100, 999, 9) for b in range(100, 999, 9) if abs(a - b) > 400]
    pairs = [(f"Is {a} above {b}?", "Yes" if a > b else "No") for a, b in numbers]
    held_out, train = pairs[::97], [pair for i, pair in enumerate(pairs) if i % 97]
    model = build(train, config)
    losses: list[float] = []
    warm_start(model, train, config, progress=lambda step, steps, loss: losses.append(loss))
    assert losses[0] > 4
    right = 0
    for prompt, answer in held_out:
        ids = torch.from_numpy(encode_prompt(model.tokenizer, Prompt(id="", text=prompt)))[None]
        output = model.module.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False
        )
        right += model.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True) == answer
    assert right >= 0.9 * len(held_out), (right, len(held_out), losses[-5:])


@pytest.mark.parametrize("shape", [(3, 12, 12), (2, 6, 20), (2, 20, 6)])
def test_orthogonalise_keeps_the_singular_vectors(shape: tuple[int, ...]) -> None:
    """U·S·Vᵀ → U·S'·Vᵀ with every S' near 1, whatever the scale of the matrix."""
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    result = orthogonalise(matrices)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    inner = left.mT @ result @ right.mT
    values = inner.diagonal(dim1=-2, dim2=-1)
    assert ((values > 0.3) & (values < 1.3)).all()
    assert values.median() > 0.65
    torch.testing.assert_close(inner, torch.diag_embed(values), atol=1e-4, rtol=0)


def test_muon_against_a_loop_over_matrices() -> None:
    """Two steps on matrices of two shapes; momentum, decay and the √(R/C) scale written out."""
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator) for shape in [(8, 4), (8, 4), (4, 8)]]
    parameters = [torch.nn.Parameter(start.clone()) for start in starts]
    muon = Muon(parameters, lr=0.1, momentum=0.5, weight_decay=0.2)
    expected, momenta = starts, [torch.zeros_like(start) for start in starts]
    for _ in range(2):
        gradients = [torch.randn(start.shape, generator=generator) for start in starts]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        muon.step()
        momenta = [0.5 * m + g for m, g in zip(momenta, gradients, strict=True)]
        expected = [
            w * (1 - 0.1 * 0.2)
            - 0.1 * max(1, w.shape[0] / w.shape[1]) ** 0.5 * orthogonalise((g + 0.5 * m)[None])[0]
            for w, g, m in zip(expected, gradients, momenta, strict=True)
        ]
    for parameter, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, atol=1e-5, rtol=1e-5)


def test_every_parameter_is_trained_by_one_optimiser() -> None:
    module = build(DEMOS, TINY).module
    matrices, others = split_parameters(module)
    assert {id(p) for p in matrices} | {id(p) for p in others} == {id(p) for p in module.parameters()}
    assert len(matrices) == TINY.num_layers * 7
    assert not {id(p) for p in matrices} & {id(p) for p in others}
