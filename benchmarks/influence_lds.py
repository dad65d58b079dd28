"""Which scores predict training again? LDS against seconds, our methods beside kronfluence's EK-FAC (2509.26544, 2303.14186).

Three boards: handwritten digits (a perceptron of 8,970 weights), the same with a tenth of the labels wrong, and a small
language model that was told about 60 people (`_planted.py`), where the sources of every answer are known. LDS is the rank
correlation, mean over queries, of summed scores with minus the loss of models trained on 100 random halves: ten trainings of
each half of the digits, two of the texts. Models of several seeds are attributed; of the texts each seed is a world of its own.

Seconds are of attribution alone, one thread, everything in turn. EK-FAC, ours and kronfluence's, runs at many dampings and is
credited with the one that is best *on the reported boards*; `stein` runs at its defaults, with fewer and more draws. Chains and
Laplace draws are one long run each, whose first draws are judged too (their seconds in proportion). "dual" is the inverse of
the empirical Fisher information by the N × N kernel, what TRAK (2303.14186) approximates by random projections.

    python benchmarks/influence_lds.py [--board digits|noisy|texts] [--quick] [--seeds 3] [--out DIR] [--figure FILE.svg]

Rows that DIR has are not measured again, but for those of `--again METHOD`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import _digits
import _planted
from _common import ROOT, finish, machine, print_table, require_peer, show_interval
from postgrad.core.figures import Figure, Line, standalone, to_svg
from postgrad.core.runfiles import LineFile, replace_file
from postgrad.influence import ops
from postgrad.influence.api import run
from postgrad.influence.baselines import gradient_scores
from postgrad.influence.config import RetrainConfig
from postgrad.influence.data import Example
from postgrad.influence.ekfac import LayerBasis, example_gradients
from postgrad.influence.examples import Examples
from postgrad.influence.layers import find_layers
from postgrad.influence.problem import TextProblem
from postgrad.influence.validate import Retrained, make_subsets
from postgrad.influence.weights import borrowed, choose_parameters

DAMPINGS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
DUAL_DAMPINGS = (1e-1, 1e-2, 1e-3)
STEIN = ((1, 2), (2, 2), (4, 4), (4, 8))
"""(chains, draws of each)."""
CHAINS: Mapping[str, Mapping[str, Any]] = {
    "langevin": {"thin": 2, "burn_in": 100, "draws": 400, "beta": 1.0},
    "laplace": {"draws": 200},
    "sgld": {"thin": 5, "burn_in": 200, "draws": 200, "beta": 1.0},
    "rmsprop": {"thin": 5, "burn_in": 200, "draws": 200, "beta": 1.0, "step_size": 1e-4},
}
"""β = 1 was best of .3, 1, 3, 30 for preconditioned chains."""
TEXT_CHAINS: Mapping[str, Mapping[str, Any]] = {
    "langevin": {"thin": 1, "burn_in": 10, "draws": 20},
    "laplace": {"draws": 100, "beta": 3.0, "damping": 1.0},
}
"""Laplace's settings were the best of 15 on the first world."""
DRAWN = {"stein": "e", "ekfac": "a", "kronfluence": "b", "langevin": "d", "laplace": "c", "sgld": "f"}
"""Methods in the figure, and their colours."""
PARTS = (1 / 8, 1)
"""Of the draws of a chain that are judged."""


@dataclass
class Board:
    """One model with what it is judged by.

    Attributes:
        module, train, queries: what is attributed.
        subsets: bool [M, N]; outputs: minus the queries' losses after training on them [Q, M].
        options: of every attribution.
        peer: writes the peer's input into a folder; returns the words that come after the script's name.
        true, false: of texts, for each query the numbers of the training examples that tell its answer, or another one.
    """

    name: str
    module: Any
    train: Examples
    queries: Examples
    subsets: Tensor
    outputs: Tensor
    options: dict[str, Any]
    peer: Callable[[Path], list[str]]
    true: list[list[int]] = field(default_factory=list[list[int]])
    false: list[list[int]] = field(default_factory=list[list[int]])

    def judge(self, scores: Tensor) -> dict[str, float]:
        """LDS; of texts also how many of the k best are the k true sources, and how often a false one is the lowest."""
        found = {"lds": float(ops.linear_datamodeling_score(scores, self.subsets, self.outputs).mean())}
        if self.true:
            hits = [
                len(set(row.topk(len(own)).indices.tolist()) & set(own)) / len(own)
                for row, own in zip(scores, self.true, strict=True)
            ]
            lowest = [int(row.argmin()) in own for row, own in zip(scores, self.false, strict=True) if own]
            found |= {"recall": sum(hits) / len(hits), "false lowest": sum(lowest) / len(lowest)}
        return found


