"""Pure functions from a :class:`deeprep.ClassScatter` to the numbers that describe a layer.

Every function works on the device and in the float64 of the state, touches only classes that have
samples, and holds neither an N x d nor a K x K array: what compares pairs of classes goes by tiles.
Each has a twin of the same name in :mod:`deeprep.reference` that computes it from its definition.

A statistic that too few classes have samples for raises ``UndefinedStatisticError``; one asked of
a state that holds NaN or Inf is nan, with a warning that names the classes.
"""

from deeprep.metrics.classes import PerClass, per_class
from deeprep.metrics.classifier import (
    LinearProbe,
    ncc_accuracy,
    ncc_mismatch,
    nearest_class,
    probe,
    self_duality,
)
from deeprep.metrics.collapse import cdnv, cdnv_per_class, compression, nc1
from deeprep.metrics.cosines import (
    ClosestClasses,
    closest_classes,
    closest_pairs,
    discrimination,
)
from deeprep.metrics.covariance import alpha_req, covariance_eigenvalues, participation_ratio
from deeprep.metrics.decompositions import Decompositions
from deeprep.metrics.directional import directional_cdnv
from deeprep.metrics.geometry import equiangularity, equinorm, etf_error, gnc2
from deeprep.metrics.leave_one_out import Jackknife, jackknife
from deeprep.metrics.ridge import choose_ridge
from deeprep.metrics.separation import h_score, lidar, separation_fuzziness, vci
from deeprep.metrics.spectrum import (
    ClassRanks,
    class_ranks,
    effective_rank,
    numerical_rank,
    rankme,
    singular_values,
    stable_rank,
)

__all__ = [
    "ClassRanks",
    "ClosestClasses",
    "Decompositions",
    "Jackknife",
    "LinearProbe",
    "PerClass",
    "alpha_req",
    "cdnv",
    "cdnv_per_class",
    "choose_ridge",
    "class_ranks",
    "closest_classes",
    "closest_pairs",
    "compression",
    "covariance_eigenvalues",
    "directional_cdnv",
    "discrimination",
    "effective_rank",
    "equiangularity",
    "equinorm",
    "etf_error",
    "gnc2",
    "h_score",
    "jackknife",
    "lidar",
    "nc1",
    "ncc_accuracy",
    "ncc_mismatch",
    "nearest_class",
    "numerical_rank",
    "participation_ratio",
    "per_class",
    "probe",
    "rankme",
    "self_duality",
    "separation_fuzziness",
    "singular_values",
    "stable_rank",
    "vci",
]
