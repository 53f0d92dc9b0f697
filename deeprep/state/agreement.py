"""What the ranks of a group tell each other of their states before they merge them.

Rank 0 gets a message from every rank: which layers it has, of which shapes, what is wrong with
them, and the states themselves where they are small. It answers all of them alike: with what they
have together, with the error that all are to raise, and with small states merged. One rank merges
them for all, so that they get the same bits even from machines that do not add up in the same
order. On the CPU, states of one width are merged as one, whatever their number: one by one they
would take more time than the network does.
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

# States are small up to so many numbers of all ranks but one together, 2 MiB, because rank 0 gets
# all of them; or each rank's up to so many, 64 KiB.
_SMALL_ENTRIES = 1 << 18
_SMALLEST_ENTRIES = 1 << 13
# The first numbers of a message: bytes of what is told, numbers of the states that follow it (-1
# where they do not), and the tag of the messages to come.
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

    def to(self, device: str) -> Whole:
        """Return the same on a device."""
        moments = Moments(*(tensor.to(device) for tensor in self.moments))
        return Whole(
            moments, None if self.pooled_scatter is None else self.pooled_scatter.to(device)
        )

    @classmethod
    def zeros(cls, found: Found) -> Whole:
        """Return the tensors of such a state of no samples, on the CPU."""
        width = found.num_features
        scatter = torch.zeros((width, width), dtype=torch.float64) if found.full else None
        return cls(Moments.zeros(found.num_classes, width, "cpu"), scatter)


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
    numbers = None
    if merge and all(found.flaw is None for found in own.values()) and _are_small(own, ranks):
        states = {
            layer: Whole(scatter._moments, scatter._pooled_scatter)
            for layer, scatter in scatters.items()
        }
        numbers = _in_columns(states, own)

    def answer(messages: list[Tensor]) -> Tensor:
        try:
            return _answer(messages, ranks, name)
        except Exception as failure:  # of any kind: the others must not wait for this process
            return _written(_Failure(f"{type(failure).__name__}: {failure}"[:_TOLD_CHARACTERS]))

    reply = ranks.consult(_written(own, numbers), answer, joined)
    told, small = _read(reply)
    error: Exception | None = None
    if isinstance(told, str):
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
    merged = None if small is None else _layers(small, told)
    for layer, scatter in scatters.items():
        told[layer] = told[layer]._replace(device_type=scatter.device.type)
    return Agreement(told, merged, int(reply.view(torch.int64)[2]))


# ---------------------------------------------------------------- what rank 0 answers


def _answer(messages: Sequence[Tensor], ranks: Ranks, name: str) -> Tensor:
    read = [_read(message) for message in messages]
    try:
        found = _together([told for told, _ in read], ranks, name)
    except ValueError as error:
        return _written(str(error))
    parts = [(numbers, told) for told, numbers in read if numbers is not None]
    if len(parts) < len(read) or not _are_small(found, ranks):
        return _written(found)
    return _written(found, [_merged(found, parts)])


def _are_small(found: Mapping[str, Found], ranks: Ranks) -> bool:
    """Return whether states are so small that rank 0 merges them."""
    num_entries = sum(each.num_entries for each in found.values())
    return num_entries <= max(_SMALLEST_ENTRIES, _SMALL_ENTRIES // max(1, ranks.size - 1))


def _merged(
    found: Mapping[str, Found], parts: Sequence[tuple[Tensor, Mapping[str, Found]]]
) -> Tensor:
    """Return the merged states of ranks, laid out as `found`.

    They are merged on the devices of rank 0's, or on the CPU where it has none.

    Parameters
    ----------
    parts
        Of each rank, the numbers of its states, and what these are. The first are overwritten.
    """
    stacks = _stacks(found)
    alike = [
        numbers
        if _stacks(told) == stacks
        else torch.cat(_in_columns(_layers(numbers, told), found))
        for numbers, told in parts
    ]
    _, first = parts[0]
    split = [_split(numbers, found) for numbers in alike]
    for stack, *wholes in zip(stacks, *split, strict=True):
        place = found[stack[0]].device_type if stack[0] in first else "cpu"
        target = wholes[0]
        merged, *others = (whole.to(place) for whole in wholes)
        for other in others:
            if merged.pooled_scatter is not None and other.pooled_scatter is not None:
                merged.pooled_scatter.add_(other.pooled_scatter)
            merge_in_order([merged.moments, other.moments], merged.moments, merged.pooled_scatter)
        if place != "cpu":
            for mine, tensor in zip(target.tensors(), merged.tensors(), strict=True):
                mine.copy_(tensor)
    return alike[0]


def _together(gathered: Sequence[Mapping[str, Found]], ranks: Ranks, name: str) -> dict[str, Found]:
    """Return what the ranks have, or raise a ValueError that says why it cannot be merged."""
    agreed: dict[str, Found] = {}
    movable = set()
    for layer in dict.fromkeys(layer for theirs in gathered for layer in theirs):
        states = {rank: theirs[layer] for rank, theirs in enumerate(gathered) if layer in theirs}
        first, *others = states.values()
        if first.flaw or first.device_type not in movable or any(first != each for each in others):
            _require_mergeable(states, ranks, name.format(layer))
            movable.add(first.device_type)
        unit_roundoff = max(state.unit_roundoff for state in states.values())
        agreed[layer] = first._replace(unit_roundoff=unit_roundoff)
    return agreed


def _require_mergeable(states: Mapping[int, Found], ranks: Ranks, called: str) -> None:
    """Raise a ValueError that says why the states of a layer, by rank, cannot be merged."""
    flaws = _where({rank: state.flaw for rank, state in states.items() if state.flaw is not None})
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


def _written(told: Any, numbers: Sequence[Tensor] | None = None) -> Tensor:
    """Return a message: what is told, and the numbers of the states that belong to it."""
    text = pickle.dumps(told)
    begin = _START + -(-len(text) // 8)
    num_entries = sum(map(len, numbers or ()))
    message = np.empty(begin + num_entries)
    start = len(text), -1 if numbers is None else num_entries, secrets.randbits(31)
    message.view(np.int64)[:_START] = start
    message.view(np.uint8)[8 * _START :][: len(text)] = np.frombuffer(text, np.uint8)
    written = torch.from_numpy(message)
    if numbers:
        # One by one they would cost more time than the network does; of CUDA's, one copy a device.
        if len({tensor.device for tensor in numbers}) > 1:
            numbers = [tensor.cpu() for tensor in numbers]
        if numbers[0].device.type == "cpu":
            torch.cat(list(numbers), out=written[begin:])
        else:
            written[begin:] = torch.cat(list(numbers))
    return written


def _read(message: Tensor) -> tuple[Any, Tensor | None]:
    """Return what a message tells, and the numbers of the states where they follow."""
    bits = message.numpy().view(np.int64)
    length, num_entries = bits[:2].tolist()
    told = pickle.loads(bits[_START:].view(np.uint8)[:length].tobytes())
    begin = _START + -(-length // 8)
    return told, None if num_entries < 0 else message[begin : begin + num_entries]


# Of the numbers of states, those of a stack lie together: all counts, all means, all sums of
# squares; and S of a full state, which is a stack of its own.


def _stacks(found: Mapping[str, Found]) -> list[list[str]]:
    """Return which layers are merged as one state."""
    stacks: dict[Any, list[str]] = {}
    for layer, each in found.items():
        # Elsewhere torch sums up a row in an order that depends on how many there are.
        alone = each.full or each.device_type != "cpu"
        stacks.setdefault(layer if alone else each.num_features, []).append(layer)
    return list(stacks.values())


def _in_columns(states: Mapping[str, Whole], found: Mapping[str, Found]) -> list[Tensor]:
    """Return the numbers of states, (n,) float64 each, zeros for layers that there are none of."""
    numbers = []
    for stack in _stacks(found):
        wholes = [states[i] if i in states else Whole.zeros(found[i]) for i in stack]
        counts, means, sumsq, *scatters = zip(*(whole.tensors() for whole in wholes), strict=True)
        numbers += [column.view(torch.float64) for column in counts]
        numbers += [rows.reshape(-1) for rows in means]
        numbers += sumsq
        numbers += [square.reshape(-1) for squares in scatters for square in squares]
    return numbers


def _split(numbers: Tensor, found: Mapping[str, Found]) -> Iterator[Whole]:
    """Yield each stack, as views of the numbers of states."""
    stacks = _stacks(found)
    sizes = []
    for stack in stacks:
        num_classes, each = sum(found[layer].num_classes for layer in stack), found[stack[0]]
        square = each.num_features**2 if each.full else 0
        sizes += [num_classes, num_classes * each.num_features, num_classes, square]
    pieces = iter(numbers.split_with_sizes(sizes))
    for stack in stacks:
        counts, means, sumsq, scatter = itertools.islice(pieces, 4)
        width = found[stack[0]].num_features
        moments = Moments(counts.view(torch.int64), means.view(-1, width), sumsq)
        yield Whole(moments, scatter.view(width, width) if found[stack[0]].full else None)


def _layers(numbers: Tensor, found: Mapping[str, Found]) -> dict[str, Whole]:
    """Return the state of each layer, as views of the numbers, in the order of `found`."""
    layers = {}
    for stack, whole in zip(_stacks(found), _split(numbers, found), strict=True):
        sizes = [found[layer].num_classes for layer in stack]
        columns = zip(*(column.split_with_sizes(sizes) for column in whole.moments), strict=True)
        for layer, moments in zip(stack, map(Moments._make, columns), strict=True):
            layers[layer] = Whole(moments, whole.pooled_scatter)
    return {layer: layers[layer] for layer in found}
