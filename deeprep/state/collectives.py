"""Many processes, one state: the states of all ranks of a torch.distributed group, merged.

They are merged in the order of the ranks by the arithmetic of `ClassScatter.merge`, and so to its
bits. Adding n * mean over the ranks would be shorter, but could overflow, and would give classes
without spread a spread of rounding errors. Small states, of all layers together, are merged while
the ranks agree on them (`agreement`); of larger ones every rank merges a share of the classes
(`exchange`), which takes the traffic of one all_reduce.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, distributed

from deeprep.base.ranks import Ranks
from deeprep.base.validate import require
from deeprep.state.agreement import Whole, agree
from deeprep.state.exchange import merge_shares
from deeprep.state.moments import Moments
from deeprep.state.statistics import Change, State

__all__ = ["all_reduce", "merged_share"]

# Numbers of pooled scatters that are summed at a time, 32 MiB.
_SUM_ENTRIES = 1 << 22
# Numbers of the means of small states that are merged as one, 4 MiB: layer by layer, they would
# take more time than the network does.
_STACK_ENTRIES = 1 << 19


def all_reduce(
    scatters: dict[str, State], ranks: Ranks, name: str, kind: type[State]
) -> dict[str, State]:
    """Make the states of every layer, of all ranks, one: see `deeprep.all_reduce_layers`.

    Parameters
    ----------
    scatters
        Layer -> state, changed in place.
    name
        How errors call the state of a layer: a format of the layer's name.
    kind
        Of the states, to make those of layers that this rank has seen no sample of.
    """
    # Whatever ends this call before its end, a lost process or Ctrl-C, finds every state marked.
    change = Change(ranks.call)

    def mark() -> None:
        for scatter in scatters.values():
            if not scatter._is_half_done:
                scatter._change, scatter._derived = change, None
        change.under_way = True

    def clear() -> None:
        change.under_way = False
        for scatter in scatters.values():
            if scatter._change is change:
                scatter._derived = scatter._nothing_derived()

    found, small, tag = agree(scatters, ranks, name, merge=True, joined=mark, refused=clear)
    merged = {
        layer: scatters[layer] if layer in scatters else found[layer].empty(kind) for layer in found
    }
    for layer, scatter in merged.items():
        scatter.unit_roundoff = found[layer].unit_roundoff
    if small is not None:
        for layer, whole in small.items():
            state = Whole(merged[layer]._moments, merged[layer]._pooled_scatter)
            for target, tensor in zip(state.tensors(), whole.tensors(), strict=True):
                target.copy_(tensor)
    else:
        by_place: dict[torch.device, list[State]] = {}
        for layer, scatter in merged.items():
            by_place.setdefault(ranks.transport(found[layer].device_type), []).append(scatter)
        for place, states in by_place.items():
            pooled = [
                state._pooled_scatter for state in states if state._pooled_scatter is not None
            ]
            full = [state._moments for state in states if state._pooled_scatter is not None]
            plain = [state._moments for state in states if state._pooled_scatter is None]
            with _stacked(plain) as stacks:
                without = [None] * len(stacks)
                merge_shares([*full, *stacks], ranks, place, tag, pooled=[*pooled, *without])
            _sum(pooled, ranks, place)
    clear()
    return merged


def merged_share(scatter: State, ranks: Ranks) -> tuple[State, Tensor | None]:
    """Return the merged state of the classes that this rank answers for, in new memory.

    It is not full. Of full states, the merged pooled scatter (d, d) of all classes comes with it,
    the same on every rank; only its upper triangle counts. The states of the ranks are left as they
    are; errors as in `all_reduce_layers`. There must be as many classes as ranks.
    """
    agreement = agree({"": scatter}, ranks, "the state", merge=False)
    found = agreement.found[""]
    wanted = f"at least {ranks.size}, one for each process"
    require("num_classes", found.num_classes, found.num_classes >= ranks.size, wanted)
    begin, end = ranks.share(ranks.rank, scatter.num_classes)
    share = type(scatter)(
        end - begin,
        scatter.num_features,
        device=scatter.device,
        ignore_index=scatter.ignore_index,
    )
    share.unit_roundoff = found.unit_roundoff
    pooled = None if scatter._pooled_scatter is None else scatter._pooled_scatter.clone()
    place = ranks.transport(found.device_type)
    moments = scatter._moments
    merge_shares([moments], ranks, place, agreement.tag, pooled=[pooled], shares=[share._moments])
    if pooled is not None:
        _sum([pooled], ranks, place)
    return share, pooled


@contextlib.contextmanager
def _stacked(states: Iterable[Moments]) -> Iterator[list[Moments]]:
    """Give states of which several small ones of the same width, one upon another, are one.

    When the context ends without an exception, they get the rows that these have then.
    """
    stacks: list[list[Moments]] = []
    by_width: dict[int, list[Moments]] = {}
    for moments in states:
        width = moments.means.shape[1]
        entries = sum(each.means.numel() for each in (*by_width.get(width, []), moments))
        if width not in by_width or entries > _STACK_ENTRIES:
            by_width[width] = []
            stacks.append(by_width[width])
        by_width[width].append(moments)
    joint = []
    for stack in stacks:
        # All ranks stack the same layers, wherever each of them has these.
        device = stack[0].means.device
        columns = [[tensor.to(device) for tensor in column] for column in zip(*stack, strict=True)]
        joint.append(stack[0] if len(stack) == 1 else Moments(*map(torch.cat, columns)))
    yield joint
    for whole, stack in zip(joint, stacks, strict=True):
        if len(stack) > 1:
            sizes = [len(moments.counts) for moments in stack]
            for column, targets in zip(whole, zip(*stack, strict=True), strict=True):
                for target, rows in zip(targets, column.split(sizes), strict=True):
                    target.copy_(rows)


def _sum(tensors: Iterable[Tensor], ranks: Ranks, place: torch.device) -> None:
    """Replace contiguous float64 tensors by their sums over the ranks, a bucket at a time."""
    bucket: list[Tensor] = []

    def flush() -> None:
        flat = torch.cat([piece.to(place) for piece in bucket])
        with ranks.watch():
            distributed.all_reduce(flat, group=ranks.group)
        for piece, total in zip(bucket, flat.split([len(p) for p in bucket]), strict=True):
            piece.copy_(total)
        bucket.clear()

    for tensor in tensors:
        for piece in tensor.view(-1).split(_SUM_ENTRIES):
            if bucket and sum(map(len, bucket)) + len(piece) > _SUM_ENTRIES:
                flush()
            bucket.append(piece)
    if bucket:
        flush()
