"""What a report says of the metrics that are not there, or are nan, each thing once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from deeprep.base.validate import UndefinedStatisticError

Value = TypeVar("Value")

_LAYERS_NAMED = 5
_ALL = "all layers"

NO_SAMPLES = "no samples: there was no batch, or every label was ignored"
ONE_CLASS = "one class with samples: nothing that compares two classes is defined"


def too_few(found: int, min_count: int = 1) -> str:
    """Say that this is no or one class of at least `min_count` samples.

    >>> too_few(0, 5)
    'no class with 5 samples or more: nothing is defined'
    """
    if min_count == 1:
        return ONE_CLASS if found else NO_SAMPLES
    if not found:
        return f"no class with {min_count} samples or more: nothing is defined"
    return ONE_CLASS.replace("with samples", f"with {min_count} samples or more")


def defined(notes: list[str], compute: Callable[..., Value], *arguments: Any) -> Value | None:
    """Call `compute`; None and a note where the statistic is not defined."""
    try:
        return compute(*arguments)
    except UndefinedStatisticError as error:
        notes.append(str(error))
        return None


def are(names: Sequence[str]) -> str:
    """Name metrics, and begin to say what they are.

    >>> are(["nc1"]), are(["nc1", "vci"])
    ('nc1 is', 'nc1, vci are')
    """
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def merged(notes: Sequence[str]) -> list[str]:
    """Name the metrics that are nan for one reason in one note.

    >>> merged(["a is nan: all means coincide", "one thing", "b is nan: all means coincide"])
    ['a, b are nan: all means coincide', 'one thing']
    """
    reasons: dict[str, list[str]] = {}
    for note in dict.fromkeys(notes):
        statistic, is_nan, reason = note.partition(" is nan: ")
        reasons.setdefault(reason if is_nan else note, []).append(statistic)
    return [
        reason if statistics == [reason] else f"{are(statistics)} nan: {reason}"
        for reason, statistics in reasons.items()
    ]


def of_layers(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """Say each note once, and of which layers it is.

    >>> of_layers({"conv": ["one class"], "fc": ["one class", "no spread"]})
    ['all layers: one class', "layer 'fc': no spread"]
    >>> of_layers({"conv": ["wide"], "relu": ["wide"], "fc": []})
    ["layers 'conv', 'relu': wide"]
    """
    layers: dict[str, list[str]] = {}
    for name, own in notes.items():
        for note in dict.fromkeys(own):
            layers.setdefault(note, []).append(name)
    return [f"{_named(names, len(notes))}: {note}" for note, names in layers.items()]


def _named(layers: Sequence[str], of: int) -> str:
    """Name layers, of so many; of more than a line takes, the first ones."""
    if len(layers) == 1:
        return f"layer {layers[0]!r}"
    if len(layers) == of:
        return _ALL
    listed = ", ".join(map(repr, layers[:_LAYERS_NAMED]))
    more = len(layers) - _LAYERS_NAMED
    return f"layers {listed}" + (f" and {more} more" if more > 0 else "")


def of_turns(parts: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[str]:
    """Say of the layers of several reports what one report of all of them would.

    What a report says of several of its layers by name stays as it is.

    Parameters
    ----------
    parts
        (names of its layers, what it says) of each report.

    >>> of_turns([(["conv", "fc"], ["all layers: one class"]), (["head"], ["no samples"])])
    ['no samples', "layers 'conv', 'fc': one class"]
    """
    found: dict[str, list[str]] = {name: [] for layers, _ in parts for name in layers}
    rest = []
    for layers, told in parts:
        owners = {_named([name], len(found)): [name] for name in layers} | {_ALL: layers}
        for text in told:
            whose = next((each for each in owners if text.startswith(f"{each}: ")), None)
            if whose is None:
                rest.append(text)
                continue
            for name in owners[whose]:
                found[name].append(text.removeprefix(f"{whose}: "))
    return [*dict.fromkeys(rest), *of_layers(found)]
