"""Noisy witnesses: a world in which what an agent believes is worth more than the name that it would say.

One of K = 8 suspects did it, each with the same chance. Each of A = 3 agents saw n = 3 pieces of evidence, independent given
the culprit. A piece is a sure one ("bob!") with probability `SURE_SHARE`, else a doubtful one ("bob?"); a sure piece names the
culprit with probability `SURE`, a doubtful one with `DOUBTFUL`, and else one of the K − 1 others, each as likely. So an agent
that saw "bob! bob? dan?" is almost certain, one that saw "bob? dan? eve?" is not; the name that it says does not tell which.

`ceilings` gives exactly what Bayes' rule reaches alone, with the others' best guesses, and with all evidence. The models are
small Qwen3-type networks trained here on texts of the three kinds, and frozen by those who use them. They have only ever seen
words: no embedding but those of the vocabulary, and nothing before the first word.

`python benchmarks/_witnesses.py [--folder DIR] [--seed N]` prints the ceilings and beside them what the models reach.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as backends
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from postgrad.core.models import EmbeddedConfig, Model, load, save
from postgrad.core.models.embedded import (
    answer_loss,
    architecture,
    cache_root,
    content_key,
    lr_share,
    split_parameters,
)
from postgrad.core.models.muon import Muon

NUM_AGENTS = 3
SUSPECTS = ("ada", "bob", "cleo", "dan", "eve", "fay", "gus", "hal")
NUM_PIECES = 3
"""Of evidence, of each agent."""
SURE_SHARE, SURE, DOUBTFUL = 0.2, 0.87, 0.165
WORDS = ("saw", "told", ".", "who", "?", *SUSPECTS, *(name + mark for name in SUSPECTS for mark in "!?"))
Draw = Callable[[random.Random, int], list[tuple[str, str]]]
"""draw(rng, num) = that many (prompt, answer) pairs to learn from."""


class Case(NamedTuple):
    """Evidence of each agent, [A][n] words such as "bob!" (sure) and "dan?" (doubtful), and the culprit's name."""

    id: str
    evidence: tuple[tuple[str, ...], ...]
    culprit: str


class Ceilings(NamedTuple):
    """Probability of naming the culprit by Bayes' rule; of equally likely suspects each is taken with the same chance.

    Attributes:
        single: from the evidence of one agent.
        majority_vote: the name that most of three agents say, each its own best guess.
        text: from the evidence of one agent and the best guess of each of the two others.
        everything: from the evidence of all agents.
    """

    single: float
    majority_vote: float
    text: float
    everything: float


def cases(num: int, seed: int) -> list[Case]:
    """Independent cases; the same `seed` gives the same ones."""
    rng = random.Random(f"witnesses {seed}")
    return [_case(rng, f"{seed}-{index}") for index in range(num)]


def _case(rng: random.Random, id: str = "") -> Case:
    culprit = rng.choice(SUSPECTS)
    others = [name for name in SUSPECTS if name != culprit]

    def piece() -> str:
        sure = rng.random() < SURE_SHARE
        right = rng.random() < (SURE if sure else DOUBTFUL)
        return (culprit if right else rng.choice(others)) + ("!" if sure else "?")

    seen = tuple(tuple(piece() for _ in range(NUM_PIECES)) for _ in range(NUM_AGENTS))
    return Case(id, seen, culprit)


# --- texts ------------------------------------------------------------------------------------------------------------------


def view(case: Case, agent: int) -> str:
    """What an agent sees alone: "saw bob! dan? eve? . who ?"."""
    return f"saw {' '.join(case.evidence[agent])} . who ?"


def view_with_text(case: Case, agent: int, messages: Sequence[str]) -> str:
    """What it sees when the others said their names, in the order of the agents: "told bob hal . saw … . who ?"."""
    return f"told {' '.join(messages)} . {view(case, agent)}"


def view_all(case: Case) -> str:
    """All evidence: "saw … . saw … . saw … . who ?"."""
    return " . ".join(f"saw {' '.join(seen)}" for seen in case.evidence) + " . who ?"


