"""Metrics and probes of states on a GPU: the CPU's numbers.

See tests/state/test_scatter_cuda.py.
"""

from __future__ import annotations

import itertools

import pytest
import torch

import deeprep
from deeprep import ClassScatter, class_scatter, metrics, ops

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="no GPU: the tests of deeprep.metrics run the same code on the CPU",
    ),
]


def make_state():
    """Labelled rows on the CPU, one in nine ignored, one class without samples; and their state."""
    labels = torch.randint(0, 8, (3000,))
    features = torch.randn(3000, 40, dtype=torch.float64) + labels.unsqueeze(1) % 7
    labels[1::9] = -100
    return features, labels, class_scatter(features, labels, 9, full=True)


METRICS = {
    "compression": deeprep.compression,
    "compression, prior": lambda s: deeprep.compression(s, "prior"),
    "compression, corrected": lambda s: deeprep.compression(s, corrected=True),
    "discrimination": deeprep.discrimination,
    "discrimination, centered": lambda s: deeprep.discrimination(s, centered=True),
    **{
        name: getattr(metrics, name)
        for name in (
            *("cdnv", "effective_rank", "equiangularity", "equinorm", "etf_error", "gnc2", "nc1"),
            *("numerical_rank", "rankme", "stable_rank"),
            *("alpha_req", "h_score", "lidar", "participation_ratio", "separation_fuzziness"),
            "vci",
        )
    },
    "covariance_eigenvalues": lambda s: metrics.covariance_eigenvalues(s).tolist(),
    "closest_pairs": lambda s: [pair.cosine for pair in metrics.closest_pairs(s, 5)],
    "cdnv_per_class": lambda s: metrics.cdnv_per_class(s).tolist(),
    "jackknife": lambda s: list(metrics.jackknife(s)),
    "per_class": lambda s: torch.cat(list(metrics.per_class(s))).tolist(),
    "probe": lambda s: metrics.probe(s).weight.norm().item(),
    "self_duality": lambda s: metrics.self_duality(s, torch.ones(9, 40).triu()),
    "trace_between": ClassScatter.trace_between,
}


@pytest.mark.filterwarnings("ignore:1 of 9 classes have no samples")
@pytest.mark.parametrize("name", METRICS)
def test_metrics_on_the_device_equal_the_cpus(name):
    _, _, s = make_state()
    expected = pytest.approx(METRICS[name](s), rel=1e-9, nan_ok=True)
    assert METRICS[name](s.to("cuda")) == expected


@pytest.mark.filterwarnings("ignore:1 of 9 classes have no samples")
def test_classifiers_on_the_device_equal_the_cpus():
    features, labels, s = make_state()
    on_gpu, x, y = s.to("cuda"), features.cuda(), labels.cuda()
    assert torch.equal(metrics.nearest_class(on_gpu, x).cpu(), metrics.nearest_class(s, features))
    assert metrics.ncc_accuracy(on_gpu, x, y) == metrics.ncc_accuracy(s, features, labels)
    assert metrics.probe(on_gpu).accuracy(x, y) == metrics.probe(s).accuracy(features, labels)
    assert metrics.closest_classes(on_gpu)[:2] == metrics.closest_classes(s)[:2]
    expected = metrics.directional_cdnv(s, features, labels)
    assert metrics.directional_cdnv(on_gpu, x, y) == pytest.approx(expected, rel=1e-9)
    columns = zip(
        metrics.class_ranks(on_gpu, x, y), metrics.class_ranks(s, features, labels), strict=True
    )
    for got, wanted in columns:
        torch.testing.assert_close(got.cpu(), wanted, rtol=1e-9, atol=0, equal_nan=True)


def test_squared_distances_equal_the_cpus():
    for num_points, num_columns in itertools.product([1, 50, 3000], [1, 7, 64, 2050]):
        points = torch.randn(num_points, num_columns, dtype=torch.float64)
        center = torch.randn(num_columns, dtype=torch.float64)
        for origin in (None, center):
            expected = ops.squared_distances(points, origin)
            got = ops.squared_distances(points.cuda(), None if origin is None else origin.cuda())
            torch.testing.assert_close(got.cpu(), expected, rtol=1e-13, atol=0)


def test_a_model_on_the_device_is_analyzed_there():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(20, 32),
        torch.nn.ReLU(),
        torch.nn.Linear(32, 32),
        torch.nn.ReLU(),
        torch.nn.Linear(32, 4),
    )
    inputs, labels = torch.randn(400, 20), torch.arange(400) % 4
    everything = {"num_classes": 4, "full": True, "accuracy": True, "jackknife": True}
    on_cpu = deeprep.analyze(model, [(inputs, labels)], **everything)
    on_gpu = deeprep.analyze(model.cuda(), [(inputs.cuda(), labels.cuda())], **everything)
    for a, b in zip(on_gpu.layers, on_cpu.layers, strict=True):
        assert a.name == b.name
        for name in ("compression", "compression_error", "cdnv", "directional_cdnv", "gnc2", "nc1"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-3), name
        assert a.discrimination == pytest.approx(b.discrimination, rel=1e-3, abs=1e-4)
        # A sample at the border of two classes may fall to either side in float32.
        assert a.probe_accuracy == pytest.approx(b.probe_accuracy, abs=0.01)
        assert a.ncc_accuracy == pytest.approx(b.ncc_accuracy, abs=0.01)
