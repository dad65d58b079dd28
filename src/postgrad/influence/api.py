"""`pg.influence.run`: from a model, training examples and queries to scores."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from postgrad.core.config import validate
from postgrad.core.errors import ConfigError, TrainingError
from postgrad.core.models import Model
from postgrad.influence import ops
from postgrad.influence.along import Along, Origin
from postgrad.influence.baselines import bm25, gradient_scores, here
from postgrad.influence.config import DRAWN, SAMPLED, InfluenceConfig
from postgrad.influence.data import Example, parse_given
from postgrad.influence.ekfac import LayerBasis, fit
from postgrad.influence.examples import Examples, Texts, make_examples
from postgrad.influence.layers import find_layers
from postgrad.influence.plan import WITH_LAYERS, check_memory
from postgrad.influence.result import Result, Scored, diagnose, find_problems, from_draws
from postgrad.influence.rounds import draw_until_stable
from postgrad.influence.sampler import Basis, Draws, Posterior, Sampler, chain_seed, choose_beta
from postgrad.influence.state import ChainFiles, identify
from postgrad.influence.stein import SteinChain, measure_damping
from postgrad.influence.tokens import by_token, token_scores
from postgrad.influence.weights import Named, PlainBasis, borrowed, choose_parameters

Log = Callable[[int, Mapping[str, Any]], None]
_CHECK_SEED = 10_007
_FACTOR_SEED = 20_011


def run(
    model: Model | nn.Module,
    train: Iterable[Any] | Path | Examples,
    queries: Iterable[Any] | Path | Examples,
    config: InfluenceConfig | None = None,
    *,
    log: Log | None = None,
    state: Path | str | None = None,
    **options: Any,
) -> Result:
    """Which training examples lower or raise the loss of which queries.

    Args:
        model: from `pg.load`; or a module, with `Examples` that know their losses under its weights.
        train: texts, rows (`{"text": …}`, `{"prompt": …, "completion": …}`, `{"messages": […]}`) or `Example`s in a list or a
            `datasets.Dataset`; a Path that `read_examples` takes; or `Examples`.
        queries: the same; what the model said, or was asked.
        config: settings; `options` override its fields.
        log: told (number of the draw, metrics) after every draw.
        state: directory where the chains keep their state every few seconds, and all their training losses, which then take
            disk in place of memory (`Result.draws` has them there); after a kill the same call goes on. Remove it afterwards.

    Returns:
        Scores [Q, N] with standard errors and diagnostics. The model's weights are what they were, bit by bit.

    Raises:
        ConfigError: an option that cannot be used, or weights that it does not fit; `state` is of another input; draws that do
            not fit into memory, or onto the disk.
        DataError: an example without a loss.
        TrainingError: a loss at the model's own weights is not finite.
        SamplingError: a chain diverged.
        RunError: `state` cannot be read or written.
        KeyboardInterrupt: Ctrl-C; with `state`, when the running step is done and kept.
    """
    config = validate(InfluenceConfig, {**(config or InfluenceConfig()).model_dump(), **options})
    train, queries, notes = _examples(model, train, queries, config)
    started = time.monotonic()
    if config.method == "bm25":
        result = Result(bm25(_texts(train).tokens, _texts(queries).tokens))
    else:
        module, chosen = _chosen(model, train, queries, config, None if state is None else Path(state))
        files = None if state is None or config.method not in DRAWN else ChainFiles(state)
        stopping = contextlib.nullcontext() if files is None else files.stopping_cleanly()
        with stopping, borrowed(module, chosen) as parameters:
            result = _attribute(module, chosen, parameters, train, queries, config, log, files)
    result.diagnostics["time/attribute_s"] = time.monotonic() - started
    result.notes[:0] = notes
    result.train, result.queries = _names(train), _names(queries)
    return result


def check(
    model: Model | nn.Module, train: Any, queries: Any, config: InfluenceConfig, state: Path | None = None
) -> None:
    """Raises what `run` would before its first pass: of options, weights, examples, memory and disk. Arguments as of `run`."""
    train, queries, _ = _examples(model, train, queries, config)
    if config.method == "bm25":
        for examples in (train, queries):
            _texts(examples)
    else:
        _chosen(model, train, queries, config, state)


def _chosen(
    model: Model | nn.Module, train: Examples, queries: Examples, config: InfluenceConfig, state: Path | None
) -> tuple[nn.Module, Named]:
    """The module and its chosen weights, if they can be used."""
    module = cast("nn.Module", model.module if isinstance(model, Model) else model)
    chosen = choose_parameters(module, config.parameters)
    if config.method in WITH_LAYERS:
        find_layers(module, chosen)
    check_memory(train, queries, config, chosen[0][1].device, state)
    return module, chosen


def answer(model: Model, prompt: str, max_tokens: int) -> Example:
    """The model's own greedy answer to a prompt, as a query.

    Raises:
        TrainingError: the answer is empty.
    """
    from postgrad.core.data import decode_completion, encode_prompt
    from postgrad.core.types import Prompt

    ids = torch.from_numpy(encode_prompt(model.tokenizer, Prompt(id="", text=prompt)))[None].to(model.device)
    module = cast("Any", model.module)
    with torch.inference_mode():
        found = module.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_tokens,
            pad_token_id=model.pad_token_id,
        )
    text = decode_completion(model.tokenizer, found[0, ids.shape[1] :].tolist())
    if not text.strip():
        raise TrainingError(
            f"The model answers nothing to {prompt[:60]!r}. Give the answer yourself, with --query."
        )
    return Example("answer", text, prompt)


def _examples(
    model: Model | nn.Module, train: Any, queries: Any, config: InfluenceConfig
) -> tuple[Examples, Examples, list[str]]:
    """Both roles as `Examples`, and what was merged or cut."""
    notes: list[str] = []
    found: list[Examples] = []
    for given, role in ((train, "training"), (queries, "query")):
        rows = parse_given(given, role, config)
        if rows is None:
            found.append(given)
            continue
        if not isinstance(model, Model):
            raise ConfigError("Texts need a language model from pg.load; a module needs Examples of its own.")
        examples = make_examples(rows, role)
        texts = Texts(model, examples, config.max_tokens)
        if merged := len(rows) - len(examples):
            notes.append(f"{merged} {role} examples were the same as another one and merged into it")
        if texts.num_cut:
            notes.append(
                f"{texts.num_cut} {role} examples were cut to {config.max_tokens} tokens or the model's context"
            )
        found.append(texts)
    return found[0], found[1], notes


def _texts(examples: Examples) -> Texts:
    if not isinstance(examples, Texts):
        raise ConfigError("Method bm25 compares words: it needs texts.")
    return examples


def _names(examples: Examples) -> list[tuple[str, str]]:
    return list(getattr(examples, "names", ()))


def _attribute(
    module: nn.Module,
    chosen: Named,
    parameters: list[nn.Parameter],
    train: Examples,
    queries: Examples,
    config: InfluenceConfig,
    log: Log | None,
    files: ChainFiles | None,
) -> Result:
    basis: Basis = PlainBasis(parameters)
    if config.method in WITH_LAYERS:
        basis = LayerBasis(find_layers(module, chosen), parameters)
    losses = _losses_at_centre(train, queries, config.batch_size, basis.device)
    kept = files is not None and files.begin(identify(module, train, queries, config), basis)
    if isinstance(basis, LayerBasis) and config.method != "gradient" and not kept:
        generator = torch.Generator(basis.device).manual_seed(config.seed + _FACTOR_SEED)
        fit(basis, parameters, train, config.batch_size, generator)
    if isinstance(basis, LayerBasis) and config.method in ("ekfac", "gradient"):
        num_tempered = choose_beta(parameters, train, config) * float(train.weights.sum())
        precision = (
            basis.precision(num_tempered, config.chosen_damping * num_tempered)
            if config.method == "ekfac"
            else None
        )
        along = Along(basis, parameters, train, queries, config)
        scores, own, total = gradient_scores(
            basis,
            parameters,
            train,
            queries,
            config.batch_size,
            precision,
            with_own=config.self_scores,
            with_total=along.wanted,
        )
        result = Result(scores.cpu(), self_scores=own.cpu() if config.self_scores else None)
        kept = {"total": total} if precision is None else {"total": total, "precision": precision}
        along.put(result, [Origin(here, lambda: kept)])
    elif isinstance(basis, LayerBasis) and config.method == "stein":
        result = _stein(parameters, train, queries, basis, config, log, files)
    else:
        result = _sampled(parameters, train, queries, basis, losses, config, log, files)
    result.losses = losses.cpu()
    return result


def _stein(
    parameters: Sequence[nn.Parameter],
    train: Examples,
    queries: Examples,
    basis: LayerBasis,
    config: InfluenceConfig,
    log: Log | None,
    files: ChainFiles | None,
) -> Result:
    if files is not None and files.measured is not None:
        config = config.model_copy(update={"damping": files.measured})
    config = measure_damping(basis, parameters, train, config)
    posterior = Posterior(parameters, train, basis, config)
    if files is not None:
        files.keep_origin(basis, config.chosen_damping)
    metrics = {
        "sampler/damping": config.chosen_damping,
        "sampler/beta": posterior.beta,
        "sampler/draws": float(config.chains * config.num_draws),
        "sampler/num_weights": float(basis.size),
    }
    in_memory = 8 * config.chains * basis.size if files is None else 0
    along = Along(basis, parameters, train, queries, config, in_memory)
    found: list[tuple[Tensor, Tensor]] = []
    origins: list[Origin] = []
    for number in range(config.chains):
        seed, stopping = chain_seed(config, number), () if files is None else (files.stop_if_asked,)
        chain = SteinChain(posterior, basis, parameters, config.num_draws, seed, *stopping)
        kept = None if files is None else files.restore_found(f"chain-{number}")
        if kept is None:
            progress = _stein_progress(log, metrics, number, config.num_draws)
            kept = chain.scores(queries, progress, with_total=along.wanted)
            if files is not None:
                files.keep_found(f"chain-{number}", kept, config.num_draws)
        found.append((kept.pop("scores").cpu(), kept.pop("own").cpu()))
        origins.append(_origin(chain, f"chain-{number}", kept, files))
    per_chain, own = (torch.stack([pair[part] for pair in found]) for part in (0, 1))
    found.clear()
    scores, errors = ops.mean_and_error(per_chain)
    if config.chains > 1 and len(train) > 2:
        metrics["diagnostics/stability"] = float(ops.rank_stability(per_chain).median())
    result = Result(
        scores,
        errors,
        diagnostics=metrics,
        problems=find_problems(metrics, config),
        self_scores=own.mean(0) if config.self_scores else None,
    )
    along.put(result, origins)
    return result


def _origin(chain: SteinChain, name: str, kept: Mapping[str, Tensor], files: ChainFiles | None) -> Origin:
    """What a chain's token scores are made from: held in memory, or read again from where it is kept."""
    held = {part: tensor.cpu() for part, tensor in kept.items()} if files is None else {}
    return Origin(chain.visits, lambda: held if files is None else files.restore_found(name) or {})


