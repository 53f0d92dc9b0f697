"""The states of a model's layers, of many processes."""

from __future__ import annotations

from typing import Any

from deeprep.base.ranks import Ranks
from deeprep.state import collectives
from deeprep.state.scatter import ClassScatter

__all__ = ["all_reduce_layers"]


def all_reduce_layers(
    scatters: dict[str, ClassScatter], group: Any = None
) -> dict[str, ClassScatter]:
    """Make the states of every layer, of all processes of a torch.distributed group, one.

    All processes of the group must call it. A layer that some of them have no state of, for want
    of samples, is there afterwards in all; layers come in the order of the lowest rank that has
    any. Counts, means and sums of squares are those of merging the states in the order of the
    ranks, bit by bit, and the same on every rank. Memory beyond the states: some 16 MiB, or two
    rows of every process where these are larger; 64 MiB for full ones; and a copy of those below
    4 MiB.

    Parameters
    ----------
    scatters
        Layer -> state. States are changed in place, the dict is not.
    group
        A torch.distributed group; default: all processes.

    Returns
    -------
    Layer -> state: those passed in, and new ones.

    Raises
    ------
    ValueError
        In every process, where states of a layer differ in shape, `full` or ignore_index between
        ranks, where the state of any holds an error, where the group cannot move tensors of their
        device, or moves those of one rank by gloo and of another by NCCL; all are untouched.
    RuntimeError
        In every process, where the first cannot merge small states, for want of memory for
        instance; all are untouched.
    RankLostError
        Where a process dies or does not answer within the timeout of the group. States are
        untouched if it never came; else whatever reads them raises a RuntimeError, until `reset`
        or `load_state_dict`. The same holds after Ctrl-C.

    Examples
    --------
    >>> import torch, deeprep
    >>> s = deeprep.class_scatter(torch.eye(2), torch.tensor([0, 1]))
    >>> torch.distributed.init_process_group(
    ...     "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    ... )
    >>> deeprep.all_reduce_layers({"fc": s})
    {'fc': ClassScatter(num_classes=2, num_features=2, full=False, num_samples=2)}
    >>> torch.distributed.destroy_process_group()
    """
    ranks = Ranks.of(group, f"all_reduce_layers of {len(scatters)} layers")
    return collectives.all_reduce(scatters, ranks, "layer {!r}", ClassScatter)
