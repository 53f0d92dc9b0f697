"""`deeprep stats`, `merge`, `show`: statistics of features on disk and of states saved before."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich import box
from rich.markup import escape
from rich.table import Table
from tyro.conf import FlagCreatePairsOff, Positional, arg

from deeprep.base.ranks import Ranks
from deeprep.base.torchrun import joined, together
from deeprep.base.validate import check_positive
from deeprep.cli.ranks import PATIENCE, is_first, share_threads, warnings_of_first
from deeprep.cli.shared import Json, Result, progress_bar
from deeprep.files import BATCH_BYTES, class_scatter_of_files
from deeprep.files.parts import remove_parts
from deeprep.files.sources import shown
from deeprep.report import LayerReport
from deeprep.state import ClassScatter

__all__ = ["Merge", "Show", "Stats"]

_MAX_LISTED = 20  # classes

MinCount = Annotated[int, arg(metavar="N")]

STATS = "Read features and labels once, in blocks, and print the statistics of their classes."

STATS_DETAILS = """FEATURES (N, d) and LABELS (N,) are each one of these, or a directory or a
quoted glob of them, in natural order. The two need not be cut into files at the same rows.
  FILE.npy
  FILE.safetensors[:NAME]   NAME where the file holds several such arrays
  FILE.parquet[:COLUMN]     features: a column of lists, or a glob of columns of numbers; labels: a
                            column of integers (pip install 'deeprep[parquet]')
  s3://..., https://...     any of these by URL (pip install 'deeprep[remote]', and for s3, gs or hf
                            the library of the store: s3fs, gcsfs, huggingface_hub)
Memory is --batch-bytes and the K x d means, whatever the size of the files; of URLs and Parquet
twice --batch-bytes and up to 150 MiB; under torchrun also three more K x d means, while states are
merged.

Started by torchrun, every process reads its share of the files, and the first one prints, and
writes to --out, what all have found: the same bits for any number of processes. With --out,
finished parts are kept in FILE.parts until FILE is written. If a process dies, the same command, by
any number of processes or without torchrun, reads what is left.

Examples:
  deeprep stats features.npy labels.npy
  deeprep stats 'features-*.npy' labels.npy --num-classes 1000 --ignore-index 255
  deeprep stats l3.safetensors:x l3.safetensors:y --full --out state.safetensors
  deeprep stats 's3://bucket/train-*.parquet:embedding' 's3://bucket/train-*.parquet:label'
  torchrun --nproc-per-node=8 -m deeprep stats 'x-*.npy' 'y-*.npy' --out state.safetensors"""

MERGE = """Merge states into one, exactly, as if one process had seen all their samples, and print
its statistics."""

MERGE_DETAILS = """The states must be of the same number of classes and features.

Example:
  deeprep merge part-1.safetensors part-2.safetensors --out whole.safetensors"""

SHOW = "Print the statistics of a state."

SHOW_DETAILS = """STATE is a file of `deeprep stats --out`, `deeprep merge`, `deeprep analyze
--save-states` or ClassScatter.save.

Example:
  deeprep show state.safetensors"""


@dataclass(frozen=True)
class Stats:
    """The command line of `deeprep stats`."""

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
    min_count: MinCount = 1
    """Print the statistics of the classes with at least so many samples; --out has all."""
    out: Annotated[Path | None, arg(metavar="FILE")] = None
    """Write the state here, as safetensors, to merge or show later."""
    json: Json = False
    """Print JSON instead of a table."""
    batch_bytes: int = BATCH_BYTES
    """Bytes of features taken in at once."""

    def run(self) -> Result | None:
        """Read, write the state if asked to, and return its statistics; None but on rank 0."""
        check_positive("min_count", self.min_count)
        with joined(PATIENCE, alone_too=True) as ranks:
            first = is_first(ranks)
            parts = None if self.out is None else self.out.with_name(f"{self.out.name}.parts")
            if ranks is None and parts is not None and not parts.is_dir():
                parts = None
            together(ranks, lambda: _check_target(self.out) if first else None)
            scatter = self._read(ranks, parts, shows=first)
            result = together(ranks, lambda: self._written(scatter) if first else None)
            if parts is not None:
                remove_parts(parts)
            return result

    def _read(self, ranks: Ranks | None, parts: Path | None, *, shows: bool) -> ClassScatter:
        share_threads(ranks)
        what = "" if ranks is None else f"process 1 of {ranks.size}"
        with warnings_of_first(ranks), progress_bar("row", what) as progress:
            return class_scatter_of_files(
                self.features,
                self.labels,
                self.num_classes,
                full=self.full,
                ignore_index=self.ignore_index,
                batch_bytes=self.batch_bytes,
                progress=progress if shows else None,
                all_reduce=ranks is not None,
                parts=parts,
            )

    def _written(self, scatter: ClassScatter) -> Result:
        if self.out is not None:
            scatter.save(self.out)
        return _result(scatter, shown(self.features), self.min_count)


@dataclass(frozen=True)
class Merge:
    """The command line of `deeprep merge`."""

    states: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="STATE...", help_behavior_hint="(required)")
    ]
    """States to merge."""
    out: Annotated[Path, arg(metavar="FILE")]
    """Write the merged state here."""
    json: Json = False
    """Print JSON instead of a table."""

    def run(self) -> Result:
        """Merge, write, and return the statistics of the whole."""
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
        return _result(merged, str(self.out))


@dataclass(frozen=True)
class Show:
    """The command line of `deeprep show`."""

    state: Annotated[Positional[Path], arg(metavar="STATE")]
    """The state to show."""
    min_count: MinCount = 1
    """Leave out classes with fewer samples."""
    json: Json = False
    """Print JSON instead of a table."""

    def run(self) -> Result:
        """Load the state and return its statistics."""
        check_positive("min_count", self.min_count)
        return _result(ClassScatter.load(self.state), str(self.state), self.min_count)


def _check_target(path: Path | None) -> None:
    """Check, before hours of reading, that a file can be written and destroys nothing but a state.

    Otherwise a slip of the hand could overwrite the features.
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


def _result(scatter: ClassScatter, name: str, min_count: int = 1) -> Result:
    statistics = _statistics(scatter, name, min_count)
    return Result(statistics, [_table(statistics)], statistics["warnings"])


def _statistics(scatter: ClassScatter, name: str, min_count: int) -> dict[str, Any]:
    """Everything that is printed, as plain data for strict JSON: nan and inf become text."""
    measured = scatter.with_min_count(min_count)
    ranks = ("nc1", "numerical_rank", "effective_rank") if scatter.full else ()
    report = LayerReport.from_scatters({name: scatter}, metrics=ranks, min_count=min_count)
    metrics = report.to_dict()["layers"][0]
    traces: dict[str, float | None] = dict.fromkeys(("trace_within", "trace_between"))
    if measured.num_samples > 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes without samples: they are named below
            traces["trace_within"] = measured.trace_within
            traces["trace_between"] = measured.trace_between()
    return {
        "name": name,
        "num_samples": scatter.num_samples,
        "num_classes": scatter.num_classes,
        **({"num_measured_classes": report.num_measured_classes} if min_count > 1 else {}),
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
    "num_measured_classes": "classes measured",
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
