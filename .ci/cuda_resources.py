"""Compile the kernels for every architecture and hold what nvcc reports to csrc/cuda/resources.md.

`python .ci/cuda_resources.py` writes the table, which takes cuobjdump besides nvcc; `--check`
compares, and names what differs. Both fail on a spill, on local memory, on a warning of nvcc, and
where the hot loop of the fused pass loads features by less than 16 bytes. About 20 s an
architecture on one core.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cuda_reports import (
    LIMITS,
    Code,
    Loop,
    Resources,
    most_in_flight,
    parse_ptx,
    parse_ptxas,
    parse_sass,
)

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "csrc/cuda/resources.md"
SOURCE = "csrc/cuda/launch.cu"
GROUP_ROWS = 8  # of a round
LEAST_LOADS = 8  # of four columns, 16 bytes at most, that a thread has in flight in a fused pass
HOT_KERNELS = re.compile(r"(sum_segments|sum_chunks)<(\w+), aligned>")
# float64 arithmetic, and the conversions from and to it
_FLOAT64_SASS = r"D(ADD|MUL|FMA|SETP)|F2F\.F64|F2F\.F32\.F64|I2F\.F64|MUFU\.RCP64H"


@dataclass(frozen=True)
class Compiled:
    """What became of one architecture; `sass` is None without cuobjdump."""

    architecture: str
    resources: list[Resources]
    ptx: dict[str, Code]
    sass: dict[str, Code] | None


class CannotCompileError(Exception):
    """A tool is missing, or the kernels do not compile; the message is for the user."""


# ------------------------------------------------------------------------ compiling


def find_nvcc() -> Path:
    """Return nvcc: of CUDACXX, the PATH, or where the toolkit installs it."""
    for name in (os.environ.get("CUDACXX"), "nvcc", "/usr/local/cuda/bin/nvcc"):
        if name and (found := shutil.which(name)):
            return Path(found)
    raise CannotCompileError(
        "NVCC IS MISSING: the CUDA kernels were not compiled, and nothing about them was checked.\n"
        "Install the CUDA toolkit (12.8 or newer), or name its nvcc in CUDACXX."
    )


def find_cuobjdump(nvcc: Path) -> Path | None:
    """Return cuobjdump: on the PATH, beside nvcc, or from PyPI's nvidia-cuda-cuobjdump."""
    if found := shutil.which("cuobjdump"):
        return Path(found)
    packages = Path(sys.prefix).glob("lib/python*/site-packages/nvidia/*/bin/cuobjdump")
    beside = nvcc.resolve().parent / "cuobjdump"
    return next((path for path in (beside, *packages) if path.exists()), None)


