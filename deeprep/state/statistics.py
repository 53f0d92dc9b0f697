"""What a ClassScatter holds, and what follows from it without looking at features again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from deeprep import ops
from deeprep.base import validate
from deeprep.base.indivisible import Step, indivisibly
from deeprep.base.validate import UndefinedStatisticError
from deeprep.base.warn import warn
from deeprep.state import pooled
from deeprep.state.moments import Moments

if TYPE_CHECKING:
    from typing_extensions import Self

Weighting = Literal["uniform", "prior"]
State = TypeVar("State", bound="Statistics")
Value = TypeVar("Value")


def name_classes(classes: list[int]) -> str:
    """Say which classes, the first few by number: "2 classes (3, 7)"."""
    listed = ", ".join(map(str, classes[:5])) + (", ..." if len(classes) > 5 else "")
    return f"{len(classes)} class{'es' if len(classes) > 1 else ''} ({listed})"


def left_out(empty: int, num_classes: int, min_count: int = 1) -> str:
    """Say that so many classes have no samples, or fewer than that many."""
    few = "no samples" if min_count == 1 else f"fewer than {min_count} samples"
    return f"{empty} of {num_classes} classes have {few} and are left out"


def require_samples(samples: int, statistic: str, found: str) -> int:
    """Return N; where it is zero raise an error that says what was found."""
    if samples == 0:
        raise UndefinedStatisticError(f"{statistic} is undefined: {found}, expected at least one")
    return samples


def average_of_means(counts: Tensor, means: Tensor, samples: int) -> Tensor:
    """Sum n_k mu_k / N over these classes (K,), of N samples in all: mu_G, or a share of it."""
    return (counts.double() / samples) @ means


def class_weights(
    weighting: Weighting, counts: Tensor, classes: int, samples: Tensor | int
) -> Tensor:
    """Weights of classes of `counts` (P,) samples in Sigma_B, which sum to one over all classes.

    There are `classes` of them that have samples, `samples` together.
    """
    if weighting == "uniform":
        return torch.full_like(counts, 1.0 / classes, dtype=torch.float64)
    if weighting == "prior":
        return counts.double() / samples
    raise ValueError(f"weighting is {weighting!r}, expected 'uniform' or 'prior'")


def scatter_of_means(means: Tensor, global_mean: Tensor, present: Tensor, weights: Tensor) -> float:
    """Sum w_k |mu_k - mu_G|^2 over the classes `present` (P,): Tr Sigma_B, or a share of it."""
    return float(weights @ ops.squared_distances(means, global_mean)[present])


def inflation_of_means(
    weights: Tensor, counts: Tensor, samples: int, covariance_traces: Tensor
) -> float:
    """What finite samples add to `scatter_of_means`, of N `samples` in all; tensors are (P,)."""
    shares = counts.double() / samples
    # (w_k - 2 w_k s_k + s_k^2) tau_k / n_k with s_k = n_k / N, see `ClassScatter.trace_between`.
    inflation = (weights - 2.0 * weights * shares + shares.square()) / counts
    return float(inflation @ covariance_traces)


def require_no_single(single: list[int]) -> None:
    """Raise where there are classes with a single sample, which have no covariance."""
    if single:
        raise UndefinedStatisticError(
            "the small-sample correction needs at least two samples in each class that has any, "
            f"found one in {name_classes(single)}"
        )


class Change:
    """A change of one or more states, made in several steps; `call` is what errors call it.

    While it is `under_way`, or where it was given up then, these states are neither what they were
    nor what they were to become.
    """

    def __init__(self, call: str, *, under_way: bool = False) -> None:
        self.call = call
        self.under_way = under_way


class Statistics:
    """The state of a ClassScatter and the statistics that are read off it.

    A CUDA state learns of a label out of range only once the device has seen it. The device then
    leaves the state alone, and every attribute here that gives a value raises instead. So it does
    where a change of the state was given up half done.
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
        self.num_classes = validate.check_num_classes(num_classes)
        self.num_features = validate.check_positive("num_features", num_features)
        self.full = bool(full)
        self.ignore_index = int(ignore_index)
        ops.require_core(torch.get_default_device() if device is None else torch.device(device))
        # S; only the triangle from the diagonal up counts.
        self._pooled_scatter: Tensor | None = None
        self._why_not_full = "the (d, d) matrices were not accumulated"
        # Where the device notes a label out of range; the CPU raises at once.
        self._bad_label: Tensor | None = None
        # Tensors that are made in inference mode could not be updated outside it.
        with torch.inference_mode(False):
            self._moments = Moments.zeros(self.num_classes, self.num_features, device)
            if self.full:
                square = (self.num_features, self.num_features)
                self._pooled_scatter = self._moments.means.new_zeros(square)
            if not ops.on_host(self._moments.means):
                self._bad_label = ops.new_bad_label(self.device)
                if self.full:
                    pooled.scales_on(self.device)
        self.unit_roundoff = 0.0
        self._warned_empty = False
        self._change: Change | None = None  # the last one, where it can be given up half done
        # What follows from the state, by name, until it changes; None while it does.
        self._derived: dict[str, Any] | None = {}
        self._keeps_derived = True

    @property
    def device(self) -> torch.device:
        """Where the state lives."""
        return self._moments.means.device

    def _change_to(self, unit_roundoff: float, *steps: Step) -> None:
        """Take the steps that change the state, all of them or, whatever exception comes, none."""
        indivisibly(
            # Should one of the steps fail, which none is known to.
            partial(setattr, self, "_change", Change("change", under_way=True)),
            *steps,
            partial(setattr, self, "unit_roundoff", unit_roundoff),
            partial(setattr, self, "_change", None),
            partial(setattr, self, "_derived", self._nothing_derived()),
        )

    def _nothing_derived(self) -> dict[str, Any] | None:
        return {} if self._keeps_derived else None

    def _keep_nothing_derived(self) -> None:
        """Derive everything anew: others write to the tensors too, unseen, as a CUDA graph does."""
        self._keeps_derived = False
        self._derived = None

    def _kept(self, name: str, derive: Callable[[], Value]) -> Value:
        """Return what follows from the state, derived once."""
        derived = self._derived  # a change in the meantime, by a handler of signals, has another
        if derived is None:
            return derive()
        if name not in derived:
            # What is made in inference mode could not be used outside it.
            with torch.inference_mode(False):
                derived[name] = derive()
        value: Value = derived[name]
        return value

    def _sharing_copy(self) -> Self:
        """Return a copy that shares the tensors, to be replaced before either changes."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __copy__(self) -> Self:
        # A change of either is one of both, which the other would not notice.
        self._keep_nothing_derived()
        return self._sharing_copy()

    @property
    def _is_half_done(self) -> bool:
        return self._change is not None and self._change.under_way

    def _require_whole(self) -> None:
        """Raise if a change of the state was given up half done."""
        if self._change is not None and self._change.under_way:
            raise RuntimeError(
                f"this ClassScatter is half changed, expected a whole one: its last "
                f"{self._change.call} did not come to an end; reset() or load_state_dict() starts "
                "anew"
            )

    def _require_intact(self) -> None:
        """Raise if the state is half changed, or has met a label out of range; waits for CUDA."""
        self._require_whole()
        if self._bad_label is None:
            return
        bad_label = self._kept("bad_label", partial(ops.read_bad_label, self._bad_label))
        if bad_label is None:
            return
        found = validate.label_out_of_range(
            *bad_label, self.num_classes, self.ignore_index, whose=" of an earlier update"
        )
        raise ValueError(
            f"{found}; that update and those after it were not taken in, reset() starts anew"
        )

    @property
    def counts(self) -> Tensor:
        """n_k, (K,) int64."""
        self._require_intact()
        return self._moments.counts

    @property
    def means(self) -> Tensor:
        """mu_k = (1/n_k) sum_i z_ki, (K, d) float64; zero for classes without samples."""
        self._require_intact()
        return self._moments.means

    @property
    def sumsq(self) -> Tensor:
        """sum_i |z_ki - mu_k|^2, (K,) float64."""
        self._require_intact()
        return self._moments.sumsq

    @property
    def num_samples(self) -> int:
        """N = sum_k n_k, ignored rows left out."""
        return self._kept("num_samples", lambda: int(self.counts.sum()))

    def _require_samples(self, statistic: str) -> int:
        return require_samples(self.num_samples, statistic, "the state has seen no samples")

    @property
    def present(self) -> Tensor:
        """Indices (P,) of the classes with samples; warns once a state if some have none.

        Raises
        ------
        UndefinedStatisticError
            Where no class has samples.
        """
        self._require_samples("every statistic")
        present = self._kept("present", lambda: self.counts.nonzero().squeeze(1)).clone()
        if len(present) < self.num_classes and not self._warned_empty:
            self._warned_empty = True
            warn(left_out(self.num_classes - len(present), self.num_classes))
        return present

    @property
    def nonfinite_classes(self) -> list[int]:
        """Classes that a NaN or an infinity has reached."""
        return list(self._kept("nonfinite_classes", self._find_nonfinite_classes))

    def _find_nonfinite_classes(self) -> list[int]:
        means = self.means
        # Some times faster than to ask every entry; a NaN is both the largest and the smallest.
        finite = self.sumsq.isfinite() & means.amax(dim=1).isfinite() & means.amin(dim=1).isfinite()
        classes: list[int] = (~finite).nonzero().squeeze(1).tolist()
        return classes

    @property
    def global_mean(self) -> Tensor:
        """mu_G = (1/N) sum_k n_k mu_k, (d,) float64."""
        samples = self._require_samples("global_mean")
        mean = self._kept("global_mean", lambda: average_of_means(self.counts, self.means, samples))
        return mean.clone()  # what is kept is not the caller's to change

    def with_means(self: State, means: Tensor) -> State:
        """Return a state of the same counts and sums of squares, to be read, with means (K, D)."""
        self._require_intact()
        other = self._sharing_copy()
        other._moments = self._moments._replace(means=means)
        other.num_features, other.full, other._pooled_scatter = means.shape[1], False, None
        other._derived = {
            name: value for name, value in (self._derived or {}).items() if name != "global_mean"
        }
        return other

    @property
    def trace_within(self) -> float:
        """Tr Sigma_W = (1/N) sum_k sum_i |z_ki - mu_k|^2."""
        samples = self._require_samples("trace_within")
        return float(self.sumsq.sum()) / samples

    def trace_between(self, weighting: Weighting = "uniform", corrected: bool = False) -> float:
        """Tr Sigma_B = sum_k w_k |mu_k - mu_G|^2 over the classes with samples.

        Sample means scatter even where the classes are one and the same: with tau_k the trace of
        the covariance class k is drawn from, and the counts taken as given,

            E Tr Sigma_B = its value for the true means
                           + sum_k w_k (tau_k/n_k - 2 tau_k/N) + sum_k n_k tau_k / N^2,

        about Tr Sigma_W / n too much for n samples a class. ``corrected`` subtracts that with
        tau_k = sumsq_k / (n_k - 1), which makes the estimate unbiased; for classes that cannot be
        told apart it is as often below zero as above. Off by default, as the paper's is not
        corrected.

        Parameters
        ----------
        weighting
            "uniform" for w_k = 1/K (the paper's), "prior" for w_k = n_k/N.
        corrected
            Subtract what the finite samples add.

        Raises
        ------
        UndefinedStatisticError
            Without samples; and, if ``corrected``, where a class has a single one.
        ValueError
            For another weighting.

        Examples
        --------
        >>> import torch, deeprep
        >>> s = deeprep.class_scatter(torch.tensor([[0.0], [0.0], [3.0]]), torch.tensor([0, 0, 1]))
        >>> s.trace_between(), s.trace_between("prior")
        (2.5, 2.0)
        >>> features = torch.tensor([[0.0], [2.0], [3.0], [5.0]])
        >>> s = deeprep.class_scatter(features, torch.tensor([0, 0, 1, 1]))
        >>> s.trace_between(), s.trace_between(corrected=True)
        (2.25, 1.75)
        """
        present = self.present
        weights = self.class_weights(weighting, present)
        between = scatter_of_means(self.means, self.global_mean, present, weights)
        if not corrected:
            return between
        counts, traces = self.counts[present], self.covariance_traces(present)
        return between - inflation_of_means(weights, counts, self.num_samples, traces)

    def covariance_traces(self, present: Tensor) -> Tensor:
        """tau_k = sumsq_k / (n_k - 1) of the classes `present` (P,): traces of covariances.

        Raises
        ------
        UndefinedStatisticError
            Where one of them has a single sample.
        """
        counts = self.counts[present]
        require_no_single(present[counts == 1].tolist())
        return self.sumsq[present] / (counts - 1)

    def class_weights(self, weighting: Weighting, present: Tensor) -> Tensor:
        """Weights (P,) of the present classes in Sigma_B, summing to one."""
        counts = self.counts[present]
        return class_weights(weighting, counts, len(present), counts.sum())

    @property
    def pooled_scatter(self) -> Tensor:
        """S = N Sigma_W, (d, d) float64; needs ``full=True``."""
        if self._pooled_scatter is None:
            raise ValueError(
                f"this ClassScatter has full=False, expected full=True: {self._why_not_full}"
            )
        self._require_intact()
        return self._pooled_scatter.triu() + self._pooled_scatter.triu(1).T

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
