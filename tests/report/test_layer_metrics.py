"""What is measured of a layer, what is left out, and what is said of it."""

from __future__ import annotations

import math

import pytest
import torch

import deeprep
from deeprep import LayerReport, metrics
from deeprep.report import LayerScores, full_metrics, layer_metrics

OF_FULL = full_metrics.OF_FULL
OF_CLASSES = ("cdnv", "equinorm", "equiangularity", "etf_error", "gnc2")


def scatter(classes, features, *, full=False, empty=()):
    labels = torch.arange(6 * classes) % classes
    kept = ~torch.isin(labels, torch.tensor(empty, dtype=labels.dtype))
    means = torch.randn(classes, features) + 2.0
    rows = means[labels] + 0.3 * torch.randn(len(labels), features)
    return deeprep.class_scatter(rows[kept], labels[kept], num_classes=classes, full=full)


def measure(s, **options):
    report = LayerReport.from_scatters({"layer": s}, **options)
    return report.layers[0], report.warnings


@pytest.mark.parametrize(("classes", "features"), [(7, 5), (4, 300), (2, 1), (70, 3)])
def test_metrics_are_those_of_deeprep_metrics(classes, features):
    s = scatter(classes, features, full=True)
    layer, _ = measure(s)
    assert layer.compression == deeprep.compression(s)
    assert layer.discrimination == deeprep.discrimination(s)
    assert layer.closest_classes == metrics.closest_classes(s)[:2]
    for name in (*OF_CLASSES, *OF_FULL):
        if name == "alpha_req" and features < 13:
            assert layer.alpha_req is None
            continue
        expected = getattr(metrics, name)(s)
        assert getattr(layer, name) == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True)
    assert layer.numerical_rank == metrics.numerical_rank(s)


def test_classes_without_samples_keep_their_numbers():
    s = scatter(6, 200, empty=(0, 3))
    layer, notes = measure(s)
    assert layer.cdnv == pytest.approx(metrics.cdnv(s), rel=1e-12)
    assert {index for pair in layer.closest_pairs for index in pair[:2]} == {1, 2, 4, 5}
    assert [note for note in notes if "2 of 6 classes have no samples" in note] == notes


def test_means_that_coincide_do_so_in_the_basis_of_their_span_too():
    labels = torch.arange(12) % 3
    same = deeprep.class_scatter(torch.randn(4, 50).repeat_interleave(3, 0) * 1e3, labels)
    layer, notes = measure(same)
    assert layer.cdnv == math.inf
    assert math.isnan(layer.etf_error)
    assert any("equinorm" in note and "all class means coincide" in note for note in notes)


def test_the_ranks_and_nc1_need_full_states():
    layer, notes = measure(scatter(5, 4))
    assert layer.nc1 is layer.numerical_rank is layer.effective_rank is layer.rankme is None
    assert notes == []


def test_only_what_is_named_is_measured():
    s = scatter(5, 4, full=True)
    two, _ = measure(s, metrics=())
    assert two.compression is not None
    assert two.discrimination is not None
    assert {name for name in layer_metrics.CHOOSABLE if getattr(two, name) is not None} == set()
    some, _ = measure(s, metrics=["compression", "gnc2", "stable_rank"])
    measured = {name for name in layer_metrics.CHOOSABLE if getattr(some, name) is not None}
    assert measured == {"gnc2", "stable_rank"}


def test_metrics_that_cannot_be_had_are_refused():
    states = {"layer": scatter(5, 4)}
    with pytest.raises(ValueError, match=r"metrics holds 'ncl', expected some of cdnv, "):
        LayerReport.from_scatters(states, metrics=["ncl"])
    with pytest.raises(TypeError, match="metrics is 'cdnv', expected 'auto' or a list"):
        LayerReport.from_scatters(states, metrics="cdnv")
    with pytest.raises(ValueError, match="metrics holds 'nc1', which needs states with full=True"):
        LayerReport.from_scatters(states, metrics=["nc1"])
    states["head"] = scatter(5, 4, full=True)
    report = LayerReport.from_scatters(states, metrics=["nc1"])
    assert [layer.nc1 is None for layer in report.layers] == [True, False]
    assert report.warnings == ["layer 'layer': nc1 is left out: this state has full=False"]


def test_auto_leaves_out_what_would_take_long_and_says_so(monkeypatch):
    monkeypatch.setattr(layer_metrics, "PAIR_WORK", 99.0)
    s = scatter(5, 4)
    layer, notes = measure(s)
    assert layer.cdnv is layer.gnc2 is layer.etf_error is layer.equiangularity is None
    assert layer.equinorm == pytest.approx(metrics.equinorm(s))
    assert layer.discrimination == deeprep.discrimination(s)
    assert len(notes) == 1
    assert "cdnv, equiangularity, etf_error, gnc2 are left out" in notes[0]
    assert "K^2 d products, here more than 1e+02;" in notes[0]
    named, notes = measure(s, metrics=["cdnv"])
    assert named.cdnv == pytest.approx(metrics.cdnv(s))
    assert notes == []


