"""The theory of deep linear networks: predictions, the fits and checks that test them, a reduction.

Source of the formulas: Wang, Li, Yaras, Zhu, Balzano, Hu, Qu, "Understanding Deep Representation
Learning via Layerwise Feature Compression and Discrimination", JMLR 26(220), 2025 (arXiv
2311.02960). Throughout, a network of depth L has L weight matrices, the last of which is the
classifier; layer l = 0 is the input and l = 1..L-1 are the hidden outputs.
"""

from deeprep.theory.assumptions import (
    balance_errors,
    minimum_norm_error,
    trailing_singular_values,
)
from deeprep.theory.lines import LineFit, fit_line
from deeprep.theory.predictions import (
    dln_compression_ratio,
    dln_discrimination,
    orthonormal_compression,
)
from deeprep.theory.reduction import (
    ReducedDeepLinear,
    draw_wide_deep_linear,
    reduce_deep_linear,
)

__all__ = [
    "LineFit",
    "ReducedDeepLinear",
    "balance_errors",
    "dln_compression_ratio",
    "dln_discrimination",
    "draw_wide_deep_linear",
    "fit_line",
    "minimum_norm_error",
    "orthonormal_compression",
    "reduce_deep_linear",
    "trailing_singular_values",
]
