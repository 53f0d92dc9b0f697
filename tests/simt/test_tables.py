"""The tables of an update, executed on the host: slices, segments, chunks, and in how few launches.

What is expected comes from NumPy's stable sort and from csrc/plan.h in words, not from the kernels.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_requests import (
    BUILDS,
    IGNORE_INDEX,
    LABEL_TYPES,
    LABELS,
    LAUNCHES,
    NO_BAD_LABEL,
    RECORDED,
    SEGMENT_ROWS,
    SMALL_LAUNCHES,
    TABLES,
    Launch,
    make_labels,
    run,
)

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / ".ci")]

import cuda_work  # noqa: E402

from benchmarks.gpu_shapes import GPU_SHAPES  # noqa: E402
from benchmarks.shapes import DTYPES, Shape, torch_dtype  # noqa: E402

CHUNK_ROWS = 64  # csrc/moments.h
MAX_TILE_CLASSES = 4096  # csrc/cuda/tile_sort.cuh
MAX_TILE_ROWS = 16 * 1024
TILE_ROWS = 4096


@dataclasses.dataclass(frozen=True)
class Tables:
    """What the kernels made of the labels, or expected of them."""

    slice_begin: np.ndarray
    first_chunk: np.ndarray
    chunk_begin: np.ndarray
    sorted_rows: np.ndarray
    first_segment: np.ndarray
    segments: np.ndarray  # begin, block, class, rows


def run_tables(runner, labels, num_columns, num_classes, launch, **given):
    """Return the bad label, the cut (blocks, their rows, groups, their rows, tiles), the tables."""
    reply = run(
        *(runner, TABLES, torch.float32, (len(labels), num_columns), num_classes),
        *(labels, np.array(given.pop("bad_label", NO_BAD_LABEL), np.int64)),
        **{"launch": launch, "label_dtype": labels.dtype, **given},
    )
    head = np.frombuffer(reply[: 8 * 8], np.int64).tolist()
    cut, bad_label, rest = head[:5], tuple(head[5:]), reply[8 * 8 :]
    if not rest:
        return bad_label, cut, None

    def take(dtype, count):
        nonlocal rest
        size = count * np.dtype(dtype).itemsize
        taken, rest = np.frombuffer(rest[:size], dtype), rest[size:]
        return taken

    num_keys = cut[0] * num_classes
    slice_begin = take(np.uint32, num_keys + 1)
    first_chunk = take(np.uint32, num_keys + 1 if num_classes <= MAX_TILE_CLASSES else 0)
    chunk_begin = take(np.uint32, int(first_chunk[-1]) + 1 if len(first_chunk) else 0)
    sorted_rows = take(np.uint32, int(slice_begin[-1]))
    first_segment = take(np.int64, num_classes * cut[2] + 1)
    segments = take(np.uint32, 4 * int(first_segment[-1])).reshape(-1, 4)
    assert not rest
    tables = Tables(*(slice_begin, first_chunk, chunk_begin, sorted_rows, first_segment, segments))
    return bad_label, cut, tables


def expected_tables(labels, num_classes, cut, ignore_index=IGNORE_INDEX):
    """Follow csrc/plan.h slice by slice."""
    num_blocks, block_rows, num_groups, group_rows, _ = cut
    labels = labels.numpy().astype(np.int64)
    kept = np.flatnonzero(labels != ignore_index)
    keys = kept // block_rows * num_classes + labels[kept]
    order = np.argsort(keys, kind="stable")
    rows = np.bincount(keys, minlength=num_blocks * num_classes)
    slice_begin = np.concatenate([[0], np.cumsum(rows)])
    chunks = -(-rows // CHUNK_ROWS)
    first_chunk = np.concatenate([[0], np.cumsum(chunks)])
    nth = np.arange(first_chunk[-1]) - np.repeat(first_chunk[:-1], chunks)
    chunk_begin = np.append(np.repeat(slice_begin[:-1], chunks) + CHUNK_ROWS * nth, slice_begin[-1])
    if num_classes > MAX_TILE_CLASSES:
        first_chunk = chunk_begin = first_chunk[:0]
    per_group = group_rows // block_rows
    counts, segments = [], []
    present = set(np.unique(keys % num_classes).tolist())
    for class_index in range(num_classes):
        for group in range(num_groups):
            before, so_far = len(segments), 0
            blocks = range(group * per_group, min((group + 1) * per_group, num_blocks))
            for block in blocks if class_index in present else ():
                key = block * num_classes + class_index
                begin, end = slice_begin[key : key + 2].tolist()
                while begin < end:
                    if so_far == 0:
                        segments.append([begin, block, class_index, 0])
                    chunk = min(CHUNK_ROWS, end - begin)
                    so_far += chunk
                    begin += chunk
                    segments[-1][3] = so_far
                    if so_far >= SEGMENT_ROWS:
                        so_far = 0
            counts.append(len(segments) - before)
    return Tables(
        slice_begin.astype(np.uint32),
        first_chunk.astype(np.uint32),
        chunk_begin.astype(np.uint32),
        kept[order].astype(np.uint32),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        np.array(segments, np.uint32).reshape(-1, 4),
    )


def check_tables(runner, labels, num_columns, num_classes, launches):
    """Return how the batch was cut."""
    for launch in launches:
        bad_label, cut, got = run_tables(runner, labels, num_columns, num_classes, launch)
        assert bad_label == NO_BAD_LABEL
        expected = expected_tables(labels, num_classes, cut)
        for field in dataclasses.fields(Tables):
            name = field.name
            np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), name)
    return cut


@st.composite
def shapes(draw, large):
    """Rows, columns and classes: one tile or more, of several blocks, of one, of parts of one."""
    kind = draw(st.sampled_from(["tile", "tile", "blocks", "groups", "parts", "sorted"]))
    classes = draw(st.integers(1, 12))
    if kind == "tile":
        most = 3000 if large else 500
        return draw(st.integers(1, most)), draw(st.sampled_from([1, 64, 4096])), classes * 7
    if kind == "blocks":  # of 32 rows a class, several to a tile
        rows = MAX_TILE_ROWS + draw(st.integers(1, 9000))
        return rows, draw(st.sampled_from([512, 4096])), classes
    if kind == "groups":  # a tile is a block of more than half of its rows
        classes = draw(st.integers(65, 80))
        return 512 * classes + draw(st.integers(1, 3000)), 1024, classes
    if kind == "parts":  # one group of more rows than a tile has
        return MAX_TILE_ROWS + draw(st.integers(1, 9000)), 2, draw(st.integers(1, 300))
    return draw(st.integers(1, 400)), 3, MAX_TILE_CLASSES + draw(st.integers(1, 500))


def check_drawn_tables(runner, data, launches, large):
    num_rows, num_columns, num_classes = data.draw(shapes(large))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    labels = make_labels(rng, num_rows, num_classes, data.draw(st.sampled_from(LABELS)))
    labels = labels.to(data.draw(st.sampled_from(LABEL_TYPES)))
    check_tables(runner, labels, num_columns, num_classes, data.draw(launches))


@hypothesis.settings(max_examples=150)
@given(data=st.data())
def test_tables_of_any_labels(kernel_runner, data):
    check_drawn_tables(kernel_runner("plain"), data, st.tuples(LAUNCHES), large=True)


@hypothesis.settings(max_examples=40)
@given(data=st.data())
def test_tables_stay_within_their_memory(kernel_runner, data):
    check_drawn_tables(kernel_runner("address"), data, st.tuples(LAUNCHES), large=False)


@hypothesis.settings(max_examples=15)
@given(data=st.data())
def test_tables_do_not_race(kernel_runner, data):
    check_drawn_tables(kernel_runner("thread"), data, st.tuples(SMALL_LAUNCHES), large=False)


EDGES = {
    "one row": (1, 8, 3),
    "one class": (900, 8, 1),
    "a warp's rows": (32, 8, 3),
    "the rows of a run": (128, 8, 3),
    "one more": (129, 8, 3),
    "the rows of a segment": (SEGMENT_ROWS, 8, 2),
    "more than a segment": (SEGMENT_ROWS + 1, 8, 2),
    "the rows of a tile": (MAX_TILE_ROWS, 8, 10),
    "more than a tile": (MAX_TILE_ROWS + 1, 8, 10),
    "a tile of many blocks": (MAX_TILE_ROWS, 4096, 4),
    "tiles of many blocks": (MAX_TILE_ROWS + 1, 4096, 4),
    "a tile is a block": (70_000, 4096, TILE_ROWS // 32),
    "a tile is a longer block": (70_000, 4096, TILE_ROWS // 32 + 2),
    "a block is the longest tile": (270_000, 4096, MAX_TILE_ROWS // 32),
    "blocks of several tiles": (270_000, 4096, MAX_TILE_ROWS // 32 + 1),
    "as many classes as fit": (500, 8, MAX_TILE_CLASSES),
    "as many classes as fit, several tiles": (MAX_TILE_ROWS + 1, 8, MAX_TILE_CLASSES),
    "more classes than fit": (500, 8, MAX_TILE_CLASSES + 1),
}


@pytest.mark.parametrize("kind", ["shuffled", "some_ignored", "one_class", "all_ignored"])
@pytest.mark.parametrize("name", EDGES)
def test_tables_at_their_bounds(kernel_runner, name, kind):
    num_rows, num_columns, num_classes = EDGES[name]
    labels = make_labels(np.random.default_rng(1), num_rows, num_classes, kind)
    threads = 256 if kind == "shuffled" else 96
    blocks, block_rows, groups, _, tiles = check_tables(
        *(kernel_runner("plain"), labels.int(), num_columns, num_classes),
        [Launch(seed=1, threads=threads)],
    )
    assert (tiles > 1) == (num_rows > MAX_TILE_ROWS and num_classes <= MAX_TILE_CLASSES)
    if name == "tiles of many blocks":
        assert block_rows * 2 <= TILE_ROWS
    if name == "blocks of several tiles":
        assert groups > 1
        assert block_rows > MAX_TILE_ROWS
        assert tiles > blocks
    if name in ("a tile is a block", "a tile is a longer block", "a block is the longest tile"):
        assert tiles == blocks
        assert groups > 1


@pytest.mark.parametrize(
    "shape",
    [(3000, 4096, 5), (MAX_TILE_ROWS + 700, 4096, 12), (MAX_TILE_ROWS + 700, 2, 300)],
    ids=["one tile", "tiles of several blocks", "tiles of parts"],
)
@pytest.mark.parametrize("build", ["address", "thread"])
def test_sanitizers_see_every_kind_of_tile(kernel_runner, build, shape):
    """With sums that take several passes."""
    num_rows, num_columns, num_classes = shape
    labels = make_labels(np.random.default_rng(2), num_rows, num_classes, "some_ignored")
    launches = [Launch(seed, threads=64) for seed in range(2)]
    check_tables(kernel_runner(build), labels, num_columns, num_classes, launches)


BAD_SHAPES = {
    "one tile": (1500, 8, 5),
    "several tiles": (MAX_TILE_ROWS + 200, 8, 5),
    "many classes": (700, 8, MAX_TILE_CLASSES + 1),
}


@pytest.mark.parametrize("label_dtype", LABEL_TYPES)
@pytest.mark.parametrize("name", BAD_SHAPES)
@pytest.mark.parametrize("build", BUILDS)
def test_the_first_bad_label_is_noted_wherever_it_is(kernel_runner, build, name, label_dtype):
    num_rows, num_columns, num_classes = BAD_SHAPES[name]
    rng = np.random.default_rng(0)
    labels = make_labels(rng, num_rows, num_classes, "some_ignored").to(label_dtype)
    wide = label_dtype == torch.int64
    values = [-1, num_classes, 2**40 if wide else 2**31 - 1, -(2**63) if wide else -(2**31)]
    places = [0, 31, 32, 127, 128, num_rows // 2, num_rows - 1]
    if build == "thread":
        places = [32, num_rows - 1]
    for i, first in enumerate(places):
        wrong, value = labels.clone(), values[i % len(values)]
        later = rng.integers(first, num_rows, 20)
        wrong[torch.from_numpy(later)] = values[(i + 1) % len(values)]
        wrong[first] = value
        launch = Launch(seed=i, threads=64 if build == "thread" else 128)
        noted, _, tables = run_tables(kernel_runner(build), wrong, num_columns, num_classes, launch)
        assert noted == (first, value, 1)
        assert tables is None
        # The note of an earlier update stays, whatever the labels.
        for labels_now in (labels, wrong):
            noted, _, _ = run_tables(
                *(kernel_runner(build), labels_now, num_columns, num_classes, launch),
                bad_label=(7, -9, 1),
            )
            assert noted == (7, -9, 1)


# ---------------------------------------------------------------- launches


def launches_of(runner, num_rows, num_columns, num_classes, dtype=torch.float32):
    """Return blocks and threads of each launch of an update, on 132 multiprocessors."""
    reply = run(
        *(runner, RECORDED, dtype, (num_rows, num_columns), num_classes),
        launch=Launch(max_blocks=132),
    )
    return np.frombuffer(reply, np.int64).reshape(-1, 2)


@pytest.mark.parametrize("num_classes", [10, 100, 1000])
@pytest.mark.parametrize("shape", [(256, 512), (256, 4096), (4096, 512)])
def test_a_small_batch_takes_three_launches(kernel_runner, shape, num_classes):
    assert len(launches_of(kernel_runner("plain"), *shape, num_classes)) == 3


@pytest.mark.parametrize("num_classes", [1, 10, 100, 1000, MAX_TILE_CLASSES])
@pytest.mark.parametrize("num_columns", [1, 64, 4096, 65_536])
@pytest.mark.parametrize("num_rows", [1, 5000, 20_000, 2_000_000])
def test_no_batch_of_few_classes_takes_more_than_six(
    kernel_runner, num_rows, num_columns, num_classes
):
    launches = launches_of(kernel_runner("plain"), num_rows, num_columns, num_classes)
    assert len(launches) <= (4 if num_rows <= MAX_TILE_ROWS else 6)
    assert (launches[:, 0] >= 1).all()
    assert (launches[:, 1] % 32 == 0).all()
    assert (launches[:, 1] <= 1024).all()


EDGE_SHAPES = [Shape(*(int(number) for number in shape)) for shape in EDGES.values()]


# Tables, chunks, segments and the state in as many kernels as there are.
MOST_LAUNCHES = Shape(20_000, 4224, 40)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [*GPU_SHAPES, *EDGE_SHAPES, MOST_LAUNCHES], ids=lambda shape: shape.name
)
def test_the_performance_model_knows_the_tiles_and_the_launches(kernel_runner, shape, dtype):
    launches = launches_of(
        *(kernel_runner("plain"), shape.num_rows, shape.num_features, shape.num_classes),
        torch_dtype(dtype),
    )
    constants = cuda_work.read_constants()
    work = cuda_work.cut_up(shape, torch_dtype(dtype).itemsize, constants)
    tiles = cuda_work.cut_into_tiles(shape, work, constants)
    assert len(launches) == cuda_work.launches_of(shape, work, tiles, constants, 132).total
    if tiles is not None:
        assert len(launches) <= 6
        assert launches[0, 0] == tiles.count
        assert launches[0, 1] >= 32 * tiles.runs
