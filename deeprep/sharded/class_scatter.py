"""States of many processes, some classes on each, and the numbers of the whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, distributed

from deeprep.base.ranks import Ranks
from deeprep.base.torchrun import together
from deeprep.base.validate import UndefinedStatisticError
from deeprep.metrics import class_means, undefined
from deeprep.metrics.classifier import LinearProbe, check_ridge, solve
from deeprep.metrics.collapse import (
    compression_of_corrected_traces,
    compression_of_traces,
    nc1_of_means,
)
from deeprep.metrics.cosines import largest_cosines
from deeprep.metrics.spectrum import noise_of_scatter, roots_of_moment
from deeprep.sharded.factor import factor_of_all
from deeprep.state import ClassScatter, Weighting
from deeprep.state.collectives import merged_share
from deeprep.state.statistics import (
    average_of_means,
    class_weights,
    inflation_of_means,
    require_no_single,
    require_samples,
    scatter_of_means,
)

__all__ = ["ShardedClassScatter", "reduce_scatter"]


def reduce_scatter(scatter: ClassScatter, group: Any = None) -> ShardedClassScatter:
    """Merge the states of all processes, and leave each with its share of the classes.

    All R processes of the group must call it, each with the state of the samples it saw; that
    state is left as it is, and may be dropped. Samples of any class can arrive anywhere, so every
    process needs a whole state, K*d float64, for as long as batches are taken in. What sharding
    saves is a second whole state, and all that the metrics would allocate. With K = 1e5 classes of
    d = 8192 features a state takes 8 K d = 6.6 GB; afterwards 8 K d / R are held, 0.8 GB for R = 8.
    The pooled scatter S (d, d) of a full state has no shares: every process ends with the merged
    one. `plan` says what all of this takes.

    Parameters
    ----------
    scatter
        State of at least R classes.
    group
        A torch.distributed group; default: all processes.

    Raises
    ------
    ValueError
        In every process, where there are fewer classes than processes, states differ in shape or
        `full`, or the state of any holds an error.
    RankLostError
        Where a process dies or does not answer within the timeout of the group.

    Examples
    --------
    >>> import torch, deeprep
    >>> from deeprep.sharded import reduce_scatter
    >>> features, labels = torch.tensor([[1.0], [3.0], [-2.0]]), torch.tensor([0, 0, 1])
    >>> s = deeprep.class_scatter(features, labels, full=True)
    >>> torch.distributed.init_process_group(
    ...     "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    ... )
    >>> sharded = reduce_scatter(s)
    >>> sharded.first_class, sharded.share.means.tolist(), sharded.compression("prior")
    (0, [[2.0], [-2.0]], 0.1875)
    >>> deeprep.metrics.numerical_rank(sharded.singular_values())
    1
    >>> torch.distributed.destroy_process_group()
    """
    ranks = Ranks.of(group, "reduce_scatter")
    share, pooled_scatter = merged_share(scatter, ranks)
    return ShardedClassScatter(share, scatter.num_classes, ranks, pooled_scatter)


class ShardedClassScatter:
    """The merged state of all processes, some classes on each; made by `reduce_scatter`.

    Methods are collective: all processes must call them, and all get the same number.

    Attributes
    ----------
    share
        The classes of this process, as a ClassScatter of their own; class k there is class
        ``first_class + k``.
    first_class
        The number of its first class.
    num_classes
        K, of all processes together.
    full
        Whether there is the pooled scatter.
    num_samples
        N, of all processes together.
    global_mean
        (d,) float64, mu_G = (1/N) sum_k n_k mu_k over all classes.
    trace_within
        Tr Sigma_W = (1/N) sum_k sum_i |z_ki - mu_k|^2 over all classes.
    """

    def __init__(
        self,
        share: ClassScatter,
        num_classes: int,
        ranks: Ranks,
        pooled_scatter: Tensor | None = None,
    ) -> None:
        self._ranks = ranks
        self._upper_scatter = pooled_scatter
        self.full = pooled_scatter is not None
        self.share = share
        self.num_classes = num_classes
        self.first_class = ranks.share(ranks.rank, num_classes)[0]
        self._present = share.counts.nonzero().squeeze(1)
        # Of every rank: N, sum of sumsq, classes with samples, rounding of the means, and the
        # classes that are not finite.
        found = ranks.gather(
            (
                share.num_samples,
                float(share.sumsq.sum()),
                len(self._present),
                class_means.rounding_of_means(share),
                self._numbers(share.nonfinite_classes),
            )
        )
        samples, sumsq, present, rounding, nonfinite = zip(*found, strict=True)
        self.num_samples = require_samples(
            sum(samples), "every statistic", "no process has seen a sample"
        )
        self._sizes = present
        self._rounding = max(rounding)
        self._nonfinite_classes = list(itertools.chain.from_iterable(nonfinite))
        self.trace_within: float = sum(sumsq) / self.num_samples
        self.global_mean = self._total(
            average_of_means(share.counts, share.means, self.num_samples)
        )

    def __repr__(self) -> str:
        last = self.first_class + self.share.num_classes - 1
        return (
            f"ShardedClassScatter(classes {self.first_class} to {last} of {self.num_classes}, "
            f"num_features={self.share.num_features}, full={self.full}, "
            f"num_samples={self.num_samples})"
        )

    @property
    def _place(self) -> torch.device:
        return self._ranks.transport(self.share.device.type)

    @property
    def pooled_scatter(self) -> Tensor:
        """S = N Sigma_W of all classes, (d, d) float64, in every process; of full states only."""
        if self._upper_scatter is None:
            raise ValueError(
                "this ShardedClassScatter has full=False, expected one of states with full=True"
            )
        return self._upper_scatter.triu() + self._upper_scatter.triu(1).T

    @property
    def within(self) -> Tensor:
        """Sigma_W = S / N, (d, d) float64."""
        return self.pooled_scatter / self.num_samples

    def with_min_count(self, min_count: int) -> ShardedClassScatter:
        """Return the state of the classes with that many samples, as `ClassScatter.with_min_count`.

        Raises
        ------
        UndefinedStatisticError
            Where no class of any process has so many.
        ValueError, TypeError
            For a min_count below 1, or that is no whole number.
        """
        share = self.share.with_min_count(min_count)
        is_few = self.share.counts > share.counts
        # Of every rank: whether it leaves out a class, one with a part in S, and keeps a sample.
        found = self._ranks.gather(
            (bool(is_few.any()), bool(self.share.sumsq[is_few].any()), share.num_samples > 0)
        )
        leaves_out, has_part, keeps = (any(flags) for flags in zip(*found, strict=True))
        if not keeps:
            raise UndefinedStatisticError(f"no class of any process has {min_count} samples")
        if not leaves_out:
            return self
        pooled = None if has_part else self._upper_scatter
        return ShardedClassScatter(share, self.num_classes, self._ranks, pooled)

    def trace_between(self, weighting: Weighting = "uniform", corrected: bool = False) -> float:
        """Tr Sigma_B = sum_k w_k |mu_k - mu_G|^2, as `ClassScatter.trace_between`.

        Raises
        ------
        UndefinedStatisticError
            If ``corrected``, where a class has a single sample.
        ValueError
            For another weighting.
        """
        counts = self.share.counts[self._present]
        weights = class_weights(weighting, counts, sum(self._sizes), self.num_samples)
        part = scatter_of_means(self.share.means, self.global_mean, self._present, weights)
        if corrected:
            traces = self._covariance_traces()
            part -= inflation_of_means(weights, counts, self.num_samples, traces)
        return self._sum(part)

    def compression(self, weighting: Weighting = "uniform", corrected: bool = False) -> float:
        """C = Tr Sigma_W / Tr Sigma_B, as `deeprep.compression`.

        Raises
        ------
        UndefinedStatisticError
            Below two classes with samples; and, if ``corrected``, where a class has a single one.
        ValueError
            For another weighting.
        """
        self._require_two_classes("compression")
        between = self.trace_between(weighting, corrected)
        if not self._is_finite("compression"):
            return float("nan")
        if not corrected:
            return compression_of_traces(self.trace_within, between, self._rounding)
        shares = self.share.counts[self._present].double() / self.num_samples
        within = self._sum(float(shares @ self._covariance_traces()))
        return compression_of_corrected_traces(within, between, self._rounding)

    def discrimination(self, *, centered: bool = False) -> float:
        """D = 1 - max_{k != k'} cos(mu_k, mu_k'), as `deeprep.discrimination`.

        Each process sends its directions to the others, tile by tile. That takes a copy of the
        share, 64 MiB, some 8 K d bytes received, and K^2 d / (2 R) multiplications in each.

        Parameters
        ----------
        centered
            Take the means less the global mean.

        Raises
        ------
        UndefinedStatisticError
            Below two classes with samples.
        """
        self._require_two_classes("discrimination")
        if not self._is_finite("discrimination"):
            return float("nan")
        share, present = self.share, self._present
        unit = (
            class_means.means_around(share, present, self.global_mean, self._rounding)
            if centered
            else share.means[present]
        )
        norms = torch.linalg.vector_norm(unit, dim=1, keepdim=True)
        zero = self._everywhere(present[norms.squeeze(1) == 0].tolist())
        if zero:
            undefined.warn_zero_means("discrimination", zero, centered=centered)
            return float("nan")
        unit /= norms
        largest = largest_cosines(unit, 1)[2].tolist()
        for owner in range(self._ranks.size):
            # Of two ranks one looks at their pairs: the half of the ring before the owner.
            distance = (owner - self._ranks.rank) % self._ranks.size
            mine = 0 < distance <= self._ranks.size // 2 and len(unit) > 0
            for theirs in self._broadcast(unit, owner):
                if mine:
                    largest.append(float((unit @ theirs.T).max()))
        everywhere: list[list[float]] = self._ranks.gather(largest)
        return 1.0 - max(itertools.chain.from_iterable(everywhere))

    def singular_values(self) -> Tensor:
        """Singular values (min(N, d),) of all features, as `deeprep.metrics.singular_values`.

        `deeprep.metrics.numerical_rank`, `effective_rank`, `stable_rank` and `rankme` take them in
        place of a state. The first process computes them, in memory of some four (d, d) matrices,
        the others need two.

        Raises
        ------
        ValueError
            Without ``full=True``.
        OtherRankError
            Where another process fails to compute its part.
        """
        pooled = self.pooled_scatter
        kept = min(self.num_samples, self.share.num_features)
        if not self._is_finite("singular_values", pooled):
            return torch.full_like(pooled[0, :kept], torch.nan)
        rows = self.share.means * self.share.counts.double().sqrt_().unsqueeze(1)
        second_moment = self._total(rows.T @ rows).add_(pooled)
        sigma = torch.empty_like(pooled[0], device=self._place)

        def find() -> None:
            if self._ranks.rank == 0:
                noise = noise_of_scatter(pooled, self.share.unit_roundoff, second_moment)
                sigma.copy_(roots_of_moment(second_moment, noise))

        together(self._ranks, find)
        with self._ranks.watch():
            distributed.broadcast(sigma, group=self._ranks.group, group_src=0)
        return sigma.to(pooled.device)[:kept]

    def nc1(self) -> float:
        """NC1 = Tr(Sigma_W Sigma_B^+) / K, as `deeprep.metrics.nc1`.

        Of its centred means each process finds a triangular factor, at most (d, d), and the first
        one that of all of them, one after the other, in memory of some six (d, d) matrices.

        Raises
        ------
        UndefinedStatisticError
            Below two classes with samples.
        ValueError
            Without ``full=True``.
        OtherRankError
            Where another process fails to compute its part.
        """
        self._require_two_classes("nc1")
        within = self.within
        if not self._is_finite("nc1", within):
            return float("nan")
        centered = class_means.means_around(
            self.share, self._present, self.global_mean, self._rounding
        )
        factor = factor_of_all(centered, self._sizes, self._ranks, self._place)

        def find() -> float | None:
            if factor is None:
                return None
            return nc1_of_means(factor, sum(self._sizes), within, self._rounding)

        value: float | None = self._ranks.gather(together(self._ranks, find))[0]
        return undefined.ratio(self.trace_within, 0.0, "nc1") if value is None else value

    def probe(self, ridge: float = 0.0) -> LinearProbe:
        """Fit the exact least-squares classifier, as `deeprep.metrics.probe`.

        Each process gets the weights and biases of its own classes: row k is that of class
        ``first_class + k``. It takes some four (d, d) matrices in each.

        Raises
        ------
        ValueError
            Without ``full=True`` and for a ridge that is negative or not finite.
        """
        check_ridge(ridge)
        pooled, share = self.pooled_scatter, self.share
        if not self._is_finite("probe", pooled):
            return LinearProbe(
                torch.full_like(share.means, torch.nan), torch.full_like(share.sumsq, torch.nan)
            )
        samples = share.counts.double()
        centered = share.means - self.global_mean
        centered *= samples.sqrt().unsqueeze(1)
        total = self._total(centered.T @ centered).add_(pooled)
        targets = centered.mul_(samples.sqrt().unsqueeze(1))
        noise = noise_of_scatter(pooled, share.unit_roundoff, total)
        weight = solve(total, targets, noise, ridge * self.num_samples)
        return LinearProbe(weight, samples / self.num_samples - weight @ self.global_mean)

    def _total(self, part: Tensor) -> Tensor:
        """Return the sum of the parts of all processes, on the device of the state."""
        total = part.to(self._place)
        with self._ranks.watch():
            distributed.all_reduce(total, group=self._ranks.group)
        return total.to(self.share.device)

    def _broadcast(self, rows: Tensor, owner: int) -> Iterator[Tensor]:
        """Yield the rows of one rank on all of them, so many at a time that tiles stay small."""
        num_rows, width = self._sizes[owner], rows.shape[1]
        step = max(1, class_means.TILE_ENTRIES // max(width, *self._sizes))
        for begin in range(0, num_rows, step):
            shape = (min(step, num_rows - begin), width)
            if owner == self._ranks.rank:
                block = rows[begin : begin + shape[0]].to(self._place)
            else:
                block = torch.empty(shape, dtype=torch.float64, device=self._place)
            with self._ranks.watch():
                distributed.broadcast(block, group=self._ranks.group, group_src=owner)
            yield block.to(rows.device)

    def _covariance_traces(self) -> Tensor:
        """tau_k (P,) of this share's classes; raises in every process where a class has none."""
        counts = self.share.counts[self._present]
        require_no_single(self._everywhere(self._present[counts == 1].tolist()))
        return self.share.covariance_traces(self._present)

    def _sum(self, part: float) -> float:
        """Return the sum of the parts of all processes."""
        parts: list[float] = self._ranks.gather(part)
        return sum(parts)

    def _everywhere(self, classes: list[int]) -> list[int]:
        """Return the numbers, among all K, of such classes of all processes."""
        return list(itertools.chain.from_iterable(self._ranks.gather(self._numbers(classes))))

    def _numbers(self, classes: list[int]) -> list[int]:
        """Return the numbers, among all K, of classes of the share."""
        return [self.first_class + k for k in classes]

    def _require_two_classes(self, statistic: str) -> None:
        undefined.require_found(sum(self._sizes), self.num_classes, statistic, at_least=2)

    def _is_finite(self, statistic: str, pooled: Tensor | None = None) -> bool:
        if self._nonfinite_classes:
            undefined.warn_nonfinite(statistic, self._nonfinite_classes)
            return False
        return pooled is None or undefined.products_are_finite(pooled, statistic)
