"""probe, nearest_class, ncc_accuracy: degenerate input, NumPy least squares, streaming."""

import math

import numpy as np
import pytest
import torch

import deeprep
from deeprep import UndefinedStatisticError, metrics
from deeprep.metrics import class_means


def problem(num_samples, num_features, num_classes=4, rank=None, offset=0.0, dtype=np.float64):
    rng = np.random.default_rng(num_samples + num_features)
    labels = np.arange(num_samples) % num_classes
    rank = rank or num_features
    features = (
        rng.standard_normal((num_samples, rank)) + rng.standard_normal((num_classes, rank))[labels]
    )
    if rank < num_features:
        features = features @ rng.standard_normal((rank, num_features)) / math.sqrt(rank)
    return (features + offset).astype(dtype), labels


def least_squares(features, labels):
    """Scores (N, K) of numpy.linalg.lstsq with a column of ones for the bias."""
    columns = np.column_stack([features.astype(np.float64), np.ones(len(features))])
    # A cut-off for the rounding of float32 features, which lstsq would otherwise fit.
    solution = np.linalg.lstsq(columns, np.eye(labels.max() + 1)[labels], rcond=1e-6)[0]
    return columns @ solution


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "settings",
    [
        {"num_samples": 300, "num_features": 10},
        {"num_samples": 30, "num_features": 80},
        {"num_samples": 300, "num_features": 60, "rank": 8},
        {"num_samples": 30, "num_features": 60, "rank": 8},
        {"num_samples": 300, "num_features": 10, "offset": 100.0},
        {"num_samples": 7, "num_features": 1},
    ],
    ids=str,
)
def test_probe_equals_numpy_least_squares(settings, dtype):
    features, labels = problem(**settings, dtype=dtype)
    fitted = metrics.probe(deeprep.class_scatter(features, labels, full=True))
    expected = least_squares(features, labels)
    scores = features @ fitted.weight.numpy().T + fitted.bias.numpy()
    np.testing.assert_allclose(scores, expected, atol=1e-4 if dtype == np.float32 else 1e-8)
    accuracy = float(np.mean(expected.argmax(axis=1) == labels))
    assert fitted.accuracy(features, labels) == accuracy
    if settings["num_samples"] <= settings.get("rank", settings["num_features"]):
        assert accuracy == 1.0


def test_probe_minimises_its_loss():
    features, labels = problem(50, 5)
    ridge = 0.3
    fitted = metrics.probe(deeprep.class_scatter(features, labels, full=True), ridge)
    weight = fitted.weight.clone().requires_grad_()
    bias = fitted.bias.clone().requires_grad_()
    targets = torch.eye(4, dtype=torch.float64)[labels]
    residuals = torch.from_numpy(features) @ weight.T + bias - targets
    (residuals.square().sum() / 50 + ridge * weight.square().sum()).backward()
    assert weight.grad.abs().max() < 1e-12
    assert bias.grad.abs().max() < 1e-12


@pytest.mark.filterwarnings("ignore:2 of 6 classes")
def test_probe_never_predicts_an_empty_class():
    features, labels = problem(40, 3)
    fitted = metrics.probe(deeprep.class_scatter(features, labels + 1, 6, full=True))
    assert not fitted.weight[[0, 5]].any()
    far = 100.0 * np.random.default_rng(0).standard_normal((1000, 3))
    assert set(fitted.predict(far).tolist()) <= {1, 2, 3, 4}


def test_probe_of_one_class_and_of_constant_features():
    labels = np.zeros(3, dtype=np.int64)
    one = metrics.probe(deeprep.class_scatter(np.eye(3), labels, full=True))
    assert one.accuracy(np.eye(3), labels) == 1.0
    constant = deeprep.class_scatter(np.full((3, 2), 0.1), np.array([0, 1, 1]), full=True)
    fitted = metrics.probe(constant)
    assert not fitted.weight.any()  # nothing to learn but the shares of the classes
    np.testing.assert_allclose(fitted.bias.numpy(), [1 / 3, 2 / 3])


def test_probe_of_nonfinite_features():
    s = deeprep.class_scatter(np.array([[1.0], [math.inf]]), np.array([0, 1]), full=True)
    with pytest.warns(UserWarning, match=r"probe is nan.* 1 class \(1\)"):
        fitted = metrics.probe(s)
    assert fitted.weight.isnan().all()
    assert fitted.predict(np.ones((2, 1))).tolist() == [-1, -1]
    assert math.isnan(fitted.accuracy(np.ones((1, 1)), np.array([0])))


def test_products_that_overflow_are_reported():
    # The sum of squares of each class fits float64, that of both does not.
    features = 3.8e152 * torch.randn(2000, 1, dtype=torch.float64).sign()
    s = deeprep.class_scatter(features, torch.arange(2000) % 2, full=True)
    for statistic in (metrics.effective_rank, metrics.nc1):
        with pytest.warns(UserWarning, match=f"{statistic.__name__} is nan: .*overflow"):
            assert math.isnan(statistic(s))
    with pytest.warns(UserWarning, match=r"probe is nan: .*overflow"):
        assert metrics.probe(s).weight.isnan().all()


@pytest.mark.parametrize("ridge", [-1.0, math.inf, math.nan])
def test_bad_ridge(ridge):
    s = deeprep.class_scatter(*problem(10, 2), full=True)
    with pytest.raises(ValueError, match=r"ridge is .*expected a finite number >= 0"):
        metrics.probe(s, ridge)


