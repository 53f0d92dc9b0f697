"""analyze: every layer of a model on labelled data, in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from deeprep.probe.evaluation import Progress, check_loader, counting
from deeprep.probe.layer_probe import Full, LayerProbe
from deeprep.probe.layers import LayerSelector
from deeprep.probe.reduce import Reduce
from deeprep.report import LayerReport, ReportOptions
from deeprep.report.layer_metrics import choose_metrics
from deeprep.report.options import ReportKeywords, report_options

if TYPE_CHECKING:
    from typing_extensions import Unpack


def analyze(
    model: nn.Module,
    loader: Iterable[Any],
    num_classes: int,
    *,
    layers: LayerSelector | Sequence[LayerSelector] | None = None,
    reduce: Reduce = "flatten",
    full: Full = False,
    accuracy: bool = False,
    options: ReportOptions | None = None,
    ignore_index: int = -100,
    all_reduce: bool = False,
    group: Any = None,
    progress: Progress = False,
    **changes: Unpack[ReportKeywords],
) -> LayerReport:
    """Measure every layer of a model on labelled data: C_l, D_l and, where asked for, more.

    The model runs in eval mode without gradients: once for all statistics, and a second time for
    `accuracy`, which needs the finished statistics. Its training flags, the random states and its
    hooks are as before afterwards, also after an exception or Ctrl-C. These are the steps of a
    `LayerProbe`, which also keeps the states: `run`, `all_reduce`, `score`, `report`.

    Parameters
    ----------
    model
        Any torch module, see `LayerProbe`.
    loader
        (inputs, labels) batches, inputs being a tensor, a tuple of arguments or a mapping of named
        ones; or mappings that hold "labels" or "label" besides. Iterated twice for `accuracy`.
        Tensors are moved to the model's device.
    num_classes
        K.
    layers, reduce, ignore_index
        See `LayerProbe`.
    full
        Also the d x d scatter of every layer (of d <= 2048 where "auto"), for NC1, ranks and, with
        `accuracy`, the least-squares probe.
    accuracy
        Also report the training accuracy of the nearest class mean and of the least-squares probe,
        and the directional CDNV: one more forward pass.
    options
        What to report and how; default: ``ReportOptions()``.
    all_reduce
        Measure the data of all processes of the torch.distributed `group`, each giving its share;
        every one gets the same report.
    progress
        Show a bar on stderr if that is a terminal; or a function called after each batch with the
        number of batches done and their total, None where unknown.
    **changes
        Fields of `ReportOptions` by name: weighting, corrected, jackknife, metrics, class_names,
        min_count.

    Returns
    -------
    LayerReport, layer 0 being the input; its `warnings` name layers that did not run or hold NaN.

    Raises
    ------
    ValueError, TypeError
        On an empty or one-shot loader, and on a layer whose features do not fit.

    Examples
    --------
    >>> import torch, deeprep
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> labels = torch.arange(60) % 3
    >>> inputs = torch.eye(3)[labels] + 0.1 * torch.randn(60, 3)
    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> report = deeprep.analyze(model, [(inputs, labels)], num_classes=3, accuracy=True)
    >>> [layer.name for layer in report.layers], report.layers[0].ncc_accuracy
    (['input', '1'], 1.0)
    """
    options = report_options(options, **changes)
    choose_metrics(options.metrics, full=full is not False)
    check_loader(loader, passes=1 + accuracy)
    probe = LayerProbe(model, num_classes, layers, reduce, full=full, ignore_index=ignore_index)
    with counting(progress, loader, 1 + accuracy) as advance:
        probe.run(loader, progress=lambda *_: advance())
        if all_reduce:
            probe.all_reduce(group)
        if accuracy:
            scores = probe.score(loader, progress=lambda *_: advance())
            if all_reduce:
                scores.all_reduce(group)
    return probe.report(options)
