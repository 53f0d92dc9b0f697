"""LayerReport: what was measured, a row a layer; as a table, CSV and JSON."""

from __future__ import annotations

import csv
import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from deeprep import metrics
from deeprep._files import atomic_path
from deeprep._validate import UndefinedStatisticError
from deeprep.scatter import ClassScatter, Weighting
from deeprep.theory import LineFit, fit_line

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

Value = TypeVar("Value")


@dataclass(frozen=True)
class LayerMetrics:
    """The metrics of one layer; None where a metric was not asked for or is not defined.

    `closest_classes` is the pair of classes whose means have the largest cosine, the one that
    `discrimination` is about. Accuracies are fractions in [0, 1] on the data measured.
    """

    index: int
    name: str
    num_features: int
    compression: float | None = None
    discrimination: float | None = None
    closest_classes: tuple[int, int] | None = None
    nc1: float | None = None
    numerical_rank: int | None = None
    effective_rank: float | None = None
    probe_accuracy: float | None = None
    ncc_accuracy: float | None = None


def _measure(
    index: int,
    name: str,
    scatter: ClassScatter,
    accuracies: tuple[float | None, float | None],
    weighting: Weighting,
    notes: list[str],
) -> LayerMetrics:
    """All metrics of one layer; what is undefined becomes None and a note."""

    def defined(compute: Callable[[], Value]) -> Value | None:
        try:
            return compute()
        except UndefinedStatisticError as error:
            notes.append(str(error))
            return None

    closest = defined(lambda: metrics.closest_classes(scatter))
    spectrum = defined(lambda: metrics.singular_values(scatter)) if scatter.full else None
    return LayerMetrics(
        index=index,
        name=name,
        num_features=scatter.num_features,
        compression=defined(lambda: metrics.compression(scatter, weighting)),
        discrimination=None if closest is None else 1.0 - closest.cosine,
        closest_classes=None
        if closest is None or math.isnan(closest.cosine)
        else (closest.first, closest.second),
        nc1=defined(lambda: metrics.nc1(scatter)) if scatter.full else None,
        numerical_rank=_rank(spectrum),
        effective_rank=None if spectrum is None else metrics.effective_rank(spectrum),
        probe_accuracy=accuracies[0],
        ncc_accuracy=accuracies[1],
    )


def _rank(spectrum: Tensor | None) -> int | None:
    """Numerical rank; None also where NaN or Inf leave it undefined."""
    rank = -1 if spectrum is None else metrics.numerical_rank(spectrum)
    return None if rank < 0 else rank


