"""Rows of states on their way between ranks.

Every rank answers for a share of each state's classes. What travels at a time, a bucket, are some
rows of each rank's share: rank r sends those of share q to rank q, which merges them in the order
of the ranks and sends the result to all. Long rows go from the memory of one state into that of
another, without a copy between; short ones of many states go together in one message.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deeprep.base.ranks import Post, Ranks
from deeprep.state.merge import merge_in_order
from deeprep.state.moments import Moments

# Numbers of a bucket, 8 MiB: enough to run the network at full speed, and few enough to be in the
# cache when they are merged. The rows of two buckets are received at a time.
_BUCKET_ENTRIES = 1 << 20
# Numbers of a part that is worth messages of its own, 256 KiB.
_LONG_ENTRIES = 1 << 15


def message_bytes(num_classes: int, num_features: int, num_ranks: int) -> int:
    """Return how much memory rows of other ranks take at most, while they wait to be merged."""
    row = 8 * num_features + 16
    others = num_ranks - 1
    bounded = 2 * max(8 * _BUCKET_ENTRIES, others * row)
    return min(bounded, others * row * -(-num_classes // num_ranks))


class _Part(NamedTuple):
    """Rows [start, stop) of the share that each rank has of a state."""

    state: int
    start: int
    stop: int


def merge_shares(
    states: Sequence[Moments],
    ranks: Ranks,
    place: torch.device,
    tag: int,
    *,
    pooled: Sequence[Tensor | None],
    shares: Sequence[Moments] | None = None,
) -> None:
    """Merge the states of all ranks, each rank its share of the classes.

    Parameters
    ----------
    states
        The states of this rank.
    place
        The device that messages must be on.
    tag
        Of the messages; the same on every rank.
    pooled
        ``pooled[i]``, (d, d) or None, gets what the distances of the means of states[i] add to its
        pooled scatter: on each rank of the share that it merges.
    shares
        Where the share of this rank goes. Without it the merged rows of all go into the states.
    """
    own = shares
    if own is None:
        own = [moments.rows(*ranks.share(ranks.rank, len(moments.counts))) for moments in states]
    with ranks.messages(tag) as post:
        buckets = _buckets(states, ranks)
        memory = deque([torch.empty(0, dtype=torch.float64, device=place) for _ in range(2)])
        place = memory[0].device  # of "cuda", which one
        arriving: deque[_Arriving] = deque()
        leaving: deque[_Leaving] = deque()

        def begin_next() -> None:
            for bucket in itertools.islice(buckets, 1):
                arriving.append(_Arriving(bucket, states, ranks, memory.popleft(), post))

        begin_next()
        begin_next()
        while arriving:
            arrived = arriving.popleft()
            arrived.merge(own, pooled, in_place=shares is None)
            if shares is None:
                leaving.append(_Leaving(arrived.bucket, states, ranks, place, post))
            memory.append(arrived.memory)
            begin_next()
            if len(leaving) > 2:
                leaving.popleft().finish()
        for left in leaving:
            left.finish()


def _buckets(states: Sequence[Moments], ranks: Ranks) -> Iterator[list[_Part]]:
    """Yield parts that cover the states, as many at a time as fit into a bucket."""
    bucket: list[_Part] = []
    free = _BUCKET_ENTRIES
    for number, moments in enumerate(states):
        num_classes, width = moments.means.shape
        row = max(1, ranks.size - 1) * (width + 2)
        longest = -(-num_classes // ranks.size)
        step = max(1, _BUCKET_ENTRIES // row)
        for start in range(0, longest, step):
            part = _Part(number, start, min(longest, start + step))
            entries = (part.stop - part.start) * row
            if bucket and (entries > free or _is_long(part, states)):
                yield bucket
                bucket, free = [], _BUCKET_ENTRIES
            bucket.append(part)
            free -= entries
            if _is_long(part, states):
                yield bucket
                bucket, free = [], _BUCKET_ENTRIES
    if bucket:
        yield bucket


def _is_long(part: _Part, states: Sequence[Moments]) -> bool:
    width = states[part.state].means.shape[1]
    return (part.stop - part.start) * width >= _LONG_ENTRIES


def _rows(
    bucket: Sequence[_Part], states: Sequence[Moments], ranks: Ranks, rank: int
) -> list[Moments]:
    """Return, as views of the states, the rows of a rank's shares that are in a bucket."""
    rows = []
    for part in bucket:
        moments = states[part.state]
        begin, end = ranks.share(rank, len(moments.counts))
        rows.append(moments.rows(min(begin + part.start, end), min(begin + part.stop, end)))
    return rows


