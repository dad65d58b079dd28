"""EK-FAC scores by kronfluence, of a perceptron or a causal language model; run with .venv-attr/bin/python.

    kronfluence_scores.py perceptron BOARD.pt OUT.pt --damping 0.1 0.001 heuristic
    kronfluence_scores.py texts MODEL EXAMPLES.json OUT.pt --damping 0.1 heuristic

BOARD.pt is a dict of tensors: `weights` (state dict of linear layers with ReLU between them), `images`, `labels`, `query_images`,
`query_labels`. EXAMPLES.json is {"train": {"tokens": [[id, …], …], "starts": [index of the first token with a loss, …]},
"query": the same}.

OUT.pt is a dict: `scores`, of each damping as it was written on the command line, float32 [Q, N] in the order of the input,
positive = proponent; `fit_s`, seconds for all factors; `score_s`, of each damping; `num_weights`, how many were tracked;
`version`. Imports, reading and building the model do not count; kronfluence's own files (factors, scores) do, and go to a
temporary directory.

What is the same as with `postgrad influence run --method ekfac`: the loss of an example is summed over its counted tokens, the
batch's loss over examples; factors come from targets drawn from the model (true Fisher information); padding is masked; of a
language model the linear layers without the output head are tracked; eigenvalues are the mean squared gradient, so that damping
has the same unit (scores here are nβ times ours). "heuristic" is kronfluence's own damping, a tenth of each layer's mean
eigenvalue.

What differs: targets are drawn by another generator. With `--empirical` factors come from the true targets; then ranks agree to
1.0000 on the digits. Of a prompt's positions, which have no loss, kronfluence counts the inputs also in the last block; ours
counts an input where a gradient arrives.

Its best settings: float32, batches as large as `--batch-size` allows, texts sorted by length so that little is padding, no
partitions.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kronfluence
import torch
import torch.nn.functional as F
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from kronfluence.utils.dataset import DataLoaderKwargs
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

HEURISTIC = "heuristic"


class Labels(Task):
    """Cross-entropy of labels."""

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
        """Summed over the batch; `sample` draws the labels from the model."""
        images, labels = batch
        logits = model(images)
        return F.cross_entropy(logits, _drawn(logits) if sample else labels, reduction="sum")

    def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
        """A query's loss."""
        return self.compute_train_loss(batch, model)


class Tokens(Task):
    """Cross-entropy of the counted tokens of padded sequences.

    Args:
        layers: names of the tracked layers.
    """

    def __init__(self, layers: Sequence[str]) -> None:
        self._layers = list(layers)

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
        """Summed over tokens and examples; `sample` draws the targets from the model."""
        logits = model(input_ids=batch["inputs"], use_cache=False).logits[batch["counted"]]
        targets = _drawn(logits) if sample else batch["targets"][batch["counted"]]
        return F.cross_entropy(logits, targets, reduction="sum")

    def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
        """A query's loss."""
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> list[str]:
        """The layers."""
        return self._layers

    def get_attention_mask(self, batch: Any) -> Tensor:
        """1 where there is no padding [B, T]."""
        return batch["read"]


def _drawn(logits: Tensor) -> Tensor:
    return torch.multinomial(logits.detach().softmax(-1), 1)[:, 0]


