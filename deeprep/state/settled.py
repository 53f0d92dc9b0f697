"""SettledScatter: a state to be read by many metrics."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from deeprep.state.scatter import ClassScatter


class SettledScatter(ClassScatter):
    """The state of another ClassScatter, shared; what metrics ask of it is computed once and kept.

    For as long as the other takes nothing in. On a few classes the metrics of a report take less
    time than finding out, in each of them, which classes have samples and whether all is finite;
    on CUDA each of these questions waits for the device.
    """

    def __init__(self, scatter: ClassScatter) -> None:
        scatter._require_intact()
        self.__dict__.update(vars(scatter))
        self._bad_label = None  # looked at just now

    def with_means(self, means: Tensor) -> SettledScatter:
        """Return a state of the same counts and sums of squares, with other means (K, D)."""
        other = SettledScatter(self)
        other.__dict__.pop("global_mean", None)
        other._moments = self._moments._replace(means=means)
        other.num_features, other.full, other._pooled_scatter = means.shape[1], False, None
        return other

    @cached_property
    def num_samples(self) -> int:
        """N."""
        return super().num_samples

    @cached_property
    def present(self) -> Tensor:
        """Indices (P,) of the classes with samples."""
        return super().present

    @cached_property
    def nonfinite_classes(self) -> list[int]:
        """Classes that a NaN or an infinity has reached."""
        return super().nonfinite_classes

    @cached_property
    def global_mean(self) -> Tensor:
        """mu_G, (d,) float64."""
        return super().global_mean
