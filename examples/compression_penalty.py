"""A metric as a loss: the MLP of `make demo`, trained with and without a penalty on one layer's C.

python examples/compression_penalty.py
"""

import argparse
from pathlib import Path

import torch

import deeprep
from deeprep.data import Data, load_data
from deeprep.models import ModelSettings, build_model


def train(data: Data, layer: str, weight: float, epochs: int) -> deeprep.LayerReport:
    """Train with weight * C of a layer added to the loss, and measure all layers."""
    torch.manual_seed(0)
    settings = ModelSettings("mlp", depth=8, width=256, init="orthogonal", init_scale=0.1)
    model = build_model(settings, tuple(data.inputs.shape[1:]), num_classes=10)
    outputs: list[torch.Tensor] = []
    penalised = model.get_submodule(layer)
    hook = penalised.register_forward_hook(lambda _, __, output: outputs.append(output))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(data.labels)).split(256):
            labels = data.labels[rows]
            loss = torch.nn.functional.cross_entropy(model(data.inputs[rows]), labels)
            penalty = deeprep.losses.compression(outputs.pop(), labels, 10)
            optimizer.zero_grad()
            (loss + weight * penalty).backward()
            optimizer.step()
    hook.remove()
    return deeprep.analyze(model, [(data.inputs, data.labels)], 10, layers=model.probe_layers)


def main() -> None:
    """Train twice, print both, draw both."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layer", default="layer3", help="whose compression is penalised")
    parser.add_argument("--weight", type=float, default=1.0, help="of the penalty")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    options = parser.parse_args()
    data = load_data("digits")
    plain = train(data, options.layer, 0.0, options.epochs)
    penalised = train(data, options.layer, options.weight, options.epochs)
    print(f"{'':10}{'cross-entropy':^20}{f'+ {options.weight:g} C of {options.layer}':^20}")
    print(f"{'layer':10}" + 2 * f"{'C':>10}{'D':>10}")
    for before, after in zip(plain.layers, penalised.layers, strict=True):
        numbers = (before.compression, before.discrimination)
        numbers += (after.compression, after.discrimination)
        print(f"{before.name:10}" + "".join(f"{number:10.4f}" for number in numbers))
    options.out.mkdir(parents=True, exist_ok=True)
    figure = options.out / "compression_penalty.png"
    names = ("cross-entropy", f"with the compression of {options.layer}")
    deeprep.plots.compare(dict(zip(names, (plain, penalised), strict=True)), figure)
    print(f"figure: {figure}")


if __name__ == "__main__":
    main()
