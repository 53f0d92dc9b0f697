"""ClassScatter: the class-scatter statistics of a layer, accumulated over any number of batches."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor

from deeprep import _pooled, _validate, ops
from deeprep._validate import UndefinedStatisticError

Weighting = Literal["uniform", "prior"]
_STATE_VERSION = 1


class ClassScatter:
    """Counts, means and sums of squares of every class, updated batch by batch in one pass.

    Everything the metrics need comes from here. With z_ki the i-th of n_k features of class k::

        counts  (K,)   int64     n_k
        means   (K, d) float64   mu_k = (1/n_k) sum_i z_ki
        sumsq   (K,)   float64   sum_i |z_ki - mu_k|^2

    and, with ``full=True``, the (d, d) pooled within-class scatter
    S = sum_k sum_i (z_ki - mu_k)(z_ki - mu_k)'. Memory is K*d (plus d*d), whatever the number of
    samples; features are read where they lie, never copied or widened.

    Parameters
    ----------
    num_classes, num_features : K and d, at least 1.
    full : also accumulate S, which nc1, the ranks and the linear probe need.
    device : where the state lives; features must be there too. Default: the CPU.
    ignore_index : label of rows to skip.

    Raises
    ------
    ValueError, TypeError
        On K < 1 or d < 1, naming the argument.

    Notes
    -----
    Definitions: arXiv 2311.02960, section 2.

    Examples
    --------
    >>> import torch, deeprep
    >>> s = deeprep.ClassScatter(num_classes=2, num_features=2)
    >>> s.update(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 0]))
    >>> s.update(torch.tensor([[0.0, 2.0], [0.0, 4.0]]), torch.tensor([1, 1]))
    >>> s.means.tolist()
    [[2.0, 0.0], [0.0, 3.0]]
    >>> s.trace_within, s.trace_between()
    (1.0, 3.25)
    """

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        *,
        full: bool = False,
        device: torch.device | str | None = None,
        ignore_index: int = -100,
    ) -> None:
        self.num_classes = _validate.check_positive("num_classes", num_classes)
        self.num_features = _validate.check_positive("num_features", num_features)
        self.full = bool(full)
        self.ignore_index = int(ignore_index)
        shape = (self.num_classes, self.num_features)
        self.counts = torch.zeros(shape[:1], dtype=torch.int64, device=device)
        self.means = torch.zeros(shape, dtype=torch.float64, device=device)
        self.sumsq = torch.zeros(shape[:1], dtype=torch.float64, device=device)
        self._products: Tensor | None = None  # S
        if self.full:
            square = (self.num_features, self.num_features)
            self._products = torch.zeros(square, dtype=torch.float64, device=device)
        self.resolution = 0.0
        self._warned_empty = False

    def __repr__(self) -> str:
        return (
            f"ClassScatter(num_classes={self.num_classes}, num_features={self.num_features}, "
            f"full={self.full}, num_samples={self.num_samples})"
        )

    @property
    def device(self) -> torch.device:
        """Where the state lives."""
        return self.means.device

    # ---------------------------------------------------------------- accumulation

    def update(self, features: Any, labels: Any) -> None:
        """Take in a batch: features (N, d), labels (N,) or one-hot (N, K). N = 0 is legal.

        Parameters
        ----------
        features : torch tensor, NumPy array or DLPack object, float64/32/16 or bfloat16, any
            strides; read in place.
        labels : int32/int64 in [0, K) or `ignore_index`; or one-hot rows.

        Raises
        ------
        ValueError, TypeError
            On shapes, dtypes, devices or labels that do not fit; the state is untouched.
        """
        features, labels = _validate.to_tensors(features, labels, self.num_classes)
        if self._products is None:
            self._update_moments(features, labels)
        else:
            batch = ClassScatter(self.num_classes, self.num_features, device=self.device)
            batch.ignore_index = self.ignore_index
            batch._update_moments(features, labels)
            _pooled.add_shifted_gram(features, labels, batch, self._products)
            self._merge_moments(batch)
        # Half types are widened to float32 before anything is computed.
        unit = 2.0**-53 if features.dtype == torch.float64 else 2.0**-24
        self.resolution = max(self.resolution, unit)

    def _update_moments(self, features: Tensor, labels: Tensor) -> None:
        # The state is this object's own, and valid; plain tensors of its width need no dispatcher.
        direct = (
            type(features) is Tensor
            and features.is_cpu
            and self.means.is_cpu
            and features.shape[1:] == self.means.shape[1:]
            and not torch.compiler.is_compiling()
        )
        update = ops.merge_batch if direct else ops.class_moments_
        update(features, labels, self.counts, self.means, self.sumsq, self.ignore_index)

    def merge(self, other: ClassScatter) -> None:
        """Take in all that `other` has seen, exactly (Chan, Golub, LeVeque 1979).

        Raises
        ------
        ValueError
            Where K, d or `full` differ; the state is untouched.
        """
        for name in ("num_classes", "num_features", "full"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"other.{name} is {theirs}, expected {mine} as in this state")
        if self._products is not None and other._products is not None:
            self._products += other._products.to(self.device)
        self._merge_moments(other)
        self.resolution = max(self.resolution, other.resolution)

    def _merge_moments(self, other: ClassScatter) -> None:
        """Merge counts, means, sums of squares, and what the distance of the means adds to S."""
        counts = other.counts.to(self.device)
        share = counts.double() / (self.counts + counts).clamp_(min=1)
        weights = self.counts * share
        deltas = other.means.to(self.device) - self.means
        if self._products is not None:
            _pooled.add_merge_terms(deltas, weights, self._products)
        self.sumsq += other.sumsq.to(self.device) + weights * deltas.square().sum(dim=1)
        self.means += deltas.mul_(share.unsqueeze(1))
        self.counts += counts

    def all_reduce(self, group: Any = None) -> None:
        """Make the states of all processes of a torch.distributed group one: their merge.

        Two sums over the group: first n and n*mean, then sumsq + n |mean_rank - mean|^2 (and S).
        """
        from torch import distributed

        counts, sums = self.counts.clone(), self.counts.unsqueeze(1) * self.means
        distributed.all_reduce(counts, group=group)
        distributed.all_reduce(sums, group=group)
        means = sums.div_(counts.clamp(min=1).unsqueeze(1))
        deltas = self.means - means
        self.sumsq += self.counts * deltas.square().sum(dim=1)
        distributed.all_reduce(self.sumsq, group=group)
        if self._products is not None:
            _pooled.add_merge_terms(deltas, self.counts.double(), self._products)
            distributed.all_reduce(self._products, group=group)
        resolution = torch.tensor(self.resolution, dtype=torch.float64, device=self.device)
        distributed.all_reduce(resolution, op=distributed.ReduceOp.MAX, group=group)
        self.resolution = float(resolution)
        self.counts.copy_(counts)
        self.means.copy_(means)

    def reset(self) -> None:
        """Forget every sample."""
        for tensor in (self.counts, self.means, self.sumsq, self._products):
            if tensor is not None:
                tensor.zero_()
        self.resolution = 0.0
        self._warned_empty = False

    # ---------------------------------------------------------------- statistics

    @property
    def num_samples(self) -> int:
        """N = sum_k n_k, ignored rows left out."""
        return int(self.counts.sum())

    def _require_samples(self, statistic: str) -> int:
        samples = self.num_samples
        if samples == 0:
            raise UndefinedStatisticError(
                f"{statistic} is undefined: the state has seen no samples, expected at least one"
            )
        return samples

    @property
    def present(self) -> Tensor:
        """Indices (P,) of the classes with samples; warns once a state if some have none.

        Raises
        ------
        UndefinedStatisticError
            Where no class has samples.
        """
        self._require_samples("every statistic")
        present = self.counts.nonzero().squeeze(1)
        empty = self.num_classes - present.numel()
        if empty and not self._warned_empty:
            self._warned_empty = True
            warnings.warn(
                f"{empty} of {self.num_classes} classes have no samples and are left out",
                UserWarning,
                stacklevel=3,
            )
        return present

    @property
    def nonfinite_classes(self) -> list[int]:
        """Classes that a NaN or an infinity has reached."""
        finite = self.sumsq.isfinite() & self.means.isfinite().all(dim=1)
        return [int(k) for k in (~finite).nonzero().squeeze(1)]

    @property
    def global_mean(self) -> Tensor:
        """mu_G = (1/N) sum_k n_k mu_k, (d,) float64."""
        samples = self._require_samples("global_mean")
        return (self.counts.double() / samples) @ self.means

    @property
    def trace_within(self) -> float:
        """Tr Sigma_W = (1/N) sum_k sum_i |z_ki - mu_k|^2."""
        samples = self._require_samples("trace_within")
        return float(self.sumsq.sum()) / samples

    def trace_between(self, weighting: Weighting = "uniform") -> float:
        """Tr Sigma_B = sum_k w_k |mu_k - mu_G|^2 over the classes with samples.

        Parameters
        ----------
        weighting : "uniform" for w_k = 1/K (the paper's), "prior" for w_k = n_k/N.

        Examples
        --------
        >>> import torch, deeprep
        >>> s = deeprep.class_scatter(torch.tensor([[0.0], [0.0], [3.0]]), torch.tensor([0, 0, 1]))
        >>> s.trace_between(), s.trace_between("prior")
        (2.5, 2.0)
        """
        weights = self._class_weights(weighting)
        distances = (self.means[self.present] - self.global_mean).square_().sum(dim=1)
        return float(weights @ distances)

    def _class_weights(self, weighting: Weighting) -> Tensor:
        """Weights (P,) of the present classes in Sigma_B, summing to one."""
        counts = self.counts[self.present].double()
        if weighting == "uniform":
            return torch.full_like(counts, 1.0 / counts.numel())
        if weighting == "prior":
            return counts / counts.sum()
        raise ValueError(f"weighting is {weighting!r}, expected 'uniform' or 'prior'")

    @property
    def pooled_scatter(self) -> Tensor:
        """S = N Sigma_W, (d, d) float64; needs ``full=True``."""
        if self._products is None:
            raise ValueError(
                "this ClassScatter has full=False, expected full=True: the (d, d) matrices were "
                "not accumulated"
            )
        return self._products.clone()

    @property
    def within(self) -> Tensor:
        """Sigma_W = (1/N) sum_k sum_i (z_ki - mu_k)(z_ki - mu_k)', (d, d) float64."""
        return self.pooled_scatter / self._require_samples("within")

    @property
    def between(self) -> Tensor:
        """Sigma_B = (1/K) sum_k (mu_k - mu_G)(mu_k - mu_G)', (d, d) float64; full only."""
        if not self.full:
            raise ValueError("this ClassScatter has full=False, expected full=True")
        centered = self.means[self.present] - self.global_mean
        return centered.T @ centered / centered.shape[0]

    # ---------------------------------------------------------------- saving

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue elsewhere; tensors are copies."""
        return {
            "version": _STATE_VERSION,
            "counts": self.counts.clone(),
            "means": self.means.clone(),
            "sumsq": self.sumsq.clone(),
            "products": None if self._products is None else self._products.clone(),
            "resolution": self.resolution,
            "ignore_index": self.ignore_index,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict`; shapes and `full` must be those of this object.

        Raises
        ------
        ValueError
            Where the version, a shape, a dtype or `full` does not fit; nothing is changed.
        """
        if state.get("version") != _STATE_VERSION:
            found = state.get("version")
            raise ValueError(f"state['version'] is {found!r}, expected {_STATE_VERSION}")
        if (state["products"] is not None) != self.full:
            raise ValueError(f"state has full={not self.full}, expected full={self.full}")
        targets = {"counts": self.counts, "means": self.means, "sumsq": self.sumsq}
        if self._products is not None:
            targets["products"] = self._products
        for name, target in targets.items():
            found = state[name]
            if found.shape != target.shape or found.dtype != target.dtype:
                raise ValueError(
                    f"state[{name!r}] has shape {tuple(found.shape)} and dtype {found.dtype}, "
                    f"expected {tuple(target.shape)} and {target.dtype}"
                )
        for name, target in targets.items():
            target.copy_(state[name])
        self.resolution = float(state["resolution"])
        self.ignore_index = int(state["ignore_index"])


def class_scatter(
    features: Any,
    labels: Any,
    num_classes: int | None = None,
    *,
    full: bool = False,
    ignore_index: int = -100,
) -> ClassScatter:
    """Class-scatter statistics of one feature matrix, in one pass.

    Parameters
    ----------
    features : (N, d) torch tensor, NumPy array or DLPack object; float64/32/16 or bfloat16, any
        strides, read in place.
    labels : (N,) int32/int64 in [0, K) or `ignore_index`; or one-hot rows (N, K).
    num_classes : K; default: the largest label + 1 (or the width of one-hot rows).
    full : also accumulate the (d, d) pooled within-class scatter.
    ignore_index : label of rows to skip.

    Returns
    -------
    ClassScatter on the device of the features.

    Raises
    ------
    ValueError, TypeError
        On input that does not fit, naming the argument, the value found and the value wanted.

    Examples
    --------
    >>> import numpy as np, deeprep
    >>> rng = np.random.default_rng(0)
    >>> labels = np.repeat(np.arange(3), 100)
    >>> features = np.eye(3)[labels] + 0.1 * rng.standard_normal((300, 3))
    >>> s = deeprep.class_scatter(features, labels)
    >>> round(deeprep.compression(s), 3), round(deeprep.discrimination(s), 3)
    (0.041, 1.002)
    """
    one_hot_width = labels.shape[1] if getattr(labels, "ndim", 1) == 2 else None
    features, labels = _validate.to_tensors(features, labels, num_classes)
    _validate.check_batch(features, labels)
    if num_classes is None:
        num_classes = one_hot_width
    if num_classes is None:
        kept = labels[labels != ignore_index]
        if kept.numel() == 0:
            raise ValueError("num_classes is None and there is no label to infer it from")
        num_classes = max(1, int(kept.max()) + 1)
    scatter = ClassScatter(
        num_classes,
        features.shape[1],
        full=full,
        device=features.device,
        ignore_index=ignore_index,
    )
    scatter.update(features, labels)
    return scatter
