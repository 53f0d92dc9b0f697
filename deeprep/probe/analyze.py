"""analyze: every layer of a model on labelled data, in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from deeprep.base.ranks import Ranks
from deeprep.base.validate import check_positive
from deeprep.probe.classifier import ClassifierSelector
from deeprep.probe.evaluation import Progress, check_loader, check_not_empty, counting
from deeprep.probe.labelling import Labels
from deeprep.probe.layer_probe import LayerProbe
from deeprep.probe.layers import LayerSelector
from deeprep.probe.passes import Full
from deeprep.probe.reduce import Reduce
from deeprep.probe.scores import Ridge
from deeprep.probe.token_labels import TokenLabels, all_reduced, token_counts
from deeprep.probe.turns import layers_in_turns, one_report
from deeprep.report import LayerReport, ReportOptions
from deeprep.report.layer_metrics import choose_metrics
from deeprep.report.options import ReportKeywords, report_options

if TYPE_CHECKING:
    from typing_extensions import Unpack


def analyze(
    model: nn.Module,
    loader: Iterable[Any],
    num_classes: int | None = None,
    *,
    layers: LayerSelector | Sequence[LayerSelector] | None = None,
    reduce: Reduce | None = None,
    full: Full = False,
    accuracy: bool = False,
    test_loader: Iterable[Any] | None = None,
    ridge: Ridge | None = None,
    classifier: ClassifierSelector | None = "auto",
    options: ReportOptions | None = None,
    ignore_index: int = -100,
    all_reduce: bool = False,
    group: Any = None,
    progress: Progress = False,
    labels: Labels = None,
    max_memory: int | None = None,
    **changes: Unpack[ReportKeywords],
) -> LayerReport:
    """Measure every layer of a model on labelled data: C_l, D_l and, where asked for, more.

    The model runs in eval mode without gradients: once for all statistics, a second time for
    `accuracy`, which needs the finished statistics, and once over `test_loader`. Its training
    flags, the random states and its hooks are as before afterwards, also after an exception or
    Ctrl-C. These are the steps of a `LayerProbe`, which also keeps the states: `run`, `all_reduce`,
    `score`, `report`.

    Parameters
    ----------
    model
        Any torch module, see `LayerProbe`.
    loader
        (inputs, labels) batches, inputs being a tensor, a tuple of arguments or a mapping of named
        ones; or mappings that hold "labels" or "label" besides. Iterated twice for `accuracy`.
        Tensors are moved to the model's device. Of language models, see `labels`.
    num_classes
        K; may be left out with `labels` of tokens, whose classes then tell it.
    layers, reduce, ignore_index
        See `LayerProbe`.
    full
        Also the d x d scatter of every layer (of d <= 2048 where "auto"), for NC1, ranks and, with
        `accuracy`, the least-squares probe.
    accuracy
        Also report the training accuracy of the nearest class mean and of the least-squares probe,
        the directional CDNV, and NC4: one more forward pass.
    test_loader
        Batches like those of `loader`, of other samples: the report's `test` has every metric on
        them, with the accuracies of the means and probes that were fitted to `loader`. Iterated
        once.
    ridge
        Of the probe, see `metrics.probe`. "auto" chooses it, layer by layer, from the statistics of
        `loader` alone, see `metrics.choose_ridge`. Default: "auto" with `test_loader`, else 0.
    classifier
        Name or module of the model's own classifier; "auto" takes the Linear whose output is the
        model's. The report's `neural_collapse` has NC1 to NC4 of what enters it, NC1 with `full`,
        NC4 with `accuracy`, or says why not. None leaves them out.
    options
        What to report and how; default: ``ReportOptions()``.
    all_reduce
        Measure the data of all processes of the torch.distributed `group`, each giving its share;
        every one gets the same report.
    progress
        Show a bar on stderr if that is a terminal; or a function called after each batch with the
        number of batches done and their total, None where unknown.
    labels
        "next-token" for causal language models: every position is a sample whose class is the token
        after it. Or `TokenLabels`, to have the most frequent tokens as classes, or any others; see
        `LayerProbe`. The most frequent are counted in a pass over the loader of their own.
    max_memory
        Bytes that the states of the layers may take at once. Layers beyond are measured in turns,
        in as many passes over the loader as that takes. Default: all in one pass, or an error
        before anything is allocated where many classes take more than is free.
    **changes
        Fields of `ReportOptions` by name: weighting, corrected, jackknife, metrics, class_names,
        min_count.

    Returns
    -------
    LayerReport, layer 0 being the input; its `warnings` name layers that did not run or hold NaN.

    Raises
    ------
    ValueError, TypeError
        On an empty loader, on a one-shot one where it is iterated more than once, on a layer whose
        features do not fit, and for a `classifier` that is no module of the model.

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
    >>> test = [(torch.eye(3)[labels] + 0.1 * torch.randn(60, 3), labels)]
    >>> report = deeprep.analyze(model, [(inputs, labels)], 3, full=True, test_loader=test)
    >>> report.test.layers[1].probe_accuracy, report.neural_collapse.classifier
    (1.0, '2')
    """
    options = report_options(options, **changes)
    choose_metrics(options.metrics, full=full is not False)
    if max_memory is not None:
        check_positive("max_memory", max_memory)
    in_turns = {"leave out max_memory": max_memory is not None}
    passes = [loader] * (1 + accuracy)
    if test_loader is not None:
        check_loader(test_loader, in_turns, "test_loader")
        if not all_reduce:  # a process may well have no share
            check_not_empty(test_loader, "test_loader")
        passes.append(test_loader)
        ridge = "auto" if ridge is None else ridge
    to_count = isinstance(labels, TokenLabels) and labels.needs_counts
    again = {"pass accuracy=False": accuracy, "give the labels their counts": to_count, **in_turns}
    check_loader(loader, again)
    if isinstance(labels, TokenLabels) and labels.most_frequent is not None:
        if to_count:
            counts = token_counts(loader, labels.which, ignore_index=ignore_index)
            counts = all_reduced(counts, group) if all_reduce else counts
            if not counts.any():
                raise ValueError(
                    f"loader gave no position with a {labels.which.replace('-', ' ')}, expected "
                    "one at least"
                )
            labels = replace(labels, counts=counts)
        if options.class_names is None:
            options = replace(
                options, class_names=[f"token {t}" for t in labels.class_tokens.tolist()]
            )
    probe = LayerProbe(
        model,
        num_classes,
        layers,
        reduce,
        full=full,
        ignore_index=ignore_index,
        labels=labels,
        classifier=classifier,
    )
    turns: list[list[str] | None] = [None]  # all layers at once
    if max_memory is not None:
        turns = _turns(probe, loader, max_memory, all_reduce, group)
    reports = []
    with counting(progress, *passes * len(turns)) as advance:
        for turn in turns:
            if turn is not None:
                probe.start_turn(turn)
            probe.run(loader, progress=lambda *_: advance())
            if all_reduce:
                probe.all_reduce(group)
            for batches, test in zip(passes[1:], [False] * accuracy + [True], strict=False):
                scores = probe.score(batches, lambda *_: advance(), test=test, ridge=ridge)
                if all_reduce:
                    scores.all_reduce(group)
            reports.append(probe.report(options))
    return one_report(reports)


def _turns(
    probe: LayerProbe, loader: Iterable[Any], max_memory: int, all_reduce: bool, group: Any
) -> list[list[str] | None]:
    """The layers of each pass, in all processes those of the first that has a batch."""
    sizes = next((probe.layer_sizes(batch) for batch in loader), {})
    if all_reduce:
        found = Ranks.of(group, "analyze").gather(sizes)
        sizes = next((each for each in found if each), {})
    if not sizes:  # no batch, or no layer that ran: the report will say so
        return [None]
    first, *others = layers_in_turns(probe.num_classes, sizes, max_memory)
    # The first report also names those that did not run.
    return [first + [name for name in probe.silent_layers if name not in sizes], *others]
