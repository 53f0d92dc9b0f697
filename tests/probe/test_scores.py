"""Scores: the metrics that need a second pass, batch by batch, over layers and processes."""

import math

import numpy as np
import pytest
import torch
from torch import distributed

import deeprep
from deeprep import metrics
from deeprep.metrics import class_means
from deeprep.probe.scores import Scores
from deeprep.report import LayerScores


def problem(num_classes=5, num_features=7, num_samples=90, dtype=torch.float32, offset=0.0):
    labels = torch.arange(num_samples) % num_classes
    means = torch.randn(num_classes, num_features, dtype=torch.float64)
    noise = torch.randn(num_samples, num_features, dtype=torch.float64)
    return (means[labels] + noise + offset).to(dtype), labels


def score(scatter, *batches):
    scores = Scores({"layer": scatter})
    for features, labels in batches:
        scores.update("layer", features, labels)
    return scores.result()["layer"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_batches_of_any_size_give_the_metrics_of_the_whole(dtype, offset):
    features, labels = problem(dtype=dtype, offset=offset)
    s = deeprep.class_scatter(features, labels, full=True)
    found = score(s, *zip(features.split(17), labels.split(17), strict=True))
    assert found.ncc_accuracy == metrics.ncc_accuracy(s, features, labels)
    assert found.probe_accuracy == metrics.probe(s).accuracy(features, labels)
    expected = metrics.directional_cdnv(s, features, labels)
    assert found.directional_cdnv == pytest.approx(expected, rel=1e-9)
    assert 0.2 < found.ncc_accuracy < 1.0  # neither chance nor all: the counts count


@pytest.mark.filterwarnings("ignore:2 of 7 classes")
def test_ignored_rows_and_empty_classes():
    features, labels = problem()
    labels = torch.where(labels == 3, 6, labels)  # classes 3 and 5 are empty
    ignored = torch.where(torch.arange(90) % 4 == 0, 9, labels)
    kept = ignored != 9
    s = deeprep.class_scatter(features, ignored, 7, full=True, ignore_index=9)
    # What is ignored may be anything.
    poisoned = torch.where(kept.unsqueeze(1), features, torch.nan)
    found = score(s, (poisoned[:50], ignored[:50]), (poisoned[50:], ignored[50:]))
    whole = deeprep.class_scatter(features[kept], labels[kept], 7, full=True)
    assert found.ncc_accuracy == metrics.ncc_accuracy(whole, features[kept], labels[kept])
    assert found.probe_accuracy == metrics.probe(whole).accuracy(features[kept], labels[kept])
    expected = metrics.directional_cdnv(whole, features[kept], labels[kept])
    assert found.directional_cdnv == pytest.approx(expected, rel=1e-9)


def test_one_hot_and_int32_labels():
    features, labels = problem()
    s = deeprep.class_scatter(features, labels, full=True)
    expected = score(s, (features, labels))
    assert score(s, (features, labels.int())) == expected
    assert score(s, (features, torch.eye(5)[labels])) == expected


def test_no_probe_without_the_full_state():
    features, labels = problem()
    found = score(deeprep.class_scatter(features, labels), (features, labels))
    assert found.probe_accuracy is None
    assert found.ncc_accuracy is not None
    assert found.directional_cdnv is not None


def test_layers_without_scores():
    features, labels = problem()
    bad = features.clone()
    bad[3, 2] = math.inf
    scatters = {
        "bad": deeprep.class_scatter(bad, labels, full=True),
        "good": deeprep.class_scatter(features, labels),
        "unseen": deeprep.ClassScatter(5, 7),
        "not run again": deeprep.class_scatter(features, labels),
    }
    scores = Scores(scatters)
    for name, x in (("bad", bad), ("good", features), ("unseen", features)):
        scores.update(name, x, labels)
    result = scores.result()
    assert list(result) == list(scatters)
    assert result["bad"] == result["unseen"] == result["not run again"] == LayerScores()
    assert result["good"].ncc_accuracy is not None


def test_products_that_overflow_leave_the_other_scores():
    # The sum of squares of each class fits float64, that of both does not.
    features = 3.8e152 * torch.randn(2000, 1, dtype=torch.float64).sign()
    labels = torch.arange(2000) % 2
    found = score(deeprep.class_scatter(features, labels, full=True), (features, labels))
    assert found.probe_accuracy is None
    assert 0.4 < found.ncc_accuracy < 0.7


def test_one_class_and_coinciding_means():
    features, labels = problem(num_classes=1)
    s = deeprep.class_scatter(features, labels, full=True)
    assert score(s, (features, labels)) == LayerScores(1.0, 1.0, None)
    # A dead layer: all rows are one, the first class wins, and no line joins the means.
    dead, labels = torch.full((6, 3), 0.1), torch.arange(6) % 3
    s = deeprep.class_scatter(dead, labels)
    assert score(s, (dead, labels)) == LayerScores(None, 1 / 3, None)


def test_rows_that_became_nan_are_misses():
    features, labels = problem()
    s = deeprep.class_scatter(features, labels)
    found = score(s, (torch.full_like(features, torch.nan), labels))
    assert found == LayerScores(None, 0.0, None)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("other", torch.ones(2, 7), torch.tensor([0, 1])), ValueError, "layer is 'other'"),
        (("layer", torch.ones(2, 6), torch.tensor([0, 1])), ValueError, r"expected \(N, 7\)"),
        (("layer", torch.ones(2, 7), torch.tensor([0])), ValueError, r"labels has shape \(1,\)"),
        (("layer", torch.ones(2, 7), torch.ones(2)), TypeError, "labels has dtype torch.float32"),
        (("layer", torch.ones(2, 7).int(), torch.tensor([0, 1])), TypeError, "features has dtype"),
    ],
)
def test_batches_that_do_not_fit(arguments, error, message):
    scores = Scores({"layer": deeprep.class_scatter(*problem())})
    with pytest.raises(error, match=message):
        scores.update(*arguments)
    assert scores.result()["layer"] == LayerScores()


