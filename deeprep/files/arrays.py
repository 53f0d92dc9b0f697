"""One array whose rows lie in many shards, one after the other: what all kinds of shards share.

To read rows, one need not know in which shard they are. The features and the labels of a data set
are two such arrays, and need not be cut at the same rows.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprep.base import validate

__all__ = [
    "DTYPES",
    "Argument",
    "Array",
    "Block",
    "Bytes",
    "Rows",
    "Shard",
    "Span",
    "StreamedArray",
]

Argument = Literal["features", "labels"]
Block = tuple[int, int]  # rows [begin, end)
Bytes = NDArray[np.uint8]

DTYPES = {
    # two bytes of nothing known: what NumPy writes for the bfloat16 of JAX
    torch.bfloat16: ("|V2", "BF16"),
    torch.float16: ("<f2", "F16"),
    torch.float32: ("<f4", "F32"),
    torch.float64: ("<f8", "F64"),
    torch.uint8: ("|u1", "U8"),
    torch.int8: ("|i1", "I8"),
    torch.uint16: ("<u2", "U16"),
    torch.int16: ("<i2", "I16"),
    torch.uint32: ("<u4", "U32"),
    torch.int32: ("<i4", "I32"),
    torch.int64: ("<i8", "I64"),
}
_DTYPE_OF = {code: dtype for dtype, codes in DTYPES.items() for code in codes}
_INTEGERS = tuple(dtype for dtype in DTYPES if not dtype.is_floating_point)


@dataclass(frozen=True)
class Shard:
    """What a file says of the array in it, and where its rows begin.

    Attributes
    ----------
    name
        For messages: the path or URL, and the name of the array where the file holds several.
    shape, dtype
        As the file says it.
    offset
        Of the first row, in bytes, where the rows lie in the file as they are.
    version
        Changes whenever the file does: its size, and when it was written.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    version: str


@dataclass(frozen=True)
class Span:
    """Rows of a matrix: how many, and after how many others."""

    begin: int
    rows: int


# Matrices, and where in each the rows are.
Rows = Generator[tuple[Tensor, list[Span]], None, None]


class Run(NamedTuple):
    """Rows [begin, end) of one shard, by their numbers in it."""

    shard: int
    begin: int
    end: int


