"""Where the CUDA core notes a label out of range."""

from __future__ import annotations

import torch
from torch import Tensor


def new_bad_label(device: torch.device) -> Tensor:
    """Make the tensor in which the CUDA core notes a label out of range.

    Its row, itself, and 1 once both are there; -1 until then.
    """
    return torch.full((3,), -1, dtype=torch.int64, device=device)


def has_bad_label(bad_label: Tensor) -> Tensor:
    """Whether a label out of range has been noted, () bool on the device: nothing is waited for."""
    return bad_label[0] >= 0


def read_bad_label(bad_label: Tensor) -> tuple[int, int] | None:
    """Row and value of the label noted, None where there is none; waits for the device."""
    row, label, _ = bad_label.tolist()
    return None if row < 0 else (row, label)
