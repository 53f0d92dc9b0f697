"""The CUDA kernels, executed on the host, give the CPU's bits for any batch, launch and schedule.

Each request runs a whole update, or one of the two small kernels, in the host executor: in plain
builds, and in builds that see every access out of bounds and every race.
"""

from __future__ import annotations

import re

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_requests import (
    BUILDS,
    CHUNKS,
    DATA,
    FEATURE_TYPES,
    IGNORE_INDEX,
    LABEL_TYPES,
    LABELS,
    LAUNCHES,
    LAYOUTS,
    NO_BAD_LABEL,
    PLAN,
    SEGMENT_ROWS,
    SEGMENTS,
    SHIFT_ROWS,
    SMALL_LAUNCHES,
    SQUARED_DISTANCES,
    Launch,
    Layout,
    assert_bits,
    assert_state,
    check_update,
    lay_out,
    make_features,
    make_labels,
    prior_state,
    run,
    run_update,
    update_on_cpu,
    zeros,
)

import deeprep
from deeprep import _core


@st.composite
def shapes(draw, itemsize, large):
    """Rows, columns and classes, for plans of every kind (csrc/plan.h) with few bytes."""
    kind = draw(
        st.sampled_from(["few", "few", "long", "many_classes", "groups", "blocks", "segments"])
    )
    if kind == "few":
        rows, columns = (400, 300) if large else (150, 140)
        return draw(st.integers(1, rows)), draw(st.integers(1, columns)), draw(st.integers(1, 12))
    if kind == "long":
        most = 40 if large else 6
        return draw(st.integers(1, most)), draw(st.integers(1000, 1500)), draw(st.integers(1, 4))
    if kind == "many_classes":
        most = 3000 if large else 300
        return draw(st.integers(1, 60)), draw(st.integers(1, 40)), draw(st.integers(20, most))
    if kind == "groups":  # of several blocks each: rows of 1 KiB and more
        rows, classes = (1700, 3) if large else (600, 1)
        columns = 1024 // itemsize + draw(st.integers(0, 20))
        return draw(st.integers(512, rows)), columns, draw(st.integers(1, classes))
    if kind == "blocks":  # groups of more than a segment, which ends in the middle of some block
        classes = draw(st.integers(5, 16 if large else 6))
        rows = 512 * classes + draw(st.integers(0, 600))
        return rows, 4096 // (classes * itemsize) + draw(st.integers(1, 3)), classes
    # Classes of several segments, in one group or, where classes are few, more.
    most = 9000 if large else 2500
    return draw(st.integers(1000, most)), draw(st.integers(1, 4)), draw(st.integers(1, 20))


def check_drawn_update(runner, data, launches, large):
    dtype = data.draw(st.sampled_from(FEATURE_TYPES))
    num_rows, num_columns, num_classes = data.draw(shapes(dtype.itemsize, large))
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    labels = make_labels(rng, num_rows, num_classes, data.draw(st.sampled_from(LABELS)))
    kind = data.draw(st.sampled_from(DATA))
    features = make_features(rng, labels.numpy(), num_columns, num_classes, dtype, kind)
    has_state = data.draw(st.booleans())
    state = zeros(num_classes, num_columns)
    if has_state:
        state = prior_state(seed, num_classes, num_columns)
    labels = labels.to(data.draw(st.sampled_from(LABEL_TYPES)))
    layout = data.draw(st.sampled_from(LAYOUTS))
    check_update(runner, features, labels, state, layout, data.draw(launches))


@hypothesis.settings(max_examples=400)
@given(data=st.data())
def test_any_update_gives_the_bits_of_the_cpu(kernel_runner, data):
    launches = st.tuples(LAUNCHES, LAUNCHES)
    check_drawn_update(kernel_runner("plain"), data, launches, large=True)


@hypothesis.settings(max_examples=100)
@given(data=st.data())
def test_any_update_stays_within_its_memory(kernel_runner, data):
    check_drawn_update(kernel_runner("address"), data, st.tuples(LAUNCHES), large=False)


@hypothesis.settings(max_examples=40)
@given(data=st.data())
def test_no_update_races(kernel_runner, data):
    launches = st.tuples(SMALL_LAUNCHES, SMALL_LAUNCHES)
    check_drawn_update(kernel_runner("thread"), data, launches, large=False)


