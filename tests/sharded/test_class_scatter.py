"""A state of many processes, some classes on each: the numbers of the whole state."""

from __future__ import annotations

import math

import pytest
import torch
from rank_checks import cuts, run_checks

import deeprep
from deeprep import ClassScatter, class_scatter
from deeprep.base.torchrun import OtherRankError
from deeprep.sharded import reduce_scatter
from deeprep.state import exchange

WIDTH = 7


def check_shards(rank, size):
    generator = torch.Generator().manual_seed(3)
    means = torch.randn(23, WIDTH, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 22, (500,), generator=generator)  # class 22 stays empty
    noise = torch.randn(500, WIDTH, generator=generator, dtype=torch.float64)
    features = means[labels] + 0.1 * noise
    begin, end = cuts(500, size, rank)
    s = ClassScatter(23, WIDTH)
    s.update(features[begin:end], labels[begin:end])
    before = s.state_dict()
    whole = class_scatter(features, labels, 23)
    for entries in (exchange._BUCKET_ENTRIES, 40):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exchange, "_BUCKET_ENTRIES", entries)
            patch.setattr(deeprep.metrics.class_means, "TILE_ENTRIES", entries)
            sharded = reduce_scatter(s)
            discrimination = sharded.discrimination()
        first, last = sharded.first_class, sharded.first_class + sharded.share.num_classes
        assert torch.equal(sharded.share.counts, whole.counts[first:last])
        assert float((sharded.share.means - whole.means[first:last]).abs().max()) <= 1e-14
        error = (sharded.share.sumsq - whole.sumsq[first:last]).abs()
        assert bool((error <= 1e-12 * whole.sumsq[first:last]).all())
        assert sharded.num_samples == 500
        assert float((sharded.global_mean - whole.global_mean).abs().max()) <= 1e-14
        assert discrimination == pytest.approx(deeprep.discrimination(whole), rel=1e-12)
        assert sharded.discrimination(centered=True) == pytest.approx(
            deeprep.discrimination(whole, centered=True), rel=1e-12
        )
        assert sharded.trace_within == pytest.approx(whole.trace_within, rel=1e-12)
        for weighting in ("uniform", "prior"):
            for found, wanted in (
                (sharded.trace_between(weighting), whole.trace_between(weighting)),
                (sharded.compression(weighting), deeprep.compression(whole, weighting)),
                (sharded.trace_between(weighting, True), whole.trace_between(weighting, True)),
                (
                    sharded.compression(weighting, corrected=True),
                    deeprep.compression(whole, weighting, corrected=True),
                ),
            ):
                assert found == pytest.approx(wanted, rel=1e-12)
        assert len(set(sharded._ranks.gather((discrimination, sharded.compression())))) == 1
    if size == 1:  # one process: the same formulas of the same numbers
        assert sharded.discrimination() == deeprep.discrimination(whole)
        assert sharded.compression("prior") == deeprep.compression(whole, "prior")
    assert torch.equal(s.means, before["means"])
    shares = sharded._ranks.gather((first, last))
    assert [k for begin, end in shares for k in range(begin, end)] == list(range(23))


def check_min_count(rank, size):
    generator = torch.Generator().manual_seed(5)
    counts = torch.tensor([9, 1, 0, 3, 12, 1, 20, 7])
    labels = torch.arange(8).repeat_interleave(counts)[torch.randperm(53, generator=generator)]
    features = torch.randn(53, 3, generator=generator, dtype=torch.float64) + labels.unsqueeze(1)
    begin, end = cuts(53, size, rank)
    whole = class_scatter(features, labels, 8, full=True)
    own = ClassScatter(8, 3, full=True)
    own.update(features[begin:end], labels[begin:end])
    sharded = reduce_scatter(own)
    assert sharded.with_min_count(1) is sharded
    for min_count in (2, 4):
        left, wanted = sharded.with_min_count(min_count), whole.with_min_count(min_count)
        assert left.num_samples == wanted.num_samples
        assert left.compression() == pytest.approx(deeprep.compression(wanted), rel=1e-12)
        assert left.discrimination() == pytest.approx(deeprep.discrimination(wanted), rel=1e-12)
        assert left.full == wanted.full == (min_count == 2)  # single samples have no part in S
        if left.full:
            assert left.nc1() == pytest.approx(deeprep.metrics.nc1(wanted), rel=1e-10)
    assert sharded.num_samples == 53
    with pytest.raises(deeprep.UndefinedStatisticError, match="no class of any process has 21"):
        sharded.with_min_count(21)
    with pytest.raises(ValueError, match="min_count is 0"):
        sharded.with_min_count(0)


