"""Everything that takes a GPU, in one command and under ten minutes: `make gpu-check`.

Says what the machine is, builds and installs with CUDA, runs the whole test-suite, runs
compute-sanitizer on a few updates, and measures the bandwidth table (`benchmarks.gpu_table`).
Starts with torch alone; what else is missing is said, and left out. Exit code 0: everything that
could run passed; 1: something failed; 2: there is no GPU.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SANITIZERS = ("memcheck", "racecheck", "initcheck")
_BUILD_LIMIT, _TEST_LIMIT, _SANITIZER_LIMIT = 240, 300, 60  # seconds
_TOTAL_LIMIT = 600
_TABLE_RESERVE = 60  # seconds that the table takes at least, whatever came before


class Report:
    """Outcome by stage, printed as it comes and once more at the end."""

    def __init__(self) -> None:
        self._lines: list[tuple[str, str]] = []
        self.failed = False

    def add(self, stage: str, outcome: str, failed: bool = False) -> None:
        """Note how a stage ended."""
        self._lines.append((stage, outcome))
        self.failed |= failed
        print(f"\n=== {stage}: {outcome}\n", flush=True)

    def print(self) -> None:
        """Print every stage again."""
        print("\ngpu-check:")
        for stage, outcome in self._lines:
            print(f"  {stage:<12}{outcome}")


def run_stage(
    report: Report,
    stage: str,
    command: Sequence[str],
    limit: float,
    environment: Mapping[str, str] | None = None,
) -> bool:
    """Run a command, show what it prints, and note how it ended."""
    print(f"\n=== {stage}: {shlex.join(command)}\n", flush=True)
    begin = time.monotonic()
    try:
        code = subprocess.run(
            command, cwd=ROOT, timeout=limit, env={**os.environ, **(environment or {})}, check=False
        ).returncode
        ended = "ok" if code == 0 else f"FAILED, exit code {code}"
    except subprocess.TimeoutExpired:
        code, ended = -1, "FAILED, stopped at its limit"
    report.add(stage, f"{ended} ({time.monotonic() - begin:.0f} s)", failed=code != 0)
    return code == 0


def output_of(*command: str) -> str | None:
    """Return what a command prints, None if it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def find_nvcc() -> str | None:
    """Return nvcc from the PATH, or from where the toolkit installs it."""
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def describe() -> str | None:
    """Say which GPU, driver, toolkit and torch there are; None without a GPU that torch can use."""
    try:
        import torch
    except ImportError:
        print("gpu-check: torch is not installed", file=sys.stderr)
        return None
    if not torch.cuda.is_available():
        return None
    nvcc = find_nvcc()
    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    toolkit = (output_of(nvcc, "--version") or "").splitlines() if nvcc else []
    properties = torch.cuda.get_device_properties(0)
    return (
        f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
        f"{properties.total_memory / 2**30:.0f} GiB, "
        f"driver {driver.splitlines()[0] if driver else 'unknown'}, "
        f"toolkit {toolkit[-1] if toolkit else 'none: no nvcc'}, "
        f"torch {torch.__version__} for CUDA {torch.version.cuda}, "
        f"Python {sys.version.split()[0]}"
    )


def missing_modules(path: Path, seen: set[Path] | None = None) -> set[str]:
    """Return what a Python file imports at its top, itself or by deeprep, and is not installed.

    An import that stands in a `try` is one the file does without.
    """
    seen = set() if seen is None else seen
    seen.add(path)
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    missing: set[str] = set()
    for name in names:
        top = name.split(".")[0]
        if top in ("deeprep", "benchmarks"):
            own = ROOT / name.replace(".", "/")
            for file in (own.with_suffix(".py"), own / "__init__.py"):
                if file.exists() and file not in seen:
                    missing |= missing_modules(file, seen)
        elif importlib.util.find_spec(top) is None and not _is_ours(top, path):
            missing.add(top)
    return missing


def _is_ours(name: str, importer: Path) -> bool:
    """Whether a module lies where our own tests find it: beside the file, or among the scripts."""
    return any((folder / f"{name}.py").exists() for folder in (importer.parent, ROOT / ".ci"))


def test_command(report: Report) -> list[str] | None:
    """Return how to run the tests that can be run here; None if pytest is not there."""
    if importlib.util.find_spec("pytest") is None:
        report.add("tests", "NOT RUN: pytest is not installed", failed=True)
        return None
    command = [sys.executable, "-m", "pytest", "-q"]
    for folder in ("tests", "deeprep"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if missing := missing_modules(path):
                name = path.relative_to(ROOT)
                report.add("left out", f"{name}: {', '.join(sorted(missing))} not installed")
                command.append(f"--ignore={name}")
                if path.name == "conftest.py":
                    command.append("--noconftest")
    return command


def built_cuda() -> str | None:
    """Return how the CUDA core that is installed was built."""
    question = "import deeprep; print(deeprep.build_info()['cuda'] or '')"
    return output_of(sys.executable, "-c", question) or None


def build(report: Report, pip_flags: Sequence[str]) -> bool:
    """Install in place and make sure that the CUDA core is in it."""
    # Without flags `make` has just built it, unless nvcc was not found then.
    if not pip_flags and (built := built_cuda()):
        report.add("CUDA core", built)
        return True
    nvcc = find_nvcc()
    if nvcc is None:
        report.add("build", "FAILED: no nvcc, so the kernels cannot be built", failed=True)
        return False
    command = [sys.executable, "-m", "pip", "install", *pip_flags, "--editable", "."]
    if not run_stage(report, "build", command, _BUILD_LIMIT, {"CUDACXX": nvcc}):
        return False
    built = built_cuda()
    report.add("CUDA core", built or "MISSING from what was built", failed=not built)
    return bool(built)


def sanitize(report: Report) -> None:
    """Run compute-sanitizer's tools on a few updates."""
    tool = shutil.which("compute-sanitizer") or shutil.which(
        "/usr/local/cuda/bin/compute-sanitizer"
    )
    if tool is None:
        report.add("sanitizer", "not run: compute-sanitizer is not installed")
        return
    for name in SANITIZERS:
        command = [tool, "--tool", name, "--error-exitcode", "9", sys.executable]
        command += ["-m", "benchmarks.gpu_workload"]
        # Each tensor in an allocation of its own: an access beyond its end is then an error.
        run_stage(report, name, command, _SANITIZER_LIMIT, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="make gpu-check", description=__doc__.splitlines()[0])
    parser.add_argument("--pip-flags", default="", help="for pip install, as one argument")
    settings = parser.parse_args(arguments)
    begin = time.monotonic()
    machine = describe()
    if machine is None:
        print(
            "gpu-check needs a GPU that torch can use, and found none. Without one, `make test` "
            "runs the kernels on the host (tests/simt), `make cuda-resources` compiles them."
        )
        return 2
    report = Report()
    report.add("machine", machine)
    if build(report, shlex.split(settings.pip_flags)):
        command = test_command(report)
        if command is not None:
            run_stage(report, "tests", command, _TEST_LIMIT)
        sanitize(report)
        left = _TOTAL_LIMIT - (time.monotonic() - begin)
        limit = max(_TABLE_RESERVE, left - 30)
        command = [sys.executable, "-m", "benchmarks.gpu_table", "--limit", f"{limit:.0f}"]
        run_stage(report, "table", command, limit + 60)
    report.print()
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
