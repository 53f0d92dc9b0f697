"""One array in any number of .npy or safetensors files in a store that fsspec knows.

A file is read in ranges of bytes, several at a time: one connection is seldom as fast as the
network. From a web server that does not serve ranges it is read from its beginning on.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from deeprep.files.arrays import Argument, Bytes, Filler, Shard, StreamedArray
from deeprep.files.headers import read_npy, read_safetensors
from deeprep.files.sources import SAFETENSORS, Found, errors_of_store, suffix_of

__all__ = ["CONNECTIONS", "RANGE_BYTES", "RemoteArray", "RemoteFile", "open_files"]

# Together 32 MiB under way. Requests to a bucket take some 50 ms before the first byte, and a
# connection then gives some 50 to 100 MB/s.
CONNECTIONS = 8
RANGE_BYTES = 2**22


class RemoteFile(io.RawIOBase):
    """A file in a store, whose bytes can be asked for in any order.

    Attributes
    ----------
    url
        For messages.
    size
        In bytes.
    version
        Changes whenever the file does, as far as the store says it.
    """

    def __init__(self, store: Any, path: str, url: str, about: dict[str, Any]) -> None:
        self.url = url
        self._store, self._path = store, path
        if about.get("size") is None:  # as in the listing of a web server
            with errors_of_store(url):
                about = store.info(path)
        if about.get("size") is None:
            raise ValueError(f"{url} has no size that its server tells, expected one")
        self.size = int(about["size"])
        marks = (about.get(key) for key in ("ETag", "etag", "LastModified", "Last-Modified"))
        times = (about.get(key) for key in ("mtime", "updated", "created", "last_commit"))
        self.version = " ".join(map(str, (self.size, *filter(None, (*marks, *times)))))
        self._position = 0

    def fetch(self, begin: int, end: int) -> bytes:
        """Return bytes [begin, end).

        Raises
        ------
        OSError
            Where the store fails.
        ValueError
            Where it has fewer.
        """
        with errors_of_store(self.url):
            content: bytes = self._store.cat_file(self._path, start=begin, end=end)
        _check_length(self.url, len(content), end - begin)
        return content

    def fill(self, begin: int, target: Bytes, pool: ThreadPoolExecutor) -> None:
        """Write the bytes from `begin` on to an array, several ranges at a time."""

        def bring(at: int) -> None:
            part = target[at : at + RANGE_BYTES]
            part[:] = np.frombuffer(self.fetch(begin + at, begin + at + len(part)), np.uint8)

        for _ in pool.map(bring, range(0, len(target), RANGE_BYTES)):
            pass

    # ------------------------------------------------ as a file, for pyarrow

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set and return the position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes, as many as asked for unless the file ends."""
        rest = max(0, self.size - self._position)
        count = rest if size is None or size < 0 else min(size, rest)
        target = np.empty(count, np.uint8)
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            self.fill(self._position, target, pool)
        self._position += count
        return target.tobytes()


class StreamedFile(RemoteFile):
    """A file of a web server that serves it only from its beginning on."""

    _stream: Any = None
    _at = 0

    def fetch(self, begin: int, end: int) -> bytes:
        """Return bytes [begin, end); what lies before them is loaded too."""
        with errors_of_store(self.url):
            if self._stream is None or begin < self._at:
                self.close_stream()
                self._stream = self._store.open(self._path, "rb", block_size=0)
            while self._at < begin:
                self._at += len(self._next(min(RANGE_BYTES, begin - self._at)))
            parts = []
            while self._at < end:
                parts.append(self._next(end - self._at))
                self._at += len(parts[-1])
        return b"".join(parts)

    def fill(self, begin: int, target: Bytes, pool: ThreadPoolExecutor) -> None:
        """Write the bytes from `begin` on to an array, one range after the other."""
        for at in range(0, len(target), RANGE_BYTES):
            part = target[at : at + RANGE_BYTES]
            part[:] = np.frombuffer(self.fetch(begin + at, begin + at + len(part)), np.uint8)

    def close_stream(self) -> None:
        """Give up the connection."""
        if self._stream is not None:
            self._stream.close()
        self._stream, self._at = None, 0

    def _next(self, count: int) -> bytes:
        content: bytes = self._stream.read(count)
        _check_length(self.url, min(len(content), 1), 1)
        return content


def open_files(found: Found) -> list[RemoteFile]:
    """Return the files of a source in a store."""
    kind = RemoteFile
    first = RemoteFile(found.store, found.paths[0], found.url(0), found.about[0])
    if first.url.startswith(("http://", "https://")) and not _serves_ranges(found, first):
        kind = StreamedFile
    return [
        kind(found.store, path, found.url(i), about)
        for i, (path, about) in enumerate(zip(found.paths, found.about, strict=True))
    ]


def _serves_ranges(found: Found, first: RemoteFile) -> bool:
    """Whether a web server gives a range where one is asked for, and not all of the file."""
    if found.about[0].get("partial") is False:
        return False
    if first.size < 2:
        return True
    with (
        errors_of_store(first.url),
        found.store.open(found.paths[0], "rb", block_size=2, cache_type="none") as file,
    ):
        file.seek(1)
        try:
            return len(file.read(1)) == 1
        except ValueError:  # fsspec's, of a server that sent the whole file
            return False


def _check_length(url: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise ValueError(f"{url} became shorter while it was read, or its download was cut short")


class RemoteArray(StreamedArray):
    """An array (N, d) or (N,) in .npy or safetensors files of a store, read once, in ranges.

    Parameters
    ----------
    argument
        What messages call it: "features" or "labels".
    found
        The files.

    Raises
    ------
    OSError
        Where the store fails, naming the URL.
    ValueError, TypeError
        On files that are not what their names say or do not fit together, naming the URL.
    """

    def __init__(self, argument: Argument, found: Found) -> None:
        self._files = open_files(found)
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            shards = list(pool.map(lambda file: _open(argument, file, found.array), self._files))
        super().__init__(argument, shards)

    def filler(self) -> Filler:
        """Return what brings in the rows of one pass."""
        return _Ranges(self, self._files)


class _Ranges(Filler):
    """Rows out of ranges of bytes."""

    def __init__(self, array: RemoteArray, files: Sequence[RemoteFile]) -> None:
        self._array, self._files = array, files
        self._pool = ThreadPoolExecutor(CONNECTIONS)

    def fill(self, begin: int, end: int, target: Bytes) -> None:
        """Write rows [begin, end) to an array of as many bytes."""
        row_bytes, filled = self._array.row_bytes, 0
        for run in self._array.runs(begin, end):
            size = (run.end - run.begin) * row_bytes
            offset = self._array.shards[run.shard].offset + run.begin * row_bytes
            self._files[run.shard].fill(offset, target[filled : filled + size], self._pool)
            filled += size

    def close(self) -> None:
        """Let go of connections."""
        self._pool.shutdown()
        for file in self._files:
            if isinstance(file, StreamedFile):
                file.close_stream()


def _open(argument: Argument, file: RemoteFile, name: str | None) -> Shard:
    if suffix_of(file.url) == SAFETENSORS:
        num_axes = 2 if argument == "features" else 1
        return read_safetensors(
            argument, file.url, name, num_axes, file.size, file.version, file.fetch
        )
    return read_npy(argument, file.url, file.size, file.version, file.fetch)
