"""Define every statistic in NumPy float64, in two passes: the oracle and the baseline.

Each function takes raw ``(features, labels)`` and follows the formula of its docstring literally:
the class means first, then the deviations from them, full matrices wherever the formula has one.
Nothing is streamed, tiled or factorised, so memory grows with N x d, d x d and K x K. That is the
point: the compiled core and :mod:`deeprep.metrics` are tested and timed against these. Features
are expected finite.

Notation: ``features`` z_i (N, d), ``labels`` y_i in [0, K) or ``ignore_index``; class k has n_k
samples with mean mu_k; mu_G is the mean of all N samples. Classes without samples take part in
nothing; where fewer classes have samples than a statistic needs, UndefinedStatisticError.
"""

from deeprep.reference.classes import per_class
from deeprep.reference.classifier import (
    choose_ridge,
    ncc_accuracy,
    ncc_mismatch,
    nearest_class,
    probe,
    self_duality,
)
from deeprep.reference.collapse import (
    cdnv,
    cdnv_per_class,
    compression,
    directional_cdnv,
    jackknife,
    nc1,
)
from deeprep.reference.covariance import (
    alpha_req,
    covariance_eigenvalues,
    participation_ratio,
)
from deeprep.reference.geometry import (
    closest_classes,
    closest_pairs,
    discrimination,
    equiangularity,
    equinorm,
    etf_error,
    gnc2,
)
from deeprep.reference.scatter import ReferenceScatter, class_scatter
from deeprep.reference.separation import h_score, lidar, separation_fuzziness, vci
from deeprep.reference.spectrum import (
    class_ranks,
    effective_rank,
    numerical_rank,
    rankme,
    singular_values,
    stable_rank,
)

__all__ = [
    "ReferenceScatter",
    "alpha_req",
    "cdnv",
    "cdnv_per_class",
    "choose_ridge",
    "class_ranks",
    "class_scatter",
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
