"""Which modules of a model are its layers: by name, glob, type, or chosen automatically."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

LayerSelector = str | type[nn.Module]
Modules = dict[str, nn.Module]

_LISTS = (nn.ModuleList, nn.ModuleDict)  # hold modules, never run themselves
_CONTAINERS = (nn.Sequential, *_LISTS)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
# What torch.compile, FSDP and activation checkpointing put between a module and its name.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_FINISHING = tuple(
    f"torch.nn.modules.{name}" for name in ("activation", "batchnorm", "normalization")
)


def model_to_run(model: nn.Module) -> nn.Module:
    """The module to call: `model` without DataParallel, DistributedDataParallel, torch.compile.

    DataParallel would scatter the labels of a batch; DistributedDataParallel sends buffers in its
    forward and so hangs where ranks have different numbers of batches. FSDP stays: it must gather
    the parameters.
    """
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, parallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        else:
            return model


def innermost_model(model: nn.Module) -> nn.Module:
    """The module whose attributes and children the user wrote, without any wrapper."""
    model = model_to_run(model)
    while inner := _WRAPPERS.intersection(model._modules.keys()):
        model = model_to_run(model.get_submodule(min(inner)))
    return model


def named_layers(model: nn.Module) -> Modules:
    """Name -> module of all but the model itself, wrappers and parametrisations left out.

    Names are those of the model as it was before it was wrapped. What is inside a TorchScript
    module is left out too: it never runs as Python.
    """
    named: Modules = {}
    scripted: tuple[str, ...] = ()
    for name, module in innermost_model(model).named_modules():
        if name.startswith(scripted):
            continue
        if isinstance(module, torch.jit.ScriptModule):
            scripted += (f"{name}.",)
        parts = name.split(".")
        clean = ".".join(part for part in parts if part not in _WRAPPERS)
        if clean and "parametrizations" not in parts:
            named[clean] = module  # a wrapper comes first and gives way to what it holds
    return named


def check_model(model: nn.Module) -> None:
    """Check that a model is a module, and one that takes hooks.

    Raises
    ------
    TypeError
        For anything else.
    """
    if not isinstance(model, nn.Module):
        kind = "None" if model is None else f"a {type(model).__name__}"
        raise TypeError(f"model is {kind}, expected a torch.nn.Module")
    _check_takes_hooks("model", innermost_model(model))


def _check_takes_hooks(what: str, module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError(
            f"{what} is a TorchScript module, which takes no hooks, expected the Python module "
            "that it was made from"
        )


def select_layers(
    model: nn.Module, layers: LayerSelector | Sequence[LayerSelector] | None
) -> Modules:
    """Name -> module of the layers that `layers` asks for.

    Parameters
    ----------
    model
        Any module.
    layers
        Names, shell-style globs ("blocks.*") or module types, one or several; None or "auto" for
        `automatic_layers`.

    Raises
    ------
    ValueError
        Where a name, glob or type matches no module; close names are offered.
    TypeError
        Where a layer is a TorchScript module.
    """
    if layers is None or layers == "auto":
        chosen = automatic_layers(model)
    else:
        chosen = _layers_asked_for(model, layers)
    for name, module in chosen.items():
        _check_takes_hooks(f"layer {name!r}", module)
    return chosen


def _layers_asked_for(model: nn.Module, layers: LayerSelector | Sequence[LayerSelector]) -> Modules:
    selectors = [layers] if isinstance(layers, str | type) else list(layers)
    modules = named_layers(model)
    chosen: Modules = {}
    for selector in selectors:
        if isinstance(selector, type):
            found = {n: m for n, m in modules.items() if isinstance(m, selector)}
        elif isinstance(selector, str):
            found = {n: m for n, m in modules.items() if fnmatchcase(n, selector)}
        else:
            raise TypeError(f"layers holds {selector!r}, expected a name, a glob or a module type")
        if not found:
            close = difflib.get_close_matches(str(selector), modules, n=3, cutoff=0.3)
            hint = f"; close names: {', '.join(close)}" if close else ""
            raise ValueError(f"layers holds {selector!r}, which matches no module{hint}")
        chosen.update(found)
    return chosen


def automatic_layers(model: nn.Module) -> Modules:
    """The layers a reader of the model would name.

    In this order of preference:

    1. the modules that the model itself lists by name in an attribute ``probe_layers``;
    2. its blocks: outermost modules with children and weights whose type occurs more than once or
       which are items of a ModuleList, with their neighbours of other types in the same lists. A
       stage (a module that holds a list of blocks of one type) is no block, its blocks are; nor is
       what also occurs as a part of other blocks (a stem of convolution + norm);
    3. items of a Sequential with children of their own between its first and its last weights;
    4. every Linear and convolution of a plain stack but the last (the classifier), together with
       the normalisation and activation that directly follow it in the same Sequential.

    A model that is a single Linear has none: its input is all there is to measure.

    Examples
    --------
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    >>> list(automatic_layers(model))
    ['1', '2']
    """
    inner, modules = innermost_model(model), named_layers(model)
    named_by_model = getattr(inner, "probe_layers", None)
    if named_by_model is not None:
        if missing := [name for name in named_by_model if name not in modules]:
            raise ValueError(f"probe_layers of the model holds {missing}, which it does not have")
        return {name: modules[name] for name in named_by_model}
    tree = _Tree({"": inner, **modules})
    return _repeated_blocks(tree) or _blocks_after_a_stem(tree) or _plain_stack(tree)


def embedding_layers(model: nn.Module, chosen: Mapping[str, nn.Module]) -> list[nn.Module]:
    """The modules that may turn integer inputs into the features of layer 0.

    Each nn.Embedding stands for the largest module around it that has no other weight matrices and
    none of the chosen layers inside: BERT's `embeddings`, which adds positions and normalises.
    """
    modules = named_layers(model)
    others = [n for n in _weighted_layers(modules) if not isinstance(modules[n], _EMBEDDINGS)]
    barred = {ancestor for name in (*others, *chosen) for ancestor in _ancestors(name)}
    found: dict[nn.Module, None] = {}
    for name, module in modules.items():
        if isinstance(module, _EMBEDDINGS):
            around = [a for a in _ancestors(name) if a not in barred]
            largest = next((a for a in around if not isinstance(modules[a], _LISTS)), name)
            found[modules[largest]] = None
    return list(found)


def channels_are_last(module: nn.Module, shape: Sequence[int]) -> bool:
    """Whether an output (N, ...) of four dimensions or more is (N, H, W, C), as those of Swin are.

    A shape does not tell; the parts of the module do. What normalises or multiplies along the last
    axis (LayerNorm, RMSNorm, Linear) knows its size, what works on (N, C, H, W) the number of its
    channels. The channels are last if the last axis has a size of the first kind and axis 1 none of
    the second, as it has in ConvNeXt's blocks, whose LayerNorm sees the transposed map.
    """
    last: set[int] = set()
    first: set[int] = set()
    for part in module.modules():
        normalized = tuple(getattr(part, "normalized_shape", ()))
        last.update(normalized if len(normalized) == 1 else ())
        last.update(_sizes(part, "out_features"))
        first.update(_sizes(part, "out_channels", "num_features", "num_channels"))
    return shape[-1] in last and shape[1] not in first


def _sizes(module: nn.Module, *names: str) -> list[int]:
    found = (getattr(module, name, None) for name in names)
    return [size for size in found if isinstance(size, int)]


class _Tree:
    """The modules of a model by name, "" being itself; what each holds, and what has weights.

    `composite` are the modules with weights inside that are no containers.
    """

    def __init__(self, modules: Modules) -> None:
        self.modules = modules
        self.items: dict[str, list[str]] = {name: [] for name in modules}
        for name in modules:
            if name:
                self.items[_parent(name)].append(name)
        self.weighted = list(_weighted_layers(modules))
        self.num_weights = Counter(a for name in self.weighted for a in _ancestors(name))
        self.composite = {
            name: type(module)
            for name, module in modules.items()
            if name in self.num_weights and not isinstance(module, _CONTAINERS)
        }
        # What holds the last weights of all, and so the classifier.
        self.around_classifier = set(_ancestors(self.weighted[-1])) if self.weighted else set()

    def is_container(self, name: str) -> bool:
        return isinstance(self.modules[name], _CONTAINERS)

    def outermost_list(self, name: str) -> str | None:
        """The first of the unbroken chain of lists and Sequentials that holds `name`, if any."""
        found = None
        while name and self.is_container(name := _parent(name)):
            found = name
        return found

    def are_blocks(self, names: Sequence[str]) -> bool:
        """Are these of one type, with two weights or more each: no convolution and its norm."""
        kinds = {self.composite.get(name) for name in names}
        several = all(self.num_weights[name] > 1 for name in names)
        return several and len(kinds) == 1 and None not in kinds


def _repeated_blocks(tree: _Tree) -> Modules:
    composite = tree.composite
    occurrences = Counter(composite.values())
    stages = _stages(tree)
    outside = {n for n in composite for a in _ancestors(n) if not _is_below(n, stages.get(a))}
    possible = [name for name in composite if name not in stages and name not in outside]
    blocks = {
        name
        for name in possible
        if occurrences[composite[name]] > 1
        or isinstance(tree.modules[_parent(name)], nn.ModuleList)
    }
    lists = {tree.outermost_list(name) for name in blocks} - {None}
    blocks |= {
        name
        for name in possible
        if tree.outermost_list(name) in lists and name not in tree.around_classifier
    }
    blocks = _outermost(blocks)
    parts = {
        composite[name]
        for name in composite
        for a in _ancestors(name)
        if a in blocks and composite[a] is not composite[name]
    }
    whole = {name for name in blocks if composite[name] not in parts} or blocks
    return {name: tree.modules[name] for name in composite if name in whole}


def _stages(tree: _Tree) -> dict[str, list[str]]:
    """Name of a stage -> its blocks: all its children, or all items of lists that it holds.

    Blocks of a stage are of one type, with two weights or more each. A type is a stage only where
    each of its instances is, and where one of them holds a list or several blocks: a wrapper around
    a single module may be anything. Experts of a mixture see a part of the tokens each, so what
    holds them is the block.
    """
    found: dict[str, list[str]] = {}
    certain = set()
    for name, kind in tree.composite.items():
        children = tree.items[name]
        lists = [c for c in children if tree.is_container(c) and "expert" not in c]
        blocks = [i for c in lists if tree.are_blocks(tree.items[c]) for i in tree.items[c]]
        if not blocks and tree.are_blocks(children):
            blocks = children
        if blocks:
            found[name] = blocks
        if len(blocks) > 1 or (blocks and blocks is not children):
            certain.add(kind)
    lone = {kind for name, kind in tree.composite.items() if name not in found}
    return {n: blocks for n, blocks in found.items() if tree.composite[n] in certain - lone}


def _is_below(name: str, blocks: Sequence[str] | None) -> bool:
    """Is `name` one of a stage's blocks or inside one; what is in no stage is."""
    return blocks is None or not {name, *_ancestors(name)}.isdisjoint(blocks)


