"""What the metrics share: the means of the classes that take part, and tiles over their pairs.

Pairs of classes are visited in tiles of a block of rows against all rows from its first on, so
the K x K matrix of the pairs never exists and each pair is computed once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deeprep import ops
from deeprep.base.validate import as_tensor
from deeprep.metrics import undefined
from deeprep.state import ClassScatter

# Entries of one temporary array, 32 MiB in float64: large enough for the matrix product to run at
# full speed, small enough to be forgotten next to the K x d means.
TILE_ENTRIES = 1 << 22

EPS = torch.finfo(torch.float64).eps

# Lengths whose squares lose nothing below the smallest float64.
_SMALL = 1e-140


class Span(NamedTuple):
    """The singular values (r,) and right singular vectors (r, d) of means, without rounding."""

    singular: Tensor
    vectors: Tensor


def present_classes(s: ClassScatter, statistic: str, *, at_least: int = 2) -> Tensor:
    """Return the indices (P,) of the classes with samples; raise if there are too few of them."""
    undefined.require_classes(s, statistic, at_least)
    return s.present


def rounding_of_means(s: ClassScatter) -> float:
    """Return the length below which mu_k - mu_G is nothing but the rounding of the subtraction."""
    return 16.0 * EPS * math.sqrt(float(ops.squared_distances(s.means).max()))


def above_rounding(between: float, rounding: float) -> float:
    """Return Tr Sigma_B, exactly zero where only the `rounding_of_means` is left of it."""
    return 0.0 if between <= rounding**2 else between


def centered_means(s: ClassScatter, present: Tensor) -> Tensor:
    """Return mu_k - mu_G (P, d) in new memory; exactly zero where only rounding is left."""
    return means_around(s, present, s.global_mean, rounding_of_means(s))


def means_around(s: ClassScatter, present: Tensor, center: Tensor, rounding: float) -> Tensor:
    """Return mu_k - center (P, d) in new memory; exactly zero where it is not above rounding."""
    no_length = norms_around(s, present, center, rounding) == 0.0
    return (present_means(s, present) - center).masked_fill_(no_length.unsqueeze(1), 0.0)


def centered_norms(s: ClassScatter, present: Tensor) -> Tensor:
    """Return |mu_k - mu_G| (P,); exactly zero where only rounding is left."""
    return norms_around(s, present, s.global_mean, rounding_of_means(s))


def norms_around(s: ClassScatter, present: Tensor, center: Tensor, rounding: float) -> Tensor:
    """Return |mu_k - center| (P,); exactly zero where it is not above rounding."""
    norms = ops.squared_distances(s.means, center).sqrt_()[present]
    return norms.masked_fill_(norms <= rounding, 0.0)


def present_means(s: ClassScatter, present: Tensor) -> Tensor:
    """Return the means (P, d) of the classes with samples: the state's own where none is empty."""
    return s.means if len(present) == s.num_classes else s.means[present]


def triangular(rows: Tensor) -> Tensor:
    """Return rows (P, d), or, of more than d of them, their factor R (d, d), R'R = rows'rows."""
    return torch.linalg.qr(rows, mode="r").R if rows.shape[0] > rows.shape[1] else rows


def frobenius_norm(entries: Tensor) -> float:
    """Return |X|_F of a matrix or vector, also where the squares of its entries leave float64."""
    dims = tuple(range(entries.ndim))
    norm = float(torch.linalg.vector_norm(entries, dim=dims))
    if _SMALL < norm < math.inf:
        return norm
    largest = float(entries.abs().max())
    if not 0.0 < largest < math.inf:
        return norm
    return largest * float(torch.linalg.vector_norm(entries / largest, dim=dims))


def span_of_means(centered: Tensor, classes: int, rounding: float) -> Span | None:
    """Decompose centred means (P, d); None where only `rounding_of_means` is left of them.

    `centered` are those of so many classes, or a factor R (., d) of them, which has the same
    singular values and right singular vectors. Singular values up to max(P, d) eps of the largest
    are left out, with their vectors.
    """
    relative = max(classes, centered.shape[1]) * EPS
    _, singular, vectors = torch.linalg.svd(triangular(centered), full_matrices=False)
    # Centring leaves one direction of mere rounding: the combination of the means that is mu_G.
    kept = singular > max(rounding * classes**0.5, relative * float(singular[0]))
    return Span(singular[kept], vectors[kept]) if bool(kept.any()) else None