def test_nothing_is_read_back_before_the_result(monkeypatch):
    features, labels = problem()
    scores = Scores({"layer": deeprep.class_scatter(features, labels, full=True)})

    def refuse(*arguments, **keywords):
        raise AssertionError("waits for the device")

    for name in ("item", "tolist", "nonzero", "__bool__", "__int__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    monkeypatch.setattr(torch, "nonzero", refuse)
    scores.update("layer", features, labels)
    monkeypatch.undo()
    assert scores.result()["layer"].ncc_accuracy > 0


@pytest.mark.parametrize("entries", [20, 200])
def test_blocks_change_nothing(entries, monkeypatch):
    features, labels = problem()
    s = deeprep.class_scatter(features, labels, full=True)
    whole = score(s, (features, labels))
    monkeypatch.setattr(class_means, "TILE_ENTRIES", entries)
    found = score(s, (features, labels))
    assert found.ncc_accuracy == whole.ncc_accuracy
    assert found.probe_accuracy == whole.probe_accuracy
    assert found.directional_cdnv == pytest.approx(whole.directional_cdnv, rel=1e-12)


def shares_of_the_data():
    rng = np.random.default_rng(0)
    labels = torch.arange(60) % 3
    features = torch.from_numpy(rng.standard_normal((60, 4))) + torch.eye(3, 4)[labels]
    # The second process sees nothing.
    return (features, labels), (features[:0], labels[:0])


def score_in_a_group(rank, size, store, results):
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(store), size), rank=rank, world_size=size
    )
    (features, labels), _ = shares_of_the_data()
    # The first time one process has all rows, the second time each has a half.
    s = deeprep.class_scatter(features, labels, full=True)
    found = []
    for shares in (
        shares_of_the_data(),
        ((features[::2], labels[::2]), (features[1::2], labels[1::2])),
    ):
        scores = Scores({"a": s, "empty": deeprep.ClassScatter(3, 4), "b": s})
        for layer in ("a", "b"):
            scores.update(layer, *shares[rank])
        scores.all_reduce()
        found.append(scores.result())
    results.put(found)
    distributed.destroy_process_group()


def test_processes_add_up(run_ranks):
    exit_codes, results = run_ranks(score_in_a_group, 2)
    assert exit_codes == [0, 0]
    found = [results.get(timeout=10) for _ in exit_codes]
    (features, labels), _ = shares_of_the_data()
    whole = score(deeprep.class_scatter(features, labels, full=True), (features, labels))
    for result in (*found[0], *found[1]):
        assert result["a"] == result["b"]
        assert result["empty"] == LayerScores()
        assert result["a"].ncc_accuracy == whole.ncc_accuracy
        assert result["a"].probe_accuracy == whole.probe_accuracy
        assert result["a"].directional_cdnv == pytest.approx(whole.directional_cdnv, rel=1e-12)


def test_rows_with_nan_are_wrong_whatever_their_class():
    features, labels = problem(num_classes=2, num_samples=20)
    scatter = deeprep.class_scatter(features, labels, full=True)
    rows = torch.full((4, 7), math.nan)
    rows[2:] = math.inf
    found = score(scatter, (rows, torch.tensor([0, 1, 0, 1])))
    assert found.probe_accuracy == found.ncc_accuracy == 0.0
