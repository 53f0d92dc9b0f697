"""What the finished runs of a sweep show: a row and a curve for every point of its grid."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich import box
from rich.markup import escape
from rich.table import Table

from deeprep.base.paths import atomic_path
from deeprep.plots.canvas import (
    index_axis,
    legend_beside,
    log_axis,
    new_figure,
    save,
    scale_colors,
    shorten,
)
from deeprep.run.record import Measurement, RunDirectory
from deeprep.sweep.grid import Run
from deeprep.sweep.runs import SweepDirectory

_MARKERS = "osD^vPX"
_LEGEND_ENTRIES = 16


@dataclass(frozen=True)
class Point:
    """A point of the grid and the last measurement of every finished run there, a seed each."""

    values: dict[str, str]
    runs: int
    measurements: list[Measurement]

    @property
    def label(self) -> str:
        """Flags and values, as in a legend."""
        return ", ".join(f"{flag} {value}" for flag, value in self.values.items()) or "all runs"

    def columns(self) -> dict[str, list[float]]:
        """For every seed loss, accuracy and the fitted rates; nan where one is not defined."""
        reports = [measurement.report for measurement in self.measurements]
        compression = [report.compression_fit for report in reports]
        discrimination = [report.discrimination_fit for report in reports]
        return {
            "loss": [measurement.loss for measurement in self.measurements],
            "accuracy": [measurement.accuracy for measurement in self.measurements],
            # C_l is multiplied by the first, D_l changes by the second from layer to layer.
            "compression_factor": [10**fit.slope if fit else math.nan for fit in compression],
            "compression_r2": [fit.r_squared if fit else math.nan for fit in compression],
            "discrimination_step": [fit.slope if fit else math.nan for fit in discrimination],
            "discrimination_r2": [fit.r_squared if fit else math.nan for fit in discrimination],
        }

    def layers(self, metric: str) -> NDArray[np.float64]:
        """(S, L) metric of every seed and layer; nan where it is not defined."""
        rows = [
            [vars(layer)[metric] for layer in measurement.report.layers]
            for measurement in self.measurements
        ]
        return np.array(rows, dtype=np.float64)


def collect(sweep: SweepDirectory, runs: Iterable[Run]) -> list[Point]:
    """Read the finished runs, point by point."""
    grouped: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        grouped.setdefault(tuple(run.values.values()), []).append(run)
    points = []
    for members in grouped.values():
        finished = [run for run in members if sweep.outcome(run.name).status == "finished"]
        measured = [
            RunDirectory.open(sweep.run_path(run.name)).measurements[-1] for run in finished
        ]
        points.append(Point(members[0].values, len(members), measured))
    return points


def _mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard deviation of a sample, over the seeds where the value is defined."""
    defined = np.array([value for value in values if not math.isnan(value)])
    mean = float(defined.mean()) if len(defined) else math.nan
    return mean, float(defined.std(ddof=1)) if len(defined) > 1 else math.nan


def table(points: Sequence[Point]) -> Table:
    """Return the table of the terminal: mean±std over the seeds, and of R^2 the mean."""
    shown = Table(title="last measurements, mean±std over seeds", box=box.SIMPLE_HEAD)
    for flag in points[0].values:
        shown.add_column(flag, no_wrap=True)
    for name in ("done", "loss", "accuracy", "C_l a layer", "R²", "D_l a layer", "R²"):
        shown.add_column(name, justify="right", no_wrap=True)
    for point in points:
        summary = {name: _mean_std(values) for name, values in point.columns().items()}
        shown.add_row(
            *map(escape, point.values.values()),
            f"{len(point.measurements)}/{point.runs}",
            _cell(*summary["loss"], ".3g", ".1g"),
            _cell(*summary["accuracy"], ".1%", ".1%"),
            _cell(*summary["compression_factor"], ".3g", ".1g", before="x "),
            _cell(summary["compression_r2"][0], math.nan, ".3f", ""),
            _cell(*summary["discrimination_step"], "+.3g", ".1g"),
            _cell(summary["discrimination_r2"][0], math.nan, ".3f", ""),
        )
    return shown


def _cell(mean: float, std: float, form: str, std_form: str, before: str = "") -> str:
    if math.isnan(mean):
        return ""
    return f"{before}{mean:{form}}" + ("" if math.isnan(std) else f"±{std:{std_form}}")


def write_csv(points: Sequence[Point], path: Path) -> None:
    """Write a row a point, means and standard deviations in columns of their own.

    An empty cell is a value that is not defined: a deviation of one seed, a rate of one layer.
    """
    flags = list(points[0].values)
    names = [f"{name}_{kind}" for name in points[0].columns() for kind in ("mean", "std")]
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow([*flags, "finished", "runs", *names])
        for point in points:
            numbers = [n for values in point.columns().values() for n in _mean_std(values)]
            written = ["" if math.isnan(number) else number for number in numbers]
            counts = [len(point.measurements), point.runs]
            writer.writerow([*point.values.values(), *counts, *written])


def figure(points: Sequence[Point], path: Path) -> Figure:
    """Draw and write C_l, the geometric mean, and D_l of every point, with bands over the seeds.

    A band goes from the least to the largest seed.
    """
    drawn = [point for point in points if point.measurements]
    canvas = new_figure(11, 4.4)
    left, right = canvas.subplots(1, 2)
    shown = []
    for index, point in enumerate(drawn):
        style: dict[str, Any] = {
            "color": scale_colors(len(drawn))[index],
            "marker": _MARKERS[index % len(_MARKERS)],
            "label": shorten(point.label, 40),
        }
        compression = point.layers("compression")
        compression[~(np.isfinite(compression) & (compression > 0))] = np.nan
        shown += _draw(left, np.log10(compression), style, log=True)
        discrimination = point.layers("discrimination")
        discrimination[~np.isfinite(discrimination)] = np.nan
        _draw(right, discrimination, style, log=False)
    log_axis(left, [value for value in shown if not math.isnan(value)])
    left.set_title("compression $C_l$", fontsize="medium")
    right.set_title("discrimination $D_l$", fontsize="medium")
    for axes in (left, right):
        axes.set_xlabel("layer $l$")
        axes.grid(alpha=0.25)
        index_axis(axes.xaxis)
    handles, labels = left.get_legend_handles_labels()
    legend_beside(canvas, handles, labels, _LEGEND_ENTRIES)
    return save(canvas, path)


def _draw(
    axes: Axes, rows: NDArray[np.float64], style: dict[str, Any], *, log: bool
) -> list[float]:
    """Draw the mean of the rows (S, L), of whose logarithms they may be, and their band."""
    values = np.stack([rows.min(0), rows.mean(0), rows.max(0)])  # a gap where a seed has none
    low, mean, high = 10**values if log else values
    layers = np.arange(rows.shape[1])
    axes.fill_between(layers, low, high, color=style["color"], alpha=0.2, linewidth=0)
    axes.plot(layers, mean, markersize=4, linewidth=1.2, **style)
    return [*low.tolist(), *high.tolist()]
