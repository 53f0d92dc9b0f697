"""Moments: what the core updates, three tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """counts (K,) int64, means (K, d) float64, sumsq (K,) float64: what the core updates."""

    counts: Tensor
    means: Tensor
    sumsq: Tensor

    @classmethod
    def zeros(
        cls, num_classes: int, num_features: int, device: torch.device | str | None
    ) -> Moments:
        """Moments of no samples."""
        return cls(
            torch.zeros(num_classes, dtype=torch.int64, device=device),
            torch.zeros((num_classes, num_features), dtype=torch.float64, device=device),
            torch.zeros(num_classes, dtype=torch.float64, device=device),
        )

    def rows(self, begin: int, end: int) -> Moments:
        """Return the classes [begin, end), as views."""
        return Moments(*(tensor[begin:end] for tensor in self))