def test_one_note_says_that_a_layer_is_not_finite():
    s = scatter(5, 4, full=True)
    s.update(torch.full((1, 4), math.inf), torch.tensor([3]))
    layer, notes = measure(s, jackknife=True)
    for name in ("compression", "discrimination", *OF_CLASSES, "nc1", "rankme"):
        assert math.isnan(getattr(layer, name)), name
    assert layer.closest_classes is layer.closest_pairs is layer.numerical_rank is None
    assert len(notes) == 1
    assert "every metric is nan: the features of 1 class (3) hold NaN or Inf" in notes[0]


def test_one_note_says_that_classes_are_missing():
    one = scatter(3, 4, full=True, empty=(0, 2))
    layer, notes = measure(one, jackknife=True)
    assert layer.compression is layer.discrimination is layer.cdnv is layer.nc1 is None
    assert layer.closest_pairs is layer.closest_pairs_centered is None
    assert layer.numerical_rank == metrics.numerical_rank(one)
    assert notes == [
        "layer 'layer': one class with samples: nothing that compares two classes is defined",
        "layer 'layer': 2 of 3 classes have no samples and are left out",
    ]
    layer, notes = measure(deeprep.ClassScatter(3, 4, full=True), jackknife=True)
    assert layer.compression is layer.numerical_rank is None
    assert notes == ["layer 'layer': no samples: there was no batch, or every label was ignored"]


def test_a_mean_without_direction_leaves_the_compression():
    s = deeprep.class_scatter(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 1, 1]))
    layer, notes = measure(s)
    assert layer.compression == deeprep.compression(s)
    assert math.isnan(layer.discrimination)
    assert layer.closest_classes is None
    assert any("discrimination is nan: the means of 1 class (0) are zero" in n for n in notes)


def test_alpha_is_left_out_of_narrow_layers_unless_it_is_named():
    narrow = scatter(5, 4, full=True)
    layer, notes = measure(narrow)
    assert layer.alpha_req is None
    assert layer.participation_ratio == metrics.participation_ratio(narrow)
    assert notes == []
    layer, notes = measure(narrow, metrics=["alpha_req"])
    assert math.isnan(layer.alpha_req)
    assert "alpha_req is nan: 4 eigenvalues are above rounding" in notes[0]


def test_lidar_of_single_samples_is_a_note():
    layer, notes = measure(deeprep.class_scatter(torch.eye(5), torch.arange(5), full=True))
    assert layer.lidar is None
    assert layer.vci == pytest.approx(0.0, abs=1e-9)
    assert any("lidar needs at least two samples in one class" in note for note in notes)


def test_one_class_has_a_spectrum_and_nothing_that_compares_two():
    labels = torch.zeros(30, dtype=torch.int64)
    layer, notes = measure(deeprep.class_scatter(torch.randn(30, 20), labels, full=True))
    assert layer.vci is layer.h_score is layer.lidar is layer.separation_fuzziness is None
    assert layer.participation_ratio > 1
    assert layer.alpha_req > 0
    assert len(notes) == 1


def test_no_decomposition_is_computed_twice(monkeypatch):
    s = scatter(5, 40, full=True)
    seen = []
    for name in ("svd", "eigh", "eigvalsh", "cholesky_ex"):
        original = getattr(torch.linalg, name)

        def watched(matrix, *args, original=original, name=name, **options):
            seen.append((name, matrix.clone()))
            return original(matrix, *args, **options)

        monkeypatch.setattr(torch.linalg, name, watched)
    measure(s)
    # The means; T and Z'Z; T and Sigma_w. Thirty samples leave T and Sigma_w without an inverse.
    assert [name for name, _ in seen] == ["svd", "cholesky_ex", "eigh", "cholesky_ex", "eigvalsh"]
    for index, (name, matrix) in enumerate(seen):
        others = [other for kind, other in seen[:index] if kind == name]
        assert not any(torch.equal(matrix, other) for other in others)


def test_jackknife_and_correction_are_passed_on():
    s = scatter(5, 4)
    layer, _ = measure(s)
    assert layer.compression_error is layer.discrimination_error is None
    layer, _ = measure(s, weighting="prior", corrected=True, jackknife=True)
    assert layer.compression == deeprep.compression(s, "prior", corrected=True)
    errors = metrics.jackknife(s, "prior", corrected=True)
    assert (layer.compression_error, layer.discrimination_error) == errors
    layer, notes = measure(scatter(3, 4), jackknife=True)
    assert layer.compression_error is layer.discrimination_error is None
    assert len(notes) == 1
    assert "jackknife needs at least four classes with samples, found 3 of 3" in notes[0]