def digits(folder: Path, seed: int, noise: float, quick: bool) -> Board:
    """A perceptron trained with this seed; the ground truth is that of all seeds."""
    board, subsets = _digits.make_board(noise), _digits.halves(20 if quick else 100)
    cache = folder / f"digits-{noise:g}-{len(subsets)}.pt"
    truth = _digits.ground_truth(board, subsets, 2 if quick else 10, cache)
    module = _digits.trained(board, seed)
    train, queries = board.examples(module)

    def peer(place: Path) -> list[str]:
        tensors = {"images": board.images, "labels": board.labels}
        tensors |= {"query_images": board.query_images, "query_labels": board.query_labels}
        torch.save({"weights": module.state_dict(), **tensors}, place / "board.pt")
        return ["perceptron", str(place / "board.pt")]

    options = {"batch_size": 1000, "parameters": "."}
    name = "noisy" if noise else "digits"
    return Board(name, module, train, queries, subsets, -truth.mean(1).T, options, peer)


def texts(folder: Path, seed: int, quick: bool) -> Board:
    """A language model in a world of its own."""
    planted = _planted.plant(seed)
    config = RetrainConfig(**_planted.RETRAIN, max_tokens=64, seed=seed)
    rows = [[Example(row["id"], row.get("completion") or row["text"], row.get("prompt")) for row in some]
            for some in (planted.train, planted.queries)]  # fmt: skip
    problem = TextProblem(_planted.base(folder, seed), rows[0], rows[1], config, device="cpu")
    subsets = make_subsets(len(planted.train), 8 if quick else 100, 0.5, seed)
    with contextlib.closing(LineFile(folder / f"planted-{seed}.jsonl")) as file:
        file.trim_torn_line()
        models = Retrained(problem, file.read(), lambda row: file.append([row]))
        truth = models.all_losses(subsets, range(seed + 1, seed + 3), _told)
    number = {row["id"]: index for index, row in enumerate(planted.train)}

    def peer(place: Path) -> list[str]:
        from postgrad.core.models import save

        save(problem.model, place / "model")
        roles = {"train": problem.train, "query": problem.queries}
        content = {role: {"tokens": some.tokens, "starts": some.starts} for role, some in roles.items()}
        (place / "examples.json").write_text(json.dumps(content), encoding="utf-8")
        return ["texts", str(place / "model"), str(place / "examples.json")]

    return Board(
        "texts", problem.module, problem.train, problem.queries, subsets, -truth.mean(1).T, {"batch_size": 64}, peer,
        *([[number[name] for name in own] for own in lists] for lists in (planted.true, planted.false)),
    )  # fmt: skip


def _told(done: int, total: int) -> None:
    if done % 20 == 0:
        print(f"trained {done} of {total}", flush=True)


Row = dict[str, Any]


def ours(board: Board, quick: bool, only: Sequence[str]) -> Iterator[Row]:
    """Our methods; `only` these, if any are named."""

    def wanted(method: str) -> bool:
        return not only or method in only

    for damping in DAMPINGS if wanted("ekfac") else ():
        yield _run(board, "ekfac", f"λ = {damping:g}", damping=damping)
    if wanted("gradient"):
        yield _run(board, "gradient", "")
    if board.true and wanted("bm25"):
        yield _run(board, "bm25", "")
    for damping in DUAL_DAMPINGS if wanted("dual") else ():
        started = time.monotonic()
        scores = dual(board, damping)
        yield _row(board, "dual", f"λ = {damping:g}", scores, time.monotonic() - started)
    for chains, draws in STEIN[: 2 if quick else None] if wanted("stein") else ():
        yield _run(board, "stein", f"{chains} × {draws} draws", chains=chains, draws=draws)
    for method, options in (TEXT_CHAINS if board.true else CHAINS).items():
        if not wanted(method):
            continue
        short = {"draws": 16, "burn_in": 10} if quick else {}
        found = run(board.module, board.train, board.queries, method=method, check_step=False, tokens=False,
                    **{**board.options, **options, **short})  # fmt: skip
        assert found.draws is not None
        seconds, count = found.diagnostics["time/attribute_s"], found.draws.train.shape[1]
        for part in PARTS:
            some = max(4, round(part * count))
            covariances = ops.chain_covariances(
                found.draws.query[:, :some].double(), found.draws.train[:, :some].double()
            )
            told = f"4 × {some} draws"
            yield _row(board, method, told, covariances.mean(0), seconds * some / count) | {
                "problems": found.problems
            }


