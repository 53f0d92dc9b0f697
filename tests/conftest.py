"""Settings and input generators shared by the tests."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch

try:
    import hypothesis
except ImportError:  # `make gpu-check` makes do with what a machine without a network has
    pass
else:
    hypothesis.settings.register_profile(
        "deeprep", deadline=None, max_examples=60, derandomize=True
    )
    hypothesis.settings.load_profile("deeprep")


@pytest.fixture(autouse=True)
def _same_randomness() -> None:
    torch.manual_seed(0)


@pytest.fixture
def restore_threads():
    """Restore the number of threads and the core's settings after a test that changes them."""
    from deeprep import _core

    threads, level, order = torch.get_num_threads(), _core.simd_level(), _core.row_order()
    yield
    torch.set_num_threads(threads)
    _core.set_simd_level(level)
    _core.set_row_order(order)


@pytest.fixture
def run_ranks(monkeypatch, tmp_path):
    """Run a function of (rank, size, store, results, ...) of a test module in `size` processes.

    The call returns their exit codes and the queue `results`. Processes are forked off one that has
    imported everything, which takes longer than most tests.
    """
    # Where the processes find the module: as tests.<its name>.
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deeprep.run", "pytest", "torch._dynamo"])

    def run(function, size, *arguments):
        results = context.Queue()
        processes = [
            context.Process(
                target=function, args=(rank, size, tmp_path / "store", results, *arguments)
            )
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(600)  # on a machine with much else to do a minute was too short
        return [process.exitcode for process in processes], results

    return run
