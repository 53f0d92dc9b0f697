"""Layer metrics in the logs of a Hugging Face Trainer, from the batches it runs anyway."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, cast

from torch import Tensor, nn

from deeprep.base import validate
from deeprep.probe import Monitor
from deeprep.probe.labelling import Labels
from deeprep.probe.layers import LayerSelector
from deeprep.probe.reduce import Reduce
from deeprep.report import LayerReport, ReportOptions
from deeprep.report.options import ReportKeywords
from deeprep.report.scalars import check_prefix

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments
    from typing_extensions import Unpack

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError(
        "deeprep.integrations.transformers needs transformers: pip install 'deeprep[transformers]'"
    ) from error

__all__ = ["DeeprepCallback"]

Stage = Literal["train", "evaluation"]


class DeeprepCallback(TrainerCallback):
    """Measure the layers of the model that a Trainer trains, and log them through the Trainer.

    The features are those of the forward passes that the Trainer makes; there is no second one.
    Values go through `Trainer.log`, so they are in ``trainer.state.log_history`` and in every
    tracker of ``report_to``, under the names of `LayerReport.scalars`.

    Parameters
    ----------
    trainer
        The Trainer that the callback is added to. It is needed because only a Trainer can log, and
        because the labels of a batch are seen where it computes the loss, also with label smoothing
        or a loss function of one's own.
    num_classes
        K; with `labels` of tokens it need not be given.
    layers, reduce, full, ignore_index, labels
        See `deeprep.LayerProbe`. The mean over the tokens is the default of `reduce` here. With
        labels="next-token" the tokens are the batch's "labels", as of the loss: a prompt that they
        leave out is not measured.
    on
        "train", or "evaluation" for the batches of each evaluation during training, in eval mode:
        these are logged under ``eval_deeprep/...``, after what `evaluate` itself logs. Of many
        processes some may be given a few samples twice, for all to have as many: they count twice.
    every, window
        Training steps to measure, see `deeprep.Monitor`. Every evaluation is measured, as a whole.
        Under gradient accumulation a step is all of its batches.
    labels_of
        Batch -> labels; default: what the batch holds as "labels".
    prefix
        Put before all names.
    options
        What to report and how; by default compression and discrimination.
    **changes
        Fields of `options` to change: weighting, corrected, jackknife, metrics, class_names.

    Attributes
    ----------
    report
        The last LayerReport; None before the first.

    Raises
    ------
    ValueError, TypeError
        On arguments that do not fit and, once training runs, on batches without labels and
        evaluations in which the Trainer computes no loss.

    Examples
    --------
    >>> from deeprep.integrations.transformers import DeeprepCallback
    >>> def watch(trainer, num_classes):
    ...     trainer.add_callback(DeeprepCallback(trainer, num_classes, every=50))
    """

    def __init__(
        self,
        trainer: Trainer,
        num_classes: int | None = None,
        layers: LayerSelector | Sequence[LayerSelector] | None = None,
        reduce: Reduce | None = None,
        *,
        on: Stage = "train",
        every: int = 100,
        window: int = 1,
        full: bool | Literal["auto"] = False,
        ignore_index: int = -100,
        labels: Labels = None,
        labels_of: Callable[[Any], Tensor] | None = None,
        prefix: str = "deeprep/",
        options: ReportOptions | None = None,
        **changes: Unpack[ReportKeywords],
    ) -> None:
        validate.require("on", repr(on), on in ("train", "evaluation"), "'train' or 'evaluation'")
        check_prefix(prefix)
        self.on, self.prefix = on, prefix
        self.labels_of = _labels_of if labels_of is None else labels_of
        self.report: LayerReport | None = None
        self._trainer = trainer
        # Every batch of an evaluation has its number, so an evaluation is one step.
        steps = {"every": every, "window": window} if on == "train" else {"every": 1}
        self._options: dict[str, Any] = {
            "num_classes": num_classes,
            "layers": layers,
            "reduce": "mean" if reduce is None and labels is None else reduce,
            "full": full,
            "ignore_index": ignore_index,
            "labels": labels,
            "options": options,
            **steps,
            **changes,
        }
        Monitor(cast("nn.Module", trainer.model), **self._options)  # raises now what does not fit
        self._is_training = False
        self._monitor: Monitor | None = None
        self._evaluations = 0
        self._watch(trainer)

    def _watch(self, trainer: Trainer) -> None:
        """See every batch with the labels that the loss is computed from."""
        compute_loss = trainer.compute_loss

        @functools.wraps(compute_loss)
        def watched(model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            with self._step(model, inputs):
                return compute_loss(model, inputs, *args, **kwargs)

        trainer.compute_loss = watched  # type: ignore[method-assign]

    def _step(self, model: nn.Module, inputs: Any) -> AbstractContextManager[None]:
        if not self._is_training or model.training != (self.on == "train"):
            return nullcontext()
        if self._monitor is None:
            # Of the model that is called: it may be compiled or parallel.
            merged = self._trainer.args.world_size > 1
            self._monitor = Monitor(model, all_reduce=merged, **self._options)
        steps = self._trainer.state.global_step
        number = steps if self.on == "train" else self._evaluations
        return self._monitor.step(self.labels_of(inputs), number=number)

    def _log(self, control: TrainerControl, prefix: str) -> bool:
        """Log what was measured, if anything was."""
        report = None if self._monitor is None else self._monitor.report()
        if report is None:
            return False
        self.report = report
        # Logging clears the flag, and with it the Trainer's own values of this step.
        should_log = control.should_log
        self._trainer.log(report.scalars(prefix))
        control.should_log = should_log
        return True

    # ---------------------------------------------------------------- the Trainer's events

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to measure."""
        self._is_training, self._monitor, self._evaluations = True, None, 0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log a window of steps that has ended."""
        if self.on == "train":
            self._log(control, self.prefix)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log what was measured in an evaluation."""
        if self.on != "evaluation" or not self._is_training:
            return
        # Of several evaluation sets each has a name, as in "eval_matched_runtime"; what a
        # compute_metrics adds may end alike, but is longer.
        times = [name for name in metrics or {} if name.endswith("_runtime")]
        stem = min(times, key=len).removesuffix("runtime") if times else "eval_"
        if not self._log(control, f"{stem}{self.prefix}"):
            raise ValueError(
                "no batch of the evaluation was measured, expected the Trainer to call "
                "compute_loss with each; it does not for batches without labels, nor does a "
                "Seq2SeqTrainer that generates"
            )
        self._evaluations += 1

    def on_predict(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """Forget the batches of `Trainer.predict`, which are of no evaluation."""
        self._evaluations += 1

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure no more."""
        self._is_training, self._monitor = False, None


def _labels_of(batch: Any) -> Any:
    found = list(batch) if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
    holds = isinstance(batch, Mapping) and batch.get("labels") is not None
    validate.require("batch", found, holds, "a mapping with 'labels'; or pass labels_of")
    return batch["labels"]
