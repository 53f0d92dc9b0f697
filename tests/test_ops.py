"""The compiled core against the float64 reference: accuracy, bits, errors, torch.compile."""

from __future__ import annotations

import itertools
import mmap
import os
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

import deeprep
from deeprep import _core, reference

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
ADVERSARIES = ["gaussian", "offset", "outlier_first", "outliers", "constant", "collapsed"]


def make_batch(seed, num_rows, num_columns, num_classes, dtype, adversary, ignored=False):
    """Random features with a chosen difficulty, and labels that leave some classes empty."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((num_rows, num_columns))
    labels = rng.integers(0, num_classes, num_rows)
    if rng.random() < 0.3:
        labels = np.sort(labels)
    if adversary == "offset":  # mean / std of 1e6
        features += 1e6 if dtype in (torch.float32, torch.float64) else 100.0
    elif adversary == "outlier_first":
        features[:1] *= 1e4
    elif adversary == "outliers":
        features[rng.random(num_rows) < 0.05] *= 1e3
    elif adversary == "constant":
        features[:] = 3.7
    elif adversary == "collapsed":  # C about 1e-12
        features = rng.standard_normal((num_classes, num_columns))[labels] + 1e-6 * features
    if ignored:
        labels[rng.random(num_rows) < 0.2] = -100
    return torch.from_numpy(features).to(dtype), torch.from_numpy(labels)


def moments(features, labels, num_classes, ignore_index=-100):
    counts = torch.zeros(num_classes, dtype=torch.int64)
    means = torch.zeros(num_classes, features.shape[1], dtype=torch.float64)
    sumsq = torch.zeros(num_classes, dtype=torch.float64)
    deeprep.ops.class_moments_(features, labels, counts, means, sumsq, ignore_index)
    return counts, means, sumsq


def assert_within_contract(got, features, labels, num_classes, tolerance=1e-5):
    counts, means, sumsq = got
    expected = reference.class_scatter(features.double().numpy(), labels.numpy(), num_classes)
    assert np.array_equal(counts.numpy(), expected.counts)
    # A mean is good to the rounding of the deviations it was summed from.
    spread = np.sqrt(expected.sumsq / np.maximum(expected.counts, 1))[:, None]
    slack = 1e-6 * spread + 1e-13 * np.abs(expected.means)
    assert (np.abs(means.numpy() - expected.means) <= slack).all()
    # The reference itself rounds its means to float64; below that there is nothing to compare.
    rounding = (
        expected.counts * (2e-16 * np.abs(expected.means).max(initial=0)) ** 2 * means.shape[1]
    )
    error = np.abs(sumsq.numpy() - expected.sumsq)
    assert (error <= tolerance * expected.sumsq + 4 * rounding).all(), error / expected.sumsq


@pytest.mark.usefixtures("restore_threads")
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    num_rows=st.integers(0, 300),
    num_columns=st.sampled_from([1, 2, 3, 7, 8, 9, 17, 64, 65, 100]),
    num_classes=st.sampled_from([1, 2, 5, 40, 5000]),
    dtype=st.sampled_from(DTYPES),
    adversary=st.sampled_from(ADVERSARIES),
    ignored=st.booleans(),
    label_dtype=st.sampled_from([torch.int32, torch.int64]),
    level=st.sampled_from(_core.available_simd_levels()),
)
def test_accuracy_contract(
    seed, num_rows, num_columns, num_classes, dtype, adversary, ignored, label_dtype, level
):
    _core.set_simd_level(level)
    features, labels = make_batch(
        seed, num_rows, num_columns, num_classes, dtype, adversary, ignored
    )
    got = moments(features, labels.to(label_dtype), num_classes)
    assert_within_contract(got, features, labels, num_classes)


# Several groups of several blocks (csrc/cpu/several_groups.cpp).
MANY_BLOCKS = {"num_rows": 26000, "num_columns": 128, "num_classes": 48}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("adversary", ADVERSARIES)
@pytest.mark.parametrize("order", ["class", "input"])
@pytest.mark.usefixtures("restore_threads")
def test_accuracy_contract_over_groups_and_blocks(dtype, adversary, order):
    _core.set_row_order(order)
    features, labels = make_batch(7, **MANY_BLOCKS, dtype=dtype, adversary=adversary, ignored=True)
    got = moments(features, labels, 48)
    assert_within_contract(got, features, labels, 48)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_rows", "num_columns", "num_classes"),
    [(6000, 64, 3), (700, 2100, 5), (12000, 16, 7), (60, 5, 1000)],
    ids=["many groups", "several column tiles", "ragged groups", "far more classes than rows"],
)
def test_accuracy_is_typically_1e_7(dtype, num_rows, num_columns, num_classes):
    features, labels = make_batch(1, num_rows, num_columns, num_classes, dtype, "gaussian")
    got = moments(features, labels, num_classes)
    assert_within_contract(got, features, labels, num_classes, tolerance=3e-7)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e25, 1e30])
def test_squares_outside_the_range_of_float32(scale):
    features, labels = make_batch(2, 500, 20, 3, torch.float64, "gaussian")
    features = (features * scale).float()
    assert_within_contract(moments(features, labels, 3), features, labels, 3, tolerance=1e-6)


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_rows", "num_columns", "num_classes"),
    [(40000, 64, 3), (3000, 1030, 7), (1000, 2100, 300), (50000, 19, 4), (26000, 128, 48)],
)
def test_same_bits_on_every_thread_count_instruction_set_and_order_of_rows(
    dtype, num_rows, num_columns, num_classes
):
    features, labels = make_batch(3, num_rows, num_columns, num_classes, dtype, "offset")
    results = set()
    for level, order, threads in itertools.product(
        _core.available_simd_levels(), ("class", "input"), (1, 2, 3, 8)
    ):
        _core.set_simd_level(level)
        _core.set_row_order(order)
        torch.set_num_threads(threads)
        got = moments(features, labels, num_classes)
        results.add(b"".join(tensor.numpy().tobytes() for tensor in got))
    assert len(results) == 1


def test_a_forked_process_updates_with_threads_of_its_own():
    # Of the threads that parent and torch have shared, it has none; torch itself would wait for
    # them, so the child has it do nothing that takes more than one.
    command = """
