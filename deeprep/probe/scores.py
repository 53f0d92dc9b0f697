"""What a further pass over features tells of the layers whose statistics are complete."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from deeprep import metrics
from deeprep.base.validate import check_batch, require, to_tensors
from deeprep.metrics import class_means
from deeprep.metrics.classifier import check_ridge
from deeprep.metrics.directional import DirectionalSpread
from deeprep.probe.decisions import Decisions
from deeprep.report import LayerScores
from deeprep.state import ClassScatter, all_reduce_layers

Ridge = float | Literal["auto"]

# What processes call the state of the features that enter the classifier; no module is called so.
ENTERING = "input of the classifier"


class Scores:
    """Probe and nearest-mean accuracy and directional CDNV of every layer, batch by batch.

    Means and probe come from the states, rows from the batches: those of the states again, or
    others, of a test set. Nothing waits for the device until `result` reads the counters. A layer
    without samples, or one that NaN or Inf have reached, has no scores; one whose state has
    ``full=False``, no probe.

    Parameters
    ----------
    scatters
        Layer name -> finished ClassScatter, merged over all processes where there are many.
    ridge
        Of the probe, see `deeprep.metrics.probe`; "auto": `deeprep.metrics.choose_ridge` of each
        layer's state.
    test
        The batches are of other samples than the states: also accumulate states of their own.
    entering
        Finished ClassScatter of the features that enter the model's classifier, for `decisions`.

    Attributes
    ----------
    scatters
        Layer name -> ClassScatter of the batches; empty unless `test`.
    entering
        ClassScatter of what entered the classifier; None unless `test`, and where there is none.
    decisions
        The `Decisions` of the model; None where what enters its classifier has no means.

    Examples
    --------
    >>> import torch, deeprep
    >>> from deeprep.probe.scores import Scores
    >>> features, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    >>> scores = Scores({"input": deeprep.class_scatter(features, labels, full=True)})
    >>> scores.update("input", features[:3], labels[:3])
    >>> scores.update("input", features[3:], labels[3:])
    >>> scores.result()["input"]
    LayerScores(probe_accuracy=1.0, ncc_accuracy=1.0, directional_cdnv=0.0, probe_ridge=None)
    """

    def __init__(
        self,
        scatters: Mapping[str, ClassScatter],
        *,
        ridge: Ridge = 0.0,
        test: bool = False,
        entering: ClassScatter | None = None,
    ) -> None:
        if ridge != "auto":
            require("ridge", repr(ridge), not isinstance(ridge, str), "'auto' or a number >= 0")
            check_ridge(ridge)
        self._layers = {
            name: _LayerCounters(s, ridge) if s.num_samples and not s.nonfinite_classes else None
            for name, s in scatters.items()
        }
        self.scatters = {name: _empty_like(s) for name, s in scatters.items()} if test else {}
        self.entering = None if entering is None or not test else _empty_like(entering)
        self.decisions: Decisions | None = None
        if entering is not None and entering.num_samples and not entering.nonfinite_classes:
            self.decisions = Decisions(entering)

    def update(self, layer: str, features: Any, labels: Any) -> None:
        """Take in a batch of a layer: features (N, d), labels (N,), as for `ClassScatter.update`.

        Raises
        ------
        ValueError, TypeError
            For a layer that the first pass did not have, and for features or labels that do not
            fit. Rows whose label is no class are left out, but refused where there are states.
        """
        if layer not in self._layers:
            known = ", ".join(map(repr, self._layers))
            raise ValueError(f"layer is {layer!r}, expected one of the first pass: {known}")
        if self.scatters:
            self.scatters[layer].update(features, labels)
        counters = self._layers[layer]
        if counters is not None:
            counters.update(features, labels)

    def update_decisions(self, features: Tensor, labels: Tensor, decided: Tensor) -> None:
        """Take in what entered the classifier (N, d), labels (N,), and the model's decisions."""
        if self.entering is not None:
            self.entering.update(features, labels)
        if self.decisions is not None:
            self.decisions.update(features, labels, decided)

    def all_reduce(self, group: Any = None) -> None:
        """Add up the counts, and merge the states, of all processes of a torch.distributed group.

        Each has the same layers, those of the merged states.

        Raises
        ------
        RankLostError
            Where a process does not come.
        """
        from torch import distributed

        from deeprep.base.ranks import Ranks

        if self.scatters:
            self._merge_states(group)
        ranks = Ranks.of(group, "all_reduce of scores")
        layers = [counters for counters in self._layers.values() if counters is not None]
        whole = [tensor for layer in layers for tensor in (layer.hits, layer.spread.counts)]
        whole += [] if self.decisions is None else [self.decisions.counts]
        for counts in (whole, [layer.spread.sums for layer in layers]):
            if not counts:
                continue
            # One message for all layers, which may be spread over several devices.
            device = ranks.transport(counts[0].device.type)
            total = torch.cat([tensor.to(device) for tensor in counts])
            with ranks.watch():
                distributed.all_reduce(total, group=group)
            parts = total.split([len(tensor) for tensor in counts])
            for tensor, part in zip(counts, parts, strict=True):
                tensor.copy_(part)

    def _merge_states(self, group: Any) -> None:
        states = dict(self.scatters)
        if self.entering is not None:
            states[ENTERING] = self.entering
        self.scatters = all_reduce_layers(states, group)
        self.entering = self.scatters.pop(ENTERING, None)

    def result(self) -> dict[str, LayerScores]:
        """Layer name -> LayerScores, in the order of the scatters; waits for the device."""
        return {
            name: LayerScores() if counters is None else counters.result()
            for name, counters in self._layers.items()
        }


