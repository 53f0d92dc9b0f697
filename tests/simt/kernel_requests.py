"""Batches for the CUDA kernels on the host, how they lie in memory, and the requests for them."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from hypothesis import strategies as st

import deeprep

BUILDS = ["plain", "address", "thread"]
FEATURE_TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]  # csrc/dispatch.h
LABEL_TYPES = [torch.int32, torch.int64]
IGNORE_INDEX = -100
CLASS_MOMENTS, SHIFT_ROWS, SQUARED_DISTANCES, PLAN, TABLES, RECORDED = range(6)
OF_THE_SHAPE, SEGMENTS, CHUNKS = range(3)  # simt::Pass
NO_BAD_LABEL = (-1, -1, -1)
SEGMENT_ROWS = 1024  # csrc/moments.h


# ---------------------------------------------------------------- batches

DATA = [
    *("gaussian", "offset", "outlier_first", "outliers", "tiny", "huge", "constant", "collapsed"),
    "nonfinite",
]


def make_features(rng, labels, num_columns, num_classes, dtype, data):
    """Features (N, d), of a difficulty that each branch of the kernels meets."""
    features = rng.standard_normal((len(labels), num_columns))
    if data == "offset":
        features += 100.0 if dtype in (torch.float16, torch.bfloat16) else 1e6
    elif data == "outlier_first":
        features[:1] *= 1e4
    elif data == "outliers":
        features[rng.random(len(labels)) < 0.05] *= 1e3
    elif data == "tiny":  # squares below the range of float32
        features *= 1e-25
    elif data == "huge":  # squares above the range of float32, values above that of float16
        features *= 1e30
    elif data == "constant":
        features[:] = 3.7
    elif data == "collapsed":
        centers = rng.standard_normal((min(num_classes, 50), num_columns))
        features = centers[labels % len(centers)] + 1e-6 * features
    elif data == "nonfinite":
        bad = rng.choice([np.nan, np.inf, -np.inf])
        features[labels == labels[len(labels) // 2], rng.integers(num_columns)] = bad
    return torch.from_numpy(features).to(dtype)


LABELS = [
    *("shuffled", "sorted", "reversed", "skewed", "three_heavy", "one_class", "some_ignored"),
    "all_ignored",
]


def make_labels(rng, num_rows, num_classes, kind):
    """Labels (N,) int64; with few rows, some classes stay empty in all of them."""
    labels = rng.integers(0, num_classes, num_rows)
    if kind == "sorted":
        labels.sort()
    elif kind == "reversed":
        labels[::-1].sort()
    elif kind == "skewed":
        labels[rng.random(num_rows) < rng.uniform(0.5, 1)] = num_classes // 2
    elif kind == "three_heavy":
        heavy = rng.random(num_rows) < 0.9
        labels[heavy] %= min(3, num_classes)
    elif kind == "one_class":
        labels[:] = num_classes - 1
    elif kind == "some_ignored":
        labels[rng.random(num_rows) < 0.3] = IGNORE_INDEX
    elif kind == "all_ignored":
        labels[:] = IGNORE_INDEX
    return torch.from_numpy(labels)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where features lie: all elements that the strides span, the rest of them being NaN."""

    elements: np.ndarray
    first: int
    row_stride: int
    column_stride: int
    misaligned: int = 0  # bytes


LAYOUTS = [
    *("contiguous", "padded", "padded_16_bytes", "backwards", "every_other_column", "transposed"),
    *("columns_backwards", "misaligned", "repeated"),
]


def lay_out(features, kind):
    """Put contiguous features (N, d) where `kind` says; repeated: as if all rows were the first."""
    num_rows, num_columns = features.shape
    bits = features.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[features.itemsize])
    bits = bits.numpy()
    row, column = {
        "padded": (num_columns + 3, 1),
        "padded_16_bytes": (num_columns + 16, 1),
        "backwards": (-num_columns, 1),
        "every_other_column": (2 * num_columns, 2),
        "transposed": (1, num_rows),
        "columns_backwards": (num_columns, -1),
        "repeated": (0, 1),
    }.get(kind, (num_columns, 1))
    steps = [(num_rows - 1) * row, (num_columns - 1) * column]
    first = -sum(min(0, step) for step in steps)
    elements = np.full(sum(map(abs, steps)) + 1, -1, dtype=bits.dtype)
    for i in range(num_rows):
        begin = first + i * row
        end = begin + num_columns * column
        elements[begin : end if end >= 0 else None : column] = bits[0 if row == 0 else i]
    misaligned = features.itemsize if kind == "misaligned" else 0
    return Layout(elements, first, row, column, misaligned)


@dataclasses.dataclass(frozen=True)
class Launch:
    """A schedule and a launch configuration, of which no bit may depend."""

    seed: int = 0
    threads: int = 128
    max_blocks: int = 3
    fused_pass: int = SEGMENTS
    num_multiprocessors: int = 1  # where the pass is that of the shape


