"""The command `python -m deeprep.run`: its help, and what --show-settings says."""

import pytest

from deeprep.run import main
from deeprep.run.defaults import DEFAULTS


def output_of(arguments, capsys, status=0):
    assert main(list(arguments)) == status
    return capsys.readouterr().out


def rows_of(printed):
    """Flag -> (value, where from) in the table of settings."""
    lines = printed.partition("what this command line comes to")[2].splitlines()
    cells = [line.split() for line in lines if line.startswith("  --")]
    return {flag: (value, " ".join(source)) for flag, value, *source in cells}


@pytest.fixture(autouse=True)
def _wide_terminal_in_an_empty_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("columns", [80, 120])
def test_help_shows_the_flags_and_no_table(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    for text in ("--arch", "model options", "--lr", "--resume", "--samples-per-class"):
        assert text in printed
    assert "figure 4a" not in printed
    lines = printed.splitlines()
    first = next(number for number, line in enumerate(lines) if "--help" in line)
    assert first < 12
    assert max(map(len, lines)) <= columns


def test_show_settings_says_where_each_comes_from(tmp_path, capsys):
    arguments = ["--arch", "linear", "--lr", "0.1", "--no-bias", "--seed=0", "--classes", "0", "7"]
    rows = rows_of(output_of(["--show-settings", *arguments], capsys))
    assert rows["--arch"] == ("linear", "given")
    assert rows["--lr"] == ("0.1", "given")
    assert rows["--bias"] == ("False", "given"), "also where it is the default"
    assert rows["--seed"] == ("0", "given")
    assert rows["--depth"] == ("6", "row 4")
    assert rows["--width"] == ("256", "row 6")
    assert rows["--linear-layers"] == ("-", "default")
    assert rows["--noise"] == ("1.0", "default")
    assert rows["--device"][1] == "this machine"
    assert rows["--threads"][1] == "this machine"
    assert list(tmp_path.iterdir()) == []


def test_show_settings_says_what_has_no_meaning(capsys):
    rows = rows_of(output_of(["--show-settings", "--optimizer", "adam"], capsys))
    assert rows["--momentum"] == ("-", "not for optimizer adam")
    assert rows["--lr"] == ("0.001", "optimizer adam")
    rows = rows_of(output_of(["--show-settings", "--arch", "resnet18"], capsys))
    assert rows["--depth"] == ("-", "not for arch resnet18")
    assert rows["--alpha"] == ("-", "not for loss cross-entropy")


def test_show_settings_prints_the_table_of_defaults(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    printed = output_of(["--show-settings"], capsys)
    table = printed.partition("what this command line comes to")[0]
    for number, defaults in enumerate(DEFAULTS, start=1):
        assert f"\n   {number:2d}   " in table
        for name, value in defaults.values.items():
            text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            assert f"--{name.replace('_', '-')} {text} " in table, "cut off or left out"
    assert "linear on orthogonal" in table
    assert max(map(len, printed.splitlines())) <= 80


def test_show_settings_of_an_earlier_run(tmp_path, capsys, restore_threads):
    arguments = ["--epochs", "1", "--width", "8", "--samples-per-class", "5", "--threads", "1"]
    assert main([*arguments, "--device", "cpu"]) == 0
    capsys.readouterr()
    before = {path: path.read_bytes() for path in (tmp_path / "runs/mlp-digits-seed0").iterdir()}
    printed = output_of(["--resume", "runs/mlp-digits-seed0", "--show-settings"], capsys)
    assert rows_of(printed)["--width"] == ("8", "config.json")
    assert {path: path.read_bytes() for path in before} == before


def test_show_settings_refuses_what_a_run_would(capsys):
    assert main(["--show-settings", "--linear-layers", "2"]) == 1
    assert "error: linear_layers is 2, expected" in capsys.readouterr().err
