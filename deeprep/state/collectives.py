"""Many processes, one state: the states of all ranks of a torch.distributed group, merged.

Every rank answers for a share of each state's classes. It gets these rows of all ranks' states,
merges them in the order of the ranks, by the arithmetic of `ClassScatter.merge` and so to the same
bits, and hands the merged rows to all. Adding n * mean over the ranks would be shorter, but could
overflow, and would give classes without spread a spread of rounding errors. Rows of all layers
travel together, in buckets of bounded size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, distributed

from deeprep import ops
from deeprep.base.ranks import Ranks
from deeprep.base.validate import require
from deeprep.state.merge import merge_moments
from deeprep.state.moments import Moments
from deeprep.state.statistics import Change, State, Statistics

__all__ = ["all_reduce", "merged_share", "message_bytes"]

# Numbers of one message, 8 MiB: enough to run the network at full speed. Some four such buffers
# are the memory that reducing states of any size takes.
_BUCKET_ENTRIES = 1 << 20


def message_bytes(num_classes: int, num_features: int, num_ranks: int) -> int:
    """Return how much memory rows of other ranks take at most, while they wait to be merged."""
    row = 8 * num_features + 16
    others = num_ranks - 1
    return min(
        2 * max(8 * _BUCKET_ENTRIES, others * row), others * row * -(-num_classes // num_ranks)
    )


class _Found(NamedTuple):
    """What ranks tell each other of a state before they touch it."""

    num_classes: int
    num_features: int
    full: bool
    ignore_index: int
    device_type: str
    unit_roundoff: float
    flaw: str | None  # why it cannot be merged

    @classmethod
    def of(cls, scatter: Statistics) -> _Found:
        flaw = None
        if scatter._is_half_done:
            flaw = "is half changed"
        elif scatter._bad_label is not None and ops.read_bad_label(scatter._bad_label) is not None:
            flaw = "has met a label out of range"
        return cls(
            scatter.num_classes,
            scatter.num_features,
            scatter.full,
            scatter.ignore_index,
            scatter.device.type,
            scatter.unit_roundoff,
            flaw,
        )

    @property
    def kind(self) -> str:
        return (
            f"(num_classes={self.num_classes}, num_features={self.num_features}, "
            f"full={self.full}, ignore_index={self.ignore_index})"
        )

    def empty(self, kind: type[State]) -> State:
        return kind(
            self.num_classes,
            self.num_features,
            full=self.full,
            device=self.device_type,
            ignore_index=self.ignore_index,
        )


def all_reduce(
    scatters: dict[str, State], ranks: Ranks, name: str, kind: type[State]
) -> dict[str, State]:
    """Make the states of every layer, of all ranks, one: see `deeprep.all_reduce_layers`.

    Parameters
    ----------
    scatters
        Layer -> state, changed in place.
    name
        How errors call the state of a layer: a format of the layer's name.
    kind
        Of the states, to make those of layers that this rank has seen no sample of.
    """
    found = _agree(scatters, ranks, name)
    merged = {
        layer: scatters[layer] if layer in scatters else found[layer].empty(kind) for layer in found
    }
    by_place: dict[torch.device, list[State]] = {}
    for layer, scatter in merged.items():
        by_place.setdefault(ranks.transport(found[layer].device_type), []).append(scatter)
    # Whatever ends this call before its end, a lost process or Ctrl-C, finds every state marked.
    change = Change(ranks.call)
    for scatter in merged.values():
        scatter._change, scatter._derived = change, None
    change.under_way = True
    for layer, scatter in merged.items():
        scatter.unit_roundoff = found[layer].unit_roundoff
    for place, states in by_place.items():
        moments = [state._moments for state in states]
        pooled = [state._pooled_scatter for state in states]
        for bucket in _buckets(moments, ranks):
            targets = [moments[part.state] for part in bucket]
            rows = [_rows(part, ranks, ranks.rank, moments) for part in bucket]
            own = [_slice(m, *edges) for m, edges in zip(targets, rows, strict=True)]
            _merge_rows(bucket, moments, own, pooled, ranks, place)
            _hand_out(bucket, moments, ranks, place)
        _sum([scatter for scatter in pooled if scatter is not None], ranks, place)
    change.under_way = False
    for scatter in merged.values():
        scatter._derived = scatter._nothing_derived()
    return merged


def merged_share(scatter: State, ranks: Ranks) -> State:
    """Return the merged state of the classes that this rank answers for, in new memory.

    The states of the ranks are left as they are; errors as in `all_reduce_layers`. There must be
    as many classes as ranks, and no pooled scatter.
    """
    found = _agree({"": scatter}, ranks, "the state")[""]
    require("scatter.full", found.full, not found.full, "False: the (d, d) part has no shares")
    wanted = f"at least {ranks.size}, one for each process"
    require("num_classes", found.num_classes, found.num_classes >= ranks.size, wanted)
    begin, end = ranks.share(ranks.rank, scatter.num_classes)
    share = type(scatter)(
        end - begin,
        scatter.num_features,
        device=scatter.device,
        ignore_index=scatter.ignore_index,
    )
    share.unit_roundoff = found.unit_roundoff
    for bucket in _buckets([scatter._moments], ranks):
        own = [_slice(share._moments, part.start, part.stop) for part in bucket]
        place = ranks.transport(found.device_type)
        _merge_rows(bucket, [scatter._moments], own, [None], ranks, place)
    return share


def _agree(scatters: Mapping[str, Statistics], ranks: Ranks, name: str) -> dict[str, _Found]:
    """Return what the ranks have, the same on all of them, or raise on all of them.

    `name` is how errors call the state of a layer, a format of the layer's name.
    """
    gathered: list[dict[str, _Found]] = ranks.gather(
        {layer: _Found.of(scatter) for layer, scatter in scatters.items()}
    )
    for layer, scatter in scatters.items():
        try:
            scatter._require_intact()
        except (ValueError, RuntimeError) as error:
            raise type(error)(f"{name.format(layer)}: {error}") from None
    agreed: dict[str, _Found] = {}
    for layer in dict.fromkeys(layer for theirs in gathered for layer in theirs):
        states = {rank: theirs[layer] for rank, theirs in enumerate(gathered) if layer in theirs}
        called = name.format(layer)
        for flaw in sorted({state.flaw for state in states.values() if state.flaw is not None}):
            where = [rank for rank, state in states.items() if state.flaw == flaw]
            raise ValueError(
                f"{called} {flaw} on {_name(where)}, expected an intact one; see the error raised "
                "there"
            )
        kinds: dict[str, list[int]] = {}
        for rank, state in states.items():
            kinds.setdefault(state.kind, []).append(rank)
        if len(kinds) > 1:
            listed = ", ".join(f"{kind} on {_name(where)}" for kind, where in kinds.items())
            raise ValueError(f"{called} is {listed}, expected the same on every rank")
        for device_type in sorted({state.device_type for state in states.values()}):
            ranks.transport(device_type)
        unit_roundoff = max(state.unit_roundoff for state in states.values())
        mine = scatters[layer].device.type if layer in scatters else None
        first = next(iter(states.values()))
        agreed[layer] = first._replace(
            unit_roundoff=unit_roundoff, device_type=mine or first.device_type
        )
    return agreed


def _name(ranks: Sequence[int]) -> str:
    """Say which ranks, the first few by number."""
    listed = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {listed}"


# ---------------------------------------------------------------- buckets of rows


class _Part(NamedTuple):
    """Rows [start, stop) of the share that each rank has of a state."""

    state: int
    start: int
    stop: int


def _buckets(states: Sequence[Moments], ranks: Ranks) -> Iterator[list[_Part]]:
    """Yield parts that cover the states, as many at a time as fit into a message."""
    bucket: list[_Part] = []
    free = _BUCKET_ENTRIES
    for number, moments in enumerate(states):
        num_classes, width = moments.means.shape
        longest = -(-num_classes // ranks.size)
        start = 0
        while start < longest:
            fitting = free // (ranks.size * (width + 2))
            if fitting == 0 and bucket:
                yield bucket
                bucket, free = [], _BUCKET_ENTRIES
                continue
            stop = min(longest, start + max(1, fitting))
            bucket.append(_Part(number, start, stop))
            free -= (stop - start) * ranks.size * (width + 2)
            start = stop
    if bucket:
        yield bucket


def _rows(part: _Part, ranks: Ranks, rank: int, states: Sequence[Moments]) -> tuple[int, int]:
    """Return the rows [begin, end) of a state that are a rank's share in a part."""
    begin, end = ranks.share(rank, len(states[part.state].counts))
    return min(begin + part.start, end), min(begin + part.stop, end)


