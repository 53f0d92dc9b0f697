"""How the variance of the features, centred, is spread over their dimensions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deeprep.base.validate import check_positive, require
from deeprep.metrics import undefined
from deeprep.metrics.class_means import frobenius_norm
from deeprep.metrics.decompositions import Decompositions
from deeprep.state import ClassScatter

_FITTED = 3  # points at least: a line meets two of them exactly, whatever they are


def covariance_eigenvalues(s: ClassScatter | Decompositions) -> Tensor:
    """Eigenvalues (min(N, d),) float64 of the covariance Sigma_T of all features, largest first.

    Sigma_T = (1/N) sum_i (z_i - mu_G)(z_i - mu_G)' = Sigma_W + sum_k (n_k/N) (mu_k - mu_G)(...)'.
    ``s`` is a state with ``full=True``, or its :class:`Decompositions`. Eigenvalues that the
    rounding of S would drown are returned as 0 (below about 1e-15 of the largest for float64
    features, 3e-7 for float32).

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
    >>> features = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> s = deeprep.class_scatter(features, torch.tensor([0, 0, 1, 1]), full=True)
    >>> deeprep.metrics.covariance_eigenvalues(s).tolist()
    [4.5, 0.5]
    """
    return _eigenvalues(s, "covariance_eigenvalues")


def participation_ratio(s: ClassScatter | Decompositions | Tensor) -> float:
    """Participation ratio (sum_j lambda_j)^2 / sum_j lambda_j^2 of the eigenvalues of Sigma_T.

    1 for one direction, r for r equal eigenvalues. ``s`` is a state with ``full=True``, its
    :class:`Decompositions` or its :func:`covariance_eigenvalues`; of a state it takes no
    eigendecomposition: it is Tr(Sigma_T)^2 / |Sigma_T|_F^2. 0 where all features coincide; nan,
    with a warning, for features that hold NaN or Inf.

    Raises
    ------
    UndefinedStatisticError
        Without samples.
    ValueError
        Without ``full=True``.

    Notes
    -----
    Gao et al., A theory of multineuronal dimensionality, dynamics and measurement, 2017. Not
    corrected for few samples, which make it too small: about 1/PR = 1/PR_true + 1/N.

    Examples
    --------
    >>> import torch, deeprep
    >>> features = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> s = deeprep.class_scatter(features, torch.tensor([0, 0, 1, 1]), full=True)
    >>> round(deeprep.metrics.participation_ratio(s), 12)  # 5^2 / (4.5^2 + 0.5^2)
    1.219512195122
    """
    if isinstance(s, Tensor):
        total, norm = float(s.sum()), frobenius_norm(s)
    else:
        parts = Decompositions.of(s)
        if not parts.are_finite("participation_ratio", at_least=1):
            return math.nan
        total, norm = float(parts.total.trace()), frobenius_norm(parts.total)
    return (total / norm) ** 2 if norm else 0.0


def alpha_req(s: ClassScatter | Decompositions | Tensor, first: int = 11, last: int = 100) -> float:
    """Decay alpha of the eigenvalues of Sigma_T, lambda_j ~ j^-alpha, fitted over a range of j.

    The slope of the line through -log lambda_j against log j by least squares with weights 1/j,
    over j = `first`, ..., `last`, or to the last eigenvalue above zero where that comes before.

    Parameters
    ----------
    s
        A state with ``full=True``, its :class:`Decompositions` or its
        :func:`covariance_eigenvalues`.
    first, last
        The eigenvalues to fit, the largest being number 1.

    Returns
    -------
    nan, with a warning, where fewer than three eigenvalues are left to fit, and for features that
    hold NaN or Inf.

    Raises
    ------
    UndefinedStatisticError
        Without samples.
    ValueError, TypeError
        Without ``full=True``, and for a range that is none.

    Notes
    -----
    Agrawal, Mondal, Ghosh, Richards, alpha-ReQ: assessing representation quality in self-supervised
    learning by measuring eigenspectrum decay, 2022 (arXiv 2202.05808). The paper leaves the range
    open: 11 to 100 and the weights are those of its authors' package reptrix, after the code of
    Stringer et al. 2019. Other code of theirs begins at 4 or 12, other authors fit without weights.

    Examples
    --------
    >>> import torch, deeprep
    >>> round(deeprep.metrics.alpha_req(torch.arange(1, 200, dtype=torch.float64) ** -1.5), 12)
    1.5
    """
    first, last = check_positive("first", first), check_positive("last", last)
    require("last", last, last >= first + _FITTED - 1, f"at least first + {_FITTED - 1}")
    values = s.double() if isinstance(s, Tensor) else _eigenvalues(s, "alpha_req")
    if bool(values.isnan().any()):
        return math.nan
    positive = int(torch.count_nonzero(values))
    last = min(last, positive)
    if last < first + _FITTED - 1:
        reason = (
            f"{positive} eigenvalues are above rounding, which leaves {max(last - first + 1, 0)} "
            f"from number {first} on, and a line needs three"
        )
        undefined.warn_undefined("alpha_req", reason)
        return math.nan
    numbers = torch.arange(first, last + 1, dtype=torch.float64, device=values.device)
    weights = 1.0 / numbers / (1.0 / numbers).sum()
    x, y = numbers.log(), values[first - 1 : last].log()
    x, y = x - weights @ x, y - weights @ y
    return float(-(weights @ (x * y)) / (weights @ (x * x)))


def _eigenvalues(s: ClassScatter | Decompositions, statistic: str) -> Tensor:
    """Compute :func:`covariance_eigenvalues`; errors and warnings speak of ``statistic``."""
    parts = Decompositions.of(s)
    finite = parts.are_finite(statistic, at_least=1)
    samples = parts.state.num_samples
    kept = min(samples, parts.state.num_features)
    if not finite:
        return torch.full_like(parts.pooled[0, :kept], torch.nan)
    return parts.total_eigenvalues[:kept] / samples
