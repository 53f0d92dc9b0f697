"""How wide the classes are along the lines between their means."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from deeprep.base.validate import UndefinedStatisticError, check_batch, check_labels, to_tensors
from deeprep.metrics import class_means, undefined
from deeprep.state import ClassScatter


def directional_cdnv(s: ClassScatter, features: Any, labels: Any) -> float:
    """Directional CDNV: variances along the line between two means over its squared length.

    Mean over pairs k != k' of E_i <z_ki - mu_k, mu_k - mu_k'>^2 / |mu_k - mu_k'|^4, which is the
    variance of class k along u = (mu_k - mu_k') / |mu_k - mu_k'| over |mu_k - mu_k'|^2, both orders
    of each pair counted (so a pair has half the sum of its two variances). In d = 1 it is
    :func:`cdnv`, else at most that.

    It needs the covariance of every class, K d^2 numbers, in place of which the features are read
    once more, block by block of rows, against the means of the finished state.

    Parameters
    ----------
    s
        State of these features, or of others that mu_k is to come from.
    features
        (N, d), float64/32/16 or bfloat16, on the device of the state, or a NumPy array.
    labels
        (N,) int32/int64. Rows labelled ``s.ignore_index``, and those of classes without samples in
        ``s``, do not count; nor do pairs (k, k') without rows of class k.

    Returns
    -------
    nan, with a warning, where two means coincide and so have no direction, and for features that
    hold NaN or Inf.

    Raises
    ------
    UndefinedStatisticError
        Below two classes with samples and where no row counts.
    ValueError, TypeError
        On features or labels that do not fit.

    Notes
    -----
    Luthra, Yang, Galanti, Self-supervised contrastive learning is approximately supervised
    contrastive learning, 2025; Luthra, Salunkhe, Galanti, Directional neural collapse explains
    few-shot transfer in self-supervised learning, 2026. After the CDNV of Galanti, György, Hutter.

    Examples
    --------
    >>> import torch, deeprep
    >>> features = torch.tensor([[1.0, 5.0], [3.0, -5.0], [-1.0, 5.0], [-3.0, -5.0]])
    >>> labels = torch.tensor([0, 0, 1, 1])
    >>> s = deeprep.class_scatter(features, labels)
    >>> deeprep.metrics.directional_cdnv(s, features, labels)  # the spread of 5 lies across
    0.0625
    >>> deeprep.metrics.cdnv(s)
    1.625
    """
    undefined.require_classes(s, "directional_cdnv", at_least=2)
    rows, classes = to_tensors(features, labels, s.num_classes)
    class_means.check_features(rows, s.means)
    check_batch(rows, classes)
    check_labels(classes, s.num_classes, s.ignore_index)
    if not undefined.is_finite(s, "directional_cdnv"):
        return math.nan
    spread = DirectionalSpread(s)
    own, counted = spread.own_means(classes)
    for where, block in class_means.blocks_of_rows(rows, spread.origin, spread.num_means):
        spread.update(block, own[where], counted[where])
    if not bool(spread.counts.any()):
        raise UndefinedStatisticError(
            f"directional_cdnv needs at least one row that counts, found none of {len(rows)}"
        )
    value = spread.cdnv()
    if math.isnan(value):
        reason = "two class means coincide, or the features hold NaN or Inf"
        undefined.warn_undefined("directional_cdnv", reason)
    return value


class DirectionalSpread:
    """Sums of <z_ki - mu_k, mu_k - mu_k'>^2 / |mu_k - mu_k'|^4 over rows, against a finished state.

    Fed by blocks of rows. The distances between all means are kept where they are few (a tile at
    most, and no more than the means) and no block then waits for the device; else each block
    computes those it needs again.

    Attributes
    ----------
    origin
        (d,) what to subtract from rows before `update`: mu_G.
    sums, counts
        (P,) float64 and int64, over the rows of each of the P classes with samples.
    """

    def __init__(self, s: ClassScatter) -> None:
        present = s.counts.nonzero().squeeze(1)
        all_means = torch.arange(len(present), device=present.device)
        self.num_means = len(present)
        self.origin = s.global_mean
        self.centered = class_means.centered_means(s, present)
        self.sums = torch.zeros_like(s.sumsq[present])
        self.counts = torch.zeros_like(present)
        self._ignore_index = s.ignore_index
        self._place = torch.full_like(s.counts, -1)  # of class k among the means
        self._place[present] = all_means
        self._lengths = torch.linalg.vector_norm(self.centered, dim=1).square_()
        self._distances: Tensor | None = None
        kept = min(class_means.TILE_ENTRIES, max(self.centered.numel(), 1 << 16))
        if self.num_means**2 <= kept:
            self._distances = self._distances_from(all_means)

    def own_means(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return where the mean of each row's class is (B,), and whether the row counts (B,)."""
        classes = labels.long()
        inside = (classes >= 0) & (classes < len(self._place)) & (classes != self._ignore_index)
        place = self._place[classes.clamp(0, len(self._place) - 1)]
        return place.clamp(min=0), inside & (place >= 0)

    def update(self, block: Tensor, own: Tensor, counted: Tensor) -> Tensor:
        """Take in rows minus `origin`, a block (B, d) float64 that is overwritten.

        Returns
        -------
        (B,) bool: whether the nearest class mean (the first of equally near) is the row's own;
        from the same product, as |z - mu_k'|^2 - |z - mu_k|^2 = |mu_k - mu_k'|^2 + 2 p with
        p = <z - mu_k, mu_k - mu_k'>.
        """
        deviations = block.sub_(self.centered[own])
        along = deviations @ self.centered.T
        along = along.gather(1, own.unsqueeze(1)) - along
        distances = self._distances_from(own) if self._distances is None else self._distances[own]
        nearest, place = torch.add(distances, along, alpha=2.0).min(dim=1)
        distances.scatter_(1, own.unsqueeze(1), torch.inf)
        terms = along.div_(distances).square_().sum(dim=1)
        self.sums.index_add_(0, own, torch.where(counted, terms, 0.0))
        self.counts.index_add_(0, own, counted.long())
        return (place == own) & nearest.isfinite() & counted

    def cdnv(self) -> float:
        """Average over the pairs; nan where there are none and where a term is not finite."""
        seen = self.counts > 0
        value = float((self.sums / self.counts)[seen].mean()) / max(self.num_means - 1, 1)
        return value if self.num_means > 1 and math.isfinite(value) else math.nan

    def _distances_from(self, own: Tensor) -> Tensor:
        """Compute |mu_own - mu_k'|^2 (B, P)."""
        rows = self.centered[own]
        gram = rows @ self.centered.T
        return class_means.squared_distances(
            rows, self.centered, self._lengths[own], self._lengths, gram
        )