class Sequences(Dataset):
    """Token sequences, shortest first.

    Args:
        tokens: ids of each.
        starts: of each, the index of the first token that has a loss.
    """

    def __init__(self, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> None:
        self.order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
        self._rows = [(torch.tensor(tokens[index]), starts[index]) for index in self.order]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._rows[index]


def collate(rows: Sequence[tuple[Tensor, int]]) -> dict[str, Tensor]:
    """A padded batch: inputs are all tokens but the last, targets all but the first; padding stands on the right."""
    width = max(len(ids) for ids, _ in rows) - 1
    batch = {
        "inputs": torch.zeros(len(rows), width, dtype=torch.int64),
        "targets": torch.zeros(len(rows), width, dtype=torch.int64),
        "counted": torch.zeros(len(rows), width, dtype=torch.bool),
        "read": torch.zeros(len(rows), width, dtype=torch.int64),
    }
    for number, (ids, start) in enumerate(rows):
        length = len(ids) - 1
        batch["inputs"][number, :length] = ids[:-1]
        batch["targets"][number, :length] = ids[1:]
        batch["counted"][number, start - 1 : length] = True
        batch["read"][number, :length] = 1
    return batch


def attribute(
    module: nn.Module,
    task: Task,
    train: Dataset,
    queries: Dataset,
    dampings: Sequence[str],
    *,
    batch_size: int,
    empirical: bool = False,
    seed: int = 0,
    collate_fn: Any = None,
) -> dict[str, Any]:
    """Factors once, scores for each damping.

    Args:
        module: its linear layers are wrapped in place.
        task: losses.
        train: training examples [N].
        queries: queries [Q].
        dampings: numbers as text, or "heuristic".
        batch_size: examples in one pass.
        empirical: factors from the true targets.
        seed: of the drawn ones.
        collate_fn: of the data loaders.

    Returns:
        `scores`, `fit_s`, `score_s`, `num_weights`, `version`; see above.
    """
    torch.manual_seed(seed)
    loader = DataLoaderKwargs(collate_fn=collate_fn)
    with tempfile.TemporaryDirectory() as folder:
        module = prepare_model(module, task)
        analyzer = Analyzer(
            "bench", module, task, cpu=True, disable_tqdm=True, log_level=logging.ERROR, output_dir=folder
        )
        analyzer.set_dataloader_kwargs(loader)
        factor_args = FactorArguments(strategy="ekfac", use_empirical_fisher=empirical)
        started = time.perf_counter()
        analyzer.fit_all_factors("factors", train, per_device_batch_size=batch_size, factor_args=factor_args)
        fit_s = time.perf_counter() - started
        scores: dict[str, Tensor] = {}
        score_s: dict[str, float] = {}
        for damping in dampings:
            options = ScoreArguments(damping_factor=None if damping == HEURISTIC else float(damping))
            started = time.perf_counter()
            analyzer.compute_pairwise_scores(
                f"scores-{damping}",
                "factors",
                queries,
                train,
                per_device_query_batch_size=batch_size,
                per_device_train_batch_size=batch_size,
                score_args=options,
            )
            scores[damping] = analyzer.load_pairwise_scores(f"scores-{damping}")["all_modules"].float()
            score_s[damping] = time.perf_counter() - started
        factors = analyzer.load_lambda_matrices("factors")
        num_weights = sum(matrix.numel() for matrix in factors["lambda_matrix"].values())
    return {
        "scores": scores,
        "fit_s": fit_s,
        "score_s": score_s,
        "num_weights": num_weights,
        "version": kronfluence.__version__,
    }


def perceptron(board: dict[str, Any], dampings: Sequence[str], **options: Any) -> dict[str, Any]:
    """Of a perceptron and its images; `options` and result as of `attribute`."""
    weights = board["weights"]
    layers: list[nn.Module] = []
    for name, weight in weights.items():
        if name.endswith(".weight"):
            bias = weights[name.removesuffix("weight") + "bias"]
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.load_state_dict({"weight": weight, "bias": bias})
            layers += [layer, nn.ReLU()]
    return attribute(
        nn.Sequential(*layers[:-1]),
        Labels(),
        TensorDataset(board["images"], board["labels"]),
        TensorDataset(board["query_images"], board["query_labels"]),
        dampings,
        **options,
    )


def texts(model: Path, examples: dict[str, Any], dampings: Sequence[str], **options: Any) -> dict[str, Any]:
    """Of a Hugging Face causal language model and token ids; `options` and result as of `attribute`."""
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    head = module.get_output_embeddings()
    layers = [
        name for name, part in module.named_modules() if isinstance(part, nn.Linear) and part is not head
    ]
    train, queries = (Sequences(**examples[role]) for role in ("train", "query"))
    found = attribute(module, Tokens(layers), train, queries, dampings, collate_fn=collate, **options)
    for damping, scores in found["scores"].items():
        ordered = torch.empty_like(scores)
        ordered[torch.tensor(queries.order)[:, None], torch.tensor(train.order)] = scores
        found["scores"][damping] = ordered
    return found


def main() -> None:
    """Reads, attributes, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in ("perceptron", "texts"):
        one = kinds.add_parser(kind)
        if kind == "texts":
            one.add_argument("model", type=Path, help="Hugging Face directory")
        one.add_argument("examples", type=Path, help="BOARD.pt, or EXAMPLES.json")
        one.add_argument("out", type=Path, help="where the result goes")
        one.add_argument("--damping", nargs="+", default=[HEURISTIC], help='numbers, or "heuristic"')
        one.add_argument("--batch-size", type=int, default=1024 if kind == "perceptron" else 64)
        one.add_argument("--empirical", action="store_true", help="factors from the true targets")
        one.add_argument("--seed", type=int, default=0, help="of the drawn targets")
        one.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = {"batch_size": options.batch_size, "empirical": options.empirical, "seed": options.seed}
    if options.kind == "perceptron":
        board = torch.load(options.examples, weights_only=True)
        found = perceptron(board, options.damping, **settings)
    else:
        examples = json.loads(options.examples.read_text(encoding="utf-8"))
        found = texts(options.model, examples, options.damping, **settings)
    torch.save(found, options.out)
    print(f"fit {found['fit_s']:.2f} s, scores {found['score_s']}", file=sys.stderr)


if __name__ == "__main__":
    main()
