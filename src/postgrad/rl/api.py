"""`train` and `evaluate_model`: from a config to a finished run, the same for the command line and for Python."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple, cast

from torch import Tensor

from postgrad.core.config import deep_merge, read_toml, validate
from postgrad.core.data import plain_text
from postgrad.core.errors import ConfigError, DataError
from postgrad.core.models import embedded_model, load
from postgrad.core.models.lora import add_lora, load_adapter, require_peft
from postgrad.core.models.model import Model
from postgrad.core.models.reference import ReferencePolicy
from postgrad.core.protocols import ConcurrentEngine, Engine, Forecaster, RewardTransform, TransformContext
from postgrad.core.recipes import find_recipe
from postgrad.core.run import Run, check_free
from postgrad.core.types import Prompt
from postgrad.engines.make import build_engine, open_fleet
from postgrad.rl.config import RLConfig, make_config
from postgrad.rl.evaluate import Evaluation, choose_prompts, evaluate
from postgrad.rl.learner import Learner
from postgrad.rl.rollout import Rollout
from postgrad.rl.trainer import HEADLINE, Trainer
from postgrad.tasks import (
    FileTask,
    PromptStream,
    ReasoningTask,
    Split,
    by_task,
    load_tasks,
    make_judge,
    split,
)

IN_MEMORY = "given in memory"
"""`model.path` of a run whose model has no source."""

Note = Callable[[str], None]
Progress = Callable[[int, int, float], None]


@dataclass
class Data:
    """Prompts on their sides, and the demonstrations for the embedded model (training side only)."""

    split: Split
    demonstrations: list[tuple[str, str]]


def read_data(config: RLConfig) -> Data:
    """Generates or reads all prompts and splits them. Raises DataError and TaskError as the tasks do."""
    tasks = load_tasks(config.data)
    prompts = [prompt for task in tasks for prompt in task.prompts()]
    sides = split(prompts, config.data.holdout_fraction)
    demonstrations = [] if config.model.path else _demonstrations(config, tasks, sides.train)
    return Data(sides, demonstrations)


def _demonstrations(
    config: RLConfig, tasks: Sequence[ReasoningTask | FileTask], training: Sequence[Prompt]
) -> list[tuple[str, str]]:
    """(prompt text, answer) for the warm start; a share of the answers belongs to another prompt of the same task.

    One answer of each prompt, then a second one of those that have it, and so on up to the number asked for.
    """
    options = config.model.embedded
    demonstrate = {task.name: task.demonstrations for task in tasks}
    rng = random.Random(options.seed)
    chosen = choose_prompts(training, options.demonstrations)
    answers = {prompt.id: demonstrate[prompt.task](prompt) for prompt in chosen}
    pairs: dict[str, list[tuple[Prompt, str]]] = {task: [] for task in by_task(chosen)}
    for prompt, answer in islice(_in_rounds(chosen, answers), options.demonstrations):
        pairs[prompt.task].append((prompt, answer))
    demonstrations: list[tuple[str, str]] = []
    for of_task in pairs.values():
        for prompt, answer in of_task:
            wrong = rng.random() < options.wrong_fraction
            text = plain_text(prompt, config.data.instruction).removesuffix("\n")
            demonstrations.append((text, rng.choice(of_task)[1] if wrong else answer))
    return demonstrations


def _in_rounds(
    prompts: Sequence[Prompt], answers: Mapping[str, Sequence[str]]
) -> Iterator[tuple[Prompt, str]]:
    """(prompt, answer): the first answer of every prompt, then the second ones."""
    position = 0
    while prompts := [prompt for prompt in prompts if len(answers[prompt.id]) > position]:
        yield from ((prompt, answers[prompt.id][position]) for prompt in prompts)
        position += 1


def load_model(config: RLConfig, data: Data, progress: Progress | None = None) -> Model:
    """The model that the config names, or the embedded one, warm-started on demonstrations of the training prompts."""
    options = config.model
    if not options.path:
        return embedded_model(
            data.demonstrations,
            options.embedded,
            device=options.device,
            dtype=options.dtype,
            progress=progress,
        )
    return load(
        options.path,
        device=options.device,
        dtype=options.dtype,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
    )


def fitting(prompts: Sequence[Prompt], rollout: Rollout, note: Note) -> tuple[list[Prompt], int]:
    """The prompts within `length.max_prompt_tokens`, and the longest of them in tokens. Raises DataError if none is."""
    limit = rollout.length.max_prompt_tokens
    lengths = [len(rollout.encode(prompt)) for prompt in prompts]
    kept = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= limit]
    if not kept:
        raise DataError(
            f"All {len(prompts)} prompts are longer than length.max_prompt_tokens = {limit} (the shortest has {min(lengths)} "
            "tokens). Raise it, or shorten the prompts."
        )
    if len(kept) < len(prompts):
        note(
            f"{len(prompts) - len(kept)} of {len(prompts)} prompts are longer than {limit} tokens and are left out."
        )
    return kept, max(length for length in lengths if length <= limit)


def engine_length(model: Model, config: RLConfig, longest_prompt: int) -> int:
    """Tokens of the longest prompt and a full completion. Raises ConfigError if the model's context is shorter."""
    needed = longest_prompt + config.length.max_completion_tokens
    if model.context_length is not None and needed > model.context_length:
        raise ConfigError(
            f"The longest prompt ({longest_prompt} tokens) and length.max_completion_tokens = "
            f"{config.length.max_completion_tokens} need {needed} tokens; the model's context has {model.context_length}. "
            "Lower length.max_completion_tokens (and interrupt_min/max), or length.max_prompt_tokens."
        )
    return needed


