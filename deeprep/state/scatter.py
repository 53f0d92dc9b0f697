"""ClassScatter: the class-scatter statistics of a layer, accumulated over any number of batches."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from deeprep import ops
from deeprep.base import validate
from deeprep.base.ranks import Ranks
from deeprep.state import collectives
from deeprep.state.accumulator import Accumulator
from deeprep.state.state_file import STATE_VERSION, read_state, write_state
from deeprep.state.statistics import Weighting

__all__ = ["ClassScatter", "Weighting", "class_scatter"]


class ClassScatter(Accumulator):
    """Counts, means and sums of squares of every class, updated batch by batch in one pass.

    Everything the metrics need comes from here. With z_ki the i-th of n_k features of class k::

        counts  (K,)   int64     n_k
        means   (K, d) float64   mu_k = (1/n_k) sum_i z_ki
        sumsq   (K,)   float64   sum_i |z_ki - mu_k|^2

    and, with ``full=True``, the (d, d) pooled within-class scatter
    S = sum_k sum_i (z_ki - mu_k)(z_ki - mu_k)'. Memory is K*d (plus d*d), whatever the number of
    samples; features are read where they lie, never copied or widened.

    Parameters
    ----------
    num_classes, num_features
        K and d, at least 1.
    full
        Also accumulate S, which nc1, vci, the ranks, the linear probe and others need.
    device
        Where the state lives, the CPU by default, and where features must be; a CUDA state takes
        features in host memory too and streams them there.
    ignore_index
        Label of rows to skip.

    Attributes
    ----------
    unit_roundoff
        Of the arithmetic S was summed in: 2^-53 while all features were float64, 2^-24 once any
        were of another type, 0 before the first. Metrics tell rounding errors from small
        eigenvalues of S by it.

    Raises
    ------
    ValueError, TypeError
        On K < 1 or d < 1, naming the argument.
    NotImplementedError
        For a CUDA device where this build of deeprep has no CUDA kernels.

    Notes
    -----
    Definitions: arXiv 2311.02960, section 2.

    On CUDA `update` does not wait for the device to find out whether the labels are classes. If
    one is not, its batch and all later ones are left out, and from then on whatever reads the state
    raises a ValueError that names it, until `reset` or `load_state_dict`.

    `counts`, `means` and `sumsq` are the state's own memory: they change with it. `present`,
    `nonfinite_classes` and `global_mean` are derived once and kept until the state changes. None of
    them is to be written to.

    An exception, Ctrl-C included, leaves a state as it was before the call that it ends or as it is
    after it, never between the two.

    Examples
    --------
    >>> import torch, deeprep
    >>> s = deeprep.ClassScatter(num_classes=2, num_features=2)
    >>> s.update(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 0]))
    >>> s.update(torch.tensor([[0.0, 2.0], [0.0, 4.0]]), torch.tensor([1, 1]))
    >>> s.means.tolist()
    [[2.0, 0.0], [0.0, 3.0]]
    >>> s.trace_within, s.trace_between()
    (1.0, 3.25)
    """

    def __repr__(self) -> str:
        samples = "unknown" if self._is_half_done else int(self._moments.counts.sum())
        return (
            f"ClassScatter(num_classes={self.num_classes}, num_features={self.num_features}, "
            f"full={self.full}, num_samples={samples})"
        )

    def all_reduce(self, group: Any = None) -> None:
        """Make the states of all processes of a torch.distributed group one: their merge.

        All processes of the group must call it. Each ends with the same bits, for counts, means
        and sumsq those of `merge` in the order of the ranks. It takes some 16 MiB of memory
        beyond the state, or two rows of every process where these are larger, and 64 MiB for a full
        one.

        Raises
        ------
        ValueError
            In every process, where K, d, `full` or ignore_index differ between ranks or the state
            of any holds an error; all are untouched.
        RankLostError
            Where a process dies or does not answer within the timeout of the group. The state is
            untouched if it never came; else whatever reads it raises a RuntimeError, until `reset`
            or `load_state_dict`. The same holds after Ctrl-C.
        """
        ranks = Ranks.of(group, "all_reduce")
        collectives.all_reduce({"": self}, ranks, "the state", ClassScatter)

    def with_min_count(self, min_count: int) -> ClassScatter:
        """Return the state of the classes that have at least `min_count` samples.

        It is that of the same batches with the rows of all other classes ignored: these keep their
        numbers and have no samples. A copy, or this state itself where it has no such class.

        Of S only the sum over all classes is known. It is kept where the classes left out have no
        part in it, as those of a single sample have none; else the state returned has
        ``full=False``, and what needs S says why there is none.

        Parameters
        ----------
        min_count
            At least 1, which leaves out no class.

        Raises
        ------
        ValueError, TypeError
            For a min_count below 1, or that is no whole number.

        Examples
        --------
        >>> import torch, deeprep
        >>> features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 3.0], [9.0, 9.0]])
        >>> s = deeprep.class_scatter(features, torch.tensor([0, 0, 1, 1, 2]))
        >>> s.with_min_count(2).counts.tolist()
        [2, 2, 0]
        >>> round(deeprep.discrimination(s), 4), deeprep.discrimination(s.with_min_count(2))
        (0.2929, 1.0)
        """
        min_count = validate.check_positive("min_count", min_count)
        if min_count == 1:
            return self
        few = (self.counts > 0) & (self.counts < min_count)
        if not bool(few.any()):
            return self
        full = self.full and not bool(self.sumsq[few].any())
        left = ClassScatter(
            self.num_classes,
            self.num_features,
            full=full,
            device=self.device,
            ignore_index=self.ignore_index,
        )
        for target, source in zip(left._moments, self._moments, strict=True):
            target.copy_(source)
            target[few] = 0
        if full:
            left._tensors()["products"].copy_(self._tensors()["products"])
        elif self.full:
            left._why_not_full = (
                "the (d, d) scatter is summed over all classes, and the part in it of those with "
                f"fewer than {min_count} samples is not known"
            )
        left.unit_roundoff = self.unit_roundoff
        left._warned_empty = True  # they were to be left out
        return left

    # ---------------------------------------------------------------- moving and saving

    def to(self, device: torch.device | str) -> ClassScatter:
        """Return the state on `device`: a new one, or this one where it is there already.

        Examples
        --------
        >>> import torch, deeprep
        >>> s = deeprep.class_scatter(torch.eye(2), torch.tensor([0, 1]))
        >>> s.to("cpu") is s
        True
        """
        ops.require_core(torch.device(device))
        if torch.empty(0, device=device).device == self.device:  # "cuda" is the current one
            return self
        self._require_intact()
        moved = ClassScatter(
            self.num_classes,
            self.num_features,
            full=self.full,
            device=device,
            ignore_index=self.ignore_index,
        )
        for target, source in zip(moved._tensors().values(), self._tensors().values(), strict=True):
            target.copy_(source)
        moved.unit_roundoff = self.unit_roundoff
        moved._warned_empty = self._warned_empty
        return moved

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue elsewhere; tensors are copies.

        Under "products" is `pooled_scatter`, under "resolution" `unit_roundoff`, as they were
        called when files of this version were first written.
        """
        self._require_intact()
        return {
            "version": STATE_VERSION,
            **{name: tensor.clone() for name, tensor in self._moments._asdict().items()},
            "products": self.pooled_scatter if self.full else None,
            "resolution": self.unit_roundoff,
            "ignore_index": self.ignore_index,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict`; shapes and `full` must be those of this object.

        Raises
        ------
        ValueError
            Where the version, a shape, a dtype or `full` does not fit; nothing is changed.
        """
        if state.get("version") != STATE_VERSION:
            found = state.get("version")
            raise ValueError(f"state['version'] is {found!r}, expected {STATE_VERSION}")
        if (state["products"] is not None) != self.full:
            raise ValueError(f"state has full={not self.full}, expected full={self.full}")
        targets = self._tensors()
        for name, target in targets.items():
            found = state[name]
            if found.shape != target.shape or found.dtype != target.dtype:
                raise ValueError(
                    f"state[{name!r}] has shape {tuple(found.shape)} and dtype {found.dtype}, "
                    f"expected {tuple(target.shape)} and {target.dtype}"
                )
        self._change_to(
            float(state["resolution"]),
            *self._copy_steps({name: state[name].to(self.device) for name in targets}),
            *self._clear_steps(),
            partial(setattr, self, "ignore_index", int(state["ignore_index"])),
        )

    def save(self, path: str | Path) -> None:
        """Write the state to a safetensors file, atomically; `load` gives back the same bits.

        The file holds checksums, so that damage to it is noticed.

        Raises
        ------
        OSError
            Where the file cannot be written; one that was there before is untouched.

        Examples
        --------
        >>> import tempfile, torch, deeprep
        >>> s = deeprep.class_scatter(torch.eye(2), torch.tensor([0, 1]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     s.save(f"{folder}/state.safetensors")
        ...     deeprep.ClassScatter.load(f"{folder}/state.safetensors")
        ClassScatter(num_classes=2, num_features=2, full=False, num_samples=2)
        """
        write_state(Path(path), self.state_dict())

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str | None = None) -> ClassScatter:
        """Return the state in a file of `save`, on `device`: the CPU by default.

        A file from before there were checksums is read with a warning.

        Raises
        ------
        OSError
            Where there is no file to read.
        ValueError
            Where it is cut short, damaged, something else, of another version, or inconsistent,
            saying what was found and what was wanted.
        """
        state = read_state(Path(path))
        scatter = cls(*state["means"].shape, full=state["products"] is not None, device=device)
        scatter.load_state_dict(state)
        return scatter


def class_scatter(
    features: Any,
    labels: Any,
    num_classes: int | None = None,
    *,
    full: bool = False,
    ignore_index: int = -100,
    device: torch.device | str | None = None,
) -> ClassScatter:
    """Class-scatter statistics of one feature matrix, in one pass.

    Parameters
    ----------
    features
        (N, d) torch tensor, NumPy array or DLPack object; float64/32/16 or bfloat16, any strides,
        read in place.
    labels
        (N,) int32/int64 in [0, K) or `ignore_index`; or one-hot rows (N, K).
    num_classes
        K; default: the width of one-hot rows, or the largest label + 1. The latter is refused where
        the state would take more than 1 GiB and fewer than one class in ten has a sample: such a
        label is more likely a stray one.
    full
        Also accumulate the (d, d) pooled within-class scatter.
    ignore_index
        Label of rows to skip.
    device
        Where to compute; default: where the features are. A CUDA device streams features that are
        in host memory.

    Returns
    -------
    ClassScatter on `device`.

    Raises
    ------
    ValueError, TypeError
        On input that does not fit, naming the argument, the value found and the value wanted.

    Examples
    --------
    >>> import numpy as np, deeprep
    >>> rng = np.random.default_rng(0)
    >>> labels = np.repeat(np.arange(3), 100)
    >>> features = np.eye(3)[labels] + 0.1 * rng.standard_normal((300, 3))
    >>> s = deeprep.class_scatter(features, labels)
    >>> round(deeprep.compression(s), 3), round(deeprep.discrimination(s), 3)
    (0.041, 1.002)
    """
    one_hot_width = labels.shape[1] if getattr(labels, "ndim", 1) == 2 else None
    reversed_features = features if validate.is_reversed(features) else None
    if reversed_features is not None:
        features = validate.forwards(reversed_features)
    features, labels = validate.to_tensors(features, labels, num_classes)
    validate.check_batch(features, labels)
    if num_classes is None:
        num_classes = one_hot_width
    if num_classes is None:
        num_classes = validate.infer_num_classes(labels, features.shape[1], ignore_index)
    scatter = ClassScatter(
        num_classes,
        features.shape[1],
        full=full,
        device=features.device if device is None else device,
        ignore_index=ignore_index,
    )
    scatter.update(features if reversed_features is None else reversed_features, labels)
    return scatter
