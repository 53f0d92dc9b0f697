"""The model's own classifier: which module it is, what enters it, and what the model decides.

It is found by what it does: the linear map with K outputs whose output is the model's. Where the
model only changes the scores' values and not their order (a softmax), it is the only linear map
with K outputs that has run. Everything else needs a name.
"""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deeprep.base.ranks import Ranks
from deeprep.probe.layers import Modules, innermost_model, named_layers
from deeprep.probe.reduce import BatchLabels

ClassifierSelector = str | nn.Module | Literal["auto"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ROWS_CHECKED = 64
# Of the sums of absolute products: bfloat16 rounds to 2^-8, and a map that is not linear is off by
# the products themselves.
_ROUNDING = 2.0**-6
_HARDLY_BY_CHANCE = math.log(1e4)
NOT_ASKED_FOR = "classifier=None"
_LARGEST_UNASKED = 2**25  # entries K d of the means, 256 MiB


class _UnclearError(Exception):
    """There is no classifier whose input and decisions can be told, for this reason."""


class Classifier:
    """The module whose input the neural collapse of a model is about.

    Parameters
    ----------
    model
        Any module.
    selector
        Name or module of the classifier; "auto" finds it in the first batch; None: there is none.
    num_classes, ignore_index
        See `LayerProbe`.

    Attributes
    ----------
    name
        Of the module; None while it is not known, and where there is none.
    reason
        Why there is none.
    weight
        W (K, d) of the linear map, a copy; None where the module is none.

    Raises
    ------
    ValueError, TypeError
        Where the selector is no module of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        selector: ClassifierSelector | None,
        num_classes: int,
        ignore_index: int,
    ) -> None:
        self._num_classes, self._ignore_index = num_classes, ignore_index
        self._modules: Modules = {}
        self.name: str | None = None
        self.reason: str | None = None
        self.weight: Tensor | None = None
        self._is_checked = False  # whether the output was found to be W z + b, or not to be
        # Of the modules that have run in this forward, the last one last.
        self._calls: dict[str, tuple[Tensor, Tensor]] = {}
        self._weights: dict[str, tuple[Tensor, Tensor | None]] = {}
        if selector is None:
            self.reason = NOT_ASKED_FOR
        elif selector == "auto":
            self._modules = {
                name: module
                for name, module in _all_modules(model).items()
                if _num_outputs(module) == num_classes
            }
        else:
            self.name, module = _named(model, selector)
            self._modules = {self.name: module}

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, every forward leaves behind what `take` needs."""
        modules = self._modules if self.name is None else {self.name: self._modules[self.name]}
        handles: list[Any] = []
        try:
            if self.reason is None:
                for name, module in modules.items():
                    hook = self._make_hook(name)
                    handles.append(module.register_forward_hook(hook, with_kwargs=True))
            yield
        finally:
            self._calls.clear()
            while handles:
                handles.pop().remove()

    def _make_hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
            if given is None or not isinstance(output, Tensor):
                return
            self._calls.pop(name, None)
            self._calls[name] = given.detach(), output.detach()
            if self._wants_weight(name, module):
                # Here, for outside of its forward FSDP has taken the weight apart.
                bias = module.bias if isinstance(module.bias, Tensor) else None
                wide = None if bias is None else bias.detach().to(torch.float64, copy=True)
                self._weights[name] = _weight_of(module), wide

        return hook

    def _wants_weight(self, name: str, module: nn.Module) -> bool:
        """Whether the weight of a module is to be copied: once, and no large one unasked."""
        if self._is_checked or name in self._weights or _num_outputs(module) != self._num_classes:
            return False
        return self.name is not None or _num_entries(module) <= _LARGEST_UNASKED

    def take(
        self, output: Any, labels: Tensor, inputs: Any, *, decide: bool
    ) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """Return what a forward has sent through the classifier.

        Parameters
        ----------
        output, inputs
            Of the model.
        labels
            Of the batch.
        decide
            Also find out what the model decides.

        Returns
        -------
        Features (N, d), labels (N,) and the model's decisions (N,), -2 for scores that hold NaN;
        None where there is no classifier, for a `reason`.
        """
        calls, self._calls = self._calls, {}
        if self.reason is not None or not len(labels):
            return None
        mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
        mask = mask != 0 if isinstance(mask, Tensor) and _is_mask_of(mask, labels) else None
        given = BatchLabels(labels, mask, self._num_classes, self._ignore_index)
        scores = _scores_of(output)
        try:
            if self.name is None:
                self.name = self._find(calls, scores)
            if self.name not in calls:
                raise _UnclearError(f"{self.name!r} did not run")
            features, own = calls[self.name]
            if self.name in self._weights:
                self._take_weight(self.name, features, own)
            features, targets, deciding = self._rows(features, own, scores, given, labels.ndim)
        except _UnclearError as error:
            self.name, self.reason, self.weight = None, str(error), None
            self._weights.clear()
            return None
        if not decide:
            return features, targets, None
        decided = deciding.argmax(dim=-1).masked_fill(deciding.isnan().any(dim=-1), -2)
        return features, targets, decided.to(features.device)

    def _find(self, calls: dict[str, tuple[Tensor, Tensor]], scores: Tensor | None) -> str:
        """Find the classifier among the modules that have run."""
        wanted = self._num_classes
        if scores is None or scores.ndim < 2:
            raise _UnclearError("the model's output holds no scores (N, K)")
        if scores.shape[-1] != wanted:
            raise _UnclearError(
                f"the model's output has shape {tuple(scores.shape)}, expected (N, {wanted}), a "
                "score for each class"
            )
        found = [name for name, (_, own) in calls.items() if _is_output(own, scores)]
        if not found and len(calls) == 1:
            ((name, (_, own)),) = calls.items()
            found = [name] if _is_ranked_alike(own, scores) else []
        if not found:
            several = f"; of {wanted} outputs are {', '.join(map(repr, calls))}" if calls else ""
            raise _UnclearError(
                f"the model's output is not that of a linear map with {wanted} outputs{several}; "
                "classifier= takes the name of a module"
            )
        width = _vectors(calls[found[-1]][0]).shape[-1]
        if wanted * width > _LARGEST_UNASKED:
            raise _UnclearError(
                f"K x d = {wanted} x {width} of {found[-1]!r} is much memory; "
                f"classifier={found[-1]!r} takes it"
            )
        return found[-1]

    def _take_weight(self, name: str, features: Tensor, own: Tensor) -> None:
        """Keep the weight of the classifier if its output is W z + b."""
        weight, bias = self._weights[name]
        self._weights.clear()
        self._is_checked = True
        rows, scores = (_vectors(values)[:_ROWS_CHECKED].double() for values in (features, own))
        if rows.shape[-1] != weight.shape[1] or len(rows) != len(scores):
            return
        expected, size = rows @ weight.T, rows.abs() @ weight.abs().T
        if bias is not None:
            expected, size = expected + bias, size + bias.abs()
        if not bool(((scores - expected).abs() > _ROUNDING * size).any()):
            self.weight = weight

    def _rows(
        self, features: Tensor, own: Tensor, scores: Tensor | None, labels: BatchLabels, axes: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return features (N, d), labels (N,), scores (N, K): of each sample, or of each token."""
        samples, shape = labels.num_samples, tuple(own.shape)
        if own.ndim > 3 and own.shape[2:].numel() == 1:  # a convolution of a map of one pixel
            features, own = features.flatten(1), own.flatten(1)
        if scores is not None and (scores.ndim < 2 or scores.shape[-1] != self._num_classes):
            scores = None
        deciding = own if scores is None or scores.shape != own.shape else scores
        if len(own) != samples or own.shape[-1] != self._num_classes:
            fits = False
        elif own.ndim == 2 and axes == 1:
            fits, targets = True, labels.of_samples(own.device)
        elif own.ndim == 3 and axes == 1 and scores is not None and scores.ndim == 2:
            # Scores of every token, of which the model picks those of one, such as the last.
            chosen = _chosen_token(own, scores)
            if chosen is None:
                raise _UnclearError(f"the model's output is of no token that {self.name!r} gives")
            fits, targets, deciding = True, labels.of_samples(own.device), scores
            features = features[torch.arange(samples, device=own.device), chosen]
        else:
            fits = axes > 1 and axes == own.ndim - 1
            if fits:
                targets = labels.of_positions(own.device, tuple(own.shape[1:-1]))
                features, deciding = features.flatten(0, -2), deciding.flatten(0, -2)
        if not fits:
            raise _UnclearError(
                f"the output of {self.name!r} has shape {shape}, expected a score for each class "
                "and each label"
            )
        if features.ndim != 2 or len(features) != len(targets):
            given = tuple(features.shape)
            raise _UnclearError(f"the input of {self.name!r} has shape {given}, expected (N, d)")
        return features, targets, deciding

    def agree(self, ranks: Ranks) -> None:
        """Make what all processes know of the classifier one; a process without a batch learns it.

        All of them must call it.
        """
        found = ranks.gather((self.name, self.reason, self.weight is not None))
        known = list(dict.fromkeys(each for each in found if each[:2] != (None, None)))
        if len(known) > 1:
            self.name, self.reason, self.weight = None, "the processes found different ones", None
        elif known and (self.name, self.reason) == (None, None):
            self.name, self.reason, has_weight = known[0]
            if self.name is not None and has_weight:
                self.weight = _weight_of(self._modules[self.name])


def _num_outputs(module: nn.Module) -> int | None:
    """Outputs of a linear map: of a Linear, or of a convolution of single positions."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, _CONVOLUTIONS) and set(module.kernel_size) == {1} and module.groups == 1:
        return module.out_channels
    return None


def _num_entries(module: nn.Module) -> int:
    """Numbers in the weight of a linear map, also where FSDP has taken it apart."""
    if isinstance(module, nn.Linear):
        return module.out_features * module.in_features
    return module.out_channels * module.in_channels if isinstance(module, _CONVOLUTIONS) else 0


def _weight_of(module: nn.Module) -> Tensor:
    """Copy the weight (K, d) of a linear map."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach().flatten(1).to(torch.float64, copy=True)


def _all_modules(model: nn.Module) -> Modules:
    """Name -> module, the model itself under ""."""
    return {"": innermost_model(model), **named_layers(model)}


def _named(model: nn.Module, selector: Any) -> tuple[str, nn.Module]:
    modules = _all_modules(model)
    if isinstance(selector, nn.Module):
        selector = innermost_model(selector)
        name = next((name for name, module in modules.items() if module is selector), None)
        if name is None:
            kind = type(selector).__name__
            raise ValueError(f"classifier is a {kind}, expected a module of the model")
        return name, selector
    if not isinstance(selector, str):
        raise TypeError(f"classifier is {selector!r}, expected a name, a module, 'auto' or None")
    if selector not in modules:
        close = difflib.get_close_matches(selector, modules, n=3, cutoff=0.3)
        hint = f"; close names: {', '.join(close)}" if close else ""
        raise ValueError(f"classifier is {selector!r}, expected the name of a module{hint}")
    return selector, modules[selector]


def _scores_of(output: Any) -> Tensor | None:
    """The scores in what a model returns: itself, its `logits`, or the first of a tuple."""
    if isinstance(output, Mapping):
        output = output.get("logits", next(iter(output.values()), None))
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, tuple | list):
        tensors = [value for value in output if isinstance(value, Tensor)]
        output = next((value for value in tensors if value.ndim > 1), None)  # not a loss
    return output if isinstance(output, Tensor) and output.is_floating_point() else None


def _is_output(own: Tensor, scores: Tensor) -> bool:
    """Whether a module's output is what the model returns, or has it as those of some tokens."""
    if own.numel() == scores.numel():
        if own.untyped_storage().data_ptr() == scores.untyped_storage().data_ptr():
            return True
        return torch.equal(own.reshape(scores.shape).to(scores), scores)
    return own.ndim == 3 and _chosen_token(own, scores) is not None


def _is_mask_of(mask: Tensor, labels: Tensor) -> bool:
    """Whether it is the mask of the labels' own sequence, or of samples that have one each."""
    fits = mask.ndim == 2 and len(mask) == len(labels)
    return fits and (labels.ndim == 1 or mask.shape == labels.shape)


def _is_ranked_alike(own: Tensor, scores: Tensor) -> bool:
    """Whether both rank the classes alike in every row, and hardly so by chance.

    Of few rows, only the usual maps of scores are taken for one that keeps their order.
    """
    if own.numel() != scores.numel():
        return False
    rounding = 8.0 * torch.finfo(scores.dtype).eps
    own, scores = own.reshape(scores.shape), scores.float()
    own, scores = (_vectors(values)[:_ROWS_CHECKED].double() for values in (own, scores))
    ranked = scores.gather(1, own.argsort(dim=1, descending=True))
    rises = ranked.diff(dim=1) > rounding * ranked.abs().amax(dim=1, keepdim=True)
    if bool(rises.any()) or not bool((own.argmax(dim=1) == scores.argmax(dim=1)).all()):
        return False
    if len(own) * math.lgamma(own.shape[1] + 1.0) > _HARDLY_BY_CHANCE:  # log of K! a row
        return True
    maps = own.softmax(dim=1), own.log_softmax(dim=1), own.sigmoid()
    return any(torch.allclose(each, scores, rounding, rounding) for each in maps)


def _chosen_token(own: Tensor, scores: Tensor) -> Tensor | None:
    """Which token (N,) of scores (N, T, K) the model's scores (N, K) are of; None: of none."""
    if scores.ndim != 2 or own.shape[::2] != scores.shape:
        return None
    same = (own == scores.unsqueeze(1)).all(dim=2)
    return same.int().argmax(dim=1) if bool(same.any(dim=1).all()) else None


def _vectors(values: Tensor) -> Tensor:
    """(N, d, 1, 1) -> (N, d), and (N, T, d) -> (N T, d)."""
    if values.ndim > 3 and values.shape[2:].numel() == 1:
        return values.flatten(1)
    return values.flatten(0, -2)
