"""The processes of a torch.distributed group, and errors that say which of them are missing."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, distributed, nn

# Of the messages of `Ranks.consult`, so that those of other code are not taken for them.
_CONSULT_TAG = 0x64656570
# Numbers of such a message that are sent before its length is known, 64 KiB: ten classes of 768
# features, at no more than twice the time of the shortest message.
_FIRST_ENTRIES = 1 << 13
# The first of these: the length of the message, and the tag of its rest.
_HEAD = 2


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
        return share_of(num_classes, rank, self.size)

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
        self._meet()
        with self.watch():
            distributed.all_gather_object(values, value, self.group)
        return values

    def _meet(self) -> None:
        """Wait for all of gloo's ranks; where some are missing, rank 0's error names them."""
        timeout = _gloo_timeout(self.group)
        if timeout is not None:
            with self.watch():
                # Without a timeout of its own it would wait for half an hour.
                distributed.monitored_barrier(self.group, timeout, wait_all_ranks=True)

    def consult(
        self,
        message: Tensor,
        answer: Callable[[list[Tensor]], Tensor],
        joined: Callable[[], None],
    ) -> Tensor:
        """Have rank 0 answer the messages of all ranks, and return the answer to all of them.

        Up to 64 KiB it takes the time of one small all_reduce: with gloo, messages lie ready when
        the ranks meet, and errors are as in `gather`. The rest of a longer message, or of a longer
        answer, is a second one, which is received when the first has told its length.

        Parameters
        ----------
        message
            (n,) float64 on the CPU, as is the answer; each rank has an n of its own.
        answer
            Called on rank 0, with the messages in the order of the ranks.
        joined
            Called when all ranks have come, as far as that is known, and nothing is answered yet.
        """
        with self.messages(_CONSULT_TAG) as post:
            others = range(1, self.size)
            if self.rank == 0:
                begun = [self._first_room() for _ in others]
                incoming = post([], list(zip(others, begun, strict=True)))
                self._meet()
                joined()
                incoming.wait()
                rooms = [_Room.of(first) for first in begun]
                rests = [
                    post([], [(rank, room.rest)], room.tag)
                    for rank, room in zip(others, rooms, strict=True)
                ]
                for rest in rests:
                    rest.wait()
                reply = answer([message, *(room.whole.cpu() for room in rooms)])
                for part in self._send(reply, others, post):
                    part.wait()
                return reply
            first = self._first_room()
            if _gloo_timeout(self.group) is not None:
                # The receive comes first: an answer that is not waited for would be taken for that
                # of the next call.
                downward = post([], [(0, first)])
                upward = self._send(message, [0], post)
            else:  # NCCL connects two ranks when they begin, and rank 0 receives before it sends
                upward = self._send(message, [0], post)
                downward = post([], [(0, first)])
            self._meet()
            joined()
            for part in upward:
                part.wait()
            downward.wait()
            room = _Room.of(first)
            post([], [(0, room.rest)], room.tag).wait()
            return room.whole.cpu()

    def _first_room(self) -> Tensor:
        """Return memory for what is first received of a message."""
        return torch.empty(_FIRST_ENTRIES, dtype=torch.float64, device=self.any_device)

    def _send(self, message: Tensor, receivers: Iterable[int], post: Post) -> list[Messages]:
        """Begin to send a message to ranks, its first part and the rest."""
        first = message.new_zeros(_FIRST_ENTRIES)
        # The rest has a tag of its own: if a receiver is interrupted before it asks for it, the
        # next call does not take it for another message.
        head = len(message), secrets.randbits(31)
        first.view(torch.int64)[:_HEAD] = torch.tensor(head)
        begin, rest = message.split_with_sizes(_cuts(len(message)))
        first[_HEAD : _HEAD + len(begin)] = begin
        sent = []
        for part, tag in ((first, _CONSULT_TAG), (rest, head[1])):
            moved = part.to(self.any_device)
            sent.append(post([(rank, moved) for rank in receivers], [], tag))
        return sent

    @contextlib.contextmanager
    def messages(self, tag: int) -> Iterator[Post]:
        """Give a function that begins to send tensors to ranks, and to receive others from them.

        ``post(outgoing, incoming)`` takes pairs (rank, contiguous tensor) of `transport`; all ranks
        call it in the same order. What is under way when the context ends, by whatever exception,
        is given up: nothing is written to tensors, or read from them, later.

        Parameters
        ----------
        tag
            The same on all ranks, and that of a call of ``post`` that names none; with gloo,
            messages of another tag are not taken for these.
        """
        posted: list[Messages] = []

        def post(outgoing: Mail, incoming: Mail, tag: int = tag) -> Messages:
            operations = [
                distributed.P2POp(operation, tensor, group=self.group, tag=tag, group_peer=rank)
                for operation, mail in (
                    (distributed.irecv, incoming),
                    (distributed.isend, outgoing),
                )
                for rank, tensor in mail
                if tensor.numel() > 0
            ]
            messages = Messages(self)
            posted.append(messages)
            if operations:
                with self.watch():
                    messages.works += distributed.batch_isend_irecv(operations)
            return messages

        try:
            yield post
        finally:
            for messages in posted:
                messages.works.clear()

    def maximum(self, value: int) -> int:
        """Return the largest of the values of all ranks."""
        largest = torch.tensor(value, device=self.any_device)
        with self.watch():
            distributed.all_reduce(largest, distributed.ReduceOp.MAX, self.group)
        return int(largest)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums, in float64, of each value over all ranks."""
        sums = torch.tensor(values, dtype=torch.float64, device=self.any_device)
        with self.watch():
            distributed.all_reduce(sums, group=self.group)
        totals: list[float] = sums.tolist()
        return totals

    def share_buffers(self, model: nn.Module) -> None:
        """Give the buffers of a model (BatchNorm's statistics) the values of rank 0."""
        for buffer in model.buffers():
            with self.watch():
                distributed.broadcast(buffer, group=self.group, group_src=0)

    @property
    def any_device(self) -> str:
        """A type of device whose tensors the group can move, the CPU where it is one."""
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


