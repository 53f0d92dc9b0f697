"""Defaults by architecture and data set: the paper's values, precedence, refused combinations."""

import pytest

from deeprep.data import DataSettings
from deeprep.models import ModelSettings
from deeprep.run.defaults import resolve
from deeprep.run.settings import OptimizationSettings, Settings


def resolved(arch="mlp", dataset="digits", **optimization):
    return resolve(
        Settings(
            model=ModelSettings(arch=arch),
            data=DataSettings(dataset=dataset),
            optimization=OptimizationSettings(**optimization),
        )
    )


def test_linear_on_orthogonal_is_figure_4a():
    settings = resolved("linear", "orthogonal")
    model, data, optimization = settings.model, settings.data, settings.optimization
    assert (model.depth, model.width, model.init, model.init_scale) == (6, 50, "orthogonal", 0.3)
    assert (data.classes, data.samples_per_class, data.dimension) == ((3,), 10, 50)
    assert (optimization.loss, optimization.alpha, optimization.batch_size) == ("mse", 1.0, 0)
    assert (optimization.lr, optimization.final_lr_fraction) == (0.1, 0.1)
    assert optimization.momentum == 0.0
    assert (optimization.epochs, optimization.stop_loss) == (5000, 1e-11)


@pytest.mark.parametrize(("arch", "alpha"), [("mlp", 1.0), ("hybrid", 100.0)])
def test_cifar10_has_the_settings_of_figures_1_and_5(arch, alpha):
    settings = resolved(arch, "cifar10")
    model, optimization = settings.model, settings.optimization
    assert (model.depth, model.width, model.init_scale, model.bias) == (8, 1024, 0.1, False)
    assert (optimization.lr, optimization.alpha, optimization.batch_size) == (1e-4, alpha, 128)
    assert (optimization.epochs, optimization.weight_decay) == (400, 1e-4)
    assert (model.linear_layers == 4) == (arch == "hybrid")


def test_what_the_user_says_wins_and_the_rest_is_filled_in():
    settings = resolved("linear", "orthogonal", lr=0.5, stop_loss=0.0)
    assert (settings.optimization.lr, settings.optimization.stop_loss) == (0.5, 0.0)
    assert settings.optimization.epochs == 5000
    assert resolve(settings) == settings


def test_settings_without_meaning_stay_open():
    vision = resolved("resnet18").model
    assert (vision.depth, vision.width, vision.init) == (None, None, None)
    adam = resolved(optimizer="adam").optimization
    assert (adam.lr, adam.momentum) == (1e-3, None)
    assert resolved(loss="cross-entropy").optimization.alpha is None
    assert resolved(schedule="constant").optimization.final_lr_fraction is None


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (Settings(model=ModelSettings(arch="resnet18", depth=5)), "depth"),
        (Settings(model=ModelSettings(arch="resnet18", bias=True)), "bias"),
        (Settings(model=ModelSettings(arch="mlp", linear_layers=2)), "linear_layers"),
        (Settings(model=ModelSettings(arch="hybrid", linear_layers=7)), "linear_layers"),
        (Settings(model=ModelSettings(arch="hybrid", linear_layers=0)), "linear_layers"),
        (Settings(model=ModelSettings(init="default", init_scale=0.1)), "init_scale"),
        (Settings(model=ModelSettings(arch="perceptron")), "arch"),
        (
            Settings(optimization=OptimizationSettings(optimizer="adam", momentum=0.5)),
            "momentum",
        ),
        (Settings(optimization=OptimizationSettings(loss="cross-entropy", alpha=2.0)), "alpha"),
        (
            Settings(optimization=OptimizationSettings(schedule="constant", final_lr_fraction=0.5)),
            "final_lr_fraction",
        ),
        (Settings(data=DataSettings(dataset="image-folder")), "data_dir"),
        (Settings(data=DataSettings(dataset="orthogonal", classes=(0, 1))), "classes"),
    ],
)
def test_flags_without_effect_are_refused_by_name(settings, name):
    with pytest.raises(ValueError, match=f"^{name} is .*expected "):
        resolve(settings)
