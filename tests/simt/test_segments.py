"""Segments of few rows: a team of sum_segments walks several, one after the other."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from kernel_requests import (
    BUILDS,
    FEATURE_TYPES,
    RECORDED,
    SEGMENTS,
    Launch,
    check_update,
    make_features,
    prior_state,
    run,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / ".ci"))

import cuda_work


def check_short_segments(runner, dtype=torch.float32):
    """Classes of one to nine rows and of none, and one of two segments, by one team and by more."""
    rng = np.random.default_rng(0)
    of_rows = [*rng.integers(0, 10, 60), 1100, *rng.integers(1, 3, 20)]
    for rows_of_class, num_columns in [(of_rows, 8), (of_rows[:30], 140), ([1] * 40, 64)]:
        labels = torch.from_numpy(
            rng.permutation(np.repeat(np.arange(len(rows_of_class)), rows_of_class))
        )
        num_classes = len(rows_of_class)
        features = make_features(
            rng, labels.numpy(), num_columns, num_classes, dtype, "outlier_first"
        )
        launches = [
            Launch(seed, 64, max_blocks, fused_pass=SEGMENTS)
            for seed, max_blocks in enumerate((1, 2, 7, 1000))
        ]
        state = prior_state(1, num_classes, num_columns)
        check_update(runner, features, labels, state, "contiguous", launches)


@pytest.mark.parametrize("dtype", FEATURE_TYPES)
@pytest.mark.parametrize("build", BUILDS)
def test_teams_that_walk_several_segments(kernel_runner, build, dtype):
    check_short_segments(kernel_runner(build), dtype)


@pytest.mark.parametrize(
    ("shape", "num_classes", "a_team"),
    [
        ((256, 768), 1000, 1),  # fewer segments than teams at work
        ((4096, 768), 1000, 3),
        ((50_000, 4096), 10_000, 8),
        ((1_000_000, 4096), 50_000, 8),
        ((100_000, 2048), 1000, 1),  # a hundred rows a class
    ],
)
@pytest.mark.parametrize("multiprocessors", [108, 132, 148])
def test_segments_share_a_team_where_multiprocessors_stay_at_work(
    kernel_runner, shape, num_classes, a_team, multiprocessors
):
    reply = run(
        *(kernel_runner("plain"), RECORDED, torch.float32, shape, num_classes),
        launch=Launch(max_blocks=multiprocessors),
    )
    launches = np.frombuffer(reply, np.int64).reshape(-1, 2)
    constants = cuda_work.read_constants()
    of_model = cuda_work.Shape(*shape, num_classes)
    work = cuda_work.cut_up(of_model, 4, constants)
    tiles = cuda_work.cut_into_tiles(of_model, work, constants)
    fused = cuda_work.launches_of(of_model, work, tiles, constants, multiprocessors).tables
    teams = launches[fused].prod() // 32
    expected = cuda_work.segment_teams(of_model, work, constants, multiprocessors)
    most = 8 * multiprocessors * 2048 // 32  # that are launched at a time
    assert teams == min(expected + expected % 2, most)
    num_rows, num_columns = shape
    segments = min(num_rows, num_classes * work.groups) + num_rows // 1024
    items = segments * -(-num_columns // 128)
    assert teams >= min(items, 16 * multiprocessors)
    assert -(-items // expected) == a_team or expected == 16 * multiprocessors


# ---------------------------------------------------------------- planted mistakes

SUM, STRIPS = "cuda/sum_segments.cuh", "cuda/strips.cuh"
OTHER_BITS = ("plain", "instead of")

# The header, what it says, which time it says it, what it says instead; who sees that, and how.
PLANTED = {
    "no look at the next segment": (SUM, "walk.look_ahead();", 1, ";", *OTHER_BITS),
    "the moments of the segment before": (SUM, "moments = {};", 1, ";", *OTHER_BITS),
    "no row numbers of the next segment": (SUM, "if (next.num_rows > 0)", 0, "if (0)", *OTHER_BITS),
    "the segment after the last": (
        *(SUM, "s_ < num_segments()", 0, "s_ <= num_segments()"),
        *("address", "AddressSanitizer"),
    ),
    "the other half": (STRIPS, "= keeps_second ?", 0, "= !keeps_second ?", *OTHER_BITS),
    "segments out of order": (STRIPS, "(i / 2 + i % 2 * 2) * kStep", 0, "i * kStep", *OTHER_BITS),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_mistake_is_caught(planted_runner, name):
    """The kernels themselves, each with one mistake, seen by what sees none in them."""
    header, right, nth, wrong, build, complaint = PLANTED[name]
    runner = planted_runner(build, header, right, nth, wrong)
    with pytest.raises(AssertionError, match=complaint):
        check_short_segments(runner)