def check_shards_that_are_not_ordinary(rank, size):
    s = ClassScatter(size, 2)
    with pytest.raises(deeprep.UndefinedStatisticError, match="no process has seen a sample"):
        reduce_scatter(s)
    features = torch.zeros(size, 2)
    features[1:] = 1.0
    if rank == 0:
        s.update(features, torch.arange(size))
    zero = r"discrimination is nan: the means of 1 class \(0\) are"
    with pytest.warns(UserWarning, match=zero) as caught:
        assert math.isnan(reduce_scatter(s).discrimination())
    assert caught[0].filename == __file__
    if rank == size - 1:
        s.update(torch.full((1, 2), float("inf")), torch.tensor([0]))
    with pytest.warns(UserWarning, match=r"the features of 1 class \(0\) hold NaN or Inf"):
        assert math.isnan(reduce_scatter(s).compression())
    s.reset()
    s.update(torch.ones(1, 2), torch.tensor([0]))
    sharded = reduce_scatter(s)
    assert sharded.num_samples == size
    with pytest.raises(deeprep.UndefinedStatisticError, match=f"two classes .* 1 of {size}"):
        sharded.compression()
    single = ClassScatter(size, 2)
    single.update(torch.eye(2), torch.tensor([0, 0]))
    if rank == 0:
        single.update(torch.ones(1, 2), torch.tensor([1]))
    sharded_single = reduce_scatter(single)
    # In every process, though one alone holds the class.
    with pytest.raises(deeprep.UndefinedStatisticError, match=r"found one in 1 class \(1\)"):
        sharded_single.trace_between(corrected=True)
    with pytest.raises(ValueError, match="weighting is 'classes', expected 'uniform' or 'prior'"):
        sharded.trace_between("classes")
    with pytest.raises(
        ValueError, match=r"num_classes is .*expected at least .*, one for each process"
    ):
        reduce_scatter(ClassScatter(size - 1, 2))
    for ask in (lambda: sharded.within, sharded.singular_values, sharded.nc1, sharded.probe):
        with pytest.raises(ValueError, match=r"has full=False, expected|two classes"):
            ask()
    s.update(torch.ones(2, 2), torch.tensor([1, 1]))
    with pytest.warns(UserWarning, match="compression is nan: all class means coincide"):
        assert math.isnan(reduce_scatter(s).compression())


def check_errors_of_the_first_process(rank, size):
    """The others raise too, rather than wait for it, and the group is of use afterwards."""
    generator = torch.Generator().manual_seed(rank)
    features = torch.randn(100, 5, generator=generator, dtype=torch.float64)
    sharded = reduce_scatter(class_scatter(features, torch.arange(100) % 23, 23, full=True))
    module = deeprep.sharded.class_scatter
    expected = (sharded.nc1(), sharded.singular_values().tolist())
    calls = []

    def fail(*arguments):
        if rank == 0:
            raise MemoryError("none left")

    def fail_later(rows):
        calls.append(rows)
        return factor(rows) if len(calls) == 1 else fail()

    of_factor = deeprep.sharded.factor
    factor = of_factor._factor
    for owner, name, failing, ask in (
        (module, "roots_of_moment", fail, sharded.singular_values),
        (module, "nc1_of_means", fail, sharded.nc1),
        (of_factor, "_factor", fail, sharded.nc1),
        (of_factor, "_factor", fail_later, sharded.nc1),
    ):
        if failing is fail_later and size == 1:
            continue
        kind, message = (MemoryError, "none left") if rank == 0 else (OtherRankError, "rank 0: ")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, failing)
            with pytest.raises(kind, match=message):
                ask()
    assert (sharded.nc1(), sharded.singular_values().tolist()) == expected


