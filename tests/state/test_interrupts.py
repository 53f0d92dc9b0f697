"""Ctrl-C at any time leaves a state as it was, as it was to become, or one that says it is not."""

from __future__ import annotations

import contextlib
import gc
import random
import signal
import time

import pytest
import torch
from interrupts import OURS, check_every_bytecode, content
from torch import distributed

import deeprep
from deeprep import ClassScatter, all_reduce_layers
from deeprep.base.indivisible import indivisibly
from deeprep.base.ranks import Messages, Ranks
from deeprep.state import agreement, collectives, exchange, pooled

NUM_CLASSES, WIDTH = 4, 6


def make_data(num_rows=40, dtype=torch.float32, seed=0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, NUM_CLASSES - 1, (num_rows,), generator=generator)
    features = torch.randn(num_rows, WIDTH, dtype=torch.float64, generator=generator)
    features += 3.0 * labels.unsqueeze(1) + offset
    labels[::9] = -100
    return features.to(dtype), labels


def with_samples(full, dtype=torch.float64):
    def make():
        s = ClassScatter(NUM_CLASSES, WIDTH, full=full)
        s.update(*make_data(30, dtype, seed=1))
        return (s,)

    return make


# ---------------------------------------------------------------- every bytecode of every call


@pytest.mark.parametrize(
    ("dtype", "block_rows", "offset"),
    [
        (torch.float32, 4096, 0.0),
        (torch.float32, 20, 1e6),  # several blocks; pivots that are rounded
        (torch.float64, 4096, 0.0),
        (torch.float64, 20, 0.0),
    ],
)
def test_update_of_a_full_state(monkeypatch, dtype, block_rows, offset):
    monkeypatch.setattr(pooled, "_BLOCK_ROWS", block_rows)
    batch = make_data(40, dtype, offset=offset)
    found = check_every_bytecode(with_samples(full=True), lambda s: s.update(*batch))
    assert found == {"old", "new"}


@pytest.mark.parametrize("first", [False, True])
def test_update_of_a_plain_state(first):
    def make():
        return (ClassScatter(NUM_CLASSES, WIDTH),) if first else with_samples(full=False)()

    batch = make_data()
    assert check_every_bytecode(make, lambda s: s.update(*batch)) == {"old", "new"}


@pytest.mark.parametrize("full", [False, True])
def test_a_default_device_runs_python_code_within_torch(full):
    torch.set_default_device("cpu")
    try:
        batch = make_data()
        found = check_every_bytecode(with_samples(full), lambda s: s.update(*batch), stride=3)
    finally:
        torch.set_default_device(None)
    assert found == {"old", "new"}


@pytest.mark.parametrize("full", [False, True])
def test_merge_load_and_reset(full):
    (other,) = with_samples(full, torch.float32)()
    other.update(*make_data(seed=2))
    other.ignore_index = 77
    saved = other.state_dict()
    for call in (
        lambda s: s.merge(other),
        lambda s: s.load_state_dict(saved),
        lambda s: s.reset(),
    ):
        assert check_every_bytecode(with_samples(full), call) == {"old", "new"}


@pytest.fixture
def one_process(monkeypatch):
    """A group of this process alone, whose messages take no time."""
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    monkeypatch.setattr(Ranks, "_meet", lambda ranks: None)
    yield
    distributed.destroy_process_group()


@pytest.fixture
def as_if_two(one_process, monkeypatch):
    """The first of two processes; the other says the same, and all its numbers are ones."""

    def consult(ranks, message, answer, joined):
        joined()
        return answer([message, message.clone()])

    @contextlib.contextmanager
    def messages(ranks, tag):
        def post(outgoing, incoming):
            for _, tensor in incoming:
                tensor.fill_(1)
            return Messages(ranks)

        yield post

    reduce = distributed.all_reduce
    for owner, name, replacement in (
        (Ranks, "of", lambda group, call: Ranks(call, group, 0, 2)),
        (Ranks, "consult", consult),
        (Ranks, "messages", messages),
        (exchange, "_LONG_ENTRIES", 1),  # numbers of one type in a message
        (distributed, "all_reduce", lambda flat, **options: (reduce(flat), flat.mul_(2))),
    ):
        monkeypatch.setattr(owner, name, replacement)


