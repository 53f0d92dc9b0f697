"""How the centred class means lie to one another: lengths, angles, distance from a simplex."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deeprep.metrics import class_means, undefined
from deeprep.state import ClassScatter


def equinorm(s: ClassScatter) -> float:
    """Take std_k |mu_k - mu_G| / mean_k |mu_k - mu_G|; 0 where the means are equally far out.

    Population standard deviation. nan with a warning where all means coincide.

    Raises
    ------
    UndefinedStatisticError
        Below two classes with samples.

    Notes
    -----
    Papyan, Han, Donoho, Prevalence of neural collapse, 2020 (NC2).

    Examples
    --------
    >>> import torch, deeprep
    >>> s = deeprep.class_scatter(torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]))
    >>> deeprep.metrics.equinorm(s)
    0.0
    """
    present = class_means.present_classes(s, "equinorm")
    if not undefined.is_finite(s, "equinorm"):
        return float("nan")
    norms = class_means.centered_norms(s, present)
    return undefined.ratio(float(norms.std(correction=0)), float(norms.mean()), "equinorm")


def equiangularity(s: ClassScatter) -> float:
    """Take the std over pairs k < k' of cos(mu_k - mu_G, mu_k' - mu_G); 0 for equal angles.

    Population standard deviation. nan with a warning where a centred mean is zero and has no
    direction.

    Raises
    ------
    UndefinedStatisticError
        Below two classes with samples.

    Notes
    -----
    Papyan, Han, Donoho, Prevalence of neural collapse, 2020 (NC2).

    Examples
    --------
    >>> import torch, deeprep
    >>> s = deeprep.class_scatter(torch.eye(3), torch.tensor([0, 1, 2]))
    >>> round(deeprep.metrics.equiangularity(s), 12)
    0.0
    """
    unit = class_means.directions(s, "equiangularity", centered=True)
    if unit is None:
        return float("nan")
    pairs = len(unit) * (len(unit) - 1) // 2
    # |sum_k u_k|^2 = P + 2 sum_{k<k'} <u_k, u_k'> gives the mean before any pair is visited, so
    # that deviations from it are squared and nothing cancels.
    mean = (float(unit.sum(dim=0).square().sum()) - len(unit)) / (2 * pairs)
    total = torch.zeros_like(unit[0, 0])
    for _, tile in class_means.gram_tiles(unit):
        total += class_means.fill_repeats(tile.sub_(mean), 0.0).square_().sum()
    return math.sqrt(float(total) / pairs)


def etf_error(s: ClassScatter) -> float:
    """Distance to a simplex equiangular tight frame, | MM'/|MM'|_F - (I - 11'/K)/sqrt(K-1) |_F.

    M (K, d) holds the centred means mu_k - mu_G of the K classes with samples. 0 for a simplex,
    at most sqrt(2). nan with a warning where all means coincide.

    Raises
    ------
    UndefinedStatisticError
        Below two classes with samples.

    Notes
    -----
    Zhu et al., A geometric analysis of neural collapse with unconstrained features, 2021.

    Examples
    --------
    >>> import torch, deeprep
    >>> s = deeprep.class_scatter(torch.eye(3), torch.tensor([0, 1, 2]))
    >>> round(deeprep.metrics.etf_error(s), 12)
    0.0
    """
    present = class_means.present_classes(s, "etf_error")
    if not undefined.is_finite(s, "etf_error"):
        return float("nan")
    centered = class_means.centered_means(s, present)
    # M by its largest entry first: the fourth powers below can then neither over- nor underflow.
    largest = torch.linalg.vector_norm(centered, torch.inf)
    if not bool(largest):
        return undefined.ratio(0.0, 0.0, "etf_error")
    centered /= largest
    squares = torch.zeros_like(largest)
    for _, tile in class_means.gram_tiles(centered):
        squares += _symmetric_sum(tile.square_())
    norm = squares.sqrt()
    classes = len(centered)
    total = torch.zeros_like(largest)
    for _, tile in class_means.gram_tiles(centered):
        tile.div_(norm).add_(1.0 / (classes * math.sqrt(classes - 1)))
        tile.diagonal().sub_(1.0 / math.sqrt(classes - 1))
        total += _symmetric_sum(tile.square_())
    return math.sqrt(float(total))


def gnc2(s: ClassScatter) -> float:
    """Take std / |mean| over pairs k < k' of log(1 / |u_k - u_k'|), u_k = (mu_k - mu_G) / |...|.

    How evenly the centred means spread over the sphere where there are too many classes for a
    simplex: 0 where all pairs are equally far apart. Population standard deviation. nan with a
    warning where a centred mean is zero, where two directions coincide (their kernel is infinite),
    and where the kernels average to 0 but differ (inf).

    Raises
    ------
    UndefinedStatisticError
        Below two classes with samples.

    Notes
    -----
    The logarithmic kernel of Liu et al., Generalizing and decoupling neural collapse via
    hyperspherical uniformity gap, 2023; its coefficient of variation as GNC2: Wu, Papyan,
    Linguistic collapse: neural collapse in (large) language models, 2024.

    Examples
    --------
    >>> import torch, deeprep
    >>> s = deeprep.class_scatter(torch.eye(3), torch.tensor([0, 1, 2]))
    >>> round(deeprep.metrics.gnc2(s), 12)
    0.0
    """
    unit = class_means.directions(s, "gnc2", centered=True)
    if unit is None:
        return float("nan")
    pairs = len(unit) * (len(unit) - 1) // 2
    total = torch.zeros_like(unit[0, 0])
    for _, squares in class_means.distance_tiles(unit):
        # Squares of rounding errors are no distance.
        squares.masked_fill_(squares <= (16.0 * class_means.EPS) ** 2, 0.0)
        total += class_means.fill_repeats(squares, 1.0).log_().mul_(-0.5).sum()
    mean = float(total) / pairs
    if math.isinf(mean):
        undefined.warn_undefined(
            "gnc2", "two class means lie in the same direction from the global"
        )
        return float("nan")
    total.zero_()
    for _, squares in class_means.distance_tiles(unit):
        kernel = squares.log_().mul_(-0.5).sub_(mean)
        total += class_means.fill_repeats(kernel, 0.0).square_().sum()
    deviation = math.sqrt(float(total) / pairs)
    return undefined.ratio(deviation, abs(mean), "gnc2", "the kernels average to 0")


def _symmetric_sum(tile: Tensor) -> Tensor:
    """Sum the part of a symmetric (K, K) matrix that ``tile`` stands for; overwrites the tile."""
    diagonal = tile.diagonal().sum()
    return diagonal + 2.0 * class_means.fill_repeats(tile, 0.0).sum()
