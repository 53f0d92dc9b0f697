"""How well a simple classifier reads the classes off the features."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deeprep.base.validate import UndefinedStatisticError, as_tensor, check_batch, to_tensors
from deeprep.metrics import class_means, undefined
from deeprep.metrics.spectrum import is_above_noise, noise_of_scatter
from deeprep.state import ClassScatter


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A linear classifier, argmax_k (W z + b)_k; see :func:`probe`.

    ``weight`` W (K, d) and ``bias`` b (K,), float64, on the device of the state they came from.
    """

    weight: Tensor
    bias: Tensor

    def predict(self, features: Any) -> Tensor:
        """Predict the classes (N,) int64 of ``features`` (N, d), block by block of rows.

        ``features`` may be float64/32/16 or bfloat16, a torch tensor on the device of the probe or
        a NumPy array. A row whose scores are not finite gets -1. ValueError for another width or
        device, TypeError for another type.
        """
        return _argmax_of_scores(features, self.weight, self.bias, torch.zeros_like(self.weight[0]))

    def accuracy(self, features: Any, labels: Any, ignore_index: int = -100) -> float:
        """Share of the rows, those labelled ``ignore_index`` left out, that are predicted right.

        ``labels`` (N,) int32/int64. nan for a probe fitted to features with NaN or Inf. Raises
        UndefinedStatisticError where no row counts.
        """
        if not bool(self.weight.isfinite().all()):
            return float("nan")
        return _accuracy(self.predict, features, labels, ignore_index, "accuracy")


def probe(s: ClassScatter, ridge: float = 0.0) -> LinearProbe:
    """Fit the exact least-squares classifier on one-hot targets, with a bias, from the state alone.

    W and b minimise (1/N) sum_i |W z_i + b - onehot(y_i)|^2 + ridge |W|_F^2, the bias not
    penalised; of all minimisers the one with the smallest |W|_F. Needs a state with ``full=True``:

        W = B (T + ridge N I)^+   with   T = S + sum_k n_k (mu_k - mu_G)(mu_k - mu_G)'  (d, d)
        b_k = n_k/N - <w_k, mu_G>   and   B (K, d) of rows n_k (mu_k - mu_G)

    by a Cholesky factor of T; or, where T has eigenvalues at the level of its rounding, by its
    eigendecomposition, these counting as zero.
    The scores of any z sum to 1, so the largest is positive and a class without samples, whose
    row and bias are 0, is never predicted.

    A state that holds NaN or Inf gives a probe of nan, with a warning.

    Raises
    ------
    UndefinedStatisticError
        Without samples.
    ValueError
        Without ``full=True`` and for a ridge that is negative or not finite.

    Notes
    -----
    The probe of Wang et al. 2025, which they trained by gradient descent, in closed form.

    Examples
    --------
    >>> import torch, deeprep
    >>> features, labels = torch.tensor([[1.0], [-1.0], [3.0]]), torch.tensor([0, 1, 0])
    >>> fitted = deeprep.metrics.probe(deeprep.class_scatter(features, labels, full=True))
    >>> fitted.predict(torch.tensor([[0.5], [-7.0]])).tolist()
    [0, 1]
    >>> fitted.accuracy(features, labels)
    1.0
    """
    check_ridge(ridge)
    undefined.require_classes(s, "probe", at_least=1)
    pooled = s.pooled_scatter
    if not undefined.is_finite(s, "probe", pooled):
        return LinearProbe(
            torch.full_like(s.means, torch.nan), torch.full_like(s.means[:, 0], torch.nan)
        )
    total, targets, noise = normal_equations(s, pooled)
    weight = solve(total, targets, noise, ridge * s.num_samples)
    shares = s.counts.to(torch.float64) / s.num_samples
    return LinearProbe(weight, shares - weight @ s.global_mean)


