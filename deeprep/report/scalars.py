"""A report as one flat dict of numbers, under names that every experiment tracker takes."""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields

from deeprep.base.validate import require
from deeprep.report.layer_metrics import LayerMetrics
from deeprep.theory import LineFit

__all__ = ["check_prefix", "flat_scalars", "tracker_name"]

# MLflow takes [/\w.\- ] and no "//", "." or ".." of a path; W&B advises against more than letters,
# digits and "_". A "/" of a layer's name would begin a group of curves.
_KEPT = re.compile(r"[A-Za-z0-9_.]")
_CALL = re.compile(r"(.*)#([0-9]+)", re.DOTALL)
_PREFIX = re.compile(r"[A-Za-z0-9_./ \-]*")
_NO_CURVES = ("index", "name", "num_features")


def flat_scalars(
    layers: Sequence[LayerMetrics], fits: Mapping[str, LineFit | None], prefix: str
) -> dict[str, float]:
    """Name -> value of every finite number of some layers, and of the lines through them.

    See `LayerReport.scalars`.
    """
    check_prefix(prefix)
    found = {
        f"{metric}/{tracker_name(layer.name)}": getattr(layer, metric)
        for metric in (f.name for f in fields(LayerMetrics) if f.name not in _NO_CURVES)
        for layer in layers
    }
    for name, fit in fits.items():
        if fit is not None:
            found |= {f"{name}/slope": fit.slope, f"{name}/r_squared": fit.r_squared}
    numbers = {name: float(v) for name, v in found.items() if isinstance(v, int | float)}
    finite = {f"{prefix}{name}": v for name, v in numbers.items() if math.isfinite(v)}
    return {**finite, f"{prefix}nonfinite": float(len(numbers) - len(finite))}


def check_prefix(prefix: str) -> None:
    """Check that names with this prefix are taken by every tracker.

    Raises
    ------
    ValueError
        For other characters than they take, and for what a path would lose.
    """
    normal = posixpath.normpath(f"{prefix}name")
    is_path = normal == f"{prefix}name" and not normal.startswith(("/", ".."))
    wanted = "letters, digits, '_', '.', '-', ' ' and '/', and no '//', '/./', '..' or '/' in front"
    require("prefix", repr(prefix), bool(_PREFIX.fullmatch(prefix)) and is_path, wanted)


def tracker_name(layer: str) -> str:
    """Return the name of a layer in letters, digits, "_", "." and "-"; no two have the same.

    The second call of a module, "relu#2", is "relu-2"; any other letter is "-x<hexadecimal>-".

    >>> [tracker_name(layer) for layer in ("layer1.0.conv2", "relu#2", "a/b", "größe")]
    ['layer1.0.conv2', 'relu-2', 'a-x2f-b', 'gr-xf6--xdf-e']
    """
    call = _CALL.fullmatch(layer)
    stem, suffix = (call[1], f"-{call[2]}") if call else (layer, "")
    # What stands for "here" and "up" in a path would vanish from it.
    only_dots = not layer.strip(".")
    letters = (c if _KEPT.match(c) and not only_dots else f"-x{ord(c):x}-" for c in stem)
    return "".join(letters) + suffix or "-"
