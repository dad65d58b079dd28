"""What can be trained again: a module, its training examples and queries, and their losses had it seen only some examples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from postgrad.core.errors import ConfigError, TrainingError
from postgrad.core.models import Model, load
from postgrad.influence.config import RetrainConfig
from postgrad.influence.examples import Example, Examples, Texts


class Problem(Protocol):
    """A model with what it was trained on and what it is asked. A function `module:function` without arguments may return one.

    Attributes:
        module: trained on all training examples.
        train, queries: with their losses under `module`.
    """

    module: nn.Module
    train: Examples
    queries: Examples

    def retrain(self, keep: Sequence[int], seed: int) -> Tensor:
        """Losses of the queries [Q] under a model that was trained in the same way on these examples alone; `module` stays."""
        ...


def load_problem(spec: str) -> Problem:
    """The problem that a function of the user's returns.

    Args:
        spec: `module:function` or `path/to/file.py:function`.

    Raises:
        ConfigError: what it returns lacks something.
        TaskError: there is no such function.
    """
    from postgrad.tasks.function import load_callable

    found = load_callable(spec, "Problem", "postgrad influence validate my_problem.py:make")()
    missing = [name for name in ("module", "train", "queries") if not hasattr(found, name)]
    if missing:
        raise ConfigError(
            f"{spec} returned a {type(found).__name__} without {', '.join(missing)}. A problem has module, train and queries "
            "(postgrad.influence.problem.Problem), and retrain where models are trained again."
        )
    return found


def require_retrain(problem: Any) -> None:
    """Raises ConfigError unless the problem's models can be trained again."""
    if not callable(getattr(problem, "retrain", None)):
        raise ConfigError(
            f"{type(problem).__name__} has no retrain(keep, seed): give one that trains on the examples `keep` and returns "
            "the losses of the queries."
        )


class TextProblem:
    """A causal language model that was trained from `base` on texts.

    Attributes:
        model: what is attributed: given, or trained here from `base` on all examples.
        module, train, queries, retrain: see `Problem`.

    Args:
        base: directory of the model that training starts from.
        train, queries: examples.
        config: how it is trained.
        model: directory of the trained model; None = train it here.
        device: of all.

    Raises:
        ModelError: a directory holds no model.
        TrainingError: a loss of training is not finite.
    """

    def __init__(
        self,
        base: Path | str,
        train: Sequence[Example],
        queries: Sequence[Example],
        config: RetrainConfig,
        *,
        model: Path | str | None = None,
        device: str = "auto",
    ) -> None:
        self._config = config
        self._scratch = load(base, device=device)
        self._start = copy.deepcopy(self._scratch.module.state_dict())
        self._scratch_train = Texts(self._scratch, train, config.max_tokens)
        self._scratch_queries = Texts(self._scratch, queries, config.max_tokens)
        self.model = load(model or base, device=device)
        self.module: nn.Module = self.model.module
        self.train = Texts(self.model, train, config.max_tokens)
        self.queries = Texts(self.model, queries, config.max_tokens)
        if model is None:
            finetune(self.model, self.train, range(len(train)), config, config.seed)

    def retrain(self, keep: Sequence[int], seed: int) -> Tensor:
        """Losses of the queries [Q] after training from `base` on these examples alone."""
        self._scratch.module.load_state_dict(self._start)
        finetune(self._scratch, self._scratch_train, keep, self._config, seed)
        return losses(self._scratch_queries, self._config.batch_size)


def losses(examples: Examples, batch_size: int) -> Tensor:
    """Of all examples [K], under the module's present weights, forward only."""
    found = torch.empty(len(examples))
    with torch.inference_mode():
        for batch in examples.batches(batch_size):
            found[batch] = examples.losses(batch).float().cpu()
    return found


def finetune(
    model: Model,
    texts: Texts,
    keep: Sequence[int],
    config: RetrainConfig,
    seed: int,
    progress: Callable[[int, int, float], None] | None = None,
) -> None:
    """Trains all weights that require a gradient, in place, on the examples `keep`: AdamW on the mean loss of a batch's tokens.

    Args:
        model: whose weights move; it ends in evaluation mode.
        texts: of this model.
        keep: indices into `texts`; merged copies count as often as they occurred.
        config: epochs, batch size, learning rate, weight decay.
        seed: of order and dropout.
        progress: told (update, updates, loss) after each.

    Raises:
        ConfigError: nothing is kept.
        TrainingError: a loss is not finite.
    """
    if not len(keep):
        raise ConfigError("No training example is left to train on.")
    module = cast("nn.Module", model.module)
    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=config.retrain_lr, weight_decay=config.retrain_weight_decay)
    size = config.retrain_batch_size
    updates = config.retrain_epochs * -(-len(keep) // size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, updates))
    devices = [model.device] if model.device.type == "cuda" else []
    step = 0
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        module.train()
        for _ in range(config.retrain_epochs):
            order = torch.randperm(len(keep)).tolist()
            for start in range(0, len(keep), size):
                batch = [keep[index] for index in order[start : start + size]]
                values, counts = texts.token_losses(batch)
                copies = torch.repeat_interleave(texts.weights[batch], counts)
                loss = (values * copies).sum() / copies.sum()
                value = float(loss.detach())
                if not torch.isfinite(loss):
                    raise TrainingError(
                        f"The loss of update {step + 1} of {updates} is {value}. Lower retrain_lr (now {config.retrain_lr:g})."
                    )
                loss.backward()
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
                step += 1
                if progress is not None:
                    progress(step, updates, value)
    module.eval()


def _share(step: int, updates: int) -> float:
    """Of the peak rate: up over the first 5 % of the updates, then down to 0.

    >>> _share(0, 100), _share(4, 100), _share(52, 100)
    (0.2, 1.0, 0.5)
    """
    warmup = max(1, updates // 20)
    return min((step + 1) / warmup, (updates - step) / max(1, updates - warmup + 1))
