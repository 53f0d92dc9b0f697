"""Which modules of a model are its layers: by name, glob, type, or chosen automatically."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

LayerSelector = str | type[nn.Module]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_FINISHING = tuple(
    f"torch.nn.modules.{name}" for name in ("activation", "batchnorm", "normalization")
)


def select_layers(
    model: nn.Module, layers: LayerSelector | Sequence[LayerSelector] | None
) -> dict[str, nn.Module]:
    """Name -> module of the layers that `layers` asks for.

    Parameters
    ----------
    model : any module.
    layers : names, shell-style globs ("blocks.*") or module types, one or several; None or "auto"
        for `automatic_layers`.

    Raises
    ------
    ValueError
        Where a name, glob or type matches no module; close names are offered.
    """
    if layers is None or layers == "auto":
        return automatic_layers(model)
    selectors = [layers] if isinstance(layers, str | type) else list(layers)
    modules = {name: module for name, module in model.named_modules() if name}
    chosen: dict[str, nn.Module] = {}
    for selector in selectors:
        if isinstance(selector, type):
            found = {n: m for n, m in modules.items() if isinstance(m, selector)}
        else:
            found = {n: m for n, m in modules.items() if fnmatchcase(n, selector)}
        if not found:
            close = difflib.get_close_matches(str(selector), modules, n=3, cutoff=0.3)
            hint = f"; close names: {', '.join(close)}" if close else ""
            raise ValueError(f"layers holds {selector!r}, which matches no module{hint}")
        chosen.update(found)
    return chosen


def automatic_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers a reader of the model would name.

    In this order of preference: the modules that the model itself lists by name in an attribute
    ``probe_layers``; its blocks, that is the outermost modules of a type that occurs more than
    once and has children (residual and transformer blocks); every Linear and convolution of a
    plain stack but the last (the classifier), together with the normalisation and activation that
    directly follow it in the same Sequential.

    Examples
    --------
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    >>> list(automatic_layers(model))
    ['1', '2']
    """
    named_by_model = getattr(model, "probe_layers", None)
    if named_by_model is not None:
        return {name: model.get_submodule(name) for name in named_by_model}
    return _repeated_blocks(model) or _plain_stack(model)


def _repeated_blocks(model: nn.Module) -> dict[str, nn.Module]:
    composite = {
        name: module
        for name, module in model.named_modules()
        if name and next(module.children(), None) and not isinstance(module, _CONTAINERS)
    }
    occurrences = Counter(type(module) for module in composite.values())
    blocks: dict[str, nn.Module] = {}
    for name, module in composite.items():
        parents = {name[:i] for i, letter in enumerate(name) if letter == "."}
        if occurrences[type(module)] > 1 and not parents & blocks.keys():
            blocks[name] = module
    return blocks


def _plain_stack(model: nn.Module) -> dict[str, nn.Module]:
    modules = dict(model.named_modules())
    weighted = [n for n, m in modules.items() if _is_weighted(m)]
    layers: dict[str, nn.Module] = {}
    for name in weighted[:-1]:
        parent_name, _, child = name.rpartition(".")
        parent = modules[parent_name]
        end = child
        if isinstance(parent, nn.Sequential):
            names = list(parent._modules)
            for follower in names[names.index(child) + 1 :]:
                if not _finishes_a_layer(parent._modules[follower]):
                    break
                end = follower
        full_name = f"{parent_name}.{end}" if parent_name else end
        layers[full_name] = modules[full_name]
    return layers


def _is_weighted(module: nn.Module) -> bool:
    """Is it a Linear, a convolution or another leaf that multiplies by a matrix."""
    weight = getattr(module, "weight", None)
    return not list(module.children()) and getattr(weight, "ndim", 0) >= 2


def _finishes_a_layer(module: nn.Module | None) -> bool:
    return type(module).__module__.startswith(_FINISHING)
