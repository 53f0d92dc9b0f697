"""LayerProbe and analyze: class-scatter statistics of every layer while a model runs once.

Forward hooks reduce each layer's output to (N, d) and feed it to that layer's ClassScatter at
once; no feature map outlives its update, so memory is K*d (plus d*d) a layer, never N*d.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

from torch import Tensor, nn

from deeprep.base import validate
from deeprep.probe.evaluation import Progress, counting, evaluation_mode, split_batch
from deeprep.probe.hooks import INPUT, LayerHooks
from deeprep.probe.layers import LayerSelector
from deeprep.probe.reduce import Reduce
from deeprep.probe.scores import Scores
from deeprep.report import LayerReport, LayerScores
from deeprep.report.layer_metrics import Metrics
from deeprep.state import ClassScatter, Weighting

FULL_UP_TO = 2048  # features: beyond, full="auto" finds the d x d scatter not worth its memory

Full = bool | Literal["auto"]


class LayerProbe:
    """One ClassScatter per layer, filled while the model runs; a context manager.

    Layers appear in the order in which they run; a module that runs again within one forward is
    another layer, "relu#2". Layer 0, "input", is the input itself or, where that is integer ids,
    the output of their embedding: of the first module to run that holds an nn.Embedding and no
    other weight matrix, such as BERT's `embeddings`, with positions and normalisation.

    On leaving the context every hook is removed, whatever happened inside. A batch that fails in a
    layer (a width or a mask that does not fit) has been taken in by the layers that ran before it;
    labels are checked before the model runs, but those on a GPU, see `ClassScatter`.

    Parameters
    ----------
    model
        Any torch module. Of DataParallel, DistributedDataParallel and torch.compile the module
        inside is run, eagerly, and names are its own; FSDP modules run as they are, and so need the
        same number of batches on every rank. While a batch is measured, compiled code and PyTorch's
        fused transformer layers are not used: neither calls hooks.
    num_classes
        K.
    layers
        Names, globs or types of modules; None or "auto" chooses (see `automatic_layers` in
        deeprep/probe/layers.py): blocks of a deep model, the layers of a plain stack.
    reduce
        How outputs become rows, for all layers or as a mapping of globs of layer names to one of
        these, the first match counting and "flatten" holding for the rest:

        - "flatten": every number of the sample (a channels_last map is copied, in parts);
        - "mean": over the tokens of (N, T, C), where the mask holds if there is one; over all but
          N and C of (N, C, H, W) and (N, C, T, H, W), and of (N, H, W, C) where the module's
          own LayerNorm or Linear says that the last axis has the channels, as in Swin;
        - "cls", "last": the first, and the last token where the mask holds, of (N, T, C);
        - "tokens": every token and every position a sample; labels (N,) hold for all of a sample,
          or are (N, T), (N, H, W), those of positions to skip being `ignore_index`;
        - a function (N, ...) -> (N, d).

        Outputs (N, d) pass the named ones unchanged. Layer 0 follows a mapping, "tokens", and where
        it is a sequence of embeddings any of them; an image or a vector is otherwise flattened.
    full
        Also accumulate d x d scatters, for NC1, ranks and the least-squares probe; "auto" does so
        for d <= 2048.
    ignore_index
        Label of samples to skip.

    Attributes
    ----------
    scatters
        Dict of layer name -> ClassScatter.

    Raises
    ------
    ValueError, TypeError
        Where `layers` or a glob of `reduce` matches nothing, or a layer's features do not fit,
        naming the layer.

    Examples
    --------
    >>> import torch, deeprep
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> with deeprep.LayerProbe(model, num_classes=2) as probe:
    ...     for _ in range(3):
    ...         outputs = probe(torch.randn(16, 4), torch.arange(16) % 2)
    >>> {name: s.num_samples for name, s in probe.scatters.items()}
    {'input': 48, '1': 48}
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        layers: LayerSelector | Sequence[LayerSelector] | None = None,
        reduce: Reduce = "flatten",
        *,
        full: Full = False,
        ignore_index: int = -100,
    ) -> None:
        if full not in (True, False, "auto"):
            raise ValueError(f"full is {full!r}, expected True, False or 'auto'")
        self.num_classes = validate.check_positive("num_classes", num_classes)
        self.full = full
        self.ignore_index = ignore_index
        self.scatters: dict[str, ClassScatter] = {}
        self._hooks = LayerHooks(
            model,
            layers,
            reduce,
            self._update,
            num_classes=self.num_classes,
            ignore_index=ignore_index,
        )

    def __enter__(self) -> LayerProbe:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)

    def __call__(self, inputs: Any, labels: Tensor, mask: Tensor | None = None) -> Any:
        """Run the model on one batch, take in every layer, and return the model's output.

        Parameters
        ----------
        inputs
            A tensor, a tuple or list of arguments, or a mapping of named ones; tensors are moved to
            the device of the model's first parameter.
        labels
            int32/int64 (N,) in [0, K) or `ignore_index`; for "tokens" also one a position.
        mask
            (N, T) bool or integer, nonzero where there is a token; default: `attention_mask` of a
            mapping. A sample without a token is skipped.
        """
        return self._hooks.run(inputs, labels, mask)

    def batch(self, labels: Tensor, mask: Tensor | None = None) -> AbstractContextManager[None]:
        """Take in every forward of the model inside this context, with these labels.

        For loops that call the model themselves. Without a forward of the model itself, only of
        parts of it, there is no layer 0.

        Examples
        --------
        >>> import torch, deeprep
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> with deeprep.LayerProbe(model, num_classes=2) as probe:
        ...     with probe.batch(torch.tensor([0, 1, 1])):
        ...         loss = model(torch.randn(3, 4)).sum()
        >>> probe.scatters["0"].num_samples
        3
        """
        return self._hooks.batch(labels, mask)

    @property
    def silent_layers(self) -> list[str]:
        """Layers that were chosen and have not run, or whose input was nothing to measure."""
        return [name for name in self._hooks.names if name not in self.scatters]

    def all_reduce(self, group: Any = None) -> None:
        """Merge the states of all processes of a torch.distributed group, layer by layer.

        All of them must call it; one that has seen no batch gets every layer all the same.

        Raises
        ------
        ValueError
            In every process, where the layers of some do not fit together.
        """
        from deeprep.state import all_reduce_layers

        self.scatters = all_reduce_layers(self.scatters, group)

    def _update(self, layer: str, features: Tensor, labels: Tensor) -> None:
        scatter = self.scatters.get(layer)
        if scatter is None:
            validate.check_batch(features, labels)
            width = features.shape[1]
            scatter = self.scatters[layer] = ClassScatter(
                self.num_classes,
                width,
                full=width <= FULL_UP_TO if self.full == "auto" else self.full,
                device=features.device,
                ignore_index=self.ignore_index,
            )
        elif features.shape[1] != scatter.num_features:
            raise ValueError(
                f"features have width {features.shape[1]}, expected {scatter.num_features} as in "
                "earlier batches; for inputs of varying size reduce this layer by 'mean'"
            )
        scatter.update(features, labels)


