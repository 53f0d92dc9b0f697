"""How many dimensions the features of a layer use."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from deeprep.base.validate import check_batch, check_labels, require, to_tensors
from deeprep.metrics import class_means, undefined
from deeprep.state import ClassScatter


def singular_values(s: ClassScatter) -> Tensor:
    """Singular values (min(N, d),) float64 of the N x d features, not centred, largest first.

    Square roots of the eigenvalues of Z'Z = S + sum_k n_k mu_k mu_k', S the pooled within-class
    scatter, so the features are not needed. Needs a state with ``full=True``. Squares resolve
    half the digits: singular values that the rounding of S would drown are returned as 0 (below
    about 1e-8 of the largest for float64 features, 5e-4 for float32).

    All nan with a warning for a state that holds NaN or Inf.

    Raises
    ------
    UndefinedStatisticError
        Without samples.
    ValueError
        Without ``full=True``.

    Examples
    --------
    >>> import torch, deeprep
    >>> features = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    >>> s = deeprep.class_scatter(features, torch.tensor([0, 1]), full=True)
    >>> deeprep.metrics.singular_values(s).tolist()
    [4.0, 3.0]
    """
    return _singular_values(s, "singular_values")


def numerical_rank(s: ClassScatter | Tensor, threshold: float = 0.95) -> int:
    """Least r whose r largest singular values sum to >= ``threshold`` of the sum of all.

    Of the singular values themselves, not of their squares. ``s`` is a state with ``full=True``,
    or its :func:`singular_values`, so that several ranks pay for one eigendecomposition.

    0 for features that are all zero; -1, with a warning, for features that hold NaN or Inf.

    Raises
    ------
    UndefinedStatisticError
        Without samples.
    ValueError
        Without ``full=True`` and for a threshold outside (0, 1].

    Notes
    -----
    Wang et al., Understanding Deep Representation Learning via Layerwise Feature
    Compression and Discrimination, 2025.

    Examples
    --------
    >>> import torch, deeprep
    >>> features = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.9, 0.0], [0.0, 0.0, 0.1]])
    >>> s = deeprep.class_scatter(features, torch.tensor([0, 1, 2]), full=True)
    >>> deeprep.metrics.numerical_rank(s), deeprep.metrics.numerical_rank(s, threshold=0.9)
    (2, 1)
    """
    require("threshold", threshold, 0.0 < threshold <= 1.0, "in (0, 1]")
    sigma = s if isinstance(s, Tensor) else _singular_values(s, "numerical_rank", value=-1)
    cumulative = sigma.cumsum(0)
    total = cumulative[-1]
    if bool(total.isnan()):
        return -1
    if not bool(total):
        return 0
    return int((cumulative < threshold * total).sum()) + 1


def effective_rank(s: ClassScatter | Tensor) -> float:
    """Exponential of the entropy of p = sigma / sum(sigma), sigma the singular values.

    r for r equal singular values. ``s`` is a state with ``full=True``, or its
    :func:`singular_values`. 0 for features that are all zero; nan, with a warning, for features
    that hold NaN or Inf.

    Raises
    ------
    UndefinedStatisticError
        Without samples.
    ValueError
        Without ``full=True``.

    Notes
    -----
    Roy, Vetterli, The effective rank: a measure of effective dimensionality, 2007.

    Examples
    --------
    >>> import torch, deeprep
    >>> s = deeprep.class_scatter(torch.eye(4), torch.tensor([0, 1, 2, 3]), full=True)
    >>> round(deeprep.metrics.effective_rank(s), 12)
    4.0
    """
    sigma = s if isinstance(s, Tensor) else _singular_values(s, "effective_rank")
    total = sigma.sum()
    if not bool(total):
        return 0.0
    shares = sigma / total
    return float(torch.xlogy(shares, shares).sum().neg().exp())


def stable_rank(s: ClassScatter | Tensor) -> float:
    """Sum of sigma_j^2 over sigma_max^2, sigma the singular values: |Z|_F^2 / |Z|_2^2.

    At most the rank, r for r equal singular values, and hardly moved by small ones. ``s`` is a
    state with ``full=True``, or its :func:`singular_values`. 0 for features that are all zero;
    nan, with a warning, for features that hold NaN or Inf.

    Raises
    ------
    UndefinedStatisticError
        Without samples.
    ValueError
        Without ``full=True``.

    Notes
    -----
    Rudelson, Vershynin, Sampling from large matrices, 2007.

    Examples
    --------
    >>> import torch, deeprep
    >>> features = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> s = deeprep.class_scatter(features, torch.tensor([0, 1]), full=True)
    >>> deeprep.metrics.stable_rank(s)
    1.25
    """
    sigma = s if isinstance(s, Tensor) else _singular_values(s, "stable_rank")
    largest = sigma.amax()
    if not bool(largest):
        return 0.0
    return float((sigma / largest).square_().sum())


def rankme(s: ClassScatter | Tensor) -> float:
    """RankMe, the exponential of -sum_j p_j log p_j with p_j = sigma_j / sum(sigma) + 1e-7.

    Over the min(N, d) singular values. :func:`effective_rank` without the 1e-7, which the authors
    add to keep the logarithm finite and with which p sums to more than one: each dimension without
    variance makes RankMe larger by a factor of about 1 + 16e-7. ``s`` is a state with
    ``full=True``, or its :func:`singular_values`. 0 for features that are all zero; nan, with a
    warning, for features that hold NaN or Inf.

    Raises
    ------
    UndefinedStatisticError
        Without samples.
    ValueError
        Without ``full=True``.

    Notes
    -----
    Garrido, Balestriero, Najman, LeCun, RankMe: assessing the downstream performance of pretrained
    self-supervised representations by their rank, 2023.

    Examples
    --------
    >>> import torch, deeprep
    >>> s = deeprep.class_scatter(torch.eye(4), torch.tensor([0, 1, 2, 3]), full=True)
    >>> round(deeprep.metrics.rankme(s), 4)
    4.0
    """
    sigma = s if isinstance(s, Tensor) else _singular_values(s, "rankme")
    total = sigma.sum()
    if not bool(total):
        return 0.0
    shares = sigma / total + 1e-7
    return float(torch.xlogy(shares, shares).sum().neg().exp())


class ClassRanks(NamedTuple):
    """Ranks (K,) of the features of each class; int64 the numerical ones, the others float64."""

    numerical: Tensor
    effective: Tensor
    stable: Tensor
    rankme: Tensor


def class_ranks(
    s: ClassScatter, features: Any, labels: Any, *, centered: bool = False, threshold: float = 0.95
) -> ClassRanks:
    """Ranks of the features of each class, from features at hand.

    One pass cannot give them: the state's (d, d) scatter is pooled over the classes, and one a
    class would take K d^2 numbers. So the rows of one class after the other are copied to float64
    and their singular values computed; keep the features of many classes or samples out of it.

    Parameters
    ----------
    s
        The state of these features.
    features, labels
        (N, d) and (N,), as for `ClassScatter.update`.
    centered
        Take z_ki - mu_k, the spread of the class, for z_ki, whose largest singular value often is
        the mean's.
    threshold
        Of :func:`numerical_rank`.

    Returns
    -------
    A class without rows has -1 and nan; so, with a warning, has one whose rows hold NaN or Inf.

    Raises
    ------
    ValueError, TypeError
        On features or labels that do not fit and a threshold outside (0, 1].

    Examples
    --------
    >>> import torch, deeprep
    >>> features, labels = torch.eye(3), torch.tensor([0, 0, 1])
    >>> s = deeprep.class_scatter(features, labels)
    >>> deeprep.metrics.class_ranks(s, features, labels).numerical.tolist()
    [2, 1]
    """
    require("threshold", threshold, 0.0 < threshold <= 1.0, "in (0, 1]")
    rows, classes = to_tensors(features, labels, s.num_classes)
    class_means.check_features(rows, s.means)
    check_batch(rows, classes)
    check_labels(classes, s.num_classes, s.ignore_index)
    numerical = torch.full_like(s.counts, -1)
    others = s.sumsq.new_full((3, s.num_classes), torch.nan)
    bad = []
    order = classes.argsort(stable=True)
    found, counts = classes[order].unique_consecutive(return_counts=True)
    for k, own in zip(found.tolist(), order.split(counts.tolist()), strict=True):
        if k == s.ignore_index:
            continue
        block = rows[own].to(torch.float64)
        if centered:
            block -= s.means[k]
        if not bool(block.isfinite().all()):
            bad.append(k)
            continue
        sigma = torch.linalg.svdvals(block)
        numerical[k] = numerical_rank(sigma, threshold)
        ranks = effective_rank(sigma), stable_rank(sigma), rankme(sigma)
        others[:, k] = torch.tensor(ranks, dtype=torch.float64)
    if bad:
        undefined.warn_nonfinite("class_ranks", bad)
    return ClassRanks(numerical, *others)


def noise_of_scatter(pooled: Tensor, unit_roundoff: float, scatter: Tensor) -> float:
    """Bound the size below which eigenvalues of S + (a sum over class means) are rounding errors.

    ``pooled`` is S (d, d), summed from features of this unit roundoff; adding the means and the
    eigendecomposition of ``scatter`` (d, d), the sum, cost a few units of float64. The errors
    measured in S are 0.1 to 3 units of |S|_F in the spectral norm, on features of any rank.
    """
    norms = class_means.frobenius_norm(pooled), class_means.frobenius_norm(scatter)
    return 4.0 * unit_roundoff * norms[0] + 8.0 * class_means.EPS * norms[1]


def is_above_noise(scatter: Tensor, noise: float) -> bool:
    """Whether all eigenvalues of a scatter (d, d) are above `noise`.

    A Cholesky factor of scatter - noise I proves it, in a small part of the time that they take.
    """
    shifted = scatter.clone()
    shifted.diagonal().sub_(noise)
    _, failed = torch.linalg.cholesky_ex(shifted)
    return not int(failed)


def _singular_values(s: ClassScatter, statistic: str, value: object = "nan") -> Tensor:
    """Compute :func:`singular_values`; errors and warnings speak of ``statistic``."""
    class_means.present_classes(s, statistic, at_least=1)
    pooled = s.pooled_scatter
    kept = min(s.num_samples, s.num_features)
    if not undefined.is_finite(s, statistic, pooled, value=value):
        return torch.full((kept,), torch.nan, dtype=torch.float64, device=pooled.device)
    rows = s.means * s.counts.double().sqrt_().unsqueeze(1)
    second_moment = torch.addmm(pooled, rows.T, rows)
    noise = noise_of_scatter(pooled, s.unit_roundoff, second_moment)
    return roots_of_moment(second_moment, noise)[:kept]


def roots_of_moment(second_moment: Tensor, noise: float) -> Tensor:
    """Return the roots (d,) of the eigenvalues of Z'Z (d, d), largest first; 0 up to `noise`."""
    eigenvalues = torch.linalg.eigvalsh(second_moment)
    eigenvalues[eigenvalues <= noise] = 0.0
    descending: Tensor = eigenvalues.sqrt_().flip(0)
    return descending
