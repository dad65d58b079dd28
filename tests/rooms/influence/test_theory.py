"""Sampled influence against posteriors and Hessians that are known exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.rooms.influence.problems import Labels, Regression, regression
from torch import Tensor, nn

from postgrad.core.errors import ConfigError, SamplingError
from postgrad.influence import baselines, sampler
from postgrad.influence.api import run
from postgrad.influence.config import InfluenceConfig
from postgrad.influence.ekfac import LayerBasis, example_gradients, fit
from postgrad.influence.layers import find_layers
from postgrad.influence.sampler import Chain, Posterior
from postgrad.influence.weights import PlainBasis, borrowed, choose_parameters

LAMBDA = 0.3


def gaussian(train: Regression, module: nn.Linear, damping: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the posterior, β = 1."""
    x, n = train.x.double(), len(train)
    return module.weight[0].detach().double(), torch.linalg.inv(x.T @ x + damping * n * torch.eye(x.shape[1]))


def exact_covariance(train: Regression, queries: Regression, module: nn.Linear, damping: float) -> Tensor:
    """Cov of two quadratics under a Gaussian: ∇ℓ_jᵀΣ∇ℓ_i + ½·tr(H_jΣH_iΣ), the first term being the damped influence/n."""
    mean, spread = gaussian(train, module, damping)
    slopes = [(d.x.double() @ mean - d.y.double())[:, None] * d.x.double() for d in (train, queries)]
    return slopes[1] @ spread @ slopes[0].T + 0.5 * (queries.x.double() @ spread @ train.x.double().T) ** 2


@pytest.fixture(scope="module")
def sampled() -> tuple[Any, Any, Any, Any]:
    module, train, queries = regression()
    options = {"method": "langevin", "chains": 16, "draws": 150, "step_size": 1.5, "beta": 1.0, "burn_in": 20}
    options |= {"thin": 1, "check_step": False}
    return module, train, queries, run(module, train, queries, damping=LAMBDA, **options)


def test_sampled_influence_is_the_closed_form_within_its_own_standard_errors(sampled: Any) -> None:
    module, train, queries, result = sampled
    distance = (result.scores - exact_covariance(train, queries, module, LAMBDA)) / result.errors
    assert distance.abs().max() < 5.2  # t with 15 degrees of freedom: 1e-4 two-sided
    assert 0.2 < distance.square().mean() < 3  # and the errors are not just large
    other = (result.scores - exact_covariance(train, queries, module, 2 * LAMBDA)) / result.errors
    assert other.abs().max() > 5.2  # it can fail: another damping is told apart
    assert not result.problems


def test_reweighting_an_example_moves_the_query_as_the_score_says(sampled: Any) -> None:
    """dE[ℓ_j]/dβ_i by central differences of the exact posterior mean loss is −Cov: the sign and size of a proponent."""
    module, train, queries, result = sampled
    x, y, n = train.x.double(), train.y.double(), len(train)
    centre = module.weight[0].detach().double()

    def expected_losses(betas: Tensor) -> Tensor:
        precision = (betas[:, None] * x).T @ x + LAMBDA * n * torch.eye(x.shape[1])
        spread = torch.linalg.inv(precision)
        mean = spread @ ((betas * y) @ x + LAMBDA * n * centre)
        q = queries.x.double()
        return 0.5 * (q @ mean - queries.y.double()) ** 2 + 0.5 * ((q @ spread) * q).sum(1)

    one = torch.ones(n, dtype=torch.float64)
    step = 1e-4 * torch.eye(n, dtype=torch.float64)
    moved = torch.stack([(expected_losses(one + s) - expected_losses(one - s)) / 2e-4 for s in step], 1)
    torch.testing.assert_close(-moved, exact_covariance(train, queries, module, LAMBDA), rtol=1e-4, atol=1e-6)
    assert ((result.scores + moved) / result.errors).abs().max() < 5.2


