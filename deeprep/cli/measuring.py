"""How `deeprep analyze` measures a model: alone, or each process its share of the samples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from deeprep.base.ranks import Ranks
from deeprep.base.torchrun import together
from deeprep.cli.foreign import errors_of
from deeprep.cli.next_tokens import NextTokens
from deeprep.cli.ranks import is_first
from deeprep.cli.shared import progress_bar
from deeprep.data import Batches, Data, TextBatches, TextData
from deeprep.data.tensors import standardize
from deeprep.models.loaded import LoadedModel
from deeprep.probe import LayerProbe, Scores
from deeprep.probe.reduce import Reduce

__all__ = ["Measuring", "as_test_data"]


@dataclass(frozen=True)
class Measuring:
    """What of the command line says how samples go through a model.

    Attributes
    ----------
    device, dtype
        Where, and in which type of number, the model runs.
    layers, reduce, full
        As for LayerProbe.
    accuracy
        Whether there is a second pass, for the training scores.
    batch_size, max_length
        Samples of a batch; tokens of a sentence, None for what the model takes.
    ranks
        The processes; None for this one alone.
    """

    device: torch.device
    dtype: str
    layers: tuple[str, ...]
    reduce: Reduce
    full: bool
    accuracy: bool
    batch_size: int
    max_length: int | None
    ranks: Ranks | None

    def probe(
        self,
        model: LoadedModel,
        samples: Data | TextData | NextTokens,
        what: str,
        test_samples: Data | TextData | None = None,
    ) -> LayerProbe:
        """Return a probe that has measured a model as it is now, the samples of all processes.

        Parameters
        ----------
        model
            The model.
        samples
            All of them; of many processes each takes its share.
        what
            For the bar of progress.
        test_samples
            Samples to score by the means and probes of the others, if any.
        """
        if isinstance(samples, NextTokens):
            num_classes, labels = None, samples.labels
        else:
            num_classes, labels = samples.num_classes, None
        loader = self._loader(model, samples)
        ridge: Literal["auto"] | None = None if test_samples is None else "auto"
        full: Literal["auto", False] = "auto" if self.full else False
        enabled = self.dtype == "bfloat16"
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

        def first_pass() -> LayerProbe:
            with errors_of(model.name):
                probe = LayerProbe(
                    model.module,
                    num_classes,
                    self.layers or None,
                    self.reduce,
                    full=full,
                    labels=labels,
                )
                probe.run(loader, shown)
            return probe

        def score(batches: Iterable[Any], *, test: bool) -> Scores:
            with errors_of(model.name):
                return probe.score(batches, shown, test=test, ridge=ridge)

        passes = [(loader, False)] if self.accuracy else []
        if test_samples is not None:
            passes.append((self._loader(model, test_samples), True))

        with progress_bar("batch", what) as progress, autocast:
            shown = progress if is_first(self.ranks) else False
            probe = together(self.ranks, first_pass)
            if self.ranks is not None:
                probe.all_reduce(self.ranks.group)
            for batches, test in passes:
                scores = together(self.ranks, partial(score, batches, test=test))
                if self.ranks is not None:
                    scores.all_reduce(self.ranks.group)
        return probe

    def _loader(self, model: LoadedModel, samples: Data | TextData | NextTokens) -> Iterable[Any]:
        """Return batches of this process's share of the samples."""
        if isinstance(samples, NextTokens):
            if self.ranks is None:
                return samples.blocks
            return samples.blocks.share(self.ranks.rank, self.ranks.size)
        samples = _share(samples, self.ranks)
        if not len(samples.labels):  # the share of one process of more than there are samples
            return []
        if isinstance(samples, TextData):
            assert model.tokenizer is not None
            max_length = self.max_length or model.max_length
            return TextBatches(samples, model.tokenizer, self.batch_size, max_length)
        dtype = torch.float64 if self.dtype == "float64" else torch.float32
        return Batches(samples.inputs.to(dtype), samples.labels, self.batch_size)


def as_test_data(
    found: Data | TextData, samples: Data | TextData, *, chosen: bool
) -> Data | TextData:
    """Number the classes of test data, and scale their images, as those of the samples are.

    Parameters
    ----------
    found
        Test data, not normalised; they may lack classes.
    samples
        The data that means and probes come from.
    chosen
        Whether their classes were chosen among those there are, and others are to be left out.

    Raises
    ------
    ValueError
        For samples of another kind or shape, and for a class that the others do not have.
    """
    names = list(samples.class_names)
    unknown = [name for name in found.class_names if name not in names]
    if unknown and (not chosen or len(unknown) == len(found.class_names)):
        raise ValueError(
            f"test_data has the classes {', '.join(unknown)}, expected some of data: "
            f"{', '.join(names)}"
        )
    places = [names.index(name) if name in names else -1 for name in found.class_names]
    labels, classes = torch.tensor(places)[found.labels], samples.class_names
    kept = torch.nonzero(labels >= 0).flatten()
    labels = labels[kept]
    if isinstance(found, TextData) and isinstance(samples, TextData):
        sentences = [found.sentences[row] for row in kept.tolist()]
        return replace(found, sentences=sentences, labels=labels, class_names=classes)
    if not isinstance(found, Data) or not isinstance(samples, Data):
        kind = "sentences" if isinstance(samples, TextData) else "images or vectors"
        raise ValueError(f"test_data is {found.name}, expected {kind} as data")
    if found.input_shape != samples.input_shape:
        raise ValueError(
            f"test_data has samples of shape {found.input_shape}, expected {samples.input_shape} "
            "as data"
        )
    found = replace(found, inputs=found.inputs[kept], labels=labels, class_names=classes)
    if samples.mean is None or samples.std is None:
        return found
    return standardize(found, (samples.mean, samples.std))


def _share(samples: Data | TextData, ranks: Ranks | None) -> Data | TextData:
    """Return a process's share of the samples: some that lie one after the other."""
    if ranks is None:
        return samples
    share = slice(*ranks.share(ranks.rank, len(samples.labels)))
    if isinstance(samples, TextData):
        return replace(samples, sentences=samples.sentences[share], labels=samples.labels[share])
    return replace(samples, inputs=samples.inputs[share], labels=samples.labels[share])
