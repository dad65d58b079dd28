"""Dotted overrides and the help of a config: all without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from postgrad.core.errors import ConfigError, nearest


def split_words(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The recipe (the one word that is neither an option nor its value), and the other words.

    >>> split_words(["--steps", "5", "r.toml"]), split_words(["--steps=5"])
    (('r.toml', ['--steps', '5']), (None, ['--steps=5']))
    """
    recipe: str | None = None
    rest: list[str] = []
    value_may_follow = False
    for word in words:
        if word.startswith("--") and len(word) > 2:
            value_may_follow = "=" not in word
            rest.append(word)
        elif value_may_follow:
            value_may_follow = False
            rest.append(word)
        elif recipe is None:
            recipe = word
        else:
            raise ConfigError(
                f"Unexpected argument {word!r}: the recipe is {recipe!r} already. "
                "A value with spaces or brackets needs quotes; options look like --optimizer.lr 1e-4."
            )
    return recipe, rest


def check_overrides(words: Sequence[str], flags: Sequence[str], config: str) -> dict[str, Any]:
    """Words as overrides; one that is a misspelt flag, or a whole section, is refused with a hint.

    Args:
        words: of the command line.
        flags: the command's own options.
        config: whose keys are overridden, such as "postgrad.rl.config:RLConfig".

    Raises:
        ConfigError: naming the word and what was probably meant.
    """
    from postgrad.core.config import parse_overrides

    if not words:
        return {}
    from postgrad.core.config import walk_fields

    config_type = load_config(config)
    overrides = parse_overrides(words)
    leaves = [path for path, _ in walk_fields(config_type)]
    for key in overrides:
        dashed = key.replace("_", "-")
        if key.split(".")[0] in config_type.model_fields:
            inside = [f"--{leaf}" for leaf in leaves if leaf.startswith(f"{key}.")]
            if inside and key not in leaves:
                shown = ", ".join(inside[:6]) + (", … (see --help-config)" if len(inside) > 6 else "")
                raise ConfigError(f"--{dashed} is a section, not an option. It has {shown}.")
            continue
        last = key.split(".")[-1]
        elsewhere = sorted(
            (leaf for leaf in leaves if leaf.split(".")[-1] == last), key=lambda x: x.count(".")
        )
        known = [*flags, *(f"--{leaf}" for leaf in leaves)]
        hint = f"Did you mean '--{elsewhere[0]}'?" if elsewhere else nearest(f"--{dashed}", known)
        if not hint.startswith("Did you mean"):
            hint = "--help and --help-config list all options."
        raise ConfigError(f"Unknown option --{key if '.' in key else dashed}. {hint}")
    return overrides


def load_config(path: str) -> Any:
    """The config class that "module:Class" names."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def dotted_options(config: str) -> dict[str, list[tuple[str, str]]]:
    """Section → (option with its type, help with its default) of every field of a config."""
    from postgrad.core.config import walk_fields

    sections: dict[str, list[tuple[str, str]]] = {}
    for path, info in walk_fields(load_config(config)):
        section, dot, _ = path.rpartition(".")
        text = " ".join((info.description or "").split())
        default = (
            describe_default(info.get_default(call_default_factory=True)) if not info.is_required() else ""
        )
        entry = (f"--{path} {describe_type(info.annotation)}", f"{text}  [{default}]" if default else text)
        sections.setdefault(section if dot else "general", []).append(entry)
    return sections


def describe_type(annotation: Any) -> str:
    """A type in one word, or the choices.

    >>> describe_type(Literal["a", "b"]), describe_type(float | None), describe_type(dict[str, int])
    ('a|b', 'FLOAT', 'TABLE')
    """
    origin = get_origin(annotation)
    if origin is Literal:
        return "|".join(str(choice) for choice in get_args(annotation))
    if origin in (Union, UnionType):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        return "|".join(dict.fromkeys(describe_type(part) for part in parts))
    names = {bool: "BOOL", int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
    if annotation in names:
        return names[annotation]
    if origin in (list, tuple):
        return "LIST"
    return "TABLE" if origin is dict or isinstance(annotation, type) else "VALUE"


def describe_default(value: Any) -> str:
    """A default as one would type it.

    >>> describe_default(5e-7), describe_default(None), describe_default(True), describe_default(())
    ('5e-07', 'none', 'true', 'empty')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, list, tuple, Mapping)) and not value:
        return "empty"
    if isinstance(value, (list, tuple, Mapping)):
        return json.dumps(value, default=str)
    return str(value)
