"""The command line end to end: outputs, the theorem, stopping and resuming to the same bits."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import deeprep.run
import deeprep.run.device
from deeprep import plots
from deeprep.data import DataSettings
from deeprep.models import ModelSettings
from deeprep.run import RunStopped, main, run, session
from deeprep.run.record import RunDirectory
from deeprep.run.settings import MeasurementSettings, OptimizationSettings, RunSettings, Settings
from deeprep.run.train import NonFiniteLossError
from deeprep.theory import dln_compression_ratio, fit_line

OUTPUTS = {
    "config.json",
    "metrics.jsonl",
    "layers.csv",
    "compression.png",
    "discrimination.png",
    "evolution.png",
    "checkpoint.pt",
}
SMALL = [
    *("--width", "16", "--depth", "4", "--classes", "3", "--samples-per-class", "20"),
    *("--threads", "1", "--batch-size", "16", "--device", "cpu"),
]


@pytest.fixture(autouse=True)
def _keep_threads(restore_threads):
    """Runs set the number of threads."""


@pytest.fixture
def _no_figures(monkeypatch):
    """Where a test is about something else, drawing takes most of its time."""
    for name in ("plot_compression", "plot_discrimination", "plot_evolution"):
        monkeypatch.setattr(plots, name, lambda report, path: path.touch())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The directory of a run that nothing interrupted."""
    return run(small_settings(tmp_path_factory.mktemp("whole"))).path


def small_settings(runs_dir, **optimization):
    return Settings(
        model=ModelSettings(depth=4, width=16),
        data=DataSettings(classes=(3,), samples_per_class=20),
        optimization=OptimizationSettings(batch_size=16, **{"epochs": 30, **optimization}),
        run=RunSettings(runs_dir=runs_dir, threads=1, device="cpu"),
    )


def left_behind(directory):
    """What must be the same after a resume: measurements byte by byte, weights bit by bit."""
    checkpoint = RunDirectory.open(directory).load_checkpoint()
    return (directory / "metrics.jsonl").read_bytes(), checkpoint


def assert_same(directory, wanted):
    metrics, checkpoint = left_behind(directory)
    wanted_metrics, wanted_checkpoint = left_behind(wanted)
    assert metrics == wanted_metrics
    assert checkpoint.epoch == wanted_checkpoint.epoch
    assert checkpoint.finished
    assert wanted_checkpoint.finished
    for name, value in wanted_checkpoint.model.items():
        assert torch.equal(checkpoint.model[name], value), name


