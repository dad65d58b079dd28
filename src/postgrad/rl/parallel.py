"""The trainer on several ranks of a process group: each holds a share of the weights (FSDP2) and takes a share of the rows.

All ranks make the same batch, so one weight per token is fixed before anything is split, as in one process. Rank r of W takes
rows r, r + W, …; gradients are summed, where FSDP would average. In the last round a rank without a row of its own takes
another's for nothing, because all have to talk to each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from postgrad.core.models.model import Model
from postgrad.core.models.packing import Row, rows
from postgrad.rl.learner import Batch, Learner


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Spreads the parameters of a causal LM over a mesh of one dimension, layer by layer."""
    lists = [child for child in module.modules() if isinstance(child, nn.ModuleList)]
    for layer in max(lists, key=len, default=nn.ModuleList()):
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each rank has a share, whole; another one as it is. All ranks call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class ParallelLearner(Learner):
    """`Learner` on one rank of a mesh; every rank calls the same methods with the same arguments.

    Args:
        model: the same on all ranks; its parameters are sharded here.
        mesh: of one dimension.
        args, kwargs: as of `Learner`.
    """

    def __init__(self, model: Model, *args: Any, mesh: DeviceMesh, **kwargs: Any) -> None:
        self.mesh = mesh
        shard(model.module, mesh)
        super().__init__(model, *args, **kwargs)

    def weights(self) -> Mapping[str, Tensor]:
        """The policy's whole `state_dict`, on every rank."""
        whole_once: dict[int, Tensor] = {}
        state: dict[str, Tensor] = {}
        for name, tensor in self.model.module.state_dict(keep_vars=True).items():
            if id(tensor) not in whole_once:  # tied weights stay tied
                whole_once[id(tensor)] = whole(tensor.detach())
            state[name] = whole_once[id(tensor)]
        return state

    def shares(self, batch: Batch) -> Iterator[tuple[Row, float]]:
        """Every W-th row with the factor that turns FSDP's mean into a sum; 0 for a row that another rank has."""
        world, rank = self.mesh.size(), self.mesh.get_local_rank()
        laid_out = list(rows(batch.samples, self.config.micro_batch_tokens))
        for start in range(0, len(laid_out), world):
            own = start + rank
            yield (laid_out[own], float(world)) if own < len(laid_out) else (laid_out[start], 0.0)

    def add_up(self, *values: Tensor) -> None:
        """Sums what each rank has of the batch, in place."""
        for value in values:
            total = value.float()  # a copy of what is bool, which is added up as numbers
            dist.all_reduce(total, group=self.mesh.get_group())
            value.copy_(total)

    def total_norm(self, grads: Sequence[Tensor]) -> Tensor:
        """Of the whole gradients, on every rank."""
        return whole(super().total_norm(grads))

    def save(self, path: Path) -> None:
        """As `Learner.save`, the whole state; rank 0 writes, the others wait."""
        tensors = {name: whole(tensor) for name, tensor in self.state_tensors().items()}
        if self.mesh.get_rank() == 0:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)
        dist.barrier(self.mesh.get_group())

    def load(self, path: Path) -> None:
        """Reads what `save` wrote, on any number of ranks; each takes its share."""
        tensors = load_file(path)
        for key, value in tensors.items():
            _, _, name = key.partition("/")
            master = self._master.get(name)
            if isinstance(master, DTensor) and not key.startswith("step/"):
                tensors[key] = distribute_tensor(value.to(master.device), self.mesh, master.placements)
        self.take_tensors(tensors)
