"""How the state of a ClassScatter grows: by batches, and by the states of other samples."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprep import ops
from deeprep.base import validate
from deeprep.base.indivisible import Step
from deeprep.state import pooled, streaming
from deeprep.state.merge import merge_steps
from deeprep.state.moments import Moments
from deeprep.state.statistics import Statistics


class Accumulator(Statistics):
    """A state that takes in batches and other states, each whole or not at all."""

    def update(self, features: Any, labels: Any) -> None:
        """Take in a batch: features (N, d), labels (N,) or one-hot (N, K). N = 0 is legal.

        On CUDA the call does not wait for the device, except to check one-hot labels. Features in
        host memory (pinned memory saves a copy) go to a CUDA state slab by slab, copies and
        computation overlapping; they have been read when the call returns.

        Parameters
        ----------
        features
            torch tensor, NumPy array or DLPack object, float64/32/16 or bfloat16, any strides; read
            in place.
        labels
            int32/int64 in [0, K) or `ignore_index`; or one-hot rows. Where features are.

        Raises
        ------
        ValueError, TypeError
            On shapes, dtypes, devices or labels that do not fit; the state is untouched. Labels on
            CUDA that do not fit raise at the next read of the state, see `ClassScatter`.
        RuntimeError
            Where an `all_reduce` that did not come to an end left the state half changed.
        """
        if not isinstance(features, Tensor) and validate.is_reversed(features):
            self._update_from_the_end(features, labels)
            return
        features, labels = validate.to_tensors(features, labels, self.num_classes)
        if self._change is not None:
            self._require_whole()
        if self._bad_label is not None and ops.on_host(features):
            self._stream(features, labels)
        else:
            self._take(features, labels)

    def _stream(self, features: Tensor, labels: Tensor) -> None:
        """Take in a batch in host memory on CUDA."""
        validate.check_batch(features, labels)
        validate.check_state(features, *self._moments, self._bad_label, same_device=False)
        validate.check_labels(labels, self.num_classes, self.ignore_index)
        if streaming.fits_one_slab(features, labels):
            streaming.stream(features, labels, self.device, self._take)
            return
        # A copy takes in slab after slab: what may be given up after some of them is the copy.
        whole = self._sharing_copy()
        whole._moments = Moments(*(tensor.clone() for tensor in self._moments))
        if self._pooled_scatter is not None:
            whole._pooled_scatter = self._pooled_scatter.clone()
        streaming.stream(features, labels, self.device, whole._take)
        self._change_to(whole.unit_roundoff, *self._copy_steps(whole._tensors()))

    def _update_from_the_end(self, features: NDArray[Any], labels: Any) -> None:
        """Take in a NumPy array of rows or columns that run backwards, which no tensor can.

        It is read where it lies, in the order of the memory. Columns are put in theirs afterwards.
        """
        rows_reversed, columns_reversed = (stride < 0 for stride in features.strides)
        rows, labels = validate.to_tensors(validate.forwards(features), labels, self.num_classes)
        validate.check_batch(rows, labels)
        # Here, where rows have the numbers that the caller knows them by.
        validate.check_labels(labels, self.num_classes, self.ignore_index)
        if rows_reversed:
            labels = labels.flip(0)
        if not columns_reversed:
            self.update(rows, labels)
            return
        batch = type(self)(
            self.num_classes,
            self.num_features,
            full=self.full,
            device=self.device,
            ignore_index=self.ignore_index,
        )
        batch.update(rows, labels)
        batch._moments = batch._moments._replace(means=batch._moments.means.flip(1))
        if self.full:
            batch._pooled_scatter = batch.pooled_scatter.flip(0, 1)
        self.merge(batch)

    def _take(self, features: Tensor, labels: Tensor) -> None:
        """Take in a batch that is where the state is."""
        if features.is_cuda and torch.cuda.is_current_stream_capturing():
            self._keep_nothing_derived()  # the graph will change the state whenever it is replayed
        # Half types are widened to float32 before anything is computed.
        unit_roundoff = 2.0**-53 if features.dtype == torch.float64 else 2.0**-24
        unit_roundoff = max(self.unit_roundoff, unit_roundoff)
        if self._pooled_scatter is None:
            then = None
            if unit_roundoff != self.unit_roundoff:
                then = partial(setattr, self, "unit_roundoff", unit_roundoff)
            self._derived = None
            try:
                self._update(self._moments, features, labels, then)
            finally:
                self._derived = {} if self._keeps_derived else None
            return
        batch = Moments.zeros(self.num_classes, self.num_features, self.device)
        self._update(batch, features, labels)
        steps = pooled.product_steps(
            features, labels, batch, self.ignore_index, self._pooled_scatter, self._bad_label
        )
        steps += merge_steps(self._moments, batch, self._pooled_scatter, at_most=features.shape[0])
        self._change_to(unit_roundoff, *steps)

    def _update(
        self, moments: Moments, features: Tensor, labels: Tensor, then: Step | None = None
    ) -> None:
        # The moments are this object's own, and valid; plain tensors of their width and place need
        # no dispatcher.
        direct = (
            type(features) is Tensor
            and features.shape[1:] == moments.means.shape[1:]
            and features.device == moments.means.device
            and not torch.compiler.is_compiling()
        )
        if direct:
            ops.merge_batch(features, labels, *moments, self.ignore_index, self._bad_label, then)
        else:
            if then is not None:
                then()
            ops.class_moments_(features, labels, *moments, self.ignore_index, self._bad_label)

    def merge(self, other: Accumulator) -> None:
        """Take in all that `other`, on any device, has seen, exactly (Chan, Golub, LeVeque 1979).

        Raises
        ------
        ValueError
            Where K, d or `full` differ, or either state has met a label out of range; this one is
            untouched.
        RuntimeError
            Where either was left half changed, as for `update`.
        """
        for name in ("num_classes", "num_features", "full"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"other.{name} is {theirs}, expected {mine} as in this state")
        self._require_intact()
        other._require_intact()
        steps: list[Step] = []
        if self._pooled_scatter is not None and other._pooled_scatter is not None:
            theirs = other._pooled_scatter.to(self.device)
            steps.append(partial(Tensor.add_, self._pooled_scatter, theirs))
        moments = Moments(*(tensor.to(self.device) for tensor in other._moments))
        steps += merge_steps(self._moments, moments, self._pooled_scatter)
        self._change_to(max(self.unit_roundoff, other.unit_roundoff), *steps)

    def reset(self) -> None:
        """Forget every sample and every error."""
        self._change_to(
            0.0,
            *(partial(Tensor.zero_, tensor) for tensor in self._tensors().values()),
            *self._clear_steps(),
            partial(setattr, self, "_warned_empty", False),
        )

    def _clear_steps(self) -> list[Step]:
        return [] if self._bad_label is None else [partial(Tensor.fill_, self._bad_label, -1)]

    def _copy_steps(self, tensors: dict[str, Tensor]) -> list[Step]:
        """Steps that replace the contents of `_tensors` by those of others, on the same device."""
        targets = self._tensors()
        return [partial(Tensor.copy_, targets[name], tensors[name]) for name in targets]

    def _tensors(self) -> dict[str, Tensor]:
        """Name -> tensor of everything that grows with the samples."""
        tensors = self._moments._asdict()
        return (
            tensors
            if self._pooled_scatter is None
            else {**tensors, "products": self._pooled_scatter}
        )