def test_the_command_leaves_a_complete_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*SMALL, "--epochs", "5", "--arch", "hybrid", "--linear-layers", "1"]) == 0
    directory = tmp_path / "runs/hybrid-digits-seed0"
    assert {path.name for path in directory.iterdir()} == OUTPUTS
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3, 4, 5]
    with (directory / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["input", "layer1", "layer2", "layer3"]
    last = lines[-1]["report"]["layers"]
    assert [float(row["compression"]) for row in rows] == [layer["compression"] for layer in last]
    printed = capsys.readouterr().out
    assert "C_l is multiplied by" in printed
    assert "runs/hybrid-digits-seed0/evolution.png" in printed
    assert "epoch     5  loss" in printed, "one line per measurement where there is no terminal"


@pytest.mark.usefixtures("_no_figures")
@pytest.mark.parametrize("alpha", [1.0, 100.0])
def test_a_linear_network_obeys_the_closed_form(tmp_path, alpha):
    settings = Settings(
        model=ModelSettings(arch="linear"),
        data=DataSettings(dataset="orthogonal"),
        optimization=OptimizationSettings(alpha=alpha),
        run=RunSettings(runs_dir=tmp_path, device="cpu"),
    )
    report = run(settings).measurements[-1].report
    compression = np.array([layer.compression for layer in report.layers[1:]])
    predicted = dln_compression_ratio(0.3, depth=6, samples_per_class=10, alpha=alpha)
    np.testing.assert_allclose(compression[1:] / compression[:-1], predicted, rtol=0.05)
    discrimination = [layer.discrimination for layer in report.layers[1:]]
    fit = fit_line(range(1, 6), discrimination)
    assert fit.slope > 0
    assert fit.r_squared > 0.98


@pytest.mark.usefixtures("_no_figures")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_epoch_and_the_run_can_go_on(tmp_path, monkeypatch, whole, number):
    train = session.train

    def interrupted(*args, **options):
        for result in train(*args, **options):
            if result.epoch == 11:  # not an epoch at which layers are measured
                signal.raise_signal(number)
            yield result

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(session, "train", interrupted)
        with pytest.raises(RunStopped, match=r"continue with: .* --resume") as stopped:
            run(small_settings(tmp_path / "stopped"))
    assert stopped.value.signal_number == number
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    directory = tmp_path / "stopped/mlp-digits-seed0"
    assert {path.name for path in directory.iterdir()} == OUTPUTS
    assert RunDirectory.open(directory).load_checkpoint().epoch == 11
    assert main(["--resume", str(directory)]) == 0
    assert_same(directory, whole)


def test_a_second_signal_stops_at_once_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    def interrupted(*args, **options):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        yield from ()

    monkeypatch.setattr(session, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(small_settings(tmp_path))
    assert RunDirectory.open(tmp_path / "mlp-digits-seed0").load_checkpoint().epoch == 0


@pytest.mark.usefixtures("_no_figures")
@pytest.mark.parametrize("last_write", [1, 2, 4])
def test_a_crash_between_two_files_is_made_good(tmp_path, monkeypatch, whole, last_write):
    """Measurements are written before the checkpoint of their epoch: then they are ahead of it."""
    save, calls = RunDirectory.save_checkpoint, []

    def crash(self, checkpoint):
        calls.append(checkpoint.epoch)
        if len(calls) == last_write:
            raise MemoryError
        save(self, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "save_checkpoint", crash)
        with pytest.raises(MemoryError):
            run(small_settings(tmp_path / "crashed"))
    directory = tmp_path / "crashed/mlp-digits-seed0"
    run(RunDirectory.open(directory))
    assert_same(directory, whole)


@pytest.mark.usefixtures("_no_figures")
def test_a_killed_process_can_be_continued_to_the_same_bits(tmp_path):
    command = [sys.executable, "-m", "deeprep.run", *SMALL, "--epochs", "200"]
    root = Path(deeprep.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    metrics = tmp_path / "runs/mlp-digits-seed0/metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) >= 5):
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert RunDirectory.open(metrics.parent).load_checkpoint().epoch < 200
    run(RunDirectory.open(metrics.parent))
    uninterrupted = run(small_settings(tmp_path / "uninterrupted", epochs=200))
    assert_same(metrics.parent, uninterrupted.path)


@pytest.mark.usefixtures("_no_figures")
def test_a_finished_run_is_not_changed_by_resuming(whole):
    metrics, checkpoint = left_behind(whole)
    run(RunDirectory.open(whole))
    assert left_behind(whole)[0] == metrics
    assert left_behind(whole)[1].epoch == checkpoint.epoch


@pytest.mark.usefixtures("_no_figures")
def test_a_run_of_an_earlier_version_goes_on(tmp_path, whole):
    directory = tmp_path / "earlier"
    directory.mkdir()
    text = (whole / "config.json").read_text()
    assert '"final_lr_fraction": 0.01' in text
    (directory / "config.json").write_text(text.replace("final_lr_fraction", "final_lr"))
    assert main(["--resume", str(directory)]) == 0
    assert_same(directory, whole)


@pytest.mark.usefixtures("_no_figures")
def test_early_stopping_measures_the_last_epoch(tmp_path):
    directory = run(small_settings(tmp_path, lr=0.05, epochs=200, stop_loss=0.2))
    checkpoint = directory.load_checkpoint()
    assert checkpoint.finished
    assert 0 < checkpoint.epoch < 200
    assert directory.measurements[-1].epoch == checkpoint.epoch


def test_a_diverging_run_says_so_and_keeps_its_directory(tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"lower lr; .*mlp-digits-seed0 is kept"):
        run(small_settings(tmp_path, lr=1e20))
    assert len(RunDirectory.open(tmp_path / "mlp-digits-seed0").measurements) >= 1


@pytest.mark.usefixtures("_no_figures")
def test_a_vision_model_is_measured_block_by_block(tmp_path):
    settings = Settings(
        model=ModelSettings(arch="resnet18"),
        data=DataSettings(classes=(2,), samples_per_class=4),
        optimization=OptimizationSettings(epochs=1),
        measurement=MeasurementSettings(reduce="mean"),
        run=RunSettings(runs_dir=tmp_path, threads=1, device="cpu"),
    )
    report = run(settings).measurements[-1].report
    names = [layer.name for layer in report.layers]
    assert names[0] == "input"
    assert "network.layer4.1" in names
    assert report.layers[-1].num_features == 512


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "resnt18"], "did you mean resnet18"),
        (["--arch", "resnet18", "--dataset", "orthogonal"], "expected images"),
        (["--samples-per-class", "999"], "samples_per_class is 999, expected at most"),
        (["--resume", "nowhere"], "resume is nowhere, expected a run directory"),
        (["--resume", "nowhere", "--lr", "1"], "resume is given with other flags"),
    ],
)
def test_errors_name_the_flag_and_leave_nothing_behind(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error:")
    assert message in printed
    assert list(tmp_path.iterdir()) == []


def test_wrong_choices_name_the_allowed_ones(capsys):
    with pytest.raises(SystemExit):
        main(["--dataset", "mnits"])
    assert "'fashion-mnist'" in capsys.readouterr().err


def test_a_gpu_is_used_only_if_the_core_can_measure_on_it(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(deeprep.run.device, "build_info", lambda: {"cuda": False})
    settings = small_settings(tmp_path, epochs=1)
    automatic = replace(settings, run=replace(settings.run, device="auto"))
    assert run(automatic).settings().run.device == "cpu"
    with pytest.raises(
        ValueError, match=r"device is .*expected cpu or auto where the compiled core was"
    ):
        run(replace(settings, run=replace(settings.run, device="cuda")))
