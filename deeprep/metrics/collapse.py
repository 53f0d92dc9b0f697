"""How small the spread within classes is, next to the spread between them."""

from __future__ import annotations

import torch
from torch import Tensor

from deeprep.metrics import class_means, undefined
from deeprep.metrics.decompositions import Decompositions, spread_over_means
from deeprep.state import ClassScatter, Weighting


def compression(
    s: ClassScatter, weighting: Weighting = "uniform", corrected: bool = False
) -> float:
    """Within-class compression C = Tr Sigma_W / Tr Sigma_B; smaller is more compressed.

    Sigma_W = (1/N) sum_k sum_i (z_ki - mu_k)(z_ki - mu_k)' and
    Sigma_B = (1/K) sum_k (mu_k - mu_G)(mu_k - mu_G)' (``weighting="uniform"``, the paper's), or
    with n_k/N in place of 1/K (``"prior"``). Balanced classes: C = (N-K) / ((K-1) CH), CH the
    Calinski-Harabasz score.

    ``corrected`` takes unbiased estimates of both traces: sum_k (n_k/N) sumsq_k / (n_k - 1) within,
    where the paper's is (1 - 1/n) times too small for n samples a class, and
    ``s.trace_between(weighting, corrected=True)`` between, where it is about Tr Sigma_W / n too
    large. Their ratio is not unbiased, but off by the order of 1/N only.

    Coinciding class means give inf, or nan where the classes have no spread either, with a
    warning; so does a corrected Tr Sigma_B that is not above zero, as it is for every other draw
    of classes that cannot be told apart.

    Raises
    ------
    UndefinedStatisticError
        Below two classes with samples; and, if ``corrected``, where a class has a single one.
    ValueError
        For another weighting.

    Notes
    -----
    Wang et al., Understanding Deep Representation Learning via Layerwise Feature
    Compression and Discrimination, 2025.

    Examples
    --------
    >>> import torch, deeprep
    >>> features = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]])
    >>> s = deeprep.class_scatter(features, torch.tensor([0, 0, 1, 1]))
    >>> deeprep.compression(s)
    0.25
    >>> round(deeprep.compression(s, corrected=True), 12)  # 2 / (4 - 2/2 + 2/4)
    0.571428571429
    """
    present = class_means.present_classes(s, "compression")
    between = s.trace_between(weighting, corrected)
    if not undefined.is_finite(s, "compression"):
        return float("nan")
    rounding = class_means.rounding_of_means(s)
    if not corrected:
        return compression_of_traces(s.trace_within, between, rounding)
    shares = s.counts[present].double() / s.num_samples
    within = float(shares @ s.covariance_traces(present))
    return compression_of_corrected_traces(within, between, rounding)


def compression_of_traces(within: float, between: float, rounding: float) -> float:
    """C of the two traces; where only the `rounding_of_means` is left of Tr Sigma_B, it is zero."""
    between = class_means.above_rounding(between, rounding)
    return undefined.ratio(within, between, "compression")


def compression_of_corrected_traces(within: float, between: float, rounding: float) -> float:
    """C of two traces that are corrected for finite samples."""
    # A difference of two traces: what is left has the rounding of both.
    between = class_means.above_rounding(between, rounding)
    if between <= 16.0 * class_means.EPS * within:
        between = 0.0
    reason = "the corrected Tr Sigma_B is not above zero: the class means may coincide"
    return undefined.ratio(within, between, "compression", reason)


