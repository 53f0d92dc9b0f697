"""What the metrics of full states have in common, each decomposition computed once."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from deeprep.metrics import class_means, undefined
from deeprep.metrics.class_means import Span
from deeprep.metrics.spectrum import is_above_noise, noise_of_scatter
from deeprep.state import ClassScatter


class Decompositions:
    """Decompositions of a state with ``full=True``, computed once for all metrics that take them.

    Those are nc1, separation_fuzziness, vci, h_score, lidar, participation_ratio and alpha_req,
    which give the same for the state itself. Nothing is computed before a metric asks for it. It
    is of the state as it is now: after an update, make a new one.

    Parameters
    ----------
    state
        A state with ``full=True``.

    Examples
    --------
    >>> import torch, deeprep
    >>> features, labels = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]]), torch.tensor([0, 0, 1, 1])
    >>> s = deeprep.class_scatter(features, labels, full=True)
    >>> parts = deeprep.metrics.Decompositions(s)
    >>> round(deeprep.metrics.nc1(parts), 12), round(deeprep.metrics.vci(parts), 12)
    (0.125, 0.2)
    """

    def __init__(self, state: ClassScatter) -> None:
        self.state = state

    @classmethod
    def of(cls, s: ClassScatter | Decompositions) -> Decompositions:
        """Return those of a state, or themselves."""
        return s if isinstance(s, Decompositions) else cls(s)

    def are_finite(self, statistic: str, *, at_least: int) -> bool:
        """Whether the state is finite; if not, warn. Raise for too few classes, or not full."""
        class_means.present_classes(self.state, statistic, at_least=at_least)
        return undefined.is_finite(self.state, statistic, self.pooled)

    @cached_property
    def pooled(self) -> Tensor:
        """S (d, d)."""
        return self.state.pooled_scatter

    @property
    def within(self) -> Tensor:
        """Sigma_W (d, d)."""
        return self.pooled / self.state.num_samples

    @cached_property
    def present(self) -> Tensor:
        """Indices (P,) of the classes with samples."""
        return self.state.present

    @cached_property
    def is_balanced(self) -> bool:
        """Whether all classes with samples have the same number of them."""
        counts = self.state.counts[self.present]
        return bool((counts == counts[0]).all())

    @cached_property
    def span(self) -> Span | None:
        """Singular values s_j and vectors v_j of the mu_k - mu_G; None where they coincide.

        Sigma_B = (1/K) sum_j s_j^2 v_j v_j'.
        """
        return self._span_of(class_means.centered_means(self.state, self.present))

    @cached_property
    def prior_span(self) -> Span | None:
        """The same of sqrt(n_k K/N) (mu_k - mu_G), of the Sigma_B with weights n_k/N."""
        if self.is_balanced:
            return self.span
        return self._span_of(self._prior_means())

    def _prior_means(self) -> Tensor:
        shares = self.state.counts[self.present].double() / self.state.num_samples
        weights = (shares * len(self.present)).sqrt_()
        centered = class_means.centered_means(self.state, self.present)
        return centered.mul_(weights.unsqueeze(1))

    def _span_of(self, centered: Tensor) -> Span | None:
        rounding = class_means.rounding_of_means(self.state)
        return class_means.span_of_means(centered, len(self.present), rounding)

    @cached_property
    def total(self) -> Tensor:
        """T = N Sigma_T = S + sum_k n_k (mu_k - mu_G)(mu_k - mu_G)', (d, d)."""
        rows = self._prior_means()
        return torch.addmm(
            self.pooled, rows.T, rows, alpha=self.state.num_samples / len(self.present)
        )

    @cached_property
    def noise(self) -> float:
        """Eigenvalues of T up to this are rounding."""
        return noise_of_scatter(self.pooled, self.state.unit_roundoff, self.total)

    @cached_property
    def total_eigenvalues(self) -> Tensor:
        """Eigenvalues of T (d,), largest first; 0 where they are rounding."""
        known = self.__dict__.get("_total_eigen")
        values = torch.linalg.eigvalsh(self.total) if known is None else known[0]
        return torch.where(values > self.noise, values, 0.0).flip(0)

    @cached_property
    def _total_eigen(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.total)
        return values, vectors

    @cached_property
    def explained(self) -> float:
        """Tr(Sigma_T^+ Sigma_B), Sigma_B with weights n_k/N.

        By a Cholesky factor of T; or, where T has eigenvalues at the level of its rounding, by its
        eigendecomposition, these counting as zero.
        """
        span = self.prior_span
        if span is None:
            return 0.0
        scale = self.state.num_samples / len(self.present)
        rows = span.vectors * span.singular.unsqueeze(1)
        if is_above_noise(self.total, self.noise):
            factor = torch.linalg.cholesky(self.total)
            half = torch.linalg.solve_triangular(factor, rows.T, upper=False)
            return scale * float(half.square().sum())
        values, vectors = self._total_eigen
        inverse = torch.where(values > self.noise, 1.0 / values, 0.0)
        return scale * float(((rows @ vectors).square() @ inverse).sum())


def spread_over_means(span: Span, within: Tensor) -> float:
    """Sum v_j' Sigma_W v_j / s_j^2: Tr(Sigma_W Sigma_B^+) / K."""
    spread = ((span.vectors @ within) * span.vectors).sum(dim=1).clamp_(min=0.0)
    return float((spread / span.singular.square()).sum())
