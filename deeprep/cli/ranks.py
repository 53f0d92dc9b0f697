"""A command under torchrun: each process has a share of the samples, and the first one speaks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

from deeprep.base.ranks import Ranks
from deeprep.base.torchrun import default_threads
from deeprep.cli.foreign import printed_warnings

__all__ = ["PATIENCE", "is_first", "share_threads", "warnings_of_first"]

# Where the work takes days, the first process to be done waits for the last. Those that die are
# noticed.
PATIENCE = timedelta(days=7)


def is_first(ranks: Ranks | None) -> bool:
    """Whether this process is the one that prints and writes."""
    return ranks is None or ranks.rank == 0


def share_threads(ranks: Ranks | None) -> None:
    """Take this process's share of the cores, of which torchrun leaves it one."""
    if ranks is not None:
        torch.set_num_threads(default_threads())


@contextmanager
def warnings_of_first(ranks: Ranks | None) -> Iterator[None]:
    """Print the warnings of the first process; the others have the same."""
    if is_first(ranks):
        with printed_warnings():
            yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
