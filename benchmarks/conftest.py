"""`pytest benchmarks --quick`: small shapes, every case once, for correctness only."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Processes that measure memory import this package by its name, from the path they inherit.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --quick."""
    parser.addoption(
        "--quick",
        action="store_true",
        help="cut every shape to about 4 MB and run every case once, for correctness only",
    )


@pytest.hookimpl(tryfirst=True)  # before pytest-benchmark reads its own options
def pytest_configure(config: pytest.Config) -> None:
    """Let --quick imply --benchmark-disable."""
    if config.getoption("--quick"):
        config.option.benchmark_disable = True


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    """Whether --quick was given."""
    return bool(request.config.getoption("--quick"))
