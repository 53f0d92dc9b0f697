"""What a run of an experiment leaves behind, and that a later one goes on from it."""

import json
import math
from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console

from deeprep.experiments import EXPERIMENTS, __main__, load_experiment
from deeprep.experiments.experiment import (
    Check,
    Experiment,
    Options,
    Setting,
    check_close,
    check_inside,
    check_that,
)
from deeprep.experiments.results import load_result, perform
from deeprep.experiments.workspace import Workspace


class Toy:
    """An experiment of two parts that counts how often it computes, and can break."""

    def __init__(self, seeds=(2, 5)):
        self.computed = []
        self.broken = False
        self.experiment = Experiment(
            name="toy",
            title="a toy",
            claim="it claims",
            seeds=seeds,
            settings=lambda options: [Setting("lr", 0.1, "ours", "why not")],
            compute=self.compute,
            check=lambda numbers: [
                check_close("first", 1.0, numbers["first"]["value"], 0.02),
                check_close("second", 1.0, numbers["second"]["value"], 0.02, "a known reason"),
            ],
            plot=lambda numbers: Figure(),
        )

    def compute(self, options, workspace):
        def part(name, value):
            if self.broken and name == "second":
                raise ArithmeticError("it diverged")
            self.computed.append(name)
            return {"value": value, "seeds": self.experiment.num_seeds(options)}

        settings = {"seeds": self.experiment.num_seeds(options)}
        return {
            name: workspace.part(name, settings, lambda name=name, value=value: part(name, value))
            for name, value in (("first", 1.01), ("second", math.nan))
        }


