"""The one place where input is checked and brought into the form the core takes.

Every error names the argument, the value found and the value wanted, and is raised before
anything is written. Label values are checked by the core itself, in its first pass over them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

FEATURE_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LABEL_DTYPES = (torch.int64, torch.int32)
_DENSE = torch.strided
MAX_CLASSES = 2**31 - 1  # the core numbers classes by 32 bits

_UNASKED_STATE_BYTES = 2**30  # of a state whose number of classes was inferred

T = TypeVar("T")


class UndefinedStatisticError(ValueError):
    """A statistic was asked of a state on which it is not defined: no samples, or one class."""


def require(name: str, value: Any, holds: bool, wanted: str) -> None:
    """Raise a ValueError that names an argument, what it is and what was expected, unless it holds.

    >>> require("depth", 1, False, ">= 2")
    Traceback (most recent call last):
        ...
    ValueError: depth is 1, expected >= 2
    """
    if not holds:
        raise ValueError(f"{name} is {value}, expected {wanted}")


def require_at_least(group: Any, least: int, *names: str) -> None:
    """Require that these fields of a group of settings are None, or finite and >= `least`."""
    for name in names:
        value = getattr(group, name)
        holds = value is None or least <= value < math.inf
        require(name, value, holds, f"finite and >= {least}")


def require_positive(group: Any, *names: str) -> None:
    """Require that these fields of a group of settings are None, or finite and > 0."""
    for name in names:
        value = getattr(group, name)
        require(name, value, value is None or 0 < value < math.inf, "finite and > 0")


def chosen(value: T | None) -> T:
    """Return a setting that `resolve` fills in, with its optional type narrowed.

    Raises
    ------
    ValueError
        The settings were not resolved.

    >>> chosen(0.1)
    0.1
    """
    if value is None:
        raise ValueError(
            "a setting is None, expected settings resolved by deeprep.run.defaults.resolve"
        )
    return value


def check_positive(name: str, value: int) -> int:
    """Return `value` as an int; it must be a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}, expected a whole number >= 1")
    if value < 1:
        raise ValueError(f"{name} is {value}, expected a whole number >= 1")
    return int(value)


def check_num_classes(value: int) -> int:
    """Return `value` as an int; it must be a number of classes that the core can count to.

    >>> check_num_classes(2**31)
    Traceback (most recent call last):
        ...
    ValueError: num_classes is 2147483648, expected at most 2147483647
    """
    num_classes = check_positive("num_classes", value)
    require("num_classes", num_classes, num_classes <= MAX_CLASSES, f"at most {MAX_CLASSES}")
    return num_classes


def as_tensor(name: str, value: Any) -> Tensor:
    """Return a tensor that shares the memory of `value`: a tensor, NumPy array or DLPack object."""
    if isinstance(value, Tensor):
        return value.detach() if value.requires_grad else value
    if isinstance(value, np.ndarray):
        return _of_numpy(name, value)
    if hasattr(value, "__dlpack__"):
        try:
            return from_dlpack(value).detach()
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise TypeError(
                f"{name} is a {type(value).__name__}, expected one that torch can read in place by "
                f"DLPack ({error})"
            ) from error
    raise TypeError(
        f"{name} is a {type(value).__name__}, expected a torch tensor, a NumPy array or an object "
        "with DLPack"
    )


def _of_numpy(name: str, array: NDArray[Any]) -> Tensor:
    if array.size == 0:
        array = array.copy()  # of nothing, but with strides that torch takes
    try:
        if array.flags.writeable:
            return torch.from_numpy(array)
        with warnings.catch_warnings():
            # torch warns that writing to a read-only array is undefined; we only read.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
            return torch.from_numpy(array)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} has {_what_no_tensor_has(name, array)}") from error


def _what_no_tensor_has(name: str, array: NDArray[Any]) -> str:
    """Say what of a NumPy array torch cannot take, what it could, and how to make that of it."""
    dtype = array.dtype
    if dtype.kind not in "biufc" or dtype.itemsize > np.dtype(np.complex128).itemsize:
        return f"dtype {dtype}, expected numbers such as float64, float32 or int64"
    if dtype in (np.longdouble, np.clongdouble):
        return f"dtype {dtype}, expected at most float64; pass {name}.astype(np.float64)"
    if not dtype.isnative:
        native = dtype.newbyteorder("=").str
        return f"dtype {dtype}, expected the machine's byte order; pass {name}.astype({native!r})"
    wanted = f"multiples of {dtype.itemsize}, none below 0"
    return f"strides {array.strides}, expected {wanted}; pass np.ascontiguousarray({name})"


