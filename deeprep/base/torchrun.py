"""One run by many processes: joining those that torchrun started, and failing together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import distributed

from deeprep.base.machine import available_cores
from deeprep.base.ranks import Ranks

T = TypeVar("T")


class OtherRankError(RuntimeError):
    """Another process has failed, and says why."""


def local_rank() -> int:
    """Return the number of this process on its machine; 0 where torchrun did not start it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def joined() -> Iterator[Ranks | None]:
    """Join the processes that torchrun started, unless they have joined; None for a single one.

    Tensors on the host travel by gloo, those on a GPU by nccl. The group is left on exit if it was
    joined here.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ
    own = launched and not distributed.is_initialized()
    if own:
        gpus = torch.cuda.is_available() and distributed.is_nccl_available()
        distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    try:
        alone = not distributed.is_initialized() or distributed.get_world_size() == 1
        yield None if alone else Ranks.of(None, "the run")
    finally:
        if own:
            distributed.destroy_process_group()


def default_threads() -> int:
    """Return this process's share of the cores: torchrun leaves each process one thread."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def together(ranks: Ranks | None, action: Callable[[], T], *, in_turn: bool = False) -> T:
    """Do something in every process, and go on only if it succeeded in all.

    Of several that fail, the first raises its own error and the others say that it did.

    Parameters
    ----------
    in_turn
        First in one process of each machine, then in the others: one download serves them all.

    Raises
    ------
    OtherRankError
        Where `action` raised in another process, of lower rank if it raised in this one too.
    """
    if ranks is None:
        return action()
    results: list[T] = []
    for turn in (True, False) if in_turn else (None,):
        error: Exception | None = None
        if turn is None or turn == (local_rank() == 0):
            try:
                results.append(action())
            except Exception as raised:  # of any kind: the others must not wait for this process
                error = raised
        messages: list[str | None] = ranks.gather(None if error is None else str(error))
        failed = [rank for rank, message in enumerate(messages) if message is not None]
        if failed and failed[0] == ranks.rank and error is not None:
            raise error
        if failed:
            raise OtherRankError(f"rank {failed[0]}: {messages[failed[0]]}")
    return results[0]
