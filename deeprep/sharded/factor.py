"""A triangular factor of rows that are spread over processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deeprep.base.ranks import Ranks
from deeprep.base.torchrun import together

_TAG = 0x6E6331  # of the messages


def factor_of_all(
    rows: Tensor, sizes: Sequence[int], ranks: Ranks, place: torch.device
) -> Tensor | None:
    """Return on rank 0 a factor R (., d) of the rows of all ranks, R'R = sum of rows' rows.

    Parameters
    ----------
    rows
        (n, d) of this rank, n = sizes[rank].
    place
        The device that messages must be on.

    Raises
    ------
    OtherRankError
        Where another process fails to compute its part.
    """
    width = rows.shape[1]
    factor = together(ranks, lambda: _factor(rows))
    failure: Exception | None = None
    with ranks.messages(_TAG) as post:
        if ranks.rank > 0:
            post([(0, factor.to(place).contiguous())], []).wait()
        for rank in range(1, ranks.size if ranks.rank == 0 else 0):
            shape = (min(sizes[rank], width), width)
            theirs = torch.empty(shape, dtype=torch.float64, device=place)
            post([], [(rank, theirs)]).wait()
            try:
                if failure is None:
                    factor = _factor(torch.cat([factor, theirs.to(factor.device)]))
            except Exception as error:  # the others are told when they have sent theirs
                failure = error

    def whole() -> Tensor | None:
        if failure is not None:
            raise failure
        return factor if ranks.rank == 0 else None

    return together(ranks, whole)


def _factor(rows: Tensor) -> Tensor:
    """Return rows (n, d), or a triangular factor of them where that is smaller."""
    return torch.linalg.qr(rows, mode="r").R if rows.shape[0] > rows.shape[1] else rows
