"""One array in any number of files, NumPy's .npy or safetensors, read in blocks of rows.

The files, shards, hold the rows one after the other; whoever asks for rows need not know which. The
features and the labels of a data set are two such arrays, and need not be cut at the same rows.
"""

from __future__ import annotations

import bisect
import glob
import itertools
import json
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deeprep import _validate

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
    argument : what messages call it: "features", which have two axes, or "labels", which have one.
    source : a .npy file in C order; a .safetensors file, ``file.safetensors:name`` where it holds
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
    >>> from deeprep._shards import ArrayFiles
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for shard in range(2):
    ...         np.save(f"{folder}/x-{shard}.npy", np.full((2, 3), shard, np.float32))
    ...     array = ArrayFiles("features", f"{folder}/x-*.npy")
    ...     array.num_rows, array.read(1, 3)[:, 0].tolist()
    (4, [0.0, 1.0])
    """

    def __init__(self, argument: Literal["features", "labels"], source: str | Path) -> None:
        num_axes = 2 if argument == "features" else 1
        self._shards = [_open(argument, path, num_axes) for path in _paths(argument, str(source))]
        _check_shards(
            self._shards, _validate.FEATURE_DTYPES if argument == "features" else _INTEGERS
        )
        first = self._shards[0]
        self.dtype = _DTYPE_OF[first.dtype]
        self._row_shape = first.shape[1:]
        self.row_bytes = self.dtype.itemsize * int(np.prod(self._row_shape))
        rows = (shard.shape[0] for shard in self._shards)
        self._starts = list(itertools.accumulate(rows, initial=0))  # row of each shard, and the end

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

    def blocks(self, max_rows: int, min_rows: int = 1) -> Iterator[tuple[int, int]]:
        """Cut the rows into (begin, end) of at most `max_rows`, at the ends of the shards.

        Where fewer than `min_rows` are left before such an end, that many are taken from beyond.
        """
        begin = 0
        while begin < self.num_rows:
            left = self._starts[bisect.bisect_right(self._starts, begin)] - begin
            rows = -(-left // -(-left // max_rows))  # blocks of a shard as equal as can be
            end = min(begin + max(rows, min(min_rows, max_rows)), self.num_rows)
            yield begin, end
            begin = end

    def read(self, begin: int, end: int) -> Tensor:
        """Return rows begin to end, not to be written to: mapped if in one shard, else copied.

        What is mapped leaves the resident memory with the last reference to the tensor.
        """
        shape = (end - begin, *self._row_shape)
        pieces = list(self._pieces(begin, end))
        if len(pieces) == 1 and pieces[0][1] % self.dtype.itemsize == 0:
            content = _map(*pieces[0])
        else:
            content = torch.empty((end - begin) * self.row_bytes, dtype=torch.uint8)
            filled = 0
            for path, offset, size in pieces:
                _copy(path, offset, content[filled : filled + size])
                filled += size
        return content.view(self.dtype).view(shape)

    def prefetch(self, begin: int, end: int) -> None:
        """Let the system begin to read rows that will be asked for next, if it can."""
        if hasattr(os, "posix_fadvise"):
            for path, offset, size in self._pieces(begin, end):
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), offset, size, os.POSIX_FADV_WILLNEED)

    def _pieces(self, begin: int, end: int) -> Iterator[tuple[Path, int, int]]:
        """Path, offset and size of the bytes of rows begin to end, shard by shard."""
        index = bisect.bisect_right(self._starts, begin) - 1
        while begin < end:
            shard, start = self._shards[index], self._starts[index]
            stop = min(end, self._starts[index + 1])
            if stop > begin:
                offset = shard.offset + (begin - start) * self.row_bytes
                yield shard.path, offset, (stop - begin) * self.row_bytes
            begin, index = stop, index + 1


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
            raise ValueError(f"{argument} {each} must be a .npy or a .safetensors file")
    return [(Path(each), tensor) for each in sorted(found, key=_natural)]


def _natural(path: str) -> tuple[list[str | int], str]:
    """Sort key under which 2 comes before 10, and 02 beside it."""
    parts = re.split(r"(\d+)", path)  # text and digits in turn
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path


def _open(argument: str, source: tuple[Path, str | None], num_axes: int) -> _Shard:
    path, tensor = source
    if path.suffix == ".safetensors":
        shard = _open_safetensors(argument, path, tensor, num_axes)
    elif tensor is not None:
        raise ValueError(f"{argument} {path} is no safetensors file that could hold {tensor!r}")
    else:
        shard = _open_npy(argument, path)
    if len(shard.shape) != num_axes or 0 in shard.shape[1:]:
        wanted = "(N, d)" if num_axes == 2 else "(N,)"
        raise ValueError(f"{argument} {shard.name} has shape {shard.shape}, expected {wanted}")
    return shard


def _open_npy(argument: str, path: Path) -> _Shard:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        raise ValueError(
            f"{argument} {path} is cut short or no .npy array that can be mapped ({error})"
        ) from error
    if not array.flags.c_contiguous:
        # Read by blocks of rows it would take ten times as long.
        raise ValueError(
            f"{argument} {path} is stored column by column (Fortran order), expected row by row; "
            "convert it: np.save(new_path, np.ascontiguousarray(np.load(path, mmap_mode='r')))"
        )
    # The offset of a memmap without elements means nothing.
    offset = array.offset if isinstance(array, np.memmap) else 0
    return _Shard(path, str(path), array.shape, array.dtype.str, offset)


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
        header = json.loads(file.read(header_bytes))
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


# -------------------------------------------------------------------- reading them


def _map(path: Path, offset: int, size: int) -> Tensor:
    """Map bytes of a file into a tensor of uint8."""
    begin = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as file:
        try:
            mapped = mmap.mmap(
                file.fileno(),
                offset + size - begin,
                # All pages at once where the system can: that is cheaper than fault by fault.
                flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0),
                prot=mmap.PROT_READ,
                offset=begin,
            )
        except ValueError as error:
            raise ValueError(f"{path} became shorter while it was read") from error
    return _validate.as_tensor("file", np.frombuffer(mapped, np.uint8, size, offset - begin))


def _copy(path: Path, offset: int, target: Tensor) -> None:
    """Fill a tensor of uint8 with bytes of a file."""
    view = target.numpy().data
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while view.nbytes > 0:
            count = file.readinto(view)
            if not count:
                raise ValueError(f"{path} became shorter while it was read")
            view = view[count:]
