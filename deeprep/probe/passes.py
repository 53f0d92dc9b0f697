"""A pass of a model over a loader, batch by batch, and the states that layers need for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any, Literal

from torch import Tensor, nn

from deeprep.base import validate
from deeprep.probe.collapse import CollapseProbe
from deeprep.probe.evaluation import (
    Progress,
    check_loader,
    counting,
    evaluation_mode,
    naming,
)
from deeprep.probe.hooks import Consumer, LayerHooks
from deeprep.probe.labelling import Labelling
from deeprep.probe.scores import Scores
from deeprep.probe.turns import MANY_CLASSES, LayerSize, check_memory
from deeprep.state import ClassScatter

FULL_UP_TO = 2048  # features: beyond, full="auto" finds the d x d scatter not worth its memory

Full = bool | Literal["auto"]


def check_full(full: object) -> None:
    """Raise unless it says which states are full."""
    if full not in (True, False, "auto"):
        raise ValueError(f"full is {full!r}, expected True, False or 'auto'")


class NewStates:
    """Makes the state of a layer when the first of its features are there.

    Parameters
    ----------
    num_classes, full, ignore_index
        See `LayerProbe`.
    """

    def __init__(self, num_classes: int, full: Full, ignore_index: int) -> None:
        self.num_classes, self.full, self.ignore_index = num_classes, full, ignore_index

    def size(self, features: Tensor) -> LayerSize:
        """How large the state of features (N, d) will be."""
        width = features.shape[1]
        full = width <= FULL_UP_TO if self.full == "auto" else bool(self.full)
        return LayerSize(width, full, features.device)

    def make(self, features: Tensor) -> ClassScatter:
        """Return an empty state for features (N, d)."""
        width, full, device = self.size(features)
        return ClassScatter(
            self.num_classes, width, full=full, device=device, ignore_index=self.ignore_index
        )

    def update(
        self, scatters: dict[str, ClassScatter], layer: str, features: Tensor, labels: Tensor
    ) -> None:
        """Take in features (N, d) and labels (N,) of a layer, in a new state if it has none."""
        scatter = scatters.get(layer)
        if scatter is None:
            validate.check_batch(features, labels)
            scatter = scatters[layer] = self.make(features)
        elif features.shape[1] != scatter.num_features:
            raise ValueError(
                f"features have width {features.shape[1]}, expected {scatter.num_features} as in "
                "earlier batches; for inputs of varying size reduce this layer by 'mean'"
            )
        scatter.update(features, labels)


class Passes:
    """Runs a model over loaders, in eval mode and without gradients.

    Parameters
    ----------
    model, hooks, labelling, collapse
        The model; what tells of its layers, of its labels and of its classifier.
    states
        What the layers' states will be.
    """

    def __init__(
        self,
        model: nn.Module,
        hooks: LayerHooks,
        labelling: Labelling,
        collapse: CollapseProbe,
        states: NewStates,
    ) -> None:
        self._model, self._hooks, self._labelling = model, hooks, labelling
        self._collapse, self._states = collapse, states

    def run(
        self,
        loader: Iterable[Any],
        progress: Progress,
        consume: Consumer,
        scatters: Mapping[str, ClassScatter],
        scores: Scores | None = None,
        name: str = "loader",
    ) -> None:
        """Give `consume` the layers of every batch, and `scores` the model's decisions.

        While there are no states, `scatters`, looks first whether there is memory for them.
        """
        check_loader(loader, name=name)
        with ExitStack() as stack:
            self._enter(stack)
            stack.enter_context(self._collapse.watched())
            advance = stack.enter_context(counting(progress, loader))
            for batch in loader:
                with naming(name):
                    inputs, labels = self._labelling.split(batch, name)
                    targets = self._labelling.targets(inputs, labels)
                    if not scatters and self._states.num_classes >= MANY_CLASSES:
                        check_memory(self._states.num_classes, self._sizes(inputs, targets))
                    output = self._hooks.run(inputs, targets, None, consume)
                    self._collapse.update(output, targets, inputs, scores)
                self._labelling.look_at(inputs)
                advance()

    def layer_sizes(self, batch: Any) -> dict[str, LayerSize]:
        """See `LayerProbe.layer_sizes`."""
        with ExitStack() as stack:
            self._enter(stack)
            inputs, labels = self._labelling.split(batch)
            return self._sizes(inputs, self._labelling.targets(inputs, labels))

    def _enter(self, stack: ExitStack) -> None:
        stack.enter_context(evaluation_mode(self._model))
        if not self._hooks.attached:
            stack.enter_context(self._hooks)

    def _sizes(self, inputs: Any, targets: Tensor) -> dict[str, LayerSize]:
        sizes: dict[str, LayerSize] = {}

        def note(layer: str, features: Tensor, labels: Tensor) -> None:
            sizes.setdefault(layer, self._states.size(features))

        self._hooks.run(inputs, targets, None, note)
        return sizes
