"""Product quantisation: equal to the exhaustive look-up when all keys are candidates, and to a slow reference when few are."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from postgrad.core.models.memory import pq
from postgrad.core.models.memory.ops import flat_lookup


def case(
    seed: int, tokens: int = 7, heads: int = 2, slots: int = 200, dim: int = 10
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(tokens, heads, dim, generator=generator, dtype=torch.float64)
    return query, torch.randn(heads, slots, dim, generator=generator, dtype=torch.float64)


def codes_of(keys: torch.Tensor, subvectors: int = 4, codes: int = 8, seed: int = 0) -> list[pq.Codes]:
    generator = torch.Generator().manual_seed(seed)
    return [pq.build(head, subvectors, codes, generator) for head in keys]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 9),
    st.integers(1, 12),
    st.integers(1, 300),
    st.integers(1, 20),
    st.floats(0.01, 1.0),
    st.integers(0, 10**6),
)
def test_all_keys_as_candidates_are_the_exhaustive_lookup(
    slots: int, dim: int, subvectors: int, codes: int, k: int, share: float, seed: int
) -> None:
    k = min(k, slots)
    query, keys = case(seed, slots=slots, dim=dim)
    made = codes_of(keys, subvectors, codes)
    exact = flat_lookup(query, keys, k)
    found = pq.pq_lookup(query, keys, made, k, 1.0, slots)
    torch.testing.assert_close(found.scores, exact.scores)
    assert torch.equal(found.slots, exact.slots)
    assert pq.recall_at_k(found.slots, exact.slots) == 1
    fewer = pq.pq_lookup(
        query, keys, made, k, share, 1
    )  # whatever is asked for, k different slots with true scores
    assert all(len(set(row)) == k for row in fewer.slots.flatten(0, 1).tolist())
    every = torch.einsum("thd,hnd->thn", query, keys)
    torch.testing.assert_close(fewer.scores, every.gather(-1, fewer.slots))
    assert bool((fewer.scores <= exact.scores + 1e-12).all())


@pytest.mark.parametrize("share", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("candidates", [1, 9, 40])
def test_the_lookup_equals_a_loop(share: float, candidates: int) -> None:
    k = 5
    query, keys = case(3)
    made = codes_of(keys)
    found = pq.pq_lookup(query, keys, made, k, share, candidates)
    for head, codes in enumerate(made):
        owner = {}
        for cell, end in enumerate(codes.ends.tolist()):
            owner.update(dict.fromkeys(range(len(owner), end), cell))
        near = {}  # position -> what the codes say the key is
        for position, entries in enumerate(codes.entries.tolist()):
            assert entries[-1] == len(codes.codebooks) * 8 + owner[position]
            parts = [
                book[e - 8 * s] for s, (book, e) in enumerate(zip(codes.codebooks, entries[:-1], strict=True))
            ]
            near[position] = codes.centres[owner[position]] + torch.cat(parts)
        sizes = sorted(list(owner.values()).count(cell) for cell in range(len(codes.ends)))
        probes = math.ceil(share * len(codes.ends))
        while sum(sizes[:probes]) < k:  # any choice of cells has k keys
            probes += 1
        for token, q in enumerate(query[:, head]):
            best = set((codes.centres @ q).topk(probes).indices.tolist())
            inside = [p for p in near if owner[p] in best]
            inside.sort(key=lambda p: -float(q @ near[p]))
            slots = codes.slots[inside[: max(k, candidates)]]
            expected = (keys[head, slots] @ q).topk(k)
            torch.testing.assert_close(found.scores[token, head], expected.values)
            assert found.slots[token, head].tolist() == slots[expected.indices].tolist()


def test_codes_by_hand() -> None:
    """Keys on two lines, far apart: the cells are the lines' ends, and the candidate is the key whose codes score best."""
    keys = torch.tensor([[0.0, 0.0], [0.0, 2.0], [100.0, 0.0], [100.0, 2.0]])
    codes = pq.build(keys, 2, 2, torch.Generator().manual_seed(0))
    rebuilt = codes.centres[(codes.entries[:, -1] - 4).long()] + torch.stack(
        [book[codes.entries[:, s] - 2 * s, 0] for s, book in enumerate(codes.codebooks)], -1
    )
    assert rebuilt.tolist() == keys[codes.slots].tolist()  # 4 keys, 4 cells: nothing is lost
    found = pq.pq_lookup(torch.tensor([[[-1.0, 1.0]]]), keys[None], [codes], 1, 0.25, 1)
    assert (found.scores.item(), found.slots.item()) == (2.0, 1)  # the scores are 0, 2, −100, −98