def _empty_like(s: ClassScatter) -> ClassScatter:
    return ClassScatter(
        s.num_classes, s.num_features, full=s.full, device=s.device, ignore_index=s.ignore_index
    )


class _LayerCounters:
    """Counts of one layer, on the device of its state."""

    def __init__(self, s: ClassScatter, ridge: Ridge) -> None:
        self._num_classes, self._ignore_index = s.num_classes, s.ignore_index
        self.spread = DirectionalSpread(s)
        self._weight: Tensor | None = None
        self._ridge: float | None = None
        if s.full and bool(s.pooled_scatter.isfinite().all()):
            chosen = metrics.choose_ridge(s) if ridge == "auto" else ridge
            # W z + b = W (z - mu_G) + n_k / N: rows are shifted only once for all scores.
            self._weight = metrics.probe(s, chosen).weight
            self._ridge = chosen or None
            self._shares = s.counts.double() / s.num_samples
        self.hits = torch.zeros_like(s.counts[:1]).repeat(3)  # of the probe, of the mean; rows

    def update(self, features: Any, labels: Any) -> None:
        rows, classes = to_tensors(features, labels, self._num_classes)
        class_means.check_features(rows, self.spread.centered)
        check_batch(rows, classes)
        own, known = self.spread.own_means(classes)
        # A row of a class that the states have no sample of counts, as one that is wrong.
        counted = (classes >= 0) & (classes < self._num_classes) & (classes != self._ignore_index)
        columns = max(self.spread.num_means, self._num_classes)
        for where, block in class_means.blocks_of_rows(rows, self.spread.origin, columns):
            if self._weight is not None:
                value, predicted = torch.addmm(self._shares, block, self._weight.T).max(dim=1)
                # Of a row with NaN all scores are, and the first of them would be the largest.
                hits = (predicted == classes[where]) & counted[where] & value.isfinite()
                self.hits[0] += hits.sum()
            self.hits[1] += self.spread.update(block, own[where], known[where]).sum()
        self.hits[2] += counted.sum()

    def result(self) -> LayerScores:
        probe_hits, mean_hits, rows = self.hits.tolist()
        if rows == 0:
            return LayerScores()
        value = self.spread.cdnv()
        return LayerScores(
            probe_accuracy=None if self._weight is None else probe_hits / rows,
            ncc_accuracy=mean_hits / rows,
            directional_cdnv=None if math.isnan(value) else value,
            probe_ridge=self._ridge,
        )
