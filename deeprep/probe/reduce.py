"""Reductions: a layer's output of any kind becomes rows (n, d) with a label each.

Nothing here copies a feature map whole. What cannot be read in place (a mean over half-precision
numbers, a masked mean, a map whose rows are not rows of memory) passes through a scratch of bounded
size, some samples at a time.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor

from deeprep.base import validate

Reduction = Literal["flatten", "mean", "cls", "last", "tokens"] | Callable[[Tensor], Tensor]
Reduce = Reduction | Mapping[str, Reduction]

_NAMES = ("flatten", "mean", "cls", "last", "tokens")
_HALF_TYPES = (torch.float16, torch.bfloat16)
_COPIED_BYTES = 2**23  # of a map whose rows are not rows of memory, at a time
# Of float32 summed at a time where numbers must be widened or masked: what stays in a core's cache,
# or enough to fill a GPU.
_SUMMED_BYTES = {"cpu": 2**20}
_SUMMED_BYTES_ELSEWHERE = 2**26


def check_reduce(reduce: Reduce, layers: Sequence[str]) -> None:
    """Check that `reduce` is a reduction, or a mapping whose every glob matches one of `layers`."""
    if not isinstance(reduce, Mapping):
        _check_reduction("reduce", reduce)
        return
    for glob, reduction in reduce.items():
        _check_reduction(f"reduce[{glob!r}]", reduction)
        if not any(fnmatchcase(layer, glob) for layer in layers):
            raise ValueError(
                f"reduce holds {glob!r}, which matches none of the layers {', '.join(layers)}"
            )


def _check_reduction(name: str, reduction: object) -> None:
    if not callable(reduction) and reduction not in _NAMES:
        wanted = ", ".join(map(repr, _NAMES))
        raise ValueError(f"{name} is {reduction!r}, expected {wanted} or a function")


def reduction_of(layer: str, reduce: Reduce) -> Reduction:
    """The reduction of one layer: in a mapping that of the first glob that matches, or flatten."""
    if not isinstance(reduce, Mapping):
        return reduce
    return next((r for glob, r in reduce.items() if fnmatchcase(layer, glob)), "flatten")


class BatchLabels:
    """The labels of one batch and its mask, copied once to each device that has layers.

    Parameters
    ----------
    labels
        (N,), or one for each position of a sample: (N, T), (N, H, W).
    mask
        (N, T) bool or integer, nonzero where there is a token; None: everywhere.
    ignore_index
        Label that samples without a token, and positions without one, are given.

    Raises
    ------
    ValueError, TypeError
        On shapes or dtypes that do not fit and, for labels in host memory, on a label that is
        neither a class nor `ignore_index`.
    """

    def __init__(
        self, labels: Tensor, mask: Tensor | None, num_classes: int, ignore_index: int
    ) -> None:
        labels = validate.as_tensor("labels", labels)
        if labels.ndim == 0:
            raise ValueError("labels has shape (), expected (N,)")
        if labels.dtype not in validate.LABEL_DTYPES:
            raise TypeError(f"labels has dtype {labels.dtype}, expected torch.int64 or torch.int32")
        if labels.is_cpu:  # elsewhere the device says so, later
            validate.check_labels(labels.flatten(), num_classes, ignore_index)
        self._given, self._ignore_index = labels, ignore_index
        self.num_samples = labels.shape[0]
        self._apply(mask)

    def with_mask(self, mask: Tensor) -> BatchLabels:
        """The same labels with this mask in place of any other."""
        other = copy.copy(self)
        other._apply(mask)
        return other

    def _apply(self, mask: Tensor | None) -> None:
        labels = self._given
        if mask is not None:
            mask = validate.as_tensor("mask", mask)
            if mask.is_floating_point() or mask.is_complex():
                raise TypeError(f"mask has dtype {mask.dtype}, expected bool or integers")
            if mask.ndim != 2 or mask.shape[0] != labels.shape[0]:
                raise ValueError(
                    f"mask has shape {tuple(mask.shape)}, expected ({labels.shape[0]}, T): one "
                    "entry for each token of each sample"
                )
            mask = mask != 0
            kept = mask.any(dim=1).to(labels.device).view(-1, *[1] * (labels.ndim - 1))
            # Wide, as ignore_index need not fit into int32.
            labels = labels.long().masked_fill(~kept, self._ignore_index)
        self._labels, self._mask = labels, mask
        self._moved: dict[tuple[Any, ...], Tensor] = {}

    @property
    def has_mask(self) -> bool:
        """Whether a mask was given."""
        return self._mask is not None

    def of_samples(self, device: torch.device) -> Tensor:
        """Labels (N,)."""
        if self._labels.ndim > 1:
            raise ValueError(
                f"labels has shape {tuple(self._labels.shape)}, expected ({self.num_samples},): "
                "labels of positions go with reduce='tokens' (of one-hot rows pass the arg-max)"
            )
        return self._once((device,), lambda: self._labels.to(device, non_blocking=True))

    def of_positions(self, device: torch.device, positions: tuple[int, ...]) -> Tensor:
        """Labels (N * T,) of every position, those without a token ignored."""

        def spread() -> Tensor:
            labels = self._labels.to(device, non_blocking=True)
            if labels.ndim == 1:
                labels = labels.view(-1, *[1] * len(positions))
            elif labels.shape[1:] != positions:
                raise ValueError(
                    f"labels has shape {tuple(labels.shape)}, expected ({self.num_samples},) or "
                    f"{(self.num_samples, *positions)} for reduce='tokens'"
                )
            labels = labels.expand(-1, *positions)
            mask = self.mask_of(device, positions[0]) if len(positions) == 1 else None
            if mask is not None:
                labels = labels.masked_fill(~mask, self._ignore_index)
            return labels.reshape(-1)

        return self._once((device, positions), spread)

    def mask_of(self, device: torch.device, num_tokens: int) -> Tensor | None:
        """Where there are tokens, (N, T) bool; None: everywhere."""
        mask = self._mask
        if mask is None:
            return None
        if mask.shape[1] != num_tokens:
            raise ValueError(
                f"mask has shape {tuple(mask.shape)}, expected ({mask.shape[0]}, {num_tokens}), an "
                "entry for each token of the output; pass `mask` as this layer's tokens need it, "
                "or a function for this layer in `reduce`"
            )
        return self._once((device, "mask"), lambda: mask.to(device, non_blocking=True))

    def _once(self, key: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
        if key not in self._moved:
            self._moved[key] = make()
        return self._moved[key]


def feature_tensor(output: Any, num_samples: int, what: str = "output") -> Tensor:
    """The features in a module's output: its first floating-point tensor with the batch in front.

    Parameters
    ----------
    output
        A tensor, or a tuple, list, mapping or dataclass that holds some, at any depth;
        `last_hidden_state` of a mapping comes first. Quantised tensors are dequantised.
    num_samples
        N.
    what
        What an error calls it.

    Raises
    ------
    TypeError
        Where there is no dense floating-point tensor.
    """
    tensor = output if isinstance(output, Tensor) else _choose_tensor(output, num_samples)
    if tensor.is_quantized:
        return tensor.dequantize()
    if tensor.layout != torch.strided or tensor.is_nested:
        kind = "nested" if tensor.is_nested else str(tensor.layout)
        raise TypeError(f"the {what} is a {kind} tensor, expected a dense one")
    if not tensor.is_floating_point():
        raise TypeError(f"the {what} has dtype {tensor.dtype}, expected real floating-point")
    return tensor


def _choose_tensor(output: Any, num_samples: int) -> Tensor:
    found = list(tensors_in(output))
    if not found:
        raise TypeError(f"the output is a {type(output).__name__}, expected a tensor")
    real = [t for t in found if t.is_floating_point() or t.is_quantized] or found
    shaped = (t for t in real if not t.is_nested)
    return next((t for t in shaped if t.shape[:1] == (num_samples,)), real[0])


def tensors_in(output: Any) -> Iterator[Tensor]:
    """All tensors in tuples, lists, mappings and dataclasses, `last_hidden_state` first."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        if "last_hidden_state" in output:
            yield from tensors_in(output["last_hidden_state"])
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from tensors_in(value)
    elif dataclasses.is_dataclass(output):
        for field in dataclasses.fields(output):
            yield from tensors_in(getattr(output, field.name))


