"""Scores from mean gradients over pairs of draws: against closed forms, covariances of many draws, and a loop."""

from __future__ import annotations

import contextlib
import gc
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.rooms.influence.problems import Regression, regression
from tests.rooms.influence.test_layers import convolution, images, sequence
from tests.rooms.influence.test_resume import stopped_by, words  # noqa: F401 (a fixture)
from tests.rooms.influence.test_theory import classifier
from torch import Tensor, nn

from postgrad.cli import main
from postgrad.core.errors import ConfigError, SamplingError
from postgrad.core.run import Run
from postgrad.influence import api, baselines, stein
from postgrad.influence.api import run
from postgrad.influence.config import InfluenceConfig, ValidateConfig
from postgrad.influence.ekfac import LayerBasis, example_gradients, fit
from postgrad.influence.layers import ConvLayer, Layer, find_layers
from postgrad.influence.multi import run_checkpoints
from postgrad.influence.result import Result
from postgrad.influence.sampler import Posterior
from postgrad.influence.state import ChainFiles
from postgrad.influence.stein import SteinChain
from postgrad.influence.weights import borrowed, choose_parameters

LAMBDA = 0.3


@contextlib.contextmanager
def chain(module: nn.Module, train: Any, seed: int = 0, **options: Any) -> Any:
    """(chain, posterior, basis, parameters) on fitted factors, while the module is borrowed."""
    config = InfluenceConfig(**{"method": "stein", "damping": 3e-3, **options})
    chosen = choose_parameters(module, config.parameters)
    with borrowed(module, chosen) as parameters:
        basis = LayerBasis(find_layers(module, chosen), parameters)
        fit(basis, parameters, train, config.batch_size, torch.Generator().manual_seed(api._FACTOR_SEED))
        posterior = Posterior(parameters, train, basis, config)
        yield SteinChain(posterior, basis, parameters, config.num_draws, seed), posterior, basis, parameters


# -- known answers ---------------------------------------------------------------------------------------------------


def slopes(examples: Regression, weight: Tensor) -> Tensor:
    """∇ℓ [N, D] of a regression."""
    x = examples.x.double()
    return (x @ weight - examples.y.double())[:, None] * x


