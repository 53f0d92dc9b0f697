"""Sweeps: the grid, every way a run can end, going on, and the table and figure at the end."""

import csv
import json
import os
import signal
import statistics
import sys
import threading
import time

import pytest
import torch

import deeprep
from deeprep import LayerReport, plots
from deeprep.run.record import Measurement, RunDirectory
from deeprep.run.settings import Settings
from deeprep.sweep import __main__ as command_line
from deeprep.sweep import runs
from deeprep.sweep.drive import LocalProcess, drive, local_launcher, locked
from deeprep.sweep.grid import make_runs, parse_axis
from deeprep.sweep.results import Point, figure
from deeprep.sweep.runs import SweepDirectory
from deeprep.sweep.slurm import parse_slurm_options, slurm_launcher

SMALL = [
    *("--samples-per-class", "20", "--classes", "3", "--width", "8", "--epochs", "3"),
    *("--threads", "1", "--device", "cpu"),
]


class Done:
    """A run that has been done in this process: importing torch in another one takes longer."""

    def __init__(self, sweep, name):
        sweep.perform(name)

    def done(self):
        return True

    def stop(self):
        raise AssertionError("it has ended")

    def why(self):
        return "it left no outcome"


@pytest.fixture
def in_process(monkeypatch, restore_threads):
    """Do runs here, without their figures; the list of the names of those that were done."""
    done = []

    def launcher(sweep, jobs):
        def launch(name):
            done.append(name)
            return Done(sweep, name)

        return launch

    for name in ("plot_compression", "plot_discrimination", "plot_evolution"):
        monkeypatch.setattr(plots, name, lambda report, path: path.touch())
    monkeypatch.setattr(command_line, "figure", lambda points, path: path.touch())
    monkeypatch.setattr(command_line, "local_launcher", launcher)
    return done


def sweep(directory, *arguments):
    return command_line.main([str(directory), *arguments])


def statuses(directory):
    return {
        path.stem: json.loads(path.read_text())["status"]
        for path in (directory / "outcomes").glob("*.json")
    }


def rows(directory):
    with (directory / "table.csv").open() as file:
        return list(csv.DictReader(file))


def test_nothing_starts_if_a_flag_is_wrong(tmp_path, in_process, capsys):
    assert sweep(tmp_path / "s", "--grid", "depth=3,4", "--grid", "width=0") == 1
    assert "width is 0, expected finite and >= 1" in capsys.readouterr().err
    assert sweep(tmp_path / "s", "--grid", "linear-layers=1,2") == 1
    assert "left out unless arch is hybrid" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_the_table_and_the_figure_are_those_of_the_runs(tmp_path, in_process, capsys):
    assert sweep(tmp_path, "--grid", "depth=4,5", "--seeds", "0,1", *SMALL) == 0
    assert set(statuses(tmp_path).values()) == {"finished"}
    assert len(in_process) == 4
    for row, depth in zip(rows(tmp_path), ("4", "5"), strict=True):
        last = [
            RunDirectory.open(tmp_path / f"runs/depth={depth},seed={seed}").measurements[-1]
            for seed in (0, 1)
        ]
        assert (row["depth"], row["finished"], row["runs"]) == (depth, "2", "2")
        assert len(last[0].report.layers) == int(depth)
        wanted = {
            "loss": [each.loss for each in last],
            "accuracy": [each.accuracy for each in last],
            "compression_factor": [10**each.report.compression_fit.slope for each in last],
            "compression_r2": [each.report.compression_fit.r_squared for each in last],
            "discrimination_step": [each.report.discrimination_fit.slope for each in last],
        }
        for name, values in wanted.items():
            assert float(row[f"{name}_mean"]) == pytest.approx(statistics.mean(values))
            assert float(row[f"{name}_std"]) == pytest.approx(statistics.stdev(values), abs=1e-12)
    assert (tmp_path / "figure.png").exists()
    assert "mean±std over seeds" in capsys.readouterr().out


def test_finished_runs_are_skipped_and_more_can_be_added(tmp_path, in_process):
    assert sweep(tmp_path, "--grid", "depth=3", *SMALL) == 0
    assert rows(tmp_path)[0]["loss_std"] == "", "one seed has no deviation"
    assert sweep(tmp_path) == 0
    assert in_process == ["depth=3,seed=0"]
    assert sweep(tmp_path, "--grid", "depth=3,2", "--seeds", "0..1", *SMALL) == 0
    assert in_process[1:] == ["depth=3,seed=1", "depth=2,seed=0", "depth=2,seed=1"]
    shallow = rows(tmp_path)[1]
    assert shallow["compression_factor_mean"] == "", "one hidden layer has no rate"
    assert float(shallow["loss_mean"]) > 0