def _blocks_after_a_stem(tree: _Tree) -> Modules:
    """Items of a Sequential with children of their own, once weights came before them in it.

    So a block after a stem is one layer, while the backbone before a head is looked into.
    """
    with_weights = {a for name in tree.weighted for a in (name, *_ancestors(name))}
    blocks = set()
    for name in tree.composite:
        parent = _parent(name)
        before = tree.items[parent][: tree.items[parent].index(name)]
        if (
            isinstance(tree.modules[parent], nn.Sequential)
            and name not in tree.around_classifier
            and not with_weights.isdisjoint(before)
        ):
            blocks.add(name)
    blocks = _outermost(blocks)
    return {name: tree.modules[name] for name in tree.composite if name in blocks}


def _outermost(names: set[str]) -> set[str]:
    return {name for name in names if names.isdisjoint(_ancestors(name))}


def _plain_stack(tree: _Tree) -> Modules:
    layers: Modules = {}
    for name in tree.weighted[:-1]:
        if isinstance(tree.modules[name], _EMBEDDINGS):
            continue  # its output is layer 0
        end = name
        if isinstance(tree.modules[_parent(name)], nn.Sequential):
            siblings = tree.items[_parent(name)]
            for follower in siblings[siblings.index(name) + 1 :]:
                if not _finishes_a_layer(tree.modules[follower]):
                    break
                end = follower
        layers[end] = tree.modules[end]
    return layers