def test_scores_of_a_second_pass_are_taken_over():
    s = scatter(5, 4)
    scores = {"first": LayerScores(0.75, 0.5, 0.125)}
    report = LayerReport.from_scatters({"first": s, "second": s}, scores)
    first, second = report.layers
    assert (first.probe_accuracy, first.ncc_accuracy, first.directional_cdnv) == (0.75, 0.5, 0.125)
    assert second.probe_accuracy is second.ncc_accuracy is second.directional_cdnv is None


@pytest.mark.parametrize(("classes", "kept"), [(2, 1), (9, 36), (64, 2016), (65, 50), (150, 50)])
def test_closest_pairs_are_all_of_few_classes_and_the_first_of_many(classes, kept):
    s = scatter(classes, 3)
    pairs = measure(s, metrics=())[0].closest_pairs
    expected = metrics.closest_pairs(s, kept)
    assert [pair[:2] for pair in pairs] == [pair[:2] for pair in expected]
    assert [pair.cosine for pair in pairs] == [round(pair.cosine, 6) for pair in expected]


@pytest.mark.parametrize(
    ("classes", "features", "kept"), [(2, 3, 1), (9, 300, 36), (64, 3, 2016), (65, 3, 50)]
)
def test_centered_pairs_are_those_of_the_centered_search(classes, features, kept):
    s = scatter(classes, features)
    pairs = measure(s)[0].closest_pairs_centered
    expected = metrics.closest_pairs(s, kept, centered=True)
    assert len(pairs) == kept
    assert [pair.cosine for pair in pairs] == pytest.approx(
        [pair.cosine for pair in expected], abs=1.1e-6
    )
    assert pairs[0].cosine == pytest.approx(
        1.0 - deeprep.discrimination(s, centered=True), abs=1e-6
    )
    assert all(pair.cosine == round(pair.cosine, 6) for pair in pairs)


def test_centered_pairs_differ_where_the_means_lie_in_one_direction():
    labels = torch.arange(40) % 4
    rows = 100.0 + torch.eye(4)[labels] + 0.01 * torch.randn(40, 4)
    layer, _ = measure(deeprep.class_scatter(rows, labels))
    assert min(pair.cosine for pair in layer.closest_pairs) > 0.999
    assert max(pair.cosine for pair in layer.closest_pairs_centered) < -0.3


def test_centered_pairs_of_many_classes_are_measured_with_the_other_metrics_of_pairs(monkeypatch):
    few, many = scatter(64, 3), scatter(65, 3)
    assert measure(few, metrics=())[0].closest_pairs_centered is not None
    assert measure(many, metrics=())[0].closest_pairs_centered is None
    monkeypatch.setattr(layer_metrics, "PAIR_WORK", 99.0)
    assert measure(many)[0].closest_pairs_centered is None
    assert measure(many)[0].closest_pairs is not None


def test_a_mean_without_direction_leaves_the_centered_pairs():
    s = deeprep.class_scatter(torch.tensor([[0.0], [1.0], [3.0], [3.0]]), torch.arange(4))
    layer, notes = measure(s, metrics=())
    assert layer.closest_pairs is None
    assert layer.closest_pairs_centered[0] == (0, 1, 1.0)
    central = deeprep.class_scatter(torch.tensor([[-1.0], [0.0], [1.0]]) + 5.0, torch.arange(3))
    layer, notes = measure(central, metrics=())
    assert layer.closest_pairs_centered is None
    assert len(layer.closest_pairs) == 3
    message = "closest_pairs_centered is nan: the centred means of 1 class (1) are zero"
    assert any(message in note for note in notes)


def test_one_class_that_is_not_finite_has_a_note_that_says_so():
    s = deeprep.class_scatter(torch.randn(40, 20), torch.zeros(40, dtype=torch.int64), full=True)
    s.update(torch.full((1, 20), math.nan), torch.tensor([0]))
    layer, notes = measure(s)
    assert layer.vci is layer.h_score is layer.nc1 is layer.numerical_rank is None
    assert math.isnan(layer.participation_ratio)
    assert math.isnan(layer.rankme)
    assert len(notes) == 2
    assert notes[1].startswith("layer 'layer': participation_ratio, alpha_req, numerical_rank, ")
    assert notes[1].endswith(" are nan: the features of 1 class (0) hold NaN or Inf")
    assert len(measure(s, metrics=["vci"])[1]) == 1
