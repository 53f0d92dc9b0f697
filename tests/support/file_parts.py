"""Small files for the tests of their parts, and what their statistics must be."""

from __future__ import annotations

import numpy as np
import torch

from deeprep import class_scatter_of_files

FILES, ROWS = 13, 60


def make_files(folder):
    """Shards of features, some of no rows; labels are cut elsewhere."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 5, FILES * ROWS)
    features = generator.standard_normal((FILES * ROWS, 6)).astype(np.float32)
    features += 1000 * labels[:, None]
    cuts = np.sort(generator.integers(0, FILES * ROWS, FILES - 1))
    cuts[5] = cuts[4]
    for i, part in enumerate(np.split(features, cuts)):
        np.save(folder / f"x-{i}.npy", part)
    np.save(folder / "y.npy", labels)


def scatter(folder, **options):
    return class_scatter_of_files(
        f"{folder}/x-*.npy", folder / "y.npy", full=True, batch_bytes=2000, **options
    )


def assert_same_bits(found, expected):
    for name in ("counts", "means", "sumsq", "pooled_scatter"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.unit_roundoff == expected.unit_roundoff
