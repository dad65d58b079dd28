"""How a team learns to exchange thoughts: states → autoencoder → adapter, and for every further round states anew.

The adapter's loss is Σ over agents of 1 − cos(φ̄(y_gen), φ̄(y_ref)) − log p(y | context, P), each a mean over the tokens of an
answer and over cases. The language models are frozen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from postgrad.core.errors import ConfigError, DataError, RunError, TrainingError
from postgrad.core.models.embedded import lr_share
from postgrad.core.runfiles import explain_os_error, replace_file
from postgrad.core.types import Prompt
from postgrad.thought import ops
from postgrad.thought.adapter import Adapter
from postgrad.thought.agents import Tokens, TrainableAgent, Turn
from postgrad.thought.autoencoder import Autoencoder, Fitted, fit
from postgrad.thought.cases import Case
from postgrad.thought.config import TeamConfig
from postgrad.thought.structure import Structure, read_structure
from postgrad.thought.team import Messages, Round, Team

VALID_SHARE, MOST_VALID = 0.1, 256
"""Of the cases, to choose the best adapter on; no more than so many."""


class Log(Protocol):
    """Where metrics go."""

    def __call__(self, step: int, metrics: Mapping[str, Any]) -> None: ...


class Lesson(NamedTuple):
    """What one agent is to say.

    Attributes:
        prompts: what it is asked [S].
        answers: tokens of the references [S].
        told: the same question with what the reference knew, where its probabilities are learned [S]; else None.
    """

    prompts: list[Prompt]
    answers: list[Tokens]
    told: list[Prompt] | None


class Learned(NamedTuple):
    """What `learn` found; the team has the autoencoder and the adapter.

    Attributes:
        structure: who holds which thoughts, on the states that were learned from.
        explained: R² of the reconstruction.
        penalty_weight: λ.
        loss: of the adapter that was kept, on cases set aside to choose it.
    """

    structure: Structure
    explained: float
    penalty_weight: float
    loss: float


def learn(
    team: Team, cases: Sequence[Case], *, log: Log | None = None, folder: Path | None = None
) -> Learned:
    """Fits a team's autoencoder, unless it has one, and its adapter to cases.

    Args:
        team: changed in place.
        log: told metrics as (update, values).
        folder: for what a stopped run goes on from. Wrap agents in `CachedAgent` to keep states and turns as well.

    Raises:
        DataError: no cases, too few states for so many thoughts, no answers or no `whole` where the reference needs them.
        ModelError: states that are not finite. TrainingError: the loss became infinite or NaN.
        ConfigError: an agent that gradients cannot go through, with no other to train.
    """
    log = log or (lambda step, metrics: None)
    team.check(cases)
    config = team.config
    check_cases(config, cases)
    heard = team.listen(cases)
    team.autoencoder, found = _find_thoughts(team, heard.states, folder)
    structure = read_structure(team.autoencoder, heard.states)
    weight, explained = found
    log(0, {"autoencoder/explained": explained, "autoencoder/penalty_weight": weight})
    generator = torch.Generator().manual_seed(config.seed)
    widths = [agent.embed_width for agent in team.agents]
    norms = [agent.embed_norm for agent in team.agents]
    team.adapter = Adapter(structure.held.cpu(), widths, norms, config.adapter, generator)
    lessons = make_lessons(team, cases, heard)
    thoughts = [team.think(heard.states)]
    loss = math.nan
    for number in range(config.rounds):
        if number:
            heard = team.listen(cases, team.tell(thoughts[-1]))
            thoughts.append(team.think(heard.states))
        training = _Training(team, lessons, torch.stack(thoughts), number, log, folder)
        loss = training.run()
    return Learned(structure, explained, weight, loss)


def check_cases(config: TeamConfig, cases: Sequence[Case]) -> None:
    """Raises DataError: too few cases for so many thoughts, or one without what the reference needs."""
    needed, reference = config.autoencoder.num_thoughts + 1, config.adapter.reference
    if len(cases) < needed:
        raise DataError(
            f"{len(cases)} cases are too few states for {needed - 1} thoughts. Give more cases, at best ten for each thought, or "
            f"lower autoencoder.num_thoughts to at most {max(1, len(cases) // 10)}."
        )
    for case in cases:
        if reference == "labels" and case.answer is None:
            raise DataError(
                f"Case {case.id!r} has no answer, which reference = labels teaches. Give one, or choose oracle, text or self."
            )
        if reference == "oracle" and case.whole is None:
            raise DataError(
                f"Case {case.id!r} has no `whole`, which reference = oracle needs: a prompt with all that is known."
            )


def kept_step(folder: Path, config: TeamConfig) -> int:
    """The update that a stopped `learn` goes on from with this folder; -1 where no adapter was kept yet."""
    for number in reversed(range(config.rounds)):
        path = folder / f"adapter-round-{number + 1}.safetensors"
        if path.is_file():
            try:
                with safe_open(path, "pt") as file:
                    step = int(file.get_tensor("place")[0])
            except (OSError, SafetensorError) as error:
                raise RunError(f"{path} is damaged ({error}). Remove it: this round begins anew.") from None
            return number * config.adapter.steps + step
    return -1


def _find_thoughts(
    team: Team, states: Tensor, folder: Path | None
) -> tuple[Autoencoder, tuple[float, float]]:
    """The autoencoder, fitted or found where a stopped run left it, with (λ, R²); of one that the team has already λ is NaN."""
    if team.autoencoder is not None:
        return team.autoencoder, (math.nan, team.autoencoder.explained(states))
    place = None if folder is None else folder / "autoencoder"
    if place is not None and (place / "penalty.safetensors").is_file():
        kept = Autoencoder.load(place)
        weight = float(load_file(place / "penalty.safetensors")["weight"])
        return kept, (weight, kept.explained(states))
    fitted: Fitted = fit(states, team.widths, team.config.autoencoder)
    if place is not None:
        fitted.autoencoder.save(place)
        replace_file(
            place / "penalty.safetensors",
            save({"weight": torch.tensor(fitted.penalty_weight, dtype=torch.float64)}),
        )
    return fitted.autoencoder, (fitted.penalty_weight, fitted.explained)


# -- what agents are to say ------------------------------------------------------------------------------------------


def make_lessons(team: Team, cases: Sequence[Case], heard: Round) -> list[Lesson | None]:
    """A lesson for each agent that can be taught; None for one that cannot.

    Raises:
        DataError, ConfigError: as `learn`.
    """
    config = team.config.adapter
    lessons: list[Lesson | None] = []
    alone: list[list[Turn]] = []
    if config.reference == "text":
        alone = heard.turns if team.config.turn_tokens else team.answer(cases)
    for number, agent in enumerate(team.agents):
        if not agent.embed_width or not hasattr(agent, "answer_logits"):
            lessons.append(None)
            continue
        lessons.append(
            _lesson(
                team.messages, config.reference, cast("TrainableAgent", agent), number, cases, alone, team
            )
        )
    if all(lesson is None for lesson in lessons):
        raise ConfigError(
            "No agent of the team can be told virtual tokens, so there is nothing to learn. Give a local model."
        )
    soft = config.soft and config.teach == "reference"
    return [lesson if lesson is None or soft else lesson._replace(told=None) for lesson in lessons]


def _lesson(
    messages: Messages,
    reference: str,
    agent: TrainableAgent,
    number: int,
    cases: Sequence[Case],
    alone: Sequence[Sequence[Turn]],
    team: Team,
) -> Lesson:
    questions = [case.questions[number] for case in cases]
    if reference == "labels":
        return Lesson(questions, [agent.answer_tokens(case.answer or "") for case in cases], None)
    told: list[Prompt] | None = None
    if reference == "oracle":
        told = [cast("Prompt", case.whole) for case in cases]
    elif reference == "text":
        told = [messages(case, number, [said[i] for said in alone]) for i, case in enumerate(cases)]
    said = agent.generate(told or questions, max_tokens=team.config.answer_tokens)
    return Lesson(questions, [np.asarray(turn.token_ids, dtype=np.int64) for turn in said], told)


def lesson_loss(
    agent: TrainableAgent,
    lesson: Lesson,
    cases: Sequence[int],
    prefix: Tensor,
    similarity: float,
    likelihood: float,
    own: Sequence[Tokens] | None = None,
) -> Tensor:
    """The loss of one agent on some cases, given its virtual tokens [S, M, D]: a scalar, mean over cases.

    Args:
        own: what the agent says with this prefix, to take the loss on in place of the reference's words.
    """
    prompts = [lesson.prompts[i] for i in cases]
    references = [lesson.answers[i] for i in cases]
    words = references if own is None else own
    logits = agent.answer_logits(prompts, words, prefix)
    device = logits.device
    lengths = torch.tensor([len(answer) for answer in words], device=device)
    row = torch.repeat_interleave(torch.arange(len(words), device=device), lengths)
    loss = logits.new_zeros(())
    if likelihood:
        targets = torch.from_numpy(np.concatenate(words)).to(device)
        if lesson.told is not None:
            with torch.no_grad():
                targets = agent.answer_logits([lesson.told[i] for i in cases], words).softmax(-1)
        by_token = ops.cross_entropy(logits, targets)
        loss = loss + likelihood * (by_token / lengths[row]).sum() / len(words)
    if similarity:
        embedding = agent.embedding.to(logits.dtype)
        said = ops.mean_soft_embedding(logits.softmax(-1), embedding, row, len(words))
        meant = torch.stack([embedding[torch.from_numpy(answer).to(device)].mean(0) for answer in references])
        loss = loss + similarity * ops.similarity_loss(said, meant).mean()
    return loss


# -- the adapter -----------------------------------------------------------------------------------------------------


class _Training:
    """Updates of the adapter in one round, on the thoughts of all rounds so far [R, S, Z]."""

    def __init__(
        self,
        team: Team,
        lessons: Sequence[Lesson | None],
        thoughts: Tensor,
        number: int,
        log: Log,
        folder: Path | None,
    ) -> None:
        self.team, self.lessons, self.thoughts, self.number, self.log = team, lessons, thoughts, number, log
        self.config, self.adapter = team.config.adapter, team.fitted()[1]
        self.path = None if folder is None else folder / f"adapter-round-{number + 1}.safetensors"
        order = torch.randperm(
            thoughts.shape[1], generator=torch.Generator().manual_seed(team.config.seed)
        ).tolist()
        aside = min(MOST_VALID, int(VALID_SHARE * len(order)))
        self.valid, self.train = order[:aside], order[aside:]
        matrices = [
            weight
            for name, weight in self.adapter.named_parameters()
            if name.startswith(("enter.", "leave."))
        ]
        others = [
            weight
            for name, weight in self.adapter.named_parameters()
            if not name.startswith(("enter.", "leave."))
        ]
        groups = [
            {"params": matrices, "weight_decay": self.config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=self.config.lr)
        self.best, self.best_loss, self.step = self._weights(), math.inf, 0

    def run(self) -> float:
        """All updates; leaves the adapter with the least loss on cases set aside, and gives that loss."""
        self._restore()
        while self.step < self.config.steps:
            metrics = self._update()
            self.step += 1
            kept = self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps
            if kept:
                metrics |= {"adapter/loss_valid": self._validate()}
            if self.step % 10 == 0 or kept:
                self.log(self.number * self.config.steps + self.step, metrics)
            if kept:  # after the line that says so: what is cut off between the two is logged again
                self._keep()
        self.adapter.load_state_dict(self.best)
        return self.best_loss

    def _update(self) -> dict[str, Any]:
        seed = (
            self.team.config.seed * 1009 + self.number
        ) * 1_000_003 + self.step  # of this update alone: nothing to restore
        generator = torch.Generator().manual_seed(seed % 2**63)
        picked = torch.randint(len(self.train), (self.config.batch_size,), generator=generator).tolist()
        cases = [self.train[i] for i in picked]
        rounds = torch.randint(len(self.thoughts), (len(cases),), generator=generator)
        thoughts = self.thoughts[rounds, cases]
        if self.config.noise:
            thoughts = thoughts + self.config.noise * torch.randn(thoughts.shape, generator=generator)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * lr_share(self.step, self.config.steps)
        self.optimizer.zero_grad()
        total, norms = 0.0, list[float]()
        for agent, loss, prefix in self._losses(cases, thoughts):
            if not bool(loss.isfinite()):
                raise TrainingError(
                    f"The adapter's loss for {self.team.agents[agent].name} is {float(loss.detach())} at update {self.step}. "
                    f"Lower adapter.lr (now {self.config.lr}) or adapter.max_norm (now {self.config.max_norm}), or load "
                    "the model in float32."
                )
            loss.backward()
            total += float(loss.detach())
            norms.append(float(prefix.detach().norm(dim=-1).mean()) / self.adapter.embed_norms[agent])
        norm = torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), self.config.grad_clip)
        self.optimizer.step()
        return {
            "adapter/loss": total / len(norms),
            "adapter/prefix_norm": sum(norms) / len(norms),
            "adapter/grad_norm": float(norm),
        }

    def _losses(self, cases: Sequence[int], thoughts: Tensor) -> Any:
        """(agent, loss, virtual tokens) of every agent that is taught, one at a time."""
        config = self.config
        for number, lesson in enumerate(self.lessons):
            if lesson is None:
                continue
            agent = cast("TrainableAgent", self.team.agents[number])
            prefix = self.adapter.tell(number, thoughts * self.adapter.routing()[number])
            own = None
            if config.teach == "own":
                prompts = [lesson.prompts[i] for i in cases]
                said = getattr(agent, "agent", agent).generate(
                    prompts,
                    prefix.detach(),
                    max_tokens=self.team.config.answer_tokens,
                    temperature=1.0,
                    seed=self.step,
                )
                own = [np.asarray(turn.token_ids, dtype=np.int64) for turn in said]
            yield (
                number,
                lesson_loss(agent, lesson, cases, prefix, config.similarity, config.likelihood, own),
                prefix,
            )

    @torch.no_grad()
    def _validate(self) -> float:
        """Mean loss over agents and rounds of cases set aside; where it is the least so far, the weights are kept."""
        cases = self.valid or self.train
        size, total, count = self.config.batch_size, 0.0, 0
        for thoughts in self.thoughts:
            for start in range(0, len(cases), size):
                some = cases[start : start + size]
                for _, loss, _ in self._losses(some, thoughts[some]):
                    total, count = total + float(loss) * len(some), count + len(some)
        mean = total / count
        if mean < self.best_loss:
            self.best, self.best_loss = self._weights(), mean
        return mean

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.adapter.state_dict().items()}

    # -- a stopped run ---------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        if self.path is None:
            return
        tensors = {f"now.{name}": tensor for name, tensor in self.adapter.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for place, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"moment.{place}.{name}": tensor for name, tensor in state.items()}
        tensors["place"] = torch.tensor([self.step, self.best_loss], dtype=torch.float64)
        try:
            replace_file(self.path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
        except OSError as error:
            raise RunError(explain_os_error(error, self.path)) from error

    def _restore(self) -> None:
        if self.path is None or not self.path.is_file():
            return
        try:
            tensors = load_file(self.path)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{self.path} is damaged ({error}). Remove it: this round begins anew.") from None

        def part(name: str) -> dict[str, Tensor]:
            return {key[len(name) :]: tensor for key, tensor in tensors.items() if key.startswith(name)}

        self.adapter.load_state_dict(part("now."))
        self.best = part("best.")
        step, self.best_loss = tensors["place"].tolist()
        self.step = int(step)
        state = self.optimizer.state_dict()
        moments = part("moment.")
        places = sorted({int(key.split(".")[0]) for key in moments})
        state["state"] = {
            place: {key.split(".")[1]: moments[key] for key in moments if key.startswith(f"{place}.")}
            for place in places
        }
        self.optimizer.load_state_dict(state)
