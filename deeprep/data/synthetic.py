"""The paper's synthetic data: nearly orthonormal samples, the assumption of its theorem."""

from __future__ import annotations

import torch

from deeprep.data.tensors import Data

__all__ = ["orthogonal"]


def orthogonal(
    num_classes: int = 3,
    samples_per_class: int = 10,
    dimension: int = 50,
    noise: float = 1.0,
    seed: int = 0,
) -> Data:
    """Draw N = K * n nearly orthonormal samples, the same number n of each of K classes.

    X = Q + noise * G / |G|_F, where the rows of Q (N, d) are orthonormal (QR of a Gaussian matrix)
    and G is Gaussian; labels are 0 (n times), 1 (n times), ... . Computed in float64, rounded to
    float32.

    Parameters
    ----------
    num_classes
        The number K >= 2 of classes.
    samples_per_class
        The number n >= 1 of samples of each class.
    dimension
        The number d >= K * n of features; fewer dimensions cannot hold N orthonormal samples.
    noise
        Frobenius norm >= 0 of the noise.
    seed
        Fixes the draw.

    Raises
    ------
    ValueError
        An argument outside these ranges.

    Notes
    -----
    Section on deep linear networks of JMLR 26(220), figures 4 and 6. Whether D_l of a network
    trained on it rises depends on the draw: it starts at 1 - (the largest cosine between class
    means) and moves linearly towards 1. With the default noise that cosine is negative, so D_l
    falls from above 1, for 17 of the seeds 0 to 199, the first of them 26.

    Examples
    --------
    >>> data = orthogonal(noise=0.0)
    >>> bool((data.inputs @ data.inputs.T - torch.eye(30)).abs().max() < 1e-6)
    True
    """
    num_samples = num_classes * samples_per_class
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}, expected >= 2")
    if samples_per_class < 1:
        raise ValueError(f"samples_per_class is {samples_per_class}, expected >= 1")
    if dimension < num_samples:
        raise ValueError(f"dimension is {dimension}, expected at least the {num_samples} samples")
    if noise < 0:
        raise ValueError(f"noise is {noise}, expected >= 0")
    generator = torch.Generator().manual_seed(seed)

    def gaussian(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    frame = torch.linalg.qr(gaussian(dimension, num_samples)).Q.T
    perturbation = gaussian(num_samples, dimension)
    inputs = frame + noise * perturbation / torch.linalg.norm(perturbation)
    labels = torch.arange(num_classes).repeat_interleave(samples_per_class)
    names = tuple(str(label) for label in range(num_classes))
    return Data(inputs.float().contiguous(), labels, names, "orthogonal")
