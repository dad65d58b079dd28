"""TRL's GRPOTrainer on the work of `postgrad rl train`; run by `benchmarks/rl_vs_trl.py` with .venv-trl/bin/python.

Same as on our side: the warm-started weights, the training prompts in the order in which our stream deals them with this
seed, prompt tokens (checked one by one), verifiers, rewards ±1, samples per prompt, prompts per update, length limits,
AdamW with our betas, eps, weight decay, warm-up and clipping, and the evaluation (`postgrad.rl.evaluate` on the policy's
weights, clock stopped). The loss is TRL's own CISPO with its token-level aggregation and batch-level reward scaling;
generation is `model.generate` or transformers' continuous batching.

TRL's speed knobs are options, so that its best setting can be searched (`rl_vs_trl.py --sweep`): rows per forward pass
(`--per-device`), updates per generation phase (`--updates-per-generation`; above 1 it trains off-policy and computes the
old log-probs in an extra forward pass), `--attention`, `--continuous-batching`, `--judge`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from postgrad.core.config import validate  # noqa: E402
from postgrad.core.data import encode_prompt, plain_text  # noqa: E402
from postgrad.core.models import load  # noqa: E402
from postgrad.core.models.model import Model  # noqa: E402
from postgrad.core.types import Prompt  # noqa: E402
from postgrad.rl.api import fitting, make_engine, read_data  # noqa: E402
from postgrad.rl.config import RLConfig  # noqa: E402
from postgrad.rl.evaluate import choose_prompts, evaluate  # noqa: E402
from postgrad.rl.rollout import Rollout  # noqa: E402
from postgrad.tasks import PromptStream, VerifierPool, by_task  # noqa: E402
from postgrad.tasks.load import make_verifier  # noqa: E402

Reward = Callable[..., list[float]]


def parse() -> argparse.Namespace:
    """The options; `rl_vs_trl.py` sets them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, help="resolved RLConfig as JSON; model.path is the checkpoint")
    parser.add_argument("out", type=Path, help="where the result goes, as JSON")
    parser.add_argument("--updates", type=int, required=True, help="most updates")
    parser.add_argument("--budget-s", type=float, default=float("inf"), help="most seconds on the clock")
    parser.add_argument("--stop-at", type=float, default=float("inf"), help="held-out pass rate to stop at")
    parser.add_argument("--eval-every", type=int, default=0)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument(
        "--per-device", type=int, default=0, help="rows per forward pass; 0 = the whole batch"
    )
    parser.add_argument("--updates-per-generation", type=int, default=1)
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa")
    parser.add_argument("--continuous-batching", action="store_true")
    parser.add_argument("--judge", choices=("inline", "pool"), default="inline")
    parser.add_argument("--threads", type=int, required=True)
    return parser.parse_args()


class World:
    """Everything that both trainers share, built by postgrad's own code."""

    def __init__(self, config: RLConfig) -> None:
        self.config = config
        self.model = load(config.model.path, device="cpu", dtype="float32")
        self.rollout = Rollout(
            self.model, config.length, config.algorithm, config.seed, config.data.instruction
        )
        data = read_data(config)
        training, longest = fitting(data.split.train, self.rollout, _note)
        self.held_out, other = fitting(
            choose_prompts(data.split.held_out, config.eval.prompts), self.rollout, _note
        )
        self.training = training
        self.engine = make_engine(self.model, config, max(longest, other))
        self.pool = VerifierPool(config.data.tasks, config.data.verify_workers, config.data.verify_timeout_s)

    def stream(self, count: int) -> list[Prompt]:
        """The first `count` prompts that our stream deals with this seed (none removed: TRL has no history)."""
        weights = {task.name: task.weight for task in self.config.data.tasks}
        stream = PromptStream(by_task(self.training), weights, self.config.seed)
        return [prompt for _ in range(count) if (prompt := stream.next()) is not None]

    def pass_rate(self, weights: dict[str, torch.Tensor]) -> float:
        """Held-out mean@k of these weights."""
        self.engine.load_weights(weights, 0)
        options = self.config.eval
        found = evaluate(
            self.engine,
            self.rollout,
            self.pool,
            self.held_out,
            options.samples_per_prompt,
            options.temperature,
        )
        return found.metrics["eval/pass_rate"]


def fingerprint(model: Model, prompts: Sequence[Prompt], instruction: str) -> str:
    """A hash of the tokens of these prompts, to compare between the two sides."""
    digest = hashlib.blake2b(digest_size=8)
    for prompt in prompts:
        digest.update(encode_prompt(model.tokenizer, prompt, instruction).tobytes() + b"|")
    return digest.hexdigest()


def check_tokens(world: World, prompts: Sequence[Prompt]) -> None:
    """TRL's tokens of each prompt are ours. Raises SystemExit otherwise."""
    tokenizer, instruction = world.model.tokenizer, world.config.data.instruction
    texts = [plain_text(prompt, instruction) for prompt in prompts]
    for prompt, ids in zip(prompts, tokenizer(text=texts)["input_ids"], strict=True):
        expected = encode_prompt(tokenizer, prompt, instruction).tolist()
        if ids != expected:
            raise SystemExit(f"TRL tokenises prompt {prompt.id} to {ids}, postgrad to {expected}")