def directions(
    s: ClassScatter, statistic: str, *, centered: bool, value: object = "nan"
) -> Tensor | None:
    """Return mu_k / |mu_k| (P, d); None, with a warning, where they are not all defined."""
    present = present_classes(s, statistic)
    if not undefined.is_finite(s, statistic, value=value):
        return None
    means = centered_means(s, present) if centered else present_means(s, present)
    norms = torch.linalg.vector_norm(means, dim=1, keepdim=True)
    if not bool(norms.all()):
        zero = present[norms.squeeze(1) == 0].tolist()
        undefined.warn_zero_means(statistic, zero, value, centered=centered)
        return None
    return means.div_(norms) if centered else means / norms


def check_features(features: Any, like: Tensor) -> Tensor:
    """Bring ``features`` (N, d) into a tensor; they must fit means ``like`` (..., d)."""
    rows = as_tensor("features", features)
    if rows.ndim != 2 or rows.shape[1] != like.shape[1]:
        raise ValueError(f"features has shape {tuple(rows.shape)}, expected (N, {like.shape[1]})")
    if not rows.is_floating_point():
        raise TypeError(f"features has dtype {rows.dtype}, expected a floating-point dtype")
    if rows.device != like.device:
        raise ValueError(f"features is on {rows.device}, expected {like.device}")
    return rows


def blocks_of_rows(
    rows: Tensor, origin: Tensor, num_columns: int
) -> Iterator[tuple[slice, Tensor]]:
    """Yield (where, rows[where] - origin), in float64, block after block of ``rows`` (N, d).

    A block has few enough rows for a product with ``num_columns`` columns to fit a tile.
    """
    step = max(1, TILE_ENTRIES // max(rows.shape[1], num_columns))
    for begin in range(0, len(rows), step):
        where = slice(begin, begin + step)
        # A new tensor also for float64 rows: the caller may write to it.
        yield where, rows[where].to(torch.float64) - origin


def gram_tiles(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield (start, tile), tile[i, j] = <rows[start + i], rows[start + j]>, j over all the rest.

    The tiles cover every pair k <= k' once: of each, only the entries j >= i are new. ``rows``
    (P, d); a tile is (block, P - start), new memory of about ``TILE_ENTRIES`` entries.
    """
    start = 0
    while start < len(rows):
        stop = start + max(1, TILE_ENTRIES // (len(rows) - start))
        yield start, rows[start:stop] @ rows[start:].T
        start = stop


def fill_repeats(tile: Tensor, value: float) -> Tensor:
    """Overwrite, in a tile of :func:`gram_tiles`, all but the pairs k < k' with ``value``."""
    # Rows and columns start at the same class, so only the leading square holds repeats.
    square = tile[:, : len(tile)]
    square.masked_fill_(torch.ones_like(square, dtype=torch.bool).tril_(), value)
    return tile


def distance_tiles(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield (start, tile) as :func:`gram_tiles` of |rows[start + i] - rows[start + j]|^2."""
    lengths = torch.linalg.vector_norm(rows, dim=1).square_()
    for start, tile in gram_tiles(rows):
        stop = start + len(tile)
        yield (
            start,
            squared_distances(
                rows[start:stop], rows[start:], lengths[start:stop], lengths[start:], tile
            ),
        )


def squared_distances(
    rows: Tensor, points: Tensor, left: Tensor, right: Tensor, gram: Tensor
) -> Tensor:
    """Turn ``gram`` (B, P) = rows points' into |rows_i - points_j|^2, in place.

    ``rows`` (B, d), ``points`` (P, d); ``left`` (B,), ``right`` (P,) are their squared lengths.
    |a|^2 + |b|^2 - 2<a, b> is one matrix product but loses its digits for near pairs; these, few
    once the points are centred, are computed again from their differences.
    """
    scale = left[:, None] + right[None, :]
    distances = gram.mul_(-2.0).add_(scale)
    near_rows, near_columns = torch.nonzero(distances <= 1e-5 * scale, as_tuple=True)
    step = max(1, TILE_ENTRIES // rows.shape[1])
    for begin in range(0, len(near_rows), step):
        i, j = near_rows[begin : begin + step], near_columns[begin : begin + step]
        distances[i, j] = (rows[i] - points[j]).square_().sum(dim=1)
    return distances
