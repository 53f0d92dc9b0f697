"""singular_values and the ranks made of them: degenerate input and known ranks."""

import math

import numpy as np
import pytest
import torch

import deeprep
from deeprep import UndefinedStatisticError, metrics, reference

RANKS = [metrics.effective_rank, metrics.stable_rank, metrics.rankme]


def low_rank(rank, num_samples=200, num_features=60, num_classes=5, dtype=np.float64):
    rng = np.random.default_rng(rank)
    left, _ = np.linalg.qr(rng.standard_normal((num_samples, rank)))
    right, _ = np.linalg.qr(rng.standard_normal((num_features, rank)))
    return (left @ right.T).astype(dtype), np.arange(num_samples) % num_classes


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rank", [1, 7, 33])
def test_known_rank(rank, dtype):
    # r equal singular values: 95 % of their sum takes ceil(0.95 r) of them, all of it takes r.
    features, labels = low_rank(rank, dtype=dtype)
    s = deeprep.class_scatter(features, labels, full=True)
    assert metrics.numerical_rank(s) == math.ceil(0.95 * rank)
    assert metrics.numerical_rank(s, threshold=0.999) == rank
    assert metrics.effective_rank(s) == pytest.approx(rank, rel=1e-5)
    assert metrics.stable_rank(s) == pytest.approx(rank, rel=1e-5)
    # RankMe's 1e-7 for each of the 60 singular values, zeros included.
    assert metrics.rankme(s) == pytest.approx(rank, rel=60 * 1e-7 * math.log(1e7))
    assert metrics.rankme(s) > metrics.effective_rank(s)
    found = metrics.singular_values(s)
    assert found.shape == (60,)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found[:rank].numpy(), 1.0, rtol=1e-5)
    assert not found[rank:].any()  # rounding errors are told from small values


def test_fewer_samples_than_features():
    rng = np.random.default_rng(0)
    features, labels = rng.standard_normal((9, 40)).astype(np.float32), np.arange(9) % 2
    s = deeprep.class_scatter(features, labels, full=True)
    np.testing.assert_allclose(
        metrics.singular_values(s).numpy(), reference.singular_values(features, labels), rtol=1e-5
    )
    assert metrics.numerical_rank(s, threshold=1.0) == 9


def test_one_class_is_enough():
    s = deeprep.class_scatter(torch.eye(3), torch.zeros(3, dtype=torch.int64), full=True)
    assert metrics.numerical_rank(s) == 3


def test_zero_features_have_rank_zero():
    s = deeprep.class_scatter(torch.zeros(6, 3), torch.arange(6) % 2, full=True)
    assert metrics.numerical_rank(s) == 0
    assert metrics.effective_rank(s) == metrics.stable_rank(s) == metrics.rankme(s) == 0.0


def test_no_samples():
    s = deeprep.ClassScatter(3, 4, full=True)
    for statistic in (*RANKS, metrics.numerical_rank, metrics.singular_values):
        message = f"{statistic.__name__} needs at least one class with samples, found 0 of 3"
        with pytest.raises(UndefinedStatisticError, match=message):
            statistic(s)


def test_nonfinite_features():
    s = deeprep.class_scatter(
        torch.tensor([[1.0, math.nan], [0.0, 1.0]]), torch.tensor([0, 1]), full=True
    )
    with pytest.warns(UserWarning, match=r"numerical_rank is -1.* 1 class \(0\)"):
        assert metrics.numerical_rank(s) == -1
    for statistic in RANKS:
        with pytest.warns(UserWarning, match=f"{statistic.__name__} is nan"):
            assert math.isnan(statistic(s))
    with pytest.warns(UserWarning, match="singular_values is nan"):
        values = metrics.singular_values(s)
    assert metrics.numerical_rank(values) == -1
    assert all(math.isnan(statistic(values)) for statistic in RANKS)


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5, math.nan])
def test_threshold_out_of_range(threshold):
    with pytest.raises(ValueError, match=r"threshold is .*, expected in \(0, 1\]"):
        metrics.numerical_rank(torch.ones(3), threshold)


def test_ranks_of_each_class():
    # Class k lies in a subspace of dimension k + 1, far from the origin along one more direction.
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    rows, labels = [], []
    for k, rank in enumerate([1, 2, 5]):
        corners = np.concatenate([np.eye(40)[:rank], -np.eye(40)[:rank]]) + 1e3 * np.eye(40)[9]
        rows.append(corners @ basis)
        labels += [k] * (2 * rank)
    features, labels = np.concatenate(rows), np.array(labels)
    order = rng.permutation(len(labels))
    s = deeprep.class_scatter(features[order], labels[order])
    ranks = metrics.class_ranks(s, features[order], labels[order], centered=True, threshold=0.999)
    assert ranks.numerical.tolist() == [1, 2, 5]
    for column in ranks[1:]:
        assert column.tolist() == pytest.approx([1, 2, 5], rel=1e-4)
    # Not centred, the mean's singular value is all there is to see.
    assert metrics.class_ranks(s, features[order], labels[order]).numerical.tolist() == [1, 1, 1]


@pytest.mark.filterwarnings("ignore:1 of 4 classes")
def test_ranks_of_empty_nonfinite_and_ignored_classes():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [math.nan, 1.0], [math.inf, 0.0], [0.0, 0.0]])
    labels = torch.tensor([0, 0, 1, -100, 3])
    s = deeprep.class_scatter(features, labels, 4)
    with pytest.warns(UserWarning, match=r"class_ranks is nan: the features of 1 class \(1\)"):
        ranks = metrics.class_ranks(s, features, labels)
    assert ranks.numerical.tolist() == [2, -1, -1, 0]
    for column in ranks[1:]:
        assert column.tolist() == pytest.approx([2.0, math.nan, math.nan, 0.0], nan_ok=True)
    with pytest.raises(ValueError, match=r"labels\[0\] is 4, expected a class in \[0, 4\)"):
        metrics.class_ranks(s, features[:1], torch.tensor([4]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_class_ranks_read_every_dtype(dtype):
    features, labels = torch.eye(6, dtype=dtype), torch.arange(6) % 2
    s = deeprep.class_scatter(features, labels)
    assert metrics.class_ranks(s, features, labels).stable.tolist() == pytest.approx([3.0, 3.0])