def on_axes(
    module: nn.Linear, posterior: Posterior, basis: LayerBasis, train: Regression, seed: int, draws: int
) -> Tensor:
    """The precision by hand: squared gradients on the axes at the draws themselves, example by example."""
    centre, axes = module.weight[0].detach().double(), basis.layers[0].input_axes
    assert axes is not None
    squares = torch.zeros(basis.size, dtype=torch.float64)
    for number in range(draws):
        generator = torch.Generator().manual_seed(seed * 65_537 + number // 2)
        delta = torch.randn(basis.size, generator=generator) / posterior.precision.sqrt()
        sign = basis.layers[0].output_axes.item()  # type: ignore[union-attr]
        moved = centre + (1 - 2 * (number % 2)) * sign * (axes.double() @ delta.double())
        squares += (slopes(train, moved) @ axes.double()).square().mean(0)
    return posterior.num_tempered * squares / draws + posterior.localization


def test_scores_of_a_regression_are_gradients_at_the_weights_through_the_mean_curvature() -> None:
    """∇ℓ is linear in δ, so that its mean over pairs is that at w*: what is left of the draws is the precision."""
    module, train, queries = regression()
    found = run(module, train, queries, method="stein", damping=LAMBDA, beta=1.0, chains=1, draws=6)
    with chain(module, train, damping=LAMBDA, beta=1.0, draws=6) as (_, posterior, basis, _):
        precision = on_axes(module, posterior, basis, train, 0, 6)
        axes = basis.layers[0].input_axes.double()
        centre = module.weight[0].detach().double()
        expected = (slopes(queries, centre) @ axes / precision) @ (slopes(train, centre) @ axes).T
        other = (slopes(queries, centre) @ axes / posterior.precision.double()) @ (
            slopes(train, centre) @ axes
        ).T
    torch.testing.assert_close(found.scores.double(), expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found.scores.double(), other, rtol=1e-2, atol=1e-4)  # Λ̄ is not EK-FAC's Λ


def test_the_first_term_of_the_exact_covariance() -> None:
    """Residuals of ±1 exactly and a cold posterior: then E[g gᵀ] = Σ x xᵀ/n is the Hessian, EK-FAC is exact in axes on which it
    is diagonal, and scores are the covariance's first term, ∇ℓ_jᵀ (X ᵀX + γ)⁻¹ ∇ℓ_i; the whole of it up to O(1/β)."""
    module = nn.Linear(3, 1, bias=False)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
    signs = torch.tensor([[a, b, c] for a in (1.0, -1.0) for b in (1.0, -1.0) for c in (1.0, -1.0)])
    x = signs * torch.tensor([2.0, 1.0, 0.3])  # uncorrelated: XᵀX is diagonal
    residuals = torch.tensor([1.0, -1.0]).repeat(4)[torch.randperm(8, generator=generator)]
    centre = module.weight[0].detach()
    train = Regression(module, x, x @ centre + residuals)
    query_x = torch.randn(3, 3, generator=generator)
    queries = Regression(module, query_x, query_x @ centre + torch.randn(3, generator=generator))
    beta, n = 1e4, len(x)
    found = run(module, train, queries, method="stein", damping=LAMBDA, beta=beta, chains=2, draws=4).scores
    inverse = torch.linalg.inv(beta * (x.T @ x + LAMBDA * n * torch.eye(3)).double())
    first = slopes(queries, centre.double()) @ inverse @ slopes(train, centre.double()).T
    torch.testing.assert_close(found.double() * beta, first * beta, rtol=2e-3, atol=2e-4)
    second = 0.5 * (query_x.double() @ inverse @ x.double().T) ** 2
    assert second.abs().max() < 1e-3 * first.abs().max()


class Cubic(Regression):
    """Losses a·u + ½·h·u² + c·u³/6, u = w·x − w*·x, x = 1: E[∇ℓ] = a + ½·c·σ², Cov(ℓ_i, ℓ_j) is known by moments."""

    def __init__(self, module: nn.Linear, slope: Tensor, bend: Tensor, third: Tensor) -> None:
        super().__init__(module, torch.ones(len(slope), 1), slope)
        self.bend, self.third, self.centre = bend, third, float(module.weight.detach())

    def losses(self, indices: Sequence[int]) -> Tensor:
        u = self.module(self.x[indices])[:, 0] - self.centre
        return self.y[indices] * u + 0.5 * self.bend[indices] * u.square() + self.third[indices] * u**3 / 6

    def sampled_losses(self, indices: Sequence[int], generator: torch.Generator) -> Tensor:
        """With squared gradients of bend² = the Fisher information that EK-FAC takes."""
        return self.bend[indices].mean().sqrt() * self.module(self.x[indices])[:, 0]


def cubic() -> tuple[nn.Linear, Cubic, Cubic]:
    generator = torch.Generator().manual_seed(3)
    module = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(0.7)
    slope, third = torch.randn(2, 12, generator=generator)
    bend = torch.rand(12, generator=generator) + 0.5
    sides = [Cubic(module, slope[part], bend[part], 3 * third[part]) for part in (slice(0, 8), slice(8, 12))]
    return module, sides[0], sides[1]


def test_mean_gradients_converge_to_their_expectation() -> None:
    """E[a + h·u + ½·c·u²] = a + ½·c·σ², which is not the gradient at w*; with errors that fall as those of a mean."""
    module, train, queries = cubic()
    options = {"damping": LAMBDA, "beta": 0.5, "chains": 1}
    with chain(module, train, **options, draws=2) as (_, posterior, _, _):
        variance = 1 / posterior.precision.item()
        localization, num_tempered = posterior.localization, posterior.num_tempered
    assert variance > 0.1
    found = run(module, train, queries, method="stein", draws=2000, **options).scores.double()

    def moments(data: Cubic) -> tuple[Tensor, Tensor]:
        """E[∇ℓ] and E[(∇ℓ)²]: u has variance σ², u⁴ has mean 3σ⁴."""
        a, h, c = (part.double() for part in (data.y, data.bend, data.third))
        mean = a + 0.5 * c * variance
        return mean, a**2 + a * c * variance + h**2 * variance + 0.75 * c**2 * variance**2

    (train_mean, squares), (query_mean, _) = moments(train), moments(queries)
    precision = num_tempered * squares.mean() + localization
    expected = query_mean[:, None] * train_mean / precision
    scale = expected.abs().max()
    assert (
        (found - expected).abs() / scale
    ).max() < 0.15  # 1,000 pairs: 4.5 % of the mean of u², twice, 10 % of that of u⁴
    at_weights = queries.y.double()[:, None] * train.y.double() / precision
    assert ((at_weights - expected).abs() / scale).max() > 0.3  # it can fail


def test_the_part_linear_in_the_gradient_is_steins_in_a_covariance_of_very_many_draws() -> None:
    """Under a Gaussian Cov(ℓ_i, u) = σ²·E[∇ℓ_i] exactly (Stein): `laplace`, with u as a query's loss, agrees within its errors
    with what pairs give; and E[∇u] = 1."""
    module, train, _ = cubic()
    one, zero = torch.ones(1), torch.zeros(1)
    query = Cubic(module, one, zero, zero)
    options = {"damping": LAMBDA, "beta": 0.5}
    sampled = run(module, train, query, method="laplace", chains=8, draws=300, tokens=False, **options)
    with chain(module, train, **options, chains=1, draws=800) as (pairs, posterior, basis, parameters):
        variance = 1 / posterior.precision
        found, own, _ = baselines.gradient_scores(
            basis, parameters, train, query, 32, posterior.precision, pairs.visits, with_own=True
        )
    assert sampled.errors is not None
    own_error = 0.5 * train.third.abs() * variance**2 * (2 / 400) ** 0.5  # of u² over the pairs
    error = (sampled.errors.square() + own_error.square()).sqrt()
    assert ((found - sampled.scores) / error).abs().max() < 5.4  # t with 7 degrees of freedom
    expected = (train.y + 0.5 * train.third * variance) * variance
    assert ((found[0] - expected).abs() / own_error).max() < 4.5
    assert (
        (train.y * variance - sampled.scores[0]) / error[0]
    ).abs().max() > 6  # the gradient at w* is another one
    assert (own > found[0].square() / variance * 0.999).all()  # E[g²] ≥ (E[g])²


# -- draws -----------------------------------------------------------------------------------------------------------


def weights(parameters: Sequence[Tensor]) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in parameters])


