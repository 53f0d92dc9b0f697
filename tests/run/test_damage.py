"""Runs that cannot go on, and disks that are full: one line that names the file, and no harm."""

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import deeprep
from deeprep import plots
from deeprep.data import DataSettings
from deeprep.models import ModelSettings
from deeprep.run import main, run
from deeprep.run.record import RunDirectory
from deeprep.run.settings import OptimizationSettings, RunSettings, Settings

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


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


FLAGS = [
    *("--depth", "3", "--width", "8", "--classes", "3", "--samples-per-class", "10"),
    *("--batch-size", "16", "--epochs", "4", "--threads", "1", "--device", "cpu"),
]


@pytest.mark.parametrize("name", [[], ["--name", "mine"]])
def test_a_file_in_the_place_of_runs_dir_is_an_error(tmp_path, capsys, name):
    path = tmp_path / "file"
    path.write_text("notes")
    (tmp_path / "link").symlink_to("nowhere")
    for runs_dir in (path, path / "deeper", tmp_path / "link"):
        message = error_of([*FLAGS, *name, "--runs-dir", runs_dir], capsys)
        assert message.startswith(f"runs_dir is {runs_dir}, expected a directory")
    assert path.read_text() == "notes"


def test_a_runs_dir_that_cannot_be_written_to_is_an_error(tmp_path, monkeypatch, capsys):
    def refuse(self, *arguments, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    message = error_of([*FLAGS, "--runs-dir", tmp_path], capsys)
    wanted = "expected a directory that can be written to (Permission denied)"
    assert message == f"runs_dir is {tmp_path}, {wanted}"


def fill_disk_at(monkeypatch, name, times):
    """Writing a file of this name fails the n-th time, half of it written."""
    opened = Path.open
    count = 0

    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self.file.close()

        def write(self, data):
            self.file.write(data[: len(data) // 2])
            raise FULL

    def open_(self, mode="r", *arguments, **options):
        nonlocal count
        file = opened(self, mode, *arguments, **options)
        if "w" not in mode or name not in self.name:
            return file
        count += 1
        return Full(file) if count == times else file

    monkeypatch.setattr(Path, "open", open_)


@pytest.mark.parametrize(
    ("name", "suffix", "times"),
    [
        ("checkpoint", ".pt", 1),
        ("checkpoint", ".pt", 3),
        ("metrics", ".jsonl", 1),
        ("metrics", ".jsonl", 3),
        ("layers", ".csv", 1),
    ],
)
def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(
    tmp_path, monkeypatch, capsys, whole, name, suffix, times
):
    with monkeypatch.context() as patch:
        fill_disk_at(patch, name, times)
        message = error_of([*FLAGS, "--runs-dir", tmp_path], capsys)
    directory = tmp_path / "mlp-digits-seed0"
    assert (
        message == f"[Errno {errno.ENOSPC}] No space left on device: '{directory / name}{suffix}'"
    )
    assert not [path for path in directory.iterdir() if "partial" in path.name]
    if times > 1:
        assert RunDirectory.open(directory).load_checkpoint().epoch == times - 2
    assert main(["--resume", str(directory)]) == 0
    assert contents(directory)["metrics.jsonl"] == contents(whole)["metrics.jsonl"]


@pytest.mark.skipif(sys.platform == "win32", reason="the limit of a process is of POSIX")
def test_when_the_system_itself_runs_out(tmp_path):
    """Not simulated: files of this process may not grow beyond what a checkpoint needs."""
    script = (
        "import resource, signal, sys\n"
        "from deeprep.run import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", script, *FLAGS, "--width", "128", "--runs-dir", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(deeprep.__file__).parent.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    path = tmp_path / "mlp-digits-seed0/checkpoint.pt"
    assert done.returncode == 1
    assert done.stderr == f"error: [Errno {errno.EFBIG}] File too large: '{path}'\n"


def test_a_full_disk_at_the_start_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    fill_disk_at(monkeypatch, "config", 1)
    message = error_of([*FLAGS, "--runs-dir", tmp_path / "runs"], capsys)
    assert message.endswith("mlp-digits-seed0/config.json'")
    assert list((tmp_path / "runs").iterdir()) == []