def test_a_sweep_of_an_earlier_version_goes_on(tmp_path, in_process):
    assert sweep(tmp_path, "--grid", "final-lr=0.5", *SMALL) == 0
    description = tmp_path / "sweep.json"
    description.write_text(description.read_text().replace("final_lr_fraction", "final_lr"))
    assert sweep(tmp_path, "--retry-failed") == 0
    assert in_process == ["final-lr=0.5,seed=0"], "it is still taken for finished"
    (tmp_path / "outcomes/final-lr=0.5,seed=0.json").unlink()
    assert sweep(tmp_path) == 0
    assert len(in_process) == 2


def test_another_fixed_flag_needs_another_directory(tmp_path, in_process, capsys):
    assert sweep(tmp_path, "--grid", "depth=3", *SMALL) == 0
    before = (tmp_path / "sweep.json").read_bytes()
    assert sweep(tmp_path, "--grid", "depth=3,4", *SMALL, "--lr", "0.5") == 1
    message = " ".join(capsys.readouterr().err.split())
    assert "lr of" in message
    assert "is 0.0002, expected 0.5 as given now; choose another DIRECTORY" in message
    assert (tmp_path / "sweep.json").read_bytes() == before
    assert len(in_process) == 1


def test_an_invalid_and_a_failed_run_do_not_stop_the_others(tmp_path, in_process, capsys):
    grid = ["--grid", "depth=3,4", "--grid", "linear-layers=1,2", "--grid"]
    few = [*SMALL[2:], "--arch", "hybrid"]
    assert sweep(tmp_path, *grid, "samples-per-class=9999,20", *few) == 1
    found = statuses(tmp_path)
    assert sorted(found.values()) == ["failed"] * 3 + ["finished"] * 3
    assert all(("9999" in name) == (status == "failed") for name, status in found.items())
    assert [row["finished"] for row in rows(tmp_path)] == ["0", "1", "0", "0", "0", "1", "0", "1"]
    printed = " ".join(capsys.readouterr().out.split())
    assert "invalid depth=3,linear-layers=2,samples-per-class=20,seed=0: linear_layers" in printed
    assert "ValueError: samples_per_class is 9999, expected at most" in printed
    assert len(in_process) == 6
    assert sweep(tmp_path) == 1
    assert len(in_process) == 6, "failed runs are not retried unless asked for"
    assert sweep(tmp_path, "--retry-failed") == 1
    assert len(in_process) == 9


@pytest.mark.parametrize(
    ("name", "damaged", "message"),
    [
        ("sweep.json", '{"base": ', "sweep.json is not valid JSON"),
        ("sweep.json", "[]", "sweep.json is no description of a sweep, expected base, grid"),
        ("sweep.json", '{"epochs": 3}', "sweep.json is no description of a sweep, expected base"),
        ("sweep.json", '"fast"', 'sweep.json: optimization.lr is "fast", expected a number'),
        ("outcomes/depth=3,seed=0.json", "3", "seed=0.json is no outcome of a run, expected"),
        ("outcomes/depth=3,seed=0.json", '{"state": 1}', "seed=0.json is no outcome of a run"),
    ],
)
def test_damaged_files_are_named(tmp_path, in_process, capsys, name, damaged, message):
    made(tmp_path, "depth=3")
    path = tmp_path / name
    if damaged == '"fast"':
        damaged = path.read_text().replace('"lr": null', f'"lr": {damaged}')
    path.write_text(damaged)
    assert sweep(tmp_path) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {tmp_path}/")
    assert printed.count("\n") == 1
    assert message in printed
    assert in_process == []


def test_settings_of_all_runs_are_shown_and_none_starts(tmp_path, in_process, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    grid = ["--grid", "depth=3,4", "--grid", "arch=linear,mlp", "--seeds", "0..9"]
    assert sweep(tmp_path / "s", *grid, "--show-settings", "--lr", "0.5") == 0
    printed = capsys.readouterr().out
    cells = [line.split("  ") for line in printed.splitlines()]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in cells]
    for row in (
        ["--arch", "linear, mlp", "--grid"],
        ["--depth", "3, 4", "--grid"],
        ["--init-scale", "0.3, 0.1", "row 4, row 2"],
        ["--lr", "0.5", "given"],
        ["--seed", "0, 1, 2, 3, 4, 5, ... (10 in all)", "--seeds"],
        ["--width", "256", "row 6"],
    ):
        assert row in rows
    assert "the paper's figure 4a" in printed
    assert not (tmp_path / "s").exists()
    assert in_process == []