def test_ekfac_is_the_exact_damped_influence_of_a_linear_model() -> None:
    module, train, queries = regression()
    result = run(module, train, queries, method="ekfac", damping=LAMBDA, beta=2.0)
    x, y = train.x.double(), train.y.double()
    mean = module.weight[0].detach().double()
    damped = torch.linalg.inv(x.T @ x / len(x) + LAMBDA * torch.eye(x.shape[1]))
    g_train = (x @ mean - y)[:, None] * x
    g_query = (queries.x.double() @ mean - queries.y.double())[:, None] * queries.x.double()
    expected = (
        g_query @ damped @ g_train.T / (2.0 * len(x))
    )  # the room's unit: covariance, 1/(nβ) of influence
    torch.testing.assert_close(result.scores.double(), expected, rtol=1e-4, atol=1e-6)


def test_small_temperature_leaves_the_leading_order_alone() -> None:
    module, train, queries = regression()
    leading = run(module, train, queries, method="ekfac", damping=LAMBDA, beta=1e4).scores
    full = exact_covariance(train, queries, module, LAMBDA)
    gap = [
        (leading * 1e4 - full).abs().max(),
        (run(module, train, queries, method="ekfac", damping=LAMBDA, beta=1.0).scores - leading * 1e4)
        .abs()
        .max(),
    ]
    assert gap[1] < 1e-4 < gap[0]  # EK-FAC scales by 1/β exactly; the covariance has more terms


def exact_llc(train: Regression, damping: float) -> float:
    """½·Σ h/(h + λ) over the Hessian's eigenvalues h: E of a quadratic under its own Gaussian."""
    h = torch.linalg.eigvalsh(train.x.double().T @ train.x.double() / len(train))
    return 0.5 * float((h / (h + damping)).sum())


@pytest.mark.parametrize("damping", [1e-6, LAMBDA])
@pytest.mark.parametrize("chains", [1, 3])
def test_the_learning_coefficient_is_half_the_weights_or_as_lambda_leaves_them(
    damping: float, chains: int
) -> None:
    """d/2 of a regular model of d weights (2308.12108), within an interval that excludes one weight more or less."""
    module, train, queries = regression()
    options = {
        "method": "langevin",
        "beta": 1.0,
        "step_size": 1.5,
        "burn_in": 20,
        "thin": 1,
        "check_step": False,
    }
    result = run(module, train, queries, **options, damping=damping, chains=chains, draws=2400 // chains)
    expected = exact_llc(train, damping)
    if damping < 1e-3:
        assert expected == pytest.approx(2.0, abs=1e-3)  # 4 weights
    assert result.llc is not None
    assert result.llc.low < expected < result.llc.high
    assert result.llc.high - result.llc.low < 0.5
    assert result.llc.value == result.diagnostics["diagnostics/llc"]


def test_the_interval_of_the_learning_coefficient_covers_it_over_seeds() -> None:
    module, train, queries = regression()
    options = {
        "method": "langevin",
        "beta": 1.0,
        "step_size": 1.5,
        "burn_in": 10,
        "thin": 1,
        "check_step": False,
    }
    expected = exact_llc(train, LAMBDA)
    found = [
        run(module, train, queries, **options, damping=LAMBDA, chains=2, draws=60, seed=seed).llc
        for seed in range(40)
    ]
    assert sum(one is not None and one.low <= expected <= one.high for one in found) >= 34


@pytest.mark.parametrize("method", ["stein", "ekfac", "gradient", "laplace"])
def test_there_is_no_learning_coefficient_without_chains(method: str) -> None:
    module, train, queries = regression()
    result = run(module, train, queries, method=method, draws=8)
    assert result.llc is None
    assert not any("llc" in key for key in result.diagnostics)


def test_largest_curvature_is_that_of_the_hessian() -> None:
    module, train, _ = regression()
    config = InfluenceConfig(method="langevin", damping=LAMBDA, beta=1.0)
    with borrowed(module, choose_parameters(module, "")) as parameters:
        posterior = Posterior(parameters, train, PlainBasis(parameters), config)
        found = posterior.largest_curvature(torch.Generator().manual_seed(0))
    x = train.x
    assert found == pytest.approx(float(torch.linalg.eigvalsh(x.T @ x).max()) + LAMBDA * len(x), rel=1e-3)


@pytest.mark.parametrize(("steps", "error"), [(8, 0.1), (30, 0.005)])
def test_largest_curvature_of_a_classifier_on_preconditioned_axes(
    steps: int, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sampler.CURVATURE_STEPS == 8
    monkeypatch.setattr(sampler, "CURVATURE_STEPS", steps)
    module, train, _ = classifier()
    train.weights = torch.arange(1.0, 17.0)
    names = [name for name, _ in module.named_parameters()]
    config = InfluenceConfig(method="langevin", damping=0.01, beta=1.0, batch_size=5)
    with borrowed(module, choose_parameters(module, ".*")) as parameters:
        basis = PlainBasis(parameters)
        posterior = Posterior(parameters, train, basis, config)
        posterior.precision = torch.linspace(0.5, 2.0, basis.size)
        place = [parameter.detach().clone() for parameter in parameters]

        def mean_loss(flat: Tensor) -> Tensor:
            weights = dict(zip(names, basis.from_flat(flat), strict=True))
            said = torch.func.functional_call(module, weights, (train.x,))
            losses = F.cross_entropy(said, train.y, reduction="none")
            return (losses * train.weights).sum() / train.weights.sum()

        hessian = torch.autograd.functional.hessian(mean_loss, basis.to_flat(place))
        found = posterior.largest_curvature(torch.Generator().manual_seed(0))
        for parameter, before in zip(parameters, place, strict=True):
            assert torch.equal(parameter.detach(), before)
    root = posterior.precision.rsqrt()
    whole = posterior.num_tempered * hessian + posterior.localization * torch.eye(basis.size)
    assert found == pytest.approx(float(torch.linalg.eigvalsh(root[:, None] * whole * root).max()), rel=error)


# -- a classifier ----------------------------------------------------------------------------------------------------


def classifier() -> tuple[nn.Module, Labels, Labels]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20, 5, generator=generator)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        module = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3))
    module.eval()
    return module, Labels(module, x[:16], y[:16]), Labels(module, x[16:], y[16:])


