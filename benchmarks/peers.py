"""What people use instead: each competitor as a function of (features, labels, K).

A peer computes class statistics in the way its users would, as fast as it honestly can, and returns
what it computes, by name: ``counts``, ``means``, ``sumsq`` of the classes in ``classes`` (default:
all K), their total ``sum_sumsq``, or ``calinski_harabasz``. NumPy and the libraries over it have no
bfloat16, and torch would sum in it, so bfloat16 features are widened to float32, and that is part
of the time. Left out: scikit-learn's LinearDiscriminantAnalysis (an SVD or a d x d covariance
besides) and its private _class_means (NearestCentroid is the public way to the same numbers).

Two forms of the sum of squares occur. Those by deviations from the means are checked relative to
sumsq; those by E|z|^2 - |mu|^2 can only be good relative to sum |z|^2, and are checked against
that.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.shapes import DTypeName, Shape
from deeprep import reference

Statistics = dict[str, Any]
MAX_PEER_BYTES = 12 * 2**30  # a peer that needs more is reported, not run
_ORACLE_ENTRIES = 2**25  # of one slice of columns: 256 MiB of float64


@dataclass(frozen=True)
class Peer:
    """A competitor.

    `run` is what is timed. `tolerance` is the relative error it is held to before it is timed, and
    `energy` says that the sum of squares is checked relative to sum |z|^2. `extra_bytes` estimates
    what it allocates. `library` must be importable; `applies` says where it makes sense at all.
    """

    name: str
    run: Callable[[Tensor, Tensor, int], Statistics]
    tolerance: float
    extra_bytes: Callable[[Shape], float]
    energy: bool = False
    library: str = "numpy"
    applies: Callable[[Shape], bool] = lambda shape: True

    @property
    def installed(self) -> bool:
        """Whether its library is there."""
        return importlib.util.find_spec(self.library) is not None

    def memory(self, shape: Shape, dtype: DTypeName) -> float:
        """Bytes it needs besides the features, widened copy and its K x d results included."""
        widened = 2 * shape.bytes("bfloat16") if dtype == "bfloat16" else 0
        return self.extra_bytes(shape) + widened + 2 * shape.state_bytes

    def warm_up(self) -> None:
        """Import and start what the first call would."""
        self.run(torch.arange(32.0).reshape(8, 4), torch.arange(8) % 2, 2)


def _entries(shape: Shape) -> int:
    return shape.num_rows * shape.num_features


# ------------------------------------------------------------------------ the competitors


def _numpy_reference(features: Tensor, labels: Tensor, num_classes: int) -> Statistics:
    s = reference.class_scatter(features.float().numpy(), labels.numpy(), num_classes)
    return {"counts": s.counts, "means": s.means, "sumsq": s.sumsq}


def _numpy_reduceat(features: Tensor, labels: Tensor, num_classes: int) -> Statistics:
    order = np.argsort(labels.numpy(), kind="stable")
    rows = features.float().numpy()[order]
    counts = np.bincount(labels.numpy(), minlength=num_classes)
    classes = np.flatnonzero(counts)
    counts = counts[classes]
    starts = np.cumsum(counts) - counts
    means = np.add.reduceat(rows, starts, axis=0) / counts[:, None]
    energies = np.add.reduceat(np.einsum("ij,ij->i", rows, rows), starts, dtype=np.float64)
    sumsq = energies - counts * np.square(means).sum(axis=1)
    return {"classes": classes, "counts": counts, "means": means, "sumsq": sumsq}


def torch_index_add(features: Tensor, labels: Tensor, num_classes: int) -> Statistics:
    """Class sums by index_add_, then the deviations from the means; on any device."""
    rows = features.float()
    counts = torch.bincount(labels, minlength=num_classes)
    means = rows.new_zeros(num_classes, rows.shape[1]).index_add_(0, labels, rows)
    means /= counts.clamp(min=1).unsqueeze(1)
    deviations = means.index_select(0, labels).sub_(rows).square_().sum(dim=1)
    sumsq = torch.zeros(num_classes, dtype=torch.float64, device=rows.device)
    sumsq.index_add_(0, labels, deviations.double())
    return {"counts": counts, "means": means, "sumsq": sumsq}


def torch_one_hot(features: Tensor, labels: Tensor, num_classes: int) -> Statistics:
    """Class sums by a product with the one-hot matrix; on any device."""
    rows = features.float()
    one_hot = rows.new_zeros(len(rows), num_classes).scatter_(1, labels.unsqueeze(1), 1.0)
    counts = torch.bincount(labels, minlength=num_classes)
    return by_energy(rows, labels, counts, one_hot.T @ rows)


def by_energy(rows: Tensor, labels: Tensor, counts: Tensor, sums: Tensor) -> Statistics:
    """Means from sums, sums of squares from |z|^2: deviations would cost another N x d array."""
    means = sums.double() / counts.clamp(min=1).unsqueeze(1)
    norms = torch.linalg.vector_norm(rows, dim=1).double().square_()
    sumsq = torch.zeros(len(counts), dtype=torch.float64, device=rows.device)
    sumsq.index_add_(0, labels, norms)
    sumsq -= counts * means.square().sum(dim=1)
    return {"counts": counts, "means": means, "sumsq": sumsq}


def _scipy_sparse(features: Tensor, labels: Tensor, num_classes: int) -> Statistics:
    from scipy import sparse

    rows = features.float().numpy()
    ones, ends = np.ones(len(rows), dtype=np.float32), np.arange(len(rows) + 1)
    one_hot = sparse.csr_matrix((ones, labels.numpy(), ends), shape=(len(rows), num_classes))
    counts = np.bincount(labels.numpy(), minlength=num_classes)
    means = (one_hot.T @ rows) / np.maximum(counts, 1)[:, None]
    norms = np.einsum("ij,ij->i", rows, rows)
    sumsq = np.bincount(labels.numpy(), weights=norms, minlength=num_classes)
    sumsq -= counts * np.square(means).sum(axis=1)
    return {"counts": counts, "means": means, "sumsq": sumsq}


def _scipy_ndimage(features: Tensor, labels: Tensor, num_classes: int) -> Statistics:
    from scipy import ndimage

    columns, classes = features.float().numpy().T, labels.numpy()
    counts = np.bincount(classes, minlength=num_classes)
    present = np.flatnonzero(counts)
    means = np.stack([ndimage.mean(column, classes, present) for column in columns], axis=1)
    variances = [ndimage.variance(column, classes, present) for column in columns]
    return {
        "classes": present,
        "counts": counts[present],
        "means": means,
        "sumsq": np.sum(variances, axis=0) * counts[present],
    }


def _sklearn_nearest_centroid(features: Tensor, labels: Tensor, num_classes: int) -> Statistics:
    from sklearn.neighbors import NearestCentroid

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it wonders about many classes of few rows
        fitted = NearestCentroid().fit(features.float().numpy(), labels.numpy())
    freedom = len(labels) - len(fitted.classes_)
    total = np.square(fitted.within_class_std_dev_, dtype=np.float64).sum() * freedom
    return {"classes": fitted.classes_, "means": fitted.centroids_, "sum_sumsq": total}


def _torchmetrics_score(features: Tensor, labels: Tensor, num_classes: int) -> Statistics:
    from torchmetrics.functional.clustering import calinski_harabasz_score

    return {"calinski_harabasz": float(calinski_harabasz_score(features.float(), labels))}


def _pandas_groupby(features: Tensor, labels: Tensor, num_classes: int) -> Statistics:
    import pandas

    groups = pandas.DataFrame(features.float().numpy(), copy=False).groupby(labels.numpy())
    counts, means, variances = groups.size(), groups.mean(), groups.var(ddof=0)
    return {
        "classes": means.index.to_numpy(),
        "counts": counts.to_numpy(),
        "means": means.to_numpy(),
        "sumsq": variances.to_numpy().sum(axis=1, dtype=np.float64) * counts.to_numpy(),
    }


PEERS = (
    Peer(
        "NumPy class by class",  # deeprep.reference: float64, two passes
        _numpy_reference,
        1e-10,
        lambda shape: 8 * (2 + 3 / shape.num_classes) * _entries(shape),
    ),
    Peer(
        "NumPy reduceat",  # on rows sorted by label; float32 sums
        _numpy_reduceat,
        1e-3,
        lambda shape: 4 * _entries(shape),
        energy=True,
    ),
    Peer("torch index_add_", torch_index_add, 1e-3, lambda shape: 4 * _entries(shape)),
    Peer(
        "torch one-hot GEMM",
        torch_one_hot,
        1e-3,
        lambda shape: 4 * shape.num_rows * shape.num_classes,
        energy=True,
    ),
    Peer(
        "SciPy sparse one-hot",
        _scipy_sparse,
        1e-3,
        lambda shape: 24 * shape.num_rows,
        energy=True,
        library="scipy",
    ),
    Peer(
        "SciPy ndimage",  # a call a column, so only where columns are few
        _scipy_ndimage,
        1e-5,
        lambda shape: 32 * shape.num_rows,
        library="scipy",
        applies=lambda shape: shape.num_features <= 64,
    ),
    Peer(
        "scikit-learn NearestCentroid",  # means, and sumsq summed over classes, in float64
        _sklearn_nearest_centroid,
        1e-4,
        lambda shape: 24 * _entries(shape) + 24 * shape.num_classes * shape.num_features,
        library="sklearn",
    ),
    Peer(
        "torchmetrics Calinski-Harabasz",  # one number; a Python loop over the classes
        _torchmetrics_score,
        1e-3,
        lambda shape: 8 * (1 + 1 / shape.num_classes) * _entries(shape),
        library="torchmetrics",
    ),
    Peer(
        "pandas groupby",  # size, mean, var
        _pandas_groupby,
        1e-3,
        lambda shape: 16 * _entries(shape),
        library="pandas",
    ),
)


# ------------------------------------------------------------------------ checking


def oracle(features: Tensor, labels: Tensor, num_classes: int) -> Statistics:
    """`deeprep.reference`, some columns at a time: float64 copies of all would not fit."""
    width = max(1, _ORACLE_ENTRIES // max(1, len(features)))
    means, sumsq = [], np.zeros(num_classes)
    for part in features.split(width, dim=1):
        s = reference.class_scatter(part.float().numpy(), labels.numpy(), num_classes)
        means.append(s.means)
        sumsq += s.sumsq
    return {"counts": s.counts, "means": np.concatenate(means, axis=1), "sumsq": sumsq}


def refcheck(
    name: str, found: Statistics, wanted: Statistics, tolerance: float, energy: bool
) -> None:
    """Compare statistics with those of `oracle`.

    Raises
    ------
    ValueError
        Something is further off than `tolerance`.
    """
    classes = np.asarray(found.get("classes", np.arange(len(wanted["counts"]))))
    counts, means = wanted["counts"][classes], wanted["means"][classes]
    sumsq = wanted["sumsq"][classes]
    scale = sumsq + counts * np.square(means).sum(axis=1) if energy else sumsq
    errors = {}
    if "counts" in found:
        errors["counts"] = float(np.abs(np.asarray(found["counts"]) - counts).max())
    if "means" in found:
        errors["means"] = float(np.abs(np.asarray(found["means"]) - means).max())
    if "sumsq" in found:
        off = np.abs(np.asarray(found["sumsq"]) - sumsq)
        errors["sumsq"] = float(np.max(off / np.maximum(scale, 1e-12)))
    if "sum_sumsq" in found:
        errors["sum_sumsq"] = abs(found["sum_sumsq"] / sumsq.sum() - 1.0)
    if "calinski_harabasz" in found:
        errors["calinski_harabasz"] = abs(found["calinski_harabasz"] / _score(wanted) - 1.0)
    for quantity, error in errors.items():
        if not error <= tolerance:
            raise ValueError(f"{name}: {quantity} is off by {error:.2g}, expected <= {tolerance:g}")


def _score(wanted: Statistics) -> float:
    """Calinski-Harabasz: (between / (K - 1)) / (within / (N - K))."""
    counts, means = wanted["counts"], wanted["means"]
    num_rows, num_present = counts.sum(), np.count_nonzero(counts)
    center = counts @ means / num_rows
    between = counts @ np.square(means - center).sum(axis=1)
    within = wanted["sumsq"].sum()
    return float(between / within * (num_rows - num_present) / (num_present - 1))