LAUNCHES = st.builds(
    Launch,
    seed=st.integers(0, 2**32),
    threads=st.sampled_from([32, 64, 96, 128, 256]),
    max_blocks=st.sampled_from([1, 2, 3, 17, 1000]),
    fused_pass=st.sampled_from([SEGMENTS, CHUNKS]),
)
# ThreadSanitizer's fibers are dear: smaller blocks, and never one alone, which cannot race.
SMALL_LAUNCHES = st.builds(
    Launch,
    seed=st.integers(0, 2**32),
    threads=st.sampled_from([32, 64, 128]),
    max_blocks=st.sampled_from([2, 3, 5]),
    fused_pass=st.sampled_from([SEGMENTS, CHUNKS]),
)


# ---------------------------------------------------------------- requests


def run(runner, operation, dtype, shape, num_classes, *arrays, **given):
    """Send a request (`struct Request` of class_moments_runner.cpp); returns the reply's bytes."""
    layout = given.get("layout", Layout(np.empty(0), 0, 0, 0))
    launch = given.get("launch", Launch())
    header = [
        *(operation, FEATURE_TYPES.index(dtype)),
        LABEL_TYPES.index(given.get("label_dtype", torch.int64)),
        *(*shape, num_classes, layout.row_stride, layout.column_stride),
        *(len(layout.elements), layout.first, layout.misaligned),
        given.get("ignore_index", IGNORE_INDEX),
        *(int(given.get("has_center", False)), int(given.get("has_offsets", False))),
        *(launch.seed, launch.threads, launch.max_blocks),
        *(launch.fused_pass, launch.num_multiprocessors, given.get("missing_scratch", 0)),
    ]
    return runner(header, *(np.asarray(array) for array in arrays))


def run_update(runner, features, labels, state, layout, launch, bad_label=NO_BAD_LABEL, **given):
    """State and bad label after an update by the kernels."""
    num_classes = len(state[0])
    reply = run(
        *(runner, CLASS_MOMENTS, features.dtype, features.shape, num_classes),
        *(layout.elements, labels, *state, np.array(bad_label, dtype=np.int64)),
        **{"layout": layout, "launch": launch, "label_dtype": labels.dtype, **given},
    )
    counts, means, sumsq, noted = np.split(
        np.frombuffer(reply, dtype=np.int64),
        np.cumsum([num_classes, num_classes * features.shape[1], num_classes]),
    )
    return (counts, means.view(np.float64), sumsq.view(np.float64)), tuple(noted.tolist())


def zeros(num_classes, num_columns):
    return (
        torch.zeros(num_classes, dtype=torch.int64),
        torch.zeros(num_classes, num_columns, dtype=torch.float64),
        torch.zeros(num_classes, dtype=torch.float64),
    )


def update_on_cpu(features, labels, state, ignore_index=IGNORE_INDEX):
    state = tuple(tensor.clone() for tensor in state)
    deeprep.ops.class_moments_(features, labels, *state, ignore_index)
    return state


def prior_state(seed, num_classes, num_columns):
    """A state that holds about half of the classes."""
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.integers(0, num_classes, max(1, min(num_classes // 2, 100))))
    features = torch.from_numpy(rng.standard_normal((len(labels), num_columns)))
    return update_on_cpu(features, labels, zeros(num_classes, num_columns))


def assert_bits(got, expected, what="", any_nan=False):
    """Equal bit for bit; with `any_nan`, but for the sign and the payload of NaNs."""
    got, expected = np.asarray(got).ravel(), np.asarray(expected).ravel()
    assert got.dtype == expected.dtype
    different = got.view(f"i{got.itemsize}") != expected.view(f"i{got.itemsize}")
    if any_nan:
        different &= ~(np.isnan(got) & np.isnan(expected))
    first = np.flatnonzero(different)[:5]
    shown = [f"{a[first]} ({a[first].tobytes().hex()})" for a in (got, expected)]
    assert not len(first), f"{what}: {' instead of '.join(shown)} at {first}"


def assert_state(got, expected, what=""):
    for name, a, b in zip(("counts", "means", "sumsq"), got, expected, strict=True):
        assert_bits(a, b, f"{name}, {what}")


def check_update(runner, features, labels, state, layout, launches):
    """Every launch gives the bits of the CPU."""
    seen = features[:1].repeat(len(labels), 1) if layout == "repeated" else features
    expected = update_on_cpu(seen, labels, state)
    memory = lay_out(features, layout)
    for launch in launches:
        got, bad_label = run_update(runner, features, labels, state, memory, launch)
        assert bad_label == NO_BAD_LABEL
        assert_state(got, expected, launch)