def slow_gradients(module: nn.Module, examples: Labels) -> Tensor:
    """[N, weights], one backward pass each."""
    rows: list[Tensor] = []
    for index in range(len(examples)):
        grads = torch.autograd.grad(examples.losses([index]).sum(), list(module.parameters()))
        rows.append(torch.cat([grad.flatten() for grad in grads]))
    return torch.stack(rows)


def test_gradient_scores_are_dot_products_in_any_batches() -> None:
    module, train, queries = classifier()
    expected = slow_gradients(module, queries) @ slow_gradients(module, train).T
    for batch_size in (3, 64):
        result = run(module, train, queries, method="gradient", batch_size=batch_size)
        torch.testing.assert_close(result.scores, expected, rtol=1e-4, atol=1e-6)


def test_queries_in_parts_have_the_scores_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training gradients are made between the queries' own; neither gets into the other."""
    module, train, queries = classifier()
    whole = run(module, train, queries, method="ekfac", batch_size=2).scores
    monkeypatch.setattr(baselines, "GRADIENT_FLOATS", 2 * sum(p.numel() for p in module.parameters()))
    parts = run(module, train, queries, method="ekfac", batch_size=2).scores
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-7)


def test_corrected_eigenvalues_are_second_moments_on_the_axes() -> None:
    """With the true targets in place of sampled ones, Λ is what a loop over examples gives, and its trace that of the moment."""
    module, train, _ = classifier()
    train.sampled_losses = lambda indices, generator: train.losses(indices)  # type: ignore[method-assign]
    train.weights = torch.tensor([2.0] + [1.0] * 15)
    chosen = choose_parameters(module, "")
    with borrowed(module, chosen) as parameters:
        basis = LayerBasis(find_layers(module, chosen), parameters)
        fit(basis, parameters, train, 5, torch.Generator())
        axes = torch.cat([basis.flatten(g) for _, g in example_gradients(basis, parameters, train, 7)])
    expected = (train.weights[:, None] * axes.square()).sum(0) / train.weights.sum()
    torch.testing.assert_close(basis.curvature(), expected, rtol=1e-4, atol=1e-7)
    slow = slow_gradients(module, train)
    torch.testing.assert_close(axes @ axes.T, slow @ slow.T, rtol=1e-4, atol=1e-5)  # an orthogonal map


