"""The command line `deeprep`: statistics of features on disk, and of states saved elsewhere.

Results go to stdout, as a table or as JSON; progress, warnings and errors to stderr.
"""

from __future__ import annotations

import json
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from tyro.conf import FlagCreatePairsOff, Positional, arg, subcommand

from deeprep.files import BATCH_BYTES, class_scatter_of_files
from deeprep.report import LayerReport
from deeprep.scatter import ClassScatter

__all__ = ["main"]

_PROGRESS_AFTER = 1.0  # seconds
_MAX_LISTED = 20  # classes

_ABOUT = """Class-scatter statistics of features on disk: how tightly a layer packs the samples of
a class (compression C) and how far apart it drives the classes (discrimination D).

Examples:
  deeprep stats features.npy labels.npy
  deeprep stats 'features/*.npy' labels.npy --full --out monday.safetensors
  deeprep merge monday.safetensors tuesday.safetensors --out both.safetensors
  deeprep show both.safetensors --json"""

_STATS = """Read features and labels once, in blocks, and print the statistics of their classes.

FEATURES (N, d) and LABELS (N,) are each a .npy file, a .safetensors file (FILE.safetensors:NAME
where it holds several such arrays), or a directory or a quoted glob of such files, in natural
order. The two need not be cut into files at the same rows. Memory is --batch-bytes and the K x d
means, whatever the size of the files.

Examples:
  deeprep stats features.npy labels.npy
  deeprep stats 'features-*.npy' labels.npy --num-classes 1000 --ignore-index 255
  deeprep stats l3.safetensors:x l3.safetensors:y --full --out state.safetensors"""

_MERGE = """Merge states into one, exactly, as if one process had seen all their samples, and print
its statistics. They must be of the same number of classes and features.

Example:
  deeprep merge part-1.safetensors part-2.safetensors --out whole.safetensors"""

_SHOW = """Print the statistics of a state: a file of `deeprep stats --out`, of `deeprep merge` or
of ClassScatter.save.

Example:
  deeprep show state.safetensors"""

Json = Annotated[bool, FlagCreatePairsOff]


@dataclass(frozen=True)
class _Stats:
    features: Annotated[Positional[str], arg(metavar="FEATURES")]
    """Where the features lie: float32, float64, float16 or bfloat16."""
    labels: Annotated[Positional[str], arg(metavar="LABELS")]
    """Where the labels lie: integers in [0, K)."""
    num_classes: Annotated[int | None, arg(metavar="K")] = None
    """Number of classes; default: the largest label + 1."""
    full: Annotated[bool, FlagCreatePairsOff] = False
    """Also sum up the d x d scatter, which NC1 and the ranks need."""
    ignore_index: int = -100
    """Label of samples to leave out."""
    out: Annotated[Path | None, arg(metavar="FILE")] = None
    """Write the state here, as safetensors, to merge or show later."""
    json: Json = False
    """Print JSON instead of a table."""
    batch_bytes: int = BATCH_BYTES
    """Bytes of features taken in at once."""

    def run(self) -> dict[str, Any]:
        _check_target(self.out)
        with _progress() as progress:
            scatter = class_scatter_of_files(
                self.features,
                self.labels,
                self.num_classes,
                full=self.full,
                ignore_index=self.ignore_index,
                batch_bytes=self.batch_bytes,
                progress=progress,
            )
        if self.out is not None:
            scatter.save(self.out)
        return _statistics(scatter, self.features)


@dataclass(frozen=True)
class _Merge:
    states: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="STATE...", help_behavior_hint="(required)")
    ]
    """States to merge."""
    out: Annotated[Path, arg(metavar="FILE")]
    """Write the merged state here."""
    json: Json = False
    """Print JSON instead of a table."""

    def run(self) -> dict[str, Any]:
        _check_target(self.out)
        given: set[Path] = set()
        for path in (*self.states, self.out):
            # A pattern may match the result of the last call too: its samples would count twice.
            if path.resolve() in given:
                raise ValueError(f"{path} is given twice, expected every state once and a new FILE")
            given.add(path.resolve())
        if not self.states:
            raise ValueError("states is empty, expected at least one file")
        first, *others = self.states
        merged = ClassScatter.load(first)
        for path in others:
            other = ClassScatter.load(path)
            try:
                merged.merge(other)
            except ValueError as error:
                raise ValueError(f"{path} does not fit {first}: {error}") from error
        merged.save(self.out)
        return _statistics(merged, str(self.out))