@pytest.mark.parametrize("layout", ["contiguous", "misaligned"])
@pytest.mark.parametrize("label_dtype", LABEL_TYPES)
@pytest.mark.parametrize("dtype", FEATURE_TYPES)
@pytest.mark.parametrize("build", BUILDS)
def test_every_type_and_team(kernel_runner, build, dtype, label_dtype, layout):
    """Rows that take 1, 2, ... 32 threads, by vectors and, misaligned, by elements."""
    for num_columns in (1, 8, 16, 24, 64, 128, 136):
        rng = np.random.default_rng(num_columns)
        labels = make_labels(rng, 90, 3, "some_ignored")
        features = make_features(rng, labels.numpy(), num_columns, 3, dtype, "outlier_first")
        state = prior_state(1, 3, num_columns)
        launches = [
            Launch(seed=num_columns, threads=64, max_blocks=2, fused_pass=fused_pass)
            for fused_pass in (SEGMENTS, CHUNKS)
        ]
        labels = labels.to(label_dtype)
        check_update(kernel_runner(build), features, labels, state, layout, launches)


PLANS = {
    "one group, several segments": (5000, 20, 20, torch.float32, "three_heavy"),
    "groups of one block": (9000, 4, 2, torch.float64, "shuffled"),
    "groups of several blocks": (1100, 520, 2, torch.float32, "shuffled"),
    "segments across blocks": (2700, 130, 5, torch.float64, "skewed"),
    "one class of all": (5000, 520, 8, torch.float16, "one_class"),
    "groups of many rows": (70_000, 3, 4, torch.float32, "shuffled"),
    "one column": (140_000, 1, 2, torch.bfloat16, "some_ignored"),
    "many classes": (2000, 3, 100_000, torch.float32, "shuffled"),
    "a million classes": (300, 2, 1_000_000, torch.float32, "shuffled"),
}
ONE_GROUP = ("one group, several segments", "many classes", "a million classes")


@pytest.mark.parametrize("has_state", [False, True])
@pytest.mark.parametrize("name", PLANS)
def test_plans(kernel_runner, name, has_state):
    num_rows, num_columns, num_classes, dtype, label_kind = PLANS[name]
    runner = kernel_runner("plain")
    groups, group_rows, block_rows, _, _ = np.frombuffer(
        run(runner, PLAN, dtype, (num_rows, num_columns), num_classes), np.int64
    )
    assert (groups > 1) == (name not in ONE_GROUP)
    if name in ("groups of several blocks", "segments across blocks", "one class of all"):
        assert group_rows > block_rows
    if name in ("segments across blocks", "one class of all"):
        assert group_rows > SEGMENT_ROWS > block_rows
    rng = np.random.default_rng(3)
    labels = make_labels(rng, num_rows, num_classes, label_kind)
    features = make_features(rng, labels.numpy(), num_columns, num_classes, dtype, "gaussian")
    state = zeros(num_classes, num_columns)
    if has_state:
        state = prior_state(1, num_classes, num_columns)
    launches = [
        Launch(1, threads=256, max_blocks=20, fused_pass=SEGMENTS),
        Launch(2, threads=32, max_blocks=3, fused_pass=CHUNKS),
    ]
    check_update(runner, features, labels, state, "contiguous", launches)


@pytest.mark.parametrize("has_state", [False, True])
def test_what_is_not_a_number_is_the_same_nan_at_every_simd_level(kernel_runner, has_state):
    patterns = np.array([0x7FC00000, 0xFFC00000, 0x7F812345, 0xFF800000], np.uint32)
    rng = np.random.default_rng(int(has_state))
    for num_rows, num_columns in [(1, 1), (40, 3), (150, 130), (200, 33), (5000, 9)]:
        labels = make_labels(rng, num_rows, 3, "shuffled")
        features = rng.standard_normal((num_rows, num_columns)).astype(np.float32)
        flat = features.view(np.uint32).ravel()
        flat[rng.integers(flat.size, size=4)] = rng.permutation(patterns)
        features = torch.from_numpy(features)
        state = prior_state(1, 3, num_columns) if has_state else zeros(3, num_columns)
        for level in _core.available_simd_levels():
            _core.set_simd_level(level)
            check_update(
                *(kernel_runner("plain"), features, labels, state, "contiguous"),
                [
                    Launch(num_rows, threads=64, max_blocks=3, fused_pass=fused_pass)
                    for fused_pass in (SEGMENTS, CHUNKS)
                ],
            )