def test_what_is_odd_in_the_displacement_cancels_in_pairs() -> None:
    module, train, _ = classifier()
    with chain(module, train, draws=6) as (pairs, _, _, parameters):
        centre = weights(parameters)
        places = torch.stack([weights(parameters) - centre for _ in pairs.visits()])
        again = torch.stack([weights(parameters) - centre for _ in pairs.visits()])
    assert torch.equal(places, again)
    assert places[0].norm() > 0.1
    torch.testing.assert_close(places[::2], -places[1::2], rtol=1e-3, atol=1e-5)
    even = places.square()
    torch.testing.assert_close(even[::2], even[1::2], rtol=1e-3, atol=1e-5)
    assert (places[0] - places[2]).norm() > 0.1  # pairs are others


def test_draws_have_the_variance_of_the_factors() -> None:
    module, train, _ = classifier()
    with chain(module, train, draws=800) as (pairs, posterior, basis, parameters):
        centre = [parameter.detach().clone() for parameter in parameters]
        found = torch.stack(
            [
                basis.to_flat([p.detach() - c for p, c in zip(parameters, centre, strict=True)])
                for _ in pairs.visits()
            ]
        )
    whitened = found[::2] * posterior.precision.sqrt()
    assert (whitened.square().mean(0) - 1).abs().max() < 4.5 * (2 / 400) ** 0.5
    assert (whitened.mean(0)).abs().max() < 4.5 / 400**0.5


@pytest.mark.parametrize("steps", [0, 1, 3, 4])
def test_visits_end_at_the_weights(steps: int) -> None:
    module, train, _ = classifier()
    with chain(module, train, draws=4) as (pairs, _, _, parameters):
        centre = weights(parameters)
        visits = pairs.visits()
        for _ in range(steps):
            next(visits)
            assert not torch.equal(weights(parameters), centre)
        if steps == 4:
            assert next(visits, "end") == "end"
        else:
            visits.close()
        assert torch.equal(weights(parameters), centre)


