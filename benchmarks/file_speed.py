"""Statistics of features on disk against reading the file: `python -m benchmarks.file_speed`.

The pages of the files are in the system's cache. Timed in turn with ours are two ways of reading
them: into a buffer of 1 MiB over and over, as `cat` does, which one core does and which copies; and
`torch.sum` of the mapped file, on all cores and without a copy, which is the stricter one. The same
update of features in memory shows what the files cost on top.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console

import deeprep
from benchmarks.sections import extra_memory
from benchmarks.shapes import DTypeName, Shape, make_features, make_labels
from benchmarks.tables import Table
from benchmarks.timing import Call, median_ratio, taking_turns, threads
from deeprep.files import BATCH_BYTES

# Of the one table of shapes: short, middling and long rows, in files that no cache holds.
FILE_SHAPES = (
    Shape(2_000_000, 64, 10),
    Shape(200_000, 512, 100),
    Shape(100_000, 2048, 10),
    Shape(100_000, 2048, 1000),
)
_READ_BYTES = 2**20  # the buffer stays in the core's own cache
_SHARD_BYTES = 2**22  # a file for each batch of a model
_TARGET = 0.8


@dataclass(frozen=True)
class FileSpeed:
    """Seconds of `class_scatter_of_files` and of reading, and the shares of the reading's speed."""

    shape: Shape
    dtype: DTypeName
    num_files: int
    file_bytes: int
    ours: float
    of_read: float  # of the speed of reading into a buffer, turn by turn; target 0.8
    of_sum: float  # of the speed of summing the mapped file
    of_memory: float  # of the speed of one update with the same features in memory
    extra_bytes: int | None  # resident at the peak, state included; None: the system does not tell


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    quick: bool = False
    """Cut every shape to about 4 MB: checks that everything runs; the times mean nothing."""
    threads: int = 0
    """Threads of the core and of torch; 0: as many as torch uses by default."""
    seconds: float = 4.0
    """Time spent on each row of the table; at least five repeats are made."""
    folder: Path | None = None
    """Where the files are written; default: the system's temporary directory."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    settings = tyro.cli(
        Settings, prog="python -m benchmarks.file_speed", description=__doc__, args=arguments
    )
    num_threads = settings.threads or torch.get_num_threads()
    speeds = file_speeds(num_threads, settings.seconds, settings.quick, settings.folder)
    Console(width=120).print(file_table(speeds).rich())
    return 0


def file_speeds(
    num_threads: int, seconds: float, quick: bool = False, folder: Path | None = None
) -> list[FileSpeed]:
    """Measure every shape in one file of each type and, of float32, in many files."""
    return [
        _measure(shape.quick() if quick else shape, dtype, is_cut, num_threads, seconds, folder)
        for shape in FILE_SHAPES
        for dtype, is_cut in (("float32", False), ("float32", True), ("bfloat16", False))
    ]


def _measure(
    shape: Shape,
    dtype: DTypeName,
    is_cut: bool,
    num_threads: int,
    seconds: float,
    folder: Path | None,
) -> FileSpeed:
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
        calls = (ours, partial(_read, files), partial(_sum, files), in_memory)
        times = taking_turns(calls, seconds)
        extra = extra_memory(num_threads, _prepare, f"{place}/x-*.npy", labels_file, shape)
        size = sum(file.stat().st_size for file in files)
    of_read, of_sum, of_memory = (median_ratio(other, times[0]) for other in times[1:])
    seconds_taken = statistics.median(times[0])
    return FileSpeed(
        shape, dtype, len(files), size, seconds_taken, of_read, of_sum, of_memory, extra
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


def _read(files: list[Path]) -> None:
    buffer = bytearray(_READ_BYTES)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _sum(files: list[Path]) -> None:
    """Sum the files as float32, whatever they hold: what counts are the bytes."""
    for path in files:
        mapped = np.load(path, mmap_mode="c")  # private: torch warns of read-only memory
        torch.from_numpy(mapped.reshape(-1).view(np.float32)).sum()


def file_table(speeds: Sequence[FileSpeed]) -> Table:
    """Lay out the results."""
    rows = []
    for speed in speeds:
        shape = speed.shape
        gigabytes = speed.file_bytes / 1e9
        rows.append(
            (
                f"{shape.num_rows:,} x {shape.num_features:,}, {shape.num_classes:,} {speed.dtype}",
                f"{speed.num_files:,}",
                f"{speed.ours * 1e3:.1f} ms",
                f"{gigabytes / speed.ours:.1f}",
                f"{speed.of_read:.2f}",
                "pass" if speed.of_read >= _TARGET else "miss",
                f"{speed.of_sum:.2f}",
                f"{speed.of_memory:.2f}",
                "-" if speed.extra_bytes is None else f"{speed.extra_bytes / 2**20:,.0f} MiB",
            )
        )
    header = (
        *("N x d, K", "files", "stats", "GB/s", "of read", f">= {_TARGET}"),
        *("of sum", "of memory", "resident"),
    )
    notes = (
        "Shares of the speed of: reading the files into a buffer, torch.sum of the mapped files, "
        "one update with features in memory.",
        f"Resident: growth of the process at its peak, with blocks of {BATCH_BYTES >> 20} MiB.",
    )
    return Table("Features on disk, their pages cached", header, rows, notes)


if __name__ == "__main__":
    sys.exit(main())
