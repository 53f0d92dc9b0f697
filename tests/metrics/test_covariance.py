"""covariance_eigenvalues, participation_ratio, alpha_req: known spectra, degenerate input."""

import math

import numpy as np
import pytest
import torch

import deeprep
from deeprep import UndefinedStatisticError, metrics, reference

STATISTICS = [metrics.participation_ratio, metrics.alpha_req]


def with_spectrum(values, num_samples=400, dtype=np.float64, offset=5.0):
    """Rows whose covariance has exactly these eigenvalues."""
    rng = np.random.default_rng(0)
    width = len(values)
    rows = rng.standard_normal((num_samples, width))
    left, _ = np.linalg.qr(rows - rows.mean(axis=0))
    right, _ = np.linalg.qr(rng.standard_normal((width, width)))
    features = np.sqrt(num_samples) * left * np.sqrt(values) @ right + offset
    return features.astype(dtype), np.arange(num_samples) % 4


def state(features, labels):
    return deeprep.class_scatter(features, labels, full=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_a_power_law_is_found(alpha, dtype):
    values = 3.0 * np.arange(1, 151, dtype=np.float64) ** -alpha
    features, labels = with_spectrum(values, dtype=dtype)
    s = state(features, labels)
    found = metrics.covariance_eigenvalues(s)
    np.testing.assert_allclose(found.numpy(), values, rtol=1e-2 if dtype is np.float32 else 1e-9)
    relative = 1e-3 if dtype is np.float32 else 1e-9
    assert metrics.alpha_req(s) == pytest.approx(alpha, rel=relative)
    assert reference.alpha_req(features, labels) == pytest.approx(alpha, rel=relative)
    expected = values.sum() ** 2 / np.square(values).sum()
    assert metrics.participation_ratio(s) == pytest.approx(expected, rel=1e-5)
    assert metrics.participation_ratio(found) == pytest.approx(expected, rel=1e-5)


def test_alpha_is_the_weighted_fit_of_its_authors():
    # Normal equations as in Stringer et al.: numbers from 0, weights 1 / (number + 1).
    values = np.sort(np.random.default_rng(0).exponential(size=200))[::-1].copy()
    numbers = np.arange(10, 100)
    y = np.log(values)[numbers][:, None]
    x = np.stack([-np.log(numbers + 1), np.ones(90)], axis=1)
    w = 1.0 / (numbers + 1.0)[:, None]
    expected = np.linalg.solve(x.T @ (x * w), (w * x).T @ y)[0, 0]
    assert metrics.alpha_req(torch.from_numpy(values)) == pytest.approx(expected, rel=1e-10)


def test_participation_ratio_is_that_of_the_gram_matrix():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((30, 7)) * np.arange(1, 8) + 4.0
    labels = np.arange(30) % 3
    gram = (features - features.mean(axis=0)) @ (features - features.mean(axis=0)).T
    expected = np.trace(gram) ** 2 / np.trace(gram @ gram)
    assert metrics.participation_ratio(state(features, labels)) == pytest.approx(expected)


def test_eigenvalues_are_those_of_numpys_covariance():
    rng = np.random.default_rng(0)
    features, labels = rng.standard_normal((50, 9)) + 100.0, rng.integers(0, 4, 50)
    expected = np.linalg.eigvalsh(np.cov(features.T, bias=True))[::-1]
    found = metrics.covariance_eigenvalues(state(features, labels))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


def test_equal_eigenvalues_are_counted():
    s = state(*with_spectrum(np.array([2.0] * 6 + [0.0] * 14)))
    assert metrics.participation_ratio(s) == pytest.approx(6.0, rel=1e-9)
    assert not metrics.covariance_eigenvalues(s)[6:].any()


def test_the_fit_ends_with_the_last_eigenvalue_above_rounding():
    values = np.concatenate([np.arange(1.0, 31.0) ** -1.5, np.zeros(20)])
    assert metrics.alpha_req(state(*with_spectrum(values))) == pytest.approx(1.5, rel=1e-8)


def test_fewer_samples_than_features():
    features = np.random.default_rng(0).standard_normal((9, 40))
    labels = np.arange(9) % 2
    s = state(features, labels)
    found = metrics.covariance_eigenvalues(s)
    assert found.shape == (9,)
    np.testing.assert_allclose(
        found.numpy(), reference.covariance_eigenvalues(features, labels), rtol=1e-9, atol=1e-12
    )
    assert metrics.alpha_req(s, first=1, last=5) == pytest.approx(
        reference.alpha_req(features, labels, 1, 5), rel=1e-9
    )


def test_too_few_eigenvalues_to_fit():
    s = state(*with_spectrum(np.arange(1.0, 13.0)))
    message = r"alpha_req is nan: 12 eigenvalues .* leaves 2 from number 11 on, and a line needs"
    with pytest.warns(UserWarning, match=message):
        assert math.isnan(metrics.alpha_req(s))
    with pytest.warns(UserWarning, match="alpha_req is nan"):
        assert math.isnan(reference.alpha_req(*with_spectrum(np.arange(1.0, 13.0))))


def test_one_class_and_one_feature_are_enough():
    s = state(np.array([[1.0], [3.0], [5.0]]), np.zeros(3, dtype=int))
    assert metrics.participation_ratio(s) == pytest.approx(1.0)
    assert metrics.covariance_eigenvalues(s).tolist() == pytest.approx([8 / 3])


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_features_that_coincide(offset):
    s = state(np.full((6, 3), offset), np.arange(6) % 2)
    assert metrics.participation_ratio(s) == 0.0
    assert not metrics.covariance_eigenvalues(s).any()
    assert reference.participation_ratio(np.full((6, 3), offset), np.arange(6) % 2) == 0.0
    with pytest.warns(UserWarning, match="0 eigenvalues are above rounding, which leaves 0"):
        assert math.isnan(metrics.alpha_req(s))


@pytest.mark.parametrize("statistic", [*STATISTICS, metrics.covariance_eigenvalues])
def test_no_samples_and_not_full(statistic):
    name = statistic.__name__
    with pytest.raises(UndefinedStatisticError, match=f"{name} needs at least one class"):
        statistic(deeprep.ClassScatter(3, 4, full=True))
    with pytest.raises(ValueError, match="full=False, expected full=True"):
        statistic(deeprep.class_scatter(torch.eye(3), torch.arange(3)))


def test_nonfinite_features():
    s = state(np.array([[1.0, math.nan], [0.0, 1.0]]), np.arange(2))
    for statistic in STATISTICS:
        with pytest.warns(UserWarning, match=rf"{statistic.__name__} is nan.* 1 class \(0\)"):
            assert math.isnan(statistic(s))
    with pytest.warns(UserWarning, match="covariance_eigenvalues is nan"):
        values = metrics.covariance_eigenvalues(s)
    assert values.isnan().all()
    assert all(math.isnan(statistic(values)) for statistic in STATISTICS)


@pytest.mark.parametrize(("first", "last"), [(0, 10), (5, 6), (10, 3)])
def test_a_range_that_is_none(first, last):
    with pytest.raises(ValueError, match=r"first is 0|last is \d+, expected at least first \+ 2"):
        metrics.alpha_req(torch.ones(20), first, last)


@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_no_scale_of_float64_features_is_too_small_or_too_large(scale):
    rng = np.random.default_rng(0)
    features, labels = rng.standard_normal((60, 20)), np.arange(60) % 3
    usual, scaled = state(features, labels), state(scale * features, labels)
    names = ("participation_ratio", "alpha_req", "h_score", "vci", "numerical_rank", "rankme")
    for name in names:
        expected = getattr(metrics, name)(usual)
        assert getattr(metrics, name)(scaled) == pytest.approx(expected, rel=1e-9), name
        found = getattr(reference, name)(scale * features, labels)
        assert found == pytest.approx(expected, rel=1e-9), name
    values = metrics.covariance_eigenvalues(scaled)
    assert metrics.participation_ratio(values) == pytest.approx(
        metrics.participation_ratio(usual), rel=1e-9
    )


def test_a_spectrum_may_be_float32():
    values = torch.arange(1, 200, dtype=torch.float32) ** -1.5
    assert metrics.alpha_req(values) == pytest.approx(1.5, rel=1e-6)
    assert metrics.participation_ratio(values) == pytest.approx(
        metrics.participation_ratio(values.double()), rel=1e-6
    )