def answer(case: Case) -> str:
    """One token, the next one after each of the texts."""
    return case.culprit


# --- Bayes ------------------------------------------------------------------------------------------------------------------


def weight(rate: float) -> float:
    """ln(P(piece names the culprit) / P(it names one certain other)): what a piece adds to the log-odds of whom it names.

    >>> round(weight(0.5), 3)  # ln(.5 · 7 / .5)
    1.946
    """
    return math.log(rate * (len(SUSPECTS) - 1) / (1 - rate))


def posterior(pieces: Sequence[str], messages: Sequence[str] = (), trust: float = 0.5) -> NDArray[np.float64]:
    """Probability of each suspect [K], given evidence and best guesses that are right with probability `trust`."""
    logits = np.zeros(len(SUSPECTS))
    for piece in pieces:
        logits[SUSPECTS.index(piece[:-1])] += weight(SURE if piece.endswith("!") else DOUBTFUL)
    for name in messages:
        logits[SUSPECTS.index(name)] += weight(trust)
    odds = np.exp(logits - logits.max())
    return odds / odds.sum()


def best_guess(chances: NDArray[np.float64], rng: random.Random) -> str:
    """The likeliest suspect; among equal ones any."""
    return SUSPECTS[rng.choice(np.flatnonzero(chances > chances.max() - 1e-9).tolist())]


def ceilings() -> Ceilings:
    """What Bayes' rule reaches, exactly (see `hit_rate`)."""
    single = hit_rate(NUM_PIECES)
    return Ceilings(
        single=single,
        majority_vote=hit_rate(0, NUM_AGENTS, single),
        text=hit_rate(NUM_PIECES, NUM_AGENTS - 1, single),
        everything=hit_rate(NUM_AGENTS * NUM_PIECES),
    )


def hit_rate(num_pieces: int, num_messages: int = 0, trust: float = 0.5) -> float:
    """P(the suspect of the highest posterior is the culprit), ties broken evenly: summed over all evidence, not sampled.

    A best guess is itself a piece of evidence: right with probability `trust`, by symmetry else any other, and independent of
    the receiver's evidence given the culprit. Let a suspect be named by (a, b, c) sure pieces, doubtful ones and messages; its
    score is s = a·weight(SURE) + b·weight(DOUBTFUL) + c·weight(trust). The counts of all suspects are multinomial: the joint
    probability of N pieces and M messages is N! M! times the coefficient of xᴺ yᴹ in the product over suspects of
    Σ p₁ᵃ p₂ᵇ p₃ᶜ xᵃ⁺ᵇ yᶜ / (a! b! c!), with p₁ and p₂ the chances that a piece is sure, or doubtful, and names this suspect, and
    p₃ that a message does. With H(s) the terms of the culprit with score s, E(s) and L(s) those of another with s and below,

        P = N! M! [xᴺ yᴹ] Σ_s H(s) Σ_t C(K−1, t) E(s)ᵗ L(s)ᴷ⁻¹⁻ᵗ / (t + 1).
    """
    others = len(SUSPECTS) - 1
    rates = ((SURE, SURE_SHARE), (DOUBTFUL, 1 - SURE_SHARE), (trust, 1.0))
    hits: dict[float, NDArray[np.float64]] = {}
    misses: dict[float, NDArray[np.float64]] = {}
    shape = (num_pieces + 1, num_messages + 1)
    for counts in np.ndindex(num_pieces + 1, num_pieces + 1, num_messages + 1):
        place = (counts[0] + counts[1], counts[2])
        if place[0] > num_pieces:
            continue
        score, hit, miss = 0.0, 1.0, 1.0
        for count, (rate, share) in zip(counts, rates, strict=True):
            score += count * weight(rate)
            hit *= (share * rate) ** count / math.factorial(count)
            miss *= (share * (1 - rate) / others) ** count / math.factorial(count)
        score = round(score, 9)
        hits.setdefault(score, np.zeros(shape))[place] += hit
        misses.setdefault(score, np.zeros(shape))[place] += miss
    total, lower = 0.0, np.zeros(shape)
    for score in sorted(hits):
        term = hits[score]
        for ties in range(others + 1):
            whole = term
            for _ in range(others - ties):
                whole = _times(whole, lower)
            total += math.comb(others, ties) / (ties + 1) * whole[-1, -1]
            term = _times(term, misses[score])
        lower = lower + misses[score]
    return float(total * math.factorial(num_pieces) * math.factorial(num_messages))


