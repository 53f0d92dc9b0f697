"""Whether a language model is causal: what it makes of a token must not depend on later ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deeprep.probe.evaluation import to_device, weights_device
from deeprep.probe.layers import model_to_run
from deeprep.probe.reduce import feature_tensor
from deeprep.probe.token_targets import input_ids_of

_ROUNDING = 8  # units in the last place of the largest number that are no dependence


def sees_later_tokens(model: nn.Module, inputs: Any) -> bool:
    """Whether the output at a sequence's first half changes with the tokens of its second half.

    Runs the model twice on the longest sequence of a batch. False, too, where that cannot be told:
    fewer than two tokens, an output other than (N, T, C), a model that does not take a single row,
    or one whose weights lie with several processes, all of which would have to run it as often.

    Parameters
    ----------
    model
        In eval mode, without gradients.
    inputs
        Of one batch, as `LayerProbe` takes them.
    """
    ids = input_ids_of(inputs)
    if ids is None or ids.ndim != 2 or ids.shape[1] < 2 or not ids.shape[0]:
        return False
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    is_token = torch.ones_like(ids, dtype=torch.bool)
    if isinstance(mask, Tensor) and mask.shape == ids.shape:
        is_token = mask.to(ids.device) != 0
    sample = int(is_token.sum(dim=1).argmax())
    row, tokens = ids[sample : sample + 1], is_token[sample].nonzero().flatten()
    if len(tokens) < 2 or _is_shared_out(model):
        return False
    middle = int(tokens[len(tokens) // 2])
    other = row.clone()
    other[:, middle:] = torch.where(row[:, middle:] > 0, row[:, middle:] - 1, row.max())
    kept = tokens[tokens < middle]
    try:
        outputs = [
            _output(model, _with_row(inputs, ids, sample, changed)) for changed in (row, other)
        ]
    except Exception:  # of any kind; the batch itself has just run
        return False
    if any(output.ndim != 3 or output.shape[1] != ids.shape[1] for output in outputs):
        return False
    first, second = (output[0, kept.to(output.device)] for output in outputs)
    tolerance = _ROUNDING * torch.finfo(first.dtype).eps * first.abs().max()
    return bool(((first - second).abs() > tolerance).any())


def _output(model: nn.Module, inputs: Any) -> Tensor:
    model, inputs = model_to_run(model), to_device(inputs, weights_device(model))
    if isinstance(inputs, Mapping):
        output = model(**inputs)
    elif isinstance(inputs, tuple | list):
        output = model(*inputs)
    else:
        output = model(inputs)
    return feature_tensor(output, 1)


def _is_shared_out(model: nn.Module) -> bool:
    """Whether a forward is an affair of several processes: FSDP, or weights that are DTensors."""
    wrapped = any("_fsdp_wrapped_module" in module._modules for module in model.modules())
    return wrapped or any(hasattr(weight, "device_mesh") for weight in model.parameters())


def _with_row(value: Any, ids: Tensor, sample: int, row: Tensor) -> Any:
    """The inputs of one sample alone, with other tokens."""
    if value is ids:
        return row
    if isinstance(value, Mapping):
        return {name: _with_row(each, ids, sample, row) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_with_row(each, ids, sample, row) for each in value)
    per_sample = isinstance(value, Tensor) and value.ndim > 1 and len(value) == len(ids)
    return value[sample : sample + 1] if per_sample else value
