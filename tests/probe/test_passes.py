"""run, score and report: the steps of `analyze`, one by one and in a user's own order."""

from __future__ import annotations

import dataclasses
import typing

import pytest
from probe_models import ResidualNet, assert_same, hooks_of, make_batches, measure

import deeprep
from deeprep import LayerProbe, LayerReport, ReportOptions, analyze
from deeprep.report.options import ReportKeywords


def test_the_steps_give_what_analyze_does():
    model, batches = ResidualNet(), make_batches()
    options = ReportOptions(weighting="prior", jackknife=True, class_names=["a", "b", "c"])
    probe = LayerProbe(model, 3, full=True)
    probe.run(batches)
    scores = probe.score(batches)
    assert scores is probe.scores
    expected = analyze(model, batches, 3, full=True, accuracy=True, options=options)
    assert probe.report(options) == expected
    assert expected.layers[1].probe_accuracy is not None
    assert expected.weighting == "prior"
    assert expected.class_names == ["a", "b", "c"]
    again = LayerReport.from_scatters(probe.scatters, scores.result(), options)
    assert again.layers == expected.layers


def test_a_pass_needs_no_context_and_leaves_none():
    model, batches = ResidualNet(), make_batches()
    probe = LayerProbe(model, 3)
    probe.run(batches)
    probe.score(batches)
    assert not hooks_of(model)
    assert model.training
    model.eval()
    assert_same(probe.scatters, measure(model, *batches))


def test_a_probe_that_is_entered_runs_and_stays_entered():
    model, batches = ResidualNet().eval(), make_batches()
    with LayerProbe(model, 3) as probe:
        probe(*batches[0])
        probe.run(batches[1:])
        assert hooks_of(model)
        assert probe.score(batches).result()["input"].ncc_accuracy > 0
        with pytest.raises(RuntimeError, match="a batch already"), probe.batch(batches[0][1]):
            probe.run(batches)
    assert not hooks_of(model)
    assert_same(probe.scatters, measure(model, *batches))


def test_several_loaders_are_one_data_set():
    model, batches = ResidualNet().eval(), make_batches()
    whole, parts = LayerProbe(model, 3), LayerProbe(model, 3)
    whole.run(batches)
    whole.score(batches)
    for part in (batches[:1], batches[1:]):
        parts.run(part)
    for part in (iter(batches[:1]), iter(batches[1:])):
        parts.score(part)
    assert parts.report() == whole.report()


def test_scores_are_of_the_states_they_were_made_with():
    model, batches = ResidualNet(), make_batches()
    probe = LayerProbe(model, 3)
    probe.run(batches)
    probe.score(batches)
    assert probe.report().layers[1].ncc_accuracy is not None
    probe.run(batches)
    assert probe.scores is None
    assert probe.report().layers[1].ncc_accuracy is None

    def failing():
        yield batches[0]
        raise OSError("disk gone")

    probe.score(batches)
    with pytest.raises(OSError, match="disk gone"):
        probe.score(failing())
    assert probe.scores is None


def test_a_pass_that_is_too_early_says_so():
    probe = LayerProbe(ResidualNet(), 3)
    for step in (probe.report, lambda: probe.score(make_batches())):
        with pytest.raises(ValueError, match="loader gave no batch, or none in which"):
            step()
    probe.run([])
    with pytest.raises(ValueError, match="loader gave no batch"):
        probe.report()


def test_processes_are_merged_between_the_passes(tmp_path):
    from torch import distributed

    model, batches = ResidualNet(), make_batches()
    alone = analyze(model, batches, 3, accuracy=True)
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        probe = LayerProbe(model, 3)
        probe.run(batches)
        probe.all_reduce()
        probe.score(batches).all_reduce()
        assert probe.report() == alone
        with pytest.raises(RuntimeError, match="all_reduce comes after score, expected it between"):
            probe.all_reduce()
    finally:
        distributed.destroy_process_group()


def test_progress_of_each_pass():
    probe, calls = LayerProbe(ResidualNet(), 3), []
    probe.run(make_batches(), lambda *x: calls.append(x))
    probe.score(iter(make_batches()), lambda *x: calls.append(x))
    assert calls == [(1, 3), (2, 3), (3, 3), (1, None), (2, None), (3, None)]


def test_options_and_keywords_are_the_same_fields():
    fields = {field.name for field in dataclasses.fields(ReportOptions)}
    assert set(typing.get_type_hints(ReportKeywords)) == fields
    model, batches = ResidualNet(), make_batches()
    options = ReportOptions(weighting="prior", metrics=["cdnv"])
    assert hash(options) == hash(ReportOptions(weighting="prior", metrics=("cdnv",)))
    by_options = analyze(model, batches, 3, options=options)
    assert by_options == analyze(model, batches, 3, weighting="prior", metrics=["cdnv"])
    changed = analyze(model, batches, 3, options=options, weighting="uniform")
    assert changed == analyze(model, batches, 3, metrics=["cdnv"])
    with pytest.raises(TypeError, match="wieghting"):
        analyze(model, batches, 3, wieghting="prior")


@pytest.mark.parametrize(
    ("field", "error", "message"),
    [
        ({"weighting": "flat"}, ValueError, "weighting is 'flat', expected 'uniform' or 'prior'"),
        ({"metrics": ["ncl"]}, ValueError, "metrics holds 'ncl', expected some of cdnv"),
        ({"metrics": ["nc1"]}, ValueError, "metrics holds 'nc1', which needs states with full"),
        ({"class_names": [1, 2, 3]}, TypeError, r"class_names is \(1, 2, 3\), expected K strings"),
    ],
)
def test_options_are_checked_before_the_model_runs(field, error, message):
    class Untouched(ResidualNet):
        def forward(self, inputs):
            raise AssertionError("the model ran")

    with pytest.raises(error, match=message):
        deeprep.analyze(Untouched(), make_batches(), 3, **field)
