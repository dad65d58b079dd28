"""Value tables over several ranks: each holds all N rows of D / W columns, as a DTensor with Shard(1) (as in 2412.09764).

Every rank is given the same batch and computes the same, but for the reading: it reads its own columns, and the read vectors
y [T, D / W] are gathered to [T, D]. In the backward pass a gradient of y is cut to the own columns; the gradient of the softmax
weights, to which each rank's columns contribute, is summed over ranks. What is left of a table on a rank is an ordinary tensor,
so the compact gradient and the optimizer's state of chosen rows are of D / W columns as well.

All but `shard_values` are functions of a table that may be sharded or not; of one that is not, they change nothing. Those that
say so talk to the other ranks: all of them have to call.

Shapes: N slots, D width of a value, W ranks, R rows, T tokens.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch is only partly typed)

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from postgrad.core.errors import ModelError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_GATHERED_ROWS = 65_536
"""Rows that are gathered at a time when a whole table is, so that no rank needs room for two."""


def columns_per_rank(value_dim: int, num_ranks: int) -> int:
    """D / W. Raises ModelError if W is below 1 or does not divide D.

    >>> columns_per_rank(1024, 8)
    128
    """
    if num_ranks < 1 or value_dim % num_ranks:
        valid = [str(n) for n in range(1, min(value_dim, 1024) + 1) if value_dim % n == 0]
        raise ModelError(
            f"A table of width {value_dim} cannot be cut into {num_ranks} equal parts. Valid numbers of ranks: "
            f"{', '.join(valid[:12])}{', …' if len(valid) > 12 else ''}."
        )
    return value_dim // num_ranks


def shard_values(module: nn.Module, mesh: DeviceMesh) -> None:
    """Leaves each rank its columns of every value table, in place. Call it right after loading, on all ranks of the mesh, which
    have loaded the same model; nothing is sent.

    Args:
        module: a model with memory, on the mesh's device.
        mesh: of one dimension.

    Raises:
        ModelError: no memory, sharded already, another kind of device, more dimensions, or a width that W does not divide.
    """
    from torch.distributed.tensor import DTensor, Shard

    from postgrad.core.models.memory.layer import ValueTable  # which imports this file

    found = [child for child in module.modules() if isinstance(child, ValueTable)]
    if not found:
        raise ModelError("The model has no memory layers whose values could be sharded.")
    if mesh.ndim != 1:
        raise ModelError(
            f"Values are sharded over a mesh of one dimension; this one has {mesh.ndim}. Take a submesh: mesh[NAME]."
        )
    for table in found:
        if is_sharded(table.weight):
            raise ModelError("The values are sharded already.")
        if table.weight.device.type != mesh.device_type:
            raise ModelError(
                f"The values are on {table.weight.device}, the mesh is of {mesh.device_type} devices."
            )
        columns_per_rank(table.weight.shape[1], mesh.size())
    for table in found:
        own = table.weight.detach().chunk(mesh.size(), 1)[mesh.get_local_rank()].clone()
        weight = DTensor.from_local(own, mesh, [Shard(1)], run_check=False)
        table.weight = nn.Parameter(weight, requires_grad=table.weight.requires_grad)


def is_sharded(table: Tensor) -> bool:
    """Whether it is a DTensor (which is not imported to see that it is not)."""
    return hasattr(table, "device_mesh")


def is_first_rank(table: Tensor) -> bool:
    """Whether this process is to write files: always, or if the table is sharded on rank 0 alone."""
    return not is_sharded(table) or torch.distributed.get_rank() == 0


def refuse_sharded(module: nn.Module, what: str) -> None:
    """Raises ModelError, saying what cannot be done, if a table of the model is sharded."""
    if any(is_sharded(parameter) for parameter in module.parameters()):
        raise ModelError(
            f"{what} needs whole value tables, these are sharded over ranks. Load the model anew and do not shard it; sparse "
            "finetuning works with both."
        )


def own_columns(table: Tensor) -> Tensor:
    """This rank's part of the table, [N, D / W]; it shares memory with it, and is differentiable in it."""
    return cast("Any", table).to_local() if is_sharded(table) else table


def cut_columns(table: Tensor, rows: Tensor) -> Tensor:
    """This rank's columns of rows: [R, D] to [R, D / W]."""
    if not is_sharded(table):
        return rows
    mesh = _mesh(table)
    return rows.chunk(mesh.size(), -1)[mesh.get_local_rank()]


def gather_columns(table: Tensor, rows: Tensor) -> Tensor:
    """Rows of all ranks' columns: [R, D / W] to [R, D], on every rank, differentiable in its own. Talks to the other ranks."""
    if not is_sharded(table):
        return rows
    from torch.distributed.tensor import DTensor, Shard

    return DTensor.from_local(rows, _mesh(table), [Shard(1)], run_check=False).full_tensor()


def sum_gradients(table: Tensor, weights: Tensor) -> Tensor:
    """The weights [T, M] with which this rank's columns are read; in the backward pass their gradients are summed over ranks.

    Talks to the other ranks in the backward pass, if the weights are differentiated.
    """
    if not is_sharded(table) or not weights.requires_grad:
        return weights
    from torch.distributed.tensor import DTensor, Partial, Replicate

    same = DTensor.from_local(weights, _mesh(table), [Replicate()], run_check=False)
    return same.to_local(grad_placements=[Partial()])


def norm_over_ranks(table: Tensor, norm: Tensor) -> Tensor:
    """√(Σ over ranks of norm²), a scalar; the norm itself where the table is not sharded. Talks to the other ranks."""
    if not is_sharded(table):
        return norm
    from torch.distributed.tensor import DTensor, Partial

    return DTensor.from_local(norm.square(), _mesh(table), [Partial()], run_check=False).full_tensor().sqrt()


def write_whole(module: nn.Module, write: Callable[[dict[str, Tensor] | None], None]) -> None:
    """Calls `write` with the state dict of a model whose sharded tables are whole and on the CPU: on rank 0 alone, the others
    wait. Of a model without such tables it is called with None, at once. Talks to the other ranks.
    """
    state = dict(module.state_dict())
    sharded = {name: tensor for name, tensor in state.items() if is_sharded(tensor)}
    if not sharded:
        write(None)
        return
    first = torch.distributed.get_rank() == 0
    for name, table in sharded.items():
        parts = own_columns(table.detach()).split(_GATHERED_ROWS)
        kept = [rows.cpu() for rows in (gather_columns(table, part) for part in parts) if first]
        state[name] = torch.cat(kept) if first else table
    try:
        if first:
            write(state)
    finally:
        torch.distributed.barrier(_mesh(next(iter(sharded.values()))).get_group())


def _mesh(table: Tensor) -> DeviceMesh:
    return cast("Any", table).device_mesh
