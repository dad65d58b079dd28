"""Optional packages, imported when first needed."""

from __future__ import annotations

import importlib
from typing import Any

from postgrad.core.errors import MissingExtraError


def require(module: str, *, package: str, extra: str, purpose: str) -> Any:
    """The imported `module`.

    Args:
        module: what to import, such as `pyarrow.parquet`.
        package: name of the distribution, for the message.
        extra: postgrad's extra that installs it.
        purpose: who asks, as the subject of "… needs the package …".

    Raises:
        MissingExtraError: it is not installed. (A package that is installed but broken raises its own error.)
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] == module.split(".")[0]:
            raise MissingExtraError(package, extra, purpose) from None
        raise
