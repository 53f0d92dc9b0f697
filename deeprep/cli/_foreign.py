"""Running code that is not ours: where it is found and runs, its errors and its warnings."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from deeprep.cli._shared import ERRORS, print_warning
from deeprep.models.loaded import describe_error, is_ours
from deeprep.ops import build_info

__all__ = ["choose_device", "errors_of", "importable_here", "printed_warnings"]

_FOR_DEVELOPERS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)


def choose_device(name: str) -> torch.device:
    """Return the device of a name; auto is the GPU if there is one that deeprep can use."""
    lacks = "" if torch.cuda.is_available() else "PyTorch finds no GPU"
    if not build_info()["cuda"]:
        lacks = lacks or "the compiled core was built without CUDA"
    if name == "auto":
        return torch.device("cpu" if lacks else "cuda")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {name!r}, expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and lacks:
        raise ValueError(f"device must be cpu or auto where {lacks}, got {name}")
    return device


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
