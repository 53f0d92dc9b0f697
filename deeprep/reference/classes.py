"""What each class contributes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deeprep.reference.collapse import cdnv_per_class
from deeprep.reference.scatter import scatter_of


def per_class(
    features: ArrayLike,
    labels: ArrayLike,
    num_classes: int | None = None,
    weighting: str = "uniform",
    *,
    ignore_index: int = -100,
) -> dict[str, NDArray[np.generic]]:
    """Arrays (K,) by name, see :class:`deeprep.metrics.PerClass`; nan and -1 for an empty class.

    >>> columns = per_class([[1.0], [3.0], [-1.0], [-3.0]], [0, 0, 1, 1])
    >>> columns["variance"].tolist(), columns["compression"].tolist()
    ([1.0, 1.0], [0.25, 0.25])
    """
    s = scatter_of(features, labels, ignore_index, "per_class", classes=2, num_classes=num_classes)
    between = {"uniform": s.trace_between, "prior": s.trace_between_prior}[weighting]
    columns = {
        name: np.full(len(s.counts), np.nan)
        for name in ("variance", "mean_norm", "centered_norm", "compression", "cosine")
    }
    nearest = np.full(len(s.counts), -1, dtype=np.int64)
    for k, centered in zip(s.present, s.centered_means, strict=True):
        columns["variance"][k] = s.sumsq[k] / s.counts[k]
        columns["mean_norm"][k] = np.linalg.norm(s.means[k])
        columns["centered_norm"][k] = np.linalg.norm(centered)
        with np.errstate(divide="ignore", invalid="ignore"):  # coinciding means: inf, 0/0 is nan
            columns["compression"][k] = columns["variance"][k] / np.float64(between)
        for other in s.present[s.present != k]:
            norms = np.linalg.norm(s.means[k]) * np.linalg.norm(s.means[other])
            if norms == 0.0:
                continue
            cosine = s.means[k] @ s.means[other] / norms
            if not cosine <= columns["cosine"][k]:
                columns["cosine"][k], nearest[k] = cosine, other
    distances = cdnv_per_class(features, labels, num_classes, ignore_index=ignore_index)
    return {"counts": s.counts, **columns, "nearest": nearest, "cdnv": distances}
