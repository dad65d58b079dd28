"""Scores of tokens of stein, ekfac and gradient: against a gradient for each token, adding up, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.rooms.influence.problems import Labels
from tests.rooms.influence.test_texts import ROWS, folder, model  # noqa: F401 (fixtures)
from tests.rooms.influence.test_tokens import Sentences, sentences
from torch import Tensor, nn

from postgrad.cli import main
from postgrad.core.models import Model
from postgrad.influence import along, baselines
from postgrad.influence.along import ShownTokens, token_derivatives
from postgrad.influence.api import run
from postgrad.influence.ekfac import LayerBasis, example_gradients
from postgrad.influence.examples import Texts, make_examples
from postgrad.influence.layers import find_layers
from postgrad.influence.weights import borrowed, choose_parameters

STEIN = {"method": "stein", "chains": 2, "draws": 4}
TEXTS = [*ROWS, {"text": "Ada eats plums and figs and rice and bread."}, {"text": "Ada eats plums."}]


def slow_derivatives(
    parameters: list[nn.Parameter], examples: Any, index: int, direction: list[Tensor]
) -> Tensor:
    """A backward pass for each token, dotted with the direction."""
    found: list[Tensor] = []
    for token in range(examples.num_tokens[index]):
        loss = examples.token_losses([index])[0][token]
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True)
        found.append(torch.stack([(g * v).sum() for g, v in zip(gradients, direction, strict=True)]).sum())
    return torch.stack(found)


class Several(nn.Module):
    """A convolution, norms, a layer that is called twice, and one whose output is overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3, padding=1, stride=2), nn.LayerNorm(2)
        self.twice, self.rms = nn.Linear(2, 2), nn.RMSNorm(2)
        self.head = nn.Linear(2, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x.reshape(-1, 1, 2, 2))[..., 0, 0])
        x = torch.relu_(self.twice(torch.tanh(self.twice(x))))
        return self.head(self.rms(x))


