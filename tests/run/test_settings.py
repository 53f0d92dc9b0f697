"""Settings: ranges, the round trip through JSON, and messages that name the setting."""

import dataclasses
import json
from pathlib import Path

import pytest

from deeprep.base.validate import chosen
from deeprep.data import DataSettings
from deeprep.models import ModelSettings
from deeprep.run.settings import (
    MeasurementSettings,
    OptimizationSettings,
    RunSettings,
    Settings,
    from_dict,
    to_dict,
)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(
            model=ModelSettings(arch="hybrid", depth=5, linear_layers=2, init="gaussian"),
            data=DataSettings(data_dir=Path("/data/x"), classes=(3, 1, 4), noise=0.5),
            optimization=OptimizationSettings(loss="cross-entropy", dtype="bf16", lr=0.25),
            measurement=MeasurementSettings(weighting="prior"),
            run=RunSettings(runs_dir=Path("elsewhere"), name="a", seed=7),
        ),
    ],
)
def test_round_trip_through_json(settings):
    assert from_dict(json.loads(json.dumps(to_dict(settings), allow_nan=False))) == settings


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        (ModelSettings, "depth", 1),
        (ModelSettings, "width", 0),
        (ModelSettings, "linear_layers", -1),
        (ModelSettings, "init_scale", 0.0),
        (DataSettings, "classes", ()),
        (DataSettings, "classes", (1,)),
        (DataSettings, "classes", (0, -1)),
        (DataSettings, "classes", (2, 2)),
        (DataSettings, "samples_per_class", 0),
        (DataSettings, "image_size", 0),
        (DataSettings, "noise", -0.1),
        (OptimizationSettings, "alpha", 0.0),
        (OptimizationSettings, "lr", float("inf")),
        (OptimizationSettings, "lr", float("nan")),
        (OptimizationSettings, "momentum", 1.0),
        (OptimizationSettings, "weight_decay", -1.0),
        (OptimizationSettings, "final_lr_fraction", 1.5),
        (OptimizationSettings, "epochs", 0),
        (OptimizationSettings, "batch_size", -1),
        (MeasurementSettings, "measurements", 1),
        (RunSettings, "seed", -1),
        (RunSettings, "threads", 0),
        (RunSettings, "name", "a/b"),
        (RunSettings, "name", ".."),
    ],
)
def test_values_out_of_range_are_refused_by_name(group, name, value):
    with pytest.raises(ValueError, match=f"^{name} is .*expected "):
        group(**{name: value})


def test_unknown_settings_are_refused_by_name():
    with pytest.raises(ValueError, match=r"optimization\.learning_rate is not a setting; known"):
        from_dict({"optimization": {"learning_rate": 1.0}})
    with pytest.raises(ValueError, match="optimizer is not a group of settings"):
        from_dict({"optimizer": {}})


@pytest.mark.parametrize(
    ("group", "name", "value", "found", "wanted"),
    [
        ("optimization", "lr", "fast", '"fast"', "a number or null"),
        ("optimization", "lr", True, "true", "a number or null"),
        ("optimization", "lr", [0.1], "[0.1]", "a number or null"),
        ("optimization", "epochs", 1.5, "1.5", "a whole number or null"),
        ("optimization", "loss", "l1", '"l1"', 'one of "mse", "cross-entropy" or null'),
        ("optimization", "dtype", None, "null", 'one of "float32", "bf16", "float64"'),
        ("model", "bias", 0, "0", "true or false"),
        ("model", "arch", {"name": "mlp"}, '{"name": "mlp"}', "a string"),
        ("data", "classes", [1, "a"], '[1, "a"]', "a list of whole numbers or null"),
        ("data", "classes", 3, "3", "a list of whole numbers or null"),
        ("data", "data_dir", 3, "3", "a path or null"),
        ("run", "runs_dir", None, "null", "a path"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(group, name, value, found, wanted):
    values = to_dict(Settings())
    values[group][name] = value
    with pytest.raises(ValueError, match="expected") as raised:
        from_dict(values)
    assert str(raised.value) == f"{group}.{name} is {found}, expected {wanted}"


def test_a_whole_number_is_a_number():
    values = to_dict(Settings())
    values["optimization"]["lr"] = 1
    assert from_dict(values).optimization.lr == 1.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "settings is null, expected the groups model, data"),
        ([], r"settings is \[\], expected the groups model, data"),
        ({"model": {}}, "data is missing, expected the groups model, data"),
        ({"model": ["mlp"]}, r'model is \["mlp"\], expected settings such as arch, depth'),
        (
            {"optimization": {"final_lr": 0.1, "final_lr_fraction": 0.1}},
            r"optimization\.final_lr_fraction is not a setting",
        ),
    ],
)
def test_what_holds_no_settings_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(values)


def test_settings_of_earlier_versions_are_read():
    old = to_dict(Settings(optimization=OptimizationSettings(final_lr_fraction=0.25)))
    old["optimization"]["final_lr"] = old["optimization"].pop("final_lr_fraction")
    assert from_dict(old).optimization.final_lr_fraction == 0.25


def test_a_setting_left_open_is_not_taken_for_a_value():
    with pytest.raises(ValueError, match=r"resolved by deeprep\.run\.defaults\.resolve"):
        chosen(Settings().optimization.lr)


def test_flags_without_prefixes_cannot_collide():
    groups = [getattr(Settings(), field.name) for field in dataclasses.fields(Settings)]
    names = [field.name for group in groups for field in dataclasses.fields(group)]
    assert len(names) == len(set(names))
