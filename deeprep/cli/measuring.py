"""How `deeprep analyze` measures a model: alone, or each process its share of the samples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from deeprep.base.ranks import Ranks
from deeprep.base.torchrun import together
from deeprep.cli.foreign import errors_of
from deeprep.cli.next_tokens import NextTokens
from deeprep.cli.ranks import is_first
from deeprep.cli.shared import progress_bar
from deeprep.data import Batches, Data, TextBatches, TextData
from deeprep.models.loaded import LoadedModel
from deeprep.probe import LayerProbe
from deeprep.probe.reduce import Reduce

__all__ = ["Measuring"]


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
        Whether there is a second pass, for the scores.
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
        self, model: LoadedModel, samples: Data | TextData | NextTokens, what: str
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
        """
        if isinstance(samples, NextTokens):
            num_classes, labels = None, samples.labels
        else:
            num_classes, labels = samples.num_classes, None
        loader = self._loader(model, samples)
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

        def second_pass() -> None:
            with errors_of(model.name):
                probe.score(loader, shown)

        with progress_bar("batch", what) as progress, autocast:
            shown = progress if is_first(self.ranks) else False
            probe = together(self.ranks, first_pass)
            if self.ranks is not None:
                probe.all_reduce(self.ranks.group)
            if self.accuracy:
                together(self.ranks, second_pass)
                if self.ranks is not None and probe.scores is not None:
                    probe.scores.all_reduce(self.ranks.group)
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


def _share(samples: Data | TextData, ranks: Ranks | None) -> Data | TextData:
    """Return a process's share of the samples: some that lie one after the other."""
    if ranks is None:
        return samples
    number = len(samples.labels)
    share = slice(number * ranks.rank // ranks.size, number * (ranks.rank + 1) // ranks.size)
    if isinstance(samples, TextData):
        return replace(samples, sentences=samples.sentences[share], labels=samples.labels[share])
    return replace(samples, inputs=samples.inputs[share], labels=samples.labels[share])
