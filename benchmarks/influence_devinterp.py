"""Bayesian influence functions by chains: `postgrad.influence` against devinterp 2, the same chains on the CPU.

Two models: the perceptron of the digits board (8,970 weights, 1,000 training examples, 200 queries), and a small Qwen3 language
model trained on pieces of Python's help texts. Two samplers: the paper's RMSprop-SGLD, with the gradient of one batch; and SGLD
with the gradient of all training examples. Both sides have the same weights to sample, step, temperature, localization, chains,
draws, burn-in, thinning and batch size, and one process each with the same number of threads; `peers/devinterp_bif.py` says how
one is put in terms of the other, and what was done to make devinterp fast.

Seconds are end to end, from the model to scores [Q, N], without imports, loading and tokenising. Our measurement of the largest
curvature (SGLD), which devinterp does not have, is in ours and shown; our rerun with half the step is off. Rounds are
interleaved, after a short run of each.

Rank agreement is the Spearman correlation of the scores over training examples, median over queries: of ours with devinterp's,
all rounds together, and for comparison of one half of our rounds with the other. "scale" is the norm of devinterp's scores over
that of ours. Chains this short have not mixed, so that all three are noisy. Both are by our covariance within chains, of the
losses that devinterp sampled; its own pooled one is in its seconds alone. Known differences: with the gradient of one batch
devinterp replays the batches of its first shuffle in the same order, ours draws them anew; it records a draw one step later.

"floor" is what the matrix products take that these chains cannot do without, on either side: the gradient of every step, and a
draw's forward passes over the examples that its gradient did not see; counted by torch's FlopCounterMode (attention too),
divided by the rate of bare products of the layers' shapes, measured in every round. "at most" is devinterp's time over it: what a
program could reach that does nothing else. Both of these, and "by CPU time", are in seconds of the processor, all threads
together, which hardly move when others load the machine.

    python benchmarks/influence_devinterp.py [--quick] [--rounds 4] [--threads 1] [--only lm]

Needs `make bench-attr`, and without it says so and exits with 2.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from _common import finish, machine, print_table, require_peer
from _digits import make_board, trained
from postgrad.core.models import Model
from postgrad.influence import InfluenceConfig, ops, run
from postgrad.influence.examples import Examples, Texts, make_examples
from postgrad.influence.sampler import Posterior
from postgrad.influence.weights import borrowed, choose_parameters

PEER_SCRIPT = Path(__file__).parent / "peers" / "devinterp_bif.py"
TEXT_TOKENS = 64
largest_curvature = Posterior.largest_curvature


@dataclass(frozen=True)
class Case:
    """A model with its data, and how it is sampled.

    Attributes:
        board: "digits" or "lm".
        module: what is attributed.
        train, queries: its examples.
        config: all options of ours.
    """

    board: str
    module: nn.Module | Model
    train: Examples
    queries: Examples
    config: InfluenceConfig

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.board} {self.config.method}"

    def shorter(self) -> Case:
        """The same with few draws, to warm up."""
        config = self.config.model_copy(update={"draws": 4, "burn_in": 0, "chains": 1})
        return Case(self.board, self.module, self.train, self.queries, config)


@dataclass
class Round:
    """What one side found in one round: seconds, those of the processor, scores [Q, N], and of ours the seconds for the largest
    curvature."""

    seconds: float
    cpu_s: float
    scores: Tensor
    curvature_s: float = 0.0


@dataclass
class Measured:
    """All rounds of a case."""

    ours: list[Round] = field(default_factory=list)
    peer: list[Round] = field(default_factory=list)
    floor_s: list[float] = field(default_factory=list)

    def ratios(self) -> list[float]:
        """Peer's seconds over ours, round by round."""
        return [b.seconds / a.seconds for a, b in zip(self.ours, self.peer, strict=True)]

    def cpu_ratio(self) -> float:
        """The same of the processor's seconds, median."""
        return statistics.median(b.cpu_s / a.cpu_s for a, b in zip(self.ours, self.peer, strict=True))

    def most(self) -> float:
        """Peer's seconds of the processor over the floor, median."""
        return statistics.median(
            one.cpu_s / floor for one, floor in zip(self.peer, self.floor_s, strict=True)
        )

    def agreement(self) -> tuple[float, float, float]:
        """Ranks of ours and devinterp's, ranks of ours and ours, ratio of the norms; NaN where there are too few rounds."""
        mine, other = (torch.stack([one.scores for one in side]) for side in (self.ours, self.peer))
        a, b = mine.mean(0), other.mean(0)
        half = len(mine) // 2
        same = float(ops.spearman(mine[:half].mean(0), mine[half:].mean(0)).median()) if half else torch.nan
        return float(ops.spearman(a, b).median()), same, float(b.norm() / a.norm())