def _run(board: Board, method: str, setting: str, **options: Any) -> Row:
    found = run(
        board.module, board.train, board.queries, method=method, tokens=False, **board.options, **options
    )
    return _row(board, method, setting, found.scores, found.diagnostics["time/attribute_s"])


def _row(board: Board, method: str, setting: str, scores: Tensor, seconds: float) -> Row:
    row = {
        "board": board.name,
        "method": method,
        "setting": setting,
        "seconds": seconds,
        **board.judge(scores.double()),
    }
    print(f"{board.name}, {method}, {setting}: LDS {row['lds']:.3f}, {seconds:.2f} s", flush=True)
    return row


def dual(board: Board, damping: float) -> Tensor:
    """G_q(GᵀG/N + λ)⁻¹Gᵀ = N·K_q(K + Nλ)⁻¹ with the kernel K = GGᵀ of training gradients."""
    module = board.module
    chosen = choose_parameters(module, board.options.get("parameters", ""))
    with borrowed(module, chosen) as parameters:
        basis = LayerBasis(find_layers(module, chosen), parameters)
        size = board.options["batch_size"]
        across = gradient_scores(basis, parameters, board.train, board.queries, size).scores
        gradients = torch.empty(len(board.train), basis.size)
        for batch, found in example_gradients(basis, parameters, board.train, size):
            gradients[batch] = basis.flatten(found)
    kernel = (gradients @ gradients.T).double()
    kernel.diagonal().add_(len(kernel) * damping)
    return len(kernel) * torch.linalg.solve(kernel, across.double().T).T


def kronfluence(board: Board, python: Path) -> Iterator[Row]:
    """The peer, at every damping and at its own."""
    names = [f"{damping:g}" for damping in DAMPINGS] + ["heuristic"]
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        words = board.peer(place)
        script = ROOT / "benchmarks/peers/kronfluence_scores.py"
        command = [str(python), str(script), *words, str(place / "out.pt"), "--damping", *names]
        subprocess.run(command, check=True, capture_output=True, text=True)
        found = torch.load(place / "out.pt", weights_only=True)
    for name in names:
        seconds = found["fit_s"] + found["score_s"][name]
        yield _row(
            board,
            "kronfluence",
            f"λ = {name}" if name != "heuristic" else name,
            found["scores"][name],
            seconds,
        )


def means(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, list[float]]]:
    """Of each method and setting the values of all seeds."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        one = found.setdefault((row["method"], row["setting"]), {})
        for key in ("lds", "seconds", "recall", "false lowest"):
            if key in row:
                one.setdefault(key, []).append(row[key])
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def report(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Prints a board's table; what the JSON line says of it."""
    found = means(rows)
    extra = [key for key in ("recall", "false lowest") if key in next(iter(found.values()))]
    table = [
        [
            f"{method}, {setting}".removesuffix(", "),
            *(show_interval(one[key]) for key in ("lds", *extra)),
            _mean(one["seconds"]),
        ]
        for (method, setting), one in found.items()
    ]
    print_table(
        f"{name}: means over {len(next(iter(found.values()))['lds'])} models",
        ["method", "LDS", *extra, "seconds"],
        table,
    )
    peers = {key: one for key, one in found.items() if key[0] == "kronfluence"} or {
        key: one for key, one in found.items() if key[0] == "ekfac"
    }
    peer = max(peers, key=lambda key: _mean(peers[key]["lds"]))
    limit = _mean(peers[peer]["seconds"])
    stein = {key: one for key, one in found.items() if key[0] == "stein" and _mean(one["seconds"]) <= limit}
    best = max(stein, key=lambda key: _mean(stein[key]["seconds"]), default=None)
    result: dict[str, Any] = {
        "peer": " ".join(peer),
        "peer_lds": peers[peer]["lds"],
        "peer_s": limit,
        "ours": None if best is None else " ".join(best),
    }
    return (
        result
        if best is None
        else {**result, "ours_lds": stein[best]["lds"], "ours_s": _mean(stein[best]["seconds"])}
    )


