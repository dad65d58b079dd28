"""Functions of your own, as `module:function` or `path/to/file.py:function`: rewards, and sources of prompts."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from postgrad.core.errors import TaskError, nearest
from postgrad.core.protocols import Verifier


def load_function(spec: str) -> Verifier:
    """The reward that `spec` names, called as reward(prompt, completion).

    It is imported here (up front, so that a mistake shows at once) and again in each worker process, so what
    it keeps in module variables is not shared. Modules are found as Python finds them, and in the working
    directory; a file may import its neighbours.

    Raises:
        TaskError: a malformed spec, a module or file that is missing or fails to import, no such attribute,
            one that cannot be called, or one that does not take two arguments.
    """
    function = load_callable(spec, "Reward", "--data.tasks.reward my_rewards:score")
    _check_signature(function, spec)
    return cast(Verifier, function)


def load_callable(spec: str, noun: str, example: str) -> Callable[..., Any]:
    """The function that `spec` names, whatever it takes.

    Args:
        spec: `module:function` or `path/to/file.py:function`.
        noun: what it is for, for messages: "Reward".
        example: an option that names such a function, for messages.

    Raises:
        TaskError: as `load_function`, but for the arguments.
    """
    source, _, attribute = spec.rpartition(":")
    if not source or not attribute:
        raise TaskError(
            f"A {noun.lower()} is written module:function or path/to/file.py:function (received {spec!r}), "
            f"for example {example}"
        )
    name = f"{noun} {spec!r}"
    module = _import_file(Path(source), name) if source.endswith(".py") else _import_module(source, name)
    if not hasattr(module, attribute):
        public = [
            name for name, value in vars(module).items() if callable(value) and not name.startswith("_")
        ]
        hint = nearest(attribute, public) if public else "It defines no function."
        raise TaskError(f"{name}: {source} has no attribute {attribute!r}. {hint}")
    function = getattr(module, attribute)
    if not callable(function):
        raise TaskError(f"{name}: {attribute} is a {type(function).__name__}, not a function.")
    return function


def _import_module(name: str, what: str) -> ModuleType:
    _add_to_path(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise TaskError(
                f"{what}: no module named {error.name!r}. Run from the directory that holds it, "
                "set PYTHONPATH, or write path/to/file.py:function."
            ) from None
        raise _failed(what, error) from error
    except Exception as error:
        raise _failed(what, error) from error


def _import_file(path: Path, what: str) -> ModuleType:
    if not path.is_file():
        raise TaskError(f"{what}: no file {path} (looked in {Path.cwd()}).")
    path = path.resolve()
    name = f"postgrad_reward_{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise TaskError(f"{what}: {path} cannot be imported as Python.")
    module = importlib.util.module_from_spec(module_spec)
    _add_to_path(path.parent)
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _failed(what, error) from error
    return module


def _add_to_path(directory: Path) -> None:
    """Make `directory` importable, after everything that is already."""
    if str(directory) not in sys.path:
        sys.path.append(str(directory))


def _failed(what: str, error: Exception) -> TaskError:
    return TaskError(f"{what} failed to import: {type(error).__name__}: {error}")


def _check_signature(function: Callable[..., object], spec: str) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # a builtin without a signature: the call will tell
    try:
        signature.bind(None, "")
    except TypeError:
        raise TaskError(
            f"Reward {spec!r} is called as reward(prompt, completion) -> float, but takes {signature}."
        ) from None
