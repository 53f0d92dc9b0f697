"""Labelled samples in memory: `Data`, balanced subsets of it, and `Batches` to loop over."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["Batches", "Data", "RawData", "select", "standardize"]


@dataclass(frozen=True, eq=False)
class Data:
    """A labelled data set in memory.

    Attributes
    ----------
    inputs
        (N, ...) float32: vectors (N, d) or images (N, C, H, W).
    labels
        (N,) int64 in [0, K).
    class_names
        The K names.
    name
        The data set's name.
    mean
        What was subtracted, per channel; None if the inputs are as they were read.
    std
        What they were then divided by, per channel.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]
    name: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.inputs.shape[1:])


@dataclass(frozen=True, eq=False)
class RawData:
    """A data set as its reader leaves it, before classes and samples are selected.

    Attributes
    ----------
    labels
        (N,) int64 in [0, K).
    class_names
        The K names.
    read
        Takes (M,) indices of samples to their images, (M, C, H, W) float32 in [0, 1], so that an
        image-folder decodes only the selected ones.
    """

    labels: torch.Tensor
    class_names: tuple[str, ...]
    read: Callable[[torch.Tensor], torch.Tensor]


def select(
    raw: RawData,
    name: str,
    classes: Sequence[int] | None = None,
    samples_per_class: int | None = None,
    seed: int = 0,
) -> Data:
    """Read the samples of some classes, and of each class a given number drawn at random.

    Samples stay in the order of the data set. Arguments and errors as in `load_data`.

    >>> raw = RawData(torch.tensor([0, 1, 2, 2]), ("a", "b", "c"), lambda i: i.float())
    >>> data = select(raw, "example", classes=[2, 0])
    >>> data.inputs.tolist(), data.labels.tolist(), data.class_names
    ([0.0, 2.0, 3.0], [1, 0, 0], ('c', 'a'))
    """
    wanted = list(range(len(raw.class_names))) if classes is None else list(classes)
    if classes is not None and len(wanted) == 1:
        if wanted[0] > len(raw.class_names):
            most = len(raw.class_names)
            raise ValueError(f"classes is {wanted[0]}, expected at most {most} for {name}")
        wanted = list(range(wanted[0]))
    if not all(0 <= label < len(raw.class_names) for label in wanted):
        known = f"in 0..{len(raw.class_names) - 1} for {name}"
        raise ValueError(f"classes is {wanted}, expected {known}")
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for label in wanted:
        indices = (raw.labels == label).nonzero().flatten()
        if samples_per_class is not None:
            if len(indices) < samples_per_class:
                raise ValueError(
                    f"samples_per_class is {samples_per_class}, expected at most "
                    f"{len(indices)}, the samples that {name} has of class "
                    f"{raw.class_names[label]!r}"
                )
            indices = indices[torch.randperm(len(indices), generator=generator)[:samples_per_class]]
        parts.append(indices)
    chosen = torch.cat(parts).sort().values
    new_label = torch.full((len(raw.class_names),), -1, dtype=torch.int64)
    new_label[wanted] = torch.arange(len(wanted))
    names = tuple(raw.class_names[label] for label in wanted)
    return Data(raw.read(chosen), new_label[raw.labels[chosen]], names, name)


def standardize(
    data: Data, statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
) -> Data:
    """Subtract a mean from each channel of images (N, C, H, W) and divide by a standard deviation.

    Without `statistics` = (means, deviations) they are computed, over all pixels of the channel.

    >>> pixels = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
    >>> data = Data(pixels, torch.tensor([0, 1]), ("a", "b"), "example")
    >>> standardize(data).inputs.flatten().tolist(), standardize(data).mean
    ([-1.0, 1.0], (0.5,))
    """
    if statistics is None:
        std, mean = torch.std_mean(data.inputs.double(), dim=(0, 2, 3), correction=0)
        # A channel without variation (a folder of grey images has none) is centred, not divided by
        # 0.
        statistics = tuple(mean.tolist()), tuple(torch.where(std > 0, std, 1.0).tolist())
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in statistics)
    inputs = (data.inputs - mean) / std
    return dataclasses.replace(data, inputs=inputs, mean=statistics[0], std=statistics[1])


class Batches:
    """Batches of samples that lie on one device as one tensor; any number of loops over them.

    Parameters
    ----------
    inputs
        (N, ...), any dtype, N >= 1.
    labels
        (N,), on the same device.
    batch_size
        Samples in a batch; 0 for all of them.
    shuffle_seed
        Order of the samples, the same on every loop and device; None for theirs, in which case
        batches are views and nothing is copied.
    smallest
        A last batch of fewer samples is joined to the one before: BatchNorm cannot train on one.
    rank, num_ranks
        Of every batch, take samples rank, rank + num_ranks, ...: a part for each of as many
        processes. Where a batch has none for this one, it is given the batch's first, which does
        not count: see `sizes`.

    Iterating gives pairs (inputs, labels).

    Attributes
    ----------
    sizes
        Of every batch, how many of its samples count here, and how many it has in all.

    Raises
    ------
    ValueError
        Lengths that differ, no samples, or a negative batch size.

    >>> inputs, labels = torch.arange(5.0), torch.tensor([0, 1, 0, 1, 0])
    >>> [labels.tolist() for _, labels in Batches(inputs, labels, batch_size=2)]
    [[0, 1], [0, 1, 0]]
    >>> batches = Batches(inputs, labels, batch_size=2, rank=1, num_ranks=2)
    >>> [inputs.tolist() for inputs, _ in batches], batches.sizes
    ([[1.0], [3.0]], [(1, 2), (1, 3)])
    """

    def __init__(
        self,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        batch_size: int,
        shuffle_seed: int | None = None,
        *,
        smallest: int = 2,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        if len(inputs) != len(labels) or len(labels) == 0:
            lengths = f"{len(inputs)} and {len(labels)}"
            raise ValueError(f"inputs and labels have lengths {lengths}, expected one length >= 1")
        if batch_size < 0:
            raise ValueError(f"batch_size is {batch_size}, expected >= 0")
        self.inputs = inputs
        self.labels = labels
        self.batch_size = batch_size or len(labels)
        self.shuffle_seed = shuffle_seed
        starts = list(range(0, len(labels), self.batch_size))
        if len(starts) > 1 and len(labels) - starts[-1] < smallest:
            starts.pop()
        self.sizes: list[tuple[int, int]] = []
        self._rows: list[slice] = []
        for begin, end in itertools.pairwise([*starts, len(labels)]):
            counting = range(begin + rank, end, num_ranks)
            self.sizes.append((len(counting), end - begin))
            share = slice(begin + rank, end, num_ranks)
            self._rows.append(share if counting else slice(begin, begin + 1))

    def shuffled(self, seed: int) -> Batches:
        """Return the same samples in batches of the same size, in an order fixed by `seed`."""
        batches = copy.copy(self)
        batches.shuffle_seed = seed
        return batches

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        inputs, labels = self.inputs, self.labels
        order = None
        # One batch of everything needs no order, only its sums matter.
        if self.shuffle_seed is not None and len(self) > 1:
            permutation = np.random.default_rng(self.shuffle_seed).permutation(len(labels))
            order = torch.from_numpy(permutation).to(labels.device)
        for rows in self._rows:
            if order is None:
                yield inputs[rows], labels[rows]
            else:
                yield inputs[order[rows]], labels[order[rows]]
