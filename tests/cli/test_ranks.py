"""`deeprep analyze` in many processes: what one process finds, said once."""

import contextlib
import io
import json
import os
import sys
import traceback

import pytest
import torch
from analyze_command import DIGITS
from rank_checks import join
from torch import distributed, nn

from deeprep import LayerReport
from deeprep.cli import main

FLAGS = ["--full", "--accuracy", "--save-states"]


def _analyze(rank, size, store, results, folder, arguments):
    """Run the command in a group; report (rank, status, stdout, stderr)."""
    os.chdir(folder)
    os.environ["COLUMNS"] = "200"
    join(rank, size, store)
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(["analyze", *arguments])
        results.put((rank, status, out.getvalue(), err.getvalue()))
    except BaseException:
        results.put((rank, None, "", traceback.format_exc()))
        raise
    distributed.destroy_process_group()


@pytest.fixture
def analyze(run_ranks, folder):
    def run(size, *arguments):
        (folder.parent / "store").unlink(missing_ok=True)
        (folder / "store").unlink(missing_ok=True)
        _, results = run_ranks(_analyze, size, folder, arguments)
        found = sorted(results.get(timeout=30) for _ in range(size))
        assert all(status is not None for _, status, _, _ in found), found
        return found

    return run


def assert_like(found, expected):
    assert [layer.name for layer in found.layers] == [layer.name for layer in expected.layers]
    for one, other in zip(found.layers, expected.layers, strict=True):
        for name in ("compression", "discrimination", "nc1", "ncc_accuracy", "probe_accuracy"):
            value, wanted = getattr(one, name), getattr(other, name)
            assert value == (None if wanted is None else pytest.approx(wanted, rel=1e-4)), name


@pytest.mark.parametrize("size", [2, 3])
def test_every_process_measures_its_share(folder, analyze, size):
    arguments = ["own_models:cnn", *DIGITS, *FLAGS]
    assert main(["analyze", *arguments, "--out", "alone"]) == 0
    (_, status, out, err), *others = analyze(size, *arguments, "--out", "together")
    assert (status, err) == (0, "")
    assert f", {size} processes" in out
    assert all(other[1:] == (0, "", "") for other in others)
    found, expected = (
        LayerReport.from_dict(json.loads((folder / name / "report.json").read_text()))
        for name in ("together", "alone")
    )
    assert found.num_samples == expected.num_samples == 40
    assert_like(found, expected)
    names = [{p.name for p in (folder / n).rglob("*")} for n in ("together", "alone")]
    assert names[0] == names[1]


def test_every_process_scores_its_share_of_the_test_data(folder, analyze):
    for name, words in (("train", "aabbab"), ("test", "abab")):
        lines = [f"{'good' if w == 'b' else 'bad'}\t{w * (3 + i)}\n" for i, w in enumerate(words)]
        (folder / f"{name}.tsv").write_text("".join(lines))
    flags = ["--data", "train.tsv", "--test-data", "test.tsv", *FLAGS]
    arguments = ["own_models:Sentences", *flags]
    assert main(["analyze", *arguments, "--out", "alone"]) == 0
    (_, status, _, err), *_ = analyze(3, *arguments, "--out", "together")
    assert (status, err) == (0, "")
    found, expected = (
        LayerReport.from_dict(json.loads((folder / name / "report.json").read_text()))
        for name in ("together", "alone")
    )
    assert_like(found.test, expected.test)
    assert found.test.num_samples == 4
    for name in ("classifier", "ncc_mismatch", "model_accuracy"):
        collapse, wanted = found.test.neural_collapse, expected.test.neural_collapse
        assert getattr(collapse, name) == getattr(wanted, name)


def test_more_processes_than_samples(folder, analyze):
    arguments = [*("own_models:cnn", "--data", "digits", "--samples-per-class", "1")]
    (_, status, out, err), *_ = analyze(3, *arguments, "--classes", "2", "--accuracy")
    assert (status, err) == (0, "")
    assert "2 samples" in out


def test_an_error_is_said_once(folder, analyze):
    found = analyze(2, "own_models:fails", *DIGITS)
    assert [status for _, status, _, _ in found] == [1, 1]
    assert [err.count("error: model own_models:fails failed") for *_, err in found] == [1, 0]


def test_a_checkpoint_that_cannot_be_read_is_left_out(folder, analyze):
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten()),
        nn.Linear(96, 10),
    )
    for number in (1, 3):
        torch.save(model.state_dict(), folder / f"epoch-{number}.pt")
    (folder / "epoch-2.pt").write_bytes(b"nothing")
    found = analyze(2, "own_models:cnn", *DIGITS, "--weights", "epoch-*.pt")
    (_, status, out, err), (_, _, other_out, other_err) = found
    assert status == 1
    assert err.count("epoch-2.pt") == 1
    assert "epoch-3" in out
    assert (other_out, other_err) == ("", "")
    assert "own_models" not in sys.modules
