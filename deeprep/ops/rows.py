"""Two smaller operations: rows moved by their class, distances from a point."""

from __future__ import annotations

import torch
from torch import Tensor

from deeprep.ops import core
from deeprep.ops.core import _core, address, address_of_labels, launching


def shift_rows(
    features: Tensor,
    labels: Tensor,
    pivots: Tensor,
    out: Tensor,
    ignore_index: int,
    scale: Tensor | None = None,
    offsets: Tensor | None = None,
) -> None:
    """Fill out (N, d) with (features[i] - pivots[k]) * scale + offsets[k], k = labels[i].

    The features are read once. Rows whose label is to be ignored become 0.

    Parameters
    ----------
    features, labels
        As for `class_moments_`; every label a class or `ignore_index`.
    pivots
        (K, d), contiguous, float32, or float64 for float64 features.
    out
        (N, d), contiguous, of the type of the pivots; of that of the features where there are
        offsets.
    scale
        () float64, a power of two; (K,) of any numbers where there are offsets. Default: 1.
    offsets
        As `pivots`; default: none.
    """
    labels = labels.contiguous()
    arguments = (
        *address(features),
        *address_of_labels(labels, ignore_index),
        pivots.data_ptr(),
        0 if scale is None else scale.data_ptr(),
        0 if offsets is None else offsets.data_ptr(),
        out.data_ptr(),
    )
    if core.on_host(features):
        _core.shift_rows(*arguments, torch.get_num_threads())
    else:
        with launching(features.device) as stream:
            _core.shift_rows_cuda(*arguments, stream)


def squared_distances(points: Tensor, center: Tensor | None = None) -> Tensor:
    """|points[k] - center|^2 (K,), reading the points once and storing no difference.

    Parameters
    ----------
    points
        (K, d) float64, contiguous.
    center
        (d,) float64; default: the origin.
    """
    center = None if center is None else center.contiguous()
    out = points.new_empty(points.shape[0])
    arguments = (
        points.data_ptr(),
        0 if center is None else center.data_ptr(),
        out.data_ptr(),
        points.shape[0],
        points.shape[1],
    )
    if core.on_host(points):
        _core.squared_distances(*arguments, torch.get_num_threads())
    else:
        with launching(points.device) as stream:
            _core.squared_distances_cuda(*arguments, stream)
    return out
