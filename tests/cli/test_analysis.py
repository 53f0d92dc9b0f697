"""What `deeprep analyze` shows and writes: tables, states, figures, series of checkpoints."""

import csv
import io
import json
import sys

import pytest
import torch
from analyze_command import DIGITS, analyzed, cnn, only_report
from safetensors.torch import save_file

import deeprep
from deeprep import ClassScatter, LayerReport
from deeprep.cli import main
from deeprep.cli.analysis import Analysis, checkpoint_names
from deeprep.data import load_data

pytestmark = pytest.mark.usefixtures("folder")


def test_out_holds_tables_figures_and_states(folder, capsys):
    result = analyzed(capsys, "own_models:cnn", *DIGITS, "--out", "o", "--save-states")
    written = sorted(str(p.relative_to(folder / "o")) for p in (folder / "o").rglob("*.*"))
    states = [f"states/00{i}-{name}.safetensors" for i, name in enumerate(("input", "1", "3"))]
    assert written == ["analysis.json", "layers.csv", "report.json", "report.png", *states]
    assert json.loads((folder / "o/analysis.json").read_text()) == result
    report = only_report(result)
    assert LayerReport.from_dict(json.loads((folder / "o/report.json").read_text())) == report
    for state, layer in zip(states, report.layers, strict=True):
        scatter = ClassScatter.load(folder / "o" / state)
        assert deeprep.compression(scatter) == layer.compression


def test_every_checkpoint_of_a_training_run(folder, capsys):
    torch.save({"model": cnn(1).state_dict()}, "epoch-2.pt")
    torch.save({f"module.{k}": v for k, v in cnn(2).state_dict().items()}, "epoch-10.pt")
    save_file(cnn(3).state_dict(), "last.safetensors")
    weights = ("--weights", "epoch-*.pt", "--weights", "last.safetensors")
    result = analyzed(capsys, "own_models:cnn", *DIGITS, *weights, "--out", "o")
    names = [checkpoint["name"] for checkpoint in result["checkpoints"]]
    assert names == ["epoch-2", "epoch-10", "last"]
    for seed, checkpoint in enumerate(result["checkpoints"], start=1):
        alone = deeprep.analyze(cnn(seed), digits(), 10, reduce="mean")
        found = LayerReport.from_dict(checkpoint["report"])
        assert found.layers[2].compression == pytest.approx(alone.layers[2].compression, rel=1e-5)
    with (folder / "o/layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["checkpoint"] for row in rows] == [name for name in names for _ in range(3)]
    assert [row["name"] for row in rows] == ["input", "1", "3"] * 3
    for name in ("evolution.png", "report.png"):
        assert (folder / "o" / name).read_bytes().startswith(b"\x89PNG")
    for checkpoint in result["checkpoints"]:
        report = json.loads((folder / "o" / checkpoint["name"] / "report.json").read_text())
        assert report == checkpoint["report"]


def digits():
    data = load_data("digits", samples_per_class=4)
    return [(data.inputs, data.labels)]


def test_a_checkpoint_that_fails_is_named_and_the_others_go_on(capsys):
    torch.save(cnn(1).state_dict(), "e-1.pt")
    torch.save({"weight": torch.ones(2)}, "e-2.pt")
    (broken := open("e-3.pt", "w")).write("broken")  # noqa: SIM115
    broken.close()
    torch.save(cnn(2).state_dict(), "e-4.pt")
    assert main(["analyze", "own_models:cnn", *DIGITS, "--weights", "e-*.pt"]) == 1
    captured = capsys.readouterr()
    assert "e-1" in captured.out
    assert "e-4" in captured.out
    errors = captured.err.splitlines()
    assert len(errors) == 2
    assert errors[0].startswith("error: weights e-2.pt do not fit a Sequential: 6 missing (")
    assert errors[1].startswith("error: weights e-3.pt is damaged")
    assert main(["analyze", "own_models:cnn", *DIGITS, "--weights", "e-2.pt", "e-3.pt"]) == 1
    assert "compression" not in capsys.readouterr().out


def test_ctrl_c_leaves_no_file(folder, capsys, monkeypatch):
    def interrupted(self, *batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(ClassScatter, "update", interrupted)
    assert main(["analyze", "own_models:cnn", *DIGITS, "--out", "o"]) == 130
    assert capsys.readouterr().out == ""
    assert not (folder / "o").exists()


def test_names_of_checkpoints_are_distinct(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    paths = [tmp_path / f / n for f in ("a", "b") for n in ("m.pt", "m.safetensors")]
    assert checkpoint_names(paths) == ["0-m", "1-m", "2-m", "3-m"]
    assert len(set(checkpoint_names(paths[::2]))) == 2


@pytest.mark.parametrize(
    ("names", "numbers"),
    [(["e-1", "e-20", "f-300"], [1, 20, 300]), (["init", "e-2"], [0, 1]), (["b-2", "a-1"], [0, 1])],
)
def test_a_series_is_drawn_at_its_epochs_where_names_tell_them(names, numbers):
    scatter = deeprep.class_scatter(torch.eye(4), torch.tensor([0, 0, 1, 1]))
    analysis = Analysis({}, "", is_series=True)
    for name in names:
        analysis.add(name, LayerReport.from_scatters({"input": scatter}))
    assert [number for number, _ in analysis._series()] == numbers


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_tables_keep_their_columns_in_a_pipe_and_those_asked_for_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    arguments = ["analyze", "own_models:cnn", *DIGITS, "--full", "--accuracy", "--jackknife"]
    asked = ("NC1", "eff. rank", "stable rank", "RankMe", "probe", "NCC", "dir. CDNV")
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert all(heading in text for heading in (*asked, "closest", "ETF", "GNC2"))
    assert "no room for" not in text
    assert "…" not in text
    monkeypatch.setattr("sys.stdout", Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert main(arguments) == 0
    text, _, left_out = sys.stdout.getvalue().partition("no room for")
    assert max(map(len, text.splitlines()[2:])) <= 80
    assert all(heading in text for heading in asked)
    assert "GNC2" in left_out


class Forwards(torch.nn.Module):
    """Counts how often it runs."""

    count = 0

    def __init__(self, num_classes):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.Linear(8, num_classes))

    def forward(self, images):
        Forwards.count += 1
        return self.layers(images.flatten(1))


def test_states_are_saved_without_another_pass(folder, capsys, monkeypatch):
    namespace = type(sys)("counting_models")
    namespace.Forwards = Forwards
    monkeypatch.setitem(sys.modules, "counting_models", namespace)
    flags = ("--batch-size", "40", "--out", "o", "--save-states")
    for more, passes in (((), 1), (("--accuracy",), 2)):
        monkeypatch.setattr(Forwards, "count", 0)
        analyzed(capsys, "counting_models:Forwards", *DIGITS, *flags, *more)
        assert Forwards.count == passes
        assert (folder / "o/states/000-input.safetensors").is_file()
