"""Test data: means, probe and classifier of one loader, scored on another; against NumPy."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch
from probe_models import ResidualNet, make_batches
from torch import distributed, nn

import deeprep
from deeprep import LayerProbe, LayerReport, analyze, metrics, reference


class Encoder(nn.Module):
    """A small transformer over tokens, its classifier on their mean."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.embeddings = nn.Embedding(20, 12)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(12, 2, 24, batch_first=True, dropout=0.1) for _ in range(2)
        )
        self.drop = nn.Dropout(0.1)
        self.classifier = nn.Linear(12, num_classes)

    def forward(self, input_ids):
        hidden = self.embeddings(input_ids)
        for block in self.blocks:
            hidden = block(hidden)
        return self.classifier(self.drop(hidden.mean(dim=1)))


class Residual(nn.Module):
    """A small residual network of images."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
            for _ in range(2)
        )
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images):
        hidden = self.stem(images)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.fc(hidden.mean(dim=(2, 3)))


def sentences(seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(90) % 3
    ids = torch.randint(20, (90, 7), generator=generator)
    marked = torch.rand(90, 7, generator=generator) < 0.3
    return torch.where(marked, labels.unsqueeze(1), ids), labels


def images(seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(90) % 3
    pattern = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    return 0.7 * pattern[labels] + torch.randn(90, 1, 6, 6, generator=generator), labels


def trained(model, inputs, labels):
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(25):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model


def batches(inputs, labels, size=40):
    return list(zip(inputs.split(size), labels.split(size), strict=True))


def stored(model, name, inputs):
    """Features, reduced to their mean over positions, that a layer gave for all inputs at once."""
    kept = []
    module = model.get_submodule(name)
    handle = module.register_forward_hook(lambda _, args, output: kept.append((args[0], output)))
    model.eval()
    with torch.no_grad():
        scores = model(inputs)
    handle.remove()
    ((given, output),) = kept
    return given.numpy(), output.numpy(), scores.numpy()


def mean_over_positions(features):
    if features.ndim == 4:
        return features.mean(axis=(2, 3))
    return features.mean(axis=1) if features.ndim == 3 else features


def accuracy(weight, bias, features, labels):
    return float(np.mean((features @ weight.T + bias).argmax(axis=1) == labels))


CASES = {
    "encoder": (Encoder, sentences, "blocks.1", "classifier"),
    "residual network": (Residual, images, "blocks.1", "fc"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_quartet_and_test_accuracies_are_those_of_stored_features(case):
    make, draw, layer, classifier = CASES[case]
    (inputs, labels), (test_inputs, test_labels) = draw(2), draw(3)
    model = trained(make(), inputs, labels).double()
    if case == "residual network":
        inputs, test_inputs = inputs.double(), test_inputs.double()
    report = analyze(
        model,
        batches(inputs, labels),
        3,
        layers=layer,
        reduce="mean",
        full=True,
        accuracy=True,
        test_loader=batches(test_inputs, test_labels, 25),
    )
    y, y_test = labels.numpy(), test_labels.numpy()

    # A layer: the accuracies of what was fitted to the training data.
    rows, test_rows = (
        mean_over_positions(stored(model, layer, x)[1]) for x in (inputs, test_inputs)
    )
    (found,), (tested,) = (
        [row for row in each.layers if row.name == layer] for each in (report, report.test)
    )
    ridge = reference.choose_ridge(rows, y)
    assert found.probe_ridge == tested.probe_ridge == pytest.approx(ridge, rel=1e-6)
    weight, bias = reference.probe(rows, y, ridge=ridge)
    assert found.probe_accuracy == pytest.approx(accuracy(weight, bias, rows, y), abs=1e-12)
    expected = accuracy(weight, bias, test_rows, y_test)
    assert tested.probe_accuracy == pytest.approx(expected, abs=1e-12)
    assert found.ncc_accuracy == reference.ncc_accuracy(rows, y)
    assert tested.ncc_accuracy == reference.ncc_accuracy(rows, y, test_rows, y_test)
    for each, of in ((found, (rows, y)), (tested, (test_rows, y_test))):
        for name in ("compression", "discrimination", "nc1", "cdnv"):
            expected = getattr(reference, name)(*of)
            assert getattr(each, name) == pytest.approx(expected, rel=1e-6), name

    # The quartet: what enters the classifier, its weight and its decisions.
    given, _, scores = stored(model, classifier, inputs)
    test_given, _, test_scores = stored(model, classifier, test_inputs)
    head = model.get_submodule(classifier).weight.detach().numpy()
    for each, features, classes, decided in (
        (report, given, y, scores),
        (report.test, test_given, y_test, test_scores),
    ):
        collapse = each.neural_collapse
        assert collapse.classifier == classifier
        assert collapse.reasons == {}
        for name in ("nc1", "equinorm", "equiangularity", "etf_error"):
            expected = getattr(reference, name)(features, classes)
            assert getattr(collapse, name) == pytest.approx(expected, rel=1e-6), name
        expected = reference.self_duality(features, classes, head)
        assert collapse.self_duality == pytest.approx(expected, rel=1e-6)
        decisions = decided.argmax(axis=1)
        expected = reference.ncc_mismatch(given, y, decisions, features)
        assert collapse.ncc_mismatch == pytest.approx(expected, abs=1e-12)
        assert collapse.model_accuracy == np.mean(decisions == classes)
    assert report.test.num_samples == 90
    assert 0.4 < report.test.neural_collapse.model_accuracy < 1.0


def test_the_training_columns_do_not_know_of_the_test_data():
    model, data = ResidualNet(), make_batches()
    alone = analyze(model, data, 3, full=True, accuracy=True, ridge="auto")
    other = [(5 * x, (y + 1) % 3) for x, y in data]
    beside = analyze(model, data, 3, full=True, accuracy=True, test_loader=other)
    assert beside.layers == alone.layers
    assert beside.neural_collapse == alone.neural_collapse
    plain = analyze(model, data, 3, full=True, accuracy=True)
    assert all(layer.probe_ridge is None for layer in plain.layers)
    assert plain.test is None


def test_test_data_are_read_once_and_need_no_accuracy():
    model, data = ResidualNet(), make_batches()
    calls = []
    report = analyze(
        model, data, 3, test_loader=iter(data), progress=lambda *step: calls.append(step)
    )
    assert [done for done, _ in calls] == [1, 2, 3, 4, 5, 6]
    assert all(layer.ncc_accuracy is None for layer in report.layers)
    expected = analyze(model, data, 3, accuracy=True)
    for found, wanted in zip(report.test.layers, expected.layers, strict=True):
        assert found == wanted  # the test data are the training data
    calls.clear()
    analyze(model, data, 3, accuracy=True, test_loader=data, progress=lambda *x: calls.append(x))
    assert calls == [(step, 9) for step in range(1, 10)]


def test_classes_that_only_one_of_the_loaders_has():
    model, data = ResidualNet(), make_batches(num_classes=3)
    fewer = [(x[y < 2], y[y < 2]) for x, y in data]
    report = analyze(model, data, 3, test_loader=fewer)
    assert report.test.num_samples == 40
    assert report.test.layers[0].ncc_accuracy == pytest.approx(
        metrics.ncc_accuracy(
            deeprep.class_scatter(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])),
            torch.cat([x for x, _ in fewer]),
            torch.cat([y for _, y in fewer]),
        )
    )
    assert any(
        text.startswith("test data: ") and "1 of 3 classes" in text for text in report.warnings
    )
    # Samples of a class without a mean are never right, and count.
    report = analyze(model, fewer, 3, test_loader=data)
    new = [(x[y == 2], y[y == 2]) for x, y in data]
    only_new = analyze(model, fewer, 3, test_loader=new).test
    assert report.test.num_samples == 60
    assert only_new.layers[0].ncc_accuracy == 0.0
    assert only_new.layers[0].directional_cdnv is None
    assert only_new.neural_collapse.model_accuracy is not None


def test_ignored_test_samples_do_not_count():
    model, data = ResidualNet(), make_batches()
    ignored = [(x, torch.where(torch.arange(len(y)) % 2 == 0, 7, y)) for x, y in data]
    kept = [(x[y != 7], y[y != 7]) for x, y in ignored]
    found = analyze(model, data, 3, test_loader=ignored, ignore_index=7).test
    wanted = analyze(model, data, 3, test_loader=kept).test
    assert found.num_samples == wanted.num_samples
    for one, other in zip(found.layers, wanted.layers, strict=True):
        assert one.ncc_accuracy == other.ncc_accuracy
        assert one.compression == pytest.approx(other.compression, rel=1e-6)
    assert found.neural_collapse.ncc_mismatch == wanted.neural_collapse.ncc_mismatch


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        ([], ValueError, "test_loader gave no batch, expected one at least"),
        (iter([]), ValueError, "test_loader gave no sample"),
        ([(torch.randn(4, 4), torch.full((4,), -100))], ValueError, "test_loader gave no sample"),
        ([(torch.randn(4, 4), torch.tensor([0, 1, 2, 3]))], ValueError, "test_loader: labels"),
        ([(torch.randn(4, 4), torch.ones(4))], TypeError, "test_loader: labels has dtype"),
        ([torch.randn(4, 4)], ValueError, "test_loader gave a Tensor"),
        (torch.randn(4, 4), TypeError, "test_loader is a Tensor"),
    ],
)
def test_test_loaders_that_do_not_fit_are_named(loader, error, message):
    with pytest.raises(error, match=message):
        analyze(ResidualNet(), make_batches(), 3, test_loader=loader)


def test_an_empty_list_is_refused_before_the_model_runs():
    class Untouched(ResidualNet):
        def forward(self, inputs):
            raise AssertionError("the model ran")

    with pytest.raises(ValueError, match="test_loader gave no batch"):
        analyze(Untouched(), make_batches(), 3, test_loader=[])


@pytest.mark.parametrize("ridge", [-1.0, math.nan, "best"])
def test_a_ridge_that_is_none_is_refused(ridge):
    with pytest.raises(ValueError, match="ridge is"):
        analyze(ResidualNet(), make_batches(), 3, full=True, accuracy=True, ridge=ridge)


def test_a_report_of_test_data_is_written_and_read(tmp_path):
    model, data = ResidualNet(), make_batches()
    other = [(x + 0.5, y) for x, y in data]
    report = analyze(model, data, 3, full=True, accuracy=True, test_loader=other)
    report.to_json(tmp_path / "report.json")
    again = LayerReport.from_dict(json.loads((tmp_path / "report.json").read_text()))
    assert again == report
    report.to_csv(tmp_path / "layers.csv")
    with (tmp_path / "layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, layer, tested in zip(rows, report.layers, report.test.layers, strict=True):
        for name in ("compression", "discrimination", "probe_accuracy", "ncc_accuracy"):
            assert float(row[name]) == getattr(layer, name)
            assert float(row[f"test_{name}"]) == getattr(tested, name)
    frame = report.to_pandas()
    assert list(frame["test_nc1"]) == [layer.nc1 for layer in report.test.layers]
    assert frame.attrs["test_num_samples"] == 60
    text = str(report)
    assert all(heading in text for heading in ("probe, test", "NCC, test", "C_l, test"))
    assert "neural collapse at the input of" in text or "no NC1 to NC4" in text
    assert "probe, test" in report._repr_html_()
    assert "training accuracies" in report.caption
    assert "test: 60 other samples" in report.caption
    assert "training accuracies" in analyze(model, data, 3, accuracy=True).caption
    assert "accuracies" not in analyze(model, data, 3).caption


def measure_in_a_group(rank, size, store, results):
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(store), size), rank=rank, world_size=size
    )
    torch.manual_seed(0)
    model, data = ResidualNet(), make_batches()
    # The last process has no training batch, the first no test batch.
    train = [data, []][rank]
    test = [[], [(x + 0.5, y) for x, y in data]][rank]
    report = analyze(model, train, 3, accuracy=True, full=True, test_loader=test, all_reduce=True)
    results.put(report)
    distributed.destroy_process_group()


def test_all_processes_find_what_one_does(run_ranks):
    exit_codes, results = run_ranks(measure_in_a_group, 2)
    assert exit_codes == [0, 0]
    first, second = (results.get(timeout=10) for _ in exit_codes)
    assert first == second
    torch.manual_seed(0)
    model, data = ResidualNet(), make_batches()
    alone = analyze(
        model, data, 3, accuracy=True, full=True, test_loader=[(x + 0.5, y) for x, y in data]
    )
    assert first.neural_collapse == alone.neural_collapse
    assert first.test.neural_collapse == alone.test.neural_collapse
    for one, other in zip(first.test.layers, alone.test.layers, strict=True):
        assert one.probe_accuracy == other.probe_accuracy
        assert one.compression == pytest.approx(other.compression, rel=1e-9)


def test_a_new_batch_takes_the_scores_of_the_test_data_away():
    model, data = ResidualNet(), make_batches()
    probe = LayerProbe(model, 3)
    probe.run(data)
    scores = probe.score(data, test=True)
    assert probe.test_scores is scores
    assert probe.scores is None
    assert probe.report().test.num_samples == 60
    with pytest.raises(RuntimeError, match="all_reduce comes after score"):
        probe.all_reduce()
    probe.run(data)
    assert probe.test_scores is None
    assert probe.report().test is None