def uses_mask(features: Tensor, reduction: Reduction) -> bool:
    """Whether a reduction looks at the mask of each token: over the tokens of (N, T, C)."""
    return features.ndim == 3 and reduction in ("mean", "last", "tokens")


def reduced_rows(
    features: Tensor, reduction: Reduction, labels: BatchLabels
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows (n, d) and their labels (n,) of a layer's features (N, ...), in one or more portions.

    Raises
    ------
    ValueError, TypeError
        Where shapes do not fit the reduction, the labels or the mask.
    """
    if features.ndim == 0:
        raise ValueError("the output has shape (), expected (N, ...)")
    device = features.device
    if callable(reduction):
        rows = reduction(features)
        if not isinstance(rows, Tensor):
            raise TypeError(f"reduce returned a {type(rows).__name__}, expected a tensor (N, d)")
        if rows.ndim != 2:
            raise ValueError(f"reduce returned shape {tuple(rows.shape)}, expected (N, d)")
        yield rows, labels.of_samples(device)
    elif features.ndim <= 2:
        rows = features if features.ndim == 2 else features.unsqueeze(1)
        yield rows, labels.of_samples(device)
    elif features.shape[0] != labels.num_samples:
        raise ValueError(
            f"labels has shape ({labels.num_samples},), expected ({features.shape[0]},): one for "
            f"each sample of an output of shape {tuple(features.shape)}"
        )
    elif reduction == "flatten":
        yield from _as_rows(features, 1, labels.of_samples(device))
    elif reduction == "tokens":
        # (N, C, H, W) and (N, C, T, H, W) have the channels in front, (N, T, C) behind.
        tokens = features if features.ndim == 3 else features.movedim(1, -1)
        positions = tuple(tokens.shape[1:-1])
        targets = labels.of_positions(device, positions)
        yield from _as_rows(tokens, math.prod(positions), targets)
    else:
        yield _one_row_each(features, reduction, labels), labels.of_samples(device)


def _one_row_each(features: Tensor, reduction: str, labels: BatchLabels) -> Tensor:
    if features.ndim > 3:
        if reduction != "mean":
            raise ValueError(
                f"reduce is {reduction!r}, which takes an output (N, T, C), found shape "
                f"{tuple(features.shape)}"
            )
        return _mean(features, tuple(range(2, features.ndim)), None)
    num_samples, num_tokens, _ = features.shape
    if num_tokens == 0:
        raise ValueError(f"the output has shape {tuple(features.shape)}, expected a token")
    if reduction == "cls":
        return features[:, 0]
    mask = labels.mask_of(features.device, num_tokens)
    if reduction == "mean":
        return _mean(features, (1,), mask)
    if mask is None:
        return features[:, -1]
    positions = torch.arange(num_tokens, device=features.device)
    last = (mask * positions).argmax(dim=1)
    return features[torch.arange(num_samples, device=features.device), last]


def _mean(features: Tensor, dims: tuple[int, ...], mask: Tensor | None) -> Tensor:
    """Mean over `dims`, where `mask` (N, T) holds if given; half types are summed in float32."""
    half = features.dtype in _HALF_TYPES
    dtype = torch.float32 if half else features.dtype
    # torch's sums on the CPU first copy a half-precision tensor to float32, on CUDA they do not.
    if mask is None and not (half and features.is_cpu):
        return features.mean(dim=dims, dtype=dtype)
    limit = _SUMMED_BYTES.get(features.device.type, _SUMMED_BYTES_ELSEWHERE)
    step = _samples_in(limit, features, dtype.itemsize)
    parts = []
    for begin in range(0, features.shape[0], step):
        block = features[begin : begin + step]
        if mask is None:
            parts.append(block.mean(dim=dims, dtype=dtype))
            continue
        # Filled, not multiplied by zero: what stands where no token is may be NaN.
        kept = mask[begin : begin + step]
        total = block.masked_fill(~kept.unsqueeze(2), 0).sum(dim=1, dtype=dtype)
        parts.append(total / kept.sum(dim=1, keepdim=True).clamp_(min=1))
    return torch.cat(parts) if parts else features.new_empty((0, features.shape[-1]), dtype=dtype)


def _as_rows(features: Tensor, per_sample: int, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """`per_sample` rows of each sample, in place where memory allows, else some samples a copy."""
    num_samples = features.shape[0]
    width = math.prod(features.shape[1:]) // max(per_sample, 1)
    try:
        whole = features.view(num_samples * per_sample, width)
    except RuntimeError:  # the rows are not rows of memory: channels_last, a slice of the tokens
        step = _samples_in(_COPIED_BYTES, features, features.dtype.itemsize)
        for begin in range(0, num_samples, step):
            rows = features[begin : begin + step].reshape(-1, width)
            yield rows, labels[begin * per_sample : (begin + step) * per_sample]
    else:
        yield whole, labels


def _samples_in(num_bytes: int, features: Tensor, itemsize: int) -> int:
    return max(1, num_bytes // max(1, math.prod(features.shape[1:]) * itemsize))
