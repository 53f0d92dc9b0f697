"""Runs of many processes: the same training as one, stopped and failed by all together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed

import deeprep.run
from deeprep import plots
from deeprep.base.torchrun import OtherRankError, default_threads, joined, together
from deeprep.data import DataSettings
from deeprep.models import ModelSettings
from deeprep.run import RunStopped, main, run, session
from deeprep.run.record import RunDirectory
from deeprep.run.settings import MeasurementSettings, OptimizationSettings, RunSettings, Settings
from deeprep.run.train import NonFiniteLossError

# Seconds until something that hangs is given up. Where many tests share few cores, the imports of
# three processes alone have taken more than a minute.
_PATIENCE = 600


@pytest.fixture(autouse=True)
def _keep_threads(restore_threads):
    """Runs set the number of threads."""


def linear(runs_dir, name, **optimization):
    """63 samples in batches of 5: the last batch is of 3, so a fourth process has no part in it."""
    return Settings(
        model=ModelSettings(arch="linear", depth=4, width=16),
        data=DataSettings(classes=(3,), samples_per_class=21),
        optimization=OptimizationSettings(**{"batch_size": 5, "epochs": 6, **optimization}),
        measurement=MeasurementSettings(measurements=3),
        run=RunSettings(runs_dir=runs_dir, name=name, threads=1, device="cpu"),
    )


def assert_like(directory, expected, tolerance=1e-5):
    """Measured at the same epochs, the same losses and layers up to rounding."""
    found, wanted = RunDirectory.open(directory), RunDirectory.open(expected)
    assert len(found.measurements) == len(wanted.measurements)
    for one, other in zip(found.measurements, wanted.measurements, strict=True):
        assert one.epoch == other.epoch
        assert one.loss == pytest.approx(other.loss, rel=tolerance)
        assert one.accuracy == pytest.approx(other.accuracy)
        for layer, same in zip(one.report.layers, other.report.layers, strict=True):
            assert layer.name == same.name
            for statistic in ("compression", "discrimination", "nc1"):
                value, wanted_value = getattr(layer, statistic), getattr(same, statistic)
                assert value == pytest.approx(wanted_value, rel=tolerance), (layer.name, statistic)
            assert layer.ncc_accuracy == pytest.approx(same.ncc_accuracy)
            assert layer.probe_accuracy == pytest.approx(same.probe_accuracy)
    checkpoint, wanted_checkpoint = found.load_checkpoint(), wanted.load_checkpoint()
    assert checkpoint.epoch == wanted_checkpoint.epoch
    for name, value in wanted_checkpoint.model.items():
        scale = float(value.abs().max())
        assert float((checkpoint.model[name] - value).abs().max()) <= tolerance * scale


# ---------------------------------------------------------------- what every rank runs


def check_same_training(ranks, folder):
    directory = run(linear(folder, f"of-{ranks.size}"))
    assert_like(directory.path, folder / "alone")
    assert (directory.path / "config.json").read_text().count(f'"processes": {ranks.size}') == 1


def check_stop_and_resume(ranks, folder):
    """A signal to one process stops all after the same epoch."""
    train = session.train

    def interrupted(*args, **options):
        for result in train(*args, **options):
            if result.epoch == 4 and ranks.rank == 1:
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGTERM)  # as torchrun repeats it
            yield result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "train", interrupted)
        with pytest.raises(RunStopped) as stopped:
            run(linear(folder, f"stopped-{ranks.size}"))
    assert stopped.value.signal_number == signal.SIGTERM
    directory = folder / f"stopped-{ranks.size}"
    assert RunDirectory.open(directory).load_checkpoint().epoch == 4
    assert main(["--resume", str(directory)]) == 0
    assert_like(directory, folder / "alone")


def check_divergence(ranks, folder):
    name = f"diverging-{ranks.size}"
    with pytest.raises(NonFiniteLossError, match=rf"lower lr; .*{name} is kept"):
        run(linear(folder, name, lr=1e20))


def check_batch_norm(ranks, folder):
    """Each process takes its own statistics; still all have one model."""
    settings = linear(folder, f"norm-{ranks.size}", batch_size=16)
    object.__setattr__(settings, "model", ModelSettings(arch="mlp", depth=3, width=8))
    models = []
    measured = session.evaluate

    def remember(model, *arguments):
        models.append(model)
        return measured(model, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "evaluate", remember)
        directory = run(settings)
    if ranks.rank == 0:
        losses = [each.loss for each in directory.measurements]
        assert losses[-1] < losses[0]
    for value in models[-1].state_dict().values():
        everywhere = [torch.empty_like(value) for _ in range(ranks.size)]
        distributed.all_gather(everywhere, value)
        assert all(torch.equal(each, value) for each in everywhere)


def check_errors(ranks, folder):
    size = ranks.size
    for name, options, arch, message in (
        (
            "small",
            {"batch_size": 1},
            "linear",
            f"batch_size is .*expected at least {size} samples for",
        ),
        (
            "norm",
            {"batch_size": size},
            "mlp",
            f"batch_size is .*expected at least {2 * size} samples",
        ),
        ("alpha", {"loss": "cross-entropy", "alpha": 2.0}, "linear", "alpha"),
    ):
        settings = linear(folder, f"error-{name}", **options)
        object.__setattr__(settings, "model", ModelSettings(arch=arch, depth=4, width=16))
        with pytest.raises(OtherRankError if ranks.rank else ValueError, match=message):
            run(settings)
        assert not (folder / f"error-{name}").exists()


def check_together(ranks, folder):
    def fail_on_one():
        if ranks.rank == 1:
            raise FileNotFoundError("no data here")
        return ranks.rank

    error = FileNotFoundError if ranks.rank == 1 else OtherRankError
    with pytest.raises(error, match="no data here"):
        together(ranks, fail_on_one)
    assert together(ranks, lambda: ranks.rank) == ranks.rank
    started = folder / f"turn-{ranks.size}"
    if ranks.rank == 0:
        os.environ["LOCAL_RANK"] = "0"
        together(ranks, started.touch, in_turn=True)
    else:
        os.environ["LOCAL_RANK"] = str(ranks.rank)
        assert together(ranks, started.exists, in_turn=True)


def _train(rank, size, store, failures, folder):
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=_PATIENCE),
    )
    for name in ("plot_compression", "plot_discrimination", "plot_evolution"):
        setattr(plots, name, lambda report, path: path.touch())
    checks = [check_same_training, check_together]
    if size == 2:
        checks += [check_stop_and_resume, check_divergence, check_batch_norm, check_errors]
    with joined() as ranks:
        for check in checks:
            try:
                check(ranks, folder)
            except BaseException:
                failures.put(
                    f"{check.__name__} on rank {rank} of {size}:\n{traceback.format_exc()}"
                )
                raise
    assert distributed.is_initialized(), "a group that was there before stays"
    distributed.destroy_process_group()


@pytest.mark.parametrize("size", [2, 4])
def test_many_processes_train_as_one_does(run_ranks, tmp_path, size, monkeypatch):
    for name in ("plot_compression", "plot_discrimination", "plot_evolution"):
        monkeypatch.setattr(plots, name, lambda report, path: path.touch())
    run(linear(tmp_path, "alone"))
    exit_codes, failures = run_ranks(_train, size, tmp_path)
    assert exit_codes == [0] * size, failures.get(timeout=5)


def test_torchrun_needs_no_other_command(tmp_path):
    alone = run(linear(tmp_path, "alone", epochs=2))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "deeprep.run", "--arch", "linear", "--depth", "4", "--width", "16"),
        *("--classes", "3", "--samples-per-class", "21", "--batch-size", "5", "--epochs", "2"),
        *("--measurements", "3", "--device", "cpu", "--runs-dir", ".", "--name", "two"),
    ]
    root = Path(deeprep.__file__).parent.parent
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch     2  loss") == 1, "only the first process prints"
    assert "in each of 2 processes" in done.stdout
    assert_like(tmp_path / "two", alone.path)
    assert {p.name for p in (tmp_path / "two").iterdir()} == {p.name for p in alone.path.iterdir()}


def test_one_process_alone_joins_nothing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    with joined() as ranks:
        assert ranks is None
    assert not distributed.is_initialized()
    assert together(None, lambda: 3) == 3


def test_processes_of_a_machine_share_its_cores(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    cores = default_threads()
    assert cores >= 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert default_threads() == max(1, cores // 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(10 * cores))
    assert default_threads() == 1