class Devinterp:
    """The child process."""

    def __init__(self, python: Path, folder: Path, threads: int) -> None:
        self._folder = folder
        self._log = (folder / "peer.log").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [str(python), str(PEER_SCRIPT), str(folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
        )
        self.version = self._read()["version"]

    def attribute(self, case: Case, step_size: float, seed: int, lean_loss: bool) -> Round:
        """One request. Raises SystemExit with the end of its log when it died."""
        config, num_train = case.config, len(case.train)
        assert config.beta is not None
        assert self._process.stdin is not None
        out = self._folder / "found.pt"
        request = {
            "case": case.board,
            "out": str(out),
            "batch_size": config.batch_size,
            "accumulate": (config.gradient_examples or num_train) // config.batch_size,
            "chains": config.chains,
            "draws": config.draws,
            "burn_in": config.burn_in,
            "thin": config.thin,
            "method": config.method,
            "step_size": step_size,
            "num_tempered": config.beta * num_train,
            "localization": config.damping * config.beta * num_train,
            "stability": config.rmsprop_stability,
            "seed": 100 + 1000 * seed,
            "lean_loss": lean_loss,
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        told = self._read()
        found = torch.load(out, weights_only=True)
        within = ops.chain_covariances(found["query"].double(), found["train"].double()).mean(0)
        return Round(told["seconds"], told["cpu_s"], within.float())

    def close(self) -> None:
        """Ends it."""
        self._process.communicate()
        self._log.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise SystemExit(f"devinterp failed:\n{self._log.read()[-2000:]}")
        return json.loads(line)


def ours(case: Case, seed: int) -> tuple[Round, float]:
    """One run of ours, and its step ε."""
    spent: list[float] = []

    def timed(posterior: Posterior, generator: torch.Generator) -> float:
        started = time.perf_counter()
        value = largest_curvature(posterior, generator)
        spent.append(time.perf_counter() - started)
        return value

    started, busy = time.perf_counter(), time.process_time()
    with patch.object(Posterior, "largest_curvature", timed):
        result = run(case.module, case.train, case.queries, case.config, seed=seed)
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    return Round(seconds, busy, result.scores, sum(spent)), result.diagnostics["sampler/step_size"]


def count_flops(case: Case) -> float:
    """Of all matrix products that the chains need, without a pass at the start, the curvature and covariances.

    Batches are all alike, so that one of each kind is counted.
    """
    config, num_train = case.config, len(case.train)
    module = case.module.module if isinstance(case.module, Model) else case.module
    batch = case.train.batches(config.batch_size)[0]
    found: list[float] = []
    with borrowed(module, choose_parameters(module, config.parameters)) as parameters:
        for backward in (True, False):
            with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
                losses = case.train.losses(batch)
                if backward:
                    torch.autograd.grad(losses.sum(), parameters)
            found.append(counter.get_total_flops() / len(batch))
    each = config.gradient_examples or num_train
    steps = config.burn_in + (config.num_draws - 1) * config.thin + 1
    seen = config.num_draws * (num_train - each + len(case.queries))
    return config.chains * (found[0] * steps * each + found[1] * seen)


def product_rate(case: Case) -> float:
    """FLOP per second of the processor: a batch's products with the layers' weights, and those for the weights' gradients."""
    module = case.module.module if isinstance(case.module, Model) else case.module
    rows = case.config.batch_size * (TEXT_TOKENS if isinstance(case.module, Model) else 1)
    weights = [layer.weight.detach() for layer in module.modules() if isinstance(layer, nn.Linear)]
    sides = [(torch.randn(rows, w.shape[1]), w, torch.randn(rows, w.shape[0])) for w in weights]
    repeats = max(3, round(2e9 / (4 * rows * sum(w.numel() for w in weights))))
    spent: list[float] = []
    for _ in range(repeats):
        started = time.process_time()
        for read, weight, written in sides:
            torch.mm(read, weight.T)
            torch.mm(written.T, read)
        spent.append(time.process_time() - started)
    return 4 * rows * sum(w.numel() for w in weights) / statistics.median(spent)


def digits(folder: Path, quick: bool) -> list[Case]:
    """The perceptron's cases; writes what devinterp reads."""
    board = make_board()
    module = trained(board, 0)
    torch.save(
        {
            "weights": dict(module.state_dict()),
            "images": board.images,
            "labels": board.labels,
            "query_images": board.query_images,
            "query_labels": board.query_labels,
        },
        folder / "digits.pt",
    )
    common: dict[str, Any] = {
        "parameters": ".*",
        "batch_size": 200,
        "beta": 1.0,
        "damping": 1.0,
        "chains": 2 if quick else 4,
        "draws": 50 if quick else 200,
        "burn_in": 50 if quick else 100,
        "thin": 1,
        "check_step": False,
    }
    configs = [
        InfluenceConfig(method="rmsprop", gradient_examples=200, step_size=1e-4, **common),
        InfluenceConfig(method="sgld", **common),
    ]
    return [Case("digits", module, *board.examples(module), config) for config in configs]


def language_model(folder: Path, quick: bool) -> list[Case]:
    """The language model's cases; trains it, and writes what devinterp reads."""
    num_train, num_queries, batch_size = (32, 16, 16) if quick else (128, 32, 32)
    pieces = help_texts(num_train + num_queries)
    model = small_model(pieces)
    train, queries = (
        Texts(model, make_examples(rows, "training"), TEXT_TOKENS)
        for rows in (pieces[:num_train], pieces[num_train:])
    )
    fit(model, train, steps=40 if quick else 150)
    model.module.save_pretrained(folder / "lm")
    names = [name for name, _ in choose_parameters(model.module, "")]
    tokens = {"train": torch.tensor(train.tokens), "query": torch.tensor(queries.tokens)}
    torch.save({**tokens, "names": names}, folder / "lm.pt")
    beta = 10 / num_train
    common: dict[str, Any] = {
        "batch_size": batch_size,
        "beta": beta,
        "damping": 4000.0,  # a weight that the data leave free moves by .005
        "chains": 2,
        "draws": 5 if quick else 40,
        "burn_in": 2 if quick else 10,
        "thin": 1,
        "check_step": False,
    }
    configs = [
        InfluenceConfig(method="rmsprop", gradient_examples=batch_size, step_size=1e-6 * beta, **common),
        InfluenceConfig(method="sgld", **common),
    ]
    return [Case("lm", model, train, queries, config) for config in configs]


def help_texts(count: int) -> list[str]:
    """Different pieces of what Python's `help()` shows, each of as many ASCII characters as make 64 tokens with the stop."""
    from pydoc_data.topics import topics

    text = " ".join(" ".join(topics[name] for name in sorted(topics)).split())
    text = text.encode("ascii", "ignore").decode()
    width = TEXT_TOKENS - 1
    pieces = [text[start : start + width] for start in range(0, len(text) - width, 7 * width)]
    return list(dict.fromkeys(piece for piece in pieces if piece.strip() == piece))[:count]


def small_model(texts: list[str]) -> Model:
    """About a million weights; a token is a byte."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from postgrad.core.models.phrases import build_tokenizer

    tokenizer = build_tokenizer(texts, 260, TEXT_TOKENS)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=TEXT_TOKENS,
        tie_word_embeddings=True,
    )
    return Model(Qwen3ForCausalLM(config).eval(), tokenizer)


def fit(model: Model, train: Texts, steps: int) -> None:
    """AdamW on random batches of 16."""
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randperm(len(train), generator=generator)[:16].tolist()
        (train.losses(batch).sum() / (len(batch) * TEXT_TOKENS)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def measure(case: Case, peer: Devinterp, rounds: int, lean_loss: bool) -> Measured:
    """Interleaved rounds; who is first changes."""
    _, step_size = ours(case.shorter(), 0)
    peer.attribute(case.shorter(), step_size, 0, lean_loss)
    found, flops = Measured(), count_flops(case)
    for seed in range(rounds):
        if seed % 2:
            found.peer.append(peer.attribute(case, step_size, seed, lean_loss))
        found.ours.append(ours(case, seed)[0])
        found.floor_s.append(flops / product_rate(case))
        if not seed % 2:
            found.peer.append(peer.attribute(case, step_size, seed, lean_loss))
    return found


def main() -> None:
    """Measures all cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer texts and draws, 2 rounds")
    parser.add_argument("--rounds", type=int, help="default 4 (quick: 2)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help='"digits", "lm", or one case such as "lm sgld"')
    parser.add_argument("--plain-loss", action="store_true", help="devinterp's own loss function")
    options = parser.parse_args()
    python = require_peer("attr", "devinterp")
    torch.set_num_threads(options.threads)
    rounds = options.rounds or (2 if options.quick else 4)
    measured: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        makers = {"digits": digits, "lm": language_model}
        cases = [
            case
            for board, make in makers.items()
            if options.only.split()[:1] in ([], [board])
            for case in make(folder, options.quick)
            if case.name.startswith(options.only)
        ]
        peer = Devinterp(python, folder, options.threads)
        for case in cases:
            measured[case.name] = measure(case, peer, rounds, not options.plain_loss)
        peer.close()
    report(measured, peer.version, options.threads)


def report(measured: dict[str, Measured], version: str, threads: int) -> None:
    """The table, and the JSON line: the paper's sampler on the largest model."""
    rows, further = [], {}
    for name, found in measured.items():
        ratios = found.ratios()
        mine, curvature, other = (
            statistics.median(values)
            for values in (
                [one.seconds for one in found.ours],
                [one.curvature_s for one in found.ours],
                [one.seconds for one in found.peer],
            )
        )
        both, same, scale = found.agreement()
        ratio, interval = statistics.median(ratios), (min(ratios), max(ratios))
        shown = f"{ratio:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"
        floor, most = statistics.median(found.floor_s), found.most()
        rows.append([name, mine, curvature, other, shown, found.cpu_ratio(), floor, most, both, same, scale])
        further[name] = {
            "ours": mine,
            "ours_curvature": curvature,
            "peer": other,
            "ratio": ratio,
            "interval": interval,
            "ours_cpu": statistics.median(one.cpu_s for one in found.ours),
            "peer_cpu": statistics.median(one.cpu_s for one in found.peer),
            "cpu_ratio": found.cpu_ratio(),
            "floor": floor,
            "at_most": most,
            "rank_agreement": both,
            "rank_agreement_ours": None if same != same else same,
            "scale": scale,
        }
    header = ["", "ours s", "of it curvature", "devinterp s", "ours is faster by"]
    header += ["by CPU time", "floor s", "at most", "ranks agree", "ours, ours", "scale"]
    print_table("The same chains, end to end", header, rows)
    main_case = further.get("lm rmsprop") or next(iter(further.values()))
    finish(
        "influence_devinterp",
        main_case["ours"],
        main_case["peer"],
        "s",
        main_case["ratio"],
        main_case["interval"],
        peer_name=f"devinterp {version}",
        cases=further,
        **machine(threads),
    )


if __name__ == "__main__":
    main()