@pytest.mark.usefixtures("as_if_two")
@pytest.mark.parametrize("small", [False, True])
def test_all_reduce_says_that_a_state_is_half_done(monkeypatch, small):
    if not small:
        monkeypatch.setattr(agreement, "_are_small", lambda found, ranks: False)
        monkeypatch.setattr(exchange, "_BUCKET_ENTRIES", 9)  # several messages
        monkeypatch.setattr(collectives, "_SUM_ENTRIES", 64)

    def make():
        return with_samples(full=True)() + with_samples(full=True, dtype=torch.float32)()

    def call(first, second):
        all_reduce_layers({"first": first, "second": second})

    found = check_every_bytecode(make, call, OURS, stride=9)
    assert found == {"old", "half", "new"}


@pytest.mark.usefixtures("one_process")
def test_a_state_that_is_half_done_is_neither_read_nor_merged_until_it_is_made_anew(monkeypatch):
    (s,), (other,) = with_samples(full=True)(), with_samples(full=True)()
    saved = other.state_dict()

    def lose(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(agreement, "_answer", lose)
        with pytest.raises(KeyboardInterrupt):
            s.all_reduce()
    reads = [
        *("counts", "means", "sumsq", "num_samples", "present", "global_mean", "trace_within"),
        *("nonfinite_classes", "within", "between", "pooled_scatter"),
    ]
    for read in (
        *(lambda name=name: getattr(s, name) for name in reads),
        s.state_dict,
        lambda: s.update(*make_data()),
        lambda: s.merge(other),
        lambda: other.merge(s),
        lambda: s.all_reduce(),
        lambda: deeprep.compression(s),
    ):
        with pytest.raises(RuntimeError, match=r"half changed, .* last all_reduce did not come"):
            read()
    assert "num_samples=unknown" in repr(s)
    s.load_state_dict(saved)
    assert content(s) == content(other)
    s.all_reduce()
    assert s.num_samples == other.num_samples


# ---------------------------------------------------------------- random times


def _interrupt(number, frame):
    raise KeyboardInterrupt


@pytest.fixture
def alarm():
    """Set an alarm that raises KeyboardInterrupt; 0.0 switches it off."""
    before = signal.signal(signal.SIGALRM, _interrupt)
    gc.disable()  # what others have the collector call would swallow the exception
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    gc.enable()
    signal.signal(signal.SIGALRM, before)


def test_hundreds_of_alarms(alarm):
    chance = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3000, 96, generator=generator)
    labels = torch.randint(0, 10, (3000,), generator=generator)
    interrupted = 0
    for full in (False, True):
        start, other = (ClassScatter(10, 96, full=full) for _ in range(2))
        start.update(features[:100], labels[:100])
        other.update(features[100:].double(), labels[100:])
        saved, theirs = start.state_dict(), other.state_dict()
        for call in (
            lambda s: s.update(features, labels),
            lambda s, other=other: s.merge(other),
            lambda s, theirs=theirs: s.load_state_dict(theirs),
            lambda s: s.reset(),
        ):
            s = ClassScatter(10, 96, full=full)
            s.load_state_dict(saved)
            old, began = content(s), time.perf_counter()
            call(s)
            duration, new = time.perf_counter() - began, content(s)
            for _ in range(100):
                s.load_state_dict(saved)
                try:
                    alarm(max(1e-6, chance.uniform(0.0, duration)))
                    call(s)
                    alarm(0.0)
                except KeyboardInterrupt:
                    interrupted += 1
                s._require_intact()
                assert content(s) in (old, new)
    assert interrupted > 100


def test_a_step_that_fails_ends_them():
    numbers = []
    step = deeprep.base.indivisible.partial
    with pytest.raises(TypeError):
        indivisibly(step(numbers.append, 1), step(numbers.append), step(numbers.append, 3))
    assert numbers == [1]
