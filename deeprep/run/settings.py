"""Every setting of a run: one frozen dataclass, `Settings`, in five groups.

The groups of data and model belong to the rooms they configure: `deeprep.data.DataSettings`,
`deeprep.models.ModelSettings`.

`python -m deeprep.run` turns each field into a flag and each field's docstring into its help. A
field that is None means "chosen by architecture and data set": `deeprep.run.defaults.resolve` fills
it in, once; a run's config.json holds the resolved values.
"""

from __future__ import annotations

import dataclasses
import json
import textwrap
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tyro.conf import OmitArgPrefixes

from deeprep.base.validate import require, require_at_least, require_positive
from deeprep.data import DataSettings
from deeprep.models import ModelSettings

__all__ = [
    "FORMER_NAMES",
    "MeasurementSettings",
    "OptimizationSettings",
    "RunSettings",
    "Settings",
    "TrackerName",
    "from_dict",
    "to_dict",
]

TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]

# What the config.json and sweep.json of earlier versions call a setting -> its name.
FORMER_NAMES = {"final_lr": "final_lr_fraction"}


@dataclass(frozen=True)
class OptimizationSettings:
    """How it is trained."""

    loss: Literal["mse", "cross-entropy"] | None = None
    """mse: sum of (alpha * output - one-hot target)^2 over the classes, mean over the samples."""

    alpha: float | None = None
    """Factor on the outputs in the mse loss."""

    optimizer: Literal["sgd", "adam"] | None = None
    """Stochastic (or full-batch) gradient descent, or Adam."""

    lr: float | None = None
    """Learning rate of the first epoch. Default with --optimizer adam: 0.001."""

    momentum: float | None = None
    """Momentum of sgd, in [0, 1); adam has its own."""

    weight_decay: float | None = None
    """L2 penalty added to the gradient: weight decay times the weights."""

    schedule: Literal["cosine", "constant"] | None = None
    """Learning rate over the epochs."""

    final_lr_fraction: float | None = None
    """Fraction of --lr, in [0, 1], towards which the cosine schedule falls."""

    epochs: int | None = None
    """Passes over the training data."""

    batch_size: int | None = None
    """Samples of one step, of all processes together under torchrun; 0: all of them (full-batch
    gradient descent)."""

    stop_loss: float | None = None
    """Stop after an epoch whose training loss is below this; 0: never."""

    dtype: Literal["float32", "bf16", "float64"] = "float32"
    """bf16 trains under autocast with float32 weights, and is measured in float32."""

    def __post_init__(self) -> None:
        require_positive(self, "alpha", "lr")
        require_at_least(self, 1, "epochs")
        require_at_least(self, 0, "weight_decay", "batch_size", "stop_loss")
        if self.momentum is not None:
            require("momentum", self.momentum, 0 <= self.momentum < 1, "in [0, 1)")
        if (fraction := self.final_lr_fraction) is not None:
            require("final_lr_fraction", fraction, 0 <= fraction <= 1, "in [0, 1]")


@dataclass(frozen=True)
class MeasurementSettings:
    """What is measured, and when."""

    measurements: int = 12
    """About how many times the layers are measured: at initialisation, at logarithmically spaced
    epochs, and at the last epoch."""

    weighting: Literal["uniform", "prior"] = "uniform"
    """Weights of the classes in the between-class scatter: 1/K each (the paper's), or n_k/N."""

    reduce: Literal["flatten", "mean"] = "flatten"
    """Features of a layer with spatial output: all of its values, or the mean over positions."""

    def __post_init__(self) -> None:
        require_at_least(self, 2, "measurements")


@dataclass(frozen=True)
class RunSettings:
    """Where it runs, and where the results go."""

    seed: int = 0
    """Fixes the weights, the order of the samples, and any drawn data."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one and the compiled core was built with CUDA."""

    threads: int | None = None
    """CPU threads. Default: as many as PyTorch chooses; under torchrun, the cores divided by the
    processes of the machine."""

    runs_dir: Path = Path("runs")
    """Directory that holds the run directories."""

    tracker: TrackerName | None = None
    """Experiment tracker that also gets the curves, from its own environment variables."""

    name: str | None = None
    """Name of the run directory, which must not exist yet. Default: architecture, data set and
    seed, with -2, -3, ... appended until the name is free."""

    def __post_init__(self) -> None:
        require("seed", self.seed, 0 <= self.seed < 2**63, "in [0, 2^63)")
        require_at_least(self, 1, "threads")
        if self.name is not None:
            plain = self.name not in ("", ".", "..") and Path(self.name).name == self.name
            require("name", repr(self.name), plain, "one directory name, without slashes")


