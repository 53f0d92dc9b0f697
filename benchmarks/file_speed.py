"""Statistics of features on disk against reading the files.

The pages of the files are in the system's cache. Timed in turn with ours are three ways of reading
them: into a buffer of 1 MiB over and over, as `cat` does, by one thread; the same by as many
threads as the update has, each a part of the bytes; and `torch.sum` of the mapped file, without a
copy. The same update of features in memory shows what the files cost on top.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

import deeprep
from benchmarks.memory import extra_memory
from benchmarks.shapes import DTypeName, Shape, make_features, make_labels
from benchmarks.timing import Call, median_ratio, taking_turns, threads

# Of the one table of shapes: short, middling and long rows, in files that no cache holds.
FILE_SHAPES = (
    Shape(2_000_000, 64, 10),
    Shape(200_000, 512, 100),
    Shape(100_000, 2048, 10),
    Shape(100_000, 2048, 1000),
)
CASES: tuple[tuple[DTypeName, bool], ...] = (
    ("float32", False),
    ("float32", True),  # cut into many files
    ("bfloat16", False),
)
_READ_BYTES = 2**20  # the buffer stays in the core's own cache
_PART_BYTES = 2**24  # read by one thread at a time
_SHARD_BYTES = 2**22  # a file for each batch of a model


@dataclass(frozen=True)
class FileSpeed:
    """Seconds of `class_scatter_of_files`, and its speed over that of other calls, turn by turn."""

    shape: Shape
    dtype: DTypeName
    num_files: int
    file_bytes: int
    ours: float
    of_one_reader: float  # of the speed at which one thread reads the files into a buffer
    of_readers: float  # of the speed at which as many threads as the update has do
    of_sum: float  # of the speed of summing the mapped files
    of_memory: float  # of the speed of one update with the same features in memory
    extra_bytes: int | None  # resident at the peak, state included; None: the system does not tell


def file_speeds(
    num_threads: int, seconds: float, quick: bool = False, folder: Path | None = None
) -> Iterator[FileSpeed]:
    """Measure every shape in one file of each type and, of float32, in many files.

    The files are written to `folder`, by default the system's for temporary ones. `quick` cuts
    every shape to about 4 MB and leaves memory out.
    """
    for shape in FILE_SHAPES:
        for dtype, is_cut in CASES:
            yield _measure(shape, dtype, is_cut, num_threads, seconds, quick, folder)


def _measure(
    shape: Shape,
    dtype: DTypeName,
    is_cut: bool,
    num_threads: int,
    seconds: float,
    quick: bool,
    folder: Path | None,
) -> FileSpeed:
    shape = shape.quick() if quick else shape
    labels = make_labels(shape, "shuffled")
    features = make_features(shape, labels, dtype)
    with tempfile.TemporaryDirectory(dir=folder) as place, threads(num_threads):
        parts = (
            features.split(max(1, _SHARD_BYTES // (features.stride(0) * features.itemsize)))
            if is_cut
            else (features,)
        )
        files = [_write(Path(place) / f"x-{i}.npy", part) for i, part in enumerate(parts)]
        labels_file = _write(Path(place) / "labels.npy", labels)
        ours = partial(
            deeprep.class_scatter_of_files, f"{place}/x-*.npy", labels_file, shape.num_classes
        )
        in_memory = partial(deeprep.class_scatter, features, labels, shape.num_classes)
        _check(ours(), in_memory())
        calls = (
            ours,
            partial(_read, files, 1),
            partial(_read, files, num_threads),
            partial(_sum, files),
            in_memory,
        )
        times = taking_turns(calls, seconds)
        extra = None
        if not quick:
            extra = extra_memory(num_threads, _prepare, f"{place}/x-*.npy", labels_file, shape)
        size = sum(file.stat().st_size for file in files)
    one_reader, readers, mapped_sum, memory = (median_ratio(t, times[0]) for t in times[1:])
    return FileSpeed(
        shape=shape,
        dtype=dtype,
        num_files=len(files),
        file_bytes=size,
        ours=statistics.median(times[0]),
        of_one_reader=one_reader,
        of_readers=readers,
        of_sum=mapped_sum,
        of_memory=memory,
        extra_bytes=extra,
    )


def _write(path: Path, array: torch.Tensor) -> Path:
    is_half = array.dtype == torch.bfloat16
    np.save(path, array.view(torch.int16).numpy().view("V2") if is_half else array.numpy())
    return path


def _check(found: deeprep.ClassScatter, expected: deeprep.ClassScatter) -> None:
    """Raise unless the files lead to the statistics of the features in memory."""
    torch.testing.assert_close(found.counts, expected.counts, rtol=0, atol=0)
    torch.testing.assert_close(found.means, expected.means, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.sumsq, expected.sumsq, rtol=1e-6, atol=0)


def _prepare(features: str, labels: Path, shape: Shape) -> Call:
    """Return the call whose memory counts."""
    deeprep.class_scatter(torch.ones(4, 2), torch.zeros(4).long())  # starts the threads
    return partial(deeprep.class_scatter_of_files, features, labels, shape.num_classes)


def _read(files: list[Path], num_threads: int) -> None:
    """Read all bytes of the files, in order, into a buffer of each thread."""
    parts = [
        (path, begin, min(_PART_BYTES, size - begin))
        for path in files
        for size in (path.stat().st_size,)
        for begin in range(0, size, _PART_BYTES)
    ]
    if num_threads == 1:
        _read_parts(parts)
        return
    share = -(-len(parts) // num_threads)
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(_read_parts, [parts[i : i + share] for i in range(0, len(parts), share)]))


def _read_parts(parts: list[tuple[Path, int, int]]) -> None:
    buffer = memoryview(bytearray(_READ_BYTES))
    for path, begin, left in parts:
        with path.open("rb", buffering=0) as file:
            file.seek(begin)
            while left > 0:
                left -= file.readinto(buffer[:left]) or left


def _sum(files: list[Path]) -> None:
    """Sum the files as float32, whatever they hold: what counts are the bytes."""
    for path in files:
        mapped = np.load(path, mmap_mode="c")  # private: torch warns of read-only memory
        torch.from_numpy(mapped.reshape(-1).view(np.float32)).sum()