def _times(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Product of two polynomials, coefficients [N + 1, M + 1]; higher powers are dropped."""
    product = np.zeros_like(a)
    for i, j in zip(*np.nonzero(a), strict=True):
        product[i:, j:] += a[i, j] * b[: len(a) - i, : a.shape[1] - j]
    return product


# --- models -----------------------------------------------------------------------------------------------------------------


def draw(rng: random.Random, num: int) -> list[tuple[str, str]]:
    """Texts of the three kinds in turn, about new cases, each with the culprit."""
    pairs: list[tuple[str, str]] = []
    for index in range(num):
        case, agent = _case(rng), rng.randrange(NUM_AGENTS)
        guesses = [best_guess(posterior(seen), rng) for i, seen in enumerate(case.evidence) if i != agent]
        texts = (view(case, agent), view_with_text(case, agent, guesses), view_all(case))
        pairs.append((texts[index % 3], answer(case)))
    return pairs


def models(
    folder: Path,
    seed: int,
    widths: Sequence[int] = (64, 64, 64),
    *,
    shared: bool = False,
    steps: int = 700,
    layers: int = 3,
) -> list[Model]:
    """An agent's model for each width, from `folder` or made now; with `shared`, one model that all agents are."""
    made: list[Model] = []
    for agent, width in enumerate(widths):
        config = small(width, layers, steps, 256, NUM_AGENTS * seed + agent)
        made.append(made[0] if shared and made else trained(folder, WORDS, draw, config))
    return made


def small(width: int, layers: int, steps: int, batch_size: int, seed: int) -> EmbeddedConfig:
    """Sizes and training of a small model of this width."""
    return EmbeddedConfig(
        hidden_size=width,
        num_layers=layers,
        num_heads=4,
        num_kv_heads=4,
        head_dim=max(width // 4, 8),
        intermediate_size=3 * width,
        max_position=256,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
    )


def trained(folder: Path, words: Sequence[str], draw: Draw, config: EmbeddedConfig) -> Model:
    """The model that learned `draw`'s texts, from `folder` if one was made from the same texts and settings.

    As the library's warm start (mean cross-entropy of answer and stop token; Muon for matrices, AdamW for the rest), but over
    whole words, and with new texts in every update: nothing can be learned by heart.
    """
    sample = draw(random.Random("content"), 300)
    path = folder / f"small-{content_key([*sample, (' '.join(words), '')], config)}"
    if not path.is_dir():
        model = _untrained(words, config)
        _train(model, draw, config)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=_made(folder)))
        save(model, partial)
        try:
            partial.rename(path)
        except OSError:  # somebody else made it meanwhile
            shutil.rmtree(partial)
            if not path.is_dir():
                raise
    return load(path, device="cpu")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _untrained(words: Sequence[str], config: EmbeddedConfig) -> Model:
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<eos>", *words])}
    backend = Tokenizer(backends.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    special: dict[str, Any] = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    shape = architecture(config, len(vocabulary))
    shape.pad_token_id, shape.eos_token_id = 0, 1
    torch.manual_seed(config.seed)
    return Model(Qwen3ForCausalLM(shape).eval(), tokenizer, source="small")


def _train(model: Model, draw: Draw, config: EmbeddedConfig) -> None:
    """Updates in place; prints the loss now and then."""
    rng, start = random.Random(f"texts {config.seed}"), time.perf_counter()
    matrices, others = split_parameters(model.module)
    muon = Muon(matrices, config.matrix_lr)
    adamw = torch.optim.AdamW(others, lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01)
    model.module.train()
    for step in range(config.steps):
        share = lr_share(step, config.steps)
        muon.lr, adamw.param_groups[0]["lr"] = config.matrix_lr * share, config.lr * share
        tokens, targets = encode(model, draw(rng, config.batch_size))
        loss = answer_loss(model.module, tokens, targets)
        model.module.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        muon.step()
        adamw.step()
        if (step + 1) % 250 == 0:
            seconds = time.perf_counter() - start
            print(f"seed {config.seed}, step {step + 1}: loss {loss.item():.3f}, {seconds:.0f} s", flush=True)
    model.module.zero_grad(set_to_none=True)
    model.module.eval()


def encode(model: Model, pairs: Sequence[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, targets), int64 [B, T] padded on the right: answer and stop token are targets, the rest −100."""
    vocabulary = model.tokenizer.get_vocab()
    rows = [[vocabulary[word] for word in f"{prompt} {reply} <eos>".split()] for prompt, reply in pairs]
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    targets = torch.full_like(tokens, -100)
    for index, (row, (prompt, _)) in enumerate(zip(rows, pairs, strict=True)):
        tokens[index, : len(row)] = torch.tensor(row)
        first = len(prompt.split())
        targets[index, first - 1 : len(row) - 1] = tokens[index, first : len(row)]
    return tokens[:, :-1], targets[:, :-1]


@torch.inference_mode()
def replies(model: Model, prompts: Sequence[str]) -> list[str]:
    """The likeliest next word of each prompt."""
    words: list[str] = []
    for start in range(0, len(prompts), 500):
        tokens, targets = encode(model, [(prompt, "<eos>") for prompt in prompts[start : start + 500]])
        logits = model.module(input_ids=tokens).logits
        last = (targets != -100).int().argmax(1)
        chosen = logits[torch.arange(len(last)), last].argmax(-1)
        words += [str(model.tokenizer.convert_ids_to_tokens(int(token))) for token in chosen]
    return words


class Reached(NamedTuple):
    """`right`: share of right answers. `regret`: mean of (highest posterior − posterior of what the model said), ≥ 0.

    The regret is how far the model's accuracy lies below Bayes' rule, without the noise of who did it in these cases.
    """

    right: float
    regret: float


def accuracies(model: Model, fresh: Sequence[Case]) -> dict[str, Reached]:
    """What a model reaches as the first agent of these cases, on each kind of text; the others' guesses are Bayes'."""
    rng, trust = random.Random("guesses"), ceilings().single
    told = [[best_guess(posterior(seen), rng) for seen in case.evidence[1:]] for case in fresh]
    both = list(zip(fresh, told, strict=True))
    kinds = {
        "single": [(view(case, 0), posterior(case.evidence[0])) for case in fresh],
        "text": [(view_with_text(c, 0, said), posterior(c.evidence[0], said, trust)) for c, said in both],
        "everything": [(view_all(case), posterior(sum(case.evidence, ()))) for case in fresh],
    }
    reached: dict[str, Reached] = {}
    for kind, asked in kinds.items():
        said = replies(model, [prompt for prompt, _ in asked])
        right = [word == answer(case) for word, case in zip(said, fresh, strict=True)]
        regret = [
            chances.max() - (chances[SUSPECTS.index(word)] if word in SUSPECTS else 0)
            for word, (_, chances) in zip(said, asked, strict=True)
        ]
        reached[kind] = Reached(float(np.mean(right)), float(np.mean(regret)))
    return reached


def main() -> None:
    parser = argparse.ArgumentParser(
        description="The ceilings of noisy witnesses, and what the models reach."
    )
    parser.add_argument("--folder", type=Path, default=cache_root() / "worlds", help="of the trained models")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    exact = ceilings()._asdict()
    print("Bayes, exact: " + ", ".join(f"{name} {value:.4f}" for name, value in exact.items()))
    fresh = cases(4000, 10_000 + given.seed)
    for agent, model in enumerate(models(given.folder, given.seed)):
        for kind, (right, regret) in accuracies(model, fresh).items():
            print(f"agent {agent}, {kind}: {right:.4f} right (Bayes {exact[kind]:.4f}), regret {regret:.4f}")


if __name__ == "__main__":
    main()
