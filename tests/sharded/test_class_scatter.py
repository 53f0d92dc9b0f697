"""A state of many processes, some classes on each: the numbers of the whole state."""

from __future__ import annotations

import math

import pytest
import torch
from rank_checks import cuts, run_checks

import deeprep
from deeprep import ClassScatter, class_scatter
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
    with pytest.raises(ValueError, match=r"scatter\.full is .*expected False"):
        reduce_scatter(ClassScatter(size, 2, full=True))
    s.update(torch.ones(2, 2), torch.tensor([1, 1]))
    with pytest.warns(UserWarning, match="compression is nan: all class means coincide"):
        assert math.isnan(reduce_scatter(s).compression())


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_rank_gets_the_numbers_of_the_whole(run_ranks, size):
    """Cases share processes, because starting these takes longer than all of them."""
    checks = [check_shards, *([check_shards_that_are_not_ordinary] if size > 1 else [])]
    exit_codes, failures = run_ranks(run_checks, size, checks)
    assert exit_codes == [0] * size, failures.get(timeout=5)