def test_help_shows_the_flags_and_no_table(capsys):
    with pytest.raises(SystemExit):
        command_line.main(["--help"])
    printed = capsys.readouterr().out
    for text in ("--grid FLAG=VALUE,VALUE,...", "--show-settings", "--samples-per-class"):
        assert text in printed
    assert "figure 4a" not in printed
    assert "default: None" not in printed


def test_a_dry_run_writes_nothing(tmp_path, in_process, capsys):
    assert sweep(tmp_path / "s", "--grid", "depth=3,4", "--dry-run", *SMALL) == 0
    assert "depth=4,seed=0 new" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "s").exists()


def test_a_stopped_run_goes_on_to_the_same_result(tmp_path, in_process, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = ["--grid", "depth=3", *SMALL]
    assert sweep(whole, *arguments) == 0
    save = RunDirectory.save_checkpoint

    def stop_after_saving(self, checkpoint):
        save(self, checkpoint)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "save_checkpoint", stop_after_saving)
        assert sweep(parts, *arguments) == 0, "no signal came to the sweep itself"
    assert statuses(parts) == {"depth=3,seed=0": "stopped"}
    assert not (parts / "table.csv").exists()
    assert sweep(parts) == 0
    assert statuses(parts) == {"depth=3,seed=0": "finished"}
    metrics = "runs/depth=3,seed=0/metrics.jsonl"
    assert (parts / metrics).read_bytes() == (whole / metrics).read_bytes()


def test_a_run_killed_before_it_wrote_anything_starts_anew(tmp_path, in_process):
    directory = tmp_path / "runs/depth=3,seed=0"
    directory.mkdir(parents=True)
    (directory / ".config.partial.json").write_text('{"sett')
    assert sweep(tmp_path, "--grid", "depth=3", *SMALL) == 0


def test_errors_of_any_kind_make_a_failed_run(tmp_path, in_process, monkeypatch):
    def explode(start, console):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(runs, "run", explode)
    assert sweep(tmp_path, "--grid", "depth=3", *SMALL) == 1
    outcome = json.loads((tmp_path / "outcomes/depth=3,seed=0.json").read_text())
    assert outcome["error"] == "OutOfMemoryError: no memory"


def made(path, *flags):
    directory = SweepDirectory(path)
    runs = make_runs(Settings(), [parse_axis(flag) for flag in flags], [0])
    directory.write(Settings(), flags, "0", runs)
    return directory, [run.name for run in runs]


def test_a_process_that_dies_is_a_failed_run(tmp_path, quiet):
    directory, names = made(tmp_path, "depth=3")
    launch = local_launcher(directory, 1)

    def launch_and_kill(name):
        launched = launch(name)
        os.kill(launched._process.pid, signal.SIGKILL)
        return launched

    assert drive(directory, names, launch_and_kill, 1, quiet) == 0
    outcome = directory.outcome(names[0])
    assert outcome.status == "failed"
    assert "killed by SIGKILL" in outcome.error


@pytest.fixture
def quiet():
    from rich.console import Console

    return Console(quiet=True)


