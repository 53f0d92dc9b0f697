"""The cases of the table for pytest-benchmark: `pytest benchmarks`, in CI with `--quick`.

Each case is checked against the reference; none asserts a time. `python -m benchmarks.run` makes
the table, with the calls it compares taking turns, which pytest-benchmark cannot do.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks import run, sections
from benchmarks.cells import OUR_TOLERANCE, ours_once
from benchmarks.peers import MAX_PEER_BYTES, PEERS, Peer, Statistics, oracle, refcheck
from benchmarks.shapes import (
    DTYPES,
    LABELLINGS,
    SHAPES,
    DTypeName,
    Labelling,
    Shape,
    make_features,
    make_labels,
)
from benchmarks.timing import Floor
from deeprep import ClassScatter


@lru_cache(maxsize=1)  # the largest takes a gigabyte
def _data(
    shape: Shape, dtype: DTypeName, labelling: Labelling
) -> tuple[Tensor, Tensor, Statistics]:
    labels = make_labels(shape, labelling)
    features = make_features(shape, labels, dtype)
    return features, labels, oracle(features, labels, shape.num_classes)


@pytest.fixture(params=SHAPES, ids=lambda shape: shape.name, scope="module")
def shape(request: pytest.FixtureRequest, quick: bool) -> Shape:
    shape: Shape = request.param
    return shape.quick() if quick else shape


@pytest.fixture(params=DTYPES, scope="module")
def dtype(request: pytest.FixtureRequest) -> DTypeName:
    dtype: DTypeName = request.param
    return dtype


ROUNDS = {"rounds": 5, "warmup_rounds": 1}


def test_floor(benchmark: BenchmarkFixture, shape: Shape, dtype: DTypeName) -> None:
    features, _, _ = _data(shape, dtype, "shuffled")
    benchmark.pedantic(Floor(features, shape.num_classes), **ROUNDS)


@pytest.mark.parametrize("labelling", LABELLINGS)
def test_update(
    benchmark: BenchmarkFixture, shape: Shape, dtype: DTypeName, labelling: Labelling
) -> None:
    features, labels, wanted = _data(shape, dtype, labelling)
    found = ours_once(features, labels, shape.num_classes)
    refcheck("deeprep", found, wanted, OUR_TOLERANCE, energy=False)
    state = ClassScatter(shape.num_classes, shape.num_features)
    benchmark.pedantic(state.update, (features, labels), **ROUNDS)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_peer(benchmark: BenchmarkFixture, shape: Shape, dtype: DTypeName, peer: Peer) -> None:
    if not peer.installed:
        pytest.skip(f"{peer.library} is not installed: pip install '.[bench]'")
    if not peer.applies(shape):
        pytest.skip("does not apply to this shape")
    if peer.memory(shape, dtype) > MAX_PEER_BYTES:
        pytest.skip(f"needs {peer.memory(shape, dtype) / 2**30:.0f} GiB")
    features, labels, wanted = _data(shape, dtype, "shuffled")
    found = benchmark.pedantic(peer.run, (features, labels, shape.num_classes), rounds=1)
    refcheck(peer.name, found, wanted, peer.tolerance, peer.energy)


@pytest.mark.parametrize("shape", sections.SMALL_SHAPES, ids=lambda shape: shape.name)
def test_small_update(benchmark: BenchmarkFixture, shape: Shape) -> None:
    labels = make_labels(shape, "shuffled")
    features = make_features(shape, labels, "float32")
    state = ClassScatter(shape.num_classes, shape.num_features)
    benchmark.pedantic(state.update, (features, labels), rounds=200, warmup_rounds=1)


def test_whole_command(quick: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m benchmarks.run` from the first table to those of docs/speed.md."""
    if not quick:
        pytest.skip("takes part in --quick only")
    cheap = ["--sections", "cells", "small", "full", "metrics"]
    chosen = ["--shapes", "20000x1024x10", "--out", str(tmp_path), *cheap]
    assert run.main(["--quick", *chosen]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "results.json",
        "cells.csv",
        "peers.csv",
        "roofline.png",
    }
    capsys.readouterr()
    assert run.main(["--markdown", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("| 1,024 x 1,024, 10 float32 |") == 1
    assert "median over 2 cells" in printed
