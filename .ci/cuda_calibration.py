"""The simulated cycles by which the model is calibrated, and a model of the kernels they are of.

These are not today's kernels: an earlier sum_segments, whose threads had 16 bytes of a row each,
whose rounds were of eight rows, four, two and one, and which fetched row numbers in the round that
needed them; and a prototype of sum_chunks. What is calibrated by them is the pace of a warp on its
own and the overlap of bounds (cuda_times.py), and how many cycles a block of the prototype takes.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from cuda_times import (
    BUSY_LATENCY,
    COPY_SHARE,
    CYCLES_PER_INSTRUCTION,
    SCHEDULERS,
    Chip,
    Pass,
)
from cuda_work import Work, cut_up, expected

from benchmarks.shapes import DTypeName, Shape

# A V100-class part, and a quarter of it; 900 GB/s, latencies of Jia et al. 2018, arXiv:1804.06826.
_WHOLE = Chip("whole", "sm_70", 80, 1.38, 9e11, 32, 425, 193, False)
_QUARTER = replace(_WHOLE, name="quarter", multiprocessors=20, bandwidth=2.25e11)
_BLOCK_WARPS = 8  # of a thread block, of both kernels


class _EarlierLoop(NamedTuple):
    """Instructions of a round of the earlier sum_segments and, besides, of a chunk."""

    round: int
    chunk: int
    chunk_float64: int


_LOOPS = {"float32": _EarlierLoop(213, 677, 96), "bfloat16": _EarlierLoop(412, 1045, 164)}
_RESIDENT_WARPS = 16
# Blocks of the prototype that share a multiprocessor, and the cycles of one besides its waits.
_RESIDENT_BLOCKS = 3
_BLOCK_CYCLES = 2700

# Cycles of the fused pass over those of a plain read of the features, from an independent
# cycle-level simulation: sum_segments, and a prototype of sum_chunks.
MEASURED: tuple[tuple[Shape, DTypeName, Chip, float, float | None], ...] = (
    (Shape(1024, 2048, 20), "float32", _QUARTER, 1.26, None),
    (Shape(4096, 512, 100), "float32", _QUARTER, 1.42, 1.28),
    (Shape(4096, 512, 10), "float32", _QUARTER, 3.05, 1.24),
    (Shape(4096, 512, 10), "float32", _WHOLE, 11.3, 1.39),
    (Shape(32_768, 64, 10), "float32", _QUARTER, 2.40, 1.31),
    (Shape(4096, 512, 10), "bfloat16", _QUARTER, 9.4, 1.47),
    (Shape(256, 768, 1000), "float32", _QUARTER, 8.0, 13.7),
)


def earlier_rounds_of(rows: int) -> int:
    """Turns in which a team loaded that many rows: eights, then four, two and one."""
    return rows // 8 + (rows % 8).bit_count()


def _earlier_segments(
    shape: Shape, dtype: DTypeName, work: Work, chip: Chip, constants: dict[str, int]
) -> Pass:
    n, d, k = shape.num_rows, shape.num_features, shape.num_classes
    loop, vector = _LOOPS[dtype], 4 if dtype == "float32" else 8
    copy, cycle = COPY_SHARE * chip.bandwidth, 1e-9 / chip.gigahertz
    lanes = constants["kStripColumns"] // vector
    team = min(lanes, 1 << (math.ceil(d / vector) - 1).bit_length())
    of_warps = work.strips * team / 32  # warp instructions for each of a segment
    warps = work.segments * of_warps
    rounds = k * work.blocks * expected(work.slice_rows, earlier_rounds_of)
    turns = rounds * loop.round + work.chunks * loop.chunk
    turns64 = work.chunks * loop.chunk_float64
    chain = (
        (2 + work.blocks * k / work.segments) * chip.l2_latency
        + rounds * work.longest * (chip.l2_latency + BUSY_LATENCY * chip.memory_latency)
        + turns * work.longest * CYCLES_PER_INSTRUCTION
    )
    state = 16 * k * (1 - math.exp(-n / k)) * d
    bounds = {
        "memory": (shape.bytes(dtype) + 4 * n + state) / copy,
        "instructions": turns * of_warps / (chip.multiprocessors * SCHEDULERS) * cycle,
        "float64": turns64 * of_warps * 32 / (chip.multiprocessors * chip.float64_lanes) * cycle,
        "latency": chain * max(1.0, warps / (chip.multiprocessors * _RESIDENT_WARPS)) * cycle,
    }
    return Pass("sum_segments", bounds, warps, _BLOCK_WARPS, _RESIDENT_WARPS)


def _prototype_chunks(shape: Shape, dtype: DTypeName, work: Work, chip: Chip) -> Pass:
    copy, cycle = COPY_SHARE * chip.bandwidth, 1e-9 / chip.gigahertz
    present = work.chunks * min(1.0, shape.num_features / 128)  # short rows share a block
    blocks = present * work.strips
    a_block = 3 * chip.l2_latency + BUSY_LATENCY * chip.memory_latency + _BLOCK_CYCLES
    moved = shape.bytes(dtype) + 4 * shape.num_rows + 8 * work.chunks * shape.num_features
    bounds = {
        "memory": moved / copy,
        "latency": a_block * max(1.0, blocks / (chip.multiprocessors * _RESIDENT_BLOCKS)) * cycle,
    }
    warps = blocks * _BLOCK_WARPS
    return Pass("sum_chunks", bounds, warps, _BLOCK_WARPS, _RESIDENT_BLOCKS * _BLOCK_WARPS)


def calibration(constants: dict[str, int]) -> list[tuple[float, float]]:
    """Return the model's ratios for MEASURED: of sum_segments, of sum_chunks."""
    found = []
    for shape, dtype, chip, _, _ in MEASURED:
        work = cut_up(shape, 4 if dtype == "float32" else 2, constants)
        read = shape.bytes(dtype) / (COPY_SHARE * chip.bandwidth)
        segments = _earlier_segments(shape, dtype, work, chip, constants)
        chunks = _prototype_chunks(shape, dtype, work, chip)
        found.append((segments.seconds / read, chunks.seconds / read))
    return found
