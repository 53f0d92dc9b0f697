"""The files of a data set summed up in parts, by one process or by all of a group.

Each process checks a share of the labels, sums up its share of the parts that no earlier call has
left, and sends what it has to those who have the other halves, until one has the whole, which then
all get.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from deeprep.base.ranks import Ranks
from deeprep.base.torchrun import Alarm, together
from deeprep.base.warn import warn
from deeprep.files.arrays import Block
from deeprep.files.labelled import LabelledFiles, LabelRange
from deeprep.files.parts import (
    Finished,
    Stretch,
    cut,
    fingerprint,
    halves,
    joined_states,
    outermost,
    shares,
)
from deeprep.state import ClassScatter
from deeprep.state.transfer import broadcast_state, receive_state, send_state

__all__ = ["scatter_in_parts"]

Progress = Callable[[int, int], None]


def scatter_in_parts(
    open_files: Callable[[], LabelledFiles],
    num_classes: int | None,
    empty_state: Callable[[int, int], ClassScatter],
    *,
    batch_bytes: int,
    directory: Path | None,
    ranks: Ranks | None,
    progress: Progress | None,
) -> ClassScatter:
    """Return the state of all samples, to all processes.

    Parameters
    ----------
    open_files
        Opens features and labels.
    num_classes
        K; None to infer it.
    empty_state
        Makes a state of (K, d).
    batch_bytes
        The setting, which the bits of a state follow from.
    directory
        Where states of parts are kept; None for in memory.
    ranks
        The processes; None for this one alone.
    progress
        Called with rows done and rows to do, of this process.

    Raises
    ------
    ValueError
        Where the group cannot move tensors on the CPU.
    OtherRankError
        Where another process has failed.
    """
    rank, size = (0, 1) if ranks is None else (ranks.rank, ranks.size)
    if ranks is not None:
        ranks.transport("cpu")  # of the states: refused here rather than when all is read

    def check() -> tuple[LabelledFiles, LabelRange]:
        files = open_files()
        rows = files.labels.num_rows
        return files, files.label_range(rows * rank // size, rows * (rank + 1) // size)

    files, found = together(ranks, check)
    everywhere = [found]
    if ranks is not None:
        gathered = ranks.gather((found, _described(files)))
        everywhere = [each for each, _ in gathered]
        _require_alike([described for _, described in gathered])
    whole = LabelRange(min(each.low for each in everywhere), max(each.high for each in everywhere))
    classes = together(ranks, lambda: files.checked_num_classes(num_classes, whole))
    width = files.features.num_columns

    def start() -> tuple[list[Block], Finished, dict[str, int | bool]]:
        state = empty_state(classes, width)
        settings = {
            **{"num_classes": classes, "full": state.full, "batch_bytes": batch_bytes},
            "ignore_index": state.ignore_index,
        }
        state_bytes = 8 * (classes * width + (width * width if state.full else 0))
        parts = cut(files.features, state_bytes)
        key = fingerprint(files.arrays, parts, settings)
        return parts, Finished(len(parts), directory, key), settings

    parts, finished, settings = together(ranks, start)
    if ranks is not None:
        # Parquet files of as many rows may have other groups of rows, and so be cut elsewhere.
        _require_alike(ranks.gather({**settings, "part": parts}))
    if finished.has_others and rank == 0:
        warn(
            f"{directory} holds states of other files or settings, which are "
            "left alone: files that have changed, another batch_bytes, K, full or ignore_index"
        )
    alarm = None if ranks is None else Alarm(ranks)
    owners = _settle_owners(finished, ranks)
    owners = _without_damaged(finished, owners, ranks, (classes, width, bool(settings["full"])))
    covered = {part for first, stop in owners for part in range(first, stop)}
    missing = [part for part in range(len(parts)) if part not in covered]
    mine = shares(parts, missing, size)[rank]
    reading = _Reading(files, parts, lambda: empty_state(classes, width), finished, alarm, progress)
    together(ranks, lambda: reading.run(mine))
    owners = _owners(finished, ranks)
    state = _whole(finished, owners, ranks, lambda: empty_state(classes, width))
    if ranks is not None:
        broadcast_state(state, ranks, owners[min(owners)])
    return state


def _described(files: LabelledFiles) -> dict[str, Any]:
    """What all processes must find; not when files were written, which differs between disks."""
    described: dict[str, Any] = {}
    for name, array in zip(("features", "labels"), files.arrays, strict=True):
        described[f"number of rows of {name}"] = array.num_rows
        described[f"number of columns of {name}"] = array.num_columns
        described[f"dtype of {name}"] = str(array.dtype).removeprefix("torch.")
        described[f"number of files of {name}"] = len(array.shards)
        described[f"number of rows of {name} in file"] = [s.shape[0] for s in array.shards]
    return described


def _require_alike(everywhere: list[dict[str, Any]]) -> None:
    """Raise, in all processes, where one has found something else than the first."""
    for rank, described in enumerate(everywhere):
        for what, expected in everywhere[0].items():
            found = described[what]
            if found == expected:
                continue
            if isinstance(expected, list):
                pairs = list(zip(found, expected, strict=False))
                differing = [i for i, (one, other) in enumerate(pairs) if one != other]
                if differing:
                    what, (found, expected) = f"{what} {differing[0]}", pairs[differing[0]]
                else:
                    what, found, expected = f"number of {what}s", len(found), len(expected)
            raise ValueError(f"{what} is {found} on rank {rank}, expected {expected} as on rank 0")


class _Stopped(Exception):  # noqa: N818 - no error of this process
    """Another process has failed."""


class _Reading:
    """The parts that this process sums up."""

    def __init__(
        self,
        files: LabelledFiles,
        parts: list[Block],
        empty_state: Callable[[], ClassScatter],
        finished: Finished,
        alarm: Alarm | None,
        progress: Progress | None,
    ) -> None:
        self._files, self._parts = files, parts
        self._empty_state, self._finished = empty_state, finished
        self._alarm, self._progress = alarm, progress
        self._done = self._total = 0

    def run(self, mine: list[int]) -> None:
        """Sum up parts, and end early, without an error, where another process has failed."""
        self._total = sum(self._parts[part][1] - self._parts[part][0] for part in mine)
        try:
            for part in mine:
                state = self._empty_state()
                self._files.take_in(state, *self._parts[part], self._after_batch)
                self._finished.add((part, part + 1), state)
        except _Stopped:
            return
        except BaseException:
            if self._alarm is not None:
                self._alarm.ring()
            raise

    def _after_batch(self, rows: int) -> None:
        self._done += rows
        if self._progress is not None:
            self._progress(self._done, self._total)
        if self._alarm is not None and self._alarm.rings():
            raise _Stopped


def _settle_owners(finished: Finished, ranks: Ranks | None) -> dict[Stretch, int]:
    """Agree on who has which state that an earlier call has left; others leave it alone.

    Several have found it where they share a disk.
    """
    owners = _owners(finished, ranks)
    kept = outermost(owners)
    rank = 0 if ranks is None else ranks.rank
    finished.leave([each for each in finished.stretches if each not in kept])
    finished.leave([each for each in kept if owners[each] != rank])
    return {each: owners[each] for each in kept}


def _without_damaged(
    finished: Finished,
    owners: dict[Stretch, int],
    ranks: Ranks | None,
    kind: tuple[int, int, bool],
) -> dict[Stretch, int]:
    """Take states that cannot be read for missing, before hours of reading; the first one warns."""
    damaged = together(ranks, lambda: finished.leave_damaged(*kind))
    everywhere = [damaged] if ranks is None else ranks.gather(damaged)
    damaged = {stretch: error for each in everywhere for stretch, error in each.items()}
    if ranks is None or ranks.rank == 0:
        for error in damaged.values():
            warn(f"{error}; its part of the files is read again")
    return {stretch: owner for stretch, owner in owners.items() if stretch not in damaged}


def _owners(finished: Finished, ranks: Ranks | None) -> dict[Stretch, int]:
    """Return of each stretch the lowest process that has its state."""
    everywhere = [finished.stretches] if ranks is None else ranks.gather(finished.stretches)
    owners: dict[Stretch, int] = {}
    for rank, stretches in enumerate(everywhere):
        for stretch in stretches:
            owners.setdefault(stretch, rank)
    return owners


def _whole(
    finished: Finished,
    owners: dict[Stretch, int],
    ranks: Ranks | None,
    empty_state: Callable[[], ClassScatter],
) -> ClassScatter:
    """Merge all states there are; return the whole where its owner is this process, else any state.

    `owners` ends with the whole alone. What is merged here is not written any more. Where one
    fails, it goes on with states that are worth nothing, so that nobody waits for its messages, and
    all raise at the end.
    """
    rank = 0 if ranks is None else ranks.rank
    num_parts = finished.num_parts
    merged: dict[Stretch, ClassScatter] = {}

    errors: list[Exception] = []

    def own(stretch: Stretch) -> ClassScatter:
        try:
            return merged.pop(stretch) if stretch in merged else finished.state(stretch)
        except Exception as error:
            errors.append(error)
            return empty_state()

    def joined(left: ClassScatter, right: ClassScatter) -> ClassScatter:
        try:
            return joined_states(left, right, is_left=True)
        except Exception as error:
            errors.append(error)
            return empty_state()

    def check() -> None:
        if errors:
            raise errors[0]

    while (0, num_parts) not in owners:
        pairs = {halves(stretch, num_parts) for stretch in owners}
        ready = [(left, right) for left, right in pairs if left in owners and right in owners]
        if not ready:
            raise RuntimeError(f"parts are {sorted(owners)}, expected all of {num_parts}")
        # Pairs of processes 0 and 1, 2 and 3, ... at the same time, then 1 and 2, ...
        for left, right in sorted(ready, key=lambda pair: (owners[pair[0]] % 2, pair)):
            into, source = owners.pop(left), owners.pop(right)
            whole = (left[0], right[1])
            if rank == into and rank == source:
                merged[whole] = joined(own(left), own(right))
            elif ranks is not None and rank == source:
                send_state(own(right), ranks, into)
            elif ranks is not None and rank == into:
                received = empty_state()
                receive_state(received, ranks, source)
                merged[whole] = joined(own(left), received)
            owners[whole] = into
    state = own((0, num_parts)) if rank == owners[0, num_parts] else empty_state()
    together(ranks, check)
    return state