def test_runs_share_the_cores_and_take_turns_on_the_gpus(tmp_path, monkeypatch):
    environments = []
    monkeypatch.setattr(
        LocalProcess, "__init__", lambda self, sweep, name, given: environments.append(given)
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    launch = local_launcher(SweepDirectory(tmp_path), 3)
    for name in "abc":
        launch(name)
    assert [each["CUDA_VISIBLE_DEVICES"] for each in environments] == ["2", "5", "2"]
    assert {each["OMP_NUM_THREADS"] for each in environments} == {"2"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    local_launcher(SweepDirectory(tmp_path), 1)("d")
    assert environments[-1] == {}, "one run at a time has the machine"


def test_a_directory_is_one_sweeps_at_a_time(tmp_path, in_process, capsys):
    with locked(SweepDirectory(tmp_path)):
        assert sweep(tmp_path, "--grid", "depth=3", *SMALL) == 1
    assert "in use by a sweep" in " ".join(capsys.readouterr().err.split())
    assert in_process == []


def test_ctrl_c_stops_the_runs_under_way_and_starts_no_more(tmp_path, quiet):
    directory, names = made(tmp_path, "epochs=1000000,900000", "width=8", "samples-per-class=20")
    checkpoint = directory.run_path(names[0]) / "checkpoint.pt"
    launched = []

    def launch(name):
        launched.append(local_launcher(directory, 1)(name))
        return launched[-1]

    def press():
        while not checkpoint.is_file() and not launched[0].done():
            time.sleep(0.1)
        # A terminal sends it to all of its session, to which the run must not belong.
        sessions.append(os.getsid(launched[0]._process.pid))
        os.kill(os.getpid(), signal.SIGINT)

    sessions = []
    handler = signal.getsignal(signal.SIGINT)
    threading.Timer(0.1, press).start()
    assert drive(directory, names, launch, 1, quiet) == signal.SIGINT
    assert [directory.outcome(name).status for name in names] == ["stopped", "new"]
    assert sessions != [os.getsid(0)]
    assert len(launched) == 1
    assert launched[0].done()
    assert signal.getsignal(signal.SIGINT) is handler
    run_directory = RunDirectory.open(directory.run_path(names[0]))
    assert not run_directory.load_checkpoint().finished


class Waits:
    """A run under way that ends when it is asked to, for the second time."""

    def __init__(self):
        self.asked = 0

    def done(self):
        if self.asked < 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.asked == 2

    def stop(self):
        self.asked += 1

    def why(self):
        return "it was asked to"


def test_a_second_signal_is_passed_on_and_the_command_says_how_to_go_on(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(command_line, "local_launcher", lambda sweep, jobs: lambda name: Waits())
    assert sweep(tmp_path, "--grid", "depth=3,4") == 128 + signal.SIGTERM
    assert statuses(tmp_path) == {"depth=3,seed=0": "stopped"}
    printed = " ".join(capsys.readouterr().out.split())
    assert f"continue with: python -m deeprep.sweep {tmp_path}" in printed


def test_the_figure_has_a_curve_and_a_band_for_every_point(tmp_path):
    def measured(*layers):
        report = LayerReport.from_scatters(
            {
                str(index): deeprep.class_scatter(
                    noise * torch.randn(40, 3) + torch.eye(3)[:2].repeat(20, 1),
                    torch.arange(40) % 2,
                )
                for index, noise in enumerate(layers)
            }
        )
        return Measurement(1, 0.1, 0.9, report)

    two = Point({"depth": "2"}, 2, [measured(1.0, 0.1), measured(1.0, 0.2)])
    collapsed = Point({"depth": "3"}, 1, [measured(1.0, 0.1, 0.0)])  # C_2 = 0: none on a log axis
    nothing = Point({"depth": "4"}, 1, [])
    drawn = figure([two, collapsed, nothing], tmp_path / "figure.png")
    left, right = drawn.axes
    assert [line.get_label() for line in left.lines] == ["depth 2", "depth 3"]
    compression = two.layers("compression")
    assert left.lines[0].get_ydata() == pytest.approx((compression[0] * compression[1]) ** 0.5)
    assert right.lines[0].get_ydata() == pytest.approx(two.layers("discrimination").mean(0))
    assert list(torch.tensor(left.lines[1].get_ydata()).isnan()) == [False, False, True]
    assert len(left.collections) == 2
    assert (tmp_path / "figure.png").is_file()


def test_slurm_options_are_passed_on():
    assert parse_slurm_options(["time=60", "mem-per-cpu=4G"]) == {
        "slurm_time": 60,
        "slurm_mem_per_cpu": "4G",
    }
    with pytest.raises(ValueError, match=r"slurm is .*expected KEY=VALUE"):
        parse_slurm_options(["time"])


def test_slurm_options_without_slurm_are_an_error(tmp_path, capsys):
    assert sweep(tmp_path, "--grid", "depth=3", "--slurm", "time=60") == 1
    assert "expected to be left out unless --executor is slurm" in capsys.readouterr().err


def test_slurm_without_submitit_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert sweep(tmp_path, "--grid", "depth=3", "--executor", "slurm") == 1
    assert "needs submitit: pip install submitit" in capsys.readouterr().err
    assert not (tmp_path / "sweep.json").exists()


def test_jobs_of_a_cluster_do_the_runs(tmp_path, in_process, quiet):
    with_flags = ["samples-per-class=20", "epochs=1,2", "width=8", "threads=1"]
    directory, names = made(tmp_path, *with_flags)
    launch = slurm_launcher(directory, {}, cluster="debug")  # jobs run when they are asked about
    assert drive(directory, names, launch, 2, quiet) == 0
    assert [directory.outcome(name).status for name in names] == ["finished", "finished"]
    with pytest.raises(ValueError, match="slurm has an option that submitit does not know"):
        slurm_launcher(directory, {"slurm_nonsense": 1}, cluster="debug")


def test_a_job_whose_time_is_up_is_put_into_the_queue_again(tmp_path):
    from deeprep.sweep.slurm import Job

    job = Job(tmp_path, "depth=3,seed=0")
    again = job.checkpoint()
    assert again.function is job
