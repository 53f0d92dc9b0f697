"""Builds of the host executor and of the kernels in it, plain and one per sanitizer; and the CUDA
entry points of the core replaced by those of `_simt`, which run the kernels on the host.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pybind11
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deeprep import _core, ops
from deeprep.state import streaming

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


@pytest.fixture
def planted_runner(
    simt_build: Callable[[str], Path], tmp_path: Path
) -> Iterator[Callable[[str, str, str, int, str], Runner]]:
    """Return the runner of kernels with a mistake: `wrong` where `header` says `right`."""
    started: list[Runner] = []

    def build(kind: str, header: str, right: str, nth: int, wrong: str) -> Runner:
        folder = simt_build(kind)
        parts = (ROOT / "csrc" / header).read_text().split(right)
        assert len(parts) > nth + 1, f"{header} does not say {right} so often"
        planted = tmp_path / header
        planted.parent.mkdir(parents=True, exist_ok=True)
        planted.write_text(right.join(parts[: nth + 1]) + wrong + right.join(parts[nth + 1 :]))
        cache = (folder.parents[1] / "CMakeCache.txt").read_text()
        compiler = re.search("^CMAKE_CXX_COMPILER:.*?=(.*)$", cache, re.MULTILINE)
        assert compiler is not None
        run(
            *(compiler[1], "-std=c++17", "-O0", "-g", "-w", "-ffp-contract=off"),
            *([] if kind == "plain" else [f"-fsanitize={kind}"]),
            *(f"-I{folder}" for folder in (tmp_path, ROOT / "csrc", ROOT / "tests/simt")),
            *(ROOT / "tests/simt/class_moments_runner.cpp", folder / "libsimt_executor.a"),
            *("-o", tmp_path / "runner"),
        )
        started.append(Runner(tmp_path / "runner"))
        return started[-1]

    yield build
    for runner in started:
        runner.stop()


class Kernels:
    """The module `_simt`; it cannot see labels that are no row of the pivots, so this looks."""

    def __init__(self, folder):
        (path,) = folder.glob("_simt*")
        spec = importlib.util.spec_from_file_location("_simt", path)
        self.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self.num_classes = 0

    def __getattr__(self, name):
        return getattr(self.module, name)

    def class_moments_cuda(self, *arguments):
        self.num_classes = arguments[12]
        self.module.class_moments_cuda(*arguments)

    def shift_rows_cuda(self, *arguments):
        num_rows, labels, label_type, ignore_index = arguments[2], *arguments[6:9]
        c_type = ctypes.c_int32 if label_type == _core.LabelType.int32 else ctypes.c_int64
        used = np.array((c_type * num_rows).from_address(labels))
        used = used[used != ignore_index]
        assert ((used >= 0) & (used < self.num_classes)).all(), "a label that is no row of pivots"
        self.module.shift_rows_cuda(*arguments)


@pytest.fixture(scope="session")
def kernels(simt_build):
    return Kernels(simt_build("plain"))


@pytest.fixture
def on_host(monkeypatch, kernels):
    """Make host tensors the device's, but for those that the returned function is given."""
    for name in (
        *("class_moments_cuda_scratch", "class_moments_cuda"),
        *("shift_rows_cuda", "squared_distances_cuda"),
    ):
        monkeypatch.setattr(_core, name, getattr(kernels, name), raising=False)
    monkeypatch.setattr(_core, "cuda", "on the host")
    kernels.set_schedule(0, 64, 5)
    kept = []

    def is_kept(tensor):
        return any(tensor.untyped_storage()._cdata == t._cdata for t in kept)

    for module in (ops, ops.core):
        monkeypatch.setattr(module, "on_host", is_kept)
    monkeypatch.setattr(streaming, "_feeds", {})
    monkeypatch.setattr(
        streaming, "_pinned_bytes", lambda size: torch.empty(size, dtype=torch.uint8)
    )

    def keep(*tensors):
        kept.extend(tensor.untyped_storage() for tensor in tensors)
        return tensors

    return keep


class WaitedError(AssertionError):
    """The device was waited for."""


class NeverWait(TorchDispatchMode):
    """Refuses the operators whose result the host must wait for."""

    NAMES = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"})

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        by_mask = name == "index" and any(
            index is not None and index.dtype == torch.bool for index in arguments[1]
        )
        if name in self.NAMES or by_mask:
            raise WaitedError(name)
        return function(*arguments, **(keywords or {}))


@pytest.fixture
def never_wait():
    """A context in which whatever would wait for a device raises."""

    def refuse(*arguments, **keywords):
        raise WaitedError

    class Context(NeverWait):
        error = WaitedError

        def __enter__(self):
            self.patch = pytest.MonkeyPatch()
            for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__"):
                self.patch.setattr(torch.Tensor, name, refuse)
            self.patch.setattr(torch.cuda, "synchronize", refuse)
            self.patch.setattr(torch.cpu.Event, "synchronize", refuse)
            return super().__enter__()

        def __exit__(self, *exception):
            self.patch.undo()
            return super().__exit__(*exception)

    return Context
