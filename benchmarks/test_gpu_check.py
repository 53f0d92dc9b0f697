"""What `make gpu-check` does that needs no GPU: its tables, its checks, what it leaves out."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check, gpu_table, gpu_workload
from benchmarks.gpu_peers import PEERS, Peer, oracle, refcheck
from benchmarks.gpu_shapes import GPU_SHAPES, fit, make_data, needed_bytes
from benchmarks.gpu_table import Cell, Timing
from benchmarks.shapes import Shape

CPU = torch.device("cpu")


def test_without_a_gpu_it_says_so_and_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 2
    assert "needs a GPU" in capsys.readouterr().out
    assert gpu_table.main([]) == 2


def test_the_table_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--device", "cpu", "--quick", "--seconds", "0.001", "--out", str(tmp_path)]
    assert gpu_table.main([*arguments, "--shapes", "20000x1024x10"]) == 0
    results = json.loads((tmp_path / "gpu-cpu-quick.json").read_text())
    assert [cell["dtype"] for cell in results["cells"]] == ["float32", "bfloat16"]
    with (tmp_path / "gpu-cpu-quick.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * (2 + len(PEERS))
    for line in lines:
        assert line["status"] == "ok", line
        assert float(line["seconds"]) > 0
    assert "1,024 x 1,024, 10 float32" in capsys.readouterr().out


def test_the_table_needs_no_rich(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    gpu_table.print_table([_cell(1.0)], "title")
    title, head, line = capsys.readouterr().out.splitlines()
    assert title == "title"
    assert head.count("|") == line.count("|")


def test_time_that_is_up_leaves_the_rest_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--device", "cpu", "--quick", "--limit", "-1", "--out", str(tmp_path)]
    assert gpu_table.main(arguments) == 0
    assert capsys.readouterr().out.count("out of time") == 2 * len(GPU_SHAPES)


def _cell(share: float, num_rows: int = 1000, num_classes: int = 10) -> Cell:
    timings = [
        Timing("copy", "ok", 1.0, 100e9),
        Timing("deeprep", "ok", 1.0, share * 100e9),
        Timing("other", "memory"),
    ]
    shape = Shape(num_rows, 4096, num_classes)
    return Cell(shape, 1000, "float32", gpu_table.has_target(shape), timings)


def test_verdicts() -> None:
    assert gpu_table.row(_cell(0.95))[1:] == ["100.0", "95.0", "memory", "95%", ">= 90%", "pass"]
    assert gpu_table.row(_cell(0.85))[-1] == "miss"
    assert gpu_table.row(_cell(0.85, num_classes=1001))[-2:] == ["-", ""]
    assert "(cut from 1,000 rows)" in gpu_table.row(_cell(0.95, num_rows=500))[0]


def test_small_batches_are_timed_and_have_no_target() -> None:
    small = [shape for shape in GPU_SHAPES if shape.num_rows <= 256]
    assert len(small) == 6
    assert not any(map(gpu_table.has_target, small))
    assert gpu_table.has_target(Shape(4096, 512, 10))


def test_shapes_are_cut_to_the_memory() -> None:
    shape = Shape(1_000_000, 4096, 50_000)
    assert fit(shape, "float32", 200 * 2**30) == shape
    cut = fit(shape, "float32", 24 * 2**30)
    assert cut is not None
    assert cut.num_rows < shape.num_rows
    assert needed_bytes(cut, "float32") <= 24 * 2**30
    assert fit(shape, "float32", 2**30) is None


def test_peers_are_right_and_wrong_ones_are_found_out() -> None:
    shape = Shape(3000, 24, 7)
    features, labels = make_data(shape, "bfloat16", CPU)
    wanted = oracle(features, labels, 7)
    for peer in PEERS:
        found = peer.run(features, labels, 7)
        refcheck(peer.name, found, wanted, 1e-3, peer.energy)
    for name in wanted:
        for wrong in (2 * wanted[name] + 1, torch.full_like(wanted[name].double(), torch.nan)):
            with pytest.raises(ValueError, match=f"peer: {name} is off by"):
                refcheck("peer", {**wanted, name: wrong}, wanted, 1e-3, False)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("no memory"), "memory"),
        (RuntimeError("not implemented\nfor 'BFloat16'"), "not implemented"),
    ],
)
def test_a_peer_that_cannot_run_is_reported(error: Exception, status: str) -> None:
    def run(*_: object) -> dict[str, torch.Tensor]:
        raise error

    shape = Shape(100, 8, 2)
    features, labels = make_data(shape, "float32", CPU)
    stopwatch = gpu_table.Stopwatch(CPU, 0.001)
    peer = Peer("peer", run, lambda shape: 0)
    timing = gpu_table._time_peer(peer, features, labels, shape, "float32", {}, stopwatch)
    assert timing == Timing("peer", status)
    large = Peer("peer", run, lambda shape: 1e18)
    timing = gpu_table._time_peer(large, features, labels, shape, "float32", {}, stopwatch)
    assert timing.status == "memory"


def test_the_sanitizers_workload_compares() -> None:
    assert gpu_workload.run(CPU) == 56


def test_tests_whose_modules_are_missing_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deeprep").mkdir()
    (tmp_path / "deeprep/uses.py").write_text("import no_such_module_a\n")
    (tmp_path / "tests").mkdir()
    test = tmp_path / "tests/test_it.py"
    test.write_text(
        "import os\nfrom deeprep import uses\nimport no_such_module_b.part\n"
        "try:\n    import no_such_module_c\nexcept ImportError:\n    pass\n"
    )
    (tmp_path / "tests/helpers_of_tests.py").write_text("import sys\n")
    (tmp_path / "tests/test_other.py").write_text("import helpers_of_tests\n")
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    assert gpu_check.missing_modules(test) == {"no_such_module_a", "no_such_module_b"}
    command = gpu_check.test_command(gpu_check.Report())
    assert command is not None
    assert [part for part in command if part.startswith("--ignore")] == [
        "--ignore=tests/test_it.py",
        "--ignore=deeprep/uses.py",
    ]


def test_a_stage_that_fails_or_takes_too_long_fails_the_whole(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = gpu_check.Report()
    assert gpu_check.run_stage(report, "good", [sys.executable, "-c", ""], 60)
    assert not report.failed
    assert not gpu_check.run_stage(report, "bad", [sys.executable, "-c", "raise SystemExit(3)"], 60)
    assert report.failed
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert not gpu_check.run_stage(gpu_check.Report(), "slow", sleep, 0.2)
    report.print()
    printed = capsys.readouterr().out
    assert "FAILED, exit code 3" in printed
    assert "stopped at its limit" in printed
