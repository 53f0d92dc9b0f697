"""LayerReport: what was measured, a row a layer; as a table, data frame, CSV, JSON and figure."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeprep.base.console import stdout_console
from deeprep.report import formats, notes, summaries
from deeprep.report.layer_metrics import (
    LayerMetrics,
    LayerScores,
    choose_metrics,
    measure_layer,
)
from deeprep.report.neural_collapse import NeuralCollapse
from deeprep.report.options import ReportKeywords, ReportOptions, report_options
from deeprep.report.scalars import flat_scalars
from deeprep.report.table import Content, html_table, rich_table
from deeprep.state import ClassScatter, Weighting
from deeprep.theory import LineFit

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame  # type: ignore[import-untyped]
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table
    from typing_extensions import Unpack


__all__ = ["LayerMetrics", "LayerReport"]

_WARNINGS_SHOWN = 5


@dataclass(frozen=True)
class LayerReport:
    """Metrics of every layer of a model on one set of data; made by `deeprep.analyze`.

    ``print(report)`` shows it as a table; a notebook shows it as one by itself.
    `num_measured_classes` is how many of the classes have at least `min_count` samples in the first
    layer; those that have fewer are left out. None in a report of before there was `min_count`.

    `test` is the report of the same layers on test data, where there are some: its accuracies are
    of means and probes that were fitted to the data of this report. `neural_collapse` is about the
    input of the model's own classifier; None in reports of states alone.

    Examples
    --------
    >>> import torch, deeprep
    >>> labels = torch.arange(40) % 2
    >>> features = {l: torch.eye(2)[labels] + 0.3**l * torch.randn(40, 2) for l in range(4)}
    >>> scatters = {f"layer{l}": deeprep.class_scatter(x, labels) for l, x in features.items()}
    >>> report = deeprep.LayerReport.from_scatters(scatters, class_names=["cat", "dog"])
    >>> bool(report.compression_fit.slope < 0)
    True
    >>> report.most_confused()[0][:2]
    ('cat', 'dog')
    """

    layers: list[LayerMetrics]
    num_samples: int
    num_classes: int
    weighting: Weighting = "uniform"
    warnings: list[str] = field(default_factory=list)
    corrected: bool = False
    class_names: list[str] | None = None
    min_count: int = 1
    num_measured_classes: int | None = None
    neural_collapse: NeuralCollapse | None = None
    test: LayerReport | None = None

    @classmethod
    def from_scatters(
        cls,
        scatters: Mapping[str, ClassScatter],
        scores: Mapping[str, LayerScores] | None = None,
        options: ReportOptions | None = None,
        **changes: Unpack[ReportKeywords],
    ) -> LayerReport:
        """Compute the metrics of every layer; the first of `scatters` is layer 0, the input.

        Parameters
        ----------
        scatters
            Layer name -> ClassScatter, in order of depth, at least one.
        scores
            Layer name -> accuracies and directional CDNV, which need a second pass.
        options
            What to measure and how, see `ReportOptions`; default: ``ReportOptions()``.
        **changes
            Fields of `options` to change: weighting, corrected, jackknife, metrics, class_names,
            min_count.

        Raises
        ------
        ValueError, TypeError
            Without a layer, for other than K names of classes, and for metrics that are unknown or
            need ``full=True``.
        """
        if not scatters:
            raise ValueError("scatters is empty, expected at least one layer")
        first = next(iter(scatters.values()))
        options = report_options(options, **changes)
        names = _check_class_names(options.class_names, first.num_classes)
        chosen = choose_metrics(options.metrics, full=any(s.full for s in scatters.values()))
        rows = []
        found: dict[str, list[str]] = {}
        for index, (name, scatter) in enumerate(scatters.items()):
            row, found[name] = measure_layer(
                index,
                name,
                scatter,
                None if scores is None else scores.get(name),
                weighting=options.weighting,
                corrected=options.corrected,
                jackknife=options.jackknife,
                chosen=chosen,
                min_count=options.min_count,
            )
            rows.append(row)
        return cls(
            rows,
            first.num_samples,
            first.num_classes,
            options.weighting,
            notes.of_layers(found),
            options.corrected,
            names,
            min_count=options.min_count,
            num_measured_classes=int((first.counts >= options.min_count).sum()),
        )

    def with_test(self, test: LayerReport | None) -> LayerReport:
        """Return this report with that of test data, whose warnings it takes over."""
        if test is None:
            return self
        new = [f"test data: {text}" for text in test.warnings if text not in self.warnings]
        return replace(self, test=test, warnings=[*self.warnings, *new])

    # ---------------------------------------------------------------- what it says

    @property
    def compression_fit(self) -> LineFit | None:
        """Line through log10 C_l against l for the layers l >= 1; None below three points."""
        return summaries.fit(self.layers, "compression", math.log10, 0.0)

    @property
    def discrimination_fit(self) -> LineFit | None:
        """Line through D_l against l for the layers l >= 1; None below three points."""
        return summaries.fit(self.layers, "discrimination", float, -math.inf)

    @property
    def separation_fit(self) -> LineFit | None:
        """Line through log10 of separation_fuzziness against l, l >= 1; None below three points.

        The law of equi-separation (He, Su 2023) says that its `correlation` is near -1.
        """
        return summaries.fit(self.layers, "separation_fuzziness", math.log10, 0.0)

    def summary(self) -> str:
        """The fitted rates of C_l and D_l, with their R^2, or why there is none, a line each.

        And that of the separation fuzziness, where it was measured.
        """
        return summaries.of_rates(self)

    @property
    def caption(self) -> str:
        """On what and how it was measured, in a line."""
        return summaries.caption(self)

    def collapse_summary(self) -> str:
        """Lines about neural collapse at the input of the classifier; "" where nothing is known."""
        return summaries.of_collapse(self)

    def class_name(self, index: int) -> str:
        """Name of a class; its number where the report has no names."""
        return str(index) if self.class_names is None else self.class_names[index]

    def most_confused(self, layer: int = -1, count: int = 10) -> list[tuple[str, str, float]]:
        """Pairs of classes with the largest cosines between their means, the largest first.

        Parameters
        ----------
        layer
            Index of the layer; negative ones count from the last.
        count
            How many pairs at most; a report holds all of 64 classes, the first 50 of more.

        Returns
        -------
        (class, class, cosine) for each pair; none where the cosines are not defined.

        Raises
        ------
        ValueError
            For a layer that does not exist, or a negative count.
        """
        if not -len(self.layers) <= layer < len(self.layers):
            raise ValueError(f"layer is {layer}, expected one of {len(self.layers)} layers")
        if count < 0:
            raise ValueError(f"count is {count}, expected a number >= 0")
        return [
            (self.class_name(first), self.class_name(second), cosine)
            for first, second, cosine in (self.layers[layer].closest_pairs or ())[:count]
        ]

    # ---------------------------------------------------------------- looking at it

    def _content(self) -> Content:
        test = None if self.test is None else self.test.layers
        return Content(self.layers, self.class_names, self.caption, test)

    def table(
        self, title: str | None = None, width: int | None = None, keep: Collection[str] = ()
    ) -> Table:
        """Return the report as a `rich` table, a row a layer, of the columns that have a value.

        Parameters
        ----------
        title
            What to put above it.
        width
            Where not all columns fit into it, the least telling are left out and named below the
            table. Default: that of the terminal, and no limit where stdout is none.
        keep
            Metrics whose columns are not left out: where they do not fit, they come in a second
            table below the first.
        """
        return rich_table(self._content(), title, width, keep)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        keep = () if options.is_terminal else formats.COLUMNS
        yield self.table(width=options.max_width, keep=keep)
        yield Text(self.summary())
        if collapse := self.collapse_summary():
            yield Text(collapse)
        for message in self.warnings[:_WARNINGS_SHOWN]:
            yield Text(f"warning: {message}", style="yellow")
        if len(self.warnings) > _WARNINGS_SHOWN:
            yield Text(f"and {len(self.warnings) - _WARNINGS_SHOWN} more in report.warnings")

    def __str__(self) -> str:
        from rich.console import Console

        text, stdout = io.StringIO(), stdout_console()
        Console(
            file=text,
            width=stdout.width,
            force_terminal=stdout.is_terminal,
            color_system=None,
            highlight=False,
        ).print(self)
        return text.getvalue().rstrip("\n")

    def _repr_html_(self) -> str:
        said = [*self.summary().splitlines(), *self.collapse_summary().splitlines()]
        lines = [*said, *(f"warning: {text}" for text in self.warnings)]
        return html_table(self._content()) + "".join(
            f"<div>{html.escape(line)}</div>" for line in lines
        )

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw compression, discrimination and the cosines between the class means in one figure.

        Parameters
        ----------
        path
            Where to write it, atomically; its suffix chooses the format. None writes nothing.

        Raises
        ------
        ValueError, FileNotFoundError
            For an unknown format or a missing directory, before anything is drawn.
        """
        from deeprep import plots

        return plots.plot_report(self, path)

    # ---------------------------------------------------------------- writing and reading

    def scalars(self, prefix: str = "deeprep/") -> dict[str, float]:
        """Return every number of the report in one flat dict, for an experiment tracker.

        Names are ``<prefix><metric>/<layer>``, and ``<prefix>compression_fit/slope`` and
        ``r_squared`` for the fitted lines, in characters that W&B, MLflow, TensorBoard and Trackio
        all take. No two layers have one name: "relu#2" becomes "relu-2", and any other character
        of a layer's name that is no ASCII letter, digit, "_" or "." its code point, "-x2f-" for
        "/".

        Those on test data are under ``<prefix>test/``.

        What is not defined (None) is left out, and so is what is NaN or infinite, which not every
        tracker takes; ``<prefix>nonfinite`` is the number of the latter, and `warnings` say why.

        Raises
        ------
        ValueError
            For a prefix that some tracker does not take.

        Examples
        --------
        >>> import torch, deeprep
        >>> scatter = deeprep.class_scatter(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        >>> report = deeprep.LayerReport.from_scatters({"relu#2": scatter}, metrics=["equinorm"])
        >>> scalars = report.scalars()
        >>> sorted(scalars)
        ['deeprep/compression/relu-2', 'deeprep/discrimination/relu-2', 'deeprep/equinorm/relu-2',
         'deeprep/nonfinite']
        >>> scalars["deeprep/compression/relu-2"]
        2.0
        """
        fits = ("compression_fit", "discrimination_fit")
        scalars = flat_scalars(self.layers, {name: getattr(self, name) for name in fits}, prefix)
        if self.test is not None:
            scalars |= self.test.scalars(f"{prefix}test/")
        return scalars

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON: NaN and infinities become "nan", "inf", "-inf"."""
        return formats.to_dict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerReport:
        """Invert `to_dict`; what an older version did not write takes its default.

        Raises
        ------
        ValueError
            For a field that no report has, or a missing one that every report has.
        """
        return cls(**formats.fields_of(data, cls))

    def to_json(self, path: str | Path) -> None:
        """Write `to_dict` as JSON, a line a layer, atomically."""
        formats.write_json(self.to_dict(), Path(path))

    def to_csv(self, path: str | Path) -> None:
        """Write one row a layer with a header, atomically; what is not defined is empty."""
        formats.write_csv(self, Path(path))

    def to_pandas(self) -> DataFrame:
        """Return a data frame, a row a layer, a column a metric; what is not defined is missing.

        Its ``attrs`` hold the number of samples and of classes, min_count and the number of
        classes measured, the weighting and the correction.

        Raises
        ------
        ImportError
            Without pandas.
        """
        return formats.data_frame(self)


def _check_class_names(names: Sequence[str] | None, num_classes: int) -> list[str] | None:
    if names is None:
        return None
    if len(names) != num_classes:
        raise ValueError(
            f"class_names has {len(names)} names, expected {num_classes}, one for each class"
        )
    return list(names)