@dataclass(frozen=True)
class _Show:
    state: Annotated[Positional[Path], arg(metavar="STATE")]
    """The state to show."""
    json: Json = False
    """Print JSON instead of a table."""

    def run(self) -> dict[str, Any]:
        return _statistics(ClassScatter.load(self.state), str(self.state))


_Command = (
    Annotated[_Stats, subcommand("stats", description=_STATS)]
    | Annotated[_Merge, subcommand("merge", description=_MERGE)]
    | Annotated[_Show, subcommand("show", description=_SHOW)]
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 for an error, 130 after Ctrl-C."""
    command = tyro.cli(_Command, prog="deeprep", description=_ABOUT, args=arguments)
    errors = Console(stderr=True)
    try:
        statistics = command.run()
    except (ValueError, TypeError, OSError, MemoryError) as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        return 1
    except KeyboardInterrupt:
        errors.print("stopped")
        return 128 + signal.SIGINT
    if command.json:
        print(json.dumps(statistics, indent=2, allow_nan=False))
        return 0
    Console().print(_table(statistics))
    for message in statistics["warnings"]:
        errors.print(f"[yellow]warning:[/] {escape(message)}", soft_wrap=True, highlight=False)
    return 0


def _check_target(path: Path | None) -> None:
    """Check, before hours of reading, that a file can be written and destroys nothing but a state.

    A slip of the hand would else replace the features.
    """
    if path is None:
        return
    if not path.parent.is_dir():
        raise FileNotFoundError(f"out is {path}, but there is no directory {path.parent}")
    if path.exists():
        try:
            ClassScatter.load(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"out is {path}, which exists and is no state: {error}") from error


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Give a function (done, total) that draws a bar on a terminal once it has taken a while."""
    console = Console(stderr=True)
    bar = Progress(
        BarColumn(),
        TextColumn("row {task.completed:,.0f} of {task.total:,.0f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task("", total=None)
    begin = time.monotonic()

    def show(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        if not bar.live.is_started and time.monotonic() - begin > _PROGRESS_AFTER:
            bar.start()

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()


def _statistics(scatter: ClassScatter, name: str) -> dict[str, Any]:
    """Everything that is printed, as plain data for strict JSON: nan and inf become text."""
    report = LayerReport.from_scatters({name: scatter})
    metrics = report.to_dict()["layers"][0]
    traces: dict[str, float | None] = dict.fromkeys(("trace_within", "trace_between"))
    if scatter.num_samples > 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes without samples: they are named below
            traces["trace_within"] = scatter.trace_within
            traces["trace_between"] = scatter.trace_between()
    ranks = ("nc1", "numerical_rank", "effective_rank") if scatter.full else ()
    return {
        "name": name,
        "num_samples": scatter.num_samples,
        "num_classes": scatter.num_classes,
        "num_features": scatter.num_features,
        "full": scatter.full,
        **{key: metrics[key] for key in ("compression", "discrimination", "closest_classes")},
        **{
            key: value if value is None or math.isfinite(value) else str(value)
            for key, value in traces.items()
        },
        **{key: metrics[key] for key in ranks},
        "empty_classes": (scatter.counts == 0).nonzero().squeeze(1).tolist(),
        "nonfinite_classes": scatter.nonfinite_classes,
        "warnings": [message.removeprefix(f"layer {name!r}: ") for message in report.warnings],
    }


_LABELS = {
    "num_samples": "samples N",
    "num_classes": "classes K",
    "num_features": "features d",
    "compression": "compression C",
    "discrimination": "discrimination D",
    "closest_classes": "closest classes",
    "trace_within": "Tr Sigma_W",
    "trace_between": "Tr Sigma_B",
    "nc1": "NC1",
    "numerical_rank": "numerical rank",
    "effective_rank": "effective rank",
    "empty_classes": "classes without samples",
    "nonfinite_classes": "classes with NaN or Inf",
}


def _table(statistics: dict[str, Any]) -> Table:
    table = Table(title=escape(statistics["name"]), box=box.SIMPLE_HEAD, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for key, label in _LABELS.items():
        # Of classes that something is wrong with, only the fact that there are some is news.
        if key in statistics and statistics[key] != []:
            table.add_row(label, _text(statistics[key]))
    return table


def _text(value: Any) -> str:
    if isinstance(value, list):
        more = len(value) - _MAX_LISTED
        return ", ".join(map(str, value[:_MAX_LISTED])) + (f" and {more} more" if more > 0 else "")
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "-" if value is None else str(value)
