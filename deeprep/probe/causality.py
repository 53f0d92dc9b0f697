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

    Runs the model twice on the first row of a batch. False, too, where that cannot be told: fewer
    than two tokens, an output other than (N, T, C), or a model that does not take a single row.

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
    row = ids[:1]
    is_token = mask[0] != 0 if isinstance(mask, Tensor) and mask.ndim == 2 else row[0] == row[0]
    tokens = is_token.nonzero().flatten()
    if len(tokens) < 2:
        return False
    middle = int(tokens[len(tokens) // 2])
    other = row.clone()
    other[:, middle:] = torch.where(row[:, middle:] > 0, row[:, middle:] - 1, row.max())
    kept = tokens[tokens < middle]
    try:
        outputs = [_output(model, _with_row(inputs, ids, changed)) for changed in (row, other)]
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


def _with_row(value: Any, ids: Tensor, row: Tensor) -> Any:
    """The inputs of the first sample alone, with other tokens."""
    if value is ids:
        return row
    if isinstance(value, Mapping):
        return {name: _with_row(each, ids, row) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_with_row(each, ids, row) for each in value)
    per_sample = isinstance(value, Tensor) and value.ndim > 1 and len(value) == len(ids)
    return value[:1] if per_sample else value