def make_engine(model: Model, config: RLConfig, longest_prompt: int) -> Engine:
    """The engine of this process."""
    length = engine_length(model, config, longest_prompt)
    return build_engine(model, config.engine, **_engine_options(config, length))


@contextmanager
def open_engine(
    model: Model, config: RLConfig, longest_prompt: int, note: Note
) -> Generator[tuple[Engine, ConcurrentEngine | None]]:
    """The engine of this process, or generators beside it; the second is the same one where it generates by itself."""
    if config.engine.generators == 0 and config.cluster.address is None:
        yield make_engine(model, config, longest_prompt), None
        return
    length = engine_length(model, config, longest_prompt)
    options = _engine_options(config, length)
    with open_fleet(model, config.engine, note, config.cluster, **options) as fleet:
        yield fleet, None if config.engine.lockstep else fleet


def _engine_options(config: RLConfig, length: int) -> dict[str, Any]:
    algorithm = config.algorithm
    return {"max_length": length, "fp32_head": algorithm.fp32_head, "truncated": algorithm.truncates}


def train(
    model: Model | str | Path | None = None,
    *,
    task: str | Sequence[str] | None = None,
    config: RLConfig | None = None,
    preset: str | Path | None = None,
    out: str | Path = "runs/rl",
    resume: bool = False,
    overwrite: bool = False,
    command: Sequence[str] = (),
    quiet: bool = False,
    transform: Callable[[TransformContext], RewardTransform] | None = None,
    forecaster: Forecaster | None = None,
    cluster: str | None = None,
    stop: Event | None = None,
    **overrides: Any,
) -> Run:
    """Reinforcement learning with verifiable rewards, by the ScaleRL recipe unless the config says otherwise.

    Args:
        model: a Model (trained in place), a path or hub name; None = `config.model`, by default the embedded one.
        task: reasoning-gym data sets to train on; replaces `config.data.tasks`.
        config: all options; None = the defaults.
        preset: a recipe put on top, such as "magistral" or a .toml file.
        out: run directory.
        resume: go on from the latest checkpoint in `out`, with the config of that run.
        overwrite: throw away an earlier run in `out`.
        command: recorded in run.json.
        quiet: nothing on the console.
        transform: makes what re-rewards each group before advantages, such as `pg.mara.transform` with `mara__beta=0.01`;
            give it again with `resume`.
        forecaster: says after every evaluation where the run will end, such as `scaling.live.Forecaster()`.
        cluster: address of the Ray cluster that generators and verifiers run on; replaces `config.cluster.address`, also
            with `resume`. The trainer stays in this process (`postgrad rl train --cluster` puts it there, too).
        stop: once set, the run writes a checkpoint and ends as after Ctrl-C.
        overrides: dotted options with `__` for the dot, such as `optimizer__lr=1e-4`.

    Returns:
        The finished run; its checkpoints load with `AutoModelForCausalLM.from_pretrained`.

    Raises:
        PostgradError: see `core.errors`. KeyboardInterrupt after Ctrl-C, when the checkpoint is written.
    """
    out = Path(out)
    if resume:
        config = validate(RLConfig, Run.open(out).config_dict())
    else:
        config = configure(config, model, task, overrides, preset)
        check_free(out, overwrite=overwrite)
    if cluster is not None:
        config = validate(RLConfig, deep_merge(config.model_dump(), {"cluster": {"address": cluster}}))
    # Everything that can be wrong with the input comes to light before the run directory is touched.
    data = read_data(config)
    last = Run.open(out).latest_checkpoint() if resume else None
    note = (lambda text: None) if quiet else _to_stderr
    if config.lora is not None:
        require_peft("The table [lora]")
    if last is not None and config.lora is None:
        policy = load(last[1], device=config.model.device, dtype=config.model.dtype)
    elif last is not None and config.model.path == IN_MEMORY:
        raise ConfigError(
            "A LoRA run of a model that was given in memory cannot be resumed: its weights before training are not in the run. "
            "Give the model by its path; the last checkpoint has the merged weights and the adapter."
        )
    else:
        policy = model if isinstance(model, Model) else load_model(config, data, _warm_start_notes(note))
    with make_judge(config.data, config.cluster) as judge, ExitStack() as stack:
        parts = prepare(policy, config, data, note)
        engine, concurrent = stack.enter_context(open_engine(policy, config, parts.longest_prompt, note))
        if config.lora is not None:  # after the engine has copied the base model
            policy.module = add_lora(policy.module, config.lora, config.seed)
            if last is not None:
                load_adapter(policy.module, last[1])
        initial = _initial_weights(policy, config, data, resumed=last is not None)
        rewarder = _make_transform(transform, policy, config, initial)
        reference = _make_reference(policy, config, initial)
        run = stack.enter_context(_open_run(config, out, resume, overwrite, command, quiet))
        learner = stack.enter_context(_open_learner(policy, config))  # after the engine has copied the model
        if resume:
            run.truncate_after(last[0] if last is not None else -1)
        trainer = Trainer(
            run,
            policy,
            engine,
            config,
            judge,
            parts.stream,
            parts.held_out,
            rewarder,
            forecaster,
            reference,
            concurrent,
            stop=stop,
            learner=learner,
        )
        if last is not None:
            run.note(f"resuming from {last[1].name}")
            trainer.resume(last[1])
        try:
            trainer.fit()
        finally:
            if config.lora is not None:  # the model that was given is the trained one, and plain again
                policy.module = cast("Any", policy.module).merge_and_unload()
    return run


