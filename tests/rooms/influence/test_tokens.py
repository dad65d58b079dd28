"""Scores of tokens: against a slow reference, adding up to sequences, and where the tokens stand in a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.rooms.influence.problems import Labels
from torch import Tensor, nn

from postgrad.commands import influence_heatmap
from postgrad.core.models.phrases import build_tokenizer
from postgrad.influence import ops, tokens
from postgrad.influence.api import run
from postgrad.influence.tokens import ByToken, TokenMoments, moments_bytes, piece_scores, pieces

QUICK = {"method": "langevin", "chains": 3, "draws": 21, "burn_in": 3, "thin": 1, "check_step": False}


class Sentences(Labels):
    """Each example is one input with several labels, its tokens; the last examples have the most."""

    def __init__(self, module: nn.Module, x: Tensor, words: list[list[int]]) -> None:
        super().__init__(module, x, torch.tensor([row[0] for row in words]))
        self.words = words
        self.num_tokens = [len(row) for row in words]

    def token_losses(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        counts = torch.tensor([len(self.words[index]) for index in indices])
        logits = self.module(self.x[list(indices)]).repeat_interleave(counts, 0)
        targets = torch.tensor([word for index in indices for word in self.words[index]])
        return F.cross_entropy(logits, targets, reduction="none"), counts

    def losses(self, indices: Sequence[int]) -> Tensor:
        values, counts = self.token_losses(indices)
        return torch.stack([part.sum() for part in values.split(counts.tolist())])

    def batches(self, size: int) -> list[list[int]]:
        order = list(reversed(range(len(self))))  # not the order of the rows
        return [order[start : start + size] for start in range(0, len(order), size)]


def sentences() -> tuple[nn.Module, Sentences, Sentences]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(13, 4, generator=generator)
    words = [torch.randint(0, 3, (1 + n % 4,), generator=generator).tolist() for n in range(13)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        module = nn.Linear(4, 3)
    return module, Sentences(module, x[:9], words[:9]), Sentences(module, x[9:], words[9:])


def test_token_scores_are_covariances_of_all_draws_and_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against every draw held and centred at once; the streams never see more than 16 draws."""
    module, train, queries = sentences()
    rows: list[tuple[Tensor, ...]] = []
    add = TokenMoments.add

    def spy(self: Any, train_losses: Tensor, query_losses: Tensor) -> None:
        rows.append((self._queries.values.clone(), train_losses, query_losses, self._train.values.clone()))
        add(self, train_losses, query_losses)
        assert len(self._waiting) < tokens.BLOCK_DRAWS

    monkeypatch.setattr(TokenMoments, "add", spy)
    result = run(module, train, queries, batch_size=4, **QUICK)
    query_tokens, train_losses, query_losses, train_tokens = (
        torch.stack(column).double().unflatten(0, (3, 21)) for column in zip(*rows, strict=True)
    )
    found = result.tokens
    assert found is not None
    by_query = ops.chain_covariances(query_tokens, train_losses).mean(0)
    by_train = ops.chain_covariances(query_losses, train_tokens).mean(0)
    torch.testing.assert_close(found.query.double(), by_query, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.train.double(), by_train, rtol=1e-5, atol=1e-7)
    for q in range(4):
        for n in range(9):
            assert len(found.of_query(q, n)) == queries.num_tokens[q]
            assert len(found.of_example(q, n)) == train.num_tokens[n]
            for part in (found.of_query(q, n), found.of_example(q, n)):
                torch.testing.assert_close(part.sum(), result.scores[q, n], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.totals(1).sum(), result.scores[1].sum(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["langevin", "laplace", "rmsprop"])
def test_token_scores_change_no_other_number(method: str) -> None:
    module, train, queries = sentences()
    options = QUICK | ({"gradient_examples": 4} if method == "rmsprop" else {})
    with_them, without = (
        run(module, train, queries, tokens=on, **options | {"method": method}) for on in (True, False)
    )
    assert without.tokens is None
    torch.testing.assert_close(with_them.scores, without.scores, rtol=1e-4, atol=1e-6)
    assert with_them.tokens is not None
    assert not with_them.tokens.query.isnan().any()


def test_blocks_and_resuming_leave_the_moments_alone() -> None:
    _, train, queries = sentences()
    sides = ByToken(train), ByToken(queries)
    generator = torch.Generator().manual_seed(1)
    whole, halves = TokenMoments(*sides), TokenMoments(*sides)
    rows: list[tuple[Tensor, Tensor]] = []
    for draw in range(2 * tokens.BLOCK_DRAWS + 5):
        for side in sides:
            side.values = torch.randn(side.values.shape, generator=generator) + 100  # far from 0
        row = torch.randn(9, generator=generator) - 50, torch.randn(4, generator=generator)
        rows.append((sides[1].values, row[0]))
        whole.add(*row)
        halves.add(*row)
        if draw in (3, 20, 32):
            halves, before = TokenMoments(*sides), halves
            halves.load_state_dict(before.state_dict())
    for one, other in zip(whole.covariances(), halves.covariances(), strict=True):
        assert torch.equal(one, other)
    left, right = (torch.stack(column).double() for column in zip(*rows, strict=True))
    expected = ops.chain_covariances(left[None], right[None])[0]
    torch.testing.assert_close(whole.covariances()[0], expected, rtol=1e-9, atol=1e-9)


def test_above_the_limit_they_are_left_out_and_a_note_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    module, train, queries = sentences()
    size = moments_bytes(train.num_tokens, queries.num_tokens, 3)
    monkeypatch.setattr(tokens, "MAX_TOKEN_BYTES", size)
    assert run(module, train, queries, **QUICK).tokens is not None
    monkeypatch.setattr(tokens, "MAX_TOKEN_BYTES", size - 1)
    result = run(module, train, queries, **QUICK)
    assert result.tokens is None
    assert "Explain fewer queries at a time" in result.notes[0]
    plain = Labels(module, train.x, train.y)
    assert "no token_losses" in run(module, plain, queries, **QUICK).notes[0]


def test_pieces_are_the_text_and_keep_the_sum() -> None:
    """A character of several tokens is one piece; spaces and special tokens stay."""
    tokenizer = build_tokenizer(["abc"], 264, 64)
    text = "a é 日b"
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert len(ids) == 1 + 1 + 2 + 1 + 3 + 1 + 1  # é is two bytes, 日 three
    before, found = pieces(tokenizer, ids, 1)
    assert before == "a"
    assert [piece.text for piece in found] == [" ", "é", " ", "日", "b", tokenizer.eos_token]
    assert piece_scores(found, torch.arange(1.0, len(ids))) == [1, 2 + 3, 4, 5 + 6 + 7, 8, 9]
    assert before + "".join(piece.text for piece in found) == text + tokenizer.eos_token


def test_a_page_and_a_file_hold_only_so_many_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"id": "a", "score": 0.5, "tokens": {"context": "", "pieces": [["x", 0.25]] * 30}}
    query = {
        "id": "q",
        "text": "x",
        "tokens": entry["tokens"],
        "proponents": [entry] * 20,
        "opponents": [{"id": "b", "score": -1.0}],
    }
    assert len(influence_heatmap.heatmaps([query] * 4, lambda one: "")[0]) == 4
    monkeypatch.setattr(influence_heatmap, "_MAX_REPORT_SCORES", 700)
    maps, shown = influence_heatmap.heatmaps([query] * 4, lambda one: "")
    assert shown == 2  # ten proponents of 30 pieces each
    assert [len(texts) for _, texts in maps[0].groups] == [10, 0]
    assert influence_heatmap.heatmaps([query | {"proponents": []}], lambda one: "") == ([], 0)
    module, train, queries = sentences()
    found = run(module, train, queries, **QUICK).tokens
    monkeypatch.setattr(influence_heatmap, "MAX_SCORES", 5 * 2 * 4 * (sum(train.num_tokens) // 9))
    assert influence_heatmap.TokenRecords(found).count == 5
