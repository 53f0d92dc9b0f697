"""LayerProbe: class-scatter statistics of every layer while a model runs once.

Forward hooks reduce each layer's output to (N, d) and feed it to that layer's ClassScatter at
once; no feature map outlives its update, so memory is K*d (plus d*d) a layer, never N*d.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from deeprep.probe.classifier import Classifier, ClassifierSelector
from deeprep.probe.collapse import CollapseProbe
from deeprep.probe.evaluation import Progress
from deeprep.probe.hooks import LayerHooks
from deeprep.probe.labelling import Labelling, Labels
from deeprep.probe.layers import LayerSelector
from deeprep.probe.passes import Full, NewStates, Passes, check_full
from deeprep.probe.reduce import Reduce
from deeprep.probe.reporting import report_of, why_silent
from deeprep.probe.scores import Ridge, Scores
from deeprep.probe.sequences import Mask
from deeprep.probe.turns import LayerSize
from deeprep.report import LayerReport, ReportOptions
from deeprep.report.options import ReportKeywords, report_options
from deeprep.state import ClassScatter

if TYPE_CHECKING:
    from typing_extensions import Unpack


class LayerProbe:
    """One ClassScatter per layer, filled while the model runs.

    `run` takes in a loader in one pass, `score` what a second pass over it or one over test data
    tells, and `report` says what was found. In your own loop the probe is a context manager:
    `probe(inputs, labels)` runs the model on a batch, `probe.batch(labels)` watches it run.

    Layers appear in the order in which they run; a module that runs again within one forward is
    another layer, "relu#2". Layer 0, "input", is the input itself or, where that is integer ids,
    the output of their embedding: of the first module to run that holds an nn.Embedding and no
    other weight matrix, such as BERT's `embeddings`, with positions and normalisation.

    On leaving the context every hook is removed, whatever happened inside. A batch that fails in a
    layer (a width or a mask that does not fit) has been taken in by the layers that ran before it;
    labels are checked before the model runs, except those on a GPU: see `ClassScatter`.

    Parameters
    ----------
    model
        Any torch module. Of DataParallel, DistributedDataParallel and torch.compile the module
        inside is run, eagerly, and names are its own; FSDP modules run as they are, and so need the
        same number of batches on every rank. While a batch is measured, compiled code and PyTorch's
        fused transformer layers are not used: neither calls hooks.
    num_classes
        K; with `labels` of tokens it need not be given.
    layers
        Names, globs or types of modules; None or "auto" chooses (see `automatic_layers` in
        deeprep/probe/layers.py): blocks of a deep model, the layers of a plain stack.
    reduce
        How outputs become rows, for all layers or as a mapping of globs of layer names to one of
        these, the first match counting and "flatten" holding for the rest, as it does by default:

        - "flatten": every number of the sample (a channels_last map is copied, in parts);
        - "mean": over the tokens of (N, T, C), where the mask holds if there is one; over all but
          N and C of (N, C, H, W) and (N, C, T, H, W), and of (N, H, W, C) where the module's
          own LayerNorm or Linear says that the last axis has the channels, as in Swin;
        - "cls", "last": the first, and the last token where the mask holds, of (N, T, C);
        - "tokens": every token and every position a sample; labels (N,) hold for all of a sample,
          or are (N, T), (N, H, W), those of positions to skip being `ignore_index`;
        - a function (N, ...) -> (N, d).

        The named ones leave outputs (N, d) as they are. Layer 0 is flattened where it is an image
        or a vector, unless `reduce` is "tokens" or a mapping; a sequence of embeddings is reduced
        like any other layer.
    full
        Also accumulate d x d scatters, for NC1, ranks and the least-squares probe; "auto" does so
        for d <= 2048.
    ignore_index
        Label of samples to skip.
    labels
        None for the labels of the loader. "next-token" for causal language models: of each
        position, the token after it in `input_ids`, by which `reduce` is "tokens"; labels of the
        loader are not needed, and may be the `input_ids`, as collators make them, or these shifted
        by one. "current-token": the token of the position itself. `TokenLabels` chooses which
        tokens are a class, and says which positions are left out.
    classifier
        Name or module of the model's own classifier, whose input `run` measures too, for the
        report's `neural_collapse`; "auto" finds the Linear (or convolution of single positions)
        whose output is the model's; None measures none.

    Attributes
    ----------
    scatters
        Dict of layer name -> ClassScatter.
    scores, test_scores
        The `Scores` of the second pass, and of the test data; None before, and again once a new
        batch has changed the states.

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
    >>> loader = [(torch.randn(16, 4), torch.arange(16) % 2) for _ in range(3)]
    >>> probe = deeprep.LayerProbe(model, num_classes=2)
    >>> probe.run(loader)
    >>> {name: s.num_samples for name, s in probe.scatters.items()}
    {'input': 48, '1': 48}
    >>> scores = probe.score(loader)
    >>> report = probe.report(class_names=["cat", "dog"])
    >>> report.layers[1].compression > 0, report.layers[1].ncc_accuracy > 0.5
    (True, True)

    In your own loop, such as one that trains:

    >>> with deeprep.LayerProbe(model, num_classes=2) as probe:
    ...     for inputs, labels in loader:
    ...         loss = nn.functional.cross_entropy(probe(inputs, labels), labels)
    >>> probe.scatters["1"].num_samples
    48
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int | None = None,
        layers: LayerSelector | Sequence[LayerSelector] | None = None,
        reduce: Reduce | None = None,
        *,
        full: Full = False,
        ignore_index: int = -100,
        labels: Labels = None,
        classifier: ClassifierSelector | None = "auto",
    ) -> None:
        check_full(full)
        self._labelling = Labelling(model, labels, num_classes, ignore_index)
        self.num_classes = self._labelling.num_classes
        self.full = full
        self.ignore_index = ignore_index
        self.scatters: dict[str, ClassScatter] = {}
        self.scores: Scores | None = None
        self.test_scores: Scores | None = None
        self._states = NewStates(self.num_classes, full, ignore_index)
        self._hooks = LayerHooks(
            model,
            layers,
            self._labelling.reduction(reduce),
            num_classes=self.num_classes,
            ignore_index=ignore_index,
        )
        self._collapse = CollapseProbe(
            Classifier(model, classifier, self.num_classes, ignore_index), self._states.make
        )
        self._passes = Passes(model, self._hooks, self._labelling, self._collapse, self._states)

    def __enter__(self) -> LayerProbe:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)

    def __call__(self, inputs: Any, labels: Tensor | None, mask: Mask | None = None) -> Any:
        """Run the model on one batch, take in every layer, and return the model's output.

        Parameters
        ----------
        inputs
            A tensor, a tuple or list of arguments, or a mapping of named ones; tensors are moved to
            the device of the model's first parameter.
        labels
            int32/int64 (N,) in [0, K) or `ignore_index`; for "tokens" also one a position. Of
            "next-token", None or what the loader has.
        mask
            (N, T) bool or integer, nonzero where there is a token; default: `attention_mask` of a
            mapping. A sample without a token is skipped. An encoder-decoder model has two, each for
            the layers that run on its tokens: a pair (encoder's, decoder's) of which either may be
            None; default: `attention_mask` and `decoder_attention_mask`. One mask is the encoder's,
            and also the decoder's where the model is called without an input for its decoder. If
            there is only a decoder, one mask is the decoder's.
        """
        targets = self._labelling.targets(inputs, labels, mask)
        self._collapse.is_whole = False
        return self._hooks.run(inputs, targets, mask, self._update)

    def batch(self, labels: Tensor, mask: Mask | None = None) -> AbstractContextManager[None]:
        """Take in every forward of the model inside this context, with these labels.

        For loops that call the model themselves. Without a forward of the model itself, only of
        parts of it, there is no layer 0. For "next-token" the labels are the `input_ids`, with
        `ignore_index` in places or not, and need their mask.

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
        targets = self._labelling.of_ids(labels, mask)
        check = partial(self._labelling.check, labels=labels, mask=mask)
        self._collapse.is_whole = False
        return self._hooks.batch(targets, mask, self._update, check)

    def run(self, loader: Iterable[Any], progress: Progress = False) -> None:
        """Run the model over a loader and take in every layer of every batch: one pass.

        In eval mode and without gradients. Training flags, random states and hooks are afterwards
        as before, also after an exception or Ctrl-C. A further call goes on where this one ended.

        Parameters
        ----------
        loader
            (inputs, labels) batches, as `__call__` takes them, or mappings that hold "labels" or
            "label" besides the inputs. With `labels` of tokens, also mappings without them, and
            bare tensors of token ids.
        progress
            Show a bar on stderr if that is a terminal; or a function called after each batch with
            the number of batches done and their total, None where unknown.

        Raises
        ------
        ValueError, TypeError
            For what is no loader of batches, a layer whose features do not fit, and labels of
            positions that are the `input_ids`, unless `labels` says what is meant.
            For many classes, where the states take more memory than is free: before any of them is
            allocated. That takes a run on one batch; states of more than 1 GiB are warned of.

        Examples
        --------
        >>> import torch, deeprep
        >>> probe = deeprep.LayerProbe(torch.nn.Linear(4, 2), num_classes=2)
        >>> probe.run([(torch.randn(6, 4), torch.arange(6) % 2)])
        >>> probe.scatters["input"].num_samples
        6
        """
        self._passes.run(loader, progress, self._update, self.scatters)

    def score(
        self,
        loader: Iterable[Any],
        progress: Progress = False,
        *,
        test: bool = False,
        ridge: Ridge | None = None,
    ) -> Scores:
        """Run the model once more: probe and nearest-mean accuracy and directional CDNV.

        They need the finished states, so `run`, and `all_reduce` where there are many processes,
        come before. Of many processes the counts are then added up by `Scores.all_reduce`.

        Parameters
        ----------
        loader, progress
            See `run`.
        test
            `loader` gives test data: means and probe are those of `run`, and the report shows the
            scores beside those of the training data, and C_l, D_l and the rest of the test data's
            own states.
        ridge
            Of the probe; "auto": chosen from the states of `run`, see `metrics.choose_ridge`.
            Default: "auto" for test data, else 0, which is least squares.

        Returns
        -------
        Scores, kept as `scores` or `test_scores` too; a further call adds to it.

        Raises
        ------
        ValueError, TypeError
            Before any layer was taken in, and as of `run`.

        Examples
        --------
        >>> import torch, deeprep
        >>> loader = [(torch.eye(4), torch.tensor([0, 0, 1, 1]))]
        >>> probe = deeprep.LayerProbe(torch.nn.Linear(4, 2), num_classes=2)
        >>> probe.run(loader)
        >>> probe.score(loader).result()["input"].ncc_accuracy
        1.0
        >>> test_loader = [(torch.eye(4).flip(0), torch.tensor([0, 1, 0, 0]))]
        >>> probe.score(test_loader, test=True).result()["input"].ncc_accuracy
        0.75
        """
        self._require_layers()
        field = "test_scores" if test else "scores"
        scores: Scores | None = getattr(self, field)
        if scores is None:
            ridge = ridge if ridge is not None else "auto" if test else 0.0
            scores = Scores(self.scatters, ridge=ridge, test=test, entering=self._collapse.state)
        setattr(self, field, None)  # there are none of a pass that ended halfway
        name = "test_loader" if test else "loader"
        self._passes.run(loader, progress, scores.update, self.scatters, scores, name)
        setattr(self, field, scores)
        return scores

    def report(
        self, options: ReportOptions | None = None, **changes: Unpack[ReportKeywords]
    ) -> LayerReport:
        """What the states, and the scores if there are any, say of every layer.

        Parameters
        ----------
        options
            What to report and how; default: ``ReportOptions()``.
        **changes
            Fields of `options` to change: weighting, corrected, jackknife, metrics, class_names,
            min_count.

        Returns
        -------
        LayerReport; its `warnings` name the layers that did not run, too.

        Raises
        ------
        ValueError, TypeError
            Before any layer was taken in, and for options that do not fit the states.

        Examples
        --------
        >>> import torch, deeprep
        >>> probe = deeprep.LayerProbe(torch.nn.Linear(4, 2), num_classes=2)
        >>> probe.run([(torch.eye(4), torch.tensor([0, 0, 1, 1]))])
        >>> probe.report(weighting="prior").layers[0].discrimination
        1.0
        """
        self._require_layers()
        return report_of(
            self.scatters,
            self.scores,
            self.test_scores,
            self._collapse,
            report_options(options, **changes),
            [*self._labelling.notes, *map(why_silent, self.silent_layers)],
        )

    @property
    def silent_layers(self) -> list[str]:
        """Layers that were chosen and have not run, or whose input was nothing to measure."""
        turn = self._hooks.only
        chosen = [name for name in self._hooks.names if turn is None or name in turn]
        return [name for name in chosen if name not in self.scatters]

    def layer_sizes(self, batch: Any) -> dict[str, LayerSize]:
        """What the states of the layers will be, in their order, from one batch of a loader.

        Runs the model on it; no state is allocated.

        Examples
        --------
        >>> import torch, deeprep
        >>> probe = deeprep.LayerProbe(torch.nn.Linear(4, 2), num_classes=2)
        >>> probe.layer_sizes((torch.eye(4), torch.tensor([0, 0, 1, 1])))["input"].num_features
        4
        """
        return self._passes.layer_sizes(batch)

    def start_turn(self, layers: Collection[str]) -> None:
        """Start anew with these layers alone: names of `layer_sizes`, or of modules.

        For more layers than memory has states of: a pass over the loader for each turn, and a
        report of what it has found.
        """
        self._hooks.only = frozenset(layers)
        self.scatters, self.scores, self.test_scores = {}, None, None
        self._collapse.state = None
        self._collapse.is_whole = True

    def all_reduce(self, group: Any = None) -> None:
        """Merge the states of all processes of a torch.distributed group, layer by layer.

        All of them must call it, between `run` and `score`; one that has seen no batch gets every
        layer all the same.

        Raises
        ------
        ValueError
            In every process, where the layers of some do not fit together.
        RuntimeError
            After `score`, whose scores are of the states of this process alone.
        """
        if self.scores is not None or self.test_scores is not None:
            raise RuntimeError(
                "all_reduce comes after score, expected it between run and score; scores are added "
                "up by probe.scores.all_reduce(group)"
            )
        self.scatters = self._collapse.all_reduce(self.scatters, group)

    def _require_layers(self) -> None:
        if not self.scatters:
            raise ValueError(
                "loader gave no batch, or none in which a layer ran, expected one at least before "
                "there is a score or a report"
            )

    def _update(self, layer: str, features: Tensor, labels: Tensor) -> None:
        self.scores = self.test_scores = None
        self._states.update(self.scatters, layer, features, labels)
