"""devinterp's Bayesian influence functions as a child process; started by `influence_devinterp.py` with .venv-attr/bin/python.

The arguments are a directory and the number of threads. In the directory are one or both of `digits.pt` (state dict, images and
labels of both roles), and `lm/` (a Hugging Face directory) with `lm.pt` (token ids of both roles, all of the same length; names
of the sampled weights). One JSON object a line on stdin, one on stdout:

    {"case": "digits", "out": "FILE.pt", "batch_size": 200, "accumulate": 5, "chains": 4, "draws": 100, "burn_in": 50, "thin": 1,
     "method": "sgld", "step_size": 1e-5, "num_tempered": 5e4, "localization": 5e3, "stability": 0.1, "seed": 0,
     "lean_loss": true}
    → {"seconds": 12.3, "cpu_s": 12.1}

FILE.pt then holds `scores` [Q, N], the covariances that devinterp returns, of losses summed over tokens, in the order of the
input; and `train` [C, S, N], `query` [C, S, Q], the losses themselves. The clock runs around `sample` and `compute_bif` alone.

Its objective is the mean loss over tokens, ours the mean over examples of the sum over T tokens, so that what it is told is
n_beta = T·nβ, lr = ε and γ (SGLD); and for RMSprop, whose V is of its own gradient, eps = ε_r/T and lr = ε/T. Both chains then
have the same law.

Its best settings: tensors in memory for a data set (its own type reads Arrow rows), one pass for the initial loss, a loss
function without its check that all logits are finite (`lean_loss`), sequences in place of pairs of tokens, covariances of queries
with training examples alone, results on a memory file system where there is one.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import devinterp.slt.sampling as sampling
import torch
import torch.nn.functional as F
from devinterp.slt.bif import compute_bif
from devinterp.slt.lm_loss import compute_per_token_loss
from devinterp.slt.observables import DeterministicShuffledSampler
from torch import Tensor, nn

OBSERVED_SEED = 1337
MEMORY = Path("/dev/shm")

Rows = list[dict[str, Tensor]]


class Work:
    """A model with its training examples and queries as rows of ids.

    Args:
        module: the model.
        train: ids of the training examples [N, T + 1].
        queries: of the queries [Q, T + 1].
        names: of the sampled weights.
        losses: (model, ids [B, T + 1], lean) → losses [B, T].
    """

    def __init__(
        self, module: nn.Module, train: Tensor, queries: Tensor, names: Sequence[str], losses: Any
    ) -> None:
        self.module, self.names, self.losses = module, list(names), losses
        self.train: Rows = [{"input_ids": row} for row in train]
        self.queries: Rows = [{"input_ids": row} for row in queries]
        self.num_tokens = train.shape[1] - 1


def digits(folder: Path) -> Work:
    """A perceptron; an example's ids are its number among all images and its label."""
    found = torch.load(folder / "digits.pt", weights_only=True)
    layers: list[nn.Module] = []
    for name, weight in found["weights"].items():
        if name.endswith(".weight"):
            layers += [nn.Linear(weight.shape[1], weight.shape[0]), nn.ReLU()]
    module = nn.Sequential(*layers[:-1])
    module.load_state_dict(found["weights"])
    images = torch.cat([found["images"], found["query_images"]])
    labels = torch.cat([found["labels"], found["query_labels"]])
    ids = torch.stack([torch.arange(len(labels)), labels], 1)

    def losses(model: nn.Module, ids: Tensor, lean: bool) -> Tensor:
        del lean
        return F.cross_entropy(model(images[ids[:, 0]]), ids[:, 1], reduction="none")[:, None]

    num_train = len(found["labels"])
    names = [name for name, _ in module.named_parameters()]
    return Work(module, ids[:num_train], ids[num_train:], names, losses)


def language_model(folder: Path) -> Work:
    """A causal language model and token ids."""
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(folder / "lm", dtype=torch.float32)
    found = torch.load(folder / "lm.pt", weights_only=True)

    def losses(model: nn.Module, ids: Tensor, lean: bool) -> Tensor:
        if not lean:
            return compute_per_token_loss(model, ids)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        values = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        return values.view(len(ids), -1)

    return Work(module, found["train"], found["query"], found["names"], losses)


def attribute(work: Work, request: dict[str, Any]) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Samples and correlates.

    Returns:
        `seconds` and `cpu_s`, the processor's, and what goes into the file.
    """
    tokens, batch_size, rmsprop = work.num_tokens, request["batch_size"], request["method"] == "rmsprop"
    own: dict[str, Any] = {"sampling_method": "sgmcmc_sgld"}
    if rmsprop:
        own = {"sampling_method": "rmsprop_sgld", "rmsprop_eps": request["stability"] / tokens}
    folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
    num_train, num_queries = len(work.train), len(work.queries)
    try:
        started, busy = time.perf_counter(), time.process_time()
        tree = sampling.sample(
            model=work.module,
            dataset=work.train,
            observables={
                "a_train": (work.train, num_train // batch_size),
                "b_query": (work.queries, num_queries // batch_size),
            },
            lr=request["step_size"] / (tokens if rmsprop else 1),
            n_beta=request["num_tempered"] * tokens,
            localization=request["localization"],
            param_masks=dict.fromkeys(work.names),
            num_chains=request["chains"],
            num_draws=request["draws"],
            num_burnin_steps=request["burn_in"],
            num_steps_bw_draws=request["thin"],
            batch_size=batch_size,
            gradient_accumulation_steps=request["accumulate"],
            num_init_loss_batches=1,
            init_seed=request["seed"],
            obs_seed=OBSERVED_SEED,
            device="cpu",
            output_path=folder / "samples.zarr",
            loss_fn=lambda model, ids: work.losses(model, ids, request["lean_loss"]),
            **own,
        )
        found = compute_bif(
            tree,
            correlation_method="sequence",
            compute_covariance=True,
            batch_index_range_1=range(num_train, num_train + num_queries),
            batch_index_range_2=range(num_train),
            device="cpu",
        )
        scores = torch.from_numpy(found["influences"].values.copy()).float() * tokens**2
        spent = {"seconds": time.perf_counter() - started, "cpu_s": time.process_time() - busy}
        losses = [torch.from_numpy(tree[f"loss_{key}"].values).sum(-1) for key in ("a_train", "b_query")]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    train_order, query_order = (
        torch.tensor(DeterministicShuffledSampler(rows, len(rows), seed=OBSERVED_SEED).indices)
        for rows in (work.train, work.queries)
    )
    ordered = torch.empty_like(scores)
    ordered[query_order[:, None], train_order] = scores
    train, query = torch.empty_like(losses[0]), torch.empty_like(losses[1])
    train[..., train_order], query[..., query_order] = losses[0], losses[1]
    return spent, {"scores": ordered, "train": train, "query": query}


def main() -> None:
    """Loads, says ready, serves until stdin closes."""
    from importlib.metadata import version

    warnings.simplefilter("ignore")
    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(threads)
    makers = {"digits": (digits, "digits.pt"), "lm": (language_model, "lm.pt")}
    works = {name: make(folder) for name, (make, file) in makers.items() if (folder / file).is_file()}
    _answer({"ready": True, "version": version("devinterp")})
    for line in sys.stdin:
        request = json.loads(line)
        spent, found = attribute(works[request["case"]], request)
        torch.save(found, request["out"])
        _answer(spent)


def _answer(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
