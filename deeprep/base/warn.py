"""Warnings that name the line of the user's code they are about."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import warnings
from pathlib import Path

import torch

# deeprep itself, and what stands between it and its caller: a cached property, a context manager, a
# hook or an operator that torch calls, a metric of torchmetrics.
_NOT_THE_CALLER = (
    str(Path(__file__).parents[1]) + os.sep,
    str(Path(torch.__file__).parent) + os.sep,
    str(Path(torch.__file__).parents[1] / "torchmetrics") + os.sep,
    functools.__file__,
    contextlib.__file__,
)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, at the innermost line of code outside deeprep that led here.

    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warn("nothing is as it was")
    >>> caught[0].message, caught[0].lineno
    (UserWarning('nothing is as it was'), 2)
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_CALLER):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
