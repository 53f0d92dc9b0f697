"""One run by many processes: joining those that torchrun started, and failing together."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from deeprep.base.machine import available_cores
from deeprep.base.ranks import Ranks

T = TypeVar("T")

_SECONDS_TO_SPEAK = 2.0


class OtherRankError(RuntimeError):
    """Another process has failed, and says why."""


def let_another_speak() -> None:
    """Wait before this process ends, if torchrun would then end the one that says why."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        time.sleep(_SECONDS_TO_SPEAK)


def local_rank() -> int:
    """Return the number of this process on its machine; 0 where torchrun did not start it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def joined(patience: timedelta | None = None, *, alone_too: bool = False) -> Iterator[Ranks | None]:
    """Join the processes that torchrun started, unless they have joined; None for a single one.

    Tensors on the host travel by gloo, those on a GPU by nccl. The group is left on exit if it was
    joined here.

    Parameters
    ----------
    patience
        How long a process waits for one that is still at work; default: torch's half an hour. One
        that has died is noticed at once.
    alone_too
        Whether a single process that torchrun started is a group of its own.
    """
    least = 1 if alone_too else 2
    launched = "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) >= least
    own = launched and not distributed.is_initialized()
    if own:
        gpus = torch.cuda.is_available() and distributed.is_nccl_available()
        distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=patience)
    try:
        alone = not distributed.is_initialized() or distributed.get_world_size() < least
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


class Alarm:
    """By it a process that has failed ends the work that the others do on their own.

    All processes of `ranks` must make it together. Without it they would find out only when they
    have done their own work, hours later perhaps.
    """

    _POLL_SECONDS = 0.5

    def __init__(self, ranks: Ranks) -> None:
        self._key = "deeprep/alarm/" + ranks.gather(uuid.uuid4().hex)[0]
        self._store: Any = None
        # What init_process_group was given, or made. No public way leads to it: in a torch that has
        # none here the others go on to their ends.
        with suppress(AttributeError):
            self._store = distributed.distributed_c10d._get_default_store()
        self._asked = time.monotonic()

    def ring(self) -> None:
        """Tell the others, where they can be told: it never hides why this process has failed."""
        if self._store is not None:
            with suppress(Exception):
                self._store.set(self._key, "failed")

    def rings(self) -> bool:
        """Whether another process has failed; asks twice a second at most."""
        now = time.monotonic()
        if self._store is None or now < self._asked + self._POLL_SECONDS:
            return False
        self._asked = now
        return bool(self._store.check([self._key]))