def test_k_means_finds_well_separated_centres_and_is_never_worse_than_its_start() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(500, 3, generator=generator)

    def error(iterations: int) -> float:
        centres = pq.k_means(points, 10, torch.Generator().manual_seed(1), iterations)
        return float(torch.cdist(points, centres).min(1).values.square().mean())

    errors = [error(n) for n in range(6)]
    assert errors == sorted(errors, reverse=True)
    assert errors[5] < 0.8 * errors[0]
    nearest = pq.nearest_centre(points, points[:7])
    assert torch.equal(nearest, torch.cdist(points, points[:7]).argmin(1))


def test_more_candidates_and_more_cells_find_more_and_a_seed_gives_one_answer() -> None:
    query, keys = case(5, tokens=40, slots=2000, dim=32)
    made, again, other = (codes_of(keys, 8, 16, seed) for seed in (0, 0, 1))
    exact = flat_lookup(query, keys, 20).slots

    def recall(share: float, candidates: int) -> float:
        return float(pq.recall_at_k(pq.pq_lookup(query, keys, made, 20, share, candidates).slots, exact))

    by_candidates = [recall(1.0, n) for n in (20, 80, 320, 2000)]
    assert by_candidates == sorted(by_candidates)
    assert 0.3 < by_candidates[0] < by_candidates[2] < by_candidates[3] == 1.0
    by_share = [recall(share, 2000) for share in (0.05, 0.25, 0.75)]
    assert 0 < by_share[0] < by_share[1] < by_share[2] < 1
    chance = 320 / 2000
    assert by_candidates[2] > 4 * chance
    slots = [pq.pq_lookup(query, keys, codes, 20, 0.3, 40).slots for codes in (made, again, other)]
    assert torch.equal(slots[0], slots[1])
    assert not torch.equal(slots[0], slots[2])


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_tokens_do_not_depend_on_their_batch(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    query, keys = case(6, tokens=90)
    made = codes_of(keys)
    together = pq.pq_lookup(query, keys, made, 4, share, 8)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    shuffled = pq.pq_lookup(query[order], keys, made, 4, share, 8)
    assert torch.equal(shuffled.slots, together.slots[order])
    monkeypatch.setattr(pq, "_SUMS", 1)
    monkeypatch.setattr(pq, "_GATHERED", 1)
    alone = pq.pq_lookup(query, keys, made, 4, share, 8)
    assert torch.equal(alone.slots, together.slots)
    torch.testing.assert_close(alone.scores, together.scores)


def test_the_gradient_in_the_query_is_the_exhaustive_one_of_the_found_slots() -> None:
    query, keys = case(7)
    made = codes_of(keys)
    query.requires_grad_()
    found = pq.pq_lookup(query, keys, made, 6, 0.5, 20)
    weight = torch.randn(found.scores.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (ours,) = torch.autograd.grad((found.scores.softmax(-1) * weight).sum(), query)
    every = torch.einsum("thd,hnd->thn", query, keys)
    loss = (every.gather(-1, found.slots).softmax(-1) * weight).sum()
    (expected,) = torch.autograd.grad(loss, query)
    torch.testing.assert_close(ours, expected)
    assert ours.abs().max() > 1e-3


def test_a_lookup_holds_nothing_of_tokens_times_keys() -> None:
    """512 tokens × 20,000 keys would be 41 MB of scores; a block of 64 tokens has an eighth."""
    generator = torch.Generator().manual_seed(0)
    query, keys = (
        torch.randn(512, 1, 16, generator=generator),
        torch.randn(1, 20_000, 16, generator=generator),
    )
    made = codes_of(keys, 4, 16)
    with torch.profiler.profile(profile_memory=True) as profile:
        pq.pq_lookup(query, keys, made, 8, 1.0, 64)
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert 0 < largest <= 512 * 20_000 * 4 / 8


def test_recall_counts_slots_in_any_order() -> None:
    exact = torch.tensor([[[3, 1, 2], [0, 1, 2]]])
    assert float(pq.recall_at_k(exact.flip(-1), exact)) == 1
    assert float(pq.recall_at_k(torch.tensor([[[9, 3, 8], [7, 8, 9]]]), exact)) == pytest.approx(1 / 6)
