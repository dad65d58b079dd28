"""Going on with a run that was interrupted, when its options and its input are what they were."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from postgrad.core.config import Config
from postgrad.core.errors import ConfigError
from postgrad.core.run import Run
from postgrad.core.runfiles import pretty_json, replace_file

_INPUTS_FILE = "inputs.json"


def record_inputs(run: Run, inputs: object) -> None:
    """Keeps the digest of everything that a run was given, by its `repr`."""
    replace_file(run.path / _INPUTS_FILE, pretty_json({"digest": _digest(inputs)}))


def resume_run(
    out: Path, kind: str, config: Config, argv: list[str], inputs: object = None, **options: Any
) -> Run:
    """The run in `out`, to go on with.

    Raises:
        ConfigError: it is of another kind, was begun with other options, or with other input where that was recorded.
        RunError: no run there, or it is locked.
    """
    run = Run.open(out)
    if run.info.get("kind") != kind:
        raise ConfigError(
            f"{out} holds a run of {run.info.get('kind')}, not of {kind}. Choose another --out."
        )
    if run.config_dict() != config.model_dump(mode="json"):
        raise ConfigError(f"{out} was begun with other options. Repeat its command, or choose another --out.")
    if inputs is not None:
        before = json.loads((out / _INPUTS_FILE).read_text(encoding="utf-8"))["digest"]
        if before != _digest(inputs):
            raise ConfigError(
                f"{out} was begun with other input. Give what was given then, or choose another --out."
            )
    return Run.resume(out, command=argv, **options)


def _digest(inputs: object) -> str:
    return hashlib.sha256(repr(inputs).encode("utf-8", "surrogatepass")).hexdigest()
