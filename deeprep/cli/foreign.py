"""Running code that is not ours: where it is found, its errors and its warnings."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from deeprep.base.console import print_warning
from deeprep.cli.shared import ERRORS
from deeprep.models.loaded import describe_error, is_ours

__all__ = ["errors_of", "importable_here", "printed_warnings"]

_FOR_DEVELOPERS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)


@contextmanager
def errors_of(name: str) -> Iterator[None]:
    """Say in a line what a model raises on data that it does not take, and where."""
    try:
        yield
    except ERRORS:
        raise
    except torch.OutOfMemoryError as error:
        raise MemoryError(f"{describe_error(error)}; try a smaller batch_size") from error
    except Exception as error:
        if is_ours(error):
            raise
        raise ValueError(f"model {name} failed: {describe_error(error)}") from error


@contextmanager
def importable_here() -> Iterator[None]:
    """Let modules in the current directory be imported, as `python -m` does."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


@contextmanager
def printed_warnings() -> Iterator[None]:
    """Print warnings as lines of our own, each once, but those for developers."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        told = (w for w in caught if not issubclass(w.category, _FOR_DEVELOPERS))
        for message in dict.fromkeys(str(warning.message).partition("\n")[0] for warning in told):
            print_warning(message)