class Conv1D(nn.Module):
    """GPT-2's layer: weight [I, O]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


@pytest.mark.parametrize("make", [lambda: nn.Linear(5, 3), Conv1D, lambda: nn.Linear(5, 3, bias=False)])
def test_the_axes_are_a_rotation_of_the_weights(make: Any) -> None:
    module = make()
    _, train, _ = classifier()
    data = Labels(module, train.x, train.y)
    chosen = choose_parameters(module, "")
    with borrowed(module, chosen) as parameters:
        basis = LayerBasis(find_layers(module, chosen), parameters)
        fit(basis, parameters, data, 8, torch.Generator().manual_seed(0))
        tensors = [torch.randn_like(parameter) for parameter in parameters]
        flat = basis.to_flat(tensors)
        for back, tensor in zip(basis.from_flat(flat), tensors, strict=True):
            torch.testing.assert_close(back, tensor, rtol=1e-4, atol=1e-5)
        assert flat.square().sum().item() == pytest.approx(
            sum(t.square().sum().item() for t in tensors), rel=1e-4
        )


def test_a_mislabelled_example_is_an_opponent() -> None:
    """An example with a query's input and another label raises the query's loss; one with its label lowers it."""
    module, train, queries = classifier()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    train.x[0], train.y[0] = queries.x[0], queries.y[0]
    train.x[1], train.y[1] = queries.x[0], (queries.y[0] + 1) % 3
    for _ in range(150):
        optimizer.zero_grad()
        train.losses(range(16)).mean().backward()
        optimizer.step()
    for method in ("langevin", "laplace", "ekfac"):
        scores = run(module, train, queries, method=method, thin=2, draws=60, check_step=False).scores[0]
        assert scores.argmin() == 1, method
        assert scores[0] > 0, method


# -- chains ----------------------------------------------------------------------------------------------------------

QUICK: dict[str, Any] = {
    "method": "langevin",
    "chains": 2,
    "draws": 20,
    "burn_in": 3,
    "thin": 1,
    "check_step": False,
}


@pytest.mark.parametrize(
    "options",
    [
        {"method": "langevin"},
        {"method": "sgld"},
        {"method": "rmsprop", "gradient_examples": 4},
        {"method": "laplace"},
    ],
)
def test_the_same_seed_gives_the_same_scores_and_another_does_not(options: dict[str, Any]) -> None:
    module, train, queries = regression()
    options = QUICK | options
    first, again = (run(module, train, queries, **options) for _ in range(2))
    assert torch.equal(first.scores, again.scores)
    assert not torch.equal(first.scores, run(module, train, queries, **options, seed=1).scores)
    assert first.draws is not None
    assert not torch.equal(first.draws.train[0], first.draws.train[1])  # chains are their own


@pytest.mark.parametrize("method", ["sgld", "rmsprop"])
def test_a_chain_goes_on_where_it_was(method: Any) -> None:
    module, train, queries = regression()
    config = InfluenceConfig(method=method, draws=12, burn_in=2, thin=2, gradient_examples=5)
    with borrowed(module, choose_parameters(module, "")) as parameters:
        posterior = Posterior(parameters, train, PlainBasis(parameters), config)
        whole, begun, resumed = (Chain(posterior, queries, 1e-3, seed) for seed in (7, 7, 8))
        while not whole.done:
            whole.advance()
        for _ in range(11):
            begun.advance()
        resumed.load_state_dict(begun.state_dict())
        while not resumed.done:
            resumed.advance()
    for one, other in zip(whole.draws(), resumed.draws(), strict=True):
        assert torch.equal(one, other)


def test_gradients_of_parts_average_to_the_whole() -> None:
    module, train, _ = regression()
    train.weights = torch.arange(1.0, 13.0)
    config = InfluenceConfig(method="langevin", gradient_examples=4, batch_size=3, beta=1.0)
    with borrowed(module, choose_parameters(module, "")) as parameters:
        posterior = Posterior(parameters, train, PlainBasis(parameters), config)
        everything = train.batches(5)
        losses, gradient = posterior.losses_and_gradient(everything)
        torch.testing.assert_close(losses, posterior.losses(train))
        assert torch.equal(posterior.complete(losses.clone(), everything), losses)
        generator = torch.Generator().manual_seed(0)
        found: list[Tensor] = []
        for _ in range(400):
            chosen = posterior.step_batches(generator)
            some, part = posterior.losses_and_gradient(chosen)
            assert int((some != 0).sum()) == 4 == sum(map(len, chosen))
            torch.testing.assert_close(posterior.complete(some, chosen), losses)
            found.append(part)
    parts = torch.stack(found)
    error = parts.std(0) / 20
    assert ((parts.mean(0) - gradient) / error).abs().max() < 4.5


def test_a_chain_that_is_on_its_way_is_not_ranked() -> None:
    module, train, queries = regression()
    with torch.no_grad():
        module.weight.add_(3.0)  # no minimum: losses fall for as long as it runs
    options = {"method": "sgld", "damping": 1e-4, "step_size": 0.002, "draws": 60, "chains": 2}
    options |= {"thin": 1, "burn_in": 0, "beta": 1.0, "check_step": False}
    result = run(module, train, queries, **options)
    assert result.diagnostics["diagnostics/drift"] > 0.8
    assert any("drift" in problem and "raise burn_in" in problem for problem in result.problems)
    with pytest.raises(SamplingError, match="Rankings are withheld"):
        result.proponents(0)
    assert len(result.proponents(0, 3, anyway=True)) <= 3


def test_too_large_a_step_is_a_clear_error() -> None:
    module, train, queries = regression()
    before = module.weight.detach().clone()
    with pytest.raises(SamplingError, match="Lower step_size"):
        run(module, train, queries, method="sgld", step_size=40.0, draws=400, check_step=False)
    assert torch.equal(module.weight, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("method", ["langevin", "stein"])
def test_everything_is_as_it_was(dtype: torch.dtype, fails: bool, method: str) -> None:
    module, train, queries = classifier()
    module.to(dtype).train()
    module[0].bias.requires_grad_(False)
    module[3].weight.grad = torch.ones_like(module[3].weight)
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in module.state_dict().items()}
    if fails:
        train.y[0] = 7  # a label that does not exist, after the weights were borrowed
        train.losses = lambda indices: F.nll_loss(
            torch.zeros(len(indices), 3), train.y[indices], reduction="none"
        )  # type: ignore
        with pytest.raises(IndexError):
            run(module, train, queries, **QUICK | {"method": method})
    else:
        run(module, train, queries, **QUICK | {"method": method})
    for name, tensor in module.state_dict().items():
        pointer, values = before[name]
        assert tensor.data_ptr() == pointer
        assert tensor.dtype == dtype
        assert torch.equal(tensor, values), name
    assert all(part.training for part in module.modules())
    assert not module[0].bias.requires_grad
    assert module[0].weight.requires_grad
    assert torch.equal(module[3].weight.grad, torch.ones_like(module[3].weight))


def test_weights_are_chosen_by_name() -> None:
    module, train, queries = classifier()
    assert [name for name, _ in choose_parameters(module, r"^3\.")] == ["3.weight", "3.bias"]
    one = run(module, train, queries, parameters=r"^3\.", **QUICK)
    assert one.diagnostics["sampler/num_weights"] == 21
    with pytest.raises(ConfigError, match="in the name of no weight"):
        run(module, train, queries, parameters="attention")
    with pytest.raises(ConfigError, match="no regular expression"):
        run(module, train, queries, parameters="(")
    with pytest.raises(ConfigError, match="EK-FAC knows linear layers"):
        run(module, train, queries, parameters="bias", **QUICK)
