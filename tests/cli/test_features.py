"""The command line: what it prints, what it writes, and what it leaves alone."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import deeprep
from deeprep import ClassScatter, class_scatter
from deeprep.cli import main

LABELS = torch.arange(90) % 3
FEATURES = torch.eye(3, 5)[LABELS] + 0.1 * torch.randn(
    90, 5, generator=torch.Generator().manual_seed(0)
)


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def files(tmp_path):
    """Features and labels in two shards each, named as the command line takes them."""
    for i, (x, y) in enumerate(zip(FEATURES.split(50), LABELS.split(50), strict=True)):
        np.save(tmp_path / f"x-{i}.npy", x.numpy())
        np.save(tmp_path / f"y-{i}.npy", y.numpy())
    return f"{tmp_path}/x-*.npy", f"{tmp_path}/y-*.npy"


def printed(capsys):
    """Rows of the table on stdout, as label -> text."""
    output = capsys.readouterr().out
    rows = (line.split("  ") for line in output.splitlines() if "  " in line.strip())
    return {
        cells[0]: cells[-1] for cells in ([c.strip() for c in row if c.strip()] for row in rows)
    }


def test_stats_prints_what_the_metrics_say(files, capsys):
    assert main(["stats", *files, "--full"]) == 0
    rows = printed(capsys)
    s = class_scatter(FEATURES, LABELS, full=True)
    assert (rows["samples N"], rows["classes K"], rows["features d"]) == ("90", "3", "5")
    for label, value in {
        "compression C": deeprep.compression(s),
        "discrimination D": deeprep.discrimination(s),
        "Tr Sigma_W": s.trace_within,
        "Tr Sigma_B": s.trace_between(),
        "NC1": deeprep.metrics.nc1(s),
        "effective rank": deeprep.metrics.effective_rank(s),
        "numerical rank": deeprep.metrics.numerical_rank(s),
    }.items():
        assert float(rows[label]) == pytest.approx(value, rel=1e-4), label
    closest = deeprep.metrics.closest_classes(s)
    assert rows["closest classes"] == f"{closest.first}, {closest.second}"
    assert not {"classes without samples", "classes with NaN or Inf"} & rows.keys()


def test_small_classes_are_left_out_of_what_is_printed_not_of_the_state(tmp_path, capsys):
    labels = torch.arange(90) % 3
    labels[:2] = 3  # a class of two
    np.save(tmp_path / "x.npy", FEATURES.numpy())
    np.save(tmp_path / "y.npy", labels.numpy())
    names = f"{tmp_path}/x.npy", f"{tmp_path}/y.npy"
    out = str(tmp_path / "s.safetensors")
    assert main(["stats", *names, "--full", "--min-count", "5", "--out", out]) == 0
    rows = printed(capsys)
    s = class_scatter(FEATURES, labels.where(labels < 3, -100), 4)
    with pytest.warns(UserWarning, match="1 of 4 classes have no samples"):
        expected = deeprep.compression(s)
    assert float(rows["compression C"]) == pytest.approx(expected, rel=1e-4)
    assert float(rows["Tr Sigma_W"]) == pytest.approx(s.trace_within, rel=1e-4)
    assert (rows["classes K"], rows["classes measured"], rows["NC1"]) == ("4", "3", "-")
    assert main(["show", out, "--min-count", "5"]) == 0
    assert printed(capsys)["compression C"] == rows["compression C"]
    assert main(["show", out]) == 0
    whole = printed(capsys)
    assert float(whole["compression C"]) != pytest.approx(expected, rel=1e-4)
    assert whole["NC1"] != "-"
    assert "classes measured" not in whole
    assert main(["show", out, "--min-count", "0"]) == 1
    assert "min_count is 0" in capsys.readouterr().err


def test_without_full_there_is_no_rank(files, capsys):
    assert main(["stats", *files]) == 0
    assert not {"NC1", "numerical rank", "effective rank"} & printed(capsys).keys()


def test_empty_and_nonfinite_classes_are_named(files, tmp_path, capsys):
    bad = FEATURES.clone()
    bad[1, 2] = float("nan")
    np.save(tmp_path / "bad.npy", bad.numpy())
    arguments = ["stats", str(tmp_path / "bad.npy"), files[1], "--num-classes", "5"]
    assert main(arguments) == 0
    rows = printed(capsys)
    assert rows["classes without samples"] == "3, 4"
    assert rows["classes with NaN or Inf"] == "1"
    assert main([*arguments, "--json"]) == 0
    output = capsys.readouterr().out
    statistics = json.loads(output, parse_constant=pytest.fail)  # NaN would not be JSON
    assert statistics["empty_classes"] == [3, 4]
    assert statistics["nonfinite_classes"] == [1]
    assert statistics["compression"] == statistics["trace_within"] == "nan"
    assert any("1 class (1) hold NaN or Inf" in message for message in statistics["warnings"])


def test_one_class_has_no_discrimination_and_no_samples_have_nothing(tmp_path, capsys):
    np.save(tmp_path / "x.npy", FEATURES.numpy())
    np.save(tmp_path / "y.npy", np.zeros(90, int))
    arguments = ["stats", f"{tmp_path}/x.npy", f"{tmp_path}/y.npy", "--num-classes", "2"]
    assert main(arguments) == 0
    assert printed(capsys)["discrimination D"] == "-"
    assert main([*arguments, "--ignore-index", "0"]) == 0
    rows = printed(capsys)
    assert rows["samples N"] == "0"
    assert rows["Tr Sigma_W"] == "-"


def test_states_of_parts_merge_into_that_of_the_whole(files, tmp_path, capsys):
    states = []
    for i in range(2):
        states.append(f"{tmp_path}/part-{i}.safetensors")
        x, y = (name.replace("*", str(i)) for name in files)
        assert main(["stats", x, y, "--num-classes", "3", "--full", "--out", states[-1]]) == 0
    whole = tmp_path / "whole.safetensors"
    capsys.readouterr()
    assert main(["merge", *states, "--out", str(whole), "--json"]) == 0
    merged = json.loads(capsys.readouterr().out)
    assert main(["show", str(whole), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == merged
    s = class_scatter(FEATURES, LABELS, full=True)
    assert merged["num_samples"] == 90
    assert merged["compression"] == pytest.approx(deeprep.compression(s), rel=1e-6)
    assert merged["nc1"] == pytest.approx(deeprep.metrics.nc1(s), rel=1e-5)
    assert main(["show", str(whole)]) == 0
    assert printed(capsys)["samples N"] == "90"


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (["a", "wide"], r"wide.safetensors does not fit .*a.safetensors: other.num_features is 6"),
        (["a", "many"], r"many.safetensors does not fit .*a.safetensors: other.num_classes is 4"),
        (["a", "full"], r"full.safetensors does not fit .*a.safetensors: other.full is True"),
        (["a", "b", "a"], "a.safetensors is given twice"),
        (["a", "out"], "out.safetensors is given twice"),
        (["a", "features"], "features.safetensors has format None in its metadata"),
        (["none"], "none.safetensors does not exist"),
    ],
)
def test_states_that_cannot_be_merged_are_named_and_nothing_is_written(
    tmp_path, capsys, states, message
):
    def path(name):
        return str(tmp_path / f"{name}.safetensors")

    ClassScatter(3, 6).save(path("wide"))
    ClassScatter(4, 5).save(path("many"))
    ClassScatter(3, 5, full=True).save(path("full"))
    for name in ("a", "b", "out"):
        ClassScatter(3, 5).save(path(name))
    save_file({"features": FEATURES}, path("features"))
    before = (tmp_path / "out.safetensors").read_bytes()
    assert main(["merge", *map(path, states), "--out", path("out")]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert (tmp_path / "out.safetensors").read_bytes() == before


def test_an_error_is_one_line_and_status_1(files, capsys):
    assert main(["stats", "none.npy", files[1]]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: features none.npy does not exist\n"


def test_out_never_replaces_anything_but_a_state(files, tmp_path, capsys):
    features = tmp_path / "x-0.npy"
    before = features.read_bytes()
    assert main(["stats", *files, "--out", str(features)]) == 1
    assert "x-0.npy, which exists and is no state" in capsys.readouterr().err
    assert features.read_bytes() == before
    assert main(["stats", *files, "--out", str(tmp_path / "none" / "state")]) == 1
    assert "there is no directory" in capsys.readouterr().err
    for _ in range(2):
        assert main(["stats", *files, "--out", str(tmp_path / "state")]) == 0


def test_ctrl_c_leaves_no_file(files, tmp_path, monkeypatch, capsys):
    update = ClassScatter.update

    def interrupted(self, *batch):
        if self.num_samples:
            raise KeyboardInterrupt
        update(self, *batch)

    monkeypatch.setattr(ClassScatter, "update", interrupted)
    before = sorted(tmp_path.iterdir())
    arguments = ["stats", *files, "--batch-bytes", "1000", "--out", str(tmp_path / "state")]
    assert main(arguments) == 130
    assert sorted(tmp_path.iterdir()) == before
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("command", [[], ["analyze"], ["stats"], ["merge"], ["show"]])
def test_every_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    flags, _, examples = capsys.readouterr().out.partition("Example")
    assert f"deeprep {command[0] if command else 'stats'} " in examples
    # The flags come first, right below a sentence or two.
    about = flags.partition("-h, --help")[0]
    assert len(about.split()) < 80
    assert about != flags


def test_completion_scripts_stay_whole(capsys):
    with pytest.raises(SystemExit):
        main(["--tyro-print-completion", "bash"])
    assert "\nExamples:" not in capsys.readouterr().out


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_stdout_that_takes_nothing_is_no_traceback(files, flags):
    command = [sys.executable, "-m", "deeprep", "stats", *map(str, files), *flags]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: stdout cannot be written: [Errno 28]")
    assert done.stderr.count("\n") == 1
    reader, writer = os.pipe()
    os.close(reader)  # as `head` does that has seen enough
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_module_is_the_command(files):
    done = subprocess.run(
        [sys.executable, "-m", "deeprep", "stats", *files, "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["num_samples"] == 90
    assert done.stderr == ""  # no progress bar, no warnings
