"""Predicted times of an update on a GPU, for `cuda_model.py`; everything here is a prediction."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

from cuda_work import RADIX_BITS, Tiles, Work, cut_into_tiles, cut_up, launches_of

from benchmarks.shapes import DTypeName, Shape


@dataclass(frozen=True)
class Chip:
    """Documented peaks (data sheets; the clock is that of the peak float32 rate).

    Latencies are idle cycles of a load from memory and from L2: Luo et al. 2024, arXiv:2402.13499,
    for the first two.
    """

    name: str
    architecture: str
    multiprocessors: int
    gigahertz: float
    bandwidth: float  # bytes a second
    float64_lanes: int  # a multiprocessor and cycle
    memory_latency: float
    l2_latency: float
    launches_early: bool  # programmatic dependent launch


CHIPS = (
    Chip("A100 80GB SXM", "sm_80", 108, 1.41, 2.039e12, 32, 466, 262, False),
    Chip("H100 SXM", "sm_90", 132, 1.98, 3.35e12, 64, 479, 263, True),
    # Latencies: taken to be the H100's.
    Chip("B200", "sm_100", 148, 1.98, 8.0e12, 64, 479, 263, True),
)

# What is assumed, not documented: the share of the bandwidth that a copy reaches, how much longer
# a load takes in a busy memory, what a kernel costs beside its work, and if it is launched early.
COPY_SHARE = 0.9
BUSY_LATENCY = 1.5
LAUNCH_SECONDS, EARLY_LAUNCH_SECONDS = 2e-6, 1e-6
SCHEDULERS = 4  # of a multiprocessor, an instruction each and cycle
BLOCK_WARPS = 8  # of a thread block of the fused pass
TILE_BLOCKS = 2  # thread blocks of count_tiles and place_rows that share a multiprocessor
L2_BYTES_PER_CYCLE = 64  # that one multiprocessor moves
# Of the tables: cycles in which a warp counts and places 32 rows, and a thread block sums a number
# of each thread; instructions of a slice that is walked.
PLACE_CYCLES, BLOCK_SUM_CYCLES, WALK_INSTRUCTIONS = 250, 250, 15

# Calibrated by the cycles below: the pace of a warp on its own, how bounds that are close to each
# other add up, and what a thread block that sums a chunk does besides waiting for features.
CYCLES_PER_INSTRUCTION = 5.5
OVERLAP = 1.25
CHUNK_CYCLES = 2700


class Loop(NamedTuple):
    """Counts of one row of the hot loops in resources.md."""

    round: int
    round_float64: int
    loads: int
    chunk: int
    chunk_float64: int
    in_flight: int
    warps: int
    merge: int


class Pass(NamedTuple):
    """The fused pass of a batch on a chip."""

    bounds: dict[str, float]  # seconds; latency besides the greatest of the others
    warps: float  # that have work
    resident: int  # warps of a multiprocessor at most

    @property
    def seconds(self) -> float:
        """Return the two that count, added as far as they do not overlap."""
        latency = self.bounds["latency"]
        other = max(seconds for name, seconds in self.bounds.items() if name != "latency")
        return (latency**OVERLAP + other**OVERLAP) ** (1 / OVERLAP)

    def at_work(self, chip: Chip) -> int:
        """Return how many multiprocessors have a block."""
        return min(chip.multiprocessors, math.ceil(self.warps / BLOCK_WARPS))

    def resident_warps(self, chip: Chip) -> int:
        """Return the warps of a multiprocessor at work."""
        return min(self.resident, math.ceil(self.warps / self.at_work(chip)))


class Prediction(NamedTuple):
    """Seconds of an update on a chip."""

    features: float  # at the bandwidth of a copy: the floor
    tables: float
    fused_pass: Pass
    merge: float
    launches: float

    @property
    def fused(self) -> float:
        """Seconds of the fused pass."""
        return self.fused_pass.seconds

    @property
    def total(self) -> float:
        """Seconds of all."""
        return self.tables + self.fused + self.merge + self.launches

    @property
    def fraction(self) -> float:
        """Of a copy's bandwidth."""
        return self.features / self.total

    @property
    def limit(self) -> str:
        """Return what takes most, the fused pass by what bounds it."""
        bounds = self.fused_pass.bounds
        times = {
            max(bounds, key=lambda name: bounds[name]): self.fused,
            "tables": self.tables,
            "merge": self.merge,
            "launches": self.launches,
        }
        return max(times, key=lambda name: times[name])