class _Arriving:
    """A bucket of rows on their way to the rank that merges them."""

    def __init__(
        self,
        bucket: list[_Part],
        states: Sequence[Moments],
        ranks: Ranks,
        memory: Tensor,
        post: Post,
    ) -> None:
        self.bucket = bucket
        self._rank = ranks.rank
        self._mine = _rows(bucket, states, ranks, ranks.rank)
        size = _size(self._mine)
        if len(memory) < size * (ranks.size - 1):
            memory = memory.new_empty(size * (ranks.size - 1))
        self.memory = memory
        self._theirs = {
            rank: _packet(self._mine, memory[number * size : (number + 1) * size])
            for number, rank in enumerate(_others(ranks))
        }
        outgoing = {
            rank: _ready(_rows(bucket, states, ranks, rank), memory.device)
            for rank in _others(ranks)
        }
        self._messages = post(_mail(outgoing), _mail(self._theirs))

    def merge(
        self, own: Sequence[Moments], pooled: Sequence[Tensor | None], *, in_place: bool
    ) -> None:
        """Wait for the rows, and write the merged ones into this rank's shares of the states."""
        self._messages.wait()
        if not self._theirs and in_place:
            return
        for number, part in enumerate(self.bucket):
            target = own[part.state].rows(part.start, part.stop)
            rows = {rank: theirs.rows[number] for rank, theirs in self._theirs.items()}
            rows[self._rank] = self._mine[number]
            parts = [
                Moments(*(tensor.to(target.means.device) for tensor in rows[rank]))
                for rank in sorted(rows)
            ]
            if self._rank == 0:
                if not in_place:
                    _copy(parts[0], target)
                parts[0] = target
            merge_in_order(parts, target, pooled[part.state])


class _Leaving:
    """A bucket of merged rows on their way from the ranks that merged them to all."""

    def __init__(
        self,
        bucket: list[_Part],
        states: Sequence[Moments],
        ranks: Ranks,
        place: torch.device,
        post: Post,
    ) -> None:
        mine = _ready(_rows(bucket, states, ranks, ranks.rank), place)
        self._targets = {rank: _rows(bucket, states, ranks, rank) for rank in _others(ranks)}
        self._packets = {
            rank: _ready(rows, place, fill=False) for rank, rows in self._targets.items()
        }
        self._messages = post(_mail(dict.fromkeys(self._packets, mine)), _mail(self._packets))

    def finish(self) -> None:
        """Wait for the rows that other ranks have merged; then they are in the states."""
        self._messages.wait()
        for rank, packet in self._packets.items():
            if packet.rows is not self._targets[rank]:
                for found, target in zip(packet.rows, self._targets[rank], strict=True):
                    _copy(found, target)


class _Packet(NamedTuple):
    """Rows as they travel: the tensors that are sent, and the same memory as moments."""

    tensors: list[Tensor]
    rows: list[Moments]


def _others(ranks: Ranks) -> list[int]:
    """Return all ranks but this one, beginning with the next: so no rank is the first of all."""
    return [(ranks.rank + distance) % ranks.size for distance in range(1, ranks.size)]


def _size(rows: Iterable[Moments]) -> int:
    return sum(part.means.numel() + 2 * len(part.counts) for part in rows)


def _is_one_long(rows: Sequence[Moments]) -> bool:
    return len(rows) == 1 and rows[0].means.numel() >= _LONG_ENTRIES


def _packet(rows: Sequence[Moments], memory: Tensor) -> _Packet:
    """Return a packet, in (n,) float64 memory, for rows of such shapes.

    They are one message; of a long part, each tensor is one, so that it can also lie in a state.
    """
    views = list(_views(memory, rows))
    return _Packet(list(views[0]) if _is_one_long(rows) else [memory], views)


def _ready(rows: list[Moments], place: torch.device, *, fill: bool = True) -> _Packet:
    """Return rows as a packet on `place`: as they lie, or a copy, filled if not to be received."""
    if _is_one_long(rows) and all(
        tensor.device == place and tensor.is_contiguous() for tensor in rows[0]
    ):
        return _Packet(list(rows[0]), rows)
    packet = _packet(rows, torch.empty(_size(rows), dtype=torch.float64, device=place))
    if fill:
        for target, found in zip(packet.rows, rows, strict=True):
            _copy(found, target)
    return packet


def _mail(packets: Mapping[int, _Packet]) -> list[tuple[int, Tensor]]:
    return [(rank, tensor) for rank, packet in packets.items() for tensor in packet.tensors]


def _views(memory: Tensor, rows: Iterable[Moments]) -> Iterator[Moments]:
    """Yield moments of the shapes of `rows`, one after another in (n,) float64 memory."""
    begin = 0
    for part in rows:
        num_rows, width = part.means.shape
        sizes = [num_rows, num_rows, num_rows * width]
        counts, sumsq, means = memory[begin : begin + sum(sizes)].split(sizes)
        yield Moments(counts.view(torch.int64), means.view(num_rows, width), sumsq)
        begin += sum(sizes)


def _copy(rows: Moments, into: Moments) -> None:
    for source, target in zip(rows, into, strict=True):
        target.copy_(source)
