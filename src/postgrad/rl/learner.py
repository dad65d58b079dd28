"""One update of the policy: filter, advantages, loss weights, micro-batches, AdamW."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from postgrad.core.errors import TrainingError
from postgrad.core.models.head import fp32_head
from postgrad.core.models.lora import adapter_dropout, is_lora, merged_weights
from postgrad.core.models.model import Model
from postgrad.core.models.packing import Row, TokenStatistics, loss_tokens, row_logps, rows
from postgrad.core.models.recompute import recompute_activations
from postgrad.core.models.reference import ReferencePolicy
from postgrad.core.types import Group, Sample
from postgrad.rl import ops
from postgrad.rl.config import AlgorithmConfig, OptimizerConfig
from postgrad.rl.filters import usable


class Batch(NamedTuple):
    """What is trained on: samples [N] of a batch with the tensors that the loss needs, fixed before any splitting.

    Attributes:
        samples: those that are kept, group by group.
        advantage: float32 [N].
        sample: int64 [T], index into `samples` of each loss token.
        behaviour_logp, weight: float32 [T].
        penalised: bool [T]; the tokens that pay KL-Cov's KL.
        ref_logp: float32 [T] under the model before training; None without a KL to it.
        metrics: what the filters did.
    """

    samples: list[Sample]
    advantage: Tensor
    sample: Tensor
    behaviour_logp: Tensor
    weight: Tensor
    penalised: Tensor
    ref_logp: Tensor | None
    metrics: dict[str, float]


def make_batch(
    groups: Sequence[Group],
    config: AlgorithmConfig,
    *,
    min_deviation: float = 0.0,
    generator: torch.Generator | None = None,
    reference: ReferencePolicy | None = None,
) -> Batch | None:
    """Filters as the recipe says and computes advantages; None when nothing with a gradient is left.

    Left out: samples without a verdict, truncated ones (`truncated = "exclude"`) and, where the group is the baseline,
    groups of fewer than two samples after that and groups without variance (unless `zero_variance = "keep"`).

    Args:
        groups: with their final rewards.
        config: of the algorithm.
        min_deviation: the least that advantages are divided by.
        generator: of Clip-Cov's draws.
        reference: the model before training, where `kl` wants it.
    """
    compared = config.baseline == "group"
    kept: list[tuple[int, Sample]] = []
    for index, group in enumerate(groups):
        samples = usable(group, config)
        if len(samples) > compared:
            kept += [(index, sample) for sample in samples]
    metrics = {"loss/trained_groups": 0.0, "loss/trained_samples": 0.0, "loss/trained_tokens": 0.0}
    if not kept:
        return None
    group = torch.tensor([index for index, _ in kept])
    reward = torch.tensor([float(sample.reward or 0.0) for _, sample in kept])
    alive = ops.has_variance(reward, group) if compared else torch.ones(len(groups), dtype=torch.bool)
    if config.zero_variance != "keep":
        choose = alive[group]
        kept = [pair for pair, chosen in zip(kept, choose.tolist(), strict=True) if chosen]
        group, reward = group[choose], reward[choose]
    regularised = (
        config.kl != "none" or config.entropy_coef > 0
    )  # what has no advantage has a gradient all the same
    if not kept or not (regularised or bool(alive.any())):
        return None
    samples = [sample for _, sample in kept]
    sample, behaviour_logp = loss_tokens(samples)
    ref_logp = None if reference is None else torch.cat(reference.token_logps(samples))
    if config.kl == "reward" and ref_logp is not None:
        penalty = config.kl_coef * ops.kl_penalty(
            behaviour_logp, ref_logp, sample, len(samples), config.kl_estimator
        )
        reward = reward - penalty
        metrics["loss/reward_kl_mean"] = float(penalty.mean())
    importance = torch.tensor([sample.weight for sample in samples])
    advantage = ops.advantages(
        reward,
        group,
        config.advantage_norm,
        baseline=config.baseline,
        weight=importance,
        min_deviation=min_deviation,
    )
    weight = ops.token_weights(sample, group, config.aggregation) * importance[sample]
    chosen = covariant_tokens(config, behaviour_logp, advantage[sample], generator)
    if config.covariance == "clip":
        weight = weight.masked_fill(chosen, 0.0)
    metrics["loss/trained_groups"] = float(len(torch.unique(group)))
    metrics["loss/trained_samples"] = float(len(samples))
    metrics["loss/trained_tokens"] = float(len(sample))
    if config.covariance != "none":
        metrics["loss/covariance_fraction"] = float(chosen.float().mean())
    penalised = chosen if config.covariance == "kl" else torch.zeros_like(chosen)
    return Batch(samples, advantage, sample, behaviour_logp, weight, penalised, ref_logp, metrics)


def covariant_tokens(
    config: AlgorithmConfig, behaviour_logp: Tensor, advantage: Tensor, generator: torch.Generator | None
) -> Tensor:
    """bool [T]: the tokens that `config.covariance` acts on.

    Chosen by the log-probs that the tokens were sampled with, over the whole batch, before it is split.
    """
    match config.covariance:
        case "kl":
            return ops.kl_cov(behaviour_logp, advantage, config.covariance_fraction or 2e-3)
        case "clip":
            return ops.clip_cov(
                behaviour_logp,
                advantage,
                generator or torch.Generator().manual_seed(0),
                config.covariance_fraction or 2e-4,
                config.covariance_low,
                config.covariance_high,
            )
        case "none":
            return torch.zeros_like(behaviour_logp, dtype=torch.bool)


def loss_terms(
    config: AlgorithmConfig, logp: Tensor, behaviour_logp: Tensor, advantage: Tensor, sample: Tensor
) -> ops.LossTerms:
    """The per-token terms of the configured loss."""
    high = config.clip_high or (0.26 if config.loss == "dapo" else 0.2)
    match config.loss:
        case "cispo":
            return ops.cispo(logp, behaviour_logp, advantage, config.cap)
        case "grpo" | "dapo":
            return ops.clipped(logp, behaviour_logp, advantage, config.clip_low, high)
        case "gspo":
            return ops.gspo(logp, behaviour_logp, advantage, sample, config.clip_low, high)
        case "reinforce":
            return ops.reinforce(logp, behaviour_logp, advantage)


def regularisation(
    config: AlgorithmConfig,
    statistics: TokenStatistics,
    behaviour_logp: Tensor,
    penalised: Tensor,
    ref_logp: Tensor | None,
) -> Tensor:
    """What is added to the per-token terms, [T]: KL-Cov's KL, the KL to the reference, the entropy bonus."""
    term = torch.zeros_like(statistics.logp)
    if config.covariance == "kl":
        term = term + config.covariance_kl * (statistics.logp - behaviour_logp).abs() * penalised
    if config.kl == "loss" and ref_logp is not None:
        term = term + config.kl_coef * ops.kl_estimate(statistics.logp, ref_logp, config.kl_estimator)
    if config.entropy_coef > 0:
        term = term - config.entropy_coef * statistics.entropy
    return term