def normal_equations(s: ClassScatter, pooled: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return T (d, d) and B (K, d) of :func:`probe`, and what rounding leaves of zero in T."""
    roots = s.counts.to(torch.float64).sqrt_().unsqueeze(1)
    centered = s.means - s.global_mean
    centered *= roots
    total = torch.addmm(pooled, centered.T, centered)
    return total, centered.mul_(roots), noise_of_scatter(pooled, s.unit_roundoff, total)


def check_ridge(ridge: float) -> None:
    """Raise unless it is one."""
    if not (ridge >= 0.0 and math.isfinite(ridge)):
        raise ValueError(f"ridge is {ridge}, expected a finite number >= 0")


def solve(total: Tensor, targets: Tensor, noise: float, ridge: float) -> Tensor:
    """Rows of B (T + ridge I)^+ for T `total` (d, d) and B `targets` (K, d).

    Eigenvalues of T up to `noise` count as zero. Mostly there are none.
    """
    weight: Tensor
    if is_above_noise(total, noise):
        ridged = total.clone()
        ridged.diagonal().add_(ridge)
        factor = torch.linalg.cholesky(ridged)
        weight = torch.cholesky_solve(targets.T, factor).T.contiguous()
        return weight
    eigenvalues, vectors = torch.linalg.eigh(total)
    # In the null space of T the targets have no component either: what the rounding of T puts
    # there is noise, and dividing by it would blow the weights up.
    inverse = torch.where(eigenvalues > noise, 1.0 / (eigenvalues + ridge), 0.0)
    weight = (targets @ vectors).mul_(inverse) @ vectors.T
    return weight


def nearest_class(s: ClassScatter, features: Any) -> Tensor:
    """Predict argmin_k |z - mu_k| (N,) int64 over the classes with samples, for each row z.

    ``features`` (N, d) as for :meth:`LinearProbe.predict`; they are read block by block of rows
    and shifted by mu_G first, so that features far from the origin keep their digits. Of equally
    near classes the first. A row with NaN or Inf, or any row if the state holds some, gets -1.

    Raises
    ------
    UndefinedStatisticError
        For a state without samples.

    Examples
    --------
    >>> import torch, deeprep
    >>> s = deeprep.class_scatter(torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]))
    >>> deeprep.metrics.nearest_class(s, torch.tensor([[0.2], [-5.0]])).tolist()
    [0, 1]
    """
    present = class_means.present_classes(s, "nearest_class", at_least=1)
    # NaN or Inf in one class reaches mu_G and so every score: all predictions are -1.
    undefined.is_finite(s, "nearest_class", value=-1)
    centered, bias = scores_of_means(s, present)
    best = _argmax_of_scores(features, centered, bias, s.global_mean)
    return torch.where(best >= 0, present[best], -1)


def scores_of_means(s: ClassScatter, present: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight (P, d) and bias (P,) of the classifier of z - mu_G by the nearest class mean.

    |z - mu|^2 = |z|^2 - 2 (<z, mu> - |mu|^2 / 2): the least distance is the largest score.
    """
    centered = class_means.present_means(s, present) - s.global_mean
    return centered, torch.linalg.vector_norm(centered, dim=1).square_().mul_(-0.5)


def ncc_accuracy(s: ClassScatter, features: Any, labels: Any) -> float:
    """Share of the rows of ``features`` whose nearest class mean is that of their own class.

    ``features`` (N, d), ``labels`` (N,); rows labelled ``s.ignore_index`` do not count. nan with a
    warning for a state that holds NaN or Inf. It compares with labels; NC4 compares with what the
    model decides, see :func:`ncc_mismatch`.

    Raises
    ------
    UndefinedStatisticError
        For a state without samples and where no row counts.

    Notes
    -----
    Galanti, György, Hutter, On the role of neural collapse in transfer learning, 2022.

    Examples
    --------
    >>> import torch, deeprep
    >>> features, labels = torch.tensor([[1.0], [-1.0], [-3.0], [5.0]]), torch.tensor([0, 1, 1, 1])
    >>> deeprep.metrics.ncc_accuracy(deeprep.class_scatter(features, labels), features, labels)
    0.75
    """
    class_means.present_classes(s, "ncc_accuracy", at_least=1)
    if not undefined.is_finite(s, "ncc_accuracy"):
        return float("nan")
    return _accuracy(
        lambda rows: nearest_class(s, rows), features, labels, s.ignore_index, "ncc_accuracy"
    )


