"""What the ranks of a group tell each other of their states before they merge them.

Rank 0 gets a message of fixed size from every rank: which layers it has, of which shapes, what is
wrong with them, and the states themselves where they fit beside that. It answers all of them alike:
with what they have together, with the error that all are to raise, and with small states merged.
One rank merges them for all, so that they get the same bits even from machines that do not add up
in the same order.
"""

from __future__ import annotations

import itertools
import pickle
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deeprep import ops
from deeprep.base.ranks import Ranks
from deeprep.state.merge import merge_in_order
from deeprep.state.moments import Moments
from deeprep.state.statistics import State, Statistics

# Numbers of a message, 64 KiB: ten classes of 768 features, at no more than twice the time of the
# shortest message.
_MESSAGE_ENTRIES = 1 << 13
# The first numbers of a message: bytes of what is told (-1 where it does not fit), numbers of the
# states that follow it (-1 where they do not fit), and the tag of the messages to come.
_START = 3
# Characters of an exception that are told, which fit a message.
_TOLD_CHARACTERS = 2000


class Found(NamedTuple):
    """What ranks tell each other of a state before they touch it."""

    num_classes: int
    num_features: int
    full: bool
    ignore_index: int
    device_type: str
    unit_roundoff: float
    flaw: str | None  # why it cannot be merged

    @classmethod
    def of(cls, scatter: Statistics) -> Found:
        """Return what is to be told of a state."""
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
        """What must be the same on every rank."""
        return (
            f"(num_classes={self.num_classes}, num_features={self.num_features}, "
            f"full={self.full}, ignore_index={self.ignore_index})"
        )

    @property
    def num_entries(self) -> int:
        """How many numbers the state has."""
        square = self.num_features**2 if self.full else 0
        return self.num_classes * (self.num_features + 2) + square

    def empty(self, kind: type[State]) -> State:
        """Return such a state, of no samples."""
        return kind(
            self.num_classes,
            self.num_features,
            full=self.full,
            device=self.device_type,
            ignore_index=self.ignore_index,
        )


class _Failure(NamedTuple):
    """What is told of an exception of rank 0."""

    text: str


class Whole(NamedTuple):
    """Tensors of a state, and S where it is full."""

    moments: Moments
    pooled_scatter: Tensor | None

    def tensors(self) -> list[Tensor]:
        """Return all of them."""
        return [*self.moments, *([] if self.pooled_scatter is None else [self.pooled_scatter])]


class Agreement(NamedTuple):
    """What the ranks have together.

    Attributes
    ----------
    found
        Layer -> what its states are, in the order of the lowest rank that has any.
    merged
        Layer -> the merged state, where all states were small and were asked for; on the CPU.
    tag
        Of the messages to come.
    """

    found: dict[str, Found]
    merged: dict[str, Whole] | None
    tag: int


def agree(
    scatters: Mapping[str, Statistics],
    ranks: Ranks,
    name: str,
    *,
    merge: bool,
    joined: Callable[[], None] = lambda: None,
    refused: Callable[[], None] = lambda: None,
) -> Agreement:
    """Return what the ranks have, the same on all of them, or raise on all of them.

    Parameters
    ----------
    name
        How errors call the state of a layer, a format of the layer's name.
    merge
        Merge the states right away, where they are small.
    joined, refused
        Called when all ranks have come; and then, when there is an error to be raised on all of
        them.
    """
    own = {layer: Found.of(scatter) for layer, scatter in scatters.items()}
    states = None
    if merge and all(found.flaw is None for found in own.values()):
        states = {
            layer: Whole(scatter._moments, scatter._pooled_scatter)
            for layer, scatter in scatters.items()
        }
    message = _written(own, states)

    def answer(messages: list[Tensor]) -> Tensor:
        try:
            reply = _answer([each.cpu() for each in messages], ranks, name)
        except Exception as failure:  # of any kind: the others must not wait for this process
            reply = _written(_Failure(f"{type(failure).__name__}: {failure}"[:_TOLD_CHARACTERS]))
        return reply.to(ranks.any_device)

    reply = ranks.consult(message.to(ranks.any_device), answer, joined).cpu()
    told, numbers = _read(reply)
    error: Exception | None = None
    if told is None:
        try:
            told = _together(ranks.gather(own), ranks, name)
        except ValueError as disagreement:
            error = disagreement
    elif isinstance(told, str):
        error = ValueError(told)
    elif isinstance(told, _Failure):
        error = RuntimeError(f"{ranks.call}: rank 0 has failed to merge the states ({told.text})")
    if error is not None:
        refused()
        for layer, scatter in scatters.items():
            try:
                scatter._require_intact()
            except (ValueError, RuntimeError) as flaw:
                raise type(flaw)(f"{name.format(layer)}: {flaw}") from None
        raise error from None
    merged = None if numbers is None else dict(zip(told, _split(numbers, told), strict=True))
    for layer, scatter in scatters.items():
        told[layer] = told[layer]._replace(device_type=scatter.device.type)
    return Agreement(told, merged, int(reply.view(torch.int64)[2]))


# ---------------------------------------------------------------- what rank 0 answers


def _answer(messages: Sequence[Tensor], ranks: Ranks, name: str) -> Tensor:
    read = [_read(message) for message in messages]
    gathered = [told for told, _ in read if told is not None]
    if len(gathered) < len(read):
        return _written(None)
    try:
        found = _together(gathered, ranks, name)
    except ValueError as error:
        return _written(str(error))
    num_entries = sum(each.num_entries for each in found.values())
    parts = [
        dict(zip(told, _split(numbers, told), strict=True))
        for told, numbers in read
        if numbers is not None
    ]
    if len(parts) < len(read) or num_entries > _MESSAGE_ENTRIES:
        return _written(found)
    return _written(found, {layer: _merged(each, layer, parts) for layer, each in found.items()})


