"""Recipes that come with postgrad: TOML files, found by name."""

from __future__ import annotations

from pathlib import Path

from postgrad.core.errors import ConfigError, nearest


def shipped_recipes(room: str = "rl") -> dict[str, Path]:
    """Name → file of the recipes of a room that come with postgrad."""
    package = Path(__file__).resolve().parents[1]
    # Installed: postgrad/recipes. In a checkout: recipes/ beside src/.
    for directory in (package / "recipes", package.parents[1] / "recipes"):
        found = {path.stem: path for path in sorted((directory / room).glob("*.toml"))}
        if found:
            return found
    return {}


def find_recipe(name: str, room: str = "rl") -> Path:
    """The file of a recipe given as a path, a run directory, or by its shipped name; a file of that name comes first.

    Raises:
        ConfigError: none of them; with the nearest name.
    """
    path = Path(name)
    if path.is_dir() and (path / "config.json").is_file() and (path / "run.json").is_file():
        return path / "config.json"
    if path.is_file():
        return path
    recipes = shipped_recipes(room)
    if name in recipes:
        return recipes[name]
    if path.is_dir():
        raise ConfigError(
            f"{name} is a directory that holds no run. A recipe is a .toml file or a shipped name."
        )
    hint = nearest(Path(name.removesuffix(".toml")).name, recipes) if recipes else ""
    raise ConfigError(f"No recipe {name!r}: neither a file nor the name of a shipped recipe. {hint}".rstrip())
