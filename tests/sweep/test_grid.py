"""The grid of a sweep: what it accepts, what it makes of it, and what it refuses."""

import pytest

from deeprep.models import ModelSettings
from deeprep.run.settings import RunSettings, Settings
from deeprep.sweep.grid import make_runs, parse_axis, parse_seeds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("depth", "grid is .*expected FLAG=VALUE"),
        ("depth=4,,6", "grid is .*expected FLAG=VALUE"),
        ("dept=4", "one of the flags of run: arch, depth"),
        ("depth=a", r"grid depth is 'a', expected values of int \| None"),
        ("loss=l1", "grid loss is .*expected values of"),
        ("depth=1,4", "depth is 1, expected finite and >= 2"),
        ("depth=4,6,4", "grid depth is .*expected distinct values"),
        ("lr=0.1,1e-1", "grid lr is .*expected distinct values"),
        ("seed=0,1", "seed is .*expected to be given as --seeds"),
        ("name=a,b", "name is .*expected to be left out"),
    ],
)
def test_a_wrong_grid_is_an_error_that_names_the_flag(text, message):
    with pytest.raises(ValueError, match=message):
        parse_axis(text)


def test_values_are_read_by_the_type_of_the_flag():
    assert parse_axis("--batch-norm=true,false").values == {"true": True, "false": False}
    assert parse_axis("init_scale=0.1, 1e-2").values == {"0.1": 0.1, "1e-2": 0.01}
    assert parse_axis("classes=3,0 7").values == {"3": (3,), "0 7": (0, 7)}


def test_a_grid_of_an_earlier_version_keeps_the_names_of_its_runs():
    (run,) = make_runs(Settings(), [parse_axis("final-lr=0.5")], [0])
    assert run.name == "final-lr=0.5,seed=0"
    assert run.settings.optimization.final_lr_fraction == 0.5
    with pytest.raises(ValueError, match=r"final-lr-fraction is given 2 times, expected once"):
        make_runs(Settings(), [parse_axis("final-lr=0.5"), parse_axis("final_lr_fraction=1")], [0])


@pytest.mark.parametrize("text", ["", "a", "4..0", "0,0", "0..3,2", "-1", "0..", "1.5"])
def test_wrong_seeds_are_an_error(text):
    with pytest.raises(ValueError, match="seeds is "):
        parse_seeds(text)


def test_a_grid_has_all_combinations_with_their_settings():
    axes = [parse_axis("depth=3,4"), parse_axis("classes=0 7,3")]
    runs = make_runs(Settings(ModelSettings(arch="linear")), axes, [5, 6])
    assert len({run.name for run in runs}) == 8
    assert runs[1].name == "depth=3,classes=0_7,seed=6"
    last = runs[-1].settings
    found = (last.model.arch, last.model.depth, last.data.classes, last.run.seed)
    assert found == ("linear", 4, (3,), 6)
    assert runs[-1].values == {"depth": "4", "classes": "3"}


@pytest.mark.parametrize(
    ("base", "grid", "message"),
    [
        (Settings(ModelSettings(depth=4)), ["depth=3,4"], "depth is given 2 times, expected once"),
        (Settings(), ["depth=3", "depth=4"], "depth is given 2 times, expected once"),
        (
            Settings(run=RunSettings(seed=3)),
            ["depth=3"],
            "seed is .*expected to be given as --seeds",
        ),
        (Settings(), ["data-dir=/a/b,/a_b"], "grid is .*expected values that differ in letters"),
    ],
)
def test_a_grid_that_contradicts_itself_is_an_error(base, grid, message):
    with pytest.raises(ValueError, match=message):
        make_runs(base, [parse_axis(text) for text in grid], [0])
