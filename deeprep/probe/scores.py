"""What a second pass over the features tells of the layers whose statistics are complete."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deeprep import metrics
from deeprep.base.validate import check_batch, to_tensors
from deeprep.metrics import class_means
from deeprep.metrics.directional import DirectionalSpread
from deeprep.report import LayerScores
from deeprep.state import ClassScatter


class Scores:
    """Probe and nearest-mean accuracy and directional CDNV of every layer, batch by batch.

    Nothing waits for the device until `result` reads the counters. A layer without samples, or one
    that NaN or Inf have reached, has no scores; one whose state has ``full=False``, no probe.

    Parameters
    ----------
    scatters
        Layer name -> finished ClassScatter, merged over all processes where there are many.

    Examples
    --------
    >>> import torch, deeprep
    >>> from deeprep.probe.scores import Scores
    >>> features, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    >>> scores = Scores({"input": deeprep.class_scatter(features, labels, full=True)})
    >>> scores.update("input", features[:3], labels[:3])
    >>> scores.update("input", features[3:], labels[3:])
    >>> scores.result()["input"]
    LayerScores(probe_accuracy=1.0, ncc_accuracy=1.0, directional_cdnv=0.0)
    """

    def __init__(self, scatters: Mapping[str, ClassScatter]) -> None:
        self._layers = {
            name: _LayerCounters(s) if s.num_samples and not s.nonfinite_classes else None
            for name, s in scatters.items()
        }

    def update(self, layer: str, features: Any, labels: Any) -> None:
        """Take in a batch of a layer: features (N, d), labels (N,), as for `ClassScatter.update`.

        Raises
        ------
        ValueError, TypeError
            For a layer that the first pass did not have, and for features or labels that do not
            fit. Rows whose label is no class are left out: the first pass has refused them.
        """
        if layer not in self._layers:
            known = ", ".join(map(repr, self._layers))
            raise ValueError(f"layer is {layer!r}, expected one of the first pass: {known}")
        counters = self._layers[layer]
        if counters is not None:
            counters.update(features, labels)

    def all_reduce(self, group: Any = None) -> None:
        """Add up the counts of all processes of a torch.distributed group.

        Each has the same layers, those of the merged states.

        Raises
        ------
        RankLostError
            Where a process does not come.
        """
        from torch import distributed

        from deeprep.base.ranks import Ranks

        ranks = Ranks.of(group, "all_reduce of scores")
        layers = [counters for counters in self._layers.values() if counters is not None]
        whole = [tensor for layer in layers for tensor in (layer.hits, layer.spread.counts)]
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

    def result(self) -> dict[str, LayerScores]:
        """Layer name -> LayerScores, in the order of the scatters; waits for the device."""
        return {
            name: LayerScores() if counters is None else counters.result()
            for name, counters in self._layers.items()
        }


class _LayerCounters:
    """Counts of one layer, on the device of its state."""

    def __init__(self, s: ClassScatter) -> None:
        self._num_classes = s.num_classes
        self.spread = DirectionalSpread(s)
        self._weight: Tensor | None = None
        if s.full and bool(s.pooled_scatter.isfinite().all()):
            # W z + b = W (z - mu_G) + n_k / N: rows are shifted only once for all scores.
            self._weight = metrics.probe(s).weight
            self._shares = s.counts.double() / s.num_samples
        self.hits = torch.zeros_like(s.counts[:1]).repeat(3)  # of the probe, of the mean; rows

    def update(self, features: Any, labels: Any) -> None:
        rows, classes = to_tensors(features, labels, self._num_classes)
        class_means.check_features(rows, self.spread.centered)
        check_batch(rows, classes)
        own, counted = self.spread.own_means(classes)
        columns = max(self.spread.num_means, self._num_classes)
        for where, block in class_means.blocks_of_rows(rows, self.spread.origin, columns):
            if self._weight is not None:
                predicted = torch.addmm(self._shares, block, self._weight.T).argmax(dim=1)
                hits = (predicted == classes[where]) & counted[where]
                self.hits[0] += hits.sum()
            self.hits[1] += self.spread.update(block, own[where], counted[where]).sum()
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
        )
