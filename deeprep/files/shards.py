"""One array in any number of local files, NumPy's .npy or safetensors, mapped block by block."""

from __future__ import annotations

import itertools
import os
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from torch import Tensor

from deeprep.files import mapped_rows
from deeprep.files.arrays import Argument, Array, Block, Rows, Shard, Span
from deeprep.files.headers import Alike, open_npy, open_safetensors
from deeprep.files.mapped_rows import Piece
from deeprep.files.sources import Found, find_local

__all__ = ["ArrayFiles"]


class ArrayFiles(Array):
    """An array (N, d) or (N,) in one file or in many, that is read block by block.

    Parameters
    ----------
    argument
        What messages call it: "features", which have two axes, or "labels", which have one.
    source
        A .npy file in C order; a .safetensors file, ``file.safetensors:name`` where it holds
        several arrays of so many axes; a directory or a glob of such files, in natural order
        (shard-2 before shard-10). Or what `find_local` has found of one.

    Raises
    ------
    FileNotFoundError
        Where the source is nowhere or matches no file.
    ValueError, TypeError
        On a file that is not what its name says or is cut short, and on shards that do not fit
        together or have a wrong shape or dtype, naming the file.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from deeprep.files.shards import ArrayFiles
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for shard in range(2):
    ...         np.save(f"{folder}/x-{shard}.npy", np.full((2, 3), shard, np.float32))
    ...     array = ArrayFiles("features", f"{folder}/x-*.npy")
    ...     array.num_rows, array.read(1, 3)[:, 0].tolist()
    (4, [0.0, 1.0])
    """

    def __init__(self, argument: Argument, source: str | Path | Found) -> None:
        found = source if isinstance(source, Found) else find_local(argument, str(source))
        alike: Alike = {}
        self._paths = [Path(path) for path in found.paths]
        super().__init__(
            argument, [_open(argument, path, found.array, alike) for path in self._paths]
        )
        self._buffer = np.empty(0, np.uint8)  # kept: fresh pages cost more than what is copied

    def read_each(self, blocks: Sequence[Block]) -> Generator[Tensor, None, None]:
        """Yield the rows of each block, see `read`."""
        for block in blocks:
            yield self.read(*block)

    def read_each_apart(self, blocks: Sequence[Block]) -> Rows:
        """Yield the rows of each block, see `read_apart`; the system reads the next meanwhile."""
        with ThreadPoolExecutor(1) as reader:
            if blocks:
                reader.submit(self.prefetch, *blocks[0])
            for block, following in itertools.zip_longest(blocks, blocks[1:]):
                rows, spans = self.read_apart(*block)
                if following is not None:
                    reader.submit(self.prefetch, *following)
                found = [(rows, spans)]
                del rows, spans  # or they would stay mapped beside the next ones
                yield found.pop()

    def read(self, begin: int, end: int) -> Tensor:
        """Return rows begin to end, not to be written to: mapped if in one shard, else copied.

        What is mapped leaves the resident memory with the last reference to the tensor.
        """
        pieces = self._pieces(begin, end)
        if len(pieces) == 1 and pieces[0].offset % self.dtype.itemsize == 0:
            return self._as_rows(mapped_rows.map_one(pieces[0]))
        target = np.empty((end - begin) * self.row_bytes, np.uint8)
        return self._as_rows(mapped_rows.copy(pieces, target))

    def read_apart(self, begin: int, end: int) -> tuple[Tensor, list[Span]]:
        """Return a matrix with rows begin to end, and where in it they are; not to be written to.

        Rows of several shards are mapped as well, where the system can, with rows between them that
        mean nothing. What had to be copied is overwritten by the next call.
        """
        pieces = self._pieces(begin, end)
        mapped = mapped_rows.map_side_by_side(pieces, self.row_bytes, self.dtype.itemsize)
        if mapped is not None:
            content, spans = mapped
            return self._as_rows(content), spans
        size = (end - begin) * self.row_bytes
        if self._buffer.size < size:
            self._buffer = np.empty(size, np.uint8)
        content = mapped_rows.copy(pieces, self._buffer)
        return self._as_rows(content), [Span(0, end - begin)]

    def prefetch(self, begin: int, end: int) -> None:
        """Let the system begin to read rows that will be asked for next, if it can."""
        if hasattr(os, "posix_fadvise"):
            for piece in self._pieces(begin, end):
                with piece.path.open("rb", buffering=0) as file:
                    os.posix_fadvise(
                        file.fileno(), piece.offset, piece.size, os.POSIX_FADV_WILLNEED
                    )

    def _pieces(self, begin: int, end: int) -> list[Piece]:
        """Where the bytes of rows begin to end are, shard by shard."""
        return [
            Piece(
                self._paths[run.shard],
                self.shards[run.shard].offset + run.begin * self.row_bytes,
                (run.end - run.begin) * self.row_bytes,
            )
            for run in self.runs(begin, end)
        ]


def _open(argument: Argument, path: Path, name: str | None, alike: Alike) -> Shard:
    if path.suffix == ".safetensors":
        return open_safetensors(argument, path, name, 2 if argument == "features" else 1)
    return open_npy(argument, path, alike)
