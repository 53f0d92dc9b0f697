"""Monitor: the layers of a model while it trains, from the forward passes that it makes anyway.

Between the steps that are measured there is no hook on the model and no state in memory: a step
that is not measured costs one comparison.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from deeprep.base import validate
from deeprep.probe.labelling import Labels
from deeprep.probe.layer_probe import LayerProbe
from deeprep.probe.layers import LayerSelector
from deeprep.probe.passes import Full
from deeprep.probe.reduce import Reduce
from deeprep.probe.sequences import Mask
from deeprep.report import LayerReport, ReportOptions
from deeprep.report.layer_metrics import ALWAYS, choose_metrics
from deeprep.report.options import ReportKeywords, report_options
from deeprep.state import ClassScatter

if TYPE_CHECKING:
    from typing_extensions import Unpack

_NOTHING: AbstractContextManager[None] = contextlib.nullcontext()
# Numbers in a state up to which a copy to the host is less than the launches of all that a metric
# consists of, each of which would take longer than the arithmetic.
_SMALL_STATE = 2**20


class Monitor:
    """Measures every n-th step of a training loop, from the forwards that the step itself makes.

    Wrap the forward of every step in `step`, and ask for a `report` after it::

        for inputs, labels in loader:
            with monitor.step(labels):
                loss = criterion(model(inputs), labels)
            loss.backward()
            ...
            if report := monitor.report():
                tracker.log(report.scalars())

    Steps 0, n, 2n, ... are measured, or of each the `window` that begins there. Hooks are on the
    model only while such a step runs, and states exist only from the first step of a window until
    its report, on the devices of the features. Nothing waits for a device before `report`.

    Parameters
    ----------
    model
        The module that the loop calls, DistributedDataParallel, torch.compile and FSDP included, or
        what is inside of it. A compiled model, given as the loop calls it, runs eagerly in the
        steps that are measured and is not compiled anew for it.
    num_classes
        K; with `labels` of tokens it need not be given.
    layers, reduce, full, ignore_index, labels
        See `LayerProbe`.
    every
        n: the number of steps from the beginning of a window to that of the next one.
    window
        Steps to measure together, at most n. Each is one batch, and most metrics need several
        samples of every class; but the weights change from step to step.
    all_reduce, group
        Merge the states of all processes of a torch.distributed group in `report`, which all of
        them must then call after the same step.
    options
        What to report and how; by default compression and discrimination alone, which cost least:
        ``metrics="auto"`` has all that the states allow.
    **changes
        Fields of `options` to change: weighting, corrected, jackknife, metrics, class_names.

    Raises
    ------
    ValueError, TypeError
        On arguments that do not fit, such as a DataParallel over several devices: the labels of a
        batch cannot be told apart for its replicas.

    Notes
    -----
    The model is measured as it trains: with dropout on, with the precision of autocast, with frozen
    layers and those in eval mode as they are. What activation checkpointing runs a second time in
    the backward pass is not taken in again.

    Examples
    --------
    >>> import torch, deeprep
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> monitor = deeprep.Monitor(model, num_classes=2, every=10)
    >>> curve = {}
    >>> for step in range(30):
    ...     labels = torch.arange(16) % 2
    ...     inputs = torch.randn(16, 4) + labels[:, None]
    ...     with monitor.step(labels):
    ...         loss = nn.functional.cross_entropy(model(inputs), labels)
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    ...     if report := monitor.report():
    ...         curve[step] = report.scalars()
    >>> list(curve)
    [0, 10, 20]
    >>> sorted(curve[20])[:2]
    ['deeprep/compression/1', 'deeprep/compression/input']
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int | None = None,
        layers: LayerSelector | Sequence[LayerSelector] | None = None,
        reduce: Reduce | None = None,
        *,
        every: int = 100,
        window: int = 1,
        full: Full = False,
        ignore_index: int = -100,
        labels: Labels = None,
        all_reduce: bool = False,
        group: Any = None,
        options: ReportOptions | None = None,
        **changes: Unpack[ReportKeywords],
    ) -> None:
        self.every = validate.check_positive("every", every)
        self.window = validate.check_positive("window", window)
        validate.require("window", window, window <= every, f"at most every, which is {every}")
        if options is None:
            options = ReportOptions(metrics=ALWAYS)
        self.options = report_options(options, **changes)
        choose_metrics(self.options.metrics, full=full is not False)
        self._probe = LayerProbe(
            model,
            num_classes,
            layers,
            reduce,
            full=full,
            ignore_index=ignore_index,
            labels=labels,
            classifier=None,  # the collapse needs what a model decides in eval mode
        )
        for module in model.modules():
            if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
                raise ValueError(
                    f"model is a DataParallel over {len(module.device_ids)} devices, expected one "
                    "device, or DistributedDataParallel"
                )
        self._model_name = type(model).__name__
        self._all_reduce, self._group = all_reduce, group
        self._next = 0  # the number of the next step, where none is given
        self._open: int | None = None  # number of the window that the states are of
        self._ended: int | None = None  # the last one that was reported
        self._is_complete = False

    def step(
        self, labels: Tensor, mask: Mask | None = None, *, number: int | None = None
    ) -> AbstractContextManager[None]:
        """Measure every forward of the model inside this context, if the step is one to measure.

        An exception inside drops the window, of which the layers may have seen different samples.

        Parameters
        ----------
        labels, mask
            Of the batch that the model is called with; see `LayerProbe.__call__`. For "next-token"
            the `input_ids`; see `LayerProbe.batch`.
        number
            Of the training step, from 0. By default every call is a step. Calls with one number
            are one step: the parts of a batch under gradient accumulation. Ask for the report after
            the last part, as parts that come after it are not measured. A loop that goes on from a
            checkpoint passes the number, to measure the same steps.

        Examples
        --------
        >>> import torch, deeprep
        >>> model = torch.nn.Linear(4, 2)
        >>> monitor = deeprep.Monitor(model, num_classes=2)
        >>> for part in torch.randn(2, 6, 4):
        ...     with monitor.step(torch.arange(6) % 2, number=0):
        ...         output = model(part)
        >>> monitor.report().num_samples
        12
        """
        if number is None:
            number = self._next
        else:
            is_whole = isinstance(number, int) and number >= 0
            validate.require("number", number, is_whole, "a whole number >= 0")
        if number < self._next - 1:  # counted anew, as from epoch to epoch
            self._forget()
            self._ended = None
        self._next = number + 1
        index, position = divmod(number, self.every)
        if position >= self.window:
            self._is_complete = self._open is not None
            return _NOTHING
        if index == self._ended:
            return _NOTHING
        return self._measure(labels, mask, index, position == self.window - 1)

    @contextlib.contextmanager
    def _measure(
        self, labels: Tensor, mask: Mask | None, index: int, is_last: bool
    ) -> Iterator[None]:
        if index != self._open:
            self._forget()
            self._open = index
        try:
            with self._probe, self._probe.batch(labels, mask):
                yield
        except BaseException:
            self._forget()
            raise
        self._is_complete |= is_last

    def report(self) -> LayerReport | None:
        """What the window that has just ended says of every layer; None where none has.

        A window is reported once, and only until the next one begins.

        Returns
        -------
        LayerReport, whose `scalars` go to a tracker; its `warnings` say what is not defined.

        Raises
        ------
        ValueError
            Where no layer ran in the window, and for labels on a GPU that are no classes.

        Examples
        --------
        >>> import torch, deeprep
        >>> model = torch.nn.Linear(4, 2)
        >>> monitor = deeprep.Monitor(model, num_classes=2, every=10, window=2)
        >>> told = []
        >>> for step in range(4):
        ...     with monitor.step(torch.arange(6) % 2):
        ...         output = model(torch.randn(6, 4))
        ...     told.append(monitor.report() is not None)
        >>> told
        [False, True, False, False]
        """
        if not self._is_complete:
            return None
        self._ended = self._open
        try:
            if self._all_reduce:
                self._probe.all_reduce(self._group)
            scatters = self._probe.scatters
            if not scatters:
                raise ValueError(
                    f"no layer of {self._model_name} ran inside monitor.step, expected its forward "
                    "there; one inside a compiled function or a CUDA graph calls no hooks"
                )
            self._probe.scatters = {name: _at_hand(s) for name, s in scatters.items()}
            return self._probe.report(self.options)
        finally:
            self._forget()

    def _forget(self) -> None:
        """Drop the states of the window, and their memory."""
        self._probe.scatters = {}
        self._open, self._is_complete = None, False


def _at_hand(s: ClassScatter) -> ClassScatter:
    """Return a small state in host memory, a large one where it is."""
    numbers = s.num_features * (s.num_classes + (s.num_features if s.full else 0))
    return s.to("cpu") if numbers <= _SMALL_STATE else s
