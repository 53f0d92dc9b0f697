"""One array in any number of files, NumPy's .npy or safetensors, read in blocks of rows.

The files, shards, hold the rows one after the other; to read rows, one need not know in which. The
features and the labels of a data set are two such arrays, and need not be cut at the same rows.
"""

from __future__ import annotations

import bisect
import glob
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deeprep.base import strict_json, validate
from deeprep.base.paths import natural_order
from deeprep.files import mapped_rows
from deeprep.files.mapped_rows import Piece, Span

_SUFFIXES = (".npy", ".safetensors")
_DTYPES = {
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
_DTYPE_OF = {code: dtype for dtype, codes in _DTYPES.items() for code in codes}
_INTEGERS = tuple(dtype for dtype in _DTYPES if not dtype.is_floating_point)
_NPY_HEADER_BYTES = 128  # of nearly every .npy file


@dataclass(frozen=True)
class _Shard:
    """Where an array lies in a file, its rows one after the other from byte `offset` on."""

    path: Path
    name: str  # for messages: the path, and in safetensors the tensor
    shape: tuple[int, ...]
    dtype: str  # as the file says it
    offset: int


class ArrayFiles:
    """An array (N, d) or (N,) in one file or in many, that is read block by block.

    Parameters
    ----------
    argument
        What messages call it: "features", which have two axes, or "labels", which have one.
    source
        A .npy file in C order; a .safetensors file, ``file.safetensors:name`` where it holds
        several arrays of so many axes; a directory or a glob of such files, in natural order
        (shard-2 before shard-10).

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

    def __init__(self, argument: Literal["features", "labels"], source: str | Path) -> None:
        num_axes = 2 if argument == "features" else 1
        alike: dict[bytes, tuple[_Shard, int]] = {}
        self._shards = [
            _open(argument, path, num_axes, alike) for path in _paths(argument, str(source))
        ]
        _check_shards(
            self._shards, validate.FEATURE_DTYPES if argument == "features" else _INTEGERS
        )
        first = self._shards[0]
        self.dtype = _DTYPE_OF[first.dtype]
        self._row_shape = first.shape[1:]
        self.row_bytes = self.dtype.itemsize * int(np.prod(self._row_shape))
        rows = (shard.shape[0] for shard in self._shards)
        self._starts = list(itertools.accumulate(rows, initial=0))  # row of each shard, and the end
        self._buffer = np.empty(0, np.uint8)  # kept: fresh pages cost more than what is copied

    @property
    def num_rows(self) -> int:
        """N."""
        return self._starts[-1]

    @property
    def num_columns(self) -> int:
        """d; 1 for labels."""
        return self._row_shape[0] if self._row_shape else 1

    def locate(self, row: int) -> tuple[str, int]:
        """Return the file that holds a row, and the number of the row in it."""
        shard = bisect.bisect_right(self._starts, row) - 1
        return self._shards[shard].name, row - self._starts[shard]

    def blocks(self, max_rows: int) -> list[tuple[int, int]]:
        """Cut the rows into (begin, end) of at most `max_rows`, as equal as can be."""
        if self.num_rows == 0:
            return []
        rows = -(-self.num_rows // -(-self.num_rows // max_rows))
        return [
            (begin, min(begin + rows, self.num_rows)) for begin in range(0, self.num_rows, rows)
        ]

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

    def _as_rows(self, content: mapped_rows.Bytes) -> Tensor:
        numbers = validate.as_tensor("file", content).view(self.dtype)
        return numbers.view(-1, *self._row_shape)

    def _pieces(self, begin: int, end: int) -> list[Piece]:
        """Where the bytes of rows begin to end are, shard by shard."""
        pieces = []
        index = bisect.bisect_right(self._starts, begin) - 1
        while begin < end:
            shard, start = self._shards[index], self._starts[index]
            stop = min(end, self._starts[index + 1])
            if stop > begin:
                offset = shard.offset + (begin - start) * self.row_bytes
                pieces.append(Piece(shard.path, offset, (stop - begin) * self.row_bytes))
            begin, index = stop, index + 1
        return pieces


def _paths(argument: str, source: str) -> list[tuple[Path, str | None]]:
    """Files of a source, in natural order, each with the name of a tensor if one was given."""
    source = os.path.expanduser(source)
    path, tensor = source, None
    if not os.path.exists(source) and ".safetensors:" in source:
        path, _, tensor = source.partition(".safetensors:")
        path += ".safetensors"
    if os.path.isdir(path):
        found = [
            os.path.join(path, name)
            for name in os.listdir(path)
            if name.endswith(_SUFFIXES) and not name.startswith(".")
        ]
        missing = f"is a directory without {' or '.join(_SUFFIXES)} files"
    elif os.path.exists(path):
        found, missing = [path], ""
    else:
        found = glob.glob(path, recursive=True)
        missing = "matches no file" if glob.has_magic(path) else "does not exist"
    if not found:
        raise FileNotFoundError(f"{argument} {source} {missing}")
    for each in found:
        if not each.endswith(_SUFFIXES):
            raise ValueError(f"{argument} is {each}, expected a .npy or a .safetensors file")
    return [(Path(each), tensor) for each in sorted(found, key=natural_order)]


def _open(
    argument: str,
    source: tuple[Path, str | None],
    num_axes: int,
    alike: dict[bytes, tuple[_Shard, int]],
) -> _Shard:
    path, tensor = source
    if path.suffix == ".safetensors":
        shard = _open_safetensors(argument, path, tensor, num_axes)
    elif tensor is not None:
        raise ValueError(
            f"{argument} {path} is not a safetensors file, expected one that holds {tensor!r}"
        )
    else:
        shard = _open_npy(argument, path, alike)
    if len(shard.shape) != num_axes or 0 in shard.shape[1:]:
        wanted = "(N, d)" if num_axes == 2 else "(N,)"
        raise ValueError(f"{argument} {shard.name} has shape {shard.shape}, expected {wanted}")
    return shard


def _open_npy(argument: str, path: Path, alike: dict[bytes, tuple[_Shard, int]]) -> _Shard:
    """Read the header of a .npy file, or find in `alike` what another with the same bytes says.

    `alike` holds, by its header, a file with a header of the usual length, and where its array
    ends: to have NumPy read the headers of many small files takes longer than their contents.
    """
    with path.open("rb", buffering=0) as file:
        header = file.read(_NPY_HEADER_BYTES)
        size = os.fstat(file.fileno()).st_size
    if header in alike:
        shard, end = alike[header]
        if size == end:
            return _Shard(path, str(path), shard.shape, shard.dtype, shard.offset)
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # NumPy has Python parse the header, with any error that Python has
        raise ValueError(
            f"{argument} {path} is cut short or no .npy array that can be mapped ({error})"
        ) from error
    # Not the array's, which means nothing where there are no elements.
    offset = _npy_header_bytes(header)
    end = offset + array.nbytes
    if size != end:
        raise ValueError(
            f"{argument} {path} has {size} bytes, expected {end} for shape {array.shape} and dtype "
            f"{array.dtype.str}: its header is damaged, or something follows the array"
        )
    if not array.flags.c_contiguous:
        # Read by blocks of rows it would take ten times as long.
        raise ValueError(
            f"{argument} {path} is stored column by column (Fortran order), expected row by row; "
            "convert it: np.save(new_path, np.ascontiguousarray(np.load(path, mmap_mode='r')))"
        )
    shard = _Shard(path, str(path), array.shape, array.dtype.str, offset)
    if offset == len(header):
        alike[header] = shard, end
    return shard


def _npy_header_bytes(header: bytes) -> int:
    """Return how long a header of NumPy's, of which this is the beginning, says that it is."""
    end = 10 if header[6] == 1 else 12  # of magic, version and length
    return end + int.from_bytes(header[8:end], "little")


def _open_safetensors(argument: str, path: Path, tensor: str | None, num_axes: int) -> _Shard:
    try:
        with safe_open(path, framework="np"):  # checks the header and the length of the file
            pass
    except SafetensorError as error:
        raise ValueError(
            f"{argument} {path} is cut short or no safetensors file ({error})"
        ) from error
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = strict_json.parse(file.read(header_bytes), path)
    header.pop("__metadata__", None)
    shapes = {name: tuple(each["shape"]) for name, each in header.items()}
    fitting = [name for name, shape in shapes.items() if len(shape) == num_axes]
    if tensor is None and len(fitting) == 1:
        tensor = fitting[0]
    if tensor not in header:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "nothing"
        wanted = "(N, d)" if num_axes == 2 else "(N,)"
        wanted = f"one array {wanted}, or {path}:NAME" if tensor is None else repr(tensor)
        raise ValueError(f"{argument} {path} holds {listed}, expected {wanted}")
    found = header[tensor]
    offset = 8 + header_bytes + found["data_offsets"][0]
    return _Shard(path, f"{path}:{tensor}", shapes[tensor], found["dtype"], offset)


def _check_shards(shards: list[_Shard], dtypes: Sequence[torch.dtype]) -> None:
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
