"""The figures on real data: trainings on made-up files, verdicts on the paper's own numbers."""

import copy
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from figures import drawn

from deeprep.data import DataSettings, mnist_cifar
from deeprep.experiments import fig1, fig3, fig5, fig7, training
from deeprep.experiments.experiment import Options
from deeprep.experiments.training import layer_features, train_network
from deeprep.experiments.workspace import Workspace
from deeprep.models import ModelSettings
from deeprep.probe import analyze
from deeprep.run import RunStopped
from deeprep.run.settings import MeasurementSettings, OptimizationSettings, RunSettings, Settings


def write_fashion(folder, rng, samples_per_class=12):
    """Ten noisy patterns, in the files of FashionMNIST."""
    labels = np.arange(10 * samples_per_class, dtype=np.uint8) % 10
    patterns = rng.integers(0, 200, (10, 28, 28))
    images = (patterns[labels] + rng.integers(0, 50, (len(labels), 28, 28))).astype(np.uint8)
    folder.mkdir(parents=True)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
        (folder / f"train-{name}-ubyte").write_bytes(header + array.tobytes())


def write_cifar10(folder, rng, samples_per_class=10):
    """Ten noisy patterns, in the files of CIFAR-10."""
    folder.mkdir(parents=True)
    names = [f"class {label}" for label in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    patterns = rng.integers(0, 200, (10, 3072))
    labels = np.arange(2 * samples_per_class) % 10
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        pixels = (patterns[labels] + rng.integers(0, 50, (len(labels), 3072))).astype(np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels.tolist()}))


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """Made-up files of both data sets, and networks that train in a moment."""
    rng = np.random.default_rng(0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mnist_cifar, "_STANDARD_PLACES", (Path("data"), tmp_path / "cache"))
    # torchvision compares checksums with those of the published files, which these are not.
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
    write_fashion(tmp_path / "data" / "fashion-mnist", rng)
    write_cifar10(tmp_path / "data" / "cifar-10-batches-py", rng)
    for figure in (fig1, fig7):
        monkeypatch.setattr(figure, "WIDTH", {True: 32, False: 24})
        monkeypatch.setattr(figure, "EPOCHS", {True: 2, False: 2})
        monkeypatch.setattr(figure, "SAMPLES_PER_CLASS", {True: None, False: 10})
    monkeypatch.setattr(fig1, "PROBE", replace(fig1.PROBE, epochs=2))
    monkeypatch.setattr(fig3, "SAMPLES_PER_CLASS", {True: 5, False: 5})
    monkeypatch.setattr(fig3, "find_spec", lambda name: None)  # UMAP compiles for many seconds
    monkeypatch.setattr(training, "_TRAINED_HERE", set())
    return tmp_path


@pytest.fixture
def trainings(monkeypatch):
    """How often a network was trained, or went on."""
    calls = []

    def counted(start):
        calls.append(start)
        return run(start)

    run = training.run
    monkeypatch.setattr(training, "run", counted)
    return calls


def workspace(out, name, *, resume=False):
    return Workspace(out / name, resume=resume, say=lambda text: None)


def small(out, **changes):
    run = Settings(
        model=ModelSettings(arch="mlp", depth=3, width=8),
        data=DataSettings(samples_per_class=10),
        optimization=OptimizationSettings(epochs=2),
        measurement=MeasurementSettings(measurements=2),
        run=RunSettings(seed=1, device="cpu", runs_dir=out / "runs", name="small"),
    )
    return replace(run, **changes)


# ---------------------------------------------------------------- training


def test_a_network_is_trained_once_in_a_process_and_again_in_the_next(tmp_path, trainings):
    first = train_network(small(tmp_path), resume=False)
    assert [measured.epoch for measured in first.measurements] == [0, 1, 2]
    assert train_network(small(tmp_path), resume=False).path == first.path
    assert len(trainings) == 1
    training._TRAINED_HERE.clear()
    train_network(small(tmp_path), resume=False)
    assert len(trainings) == 2


def test_resuming_takes_a_finished_network_of_the_same_settings_only(tmp_path, trainings):
    first = train_network(small(tmp_path), resume=True)
    training._TRAINED_HERE.clear()
    found = train_network(small(tmp_path), resume=True)
    assert len(trainings) == 1
    assert found.measurements == first.measurements
    longer = train_network(
        small(tmp_path, optimization=OptimizationSettings(epochs=3)), resume=True
    )
    assert len(trainings) == 2
    assert longer.measurements[-1].epoch == 3


