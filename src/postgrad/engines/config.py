"""Options of the generation engines."""

from __future__ import annotations

from pydantic import Field, field_validator

from postgrad.core.config import Config


class EngineConfig(Config):
    """The torch engine: continuous batching over a fixed number of slots."""

    slots: int = Field(default=64, ge=1)
    """Sequences generated at the same time, by each generator."""
    generators: int = Field(default=0, ge=0)
    """Processes that generate while the trainer works; they take new weights in mid-sequence, and one that dies is replaced. 0 =
    the trainer's own process generates, in turn with training, on a virtual clock: reproducible to the bit."""
    generator_devices: tuple[str, ...] = ()
    """Of the generators, in turn, such as cuda:1,cuda:2. Empty = the GPUs that the trainer is not on, if there are any, else its
    device."""
    generator_threads: int = Field(default=1, ge=1)
    """Of each generator. The trainer gets the other cores, unless OMP_NUM_THREADS says how many."""
    lockstep: bool = False
    """Generators wait for the virtual clock: slow, and the same to the bit as without generators. For checking."""
    compile: bool = False
    """torch.compile of the decode step (Llama family in fp32). Costs 20 to 60 s once per machine and shape."""
    prefill_tokens: int = Field(default=4096, ge=1)
    """Most prompt tokens computed in one prefill."""

    @field_validator("generator_devices", mode="before")
    @classmethod
    def _devices(cls, value: object) -> object:
        return tuple(word.strip() for word in value.split(",")) if isinstance(value, str) else value