def _losses_at_centre(train: Examples, queries: Examples, batch_size: int, device: torch.device) -> Tensor:
    """Training losses [N] at the model's own weights, when every loss is finite."""
    found = torch.zeros(0)
    for examples, role in ((train, "training"), (queries, "query")):
        values = torch.empty(len(examples), device=device)
        with torch.inference_mode():
            for batch in examples.batches(batch_size):
                values[batch] = examples.losses(batch).float()
        bad = (~values.isfinite()).nonzero()
        if len(bad):
            index = int(bad[0])
            name = f" ({_names(examples)[index][0]})" if _names(examples) else ""
            raise TrainingError(
                f"The loss of {role} example {index + 1}{name} is {float(values[index])} at the model's own weights. "
                "Check the weights for NaN, and the example for tokens that the model cannot give."
            )
        if examples is train:
            found = values
    return found


def _sampled(
    parameters: Sequence[nn.Parameter],
    train: Examples,
    queries: Examples,
    basis: Basis,
    losses: Tensor,
    config: InfluenceConfig,
    log: Log | None,
    files: ChainFiles | None,
) -> Result:
    assert config.method in SAMPLED
    sides = by_token(train, queries, config.chains) if config.tokens else None
    if isinstance(sides, tuple):
        train, queries = sides
    posterior = Posterior(parameters, train, basis, config)
    generator = torch.Generator(basis.device).manual_seed(config.seed + _FACTOR_SEED + 1)
    metrics: dict[str, float] = {}
    step, curvature = config.relative_step, torch.nan
    if config.method in ("langevin", "sgld"):
        curvature = None if files is None else files.measured
        curvature = posterior.largest_curvature(generator) if curvature is None else curvature
        step /= curvature
        metrics["sampler/curvature"] = curvature
    elif config.method == "rmsprop":
        step /= posterior.beta
    if config.method != "laplace":
        metrics["sampler/step_size"] = step
    metrics["sampler/damping"] = config.chosen_damping
    metrics["sampler/beta"] = posterior.beta
    metrics["sampler/num_weights"] = float(basis.size)
    if files is not None:
        files.keep_origin(basis, curvature)
    progress = _progress(log, train.weights, metrics, 0 if files is None else files.num_draws())
    sampler = Sampler(
        posterior, queries, step, keeper=files, tokens=sides if isinstance(sides, tuple) else None
    )

    loss_at_centre = None  # the law of Laplace draws is not the posterior: it gives no learning coefficient
    if config.method != "laplace":
        loss_at_centre = float((losses * train.weights).sum() / train.weights.sum())

    def judge(draws: Draws, scored: Scored | None = None) -> dict[str, float]:
        scored = from_draws(draws, train.weights) if scored is None else scored
        return diagnose(draws, scored, loss_at_centre, posterior.num_tempered)

    draws, notes = draw_until_stable(sampler, config, judge, progress)
    scored = from_draws(draws, train.weights)
    found = judge(draws, scored)
    metrics["sampler/draws"] = float(draws.distance.numel())
    if config.check_step and config.method != "laplace" and len(train) > 2:
        count = draws.train.shape[1]
        again = _agreement(parameters, posterior, queries, step / 2, scored.scores, count, files)
        found["diagnostics/agreement"] = again
    return Result(
        scored.scores.cpu(),
        scored.errors.cpu(),
        scored.correlation.cpu(),
        {**metrics, **found},
        find_problems(found, config),
        self_scores=scored.variance.cpu(),
        notes=[*notes, *([sides] if isinstance(sides, str) else [])],
        tokens=token_scores(sampler.token_moments, *sides) if isinstance(sides, tuple) else None,
        draws=Draws(*(part.cpu() for part in draws)),
    )


