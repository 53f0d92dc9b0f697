"""The report of the experiments: what it is made of, what it shows, and that it can be checked."""

import json
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

import deeprep
from deeprep.experiments import __main__ as command_line
from deeprep.experiments import collection, errata, page, report
from deeprep.experiments.experiment import Check, Experiment, Options, check_that
from deeprep.experiments.results import load_result, perform


@pytest.fixture(scope="module")
def errata_out(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    perform(errata.EXPERIMENT, Options(), out, Console(quiet=True))
    return out


@pytest.fixture
def only_errata(monkeypatch):
    for module in (collection, page, report):
        monkeypatch.setattr(module, "EXPERIMENTS", {"errata": "deeprep.experiments.errata"})


@pytest.fixture
def docs(tmp_path, errata_out, only_errata):
    (tmp_path / "docs").mkdir()
    assert report.main(["--out", str(errata_out), "--docs", str(tmp_path / "docs")]) == 0
    return tmp_path / "docs"


def check(docs):
    return report.main(["--docs", str(docs), "--check"])


@pytest.mark.usefixtures("errata_out")
def test_every_erratum_shows(errata_out):
    result = load_result(errata_out / "errata/result.json")
    assert [verdict.quantity for verdict in result.failed] == []
    assert set(result.numbers) == {
        "first_sample",
        "zero_cosine",
        "batch_norm",
        "padding",
        "balance",
    }


def test_the_released_steps_lose_the_first_sample():
    rng = np.random.default_rng(0)
    labels = np.arange(4).repeat(3)
    features = rng.normal(size=(12, 50)) + 5 * labels[:, None]
    scatter = deeprep.class_scatter(features, labels)
    first = [np.square(features[3 * k] - scatter.means[k].numpy()).sum() for k in range(4)]
    lost = sum(first) / float(scatter.sumsq.sum())
    released = errata.released_compression(features.copy(), labels)
    assert released == pytest.approx((1 - lost) * deeprep.compression(scatter), rel=1e-12)


def test_the_report_shows_pictures_verdicts_settings_and_machine(docs, errata_out):
    text = (docs / "reproduction.md").read_text()
    result = load_result(errata_out / "errata/result.json")
    assert text.count("| passed |") == len(result.checks)
    assert "| inputs of 3072 that 1024 features see at initialisation | 1024 | 3072 |" in text
    assert "![errata](images/reproduction/errata.png)" in text
    assert "wide input, width | 3072, 1024 | the authors' |" in text
    assert result.command in text
    assert result.environment["processor"].split(",")[0].split("(")[0] in text
    assert all(erratum.title in text.replace("\\", "") for erratum in errata.ERRATA)
    with Image.open(docs / "images/reproduction/errata.png") as image:
        assert image.width == 1200


def test_the_check_accepts_what_the_results_give_and_nothing_else(docs, capsys):
    assert check(docs) == 0
    path = docs / "reproduction.md"
    text = path.read_text()
    path.write_text(text.replace("| 1024 | 3072 |", "| 3072 | 3072 |"))
    assert check(docs) == 1
    assert "is not what its results give" in capsys.readouterr().err
    path.write_text(text)
    (docs / "images/reproduction/errata.png").unlink()
    assert check(docs) == 1
    assert "no picture" in capsys.readouterr().err


def test_the_check_finds_verdicts_that_the_numbers_do_not_give(docs, capsys):
    path = docs / "reproduction/errata.json"
    content = json.loads(path.read_text())
    content["numbers"]["padding"]["released"] = 3072
    path.write_text(json.dumps(content))
    assert check(docs) == 1
    assert "verdicts of its result are not those of this code" in capsys.readouterr().err


def test_results_that_are_not_found_again_are_kept(docs, tmp_path):
    text = (docs / "reproduction.md").read_text()
    assert report.main(["--out", str(tmp_path / "nothing"), "--docs", str(docs)]) == 0
    assert (docs / "reproduction.md").read_text() == text


def test_pictures_and_verdicts_are_made_anew_from_the_numbers_alone(docs, monkeypatch):
    picture, result = docs / "images/reproduction/errata.png", docs / "reproduction/errata.json"
    drawn, judged, text = picture.read_bytes(), result.read_bytes(), (docs / "reproduction.md")
    page_before = text.read_text()
    picture.unlink()
    result.write_text(judged.decode().replace('"passed": true', '"passed": false'))
    text.unlink()

    def compute(options, workspace):
        raise AssertionError("nothing is to be computed")

    experiment = replace(errata.EXPERIMENT, compute=compute)
    replace_errata(monkeypatch, experiment)
    assert report.main(["--docs", str(docs), "--redraw"]) == 0
    assert picture.read_bytes() == drawn
    assert result.read_bytes() == judged
    assert text.read_text() == page_before
    assert check(docs) == 0


def replace_errata(monkeypatch, experiment):
    for module in (collection, page, report):
        monkeypatch.setattr(module, "load_experiment", lambda name: experiment)


def failing(explanation):
    return judged(check_that("a | b", False, "x", float("nan"), "none", explanation))


def judged(verdict):
    return Experiment(
        name="errata",
        title="a title",
        claim="a claim",
        seeds=(1, 1),
        settings=lambda options: [],
        compute=lambda options, workspace: {},
        check=lambda numbers: [verdict],
        plot=lambda numbers: Figure(),
        remarks=("The tolerance was found last.",),
    )


@pytest.mark.usefixtures("only_errata")
def test_a_failed_verdict_and_remarks_stay_visible(tmp_path, monkeypatch):
    experiment = failing("the paper's data are other ones")
    replace_errata(monkeypatch, experiment)
    perform(experiment, Options(), tmp_path / "out", Console(quiet=True))
    (tmp_path / "docs").mkdir()
    assert report.main(["--out", str(tmp_path / "out"), "--docs", str(tmp_path / "docs")]) == 0
    text = (tmp_path / "docs/reproduction.md").read_text()
    assert "0 of 1 passed, **1 failed**" in text
    assert "| a \\| b | x | nan | none | **failed** |" in text
    assert "- **failed**: a \\| b. The paper's data are other ones." in text
    assert "- The tolerance was found last." in text
    assert check(tmp_path / "docs") == 0


@pytest.mark.usefixtures("only_errata")
def test_a_known_failure_that_passes_is_pointed_out(tmp_path, monkeypatch):
    verdict = Check("q", 1.0, 1.0, True, "none", "a known reason", known=True)
    replace_errata(monkeypatch, judged(verdict))
    perform(judged(verdict), Options(), tmp_path / "out", Console(quiet=True))
    (tmp_path / "docs").mkdir()
    assert report.main(["--out", str(tmp_path / "out"), "--docs", str(tmp_path / "docs")]) == 0
    text = (tmp_path / "docs/reproduction.md").read_text()
    assert "| q | 1 | 1 | none | **passed, known to fail** |" in text
    assert "- **known to fail, and passed**: q." in text
    assert check(tmp_path / "docs") == 0


def test_what_could_not_run_is_listed_with_the_reason(tmp_path, monkeypatch, only_errata):
    out, docs = tmp_path / "out", tmp_path / "docs"
    docs.mkdir()

    def fail(*arguments, **options):
        raise FileNotFoundError("no file /home/somebody/reviews.csv: give --data")

    monkeypatch.setattr(command_line, "perform", fail)
    assert command_line.main(["errata", "--out", str(out)]) == 1
    assert command_line.main(["report", "--out", str(out), "--docs", str(docs)]) == 0
    text = (docs / "reproduction.md").read_text()
    assert "not run: no file reviews.csv: give --data" in text
    assert "somebody" not in text
    assert check(docs) == 0


@pytest.mark.usefixtures("only_errata")
def test_what_has_not_run_is_listed_too(tmp_path):
    assert report.main(["--out", str(tmp_path / "nothing"), "--docs", str(tmp_path)]) == 0
    text = (tmp_path / "reproduction.md").read_text()
    assert "not run: nobody has run `python -m deeprep.experiments errata`" in text


def test_a_missing_directory_is_an_error_that_names_it(tmp_path, capsys):
    assert report.main(["--docs", str(tmp_path / "none")]) == 1
    assert "expected the directory of the documentation" in capsys.readouterr().err.replace(
        "\n", " "
    )
