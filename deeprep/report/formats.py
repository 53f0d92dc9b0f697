"""A LayerReport as plain data, JSON, CSV and a data frame, and back.

Its class imports this module, so it is not named here.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeprep.base import strict_json
from deeprep.base.paths import atomic_path, write_text
from deeprep.metrics import ClosestClasses
from deeprep.report.layer_metrics import LayerMetrics
from deeprep.report.neural_collapse import NeuralCollapse

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-untyped]

# What a row of a table holds: the many pairs of classes have no place in it.
_PAIRS = ("closest_pairs", "closest_pairs_centered")
COLUMNS = tuple(f.name for f in fields(LayerMetrics) if f.name not in _PAIRS)
_NOT_OF_DATA = 3  # the first columns: the layer's index, name and width


def to_dict(report: Any) -> dict[str, Any]:
    """Return plain data for strict JSON."""
    values = {n: list(v) if isinstance(v, list) else v for n, v in vars(report).items()}
    values["layers"] = [strict_json.encode(vars(layer)) for layer in report.layers]
    if report.neural_collapse is not None:
        values["neural_collapse"] = strict_json.encode(vars(report.neural_collapse))
    if report.test is not None:
        values["test"] = to_dict(report.test)
    return values


def fields_of(data: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Return the fields of the report that `to_dict` made `data` of."""
    _check_fields("report", data, kind)
    layers = []
    for index, layer in enumerate(data["layers"]):
        _check_fields(f"report['layers'][{index}]", layer, LayerMetrics)
        layers.append(LayerMetrics(**{n: _decode(n, value) for n, value in layer.items()}))
    values = {**data, "layers": layers}
    collapse, test = data.get("neural_collapse"), data.get("test")
    if collapse is not None:
        _check_fields("report['neural_collapse']", collapse, NeuralCollapse)
        told = {
            n: value if n == "classifier" else _decode(n, value) for n, value in collapse.items()
        }
        values["neural_collapse"] = NeuralCollapse(**told)
    if test is not None:
        values["test"] = kind(**fields_of(test, kind))
    return values


def write_json(data: dict[str, Any], path: Path) -> None:
    """Write what `to_dict` returned, a line a layer, atomically."""
    layers = ",\n    ".join(strict_json.dumps(layer) for layer in data.pop("layers"))
    rest = strict_json.dumps(data, indent=2).removeprefix("{")
    write_text(path, f'{{\n  "layers": [\n    {layers}\n  ],{rest}\n')


def write_csv(report: Any, path: Path) -> None:
    """Write one row a layer with a header, atomically."""
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        columns = _columns(report)
        writer.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            writer.writerow(map(_cell, row))


def _columns(report: Any) -> dict[str, list[Any]]:
    """Name of a column -> its values: the metrics, and after them those on test data."""
    columns = {name: [vars(layer)[name] for layer in report.layers] for name in COLUMNS}
    if report.test is not None:
        for name in COLUMNS[_NOT_OF_DATA:]:
            columns[f"test_{name}"] = [vars(layer)[name] for layer in report.test.layers]
    return columns


def _cell(value: Any) -> Any:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "" if value is None else value


def data_frame(report: Any) -> DataFrame:
    """Return a data frame, a row a layer, a column a metric."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError("to_pandas needs pandas: pip install pandas") from error
    frame = pandas.DataFrame(_columns(report))
    kinds = {"name": "str", "closest_classes": "object", "numerical_rank": "Int64"}
    whole = {"index": "int64", "num_features": "int64"}
    kinds |= whole
    frame = frame.astype({n: kinds.get(n.removeprefix("test_"), "float64") for n in frame.columns})
    classes = ("num_classes", "class_names", "min_count", "num_measured_classes")
    told = ("num_samples", *classes, "weighting", "corrected")
    frame.attrs.update({name: vars(report)[name] for name in told})
    if report.test is not None:
        frame.attrs["test_num_samples"] = report.test.num_samples
    return frame


def _check_fields(where: str, data: Mapping[str, Any], kind: type) -> None:
    """Check that data from a file has the fields of a dataclass, no other ones."""
    if not isinstance(data, Mapping):
        raise TypeError(f"{where} is a {type(data).__name__}, expected a mapping as of to_dict")
    known = fields(kind)
    needed = {f.name for f in known if f.default is MISSING and f.default_factory is MISSING}
    if missing := needed - set(data):
        raise ValueError(f"{where} lacks {', '.join(sorted(missing))}")
    if unknown := set(data) - {f.name for f in known}:
        raise ValueError(
            f"{where} holds {', '.join(sorted(unknown))}, expected fields of {kind.__name__} only; "
            "was it written by a later version of deeprep?"
        )


def _decode(name: str, value: Any) -> Any:
    if name in _PAIRS and value is not None:
        return tuple(ClosestClasses(*pair) for pair in value)
    if isinstance(value, list):
        return tuple(value)
    return float(value) if isinstance(value, str) and name != "name" else value
