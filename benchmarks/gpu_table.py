"""Measure updates on a GPU against a device copy and torch's operators: one table, CSV and JSON.

`python -m benchmarks.gpu_table`; `make gpu-check` runs it last. Needs torch and deeprep only; rich
draws the table where it is installed. Every number is checked before it is timed.
"""

from __future__ import annotations

import argparse
import csv
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import deeprep
from benchmarks.gpu_peers import PEERS, Peer, Statistics, oracle, refcheck
from benchmarks.gpu_shapes import GPU_SHAPES, TARGET, fit, has_target, make_data
from benchmarks.shapes import DTYPES, DTypeName, Shape
from deeprep.base import strict_json
from deeprep.base.paths import atomic_path

_RESULTS = Path(__file__).parent / "results"
_TOLERANCE = 1e-5  # the accuracy contract, relative to sumsq
_PEER_TOLERANCE = 1e-3
_WARM_UPS, _MIN_REPEATS, _MAX_REPEATS = 3, 5, 100
_MEMORY_SHARE = 0.9  # of the free memory
_CPU_MEMORY = 4 * 2**30

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """One method on one cell; without seconds, `status` says why."""

    method: str
    status: str
    seconds: float | None = None
    bandwidth: float | None = None  # bytes read and written, at least, a second


@dataclass(frozen=True)
class Cell:
    """What was measured on one shape and dtype; `asked_rows` is N before it was cut to fit."""

    shape: Shape
    asked_rows: int
    dtype: DTypeName
    has_target: bool
    timings: list[Timing]

    def of_copy(self) -> float | None:
        """Bandwidth of our update over that of the copy."""
        by_method = {timing.method: timing for timing in self.timings}
        ours, copy = by_method[OURS].bandwidth, by_method[COPY].bandwidth
        return ours / copy if ours and copy else None


COPY, OURS, OURS_IN_A_GRAPH = "copy", "deeprep", "deeprep, CUDA graph"