import os, torch, deeprep
torch.set_num_threads(2)
features, labels = torch.randn(4096, 512).square_(), torch.arange(4096) % 10
expected = deeprep.class_scatter(features, labels, 10)
child = os.fork()
if child == 0:
    found = deeprep.class_scatter(features, labels, 10)
    os._exit(0 if torch.equal(found.means, expected.means) else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", command], check=True, timeout=120)


@given(
    seed=st.integers(0, 1000),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(
        ["transposed", "every other row", "column slice", "repeated", "shifted"]
    ),
)
def test_strides_do_not_change_a_bit(seed, dtype, layout):
    features, labels = make_batch(seed, 150, 12, 4, dtype, "gaussian")
    if layout == "transposed":
        strided = features.T.contiguous().T
    elif layout == "every other row":
        strided = features.repeat_interleave(2, dim=0)[::2]
    elif layout == "column slice":
        strided = torch.cat([features * 2, features, features], dim=1)[:, 12:24]
    elif layout == "repeated":  # row stride 0
        features = features[:1].repeat(150, 1)
        strided = features[:1].expand(150, 12)
    else:  # misaligned by one element
        strided = torch.cat([features.new_zeros(1), features.flatten()])[1:].view(150, 12)
    for a, b in zip(moments(features, labels, 4), moments(strided, labels, 4), strict=True):
        assert torch.equal(a, b)


def test_rows_more_than_2_to_the_31_elements_apart():
    # Three float16 rows 2 GiB apart in memory that is reserved, never filled.
    stride = 2**31 + 8
    with mmap.mmap(-1, 2 * (2 * stride + 8), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        features = torch.frombuffer(memory, dtype=torch.float16).as_strided((3, 5), (stride, 1))
        near = torch.randn(3, 5).half()
        features.copy_(near)
        labels = torch.tensor([0, 1, 0])
        for a, b in zip(moments(features, labels, 2), moments(near, labels, 2), strict=True):
            assert a.equal(b)
        del features


def test_more_than_2_to_the_31_elements():
    row = torch.randn(1024).bfloat16()
    num_rows = 2**21 + 64
    features = row.expand(num_rows, 1024)  # 4 GiB that take 2 KiB
    counts, means, sumsq = moments(features, torch.arange(num_rows) % 3, 3)
    assert counts.tolist() == [(num_rows + 2 - k) // 3 for k in range(3)]
    assert means.equal(row.double().expand(3, 1024))
    assert sumsq.tolist() == [0.0, 0.0, 0.0]


def test_strided_labels_are_read_right():
    features, labels = make_batch(1, 5000, 12, 4, torch.float32, "gaussian", ignored=True)
    strided = labels.repeat_interleave(2)[::2]
    expected = moments(features, labels, 4)
    for a, b in zip(moments(features, strided, 4), expected, strict=True):
        assert torch.equal(a, b)


def test_half_precision_is_widened_exactly():
    every_bit_pattern = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        values = every_bit_pattern.view(dtype)
        values = values[values.isfinite()].unsqueeze(1)
        labels = torch.arange(len(values))
        _, means, _ = moments(values, labels, len(values))
        assert torch.equal(means, values.double())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nonfinite_features_reach_their_class_and_no_other(bad):
    features, labels = make_batch(4, 400, 6, 4, torch.float32, "gaussian")
    features[labels == 2, 3] = bad
    counts, means, sumsq = moments(features, labels, 4)
    assert not sumsq[2].isfinite()
    assert not means[2, 3].isfinite()
    others = torch.tensor([0, 1, 3])
    assert sumsq[others].isfinite().all()
    assert means[others].isfinite().all()
    assert counts.sum() == 400


def test_a_bad_label_far_into_a_large_batch_leaves_the_state_untouched():
    features, labels = make_batch(8, **MANY_BLOCKS, dtype=torch.float32, adversary="gaussian")
    state = moments(features, labels, 48)
    before = [tensor.clone() for tensor in state]
    labels[25000] = 48
    with pytest.raises(ValueError, match=r"labels\[25000\] is 48"):
        deeprep.ops.class_moments_(features, labels, *state)
    assert all(torch.equal(a, b) for a, b in zip(state, before, strict=True))


@pytest.mark.parametrize("label", [-1, 3, -(2**62), 2**40])
def test_label_out_of_range_is_named_and_nothing_is_written(label):
    features = torch.ones(1000, 2)
    labels = torch.zeros(1000, dtype=torch.int64)
    labels[777] = label
    counts = torch.zeros(3, dtype=torch.int64)
    means, sumsq = torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    message = rf"labels\[777\] is {label}, expected a class in \[0, 3\) or ignore_index = -100"
    with pytest.raises(ValueError, match=message):
        deeprep.ops.class_moments_(features, labels, counts, means, sumsq)
    assert not counts.any()
    assert not means.any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": torch.ones(4)}, ValueError, r"features has shape \(4,\), expected \(N, d\)"),
        (
            {"features": torch.ones(4, 3)},
            ValueError,
            r"means has shape \(2, 2\), expected \(2, 3\)",
        ),
        ({"features": torch.ones(4, 2).int()}, TypeError, "features has dtype torch.int32"),
        (
            {"labels": torch.zeros(3).long()},
            ValueError,
            r"labels has shape \(3,\), expected \(4,\)",
        ),
        ({"labels": torch.zeros(4)}, TypeError, "labels has dtype torch.float32, expected"),
        ({"counts": torch.zeros(2).int()}, TypeError, "counts has dtype torch.int32, expected"),
        ({"means": torch.zeros(2, 2)}, TypeError, "means has dtype torch.float32, expected"),
        (
            {"sumsq": torch.zeros(3).double()},
            ValueError,
            r"sumsq has shape \(3,\), expected \(2,\)",
        ),
        ({"means": torch.zeros(2, 2).double().T}, ValueError, "contiguous"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, error, message):
    arguments = {
        "features": torch.ones(4, 2),
        "labels": torch.zeros(4, dtype=torch.int64),
        "counts": torch.zeros(2, dtype=torch.int64),
        "means": torch.zeros(2, 2, dtype=torch.float64),
        "sumsq": torch.zeros(2, dtype=torch.float64),
    }
    with pytest.raises(error, match=message):
        deeprep.ops.class_moments_(**{**arguments, **change})


@pytest.mark.parametrize("bad_label", [None, torch.full((3,), -1)])
def test_opcheck(bad_label):
    for dtype in DTYPES:
        features, labels = make_batch(5, 20, 6, 3, dtype, "gaussian")
        state = (
            torch.zeros(3, dtype=torch.int64),
            torch.zeros(3, 6, dtype=torch.float64),
            torch.zeros(3, dtype=torch.float64),
        )
        torch.library.opcheck(
            torch.ops.deeprep.class_moments_.default, (features, labels, *state, -100, bad_label)
        )


@pytest.mark.parametrize("with_bad_label", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_works_under_torch_compile(backend, with_bad_label):
    bad_label = torch.full((3,), -1) if with_bad_label else None

    def step(features, labels, counts, means, sumsq):
        hidden = torch.relu(features * 2)
        torch.ops.deeprep.class_moments_(hidden, labels, counts, means, sumsq, -100, bad_label)
        return sumsq * 2

    features, labels = make_batch(6, 50, 8, 3, torch.float32, "gaussian")
    expected = moments(torch.relu(features * 2), labels, 3)
    state = [torch.zeros_like(tensor) for tensor in expected]
    doubled = torch.compile(step, backend=backend, fullgraph=True)(features, labels, *state)
    for got, wanted in zip(state, expected, strict=True):
        assert torch.equal(got, wanted)
    assert torch.equal(doubled, 2 * expected[2])


def test_shapes_and_devices_are_checked_while_tracing_for_cuda():
    with FakeTensorMode():
        features, labels = torch.ones(4, 2, device="cuda"), torch.zeros(4, device="cuda").long()
        state = [torch.zeros(shape, device="cuda") for shape in ((3,), (3, 2), (3,))]
        state = [state[0].long(), state[1].double(), state[2].double()]
        bad_label = torch.zeros(3, dtype=torch.int64, device="cuda")
        torch.ops.deeprep.class_moments_(features, labels, *state, -100, bad_label)
        with pytest.raises(
            ValueError, match="bad_label is on cpu, expected cuda:0, where features is"
        ):
            torch.ops.deeprep.class_moments_(features, labels, *state, -100, torch.ones(3).long())


@given(
    seed=st.integers(0, 1000),
    num_points=st.sampled_from([1, 2, 33, 500]),
    num_columns=st.sampled_from([1, 3, 8, 100, 2100]),
    offset=st.sampled_from([0.0, 1e6]),
    centered=st.booleans(),
)
def test_squared_distances(seed, num_points, num_columns, offset, centered):
    torch.manual_seed(seed)
    points = torch.randn(num_points, num_columns, dtype=torch.float64) + offset
    center = torch.randn(num_columns, dtype=torch.float64) + offset if centered else None
    expected = (points if center is None else points - center).square().sum(dim=1)
    got = deeprep.ops.squared_distances(points, center)
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)


def test_squared_distances_of_nonfinite_points_stay_with_their_point():
    points = torch.ones(3, 5, dtype=torch.float64)
    points[1, 4] = torch.nan
    points[2, 0] = torch.inf
    assert deeprep.ops.squared_distances(points).isfinite().tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("variable", "value", "error"),
    [
        ("DEEPREP_SIMD", "avx1024", "DEEPREP_SIMD is 'avx1024', expected one of: generic"),
        (
            "DEEPREP_ORDER",
            "output",
            "DEEPREP_ORDER is 'output', expected one of: auto, class, input",
        ),
    ],
    ids=["instruction set", "order of rows"],
)
def test_an_unknown_setting_is_refused_by_name(variable, value, error):
    environment = {**os.environ, variable: value}
    done = subprocess.run(
        [sys.executable, "-c", "import deeprep"], env=environment, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert error in done.stderr


def test_environment_variables_force_the_instruction_set_and_the_order_of_rows():
    command = "import deeprep; info = deeprep.build_info(); print(info['simd'], info['row_order'])"
    environment = {**os.environ, "DEEPREP_SIMD": "generic", "DEEPREP_ORDER": "input"}
    done = subprocess.run(
        [sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "generic input"


def test_show_config_prints_what_is_in_use(capsys):
    deeprep.show_config()
    printed = capsys.readouterr().out
    for key in ("compiler", "simd", "cuda", "num_threads"):
        assert key in printed