def _initial_weights(
    policy: Model, config: RLConfig, data: Data, *, resumed: bool
) -> Callable[[], dict[str, Tensor]]:
    """The weights of before training, in host memory; a resumed run reads them from where the config has them."""

    @cache
    def initial_weights() -> dict[str, Tensor]:
        module = (load_model(config, data) if resumed else policy).module
        return {name: p.detach().to("cpu", copy=True) for name, p in module.named_parameters()}

    return initial_weights


def _make_reference(
    policy: Model, config: RLConfig, initial_weights: Callable[[], dict[str, Tensor]]
) -> ReferencePolicy | None:
    if config.algorithm.kl == "none":
        return None
    return ReferencePolicy(
        policy,
        None if config.lora is not None else initial_weights(),
        temperature=config.algorithm.temperature,
        max_tokens=config.optimizer.micro_batch_tokens,
    )


def _make_transform(
    transform: Callable[[TransformContext], RewardTransform] | None,
    policy: Model,
    config: RLConfig,
    initial_weights: Callable[[], dict[str, Tensor]],
) -> RewardTransform | None:
    """What re-rewards."""
    if transform is None:
        if config.mara:
            raise ConfigError(
                "The config has a table [mara], but no transform was given: transform=pg.mara.transform."
            )
        return None

    algorithm = config.algorithm
    signed = algorithm.reward == "signed"
    passed = algorithm.success_threshold
    context = TransformContext(
        options=config.mara,
        model=policy,
        initial_weights=initial_weights,
        temperature=algorithm.temperature,
        pass_reward=2 * passed - 1 if signed else passed,
        fail_reward=-1.0 if signed else 0.0,
        max_tokens=config.optimizer.micro_batch_tokens,
        seed=config.seed,
    )
    return transform(context)


