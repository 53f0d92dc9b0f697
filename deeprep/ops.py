"""The core as torch operators: `torch.ops.deeprep.class_moments_`.

Registered through `torch.library.Library.define`/`impl` (a few microseconds a call, where the
`custom_op` decorator costs over twenty), with a fake kernel, so it can be traced by torch.compile.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from deeprep import _validate

try:
    from deeprep import _core
except ImportError as error:  # a source tree that was never built
    raise ImportError(
        "deeprep's compiled core is missing or does not load; build it with `pip install .` (or "
        f"`pip install -e .` to work on it) in the source tree ({error})"
    ) from error

if _forced_level := os.environ.get("DEEPREP_SIMD"):
    _core.set_simd_level(_forced_level)

_FEATURE_TYPES = {
    torch.float32: _core.FeatureType.float32,
    torch.float64: _core.FeatureType.float64,
    torch.float16: _core.FeatureType.float16,
    torch.bfloat16: _core.FeatureType.bfloat16,
}
_LABEL_TYPES = {torch.int32: _core.LabelType.int32, torch.int64: _core.LabelType.int64}

_library = torch.library.Library("deeprep", "DEF")
_library.define(
    "class_moments_(Tensor features, Tensor labels, Tensor(a!) counts, Tensor(b!) means, "
    "Tensor(c!) sumsq, int ignore_index=-100) -> ()"
)


def class_moments_(
    features: Tensor,
    labels: Tensor,
    counts: Tensor,
    means: Tensor,
    sumsq: Tensor,
    ignore_index: int = -100,
) -> None:
    """Merge a batch's class moments into a running state, in place, reading the features once.

    With n_k, mu_k, s_k of all rows seen so far, ``counts[k] = n_k``, ``means[k] = mu_k`` and
    ``sumsq[k] = sum_i |z_ki - mu_k|^2``. Relative error of ``sumsq`` at most 1e-5 on any float32
    data and about 1e-7 in practice; the same bits for any number of threads
    (`torch.set_num_threads`) and any instruction set.

    Parameters
    ----------
    features : (N, d) float64/32/16 or bfloat16, any strides.
    labels : (N,) int32/int64 in [0, K), or `ignore_index` for rows to skip.
    counts, means, sumsq : (K,) int64, (K, d) float64, (K,) float64; zeros to begin with.

    Raises
    ------
    ValueError, TypeError
        On shapes, dtypes, devices that do not fit and on a label out of range; the state is
        untouched.

    Notes
    -----
    Pivoted chunks merged by Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for
    computing sample variances" (1979); see csrc/moments.h.

    Examples
    --------
    >>> import torch, deeprep
    >>> counts = torch.zeros(2, dtype=torch.int64)
    >>> means, sumsq = torch.zeros(2, 1, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    >>> features = torch.tensor([[1.0], [3.0], [5.0]])
    >>> deeprep.ops.class_moments_(features, torch.tensor([0, 0, 1]), counts, means, sumsq)
    >>> counts.tolist(), means.flatten().tolist(), sumsq.tolist()
    ([2, 1], [2.0, 5.0], [2.0, 0.0])
    """
    torch.ops.deeprep.class_moments_(features, labels, counts, means, sumsq, ignore_index)


def _class_moments_cpu(
    features: Tensor,
    labels: Tensor,
    counts: Tensor,
    means: Tensor,
    sumsq: Tensor,
    ignore_index: int = -100,
) -> None:
    _validate.check_batch(features, labels)
    _validate.check_state(features, counts, means, sumsq)
    _call_core(features, labels, counts, means, sumsq, ignore_index)


def merge_batch(
    features: Tensor,
    labels: Tensor,
    counts: Tensor,
    means: Tensor,
    sumsq: Tensor,
    ignore_index: int = -100,
) -> None:
    """`class_moments_` on the CPU without torch's dispatcher, for a state known to be valid.

    A training loop updates once a batch: the dispatcher and the checks of the state would cost more
    than the features of a small one.
    """
    _validate.check_batch(features, labels)
    _call_core(features, labels, counts, means, sumsq, ignore_index)


def _call_core(
    features: Tensor,
    labels: Tensor,
    counts: Tensor,
    means: Tensor,
    sumsq: Tensor,
    ignore_index: int,
) -> None:
    labels = labels.contiguous()
    _core.class_moments(
        *_address(features),
        labels.data_ptr(),
        _LABEL_TYPES[labels.dtype],
        ignore_index,
        counts.data_ptr(),
        means.data_ptr(),
        sumsq.data_ptr(),
        counts.shape[0],
        torch.get_num_threads(),
    )


def _address(features: Tensor) -> tuple[int, _core.FeatureType, int, int, int, int]:
    """Address, element type, N, d and the strides of features (N, d), as the core takes them."""
    return (
        features.data_ptr(),
        _FEATURE_TYPES[features.dtype],
        *features.shape,
        *features.stride(),
    )


def shift_rows(
    features: Tensor, labels: Tensor, pivots: Tensor, out: Tensor, ignore_index: int
) -> None:
    """Fill out (N, d) with features[i] - pivots[labels[i]], or 0 where labels[i] is ignored.

    Parameters
    ----------
    features, labels : as for `class_moments_`, which has checked them; on the CPU.
    pivots, out : (K, d) and (N, d), contiguous, float32, or float64 for float64 features.
    """
    labels = labels.contiguous()
    _core.shift_rows(
        *_address(features),
        labels.data_ptr(),
        _LABEL_TYPES[labels.dtype],
        ignore_index,
        pivots.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )


def _class_moments_cuda(features: Tensor, *state: Any) -> None:
    raise NotImplementedError(
        f"features is on {features.device}, expected a CPU tensor: this build of deeprep holds the "
        "CPU core only (deeprep.show_config()); pass features.cpu() and labels.cpu()"
    )


def _class_moments_fake(
    features: Tensor,
    labels: Tensor,
    counts: Tensor,
    means: Tensor,
    sumsq: Tensor,
    ignore_index: int = -100,
) -> None:
    _validate.check_batch(features, labels)
    _validate.check_state(features, counts, means, sumsq)


_library.impl("class_moments_", _class_moments_cpu, "CPU")
_library.impl("class_moments_", _class_moments_cuda, "CUDA")
torch.library.register_fake("deeprep::class_moments_", _class_moments_fake, lib=_library)


def build_info() -> dict[str, Any]:
    """Say what was built and what is in use: versions, compiler, instruction set, CUDA, threads.

    Examples
    --------
    >>> import deeprep
    >>> sorted(deeprep.build_info())
    ['compiler', 'cuda', 'deeprep', 'num_threads', 'simd', 'simd_available', 'torch']
    """
    from importlib.metadata import version

    return {
        "deeprep": version("deeprep"),
        "torch": torch.__version__,
        "compiler": _core.compiler,
        "simd": _core.simd_level(),
        "simd_available": _core.available_simd_levels(),
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
