"""Host features on their way to a device: no schedule of its streams may tear a slab."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from deeprep.state import streaming


class Device:
    """A device whose streams run as late, and in as random an order, as their events allow.

    It stands in for torch.cuda: asynchronous copies and `launch`ed work are queued; an event's
    `synchronize` runs what it stands for and nothing else has to have happened.
    """

    def __init__(self, seed, ignore=None):
        self.random, self.ignore, self.streams = random.Random(seed), ignore, []
        self.Stream = self._new_stream  # torch's names are those of classes
        self.default = self.active = self.Stream()
        device = self

        class Event:
            stream, position = None, 0

            def record(self, stream):
                self.stream, self.position = stream, len(stream.queue)

            def synchronize(self):
                if self.stream is not None and device.ignore != "synchronize":
                    device.run(self.stream, self.position)

        self.Event = Event

    def _new_stream(self):
        device = self

        class Stream:
            def __init__(self):
                self.queue, self.done = [], 0

            def wait_event(self, event):
                reached = (event.stream, event.position)
                skipped = device.ignore == ("copies" if self is not device.default else "current")
                if event.stream is not None and not skipped:
                    self.queue.append(lambda: device.run(*reached))

        self.streams.append(Stream())
        return self.streams[-1]

    def run(self, stream, position):
        while stream.done < position:
            stream.done += 1
            stream.queue[stream.done - 1]()

    def launch(self, work):
        self.active.queue.append(work)
        for stream in self.random.sample(self.streams, len(self.streams)):
            if self.random.random() < 0.4:
                self.run(stream, self.random.randint(stream.done, len(stream.queue)))

    def current_stream(self, device):
        return self.default

    def synchronize(self, device):
        for stream in self.streams:
            self.run(stream, len(stream.queue))

    def stream(self, stream):
        device = self

        class Active:
            def __enter__(self):
                device.active = stream

            def __exit__(self, *exception):
                device.active = device.default

        return Active()


def _stream_through(monkeypatch, device, pinned, given_up=False):
    """What arrives of two calls' worth of features, whose memory is overwritten afterwards."""
    monkeypatch.setattr(streaming, "_feeds", {})
    monkeypatch.setattr(streaming, "_pinned_bytes", lambda n: torch.empty(n, dtype=torch.uint8))
    monkeypatch.setattr(torch, "get_device_module", lambda _: device)
    monkeypatch.setattr(streaming, "_SLAB_BYTES", 20 * 32 + streaming._ALIGNMENT)
    monkeypatch.setattr(streaming, "_is_pinned", lambda tensor: pinned)
    copy = torch.Tensor.copy_

    def copy_later(self, source, non_blocking=False):
        if not non_blocking:
            return copy(self, source)
        device.launch(lambda: copy(self, source))
        return self

    def give_up(*block):
        device.launch(lambda: None)
        raise KeyboardInterrupt

    arrived, sent = [], []
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "copy_", copy_later)
        for _ in range(2):
            features, labels = torch.randn(150, 6), torch.randint(0, 4, (150,))
            if given_up:
                with pytest.raises(KeyboardInterrupt):
                    streaming.stream(-features, labels, torch.device("cpu"), give_up)
            sent.append((features.clone(), labels.clone()))
            streaming.stream(
                features,
                labels,
                torch.device("cpu"),
                lambda *block: device.launch(
                    lambda: arrived.append([tensor.clone() for tensor in block])
                ),
            )
            features.fill_(torch.nan)
            labels.fill_(-1)
        for stream in device.streams:
            device.run(stream, len(stream.queue))
    return [torch.cat(part) for part in zip(*sent, strict=True)], [
        torch.cat(part) for part in zip(*arrived, strict=True)
    ]


@pytest.mark.parametrize("pinned", [False, True])
def test_streaming_orders_copies_and_work_on_any_schedule(monkeypatch, pinned):
    for seed in range(60):
        sent, arrived = _stream_through(monkeypatch, Device(seed), pinned)
        for expected, got in itertools.zip_longest(sent, arrived):
            assert torch.equal(expected, got)


@pytest.mark.parametrize("pinned", [False, True])
def test_nothing_of_a_call_that_was_given_up_is_left_in_the_next(monkeypatch, pinned):
    for seed in range(60):
        sent, arrived = _stream_through(monkeypatch, Device(seed), pinned, given_up=True)
        assert torch.equal(sent[0], arrived[0])


@pytest.mark.parametrize("ignore", ["copies", "current", "synchronize"])
@pytest.mark.parametrize("pinned", [False, True])
def test_the_schedules_find_every_missing_wait(monkeypatch, ignore, pinned):
    wrong = 0
    for seed in range(60):
        sent, arrived = _stream_through(monkeypatch, Device(seed, ignore), pinned)
        wrong += not torch.equal(sent[0], arrived[0])
    assert wrong
