"""Bytes of files as the rows of one matrix: mapped where they lie, or copied into a buffer.

A batch of rows from many files is one matrix without a copy: the files are mapped one after the
other into one range of addresses, each at the first page that keeps the distance of all rows a
multiple of the length of a row. The few rows between two files belong to neither.
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deeprep.base.paths import errors_naming
from deeprep.files.arrays import Bytes, Span

# Below, a file costs less to copy than to map.
_MIN_MAPPED_BYTES = 2**18
_MAX_MAPPED_PIECES = 2**14  # of the 65,530 mappings that Linux grants a process
# Where an address and its offset in the file are equal modulo this, the system can map as much at
# once, if it also caches the file in such pages: a tenth of the cost.
_HUGE_PAGE = 2**21
_MAP_FIXED = 0x10  # <asm-generic/mman-common.h>, which Python's mmap has no name for


@dataclass(frozen=True)
class Piece:
    """Bytes of a file: whole rows, one after the other."""

    path: Path
    offset: int
    size: int


def map_one(piece: Piece) -> Bytes:
    """Map a piece, not to be written to; it is unmapped with the last reference to the array.

    Raises
    ------
    ValueError
        Where the file has become shorter.
    """
    begin = _page_of(piece)
    with errors_naming(piece.path), piece.path.open("rb", buffering=0) as file:
        try:
            mapped = mmap.mmap(
                file.fileno(),
                piece.offset + piece.size - begin,
                flags=mmap.MAP_SHARED,
                prot=mmap.PROT_READ,
                offset=begin,
            )
        except ValueError as error:
            raise _became_shorter(piece) from error
    return np.frombuffer(mapped, np.uint8, piece.size, piece.offset - begin)


def map_side_by_side(
    pieces: Sequence[Piece], row_bytes: int, item_bytes: int
) -> tuple[Bytes, list[Span]] | None:
    """Map pieces into one range of addresses: a matrix, not to be written to, and their rows in it.

    What lies in the rows between them means nothing, but can be read.

    Parameters
    ----------
    pieces
        Of files, each of whole rows.
    row_bytes, item_bytes
        Of a row, and of a number in it.

    Returns
    -------
    bytes (R * row_bytes,), R >= all rows of the pieces, and a span for each piece; None where that
    cannot be done, or costs more than a copy: on a system other than 64-bit Linux, for short
    pieces, and where offsets and rows do not fit together.

    Raises
    ------
    ValueError
        Where a file has become shorter.
    OSError
        Where the system cannot map.
    """
    map_at = _map_at()
    if map_at is None:
        return None
    begins = _addresses(pieces, row_bytes)
    if begins is None or any(begin % item_bytes for begin in begins):
        return None
    first, end = begins[0], begins[-1] + pieces[-1].size
    # Owns the addresses: whatever is mapped over them goes when it does.
    reserved = mmap.mmap(
        -1, end + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ
    )
    content = np.frombuffer(reserved, np.uint8)
    content = content[-content.ctypes.data % _HUGE_PAGE :]
    base = content.ctypes.data
    for piece, begin in zip(pieces, begins, strict=True):
        page = _page_of(piece)
        within = piece.offset - page
        with errors_naming(piece.path), piece.path.open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size < piece.offset + piece.size:
                raise _became_shorter(piece)
            map_at(base + begin - within, piece.size + within, file.fileno(), page)
    rows = (end - first) // row_bytes
    spans = [
        Span((begin - first) // row_bytes, piece.size // row_bytes)
        for piece, begin in zip(pieces, begins, strict=True)
    ]
    return content[first : first + rows * row_bytes], spans


def copy(pieces: Sequence[Piece], target: Bytes) -> Bytes:
    """Copy pieces to the beginning of an array, one after the other, and return that beginning.

    Raises
    ------
    ValueError
        Where a file has become shorter.
    """
    filled = 0
    for piece in pieces:
        view = target[filled : filled + piece.size].data
        with errors_naming(piece.path), piece.path.open("rb", buffering=0) as file:
            file.seek(piece.offset)
            while view.nbytes > 0:
                count = file.readinto(view)
                if not count:
                    raise _became_shorter(piece)
                view = view[count:]
        filled += piece.size
    return target[:filled]


def _became_shorter(piece: Piece) -> ValueError:
    return ValueError(f"{piece.path} became shorter while it was read")


def _page_of(piece: Piece) -> int:
    """Offset in the file of the page in which a piece begins."""
    return piece.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY


def _addresses(pieces: Sequence[Piece], row_bytes: int) -> list[int] | None:
    """Where each piece begins, from 0: in huge pages, in pages, or None where a copy costs less."""
    size = sum(piece.size for piece in pieces)
    if size < _MIN_MAPPED_BYTES * len(pieces) or len(pieces) > _MAX_MAPPED_PIECES:
        return None
    for page in (_HUGE_PAGE, mmap.PAGESIZE):
        begins = _addresses_in_step(pieces, row_bytes, page)
        if begins is not None and begins[-1] + pieces[-1].size - begins[0] <= 2 * size:
            return begins
    return None


def _addresses_in_step(pieces: Sequence[Piece], row_bytes: int, page: int) -> list[int] | None:
    """Where each piece begins: behind the one before, in step with the pages and with the rows.

    With o the piece's offset, the least address a on a page behind the piece before that has
    a = o (mod page) and a = first (mod row_bytes). There is none unless gcd(page, row_bytes)
    divides o - first.
    """
    first = pieces[0].offset % page
    common = math.gcd(page, row_bytes)
    pages_in_rows, pages_per_period = page // common, row_bytes // common
    inverse = pow(pages_in_rows, -1, pages_per_period)
    begins: list[int] = []
    end = 0
    for piece in pieces:
        within = piece.offset % page
        if (first - within) % common:
            return None
        wanted = (first - within) // common * inverse  # page number, modulo pages_per_period
        free = -(-end // mmap.PAGESIZE) * mmap.PAGESIZE + within % mmap.PAGESIZE
        least = -(-(free - within) // page)
        number = least + (wanted - least) % pages_per_period
        begins.append(number * page + within)
        end = begins[-1] + piece.size
    return begins


@functools.cache
def _map_at() -> Callable[[int, int, int, int], None] | None:
    """Return a function that maps `size` bytes of a file at an address; None where there is none.

    Python's mmap leaves the address to the system.
    """
    if sys.platform != "linux" or sys.maxsize < 2**32:
        return None
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]

    def map_at(address: int, size: int, descriptor: int, offset: int) -> None:
        found = function(
            address, size, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, descriptor, offset
        )
        if found != address:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))

    return map_at
