"""States of many processes: one state on all of them, exactly, or a clear error on all of them."""

from __future__ import annotations

import itertools
import os
import time

import pytest
import torch
from rank_checks import cuts, join, run_checks
from torch import distributed
from torch._subclasses import FakeTensorMode

from deeprep import ClassScatter, class_scatter
from deeprep.base import ranks as base_ranks
from deeprep.base.ranks import RankLostError, Ranks
from deeprep.state import agreement, all_reduce_layers, collectives, exchange, merge
from deeprep.state.moments import Moments

NUM_CLASSES, WIDTH = 5, 7


def make_data(num_rows=400, dtype=torch.float64, offset=0.0, spread=1.0, seed=0):
    """Unbalanced data: class 4 has no samples, class 3 but one."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (num_rows,), generator=generator)
    labels[num_rows // 3] = 3
    draw = torch.randn(num_rows + 4, WIDTH, generator=generator, dtype=torch.float64)
    features = 3.0 * draw[num_rows:][labels] + spread * draw[:num_rows] + offset
    return features.to(dtype), labels


def share_of(data, size, rank, **options):
    """The state of one rank's share of the data, taken in as ragged batches."""
    features, labels = data
    begin, end = cuts(len(labels), size, rank)
    s = ClassScatter(NUM_CLASSES, features.shape[1], **options)
    for start in range(begin, end, 37):
        rows = slice(start, min(start + 37, end))
        s.update(features[rows], labels[rows])
    return s


def merge_in_order(data, size, **options):
    whole = share_of(data, size, 0, **options)
    for rank in range(1, size):
        whole.merge(share_of(data, size, rank, **options))
    return whole


def assert_close(found, expected, tolerance):
    """Relative to each class's sum and to the length of its mean."""
    assert torch.equal(found.counts, expected.counts)
    lengths = torch.linalg.vector_norm(expected.means, dim=1, keepdim=True)
    assert bool(((found.means - expected.means).abs() <= tolerance * lengths).all())
    assert bool(((found.sumsq - expected.sumsq).abs() <= tolerance * expected.sumsq).all())
    if found.full:
        scale = float(expected.pooled_scatter.diagonal().mean())
        error = (found.pooled_scatter - expected.pooled_scatter).abs().max()
        assert float(error) <= tolerance * scale


def assert_same_bits(found, expected):
    for name in ("counts", "means", "sumsq"):
        a, b = getattr(found, name), getattr(expected, name)
        assert torch.equal(a.view(torch.int64), b.view(torch.int64)), name


def assert_same_everywhere(state, size):
    """Every rank holds the same bits, which is more than the same values."""
    for tensor in (v for v in state.state_dict().values() if isinstance(v, torch.Tensor)):
        everywhere = [torch.empty_like(tensor) for _ in range(size)]
        distributed.all_gather(everywhere, tensor)
        bits = [each.view(torch.int64) for each in everywhere]
        assert all(torch.equal(each, bits[0]) for each in bits)


# ---------------------------------------------------------------- what every rank runs


def check_sums(rank, size):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        for offset, full in itertools.product((0.0, 1e3), (False, True)):
            data = make_data(dtype=dtype, offset=offset)
            s = share_of(data, size, rank, full=full)
            s.all_reduce()
            assert_same_bits(s, merge_in_order(data, size, full=full))
            assert_close(s, class_scatter(*data, NUM_CLASSES, full=full), tolerance)
            assert_same_everywhere(s, size)
            assert s.unit_roundoff == (2.0**-53 if dtype == torch.float64 else 2.0**-24)


def check_far_from_zero(rank, size):
    """At 1e6 standard deviations from zero, where sums of n * mean have no digits to lose."""
    features, labels = make_data(4000, offset=1e6)
    s = share_of((features, labels), size, rank)
    s.all_reduce()
    for k in range(3):
        rows = features[labels == k]
        exact = float((rows - rows[0]).square().sum()) - len(rows) * float(
            (rows - rows[0]).mean(dim=0).square().sum()
        )
        assert float(s.sumsq[k]) == pytest.approx(exact, rel=1e-11)
    # Classes without spread have none afterwards, and their means are what they were.
    constant = torch.tensor([0.1, 1 / 3, 1e100], dtype=torch.float64).expand(60, 3)
    s = ClassScatter(NUM_CLASSES, 3)
    s.update(constant, torch.arange(60) % 2)
    s.all_reduce()
    assert s.counts.tolist() == [30 * size, 30 * size, 0, 0, 0]
    assert s.sumsq.tolist() == [0.0] * NUM_CLASSES
    assert torch.equal(s.means[0], constant[0])