def _slice(moments: Moments, begin: int, end: int) -> Moments:
    return Moments(*(tensor[begin:end] for tensor in moments))


def _shares(
    bucket: Sequence[_Part], states: Sequence[Moments], ranks: Ranks, rank: int
) -> list[Moments]:
    """Return a rank's rows of a bucket, as views of the states."""
    return [_slice(states[part.state], *_rows(part, ranks, rank, states)) for part in bucket]


def _size(shares: Iterable[Moments]) -> int:
    return sum(len(share.counts) * (share.means.shape[1] + 2) for share in shares)


def _pack(shares: Iterable[Moments], message: Tensor) -> None:
    """Write rows into a message: counts, which are whole numbers below 2^53, sumsq, means."""
    for packed, share in _split(message, shares):
        packed[:, 0] = share.counts
        packed[:, 1] = share.sumsq
        packed[:, 2:] = share.means


def _split(message: Tensor, shares: Iterable[Moments]) -> Iterator[tuple[Tensor, Moments]]:
    """Yield, of each share, the place (rows, d + 2) of its rows in a message, and the share."""
    begin = 0
    for share in shares:
        rows, width = share.means.shape
        end = begin + rows * (width + 2)
        yield message[begin:end].view(rows, width + 2), share
        begin = end


def _merge_rows(
    bucket: Sequence[_Part],
    states: Sequence[Moments],
    own: Sequence[Moments],
    pooled: Sequence[Tensor | None],
    ranks: Ranks,
    place: torch.device,
) -> None:
    """Write into `own` this rank's rows of a bucket, merged over the ranks.

    `pooled[i]` gets what the distances of the means of states[i] add to its pooled scatter.
    """
    shares = [_shares(bucket, states, ranks, rank) for rank in range(ranks.size)]
    sizes = [_size(share) for share in shares]
    outgoing = torch.empty(sum(sizes), dtype=torch.float64, device=place)
    for share, message in zip(shares, outgoing.split(sizes), strict=True):
        _pack(share, message)
    size = sizes[ranks.rank]
    incoming = torch.empty(ranks.size * size, dtype=torch.float64, device=place)
    with ranks.watch():
        distributed.all_to_all_single(
            incoming, outgoing, [size] * ranks.size, sizes, group=ranks.group
        )
    for rank in range(ranks.size):
        message = incoming[rank * size : (rank + 1) * size]
        for part, (packed, target) in zip(bucket, _split(message, own), strict=True):
            packed = packed.to(target.means.device)
            theirs = Moments(packed[:, 0].long(), packed[:, 2:], packed[:, 1])
            if rank == 0:
                for mine, first in zip(target, theirs, strict=True):
                    mine.copy_(first)
            else:
                merge_moments(target, theirs, pooled[part.state])


