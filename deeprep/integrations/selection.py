"""What a callback measures and logs: which module, labels and masks of a batch, named values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from deeprep.probe.evaluation import split_batch
from deeprep.report import LayerReport
from deeprep.report.scalars import tracker_name

__all__ = ["labels_of_batch", "masks_of", "measured_module", "named_values"]


def measured_module(trained: nn.Module, name: str | None) -> nn.Module:
    """Return the submodule of that name; without one the only child with parameters, or the whole.

    Raises
    ------
    ValueError
        There is no submodule of that name.

    Examples
    --------
    >>> trained = nn.Module()
    >>> trained.model, trained.loss = nn.Linear(4, 2), nn.CrossEntropyLoss()
    >>> measured_module(trained, None)
    Linear(in_features=4, out_features=2, bias=True)
    """
    if name is not None:
        try:
            return trained.get_submodule(name)
        except AttributeError as error:
            raise ValueError(f"module is {name!r}, expected a submodule: {error}") from None
    # Metrics and losses are children too, but have no parameters.
    children = [c for c in trained.children() if next(c.parameters(), None) is not None]
    return children[0] if len(children) == 1 else trained


def masks_of(batch: Any) -> Any:
    """The mask in a batch, or the two of an encoder-decoder model: also if not passed by name."""
    if not isinstance(batch, Mapping):
        return None
    masks = batch.get("attention_mask"), batch.get("decoder_attention_mask")
    return masks if any(str(key).startswith("decoder_") for key in batch) else masks[0]


def labels_of_batch(batch: Any) -> Any:
    """Return the second of a pair, or what a mapping holds as "labels" or "label".

    Raises
    ------
    ValueError, TypeError
        There are none.
    """
    try:
        return split_batch(batch)[1]
    except ValueError as error:
        raise ValueError(f"{error}; or pass labels_of") from None


def named_values(report: LayerReport, metrics: Iterable[str], prefix: str) -> dict[str, float]:
    """Return ``<prefix><metric>/<layer>`` -> value, of all that is defined."""
    return {
        f"{prefix}{metric}/{tracker_name(layer.name)}": float(value)
        for metric in metrics
        for layer in report.layers
        if (value := getattr(layer, metric)) is not None
    }
