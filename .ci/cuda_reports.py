"""What nvcc's reports say about a kernel: ptxas' resources, and the loops in PTX and SASS."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

FEATURE_TYPES = ("float32", "float64", "float16", "bfloat16")  # in the order of csrc/dispatch.h
THREADS_PER_BLOCK = 256  # of StreamDevice, csrc/cuda/launch.cu
# Of the kernels that are launched with other blocks, see csrc/cuda.
BLOCK_THREADS = {"sum_segments": 64}


@dataclass(frozen=True)
class Limits:
    """Resources of one multiprocessor (CUDA C++ Programming Guide, compute capabilities)."""

    warps: int
    blocks: int
    shared_bytes: int  # of all blocks; each takes 1 KiB more than it asks for
    registers: int = 65536  # handed out to warps 256 at a time


LIMITS = {
    "sm_80": Limits(warps=64, blocks=32, shared_bytes=164 * 1024),
    "sm_90": Limits(warps=64, blocks=32, shared_bytes=228 * 1024),
    "sm_100": Limits(warps=64, blocks=32, shared_bytes=228 * 1024),
    "sm_120": Limits(warps=48, blocks=24, shared_bytes=100 * 1024),
}


@dataclass(frozen=True)
class Resources:
    """What ptxas reports of a kernel: bytes of a thread, shared memory of a block."""

    kernel: str
    architecture: str
    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return BLOCK_THREADS.get(self.kernel.split("<")[0], THREADS_PER_BLOCK)

    @property
    def resident_warps(self) -> int:
        """Warps that one multiprocessor holds at a time."""
        limits, warps = LIMITS[self.architecture], self.threads // 32
        registers_per_warp = -(-self.registers * 32 // 256) * 256
        blocks = min(
            limits.blocks,
            limits.warps // warps,
            limits.registers // (registers_per_warp * warps),
            limits.shared_bytes // (self.shared + 1024),
        )
        return blocks * warps

    @property
    def occupancy(self) -> float:
        """Share of the warps that a multiprocessor could hold."""
        return self.resident_warps / LIMITS[self.architecture].warps


def kernel_name(mangled: str) -> str | None:
    """``sum_segments<float32, aligned>``, or None if the kernel is not ours.

    >>> kernel_name("_ZN7deeprep4cuda12sum_segmentsILNS_11FeatureTypeE0ELb1EEEvNS0_5BatchEi")
    'sum_segments<float32, aligned>'
    >>> kernel_name("_ZN7deeprep4cuda10shift_rowsILNS_11FeatureTypeE3ElLb1EEEvNS0_5BatchEi")
    'shift_rows<bfloat16, int64, offsets>'
    >>> kernel_name("_ZN3cub17CUB_300001_SM_9006detail11EmptyKernelIvEEvv") is None
    True
    """
    match = re.match(r"_ZN7deeprep4cudaL?(\d+)", mangled)
    if match is None:
        return None
    end = match.end() + int(match[1])
    name, rest = mangled[match.end() : end], mangled[end:]
    if not rest.startswith("I"):
        return name
    arguments, rest = [], rest[1:]
    while not rest.startswith("E"):
        argument = re.match(r"LNS_11FeatureTypeE(\d)E|Lb([01])E|([il])", rest)
        if argument is None:
            raise ValueError(f"{mangled}: a template argument that kernel_name() does not know")
        rest = rest[argument.end() :]
        if argument[1]:
            arguments.append(FEATURE_TYPES[int(argument[1])])
        elif argument[2]:
            flags = ("shifts", "offsets") if name == "shift_rows" else ("strided", "aligned")
            arguments.append(flags[int(argument[2])])
        else:
            arguments.append({"i": "int32", "l": "int64"}[argument[3]])
    return f"{name}<{', '.join(arguments)}>"


_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def parse_ptxas(report: str) -> list[Resources]:
    """Return our kernels in a report of ``ptxas -v``, sorted by name.

    Raises
    ------
    ValueError
        The report of a kernel is not complete, or there is no kernel of ours.
    """
    found = []
    parts = _ENTRY.split(report)[1:]
    for mangled, architecture, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        kernel = kernel_name(mangled)
        if kernel is None:
            continue
        stack, used, shared = _STACK.search(text), _USED.search(text), _SHARED.search(text)
        if stack is None or used is None:
            raise ValueError(f"{kernel} on {architecture}: ptxas reports no registers or no stack")
        found.append(
            Resources(
                kernel=kernel,
                architecture=architecture,
                registers=int(used[1]),
                shared=int(shared[1]) if shared else 0,
                stack=int(stack[1]),
                spill_stores=int(stack[2]),
                spill_loads=int(stack[3]),
            )
        )
    if not found:
        raise ValueError("the report of ptxas names no kernel of deeprep::cuda")
    return sorted(found, key=lambda each: each.kernel)


# ------------------------------------------------------------------------ loops


Loop = tuple[int, int]  # first and last instruction


@dataclass(frozen=True)
class Jump:
    """A branch from one instruction to another; without a condition it is always taken."""

    start: int
    target: int
    conditional: bool


class Code:
    """The instructions of a kernel, without predicates, its jumps, and its loops, small ones first.

    A loop is a jump backwards; of those to one target, the last one closes it.
    """

    def __init__(self, instructions: list[str], jumps: Iterable[Jump]) -> None:
        self.instructions = instructions
        self._jumps = {jump.start: jump for jump in jumps}
        ends: dict[int, int] = {}
        for jump in self._jumps.values():
            if jump.target <= jump.start:
                ends[jump.target] = max(jump.start, ends.get(jump.target, 0))
        self.loops: list[Loop] = sorted(ends.items(), key=lambda loop: loop[1] - loop[0])

    def hot_loop(self, load: str) -> Loop:
        """Return the loop with most instructions that begin with `load`.

        Only loops count that contain no other one with such instructions.

        Raises
        ------
        ValueError
            No loop contains one.
        """
        loading = [loop for loop in self.loops if self.count(loop, load)]
        innermost = [
            (first, last)
            for first, last in loading
            if not any((a, b) != (first, last) and first <= a <= b <= last for a, b in loading)
        ]
        best = max(innermost, key=lambda loop: self.count(loop, load), default=None)
        if best is None:
            raise ValueError(f"no loop contains {load}")
        return best

    def loops_around(self, inner: Loop) -> list[Loop]:
        """Return the loops that contain a loop, small ones first."""
        return [
            loop
            for loop in self.loops
            if loop != inner and loop[0] <= inner[0] <= inner[1] <= loop[1]
        ]

    def count(self, loop: Loop, opcode: str) -> int:
        """Count the instructions of a loop that match a pattern from their start on."""
        pattern = re.compile(opcode)
        return sum(1 for i in range(loop[0], loop[1] + 1) if pattern.match(self.instructions[i]))

    def count_executed(self, loop: Loop, opcode: str, without: Iterable[Loop] = ()) -> int:
        """Count such instructions on the path through a loop that has most, each inner loop once.

        What the loops `without` contain is not counted.
        """
        pattern, first, last = re.compile(opcode), *loop
        left_out = {i for begin, end in without for i in range(begin, end + 1)}
        most = dict.fromkeys(range(first, last + 2), 0)
        for i in range(last, first - 1, -1):
            following = self._following(i, last)
            counts = i not in left_out and pattern.match(self.instructions[i]) is not None
            most[i] = counts + max((most[j] for j in following), default=0)
        return most[first]

    def count_shortest(self, loop: Loop, opcode: str, times: int) -> int:
        """Count what the shortest path through a loop executes that has `opcode` so often.

        Raises
        ------
        ValueError
            No path does.
        """
        pattern, first, last = re.compile(opcode), *loop
        # By how many of `opcode` are still to come, `times` or more being one.
        fewest: dict[int, dict[int, int]] = {last + 1: {0: 0}}
        for i in range(last, first - 1, -1):
            own = pattern.match(self.instructions[i]) is not None
            fewest[i] = {}
            for j in self._following(i, last):
                for loads, instructions in fewest[j].items():
                    reached = min(times, loads + own)
                    best = fewest[i].get(reached, instructions + 1)
                    fewest[i][reached] = min(best, instructions + 1)
        if times not in fewest[first]:
            raise ValueError(f"no path executes {opcode} {times} times")
        return fewest[first][times]

    def _following(self, i: int, last: int) -> list[int]:
        """Return what may be executed after an instruction of a loop, in the same turn."""
        jump = self._jumps.get(i)
        following = [i + 1] if jump is None or jump.conditional or jump.target <= i else []
        if jump is not None and i < jump.target <= last:
            following.append(jump.target)
        return following


def parse_ptx(text: str) -> dict[str, Code]:
    """Return the code of our kernels in a PTX file; predicates are left out of instructions."""
    found = {}
    parts = re.split(r"\.entry (\w+)\(", text)[1:]
    for mangled, body in zip(parts[::2], parts[1::2], strict=True):
        kernel = kernel_name(mangled)
        if kernel is None:
            continue
        instructions: list[str] = []
        labels: dict[str, int] = {}
        branches: list[tuple[int, str, bool]] = []
        for line in body.split("\n}\n")[0].splitlines():
            stripped = line.strip()
            if label := re.match(r"(\$L\w+):", stripped):
                labels[label[1]] = len(instructions)
            elif stripped.endswith(";") and not stripped.startswith("."):
                code = re.sub(r"^@!?%p\d+\s+", "", stripped).replace("\t", " ")
                if branch := re.match(r"bra(?:\.uni)?\s+(\$L\w+);", code):
                    branches.append((len(instructions), branch[1], stripped.startswith("@")))
                instructions.append(code)
        found[kernel] = Code(instructions, (Jump(at, labels[to], c) for at, to, c in branches))
    return found


def parse_sass(text: str) -> dict[str, Code]:
    """Return the code of our kernels in the output of ``cuobjdump -sass``, without predicates."""
    found = {}
    parts = re.split(r"Function : (\w+)", text)[1:]
    for mangled, body in zip(parts[::2], parts[1::2], strict=True):
        kernel = kernel_name(mangled)
        if kernel is None:
            continue
        instructions: list[str] = []
        index: dict[int, int] = {}
        branches: list[tuple[int, int, bool]] = []
        for address, raw in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", body):
            code = re.sub(r"^@!?U?P\w+\s+", "", raw.strip())
            index[int(address, 16)] = len(instructions)
            # BRA.DIV leaves a loop for the case that a warp has split up; it never closes one.
            if branch := re.match(r"BRA(?:\.U\w*)?\s+(.*?)(0x[0-9a-f]+)$", code):
                conditional = raw.startswith("@") or "P" in branch[1]
                branches.append((len(instructions), int(branch[2], 16), conditional))
            instructions.append(code)
        found[kernel] = Code(instructions, (Jump(at, index[to], c) for at, to, c in branches))
    return found


def most_in_flight(code: Code, loop: Loop, load: str, size: int = 4) -> int:
    """Most loads of a loop of SASS, of `size` registers, issued before the first is needed."""
    pattern = re.compile(load + r"\S* R(\d+)")
    waiting: set[int] = set()
    most = 0
    for i in range(loop[0], loop[1] + 1):
        instruction = code.instructions[i]
        touched = {int(register) for register in re.findall(r"\bR(\d+)", instruction)}
        waiting = {first for first in waiting if touched.isdisjoint(range(first, first + size))}
        if issued := pattern.match(instruction):
            waiting.add(int(issued[1]))
            most = max(most, len(waiting))
    return most