class Stopwatch:
    """Median seconds of a call on a device: CUDA events there, the clock on a CPU.

    Between calls a buffer twice the size of the last cache is written, so that a small batch is
    read from memory, as a large one is.
    """

    def __init__(self, device: torch.device, seconds: float) -> None:
        self._device = device
        self._seconds = seconds
        cache = 32 * 2**20
        if device.type == "cuda":
            cache = torch.cuda.get_device_properties(device).L2_cache_size
        self._buffer = torch.zeros(2 * cache // 4, device=device)

    def __call__(self, call: Call) -> float:
        """Time a call, after warming up, for about the seconds given."""
        for _ in range(_WARM_UPS):
            call()
        first = self._once(call)
        repeats = min(_MAX_REPEATS, max(_MIN_REPEATS, int(self._seconds / max(first, 1e-6))))
        return statistics.median(self._once(call) for _ in range(repeats))

    def _once(self, call: Call) -> float:
        self._buffer.add_(1.0)
        if self._device.type != "cuda":
            begin = time.perf_counter()
            call()
            return time.perf_counter() - begin
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return 1e-3 * start.elapsed_time(end)


def measure(asked: Shape, dtype: DTypeName, device: torch.device, seconds: float) -> Cell | None:
    """Check and time everything on one cell; None where not even the state fits."""
    memory = free_memory(device)
    shape = fit(asked, dtype, int(_MEMORY_SHARE * memory))
    if shape is None:
        return None
    features, labels = make_data(shape, dtype, device)
    wanted = oracle(features, labels, shape.num_classes)
    stopwatch = Stopwatch(device, seconds)
    feature_bytes = shape.bytes(dtype)

    def timing(method: str, call: Call, moved: int) -> Timing:
        taken = stopwatch(call)
        return Timing(method, "ok", taken, moved / taken)

    timings = [timing(COPY, partial(torch.empty_like(features).copy_, features), 2 * feature_bytes)]

    state = deeprep.ClassScatter(shape.num_classes, shape.num_features, device=device)
    state.update(features, labels)
    found = {"counts": state.counts, "means": state.means, "sumsq": state.sumsq}
    refcheck(OURS, found, wanted, _TOLERANCE, energy=False)
    timings.append(timing(OURS, partial(state.update, features, labels), feature_bytes))
    if device.type == "cuda":
        replay = _captured(state, features, labels)
        timings.append(timing(OURS_IN_A_GRAPH, replay, feature_bytes))
        del replay  # and with it the scratch that the graph holds
    del state, found
    timings += [
        _time_peer(peer, features, labels, shape, dtype, wanted, stopwatch) for peer in PEERS
    ]
    return Cell(shape, asked.num_rows, dtype, has_target(shape), timings)


def _captured(state: deeprep.ClassScatter, features: Tensor, labels: Tensor) -> Call:
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        state.update(features, labels)
    return graph.replay


def _time_peer(
    peer: Peer,
    features: Tensor,
    labels: Tensor,
    shape: Shape,
    dtype: DTypeName,
    wanted: Statistics,
    stopwatch: Stopwatch,
) -> Timing:
    if peer.memory(shape, dtype) > free_memory(features.device):
        return Timing(peer.name, "memory")
    try:
        found = peer.run(features, labels, shape.num_classes)
        refcheck(peer.name, found, wanted, _PEER_TOLERANCE, peer.energy)
        del found
        taken = stopwatch(lambda: peer.run(features, labels, shape.num_classes))
    except torch.OutOfMemoryError:
        return Timing(peer.name, "memory")
    except ValueError as error:  # a competitor's wrong result is a finding, not our failure
        return Timing(peer.name, str(error))
    except (RuntimeError, NotImplementedError) as error:  # what this torch cannot do
        return Timing(peer.name, str(error).splitlines()[0])
    return Timing(peer.name, "ok", taken, shape.bytes(dtype) / taken)


def free_memory(device: torch.device) -> int:
    """Bytes that could be allocated now; on a CPU, what the self-test allows itself."""
    if device.type != "cuda":
        return _CPU_MEMORY
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


# ------------------------------------------------------------------------ writing


def header(cells: Sequence[Cell]) -> list[str]:
    """Titles of the table's columns."""
    methods = [timing.method for timing in cells[0].timings] if cells else []
    speeds = [f"{method} GB/s" for method in methods]
    return ["N x d, K", *speeds, "of copy", "target", ""]


def row(cell: Cell) -> list[str]:
    """One row of the table, as text."""
    share = cell.of_copy()
    verdict = ""
    if cell.has_target and share is not None:
        verdict = "pass" if share >= TARGET else "miss"
    cut = "" if cell.shape.num_rows == cell.asked_rows else f" (cut from {cell.asked_rows:,} rows)"
    shape = cell.shape
    name = f"{shape.num_rows:,} x {shape.num_features:,}, {shape.num_classes:,} {cell.dtype}{cut}"
    speeds = [
        timing.status if timing.bandwidth is None else f"{timing.bandwidth / 1e9:,.1f}"
        for timing in cell.timings
    ]
    target = f">= {TARGET:.0%}" if cell.has_target else "-"
    return [name, *speeds, "-" if share is None else f"{share:.0%}", target, verdict]


def print_table(cells: Sequence[Cell], title: str) -> None:
    """Print all cells, with rich if it is installed."""
    rows = [row(cell) for cell in cells]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(title)
        for line in (header(cells), *rows):
            print(" | ".join(line))
        return
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(header(cells)):
        table.add_column(name, justify="left" if index == 0 else "right")
    for line in rows:
        table.add_row(*line)
    console = Console()
    console.width = max(console.width, 180)
    console.print(table)


def write(cells: Sequence[Cell], environment: dict[str, object], stem: Path) -> None:
    """Write stem.json, everything, and stem.csv, a line for each cell and method."""
    results = {"environment": environment, "cells": [asdict(cell) for cell in cells]}
    strict_json.write(stem.with_suffix(".json"), results)
    with atomic_path(stem.with_suffix(".csv")) as partial, partial.open("w", newline="") as file:
        lines = csv.writer(file)
        names = ("num_rows", "num_features", "num_classes", "dtype", "method", "status")
        lines.writerow([*names, "seconds", "bytes_per_second", "of_copy"])
        for cell in cells:
            for timing in cell.timings:
                share = cell.of_copy() if timing.method == OURS else None
                what = (*asdict(cell.shape).values(), cell.dtype, timing.method, timing.status)
                lines.writerow([*what, timing.seconds, timing.bandwidth, share])


def describe(device: torch.device) -> dict[str, object]:
    """Say what the numbers depend on."""
    found: dict[str, object] = {"device": "cpu", **deeprep.build_info()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "multiprocessors": properties.multi_processor_count,
            "torch_cuda": torch.version.cuda,
        }
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cpu: checks this program, no GPU")
    parser.add_argument("--quick", action="store_true", help="4 MB each: the times mean nothing")
    parser.add_argument("--shapes", nargs="*", default=[], help="parts of names, as 2000000x64x10")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each method on each cell")
    parser.add_argument("--limit", type=float, default=240.0, help="of seconds in all")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="folder of the results")
    settings = parser.parse_args(arguments)
    device = torch.device(settings.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("gpu_table: torch finds no GPU; --device cpu --quick checks the program itself")
        return 2
    torch.backends.cuda.matmul.allow_tf32 = False
    environment = describe(device)
    name = re.sub(r"[^a-z0-9]+", "-", str(environment["device"]).lower()).strip("-")
    settings.out.mkdir(parents=True, exist_ok=True)
    stem = settings.out / f"gpu-{name}{'-quick' if settings.quick else ''}"
    begin, cells, left_out = time.monotonic(), [], []
    for asked in GPU_SHAPES:
        if settings.shapes and not any(part in asked.name for part in settings.shapes):
            continue
        for dtype in DTYPES:
            label = f"{asked.name} {dtype}"
            if time.monotonic() - begin > settings.limit:
                left_out.append(f"{label}: out of time")
                continue
            cell = measure(
                asked.quick() if settings.quick else asked, dtype, device, settings.seconds
            )
            if cell is None:
                left_out.append(f"{label}: the memory does not hold the state")
                continue
            cells.append(cell)
            print(" | ".join(row(cell)), flush=True)
            write(cells, environment, stem)  # a run that is stopped leaves its cells
    print_table(cells, f"Bytes a second on {environment['device']}; a copy reads and writes them")
    for line in left_out:
        print(f"left out: {line}")
    print(f"Written to {stem}.json and {stem}.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
