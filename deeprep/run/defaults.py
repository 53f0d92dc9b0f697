"""Which settings fit an architecture and a data set: one table, and how it is applied."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from deeprep.base.validate import chosen, require
from deeprep.models import STACKS, ModelSettings, check_architecture
from deeprep.run.settings import Settings

__all__ = ["DEFAULTS", "Choice", "Defaults", "choices", "resolve"]


@dataclass(frozen=True)
class Defaults:
    """Values that `resolve` gives to the fields left None, for some architectures and data sets.

    Empty `archs` or `datasets` stand for all of them; "vision" for every torchvision classifier.
    """

    archs: tuple[str, ...]
    datasets: tuple[str, ...]
    values: dict[str, Any]
    why: str

    def applies(self, arch: str, dataset: str) -> bool:
        """Whether these defaults concern an architecture on a data set."""
        arch = arch if arch in STACKS else "vision"
        return arch in (self.archs or (arch,)) and dataset in (self.datasets or (dataset,))


# Later entries override earlier ones.
DEFAULTS = (
    Defaults(
        (),
        (),
        {
            "loss": "mse",
            "alpha": 1.0,
            "optimizer": "sgd",
            "lr": 1e-4,
            "momentum": 0.9,
            "weight_decay": 1e-4,
            "schedule": "cosine",
            "final_lr_fraction": 0.01,
            "epochs": 400,
            "batch_size": 128,
            "stop_loss": 0.0,
        },
        "the paper's training on CIFAR-10",
    ),
    Defaults(
        STACKS,
        (),
        {"depth": 8, "width": 1024, "init": "orthogonal", "init_scale": 0.1},
        "the paper's networks for CIFAR-10",
    ),
    Defaults(("hybrid",), (), {"linear_layers": 4, "alpha": 100.0}, "the paper's hybrid network"),
    Defaults(
        ("linear",),
        (),
        {"depth": 6, "init_scale": 0.3, "alpha": 100.0, "lr": 1e-3},
        "deeper or from smaller weights it stays on its initial plateau",
    ),
    Defaults(
        ("vision",),
        (),
        {"loss": "cross-entropy", "lr": 0.05, "weight_decay": 5e-4, "epochs": 30},
        "usual settings for residual networks on small images",
    ),
    Defaults(
        STACKS,
        ("digits",),
        # The paper's depth, initialisation and optimiser; the rest is chosen so that two cores need
        # half a minute, C_l falls geometrically and D_l rises from each layer to the next for
        # seeds 0 to 3. A larger lr fits as well, but the last layers then collapse onto few
        # directions and D_l stalls.
        {"width": 256, "lr": 2e-4, "epochs": 80, "batch_size": 64},
        "small enough for two cores",
    ),
    Defaults(
        STACKS,
        ("mnist", "fashion-mnist"),
        {"width": 512, "lr": 1e-3, "epochs": 20},
        "minutes on a few cores",
    ),
    Defaults(
        ("linear", "hybrid"),
        ("digits",),
        {"lr": 1e-3},
        "a smaller one leaves linear layers on their initial plateau",
    ),
    Defaults(
        (),
        ("orthogonal",),
        {"classes": (3,), "samples_per_class": 10, "width": 50, "batch_size": 0},
        "the data of the paper's theorem, 30 samples of dimension 50, in one batch",
    ),
    Defaults(
        ("linear",),
        ("orthogonal",),
        {
            "depth": 6,
            "init_scale": 0.3,
            "alpha": 1.0,
            "lr": 0.1,
            "momentum": 0.0,
            "weight_decay": 0.0,
            "final_lr_fraction": 0.1,
            "epochs": 5000,
            "stop_loss": 1e-11,
        },
        "the paper's figure 4a",
    ),
    Defaults(
        ("mlp", "hybrid"),
        ("orthogonal",),
        {"depth": 10, "lr": 1e-2, "epochs": 1000},
        "the paper's figure 4b, whose training settings are not published",
    ),
)


@dataclass(frozen=True)
class Choice:
    """What a setting that was left open is, and why.

    Attributes
    ----------
    value
        None for a setting that has no meaning beside the others.
    source
        The row of `DEFAULTS`, counted from 1, or the setting that it follows from.
    """

    value: Any
    source: str


def choices(settings: Settings) -> dict[str, Choice]:
    """Return what settings are where they are None, those that concern the architecture or data.

    >>> choices(Settings())["depth"]
    Choice(value=8, source='row 2')
    >>> choices(Settings(model=ModelSettings(arch="resnet18")))["depth"]
    Choice(value=None, source='not for arch resnet18')
    """
    model, optimization = settings.model, settings.optimization
    chosen: dict[str, Choice] = {}
    for row, defaults in enumerate(DEFAULTS, start=1):
        if defaults.applies(model.arch, settings.data.dataset):
            new = defaults.values.items()
            chosen.update({name: Choice(value, f"row {row}") for name, value in new})
    if optimization.optimizer == "adam":
        chosen["lr"] = Choice(1e-3, "optimizer adam")
        chosen["momentum"] = Choice(None, "not for optimizer adam")
    if (loss := optimization.loss or chosen["loss"].value) != "mse":
        chosen["alpha"] = Choice(None, f"not for loss {loss}")
    if (schedule := optimization.schedule or chosen["schedule"].value) != "cosine":
        chosen["final_lr_fraction"] = Choice(None, f"not for schedule {schedule}")
    if model.arch not in STACKS:
        chosen.update(dict.fromkeys(_STACK_FIELDS, Choice(None, f"not for arch {model.arch}")))
    if model.init == "default":
        chosen["init_scale"] = Choice(None, "not for init default")
    return chosen


def resolve(settings: Settings) -> Settings:
    """Fill in the fields that are None from `DEFAULTS`, and check that the settings fit together.

    Fields that do not concern the architecture, data set or optimiser stay None.

    Raises
    ------
    ValueError
        An unknown architecture, or a setting that does not fit the others.

    >>> resolve(Settings(model=ModelSettings(arch="linear"))).optimization.momentum
    0.9
    """
    check_architecture(settings.model.arch)
    _check_applicable(settings)
    values = {name: choice.value for name, choice in choices(settings).items()}
    groups = {}
    for group in dataclasses.fields(settings):
        old = getattr(settings, group.name)
        missing = {f.name for f in dataclasses.fields(old) if getattr(old, f.name) is None}
        new = {name: value for name, value in values.items() if name in missing}
        groups[group.name] = dataclasses.replace(old, **new)
    resolved = Settings(**groups)
    if resolved.model.arch == "hybrid":
        most = chosen(resolved.model.depth) - 2
        linear = chosen(resolved.model.linear_layers)
        wanted = f"in 1..depth - 2 = {most} (a hybrid network has layers of both kinds)"
        require("linear_layers", linear, 1 <= linear <= most, wanted)
    return resolved


_STACK_FIELDS = ("depth", "width", "linear_layers", "init", "init_scale")


def _check_applicable(settings: Settings) -> None:
    """Refuse flags that would have no effect, rather than ignore them."""
    model, data, optimization = settings.model, settings.data, settings.optimization
    if model.arch not in STACKS:
        default = ModelSettings()
        for name in (*_STACK_FIELDS, "batch_norm", "bias"):
            given = getattr(model, name)
            unset = given == getattr(default, name)
            require(name, given, unset, f"to be left out: it has no meaning for arch {model.arch}")
    if model.arch in ("linear", "mlp"):
        unset = model.linear_layers is None
        require("linear_layers", model.linear_layers, unset, "to be left out unless arch is hybrid")
    if model.init == "default":
        unset = model.init_scale is None
        require("init_scale", model.init_scale, unset, "to be left out when init is default")
    if optimization.optimizer == "adam":
        unset = optimization.momentum is None
        require("momentum", optimization.momentum, unset, "to be left out when optimizer is adam")
    if optimization.loss == "cross-entropy":
        unset = optimization.alpha is None
        require("alpha", optimization.alpha, unset, "to be left out when loss is cross-entropy")
    if optimization.schedule == "constant":
        fraction = optimization.final_lr_fraction
        wanted = "to be left out when schedule is constant"
        require("final_lr_fraction", fraction, fraction is None, wanted)
    if data.dataset == "image-folder":
        require("data_dir", data.data_dir, data.data_dir is not None, "a folder for image-folder")
    if data.dataset == "orthogonal" and data.classes is not None:
        one = len(data.classes) == 1
        require("classes", data.classes, one, "one number of classes for orthogonal data")
