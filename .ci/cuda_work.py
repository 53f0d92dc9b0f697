"""What an update on a GPU does, in counts: how rows are cut up, how many kernels are launched.

Follows csrc/plan.h, csrc/cuda/tile_sort.cuh and csrc/cuda/class_moments.h, and is compared with
what the C++ itself does by tests/simt/test_tables.py. `cuda_model.py` puts times to it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.shapes import Shape

ROOT = Path(__file__).resolve().parent.parent
_CONSTANTS = (
    *("plan.h", "moments.h", "cuda/tile_sort.cuh", "cuda/tables.cuh"),
    *("cuda/class_moments.h", "cuda/strips.cuh", "cuda/chunk_path.h", "cuda/merge_chunks.cuh"),
)
RADIX_BITS = 8  # that a pass of CUB's sort takes


def read_constants() -> dict[str, int]:
    """Return the integer constants of the sources that the model follows."""
    text = "".join((ROOT / "csrc" / name).read_text() for name in _CONSTANTS)
    found = re.findall(r"constexpr int(?:64_t)? (k\w+) = ([\d *]+);", text)
    return {name: math.prod(int(factor) for factor in value.split("*")) for name, value in found}


def expected(mean: float, value: Callable[[int], float]) -> float:
    """Expectation of value(rows), rows being Poisson: those of a class in a block."""
    spread = 8 * math.sqrt(mean) + 8
    rows = range(max(0, int(mean - spread)), int(mean + spread) + 1)
    return sum(math.exp(r * math.log(mean) - mean - math.lgamma(r + 1)) * value(r) for r in rows)


def rounds_of(rows: int) -> int:
    """Turns in which a team loads that many rows of a slice, and groups that they are."""
    return math.ceil(rows / 8)


def team_threads(num_features: int) -> int:
    """Threads that share a row of a strip, four columns each; follow team_size of strips.cuh."""
    return min(32, 1 << (math.ceil(num_features / 4) - 1).bit_length())


@dataclass(frozen=True)
class Work:
    """How csrc/plan.h cuts up a batch of uniformly drawn labels, on average."""

    groups: int
    blocks: int
    block_rows: int
    strips: int
    slice_rows: float  # of a class in a block
    class_segments: int  # segments of a class in a group
    segments: float
    chunks: float  # of all segments
    rounds: float

    @property
    def longest(self) -> float:
        """Share of the chunks and rounds that one segment has: teams work side by side."""
        return 1 / self.segments


def cut_up(shape: Shape, item_bytes: int, constants: dict[str, int]) -> Work:
    """Follow make_plan and walk_segments."""
    n, d, k = shape.num_rows, shape.num_features, shape.num_classes
    block = max(constants["kBlockRowsPerClass"] * k, constants["kBlockBytes"] // (d * item_bytes))
    least = max(constants["kGroupRowsPerClass"] * k, block)
    if n < 2 * least:
        group = block = n
    else:
        group = math.ceil(max(least, math.ceil(n / constants["kMaxGroups"])) / block) * block
    groups, blocks = math.ceil(n / group), math.ceil(n / block)
    slice_rows = block / k
    present = 1 - math.exp(-group / k)  # share of classes with rows in a group
    class_segments = max(1, math.ceil(group / k / constants["kSegmentRows"]))
    chunk_rows = constants["kChunkRows"]
    return Work(
        groups=groups,
        blocks=blocks,
        block_rows=block,
        strips=math.ceil(d / constants["kStripColumns"]),
        slice_rows=slice_rows,
        class_segments=class_segments,
        segments=k * groups * class_segments * present,
        chunks=k * blocks * expected(slice_rows, lambda rows: math.ceil(rows / chunk_rows)),
        rounds=k * blocks * expected(slice_rows, rounds_of),
    )


# ------------------------------------------------------------------------ tables


@dataclass(frozen=True)
class Tiles:
    """The tiles of a batch, and the runs into which each is cut; none for many classes."""

    count: int
    rows: int
    keys: int
    per_block: int
    runs: int


def cut_into_tiles(shape: Shape, work: Work, constants: dict[str, int]) -> Tiles | None:
    """Follow make_tiling and runs_of_tile; None: keys are sorted."""
    n, k = shape.num_rows, shape.num_classes
    if k > constants["kMaxTileClasses"]:
        return None
    per_block = 1
    if n <= constants["kMaxTileRows"]:
        rows, keys, count = n, work.blocks * k, 1
    elif work.block_rows <= constants["kMaxTileRows"]:
        blocks = max(1, constants["kTileRows"] // work.block_rows)
        rows, keys = blocks * work.block_rows, blocks * k
        count = math.ceil(n / rows)
    else:
        wanted = max(constants["kTileRows"], constants["kTileRowsPerClass"] * k)
        parts = math.ceil(work.block_rows / min(wanted, constants["kMaxTileRows"]))
        rows, keys = math.ceil(math.ceil(work.block_rows / parts) / 32) * 32, k
        per_block = math.ceil(work.block_rows / rows)
        before = work.blocks - 1
        count = before * per_block + math.ceil((n - before * work.block_rows) / rows)
    warps = constants["kOneTileThreads" if count == 1 else "kTileThreads"] // 32
    runs = min(constants["kTileCounters"] // keys, math.ceil(rows / constants["kRunRows"]), warps)
    return Tiles(count, rows, keys, per_block, runs)


# ------------------------------------------------------------------------ launches


@dataclass(frozen=True)
class Launches:
    """How many kernels an update is, by what they are for; CUB's sort and sum count as one each."""

    tables: int
    fused: int
    merge: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.tables + self.fused + self.merge


