"""What `deeprep analyze` found, in the terminal and in a directory.

analysis.json                       what was measured, and the report of every checkpoint
report.png                          of the last checkpoint
report.json, layers.csv, states/    of a single one; several have a folder each
layers.csv, evolution.png           of several: a row a layer and checkpoint

Every file is written under another name and then renamed; those of a checkpoint as soon as it is
measured.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from deeprep.base import strict_json
from deeprep.base.paths import atomic_path
from deeprep.cli.shared import Result
from deeprep.report import LayerReport
from deeprep.state import ClassScatter

__all__ = ["Analysis", "check_directory", "checkpoint_names"]

_MAX_WARNINGS = 8  # in the terminal
_MARK = "analysis.json"  # of a directory that may be written into again


@dataclass
class Analysis:
    """The reports of one model with one or several sets of weights.

    Attributes
    ----------
    about
        What was measured, as plain data: model, data, device, ...
    title
        The same in a line.
    is_series
        Whether the reports are of several checkpoints, also where only one could be measured.
    directory
        Where to write; None for nowhere.
    keep
        Metrics that were asked for, whose columns a table does not leave out.
    reports
        Name of the checkpoint -> report, in order.
    """

    about: dict[str, Any]
    title: str
    is_series: bool = False
    directory: Path | None = None
    keep: Sequence[str] = ()
    reports: dict[str, LayerReport] = field(default_factory=dict)
    failed: bool = False

    def add(
        self,
        name: str,
        report: LayerReport,
        scatters: Mapping[str, ClassScatter] | None = None,
    ) -> None:
        """Take in the report of a checkpoint; write it, and the states of its layers if given."""
        self.reports[name] = report
        if self.directory is None:
            return
        self.directory.mkdir(exist_ok=True)
        strict_json.write(self.directory / _MARK, self.data(), indent=2)
        folder = self.directory / name if self.is_series else self.directory
        folder.mkdir(exist_ok=True)
        report.to_json(folder / "report.json")
        report.to_csv(folder / "layers.csv")
        for index, (layer, scatter) in enumerate((scatters or {}).items()):
            (folder / "states").mkdir(exist_ok=True)
            scatter.save(folder / "states" / f"{index:03d}-{layer.replace('/', '_')}.safetensors")

    def finish(self) -> Result:
        """Write what is said of all checkpoints together, and return what to print."""
        shown: list[RenderableType] = [escape(self.title)]
        if self.reports:
            name, last = list(self.reports.items())[-1]
            if self.directory is not None:
                last.plot(self.directory / "report.png")
                if self.is_series:
                    self._write_series(self.directory)
            if self.is_series:
                shown.append(self._evolution_table())
            title = escape(name) if self.is_series else None
            shown += [last.table(title, keep=self.keep), escape(last.summary())]
            if collapse := last.collapse_summary():
                shown.append(escape(collapse))
            if self.directory is not None:
                shown.append(f"written to {escape(str(self.directory))}")
        warnings = [
            f"{name}: {message}" if self.is_series else message
            for name, report in self.reports.items()
            for message in report.warnings
        ]
        if len(warnings) > _MAX_WARNINGS:
            more = len(warnings) - _MAX_WARNINGS
            warnings[_MAX_WARNINGS:] = [f"and {more} more, which --json and --out hold"]
        return Result(self.data(), shown, warnings, self.failed)

    def data(self) -> dict[str, Any]:
        """Return everything as plain data for strict JSON."""
        checkpoints = [{"name": n, "report": r.to_dict()} for n, r in self.reports.items()]
        return {**self.about, "checkpoints": checkpoints}

    def _series(self) -> list[tuple[int, LayerReport]]:
        """Reports with the last number in each name, such as an epoch, or else their position."""
        numbers = [int(found[-1]) if (found := re.findall(r"\d+", n)) else -1 for n in self.reports]
        increasing = all(a < b for a, b in zip([-1, *numbers], numbers, strict=False))
        return list(
            zip(numbers if increasing else range(len(numbers)), self.reports.values(), strict=True)
        )

    def _write_series(self, directory: Path) -> None:
        """Draw the evolution, and put the tables of all checkpoints below one another."""
        from deeprep import plots  # matplotlib is slow to import

        plots.plot_evolution(self._series(), directory / "evolution.png")
        with atomic_path(directory / "layers.csv") as path, path.open("w", newline="") as target:
            writer = csv.writer(target)
            for number, name in enumerate(self.reports):
                with (directory / name / "layers.csv").open(newline="") as source:
                    header, *rows = csv.reader(source)
                if number == 0:
                    writer.writerow(["checkpoint", *header])
                writer.writerows([name, *row] for row in rows)

    def _evolution_table(self) -> Table:
        table = Table(
            box=box.SIMPLE_HEAD, caption="L: the last layer; rates are fitted over the layers"
        )
        table.add_column("checkpoint")
        for heading in ("C_L", "D_L", "C_l, factor a layer", "D_l, change a layer"):
            table.add_column(heading, justify="right")
        for name, report in self.reports.items():
            last = report.layers[-1]
            compression, discrimination = report.compression_fit, report.discrimination_fit
            values = (
                _format(last.compression, ".3g"),
                _format(last.discrimination, ".4f"),
                _format(None if compression is None else 10**compression.slope, ".3g"),
                _format(None if discrimination is None else discrimination.slope, "+.3g"),
            )
            table.add_row(escape(name), *values)
        return table


def check_directory(path: Path | None) -> None:
    """Check, before hours of measuring, that a directory can be written and holds nothing else.

    Otherwise a slip of the hand could overwrite the files of a run.
    """
    if path is None:
        return
    if path.exists() and not path.is_dir():
        raise ValueError(f"out is {path}, which is a file, expected a directory")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"out is {path}, but there is no directory {path.parent}")
    if path.is_dir() and any(path.iterdir()) and not (path / _MARK).is_file():
        raise ValueError(
            f"out is {path}, which holds other files, expected a new or empty directory, or one "
            f"that holds an earlier {_MARK}"
        )


def checkpoint_names(paths: Sequence[Path]) -> list[str]:
    """Return short distinct names for checkpoints, which can be names of folders.

    >>> checkpoint_names([Path("run/epoch-1.pt"), Path("run/epoch-2.pt")])
    ['epoch-1', 'epoch-2']
    >>> checkpoint_names([Path("a/model.pt"), Path("b/model.pt")])
    ['a-model', 'b-model']
    """
    plain = [path.name if path.is_dir() else path.stem for path in paths]
    whole = ["-".join((*p.parent.parts, n)).strip("/-") for p, n in zip(paths, plain, strict=True)]
    numbered = [f"{index}-{name}" for index, name in enumerate(plain)]
    return next(names for names in (plain, whole, numbered) if len(set(names)) == len(names))


def _format(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
