"""The processes of a torch.distributed group, and errors that say which of them are missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import distributed, nn


class RankLostError(RuntimeError):
    """A process of the group did not join a collective operation, or died during it."""


class Ranks(NamedTuple):
    """The processes of a group, seen from one of them.

    Attributes
    ----------
    call
        What they do together, for errors.
    group
        The torch.distributed group; None for all processes.
    rank, size
        The number of this process among them, and how many they are.
    """

    call: str
    group: Any
    rank: int
    size: int

    @classmethod
    def of(cls, group: Any, call: str) -> Ranks:
        """Return the ranks of a group that this process must be in."""
        rank = distributed.get_rank(group)
        if rank < 0:
            process = distributed.get_rank()
            raise ValueError(f"group is without process {process}, expected one it is a member of")
        return cls(call, group, rank, distributed.get_world_size(group))

    def share(self, rank: int, num_classes: int) -> tuple[int, int]:
        """Return the classes [begin, end) that are a rank's share."""
        return num_classes * rank // self.size, num_classes * (rank + 1) // self.size

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Name the call in torch's error of a collective operation that lost a process."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # gloo has no class of its own for a lost connection
            raise RankLostError(
                f"{self.call}: a process of the group of {self.size} did not come or was lost, "
                f"seen from rank {self.rank} ({error})"
            ) from error

    def gather(self, value: Any) -> list[Any]:
        """Return the values (small, picklable) of all ranks, to all of them.

        On rank 0, gloo names those that are missing, within the timeout of the group.
        """
        values: list[Any] = [None] * self.size
        with self.watch():
            timeout = _gloo_timeout(self.group)
            if timeout is not None:
                # Without a timeout of its own it would wait for half an hour.
                distributed.monitored_barrier(self.group, timeout, wait_all_ranks=True)
            distributed.all_gather_object(values, value, self.group)
        return values

    def maximum(self, value: int) -> int:
        """Return the largest of the values of all ranks."""
        largest = torch.tensor(value, device=self._any_device())
        with self.watch():
            distributed.all_reduce(largest, distributed.ReduceOp.MAX, self.group)
        return int(largest)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums, in float64, of each value over all ranks."""
        sums = torch.tensor(values, dtype=torch.float64, device=self._any_device())
        with self.watch():
            distributed.all_reduce(sums, group=self.group)
        totals: list[float] = sums.tolist()
        return totals

    def share_buffers(self, model: nn.Module) -> None:
        """Give the buffers of a model (BatchNorm's statistics) the values of rank 0."""
        for buffer in model.buffers():
            with self.watch():
                distributed.broadcast(buffer, group=self.group, group_src=0)

    def _any_device(self) -> str:
        return "cpu" if "cpu" in self._backends() else "cuda"

    def _backends(self) -> dict[str, str]:
        """Return what moves the tensors of each type of device: {"cpu": "gloo"}."""
        config = distributed.get_backend_config(self.group)
        return dict(entry.split(":") for entry in config.split(","))

    def transport(self, device_type: str) -> torch.device:
        """Return the device that such tensors must be on for the group to move them."""
        backends = self._backends()
        if device_type not in backends:
            raise ValueError(
                f"a state is on {device_type}, expected {' or '.join(backends)}, which is what "
                "the backend of the group can move"
            )
        # gloo moves only some tensors of some accelerators itself, but all of them over the host.
        return torch.device("cpu" if backends[device_type] == "gloo" else device_type)


def _gloo_timeout(group: Any) -> timedelta | None:
    """Return the timeout of a gloo group; None for other groups."""
    if "gloo" not in distributed.get_backend(group):
        return None
    group = distributed.group.WORLD if group is None else group
    try:
        timeout: timedelta = group._get_backend(torch.device("cpu")).options._timeout
    except (AttributeError, RuntimeError):  # not a public interface: another torch may lack it
        return None
    return timeout