def is_reversed(features: Any) -> bool:
    """Whether it is a NumPy array (N, d) with rows or columns that run backwards in memory.

    No tensor can have such strides; `forwards` makes them positive.

    >>> is_reversed(np.zeros((3, 2))[:, ::-1]), is_reversed(np.zeros((3, 2))[::2])
    (True, False)
    """
    if not isinstance(features, np.ndarray) or features.ndim != 2:
        return False
    return features.size > 0 and min(features.strides) < 0


def forwards(array: NDArray[Any]) -> NDArray[Any]:
    """View an array from the other end of every axis that runs backwards in memory.

    >>> forwards(np.arange(3)[::-1]).tolist()
    [0, 1, 2]
    """
    return array[tuple(slice(None, None, -1 if stride < 0 else 1) for stride in array.strides)]


def _class_of_one_hot(labels: Tensor, num_rows: int, num_classes: int | None) -> Tensor:
    """Class indices (N,) of one-hot rows (N, K)."""
    if labels.shape[0] != num_rows or (num_classes is not None and labels.shape[1] != num_classes):
        wanted = "K" if num_classes is None else num_classes
        raise ValueError(
            f"labels has shape {tuple(labels.shape)}, expected ({num_rows},) or one-hot rows "
            f"({num_rows}, {wanted})"
        )
    if labels.shape[1] == 0:
        raise ValueError(f"labels has shape {tuple(labels.shape)}, expected at least one class")
    is_one = labels == 1
    wrong = ((labels != 0) & ~is_one).any(dim=1) | (is_one.sum(dim=1) != 1)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"labels[{row}] is {labels[row].tolist()}, expected a one-hot row (a single 1, the "
            "rest 0); for soft labels pass their arg-max"
        )
    return is_one.to(torch.uint8).argmax(dim=1)


