"""Class-scatter metrics as a `torchmetrics.Metric`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deeprep import metrics as _metrics
from deeprep.base import validate
from deeprep.base.warn import warn
from deeprep.ops import on_host
from deeprep.report.layer_metrics import choose_metrics
from deeprep.state import ClassScatter, all_reduce_layers
from deeprep.state.moments import Moments

try:
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError(
        "deeprep.integrations.torchmetrics needs torchmetrics: pip install 'deeprep[torchmetrics]'"
    ) from error

__all__ = ["ClassScatterMetric"]


class ClassScatterMetric(Metric):
    """Compression, discrimination and their kin of features seen batch by batch, from one state.

    Its states are those of a `deeprep.ClassScatter`: counts (K,) int64, means (K, d) and sumsq (K,)
    float64, and with ``full=True`` the (d, d) products. They stay float64 under `half`, `set_dtype`
    and `to`, whatever the features. Across processes they are merged exactly, by
    `ClassScatter.all_reduce` rather than a gather, so d may be unknown where a process has seen no
    batch, and memory does not grow with the number of processes.

    In a `torchmetrics.MetricCollection` those of equal `num_classes`, `full` and `ignore_index`
    share one state; several `metrics` of one ClassScatterMetric also share its synchronisation.

    Parameters
    ----------
    num_classes
        K.
    num_features
        D, to be checked; default: that of the first batch after a `reset`.
    metrics
        What `compute` returns: names in `deeprep.metrics`, among compression, discrimination, cdnv,
        equinorm, equiangularity, etf_error and gnc2, and with ``full=True`` nc1,
        separation_fuzziness, h_score, vci, lidar, participation_ratio, alpha_req, numerical_rank,
        effective_rank, stable_rank and rankme; or a mapping of any names to functions of a
        ClassScatter. One name alone, as a string, makes `compute` return one tensor.
    full
        Also accumulate the (d, d) pooled within-class scatter.
    ignore_index
        Label of rows to skip.
    **kwargs
        Of `torchmetrics.Metric`, but for `dist_sync_fn`.

    Raises
    ------
    ValueError, TypeError
        On an unknown metric, one that needs ``full=True``, or a `dist_sync_fn`.

    Examples
    --------
    >>> import torch
    >>> from deeprep.integrations.torchmetrics import ClassScatterMetric
    >>> metric = ClassScatterMetric(num_classes=2)
    >>> metric.update(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 0]))
    >>> metric.update(torch.tensor([[0.0, 2.0], [0.0, 4.0]]), torch.tensor([1, 1]))
    >>> {name: round(float(value), 4) for name, value in metric.compute().items()}
    {'compression': 0.3077, 'discrimination': 1.0}
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False  # `forward` updates with a batch once and merges it into the whole

    counts: Tensor
    means: Tensor
    sumsq: Tensor
    products: Tensor
    resolution: Tensor
    refused: Tensor
    ignored_label: Tensor

    def __init__(
        self,
        num_classes: int,
        num_features: int | None = None,
        metrics: str | Sequence[str] | Mapping[str, Callable[[ClassScatter], float]] = (
            "compression",
            "discrimination",
        ),
        *,
        full: bool = False,
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if self.dist_sync_fn is not None:
            raise ValueError(
                f"dist_sync_fn is {self.dist_sync_fn!r}, expected None: a state is merged by "
                "ClassScatter.all_reduce, not gathered"
            )
        self.num_classes = validate.check_positive("num_classes", num_classes)
        self.num_features = num_features
        if num_features is not None:
            self.num_features = validate.check_positive("num_features", num_features)
        self.full = bool(full)
        self.ignore_index = int(ignore_index)
        self._returns_one = isinstance(metrics, str)
        self._functions = _functions_of(metrics, self.full)
        # No column until the first batch brings them: a reset metric holds no K x d zeros, nor
        # does its copy of the defaults.
        moments = Moments(
            torch.zeros(self.num_classes, dtype=torch.int64),
            torch.zeros((self.num_classes, 0), dtype=torch.float64),
            torch.zeros(self.num_classes, dtype=torch.float64),
        )
        for name, default in moments._asdict().items():
            self.add_state(name, default)
        if self.full:
            self.add_state("products", torch.zeros((0, 0), dtype=torch.float64))
        self.add_state("resolution", torch.zeros((), dtype=torch.float64))
        self.add_state("refused", torch.full((3,), -1))  # what a CUDA state notes, see ops
        # A MetricCollection takes metrics of equal states for one: this tells them apart even
        # where the first batch had nothing to ignore.
        self.add_state("ignored_label", torch.tensor(self.ignore_index))

    # ---------------------------------------------------------------- states and ClassScatter

    @property
    def scatter(self) -> ClassScatter:
        """The samples so far as a ClassScatter, for any other metric; it shares the states."""
        return self._as_scatter(self.metric_state, unit_roundoff=float(self.resolution))

    def _as_scatter(self, states: Mapping[str, Any], unit_roundoff: float = 0.0) -> ClassScatter:
        """Return a ClassScatter that reads and writes the tensors of `states`."""
        moments = Moments(states["counts"], states["means"], states["sumsq"])
        scatter = self._empty(1)
        scatter.num_features = moments.means.shape[1]
        scatter._moments = moments
        scatter._pooled_scatter = states["products"] if self.full else None
        scatter._bad_label = None if on_host(moments.means) else states["refused"]
        scatter.unit_roundoff = unit_roundoff
        scatter._keep_nothing_derived()  # this metric's next update writes to the same tensors
        return scatter

    def _empty(self, num_features: int) -> ClassScatter:
        return ClassScatter(
            self.num_classes,
            num_features,
            full=self.full,
            device=self.means.device,
            ignore_index=self.ignore_index,
        )

    def _adopt(self, scatter: ClassScatter) -> None:
        """Make the tensors of `scatter` the states."""
        self.counts, self.means, self.sumsq = scatter._moments
        if scatter._pooled_scatter is not None:
            self.products = scatter._pooled_scatter
        if scatter._bad_label is not None:
            self.refused = scatter._bad_label
        with torch.inference_mode(False):
            self.resolution = torch.full_like(self.resolution, scatter.unit_roundoff)

    # ---------------------------------------------------------------- what torchmetrics asks for

    def update(self, features: Any, labels: Any) -> None:
        """Take in a batch: features (N, d), labels (N,) or one-hot (N, K); see ClassScatter.

        Raises
        ------
        ValueError, TypeError
            On shapes, dtypes, devices or labels that do not fit; the states are untouched.
        """
        features, labels = validate.to_tensors(features, labels, self.num_classes)
        validate.check_batch(features, labels)
        self._check_features(features)
        if self.means.shape[1] > 0:
            scatter = self._as_scatter(self.metric_state)
            scatter.update(features, labels)
            self.resolution.clamp_(min=scatter.unit_roundoff)  # on the device, without waiting
        else:
            scatter = self._empty(features.shape[1])
            scatter.update(features, labels)
            self._adopt(scatter)

    def _check_features(self, features: Tensor) -> None:
        wanted = self.means.shape[1] or self.num_features
        if wanted is not None and features.shape[1] != wanted:
            raise ValueError(
                f"features has shape {tuple(features.shape)}, expected (N, {wanted}), as "
                + ("num_features says" if wanted == self.num_features else "in earlier batches")
            )
        if not on_host(features) and features.device != self.means.device:
            raise ValueError(
                f"features is on {features.device}, expected {self.means.device}, where this "
                f"metric is; move it by .to({str(features.device)!r})"
            )

    def compute(self) -> dict[str, Tensor] | Tensor:
        """Each metric, () float64; nan, with a warning, where too few classes have samples."""
        scatter = self.scatter
        values = {name: self._value(f, scatter) for name, f in self._functions.items()}
        return next(iter(values.values())) if self._returns_one else values

    def _value(self, function: Callable[[ClassScatter], float], scatter: ClassScatter) -> Tensor:
        try:
            value = function(scatter)
        except validate.UndefinedStatisticError as error:
            # A batch of one class, or a loop's dry run, must not end a training.
            warn(f"nan: {error}")
            value = float("nan")
        return torch.as_tensor(value, dtype=torch.float64, device=self.device)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw what `compute` or `forward` returned, or a sequence of it: as torchmetrics does."""
        return self._plot(val, ax)

    def _reduce_states(self, incoming_state: Mapping[str, Any]) -> None:
        """Merge other states into these: `forward` and `merge_state` end here."""
        self._require_states(incoming_state)
        incoming = self._as_scatter(incoming_state, float(incoming_state["resolution"]))
        if incoming.num_features == 0:
            return
        whole = self.scatter
        if whole.num_features == 0:
            whole = self._empty(incoming.num_features)
        whole.merge(incoming)
        self._adopt(whole)

    def _sync_dist(self, dist_sync_fn: Any = None, process_group: Any = None) -> None:
        """Make the states of all processes one; `unsync` goes back to those of this process."""
        # Members of a collection's compute group share tensors, so the copy that `sync` has just
        # put aside is what becomes the whole, and the tensors themselves are what is put aside.
        own = self.metric_state
        copy = self._copy_state_dict() if self._cache is None else self._cache
        scatter = self._as_scatter(copy, float(self.resolution))
        merged = all_reduce_layers(
            {"features": scatter} if scatter.num_features else {},
            process_group or self.process_group,
        )
        self._cache = own
        for whole in merged.values():  # one, or none where no process has seen a batch
            self._adopt(whole)

    def _apply(
        self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ""
    ) -> nn.Module:
        """Move the states, and never convert them: they need their digits."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, exclude_state)

    # ---------------------------------------------------------------- checkpoints

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        names = {name: prefix + name for name in self._defaults if prefix + name in state_dict}
        if names:
            states = {name: state_dict.pop(key) for name, key in names.items()}
            try:
                self._require_states(states)
            except ValueError as error:
                error_msgs.append(f"{prefix}: {error}" if prefix else str(error))
            else:
                for name, tensor in states.items():
                    # A copy: updates write into the states, which must not be the checkpoint's.
                    setattr(self, name, tensor.to(self.device, copy=True))
                self._computed = None
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )

    def _require_states(self, states: Mapping[str, Any]) -> None:
        """Raise a ValueError unless `states` are those of a metric like this one."""
        missing = [name for name in self._defaults if name not in states]
        if missing:
            raise ValueError(f"state has no {', '.join(missing)}, expected all of this metric's")
        columns = states["means"].shape[1:]
        width = self.num_features or (columns[0] if columns else 0)
        if columns and columns[0] == 0:
            width = 0  # that of a metric without a batch
        shapes = {"means": (self.num_classes, width), "products": (width, width)}
        for name in self._defaults:
            default = getattr(self, name)
            found, wanted = states[name], shapes.get(name, tuple(default.shape))
            if tuple(found.shape) != wanted or found.dtype != default.dtype:
                raise ValueError(
                    f"state {name!r} has shape {tuple(found.shape)} and dtype {found.dtype}, "
                    f"expected {wanted} and {default.dtype}"
                )
        if int(states["ignored_label"]) != self.ignore_index:
            raise ValueError(
                f"state 'ignored_label' is {int(states['ignored_label'])}, expected "
                f"{self.ignore_index}, the ignore_index of this metric"
            )


def _functions_of(
    metrics: str | Sequence[str] | Mapping[str, Callable[[ClassScatter], float]], full: bool
) -> dict[str, Callable[[ClassScatter], float]]:
    """Name -> function of what `metrics` asks for."""
    if isinstance(metrics, Mapping):
        return dict(metrics)
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    validate.require("metrics", "nothing", bool(names), "at least one name")
    choose_metrics(names, full=full)
    return {name: getattr(_metrics, name) for name in names}