def test_no_samples():
    empty = deeprep.ClassScatter(3, 2, full=True)
    features, labels = torch.ones(1, 2), torch.tensor([0])
    for name, arguments in {
        "probe": (),
        "nearest_class": (features,),
        "ncc_accuracy": (features, labels),
        "ncc_mismatch": (features, labels),
    }.items():
        message = f"{name} needs at least one class with samples, found 0 of 3"
        with pytest.raises(UndefinedStatisticError, match=message):
            getattr(metrics, name)(empty, *arguments)


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (torch.ones(5), ValueError, r"features has shape \(5,\), expected \(N, 2\)"),
        (torch.ones(5, 3), ValueError, r"features has shape \(5, 3\), expected \(N, 2\)"),
        (torch.ones(5, 2, dtype=torch.int64), TypeError, r"features has dtype torch.int64"),
        ([[1.0, 2.0]], TypeError, "features is a list"),
    ],
)
def test_features_that_do_not_fit(features, error, message):
    s = deeprep.class_scatter(*problem(10, 2), full=True)
    with pytest.raises(error, match=message):
        metrics.nearest_class(s, features)
    with pytest.raises(error, match=message):
        metrics.probe(s).predict(features)


def test_labels_that_do_not_fit():
    features, labels = problem(10, 2)
    s = deeprep.class_scatter(features, labels)
    with pytest.raises(ValueError, match=r"labels has shape \(9,\), expected \(10,\)"):
        metrics.ncc_accuracy(s, features, labels[:9])
    with pytest.raises(UndefinedStatisticError, match="ncc_accuracy needs at least one row"):
        metrics.ncc_accuracy(s, features, np.full(10, -100))
    with pytest.raises(UndefinedStatisticError, match="ncc_accuracy needs at least one row"):
        metrics.ncc_accuracy(s, features[:0], labels[:0])
    with pytest.raises(UndefinedStatisticError, match="ncc_mismatch needs at least one row"):
        metrics.ncc_mismatch(s, features, np.full(10, -100))


def test_ignored_rows_do_not_count():
    features, labels = problem(20, 3)
    s = deeprep.class_scatter(features, labels, full=True, ignore_index=7)
    ignored = np.where(np.arange(20) < 10, labels, 7)
    assert metrics.ncc_accuracy(s, features, ignored) == metrics.ncc_accuracy(
        s, features[:10], labels[:10]
    )
    fitted = metrics.probe(s)
    assert fitted.accuracy(features, ignored, ignore_index=7) == fitted.accuracy(
        features[:10], labels[:10]
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_is_read(dtype):
    features, labels = problem(40, 6)
    features = torch.from_numpy(features).to(dtype)
    labels = torch.from_numpy(labels)
    s = deeprep.class_scatter(features, labels, full=True)
    wide = features.double()
    assert torch.equal(metrics.nearest_class(s, features), metrics.nearest_class(s, wide))
    fitted = metrics.probe(s)
    assert torch.equal(fitted.predict(features), fitted.predict(wide))


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_blocks_change_nothing_even_far_from_the_origin(offset, monkeypatch):
    features, labels = problem(60, 5, offset=offset, dtype=np.float32)
    s = deeprep.class_scatter(features, labels, full=True)
    fitted = metrics.probe(s)
    # Distances from differences, which far from the origin are the ones that keep their digits.
    distances = (torch.from_numpy(features).double()[:, None] - s.means).square().sum(dim=2)
    nearest, predicted = distances.argmin(dim=1), fitted.predict(features)
    monkeypatch.setattr(class_means, "TILE_ENTRIES", 35)  # blocks of 7 rows
    assert torch.equal(metrics.nearest_class(s, features), nearest)
    assert torch.equal(fitted.predict(features), predicted)
    hits = sum(
        int((metrics.nearest_class(s, features[rows]).numpy() == labels[rows]).sum())
        for rows in (slice(0, 13), slice(13, 60))
    )
    assert hits / 60 == metrics.ncc_accuracy(s, features, labels)


def test_bad_rows_are_predicted_as_no_class():
    s = deeprep.class_scatter(*problem(10, 2), full=True)
    rows = torch.tensor([[math.nan, 0.0], [0.0, 0.0]])
    assert metrics.nearest_class(s, rows)[0] == -1
    assert metrics.nearest_class(s, rows)[1] >= 0
    assert metrics.probe(s).predict(rows)[0] == -1


def test_a_model_that_decides_by_the_nearest_mean_has_no_mismatch():
    features, labels = problem(30, 3)
    s = deeprep.class_scatter(features, labels)
    decisions = metrics.nearest_class(s, features)
    assert metrics.ncc_mismatch(s, features, decisions) == 0.0
    decisions[:3] = (decisions[:3] + 1) % 4
    decisions[3:10] = s.ignore_index
    assert metrics.ncc_mismatch(s, features, decisions) == 3 / 23


def test_no_rows():
    s = deeprep.class_scatter(*problem(10, 2))
    assert metrics.nearest_class(s, torch.ones(0, 2)).tolist() == []


def test_nonfinite_state():
    s = deeprep.class_scatter(torch.tensor([[1.0], [math.nan]]), torch.tensor([0, 1]))
    with pytest.warns(UserWarning, match="nearest_class is -1"):
        assert metrics.nearest_class(s, torch.ones(2, 1)).tolist() == [-1, -1]
    with pytest.warns(UserWarning, match="ncc_accuracy is nan"):
        assert math.isnan(metrics.ncc_accuracy(s, torch.ones(1, 1), torch.tensor([0])))
