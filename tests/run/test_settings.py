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