def ncc_mismatch(s: ClassScatter, features: Any, decisions: Any) -> float:
    """Share of the rows whose nearest class mean is not the class that the model decides for.

    Parameters
    ----------
    s
        State of the features that enter the model's classifier.
    features
        (N, d), these or those of other samples, as for :meth:`LinearProbe.predict`.
    decisions
        (N,) int32/int64, the arg-max of the model's own scores. Rows with ``s.ignore_index`` do
        not count.

    Returns
    -------
    0 where the classifier acts as the nearest class mean; nan, with a warning, for a state that
    holds NaN or Inf.

    Raises
    ------
    UndefinedStatisticError
        For a state without samples and where no row counts.

    Notes
    -----
    Papyan, Han, Donoho, Prevalence of neural collapse, 2020 (NC4).

    Examples
    --------
    >>> import torch, deeprep
    >>> s = deeprep.class_scatter(torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]))
    >>> features, decisions = torch.tensor([[2.0], [0.1], [-3.0], [-1.0]]), [0, 1, 1, 1]
    >>> deeprep.metrics.ncc_mismatch(s, features, torch.tensor(decisions))
    0.25
    """
    class_means.present_classes(s, "ncc_mismatch", at_least=1)
    if not undefined.is_finite(s, "ncc_mismatch"):
        return float("nan")
    hits, total = _count_hits(
        lambda rows: nearest_class(s, rows), features, decisions, s.ignore_index, "ncc_mismatch"
    )
    return (total - hits) / total


def self_duality(s: ClassScatter, weight: Any) -> float:
    """Distance of a classifier from the class means, | W/|W|_F - M/|M|_F |_F; 0 for W = c M, c > 0.

    ``weight`` W (K, d), any float dtype and device; M (K, d) holds the centred means
    mu_k - mu_G. Classes without samples are left out of both. nan with a warning where W or
    M is zero.

    Raises
    ------
    UndefinedStatisticError
        Below two classes with samples.
    ValueError
        For a weight of another shape.

    Notes
    -----
    Papyan, Han, Donoho, Prevalence of neural collapse, 2020 (NC3).

    Examples
    --------
    >>> import torch, deeprep
    >>> s = deeprep.class_scatter(torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]))
    >>> round(deeprep.metrics.self_duality(s, torch.tensor([[0.3], [-0.3]])), 12)
    0.0
    """
    rows = as_tensor("weight", weight)
    if rows.shape != s.means.shape:
        raise ValueError(
            f"weight has shape {tuple(rows.shape)}, expected {tuple(s.means.shape)}: one row for "
            "each class"
        )
    present = class_means.present_classes(s, "self_duality")
    if not undefined.is_finite(s, "self_duality"):
        return float("nan")
    rows = rows.to(s.means)[present]
    centered = class_means.centered_means(s, present)
    lengths = torch.linalg.matrix_norm(rows), torch.linalg.matrix_norm(centered)
    if not bool(lengths[0]):
        undefined.warn_undefined("self_duality", "the weight is zero")
        return float("nan")
    if not bool(lengths[1]):
        return undefined.ratio(0.0, 0.0, "self_duality")
    return float(torch.linalg.matrix_norm(rows / lengths[0] - centered / lengths[1]))


def _argmax_of_scores(features: Any, weight: Tensor, bias: Tensor, origin: Tensor) -> Tensor:
    """Find argmax_k (weight (z - origin) + bias)_k (N,) for each row z; -1 where not finite.

    ``weight`` (P, d), ``bias`` (P,), ``origin`` (d,). Only a block of rows at a time is widened to
    float64 and multiplied.
    """
    rows = class_means.check_features(features, weight)
    best = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    for where, block in class_means.blocks_of_rows(rows, origin, len(weight)):
        value, winner = torch.addmm(bias, block, weight.T).max(dim=1)
        best[where] = torch.where(value.isfinite(), winner, -1)
    return best


def _accuracy(
    predict: Callable[[Any], Tensor],
    features: Any,
    labels: Any,
    ignore_index: int,
    statistic: str,
) -> float:
    """Share of the rows that count whose prediction is their label."""
    hits, total = _count_hits(predict, features, labels, ignore_index, statistic)
    return hits / total


def _count_hits(
    predict: Callable[[Any], Tensor],
    features: Any,
    labels: Any,
    ignore_index: int,
    statistic: str,
) -> tuple[int, int]:
    """Return how many of the rows that count are predicted right, and how many count."""
    rows, wanted = to_tensors(features, labels)
    check_batch(rows, wanted)
    counted = wanted != ignore_index
    total = int(counted.sum())
    if total == 0:
        raise UndefinedStatisticError(
            f"{statistic} needs at least one row that counts, found none of {len(wanted)}"
        )
    return int((predict(rows) == wanted)[counted].sum()), total