@pytest.mark.parametrize("kind", [nn.Linear, Several])
def test_derivatives_of_tokens_are_their_gradients_along_a_direction(kind: Any) -> None:
    """Of every kind of layer, on axes turned at random, with two directions in one pass."""
    _, train, _ = sentences()
    torch.manual_seed(3)
    module = Several() if kind is Several else train.module
    examples = Sentences(module, train.x, train.words)
    chosen = choose_parameters(module, ".")
    with borrowed(module, chosen) as parameters:
        basis = LayerBasis(find_layers(module, chosen), parameters)
        for layer in basis.layers if kind is nn.Linear else []:
            layer.output_axes, layer.input_axes = (
                torch.linalg.qr(torch.randn(n, n)).Q for n in basis.sizes[0]
            )
        flats = torch.randn(2, basis.size)
        pairs = [(0, 3), (1, 3), (1, 0), (0, 7)]
        found = token_derivatives(basis.layers, examples, pairs, [basis.matrices(flat) for flat in flats])
        for (direction, index), derivatives in zip(pairs, found, strict=True):
            expected = slow_derivatives(parameters, examples, index, basis.from_flat(flats[direction]))
            torch.testing.assert_close(derivatives, expected, rtol=1e-4, atol=1e-5)
        ((_, gradients),) = example_gradients(basis, parameters, examples, 1, batches=[[0, 3, 7]])
        sums = basis.flatten(gradients) @ flats.T
        torch.testing.assert_close(found[0].sum(), sums[1, 0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[2].sum(), sums[0, 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [STEIN, {"method": "ekfac"}, {"method": "gradient"}])
def test_tokens_add_up_to_the_scores_of_texts(model: Model, options: dict[str, Any]) -> None:  # noqa: F811
    """Prompts and padding have none, equal examples count as often as they occur."""
    rows = [*TEXTS, TEXTS[0]]
    queries = [TEXTS[0], {"text": "Bob eats rice and figs."}]
    result = run(model, rows, queries, batch_size=4, token_examples=50, **options)
    found = result.tokens
    assert isinstance(found, ShownTokens)
    assert found.num_train == Texts(model, make_examples(rows, "training"), 512).num_tokens
    size = result.scores.abs().max()
    weights = torch.tensor([2.0] + [1.0] * 9)
    for query in range(2):
        for example in range(10):
            parts = found.of_example(query, example)
            assert len(parts) == found.num_train[example]
            assert abs(parts.sum() - result.scores[query, example]) < 1e-4 * size
        parts = found.totals(query)
        assert len(parts) == found.num_query[query]
        assert abs(parts.sum() - result.scores[query] @ weights) < 1e-4 * size
    assert not found.has(2)
    assert not found.has(0, 10)


def test_chats_add_up_and_only_the_answer_has_scores(model: Model) -> None:  # noqa: F811
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"  # noqa: E501
    model.tokenizer.chat_template = template  # type: ignore[attr-defined]
    try:
        rows = [
            {
                "messages": [
                    {"role": "user", "content": f"What does {one} eat?"},
                    {"role": "assistant", "content": food},
                ]
            }
            for one, food in (("Ada", "plums"), ("Bob", "bread and figs"), ("Eve", "corn"))
        ]
        result = run(model, rows, rows[:1], **STEIN)
    finally:
        model.tokenizer.chat_template = None  # type: ignore[attr-defined]
    found = result.tokens
    assert found is not None
    assert found.train_texts is not None
    for example in range(3):
        parts = found.of_example(0, example)
        assert len(parts) == len(found.train_texts.tokens[example]) - found.train_texts.starts[example]
        assert abs(parts.sum() - result.scores[0, example]) < 1e-4 * result.scores.abs().max()


def test_tokens_of_a_text_are_its_gradients_along_the_query(model: Model) -> None:  # noqa: F811
    """Method gradient at the weights themselves: v is the query's gradient."""
    result = run(model, TEXTS, [TEXTS[8]], method="gradient")
    found = result.tokens
    assert found is not None
    train = Texts(model, make_examples(TEXTS, "training"), 512)
    query = Texts(model, make_examples([TEXTS[8]], "query"), 512)
    chosen = choose_parameters(model.module, "")  # type: ignore[arg-type]
    with borrowed(model.module, chosen) as parameters:  # type: ignore[arg-type]
        direction = torch.autograd.grad(query.losses([0]).sum(), parameters)
        for example in (0, 8):
            expected = slow_derivatives(parameters, train, example, list(direction))
            size = float(expected.abs().max())
            torch.testing.assert_close(found.of_example(0, example), expected, rtol=1e-4, atol=1e-4 * size)
        together = torch.autograd.grad(train.losses(range(10)).sum(), parameters)
        expected = slow_derivatives(parameters, query, 0, list(together))
    torch.testing.assert_close(found.totals(0), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_they_are_those_of_the_ends_of_a_ranking_in_any_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    module, train, queries = sentences()
    whole = run(module, train, queries, token_examples=9, **STEIN)
    assert whole.tokens is not None
    monkeypatch.setattr(baselines, "GRADIENT_FLOATS", 2 * 15)  # one direction at a time
    result = run(module, train, queries, token_examples=2, batch_size=3, **STEIN)
    torch.testing.assert_close(result.scores, whole.scores, rtol=1e-4, atol=1e-6)
    found = result.tokens
    assert found is not None
    for query in range(4):
        order = result.scores[query].argsort(descending=True).tolist()
        signs = result.scores[query] > 0
        ends = {n for n in order[:2] if signs[n]} | {n for n in order[-2:] if not signs[n]}
        assert {n for n in range(9) if found.has(query, n)} == ends
        torch.testing.assert_close(found.totals(query), whole.tokens.totals(query), rtol=1e-3, atol=1e-5)
        for n in ends:
            torch.testing.assert_close(
                found.of_example(query, n), whole.tokens.of_example(query, n), rtol=1e-3, atol=1e-5
            )


def test_what_is_left_out_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module, train, queries = sentences()
    without = run(module, train, queries, tokens=False, **STEIN)
    assert without.tokens is None
    assert without.notes == []
    assert torch.equal(without.scores, run(module, train, queries, **STEIN).scores)
    with monkeypatch.context() as patch:
        patch.setattr(along, "MAX_TOKENS", 1)
        result = run(module, train, queries, **STEIN)
        assert result.tokens is not None
        assert [result.tokens.has(query) for query in range(4)] == [True, False, False, False]
        assert "first 1 queries" in result.notes[0]
    size = 8 * 2 * sum(parameter.numel() for parameter in module.parameters())
    for limit, left_out in ((size, False), (size - 1, True)):
        monkeypatch.setattr(along, "MAX_TOKEN_BYTES", limit)
        result = run(module, train, queries, **STEIN)
        assert (result.tokens is None) == left_out
    assert "Give state" in result.notes[0]
    assert run(module, train, queries, state=tmp_path, **STEIN).tokens is not None
    plain = Labels(module, train.x, train.y)
    assert run(module, plain, queries, **STEIN).notes == [along.NO_TOKENS]


def test_chains_that_were_kept_give_the_same_tokens(tmp_path: Path) -> None:
    module, train, queries = sentences()
    first = run(module, train, queries, **STEIN)
    for _ in range(2):  # the second one reads all chains
        again = run(module, train, queries, state=tmp_path, **STEIN)
        assert first.tokens is not None
        assert again.tokens is not None
        assert torch.equal(first.tokens.totals(1), again.tokens.totals(1))
        best = first.proponents(1, 1, anyway=True)[0].number
        assert torch.equal(first.tokens.of_example(1, best), again.tokens.of_example(1, best))


def test_the_run_writes_them_and_its_report_shows_them(
    folder: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    command = ["influence", "run", str(folder), "--train", str(data), "--query", str(data), "--device", "cpu"]
    command += ["--method", "stein", "--token-examples", "2", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "first 2 of each ranking" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    for query in record["queries"]:
        assert query["tokens"]["context"].startswith("What does")
        for one in query["proponents"][:2] + query["opponents"][:2]:
            total = sum(score for _, score in one["tokens"]["pieces"])
            assert total == pytest.approx(one["score"], abs=1e-3 * abs(query["proponents"][0]["score"]))
        assert all("tokens" not in one for one in query["proponents"][2:])
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("What made the model say") >= 8
