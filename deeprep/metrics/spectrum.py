"""How many dimensions the features of a layer use."""

from __future__ import annotations

import torch
from torch import Tensor

from deeprep.metrics import _means
from deeprep.scatter import ClassScatter


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
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"threshold must lie in (0, 1], found {threshold}")
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


def noise_of_scatter(pooled: Tensor, resolution: float, scatter: Tensor) -> float:
    """Bound the size below which eigenvalues of S + (a sum over class means) are rounding errors.

    ``pooled`` is S (d, d), summed from features of unit round-off ``resolution``; adding the means
    and the eigendecomposition of ``scatter`` (d, d), the sum, cost a few units of float64. The
    errors measured in S are 0.1 to 3 units of |S|_F in the spectral norm, on features of any rank.
    """
    norms = torch.linalg.matrix_norm(pooled), torch.linalg.matrix_norm(scatter)
    return 4.0 * resolution * float(norms[0]) + 8.0 * _means.EPS * float(norms[1])


def _singular_values(s: ClassScatter, statistic: str, value: object = "nan") -> Tensor:
    """Compute :func:`singular_values`; errors and warnings speak of ``statistic``."""
    _means.present_classes(s, statistic, at_least=1)
    pooled = s.pooled_scatter
    kept = min(s.num_samples, s.num_features)
    if not _means.is_finite(s, statistic, pooled, value=value):
        return torch.full((kept,), torch.nan, dtype=torch.float64, device=pooled.device)
    rows = s.means * s.counts.double().sqrt_().unsqueeze(1)
    second_moment = torch.addmm(pooled, rows.T, rows)
    eigenvalues = torch.linalg.eigvalsh(second_moment)
    eigenvalues[eigenvalues <= noise_of_scatter(pooled, s.resolution, second_moment)] = 0.0
    descending: Tensor = eigenvalues.sqrt_().flip(0)
    return descending[:kept]
