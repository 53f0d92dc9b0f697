"""Layer metrics during training with Lightning, from the batches it runs anyway."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from deeprep.base import validate
from deeprep.integrations.selection import (
    labels_of_batch,
    masks_of,
    measured_module,
    named_values,
)
from deeprep.probe import LayerProbe, Monitor
from deeprep.probe.layers import LayerSelector
from deeprep.probe.reduce import Reduce
from deeprep.report import LayerReport, ReportOptions
from deeprep.report.layer_metrics import ALWAYS, choose_metrics
from deeprep.report.options import ReportKeywords, report_options

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from typing_extensions import Unpack
else:

    def _callback() -> type:
        """Return the Callback of the Lightning in use: each of the two checks for its own."""
        names = ("lightning.pytorch", "pytorch_lightning")
        for name in sorted(names, key=lambda name: name not in sys.modules):
            try:
                return importlib.import_module(name).Callback
            except ImportError:
                continue
        raise ImportError(
            "deeprep.integrations.lightning needs lightning or pytorch_lightning: "
            "pip install 'deeprep[lightning]'"
        )

    Callback = _callback()

__all__ = ["LayerMetricsCallback"]

Stage = Literal["train", "validation", "test"]


class LayerMetricsCallback(Callback):
    """Measure every layer of the model in training, epoch by epoch, and log C_l and D_l.

    The features are those of the forward passes that `training_step` or `validation_step` makes
    with the module's own batches: there is no second one. Only with `loader` does the model run on
    other data, at the end of the epoch. States of all processes are merged exactly.

    Values are logged as ``compression/<layer>`` and ``discrimination/<layer>``, which loggers and
    other callbacks (``monitor=``) find under these names; names of layers are written as in
    `LayerReport.scalars`.

    Parameters
    ----------
    num_classes
        K.
    layers, reduce, full, ignore_index
        See `deeprep.LayerProbe`.
    on
        "validation", "train", or "test" for `Trainer.test`. In training the weights change from
        batch to batch and dropout is on, so the statistics describe an epoch, not one model.
    every_n_epochs
        Measure the epochs 0, n, 2n, ...; a test always is.
    every_n_steps
        With ``on="train"``: measure the training steps 0, n, 2n, ... instead of epochs, each by
        itself, and log it at once, whatever `log_every_n_steps` is; see `deeprep.Monitor`.
    max_batches
        Batches of an epoch to measure at most, in each process.
    loader
        (inputs, labels) batches to measure at the end of each epoch of `on` instead, in eval mode;
        each process takes its share of them, so all processes need the same batches.
    module
        Name of the submodule to measure, such as "model"; default: the only child that has
        parameters or, where there are several, the LightningModule itself. It must be called as a
        whole for its input to be measured as layer 0.
    labels_of
        Batch -> labels; default: the second of a pair, or what a mapping holds as "labels" or
        "label".
    prefix
        Put before the names that are logged: to tell several callbacks apart.
    options
        What to report and how; default: ``ReportOptions()``. Its `metrics` are logged; "auto" here
        is compression and discrimination alone.
    **changes
        Fields of `options` to change: weighting, corrected, jackknife, metrics, class_names,
        min_count.

    Attributes
    ----------
    options
        The `ReportOptions` in use.
    reports
        Dict of epoch -> LayerReport, with `every_n_steps` of step -> LayerReport for the last one
        alone; goes into checkpoints and comes back from them.

    Raises
    ------
    ValueError, TypeError
        On arguments that do not fit, batches without labels, and epochs in which the module
        measured never ran.

    Notes
    -----
    Sanity checks are not measured. Of several validation or test loaders the first is, and of
    several validations in an epoch the report of the last is kept.

    Examples
    --------
    >>> from deeprep.integrations.lightning import LayerMetricsCallback
    >>> layers = LayerMetricsCallback(num_classes=10, reduce="mean")
    >>> # lightning.Trainer(callbacks=[layers]).fit(module, train_loader, validation_loader)
    >>> layers.reports
    {}
    """

    def __init__(
        self,
        num_classes: int,
        layers: LayerSelector | Sequence[LayerSelector] | None = None,
        reduce: Reduce = "flatten",
        *,
        on: Stage = "validation",
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        max_batches: int | None = None,
        loader: Iterable[Any] | None = None,
        module: str | None = None,
        labels_of: Callable[[Any], Tensor] | None = None,
        prefix: str = "",
        full: bool | Literal["auto"] = False,
        ignore_index: int = -100,
        options: ReportOptions | None = None,
        **changes: Unpack[ReportKeywords],
    ) -> None:
        stages = ("train", "validation", "test")
        validate.require("on", repr(on), on in stages, "'train', 'validation' or 'test'")
        self.num_classes = validate.check_positive("num_classes", num_classes)
        options = report_options(options, **changes)
        if options.metrics == "auto":
            options = report_options(options, metrics=ALWAYS)
        choose_metrics(options.metrics, full=full is not False)
        self.options = options
        self.every_n_epochs = validate.check_positive("every_n_epochs", every_n_epochs)
        if every_n_steps is not None:
            validate.check_positive("every_n_steps", every_n_steps)
            alone = on == "train" and loader is None and max_batches is None and every_n_epochs == 1
            wanted = "on='train' with it, and no loader, max_batches or every_n_epochs"
            validate.require("every_n_steps", every_n_steps, alone, wanted)
        self.every_n_steps = every_n_steps
        if max_batches is not None:
            validate.check_positive("max_batches", max_batches)
        self.on = on
        self.max_batches = max_batches
        if hasattr(loader, "__next__"):
            raise ValueError(
                "loader is a one-shot iterator, expected an iterable that can be run through "
                "after every epoch, such as a list or a DataLoader"
            )
        self.loader = loader
        self.module = module
        self.labels_of = labels_of_batch if labels_of is None else labels_of
        self.prefix = prefix
        self.reports: dict[int, LayerReport] = {}
        self._selection: dict[str, Any] = {
            "layers": layers,
            "reduce": reduce,
            "full": full,
            "ignore_index": ignore_index,
        }
        self._probe: LayerProbe | None = None
        self._monitor: Monitor | None = None
        self._step = 0
        self._batch: AbstractContextManager[Any] | None = None
        self._num_batches = 0

    # ---------------------------------------------------------------- an epoch

    def _is_due(self, trainer: Trainer, stage: Stage) -> bool:
        return (
            stage == self.on
            and not trainer.sanity_checking
            and self.every_n_steps is None
            and (stage == "test" or trainer.current_epoch % self.every_n_epochs == 0)
        )

    def _start_batch(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, stage: Stage
    ) -> None:
        if not self._is_due(trainer, stage) or self.loader is not None:
            return
        # Here and not at the start of the epoch, which has no hook where training is resumed.
        if self._probe is None:
            self._num_batches = 0
            self._probe = self._make_probe(pl_module)
            self._probe.__enter__()
        if self._num_batches == self.max_batches:
            return
        self._num_batches += 1
        self._batch = self._probe.batch(self.labels_of(batch), masks_of(batch))
        self._batch.__enter__()

    def _end_batch(self) -> None:
        if self._batch is not None:
            batch, self._batch = self._batch, None
            batch.__exit__(None, None, None)

    def _end_epoch(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        if not self._is_due(trainer, stage):
            return
        if self.loader is None:
            probe = self._probe_of_epoch(pl_module)
        else:
            probe = self._make_probe(pl_module)
            share = itertools.islice(self.loader, trainer.global_rank, None, trainer.world_size)
            probe.run(itertools.islice(share, self.max_batches))
        if trainer.world_size > 1:
            probe.all_reduce()
        if not probe.scatters and self.loader is None:
            raise ValueError(
                f"module is {self.module!r}, expected a module that runs in the {self.on} step: "
                f"no layer of {type(measured_module(pl_module, self.module)).__name__} did"
            )
        # In a pass of its own there is time for all that the states allow.
        changes: ReportKeywords = {} if self.loader is None else {"metrics": "auto"}
        report = probe.report(self.options, **changes)
        self.reports[trainer.current_epoch] = report
        values = named_values(report, self.options.metrics, self.prefix)
        # All processes have the same values; without sync_dist Lightning warns that they may not.
        pl_module.log_dict(values, sync_dist=trainer.world_size > 1)

    # ---------------------------------------------------------------- a step

    def _start_step(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        if self._monitor is None:
            self._monitor = Monitor(
                measured_module(pl_module, self.module),
                self.num_classes,
                every=validate.chosen(self.every_n_steps),
                all_reduce=trainer.world_size > 1,
                options=self.options,
                **self._selection,
            )
        self._step = trainer.global_step
        self._batch = self._monitor.step(self.labels_of(batch), masks_of(batch), number=self._step)
        self._batch.__enter__()

    def _end_step(self, trainer: Trainer) -> None:
        # A batch of an accumulated gradient ends no step.
        if self._monitor is None or trainer.global_step == self._step:
            return
        report = self._monitor.report()
        if report is None:
            return
        self.reports = {self._step: report}
        values = named_values(report, self.options.metrics, self.prefix)
        # Past `log_every_n_steps`, which would drop all but the steps that both choose.
        trainer.callback_metrics.update({name: torch.tensor(v) for name, v in values.items()})
        for logger in trainer.loggers:
            logger.log_metrics(values, step=self._step)

    # ---------------------------------------------------------------- the model

    def _probe_of_epoch(self, pl_module: LightningModule) -> LayerProbe:
        # A process without a batch has a part in the merge all the same.
        probe = self._make_probe(pl_module) if self._probe is None else self._probe
        self._detach()
        return probe

    def _make_probe(self, pl_module: LightningModule) -> LayerProbe:
        model = measured_module(pl_module, self.module)
        return LayerProbe(model, self.num_classes, **self._selection)

    def _detach(self) -> None:
        self._end_batch()
        self._monitor = None
        if self._probe is not None:
            probe, self._probe = self._probe, None
            probe.__exit__(None, None, None)

    # ---------------------------------------------------------------- Lightning's hooks

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measure the forward passes of the step that follows."""
        if self.every_n_steps is not None:
            self._start_step(trainer, pl_module, batch)
        else:
            self._start_batch(trainer, pl_module, batch, "train")

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure the forward passes of the step that follows."""
        if dataloader_idx == 0:
            self._start_batch(trainer, pl_module, batch, "validation")

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Measure no more: some optimizers repeat the step, with the same samples."""
        self._end_batch()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Measure no more, and log a step that was measured."""
        self._end_batch()
        self._end_step(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure no more."""
        self._end_batch()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detach, log and keep the report."""
        self._end_epoch(trainer, pl_module, "train")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detach, log and keep the report."""
        self._end_epoch(trainer, pl_module, "validation")

    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure the forward passes of the step that follows."""
        if dataloader_idx == 0:
            self._start_batch(trainer, pl_module, batch, "test")

    on_test_batch_end = on_validation_batch_end

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detach, log and keep the report."""
        self._end_epoch(trainer, pl_module, "test")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave no hook behind, also after Ctrl-C."""
        self._detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave no hook behind."""
        self._detach()

    # ---------------------------------------------------------------- checkpoints

    @property
    def state_key(self) -> str:
        """What tells several of these callbacks apart in a checkpoint."""
        return self._generate_state_key(on=self.on, prefix=self.prefix)

    def state_dict(self) -> dict[str, Any]:
        """Return the reports as plain data."""
        return {"reports": {epoch: report.to_dict() for epoch, report in self.reports.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the reports of a `state_dict`."""
        reports = state_dict["reports"].items()
        self.reports = {epoch: LayerReport.from_dict(report) for epoch, report in reports}
