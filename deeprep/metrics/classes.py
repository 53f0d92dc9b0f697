"""The metrics of single classes: which of them hold a layer back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deeprep.metrics import class_means, undefined
from deeprep.metrics.collapse import cdnv_per_class
from deeprep.metrics.cosines import nearest_to_each
from deeprep.state import ClassScatter, Weighting


class PerClass(NamedTuple):
    """A column (K,) for each statistic of :func:`per_class`; float64 unless said otherwise.

    A class without samples has a count of 0, ``nearest`` -1 and nan elsewhere.

    Attributes
    ----------
    counts
        Int64, n_k.
    variance
        V_k = sum_i |z_ki - mu_k|^2 / n_k.
    mean_norm
        |mu_k|.
    centered_norm
        |mu_k - mu_G|.
    compression
        V_k / Tr Sigma_B; their average, weighted by n_k, is the layer's compression.
    nearest
        Int64, the class k' != k with the largest cos(mu_k, mu_k').
    cosine
        That cosine; the least 1 - cosine is the layer's discrimination.
    cdnv
        Mean over k' != k of (v_k + v_k') / (2 |mu_k - mu_k'|^2).
    """

    counts: Tensor
    variance: Tensor
    mean_norm: Tensor
    centered_norm: Tensor
    compression: Tensor
    nearest: Tensor
    cosine: Tensor
    cdnv: Tensor


def per_class(s: ClassScatter, weighting: Weighting = "uniform") -> PerClass:
    """Compute the statistics of every single class, in two rounds over the pairs of classes.

    ``compression`` is inf (nan for a class without spread) where all class means coincide. A class
    whose mean is zero has no direction: it has no ``nearest``, and is nobody's. For a state that
    holds NaN or Inf, only counts, variance and mean_norm are given, with a warning.

    Raises
    ------
    UndefinedStatisticError
        Below two classes with samples.
    ValueError
        For another weighting.

    Examples
    --------
    >>> import torch, deeprep
    >>> features = torch.tensor([[3.0, 0.0], [5.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> s = deeprep.class_scatter(features, torch.tensor([0, 0, 1, 1]))
    >>> columns = deeprep.metrics.per_class(s)
    >>> columns.variance.tolist(), columns.nearest.tolist(), columns.cosine.tolist()
    ([1.0, 0.0], [1, 0], [0.0, 0.0])
    """
    present = class_means.present_classes(s, "per_class")

    def column(values: Tensor, where: Tensor = present) -> Tensor:
        filled = s.sumsq.new_full((s.num_classes,), torch.nan)
        filled[where] = values
        return filled

    between = class_means.above_rounding(
        s.trace_between(weighting), class_means.rounding_of_means(s)
    )
    variances = (s.sumsq / s.counts)[present]
    norms = torch.linalg.vector_norm(s.means, dim=1)[present]
    nowhere = torch.full_like(s.counts, -1)
    known = {"counts": s.counts, "variance": column(variances), "mean_norm": column(norms)}
    if not undefined.is_finite(s, "what per_class compares between classes"):
        compared = ("centered_norm", "compression", "cosine", "cdnv")
        unknown = {name: torch.full_like(s.sumsq, torch.nan) for name in compared}
        return PerClass(**known, **unknown, nearest=nowhere)
    directed = norms > 0
    unit = class_means.present_means(s, present)[directed] / norms[directed].unsqueeze(1)
    cosine, partner = nearest_to_each(unit)
    classes = present[directed]
    return PerClass(
        **known,
        centered_norm=column(class_means.centered_norms(s, present)),
        compression=column(variances / between),
        nearest=nowhere.index_copy_(0, classes, torch.where(partner >= 0, classes[partner], -1)),
        cosine=column(cosine, classes),
        cdnv=cdnv_per_class(s),
    )