@dataclass(frozen=True)
class Settings:
    """All settings of a run.

    >>> settings = Settings(data=DataSettings(classes=(0, 7)))
    >>> settings.model.arch, settings.data.dataset
    ('mlp', 'digits')
    >>> from_dict(to_dict(settings)) == settings
    True
    """

    model: OmitArgPrefixes[ModelSettings] = field(default_factory=ModelSettings)
    data: OmitArgPrefixes[DataSettings] = field(default_factory=DataSettings)
    optimization: OmitArgPrefixes[OptimizationSettings] = field(
        default_factory=OptimizationSettings
    )
    measurement: OmitArgPrefixes[MeasurementSettings] = field(default_factory=MeasurementSettings)
    run: OmitArgPrefixes[RunSettings] = field(default_factory=RunSettings)


def to_dict(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return the settings as nested dicts that JSON can hold: paths as strings, tuples as lists.

    >>> to_dict(Settings())["run"]["runs_dir"]
    'runs'
    """

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        return list(value) if isinstance(value, tuple) else value

    groups = dataclasses.asdict(settings)
    return {group: {k: plain(v) for k, v in fields.items()} for group, fields in groups.items()}


def from_dict(values: Any) -> Settings:
    """Return the settings that `to_dict` turned into `values`; the inverse of `to_dict`.

    Settings may have the names that earlier versions gave them.

    Raises
    ------
    ValueError
        An unknown group or field, a missing group, or a value of another type or outside its range.

    >>> from_dict({"model": {"depht": 3}})
    Traceback (most recent call last):
        ...
    ValueError: model.depht is not a setting; known: arch, depth, width, ...
    >>> from_dict({"model": {"depth": "deep"}})
    Traceback (most recent call last):
        ...
    ValueError: model.depth is "deep", expected a whole number or null
    """
    hints = typing.get_type_hints(Settings)
    known = ", ".join(hints)
    require("settings", _shown(values), isinstance(values, dict), f"the groups {known}")
    groups = {}
    for group, fields in values.items():
        if group not in hints:
            raise ValueError(f"{group} is not a group of settings; known: {known}")
        groups[group] = _group_from_dict(group, hints[group], fields)
    for group in hints:
        require(group, "missing", group in groups, f"the groups {known}")
    return Settings(**groups)


def _group_from_dict(group: str, cls: type, fields: Any) -> Any:
    """Return a group of settings; those that are missing have their defaults."""
    hints = typing.get_type_hints(cls)
    known = ", ".join(hints)
    require(group, _shown(fields), isinstance(fields, dict), f"settings such as {known}")
    values = {}
    for written, value in fields.items():
        name = FORMER_NAMES.get(written, written)
        if name not in hints or name in values:
            raise ValueError(f"{group}.{written} is not a setting; known: {known}")
        values[name] = _from_plain(f"{group}.{written}", value, hints[name])
    return cls(**values)


# The types of settings: how JSON holds their values, and what to call these.
_PLAIN: dict[Any, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: (str, "a string"),
    Path: (str, "a path"),
    tuple[int, ...]: (list, "a list of whole numbers"),
    types.NoneType: (types.NoneType, "null"),
}


def _from_plain(name: str, value: Any, hint: Any) -> Any:
    """Return what JSON holds as a value of this type."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    options = typing.get_args(hint) if union else (hint,)
    for option in options:
        if _fits(value, option):
            if option is Path or option is float:
                return option(value)
            return tuple(value) if isinstance(value, list) else value
    raise ValueError(f"{name} is {_shown(value)}, expected {' or '.join(map(_describe, options))}")


def _fits(value: Any, option: Any) -> bool:
    """Whether this is how JSON holds a value of a type."""
    if typing.get_origin(option) is Literal:
        return value in typing.get_args(option)
    if isinstance(value, bool):  # which is an int to isinstance
        return option is bool
    if isinstance(value, list) and option == tuple[int, ...]:
        return all(_fits(each, int) for each in value)
    return isinstance(value, _PLAIN[option][0])


def _describe(option: Any) -> str:
    if typing.get_origin(option) is Literal:
        return f"one of {', '.join(map(_shown, typing.get_args(option)))}"
    return _PLAIN[option][1]


def _shown(value: Any) -> str:
    """Return a value as JSON has it, shortened."""
    return textwrap.shorten(json.dumps(value, default=str), 60, placeholder=" ...")
