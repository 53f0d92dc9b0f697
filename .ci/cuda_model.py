"""The performance model of csrc/cuda/README.md, from the source's constants and resources.md.

`python .ci/cuda_model.py` writes the tables between the markers of that README, `--check` compares
and fails on a difference. It takes no compiler and no GPU: everything here is a prediction, and
`make gpu-check` is what measures.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_shapes import GPU_SHAPES  # noqa: E402
from benchmarks.shapes import DTYPES, DTypeName, Shape  # noqa: E402

README = ROOT / "csrc/cuda/README.md"
BEGIN, END = "<!-- begin: written by .ci/cuda_model.py -->", "<!-- end -->"


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


CHIPS = (
    Chip("A100 80GB SXM", "sm_80", 108, 1.41, 2.039e12, 32, 466, 262),
    Chip("H100 SXM", "sm_90", 132, 1.98, 3.35e12, 64, 479, 263),
    Chip("B200", "sm_100", 148, 1.98, 8.0e12, 64, 479, 263),  # latencies: taken to be the H100's
)

# What is assumed, not documented: the share of the bandwidth that a copy reaches, how much longer
# a load takes in a busy memory, what a kernel costs beside its work, the pace of a warp on its own.
COPY_SHARE = 0.9
BUSY_LATENCY = 1.5
LAUNCH_SECONDS = 2e-6
CYCLES_PER_INSTRUCTION = 2.0
SCHEDULERS = 4  # of a multiprocessor, an instruction each and cycle
RADIX_BITS = 8  # that a pass of CUB's sort takes

TARGET = 0.9  # of a copy's bandwidth


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


class Prediction(NamedTuple):
    """Seconds of an update on a chip; `fused` is the greatest of `bounds`."""

    features: float  # at the bandwidth of a copy: the floor
    tables: float  # keys, sort, slices, segments
    bounds: dict[str, float]
    merge: float
    launches: float

    @property
    def fused(self) -> float:
        """Seconds of sum_segments."""
        return max(self.bounds.values())

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
        bound = max(self.bounds, key=lambda name: self.bounds[name])
        times = {
            bound: self.fused,
            "tables": self.tables,
            "merge": self.merge,
            "launches": self.launches,
        }
        return max(times, key=lambda name: times[name])


def read_constants() -> dict[str, int]:
    """Return the integer constants of the plan, of moments.h and of merge_segments."""
    names = ("plan.h", "moments.h", "cuda/merge_segments.cuh")
    text = "".join((ROOT / "csrc" / name).read_text() for name in names)
    found = re.findall(r"constexpr int(?:64_t)? (k\w+) = ([\d *]+);", text)
    return {name: math.prod(int(factor) for factor in value.split("*")) for name, value in found}


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


def expected(mean: float, value: Callable[[int], float]) -> float:
    """Expectation of value(rows), rows being Poisson: those of a class in a block."""
    spread = 8 * math.sqrt(mean) + 8
    rows = range(max(0, int(mean - spread)), int(mean + spread) + 1)
    return sum(math.exp(r * math.log(mean) - mean - math.lgamma(r + 1)) * value(r) for r in rows)


def rounds_of(rows: int, chunk_rows: int) -> int:
    """Turns in which a team loads that many rows: eights, then four, two and one."""
    full, rest = divmod(rows, chunk_rows)
    return full * (chunk_rows // 8) + rest // 8 + (rest % 8).bit_count()


@dataclass(frozen=True)
class Work:
    """How csrc/plan.h cuts up a batch of uniformly drawn labels, on average."""

    groups: int
    blocks: int
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
        strips=math.ceil(d / constants["kStripColumns"]),
        slice_rows=slice_rows,
        class_segments=class_segments,
        segments=k * groups * class_segments * present,
        chunks=k * blocks * expected(slice_rows, lambda rows: math.ceil(rows / chunk_rows)),
        rounds=k * blocks * expected(slice_rows, lambda rows: rounds_of(rows, chunk_rows)),
    )


def sort_bytes_per_row(keys: int) -> int:
    """Labels read; keys and rows written; a histogram; passes that read and write both."""
    passes = math.ceil(max(1, keys.bit_length()) / RADIX_BITS)
    return 8 + 8 + 4 + 16 * passes


def predict(
    shape: Shape, dtype: DTypeName, chip: Chip, loop: Loop, constants: dict[str, int]
) -> Prediction:
    """Predict an update with shuffled labels."""
    item = 4 if dtype == "float32" else 2
    n, d, k = shape.num_rows, shape.num_features, shape.num_classes
    work = cut_up(shape, item, constants)
    copy = COPY_SHARE * chip.bandwidth
    cycle = 1e-9 / chip.gigahertz

    keys = work.blocks * k + 1
    walk = math.ceil(work.blocks / work.groups) * chip.l2_latency
    search = math.log2(n) * chip.l2_latency
    tables = (n * sort_bytes_per_row(keys) + 12 * keys) / copy + (search + 2 * walk) * cycle

    # A state that no segment waits for is read and written by the fused pass itself.
    several = work.groups * work.class_segments > 1
    state, waiting = 16 * k * d, 8 * work.segments * d
    teams = work.segments * work.strips
    vector = 16 // item
    team_threads = min(32, 128 // vector, 2 ** math.ceil(math.log2(max(1, d / vector))))
    warps = teams * team_threads / 32
    slots = chip.multiprocessors * loop.warps
    turns = work.rounds * loop.round + work.chunks * loop.chunk
    turns64 = work.rounds * loop.round_float64 + work.chunks * loop.chunk_float64
    of_warps = work.strips * team_threads / 32  # warp instructions for each of a segment
    slices = work.blocks * k / work.segments
    chain = (
        slices * chip.l2_latency
        + work.rounds * work.longest * (chip.l2_latency + BUSY_LATENCY * chip.memory_latency)
        + turns * work.longest * CYCLES_PER_INSTRUCTION
    )
    features = shape.bytes(dtype) / copy
    bounds = {
        "memory": features + (4 * n + (waiting if several else state)) / copy,
        "instructions": turns * of_warps / (chip.multiprocessors * SCHEDULERS) * cycle,
        "float64": turns64 * of_warps * 32 / (chip.multiprocessors * chip.float64_lanes) * cycle,
        "latency": chain * max(1.0, warps / slots) * cycle,
    }
    merge = 0.0
    if several:
        merges = math.ceil(work.groups * work.class_segments / constants["kAhead"])
        turn = 2 * chip.l2_latency + CYCLES_PER_INSTRUCTION * loop.merge
        merge = max((waiting + state) / copy, merges * turn * cycle)
    kernels = 8 + 2 + math.ceil(keys.bit_length() / RADIX_BITS) + 2  # ours, the sort's, the sum's
    return Prediction(features, tables, bounds, merge, kernels * LAUNCH_SECONDS)


# ------------------------------------------------------------------------ the tables


def tables(loops: dict[tuple[str, str], Loop], constants: dict[str, int]) -> str:
    """Lay out everything that is written between the markers."""
    return "\n".join([*_flight_rows(loops), "", *_shape_rows(loops, constants)])


def _flight_rows(loops: dict[tuple[str, str], Loop]) -> list[str]:
    lines = [
        "| chip | KiB in flight needed a multiprocessor | float32, bfloat16 have | instructions "
        "per 16 bytes that fit | float32, bfloat16 take |",
        "|---|---:|---:|---:|---:|",
    ]
    for chip in CHIPS:
        per_cycle = chip.bandwidth / chip.multiprocessors / (chip.gigahertz * 1e9)
        needed = per_cycle * BUSY_LATENCY * chip.memory_latency / 1024
        # A warp's instruction does 32 loads of 16 bytes.
        fit = SCHEDULERS * 512 / per_cycle
        of = [loops[chip.architecture, dtype] for dtype in DTYPES]
        have = ", ".join(str(loop.in_flight * loop.warps * 512 // 1024) for loop in of)
        take = ", ".join(f"{loop.round / loop.loads:.0f}" for loop in of)
        lines.append(f"| {chip.name} | {needed:.0f} | {have} | {fit:.0f} | {take} |")
    return lines


def _shape_rows(loops: dict[tuple[str, str], Loop], constants: dict[str, int]) -> list[str]:
    names = " | ".join(f"{chip.name.split()[0]}" for chip in CHIPS)
    lines = [
        "Microseconds are of an H100 (features: at a copy's bandwidth); then the predicted share",
        f"of a copy's bandwidth, **bold** from {TARGET:.0%} on, and what takes most of the time.",
        "",
        "| N x d, K | bytes a row: features | sort "
        f"| features us | tables | fused | merge | launches | {names} |",
        "|---|" + "---:|" * (7 + len(CHIPS)),
    ]
    for shape in GPU_SHAPES:
        for dtype in DTYPES:
            of = {
                chip.name: predict(shape, dtype, chip, loops[chip.architecture, dtype], constants)
                for chip in CHIPS
            }
            shown = of["H100 SXM"]
            parts = (shown.features, shown.tables, shown.fused, shown.merge, shown.launches)
            micro = " | ".join(f"{1e6 * seconds:,.0f}" for seconds in parts)
            row_bytes = shape.bytes(dtype) // shape.num_rows
            work = cut_up(shape, row_bytes // shape.num_features, constants)
            sort = sort_bytes_per_row(work.blocks * shape.num_classes + 1)
            shares = " | ".join(
                ("**{:.0%}** {}" if each.fraction >= TARGET else "{:.0%} {}").format(
                    each.fraction, each.limit
                )
                for each in of.values()
            )
            name = f"{shape.num_rows:,} x {shape.num_features:,}, {shape.num_classes:,} {dtype}"
            lines.append(f"| {name} | {row_bytes:,} | {sort} | {micro} | {shares} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the README, write none")
    settings = parser.parse_args(arguments)
    loops = read_loops((ROOT / "csrc/cuda/resources.md").read_text())
    made = f"{BEGIN}\n{tables(loops, read_constants())}\n{END}"
    text = README.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        print(f"{README}: expected the markers {BEGIN} and {END} once each", file=sys.stderr)
        return 1
    before, rest = text.split(BEGIN)
    anew = before + made + rest.split(END)[1]
    if settings.check and anew != text:
        print(
            f"{README.relative_to(ROOT)} is not what the model predicts from resources.md and "
            "plan.h: run python .ci/cuda_model.py",
            file=sys.stderr,
        )
        return 1
    if not settings.check:
        README.write_text(anew)
    return 0


if __name__ == "__main__":
    sys.exit(main())
