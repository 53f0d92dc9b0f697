"""What a state of many classes takes, in memory and on the network, before any of it is there."""

from __future__ import annotations

from typing import NamedTuple

from deeprep.base.validate import check_num_classes, check_positive, require
from deeprep.state.exchange import message_bytes

__all__ = ["Plan", "plan"]


class Plan(NamedTuple):
    """Bytes that one of R processes holds and sends, for K classes of d features.

    Peaks are what is known in advance; some 20 MiB of temporaries come on top.

    A state has a mean, a count and a sum of squares of each class, 8 d + 16 bytes; and, where it is
    full, S of 8 d^2 bytes.

    Attributes
    ----------
    num_classes, num_features, num_processes, full
        K, d, R, and whether S, (d, d) float64, is there too: the terms in brackets.
    state_bytes
        The state in which a process takes in its batches: ``K (8 d + 16) + [8 d^2]``.
    share_bytes
        What `reduce_scatter` leaves with a process: ``ceil(K / R) (8 d + 16) + [8 d^2]``. S has no
        shares, every process has all of it.
    message_bytes
        Rows of other processes that are waiting to be merged, at most:
        ``2 max(2^23, (R - 1) (8 d + 16))``, and not more than the share itself of R - 1 processes,
        ``(R - 1) ceil(K / R) (8 d + 16)``.
    all_reduce_peak
        The most that is held during `all_reduce`: ``state_bytes + message_bytes``, and with S
        ``min(16 d^2, 2^26)`` for a piece of it.
    reduce_scatter_peak
        The most during `reduce_scatter`: `all_reduce_peak` and ``share_bytes``.
    all_reduce_sent
        Sent by a process, and received: ``2 (R - 1) / R state_bytes``. A bare all_reduce of as many
        bytes sends the same.
    reduce_scatter_sent
        The same of `reduce_scatter`: ``(R - 1) / R (K (8 d + 16) + [16 d^2])``.
    multiplications
        Of a process, for what the distances of the means add to S in either reduction:
        ``[(R - 1) ceil(K / R) d^2 / 2]``. With S, they can take longer than the network does.
    """

    num_classes: int
    num_features: int
    num_processes: int
    full: bool
    state_bytes: int
    share_bytes: int
    message_bytes: int
    all_reduce_peak: int
    reduce_scatter_peak: int
    all_reduce_sent: int
    reduce_scatter_sent: int
    multiplications: int


def plan(num_classes: int, num_features: int, num_processes: int, full: bool = False) -> Plan:
    """Say what states of these sizes take on each process; nothing is allocated.

    Bytes over the measured rate of a network are the seconds that a reduction takes at least:
    `benchmarks.process_scaling --dry-run` measures one and compares.

    Parameters
    ----------
    num_classes, num_features
        K and d.
    num_processes
        R, at least 1 and at most K.
    full
        Whether the pooled (d, d) scatter is accumulated too.

    Raises
    ------
    ValueError, TypeError
        For numbers that no sharded state has.

    Examples
    --------
    >>> from deeprep.sharded import plan
    >>> found = plan(100_000, 4096, 4)
    >>> round(found.state_bytes / 1e9, 2), round(found.share_bytes / 1e9, 2)
    (3.28, 0.82)
    >>> round(found.reduce_scatter_sent / 1e9, 2), round(found.reduce_scatter_peak / 1e9, 2)
    (2.46, 4.11)
    """
    classes = check_num_classes(num_classes)
    width = check_positive("num_features", num_features)
    size = check_positive("num_processes", num_processes)
    require("num_processes", size, size <= classes, f"at most {classes}, one class for each")
    row = 8 * width + 16
    square = 8 * width * width if full else 0
    share = -(-classes // size) * row
    state = classes * row + square
    messages = message_bytes(classes, width, size)
    reducing = state + messages + min(2 * square, 1 << 26)
    return Plan(
        classes,
        width,
        size,
        bool(full),
        state_bytes=state,
        share_bytes=share + square,
        message_bytes=messages,
        all_reduce_peak=reducing,
        reduce_scatter_peak=reducing + share + square,
        all_reduce_sent=2 * state * (size - 1) // size,
        reduce_scatter_sent=(classes * row + 2 * square) * (size - 1) // size,
        multiplications=(size - 1) * -(-classes // size) * square // 16,
    )
