"""Features in host memory on their way to a CUDA state: slab by slab, copied while others compute.

A slab is a few thousand whole rows and their labels. Two pinned buffers take turns: while the
device works on one slab, the next is copied to it on a stream of its own, and the host fills the
buffer of the one after. Features that are pinned already are copied from where they lie.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Long enough that starting a copy (some 10 us) does not show beside it (1 ms over PCIe 4), short
# enough that the first slab, which nothing overlaps, does not either.
_SLAB_BYTES = 2**25
_ALIGNMENT = 256

# One for each device and thread: a lock that they shared could be left locked by Ctrl-C.
_feeds: dict[tuple[torch.device, int], _Feed] = {}


def stream(
    features: Tensor, labels: Tensor, device: torch.device, take: Callable[[Tensor, Tensor], None]
) -> None:
    """Call take(block, block_labels) on `device` for blocks that make up (features, labels).

    Returns when `features` (N, d) and `labels` (N,) have been read and may be overwritten; it does
    not wait for `take`. The buffers, 64 MiB on the host and on the device (more where a single row
    is longer than 32 MiB), are kept for this thread's next call.
    """
    key = device, threading.get_ident()
    if key not in _feeds:
        _feeds[key] = _Feed(device)
    _feeds[key].run(features, labels, take)


def fits_one_slab(features: Tensor, labels: Tensor) -> bool:
    """Whether `stream` calls `take` once at most."""
    return len(features) <= _rows_of_slab(features, labels)


class _Slot:
    """A pinned buffer, its counterpart on the device, and how far each is in use."""

    def __init__(self, events: Any) -> None:
        self.pinned = torch.empty(0, dtype=torch.uint8)
        self.on_device = self.pinned
        self.copied = events.Event()  # the last copy from pinned to on_device is done
        self.consumed = events.Event()  # the last work on on_device is done

    def reserve(self, num_bytes: int, device: torch.device, current: Any) -> None:
        if self.pinned.numel() >= num_bytes:
            return
        self.copied.synchronize()
        self.consumed.synchronize()
        self.on_device = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        # The allocator may hand out what earlier work of this stream has yet to finish with.
        self.consumed.record(current)
        self.pinned = _pinned_bytes(num_bytes)  # last: it says that all is there


class _Feed:
    """The slots of one device and the stream of the copies to it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._api = torch.get_device_module(device)
        self._copies = self._api.Stream(device) if device.type == "cuda" else self._api.Stream()
        self._slots = [_Slot(self._api), _Slot(self._api)]
        self._given_up = False  # the last run, by an exception: who waits for what is not known

    def run(self, features: Tensor, labels: Tensor, take: Callable[[Tensor, Tensor], None]) -> None:
        if self._device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"features is on {features.device} while a CUDA graph is captured, expected "
                f"{self._device}: the graph would copy the same buffers for ever"
            )
        direct = _is_pinned(features) and features.is_contiguous()
        rows = _rows_of_slab(features, labels)
        current = self._api.current_stream(self._device)
        if self._given_up:
            self._api.synchronize(self._device)
        self._given_up = True
        for begin in range(0, features.shape[0], rows):
            slot = self._slots[0]
            self._slots.reverse()
            block = features[begin : begin + rows]
            on_device = self._copy(slot, block, labels[begin : begin + rows], direct, current)
            current.wait_event(slot.copied)
            take(*on_device)
            slot.consumed.record(current)
        if direct:
            slot.copied.synchronize()  # the caller's memory, not ours, is being read
        self._given_up = False

    def _copy(
        self, slot: _Slot, features: Tensor, labels: Tensor, direct: bool, current: Any
    ) -> tuple[Tensor, Tensor]:
        """Start the copy of a slab and return what will be there once `slot.copied` is."""
        edge = -(-_num_bytes(features) // _ALIGNMENT) * _ALIGNMENT
        end = edge + _num_bytes(labels)
        slot.reserve(max(end, _SLAB_BYTES), self._device, current)
        slot.copied.synchronize()
        slot.pinned[edge:end].view(labels.dtype).copy_(labels)
        if not direct:
            _as_rows(slot.pinned, features).copy_(features)
        with self._api.stream(self._copies):
            self._copies.wait_event(slot.consumed)
            if direct:
                _as_rows(slot.on_device, features).copy_(features, non_blocking=True)
            begin = edge if direct else 0
            slot.on_device[begin:end].copy_(slot.pinned[begin:end], non_blocking=True)
            slot.copied.record(self._copies)
        return _as_rows(slot.on_device, features), slot.on_device[edge:end].view(labels.dtype)


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _rows_of_slab(features: Tensor, labels: Tensor) -> int:
    row_bytes = features.shape[1] * features.element_size() + labels.element_size()
    return max(1, (_SLAB_BYTES - _ALIGNMENT) // row_bytes)


def _as_rows(buffer: Tensor, like: Tensor) -> Tensor:
    """View the beginning of a buffer of bytes as features of the shape and type of `like`."""
    return buffer[: _num_bytes(like)].view(like.dtype).view(like.shape)


def _pinned_bytes(num_bytes: int) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)


def _is_pinned(features: Tensor) -> bool:
    return features.is_pinned()
