"""A torchvision ResNet: every residual block, averaged over positions, after a little training.

python examples/torchvision_resnet.py [--weights resnet18.pth]
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torchvision.models import resnet18

import deeprep


def main() -> None:
    """Measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", type=Path, help="a state dict to start from; default: random")
    parser.add_argument("--epochs", type=int, default=2, help="of training before it is measured")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    options = parser.parse_args()
    torch.manual_seed(0)

    model = resnet18()
    if options.weights is not None:
        model.load_state_dict(torch.load(options.weights, weights_only=True))

    digits = load_digits()
    grey = torch.tensor(digits.images[:400] / 16.0, dtype=torch.float32)
    images = torch.nn.functional.interpolate(grey[:, None], size=(32, 32)).expand(-1, 3, -1, -1)
    labels = torch.tensor(digits.target[:400])
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images, labels), batch_size=50
    )

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(options.epochs):
        for inputs, targets in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()

    report = deeprep.analyze(
        model, loader, num_classes=10, reduce="mean", class_names=list("0123456789")
    )
    print(report)
    options.out.mkdir(parents=True, exist_ok=True)
    report.plot(options.out / "torchvision_resnet.png")
    print(f"figure: {options.out / 'torchvision_resnet.png'}")


if __name__ == "__main__":
    main()
