"""What figures are drawn from: rows of numbers, one a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from deeprep.metrics import ClosestClasses
from deeprep.theory import LineFit


class LayerRow(Protocol):
    """The numbers of one layer, each an attribute by the name of its metric, None where missing."""

    @property
    def index(self) -> int:
        """The layer's number l; 0 is the input."""

    @property
    def name(self) -> str:
        """The layer's name."""

    @property
    def closest_pairs(self) -> Sequence[ClosestClasses] | None:
        """Pairs of classes by falling cosine of their means."""

    @property
    def closest_pairs_centered(self) -> Sequence[ClosestClasses] | None:
        """Pairs of classes by falling cosine of their means less the global one."""


class Rows(Protocol):
    """The layers of one network on one set of data; a `deeprep.LayerReport` is one."""

    @property
    def layers(self) -> Sequence[LayerRow]:
        """A row a layer, in order of depth."""

    @property
    def num_classes(self) -> int:
        """The number of classes."""

    @property
    def caption(self) -> str:
        """On what and how they were measured."""

    @property
    def compression_fit(self) -> LineFit | None:
        """Line through log10 C_l against l."""

    @property
    def discrimination_fit(self) -> LineFit | None:
        """Line through D_l against l."""

    @property
    def test(self) -> Rows | None:
        """The same layers on test data, where there are some."""

    def class_name(self, index: int) -> str:
        """Return the name of a class."""


def number(row: LayerRow, metric: str) -> Any:
    """Return a metric of a layer by name; None where it was not measured."""
    return getattr(row, metric)
