"""Ranks of the trainer as actors of a Ray cluster: rank 0 is the trainer itself, the others do what it does.

A rank that dies takes the trainer with it, which is then started again from its last checkpoint, with all its ranks.
"""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import socket
import threading
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from postgrad.core.cluster import actor_options, connect, import_ray
from postgrad.core.errors import ConfigError
from postgrad.core.models.model import Model
from postgrad.core.types import Group
from postgrad.rl.config import RLConfig
from postgrad.rl.parallel import ParallelLearner

_DIED = 70


class LeadingLearner(ParallelLearner):
    """Rank 0: tells the others of each call before it does its own part."""

    def __init__(self, model: Model, *args: Any, mesh: DeviceMesh, **kwargs: Any) -> None:
        self._whole = copy.deepcopy(model.module).cpu()
        super().__init__(model, *args, mesh=mesh, **kwargs)

    def update(self, groups: Sequence[Group], min_deviation: float = 0.0) -> dict[str, float]:
        """As `Learner.update`."""
        self.tell("update", groups, min_deviation)
        return super().update(groups, min_deviation)

    def weights(self) -> Mapping[str, Tensor]:
        """As `ParallelLearner.weights`."""
        self.tell("weights")
        return super().weights()

    def save(self, path: Path) -> None:
        """As `ParallelLearner.save`."""
        self.tell("save", path)
        super().save(path)

    def load(self, path: Path) -> None:
        """As `ParallelLearner.load`."""
        self.tell("load", path)
        super().load(path)

    def whole_model(self) -> Model:
        """The model in one piece, on the CPU."""
        self._whole.load_state_dict(self.weights())
        return Model(self._whole, self.model.tokenizer, self.model.source, self.model.revision)

    def tell(self, what: str, *arguments: Any) -> None:
        """The other ranks call this method, too; `end` ends them."""
        dist.broadcast_object_list([(what, arguments)], src=0, group=self.mesh.get_group())


def follow(learner: ParallelLearner) -> None:
    """A rank above 0: does what it is told until the end."""
    while True:
        told: list[Any] = [None]
        dist.broadcast_object_list(told, src=0, group=learner.mesh.get_group())
        what, arguments = told[0]
        if what == "end":
            return
        getattr(learner, what)(*arguments)


class RankActor:
    """The actor of a rank above 0."""

    def follow(self, specification: list[Any], rank: int, world: int, address: str, device: str) -> None:
        """Joins, and does what rank 0 does until it ends.

        Args:
            specification: list of one reference: pickled (Model, config).
            rank, world: its number, and how many there are.
            address: tcp://HOST:PORT where rank 0 listens.
            device: of the model.
        """
        torch.set_num_threads(1)
        model, config = pickle.loads(import_ray().get(specification[0]))  # written by rank 0
        model.module.to(device)
        mesh = join(rank, world, address, device)
        follow(
            ParallelLearner(
                model, config.algorithm, config.optimizer, config.seed, steps=config.steps, mesh=mesh
            )
        )
        dist.destroy_process_group()


def join(rank: int, world: int, address: str, device: str) -> DeviceMesh:
    """The mesh of all ranks: NCCL on GPUs, gloo on CPUs."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.set_device(torch.device(device))
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=address, rank=rank, world_size=world)
    return init_device_mesh(kind, (world,))


@contextlib.contextmanager
def open_ranks(model: Model, config: RLConfig) -> Generator[LeadingLearner]:
    """Starts the other ranks of `config.cluster.trainer_ranks`; they end with the context.

    Args:
        model: is sharded over them, in place.

    Raises:
        ConfigError: this process is no actor of a cluster, or wants what needs the whole model.
    """
    world, address = config.cluster.trainer_ranks, config.cluster.address
    if address is None or (ray := connect(address)).get_runtime_context().get_actor_id() is None:
        raise ConfigError(
            f"cluster.trainer_ranks = {world} needs a trainer in a cluster: postgrad rl train --cluster ADDRESS."
        )
    if config.mara:
        raise ConfigError(
            f"[mara] needs the whole model in one process (received cluster.trainer_ranks = {world})."
        )
    device = model.device
    gpus = (config.cluster.trainer_gpus or 1.0) if device.type == "cuda" else 0.0
    whole = Model(copy.deepcopy(model.module).cpu(), model.tokenizer, model.source, model.revision)
    specification = ray.put(pickle.dumps((whole, config), protocol=5))
    host = ray.util.get_node_ip_address()
    with socket.socket() as free:
        free.bind((host, 0))
        port = free.getsockname()[1]
    make = ray.remote(max_restarts=0, **actor_options(address, 1, gpus))(RankActor)
    actors = [make.remote() for _ in range(1, world)]
    tcp = f"tcp://{host}:{port}"
    done = [
        actor.follow.remote([specification], rank, world, tcp, device.type)
        for rank, actor in enumerate(actors, 1)
    ]
    threading.Thread(target=_die_with, args=(ray, done), daemon=True).start()
    mesh = join(0, world, tcp, str(device))
    learner = LeadingLearner(
        model, config.algorithm, config.optimizer, config.seed, steps=config.steps, mesh=mesh
    )
    try:
        yield learner
        learner.tell("end")
        ray.get(done)
    finally:
        dist.destroy_process_group()
        del actors


def _die_with(ray: Any, done: list[Any]) -> None:
    """Ends this process when the process of another rank is gone: nothing can go on, and collectives would wait."""
    left = list(done)
    while left:
        ended, left = ray.wait(left)
        try:
            ray.get(ended)
        except ray.exceptions.RayActorError:
            os._exit(_DIED)
        except Exception:  # it raised: so does this rank
            return