def read_loops(table: str) -> dict[tuple[str, str], Loop]:
    """Return the hot loops of resources.md by architecture and element type."""
    found = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if match := re.fullmatch(r"`sum_segments<(\w+), aligned>`", cells[1] if cells[1:] else ""):
            numbers = [cells[i] for i in (2, 3, 4, 6, 7, 8, 9, 11)]
            found[cells[0], match[1]] = Loop(*map(int, numbers))
    if not found:
        raise ValueError("resources.md has no hot loops: make cuda-resources WRITE=1")
    return found


# ------------------------------------------------------------------------ the parts of an update


def tables_seconds(
    shape: Shape, work: Work, tiles: Tiles | None, chip: Chip, constants: dict[str, int]
) -> float:
    """Return what the labels cost, from which the kernels of tables.cuh or a sort make tables."""
    n, keys = shape.num_rows, work.blocks * shape.num_classes
    copy, cycle = COPY_SHARE * chip.bandwidth, 1e-9 / chip.gigahertz
    per_group = math.ceil(work.blocks / work.groups)
    if tiles is None:
        passes = math.ceil(max(1, keys.bit_length()) / RADIX_BITS)
        moved = n * (8 + 8 + 4 + 16 * passes) + 12 * keys
        return moved / copy + (math.log2(n) + 2 * per_group) * chip.l2_latency * cycle
    slots = shape.num_classes * work.groups
    warps = math.ceil(keys / (32 * constants["kKeysAThread"]))
    threads = 32 * min(32, max(warps, tiles.runs if tiles.count == 1 else 1))
    a_pass = threads * constants["kKeysAThread"]
    wait = math.ceil(per_group / 8) * chip.l2_latency
    walk = wait * math.ceil(slots / threads)
    walk += slots / 32 * per_group * WALK_INSTRUCTIONS / SCHEDULERS
    sums = (math.ceil(keys / a_pass) + math.ceil(slots / a_pass)) * BLOCK_SUM_CYCLES
    rounds = math.ceil(tiles.rows / tiles.runs / 32)
    waits = math.ceil(rounds / constants["kRowsAhead"])
    a_tile = waits * (BUSY_LATENCY * chip.memory_latency + chip.l2_latency) + rounds * PLACE_CYCLES
    moved = 12 * n / copy  # labels once, then they are in L2; row numbers
    if tiles.count == 1:
        return moved + (a_tile + sums + 2 * walk) * cycle
    # One multiprocessor reads the counts of all tiles; each tile those before it in its block.
    counts = 4 * tiles.keys / L2_BYTES_PER_CYCLE
    sums += math.ceil(keys / a_pass) * chip.l2_latency + counts * tiles.count
    a_tile = 1.5 * a_tile + counts * (tiles.per_block - 1) / 2
    turns = math.ceil(tiles.count / (TILE_BLOCKS * chip.multiprocessors))
    return moved + (turns * a_tile + sums + walk + wait) * cycle


