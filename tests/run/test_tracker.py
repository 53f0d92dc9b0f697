"""--tracker: curves in the real thing, read back, no epoch twice; errors come before any file."""

from __future__ import annotations

import importlib.util
import inspect
import json
import signal
import struct
import sys
import types
from dataclasses import replace

import pytest

from deeprep import plots
from deeprep.data import DataSettings
from deeprep.models import ModelSettings
from deeprep.run import RunStopped, main, run, session, tracker
from deeprep.run.record import RunDirectory
from deeprep.run.settings import OptimizationSettings, RunSettings, Settings

NAME = "deeprep/compression/layer2"


@pytest.fixture(autouse=True)
def _quick(monkeypatch, restore_threads):
    for name in ("plot_compression", "plot_discrimination", "plot_evolution"):
        monkeypatch.setattr(plots, name, lambda report, path: path.touch())


def small_settings(runs_dir, name):
    return Settings(
        model=ModelSettings(depth=3, width=8),
        data=DataSettings(classes=(3,), samples_per_class=10),
        optimization=OptimizationSettings(batch_size=16, epochs=5),
        run=RunSettings(runs_dir=runs_dir, threads=1, device="cpu", tracker=name),
    )


def read_tensorboard(directory, run_id, metric):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return [
        (event.step, event.summary.value[0].tensor.float_val[0])
        for path in sorted((directory / "tensorboard").iterdir())
        for event in EventFileLoader(str(path)).Load()
        if event.summary.value and event.summary.value[0].tag == metric
    ]


def wandb_records(data):
    """Records of a .wandb file: a log as LevelDB writes them, in blocks of 32 KiB."""
    assert data[:4] == b":W&B"
    position, record = 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def all_wandb_records(directory, run_id):
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(directory.glob(f"wandb/offline-run-*/run-{run_id}.wandb")):
        yield from map(Record.FromString, wandb_records(path.read_bytes()))


def read_wandb(directory, run_id, metric):
    found, ends = [], []
    for record in all_wandb_records(directory, run_id):
        ends += [record.exit.exit_code] if record.HasField("exit") else []
        items = {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in record.history.item
        }
        if metric in items:
            found.append((record.history.step.num, items[metric]))
    assert ends == [1, 0]  # the crash, and the end
    return found


def mlflow_status(run_id):
    import mlflow

    return mlflow.MlflowClient().get_run(run_id).info.status


def read_mlflow(directory, run_id, metric):
    import mlflow

    history = mlflow.MlflowClient().get_metric_history(run_id, metric)
    assert mlflow_status(run_id) == "FINISHED"
    return [(each.step, each.value) for each in history]


def read_trackio(directory, run_id, metric):
    from trackio.sqlite_storage import SQLiteStorage

    logs = SQLiteStorage.get_logs("deeprep", run_id)
    return [(each["step"], each[metric]) for each in logs if metric in each]


READ = {
    "tensorboard": ("tensorboard", read_tensorboard),
    "wandb": ("wandb", read_wandb),
    "mlflow": ("mlflow", read_mlflow),
    "trackio": ("trackio", read_trackio),
}


@pytest.mark.parametrize("name", READ)
def test_curves_of_a_run_that_crashed_and_went_on(tmp_path, monkeypatch, name):
    package, read = READ[name]
    pytest.importorskip(package)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    save = RunDirectory.save_checkpoint

    def crash(self, checkpoint):
        if checkpoint.epoch == 2:  # which is measured and logged by then
            raise MemoryError
        save(self, checkpoint)

    settings = small_settings(tmp_path / "runs", name)
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "save_checkpoint", crash)
        with pytest.raises(MemoryError):
            run(settings)
    directory = tmp_path / "runs/mlp-digits-seed0"
    note = json.loads((directory / "tracker.json").read_text())
    assert (note["tracker"], note["epoch"]) == (name, 2)
    if name == "mlflow":
        assert mlflow_status(note["run"]) == "FAILED"
    run(RunDirectory.open(directory))
    run(RunDirectory.open(directory))  # finished: it adds nothing
    measured = RunDirectory.open(directory).measurements
    wanted = {each.epoch: each.report.scalars()[NAME] for each in measured}
    found = read(directory, note["run"], NAME)
    assert [step for step, _ in found] == list(wanted)
    assert dict(found) == pytest.approx(wanted, rel=1e-6)
    losses = dict(read(directory, note["run"], "loss"))
    assert losses == pytest.approx({each.epoch: each.loss for each in measured}, rel=1e-6)
    plain = run(replace(settings, run=replace(settings.run, tracker=None, name="plain"))).path
    for file in ("metrics.jsonl", "layers.csv"):  # nothing but the curves is different
        assert (plain / file).read_bytes() == (directory / file).read_bytes()


def test_a_tracker_that_is_not_installed_is_an_error_before_anything_is_written(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracker, "find_spec", lambda name: None)
    assert main(["--tracker", "wandb"]) == 1
    message = "tracker is 'wandb', expected a package that is installed: pip install"
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="tracker is 'mlflow'"):
        run(small_settings(tmp_path / "runs", "mlflow"))
    assert not list(tmp_path.iterdir())


