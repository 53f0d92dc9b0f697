"""Builds of the host executor and of the kernels in it: plain, and one per sanitizer."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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
            "-DDEEPREP_BUILD_MODULE=OFF",
            "-DDEEPREP_BUILD_SIMT=ON",
            f"-DDEEPREP_WERROR={os.environ.get('DEEPREP_WERROR', 'OFF')}",
        )
        run(tool("cmake"), "--build", folder, "--target", "tests/simt/all")
        return folder / "tests" / "simt"

    return build
