"""Settings and input generators shared by the tests."""

from __future__ import annotations

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
    """Restore the number of threads and the instruction set after a test that changes them."""
    from deeprep import _core

    threads, level = torch.get_num_threads(), _core.simd_level()
    yield
    torch.set_num_threads(threads)
    _core.set_simd_level(level)
