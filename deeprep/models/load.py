"""Models by name: torchvision's, timm's, local Hugging Face folders, and your own factories.

resnet18                 a torchvision classifier
timm:vit_tiny_patch16_224    a timm model
hf:path/to/folder        a Hugging Face model in a local folder
package.module:factory   what your own function or class returns

Nothing is ever downloaded: weights are random, or read from local files.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from deeprep.data.tokenizers import ByteTokenizer, Tokenizer
from deeprep.models.hugging_face import load_hugging_face
from deeprep.models.loaded import LoadedModel, check_images, describe_error, import_extra
from deeprep.models.registry import STACKS
from deeprep.models.vision import FittedImages, VisionModel, vision_names

__all__ = ["load_model"]


def load_model(
    name: str, num_classes: int, input_shape: tuple[int, ...] | None = None
) -> LoadedModel:
    """Build the model of a name, for data of a shape.

    Random weights are drawn from torch's global generator: call `torch.manual_seed` first to fix
    them. Images are fitted to torchvision's, timm's and Hugging Face's networks: one channel is
    repeated, small images are enlarged, and for timm and Hugging Face all are resized to the size
    that the network was made for. Sentences go through the tokenizer of the Hugging Face folder.

    Parameters
    ----------
    name
        ``resnet18`` (any classifier of torchvision), ``timm:NAME``, ``hf:FOLDER``, or
        ``package.module:factory``. A factory is called with ``num_classes`` if it takes it, else
        with nothing, and gets the samples as they are: for sentences its model is called as
        ``model(input_ids=..., attention_mask=...)``, with the ids of `ByteTokenizer` unless the
        factory returns a pair (model, tokenizer).
    num_classes
        K, the number of outputs; a Hugging Face model is built without a head.
    input_shape
        Shape of one sample; None for sentences.

    Raises
    ------
    ValueError, TypeError
        An unknown name, a model that does not take such data, or a factory that fails.
    FileNotFoundError
        A folder that does not exist or holds no model.
    ImportError
        A name that needs a library which is not installed.

    >>> model = load_model("squeezenet1_1", 10, (1, 8, 8))
    >>> type(model.module.network).__name__, model.weights
    ('SqueezeNet', 'random')
    """
    kind, separator, rest = name.partition(":")
    if kind == "timm" and separator:
        return _timm(name, rest, num_classes, input_shape)
    if kind == "hf" and separator:
        return load_hugging_face(name, Path(rest).expanduser(), num_classes, input_shape)
    if separator:
        return _own(name, num_classes, input_shape)
    return _torchvision(name, num_classes, input_shape)


def _torchvision(name: str, num_classes: int, input_shape: tuple[int, ...] | None) -> LoadedModel:
    if name in STACKS:
        raise ValueError(
            f"model {name} has no depth and width of its own; train one with "
            f"`python -m deeprep.run --arch {name}` and give its run directory"
        )
    if name not in vision_names():
        close = difflib.get_close_matches(name, vision_names())
        raise ValueError(
            f"model is {name!r}, expected a torchvision classifier, timm:NAME, hf:FOLDER, "
            "package.module:factory or a run directory"
            + (f"; did you mean {', '.join(close)}?" if close else "")
        )
    check_images(name, input_shape, 3)
    shape = input_shape or ()

    def build(num_outputs: int) -> nn.Module:
        return VisionModel(name, shape, num_outputs)

    return LoadedModel(name, build(num_classes), num_classes, build=build)


def _timm(
    name: str, architecture: str, num_classes: int, input_shape: tuple[int, ...] | None
) -> LoadedModel:
    timm = import_extra("timm", f"model {name}")
    if not timm.is_model(architecture):  # else timm would look for it on the network
        close = difflib.get_close_matches(architecture, timm.list_models())
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise ValueError(f"model {name}: timm has no {architecture!r}{hint}")

    def build(num_outputs: int) -> nn.Module:
        network = timm.create_model(architecture, pretrained=False, num_classes=num_outputs)
        channels, height, width = timm.data.resolve_model_data_config(network)["input_size"]
        check_images(name, input_shape, channels)
        return FittedImages(network, channels=channels, fixed_size=(height, width))

    return LoadedModel(name, build(num_classes), num_classes, build=build)


# ----------------------------------------------------------------- your own models


def _own(name: str, num_classes: int, input_shape: tuple[int, ...] | None) -> LoadedModel:
    factory = _import(name)
    tokenizer: Tokenizer | None = ByteTokenizer() if input_shape is None else None

    def build(num_outputs: int) -> nn.Module:
        nonlocal tokenizer
        module = _call(name, factory, num_outputs)
        if isinstance(module, tuple) and len(module) == 2:
            module, tokenizer = module
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"model {name} gives a {type(module).__name__}, expected a torch.nn.Module, or a "
                "pair of one and a tokenizer"
            )
        return module

    module = build(num_classes)
    if input_shape is None:
        _check_takes_ids(name, module)
    takes_classes = not isinstance(factory, nn.Module) and "num_classes" in _parameters(factory)
    return LoadedModel(
        name,
        module,
        num_classes,
        build=build if takes_classes else None,
        tokenizer=tokenizer,
    )


def _import(name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module_name)
    except Exception as error:  # whatever that module does
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(
            f"{error.name}."
        ):
            message = f"model {name}: there is no module {error.name!r}, here or installed"
            raise ValueError(message) from error
        raise ValueError(f"model {name}: {module_name} raised {describe_error(error)}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            close = difflib.get_close_matches(part, dir(found))
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise ValueError(f"model {name}: {module_name} has no {attribute!r}{hint}")
        found = getattr(found, part)
    return found


def _call(name: str, factory: Any, num_outputs: int) -> Any:
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise TypeError(f"model {name} is a {type(factory).__name__}, expected a function or class")
    parameters = _parameters(factory)
    given = {"num_classes": num_outputs} if "num_classes" in parameters else {}
    needed = [
        each.name
        for each in parameters.values()
        if each.default is each.empty
        and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        and each.name not in given
    ]
    if needed:
        raise TypeError(
            f"model {name} needs {', '.join(needed)}, expected a factory without arguments, or "
            "with num_classes alone"
        )
    try:
        return factory(**given)
    except Exception as error:  # whatever it does
        raise ValueError(f"model {name} raised {describe_error(error)}") from error


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # some functions written in C
        return {}


def _check_takes_ids(name: str, module: nn.Module) -> None:
    parameters = _parameters(module.forward)
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    if not takes_any and not {"input_ids", "attention_mask"} <= parameters.keys():
        raise TypeError(
            f"model {name} takes ({', '.join(parameters)}), expected forward(input_ids, "
            "attention_mask) for sentences"
        )