@contextmanager
def _open_learner(policy: Model, config: RLConfig) -> Generator[Learner | None]:
    """Over several ranks, where the config wants that."""
    if config.cluster.trainer_ranks == 1:
        yield None
        return
    from postgrad.rl.ranks import open_ranks

    with open_ranks(policy, config) as learner:
        yield learner


class Parts(NamedTuple):
    """What a run goes through: tokens of its longest prompt, training prompts, those of evaluations."""

    longest_prompt: int
    stream: PromptStream
    held_out: list[Prompt]


def prepare(policy: Model, config: RLConfig, data: Data, note: Note) -> Parts:
    """Prompts that fit, as a stream and held out. Raises DataError: too few; ConfigError: the context is too short."""
    rollout = Rollout(policy, config.length, config.algorithm, config.seed, config.data.instruction)
    training, longest = fitting(data.split.train, rollout, note)
    held_out, longest_held_out = fitting(
        choose_prompts(data.split.held_out, config.eval.prompts), rollout, note
    )
    batch = config.algorithm.prompts_per_batch
    if len(training) < batch:
        raise DataError(
            f"{len(training)} training prompts are fewer than algorithm.prompts_per_batch = {batch}, so a batch would "
            "hold the same prompt twice. Give more prompts, or set "
            f"--algorithm.prompts_per_batch {len(training)} or less."
        )
    weights = {task.name: task.weight for task in config.data.tasks}
    stream = PromptStream(by_task(training), weights, config.seed)
    engine_length(policy, config, max(longest, longest_held_out))
    evaluated = f"{len(held_out):,} of {len(data.split.held_out):,} held-out prompts for evaluation"
    if not config.data.holdout_fraction:
        evaluated = f"nothing held out: {len(held_out):,} of them for evaluation"
    note(
        f"{policy.num_parameters:,} parameters on {policy.device}; {len(training):,} training prompts, {evaluated}"
    )
    return Parts(max(longest, longest_held_out), stream, held_out)


def evaluate_model(
    config: RLConfig, progress: Progress | None = None, note: Note = lambda text: None
) -> Evaluation:
    """mean@k of `config.model` on the held-out prompts of `config.data`."""
    data = read_data(config)
    model = load_model(config, data, progress)
    rollout = Rollout(model, config.length, config.algorithm, config.seed, config.data.instruction)
    held_out, longest = fitting(choose_prompts(data.split.held_out, config.eval.prompts), rollout, note)
    engine = make_engine(model, config, longest)
    with make_judge(config.data) as judge:
        return evaluate(
            engine, rollout, judge, held_out, config.eval.samples_per_prompt, config.eval.temperature
        )


def configure(
    config: RLConfig | None,
    model: Model | str | Path | None,
    task: str | Sequence[str] | None,
    overrides: Mapping[str, Any],
    preset: str | Path | None = None,
) -> RLConfig:
    """The config that the arguments of `train` stand for; `__` in the name of an override is a dot."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    if isinstance(model, (str, Path)):
        dotted["model.path"] = str(model)
    elif isinstance(model, Model):
        dotted["model.path"] = model.source or IN_MEMORY
    names = [task] if isinstance(task, str) else list(task or ())
    return make_config(
        None if config is None else config.model_dump(),
        preset=None if preset is None else read_toml(find_recipe(str(preset))),
        tasks=names,
        overrides=dotted,
    )


def _open_run(
    config: RLConfig, out: Path, resume: bool, overwrite: bool, command: Sequence[str], quiet: bool
) -> Run:
    if resume:
        return Run.resume(out, command=command, headline=HEADLINE, total_steps=config.steps, quiet=quiet)
    return Run.create(
        out,
        config,
        command=list(command) or ["postgrad.rl.train"],
        kind="rl.train",
        seed=config.seed,
        overwrite=overwrite,
        device=config.model.device,
        headline=HEADLINE,
        total_steps=config.steps,
        quiet=quiet,
    )


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _warm_start_notes(note: Note) -> Progress:
    def show(step: int, steps: int, loss: float) -> None:
        if step in (1, steps) or step % max(1, steps // 5) == 0:
            note(f"warm start of the embedded model: {step}/{steps} updates, loss {loss:.3f}")

    return show