def _hand_out(
    bucket: Sequence[_Part], states: Sequence[Moments], ranks: Ranks, place: torch.device
) -> None:
    """Replace every rank's rows of a bucket by those that the rank has merged."""
    shares = [_shares(bucket, states, ranks, rank) for rank in range(ranks.size)]
    longest = max(map(_size, shares))  # all messages must have one length
    own = torch.zeros(longest, dtype=torch.float64, device=place)
    _pack(shares[ranks.rank], own)
    everything = torch.empty(ranks.size * longest, dtype=torch.float64, device=place)
    with ranks.watch():
        distributed.all_gather_into_tensor(everything, own, group=ranks.group)
    for share, message in zip(shares, everything.split(longest), strict=True):
        for packed, target in _split(message, share):
            target.counts.copy_(packed[:, 0])
            target.sumsq.copy_(packed[:, 1])
            target.means.copy_(packed[:, 2:])


def _sum(tensors: Iterable[Tensor], ranks: Ranks, place: torch.device) -> None:
    """Replace contiguous float64 tensors by their sums over the ranks, a bucket at a time."""
    bucket: list[Tensor] = []

    def flush() -> None:
        flat = torch.cat([piece.to(place) for piece in bucket])
        with ranks.watch():
            distributed.all_reduce(flat, group=ranks.group)
        for piece, total in zip(bucket, flat.split([len(p) for p in bucket]), strict=True):
            piece.copy_(total)
        bucket.clear()

    for tensor in tensors:
        for piece in tensor.view(-1).split(_BUCKET_ENTRIES):
            if bucket and sum(map(len, bucket)) + len(piece) > _BUCKET_ENTRIES:
                flush()
            bucket.append(piece)
    if bucket:
        flush()
