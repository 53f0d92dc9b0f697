"""A state on its way from one process to another, or from one to all, in messages of 32 MiB."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, distributed

from deeprep.base.ranks import Ranks
from deeprep.state.scatter import ClassScatter

__all__ = ["broadcast_state", "receive_state", "send_state"]

_MESSAGE_NUMBERS = 1 << 22  # of eight bytes


def send_state(scatter: ClassScatter, ranks: Ranks, to: int) -> None:
    """Send a state on the CPU to another process, which calls `receive_state`.

    Raises
    ------
    RankLostError
        Where that process is lost.
    """
    scatter._require_intact()
    with ranks.watch():
        for message in _messages(scatter):
            distributed.send(message, group=ranks.group, group_dst=to)
        distributed.send(_roundoff(scatter), group=ranks.group, group_dst=to)


def receive_state(into: ClassScatter, ranks: Ranks, source: int) -> None:
    """Replace a state on the CPU by one of equal shape that another process sends.

    Raises
    ------
    RankLostError
        Where that process is lost. The state is then worth nothing.
    """
    roundoff = _roundoff(into)
    with ranks.watch():
        for message in _messages(into):
            distributed.recv(message, group=ranks.group, group_src=source)
        distributed.recv(roundoff, group=ranks.group, group_src=source)
    _settle(into, roundoff)


def broadcast_state(scatter: ClassScatter, ranks: Ranks, source: int) -> None:
    """Give all processes, in states on the CPU of equal shape, the state of one of them.

    Raises
    ------
    RankLostError
        Where a process is lost. The other states are then worth nothing.
    """
    scatter._require_intact()
    roundoff = _roundoff(scatter)
    with ranks.watch():
        for message in (*_messages(scatter), roundoff):
            distributed.broadcast(message, group=ranks.group, group_src=source)
    if ranks.rank != source:
        _settle(scatter, roundoff)


def _messages(scatter: ClassScatter) -> Iterator[Tensor]:
    """Yield the tensors of a state, cut up: its own memory."""
    for tensor in scatter._tensors().values():
        yield from tensor.view(-1).split(_MESSAGE_NUMBERS)


def _roundoff(scatter: ClassScatter) -> Tensor:
    return torch.tensor([scatter.unit_roundoff], dtype=torch.float64)


def _settle(scatter: ClassScatter, roundoff: Tensor) -> None:
    scatter.unit_roundoff = float(roundoff)
    scatter._derived = scatter._nothing_derived()