class Array:
    """An array (N, d) or (N,) in any number of shards.

    Parameters
    ----------
    argument
        What messages call it: "features", which have two axes, or "labels", which have one.
    shards
        In the order of their rows.

    Raises
    ------
    ValueError, TypeError
        On shards that do not fit together or have a wrong shape or dtype, naming the file.
    """

    def __init__(self, argument: Argument, shards: Sequence[Shard]) -> None:
        self.shards = shards
        _check_shapes(argument, shards)
        _check_alike(shards, validate.FEATURE_DTYPES if argument == "features" else _INTEGERS)
        first = shards[0]
        self.dtype = _DTYPE_OF[first.dtype]
        self._row_shape = first.shape[1:]
        self.row_bytes = self.dtype.itemsize * int(np.prod(self._row_shape))
        rows = (shard.shape[0] for shard in shards)
        self._starts = list(itertools.accumulate(rows, initial=0))  # row of each shard, and the end

    @property
    def num_rows(self) -> int:
        """N."""
        return self._starts[-1]

    @property
    def num_columns(self) -> int:
        """d; 1 for labels."""
        return self._row_shape[0] if self._row_shape else 1

    @property
    def edges(self) -> list[int]:
        """Rows at which the array may be cut without a file, or a group of rows in it, read twice.

        They begin with 0 and end with N.
        """
        return self._starts

    def locate(self, row: int) -> tuple[str, int]:
        """Return the file that holds a row, and the number of the row in it."""
        shard = bisect.bisect_right(self._starts, row) - 1
        return self.shards[shard].name, row - self._starts[shard]

    def blocks(self, max_rows: int, begin: int = 0, end: int | None = None) -> list[Block]:
        """Cut rows [begin, end), all by default, into blocks of at most `max_rows`.

        Blocks are as equal as can be.
        """
        end = self.num_rows if end is None else end
        if begin == end:
            return []
        rows = -(-(end - begin) // -(-(end - begin) // max_rows))
        return [(first, min(first + rows, end)) for first in range(begin, end, rows)]

    def read_each(self, blocks: Sequence[Block]) -> Generator[Tensor, None, None]:
        """Yield the rows of each block, of blocks in the order of the rows; not to be written to.

        What was yielded may be overwritten by the next step.
        """
        for rows, _ in self.read_each_apart(blocks):
            yield rows

    def read_each_apart(self, blocks: Sequence[Block]) -> Rows:
        """Yield of each block a matrix that holds its rows, and where in it they are.

        As `read_each`; other rows, which mean nothing, may lie between them.
        """
        raise NotImplementedError

    def runs(self, begin: int, end: int) -> Iterator[Run]:
        """Where rows begin to end are, shard by shard."""
        index = bisect.bisect_right(self._starts, begin) - 1
        while begin < end:
            start = self._starts[index]
            stop = min(end, self._starts[index + 1])
            if stop > begin:
                yield Run(index, begin - start, stop - start)
            begin, index = stop, index + 1

    def _as_rows(self, content: Bytes) -> Tensor:
        numbers = validate.as_tensor("file", content).view(self.dtype)
        return numbers.view(-1, *self._row_shape)


class Filler:
    """Brings rows into memory, block after block."""

    def fill(self, begin: int, end: int, target: Bytes) -> None:
        """Write rows [begin, end) to an array of as many bytes."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of open files."""


class StreamedArray(Array):
    """An array that cannot be mapped: a thread brings in a block while the last one is in use."""

    def filler(self) -> Filler:
        """Return what brings in the rows of one pass."""
        raise NotImplementedError

    def read_each_apart(self, blocks: Sequence[Block]) -> Rows:
        """Yield the rows of each block, out of two buffers of the size of the longest."""
        if not blocks:
            return
        longest = max(end - begin for begin, end in blocks) * self.row_bytes
        buffers: list[NDArray[Any]] = [np.empty(longest, np.uint8) for _ in blocks[:2]]
        filler = self.filler()

        def bring(number: int) -> Bytes:
            begin, end = blocks[number]
            target: Bytes = buffers[number % 2][: (end - begin) * self.row_bytes]
            filler.fill(begin, end, target)
            return target

        with ThreadPoolExecutor(1) as reader:
            try:
                coming = reader.submit(bring, 0)
                for number, (begin, end) in enumerate(blocks):
                    content = coming.result()
                    if number + 1 < len(blocks):
                        coming = reader.submit(bring, number + 1)
                    yield self._as_rows(content), [Span(0, end - begin)]
            finally:
                reader.submit(filler.close)


def _check_shapes(argument: Argument, shards: Sequence[Shard]) -> None:
    num_axes = 2 if argument == "features" else 1
    for shard in shards:
        if len(shard.shape) != num_axes or 0 in shard.shape[1:]:
            wanted = "(N, d)" if num_axes == 2 else "(N,)"
            raise ValueError(f"{argument} {shard.name} has shape {shard.shape}, expected {wanted}")


def _check_alike(shards: Sequence[Shard], dtypes: Sequence[torch.dtype]) -> None:
    first = shards[0]
    wanted = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    for shard in shards:
        dtype = _DTYPE_OF.get(shard.dtype)
        if dtype is None or dtype not in dtypes:
            raise TypeError(
                f"{shard.name} has dtype {shard.dtype}, expected one of {', '.join(wanted)}, "
                "little-endian"
            )
        if dtype != _DTYPE_OF[first.dtype]:
            raise TypeError(
                f"{shard.name} has dtype {shard.dtype}, expected {first.dtype} as in {first.name}"
            )
        if shard.shape[1:] != first.shape[1:]:
            raise ValueError(
                f"{shard.name} has shape {shard.shape}, expected (N, {first.shape[1]}) as in "
                f"{first.name}"
            )
