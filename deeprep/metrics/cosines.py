"""Cosines between class means: discrimination, and which classes lie close together.

All of it is read off one search by tiles, :func:`largest_cosines`; what each class is closest to
is read off the same tiles by :func:`nearest_to_each`. A pair k < k' is computed once and so has
one cosine, to the last bit, wherever it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from deeprep.base.validate import check_positive
from deeprep.metrics import class_means
from deeprep.state import ClassScatter


class ClosestClasses(NamedTuple):
    """Two classes k < k' and the cosine between their means; (-1, -1, nan) where undefined."""

    first: int
    second: int
    cosine: float


def closest_classes(s: ClassScatter, *, centered: bool = False) -> ClosestClasses:
    """Find the pair k < k' with the largest cos(mu_k, mu_k') = <mu_k, mu_k'> / (|mu_k| |mu_k'|).

    ``centered`` takes mu_k - mu_G in place of mu_k. Of equal cosines the first pair is returned.
    A mean that is zero has no direction: then, and for a state that holds NaN or Inf, the result
    is ``ClosestClasses(-1, -1, nan)`` with a warning that names the classes.

    Raises
    ------
    UndefinedStatisticError
        Below two classes with samples.

    Notes
    -----
    The arg-max of the discrimination of Wang et al. 2025.

    Examples
    --------
    >>> import torch, deeprep
    >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
    >>> s = deeprep.class_scatter(features, torch.tensor([0, 1, 2]))
    >>> deeprep.metrics.closest_classes(s)
    ClosestClasses(first=1, second=2, cosine=0.8)
    """
    pairs = search_pairs(s, 1, "closest_classes", centered=centered)
    return pairs[0] if pairs else ClosestClasses(-1, -1, math.nan)


def closest_pairs(
    s: ClassScatter, count: int, *, centered: bool = False
) -> tuple[ClosestClasses, ...]:
    """Find the `count` pairs k < k' with the largest cos(mu_k, mu_k'), the largest first.

    cos(mu_k, mu_k') = <mu_k, mu_k'> / (|mu_k| |mu_k'|). Equal cosines are in the order of their
    pairs. The pairs are visited tile by tile, and `count` of them are kept.

    Parameters
    ----------
    s
        At least two classes with samples; the others are in no pair.
    count
        How many pairs, at least 1; all of them where there are fewer.
    centered
        Take mu_k - mu_G in place of mu_k.

    Returns
    -------
    Tuples (first, second, cosine). The first one is `closest_classes`, and 1 - its cosine is
    `deeprep.discrimination`. None, with a warning that names the classes, where a mean is zero and
    has no direction and for a state that holds NaN or Inf.

    Raises
    ------
    UndefinedStatisticError
        Below two classes with samples.
    ValueError, TypeError
        For a count below 1, or that is no whole number.

    Notes
    -----
    The pairs behind the discrimination of Wang et al. 2025.

    Examples
    --------
    >>> import torch, deeprep
    >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
    >>> s = deeprep.class_scatter(features, torch.tensor([0, 1, 2]))
    >>> for first, second, cosine in deeprep.metrics.closest_pairs(s, 2):
    ...     print(first, second, round(cosine, 12))
    1 2 0.8
    0 2 0.6
    """
    count = check_positive("count", count)
    return search_pairs(s, count, "closest_pairs", centered=centered, value="empty")


def discrimination(s: ClassScatter, *, centered: bool = False) -> float:
    """Between-class discrimination D = 1 - max_{k != k'} cos(mu_k, mu_k').

    The means are not centred unless ``centered`` asks for mu_k - mu_G. 1 for orthogonal means, up
    to K/(K-1) for a simplex: never clipped. nan, with a warning, where a mean is zero and has no
    direction.

    Raises
    ------
    UndefinedStatisticError
        Below two classes with samples.

    Notes
    -----
    Wang et al., Understanding Deep Representation Learning via Layerwise Feature
    Compression and Discrimination, 2025.

    Examples
    --------
    >>> import torch, deeprep
    >>> s = deeprep.class_scatter(torch.eye(3), torch.tensor([0, 1, 2]))
    >>> deeprep.discrimination(s)
    1.0
    >>> round(deeprep.discrimination(s, centered=True), 12)
    1.5
    """
    pairs = search_pairs(s, 1, "discrimination", centered=centered)
    return 1.0 - pairs[0].cosine if pairs else math.nan


def search_pairs(
    s: ClassScatter, count: int, statistic: str, *, centered: bool, value: str = "nan"
) -> tuple[ClosestClasses, ...]:
    """Find the closest pairs; none, with a warning that `statistic` is `value`, where undefined."""
    unit = class_means.directions(s, statistic, centered=centered, value=value)
    if unit is None:
        return ()
    classes = s.present
    first, second, cosines = largest_cosines(unit, count)
    columns = classes[first].tolist(), classes[second].tolist(), cosines.tolist()
    return tuple(map(ClosestClasses, *columns))


def largest_cosines(unit: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows i, rows j > i and values of the `count` largest <u_i, u_j>, falling.

    Of equal cosines the first pairs are taken, so that the result does not depend on the tiles.
    Below two rows there are none.
    """
    first = second = torch.empty(0, dtype=torch.int64, device=unit.device)
    cosines = unit.new_empty(0)
    for start, tile in _cosine_tiles(unit):
        least = float(cosines[-1]) if len(cosines) == count else -math.inf
        values = tile.flatten()
        found = _first_largest(values, least, count)
        if len(found) == 0:
            continue
        rows, columns = start + found // tile.shape[1], start + found % tile.shape[1]
        if count == 1:  # larger than the one before
            first, second, cosines = rows, columns, values[found]
            continue
        cosines, order = torch.cat([cosines, values[found]]).sort(descending=True, stable=True)
        cosines, order = cosines[:count], order[:count]
        first, second = torch.cat([first, rows])[order], torch.cat([second, columns])[order]
    return first, second, cosines


def _first_largest(values: Tensor, least: float, count: int) -> Tensor:
    """Rising indices of the `count` largest values above `least`, of equal ones the first."""
    if count == 1:  # what discrimination asks for, at the price of one look at the tile
        largest, position = values.max(dim=0, keepdim=True)
        return position[largest > least]
    found = (values > least).nonzero().squeeze(1)
    if len(found) <= count:
        return found
    candidates = values[found]
    least_kept = candidates.topk(count).values[-1]
    larger, equal = found[candidates > least_kept], found[candidates == least_kept]
    return torch.cat([larger, equal[: count - len(larger)]]).sort().values


def nearest_to_each(unit: Tensor) -> tuple[Tensor, Tensor]:
    """Find each row's largest cosine with another (P,) and the first such row; nan and -1 alone."""
    best = unit.new_full((len(unit),), -torch.inf)
    partner = torch.full_like(best, -1, dtype=torch.int64)
    if len(unit) < 2:
        return best.fill_(torch.nan), partner
    for start, tile in _cosine_tiles(unit):
        # A tile stands for both orders of its pairs. Columns first: the partners of a row in its
        # column come before it, those in its row after it.
        for dim, where in ((0, slice(start, None)), (1, slice(start, start + len(tile)))):
            cosine, position = tile.max(dim=dim)
            better = cosine > best[where]
            best[where] = torch.where(better, cosine, best[where])
            partner[where] = torch.where(better, start + position, partner[where])
    return best, partner


def _cosine_tiles(unit: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the tiles of :func:`class_means.gram_tiles`, -inf where they are no pair i < j."""
    for start, tile in class_means.gram_tiles(unit):
        yield start, class_means.fill_repeats(tile, -math.inf)