def run(toy, out, *, resume=False, **options):
    console = Console(record=True, width=120, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    result = perform(toy.experiment, Options(**options), out, console, resume=resume)
    return result, console.export_text()


def test_a_run_leaves_numbers_verdicts_and_a_figure(tmp_path):
    result, printed = run(Toy(), tmp_path)
    assert {path.name for path in (tmp_path / "toy").iterdir()} == {
        "figure.png",
        "parts",
        "result.json",
    }
    assert (tmp_path / "toy" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert [check.passed for check in result.checks] == [True, False]
    assert result.command == "python -m deeprep.experiments toy --seeds 2"
    assert result.environment["core"]["torch"] == torch.__version__
    assert "1 of 2 verdicts passed" in printed
    assert "a known reason" in printed
    assert printed.index("passed") < printed.index("failed")


def test_the_result_file_gives_back_the_result(tmp_path):
    result, _ = run(Toy(), tmp_path, full=True)
    path = tmp_path / "toy" / "result.json"
    json.loads(path.read_text(), parse_constant=pytest.fail)  # strict: no bare NaN
    again = load_result(path)
    assert math.isnan(again.numbers["second"].pop("value"))
    result.numbers["second"].pop("value")
    assert again.numbers == result.numbers
    assert again.settings == result.settings
    assert again.checks[0] == result.checks[0]
    assert again.seeds == 5
    path.write_text('{"name": "toy"}')
    with pytest.raises(ValueError, match="no result of an experiment"):
        load_result(path)


def test_resuming_repeats_nothing_and_changes_nothing(tmp_path):
    toy = Toy()
    first, _ = run(toy, tmp_path)
    second, _ = run(toy, tmp_path, resume=True)
    assert toy.computed == ["first", "second"]
    assert second.parts == first.parts
    assert repr(second.numbers) == repr(first.numbers)


def test_only_the_same_settings_are_resumed_and_only_on_request(tmp_path):
    toy = Toy()
    run(toy, tmp_path)
    run(toy, tmp_path)
    assert len(toy.computed) == 4
    result, _ = run(toy, tmp_path, resume=True, seeds=3)
    assert len(toy.computed) == 6
    assert result.numbers["first"]["seeds"] == 3


def test_a_run_that_broke_goes_on_with_the_part_that_is_missing(tmp_path):
    toy = Toy()
    toy.broken = True
    with pytest.raises(ArithmeticError):
        run(toy, tmp_path)
    assert not (tmp_path / "toy" / "result.json").exists()
    toy.broken = False
    run(toy, tmp_path, resume=True)
    assert toy.computed == ["first", "second"]


def test_a_part_is_the_same_fresh_and_found(tmp_path):
    def part(resume):
        workspace = Workspace(tmp_path, resume=resume, say=lambda text: None)
        return workspace.part("a", {"x": (1, 2)}, lambda: {"x": (1.5, math.inf), 3: None})

    assert part(False) == part(True) == {"x": [1.5, math.inf], "3": None}


def known_to_fail(passed):
    return Check("known", 1.0, 1.0, passed, "2.0%", "a known reason", known=True)


@pytest.mark.parametrize(
    ("check", "verdict", "surprising"),
    [
        (check_close("q", 1.0, 1.0, 0.02), "passed", False),
        (check_close("q", 1.0, 2.0, 0.02), "failed", True),
        (known_to_fail(False), "failed", False),
        (known_to_fail(True), "passed, known to fail", True),
    ],
)
def test_a_verdict_that_is_not_as_known_is_a_surprise(check, verdict, surprising):
    assert check.verdict == verdict
    assert check.is_surprise is surprising


def test_a_known_failure_that_passes_shows_in_the_table_and_in_words(tmp_path):
    toy = Toy()
    toy.experiment = replace(toy.experiment, check=lambda numbers: [known_to_fail(True)])
    result, printed = run(toy, tmp_path)
    assert result.surprises == result.checks
    assert result.failed == []
    assert "passed, known to fail" in printed
    assert "known to fail, and passed: known" in printed


def test_verdicts():
    assert check_close("q", -2.0, -2.03, 0.02).passed
    assert not check_close("q", 2.0, 2.05, 0.02).passed
    assert not check_close("q", 2.0, math.nan, 0.02).passed
    assert check_inside("q", 0.5, 0.7, 0.4, 0.6, "draws").passed
    assert not check_inside("q", 0.5, 0.55, 0.51, 0.6, "draws").passed
    assert not check_that("q", False, "yes", "no", "always").passed


# ---------------------------------------------------------------- the command line


def test_without_a_name_it_lists_the_claims(capsys):
    assert __main__.main([]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for name in EXPERIMENTS:
        assert f"{name} {load_experiment(name).title} {load_experiment(name).claim}" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fig99"], "name is fig99, expected one of fig4a, fig4b"),
        (["fig4a", "--seeds", "0"], "seeds is 0, expected >= 1"),
    ],
)
def test_what_it_does_not_know_is_an_error(arguments, message, capsys, tmp_path):
    assert __main__.main([*arguments, "--out", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_all_goes_on_after_an_error_and_reports_it(monkeypatch, tmp_path, capsys):
    toys = {"broken": Toy(), "sound": Toy()}
    toys["broken"].broken = True
    monkeypatch.setattr(__main__, "EXPERIMENTS", dict.fromkeys(toys))
    monkeypatch.setattr(__main__, "load_experiment", lambda name: toys[name].experiment)
    assert __main__.main(["all", "--out", str(tmp_path)]) == 1
    assert toys["sound"].computed == ["first", "second"]
    assert "it diverged" in capsys.readouterr().err


def test_a_failed_verdict_is_no_error_unless_asked(monkeypatch, tmp_path):
    monkeypatch.setattr(__main__, "load_experiment", lambda name: Toy().experiment)
    assert __main__.main(["toy", "--out", str(tmp_path)]) == 0
    assert __main__.main(["toy", "--out", str(tmp_path), "--strict"]) == 1


@pytest.mark.parametrize(("passes", "status"), [(False, 0), (True, 1)])
def test_strict_takes_known_failures_unless_they_pass(monkeypatch, tmp_path, passes, status):
    experiment = replace(Toy().experiment, check=lambda numbers: [known_to_fail(passes)])
    monkeypatch.setattr(__main__, "load_experiment", lambda name: experiment)
    assert __main__.main(["toy", "--out", str(tmp_path)]) == 0
    assert __main__.main(["toy", "--out", str(tmp_path), "--strict"]) == status