@pytest.mark.parametrize("bad", [-1, 5, -(2**31), 2**40])
@pytest.mark.parametrize("build", BUILDS)
def test_a_label_out_of_range_is_noted_and_nothing_is_written(kernel_runner, build, bad):
    runner = kernel_runner(build)
    rng = np.random.default_rng(0)
    labels = make_labels(rng, 200, 5, "some_ignored").to(torch.int64 if bad > 5 else torch.int32)
    features = make_features(rng, labels.numpy(), 9, 5, torch.float32, "gaussian")
    state = prior_state(1, 5, 9)
    memory = lay_out(features, "contiguous")
    wrong = labels.clone()
    wrong[[77, 78, 150]] = torch.tensor([bad, -3, bad], dtype=labels.dtype)
    for launch in (
        Launch(1, threads=32, max_blocks=5, fused_pass=SEGMENTS),
        Launch(2, threads=64, max_blocks=1, fused_pass=CHUNKS),
    ):
        got, noted = run_update(runner, features, wrong, state, memory, launch)
        assert noted == (77, bad, 1)
        assert_state(got, state)
        # Neither right labels nor other wrong ones change anything from now on.
        wrong_at_once = wrong.clone()
        wrong_at_once[0] = 7
        for later in (labels, wrong_at_once):
            got, still = run_update(runner, features, later, state, memory, launch, noted)
            assert still == noted
            assert_state(got, state)


def test_too_little_scratch_is_refused_with_both_numbers(kernel_runner):
    features, labels, state = torch.ones(200, 9), torch.zeros(200, dtype=torch.int32), zeros(5, 9)
    layout = lay_out(features, "contiguous")
    with pytest.raises(AssertionError) as refused:
        run_update(
            *(kernel_runner("plain"), features, labels, state, layout, Launch()),
            missing_scratch=256,
        )
    message = r"scratch is (\d+) bytes, expected (\d+) or more"
    given, needed = map(int, re.search(message, str(refused.value)).groups())
    assert needed == given + 256


def test_more_classes_than_keys_can_number_are_refused_before_scratch_is_asked_for(kernels):
    shape = (5, 1, _core.FeatureType.float32, 2**31 + 1)
    num_bytes = kernels.class_moments_cuda_scratch(*shape)
    assert num_bytes < 256  # to align nothing
    scratch = torch.empty(num_bytes, dtype=torch.uint8)
    with pytest.raises(
        RuntimeError, match="num_classes is 2147483649, expected at most 2147483648"
    ):
        kernels.class_moments_cuda(
            *(0, _core.FeatureType.float32, 5, 1, 1, 1, 0, _core.LabelType.int64, IGNORE_INDEX),
            *(0, 0, 0, 2**31 + 1, 0, scratch.data_ptr(), num_bytes, 0),
        )


@pytest.mark.parametrize("ignore_index", [-100, 0, 4, 5, 2**40])
def test_any_number_can_be_the_ignored_label(kernel_runner, ignore_index):
    rng = np.random.default_rng(0)
    labels = make_labels(rng, 200, 5, "shuffled")
    labels[labels == 1] = min(ignore_index, 5)
    features = make_features(rng, labels.numpy(), 9, 5, torch.float32, "gaussian")
    labels[labels == 5] = ignore_index
    state = zeros(5, 9)
    layout = lay_out(features, "contiguous")
    got, noted = run_update(
        *(kernel_runner("plain"), features, labels, state, layout, Launch()),
        ignore_index=ignore_index,
    )
    assert noted == NO_BAD_LABEL
    assert_state(got, update_on_cpu(features, labels, state, ignore_index))


# ---------------------------------------------------------------- the small kernels