def _merged(found: Found, layer: str, parts: Sequence[Mapping[str, Whole]]) -> Whole:
    """Return the merged states of a layer, on the device of rank 0's, or the CPU if it has none."""
    place = found.device_type if layer in parts[0] else "cpu"
    wholes = []
    for part in parts:
        whole = part.get(layer)
        if whole is None:
            whole = next(_split(torch.zeros(found.num_entries, dtype=torch.float64), {"": found}))
        moments = Moments(*(tensor.to(place) for tensor in whole.moments))
        scatter = whole.pooled_scatter
        wholes.append(Whole(moments, None if scatter is None else scatter.to(place)))
    merged, *others = wholes
    for other in others:
        if merged.pooled_scatter is not None and other.pooled_scatter is not None:
            merged.pooled_scatter.add_(other.pooled_scatter)
        merge_in_order([merged.moments, other.moments], merged.moments, merged.pooled_scatter)
    return merged


def _together(gathered: Sequence[Mapping[str, Found]], ranks: Ranks, name: str) -> dict[str, Found]:
    """Return what the ranks have, or raise a ValueError that says why it cannot be merged."""
    agreed: dict[str, Found] = {}
    for layer in dict.fromkeys(layer for theirs in gathered for layer in theirs):
        states = {rank: theirs[layer] for rank, theirs in enumerate(gathered) if layer in theirs}
        called = name.format(layer)
        flaws = _where({r: state.flaw for r, state in states.items() if state.flaw is not None})
        for flaw, where in sorted(flaws.items()):
            raise ValueError(
                f"{called} {flaw} on {where}, expected an intact one; see the error raised there"
            )
        kinds = _where({rank: state.kind for rank, state in states.items()})
        if len(kinds) > 1:
            listed = ", ".join(f"{kind} on {where}" for kind, where in kinds.items())
            raise ValueError(f"{called} is {listed}, expected the same on every rank")
        places = _where({rank: state.device_type for rank, state in states.items()})
        # gloo moves those of a GPU over the host; NCCL cannot receive what gloo sends.
        if len({ranks.transport(device_type) for device_type in sorted(places)}) > 1:
            listed = ", ".join(f"on {kind} on {where}" for kind, where in places.items())
            raise ValueError(f"{called} is {listed}, expected one type of device on every rank")
        unit_roundoff = max(state.unit_roundoff for state in states.values())
        agreed[layer] = next(iter(states.values()))._replace(unit_roundoff=unit_roundoff)
    return agreed


def _where(values: Mapping[int, str]) -> dict[str, str]:
    """Say of each of the values, by rank, on which ranks it is, the first few by number."""
    found: dict[str, list[int]] = {}
    for rank, value in values.items():
        found.setdefault(value, []).append(rank)
    return {
        value: f"rank{'s' if len(ranks) > 1 else ''} "
        + ", ".join([*map(str, ranks[:8]), *(["..."] if len(ranks) > 8 else [])])
        for value, ranks in found.items()
    }


# ---------------------------------------------------------------- messages


def _written(told: Any, states: Mapping[str, Whole] | None = None) -> Tensor:
    """Return a message: what is told, and the states that belong to it, where both fit."""
    text = b"" if told is None else pickle.dumps(told)
    begin = _START + -(-len(text) // 8)
    tensors = [tensor for whole in (states or {}).values() for tensor in whole.tensors()]
    num_entries = sum(tensor.numel() for tensor in tensors)
    fits = told is not None and begin <= _MESSAGE_ENTRIES
    all_fit = fits and states is not None and begin + num_entries <= _MESSAGE_ENTRIES
    message = np.zeros(_MESSAGE_ENTRIES)
    start = len(text) if fits else -1, num_entries if all_fit else -1, secrets.randbits(31)
    message.view(np.int64)[:_START] = start
    if fits:
        message.view(np.uint8)[8 * _START :][: len(text)] = np.frombuffer(text, np.uint8)
    written = torch.from_numpy(message)
    if all_fit and tensors:
        # One by one they would cost more time than the network does; of CUDA's, one copy a device.
        place = written[begin : begin + num_entries]
        flat = [tensor.reshape(-1).view(torch.float64) for tensor in tensors]
        if len({tensor.device for tensor in flat}) > 1:
            flat = [tensor.cpu() for tensor in flat]
        place.copy_(torch.cat(flat))
    return written


def _read(message: Tensor) -> tuple[Any, Tensor | None]:
    """Return what a message tells and the numbers that follow; None where they did not fit."""
    bits = message.numpy().view(np.int64)
    length, num_entries = bits[:2].tolist()
    if length < 0:
        return None, None
    told = pickle.loads(bits[_START:].view(np.uint8)[:length].tobytes())
    begin = _START + -(-length // 8)
    return told, None if num_entries < 0 else message[begin : begin + num_entries]


def _split(numbers: Tensor, found: Mapping[str, Found]) -> Iterator[Whole]:
    """Yield, of each state, its tensors in the numbers of a message."""
    sizes = []
    for each in found.values():
        num_classes, width = each.num_classes, each.num_features
        square = width**2 if each.full else 0
        sizes += [num_classes, num_classes * width, num_classes, square]
    pieces = iter(numbers.split(sizes))
    for each in found.values():
        counts, means, sumsq, scatter = itertools.islice(pieces, 4)
        width = each.num_features
        moments = Moments(counts.view(torch.int64), means.view(-1, width), sumsq)
        yield Whole(moments, scatter.view(width, width) if each.full else None)
