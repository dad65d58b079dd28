"""transformers without its log, its progress bars and its warnings."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (transformers is only partly typed)

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Generator


@contextlib.contextmanager
def quiet_transformers() -> Generator[None]:
    """Silence transformers' log, progress bars and Python warnings; what matters is raised as ModelError."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
