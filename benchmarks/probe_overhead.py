"""What `deeprep.analyze` costs on top of running the model: in time, and in memory.

The bare forward and three ways to analyze take turns over the same loader, in eval mode and without
gradients: by default, with full="auto", and with accuracy=True, which runs the model twice. Of the
language model every position is a sample, and each of its next tokens a class.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer, resnet18

import deeprep
from benchmarks.memory import in_fresh_process, peak_growth
from benchmarks.timing import median_ratio, taking_turns, threads
from deeprep import reference

Reduce = Literal["mean", "flatten", "tokens", "next-token"]
Loader = list[tuple[Tensor, Tensor]]

NUM_CLASSES = 10
_BATCH = 64
_IMAGE = 64  # pixels on a side
_PATCH = 8
_CONTEXT = 65  # tokens, as many as the ViT has
_VOCABULARY = 2000
_WIDTH = 192
_NUM_BLOCKS = 12
_NUM_BATCHES = 8
_MEMORY_BATCHES = 1  # and eight times as many
_MODES = ("default", "full", "accuracy")
_TOLERANCE = 1e-5  # of the accuracy contract


@dataclass(frozen=True)
class ProbeOverhead:
    """Seconds of a forward pass over the loader, and times over it, medians turn by turn.

    `default_quartiles` are the first and third of the same turns.
    `extra_bytes` is the peak of `analyze` less that of the bare forward, in a fresh process,
    `extra_bytes_8x` the same with eight times the data; None: the system does not tell.
    """

    model: str
    reduce: Reduce
    num_layers: int
    num_samples: int
    bare: float
    default: float
    default_quartiles: tuple[float, float]
    full: float
    accuracy: float
    state_bytes: int
    extra_bytes: int | None
    extra_bytes_8x: int | None


class _PlainEncoder(nn.Module):
    """PyTorch's own encoder layers, which it fuses where no hook looks inside."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, _WIDTH, _PATCH, _PATCH)
        layer = nn.TransformerEncoderLayer(
            _WIDTH, _WIDTH // 64, 4 * _WIDTH, batch_first=True, activation="gelu"
        )
        self.encoder = nn.TransformerEncoder(layer, _NUM_BLOCKS, enable_nested_tensor=False)
        self.head = nn.Linear(_WIDTH, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.encoder(tokens).mean(dim=1))
        return logits