def inline_reward(world: World, prompts: Sequence[Prompt]) -> Reward:
    """Our verifiers, called in TRL's own process."""
    verifiers = {task.name: make_verifier(task) for task in world.config.data.tasks}
    signed = world.config.algorithm.reward == "signed"

    def reward(completions: list[str], index: list[int], **_: Any) -> list[float]:
        scores = [
            verifiers[prompts[i].task](prompts[i], text) for i, text in zip(index, completions, strict=True)
        ]
        return [2 * score - 1 if signed else score for score in scores]

    return reward


def pool_reward(world: World, prompts: Sequence[Prompt]) -> Reward:
    """Our verifier pool."""
    signed = world.config.algorithm.reward == "signed"

    def reward(completions: list[str], index: list[int], **_: Any) -> list[float]:
        pairs = zip(index, completions, strict=True)
        tickets = [world.pool.submit(prompts[i], text) for i, text in pairs]
        scores = [verdict.score or 0.0 for verdict in world.pool.collect(tickets)]
        return [2 * score - 1 if signed else score for score in scores]

    return reward


class Clock(TrainerCallback):
    """Sums the seconds of training, evaluates with the clock stopped, and ends the run when budget or level is reached."""

    def __init__(self, world: World, options: argparse.Namespace) -> None:
        self.world, self.options = world, options
        self.elapsed, self.started = 0.0, 0.0
        self.step_s: list[float] = []
        self.evaluations: list[dict[str, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.options.eval_every:
            self._evaluate(0, kwargs["model"])
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        seconds = time.perf_counter() - self.started
        self.elapsed += seconds
        self.step_s.append(seconds)
        step, every = state.global_step, self.options.eval_every
        spent = self.elapsed >= self.options.budget_s
        if every and (step % every == 0 or step == self.options.updates or spent):
            spent |= self._evaluate(step, kwargs["model"]) >= self.options.stop_at
        control.should_training_stop |= spent
        self.started = time.perf_counter()

    def _evaluate(self, step: int, model: Any) -> float:
        weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        rate = self.world.pass_rate(weights)
        self.evaluations.append({"step": step, "seconds": self.elapsed, "pass_rate": rate})
        _note(f"TRL update {step}: {self.elapsed:.1f} s, held-out {rate:.3f}")
        return rate


def settings(config: RLConfig, options: argparse.Namespace, folder: str) -> GRPOConfig:
    """Our recipe in TRL's words."""
    algorithm, optimizer = config.algorithm, config.optimizer
    batch = algorithm.prompts_per_batch * algorithm.samples_per_prompt
    per_device = options.per_device or batch
    if batch % per_device:
        raise SystemExit(f"--per-device {per_device} does not divide the batch of {batch} samples")
    accumulation = batch // per_device
    return GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        report_to="none",
        seed=config.seed,
        max_steps=options.updates,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=accumulation * options.updates_per_generation,
        num_generations=algorithm.samples_per_prompt,
        max_completion_length=config.length.max_completion_tokens,
        temperature=algorithm.temperature,
        top_p=algorithm.top_p,
        top_k=algorithm.top_k,
        loss_type="cispo",
        epsilon_high=algorithm.cap,
        scale_rewards="batch",
        beta=0.0,
        mask_truncated_completions=algorithm.truncated == "exclude",
        cast_lm_head_to_fp32=algorithm.fp32_head,
        disable_dropout=True,
        gradient_checkpointing=False,
        learning_rate=options.lr,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=optimizer.warmup_steps,
        optim="adamw_torch_fused",
        adam_beta1=optimizer.beta1,
        adam_beta2=optimizer.beta2,
        adam_epsilon=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.max_grad_norm,
        shuffle_dataset=False,
        use_transformers_continuous_batching=options.continuous_batching,
        model_init_kwargs={"dtype": "float32", "attn_implementation": options.attention},
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )


def main() -> None:
    """Trains and writes the result."""
    options = parse()
    torch.set_num_threads(options.threads)
    config = validate(RLConfig, json.loads(options.config.read_text(encoding="utf-8")))
    world = World(config)
    per_update = config.algorithm.prompts_per_batch
    prompts = world.stream(options.updates * per_update)
    check_tokens(world, prompts)
    rows = [
        {"prompt": plain_text(prompt, config.data.instruction), "index": index}
        for index, prompt in enumerate(prompts)
    ]
    make_reward = inline_reward if options.judge == "inline" else pool_reward
    clock = Clock(world, options)
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=config.model.path,
            reward_funcs=make_reward(world, prompts),
            args=settings(config, options, folder),
            train_dataset=Dataset.from_list(rows),
            processing_class=world.model.tokenizer,
            callbacks=[clock],
        )
        startup_s = time.perf_counter() - STARTED
        trainer.train()
    world.pool.close()
    result = {
        "startup_s": startup_s,
        "elapsed_s": clock.elapsed,
        "step_s": clock.step_s,
        "evaluations": clock.evaluations,
        "num_samples_per_update": per_update * config.algorithm.samples_per_prompt,
        "held_out_fingerprint": fingerprint(world.model, world.held_out, config.data.instruction),
        "prompts_fingerprint": fingerprint(world.model, prompts[:per_update], config.data.instruction),
        "settings": {
            key: value
            for key, value in vars(options).items()
            if key not in ("config", "out", "budget_s", "stop_at")
        },
    }
    options.out.write_text(json.dumps(result), encoding="utf-8")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
