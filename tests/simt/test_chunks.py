"""Chunks summed side by side (sum_chunks.cuh), the same bits as one after the other and the CPU's;
which updates are summed so; and mistakes planted in those kernels, which the builds must catch.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_requests import (
    BUILDS,
    CHUNKS,
    FEATURE_TYPES,
    OF_THE_SHAPE,
    PLAN,
    SEGMENTS,
    Launch,
    check_update,
    make_features,
    prior_state,
    run,
    zeros,
)

BOTH = [
    Launch(seed=1, threads=64, max_blocks=2, fused_pass=SEGMENTS),
    Launch(seed=2, threads=64, max_blocks=2, fused_pass=CHUNKS),
    Launch(seed=3, threads=256, max_blocks=1000, fused_pass=CHUNKS),
]


def labels_of(rows_of_class):
    """Classes take turns until each has its rows."""
    labels = np.repeat(np.arange(len(rows_of_class)), rows_of_class)
    turn = np.concatenate([np.arange(rows) for rows in rows_of_class])
    return torch.from_numpy(labels[np.argsort(turn, kind="stable")])


@pytest.mark.parametrize("layout", ["contiguous", "misaligned"])
@pytest.mark.parametrize("num_columns", [1, 63, 64, 100, 128, 130, 1000])
@pytest.mark.parametrize("dtype", FEATURE_TYPES)
def test_chunks_of_every_length(kernel_runner, dtype, num_columns, layout):
    """One class of 1 to 64 rows, and ten that end in chunks of different lengths."""
    rng = np.random.default_rng(num_columns)
    lengths = [*range(1, 10), 15, 16, 17, 63, 64] if num_columns > 64 else range(1, 65)
    for rows_of_class in [*([length] for length in lengths), [*range(60, 69), 130]]:
        labels = labels_of(rows_of_class)
        num_classes = len(rows_of_class)
        data = rng.choice(["gaussian", "outlier_first", "outliers", "offset"])
        features = make_features(rng, labels.numpy(), num_columns, num_classes, dtype, data)
        state = zeros(num_classes, num_columns)
        if rng.random() < 0.5:
            state = prior_state(1, num_classes, num_columns)
        check_update(kernel_runner("plain"), features, labels, state, layout, BOTH)


@pytest.mark.parametrize("data", ["outlier_first", "tiny", "huge", "constant", "nonfinite"])
@pytest.mark.parametrize("num_columns", [2, 20, 64, 130])
@pytest.mark.parametrize("build", BUILDS)
def test_chunks_whose_sums_cannot_be_trusted(kernel_runner, build, num_columns, data):
    """Some of a block's chunks are summed again in double, others are not."""
    rng = np.random.default_rng(num_columns)
    labels = labels_of([70, 9, 64])
    for dtype in (torch.float32, torch.bfloat16):
        features = make_features(rng, labels.numpy(), num_columns, 3, dtype, data)
        features[labels == 1] = torch.randn(9, num_columns).to(dtype)
        state = prior_state(1, 3, num_columns)
        check_update(kernel_runner(build), features, labels, state, "contiguous", BOTH[:2])


@pytest.mark.parametrize("build", BUILDS)
def test_chunks_of_segments_that_go_through_several_blocks(kernel_runner, build):
    """Groups of several blocks; a team looks up one slice, as many as it needs, or fewer."""
    rng = np.random.default_rng(0)
    for num_columns, num_rows in [(1, 70_000), (3, 22_000), (130, 600)]:
        if build != "plain" and num_columns < 130:
            continue
        labels = torch.from_numpy(rng.integers(0, 2, num_rows))
        features = make_features(rng, labels.numpy(), num_columns, 2, torch.float64, "gaussian")
        state = prior_state(1, 2, num_columns)
        check_update(kernel_runner(build), features, labels, state, "contiguous", BOTH[:2])


