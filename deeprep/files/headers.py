"""What .npy and .safetensors files say of the array in them: local files, and the bytes of others.

Of files elsewhere only the first bytes are there, and the size.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from deeprep.base import strict_json
from deeprep.files.arrays import DTYPES, Argument, Shard

__all__ = ["Alike", "open_npy", "open_safetensors", "read_npy", "read_safetensors"]

# By its header, a file with a header of the usual length and where its array ends.
Alike = dict[bytes, tuple[Shard, int]]
Fetch = Callable[[int, int], bytes]  # bytes [begin, end) of a file

NPY_HEADER_BYTES = 128  # of nearly every .npy file
_ITEM_BYTES = {codes[1]: dtype.itemsize for dtype, codes in DTYPES.items()}
_MAX_HEADER_BYTES = 10**8  # as safetensors itself has it


def open_npy(argument: Argument, path: Path, alike: Alike) -> Shard:
    """Read the header of a .npy file, or find in `alike` what another with the same bytes says.

    To have NumPy read the headers of many small files takes longer than their contents.
    """
    with path.open("rb", buffering=0) as file:
        header = file.read(NPY_HEADER_BYTES)
        status = os.fstat(file.fileno())
    size, version = status.st_size, _version(status)
    if header in alike:
        shard, end = alike[header]
        if size == end:
            return Shard(str(path), shard.shape, shard.dtype, shard.offset, version)
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
    _check_npy(argument, str(path), array, array.flags.c_contiguous, size, end)
    shard = Shard(str(path), array.shape, array.dtype.str, offset, version)
    if offset == len(header):
        alike[header] = shard, end
    return shard


def read_npy(argument: Argument, name: str, size: int, version: str, fetch: Fetch) -> Shard:
    """Read the header of a .npy file of which `fetch` gives bytes."""
    header = fetch(0, min(size, NPY_HEADER_BYTES))
    try:
        file = io.BytesIO(header)
        major, minor = np.lib.format.read_magic(file)
        offset = _npy_header_bytes(header)
        if offset > len(header):
            file = io.BytesIO(fetch(0, min(size, offset)))
            file.seek(8)
        reading = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, is_fortran, dtype = reading[major, minor](file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
    except OSError:
        raise
    except Exception as error:  # as in open_npy
        raise ValueError(
            f"{argument} {name} is cut short or no .npy array that can be read ({error})"
        ) from error
    array = np.broadcast_to(np.empty((), dtype), shape)
    end = offset + array.nbytes
    _check_npy(argument, name, array, not is_fortran or min(shape, default=0) <= 1, size, end)
    return Shard(name, shape, dtype.str, offset, version)


def _check_npy(
    argument: Argument, name: str, array: Any, is_by_row: bool, size: int, end: int
) -> None:
    if size != end:
        raise ValueError(
            f"{argument} {name} has {size} bytes, expected {end} for shape {array.shape} and dtype "
            f"{array.dtype.str}: its header is damaged, or something follows the array"
        )
    if not is_by_row:
        # Read by blocks of rows it would take ten times as long.
        raise ValueError(
            f"{argument} {name} is stored column by column (Fortran order), expected row by row; "
            "convert it: np.save(new_path, np.ascontiguousarray(np.load(path, mmap_mode='r')))"
        )


def _npy_header_bytes(header: bytes) -> int:
    """Return how long a header of NumPy's, of which this is the beginning, says that it is."""
    end = 10 if header[6] == 1 else 12  # of magic, version and length
    return end + int.from_bytes(header[8:end], "little")


def open_safetensors(argument: Argument, path: Path, tensor: str | None, num_axes: int) -> Shard:
    """Read the header of a safetensors file, which has `tensor` or one array of so many axes."""
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
        version = _version(os.fstat(file.fileno()))
    return _find(argument, str(path), tensor, num_axes, header, 8 + header_bytes, version)


def read_safetensors(
    argument: Argument,
    name: str,
    tensor: str | None,
    num_axes: int,
    size: int,
    version: str,
    fetch: Fetch,
) -> Shard:
    """Read the header of a safetensors file of which `fetch` gives bytes."""
    try:
        header_bytes = int.from_bytes(fetch(0, min(size, 8)), "little")
        if not 2 <= header_bytes <= min(size - 8, _MAX_HEADER_BYTES):
            raise ValueError(f"a header of {header_bytes} bytes in a file of {size}")
        header = strict_json.parse(fetch(8, 8 + header_bytes), Path(name))
        for key, entry in header.items():
            if key != "__metadata__":
                begin, end = entry["data_offsets"]
                items = math.prod(entry["shape"])
                wanted = items * _ITEM_BYTES.get(entry["dtype"], 0)
                if not 0 <= begin <= end <= size - 8 - header_bytes or wanted not in (
                    0,
                    end - begin,
                ):
                    raise ValueError(f"{key} at bytes {begin} to {end}")
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"{argument} {name} is cut short or no safetensors file ({error})"
        ) from error
    return _find(argument, name, tensor, num_axes, header, 8 + header_bytes, version)


def _find(
    argument: Argument,
    name: str,
    tensor: str | None,
    num_axes: int,
    header: dict[str, Any],
    data_begin: int,
    version: str,
) -> Shard:
    """Return where the array is that a header has under a name, or the only one of its axes."""
    header.pop("__metadata__", None)
    shapes = {key: tuple(each["shape"]) for key, each in header.items()}
    fitting = [key for key, shape in shapes.items() if len(shape) == num_axes]
    if tensor is None and len(fitting) == 1:
        tensor = fitting[0]
    if tensor not in header:
        listed = ", ".join(f"{key} {shape}" for key, shape in shapes.items()) or "nothing"
        wanted = "(N, d)" if num_axes == 2 else "(N,)"
        wanted = f"one array {wanted}, or {name}:NAME" if tensor is None else repr(tensor)
        raise ValueError(f"{argument} {name} holds {listed}, expected {wanted}")
    found = header[tensor]
    offset = data_begin + found["data_offsets"][0]
    return Shard(f"{name}:{tensor}", shapes[tensor], found["dtype"], offset, version)


def _version(status: os.stat_result) -> str:
    return f"{status.st_size} bytes of {status.st_mtime_ns}"
