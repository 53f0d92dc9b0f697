"""The performance model of csrc/cuda/README.md, from the source's constants and resources.md.

`python .ci/cuda_model.py` writes the tables between the markers of that README, `--check` compares
and fails on a difference. It takes no compiler and no GPU: everything here is a prediction, and
`make gpu-check` is what measures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cuda_calibration import MEASURED, calibration  # noqa: E402
from cuda_times import (  # noqa: E402
    BUSY_LATENCY,
    CHIPS,
    SCHEDULERS,
    Kernels,
    predict,
    read_kernels,
)
from cuda_work import read_constants  # noqa: E402

from benchmarks.gpu_shapes import GPU_SHAPES  # noqa: E402
from benchmarks.shapes import DTYPES, DTypeName, Shape  # noqa: E402

README = ROOT / "csrc/cuda/README.md"
BEGIN, END = "<!-- begin: written by .ci/cuda_model.py -->", "<!-- end -->"
TARGET = 0.8  # of a copy's bandwidth

# ------------------------------------------------------------------------ the tables


def tables(kernels: dict[tuple[str, str], Kernels], constants: dict[str, int]) -> str:
    """Lay out everything that is written between the markers."""
    parts = (_calibration_rows(constants), _flight_rows(kernels), _shape_rows(kernels, constants))
    return "\n\n".join("\n".join(lines) for lines in parts)


def _calibration_rows(constants: dict[str, int]) -> list[str]:
    lines = [
        "Of an earlier `sum_segments` and of a prototype of `sum_chunks`, not of today's kernels:",
        "",
        "| fused pass / pure read | part | earlier `sum_segments` simulated | model "
        "| prototype of `sum_chunks` simulated | model |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row, (segments, chunks) in zip(MEASURED, calibration(constants), strict=True):
        shape, dtype, chip, of_segments, of_chunks = row
        other = "- | -" if of_chunks is None else f"{of_chunks:.2f} | {chunks:.2f}"
        name = f"{_name(shape, dtype)} | {chip.name}"
        lines.append(f"| {name} | {of_segments:.2f} | {segments:.2f} | {other} |")
    return lines


def _flight_rows(kernels: dict[tuple[str, str], Kernels]) -> list[str]:
    lines = [
        "In pairs: float32, bfloat16.",
        "",
        "| chip | KiB in flight needed a multiprocessor | `sum_segments` has | `sum_chunks` has "
        "| instructions per 16 bytes that fit | `sum_segments` takes | `sum_chunks` takes |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for chip in CHIPS:
        per_cycle = chip.bandwidth / chip.multiprocessors / (chip.gigahertz * 1e9)
        needed = per_cycle * BUSY_LATENCY * chip.memory_latency / 1024
        # A warp's instruction does 32 loads of 16 bytes.
        fit = SCHEDULERS * 512 / per_cycle
        have: dict[str, list[str]] = {"segments": [], "chunks": []}
        take: dict[str, list[str]] = {"segments": [], "chunks": []}
        for dtype, load_bytes in zip(DTYPES, (16, 8), strict=True):
            of = kernels[chip.architecture, dtype]
            for name, each, instructions in (
                ("segments", of.segments, of.segments.round + of.segments.chunk / 8),
                ("chunks", of.chunks, of.chunks.instructions),
            ):
                flying = each.in_flight * each.warps * 32 * load_bytes // 1024
                have[name].append(str(flying))
                take[name].append(f"{instructions / (each.loads * load_bytes / 16):.0f}")
        cells = (*have.values(), *take.values())
        of_segments, of_chunks, segments_take, chunks_take = (", ".join(cell) for cell in cells)
        lines.append(
            f"| {chip.name} | {needed:.0f} | {of_segments} | {of_chunks} | {fit:.0f} "
            f"| {segments_take} | {chunks_take} |"
        )
    return lines


def _name(shape: Shape, dtype: DTypeName) -> str:
    return f"{shape.num_rows:,} x {shape.num_features:,}, {shape.num_classes:,} {dtype}"


def _shape_rows(kernels: dict[tuple[str, str], Kernels], constants: dict[str, int]) -> list[str]:
    names = " | ".join(f"{chip.name.split()[0]}" for chip in CHIPS)
    lines = [
        "Microseconds are of an H100 (features: at a copy's bandwidth), and so is the path,",
        "segments or chunks. Warps: what the fused pass keeps resident on a multiprocessor at",
        "work; at work: how many are, of 132. Then the predicted share of a copy's bandwidth,",
        f"**bold** from {TARGET:.0%} on, and what takes most of the time.",
        "",
        "| N x d, K | path | launches | features us | tables | fused | merge | launching "
        f"| warps | at work | {names} |",
        "|---|---|" + "---:|" * (8 + len(CHIPS)),
    ]
    for shape in GPU_SHAPES:
        for dtype in DTYPES:
            of = [
                predict(shape, dtype, chip, kernels[chip.architecture, dtype], constants)
                for chip in CHIPS
            ]
            chip, shown = CHIPS[1], of[1]
            parts = (shown.features, shown.tables, shown.fused, shown.merge, shown.launches)
            micro = " | ".join(
                f"{us:,.0f}" if (us := 1e6 * seconds) >= 10 else f"{us:.1f}" for seconds in parts
            )
            shares = " | ".join(
                ("**{:.0%}** {}" if each.fraction >= TARGET else "{:.0%} {}").format(
                    each.fraction, each.limit
                )
                for each in of
            )
            busy = shown.fused_pass
            lines.append(
                f"| {_name(shape, dtype)} | {busy.kernel.removeprefix('sum_')} "
                f"| {shown.num_launches} | {micro} | {busy.resident_warps(chip)} "
                f"| {busy.at_work(chip)} | {shares} |"
            )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the README, write none")
    settings = parser.parse_args(arguments)
    kernels = read_kernels((ROOT / "csrc/cuda/resources.md").read_text())
    made = f"{BEGIN}\n{tables(kernels, read_constants())}\n{END}"
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