def check_small_spread(rank, size):
    """C near 1e-12 survives, as it does on one process."""
    data = make_data(spread=1e-6)
    s = share_of(data, size, rank)
    s.all_reduce()
    expected = class_scatter(*data, NUM_CLASSES)
    compression = expected.trace_within / expected.trace_between("prior")
    assert compression < 1e-11
    assert s.trace_within / s.trace_between("prior") == pytest.approx(compression, rel=1e-9)


def check_nan(rank, size):
    features, labels = make_data()
    features[(labels == 1).nonzero()[0]] = float("nan")
    s = share_of((features, labels), size, rank, full=True)
    s.all_reduce()
    assert s.nonfinite_classes == [1]
    clean, labels = make_data()
    expected = class_scatter(clean, labels, NUM_CLASSES)
    others = [0, 2, 3, 4]
    assert float((s.means - expected.means)[others].abs().max()) <= 1e-12


def check_layers(rank, size):
    """Ranks without a batch, or without a layer, end with all of them, in the same order."""
    wide, narrow = make_data(), make_data(seed=1)
    layers = {}
    if rank != size - 1:
        layers["fc.2"] = share_of(wide, size, rank, full=True)
        if rank != 1:
            layers["fc.10"] = share_of(narrow, size, rank)
    given = dict(layers)
    merged = all_reduce_layers(layers)
    assert list(merged) == ["fc.2", "fc.10"]
    assert layers == given
    assert all(merged[name] is state for name, state in given.items())
    assert_close(merged["fc.2"], class_scatter(*wide, NUM_CLASSES, full=True), 1e-12)
    expected = share_of(narrow, size, 0)
    for other in range(2, size - 1):
        expected.merge(share_of(narrow, size, other))
    assert_same_bits(merged["fc.10"], expected)
    for state in merged.values():
        assert_same_everywhere(state, size)
    assert all_reduce_layers({}) == {}