def _run(
    command: Sequence[str | Path], path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command, with the folder `path` searched for programs first."""
    searched = f"{path}{os.pathsep}{os.environ['PATH']}" if path else os.environ["PATH"]
    environment = {**os.environ, "PATH": searched}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise CannotCompileError(f"{shlex.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done


def compile_command(nvcc: Path, build: Path) -> list[str]:
    """Return how CMake compiles the kernels, warnings being errors."""
    _run(
        [
            *("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", f"-DCMAKE_CUDA_COMPILER={nvcc}"),
            *("-DDEEPREP_CUDA=ON", "-DDEEPREP_WERROR=ON", "-DDEEPREP_BUILD_MODULE=OFF"),
            *("-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"),
        ],
        Path(sys.executable).parent,  # `make` does not put the environment's cmake on the PATH
    )
    for entry in json.loads((build / "compile_commands.json").read_text()):
        if Path(entry["file"]) == ROOT / SOURCE:
            return shlex.split(entry["command"])
    raise CannotCompileError(f"CMakeLists.txt does not compile {SOURCE}")


def for_architecture(command: Sequence[str], architecture: str, cubin: Path) -> list[str]:
    """Return the command that compiles for one architecture only, with ptxas' report."""
    kept = [token for token in command if not token.startswith("--generate-code")]
    del kept[kept.index("-o") : kept.index("-o") + 2]
    kept.remove("-c")
    number = architecture.removeprefix("sm_")
    return [
        *kept,
        *("-gencode", f"arch=compute_{number},code={architecture}", "-Xptxas", "-v"),
        *("-cubin", "-o", str(cubin), "--keep", "--keep-dir", str(cubin.parent)),
    ]


def compile_all(nvcc: Path, cuobjdump: Path | None) -> list[Compiled]:
    """Compile for every architecture that CMake builds for."""
    compiled = []
    with tempfile.TemporaryDirectory() as folder:
        command = compile_command(nvcc, Path(folder, "cmake"))
        architectures = re.findall(r"sm_\d+", " ".join(t for t in command if "generate-code" in t))
        if missing := set(LIMITS) - set(architectures):
            raise CannotCompileError(f"{nvcc} is not asked to compile for {sorted(missing)}")
        for architecture in sorted(architectures, key=lambda name: int(name[3:])):
            print(f"compiling {SOURCE} for {architecture}", flush=True)
            place = Path(folder, architecture)
            place.mkdir()
            cubin = place / "launch.cubin"
            report = _run(for_architecture(command, architecture, cubin)).stderr
            sass = None
            if cuobjdump is not None:
                listing = _run([cuobjdump, "-sass", cubin], cuobjdump.parent)  # calls nvdisasm
                sass = parse_sass(listing.stdout)
            ptx = parse_ptx((place / "launch.ptx").read_text())
            compiled.append(Compiled(architecture, parse_ptxas(report), ptx, sass))
    return compiled


# ------------------------------------------------------------------------ judging


def find_faults(compiled: Compiled) -> list[str]:
    """Return what must not be: spills, local memory, narrow loads of features in the hot loop."""
    faults = []
    for each in compiled.resources:
        where = f"{each.kernel} on {each.architecture}"
        if each.spill_stores or each.spill_loads:
            stored, loaded = each.spill_stores, each.spill_loads
            faults.append(f"{where}: spills {stored} bytes and loads {loaded} bytes again")
        if each.stack:
            faults.append(f"{where}: {each.stack} bytes of stack, that is local memory")
    for kernel, code in compiled.ptx.items():
        where = f"{kernel} on {compiled.architecture}"
        local = sum(bool(re.match(r"(ld|st)\.local", line)) for line in code.instructions)
        if local:
            faults.append(f"{where}: {local} loads and stores of local memory in PTX")
        if HOT_KERNELS.fullmatch(kernel):
            lanes = r"v2\.[ubf]32" if load_bytes(kernel) == 8 else r"(v4\.[ubf]32|v2\.[ubf]64)"
            wide = rf"ld\.global\.nc(\.\w+)*\.{lanes} "
            faults += _narrow_loads(f"{where}, PTX", code, r"ld\.global\.nc", wide)
    for kernel, code in (compiled.sass or {}).items():
        if HOT_KERNELS.fullmatch(kernel):
            where = f"{kernel} on {compiled.architecture}, SASS"
            faults += _narrow_loads(where, code, r"LDG\.\S*CONSTANT", _load_sass(kernel))
    return faults


def load_bytes(kernel: str) -> int:
    """Bytes of a load of features: four columns, 16 at most."""
    return 8 if "float16" in kernel else 16


def _load_sass(kernel: str) -> str:
    return rf"LDG\.E\.{8 * load_bytes(kernel)}\.CONSTANT"


def _narrow_loads(where: str, code: Code, load: str, wide: str) -> list[str]:
    try:
        loop = code.hot_loop(load)
    except ValueError as error:
        return [f"{where}: {error}"]
    loads, wide_loads = code.count(loop, load), code.count(loop, wide)
    if loads == wide_loads >= LEAST_LOADS:
        return []
    return [
        f"{where}: {wide_loads} of {loads} loads of features in the hot loop are of four columns, "
        f"expected all, and at least {LEAST_LOADS}"
    ]


# ------------------------------------------------------------------------ the table

_LOOPS_TITLE = "## The hot loops of `sum_segments`, aligned"


def render(compiled: Sequence[Compiled], toolkit: str) -> str:
    """Lay out resources.md; without SASS it ends before the hot loops."""
    lines = [
        "# Resources of the kernels",
        "",
        f"Written by `make cuda-resources WRITE=1` with nvcc {toolkit}; `make cuda-resources`",
        "compares. Registers and bytes of stack and spills are of a thread, shared memory is of",
        "a block; occupancy is that of its blocks, from the limits of the architecture. CUB's",
        "kernels are left out.",
    ]
    for each in compiled:
        limits = LIMITS[each.architecture]
        lines += [
            "",
            f"## {each.architecture}, {limits.warps} warps a multiprocessor",
            "",
            "| kernel | registers | shared | stack | spilled | threads | warps | occupancy |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        lines += [
            f"| `{r.kernel}` | {r.registers} | {r.shared} | {r.stack} "
            f"| {r.spill_stores + r.spill_loads} | {r.threads} | {r.resident_warps} "
            f"| {r.occupancy:.1%} |"
            for r in each.resources
        ]
    with_sass = [each for each in compiled if each.sass is not None]
    if with_sass:
        lines += [
            "",
            _LOOPS_TITLE,
            "",
            "From the SASS. A round is one turn of the loop, eight rows, in the middle of a chunk;",
            "chunk: what is executed besides once a chunk of up to 64 rows, and segment: once a",
            "segment, along the path with most instructions.",
            "Loads are of four columns, 16 bytes at most. In flight: loads that a thread issues",
            "before it needs the first, and what that makes in a multiprocessor full of resident",
            "warps. Merge: instructions of a turn in merge_segments, kStripsAtOnce segments.",
            "",
            "| architecture | kernel | instructions a round | of them float64 "
            "| loads of features | instructions per 16 bytes | chunk | of them float64 "
            "| in flight | warps | KiB | merge | segment | of them float64 |",
            "|---|---|" + "---:|" * 12,
            *(row for each in with_sass for row in _loop_rows(each)),
            "",
            "## The blocks of `sum_chunks`, aligned",
            "",
            "Instructions of a thread for a chunk of up to 64 rows, without the rare second sum in",
            "double: half of the threads leave out what closes the chunk. Merge: instructions of a",
            "turn in merge_chunks, kStripsAtOnce chunks.",
            "",
            "| architecture | kernel | instructions | of them float64 | loads of features "
            "| in flight | warps | KiB | merge |",
            "|---|---|" + "---:|" * 7,
            *(row for each in with_sass for row in _chunk_rows(each)),
        ]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _HotKernel:
    """A kernel that loads features: where, and how much of them is in flight."""

    name: str
    code: Code
    load: str  # pattern of its loads
    loop: Loop  # the innermost one with most of them
    in_flight: int
    warps: int
    kib: int  # in flight a multiprocessor

    def counts(self, loop: Loop, without: Sequence[Loop] = ()) -> tuple[int, int]:
        """Count the instructions on a way through a loop, and those of float64 among them."""
        instructions, float64 = (
            self.code.count_executed(loop, pattern, without=without)
            for pattern in ("", _FLOAT64_SASS)
        )
        return instructions, float64

    def rare_loops(self, loop: Loop) -> list[Loop]:
        """Return the loops inside of one that load.

        Beside the hot one that is what sums a column again in double.
        """
        return [
            inner
            for inner in self.code.loops
            if loop[0] < inner[0] <= inner[1] < loop[1] and self.code.count(inner, "LDG")
        ]

    @property
    def loads(self) -> int:
        return self.code.count_executed(self.loop, self.load)


def _hot_kernels(compiled: Compiled, name: str) -> list[_HotKernel]:
    """Return the kernels of that name."""
    found = []
    warps = {each.kernel: each.resident_warps for each in compiled.resources}
    for kernel, code in sorted((compiled.sass or {}).items()):
        match = HOT_KERNELS.fullmatch(kernel)
        if match is None or match[1] != name:
            continue
        load = _load_sass(kernel)
        loop = code.hot_loop(load)
        flying = most_in_flight(code, loop, load, load_bytes(kernel) // 4)
        kib = flying * load_bytes(kernel) * 32 * warps[kernel] // 1024
        found.append(_HotKernel(kernel, code, load, loop, flying, warps[kernel], kib))
    return found


def _loop_rows(compiled: Compiled) -> list[str]:
    rows = []
    turn = _merge_turn(compiled, "merge_segments")
    for each in _hot_kernels(compiled, "sum_segments"):
        hot = each.loop
        around, outer = each.code.loops_around(hot)[:2]
        # In the middle of a chunk: with the numbers of the next eight rows, and nothing else.
        round_ = each.code.count_shortest(hot, "LDG", each.loads + GROUP_ROWS)
        last_round, round64 = each.counts(hot)
        chunk, chunk64 = each.counts(around, without=[hot, *each.rare_loops(around)])
        chunk += last_round - round_
        segment, segment64 = each.counts(outer, without=[around])
        per_16_bytes = round_ / (each.loads * load_bytes(each.name) / 16)
        rows.append(
            f"| {compiled.architecture} | `{each.name}` | {round_} | {round64} "
            f"| {each.loads} | {per_16_bytes:.1f} | {chunk} | {chunk64} | {each.in_flight} "
            f"| {each.warps} | {each.kib} | {turn} | {segment} | {segment64} |"
        )
    return rows


def _chunk_rows(compiled: Compiled) -> list[str]:
    rows = []
    turn = _merge_turn(compiled, "merge_chunks")
    for each in _hot_kernels(compiled, "sum_chunks"):
        block, block64 = each.counts(each.loop, without=each.rare_loops(each.loop))
        rows.append(
            f"| {compiled.architecture} | `{each.name}` | {block} | {block64} | {each.loads} "
            f"| {each.in_flight} | {each.warps} | {each.kib} | {turn} |"
        )
    return rows


def _merge_turn(compiled: Compiled, kernel: str) -> int:
    """Count what a turn of a merge executes: of its smallest loop that loads and adds."""
    code = (compiled.sass or {})[kernel]
    turn = next(loop for loop in code.loops if code.count(loop, "LDG") and code.count(loop, "DADD"))
    return code.count_executed(turn, "")


def differences(committed: str, made: str) -> list[str]:
    """Return the lines that differ, `-` committed and `+` made; loops only if both have them."""
    if _LOOPS_TITLE not in made:
        committed = committed.split(f"\n{_LOOPS_TITLE}")[0]
    found = difflib.unified_diff(committed.splitlines(), made.splitlines(), lineterm="", n=0)
    return [line for line in found if not line.startswith(("---", "+++", "@@"))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the table, write none")
    settings = parser.parse_args(arguments)
    try:
        nvcc = find_nvcc()
        version = re.search(r"V([\d.]+)", _run([nvcc, "--version"]).stdout)
        cuobjdump = find_cuobjdump(nvcc)
        if cuobjdump is None:
            how = "pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
            print(f"CUOBJDUMP IS MISSING: PTX is checked, SASS is not ({how})", flush=True)
            if not settings.check:
                return 1
        compiled = compile_all(nvcc, cuobjdump)
        faults = [fault for each in compiled for fault in find_faults(each)]
        made = render(compiled, version[1] if version else "unknown")
    except (CannotCompileError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    if settings.check:
        changed = differences(TABLE.read_text() if TABLE.exists() else "", made)
        if changed:
            faults.append(
                f"{TABLE.relative_to(ROOT)} is not what nvcc makes; `make cuda-resources WRITE=1` "
                "writes it anew:\n" + "\n".join(changed)
            )
    else:
        TABLE.write_text(made)
    for fault in faults:
        print(fault, file=sys.stderr)
    count = sum(len(each.resources) for each in compiled)
    print(f"{count} kernels on {len(compiled)} architectures, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
