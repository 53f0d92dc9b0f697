"""What a model decides, against the class means of the features that enter its classifier."""

from __future__ import annotations

import torch
from torch import Tensor

from deeprep.metrics import class_means
from deeprep.metrics.classifier import scores_of_means
from deeprep.state import ClassScatter


class Decisions:
    """Counts of samples by what the model and the nearest class mean make of them.

    Nothing waits for the device until `shares` reads the counters.

    Parameters
    ----------
    s
        Finished state of the features that enter the classifier, with samples and without NaN or
        Inf.
    """

    def __init__(self, s: ClassScatter) -> None:
        self._present = s.present
        self._origin = s.global_mean
        self._weight, self._bias = scores_of_means(s, self._present)
        self._num_classes, self._ignore_index = s.num_classes, s.ignore_index
        # Where mean and model differ, where the model is right, and all.
        self.counts = torch.zeros_like(s.counts[:1]).repeat(3)

    def update(self, features: Tensor, labels: Tensor, decided: Tensor) -> None:
        """Take in features (N, d), labels (N,) and the classes (N,) that the model decides for."""
        class_means.check_features(features, self._weight)
        counted = (labels >= 0) & (labels < self._num_classes) & (labels != self._ignore_index)
        blocks = class_means.blocks_of_rows(features, self._origin, len(self._weight))
        for where, block in blocks:
            value, winner = torch.addmm(self._bias, block, self._weight.T).max(dim=1)
            nearest = torch.where(value.isfinite(), self._present[winner], -1)
            self.counts[0] += ((nearest != decided[where]) & counted[where]).sum()
        self.counts[1] += ((decided == labels) & counted).sum()
        self.counts[2] += counted.sum()

    def shares(self) -> tuple[float, float] | None:
        """Return NC4 and the model's accuracy; None without samples."""
        differ, right, total = self.counts.tolist()
        return (differ / total, right / total) if total else None