def test_a_stopped_network_goes_on_to_the_same_end(tmp_path, monkeypatch):
    whole = train_network(small(tmp_path / "whole"), resume=False)
    run = training.run

    def stopped_at_first(start):
        """Leaves what a signal in the first epoch leaves."""
        directory = run(start)
        checkpoint = directory.load_checkpoint()
        untrained = torch.load(tmp_path / "untrained.pt", weights_only=True)
        directory.save_checkpoint(replace(checkpoint, epoch=0, finished=False, **untrained))
        raise RunStopped(2, directory.path)

    save = training.RunDirectory.save_checkpoint

    def keep_first(self, checkpoint):
        if checkpoint.epoch == 0:
            kept = {"model": checkpoint.model, "optimizer": checkpoint.optimizer}
            torch.save(kept, tmp_path / "untrained.pt")
        save(self, checkpoint)

    monkeypatch.setattr(training.RunDirectory, "save_checkpoint", keep_first)
    monkeypatch.setattr(training, "run", stopped_at_first)
    with pytest.raises(KeyboardInterrupt):
        train_network(small(tmp_path), resume=False)
    monkeypatch.setattr(training, "run", run)
    resumed = train_network(small(tmp_path), resume=True)
    assert resumed.measurements == whole.measurements


def test_layer_features_are_those_that_were_measured(tmp_path):
    directory = train_network(small(tmp_path), resume=False)
    found = layer_features(directory, [1, 2], torch.device("cpu"))
    assert found.labels.bincount().tolist() == [10] * 10
    for layer, features in found.features.items():
        report = analyze(torch.nn.Flatten(), [(features, found.labels)], 10)
        measured = directory.measurements[-1].report.layers[layer]
        assert report.layers[0].compression == pytest.approx(measured.compression, rel=1e-5)
    few = layer_features(directory, [2], torch.device("cpu"), samples_per_class=3)
    assert few.features[2].shape == (30, 8)
    assert few.labels.bincount().tolist() == [3] * 10


# ---------------------------------------------------------------- figures 1, 5 and 3


@pytest.mark.parametrize("full", [False, True])
def test_three_figures_look_at_the_same_networks(made_up, trainings, full):
    options = Options(full=full, seeds=2)
    maps = [f"{arch}, layer {layer}" for arch in fig1.ARCHS for layer in fig3.LAYERS]
    for figure, panels in (
        (fig1, ["numerical rank / width", "training accuracy of a linear probe"]),
        (fig5, ["compression $C_l$", "discrimination $D_l$"]),
        (fig3, maps),
    ):
        name = figure.EXPERIMENT.name
        numbers = figure.compute(options, workspace(made_up / "out", name))
        assert len(trainings) == 4  # an MLP and a hybrid network of each seed, of figure 1
        quantities = [check.quantity for check in figure.check(numbers)]
        assert len(set(quantities)) == len(quantities)
        assert {name.rpartition(", ")[2] for name in quantities} >= set(fig1.ARCHS)
        assert [axes.get_title() for axes in figure.plot(numbers).axes] == panels
    data = "cifar10" if full else "fashion-mnist"
    kept = made_up / "out" / "fig1" / "runs"
    names = {f"{arch}-{data}-seed{seed}" for arch in ("mlp", "hybrid") for seed in range(2)}
    assert {path.name for path in kept.iterdir()} == names
    for first, other in numbers["networks"].values():  # only the maps of the figure are kept
        assert set(first) - set(other) == {"maps", "labels", "class_names"}


def test_figure_1_full_size_is_the_authors(tmp_path):
    for arch, alpha in (("mlp", 1.0), ("hybrid", 100.0)):
        run = fig1.network_settings(arch, 0, True, torch.device("cpu"), tmp_path)
        assert (run.model.depth, run.model.width, run.model.init_scale) == (8, 1024, 0.1)
        assert (run.data.dataset, run.data.samples_per_class) == ("cifar10", None)
        optimization = run.optimization
        assert (optimization.lr, optimization.epochs, optimization.batch_size) == (1e-4, 400, 128)
        assert (optimization.alpha, optimization.momentum) == (alpha, 0.9)
        assert (optimization.weight_decay, optimization.final_lr_fraction) == (1e-4, 0.01)


def paper_networks(full=True):
    """What a run would give that meets the figures exactly."""
    networks = {}
    for arch in fig1.ARCHS:
        curves = {
            "numerical_rank": [None, *fig1.FIGURE_RANK[arch]],
            "probe_accuracy": [0.4, *fig1.FIGURE_PROBE[arch]],
            "compression": [30.0, *fig5.FIGURE_COMPRESSION[arch]],
            "discrimination": [0.01, *fig5.FIGURE_DISCRIMINATION[arch]],
            "accuracy": 1.0,
        }
        run = {"first": curves, "last": curves, "sgd_probe": fig1.FIGURE_PROBE[arch][0]}
        networks[arch] = [run]
    return {"full": full, "width": 1024, "networks": networks}


def failed(figure, numbers):
    return [check.quantity for check in figure.check(numbers) if not check.passed]