@pytest.mark.parametrize("label_dtype", LABEL_TYPES)
@pytest.mark.parametrize("dtype", FEATURE_TYPES)
@pytest.mark.parametrize("build", BUILDS)
def test_shift_rows(kernel_runner, build, dtype, label_dtype):
    shapes_and_layouts = [
        *((1, 1, "contiguous"), (70, 33, "padded"), (9, 300, "misaligned"), (40, 8, "backwards")),
        *((20, 5, "transposed"), (20, 6, "columns_backwards"), (20, 7, "every_other_column")),
    ]
    for num_rows, num_columns, layout in shapes_and_layouts:
        rng = np.random.default_rng(num_rows)
        labels = make_labels(rng, num_rows, 4, "some_ignored").to(label_dtype)
        features = make_features(rng, labels.numpy(), num_columns, 4, dtype, "nonfinite")
        accumulator = torch.float64 if dtype == torch.float64 else torch.float32
        pivots = torch.from_numpy(rng.standard_normal((4, num_columns))).to(accumulator)
        expected = features.new_empty(features.shape, dtype=accumulator)
        deeprep.ops.shift_rows(features, labels, pivots, expected, IGNORE_INDEX)
        memory = lay_out(features, layout)
        reply = run(
            *(kernel_runner(build), SHIFT_ROWS, dtype, features.shape, 4),
            *(memory.elements, labels, pivots),
            **{"layout": memory, "label_dtype": label_dtype, "launch": Launch(5, 64, 7)},
        )
        got = np.frombuffer(reply, expected.numpy().dtype)
        assert_bits(got, expected, layout, any_nan=True)


@pytest.mark.parametrize("has_center", [False, True])
@pytest.mark.parametrize("build", BUILDS)
def test_squared_distances(kernel_runner, build, has_center):
    """Below, at and above the 8 strips of 128 columns that a block takes at a time."""
    for num_classes, num_columns in [(1, 1), (9, 3), (2, 128), (3, 300), (2, 1024), (3, 2050)]:
        rng = np.random.default_rng(num_columns)
        points = torch.from_numpy(rng.standard_normal((num_classes, num_columns)) + 1e3)
        points[num_classes // 2, num_columns // 2] = rng.choice([np.nan, np.inf, 1.0])
        center = torch.from_numpy(rng.standard_normal(num_columns)) if has_center else None
        reply = run(
            *(kernel_runner(build), SQUARED_DISTANCES, torch.float64, (0, num_columns)),
            *(num_classes, points, *([center] if has_center else [])),
            **{"has_center": has_center, "launch": Launch(5, max_blocks=2)},
        )
        expected = deeprep.ops.squared_distances(points, center)
        assert_bits(np.frombuffer(reply, np.float64), expected, num_columns)


def test_squared_distances_that_are_not_numbers_are_one_nan(kernel_runner):
    rng = np.random.default_rng(0)
    for num_columns in (40, 133, 300):
        points, center = rng.standard_normal((50, num_columns)), rng.standard_normal(num_columns)
        for row in points:
            row[rng.integers(num_columns, size=3)] = rng.choice([np.nan, -np.nan, np.inf], 3)
        center[rng.integers(num_columns, size=2)] = np.inf, -np.nan
        points, center = torch.from_numpy(points), torch.from_numpy(center)
        reply = run(
            *(kernel_runner("plain"), SQUARED_DISTANCES, torch.float64, (0, num_columns)),
            *(50, points, center),
            **{"has_center": True, "launch": Launch(5, max_blocks=2)},
        )
        for level in _core.available_simd_levels():
            _core.set_simd_level(level)
            expected = deeprep.ops.squared_distances(points, center)
            assert_bits(np.frombuffer(reply, np.float64), expected, (num_columns, level))


def test_empty_batches(kernel_runner):
    features, labels = torch.empty(0, 6), torch.empty(0, dtype=torch.int64)
    layout = Layout(np.empty(0, np.int32), 0, 6, 1)
    state = prior_state(1, 3, 6)
    got, noted = run_update(kernel_runner("plain"), features, labels, state, layout, Launch())
    assert noted == NO_BAD_LABEL
    assert_state(got, state)
    reply = run(
        *(kernel_runner("plain"), SHIFT_ROWS, torch.float32, (0, 6), 3),
        *(layout.elements, labels, torch.zeros(3, 6)),
        layout=layout,
    )
    assert reply == b""