def draw(name: str, rows: Sequence[Row], path: Path) -> None:
    """LDS against seconds."""
    found = {key: one for key, one in means(rows).items() if key[0] in DRAWN}
    columns: dict[str, list[float | None]] = {"seconds": [], **{method: [] for method in DRAWN}}
    for (method, _), one in sorted(found.items(), key=lambda pair: _mean(pair[1]["seconds"])):
        columns["seconds"].append(_mean(one["seconds"]))
        for other in DRAWN:
            columns[other].append(_mean(one["lds"]) if other == method else None)
    known = [method for method in DRAWN if any(value is not None for value in columns[method])]
    lines = tuple(
        Line(m, m, style="scatter" if m in ("ekfac", "kronfluence") else "points", role=DRAWN[m])
        for m in known
    )
    figure = Figure(name, "", "", columns, "seconds", lines, x_label="seconds", y_label="LDS", log_x=True)
    path.write_text(standalone(to_svg(figure, 720, 340)), encoding="utf-8")


def main() -> None:
    """Boards one after the other; rows are kept in --out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--board", choices=("digits", "noisy", "texts"), action="append")
    parser.add_argument("--quick", action="store_true", help="one model, few halves, short chains")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="keep models, ground truth and rows here")
    parser.add_argument("--figure", type=Path, help="draw LDS against seconds into FILE-BOARD.svg")
    parser.add_argument("--again", action="append", help="measure this method again, of rows that --out has")
    parser.add_argument("--no-peer", action="store_true", help="without kronfluence")
    options = parser.parse_args()
    python = None if options.no_peer else require_peer("attr", "kronfluence")
    torch.set_num_threads(1)
    boards = options.board or ["digits", "noisy", "texts"]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in boards:
            rows: list[Row] = []
            for seed in range(1 if options.quick else options.seeds):
                path = folder / f"rows-{name}-{seed}.jsonl"
                known = [row for row in read(path) if row["method"] not in (options.again or ())]
                if not known or options.again:
                    only = options.again if known else ()
                    known += measure(name, folder, seed, options.quick, python, only)
                    replace_file(path, "".join(json.dumps(row) + "\n" for row in known).encode())
                rows += known
            results[name] = report(name, rows)
            if options.figure is not None:
                draw(name, rows, options.figure.with_name(f"{options.figure.stem}-{name}.svg"))
    head = results[boards[-1]]
    pairs = list(zip(head.get("ours_lds", ()), head["peer_lds"], strict=False))
    by_model = [one / other for one, other in pairs]
    finish(
        "influence_lds",
        _mean(head["ours_lds"]) if pairs else None,
        _mean(head["peer_lds"]),
        f"LDS on {boards[-1]}, at no more time than the peer's best damping took",
        _mean(head["ours_lds"]) / _mean(head["peer_lds"]) if pairs else None,
        (min(by_model), max(by_model)) if pairs else (None, None),
        boards=results,
        machine=machine(1),
    )


def read(path: Path) -> list[Row]:
    """Rows that were measured before."""
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    )


def measure(
    name: str, folder: Path, seed: int, quick: bool, python: Path | None, only: Sequence[str]
) -> list[Row]:
    """Rows of one model; of `only` these methods, if any are named."""
    board = (
        texts(folder, seed, quick)
        if name == "texts"
        else digits(folder, seed, 0.1 if name == "noisy" else 0.0, quick)
    )
    rows = list(ours(board, quick, only))
    if python is not None and (not only or "kronfluence" in only):
        rows += kronfluence(board, python)
    return [{**row, "seed": seed} for row in rows]


if __name__ == "__main__":
    main()
