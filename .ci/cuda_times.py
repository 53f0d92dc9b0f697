"""Predicted times of an update on a GPU, for `cuda_model.py`; everything here is a prediction."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

from cuda_work import (
    RADIX_BITS,
    Tiles,
    Work,
    cut_into_tiles,
    cut_up,
    launches_of,
    merges_by_class,
    segment_teams,
    team_threads,
    uses_chunks,
)

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
ADD_INSTRUCTIONS = 3  # of adding a strip's growth to that of a class
TILE_BLOCKS = 2  # thread blocks of count_tiles and place_rows that share a multiprocessor
L2_BYTES_PER_CYCLE = 64  # that one multiprocessor moves
# Of the tables: cycles in which a warp counts and places 32 rows, and a thread block sums a number
# of each thread; instructions of a slice that is walked.
PLACE_CYCLES, BLOCK_SUM_CYCLES, WALK_INSTRUCTIONS = 250, 250, 15

# Of the instructions of sum_chunks: those from its second barrier on, which close the chunk and
# which half of the warps do; 0.53 to 0.57 in the SASS of sm_90.
CLOSING_SHARE = 0.55

# Calibrated by the cycles in cuda_calibration.py: the pace of a warp on its own, and how bounds
# that are close to each other add up.
CYCLES_PER_INSTRUCTION = 5.5
OVERLAP = 1.25


class SegmentLoop(NamedTuple):
    """Counts of one row of the hot loops of sum_segments in resources.md."""

    round: int
    round_float64: int
    loads: int
    chunk: int
    chunk_float64: int
    in_flight: int
    warps: int  # of a multiprocessor at most
    merge: int
    segment: int
    segment_float64: int


class ChunkBlock(NamedTuple):
    """Counts of one row of the blocks of sum_chunks in resources.md."""

    instructions: int
    float64: int
    loads: int
    in_flight: int
    warps: int
    merge: int


class Kernels(NamedTuple):
    """What resources.md says of an architecture and an element type."""

    segments: SegmentLoop
    chunks: ChunkBlock
    threads: dict[str, int]  # of a block of the kernel
    warps: dict[str, int]  # of the kernel on a multiprocessor at most


class Pass(NamedTuple):
    """The fused pass of a batch on a chip."""

    kernel: str
    bounds: dict[str, float]  # seconds; latency besides the greatest of the others
    warps: float  # that have work
    block_warps: int  # of a thread block
    resident: int  # warps of a multiprocessor at most

    @property
    def seconds(self) -> float:
        """Return the two that count, added as far as they do not overlap."""
        latency = self.bounds["latency"]
        other = max(seconds for name, seconds in self.bounds.items() if name != "latency")
        return math.pow(latency**OVERLAP + other**OVERLAP, 1 / OVERLAP)

    def at_work(self, chip: Chip) -> int:
        """Return how many multiprocessors have a block."""
        return min(chip.multiprocessors, math.ceil(self.warps / self.block_warps))

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
    num_launches: int

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


def read_kernels(table: str) -> dict[tuple[str, str], Kernels]:
    """Return what resources.md says by architecture and element type."""
    threads: dict[str, dict[str, int]] = {}
    warps: dict[str, dict[str, int]] = {}
    segments: dict[tuple[str, str], SegmentLoop] = {}
    chunks: dict[tuple[str, str], ChunkBlock] = {}
    architecture = ""
    for line in table.splitlines():
        if heading := re.match(r"## (sm_\d+)", line):
            architecture = heading[1]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 8 and cells[0].startswith("`"):
            kernel = cells[0].strip("`")
            threads.setdefault(architecture, {})[kernel] = int(cells[5])
            warps.setdefault(architecture, {})[kernel] = int(cells[6])
        elif match := re.fullmatch(r"`(sum_\w+)<(\w+), aligned>`", cells[1] if cells[1:] else ""):
            if match[1] == "sum_segments":
                numbers = [int(cells[i]) for i in (2, 3, 4, 6, 7, 8, 9, 11, 12, 13)]
                segments[cells[0], match[2]] = SegmentLoop(*numbers)
            else:
                numbers = [int(cells[i]) for i in (2, 3, 4, 5, 6, 8)]
                chunks[cells[0], match[2]] = ChunkBlock(*numbers)
    if not segments or segments.keys() != chunks.keys():
        raise ValueError("resources.md has no hot loops: make cuda-resources WRITE=1")
    return {
        key: Kernels(segments[key], chunks[key], threads[key[0]], warps[key[0]]) for key in segments
    }


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
    walk: float = wait * math.ceil(slots / threads)
    walk += slots / 32 * per_group * WALK_INSTRUCTIONS / SCHEDULERS
    sums: float = (math.ceil(keys / a_pass) + math.ceil(slots / a_pass)) * BLOCK_SUM_CYCLES
    rounds = math.ceil(tiles.rows / tiles.runs / 32)
    waits = math.ceil(rounds / constants["kRowsAhead"])
    a_tile = waits * (BUSY_LATENCY * chip.memory_latency + chip.l2_latency) + rounds * PLACE_CYCLES
    read = 12 * n / copy  # labels once, then they are in L2; row numbers
    if tiles.count == 1:
        return read + (a_tile + sums + 2 * walk) * cycle
    # One multiprocessor reads the counts of all tiles; each tile those before it in its block.
    counts = 4 * tiles.keys / L2_BYTES_PER_CYCLE
    sums += math.ceil(keys / a_pass) * chip.l2_latency + counts * tiles.count
    a_tile = 1.5 * a_tile + counts * (tiles.per_block - 1) / 2
    turns = math.ceil(tiles.count / (TILE_BLOCKS * chip.multiprocessors))
    return read + (turns * a_tile + sums + walk + wait) * cycle


def sum_segments(
    shape: Shape,
    dtype: DTypeName,
    work: Work,
    chip: Chip,
    kernels: Kernels,
    constants: dict[str, int],
    moments: float,
) -> Pass:
    """Teams that walk segments on a strip each; moments: bytes of state or of waiting segments."""
    loop, team = kernels.segments, team_threads(shape.num_features)
    copy, cycle = COPY_SHARE * chip.bandwidth, 1e-9 / chip.gigahertz
    teams = segment_teams(shape, work, constants, chip.multiprocessors)
    walked = max(1.0, work.segments * work.strips / teams)  # segments of a team
    of_warps = work.strips * team / 32  # warp instructions for each of a segment
    warps = work.segments * of_warps / walked
    turns = work.rounds * loop.round + work.chunks * loop.chunk + work.segments * loop.segment
    turns64 = (
        work.rounds * loop.round_float64
        + work.chunks * loop.chunk_float64
        + work.segments * loop.segment_float64
    )
    # Once a team: its segment and the first row numbers; later ones come ahead. For each segment:
    # the state, and the slices of as many blocks as the team has threads.
    waits = 1.0
    if work.blocks > 1:
        waits += math.ceil(work.blocks * shape.num_classes / work.segments / team)
    a_segment = (
        waits * chip.l2_latency
        + work.rounds * work.longest * BUSY_LATENCY * chip.memory_latency
        + turns * work.longest * CYCLES_PER_INSTRUCTION
    )
    chain = 2 * chip.l2_latency + walked * a_segment
    bounds = {
        "memory": (shape.bytes(dtype) + 4 * shape.num_rows + moments) / copy,
        "instructions": turns * of_warps / (chip.multiprocessors * SCHEDULERS) * cycle,
        "float64": turns64 * of_warps * 32 / (chip.multiprocessors * chip.float64_lanes) * cycle,
        "latency": chain * max(1.0, warps / (chip.multiprocessors * loop.warps)) * cycle,
    }
    block_warps = kernels.threads[f"sum_segments<{dtype}, aligned>"] // 32
    return Pass("sum_segments", bounds, warps, block_warps, loop.warps)


def sum_chunks(shape: Shape, dtype: DTypeName, work: Work, chip: Chip, kernels: Kernels) -> Pass:
    """Thread blocks that sum a chunk on a strip each, all of its rows at once."""
    block = kernels.chunks
    block_warps = kernels.threads[f"sum_chunks<{dtype}, aligned>"] // 32
    closing = CLOSING_SHARE * block.instructions
    copy, cycle = COPY_SHARE * chip.bandwidth, 1e-9 / chip.gigahertz
    blocks = work.chunks * work.strips * team_threads(shape.num_features) / 32  # short rows share
    warps = blocks * block_warps
    groups = work.rounds * blocks / work.chunks  # warps that have rows
    issued = groups * (block.instructions - closing) + warps / 2 * closing
    # Its bounds, its row numbers, the features; then the way of a thread that closes columns.
    a_block = (
        2 * chip.l2_latency
        + BUSY_LATENCY * chip.memory_latency
        + block.instructions * CYCLES_PER_INSTRUCTION
    )
    moved = shape.bytes(dtype) + 4 * shape.num_rows + 8 * work.chunks * shape.num_features
    bounds = {
        "memory": moved / copy,
        "instructions": issued / (chip.multiprocessors * SCHEDULERS) * cycle,
        "latency": a_block * max(1.0, warps / (chip.multiprocessors * block.warps)) * cycle,
    }
    return Pass("sum_chunks", bounds, warps, block_warps, block.warps)


def merge_seconds(
    shape: Shape,
    work: Work,
    chip: Chip,
    kernels: Kernels,
    constants: dict[str, int],
    in_chunks: bool,
) -> float:
    """Return what comes after the fused pass: chunks, segments that wait, counts and sums."""
    d, k = shape.num_features, shape.num_classes
    copy, cycle = COPY_SHARE * chip.bandwidth, 1e-9 / chip.gigahertz
    of_class = work.groups * work.class_segments
    strip_warps = work.strips * team_threads(d) / 32

    def waves(warps: float, kernel: str) -> float:
        return max(1.0, warps / (chip.multiprocessors * kernels.warps[kernel]))

    def chain(count: float, ahead: int, wait: float, turn: int) -> float:
        return math.ceil(count / ahead) * wait + count / ahead * turn * CYCLES_PER_INSTRUCTION

    # A class's growth, strip by strip, and its rows, segment by segment.
    cycles = (math.ceil(work.strips / 32) + math.ceil(of_class / 4)) * chip.l2_latency
    cycles += work.strips * ADD_INSTRUCTIONS * CYCLES_PER_INSTRUCTION
    cycles *= waves(k, "add_to_state")
    state = 16 * k * (1 - math.exp(-shape.num_rows / k)) * d
    waiting = 8 * work.segments * d
    moved = 0.0
    if in_chunks:
        moved += 8 * work.chunks * d + (waiting if of_class > 1 else state)
        wait = BUSY_LATENCY * chip.memory_latency
        a_segment = 3 * chip.l2_latency + chain(
            *(work.chunks / work.segments, constants["kStripsAtOnce"], wait, kernels.chunks.merge)
        )
        if merges_by_class(shape, work, constants):
            block_warps = constants["kMergeThreads"] // 32
            used = min(block_warps, math.ceil(of_class * strip_warps))
            turns = math.ceil(of_class * strip_warps / block_warps)
            cycles += a_segment * turns * waves(k * used, "merge_class_chunks")
        else:
            cycles += a_segment * waves(work.segments * strip_warps, "merge_chunks")
    if of_class > 1:
        moved += waiting + state
        a_class = chain(
            of_class, constants["kStripsAtOnce"], 2 * chip.l2_latency, kernels.segments.merge
        )
        cycles += a_class * waves(k * strip_warps, "merge_segments")
    return max(moved / copy, cycles * cycle)


def fused_pass(
    shape: Shape,
    dtype: DTypeName,
    work: Work,
    chip: Chip,
    kernels: Kernels,
    constants: dict[str, int],
    in_chunks: bool,
) -> Pass:
    """Follow the choice of launch_class_moments."""
    if in_chunks:
        return sum_chunks(shape, dtype, work, chip, kernels)
    # A state that no segment waits for is read and written by the fused pass itself.
    if work.groups * work.class_segments > 1:
        moments = 8 * work.segments * shape.num_features
    else:
        moments = 16 * work.segments * shape.num_features
    return sum_segments(shape, dtype, work, chip, kernels, constants, moments)


def predict(
    shape: Shape, dtype: DTypeName, chip: Chip, kernels: Kernels, constants: dict[str, int]
) -> Prediction:
    """Predict an update with shuffled labels."""
    work = cut_up(shape, 4 if dtype == "float32" else 2, constants)
    tiles = cut_into_tiles(shape, work, constants)
    launches = launches_of(shape, work, tiles, constants, chip.multiprocessors)
    in_chunks = tiles is not None and uses_chunks(shape, work, constants, chip.multiprocessors)
    cubs = 0
    if tiles is None:  # the histogram, the passes and a scan are the sort, two kernels the sum
        cubs = 2 + math.ceil((work.blocks * shape.num_classes).bit_length() / RADIX_BITS) + 2
    later = launches.total - 1 - (2 if cubs else 0)
    early = EARLY_LAUNCH_SECONDS if chip.launches_early else LAUNCH_SECONDS
    return Prediction(
        features=shape.bytes(dtype) / (COPY_SHARE * chip.bandwidth),
        tables=tables_seconds(shape, work, tiles, chip, constants),
        fused_pass=fused_pass(shape, dtype, work, chip, kernels, constants, in_chunks),
        merge=merge_seconds(shape, work, chip, kernels, constants, in_chunks),
        launches=(1 + cubs) * LAUNCH_SECONDS + later * early,
        num_launches=launches.total,
    )
