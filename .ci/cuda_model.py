"""The performance model of csrc/cuda/README.md, from the source's constants and resources.md.

`python .ci/cuda_model.py` writes the tables between the markers of that README, `--check` compares
and fails on a difference. It takes no compiler and no GPU: everything here is a prediction, and
`make gpu-check` is what measures.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cuda_times import (  # noqa: E402
    BUSY_LATENCY,
    CHIPS,
    COPY_SHARE,
    SCHEDULERS,
    Chip,
    Loop,
    predict,
    read_loops,
    sum_chunks,
    sum_segments,
)
from cuda_work import cut_into_tiles, cut_up, launches_of, read_constants  # noqa: E402

from benchmarks.gpu_shapes import GPU_SHAPES  # noqa: E402
from benchmarks.shapes import DTYPES, DTypeName, Shape  # noqa: E402

README = ROOT / "csrc/cuda/README.md"
BEGIN, END = "<!-- begin: written by .ci/cuda_model.py -->", "<!-- end -->"
TARGET = 0.8  # of a copy's bandwidth

# ------------------------------------------------------------------------ the calibration

# A V100-class part, and a quarter of it; 900 GB/s, latencies of Jia et al. 2018, arXiv:1804.06826.
_WHOLE = Chip("whole", "sm_70", 80, 1.38, 9e11, 32, 425, 193, False)
_QUARTER = replace(_WHOLE, name="quarter", multiprocessors=20, bandwidth=2.25e11)
# The hot loops of the kernel that was measured, and blocks of the prototype that share a
# multiprocessor.
_MEASURED_LOOPS = {
    "float32": Loop(213, 0, 8, 677, 96, 8, 16, 838),
    "bfloat16": Loop(412, 0, 8, 1045, 164, 8, 16, 838),
}
_MEASURED_BLOCKS = 3

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


def calibration(constants: dict[str, int]) -> list[tuple[float, float]]:
    """Return the model's ratios for MEASURED: of sum_segments, of sum_chunks."""
    found = []
    for shape, dtype, chip, _, _ in MEASURED:
        work = cut_up(shape, 4 if dtype == "float32" else 2, constants)
        read = shape.bytes(dtype) / (COPY_SHARE * chip.bandwidth)
        present = shape.num_classes * (1 - math.exp(-shape.num_rows / shape.num_classes))
        state = 16 * present * shape.num_features
        segments = sum_segments(shape, dtype, work, chip, _MEASURED_LOOPS[dtype], state)
        chunks = sum_chunks(shape, dtype, work, chip, _MEASURED_BLOCKS)
        found.append((segments.seconds / read, chunks.seconds / read))
    return found


# ------------------------------------------------------------------------ the tables


def tables(loops: dict[tuple[str, str], Loop], constants: dict[str, int]) -> str:
    """Lay out everything that is written between the markers."""
    parts = (_calibration_rows(constants), _flight_rows(loops), _shape_rows(loops, constants))
    return "\n\n".join("\n".join(lines) for lines in parts)


def _calibration_rows(constants: dict[str, int]) -> list[str]:
    lines = [
        "| fused pass / pure read | part | `sum_segments` simulated | model "
        "| chunks side by side simulated | model |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row, (segments, chunks) in zip(MEASURED, calibration(constants), strict=True):
        shape, dtype, chip, of_segments, of_chunks = row
        other = "- | -" if of_chunks is None else f"{of_chunks:.2f} | {chunks:.2f}"
        name = f"{_name(shape, dtype)} | {chip.name}"
        lines.append(f"| {name} | {of_segments:.2f} | {segments:.2f} | {other} |")
    return lines


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


def _name(shape: Shape, dtype: DTypeName) -> str:
    return f"{shape.num_rows:,} x {shape.num_features:,}, {shape.num_classes:,} {dtype}"


def _shape_rows(loops: dict[tuple[str, str], Loop], constants: dict[str, int]) -> list[str]:
    names = " | ".join(f"{chip.name.split()[0]}" for chip in CHIPS)
    lines = [
        "Microseconds are of an H100 (features: at a copy's bandwidth). Warps: what the fused pass",
        "keeps resident on a multiprocessor at work; at work: how many are, of 132. Then the",
        f"predicted share of a copy's bandwidth, **bold** from {TARGET:.0%} on, and what takes",
        "most of the time.",
        "",
        "| N x d, K | launches | features us | tables | fused | merge | launching "
        f"| warps | at work | {names} |",
        "|---|" + "---:|" * (8 + len(CHIPS)),
    ]
    for shape in GPU_SHAPES:
        for dtype in DTYPES:
            of = {
                chip.name: predict(shape, dtype, chip, loops[chip.architecture, dtype], constants)
                for chip in CHIPS
            }
            chip, shown = CHIPS[1], of[CHIPS[1].name]
            parts = (shown.features, shown.tables, shown.fused, shown.merge, shown.launches)
            micro = " | ".join(
                f"{us:,.0f}" if (us := 1e6 * seconds) >= 10 else f"{us:.1f}" for seconds in parts
            )
            work = cut_up(
                shape, shape.bytes(dtype) // shape.num_rows // shape.num_features, constants
            )
            tiles = cut_into_tiles(shape, work, constants)
            count = launches_of(shape, work, tiles, constants, chip.multiprocessors).total
            shares = " | ".join(
                ("**{:.0%}** {}" if each.fraction >= TARGET else "{:.0%} {}").format(
                    each.fraction, each.limit
                )
                for each in of.values()
            )
            busy = shown.fused_pass
            lines.append(
                f"| {_name(shape, dtype)} | {count} | {micro} | {busy.resident_warps(chip)} "
                f"| {busy.at_work(chip)} | {shares} |"
            )
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
            "the constants of csrc: run python .ci/cuda_model.py",
            file=sys.stderr,
        )
        return 1
    if not settings.check:
        README.write_text(anew)
    return 0


if __name__ == "__main__":
    sys.exit(main())
