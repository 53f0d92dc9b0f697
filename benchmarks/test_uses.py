"""Losses, files, probes, monitor and processes once each, small, every number checked; no times.

`python -m benchmarks.run --sections losses files probes monitor processes` measures them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import process_scaling, run


@pytest.mark.parametrize(
    ("section", "titles"),
    [
        ("losses", ["Forward + backward of a loss"]),
        ("files", ["Features on disk"]),
        ("probes", ["analyze over the bare forward"]),
        ("monitor", ["Monitor over the bare training step"]),
        ("processes", ["split over gloo processes", "all_reduce of a state"]),
    ],
)
def test_section(
    quick: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    section: str,
    titles: list[str],
) -> None:
    if not quick:
        pytest.skip("takes part in --quick only")
    assert run.main(["--quick", "--sections", section, "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    assert run.main(["--markdown", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(title in printed for title in titles)
    if section == "processes":  # exactness is no matter of size
        assert "miss" not in printed


def test_a_planned_state_is_reduced(quick: bool, capsys: pytest.CaptureFixture[str]) -> None:
    if not quick:
        pytest.skip("takes part in --quick only")
    sizes = ("--num-classes", "40", "--num-features", "8", "--num-processes", "2", "--full")
    assert process_scaling.main([*sizes, "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert "K = 40, d = 8, 2 processes" in planned
    assert "it took" not in planned
    assert process_scaling.main(sizes) == 0
    assert capsys.readouterr().out.count("it took") == 2
