"""Every metric against its definition in deeprep.reference, on random small problems."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import deeprep
from deeprep import metrics, reference

# Empty classes, coinciding means and zero means are drawn on purpose, and warned about.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

IGNORED = -100


@st.composite
def problems(draw, dtypes=(np.float32, np.float64)):
    """(features, labels, K): unbalanced, some classes empty, some rows ignored."""
    counts = draw(st.lists(st.integers(0, 7), min_size=2, max_size=7))
    counts[draw(st.integers(0, len(counts) - 2))] += 1
    counts[-1] += 1
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = np.append(labels, np.full(draw(st.integers(0, 2)), IGNORED))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rng.shuffle(labels)
    shape = len(labels), draw(st.integers(1, 9))
    if draw(st.booleans()):
        # Quarters: exact in float32, with ties, coinciding means and low rank.
        features = rng.integers(-6, 7, shape) / 4
    else:
        features = rng.standard_normal(shape) + draw(st.sampled_from([0.0, 1.0, 100.0]))
    return features.astype(draw(st.sampled_from(dtypes))), labels, len(counts)


def near(expected, features):
    """Equal up to what the dtype of the features resolves; nan equals nan, inf equals inf."""
    relative = 1e-4 if features.dtype == np.float32 else 1e-7
    return pytest.approx(expected, rel=relative, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize(
    "name",
    ["compression", "discrimination", "equinorm", "equiangularity", "etf_error", "cdnv", "gnc2"],
)
@settings(max_examples=40, deadline=None)
@given(problem=problems())
def test_statistics_of_means_and_spread(name, problem):
    features, labels, num_classes = problem
    s = deeprep.class_scatter(features, labels, num_classes)
    expected = getattr(reference, name)(features, labels)
    assert getattr(metrics, name)(s) == near(expected, features)


@settings(max_examples=40, deadline=None)
@given(problem=problems())
def test_variants(problem):
    features, labels, num_classes = problem
    s = deeprep.class_scatter(features, labels, num_classes)
    assert metrics.compression(s, "prior") == near(
        reference.compression(features, labels, "prior"), features
    )
    assert metrics.discrimination(s, centered=True) == near(
        reference.discrimination(features, labels, centered=True), features
    )


def value_or_error(compute):
    """What `compute` returns, or that it is undefined: then for both of metric and reference."""
    try:
        return compute()
    except deeprep.UndefinedStatisticError:
        return "undefined"


@settings(max_examples=60, deadline=None)
@given(problem=problems(), weighting=st.sampled_from(["uniform", "prior"]))
def test_small_sample_correction(problem, weighting):
    features, labels, num_classes = problem
    s = deeprep.class_scatter(features, labels, num_classes)
    expected = value_or_error(lambda: reference.compression(features, labels, weighting, True))
    found = value_or_error(lambda: metrics.compression(s, weighting, True))
    if expected == "undefined":
        assert found == expected
        return
    between = reference.class_scatter(features, labels).trace_between_corrected(weighting)
    assert s.trace_between(weighting, corrected=True) == near(between, features)
    # Near zero the difference of two traces has no digits that the ratio could share.
    assume(abs(between) > 1e-6 * reference.class_scatter(features, labels).trace_between)
    assert found == near(expected, features)


@settings(max_examples=80, deadline=None)
@given(problem=problems(), weighting=st.sampled_from(["uniform", "prior"]), corrected=st.booleans())
def test_jackknife(problem, weighting, corrected):
    features, labels, num_classes = problem
    s = deeprep.class_scatter(features, labels, num_classes)
    expected = value_or_error(lambda: reference.jackknife(features, labels, weighting, corrected))
    found = value_or_error(lambda: metrics.jackknife(s, weighting, corrected))
    if expected == "undefined":
        assert found == expected
        return
    assert found.discrimination == near(expected[1], features)
    assume(not corrected or not expected[0] > 1e4)  # a Tr Sigma_B that all but cancels
    assert found.compression == near(expected[0], features)


@settings(max_examples=40, deadline=None)
@given(problem=problems())
def test_directional_cdnv(problem):
    features, labels, num_classes = problem
    s = deeprep.class_scatter(features, labels, num_classes)
    expected = reference.directional_cdnv(features, labels)
    assert metrics.directional_cdnv(s, features, labels) == near(expected, features)


@settings(max_examples=40, deadline=None)
@given(problem=problems(), weighting=st.sampled_from(["uniform", "prior"]))
def test_per_class(problem, weighting):
    features, labels, num_classes = problem
    s = deeprep.class_scatter(features, labels, num_classes)
    found = metrics.per_class(s, weighting)
    expected = reference.per_class(features, labels, num_classes, weighting)
    assert set(expected) == set(found._fields)
    for name in set(expected) - {"nearest"}:
        column = getattr(found, name)
        assert column.shape == (num_classes,)
        assert column.tolist() == near(expected[name].tolist(), features), name
    assert found.nearest.dtype == torch.int64
    assert ((found.nearest >= 0) == found.cosine.isfinite()).all()
    # Ties may fall either way, but the class named has the cosine named.
    for k in (found.nearest >= 0).nonzero().flatten().tolist():
        one, other = s.means[k], s.means[found.nearest[k]]
        cosine = float(one @ other / (one.norm() * other.norm()))
        assert cosine == near(expected["cosine"][k], features)


@settings(max_examples=40, deadline=None)
@given(problem=problems(), centered=st.booleans(), threshold=st.sampled_from([0.5, 0.95]))
def test_class_ranks(problem, centered, threshold):
    features, labels, num_classes = problem
    s = deeprep.class_scatter(features, labels, num_classes)
    found = metrics.class_ranks(s, features, labels, centered=centered, threshold=threshold)
    expected = reference.class_ranks(
        features, labels, num_classes, centered=centered, threshold=threshold
    )
    # A sum of shares that meets the threshold exactly is decided by its last digit.
    assert np.abs(found.numerical.numpy() - expected[0]).max() <= 1
    # Centred, rows that nearly coincide leave singular values of rounding.
    for column, wanted in zip(found[1:], expected[1:], strict=True):
        assert column.tolist() == pytest.approx(wanted.tolist(), rel=1e-3, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(problem=problems(), centered=st.booleans())
def test_closest_classes(problem, centered):
    features, labels, num_classes = problem
    s = deeprep.class_scatter(features, labels, num_classes)
    found = metrics.closest_classes(s, centered=centered)
    expected = reference.closest_classes(features, labels, centered=centered)
    assert found.cosine == near(expected[2], features)
    # Ties may fall either way, but the pair named has the cosine named.
    if found.first >= 0:
        means = s.means - s.global_mean if centered else s.means
        one, other = means[found.first], means[found.second]
        assert found.first < found.second
        assert float(one @ other / (one.norm() * other.norm())) == near(expected[2], features)


@settings(max_examples=80, deadline=None)
@given(problem=problems(), centered=st.booleans(), count=st.sampled_from([1, 2, 5, 100]))
def test_closest_pairs(problem, centered, count):
    features, labels, num_classes = problem
    s = deeprep.class_scatter(features, labels, num_classes)
    found = metrics.closest_pairs(s, count, centered=centered)
    expected = reference.closest_pairs(features, labels, count, centered=centered)
    assert [pair.cosine for pair in found] == near([pair[2] for pair in expected], features)
    assert [pair.cosine for pair in found] == sorted((pair.cosine for pair in found), reverse=True)
    assert len({pair[:2] for pair in found}) == len(found)
    # Ties may fall either way, but every pair named has the cosine named.
    means = s.means - s.global_mean if centered else s.means
    for first, second, cosine in found:
        assert first < second
        one, other = means[first], means[second]
        assert float(one @ other / (one.norm() * other.norm())) == near(cosine, features)


@settings(max_examples=40, deadline=None)
@given(problem=problems([np.float64]))
def test_nc1(problem):
    features, labels, num_classes = problem
    singular = np.linalg.svd(reference.class_scatter(features, labels).centered_means)[1]
    # The reference inverts the square of this matrix, so it cannot tell small from zero.
    assume(not np.any((singular > 1e-13 * singular[0]) & (singular < 1e-3 * singular[0])))
    s = deeprep.class_scatter(features, labels, num_classes, full=True)
    assert metrics.nc1(s) == near(reference.nc1(features, labels), features)


def eigenvalues_are_clear(matrix):
    """Whether none is so small that the reference, which squares, cannot tell it from zero."""
    values = np.linalg.eigvalsh(matrix)
    return not np.any((values > 1e-14 * values[-1]) & (values < 1e-6 * values[-1]))


@pytest.mark.parametrize("name", ["separation_fuzziness", "h_score", "vci"])
@settings(max_examples=80, deadline=None)
@given(problem=problems([np.float64]))
def test_separation(name, problem):
    features, labels, num_classes = problem
    r = reference.class_scatter(features, labels)
    weighted = r.centered_means * np.sqrt(r.counts[r.present] / r.num_samples)[:, None]
    between = weighted.T @ weighted
    assume(eigenvalues_are_clear(between))
    assume(eigenvalues_are_clear(r.within + between))
    s = deeprep.class_scatter(features, labels, num_classes, full=True)
    assert getattr(metrics, name)(s) == near(getattr(reference, name)(features, labels), features)


@settings(max_examples=80, deadline=None)
@given(problem=problems(), delta=st.sampled_from([1e-4, 0.1]))
def test_lidar(problem, delta):
    features, labels, num_classes = problem
    s = deeprep.class_scatter(features, labels, num_classes, full=True)
    expected = value_or_error(lambda: reference.lidar(features, labels, delta))
    found = value_or_error(lambda: metrics.lidar(s, delta))
    if expected == "undefined":
        assert found == expected
        return
    # In float32 the rounding of S takes its part of a small delta.
    relative = 1e-7 if features.dtype == np.float64 else 1e-3 if delta == 0.1 else 0.5
    assert found == pytest.approx(expected, rel=relative)


@settings(max_examples=80, deadline=None)
@given(problem=problems(), first=st.integers(1, 3), last=st.sampled_from([3, 6, 100]))
def test_spectrum_of_the_covariance(problem, first, last):
    features, labels, num_classes = problem
    s = deeprep.class_scatter(features, labels, num_classes, full=True)
    expected = reference.covariance_eigenvalues(features, labels)
    found = metrics.covariance_eigenvalues(s)
    scale = np.square(features, dtype=np.float64).sum(axis=1).mean()
    resolved = (4e-7 if features.dtype == np.float32 else 1e-14) * max(scale, 1.0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=resolved)
    ratio = reference.participation_ratio(features, labels)
    assume(expected[0] == 0 or expected[0] > 1e4 * resolved)
    assert metrics.participation_ratio(s) == pytest.approx(ratio, rel=1e-3)
    assert metrics.participation_ratio(found) == pytest.approx(ratio, rel=1e-3)
    if last >= first + 2:
        assume(not np.any((expected > 0) & (expected < 1e4 * resolved)))
        alpha = reference.alpha_req(features, labels, first, last)
        assert metrics.alpha_req(s, first, last) == pytest.approx(
            alpha, rel=1e-3, abs=1e-3, nan_ok=True
        )


@settings(max_examples=40, deadline=None)
@given(problem=problems(), threshold=st.sampled_from([0.5, 0.9, 0.95]))
def test_spectrum(problem, threshold):
    features, labels, num_classes = problem
    s = deeprep.class_scatter(features, labels, num_classes, full=True)
    expected = reference.singular_values(features, labels)
    # Squares of the features resolve half the digits of their dtype.
    resolved = (2e-3 if features.dtype == np.float32 else 1e-6) * max(expected[0], 1.0)
    found = metrics.singular_values(s)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=resolved)
    assert metrics.effective_rank(s) == pytest.approx(
        reference.effective_rank(features, labels), rel=0.05
    )
    assert metrics.stable_rank(found) == metrics.stable_rank(s)
    assert metrics.stable_rank(s) == pytest.approx(
        reference.stable_rank(features, labels), rel=1e-3
    )
    assert metrics.rankme(found) == metrics.rankme(s)
    assert metrics.rankme(s) == pytest.approx(reference.rankme(features, labels), rel=0.05)
    shares = np.cumsum(expected) / max(expected.sum(), 1e-300)
    assume(np.abs(shares - threshold).min() > 0.02)  # at a tie the last digit decides
    expected_rank = reference.numerical_rank(features, labels, threshold)
    assert metrics.numerical_rank(s, threshold) == expected_rank
    assert metrics.numerical_rank(found, threshold) == expected_rank


@settings(max_examples=40, deadline=None)
@given(problem=problems([np.float64]), ridge=st.sampled_from([0.0, 1e-3, 1.0]))
def test_probe(problem, ridge):
    features, labels, num_classes = problem
    fitted = metrics.probe(deeprep.class_scatter(features, labels, num_classes, full=True), ridge)
    weight, bias = reference.probe(features, labels, num_classes, ridge)
    scores = features @ fitted.weight.numpy().T + fitted.bias.numpy()
    np.testing.assert_allclose(scores, features @ weight.T + bias, atol=1e-6)
    np.testing.assert_allclose(fitted.weight.numpy(), weight, atol=1e-6 + 1e-4 * abs(weight).max())


@settings(max_examples=40, deadline=None)
@given(problem=problems())
def test_nearest_class(problem):
    features, labels, num_classes = problem
    s = deeprep.class_scatter(features, labels, num_classes)
    predicted = metrics.nearest_class(s, features)
    assert predicted.dtype == torch.int64
    distances = torch.cdist(
        torch.from_numpy(features.astype(np.float64)),
        s.means[s.present],
        compute_mode="donot_use_mm_for_euclid_dist",
    )
    chosen = torch.linalg.vector_norm(
        torch.from_numpy(features.astype(np.float64)) - s.means[predicted], dim=1
    )
    # Ties may fall either way, but no class with samples is nearer.
    np.testing.assert_allclose(chosen.numpy(), distances.min(dim=1).values.numpy(), atol=1e-7)
    assert bool(s.counts[predicted].all())


@settings(max_examples=40, deadline=None)
@given(problem=problems())
def test_accuracy_and_self_duality(problem):
    features, labels, num_classes = problem
    # Off the grid of quarters, so that no two distances tie.
    rng = np.random.default_rng(0)
    features = (features + rng.uniform(-0.1, 0.1, features.shape)).astype(features.dtype)
    s = deeprep.class_scatter(features, labels, num_classes)
    assert metrics.ncc_accuracy(s, features, labels) == reference.ncc_accuracy(features, labels)
    decisions = np.roll(labels, 1)
    found = metrics.ncc_mismatch(s, features, decisions)
    assert found == pytest.approx(reference.ncc_mismatch(features, labels, decisions), abs=1e-12)
    weight = rng.standard_normal((num_classes, features.shape[1]))
    assert metrics.self_duality(s, torch.from_numpy(weight)) == near(
        reference.self_duality(features, labels, weight), features
    )