@dataclass(frozen=True)
class LayerReport:
    """Metrics of every layer of a model on one set of data; made by `deeprep.analyze`.

    Examples
    --------
    >>> import torch, deeprep
    >>> labels = torch.arange(40) % 2
    >>> features = {l: torch.eye(2)[labels] + 0.3**l * torch.randn(40, 2) for l in range(4)}
    >>> scatters = {f"layer{l}": deeprep.class_scatter(x, labels) for l, x in features.items()}
    >>> report = deeprep.LayerReport.from_scatters(scatters)
    >>> bool(report.compression_fit.slope < 0)
    True
    """

    layers: list[LayerMetrics]
    num_samples: int
    num_classes: int
    weighting: Weighting = "uniform"
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def from_scatters(
        cls,
        scatters: Mapping[str, ClassScatter],
        accuracies: Mapping[str, tuple[float | None, float | None]] | None = None,
        *,
        weighting: Weighting = "uniform",
    ) -> LayerReport:
        """Compute every metric of every layer; the first of `scatters` is layer 0, the input.

        Parameters
        ----------
        scatters : layer name -> ClassScatter, in order of depth.
        accuracies : layer name -> (least-squares probe, nearest class mean), fractions.
        weighting : "uniform" or "prior", see `ClassScatter.trace_between`.
        """
        rows, messages = [], []
        for index, (name, scatter) in enumerate(scatters.items()):
            notes: list[str] = []
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                scores = (accuracies or {}).get(name, (None, None))
                rows.append(_measure(index, name, scatter, scores, weighting, notes))
            notes += [str(warning.message) for warning in caught]
            # Several metrics may say the same of one layer.
            messages += [f"layer {name!r}: {note}" for note in dict.fromkeys(notes)]
        first = next(iter(scatters.values()))
        return cls(rows, first.num_samples, first.num_classes, weighting, messages)

    @property
    def compression_fit(self) -> LineFit | None:
        """Line through log10 C_l against l for the layers l >= 1; None below two points."""
        points = [
            (layer.index, math.log10(layer.compression))
            for layer in self.layers[1:]
            if layer.compression is not None and 0.0 < layer.compression < math.inf
        ]
        return fit_line(*zip(*points, strict=True)) if len(points) > 1 else None

    @property
    def discrimination_fit(self) -> LineFit | None:
        """Line through D_l against l for the layers l >= 1; None below two points."""
        points = [
            (layer.index, layer.discrimination)
            for layer in self.layers[1:]
            if layer.discrimination is not None and math.isfinite(layer.discrimination)
        ]
        return fit_line(*zip(*points, strict=True)) if len(points) > 1 else None

    def summary(self) -> str:
        """Two lines: the fitted rates of C_l and D_l, with their R^2."""
        lines = []
        if (fit := self.compression_fit) is not None:
            lines.append(
                f"compression    C_l is multiplied by {10**fit.slope:.3g} a layer "
                f"(log C_l against l, l >= 1: R^2 = {fit.r_squared:.3f})"
            )
        if (fit := self.discrimination_fit) is not None:
            lines.append(
                f"discrimination D_l changes by {fit.slope:+.3g} a layer "
                f"(D_l against l, l >= 1: R^2 = {fit.r_squared:.3f})"
            )
        return "\n".join(lines) or "fewer than two hidden layers: no rate to fit"

    # ---------------------------------------------------------------- out and in

    def table(self, title: str | None = None) -> Table:
        """Return the report as a `rich` table, a row a layer."""
        from rich import box
        from rich.table import Table

        caption = (
            f"{self.num_samples} samples, {self.num_classes} classes; "
            f"Sigma_B with {self.weighting} weights"
        )
        table = Table(
            title=title,
            caption=caption,
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        table.add_column("l", justify="right")
        table.add_column("layer")
        headings = ("d", "C_l", "D_l", "closest", "NC1", "rank", "probe", "NCC")
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True)
        for layer in self.layers:
            pair = layer.closest_classes
            table.add_row(
                str(layer.index),
                layer.name,
                str(layer.num_features),
                _format(layer.compression, ".3g"),
                _format(layer.discrimination, ".4f"),
                "-" if pair is None else f"{pair[0]},{pair[1]}",
                _format(layer.nc1, ".3g"),
                _format(layer.numerical_rank, "d"),
                _format(layer.probe_accuracy, ".1%"),
                _format(layer.ncc_accuracy, ".1%"),
            )
        return table

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON: NaN and infinities become "nan", "inf", "-inf"."""
        layers = [
            {name: _encode(value) for name, value in asdict(layer).items()} for layer in self.layers
        ]
        return {
            "layers": layers,
            "num_samples": self.num_samples,
            "num_classes": self.num_classes,
            "weighting": self.weighting,
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerReport:
        """Invert `to_dict`."""
        layers = [
            LayerMetrics(**{name: _decode(name, value) for name, value in layer.items()})
            for layer in data["layers"]
        ]
        return cls(**{**data, "layers": layers})

    def to_json(self, path: str | Path) -> None:
        """Write `to_dict` as JSON, atomically."""
        with atomic_path(Path(path)) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")

    def to_csv(self, path: str | Path) -> None:
        """Write one row a layer with a header, atomically; what is not defined is empty."""
        names = [f.name for f in fields(LayerMetrics)]
        with atomic_path(Path(path)) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            for layer in self.layers:
                values = asdict(layer)
                if layer.closest_classes is not None:
                    values["closest_classes"] = " ".join(map(str, layer.closest_classes))
                writer.writerow(["" if values[n] is None else values[n] for n in names])


def _format(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _encode(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _decode(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return float(value) if isinstance(value, str) and name != "name" else value