class _LanguageModel(nn.Module):
    """PyTorch's own encoder layers under a causal mask, between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(_VOCABULARY, _WIDTH)
        layer = nn.TransformerEncoderLayer(
            _WIDTH, _WIDTH // 64, 4 * _WIDTH, batch_first=True, activation="gelu", norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, _NUM_BLOCKS, enable_nested_tensor=False)
        self.head = nn.Linear(_WIDTH, _VOCABULARY)
        mask = nn.Transformer.generate_square_subsequent_mask(_CONTEXT)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.tokens(ids), mask=self.mask, is_causal=True))
        return logits


def _vision_transformer() -> nn.Module:
    model: nn.Module = VisionTransformer(
        image_size=_IMAGE,
        patch_size=_PATCH,
        num_layers=_NUM_BLOCKS,
        num_heads=_WIDTH // 64,
        hidden_dim=_WIDTH,
        mlp_dim=4 * _WIDTH,
        num_classes=NUM_CLASSES,
    )
    return model


# By name: how to build it, and how many blocks analyze is to find by itself.
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "ResNet-18": (partial(resnet18, num_classes=NUM_CLASSES), 8),
    "ViT, 12 blocks": (_vision_transformer, _NUM_BLOCKS),
    "nn.TransformerEncoder, 12 layers": (_PlainEncoder, _NUM_BLOCKS),
    "language model, 12 layers": (_LanguageModel, _NUM_BLOCKS),
}
CASES: tuple[tuple[str, Reduce], ...] = (
    ("ResNet-18", "mean"),
    ("ResNet-18", "flatten"),
    ("ViT, 12 blocks", "mean"),
    ("ViT, 12 blocks", "tokens"),
    ("nn.TransformerEncoder, 12 layers", "mean"),
    ("language model, 12 layers", "next-token"),
)


def probe_overheads(
    num_threads: int, seconds: float, quick: bool = False
) -> Iterator[ProbeOverhead]:
    """Measure every case; `quick` runs four images once, on one thread, and leaves memory out."""
    with threads(1 if quick else num_threads):
        for name, reduce in CASES:
            yield _measure(name, reduce, num_threads, seconds, quick)


def _measure(
    name: str, reduce: Reduce, num_threads: int, seconds: float, quick: bool
) -> ProbeOverhead:
    model = _build(name)
    loader = _loader(reduce, 4 if quick else _BATCH, 1 if quick else _NUM_BATCHES)
    _check(model, name, reduce, loader[:1])
    bare = partial(_forward, model, loader)
    calls = {mode: partial(_analyze, model, reduce, loader, mode) for mode in _MODES}
    with threads(num_threads):
        # Seconds of a bare forward differ by a tenth from turn to turn: many turns for what is to
        # be known to a few percent. The other two cost as much again, and one turn tells that.
        times = taking_turns([bare, calls["default"]], seconds, min_repeats=1 if quick else 15)
        ratios = {"default": median_ratio(times[1], times[0])}
        low, high = np.quantile(np.divide(times[1], times[0]), (0.25, 0.75))
        first, *others = taking_turns([bare, calls["full"], calls["accuracy"]], 0.0, min_repeats=1)
        ratios["full"], ratios["accuracy"] = (median_ratio(once, first) for once in others)
    peaks = (None, None) if quick else in_fresh_process(_peaks, num_threads, name, reduce)
    return ProbeOverhead(
        model=name,
        reduce=reduce,
        num_layers=len(_analyze(model, reduce, loader[:1]).layers),
        num_samples=sum(len(inputs) for inputs, _ in loader),
        bare=statistics.median(times[0]),
        default_quartiles=(float(low), float(high)),
        **ratios,
        state_bytes=_state_bytes(model, reduce, loader[:1]),
        extra_bytes=peaks[0],
        extra_bytes_8x=peaks[1],
    )


def _build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name][0]().eval()


def _loader(reduce: Reduce, batch: int, num_batches: int) -> Loader:
    """The same batch over and over: so much data takes no more memory than one batch."""
    generator = torch.Generator().manual_seed(0)
    if reduce == "next-token":
        ids = torch.randint(_VOCABULARY, (batch, _CONTEXT), generator=generator)
        return [(ids, ids)] * num_batches
    images = torch.randn(batch, 3, _IMAGE, _IMAGE, generator=generator)
    return [(images, torch.arange(batch) % NUM_CLASSES)] * num_batches


def _forward(model: nn.Module, loader: Loader) -> None:
    with torch.no_grad():
        for inputs, _ in loader:
            model(inputs)


def _analyze(
    model: nn.Module, reduce: Reduce, loader: Loader, mode: str = "default"
) -> deeprep.LayerReport:
    options = (
        {"full": "auto"} if mode == "full" else {"accuracy": True} if mode == "accuracy" else {}
    )
    return deeprep.analyze(model, loader, **_how(reduce), **options)


def _how(reduce: Reduce) -> dict[str, Any]:
    if reduce == "next-token":
        return {"labels": "next-token"}
    return {"num_classes": NUM_CLASSES, "reduce": reduce}


def _state_bytes(model: nn.Module, reduce: Reduce, loader: Loader) -> int:
    """Bytes of the states of all layers, the input included."""
    with torch.no_grad(), deeprep.LayerProbe(model, **_how(reduce)) as probe:
        probe(*loader[0])
    return sum(
        tensor.nbytes
        for scatter in probe.scatters.values()
        for tensor in (scatter.counts, scatter.means, scatter.sumsq)
    )


def _check(model: nn.Module, name: str, reduce: Reduce, loader: Loader) -> None:
    """Raise unless the last layer's compression is that of the reference, and every layer there."""
    report = _analyze(model, reduce, loader)
    wanted = 1 + MODELS[name][1]
    if len(report.layers) != wanted:
        raise AssertionError(f"{name} has {len(report.layers)} layers, expected {wanted}")
    outputs: list[Tensor] = []
    last = model.get_submodule(report.layers[-1].name)
    handle = last.register_forward_hook(lambda _, __, output: outputs.append(output))
    _forward(model, loader)
    handle.remove()
    features, labels = outputs[0], loader[0][1]
    if reduce == "next-token":
        features, labels = features[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    elif reduce == "tokens":
        labels = labels.repeat_interleave(features.shape[1])
        features = features.flatten(0, 1)
    elif reduce == "mean":
        features = features.mean(1) if features.ndim == 3 else features.flatten(2).mean(2)
    expected = reference.compression(features.flatten(1).double().numpy(), labels.numpy())
    found = report.layers[-1].compression
    if found is None or abs(found - expected) > _TOLERANCE * expected:
        raise AssertionError(f"{name}, {reduce}: compression is {found}, expected {expected}")


# ------------------------------------------------------------------------ memory


def _peaks(num_threads: int, name: str, reduce: Reduce) -> tuple[int | None, int | None]:
    """Peak of `analyze` less that of the bare forward, for some data and eight times as much."""
    torch.set_num_threads(num_threads)
    model = _build(name)
    _analyze(model, reduce, _loader(reduce, _BATCH, 1))  # loads what loads only once
    extra: list[int | None] = []
    for num_batches in (_MEMORY_BATCHES, 8 * _MEMORY_BATCHES):
        loader = _loader(reduce, _BATCH, num_batches)
        bare = peak_growth(partial(_forward, model, loader))
        ours = peak_growth(partial(_analyze, model, reduce, loader))
        extra.append(None if bare is None or ours is None else ours - bare)
    return extra[0], extra[1]
