"""Runs that cannot go on: one line that names the file, and no harm done."""

import json
import pickle
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deeprep import plots
from deeprep.data import DataSettings
from deeprep.models import ModelSettings
from deeprep.run import main, run
from deeprep.run.settings import OptimizationSettings, RunSettings, Settings


@pytest.fixture(autouse=True)
def _keep_threads(restore_threads):
    """Runs set the number of threads."""


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    """Drawing takes most of the time."""
    for name in ("plot_compression", "plot_discrimination", "plot_evolution"):
        monkeypatch.setattr(plots, name, lambda report, path: path.touch())


def small_settings(runs_dir, width=8, **optimization):
    return Settings(
        model=ModelSettings(depth=3, width=width),
        data=DataSettings(classes=(3,), samples_per_class=10),
        optimization=OptimizationSettings(batch_size=16, **{"epochs": 4, **optimization}),
        run=RunSettings(runs_dir=runs_dir, threads=1, device="cpu"),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The directory of a finished run."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("plot_compression", "plot_discrimination", "plot_evolution"):
            patch.setattr(plots, name, lambda report, path: path.touch())
        return run(small_settings(tmp_path_factory.mktemp("whole"))).path


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def error_of(arguments, capsys):
    """The one line on stderr of a command that fails."""
    capsys.readouterr()
    assert main([str(each) for each in arguments]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    return printed.removeprefix("error: ").rstrip("\n")


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("epoch 12\n")


def other_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "weights")


def code(path):
    path.write_bytes(pickle.dumps(Path("anything but tensors")))


def state_dict(path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)


def numbers(path):
    torch.save([1, 2, 3], path)


def other_type(path):
    torch.save({**torch.load(path), "epoch": "last"}, path)


@pytest.mark.parametrize(
    "damage", [truncated, emptied, text, other_zip, code, state_dict, numbers, other_type]
)
def test_a_file_that_is_no_checkpoint_is_named(copy, capsys, damage):
    path = copy / "checkpoint.pt"
    damage(path)
    before = contents(copy)
    message = error_of(["--resume", copy], capsys)
    assert message.startswith(f"{path} is ")
    assert "expected a checkpoint of deeprep.run" in message
    assert contents(copy) == before


def test_without_the_damaged_checkpoint_the_run_begins_anew(copy, whole):
    (copy / "checkpoint.pt").unlink()
    assert main(["--resume", str(copy)]) == 0
    assert contents(copy)["metrics.jsonl"] == contents(whole)["metrics.jsonl"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"width": 16},
            "its layer1.linear.weight is of shape (16, 64), expected of shape (8, 64) for",
        ),
        ({"optimizer": "adam"}, "its optimizer is without dampening, momentum, expected"),
        ({"epochs": 9}, "its epoch is 9, expected in 0..4"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(copy, tmp_path, capsys, other, message):
    foreign = run(small_settings(tmp_path / "foreign", **other)).path
    shutil.copy(foreign / "checkpoint.pt", copy)
    found = error_of(["--resume", copy], capsys)
    assert found.startswith(f"{copy / 'checkpoint.pt'} does not fit config.json: {message}")


def test_a_checkpoint_of_a_deeper_network_is_refused(copy, tmp_path, capsys):
    settings = small_settings(tmp_path / "foreign")
    deeper = run(replace(settings, model=replace(settings.model, depth=4))).path
    shutil.copy(deeper / "checkpoint.pt", copy)
    found = error_of(["--resume", copy], capsys)
    assert "its layer3.linear.weight is of shape (8, 8), expected missing for this" in found


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-40], ", line 5 is not valid JSON: "),
        (lambda data: data + b"\xff\n", ", line 6 is not valid JSON: "),
        (lambda data: b"12\n" + data, ", line 1 is another kind of data, expected a measurement"),
        (lambda data: b'{"loss": 0.5}\n', ", line 1 is another kind of data, expected a measure"),
        (lambda data: data.replace(b'"loss": ', b'"loss": "low", "l": '), ", line 1 is another"),
        (lambda data: data.replace(b'"layers"', b'"rows"'), ", line 1 is no measurement of"),
        (lambda data: b"", " is without measurements, expected one of epoch 0"),
    ],
)
def test_damaged_metrics_are_named_with_the_line(copy, capsys, damage, message):
    path = copy / "metrics.jsonl"
    path.write_bytes(damage(path.read_bytes()))
    before = contents(copy)
    assert error_of(["--resume", copy], capsys).startswith(f"{path}{message}")
    assert contents(copy) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["settings"]["optimization"].update(lr="fast"), 'optimization.lr is "fast"'),
        (lambda c: c["settings"]["optimization"].update(lr=-1.0), "lr is -1.0, expected finite"),
        (lambda c: c["settings"]["optimization"].update(lr=None), "optimization.lr is null"),
        (lambda c: c["settings"]["optimization"].pop("lr"), "optimization.lr is null, expected a"),
        (lambda c: c["settings"]["model"].update(arch="linear", linear_layers=1), "linear_layers"),
        (lambda c: c["settings"].update(extra={}), "extra is not a group of settings"),
        (lambda c: c["settings"].pop("data"), "data is missing, expected the groups"),
        (lambda c: c.pop("settings"), "settings is null, expected the groups"),
    ],
)
def test_a_wrong_config_is_named_with_the_setting(copy, capsys, change, message):
    path = copy / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    assert error_of(["--resume", copy], capsys).startswith(f"{path}: {message}")


def test_a_config_that_is_no_json_is_named(copy, capsys):
    truncated(copy / "config.json")
    assert error_of(["--resume", copy], capsys).startswith(f"{copy}/config.json is not valid JSON")


def test_a_file_is_no_run_directory(copy, capsys):
    path = copy / "layers.csv"
    wanted = f"resume is {path}, expected a run directory with a config.json"
    assert error_of(["--resume", path], capsys) == wanted
