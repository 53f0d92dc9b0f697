"""LayerReport.scalars: names that every tracker takes, one for each layer, and finite numbers."""

from __future__ import annotations

import dataclasses
import math
import posixpath
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import deeprep
from deeprep.report import LayerMetrics, LayerReport
from deeprep.report.scalars import tracker_name

# What MLflow checks, in mlflow.utils.validation, and what TensorBoard would replace.
MLFLOW = re.compile(r"[/\w.\- ]*", re.ASCII)
TENSORBOARD = re.compile(r"[^-/\w\.]", re.ASCII)

AWKWARD = [
    *("relu#2", "relu-2", "relu#02", "relu#2#2", "#2", "#", "", "-", "-2", ".", "..", ".#2", "a."),
    *("a/b", "a-x2f-b", "a:b", "größe", "层", "a b", "a\nb", "a\n#2", "x2f", "-x2f-", "A", "a"),
    *("relu#٢", "../up", "a//b", "encoder.layer.0", "relu#x2d#"),
]


def is_taken(name):
    return (
        bool(MLFLOW.fullmatch(name))
        and posixpath.normpath(name) == name
        and not name.startswith(("/", ".."))
        and not TENSORBOARD.search(name)
    )


def report_of(names, **values):
    rows = [LayerMetrics(i, name, 4, **values) for i, name in enumerate(names)]
    return LayerReport(rows, 10, 2)


def test_names_are_taken_by_every_tracker_and_no_two_are_the_same():
    scalars = report_of(AWKWARD, compression=1.0).scalars()
    assert len(scalars) == len(AWKWARD) + 3  # the line through them, and what is not finite
    assert all(is_taken(name) for name in scalars)


@given(st.text(), st.text(alphabet="ax2f-#0."))
def test_names_of_layers_are_told_apart(first, second):
    for name in (first, second):
        assert is_taken(f"deeprep/compression/{tracker_name(name)}")
    assert (tracker_name(first) == tracker_name(second)) == (first == second)


def test_plain_names_stay():
    for name in ("input", "layer1.0.conv2", "bert.encoder.layer.11", "_a_b"):
        assert tracker_name(name) == name
    assert tracker_name("relu#2") == "relu-2"


def test_values_are_those_of_the_report():
    labels = torch.arange(60) % 3
    features = {f"l{n}": torch.eye(3)[labels] + 0.3**n * torch.randn(60, 3) for n in range(4)}
    scatters = {n: deeprep.class_scatter(x, labels, full=True) for n, x in features.items()}
    report = LayerReport.from_scatters(scatters)
    scalars = report.scalars("train/")
    assert all(type(value) is float for value in scalars.values())
    for layer in report.layers:
        assert scalars[f"train/numerical_rank/{layer.name}"] == layer.numerical_rank
        assert scalars[f"train/cdnv/{layer.name}"] == layer.cdnv
    assert scalars["train/compression_fit/slope"] == report.compression_fit.slope
    assert scalars["train/discrimination_fit/r_squared"] == report.discrimination_fit.r_squared
    assert scalars["train/nonfinite"] == 0.0
    told = {name.split("/")[1] for name in scalars}
    assert not told & {"index", "name", "num_features", "closest_classes", "closest_pairs"}


def test_what_is_not_defined_or_not_finite_is_left_out_and_the_latter_counted():
    rows = [
        LayerMetrics(0, "input", 4),
        LayerMetrics(1, "a", 4, compression=math.nan, discrimination=math.inf, nc1=2.0),
        LayerMetrics(2, "b", 4, compression=-math.inf, numerical_rank=3),
    ]
    assert LayerReport(rows, 10, 2).scalars("") == {
        "nc1/a": 2.0,
        "numerical_rank/b": 3.0,
        "nonfinite": 3.0,
    }


def test_every_number_of_a_row_has_a_curve():
    numbers = {
        f.name: 1.0
        for f in dataclasses.fields(LayerMetrics)
        if f.name not in ("index", "name", "num_features") and "closest" not in f.name
    }
    scalars = report_of(["a"], **numbers).scalars("")
    assert scalars == {**{f"{name}/a": 1.0 for name in numbers}, "nonfinite": 0.0}


@pytest.mark.parametrize("prefix", ["", "deeprep/", "eval_", "my run/a.b-", "deeprep"])
def test_prefixes(prefix):
    assert f"{prefix}nonfinite" in report_of(["a"]).scalars(prefix)


@pytest.mark.parametrize("prefix", ["a:", "#", "é/", "/", "a//", "./", "../", "a/../", "a\n"])
def test_prefixes_that_some_tracker_does_not_take(prefix):
    with pytest.raises(ValueError, match=re.escape(f"prefix is {prefix!r}, expected letters")):
        report_of(["a"]).scalars(prefix)


def test_those_on_test_data_have_names_of_their_own():
    report = report_of(["relu#2"], ncc_accuracy=1.0)
    test = report_of(["relu#2"], ncc_accuracy=0.5, compression=math.nan)
    scalars = report.with_test(test).scalars()
    assert scalars["deeprep/ncc_accuracy/relu-2"] == 1.0
    assert scalars["deeprep/test/ncc_accuracy/relu-2"] == 0.5
    assert (scalars["deeprep/nonfinite"], scalars["deeprep/test/nonfinite"]) == (0.0, 1.0)
    assert all(is_taken(name) for name in scalars)
