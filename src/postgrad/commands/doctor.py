"""`postgrad doctor`: what this machine has, what is missing, and the line that installs it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from postgrad._version import __version__
from postgrad.commands.runs import describe_size

EXTRAS = {
    "envs": (("reasoning-gym", "reasoning_gym"), ("math-verify", "math_verify")),
    "data": (("datasets", "datasets"), ("pyarrow", "pyarrow")),
    "report": (("matplotlib", "matplotlib"),),
    "logs": (("tensorboard", "tensorboard"), ("wandb", "wandb")),
    "scaling": (("scipy", "scipy"),),
    "chem": (("rdkit", "rdkit"),),
    "llm": (("openai", "openai"),),
    "embed": (("sentence-transformers", "sentence_transformers"),),
    "mcp": (("mcp", "mcp"),),
    "ray": (("ray", "ray"),),
    "vllm": (("vllm", "vllm"),),
}
Level = Literal["ok", "note", "warning"]


@dataclass(frozen=True)
class Finding:
    """One line of the answer.

    Attributes:
        topic: what was looked at.
        text: what was found.
        level: `warning` needs attention, `note` is worth knowing.
    """

    topic: str
    text: str
    level: Level = "ok"


def main() -> int:
    """Print all findings; returns 0, or 1 when there is a warning."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    styles = {"ok": "", "note": "dim", "warning": "yellow"}
    warnings = 0
    previous = ""
    for finding in findings():
        topic = "" if finding.topic == previous else finding.topic
        mark = "!" if finding.level == "warning" else " "
        previous = finding.topic
        warnings += finding.level == "warning"
        indent = "\n" + " " * 18
        text = finding.text.replace("\n", indent)
        console.print(Text(f"{mark} {topic:<15} {text}", style=styles[finding.level]), soft_wrap=True)
    summary = (
        "Everything postgrad needs is here."
        if not warnings
        else f"{warnings} thing(s) to look at, marked '!'."
    )
    console.print(f"\n{summary}", markup=False)
    return 1 if warnings else 0


def findings() -> Iterator[Finding]:
    """Look at one thing after another."""
    yield Finding("postgrad", __version__)
    yield Finding("python", f"{platform.python_version()} ({sys.executable})")
    torch = yield from _torch()
    yield from _transformers()
    yield from _machine()
    yield from _extras()
    if torch is not None:
        yield from _compile(torch)


def _torch() -> Iterator[Any]:
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        yield Finding("torch", f"cannot be imported: {error}\nInstall it with: pip install torch", "warning")
        return None
    yield Finding("torch", torch.__version__)
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding(
                "device", f"cuda:{index} {properties.name}, {describe_size(properties.total_memory)}"
            )
    else:
        cuda_built = torch.version.cuda is not None
        why = "this torch sees no CUDA device" if cuda_built else "this torch is built without CUDA"
        yield Finding("device", f"cpu only ({why})", "note")
    if getattr(torch.backends, "mps", None) is not None and torch.backends.mps.is_available():
        yield Finding("device", "mps (Apple)")
    yield Finding("threads", f"{torch.get_num_threads()} of torch, {os.cpu_count()} processors")
    return torch


def _transformers() -> Iterator[Finding]:
    for name in ("transformers", "tokenizers", "safetensors"):
        try:
            yield Finding(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, f"missing. Install it with: pip install {name}", "warning")
    problem = torchvision_problem()
    if problem:
        yield Finding("torchvision", problem, "warning")


def torchvision_problem() -> str:
    """Why torchvision would break the import of transformers' models; empty if it would not.

    A torchvision built for another torch fails on import, and transformers imports it when it is installed.
    """
    if importlib.util.find_spec("torchvision") is None:
        return ""
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # a mismatch shows as RuntimeError, OSError, ImportError or AttributeError
        version = metadata.version("torchvision")
        return (
            f"{version} does not fit this torch ({type(error).__name__}: {str(error).splitlines()[0]}).\n"
            "postgrad does not need it: pip uninstall torchvision, or install the one made for your torch."
        )
    return ""


def _machine() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    low: Level = "warning" if memory.available < 2e9 else "ok"
    yield Finding("memory", f"{describe_size(memory.available)} free of {describe_size(memory.total)}", low)
    here = shutil.disk_usage(Path.cwd())
    low = "warning" if here.free < 2e9 else "ok"
    yield Finding("disk", f"{describe_size(here.free)} free of {describe_size(here.total)}, here", low)
    cache = cache_directory()
    state = "" if cache.is_dir() else ", not made yet"
    parent = next(path for path in (cache, *cache.parents) if path.exists())
    writable = os.access(parent, os.W_OK)
    yield Finding(
        "cache",
        f"{cache}{state}"
        if writable
        else f"{cache} cannot be written. Set POSTGRAD_CACHE to a directory of yours.",
        "ok" if writable else "warning",
    )


def cache_directory() -> Path:
    """POSTGRAD_CACHE, else postgrad below XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("POSTGRAD_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "postgrad"


def _extras() -> Iterator[Finding]:
    for extra, packages in EXTRAS.items():
        missing = [package for package, module in packages if importlib.util.find_spec(module) is None]
        if missing:
            text = f"without {', '.join(missing)}. Install with: pip install 'postgrad[{extra}]'"
            yield Finding(f"extra {extra}", text, "note")
        else:
            shown = ", ".join(_version(package, module) for package, module in packages)
            yield Finding(f"extra {extra}", shown)


def _version(package: str, module: str) -> str:
    """Name and version; a build for another platform may be a distribution of another name."""
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        found = metadata.packages_distributions().get(module, [])
        return ", ".join(f"{name} {metadata.version(name)}" for name in found) or package


def _compile(torch: Any) -> Iterator[Finding]:
    compiler = os.environ.get("CXX") or next(
        (name for name in ("g++", "clang++", "c++", "cl") if shutil.which(name)), None
    )
    if compiler is None or shutil.which(compiler) is None:
        yield Finding(
            "torch.compile",
            "no C++ compiler found (CXX, g++, clang++), so generation on the CPU is not compiled.\n"
            "Everything works without, only slower. Install one, such as g++.",
            "note",
        )
    elif torch.cuda.is_available() and importlib.util.find_spec("triton") is None:
        yield Finding("torch.compile", "triton is missing: not for CUDA. pip install triton", "note")
    else:
        yield Finding("torch.compile", f"compiler {shutil.which(compiler)}")
