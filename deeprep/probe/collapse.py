"""What enters the model's classifier while it runs, and the neural collapse that it shows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from deeprep.base.ranks import Ranks
from deeprep.probe.classifier import NOT_ASKED_FOR, Classifier
from deeprep.probe.scores import ENTERING, Scores
from deeprep.report import NeuralCollapse
from deeprep.report.neural_collapse import measure_collapse
from deeprep.state import ClassScatter, all_reduce_layers


class CollapseProbe:
    """The ClassScatter of the features that enter a classifier, filled batch by batch.

    Parameters
    ----------
    classifier
        Whose.
    new_state
        Makes the state of features of this width.

    Attributes
    ----------
    state
        The state; None before the first batch, and where there is no classifier.
    is_whole
        Whether all batches have been seen; whoever lets one pass sets it.
    """

    def __init__(self, classifier: Classifier, new_state: Callable[[Tensor], ClassScatter]) -> None:
        self._classifier, self._new_state = classifier, new_state
        self.state: ClassScatter | None = None
        self.is_whole = True

    def watched(self) -> AbstractContextManager[None]:
        """See `Classifier.watched`."""
        return self._classifier.watched()

    def update(self, output: Any, labels: Tensor, inputs: Any, scores: Scores | None) -> None:
        """Take in a batch that the model has run on, for scores where there are some.

        Parameters
        ----------
        output, labels, inputs
            Of the model.
        scores
            Of a pass after the states are finished, which also looks at the decisions.
        """
        taken = self._classifier.take(output, labels, inputs, decide=scores is not None)
        if taken is None:
            return
        features, targets, decided = taken
        if scores is not None and decided is not None:
            scores.update_decisions(features, targets, decided)
            return
        if self.state is None:
            self.state = self._new_state(features)
        self.state.update(features, targets)

    def all_reduce(self, scatters: dict[str, ClassScatter], group: Any) -> dict[str, ClassScatter]:
        """Merge the states of layers, and this one with them, of all processes of a group."""
        self._classifier.agree(Ranks.of(group, "all_reduce of a probe"))
        states = dict(scatters)
        if self.state is not None and self._classifier.name is not None:
            states[ENTERING] = self.state
        merged = all_reduce_layers(states, group)
        self.state = merged.pop(ENTERING, None)
        return merged

    def measure(
        self, scores: Scores | None, min_count: int, *, test: bool = False
    ) -> NeuralCollapse | None:
        """Measure the collapse, of the test data of `scores` where it is about these."""
        state = scores.entering if test and scores is not None else self.state
        reason = self._classifier.reason
        if reason == NOT_ASKED_FOR:
            return None
        if not self.is_whole:
            reason = "batches came in outside of `run`, which alone looks at the classifier"
        if reason is not None or state is None:
            reason = reason or "no batch went through the classifier"
            return NeuralCollapse(reasons={"classifier": reason})
        shares: tuple[float, float] | str = "needs a second pass, accuracy=True"
        if scores is not None:
            shares = "NaN or Inf in the features that enter the classifier"
            if scores.decisions is not None:
                shares = scores.decisions.shares() or "no samples"
        name = self._classifier.name or "the model itself"
        return measure_collapse(
            name, state.with_min_count(min_count), self._classifier.weight, shares
        )