def test_nothing_is_put_back_after_the_caller_has_the_module_again() -> None:
    """An error while a draw is visited: its traceback holds what was running, but that has ended."""
    module, train, queries = classifier()
    for where in (train, queries):
        losses = where.losses

        def failing(indices: Sequence[int], losses: Any = losses) -> Tensor:
            if torch.is_grad_enabled():
                raise SamplingError("in a pass")
            return losses(indices)

        where.losses = failing  # type: ignore[method-assign]
        with pytest.raises(SamplingError, match="in a pass") as caught:
            run(module, train, queries, method="stein")
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(3.0)  # the caller goes on
        del caught
        gc.collect()
        assert all((parameter == 3).all() for parameter in module.parameters())
        where.losses = losses  # type: ignore[method-assign]


@pytest.mark.parametrize("make", [convolution, sequence])
def test_all_kinds_of_layers_and_the_model_is_as_it_was(make: Any) -> None:
    module = make()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    result = run(
        module, images(module), images(module), method="stein", parameters=".", chains=2, self_scores=True
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert result.self_scores is not None
    assert (result.self_scores >= result.scores.diagonal() * 0.999).all()  # E[gᵀP⁻¹g] ≥ E[g]ᵀP⁻¹E[g]
    torch.testing.assert_close(result.scores, result.scores.T, rtol=1e-3, atol=1e-6)
    assert torch.linalg.eigvalsh(result.scores.double()).min() > -1e-4 * result.scores.max()
    assert result.errors is not None
    assert result.errors.isfinite().all()
    assert "diagnostics/stability" in result.diagnostics
    assert (result.draws, result.tokens) == (None, None)


def test_scores_against_a_loop_over_draws_and_examples() -> None:
    """By autograd, one example at one draw at a time, and nothing of the room but where the draws are."""
    module, train, queries = classifier()
    train.weights = torch.tensor([3.0] + [1.0] * 15)
    options = {"chains": 1, "draws": 4, "damping": 0.02, "beta": 0.3}
    found = run(module, train, queries, method="stein", self_scores=True, **options)
    with chain(module, train, **options) as (pairs, posterior, basis, parameters):
        rows: dict[str, list[Tensor]] = {"train": [], "queries": []}
        for _ in pairs.visits():
            for name, data in (("train", train), ("queries", queries)):
                each = [
                    basis.to_flat(torch.autograd.grad(data.losses([i]).sum(), parameters))
                    for i in range(len(data))
                ]
                rows[name].append(torch.stack(each))
        train_rows, query_rows = (torch.stack(rows[name]) for name in ("train", "queries"))
        squares = (train.weights[:, None] * train_rows.square()).sum(1).mean(0) / 18
        precision = 0.3 * 18 * squares + 0.02 * 0.3 * 18
    torch.testing.assert_close(posterior.localization, 0.02 * 0.3 * 18)
    expected = (query_rows.mean(0) / precision) @ train_rows.mean(0).T
    torch.testing.assert_close(found.scores, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    own = (train_rows.square() / precision).sum(-1).mean(0)
    torch.testing.assert_close(found.self_scores, own, rtol=1e-3, atol=1e-4)


# -- what scores do not depend on ------------------------------------------------------------------------------------


def test_batches_only_round_and_seeds_differ() -> None:
    module, train, queries = classifier()
    found = [run(module, train, queries, batch_size=size, seed=1, beta=0.5) for size in (64, 64, 3)]
    assert torch.equal(found[0].scores, found[1].scores)
    scale = float(found[0].scores.abs().max())
    # targets that EK-FAC draws are drawn batch by batch: here it is given the true ones
    other = run(module, train, queries, batch_size=64, seed=2, beta=0.5)
    assert (found[0].scores - other.scores).abs().max() > 1e-3 * scale
    train.sampled_losses = lambda indices, generator: train.losses(indices)  # type: ignore[method-assign]
    found = [run(module, train, queries, batch_size=size, seed=1, beta=0.5) for size in (64, 3)]
    torch.testing.assert_close(found[0].scores, found[1].scores, rtol=1e-3, atol=2e-4 * scale)


def test_queries_in_parts_have_the_scores_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module, train, queries = classifier()
    whole = run(module, train, queries, batch_size=2, self_scores=True)
    monkeypatch.setattr(baselines, "GRADIENT_FLOATS", 2 * sum(p.numel() for p in module.parameters()))
    parts = run(module, train, queries, batch_size=2, self_scores=True)
    torch.testing.assert_close(parts.scores, whole.scores, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(parts.self_scores, whole.self_scores)


def test_curvature_from_a_part_of_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """512 of 600 examples, whatever the batch; near the curvature of all, and all of it where they are fewer."""
    module, train, _ = regression(num_train=600)
    with chain(module, train, beta=0.5, draws=4) as (one, _, basis, parameters):
        seen: list[list[int]] = []
        for size in (32, 100):
            one._posterior.config = one._posterior.config.model_copy(update={"batch_size": size})
            batches = one._some_batches()
            assert max(map(len, batches)) <= size
            seen.append([index for batch in batches for index in batch])
        assert seen[0] == seen[1]
        assert len(set(seen[0])) == len(seen[0]) == 512
        other = SteinChain(one._posterior, basis, parameters, 4, 1)._some_batches()
        assert {index for batch in other for index in batch} != set(seen[0])
        part = one.curvature(lambda loss: None)
        squares = torch.zeros(basis.size)
        for _ in one.visits():
            for batch, gradients in example_gradients(basis, parameters, train, 200):
                kept = torch.tensor([index in set(seen[0]) for index in batch])
                squares += basis.flatten(gradients)[kept].square().sum(0)
        torch.testing.assert_close(part, squares / 512 / 4, rtol=1e-4, atol=1e-7)
        monkeypatch.setattr(stein, "CURVATURE_EXAMPLES", 600)
        whole = one.curvature(lambda loss: None)
    assert not torch.equal(part, whole)
    torch.testing.assert_close(part, whole, rtol=0.2, atol=0)


# -- stopped ---------------------------------------------------------------------------------------------------------


class StoppedError(Exception):
    """In place of a kill."""


def told(rows: list[Any]) -> Any:
    return lambda step, metrics: rows.append((step, metrics["chain/number"], metrics["chain/loss"]))


def assert_same(one: Result, other: Result) -> None:
    for name in ("scores", "errors", "self_scores", "losses"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for key, value in one.diagnostics.items():
        assert key.startswith("time/") or value == other.diagnostics[key], key


def test_stopped_in_and_between_chains_it_gives_the_same_bits(tmp_path: Path) -> None:
    module, train, queries = classifier()
    whole_rows: list[Any] = []
    options = {"method": "stein", "chains": 3, "draws": 4, "self_scores": True}
    whole = run(module, train, queries, log=told(whole_rows), **options)
    assert [row[:2] for row in whole_rows] == [(step, step // 4) for step in range(12)]
    rows: list[Any] = []
    for stop_at in (2, 4, 9):  # in the first chain; at the start of the second; within the third

        def log(step: int, metrics: Any, stop_at: int = stop_at) -> None:
            if step == stop_at:
                raise StoppedError
            rows.append((step, metrics["chain/number"], metrics["chain/loss"]))

        with pytest.raises(StoppedError):
            run(module, train, queries, state=tmp_path, log=log, **options)
        known = ChainFiles(tmp_path).num_draws()
        assert known == stop_at // 4 * 4
        del rows[known:]
    found = run(module, train, queries, state=tmp_path, log=told(rows), **options)
    assert_same(whole, found)
    assert rows == whole_rows
    assert_same(whole, run(module, train, queries, state=tmp_path, **options))  # nothing left to do
    with pytest.raises(ConfigError, match="begun with other settings"):
        run(module, train, queries, state=tmp_path, **options, damping=0.5)


def test_measured_damping_is_kept_with_the_chains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not measured again, so that all chains have the same λ, bit by bit, and scores are those of one run."""
    module, train, queries = classifier()
    whole = run(module, train, queries, chains=3, self_scores=True)

    def stop(step: int, metrics: Any) -> None:
        if step == 6:  # in the second chain
            raise StoppedError

    with pytest.raises(StoppedError):
        run(module, train, queries, chains=3, self_scores=True, state=tmp_path, log=stop)
    monkeypatch.setattr(stein, "standing_damping", lambda *_: pytest.fail("measured again"))
    assert_same(whole, run(module, train, queries, chains=3, self_scores=True, state=tmp_path))


def test_ctrl_c_ends_it_at_the_next_draw_of_any_pass(tmp_path: Path) -> None:
    """Also in the passes of the gradients, which tell no progress."""
    module, train, queries = classifier()
    whole = run(module, train, queries, method="stein", chains=2)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    losses, passes = queries.losses, 0

    def interrupted(indices: Sequence[int]) -> Tensor:
        nonlocal passes
        if torch.is_grad_enabled():
            passes += 1
            if passes == 1:
                signal.raise_signal(signal.SIGINT)
        return losses(indices)

    queries.losses = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(module, train, queries, method="stein", chains=2, state=tmp_path)
    assert passes == 1  # the step that was running ended, no other began
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    found = run(module, train, queries, method="stein", chains=2, state=tmp_path)
    assert torch.equal(found.scores, whole.scores)


def test_the_command_goes_on_after_ctrl_c(
    words: list[str],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, whole = tmp_path / "run", tmp_path / "whole"
    command = [*words, "--method", "stein", "--draws", "16", "--chains", "3"]

    def first_chain_is_kept() -> bool:
        return (out / "chains" / "chain-0.safetensors").exists()

    code, said = stopped_by(signal.SIGINT, command, out, first_chain_is_kept)
    assert code == 130
    assert f"--out {out} --resume" in said
    assert Run.open(out).status == "interrupted"
    assert "chain-2.safetensors" not in [path.name for path in (out / "chains").iterdir()]
    assert main([*command, "--out", str(out), "--resume"]) == 0
    assert main([*command, "--out", str(whole)]) == 0
    assert (out / "scores.jsonl").read_bytes() == (whole / "scores.jsonl").read_bytes()
    rows = [Run.open(path).metrics() for path in (out, whole)]
    assert rows[0][:-1] == rows[1][:-1]
    assert [row["step"] for row in rows[0]] == list(range(49))
    assert not (out / "chains").exists()
    record = json.loads((out / "result.json").read_text())
    assert record["queries"][0]["proponents"][0]["error"] is not None
    assert "correlation" not in json.loads((out / "scores.jsonl").read_text().splitlines()[0])
    assert "Positive scores" in capsys.readouterr().out


# -- refused, and combined -------------------------------------------------------------------------------------------


def test_odd_draws_are_refused_where_stein_takes_them() -> None:
    module, train, queries = regression()
    with pytest.raises(ConfigError, match=r"in pairs: give an even number \(received 5\)"):
        run(module, train, queries, draws=5)
    run(module, train, queries, method="laplace", draws=5)
    assert InfluenceConfig().num_draws == 4
    assert ValidateConfig(draws=25, methods=("laplace", "ekfac")).draws == 25
    with pytest.raises(ValueError, match="give an even number"):
        ValidateConfig(draws=25, methods=("laplace", "stein"))


def test_damping_is_measured_where_none_is_given() -> None:
    """¼·‖∇L‖/‖w‖ by hand, in the unit of the curvature; the same as if it had been given."""
    module, train, queries = regression()
    with torch.no_grad():
        module.weight.add_(0.3)
    weight = module.weight.detach()[0]
    gradient = (train.x @ weight - train.y) @ train.x / len(train)
    found = run(module, train, queries)
    expected = 0.25 * float(gradient.norm() / weight.norm())
    assert found.diagnostics["sampler/damping"] == pytest.approx(expected, rel=1e-5)
    given = run(module, train, queries, damping=found.diagnostics["sampler/damping"], damping_share=4.0)
    assert torch.equal(found.scores, given.scores)
    half = run(module, train, queries, method="stein", damping_share=0.125, batch_size=5)
    assert half.diagnostics["sampler/damping"] == pytest.approx(expected / 2, rel=1e-5)
    train.x, train.y = 2 * train.x, 2 * train.y  # every loss four times as large
    assert run(module, train, queries).diagnostics["sampler/damping"] == pytest.approx(4 * expected, rel=1e-5)


def test_nothing_is_measured_where_damping_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor of any other method."""
    module, train, queries = regression()
    monkeypatch.setattr(stein, "standing_damping", lambda *_: pytest.fail("measured"))
    for options, expected in (({"damping": 0.02}, 0.02), ({"method": "laplace", "draws": 4}, 0.1)):
        found = run(module, train, queries, **options, damping_share=0.5)
        assert found.diagnostics["sampler/damping"] == expected
    with pytest.raises(ConfigError, match="damping_share"):
        run(module, train, queries, damping_share=0.0)


def test_at_a_minimum_damping_is_a_thousandth_of_the_curvature() -> None:
    module, train, queries = regression()
    found = run(module, train, queries).diagnostics["sampler/damping"]
    assert found == pytest.approx(1e-3 * float(train.x.square().sum()) / len(train) / 4, rel=1e-4)


def test_draws_that_are_too_far_are_said() -> None:
    module = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(1.0)

    class Steep(Cubic):
        def losses(self, indices: Sequence[int]) -> Tensor:
            return super().losses(indices).abs().exp()

    steep = Steep(module, torch.ones(6), torch.ones(6), torch.ones(6))
    with pytest.raises(SamplingError, match=r"Lower radius \(now 1e\+06\), or raise damping"):
        run(module, steep, steep, method="stein", radius=1e6)
    assert module.weight.item() == 1.0


def test_checkpoints_are_averaged(tmp_path: Path) -> None:
    from safetensors.torch import save_model

    module, train, queries = regression()
    expected: list[Result] = []
    for number in range(2):
        (tmp_path / f"step_0000000{number}").mkdir()
        with torch.no_grad():
            module.weight.add_(0.3)
        save_model(module, str(tmp_path / f"step_0000000{number}" / "model.safetensors"))
        expected.append(run(module, train, queries, method="stein", seed=number, chains=2))
    seen: list[Any] = []
    found = run_checkpoints(
        tmp_path, train, queries, method="stein", chains=2, model=module,
        log=lambda step, metrics: seen.append((step, metrics["checkpoint/number"])),
    )  # fmt: skip
    torch.testing.assert_close(found.scores, (expected[0].scores + expected[1].scores) / 2)
    errors = [one.errors for one in expected]
    torch.testing.assert_close(found.errors, (errors[0].square() + errors[1].square()).sqrt() / 2)  # type: ignore[union-attr]
    assert seen == [(step, 1 + step // 8) for step in range(16)]


# -- gradients on the axes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", [1, 3, 200])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [Layer, ConvLayer])
def test_a_rotated_gradient_is_the_gradient_rotated(
    kind: type[Layer], bias: bool, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few positions are rotated themselves, many only as the gradient that they sum to."""
    generator = torch.Generator().manual_seed(0)
    if kind is Layer:
        layer = Layer(nn.Linear(5, 4, bias=bias), 0, 1 if bias else None)
        inputs, gradient = (torch.randn(2, positions, width, generator=generator) for width in (5, 4))
    else:
        layer = ConvLayer(nn.Conv2d(2, 4, (1, 3), bias=bias), 0, 1 if bias else None)
        inputs = torch.randn(2, 2, 1, positions + 2, generator=generator)
        gradient = torch.randn(2, 4, 1, positions, generator=generator)
    read, written = layer.read(inputs), layer.written(gradient)
    assert read.shape[1:] == (positions, (5 if kind is Layer else 6) + bias)
    plain = layer.gradient(read, written)
    assert torch.equal(layer.gradient_on_axes(read, written), plain)  # no axes yet
    layer.input_axes, layer.output_axes = (
        torch.linalg.qr(torch.randn(size, size, generator=generator)).Q for size in (read.shape[2], 4)
    )
    expected = layer.to_axes(plain)
    rotations = 0
    to_axes = Layer.to_axes

    def counted(self: Layer, matrix: Tensor) -> Tensor:
        nonlocal rotations
        rotations += 1
        return to_axes(self, matrix)

    monkeypatch.setattr(Layer, "to_axes", counted)
    found = layer.gradient_on_axes(read, written)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert rotations == (positions == 200)
    assert not torch.allclose(found, plain, atol=0.1)
