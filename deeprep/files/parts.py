"""Parts of the rows, summed up apart and merged in one order, whoever has summed up which.

The parts form a binary tree: of each stretch of parts the left half is the largest power of two
that leaves something for the right. A state covers a stretch of it, and grows only by being merged
with the other half. So the bits of the whole depend on where parts begin, and that on the files and
the size of the state alone: not on the number of processes, nor on who stopped when. And however
many parts there are, a process never has more than a few states to keep.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from deeprep.base import strict_json
from deeprep.files.arrays import Array, Block
from deeprep.state import ClassScatter

__all__ = ["Finished", "Stretch", "cut", "halves", "remove_parts", "shares"]

Stretch = tuple[int, int]  # parts [first, stop)

_MAX_PARTS = 1024
# A part of a longer file: reading it takes seconds, and no more is lost with a process.
_PART_BYTES = 2**26
# States of this size are written in no time. Larger ones are worth a part of so many times theirs.
_SMALL_STATE_BYTES = 2**20
_BYTES_PER_STATE_BYTE = 16
_HALF_WRITTEN = re.compile(r"\.parts-.*\.partial\.safetensors")  # by a process that died
_NAME = re.compile(r"parts-(\d+)-(\d+)\.([0-9a-f]{32})\.safetensors")


def cut(array: Array, state_bytes: int) -> list[Block]:
    """Cut the rows of features into parts of about equal size, at the edges of files where it can.

    As many as there are files, or one for each 64 MiB where files are longer; but at most 1,024,
    and so few that their states are small beside them.

    Parameters
    ----------
    array
        The features.
    state_bytes
        Of a state.
    """
    num_rows = array.num_rows
    size = num_rows * array.row_bytes
    wanted = min(_MAX_PARTS, max(len(array.shards), size // _PART_BYTES), max(num_rows, 1))
    large = max(0, state_bytes - _SMALL_STATE_BYTES)
    if large:
        wanted = min(wanted, max(1, size // (_BYTES_PER_STATE_BYTE * large)))
    edges, cuts = array.edges, {0}
    for number in range(1, wanted):
        row = num_rows * number // wanted
        index = bisect.bisect(edges, row)
        nearest = min(edges[max(0, index - 1) : index + 1], key=lambda edge: abs(edge - row))
        near = 2 * abs(nearest - row) * wanted <= num_rows
        cuts.add(nearest if near else row)
    ordered = sorted(cuts - {num_rows}) or [0]
    return list(zip(ordered, [*ordered[1:], num_rows], strict=True))


def halves(stretch: Stretch, num_parts: int) -> tuple[Stretch, Stretch]:
    """Return the two halves, in order, of which a stretch that is not the whole is one.

    Raises
    ------
    ValueError
        For a stretch that is none of the tree, or the whole.

    Examples
    --------
    >>> halves((4, 5), 7), halves((4, 6), 7), halves((0, 4), 7)
    (((4, 5), (5, 6)), ((4, 6), (6, 7)), ((0, 4), (4, 7)))
    """
    first, stop = 0, num_parts
    while first <= stretch[0] < stretch[1] <= stop and stop - first > 1:
        middle = first + (1 << ((stop - first - 1).bit_length() - 1))
        left, right = (first, middle), (middle, stop)
        if stretch in (left, right):
            return left, right
        first, stop = left if stretch[1] <= middle else right
    raise ValueError(f"parts are {stretch}, expected a half in the tree of {num_parts}")


def shares(parts: Sequence[Block], missing: Sequence[int], size: int) -> list[list[int]]:
    """Deal the missing parts out to processes: to each a run of neighbours, balanced by bytes.

    Neighbours, and not the largest first: parts are of about one size anyway, a process so reads
    its files from one end to the other, and neighbours merge into one state.
    """
    rows = [parts[part][1] - parts[part][0] for part in missing]
    total, before = max(1, sum(rows)), 0
    dealt: list[list[int]] = [[] for _ in range(size)]
    for part, count in zip(missing, rows, strict=True):
        middle = 2 * before + count  # of the part, in half rows
        dealt[min(size - 1, size * middle // (2 * total))].append(part)
        before += count
    return dealt


def fingerprint(
    arrays: Iterable[Array], parts: Sequence[Block], settings: dict[str, int | bool]
) -> str:
    """Return what states of parts share if and only if they are of the same files and settings.

    The names of shards are without the queries of their URLs: a signature may be renewed, and the
    file is still the same.
    """
    files = [
        [shard.name, list(shard.shape), shard.dtype, shard.version]
        for array in arrays
        for shard in array.shards
    ]
    text = strict_json.dumps({"files": files, "parts": parts, **settings}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16, usedforsecurity=False).hexdigest()


class Finished:
    """The states that this process has, each of a stretch of parts: in a directory, or in memory.

    Parameters
    ----------
    num_parts
        Of the whole.
    directory
        Where states are files as soon as they are finished; None to keep them in memory.
    key
        The `fingerprint` of these files and settings; states of others are left alone.

    Attributes
    ----------
    has_others
        Whether the directory holds states of other files or settings.
    """

    def __init__(self, num_parts: int, directory: Path | None, key: str) -> None:
        self.num_parts = num_parts
        self._directory, self._key = directory, key
        self._in_memory: dict[Stretch, ClassScatter] = {}
        self._on_disk: set[Stretch] = set()
        self.has_others = False
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            named = [_NAME.fullmatch(path.name) for path in directory.iterdir()]
            states = [match for match in named if match is not None]
            found = {(int(match[1]), int(match[2])) for match in states if match[3] == key}
            self._on_disk = set(outermost(found))
            self.has_others = any(match[3] != key for match in states)

    @property
    def stretches(self) -> list[Stretch]:
        """What there is, in order."""
        return sorted({*self._in_memory, *self._on_disk})

    def leave(self, stretches: Iterable[Stretch]) -> None:
        """Leave states that were found to other processes, which have found them too."""
        self._on_disk -= set(stretches)

    def leave_damaged(self, num_classes: int, num_features: int, full: bool) -> dict[Stretch, str]:
        """Leave states on disk that cannot be read or are of another kind; return what is wrong."""
        damaged: dict[Stretch, str] = {}
        for stretch in sorted(self._on_disk):
            try:
                state = self.state(stretch)
            except (OSError, ValueError) as error:
                damaged[stretch] = str(error)
                continue
            found = (state.num_classes, state.num_features, state.full)
            if found != (num_classes, num_features, full):
                damaged[stretch] = (
                    f"{self._path(stretch)} has (K, d, full) = {found}, expected "
                    f"{(num_classes, num_features, full)}"
                )
        self.leave(damaged)
        return damaged

    def add(self, stretch: Stretch, scatter: ClassScatter) -> None:
        """Keep a state, merged with all that it can be merged with here."""
        merged = []
        while stretch != (0, self.num_parts):
            left, right = halves(stretch, self.num_parts)
            other = right if stretch == left else left
            if other not in self._in_memory and other not in self._on_disk:
                break
            scatter = joined_states(scatter, self.state(other), is_left=stretch == left)
            merged.append(other)
            stretch = (left[0], right[1])
        if self._directory is None:
            self._in_memory[stretch] = scatter
        else:
            scatter.save(self._path(stretch))
            self._on_disk.add(stretch)
        for each in merged:
            self._drop(each)

    def state(self, stretch: Stretch) -> ClassScatter:
        """Return the state of a stretch."""
        if stretch in self._in_memory:
            return self._in_memory[stretch]
        return ClassScatter.load(self._path(stretch))

    def _drop(self, stretch: Stretch) -> None:
        self._in_memory.pop(stretch, None)
        if stretch in self._on_disk:
            self._on_disk.discard(stretch)
            # Another process may have found, and merged, the same file.
            self._path(stretch).unlink(missing_ok=True)

    def _path(self, stretch: Stretch) -> Path:
        assert self._directory is not None
        return self._directory / f"parts-{stretch[0]}-{stretch[1]}.{self._key}.safetensors"


def joined_states(one: ClassScatter, other: ClassScatter, *, is_left: bool) -> ClassScatter:
    """Merge two states, of which `one` is of the left half or else `other`; both may change."""
    into, rest = (one, other) if is_left else (other, one)
    into.merge(rest)
    return into


def remove_parts(directory: Path) -> None:
    """Remove the states of parts, and their directory unless something else is in it."""
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            if _NAME.fullmatch(path.name) or _HALF_WRITTEN.fullmatch(path.name):
                path.unlink(missing_ok=True)
        directory.rmdir()


def outermost(stretches: Iterable[Stretch]) -> list[Stretch]:
    """Return those that are in no other.

    Others are left where a process died between writing a state and removing its halves.
    """
    distinct = set(stretches)
    return sorted(each for each in distinct if not any(_holds(o, each) for o in distinct))


def _holds(outer: Stretch, inner: Stretch) -> bool:
    return outer != inner and outer[0] <= inner[0] and inner[1] <= outer[1]