@pytest.mark.parametrize("full", [False, True])
def test_figures_1_and_5_pass_their_own_verdicts(full):
    assert failed(fig1, paper_networks(full)) == []
    assert failed(fig5, paper_networks(full)) == []
    for figure, paper in ((fig1, "paper (CIFAR-10)"), (fig5, "paper")):
        for axes in figure.plot(paper_networks(full)).axes:
            for arch in fig1.ARCHS:
                ours, theirs = (drawn(axes)[f"{arch}, {of}"] for of in ("ours", paper))
                assert ours[-7:] == pytest.approx(theirs)


def test_figure_1_tells_what_does_not_compress():
    numbers = paper_networks(full=False)
    last = numbers["networks"]["mlp"][0]["last"]
    last["numerical_rank"] = [None, 860, 870, 880, 890, 900, 910, 920]
    last["accuracy"] = 0.95
    assert failed(fig1, numbers) == [
        "training accuracy, mlp",
        "layer of the largest rank, mlp",
        "rank of the last layer / of that one, mlp",
    ]
    last["probe_accuracy"] = [0.4, *np.linspace(0.7, 0.98, 7)]
    assert "first layer whose probe reaches 99%, mlp" in failed(fig1, numbers)
    assert "rank, layer 7, mlp" in failed(fig1, {**numbers, "full": True})


def test_figure_5_tells_linear_layers_that_do_nothing():
    numbers = paper_networks(full=False)
    last = numbers["networks"]["hybrid"][0]["last"]
    last["compression"] = [30.0, 17.5, 9.3, 2.3, 2.29, 2.28, 2.27, 2.26]
    assert failed(fig5, numbers) == [
        "R^2 of the line of log C_l, l >= 1, hybrid",
        "log C_l a layer, 3 .. 7: hybrid (linear) / mlp",
    ]
    last["discrimination"] = last["discrimination"][::-1]
    assert "layer up to which D_l rises, hybrid" in failed(fig5, numbers)


def test_figure_3_judges_the_gain_in_the_map():
    silhouettes = {"1": 0.1, "2": 0.2, "4": 0.4, "6": 0.6}
    numbers = {
        "networks": {
            "mlp": [{"silhouettes": silhouettes}],
            "hybrid": [{"silhouettes": {**silhouettes, "6": 0.15}}],
        }
    }
    assert failed(fig3, numbers) == ["silhouette of the classes in the map, layer 1 to 6, hybrid"]


# ---------------------------------------------------------------- figure 7


def titles(figure):
    """Name of the data set over every column."""
    return [
        axes.get_title().removeprefix("$C_l$ on ").partition(";")[0]
        for axes in figure.axes
        if axes.get_title().startswith("$C_l$ on ")
    ]


def test_figure_7_trains_three_depths_on_the_data_there_are(made_up, trainings):
    numbers = fig7.compute(Options(), workspace(made_up / "out", "fig7"))
    assert list(numbers["networks"]) == ["fashion-mnist", "cifar10"]
    assert len(trainings) == 6
    for depth, runs in numbers["networks"]["cifar10"].items():
        assert len(runs[0]["compression"]) == int(depth)
    assert titles(fig7.plot(numbers)) == ["FashionMNIST", "CIFAR-10"]
    for path in (made_up / "data" / "cifar-10-batches-py").iterdir():
        path.unlink()
    (made_up / "data" / "cifar-10-batches-py").rmdir()
    numbers = fig7.compute(Options(), workspace(made_up / "out", "fig7", resume=True))
    assert list(numbers["networks"]) == ["fashion-mnist"]
    assert len(trainings) == 6
    missing = [check for check in fig7.check(numbers) if check.known]
    assert [check.quantity for check in missing] == ["CIFAR-10: depths trained"]
    assert titles(fig7.plot(numbers)) == ["FashionMNIST"]


def test_figure_7_passes_its_own_verdicts_and_tells_a_flat_line():
    networks = {
        dataset: {
            str(depth): [{"accuracy": 1.0, "compression": [30.0, *curve]}]
            for depth, curve in curves.items()
        }
        for dataset, curves in fig7.FIGURE.items()
    }
    assert failed(fig7, {"networks": networks}) == []
    upper = [axes for axes in fig7.plot({"networks": networks}).axes if axes.get_legend()]
    for axes in upper:
        for ours, paper in zip(axes.lines[::3], axes.lines[2::3], strict=True):
            assert list(ours.get_ydata()) == pytest.approx(list(paper.get_ydata()))
    flat = copy.deepcopy(networks)
    flat["cifar10"]["7"][0]["compression"] = [30.0, 17.0, 16.0, 15.0, 14.0, 13.0, 12.0]
    assert failed(fig7, {"networks": flat}) == [
        "CIFAR-10, L = 7: factor of C_l a layer",
        "CIFAR-10: slope of log C_l, steepest / flattest of the depths",
    ]
