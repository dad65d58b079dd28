"""The loop: next batch, update, new weights; evaluate, checkpoint, log.

Everything that a checkpoint holds: the model (Hugging Face format), AdamW's state (`learner.safetensors`), and what is
under way - unfinished sequences, finished samples, prompt stream, history (`state.json`). All random numbers follow from the seed
and from ids, so there is no generator state to keep.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any

import numpy as np

from postgrad.core.errors import RunError, TrainingError
from postgrad.core.models.model import Model, save
from postgrad.core.models.reference import ReferencePolicy
from postgrad.core.protocols import ConcurrentEngine, Engine, Forecaster, Judge, RewardTransform
from postgrad.core.run import Run
from postgrad.core.types import Group, Prompt, Sample
from postgrad.rl.config import RLConfig
from postgrad.rl.evaluate import Evaluation, evaluate
from postgrad.rl.learner import Learner
from postgrad.rl.rollout import Rollout
from postgrad.rl.scheduler import Scheduler
from postgrad.tasks import PromptStream

HEADLINE = (
    ("rollout/pass_rate", "pass", ".3f"),
    ("eval/pass_rate", "held-out", ".3f"),
    ("loss/entropy", "entropy", ".3f"),
    ("staleness/mean", "stale", ".1f"),
    ("speed/samples_per_s", "samples/s", ".0f"),
)

_LOGGED_EVALUATION_GROUPS = 60


class Trainer:
    """Trains `model` in place.

    Args:
        run: where everything is written.
        model: the policy.
        engine: generates; holds a copy of the weights of its own.
        config: resolved.
        judge: verdicts.
        stream: training prompts.
        held_out: evaluation prompts, already chosen.
        transform: re-rewards each group before advantages (mara).
        forecaster: says after every evaluation where the run will end (scaling).
        reference: the model before training, where `algorithm.kl` wants it.
        concurrent: the engine again, where it generates by itself.
        stop: once set, a checkpoint and a clean end, as after Ctrl-C.
        learner: of this model and config, where it is not in this process alone.
    """

    def __init__(
        self,
        run: Run,
        model: Model,
        engine: Engine,
        config: RLConfig,
        judge: Judge,
        stream: PromptStream,
        held_out: Sequence[Prompt],
        transform: RewardTransform | None = None,
        forecaster: Forecaster | None = None,
        reference: ReferencePolicy | None = None,
        concurrent: ConcurrentEngine | None = None,
        stop: Event | None = None,
        learner: Learner | None = None,
    ) -> None:
        self.run, self.model, self.engine, self.config = run, model, engine, config
        self.judge, self.stream, self.held_out, self.transform = judge, stream, held_out, transform
        self.forecaster = forecaster
        self.rollout = Rollout(model, config.length, config.algorithm, config.seed, config.data.instruction)
        self.learner = learner or Learner(
            model, config.algorithm, config.optimizer, config.seed, reference, config.steps
        )
        slots = config.engine.slots * max(1, config.engine.generators)
        self.scheduler = Scheduler(
            engine, self.rollout, judge, stream.next, config.algorithm, config.schedule, slots, concurrent
        )
        self.step = 0
        self.totals = {"generated_tokens": 0, "trained_tokens": 0, "elapsed_s": 0.0}
        self._interrupted = False
        self._stop = stop or Event()

    # -- the loop ------------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Runs to `config.steps` updates, or until no prompt is left.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once the running update is done and a checkpoint written.
            TrainingError: no sample of a batch could be verified, or a gradient is not finite.
        """
        with self._signals():
            if self.step == 0:
                self.run.log(0, {**self._evaluate(phase="before"), **self._spent()})
            while self.step < self.config.steps and not self._is_stopping():
                if not self._advance():
                    self.run.note("No prompt is left to train on (all mastered or read); stopping here.")
                    break
            self.checkpoint()
        if self._interrupted:
            raise KeyboardInterrupt

    def _is_stopping(self) -> bool:
        self._interrupted |= self._stop.is_set()
        return self._interrupted

    def _advance(self) -> bool:
        self.scheduler.read_clock()  # evaluations and checkpoints are not waiting
        started = time.perf_counter()
        groups = self.scheduler.next_batch()
        generated = [*groups, *self.scheduler.dropped]
        if not generated:
            return False
        judged = time.perf_counter()
        self._remember(generated)
        metrics = self._describe(generated)
        trained, min_deviation = groups, 0.0
        if self.transform is not None and groups:
            began = time.perf_counter()
            trained, facts = self.transform(groups)
            min_deviation = self.transform.min_deviation
            metrics |= facts
            metrics["time/transform_s"] = time.perf_counter() - began
        before_update = time.perf_counter()
        metrics |= self.learner.update(trained, min_deviation)
        updated = time.perf_counter()
        if self.scheduler.updated():
            self.engine.load_weights(self.learner.weights(), self.scheduler.version)
        self.step += 1
        ended = time.perf_counter()
        metrics |= self._clock_metrics()
        metrics |= {
            "time/train_s": updated - before_update,
            "time/generate_s": judged - started + ended - updated,
        }
        metrics |= self._speed(generated, metrics, ended - started)
        last = self.step == self.config.steps
        if last or (self.config.eval.every and self.step % self.config.eval.every == 0):
            began = time.perf_counter()
            metrics |= self._evaluate(phase="after" if last else "eval")
            metrics["time/eval_s"] = time.perf_counter() - began
            metrics |= self._forecast(metrics)
        self.run.log(self.step, metrics)
        self.run.log_samples(self.step, self._rows(groups[: self.config.run.log_samples], "train"))
        if self.step % self.config.run.checkpoint_every == 0 and not last:
            self.checkpoint()
        return True

    def _evaluate(self, phase: str) -> dict[str, float]:
        """Held-out metrics; what is being generated is put aside and continued afterwards."""
        under_way = self.scheduler.pause()
        self.engine.load_weights(self.learner.weights(), self.scheduler.version)
        evaluation = self.evaluate_now()
        self.engine.submit(under_way)
        self.run.log_samples(self.step, self._rows(evaluation.groups[:_LOGGED_EVALUATION_GROUPS], phase))
        return evaluation.metrics

    def _forecast(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Where the run will end, from all evaluations up to this one."""
        if self.forecaster is None:
            return {}
        forecast, line = self.forecaster([*self.run.metrics(), {"step": self.step, **metrics}])
        if line:
            self.run.note(line)
        return forecast

    def evaluate_now(self) -> Evaluation:
        """Evaluates the engine's present weights; the engine must be idle."""
        options = self.config.eval
        return evaluate(
            self.engine,
            self.rollout,
            self.judge,
            self.held_out,
            options.samples_per_prompt,
            options.temperature,
        )

    # -- bookkeeping ---------------------------------------------------------------------------------------------

    def _remember(self, groups: Sequence[Group]) -> None:
        """No-positive-resampling: a prompt whose pass rate reached the threshold leaves the stream for good."""
        threshold = self.config.algorithm.history_threshold
        if threshold is None:
            return
        for group in groups:
            passed = [self.rollout.passed(sample) for sample in group.samples]
            if sum(passed) / len(passed) >= threshold:
                self.stream.remove(group.prompt.id)

    def _describe(self, groups: Sequence[Group]) -> dict[str, Any]:
        samples = [sample for group in groups for sample in group.samples]
        verdicts = [sample.verdict for sample in samples if sample.verdict is not None]
        failed = [verdict for verdict in verdicts if verdict.score is None]
        if len(failed) == len(samples):
            raise TrainingError(
                f"None of the {len(samples)} samples of update {self.step + 1} could be verified; the first failure is "
                f"{failed[0].status!r}: {failed[0].detail or 'no detail'}. Fix the reward, then go on with --resume."
            )
        tokens = np.array([sample.num_tokens for sample in samples])
        rewards = [sample.reward for sample in samples if sample.reward is not None]
        lag = self.scheduler.version - np.concatenate(
            [sample.policy_version[sample.loss_mask] for sample in samples]
        )
        flat = [group for group in groups if len(set(group.rewards)) <= 1]
        return {
            "rollout/pass_rate": float(np.mean([self.rollout.passed(sample) for sample in samples])),
            "rollout/reward_mean": float(np.mean(rewards)),
            "rollout/truncated_fraction": float(np.mean([s.stop_reason == "length" for s in samples])),
            "rollout/interrupted_fraction": float(np.mean([s.interrupted for s in samples])),
            "rollout/zero_variance_fraction": len(flat) / len(groups),
            "rollout/completion_tokens_mean": float(tokens.mean()),
            "rollout/completion_tokens_max": int(tokens.max()),
            "rollout/verify_failed_fraction": len(failed) / len(samples),
            **{
                f"rollout/verify_{name}": sum(verdict.status == status for verdict in failed)
                for name, status in (
                    ("timeouts", "timeout"),
                    ("errors", "error"),
                    ("non_finite", "non_finite"),
                )
            },
            **self._optional(samples),
            "staleness/mean": float(lag.mean()),
            "staleness/max": int(lag.max()),
            "staleness/histogram": np.bincount(lag, minlength=self.config.schedule.k + 1).tolist(),
            "curriculum/active_prompts": self.stream.num_active,
            "curriculum/removed_prompts": self.stream.num_removed,
        }

    def _optional(self, samples: Sequence[Sample]) -> dict[str, float]:
        """What is logged only where its option is on."""
        metrics: dict[str, float] = {}
        if self.config.algorithm.zero_variance == "resample":
            metrics["rollout/dropped_groups"] = len(self.scheduler.dropped)
        if self.config.length.penalty_tokens is not None:
            metrics["rollout/length_penalty_mean"] = float(
                np.mean([self.rollout.length_penalty(sample) for sample in samples])
            )
        parts: dict[str, list[float]] = {}
        for sample in samples:
            for name, score in (sample.verdict.parts if sample.verdict is not None else {}).items():
                parts.setdefault(name, []).append(score)
        metrics |= {f"rollout/{name}/score_mean": float(np.mean(scores)) for name, scores in parts.items()}
        return metrics

    def _clock_metrics(self) -> dict[str, float]:
        clock = self.scheduler.read_clock()
        total = max(clock.total, 1e-9)
        metrics = {
            "idle/generator_fraction": 1 - clock.busy_generator / total,
            "idle/trainer_fraction": 1 - clock.busy_trainer / total,
        }
        if self.scheduler.concurrent is not None:
            usage = self.scheduler.concurrent.usage()
            metrics["idle/generator_restarts"] = usage.num_restarts
            metrics["idle/reissued_requests"] = usage.num_reissued
        return metrics

    def _speed(self, groups: Sequence[Group], metrics: Mapping[str, Any], seconds: float) -> dict[str, float]:
        samples = [sample for group in groups for sample in group.samples]
        generated = sum(sample.num_tokens for sample in samples)
        trained = int(metrics["loss/trained_tokens"])
        self.totals["generated_tokens"] += generated
        self.totals["trained_tokens"] += trained
        self.totals["elapsed_s"] += seconds
        return {
            "time/step_s": seconds,
            "speed/samples_per_s": len(samples) / seconds,
            "speed/generate_tokens_per_s": generated / max(metrics["time/generate_s"], 1e-9),
            "speed/train_tokens_per_s": trained / max(metrics["time/train_s"], 1e-9),
            **self._spent(),
        }

    def _spent(self) -> dict[str, float]:
        """Time and compute so far: 2 FLOP per parameter and token to generate; to train 4, and 2 more where it changes."""
        parameters = self.model.num_parameters
        trained = sum(parameter.numel() for parameter in self.learner.parameters.values())
        return {
            "time/elapsed_s": self.totals["elapsed_s"],
            "compute/total_tokens": self.totals["generated_tokens"],
            "compute/generate_flops": 2.0 * parameters * self.totals["generated_tokens"],
            "compute/train_flops": (4.0 * parameters + 2.0 * trained) * self.totals["trained_tokens"],
        }

    def _rows(self, groups: Sequence[Group], phase: str) -> list[dict[str, Any]]:
        """Rows of samples.jsonl, with the rewards before any transform."""
        rows: list[dict[str, Any]] = []
        for group in groups:
            for sample in group.samples[: self.config.run.samples_per_group]:
                verdict = sample.verdict
                rows.append(
                    {
                        "phase": phase,
                        "task": group.prompt.task,
                        "prompt_id": group.prompt.id,
                        "prompt": group.prompt.content,
                        "answer": group.prompt.answer,
                        "completion": sample.text,
                        "correct": self.rollout.passed(sample),
                        "score": verdict.score if verdict else None,
                        "status": verdict.status if verdict else None,
                        **({"parts": dict(verdict.parts)} if verdict and verdict.parts else {}),
                        "reward": sample.reward,
                        "num_tokens": sample.num_tokens,
                        "stop_reason": sample.stop_reason,
                        "interrupted": sample.interrupted,
                    }
                )
        return rows

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Writes a checkpoint atomically, then goes on exactly as a run that resumes from it would."""
        state = {
            "step": self.step,
            "totals": self.totals,
            "stream": self.stream.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }
        if self.transform is not None:
            state["transform"] = self.transform.state_dict()

        def write(folder: Path) -> None:
            save(self.learner.whole_model(), folder)
            self.learner.save(folder / "learner.safetensors")
            (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")

        try:
            self.run.save_checkpoint(self.step, write, keep=self.config.run.keep_checkpoints)
        finally:
            self.scheduler.load_state_dict(state["scheduler"])

    def resume(self, folder: Path) -> None:
        """Goes on from a checkpoint whose weights are already in the model.

        Raises:
            RunError: the checkpoint lacks the trainer's files.
        """
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            self.learner.load(folder / "learner.safetensors")
        except (OSError, ValueError, KeyError) as error:
            raise RunError(
                f"{folder} cannot be resumed from ({type(error).__name__}: {error}). Remove this checkpoint to go on from "
                "the one before, or start a new run with --model.path on it."
            ) from error
        self.step, self.totals = state["step"], state["totals"]
        self.stream.load_state_dict(state["stream"])
        if self.transform is not None:
            self.transform.load_state_dict(state["transform"])
        self.engine.load_weights(self.learner.weights(), state["scheduler"]["version"])
        self.scheduler.load_state_dict(state["scheduler"])

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM asks for a checkpoint and a clean end; the second one ends at once."""

        def handle(number: int, frame: FrameType | None) -> None:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
            self.run.note(
                "Interrupted: finishing this update and writing a checkpoint (again to stop at once)."
            )

        try:
            old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: signals stay as they are
            yield
            return
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