def to_tensors(features: Any, labels: Any, num_classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Bring features (N, d) and labels into tensors without copying the features.

    Parameters
    ----------
    features
        (N, d) torch tensor, NumPy array or DLPack object. Of a NumPy array whose rows run backwards
        in memory, rows and labels come in the order of the memory; columns must not.
    labels
        (N,) integers, or one-hot rows (N, K), which become their class indices.
    num_classes
        K, where known, to check one-hot rows against.
    """
    rows_reversed = False
    if isinstance(features, np.ndarray):
        rows_reversed = is_reversed(features) and features.strides[0] < 0
    features = as_tensor("features", features[::-1] if rows_reversed else features)
    if isinstance(labels, np.ndarray) and min(labels.strides, default=0) < 0:
        labels = labels.copy()
    labels = as_tensor("labels", labels)
    if rows_reversed:
        labels = labels.flip(0)
    if labels.ndim == 2 and features.ndim == 2:
        labels = _class_of_one_hot(labels, features.shape[0], num_classes)
    return features, labels


def check_batch(features: Tensor, labels: Tensor) -> None:
    """Check layouts, shapes, dtypes and devices of features (N, d) and labels (N,)."""
    # One condition where all is well: a tenth of a small update is spent in here.
    if features.layout is not _DENSE or labels.layout is not _DENSE:
        for name, tensor in (("features", features), ("labels", labels)):
            if tensor.layout is not _DENSE:
                raise TypeError(
                    f"{name} is a {tensor.layout} tensor, expected a dense one: {name}.to_dense()"
                )
    if features.ndim != 2:
        raise ValueError(f"features has shape {tuple(features.shape)}, expected (N, d)")
    if features.dtype not in FEATURE_DTYPES:
        wanted = ", ".join(str(dtype) for dtype in FEATURE_DTYPES)
        raise TypeError(f"features has dtype {features.dtype}, expected one of {wanted}")
    if labels.shape != features.shape[:1]:
        raise ValueError(
            f"labels has shape {tuple(labels.shape)}, expected ({features.shape[0]},): one label "
            "for each row of features"
        )
    if labels.dtype not in LABEL_DTYPES:
        raise TypeError(f"labels has dtype {labels.dtype}, expected torch.int64 or torch.int32")
    if labels.device != features.device:
        raise ValueError(
            f"labels is on {labels.device}, expected {features.device}, where features is"
        )


def check_labels(labels: Tensor, num_classes: int, ignore_index: int) -> None:
    """Check that every label (N,), on the host, is a class or `ignore_index`."""
    if labels.numel() == 0:
        return
    low, high = labels.aminmax()
    if int(low) >= 0 and int(high) < num_classes:
        return
    wide = labels.long()  # ignore_index need not fit into int32
    wrong = ((wide < 0) | (wide >= num_classes)) & (wide != ignore_index)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        raise ValueError(label_out_of_range(row, int(labels[row]), num_classes, ignore_index))


def infer_num_classes(labels: Tensor, num_features: int, ignore_index: int) -> int:
    """Return the largest label (N,) + 1, unless `is_inferable` says that it must be a stray one.

    Raises
    ------
    ValueError
        Where it must, naming the label; and where every label is `ignore_index`.
    """
    kept = labels[labels != ignore_index]
    if kept.numel() == 0:
        raise ValueError("num_classes is None and there is no label to infer it from")
    largest = int(kept.max())
    num_classes = max(1, largest + 1)

    def count_classes() -> int:
        return int(kept[kept >= 0].bincount().count_nonzero())

    if not is_inferable(num_classes, num_features, kept.numel(), count_classes):
        row = int((labels == largest).nonzero()[0, 0])
        raise ValueError(stray_label(row, largest, num_features))
    return num_classes


def is_inferable(
    num_classes: int, num_features: int, num_labels: int, count_classes: Callable[[], int]
) -> bool:
    """Whether so many classes may be inferred from the largest label.

    A single stray label must not take gigabytes. So a state of more than 1 GiB is made only where
    at least one class in ten has a sample.

    Parameters
    ----------
    num_classes, num_features
        K, the largest label + 1, and d.
    num_labels
        How many labels there are; each gives at most one class a sample.
    count_classes
        Says how many classes have samples. Called only where that decides, and K is then at most
        10 times `num_labels`.

    >>> is_inferable(100_000, 2048, 1_000_000, lambda: 90_000)
    True
    >>> is_inferable(20_000_001, 16, 1_000, lambda: 11)
    False
    """
    if _state_bytes(num_classes, num_features) <= _UNASKED_STATE_BYTES:
        return True
    return num_classes <= 10 * num_labels and num_classes <= 10 * count_classes()


def stray_label(row: int, label: int, num_features: int, whose: str = "") -> str:
    """Say which label, `labels[row]` of `whose`, cannot be what num_classes is inferred from."""
    gigabytes = _state_bytes(label + 1, num_features) / 2**30
    return (
        f"labels[{row}]{whose} is {label}, expected one that num_classes can be inferred from: "
        f"{label + 1} classes of {num_features} features would take {gigabytes:,.1f} GiB, and "
        f"fewer than one in ten of them has a sample; if it is a class, pass "
        f"num_classes={label + 1}"
    )


def _state_bytes(num_classes: int, num_features: int) -> int:
    return 8 * num_classes * (num_features + 2)  # means, counts, sums of squares


def label_out_of_range(
    row: int, label: int, num_classes: int, ignore_index: int, whose: str = ""
) -> str:
    """Say which label is no class, as the core does: `labels[row]` and, of what batch, `whose`."""
    return (
        f"labels[{row}]{whose} is {label}, expected a class in [0, {num_classes}) or "
        f"ignore_index = {ignore_index}"
    )


def check_state(
    features: Tensor,
    counts: Tensor,
    means: Tensor,
    sumsq: Tensor,
    bad_label: Tensor | None,
    *,
    same_device: bool = True,
) -> None:
    """Check that a state (counts (K,), means (K, d), sumsq (K,), bad_label (3,)) fits the features.

    It must be where they are, unless not `same_device`.
    """
    num_classes = counts.shape[0] if counts.ndim == 1 else -1
    num_features = features.shape[1] if features.ndim == 2 else -1
    require("K", num_classes, num_classes <= MAX_CLASSES, f"at most {MAX_CLASSES} classes")
    expected: list[tuple[str, Tensor, tuple[int, ...], torch.dtype]] = [
        ("counts", counts, (num_classes,), torch.int64),
        ("means", means, (num_classes, num_features), torch.float64),
        ("sumsq", sumsq, (num_classes,), torch.float64),
    ]
    if bad_label is not None:
        expected.append(("bad_label", bad_label, (3,), torch.int64))
    for name, tensor, shape, dtype in expected:
        if tensor.shape != shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, expected {shape} for features of shape "
                f"{tuple(features.shape)}"
            )
        if tensor.dtype != dtype:
            raise TypeError(f"{name} has dtype {tensor.dtype}, expected {dtype}")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} has strides {tensor.stride()}, expected a contiguous tensor")
        if same_device and tensor.device != features.device:
            raise ValueError(
                f"{name} is on {tensor.device}, expected {features.device}, where features is"
            )
