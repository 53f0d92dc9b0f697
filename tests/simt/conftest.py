"""Builds of the host executor and of the kernels in it: plain, and one per sanitizer."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pybind11
import pytest

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str) -> str:
    """Path of a build tool: this environment's, else the system's."""
    found = shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)
    assert found is not None, f"{name} not found: python -m pip install {name}"
    return found


def run(*command: str | Path) -> None:
    """Run a command; its output is shown where it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}"


@pytest.fixture(scope="session")
def simt_build() -> Callable[[str], Path]:
    """Build tests/simt as "plain", "address" or "thread", once a session; returns the folder."""

    @functools.cache
    def build(kind: str) -> Path:
        folder = ROOT / "build" / f"simt-{kind}"
        run(
            tool("cmake"),
            *("-S", ROOT, "-B", folder, "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
            f"-DDEEPREP_SANITIZE={'' if kind == 'plain' else kind}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            "-DDEEPREP_BUILD_MODULE=OFF",
            "-DDEEPREP_CUDA=OFF",
            "-DDEEPREP_BUILD_SIMT=ON",
            f"-DDEEPREP_WERROR={os.environ.get('DEEPREP_WERROR', 'OFF')}",
        )
        run(tool("cmake"), "--build", folder, "--target", "tests/simt/all")
        return folder / "tests" / "simt"

    return build


def read(stream: BinaryIO, num_bytes: int) -> bytes:
    """Read so many bytes, or raise EOFError."""
    data = stream.read(num_bytes)
    if len(data) < num_bytes:
        raise EOFError
    return data


class Runner:
    """A process that runs kernels on request, see class_moments_runner.cpp."""

    def __init__(self, program: Path):
        self.program = program
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self, header: list[int], *arrays: np.ndarray) -> bytes:
        """Send a request and return the arrays of the reply."""
        process = self.process = self.process or self._start()
        request = [np.array(header, dtype=np.int64), *map(np.ascontiguousarray, arrays)]
        try:
            for array in request:
                process.stdin.write(array.tobytes())
            process.stdin.flush()
            failed, num_bytes = np.frombuffer(read(process.stdout, 16), dtype=np.int64).tolist()
            reply = read(process.stdout, num_bytes)
        except (BrokenPipeError, EOFError):
            complaints = self.stop()
            status = process.returncode
            raise AssertionError(f"the kernels ended with status {status}:\n{complaints}") from None
        assert not failed, reply.decode()
        return reply

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [self.program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"TSAN_OPTIONS": "halt_on_error=1"},
        )

    def stop(self) -> str:
        """End the process and return what it complained about."""
        if self.process is None:
            return ""
        _, complaints = self.process.communicate()
        self.process = None
        return complaints.decode(errors="replace")


@pytest.fixture(scope="session")
def kernel_runner(simt_build: Callable[[str], Path]) -> Iterator[Callable[[str], Runner]]:
    """Return the runner of kernels built as "plain", "address" or "thread"."""
    runners: dict[str, Runner] = {}

    def find(kind: str) -> Runner:
        if kind not in runners:
            runners[kind] = Runner(simt_build(kind) / "class_moments_runner")
        return runners[kind]

    yield find
    for kind, runner in runners.items():
        complaints = runner.stop()
        assert not complaints, f"{kind}: {complaints}"
