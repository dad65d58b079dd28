"""A Ray cluster (extra `ray`): where it is, and what each of its actors asks for. Imports ray when one is asked for."""

from __future__ import annotations

import importlib
import os
from typing import Any

from pydantic import Field, field_validator

from postgrad.core.config import Config
from postgrad.core.errors import ConfigError, MissingExtraError

_ADDRESSES = "local, auto, HOST:PORT or ray://HOST:PORT"


class ClusterConfig(Config):
    """Where a run's parts are, when they are not processes of this machine."""

    address: str | None = None
    """`local`: a Ray cluster of this machine, for this run. `auto`: the one that this machine belongs to. `ray://HOST:PORT`:
    another one, through its client server. None = no Ray. `--cluster` is short for it."""
    generator_gpus: float | None = Field(default=None, ge=0)
    """GPUs of each generator; 0.5 = two share one. None = 1 where the trainer has one, else 0."""
    trainer_gpus: float | None = Field(default=None, ge=0)
    """GPUs of each rank of the trainer. None = 1 if the cluster has any and `model.device` allows it."""
    trainer_ranks: int = Field(default=1, ge=1)
    """Actors that the trainer's weights (FSDP2) and batches are spread over."""
    verifiers: int = Field(default=1, ge=1)
    """Actors that judge, each with `data.verify_workers` worker processes."""
    max_restarts: int = Field(default=3, ge=0)
    """How often in a row the trainer is restarted without a new checkpoint in between."""

    @field_validator("address")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is None or value in ("local", "auto"):
            return value
        host, colon, port = value.removeprefix("ray://").rpartition(":")
        if not (colon and host and port.isdigit()):
            raise ValueError(f"{value!r} is no address of a cluster; valid: {_ADDRESSES}")
        return value


def import_ray(purpose: str = "A cluster") -> Any:
    """The module ray. Raises MissingExtraError."""
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError:
        raise MissingExtraError("ray", "ray", purpose) from None


def connect(address: str) -> Any:
    """The module ray, connected; inside an actor it is so already.

    Raises:
        MissingExtraError: without ray.
        ConfigError: there is no cluster at this address.
    """
    ray = import_ray()
    if ray.is_initialized():
        return ray
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault(
        "RAY_worker_niceness", "0"
    )  # Ray's 15 starves a run on a machine that does other things
    try:
        options: dict[str, Any] = {} if address.startswith("ray://") else {"logging_level": "warning"}
        if address == "local":
            options["include_dashboard"] = False
        ray.init(address=address, **options)
    except (ConnectionError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"No Ray cluster at {address!r} ({str(error).splitlines()[0]}). Start one with `ray start --head`, or give "
            f"another address: {_ADDRESSES}."
        ) from error
    return ray


def actor_options(address: str, cpus: float, gpus: float = 0.0) -> dict[str, Any]:
    """What an actor asks for. On a cluster of one machine CPUs are not counted: its parts share them."""
    return {"num_cpus": 0 if address == "local" else cpus, "num_gpus": gpus}


def cluster_gpus(ray: Any) -> float:
    """GPUs of the cluster, taken or not."""
    return float(ray.cluster_resources().get("GPU", 0))


def why_it_died(error: BaseException) -> str:
    """The first sentence of what Ray says of an actor that is gone.

    >>> why_it_died(RuntimeError("The actor died unexpectedly. \\n\\tclass_name: X"))
    'The actor died unexpectedly'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0].split(". ")[0].rstrip(".")