def analyze(
    model: nn.Module,
    loader: Iterable[Any],
    num_classes: int,
    *,
    layers: LayerSelector | Sequence[LayerSelector] | None = None,
    reduce: Reduce = "flatten",
    full: Full = False,
    accuracy: bool = False,
    weighting: Weighting = "uniform",
    corrected: bool = False,
    jackknife: bool = False,
    class_names: Sequence[str] | None = None,
    metrics: Metrics = "auto",
    ignore_index: int = -100,
    all_reduce: bool = False,
    group: Any = None,
    progress: Progress = False,
) -> LayerReport:
    """Measure every layer of a model on labelled data: C_l, D_l and, where asked for, more.

    The model runs in eval mode without gradients: once for all statistics, and a second time for
    `accuracy`, which needs the finished statistics. Its training flags, the random states and its
    hooks are as before afterwards, also after an exception or Ctrl-C.

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
    weighting
        Of Sigma_B's classes, "uniform" (the paper's) or "prior".
    corrected
        Take off Sigma_B what its estimate from finite samples adds, see
        `ClassScatter.trace_between`.
    jackknife
        Also standard errors, by leaving out one class at a time.
    class_names
        K names, for tables and figures.
    metrics
        Which metrics of the states to compute, see `LayerReport.from_scatters`.
    all_reduce
        Measure the data of all processes of the torch.distributed `group`, each giving its share;
        every one gets the same report.
    progress
        Show a bar on stderr if that is a terminal; or a function called after each batch with the
        number of batches done and their total, None where unknown.

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
    if accuracy and hasattr(loader, "__next__"):
        raise ValueError(
            "loader is a one-shot iterator, expected an iterable that can be run through twice "
            "(a list or a DataLoader); or pass accuracy=False"
        )
    probe = LayerProbe(model, num_classes, layers, reduce, full=full, ignore_index=ignore_index)
    with evaluation_mode(model), counting(progress, loader, 1 + accuracy) as advance:
        with probe:
            for batch in loader:
                probe(*split_batch(batch))
                advance()
        silent = probe.silent_layers
        if all_reduce:
            probe.all_reduce(group)
        if not probe.scatters:
            raise ValueError("loader gave no batch, or none in which a layer ran")
        scores: Mapping[str, LayerScores] | None = None
        if accuracy:
            scorer = Scores(probe.scatters)
            hooks = LayerHooks(
                model,
                layers,
                reduce,
                scorer.update,
                num_classes=num_classes,
                ignore_index=ignore_index,
            )
            with hooks:
                for batch in loader:
                    hooks.run(*split_batch(batch), mask=None)
                    advance()
            if all_reduce:
                scorer.all_reduce(group)
            scores = scorer.result()
    report = LayerReport.from_scatters(
        probe.scatters,
        scores,
        weighting=weighting,
        corrected=corrected,
        jackknife=jackknife,
        class_names=class_names,
        metrics=metrics,
    )
    notes = [_why_silent(name) for name in silent if name not in probe.scatters]
    return dataclasses.replace(report, warnings=[*notes, *report.warnings])


def _why_silent(layer: str) -> str:
    if layer == INPUT:
        return f"layer {layer!r}: the inputs hold no floating-point tensor and no embedding ran"
    return f"layer {layer!r}: did not run"