def nc1(s: ClassScatter | Decompositions) -> float:
    """Variability collapse NC1 = Tr(Sigma_W Sigma_B^+) / K, K the number of classes with samples.

    ``s`` is a state with ``full=True``, or its :class:`Decompositions`. The pseudo-inverse comes
    from the singular values s_j and right singular vectors v_j of the (K, d) centred means:
    NC1 = sum_j v_j' Sigma_W v_j / s_j^2 over s_j > s_max max(K, d) eps, and above the rounding of
    the means. Inverting the (d, d) Sigma_B instead would square the condition number of the means.

    inf or nan with a warning where all class means coincide.

    Raises
    ------
    UndefinedStatisticError
        Below two classes with samples.
    ValueError
        Without ``full=True``.

    Notes
    -----
    Papyan, Han, Donoho, Prevalence of neural collapse, 2020 (NC1).

    Examples
    --------
    >>> import torch, deeprep
    >>> features = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]])
    >>> s = deeprep.class_scatter(features, torch.tensor([0, 0, 1, 1]), full=True)
    >>> round(deeprep.metrics.nc1(s), 12)
    0.125
    """
    parts = Decompositions.of(s)
    if not parts.are_finite("nc1", at_least=2):
        return float("nan")
    if parts.span is None:
        return undefined.ratio(parts.state.trace_within, 0.0, "nc1")
    return spread_over_means(parts.span, parts.within)


def nc1_of_means(centered: Tensor, classes: int, within: Tensor, rounding: float) -> float | None:
    """NC1 of what :func:`span_of_means` takes and Sigma_W (d, d); None where there is no span."""
    span = class_means.span_of_means(centered, classes, rounding)
    return None if span is None else spread_over_means(span, within)


def cdnv(s: ClassScatter) -> float:
    """Class-distance normalised variance, the mean of (v_k + v_k') / (2 |mu_k - mu_k'|^2).

    Over pairs k != k', with v_k = sumsq_k / n_k the variance of class k. Coinciding means make it
    inf (nan if both classes have no spread either). With tasks for classes, it is the
    task-distance normalised variance, TDNV (Jiang et al. 2025; summed, not averaged, over pairs
    where they define it).

    Raises
    ------
    UndefinedStatisticError
        Below two classes with samples.

    Notes
    -----
    Galanti, György, Hutter, On the role of neural collapse in transfer learning, 2022.
    Jiang, Dong, Zhou, Zhu, From compression to expression: a layerwise analysis of in-context
    learning, 2025.

    Examples
    --------
    >>> import torch, deeprep
    >>> features = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]])
    >>> s = deeprep.class_scatter(features, torch.tensor([0, 0, 1, 1]))
    >>> deeprep.metrics.cdnv(s)
    0.0625
    """
    return float(_cdnv_of_present(s, "cdnv").mean())


def cdnv_per_class(s: ClassScatter) -> Tensor:
    """Take, for each class k, the mean over k' != k of (v_k + v_k') / (2 |mu_k - mu_k'|^2).

    (K,) float64; nan for a class without samples. The mean over the others is :func:`cdnv`; with
    tasks for classes, these are the tasks' TDNV.

    Raises
    ------
    UndefinedStatisticError
        Below two classes with samples.

    Examples
    --------
    >>> import torch, deeprep
    >>> features = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
    >>> s = deeprep.class_scatter(features, torch.tensor([0, 0, 1, 1]))
    >>> deeprep.metrics.cdnv_per_class(s).tolist()
    [0.01, 0.01]
    """
    values = s.sumsq.new_full((s.num_classes,), torch.nan)
    own = _cdnv_of_present(s, "cdnv_per_class")
    values[s.present] = own
    return values


def _cdnv_of_present(s: ClassScatter, statistic: str) -> Tensor:
    """Compute the CDNV (P,) of the classes with samples; errors and warnings name `statistic`."""
    present = class_means.present_classes(s, statistic)
    if not undefined.is_finite(s, statistic):
        return s.sumsq.new_full((len(present),), torch.nan)
    variances = (s.sumsq / s.counts)[present]
    totals = torch.zeros_like(variances)
    for start, distances in class_means.distance_tiles(class_means.centered_means(s, present)):
        rows = slice(start, start + len(distances))
        spreads = variances[rows, None] + variances[None, start:]
        # An infinite distance takes the pairs met before out of the sums.
        spreads /= class_means.fill_repeats(distances, torch.inf)
        totals[rows] += spreads.sum(dim=1)
        totals[start:] += spreads.sum(dim=0)
    return totals / (2 * (len(present) - 1))