@pytest.mark.parametrize(
    ("num_rows", "num_columns", "num_classes"), [(300, 5200, 3), (2500, 3, 1500), (2600, 200, 2)]
)
def test_chunks_merged_by_every_kernel(kernel_runner, num_rows, num_columns, num_classes):
    """Segments side by side, and with the state in one kernel; with and without others to merge."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, num_classes, num_rows))
    features = make_features(
        *(rng, labels.numpy(), num_columns, num_classes, torch.float32, "gaussian")
    )
    state = prior_state(1, num_classes, num_columns)
    check_update(kernel_runner("plain"), features, labels, state, "contiguous", BOTH)


# ---------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("shape", "num_classes", "num_multiprocessors", "in_chunks"),
    [
        ((4096, 512), 10, 132, True),
        ((4096, 512), 100, 132, True),
        ((32_768, 64), 10, 132, True),
        ((20_000, 1024), 10, 132, True),
        ((20_000, 1024), 10, 4, False),  # a small chip is full
        ((256, 768), 1000, 132, False),  # a row or two a class
        ((12_800, 768), 1000, 132, False),
        ((320, 768), 10, 132, True),
        ((319, 768), 10, 132, False),
        ((100_000, 2048), 10, 132, False),
        ((1_280_000, 768), 1000, 132, False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_where_segments_leave_the_chip_idle(
    kernel_runner, dtype, shape, num_classes, num_multiprocessors, in_chunks
):
    launch = Launch(fused_pass=OF_THE_SHAPE, num_multiprocessors=num_multiprocessors)
    reply = run(kernel_runner("plain"), PLAN, dtype, shape, num_classes, launch=launch)
    assert np.frombuffer(reply, np.int64)[-1] == in_chunks


# ---------------------------------------------------------------- planted mistakes


SUM, MOMENTS, ROWS = (
    f"cuda/{name}.cuh" for name in ("sum_chunks", "segment_moments", "row_groups")
)
BARRIER = "__syncthreads();"
RACE = ("thread", "ThreadSanitizer: data race")
OTHER_BITS = ("plain", "instead of")

# The header, what it says, which time it says it, what it says instead; who sees that, and how.
PLANTED = {
    "no barrier before the pivot is read": (SUM, BARRIER, 0, ";", *RACE),
    "no barrier before the groups are added": (SUM, BARRIER, 1, ";", *RACE),
    "no barrier before the checks are added": (SUM, BARRIER, 2, ";", *RACE),
    "no barrier before the warps are added": (SUM, BARRIER, 3, ";", *RACE),
    "groups out of order": (SUM, "t[g * kBlockQuads", 0, "t[(g ^ 1) * kBlockQuads", *OTHER_BITS),
    "a group too many": (SUM, "g * kGroupRows < num", 0, "g * kGroupRows <= num", *OTHER_BITS),
    "the next quad": (
        *(SUM, "shared.q[group * kBlockQuads + quad]", 0),
        *("shared.q[group * kBlockQuads + quad + 1]", "plain", "index 256 of an array of 256"),
    ),
    "the chunk after the last": (
        *(SUM, "item < num_items", 0, "item <= num_items"),
        *("address", "AddressSanitizer: use-after-poison"),
    ),
    "a row too many": (ROWS, "first + r < num_rows", 0, "first + r <= num_rows", *OTHER_BITS),
    "a segment from the first chunk of its slice": (MOMENTS, "chunk_ += (", 0, "(", *OTHER_BITS),
}


def check_updates_in_chunks(runner):
    """A strip of full chunks beside short ones, then a class of two segments."""
    rng = np.random.default_rng(0)
    for rows_of_class, num_columns in [([64, 9, 8], 256), ([1100, 3], 1)]:
        labels = labels_of(rows_of_class)
        num_classes = len(rows_of_class)
        features = make_features(
            *(rng, labels.numpy(), num_columns, num_classes, torch.float32, "gaussian")
        )
        check_update(
            *(runner, features, labels, zeros(num_classes, num_columns), "contiguous"),
            [Launch(seed, 64, 5, fused_pass=CHUNKS) for seed in range(2)],
        )


@pytest.mark.parametrize("build", BUILDS)
def test_kernels_without_a_planted_mistake_pass(kernel_runner, build):
    check_updates_in_chunks(kernel_runner(build))


@pytest.mark.parametrize("name", PLANTED)
def test_planted_mistake_is_caught(planted_runner, name):
    """The kernels themselves, each with one mistake, seen by what sees none in them."""
    header, right, nth, wrong, build, complaint = PLANTED[name]
    runner = planted_runner(build, header, right, nth, wrong)
    with pytest.raises(AssertionError, match=complaint):
        check_updates_in_chunks(runner)