def sum_segments(
    shape: Shape, dtype: DTypeName, work: Work, chip: Chip, loop: Loop, moments: float
) -> Pass:
    """Teams that walk a segment on a strip each; moments: bytes of state or of waiting segments."""
    n, d, k = shape.num_rows, shape.num_features, shape.num_classes
    item = 4 if dtype == "float32" else 2
    copy, cycle = COPY_SHARE * chip.bandwidth, 1e-9 / chip.gigahertz
    vector = 16 // item
    team_threads = min(32, 128 // vector, 2 ** math.ceil(math.log2(max(1, d / vector))))
    warps = work.segments * work.strips * team_threads / 32
    turns = work.rounds * loop.round + work.chunks * loop.chunk
    turns64 = work.rounds * loop.round_float64 + work.chunks * loop.chunk_float64
    of_warps = work.strips * team_threads / 32  # warp instructions for each of a segment
    chain = (
        (2 + work.blocks * k / work.segments) * chip.l2_latency
        + work.rounds * work.longest * (chip.l2_latency + BUSY_LATENCY * chip.memory_latency)
        + turns * work.longest * CYCLES_PER_INSTRUCTION
    )
    bounds = {
        "memory": (shape.bytes(dtype) + 4 * n + moments) / copy,
        "instructions": turns * of_warps / (chip.multiprocessors * SCHEDULERS) * cycle,
        "float64": turns64 * of_warps * 32 / (chip.multiprocessors * chip.float64_lanes) * cycle,
        "latency": chain * max(1.0, warps / (chip.multiprocessors * loop.warps)) * cycle,
    }
    return Pass(bounds, warps, loop.warps)


def sum_chunks(
    shape: Shape, dtype: DTypeName, work: Work, chip: Chip, resident_blocks: int
) -> Pass:
    """Thread blocks that sum a chunk on a strip each, all of its rows at once."""
    copy, cycle = COPY_SHARE * chip.bandwidth, 1e-9 / chip.gigahertz
    present = work.chunks * min(1.0, shape.num_features / 128)  # short rows share a block
    blocks = present * work.strips
    a_block = 3 * chip.l2_latency + BUSY_LATENCY * chip.memory_latency + CHUNK_CYCLES
    moved = shape.bytes(dtype) + 4 * shape.num_rows + 8 * work.chunks * shape.num_features
    bounds = {
        "memory": moved / copy,
        "latency": a_block * max(1.0, blocks / (chip.multiprocessors * resident_blocks)) * cycle,
    }
    return Pass(bounds, blocks * BLOCK_WARPS, resident_blocks * BLOCK_WARPS)


def fused_pass(
    shape: Shape, dtype: DTypeName, work: Work, chip: Chip, loop: Loop, moments: float
) -> Pass:
    """Follow the choice of launch_class_moments: always by segments."""
    return sum_segments(shape, dtype, work, chip, loop, moments)


def predict(
    shape: Shape, dtype: DTypeName, chip: Chip, loop: Loop, constants: dict[str, int]
) -> Prediction:
    """Predict an update with shuffled labels."""
    n, d, k = shape.num_rows, shape.num_features, shape.num_classes
    work = cut_up(shape, 4 if dtype == "float32" else 2, constants)
    tiles = cut_into_tiles(shape, work, constants)
    copy, cycle = COPY_SHARE * chip.bandwidth, 1e-9 / chip.gigahertz
    # A state that no segment waits for is read and written by the fused pass itself.
    several = work.groups * work.class_segments > 1
    present = k * (1 - math.exp(-n / k))
    state, waiting = 16 * present * d, 8 * work.segments * d
    fused = fused_pass(shape, dtype, work, chip, loop, waiting if several else state)
    merge = 0.0
    if several:
        merges = math.ceil(work.groups * work.class_segments / constants["kAhead"])
        turn = 2 * chip.l2_latency + CYCLES_PER_INSTRUCTION * loop.merge
        merge = max((waiting + state) / copy, merges * turn * cycle)
    launches = launches_of(shape, work, tiles, constants, chip.multiprocessors)
    cubs = 0
    if tiles is None:  # the histogram, the passes and a scan are the sort, two kernels the sum
        cubs = 2 + math.ceil((work.blocks * k).bit_length() / RADIX_BITS) + 2
    later = launches.total - 1 - (2 if cubs else 0)
    early = EARLY_LAUNCH_SECONDS if chip.launches_early else LAUNCH_SECONDS
    return Prediction(
        shape.bytes(dtype) / copy,
        tables_seconds(shape, work, tiles, chip, constants),
        fused,
        merge,
        (1 + cubs) * LAUNCH_SECONDS + later * early,
    )
