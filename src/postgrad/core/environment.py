"""Facts about this process and machine that a run records. Imports nothing heavy."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from postgrad._version import __version__

RECORDED_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pydantic",
    "datasets",
    "reasoning-gym",
    "math-verify",
)


def utc_now() -> str:
    """ISO 8601, in UTC, to the second.

    >>> len(utc_now()), utc_now()[-1]
    (20, 'Z')
    """
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def package_versions(names: Sequence[str] = RECORDED_PACKAGES) -> dict[str, str]:
    """Installed version of each package; missing ones are left out."""
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_sha() -> str | None:
    """Commit of the working directory's repository; None outside of one, or without git."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--verify", "--quiet", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def describe_process(*, command: Sequence[str], kind: str, seed: int, device: str) -> dict[str, Any]:
    """What a new run.json says."""
    return {
        "kind": kind,
        "status": "running",
        "command": list(command),
        "seed": seed,
        "device": device or None,
        "git_sha": git_sha(),
        "versions": {"postgrad": __version__, "python": platform.python_version(), **package_versions()},
        "platform": f"{platform.system()} {platform.machine()}",
        "pid": os.getpid(),
        "started": utc_now(),
        "ended": None,
        "last_step": None,
    }