def _most_segments(shape: Shape, work: Work, constants: dict[str, int]) -> int:
    n = shape.num_rows
    return min(n, shape.num_classes * work.groups) + n // constants["kSegmentRows"]


def uses_chunks(shape: Shape, work: Work, constants: dict[str, int], multiprocessors: int) -> bool:
    """Follow use_chunks of chunk_path.h."""
    n, k = shape.num_rows, shape.num_classes
    if k > constants["kMostChunkClasses"] or n < constants["kLeastChunkRows"] * k:
        return False
    threads = (
        _most_segments(shape, work, constants) * work.strips * team_threads(shape.num_features)
    )
    return threads < constants["kEnoughWarps"] * 32 * multiprocessors


def segment_teams(shape: Shape, work: Work, constants: dict[str, int], multiprocessors: int) -> int:
    """Follow segment_teams of chunk_path.h."""
    items = _most_segments(shape, work, constants) * work.strips
    if shape.num_rows >= constants["kLeastChunkRows"] * shape.num_classes:
        return items
    a_warp = 32 // team_threads(shape.num_features)
    enough = constants["kEnoughWarps"] * multiprocessors * a_warp
    return min(items, max(enough, math.ceil(items / constants["kMostPacked"])))


def merges_by_class(shape: Shape, work: Work, constants: dict[str, int]) -> bool:
    """Follow launch_merge_chunks: whether merge_class_chunks does all of the merge."""
    k = shape.num_classes
    items = math.ceil(_most_segments(shape, work, constants) / k) * work.strips
    wanted = math.ceil(items * team_threads(shape.num_features) / 32) * 32
    few = wanted <= constants["kItemsATeam"] * constants["kMergeThreads"]
    return few and k <= constants["kMaxMergeClasses"]


def launches_of(
    shape: Shape,
    work: Work,
    tiles: Tiles | None,
    constants: dict[str, int],
    multiprocessors: int,
) -> Launches:
    """Follow launch_tables, launch_merge_chunks and launch_merge."""
    k = shape.num_classes
    tables = 6 if tiles is None else 1 if tiles.count == 1 else 3
    merges = work.groups > 1 or shape.num_rows > constants["kSegmentRows"]
    in_chunks = tiles is not None and uses_chunks(shape, work, constants, multiprocessors)
    in_one = k <= constants["kMaxMergeClasses"] and (
        in_chunks or work.strips <= constants["kMaxMergeStrips"]
    )
    merge = 2 if merges and not in_one else 1
    if in_chunks:
        merge = 1 if merges_by_class(shape, work, constants) else 1 + merge
    return Launches(tables, 1, merge)