def _agreement(
    parameters: Sequence[nn.Parameter],
    posterior: Posterior,
    queries: Examples,
    step: float,
    scores: Tensor,
    num_draws: int,
    files: ChainFiles | None,
) -> float:
    """Rank correlation, median over queries, with the scores of as many draws, of as long chains, at half the step."""
    posterior.place(torch.zeros(posterior.basis.size, device=posterior.basis.device))
    before = posterior.config
    slower = before.model_copy(update={"burn_in": 2 * before.burn_in, "thin": 2 * before.thin})
    again = Posterior(parameters, posterior.train, posterior.basis, slower)
    sampler = Sampler(again, queries, step, name="half", seed_offset=_CHECK_SEED, keeper=files)
    halved = from_draws(sampler.sample(num_draws), posterior.train.weights).scores
    return float(torch.stack([ops.spearman(*pair) for pair in zip(scores, halved, strict=True)]).median())


def _stein_progress(
    log: Log | None, metrics: Mapping[str, float], chain: int, num_draws: int
) -> Callable[[float], None]:
    """Told the mean training loss at each draw of a chain."""
    steps = itertools.count(chain * num_draws)

    def progress(loss: float) -> None:
        step = next(steps)
        if log is not None:
            log(step, {**(metrics if step == 0 else {}), "chain/number": chain, "chain/loss": loss})

    return progress


def _progress(
    log: Log | None, weights: Tensor, first: Mapping[str, float], count: int
) -> Callable[[int, Tensor], None] | None:
    if log is None:
        return None

    def progress(chain: int, losses: Tensor) -> None:
        nonlocal count
        mean = float((losses * weights).sum() / weights.sum())
        log(count, {**(first if count == 0 else {}), "chain/number": chain, "chain/loss": mean})
        count += 1

    return progress
