"""Processes that fail together."""

from types import SimpleNamespace

from torch import distributed

from deeprep.base.torchrun import Alarm


def test_an_alarm_that_cannot_ring_raises_nothing(monkeypatch):
    """It rings while an error is under way, which it would replace."""

    def lost(*_):
        raise RuntimeError("the store is gone")

    store = SimpleNamespace(set=lost)
    monkeypatch.setattr(distributed.distributed_c10d, "_get_default_store", lambda: store)
    Alarm(SimpleNamespace(gather=lambda value: [value])).ring()