def check_full_shards(rank, size):
    """More classes than features, and fewer; the bucket of a message does not matter."""
    generator = torch.Generator().manual_seed(5)
    for width, spread, dtype in ((5, 0.1, torch.float64), (40, 1e-3, torch.float32)):
        means = torch.randn(23, width, generator=generator, dtype=torch.float64)
        labels = torch.randint(0, 22, (500,), generator=generator)
        noise = torch.randn(500, width, generator=generator, dtype=torch.float64)
        features = (means[labels] + spread * noise).to(dtype)
        begin, end = cuts(500, size, rank)
        s = ClassScatter(23, width, full=True)
        s.update(features[begin:end], labels[begin:end])
        before = s.state_dict()
        whole = class_scatter(features, labels, 23, full=True)
        tolerance = 1e-12 if dtype == torch.float64 else 1e-6
        sharded = reduce_scatter(s)
        assert sharded.full
        assert not sharded.share.full
        scale = float(whole.within.diagonal().mean())
        assert float((sharded.within - whole.within).abs().max()) <= tolerance * scale
        assert torch.equal(sharded.pooled_scatter, sharded.pooled_scatter.T)
        sigma, expected = sharded.singular_values(), deeprep.metrics.singular_values(whole)
        assert sigma.shape == expected.shape
        assert float((sigma - expected).abs().max()) <= tolerance * float(expected[0])
        for statistic in (deeprep.metrics.effective_rank, deeprep.metrics.numerical_rank):
            assert statistic(sigma) == pytest.approx(statistic(whole), rel=1e3 * tolerance)
        nc1 = sharded.nc1()
        assert nc1 == pytest.approx(deeprep.metrics.nc1(whole), rel=1e3 * tolerance)
        mine = slice(sharded.first_class, sharded.first_class + sharded.share.num_classes)
        for ridge in (0.0, 0.1):
            fitted, wanted = sharded.probe(ridge), deeprep.metrics.probe(whole, ridge)
            size_of_weight = float(wanted.weight.abs().max())
            error = (fitted.weight - wanted.weight[mine]).abs().max()
            assert float(error) <= 1e5 * tolerance * size_of_weight
            assert float((fitted.bias - wanted.bias[mine]).abs().max()) <= 1e5 * tolerance
        same = sharded._ranks.gather((nc1, sigma.tolist(), sharded.pooled_scatter.tolist()))
        assert all(each == same[0] for each in same)
        assert torch.equal(s.means, before["means"])
        assert torch.equal(s.pooled_scatter, before["products"])


def check_full_shards_that_are_not_ordinary(rank, size):
    s = ClassScatter(size, 2, full=True)
    s.update(torch.ones(2, 2), torch.tensor([0, 1]))
    with pytest.warns(UserWarning, match="nc1 is nan: all class means coincide"):
        assert math.isnan(reduce_scatter(s).nc1())
    with pytest.raises(ValueError, match=r"ridge is -1\.0, expected a finite number >= 0"):
        reduce_scatter(s).probe(-1.0)
    sharded = reduce_scatter(s)
    sharded._upper_scatter[0, 1] = math.inf
    overflow = "is nan: products of the features overflow float64"
    with pytest.warns(UserWarning, match=f"nc1 {overflow}"):
        assert math.isnan(sharded.nc1())
    with pytest.warns(UserWarning, match=f"singular_values {overflow}"):
        assert bool(sharded.singular_values().isnan().all())
    with pytest.warns(UserWarning, match=f"probe {overflow}"):
        assert bool(sharded.probe().weight.isnan().all())


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_rank_gets_the_numbers_of_the_whole(run_ranks, size):
    """Cases share processes, because starting these takes longer than all of them."""
    checks = [
        check_shards,
        check_full_shards,
        check_errors_of_the_first_process,
        check_min_count,
    ]
    if size > 1:
        checks += [check_shards_that_are_not_ordinary, check_full_shards_that_are_not_ordinary]
    exit_codes, failures = run_ranks(run_checks, size, checks)
    assert exit_codes == [0] * size, failures.get(timeout=5)
