"""Run directories: names, contents, and that what is there is always whole."""

import json
from pathlib import Path

import pytest
import torch

import deeprep
from deeprep.data import Batches
from deeprep.models import ModelSettings
from deeprep.probe import analyze
from deeprep.run.defaults import resolve
from deeprep.run.record import Checkpoint, Measurement, RunDirectory
from deeprep.run.settings import RunSettings, Settings

CPU = torch.device("cpu")


def not_json(constant):
    raise AssertionError(f"{constant} is not JSON")


@pytest.fixture
def settings(tmp_path):
    return resolve(Settings(run=RunSettings(runs_dir=tmp_path / "runs")))


@pytest.fixture(scope="module")
def report():
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    batches = Batches(torch.randn(20, 4), torch.arange(20) % 2, 0)
    return analyze(model, batches, num_classes=2)


@pytest.fixture(scope="module")
def undefined_report():
    """A report with infinite and undefined statistics: all features are equal."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    return analyze(model, Batches(torch.zeros(20, 4), torch.arange(20) % 2, 0), num_classes=2)


def test_default_names_are_counted_up(settings, tmp_path):
    names = [RunDirectory.create(settings, CPU).path.name for _ in range(3)]
    assert names == ["mlp-digits-seed0", "mlp-digits-seed0-2", "mlp-digits-seed0-3"]


def test_a_given_name_is_never_overwritten(tmp_path):
    settings = resolve(Settings(run=RunSettings(runs_dir=tmp_path, name="mine")))
    RunDirectory.create(settings, CPU)
    before = (tmp_path / "mine/config.json").read_bytes()
    with pytest.raises(FileExistsError, match=r"mine exists, expected a new name"):
        RunDirectory.create(settings, CPU)
    assert (tmp_path / "mine/config.json").read_bytes() == before


def test_config_says_how_the_run_was_made(settings):
    directory = RunDirectory.create(settings, CPU)
    config = json.loads((directory.path / "config.json").read_text(), parse_constant=not_json)
    environment = config["environment"]
    assert environment["core"]["torch"] == torch.__version__
    assert {"python", "numpy", "platform", "commit", "device"} <= environment.keys()
    assert {"compiler", "simd", "cuda", "num_threads", "deeprep"} <= environment["core"].keys()
    checkout = Path(deeprep.__file__).resolve().parents[1] / ".git"
    assert (environment["commit"] is not None) == checkout.exists()
    assert RunDirectory.open(directory.path).settings() == settings


def test_measurements_survive_the_file(settings, report, undefined_report):
    directory = RunDirectory.create(settings, CPU)
    directory.add_measurement(Measurement(0, 1.5, 0.1, undefined_report))
    directory.add_measurement(Measurement(3, 0.5, 0.9, report))
    text = (directory.path / "metrics.jsonl").read_text()
    lines = [json.loads(line, parse_constant=not_json) for line in text.splitlines()]
    assert [(line["epoch"], line["loss"], line["accuracy"]) for line in lines] == [
        (0, 1.5, 0.1),
        (3, 0.5, 0.9),
    ]
    reopened = RunDirectory.open(directory.path)
    assert reopened.measurements[1] == directory.measurements[1]
    reopened.forget_after(2)
    assert (directory.path / "metrics.jsonl").read_text() == text.splitlines()[0] + "\n"


def test_summaries_are_written_also_from_undefined_statistics(settings, report, undefined_report):
    directory = RunDirectory.create(settings, CPU)
    assert [path.name for path in directory.write_summaries()] == ["config.json"]
    for epoch, each in enumerate([undefined_report, report]):
        directory.add_measurement(Measurement(epoch, 1.0, 0.5, each))
        names = {path.name for path in directory.write_summaries()}
    figures = {"compression.png", "discrimination.png", "evolution.png"}
    assert names == {"config.json", "metrics.jsonl", "layers.csv"} | figures
    for figure in figures:
        assert (directory.path / figure).read_bytes().startswith(b"\x89PNG")


def test_checkpoints_survive_the_file(settings):
    directory = RunDirectory.create(settings, CPU)
    assert directory.load_checkpoint() is None
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    directory.save_checkpoint(Checkpoint(7, False, model.state_dict(), optimizer.state_dict()))
    loaded = directory.load_checkpoint()
    assert (loaded.epoch, loaded.finished) == (7, False)
    assert torch.equal(loaded.model["weight"], model.weight)
    moments = optimizer.state_dict()["state"][0]["exp_avg_sq"]
    assert torch.equal(loaded.optimizer["state"][0]["exp_avg_sq"], moments)


def test_a_failing_write_leaves_the_old_checkpoint(settings, monkeypatch):
    directory = RunDirectory.create(settings, CPU)
    directory.save_checkpoint(Checkpoint(1, False, {}, {}))

    def fail(state, file):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space"):
        directory.save_checkpoint(Checkpoint(2, False, {}, {}))
    assert directory.load_checkpoint().epoch == 1
    assert {path.name for path in directory.path.iterdir()} == {"config.json", "checkpoint.pt"}


def test_other_directories_are_not_taken_for_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"resume is .*expected a run directory"):
        RunDirectory.open(tmp_path)


def test_names_say_what_was_run(tmp_path):
    run = RunSettings(runs_dir=tmp_path, seed=5)
    settings = resolve(Settings(model=ModelSettings(arch="linear"), run=run))
    assert RunDirectory.create(settings, CPU).path.name == "linear-digits-seed5"
