"""Pure functions from a :class:`deeprep.ClassScatter` to the numbers that describe a layer.

Every function works on the device and in the float64 of the state, touches only classes that have
samples, and holds neither an N x d nor a K x K array: what compares pairs of classes goes by tiles.
Each has a twin of the same name in :mod:`deeprep.reference` that computes it from its definition.

A statistic that too few classes have samples for raises ``UndefinedStatisticError``; one asked of
a state that holds NaN or Inf is nan, with a warning that names the classes.
"""

from deeprep.metrics.classifier import LinearProbe, ncc_accuracy, nearest_class, probe, self_duality
from deeprep.metrics.collapse import cdnv, compression, nc1
from deeprep.metrics.geometry import (
    ClosestClasses,
    closest_classes,
    discrimination,
    equiangularity,
    equinorm,
    etf_error,
)
from deeprep.metrics.spectrum import effective_rank, numerical_rank, singular_values

__all__ = [
    "ClosestClasses",
    "LinearProbe",
    "cdnv",
    "closest_classes",
    "compression",
    "discrimination",
    "effective_rank",
    "equiangularity",
    "equinorm",
    "etf_error",
    "nc1",
    "ncc_accuracy",
    "nearest_class",
    "numerical_rank",
    "probe",
    "self_duality",
    "singular_values",
]