class _Room(NamedTuple):
    """Memory for a message of which the first part has come, and of it that for the rest."""

    whole: Tensor
    rest: Tensor
    tag: int  # of the rest

    @classmethod
    def of(cls, first: Tensor) -> _Room:
        """Make room for the message that `first` begins."""
        length, tag = first[:_HEAD].view(torch.int64).tolist()
        begun, awaited = _cuts(length)
        begin = first[_HEAD : _HEAD + begun]
        if not awaited:
            return cls(begin, first[:0], tag)
        whole = first.new_empty(length)
        whole[:begun] = begin
        return cls(whole, whole[begun:], tag)


def _cuts(length: int) -> list[int]:
    """Return how many numbers of a message come in its first part, and how many in the rest."""
    begin = min(length, _FIRST_ENTRIES - _HEAD)
    return [begin, length - begin]


def share_of(number: int, rank: int, size: int) -> tuple[int, int]:
    """Return which of so many things, [begin, end), are the share of one of `size` ranks.

    >>> [share_of(5, rank, 2) for rank in range(2)]
    [(0, 2), (2, 5)]
    """
    return number * rank // size, number * (rank + 1) // size


class Messages:
    """Messages under way, of one call of `Ranks.messages`' function."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self.works: list[Any] = []

    def wait(self) -> None:
        """Wait until they have been sent and received; on CUDA, let the current stream wait."""
        with self._ranks.watch():
            while self.works:
                self.works.pop().wait()


Mail = Iterable[tuple[int, Tensor]]  # tensors, and the ranks they go to or come from


class Post(Protocol):
    """The function of `Ranks.messages`."""

    def __call__(self, outgoing: Mail, incoming: Mail, tag: int = ..., /) -> Messages:
        """Begin to send and to receive."""


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
