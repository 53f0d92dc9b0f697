"""An MLP of your own: train it for a few seconds on digits, then see what its layers do.

python examples/own_mlp.py
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import deeprep


def main() -> None:
    """Train, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--depth", type=int, default=6, help="hidden layers")
    parser.add_argument("--width", type=int, default=128, help="neurons of a hidden layer")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    options = parser.parse_args()
    torch.manual_seed(0)

    digits = load_digits()
    images = torch.tensor(digits.data / 16.0, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    batches = list(zip(images.split(128), labels.split(128), strict=True))

    layers: list[nn.Module] = []
    for width in [images.shape[1]] + [options.width] * (options.depth - 1):
        layers += [nn.Linear(width, options.width), nn.BatchNorm1d(options.width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(options.width, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in range(options.epochs):
        for inputs, targets in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()

    report = deeprep.analyze(
        model, batches, num_classes=10, full=True, accuracy=True, class_names=list("0123456789")
    )
    print(report)
    options.out.mkdir(parents=True, exist_ok=True)
    report.plot(options.out / "own_mlp.png")
    print(f"figure: {options.out / 'own_mlp.png'}")


if __name__ == "__main__":
    main()