class TrackioRun:
    """As `trackio.Run` is called."""

    def __init__(self, rows):
        self.rows, self.is_open = rows, True

    def log(self, metrics: dict, step: int | None = None):
        assert self.is_open
        self.rows.append((step, metrics))

    def finish(self):
        self.is_open = False


def test_trackio_is_called_as_it_expects(tmp_path, monkeypatch):
    """Without it: it asks for an older pillow than others, so it is in no extra of the tests."""
    runs = {}

    def init(
        project: str,
        name: str | None = None,
        config: dict | None = None,
        resume: str = "never",
        embed: bool = True,
    ):
        assert (project, resume, embed) == ("deeprep", "allow", False)
        assert config["model"]["depth"] == 3
        return TrackioRun(runs.setdefault(name, []))

    if importlib.util.find_spec("trackio") is not None:
        import trackio

        for fake, real in ((init, trackio.init), (TrackioRun.log, trackio.Run.log)):
            wanted = inspect.signature(real).parameters
            for name, parameter in inspect.signature(fake).parameters.items():
                assert parameter.default == wanted[name].default
    monkeypatch.setattr(tracker, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "trackio", types.SimpleNamespace(init=init))
    save = RunDirectory.save_checkpoint

    def crash(self, checkpoint):
        if checkpoint.epoch == 2:
            raise MemoryError
        save(self, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "save_checkpoint", crash)
        with pytest.raises(MemoryError):
            run(small_settings(tmp_path, "trackio"))
    directory = run(RunDirectory.open(tmp_path / "mlp-digits-seed0"))
    ((name, rows),) = runs.items()
    assert name.startswith("mlp-digits-seed0-")
    assert [step for step, _ in rows] == [each.epoch for each in directory.measurements]
    assert rows[-1][1][NAME] == directory.measurements[-1].report.scalars()[NAME]


class Failing:
    def __init__(self, directory, settings, note):
        note["run"] = "1"

    def log(self, values, step):
        if step:
            raise ConnectionError("no network")

    def close(self, ending):
        endings.append(ending)


endings = []


def test_a_tracker_that_fails_later_warns_and_ends_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tracker, "find_spec", lambda name: True)
    monkeypatch.setitem(tracker._OPEN, "wandb", Failing)
    directory = run(small_settings(tmp_path, "wandb"))
    assert directory.load_checkpoint().finished
    assert endings.pop() == "FINISHED"
    assert capsys.readouterr().err.count("wandb: no network") == len(directory.measurements) - 1


def test_what_cannot_be_started_or_read(tmp_path, monkeypatch):
    def refuse(directory, settings, note):
        raise PermissionError("no account")

    monkeypatch.setattr(tracker, "find_spec", lambda name: True)
    monkeypatch.setitem(tracker._OPEN, "wandb", refuse)
    with pytest.raises(ValueError, match=r"'wandb', which cannot be started: no account"):
        run(small_settings(tmp_path, "wandb"))
    directory = tmp_path / "mlp-digits-seed0"
    monkeypatch.setitem(tracker._OPEN, "wandb", Failing)
    for wrong in ("[]", '{"tracker": "wandb", "run": "1", "epoch": "2"}'):
        (directory / "tracker.json").write_text(wrong)
        with pytest.raises(ValueError, match=r"tracker\.json is another kind of data"):
            run(RunDirectory.open(directory))
    (directory / "tracker.json").unlink()
    assert run(RunDirectory.open(directory)).load_checkpoint().finished


def test_a_stopped_run_is_told_as_such_and_another_tracker_begins_anew(tmp_path, monkeypatch):
    train, logged = session.train, []

    class Good(Failing):
        def log(self, values, step):
            logged.append(step)

    def interrupted(*args, **options):
        for result in train(*args, **options):
            if result.epoch == 3:
                signal.raise_signal(signal.SIGTERM)
            yield result

    monkeypatch.setattr(tracker, "find_spec", lambda name: True)
    monkeypatch.setitem(tracker._OPEN, "wandb", Good)
    with monkeypatch.context() as patch:
        patch.setattr(session, "train", interrupted)
        with pytest.raises(RunStopped):
            run(small_settings(tmp_path, "wandb"))
    assert endings.pop() == "KILLED"
    path = tmp_path / "mlp-digits-seed0/tracker.json"
    path.write_text(path.read_text().replace("wandb", "mlflow"))
    before = list(logged)
    logged.clear()
    run(RunDirectory.open(path.parent))
    assert logged[: len(before)] == before
    assert json.loads(path.read_text())["tracker"] == "wandb"


def test_runs_of_a_sweep_make_one_experiment_of_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    find = mlflow.MlflowClient.get_experiment_by_name
    calls = []

    def slow(self, name):
        calls.append(name)
        if len(calls) == 1:  # another run is faster
            self.create_experiment(name)
            return None
        return find(self, name)

    monkeypatch.setattr(mlflow.MlflowClient, "get_experiment_by_name", slow)
    note = {"run": None}
    tracker._OPEN["mlflow"](tmp_path, Settings(), note).close("FINISHED")
    assert mlflow_status(note["run"]) == "FINISHED"


def test_without_a_tracker_there_is_nothing(tmp_path):
    assert session.Tracker(None, RunDirectory(tmp_path), Settings()).__enter__().add(None) is None
    assert not list(tmp_path.iterdir())