class Learner:
    """Holds the policy and its optimizer.

    Weights in a lower precision than fp32 get an fp32 master copy that the optimizer updates: at a learning rate of
    5e-7 most updates are below the resolution of bf16.

    Args:
        model: trained in place; of a LoRA model the adapter only.
        seed: of Clip-Cov's draws and of an adapter's dropout.
        reference: the model before training, where `algorithm.kl` wants it.
        steps: updates over which the learning rate falls, where it does.
    """

    def __init__(
        self,
        model: Model,
        algorithm: AlgorithmConfig,
        optimizer: OptimizerConfig,
        seed: int = 0,
        reference: ReferencePolicy | None = None,
        steps: int = 1,
    ) -> None:
        self.model, self.algorithm, self.config, self.seed = model, algorithm, optimizer, seed
        self.reference, self.steps = reference, steps
        if algorithm.kl != "none" and reference is None:
            raise ValueError(f"kl {algorithm.kl!r} needs a reference")
        fp32_head(model.module, algorithm.fp32_head)
        model.module.eval()  # no dropout: the ratio compares this policy with the one that generated
        if optimizer.gradient_checkpointing:
            recompute_activations(model.module)
        self.parameters = {name: p for name, p in model.module.named_parameters() if p.requires_grad}
        self._master = {
            name: p if p.dtype == torch.float32 else p.detach().float() for name, p in self.parameters.items()
        }
        self._optimizer = torch.optim.AdamW(
            list(self._master.values()),
            lr=optimizer.lr,
            betas=(optimizer.beta1, optimizer.beta2),
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            fused=True,
        )
        self.num_updates = 0

    @property
    def lr(self) -> float:
        """Of the next update."""
        options = self.config
        return ops.learning_rate(
            self.num_updates,
            options.lr,
            options.warmup_steps,
            self.steps,
            options.schedule,
            options.final_lr_fraction,
        )

    def weights(self) -> Mapping[str, Tensor]:
        """The policy's `state_dict` (live tensors), with a LoRA adapter merged into it."""
        module = self.model.module
        return merged_weights(module) if is_lora(module) else module.state_dict()

    def whole_model(self) -> Model:
        """The model in one piece, to be saved."""
        return self.model

    def update(self, groups: Sequence[Group], min_deviation: float = 0.0) -> dict[str, float]:
        """One optimizer step on `groups`. A batch without signal leaves the weights alone and says so.

        Raises:
            TrainingError: the gradient is not finite (the weights are still those of before).
        """
        seed = self.seed + 1_000_003 * self.num_updates
        generator = torch.Generator().manual_seed(seed)
        batch = make_batch(
            groups,
            self.algorithm,
            min_deviation=min_deviation,
            generator=generator,
            reference=self.reference,
        )
        if batch is None:
            self.num_updates += 1
            return {
                "loss/trained_groups": 0.0,
                "loss/trained_samples": 0.0,
                "loss/trained_tokens": 0.0,
                "loss/skipped": 1.0,
            }
        with adapter_dropout(self.model.module, seed):
            metrics = self.accumulate(batch)
        metrics["loss/grad_norm"] = self._step()
        metrics["loss/lr"] = self.lr
        metrics["loss/skipped"] = 0.0
        self.num_updates += 1
        return batch.metrics | metrics

    def accumulate(self, batch: Batch) -> dict[str, float]:
        """Forward and backward over all micro-batches; gradients are left in the parameters."""
        device = self.model.device
        advantage = batch.advantage.to(device)[batch.sample.to(device)]
        sample, behaviour_logp, weight, penalised = (
            x.to(device) for x in (batch.sample, batch.behaviour_logp, batch.weight, batch.penalised)
        )
        ref_logp = None if batch.ref_logp is None else batch.ref_logp.to(device)
        loss = torch.zeros((), device=device)
        logps, ratios = torch.zeros_like(behaviour_logp), torch.zeros_like(behaviour_logp)
        entropies, limited = (
            torch.zeros_like(behaviour_logp),
            torch.zeros_like(behaviour_logp, dtype=torch.bool),
        )
        for row, share in self.shares(batch):
            place = row.place.to(device)
            statistics = row_logps(
                self.model,
                row,
                self.algorithm.temperature,
                entropy_gradient=self.algorithm.entropy_coef > 0,
            )
            terms = loss_terms(
                self.algorithm,
                statistics.logp,
                behaviour_logp[place],
                advantage[place],
                sample[place] - sample[place].min(),
            )
            term = terms.term + regularisation(
                self.algorithm,
                statistics,
                behaviour_logp[place],
                penalised[place],
                None if ref_logp is None else ref_logp[place],
            )
            row_loss = (weight[place] * term).sum()
            (share * row_loss).backward()
            if not share:
                continue
            loss += row_loss.detach()
            logps[place], entropies[place] = statistics.logp.detach(), statistics.entropy.detach()
            ratios[place], limited[place] = terms.ratio, terms.limited
        self.add_up(loss, logps, entropies, ratios, limited)
        kl = ops.mismatch_kl(logps, behaviour_logp)
        distance: dict[str, float] = {}
        if ref_logp is not None:
            distance = {
                f"loss/kl_{name}_policy_ref": float(ops.kl_estimate(logps, ref_logp, name).mean())
                for name in ("k1", "k3")
            }
        return {
            **distance,
            "loss/policy": float(loss),
            "loss/cap_hit_fraction": float(limited.float().mean()),
            "loss/ratio_mean": float(ratios.mean()),
            "loss/ratio_max": float(ratios.max()),
            "loss/entropy": float(entropies.mean()),
            "mismatch/kl_k1_gen_train": float(kl.kl_k1),
            "mismatch/kl_k3_gen_train": float(kl.kl_k3),
        }

    def shares(self, batch: Batch) -> Iterator[tuple[Row, float]]:
        """The rows that this process computes, and what their gradients count; with 0, for nothing else."""
        for row in rows(batch.samples, self.config.micro_batch_tokens):
            yield row, 1.0

    def add_up(self, *values: Tensor) -> None:
        """Adds what other processes computed of the batch, in place."""

    def total_norm(self, grads: Sequence[Tensor]) -> Tensor:
        """Of all gradients together."""
        return torch.nn.utils.get_total_norm(grads)

    def _step(self) -> float:
        grads = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = self.total_norm(grads)
        if not bool(torch.isfinite(norm)):
            self._clear()
            raise TrainingError(
                f"The gradient of update {self.num_updates + 1} is not finite (norm {float(norm)}). The weights were not "
                "changed. Lower optimizer.lr or optimizer.max_grad_norm, and resume from the last checkpoint."
            )
        for name, parameter in self.parameters.items():
            master = self._master[name]
            if master is not parameter and parameter.grad is not None:
                master.grad = parameter.grad.float()
        torch.nn.utils.clip_grads_with_norm_(self._master.values(), self.config.max_grad_norm, norm)
        self._optimizer.param_groups[0]["lr"] = self.lr
        self._optimizer.step()
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if self._master[name] is not parameter:
                    parameter.copy_(self._master[name])
        self._clear()
        return float(norm)

    def _clear(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.grad = None
            self._master[name].grad = None

    def save(self, path: Path) -> None:
        """Writes what the Hugging Face checkpoint lacks: AdamW's moments, and masters of low-precision weights."""
        save_file(self.state_tensors(), path)

    def load(self, path: Path) -> None:
        """Reads what `save` wrote; the weights themselves are already in the model."""
        self.take_tensors(load_file(path))

    def state_tensors(self) -> dict[str, Tensor]:
        """What `save` writes, by kind/name."""
        tensors: dict[str, Tensor] = {}
        for name, master in self._master.items():
            state: dict[str, Any] = self._optimizer.state.get(master, {})
            for key, value in state.items():
                tensors[f"{key}/{name}"] = torch.as_tensor(value).detach().clone().contiguous()
            if master is not self.parameters[name]:
                tensors[f"master/{name}"] = master.detach().contiguous()
        tensors["num_updates"] = torch.tensor(self.num_updates)
        return tensors

    def take_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Takes up what `state_tensors` gave."""
        self.num_updates = int(tensors.pop("num_updates"))
        for key, value in tensors.items():
            kind, name = key.split("/", 1)
            master = self._master[name]
            if kind == "master":
                with torch.no_grad():
                    master.copy_(value)
            else:
                place = value if kind == "step" else value.to(master.device)
                self._optimizer.state.setdefault(master, {})[kind] = place
