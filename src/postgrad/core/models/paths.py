"""Where the files of a model are: a model directory, a run, or a snapshot of the hub. Imports no torch."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch, transformers, tokenizers and huggingface_hub are only partly typed)

from __future__ import annotations

import os
from pathlib import Path

from postgrad.core.errors import ModelError, nearest

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
)
"""Any one of these is the vocabulary of a tokenizer."""

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
_HUB_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


def latest_checkpoint(run: str | Path) -> Path | None:
    """The checkpoint with the highest step in `run`/checkpoints, or in `run` if it is that folder.

    Returns:
        The directory `step_N` with the largest N, or None when there is none.
    """
    root = Path(run)
    if (root / "checkpoints").is_dir():
        root = root / "checkpoints"
    if not root.is_dir():
        return None
    steps = [
        (int(folder.name.removeprefix("step_")), folder)
        for folder in root.glob("step_*")
        if folder.is_dir() and folder.name.removeprefix("step_").isdecimal()
    ]
    return max(steps)[1] if steps else None


def locate(
    path_or_name: str | Path, revision: str | None, *, trust_remote_code: bool
) -> tuple[Path, str | None]:
    """The local directory that holds the model, checked for its files, and its commit (hub only).

    Raises:
        ModelError: no such directory, no model in it, no safetensors, no tokenizer, or the hub cannot be
            reached.
    """
    if not str(path_or_name):
        raise ModelError("The model path is empty. Give a model directory, a run directory or a hub name.")
    path = Path(path_or_name).expanduser()
    commit = None
    if path.is_file():
        raise ModelError(
            f"{path} is a file. Give the directory that holds config.json and model.safetensors."
        )
    if path.is_dir():
        path = _within_run(path)
    elif looks_local(str(path_or_name)):
        raise ModelError(f"There is no model directory {path}.{_sibling_hint(path)}")
    else:
        path, commit = _from_hub(str(path_or_name), revision, trust_remote_code=trust_remote_code)
    _check_files(path)
    return path, commit


def _within_run(path: Path) -> Path:
    """`path` itself, or the latest checkpoint if `path` is a run directory or its checkpoints folder."""
    checkpoint = latest_checkpoint(path)
    if checkpoint is not None:
        return checkpoint
    if (path / "run.json").is_file() or (path / "checkpoints").is_dir():
        raise ModelError(
            f"The run {path} has no checkpoint yet (no checkpoints/step_* in it). "
            "Let it run until its first checkpoint, or lower run.checkpoint_every."
        )
    return path


def looks_local(name: str) -> bool:
    """Whether `name` can only be meant as a path: hub names are NAME or OWNER/NAME."""
    return name.startswith((".", "~", os.sep)) or name.count("/") > 1 or "\\" in name or name.endswith("/")


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def _sibling_hint(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f" Its parent {parent} does not exist either."
    names = sorted(folder.name for folder in parent.iterdir() if folder.is_dir())
    return f" In {parent}: {nearest(path.name, names)}" if names else f" {parent} has no directories in it."


def _from_hub(name: str, revision: str | None, *, trust_remote_code: bool) -> tuple[Path, str]:
    """Download (or find in the cache) the safetensors, configs and tokenizer of a hub model."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    patterns = [*_HUB_PATTERNS, *(["*.py"] if trust_remote_code else [])]
    disable_progress_bars()
    try:
        folder = Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=["original/*", "consolidated*"],
            )
        )
    except Exception as error:  # many kinds: offline, not found, gated, bad name, disk full
        reason = (
            "HF_HUB_OFFLINE is set and it is not in the local cache; unset it, or download it elsewhere"
            if is_offline()
            else f"the hub says {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        )
        at = f" at revision {revision!r}" if revision else ""
        raise ModelError(
            f"{name!r}{at} is neither a directory here nor a hub model that can be had: {reason}. "
            "A local model is given as a path such as ./NAME."
        ) from None
    finally:
        enable_progress_bars()
    return folder, folder.name


def _check_files(path: Path) -> None:
    """Raise ModelError unless `path` has config.json, safetensors weights and a tokenizer."""
    if not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            raise ModelError(
                f"{path} holds an adapter, not a model. Merge it into its base model first "
                "(peft: model.merge_and_unload().save_pretrained(DIR)) and give that directory."
            )
        raise ModelError(
            f"{path} is no model directory: it has no config.json. "
            "Valid: a directory written by save_pretrained or by a run (RUN/checkpoints/step_N, or RUN)."
        )
    if not any(path.glob("*.safetensors")):
        pickled = sorted(file.name for pattern in _PICKLED for file in path.glob(pattern))
        if pickled:
            raise ModelError(
                f"{path} has only pickled weights ({', '.join(pickled[:3])}), which can run code when "
                "opened; postgrad reads safetensors only. Convert them once, if you trust them: "
                "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)."
            )
        raise ModelError(
            f"{path} has a config.json but no weights (*.safetensors). Copy model.safetensors there."
        )
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            f"{path} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}). "
            "Write one there: AutoTokenizer.from_pretrained(BASE_MODEL).save_pretrained(DIR)."
        )
