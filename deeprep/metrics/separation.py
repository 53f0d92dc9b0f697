"""How far the classes can be told apart along the directions of their means."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deeprep.base.validate import UndefinedStatisticError, require
from deeprep.metrics import class_means, undefined
from deeprep.metrics.decompositions import Decompositions, spread_over_means
from deeprep.state import ClassScatter


def separation_fuzziness(s: ClassScatter | Decompositions) -> float:
    """Separation fuzziness D = Tr(SS_W SS_B^+); smaller is more separated.

    SS_W = Sigma_W and SS_B = sum_k (n_k/N) (mu_k - mu_G)(mu_k - mu_G)'. For balanced classes it is
    K times :func:`nc1`, from the same decomposition; else it is not, for NC1 weighs all classes
    alike in Sigma_B. The law of equi-separation says that log D falls linearly over the layers of
    a trained network.

    ``s`` is a state with ``full=True``, or its :class:`Decompositions`. inf or nan with a warning
    where all class means coincide.

    Raises
    ------
    UndefinedStatisticError
        Below two classes with samples.
    ValueError
        Without ``full=True``.

    Notes
    -----
    He, Su, A law of data separation in deep learning, 2023 (arXiv 2210.17020), with weights n_k/N
    as in the paper. Their code for balanced data averages over the classes, which is the same.

    Examples
    --------
    >>> import torch, deeprep
    >>> features = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]])
    >>> s = deeprep.class_scatter(features, torch.tensor([0, 0, 1, 1]), full=True)
    >>> round(deeprep.metrics.separation_fuzziness(s), 12)
    0.25
    """
    parts = Decompositions.of(s)
    if not parts.are_finite("separation_fuzziness", at_least=2):
        return math.nan
    if parts.prior_span is None:
        return undefined.ratio(parts.state.trace_within, 0.0, "separation_fuzziness")
    return len(parts.present) * spread_over_means(parts.prior_span, parts.within)


def h_score(s: ClassScatter | Decompositions) -> float:
    """H-score Tr(cov(z)^+ cov(E[z|y])), up to min(K - 1, d); larger is easier to classify.

    cov(z) is the covariance of all features and cov(E[z|y]) that of their class means, each sample
    counting: Sigma_T and sum_k (n_k/N) (mu_k - mu_G)(mu_k - mu_G)'. It is the sum of the squared
    canonical correlations between features and classes. The authors divide both by N - 1, which
    cancels, and do not regularise the inverse; nor does this.

    ``s`` is a state with ``full=True``, or its :class:`Decompositions`. 0 where all class means
    coincide.

    Raises
    ------
    UndefinedStatisticError
        Below two classes with samples.
    ValueError
        Without ``full=True``.

    Notes
    -----
    Bao et al., An information-theoretic approach to transferability in task transfer learning,
    2019. Eigenvalues of Sigma_T that the rounding of S would drown count as zero, see
    :func:`covariance_eigenvalues`; the authors' code drops those below 1e-15 of the largest.

    Examples
    --------
    >>> import torch, deeprep
    >>> features = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]])
    >>> s = deeprep.class_scatter(features, torch.tensor([0, 0, 1, 1]), full=True)
    >>> round(deeprep.metrics.h_score(s), 12)  # 4 of a variance of 5
    0.8
    """
    parts = Decompositions.of(s)
    if not parts.are_finite("h_score", at_least=2):
        return math.nan
    return parts.explained


def vci(s: ClassScatter | Decompositions) -> float:
    """Variability collapse index 1 - Tr(Sigma_T^+ Sigma_B) / rank(Sigma_B), in [0, 1].

    0 for collapsed classes, 1 where a linear probe sees nothing of them. Sigma_T is the covariance
    of all features and Sigma_B that of their class means, with weights n_k/N, so that
    Sigma_T = Sigma_W + Sigma_B and no invertible linear map of the features changes the index:
    1 - :func:`h_score` / rank. The paper has balanced classes, where the weights are 1/K; some code
    takes min(K - 1, d) for the rank, which it is unless the means are linearly dependent.

    ``s`` is a state with ``full=True``, or its :class:`Decompositions`. nan with a warning where
    all class means coincide.

    Raises
    ------
    UndefinedStatisticError
        Below two classes with samples.
    ValueError
        Without ``full=True``.

    Notes
    -----
    Xu, Liu, Quantifying the variability collapse of neural networks, 2023 (arXiv 2306.03440,
    definition 5.3).

    Examples
    --------
    >>> import torch, deeprep
    >>> features = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]])
    >>> s = deeprep.class_scatter(features, torch.tensor([0, 0, 1, 1]), full=True)
    >>> round(deeprep.metrics.vci(s), 12)
    0.2
    """
    parts = Decompositions.of(s)
    if not parts.are_finite("vci", at_least=2):
        return math.nan
    if parts.prior_span is None:
        return undefined.ratio(0.0, 0.0, "vci")
    return max(0.0, 1.0 - parts.explained / len(parts.prior_span.singular))


def lidar(s: ClassScatter | Decompositions, delta: float = 1e-4) -> float:
    """LiDAR, the effective rank of Sigma_w^(-1/2) Sigma_b Sigma_w^(-1/2), up to min(K - 1, d).

    exp(-sum_j p_j log p_j) with p_j = lambda_j / sum(lambda) + 1e-7 over the d eigenvalues of that
    matrix. The classes are the samples and their rows the views: label each augmented view with
    the number of the sample that it is of. With

        Sigma_b = 1/(K - 1) sum_k (mu_k - m)(mu_k - m)',   m = (1/K) sum_k mu_k
        Sigma_w = S / (N - K) + delta I

    the unbiased estimates of the paper, which takes the same number of views of all samples; of
    unequal numbers Sigma_b weighs all samples alike, and Sigma_w all views.

    Parameters
    ----------
    s
        A state with ``full=True``, or its :class:`Decompositions`.
    delta
        Added to the diagonal of Sigma_w, > 0. It is not relative to the features, whose scale
        therefore matters where their within-class variance comes near to it.

    Returns
    -------
    0 where all class means coincide; nan, with a warning, for features that hold NaN or Inf.

    Raises
    ------
    UndefinedStatisticError
        Below two classes with samples, and where no class has two.
    ValueError
        Without ``full=True`` and for a delta that is not above zero and finite.

    Notes
    -----
    Thilak et al., LiDAR: sensing linear probing performance in joint embedding SSL architectures,
    2024 (arXiv 2312.04000). Sources differ. The paper has no value for delta: 1e-4 is that of
    Skean et al. 2025 and of stable-pretraining, reptrix has 1e-6. The 1e-7, which keeps the
    logarithm finite, is RankMe's and reptrix's; stable-pretraining adds 1e-8 to the eigenvalues
    themselves, Skean et al. add nothing. Skean et al. divide by K and N, which differs through
    delta alone.

    Examples
    --------
    >>> import torch, deeprep
    >>> views = torch.tensor([[3.0, 0.0], [0.0, 3.0], [-3.0, 0.0], [0.0, -3.0]])
    >>> features = torch.cat([views + 0.1, views - 0.1])
    >>> s = deeprep.class_scatter(features, torch.tensor([0, 1, 2, 3] * 2), full=True)
    >>> round(deeprep.metrics.lidar(s), 2)  # the views differ along (1, 1): all is along (1, -1)
    1.02
    """
    require("delta", delta, 0.0 < delta < math.inf, "a finite number > 0")
    parts = Decompositions.of(s)
    if not parts.are_finite("lidar", at_least=2):
        return math.nan
    state, classes = parts.state, len(parts.present)
    if state.num_samples == classes:
        raise UndefinedStatisticError(
            "lidar needs at least two samples in one class, found one in each"
        )
    rows = _means_around_their_average(parts)
    if not bool(rows.any()):
        return 0.0
    within = parts.pooled / (state.num_samples - classes)
    singular = torch.linalg.svdvals(_whitened(class_means.triangular(rows), within, delta))
    eigenvalues = torch.zeros_like(within[0])
    eigenvalues[: len(singular)] = (singular / singular[0]).square_()
    shares = eigenvalues / eigenvalues.sum() + 1e-7
    return float(torch.xlogy(shares, shares).sum().neg().exp())


def _means_around_their_average(parts: Decompositions) -> Tensor:
    """Return rows with the singular values and vectors of mu_k - m, m the average of the mu_k."""
    if parts.is_balanced:  # m is mu_G
        span = parts.span
        return parts.pooled[:0] if span is None else span.vectors * span.singular.unsqueeze(1)
    state, present = parts.state, parts.present
    average = class_means.present_means(state, present).mean(dim=0)
    rounding = class_means.rounding_of_means(state)
    return class_means.means_around(state, present, average, rounding)


def _whitened(rows: Tensor, within: Tensor, delta: float) -> Tensor:
    """Return (d, P) with the singular values of (within + delta I)^(-1/2) rows'."""
    ridged = within.clone()
    ridged.diagonal().add_(delta)
    factor, failed = torch.linalg.cholesky_ex(ridged)
    whitened: Tensor
    if not int(failed):
        whitened = torch.linalg.solve_triangular(factor, rows.T, upper=False)
    else:  # the rounding of S is above delta: eigenvalues that it left below zero are zero
        values, vectors = torch.linalg.eigh(within)
        roots = (values.clamp_(min=0.0) + delta).sqrt_()
        whitened = (vectors.T @ rows.T) / roots.unsqueeze(1)
    return whitened
