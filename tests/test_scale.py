"""docs/scale.md: its sizes are those of tensors and messages, and its numbers follow from them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from rank_checks import run_checks
from torch import distributed

from deeprep import ClassScatter
from deeprep.files import parts
from deeprep.files.opened import open_array
from deeprep.sharded import plan, reduce_scatter

PAGE = (Path(__file__).parents[1] / "docs" / "scale.md").read_text()
N, L, D, K = 10**9, 100, 8192, 128_000
SIZES = (8, 64, 256, 1024)
BATCH = 4096


def rows_of(heading):
    """The rows, as cells, of the tables below a heading."""
    text = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [[cell.replace(",", "") for cell in row] for row in rows if "---" not in row[0]]


# ---------------------------------------------------------------- what runs here


def bytes_of(state):
    return sum(tensor.nbytes for tensor in state._tensors().values())


def counted(monkeypatch):
    """A list of the bytes of every tensor that this process sends to another."""
    sent = []
    original = distributed.batch_isend_irecv

    def counting(operations):
        sent.extend(each.tensor.nbytes for each in operations if each.op is distributed.isend)
        return original(operations)

    monkeypatch.setattr(distributed, "batch_isend_irecv", counting)
    return sent


def check_sizes(rank, size):
    num_classes, width = 64 * size, 700
    found = plan(num_classes, width, size)
    assert found.state_bytes == num_classes * (8 * width + 16)
    state = ClassScatter(num_classes, width)
    generator = torch.Generator().manual_seed(rank)
    labels = torch.randint(0, num_classes, (500,), generator=generator)
    state.update(torch.randn(500, width, generator=generator), labels)
    assert bytes_of(state) == found.state_bytes
    for reduce, wanted in (
        (lambda: reduce_scatter(state).share, found.reduce_scatter_sent),
        (lambda: state.all_reduce(), found.all_reduce_sent),
    ):
        with pytest.MonkeyPatch.context() as patch:
            sent = counted(patch)
            share = reduce()
        # And a message of 64 KiB to rank 0, and from there back, by which the ranks agree.
        assert wanted <= sum(sent) <= wanted + 2**16 * size, (size, sum(sent), wanted)
        if share is not None:
            assert bytes_of(share) == found.share_bytes


@pytest.mark.parametrize("size", [1, 2, 4])
def test_states_and_messages_have_the_sizes_of_the_plan(run_ranks, size):
    exit_codes, failures = run_ranks(run_checks, size, [check_sizes])
    assert exit_codes == [0] * size, failures.get(timeout=5)


def test_parts_are_sixteen_states_long(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "_PART_BYTES", 1000)
    state_bytes = 2**20 + 1000
    np.save(tmp_path / "x.npy", np.zeros((10_000, 8), np.float32))
    cuts = parts.cut(open_array("features", tmp_path / "x.npy"), state_bytes)
    assert len(cuts) == 10_000 * 8 * 4 // (16 * (state_bytes - 2**20)) == 20


# ---------------------------------------------------------------- what the page says


def test_memory_and_network():
    _, *rows = rows_of("Memory and network")
    for size, row in zip(SIZES, rows, strict=True):
        p = plan(K, D, size)
        sizes = (p.state_bytes, p.all_reduce_peak, p.reduce_scatter_peak)
        wanted = [str(size), *(f"{each / 1e9:.2f}" for each in sizes), f"{p.share_bytes / 1e9:.3f}"]
        wanted += [f"{each / 1e9:.2f}" for each in (p.all_reduce_sent, p.reduce_scatter_sent)]
        assert row == wanted
    state = plan(K, D, 1).state_bytes
    assert f"{L * state / 1e9:.0f} GB for all 100" in PAGE
    fitting = int(60e9 // state)
    assert f"**{fitting} layers fit, and 100 layers take {-(-L // fitting)} passes**" in PAGE
    shares = [f"{L * plan(K, D, size).share_bytes / 1e9:.3g}" for size in (1024, 8)]
    assert shares == ["0.819", "105"]
    assert "leaves 0.8 GB (R = 1,024) to 105 GB (R = 8)" in PAGE
    assert f"seven states are {7 * state / 1e9:.1f} GB and a pass" in PAGE
    assert f"{7 * plan(K, D, 8).share_bytes / 1e9:.1f} GB of shares" in PAGE
    assert f"{8 * K * D / 1e9:.1f} GB a layer, or {8 * K * D / 40e9:.2f} s" in PAGE
    for sent, shown in (
        (plan(K, D, 1024).reduce_scatter_sent, "0.21 s"),
        (plan(K, D, 1024).all_reduce_sent, "0.42 s"),
    ):
        assert f"{sent / 40e9:.2f} s" == shown
        assert shown in PAGE


def test_seconds():
    _, *rows = rows_of("Seconds")
    classes = K * (1 - (1 - 1 / K) ** BATCH)
    assert f"c = {classes:,.0f}" in PAGE
    for row in rows:
        for size, shown in zip(SIZES, row[2:], strict=True):
            seconds = {
                "updates": N / size * L * D * (2 + 16 * classes / BATCH) / 3e12,
                "reduce_scatter": L * plan(K, D, size).reduce_scatter_sent / 40e9,
                "discrimination": L * K**2 * D / size / 60e12,
                "directions": 8 * (size - 1) / size * L * K * D / 40e9,
            }[re.split(r"\W", row[0])[0]]
            assert float(shown.removesuffix(" s")) == pytest.approx(seconds, rel=0.03), row


def test_seconds_of_models_and_products():
    one_pass = 1e10 * N / 4e14
    assert f"{one_pass / 8 / 60:.0f} minutes on 8 GPUs at" in PAGE
    hours, minutes = 15 * one_pass / 8 / 3600, 15 * one_pass / 1024 / 60
    assert f"15 passes are {hours:.1f} hours on 8 GPUs and {minutes:.1f} minutes on 1,024" in PAGE
    products = N * D**2 * L
    assert f"{products / 1e18:.1f} 10^18" in PAGE
    hours, minutes = (2 * products / 50e12 / each for each in (8 * 3600, 1024 * 60))
    assert f"{hours:.1f} hours on 8 GPUs at 50 TFLOP/s" in PAGE
    assert f"{minutes:.1f} minutes on 1,024. Leave" in PAGE
    classes = K * (1 - (1 - 1 / K) ** BATCH)
    assert f"{16 * classes / BATCH:.1f} d bytes of means" in PAGE
    assert f"adds {8 * D**2 / 1e9:.2f} GB to each state" in PAGE


def test_features_in_files():
    found = {row[0].partition(" ")[0]: row[-1] for row in rows_of("Features in files")}
    state = plan(K, D, 1).state_bytes
    size = N * D * 2
    assert f"{size / 1e12:.1f} TB" in PAGE
    num_parts = min(1024, size // (16 * (state - 2**20)))
    assert found["parts"] == str(num_parts)
    assert (
        found["seconds"] == f"{size / 8 / 1e9:.0f} at R = 8; {size / num_parts / 1e9:.0f} with 122"
    )
    assert found["states"] in ("1.0 TB", f"{4 * state / 1e9:.0f} GB")
    assert f"| 4 | {4 * state / 1e9:.0f} GB |" in PAGE
    assert f"{size / 16 / 1e12:.1f} TB |" in PAGE
    assert f"{16 * (1000 * (8 * 2048 + 16) - 2**20) / 1e6:.0f} MB" in PAGE
