"""Measure the core and everything it is compared with: `python -m benchmarks.run`, or `make bench`.

Prints tables and writes results.json, cells.csv, peers.csv and roofline.png. Every number is
checked against `deeprep.reference` before it is timed.
"""

from __future__ import annotations

import csv
import datetime
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import (
    file_speed,
    loss_times,
    monitor_overhead,
    probe_overhead,
    process_scaling,
    sections,
)
from benchmarks.cells import Cell, measure
from benchmarks.roofline import draw
from benchmarks.shapes import DTYPES, LABELLINGS, SHAPES, DTypeName, Labelling, Shape
from benchmarks.tables import markdown, tables
from benchmarks.timing import last_level_cache
from deeprep.base import strict_json
from deeprep.base.machine import available_cores, processor
from deeprep.base.paths import atomic_path
from deeprep.run.record import environment

Section = Literal[
    "cells", "small", "full", "metrics", "losses", "files", "probes", "monitor", "processes"
]

_RESULTS = Path(__file__).parent / "results"
_QUICK_RESULTS = Path("build/benchmarks-quick")
_TABLE_WIDTH = 150  # the widest table; a pipe would otherwise get 80 columns


@dataclass(frozen=True)
class Settings:
    """What to measure; the default is the whole table but for --slow."""

    quick: bool = False
    """Cut every shape to about 4 MB: checks that everything runs; the times mean nothing."""
    threads: int = 0
    """Threads of the core, of torch and of BLAS; 0: as many as torch uses by default."""
    shapes: tuple[str, ...] = ()
    """Only shapes whose name (NxdxK, as 2000000x64x10) contains one of these."""
    dtypes: tuple[DTypeName, ...] = DTYPES
    """Element types of the features."""
    labels: tuple[Labelling, ...] = LABELLINGS
    """Orders of the labels; peers and one thread are timed on shuffled ones."""
    peers: bool = True
    """Also time other libraries."""
    slow: bool = False
    """Also time metrics at d = 4096 and K = 50,000: some minutes."""
    sections: tuple[Section, ...] = get_args(Section)
    """Which measurements: the table of shapes, small updates, full=True, metrics (with --slow),
    losses, features on disk, analyze of whole models, Monitor in training, several processes."""
    seconds: float = 4.0
    """Time spent on the update and the floor of each cell; at least five repeats are made."""
    budget: float = 30.0
    """Seconds that one peer may take on one cell; beyond, a lower bound is reported."""
    out: Path | None = None
    """Where results go; default benchmarks/results, with --quick build/benchmarks-quick."""
    markdown: bool = False
    """Measure nothing: print the tables of docs/speed.md from the results.json that is there."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    settings = tyro.cli(
        Settings, prog="python -m benchmarks.run", description=__doc__, args=arguments
    )
    out = settings.out or (_QUICK_RESULTS if settings.quick else _RESULTS)
    if settings.markdown:
        results = strict_json.read(out / "results.json")
        if results["quick"]:
            print("results of --quick: the times mean nothing", file=sys.stderr)
        print(markdown(results))
        return 0
    shapes = [
        shape.quick() if settings.quick else shape
        for shape in SHAPES
        if not settings.shapes or any(part in shape.name for part in settings.shapes)
    ]
    if not shapes:
        names = ", ".join(shape.name for shape in SHAPES)
        print(f"shapes is {settings.shapes}, expected parts of: {names}", file=sys.stderr)
        return 2
    if settings.quick:
        settings = replace(settings, seconds=0.05, budget=2.0)
    num_threads = settings.threads or torch.get_num_threads()
    torch.set_num_threads(num_threads)
    results = _header(settings, num_threads)
    out.mkdir(parents=True, exist_ok=True)
    log = Console(stderr=True)  # tables alone go to stdout
    with _progress(log) as progress:
        if "cells" in settings.sections:
            for cell in _measure_cells(settings, shapes, num_threads, progress):
                results["cells"].append(asdict(cell))
                strict_json.write(
                    out / "results.json", results
                )  # a run that is stopped leaves its cells
        for key, call in _other_sections(settings, num_threads).items():
            task = progress.add_task(key.replace("_", " "), total=None)
            for each in call():
                results[key].append(asdict(each))
                progress.advance(task)
                strict_json.write(out / "results.json", results)
            progress.update(task, total=len(results[key]))
    if results["cells"]:
        _write_csv(out / "cells.csv", _cell_rows(results["cells"]))
        _write_csv(out / "peers.csv", _peer_rows(results["cells"]))
        draw(results, out / "roofline.png")
    console = Console()
    console.width = max(console.width, _TABLE_WIDTH)
    for table in tables(results):
        console.print(table.rich())
    log.print(f"Written to {out}")
    return 0


def _measure_cells(
    settings: Settings, shapes: list[Shape], num_threads: int, progress: Progress
) -> Iterator[Cell]:
    wanted = [(s, d, order) for s in shapes for d in settings.dtypes for order in settings.labels]
    task = progress.add_task("", total=len(wanted))
    for shape, dtype, labelling in wanted:
        name = f"{shape.name} {dtype} {labelling}"

        def show(stage: str, name: str = name) -> None:
            progress.update(task, description=f"{name}: {stage}")

        cell = measure(
            shape,
            dtype,
            labelling,
            num_threads=num_threads,
            seconds=settings.seconds,
            peers=settings.peers,
            budget=settings.budget,
            progress=show,
        )
        progress.advance(task)
        progress.console.print(f"{name}: {cell.timing.ratio:.3f} x floor")
        yield cell


def _other_sections(settings: Settings, num_threads: int) -> dict[str, Callable[[], Iterable[Any]]]:
    """Return the other measurements that were asked for, by the name of their results."""
    chosen: dict[str, Callable[[], Iterable[Any]]] = {}
    if "small" in settings.sections:
        chosen["small_updates"] = partial(sections.small_updates, num_threads, settings.seconds)
    if "full" in settings.sections:
        chosen["full_updates"] = partial(
            sections.full_updates, num_threads, 5 * settings.seconds, settings.quick
        )
    if "metrics" in settings.sections and (settings.slow or settings.quick):
        chosen["metric_times"] = partial(sections.metric_times, num_threads, settings.quick)
    if "losses" in settings.sections:
        chosen["loss_times"] = partial(
            loss_times.loss_times, num_threads, settings.seconds, settings.quick
        )
    if "files" in settings.sections:
        chosen["file_speeds"] = partial(
            file_speed.file_speeds, num_threads, settings.seconds, settings.quick
        )
    if "probes" in settings.sections:
        chosen["probe_overheads"] = partial(
            probe_overhead.probe_overheads, num_threads, 5 * settings.seconds, settings.quick
        )
    if "monitor" in settings.sections:
        chosen["monitor_overheads"] = partial(
            monitor_overhead.monitor_overheads, num_threads, 5 * settings.seconds, settings.quick
        )
    if "processes" in settings.sections:
        chosen["process_scalings"] = partial(process_scaling.process_scalings, settings.quick)
        chosen["reduce_times"] = partial(process_scaling.reduce_times, settings.quick)
    return chosen


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=console)


def _header(settings: Settings, num_threads: int) -> dict[str, Any]:
    """Return what the numbers depend on, and empty lists for them."""
    arguments = " ".join(sys.argv[1:])
    return {
        "command": f"python -m benchmarks.run {arguments}".rstrip(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "quick": settings.quick,
        "threads": num_threads,
        "machine": {
            "cpu": processor(),
            "cores": available_cores(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "last_level_cache_bytes": last_level_cache(),
        },
        "versions": environment(torch.device("cpu")),
        "cells": [],
        "small_updates": [],
        "full_updates": [],
        "metric_times": [],
        "loss_times": [],
        "file_speeds": [],
        "probe_overheads": [],
        "monitor_overheads": [],
        "process_scalings": [],
        "reduce_times": [],
    }


def _write_csv(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    rows = list(rows)
    if not rows:
        return
    with atomic_path(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def _cell_rows(cells: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    for cell in cells:
        timing, single = cell["timing"], cell["single"] or {}
        yield {
            **cell["shape"],
            "dtype": cell["dtype"],
            "labels": cell["labelling"],
            "feature_bytes": cell["feature_bytes"],
            "cold": cell["cold"],
            **timing,
            "target": cell["target"],
            "ours_one_thread": single.get("ours"),
            "floor_one_thread": single.get("floor"),
        }


def _peer_rows(cells: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    for cell in cells:
        for peer in cell["peers"]:
            seconds = peer["seconds"]
            yield {
                **cell["shape"],
                "dtype": cell["dtype"],
                **peer,
                "over_ours": None if seconds is None else seconds / cell["timing"]["ours"],
            }


if __name__ == "__main__":
    sys.exit(main())