def check_messages_of_any_size(rank, size):
    """Whatever the size of a message, and whatever goes in one, the result has the same bits."""
    data = make_data()
    names = ("a", "b", "c")
    expected = {name: share_of(data, size, rank, full=name == "b") for name in names}
    all_reduce_layers(expected)
    # Next to nothing comes with the first message; some of what is told; all of it; and the states.
    for first, small in ((2, 0), (2, 1000), (30, 1000), (100, 0), (200, 1000)):
        for entries, long in itertools.product((1, 50, 100, 300), (1, 20, 1000)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(base_ranks, "_FIRST_ENTRIES", first)
                patch.setattr(agreement, "_SMALLEST_ENTRIES", small)
                patch.setattr(agreement, "_SMALL_ENTRIES", 0)
                patch.setattr(exchange, "_BUCKET_ENTRIES", entries)
                patch.setattr(exchange, "_LONG_ENTRIES", long)
                patch.setattr(collectives, "_SUM_ENTRIES", entries)
                patch.setattr(merge, "_BLOCK_ENTRIES", entries)
                states = {name: share_of(data, size, rank, full=name == "b") for name in names}
                all_reduce_layers(states)
            for name in names:
                assert_same_bits(states[name], expected[name])
                assert_same_everywhere(states[name], size)
            assert_close(states["b"], expected["b"], 1e-14)


def check_large_states(rank, size):
    """As they go from the memory of one state into that of another, in several buckets."""
    generator = torch.Generator().manual_seed(rank)
    states = [ClassScatter(611, 2048) for _ in range(2)]
    for s in states:
        s.means.normal_(generator=generator)
        s.counts.random_(0, 4, generator=generator)
        s.sumsq.uniform_(generator=generator)
        s.means[s.counts == 0] = 0.0
        s.sumsq[s.counts == 0] = 0.0
    expected = []
    for s in states:
        saved: list = [None] * size
        distributed.all_gather_object(saved, s.state_dict())
        parts = [ClassScatter(611, 2048) for _ in saved]
        for part, state in zip(parts, saved, strict=True):
            part.load_state_dict(state)
        for part in parts[1:]:
            parts[0].merge(part)
        expected.append(parts[0])
    all_reduce_layers(dict(zip("ab", states, strict=True)))
    for s, whole in zip(states, expected, strict=True):
        assert_same_bits(s, whole)


def check_fewer_classes_than_ranks(rank, size):
    """Ranks without a share of a state still get it."""
    generator = torch.Generator().manual_seed(7)
    features = torch.randn(6, 20_000, generator=generator)
    s = class_scatter(features[rank : rank + 2], torch.zeros(2, dtype=torch.int64), 1)
    parts = [
        class_scatter(features[other : other + 2], torch.zeros(2, dtype=torch.int64), 1)
        for other in range(size)
    ]
    for part in parts[1:]:
        parts[0].merge(part)
    s.all_reduce()
    assert_same_bits(s, parts[0])


def check_number_of_messages(rank, size):
    """However many layers there are; small states are merged by those that agree on them."""
    # Of the ranks together: what they have, the answer; the rest of both where they are longer;
    # rows to merge, merged rows.
    for width, small, rests, exchanges in ((4, 0, 0, 0), (512, 2**18, 1, 0), (512, 0, 0, 2)):
        layers = {str(number): ClassScatter(10, width) for number in range(12)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(agreement, "_SMALL_ENTRIES", small)
            post, posted = distributed.batch_isend_irecv, []
            patch.setattr(
                distributed,
                "batch_isend_irecv",
                lambda mail: posted.append(len(mail)) or post(mail),  # noqa: B023
            )
            for name in ("all_reduce", "all_gather_object", "all_gather_into_tensor"):
                patch.delattr(distributed, name)
            all_reduce_layers(layers)
        others = size - 1
        asked = 2 * (1 + rests) * (others if rank == 0 else 1)
        assert sum(posted) == asked + 2 * others * exchanges


def check_disagreement(rank, size):
    before = make_data()
    s = share_of(before, size, rank)
    untouched = s.state_dict()
    other = ClassScatter(NUM_CLASSES, WIDTH if rank == 0 else 8)
    expected = (
        r"layer 'conv1' is \(num_classes=5, num_features=7, full=False, ignore_index=-100\) on "
        r"rank 0, \(num_classes=5, num_features=8, .*\) on ranks? 1.*expected the same on every"
    )
    with pytest.raises(ValueError, match=expected):
        all_reduce_layers({"fine": s, "conv1": other})
    assert torch.equal(s.means, untouched["means"])
    with pytest.raises(ValueError, match=r"the state is .*full=True.* on rank 0, .*full=False"):
        ClassScatter(2, 2, full=rank == 0).all_reduce()


def check_an_exception_of_rank_0(rank, size):
    """All ranks raise it, their states are untouched, and the group is of use afterwards."""
    s = share_of(make_data(), size, rank)
    untouched = s.state_dict()

    def fail(*arguments):
        raise MemoryError("none left")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement, "merge_in_order", fail)
        expected = r"^all_reduce: rank 0 has failed to merge the states \(MemoryError: none left\)"
        with pytest.raises(RuntimeError, match=expected):
            s.all_reduce()
    assert torch.equal(s.means, untouched["means"])
    s.all_reduce()
    assert_same_bits(s, merge_in_order(make_data(), size))


def check_group_without_this_process(rank, size):
    group = distributed.new_group([0])
    s = share_of(make_data(), size, rank)
    if rank == 0:
        expected = s.state_dict()
        s.all_reduce(group)
        assert torch.equal(s.means, expected["means"])
    else:
        with pytest.raises(ValueError, match=f"group is without process {rank}, expected one it"):
            s.all_reduce(group)


CHECKS = [
    check_sums,
    check_far_from_zero,
    check_small_spread,
    check_nan,
    check_layers,
    check_messages_of_any_size,
    check_large_states,
    check_fewer_classes_than_ranks,
    check_number_of_messages,
    check_disagreement,
    check_an_exception_of_rank_0,
    check_group_without_this_process,
]


NEED_OTHERS = (
    check_layers,
    check_number_of_messages,
    check_disagreement,
    check_an_exception_of_rank_0,
    check_group_without_this_process,
)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_rank_ends_with_the_whole(run_ranks, size):
    """Cases share processes, because starting these takes longer than all of them."""
    checks = [check for check in CHECKS if size > 1 or check not in NEED_OTHERS]
    exit_codes, failures = run_ranks(run_checks, size, checks)
    assert exit_codes == [0] * size, failures.get(timeout=5)


def test_a_layer_on_devices_of_different_backends_is_refused(monkeypatch):
    """With gloo and NCCL, one rank would send by the one what others receive by the other."""
    ranks = Ranks("a test", None, 0, 3)
    state = agreement.Found.of(ClassScatter(2, 3))
    gathered = [{"fc": state}, {"fc": state._replace(device_type="cuda")}, {"fc": state}]
    monkeypatch.setattr(Ranks, "_backends", lambda ranks: {"cpu": "gloo", "cuda": "nccl"})
    expected = (
        "layer 'fc' is on cpu on ranks 0, 2, on cuda on rank 1, expected one type of device on "
        "every rank"
    )
    messages = [agreement._written(theirs) for theirs in gathered]
    assert agreement._read(agreement._answer(messages, ranks, "layer {!r}"))[0] == expected
    monkeypatch.setattr(Ranks, "_backends", lambda ranks: {"cpu": "gloo", "cuda": "gloo"})
    assert list(agreement._together(gathered, ranks, "layer {!r}")) == ["fc"]


def test_a_layer_that_rank_0_lacks_is_merged_on_the_cpu():
    """Rank 0 may have no such device."""
    state = class_scatter(torch.eye(2), torch.arange(2))
    found = {"fc": agreement.Found.of(state)._replace(device_type="meta")}
    numbers = torch.cat(agreement._in_columns({"fc": agreement.Whole(state._moments, None)}, found))
    merged = agreement._merged(found, [(torch.empty(0), {}), (numbers, found)])
    assert torch.equal(merged, numbers)


def test_long_rows_of_another_gpu_are_copied():
    """A group moves tensors of the current one alone."""
    with FakeTensorMode():
        rows = [Moments.zeros(1, exchange._LONG_ENTRIES, "cuda:1")]
        assert exchange._ready(rows, torch.device("cuda:1")).rows is rows
        packet = exchange._ready(rows, torch.device("cuda:0"))
    assert [tensor.device for tensor in packet.tensors] == [torch.device("cuda:0")] * 3


def _die(*arguments, **options):
    os._exit(0)


def _lose_a_rank(rank, size, store, results, how):
    join(rank, size, store, seconds=2)
    width = 200_000 if how == "dead in the middle" else 2  # too wide for rank 0 alone
    s = class_scatter(torch.eye(2, width), torch.arange(2))
    before = s.state_dict()
    if rank == (0 if how == "dead before it answers" else 1):
        if how == "late":
            time.sleep(5)
        elif how != "dead":
            exchange.merge_in_order = agreement.merge_in_order = _die
            s.all_reduce()
        os._exit(0)
    try:
        s.all_reduce()
    except RankLostError as error:
        try:
            left = torch.equal(s.means, before["means"])
        except RuntimeError as half_done:
            left = str(half_done)
        results.put((str(error), left))


@pytest.mark.parametrize("how", ["dead", "late", "dead in the middle", "dead before it answers"])
def test_a_lost_rank_is_an_error_within_the_timeout(run_ranks, how):
    _, results = run_ranks(_lose_a_rank, 2, how)
    message, left = results.get(timeout=5)
    assert message.startswith("all_reduce: a process of the group of 2 did not come or was lost")
    assert f"seen from rank {1 if how == 'dead before it answers' else 0}" in message
    if how in ("dead in the middle", "dead before it answers"):
        assert "its last all_reduce did not come to an end" in left
    else:
        assert "Ranks 1 failed to pass monitoredBarrier" in message
        assert left is True
