"""What was built, and what is in use."""

from __future__ import annotations

from typing import Any

import torch

from deeprep.ops.core import _core


def build_info() -> dict[str, Any]:
    """Say what was built and what is in use: versions, compiler, instruction set, CUDA, threads.

    Examples
    --------
    >>> import deeprep
    >>> sorted(deeprep.build_info())
    ['compiler', 'cuda', 'deeprep', 'num_threads', 'row_order', 'simd', 'simd_available', 'torch']
    """
    from importlib.metadata import version

    return {
        "deeprep": version("deeprep"),
        "torch": torch.__version__,
        "compiler": _core.compiler,
        "simd": _core.simd_level(),
        "simd_available": _core.available_simd_levels(),
        "row_order": _core.row_order(),
        "cuda": _core.cuda,
        "num_threads": torch.get_num_threads(),
    }


def show_config() -> None:
    """Print `build_info`, a line each.

    Examples
    --------
    >>> import deeprep
    >>> deeprep.show_config()
    deeprep         0...
    """
    for key, value in build_info().items():
        text = ", ".join(value) if isinstance(value, list) else value
        print(f"{key:<15} {text}")