def _weighted_layers(modules: Modules) -> Modules:
    """Name -> module of the Linears, convolutions, embeddings: what multiplies by a matrix."""
    weighted: Modules = {}
    for name, module in modules.items():
        if _is_weighted(module) and not weighted.keys() & set(_ancestors(name)):
            weighted[name] = module
    return weighted


def _is_weighted(module: nn.Module) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return True  # its own projections; its child out_proj never runs
    if isinstance(module, torch.jit.ScriptModule):
        return any(p.ndim >= 2 for p in module.parameters())
    parametrized = module._modules.get("parametrizations")
    if isinstance(parametrized, nn.ModuleDict):
        # Looking at module.weight would compute it, and spectral_norm would write its buffers.
        if "weight" in parametrized:
            return any(p.ndim >= 2 for p in parametrized["weight"].parameters())
        return False
    if type(module).__module__.startswith("torch.ao.nn"):  # quantised, with children of their own
        weight = getattr(module, "weight", None)
        weight = weight() if callable(weight) else weight
    elif module._modules:
        return False
    else:
        weight = getattr(module, "weight", None)
    return getattr(weight, "ndim", 0) >= 2


def _finishes_a_layer(module: nn.Module) -> bool:
    """Is it a normalisation or an activation, also where a wrapper made a subclass of it."""
    return not isinstance(module, nn.MultiheadAttention) and any(
        base.__module__.startswith(_FINISHING) for base in type(module).__mro__
    )


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _ancestors(name: str) -> Iterator[str]:
    """Names of the modules around `name`, the outermost first."""
    for position, letter in enumerate(name):
        if letter == ".":
            yield name[:position]
