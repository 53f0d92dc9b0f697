"""Rows moved by their class, the gradient of the class moments, by the CUDA kernel on the host.

The kernel is `shift_rows` with offsets: the CPU's bits for any batch, launch and schedule, and
mistakes planted in it, which the builds must catch. Then the differentiable operator over it, whose
tensors are the device's.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_requests import (
    BUILDS,
    FEATURE_TYPES,
    IGNORE_INDEX,
    LABEL_TYPES,
    SHIFT_ROWS,
    Launch,
    assert_bits,
    lay_out,
    make_features,
    make_labels,
    run,
)

import deeprep
from deeprep import _core, ops

NUM_CLASSES = 4
SHAPES_AND_LAYOUTS = [
    *((1, 1, "contiguous"), (70, 33, "padded"), (9, 300, "misaligned"), (40, 8, "backwards")),
    *((20, 5, "transposed"), (20, 6, "columns_backwards"), (20, 7, "every_other_column")),
]


def check(runner, dtype, label_dtype, data, shapes_and_layouts=SHAPES_AND_LAYOUTS):
    """The kernel gives the bits of every instruction set of the CPU."""
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    for num_rows, num_columns, layout in shapes_and_layouts:
        rng = np.random.default_rng(num_rows)
        labels = make_labels(rng, num_rows, NUM_CLASSES, "some_ignored").to(label_dtype)
        features = make_features(rng, labels.numpy(), num_columns, NUM_CLASSES, dtype, data)
        pivots, offsets = (
            torch.from_numpy(rng.standard_normal((NUM_CLASSES, num_columns))).to(accumulator)
            for _ in range(2)
        )
        scales = torch.from_numpy(rng.standard_normal(NUM_CLASSES))
        memory = lay_out(features, layout)
        reply = run(
            *(runner, SHIFT_ROWS, dtype, features.shape, NUM_CLASSES),
            *(memory.elements, labels, pivots, scales, offsets),
            **{"layout": memory, "label_dtype": label_dtype, "launch": Launch(5, 64, 7)},
            has_offsets=True,
        )
        same_size = {2: np.int16, 4: np.float32, 8: np.float64}[dtype.itemsize]
        got = torch.from_numpy(np.frombuffer(reply, same_size).copy()).view(dtype)
        for level in _core.available_simd_levels():
            _core.set_simd_level(level)
            expected = torch.empty_like(features)
            ops.shift_rows(features, labels, pivots, expected, IGNORE_INDEX, scales, offsets)
            # As float32, which holds both exactly: NumPy has no bfloat16.
            assert_bits(
                got.to(accumulator), expected.flatten().to(accumulator), layout, any_nan=True
            )


@pytest.mark.parametrize("data", ["gaussian", "tiny", "huge", "nonfinite"])
@pytest.mark.parametrize("label_dtype", LABEL_TYPES)
@pytest.mark.parametrize("dtype", FEATURE_TYPES)
@pytest.mark.parametrize("build", BUILDS)
def test_same_bits_as_the_cpu(kernel_runner, build, dtype, label_dtype, data):
    check(kernel_runner(build), dtype, label_dtype, data)


KERNEL, ROUNDING = "cuda/shift_rows.cuh", "narrow.h"
OTHER_BITS = ("plain", "instead of")
PLANTED = {
    "the scale of another class": (
        *(KERNEL, "scales[label]", 0, "scales[label ^ 1]"),
        *OTHER_BITS,
    ),
    "the offset of the first class": (KERNEL, "offsets[entry]", 0, "offsets[j]", *OTHER_BITS),
    "ignored rows are moved too": (
        *(KERNEL, "if (is_kept) {", 0, "if (is_kept || label < 0) {"),
        *("address", "AddressSanitizer"),
    ),
    "a row too many": (
        *(KERNEL, "i < features.num_rows", 0, "i <= features.num_rows"),
        *("address", "AddressSanitizer: heap-buffer-overflow"),
    ),
    "every block takes all rows": (
        *(KERNEL, "i = blockIdx.x", 0, "i = 0"),
        *("thread", "ThreadSanitizer: data race"),
    ),
    "ties away from zero": (ROUNDING, "0x7fffu + (bits >> 16 & 1u)", 0, "0x8000u", *OTHER_BITS),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_mistake_is_caught(planted_runner, name):
    header, right, nth, wrong, build, complaint = PLANTED[name]
    runner = planted_runner(build, header, right, nth, wrong)
    with pytest.raises(AssertionError, match=complaint):
        check(runner, torch.bfloat16, torch.int64, "gaussian", [(40, 300, "contiguous")])


# ---------------------------------------------------------------- the operator over it


def make_batch(dtype=torch.float32):
    rng = np.random.default_rng(0)
    labels = make_labels(rng, 60, NUM_CLASSES, "some_ignored")
    features = make_features(rng, labels.numpy(), 9, NUM_CLASSES, dtype, "gaussian")
    return features.requires_grad_(), labels


def moments_and_gradient(features, labels):
    counts, means, sumsq = deeprep.class_moments(features, labels, NUM_CLASSES + 1)
    weights = torch.linspace(-1, 1, means.numel(), dtype=torch.float64).view_as(means)
    total = (weights * means).sum() + (weights[:, 0] * sumsq).sum()
    (gradient,) = torch.autograd.grad(total, features)
    return counts, means, sumsq, gradient


@pytest.mark.parametrize("dtype", FEATURE_TYPES)
def test_forward_and_backward_on_the_device_never_wait(request, never_wait, dtype):
    features, labels = make_batch(dtype)
    expected = moments_and_gradient(features, labels)
    request.getfixturevalue("on_host")
    with never_wait():
        got = moments_and_gradient(features, labels)
    for name, a, b in zip(("counts", "means", "sumsq", "gradient"), got, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b), name


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("bad", [-1, NUM_CLASSES + 1, 2**40])
def test_a_label_out_of_range_is_an_assertion_on_the_device(bad):
    features, labels = make_batch()
    labels[7] = bad
    with pytest.raises(RuntimeError, match=r"labels holds one that is neither a class in \[0, 5\)"):
        moments_and_gradient(features, labels)
