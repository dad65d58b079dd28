"""Typed, frozen configs: a TOML file, then dotted overrides, unknown keys refused by name.

Each field's docstring is its help. `resolve` is the one way in; `Config.model_dump(mode="json")` the one way out,
and feeding that JSON back gives the same config (a run replays from its `config.json`).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from postgrad.core.errors import ConfigError, nearest

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What random generators take: from 0 on, below 2³²."""


class Config(BaseModel):
    """Base of every config: frozen, unknown keys refused, field docstrings are the help."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )


ConfigT = TypeVar("ConfigT", bound=Config)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML (or run `config.json`) file as a dict. Raises ConfigError naming file and place."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"No config file at {path}. Give a .toml file, or leave it out to use the defaults."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read the config file {path}: {error}") from None
    try:
        if path.suffix == ".json":
            data = json.loads(text)
            if not isinstance(data, dict):
                raise ConfigError(f"{path} holds a JSON {type(data).__name__}; a config is an object.")
            return cast("dict[str, Any]", data)
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(
            f"{path} is not valid {path.suffix.lstrip('.').upper() or 'TOML'}: {error}"
        ) from None


def parse_value(text: str) -> Any:
    """A command-line word as a TOML value; a word that is no TOML value is a string.

    >>> parse_value("3"), parse_value("true"), parse_value("[1, 2]"), parse_value("chain_sum")
    (3, True, [1, 2], 'chain_sum')
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """`["--a.b", "3", "--c=x", "--flag"]` → `{"a.b": 3, "c": "x", "flag": True}`. Raises ConfigError on stray words."""
    overrides: dict[str, Any] = {}
    index = 0
    while index < len(words):
        word = words[index]
        if not word.startswith("--") or len(word) == 2:
            raise ConfigError(f"Unexpected argument {word!r}. Overrides look like --optimizer.lr 1e-4.")
        key, equals, value = word[2:].partition("=")
        key = key.replace("-", "_")
        if not equals:
            if index + 1 < len(words) and not words[index + 1].startswith("--"):
                index += 1
                value = words[index]
            else:
                value = "true"
        overrides[key] = parse_value(value)
        index += 1
    return overrides


def deep_merge(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """`other` over `base`; tables merge, everything else (lists too) is replaced."""
    merged = dict(base)
    for key, value in other.items():
        old = merged.get(key)
        merged[key] = (
            deep_merge(cast("Mapping[str, Any]", old), cast("Mapping[str, Any]", value))
            if isinstance(old, Mapping) and isinstance(value, Mapping)
            else value
        )
    return merged


def nest(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` → `{"a": {"b": 1}}`."""
    nested: dict[str, Any] = {}
    for key, value in dotted.items():
        parts = key.split(".")
        branch: dict[str, Any] = {parts[-1]: value}
        for part in reversed(parts[:-1]):
            branch = {part: branch}
        nested = deep_merge(nested, branch)
    return nested


def resolve(
    config_type: type[ConfigT],
    file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> ConfigT:
    """Defaults ← file ← dotted overrides, validated.

    Raises:
        ConfigError: naming each bad key with the nearest valid one, or each bad value with what is valid.
    """
    data = read_toml(file) if file is not None else {}
    data = deep_merge(data, nest(overrides or {}))
    return validate(config_type, data)


def validate(config_type: type[ConfigT], data: Mapping[str, Any]) -> ConfigT:
    """`data` as a config. Raises ConfigError as `resolve` does."""
    try:
        return config_type.model_validate(dict(data))
    except ValidationError as error:
        lines = [_explain(config_type, dict(item)) for item in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def _explain(config_type: type[Config], item: dict[str, Any]) -> str:
    location = tuple(item["loc"])
    dotted = ".".join(str(part) for part in location)
    if item["type"] == "extra_forbidden":
        parent = _descend(config_type, location[:-1])
        valid = list(parent.model_fields) if parent is not None else []
        hint = nearest(str(location[-1]), valid)
        prefix = ".".join(str(part) for part in location[:-1])
        if prefix and hint.startswith("Did you mean"):
            hint = hint.replace("'", f"'{prefix}.", 1)
        same_name = [path for path, _ in walk_fields(config_type) if path.split(".")[-1] == str(location[-1])]
        elsewhere = sorted(same_name, key=lambda path: path.count("."))
        if elsewhere:  # the very name, in another table
            hint = f"Did you mean {elsewhere[0]!r}?"
        return f"Unknown key {dotted!r}. {hint}"
    if item["type"] == "missing":
        return f"Missing key {dotted!r}."
    message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    where = f"{dotted}: " if dotted else ""
    received = (
        "" if isinstance(item.get("input"), (dict, BaseModel)) else f" (received {item.get('input')!r})"
    )
    return f"{where}{message}{received}"


def _config_in(annotation: Any) -> type[Config] | None:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    for part in get_args(annotation):
        found = _config_in(part)
        if found is not None:
            return found
    return None


def _descend(config_type: type[Config], location: Sequence[Any]) -> type[Config] | None:
    current: type[Config] | None = config_type
    for part in location:
        if isinstance(part, int) or current is None:
            continue
        info = current.model_fields.get(str(part))
        current = _config_in(info.annotation) if info is not None else None
    return current


def walk_fields(config_type: type[Config], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every leaf field with its dotted path (for `--help` and for hints); a table that may be absent comes before its fields."""
    for name, info in config_type.model_fields.items():
        optional = [part for part in get_args(info.annotation) if part is not type(None)]
        only = (
            optional[0] if isinstance(info.annotation, UnionType) and len(optional) == 1 else info.annotation
        )
        inner = only if isinstance(only, type) and issubclass(only, Config) else None
        if inner is None or optional:
            yield f"{prefix}{name}", info
        if inner is not None:
            yield from walk_fields(inner, f"{prefix}{name}.")
