"""Flags from dataclasses: what --help shows of them, and which of them were given."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from tyro.conf import OmitArgPrefixes, arg

from deeprep.base.flags import given_fields, parse_flags


@dataclass(frozen=True)
class Inner:
    """A group."""

    lr: float | None = None
    """A short line
    in the source."""

    labels: tuple[int, ...] | None = None
    """Some numbers."""

    shown: Annotated[int | None, arg(help_behavior_hint="(default: all)")] = None
    """Says itself what happens without it."""

    bias: bool = False
    """Whether there is one."""


@dataclass(frozen=True)
class Outer:
    inner: OmitArgPrefixes[Inner] = field(default_factory=Inner)
    where: Path | None = None
    """A place."""
    kind: Literal["a", "b"] = "a"
    """One of two."""


@dataclass(frozen=True)
class More(Outer):
    count: int = 1
    """Of the derived class."""


def parse(*arguments):
    return parse_flags(More, "command", "What it does.", list(arguments))


def help_of(capsys):
    with pytest.raises(SystemExit) as ended:
        parse("--help")
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_flags_fill_the_fields():
    assert parse() == More()
    found = parse("--lr", "0.5", "--labels", "1", "2", "--bias", "--where", "x", "--count", "3")
    assert found == More(Inner(0.5, (1, 2), bias=True), Path("x"), count=3)


def test_a_flag_left_out_shows_no_default(capsys):
    printed = help_of(capsys)
    assert "None" not in printed
    assert "--lr FLOAT" in printed
    assert "--labels INT [INT ...]" in printed
    assert "(default: a)" in printed
    assert "(default: all)" in printed
    for text in ("A group.", "A place.", "Of the derived class."):
        assert text in printed


@pytest.mark.parametrize("columns", [80, 120])
def test_texts_are_broken_at_the_width_of_the_terminal(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    about = f"{'A long sentence about it. ' * 10}\n\nExamples:\n  command --lr 1\n\nThe end."
    with pytest.raises(SystemExit):
        parse_flags(More, "command", about, ["--help"])
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert max(map(len, lines)) <= columns
    assert "  command --lr 1" in lines
    assert "The end." in lines
    assert "A short line in the source." in printed


def test_a_wrong_value_ends_the_process_and_names_the_flag(capsys):
    with pytest.raises(SystemExit) as ended:
        parse("--count", "many")
    assert ended.value.code == 2
    assert "--count" in capsys.readouterr().err


def test_given_flags_are_found_however_they_are_written():
    arguments = [
        "runs/x",
        "--final_lr_fraction=1",
        "--no-normalize",
        "--noise",
        "-1",
        "--name",
        "a",
    ]
    assert given_fields(arguments) == {"final_lr_fraction", "normalize", "noise", "name"}
