"""Files summed up in parts by several processes, of which some fail: the bits of one."""

import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
from file_parts import FILES, ROWS, assert_same_bits, make_files, scatter
from rank_checks import join
from torch import distributed

import deeprep
from deeprep import ClassScatter, RankLostError, class_scatter_of_files
from deeprep.base.ranks import Ranks
from deeprep.base.torchrun import Alarm, OtherRankError
from deeprep.cli import main
from deeprep.files import parts
from deeprep.files.labelled import LabelledFiles


@pytest.fixture
def folder(tmp_path):
    make_files(tmp_path / "data")
    return tmp_path / "data"


def test_a_group_that_cannot_move_states_is_refused_before_files_are_opened(folder, monkeypatch):
    monkeypatch.setattr(Ranks, "_backends", lambda ranks: {"cuda": "nccl"})
    monkeypatch.setattr(Ranks, "of", lambda *arguments: Ranks("a test", None, 1, 2))
    with pytest.raises(ValueError, match="a state is on cpu, expected cuda, which is what the"):
        scatter(folder / "nowhere", all_reduce=True)


def check_bits(rank, size, folder):
    done = []
    found = scatter(folder, all_reduce=True, progress=lambda *counts: done.append(counts))
    assert_same_bits(found, ClassScatter.load(folder / "expected"))
    assert (done[-1][0] == done[-1][1]) if done else size > FILES
    if size > 1:
        assert not done or done[-1][1] < FILES * ROWS, "not all of the rows are read by one"


def check_an_error_of_one(rank, size, folder):
    """Files are damaged after they were opened: who reads them says so, the others stop."""
    Alarm._POLL_SECONDS = 0.0
    last = max(folder.glob("x-*.npy"), key=lambda path: int(path.stem[2:]))
    seen = []

    def damage(done, total):
        seen.append(done)
        if rank == size - 1:
            with last.open("r+b") as file:
                file.truncate(100)
        elif rank == 0:
            time.sleep(0.3)  # the last one fails while this one is at work

    with pytest.raises((ValueError, OtherRankError)) as caught:
        scatter(folder, all_reduce=True, parts=folder / "parts", progress=damage)
    assert (type(caught.value) is ValueError) == (rank == size - 1)
    assert f"{last.name} became shorter" in str(caught.value)
    if rank == 0:
        assert seen[-1] < FILES * ROWS // size - ROWS, "it went on to its end"


def check_going_on(rank, size, folder):
    found = scatter(folder, all_reduce=True, parts=folder / "parts")
    assert_same_bits(found, ClassScatter.load(folder / "expected"))


def check_going_on_with_disks_of_their_own(rank, size, folder):
    found = scatter(folder, all_reduce=True, parts=folder / f"parts-{rank}")
    assert_same_bits(found, ClassScatter.load(folder / "expected"))


def check_a_bad_label(rank, size, folder):
    labels = np.load(folder / "y.npy")
    labels[-3] = -7
    if rank == 0:
        np.save(folder / "bad.npy", labels)
    distributed.barrier()
    with pytest.raises((ValueError, OtherRankError), match=r"labels\[777\] of .*bad.npy is -7"):
        class_scatter_of_files(f"{folder}/x-*.npy", folder / "bad.npy", all_reduce=True)


def check_other_files(rank, size, folder):
    own = folder / f"own-{rank}"
    own.mkdir()
    x = np.ones((120, 3), np.float32)
    for cuts, labels, message in (
        ([30, 60, 90], 120, None),
        ([30, 60] if rank else [30, 60, 90], 120, r"number of files of features is 3 on rank 1"),
        ([30, 62, 90] if rank else [30, 60, 90], 120, r"features in file 1 is 32 on rank 1, .* 30"),
        ([30, 60, 90], 118 if rank else 120, r"number of rows of features is 118 on rank 1, .*120"),
    ):
        for path in own.iterdir():
            path.unlink()
        for i, part in enumerate(np.split(x[:labels], cuts)):
            np.save(own / f"x-{i}.npy", part)
        np.save(own / "y.npy", np.arange(labels) % 2)
        if message is None:
            assert scatter(own, all_reduce=True).num_samples == 120
            continue
        with pytest.raises(ValueError, match=f"{message}.* as on rank 0"):
            scatter(own, all_reduce=True)
    with pytest.raises(ValueError, match="num_classes is 3 on rank 1, expected 2 as on rank 0"):
        class_scatter_of_files(
            folder / "own-0" / "x-*.npy", folder / "own-0" / "y.npy", 2 + rank, all_reduce=True
        )


def check_an_error_while_merging(rank, size, folder):
    """Of one alone, whose state another waits for."""

    def failing(self, stretch):
        raise OSError("the disk is gone")

    with pytest.MonkeyPatch.context() as patch:
        if rank == size - 1:
            patch.setattr(parts.Finished, "state", failing)
            patch.setattr(parts.Finished, "add", keep)
        with pytest.raises((OSError, OtherRankError), match="the disk is gone") as caught:
            scatter(folder, all_reduce=True)
    assert (type(caught.value) is OSError) == (rank == size - 1)
    assert scatter(folder, all_reduce=True).num_samples == FILES * ROWS


def keep(self, stretch, state):
    self._in_memory[stretch] = state


def check_a_lost_process(rank, size, folder, parts="parts"):
    """Of the last one, killed after some parts, the finished ones stay."""
    take_in = LabelledFiles.take_in
    taken = []

    def dying(self, *arguments):
        if rank == size - 1 and len(taken) == 2:
            os._exit(9)
        taken.append(1)
        take_in(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabelledFiles, "take_in", dying)
        with pytest.raises(RankLostError):
            scatter(folder, all_reduce=True, parts=folder / parts)


def check_a_lost_process_with_a_disk_of_its_own(rank, size, folder):
    check_a_lost_process(rank, size, folder, f"parts-{rank}")


def _in_group(rank, size, store, failures, folder, checks):
    join(rank, size, store)
    for check in checks:
        try:
            check(rank, size, folder)
        except BaseException:
            failures.put(f"{check.__name__} on rank {rank} of {size}:\n{traceback.format_exc()}")
            raise
    distributed.destroy_process_group()


@pytest.fixture
def expected(folder, tmp_path):
    found = scatter(folder, parts=tmp_path / "whole")
    found.save(folder / "expected")
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.usefixtures("expected")
def test_any_number_of_processes_gets_the_bits_of_one(run_ranks, folder, size):
    checks = [check_bits, check_a_bad_label] if size > 1 else [check_bits]
    exit_codes, failures = run_ranks(_in_group, size, folder, checks)
    assert exit_codes == [0] * size, failures.get(timeout=5)


def test_processes_that_see_other_files_say_so(run_ranks, folder):
    exit_codes, failures = run_ranks(_in_group, 2, folder, [check_other_files])
    assert exit_codes == [0, 0], failures.get(timeout=5)


def test_an_error_while_merging_ends_all(run_ranks, folder):
    exit_codes, failures = run_ranks(_in_group, 3, folder, [check_an_error_while_merging])
    assert exit_codes == [0, 0, 0], failures.get(timeout=5)


def test_an_error_of_one_process_ends_all_and_the_rest_is_read_later(
    run_ranks, folder, expected, tmp_path
):
    last = folder / f"x-{FILES - 1}.npy"
    whole, status = last.read_bytes(), last.stat()
    exit_codes, failures = run_ranks(_in_group, 2, folder, [check_an_error_of_one])
    assert exit_codes == [0, 0], failures.get(timeout=5)
    last.write_bytes(whole)
    os.utime(last, ns=(status.st_atime_ns, status.st_mtime_ns))
    (tmp_path / "store").unlink()
    exit_codes, failures = run_ranks(_in_group, 3, folder, [check_going_on])
    assert exit_codes == [0, 0, 0], failures.get(timeout=5)


@pytest.mark.parametrize(
    ("dying", "going_on", "last"),
    [
        (check_a_lost_process, check_going_on, "parts"),
        (
            check_a_lost_process_with_a_disk_of_its_own,
            check_going_on_with_disks_of_their_own,
            "parts-1",
        ),
    ],
)
@pytest.mark.usefixtures("expected")
def test_a_process_that_dies_leaves_its_finished_parts(
    run_ranks, folder, tmp_path, dying, going_on, last
):
    exit_codes, failures = run_ranks(_in_group, 2, folder, [dying])
    assert exit_codes == [0, 9], failures.get(timeout=5)
    assert any((folder / last).iterdir())
    (tmp_path / "store").unlink()
    exit_codes, failures = run_ranks(_in_group, 3, folder, [going_on])
    assert exit_codes == [0, 0, 0], failures.get(timeout=5)


def _torchrun(size, folder, *arguments):
    root = Path(deeprep.__file__).parent.parent
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(size), "-m", "deeprep", *map(str, arguments)),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.parametrize("size", [1, 2])
def test_torchrun_of_the_command(folder, expected, size):
    arguments = ("stats", "x-*.npy", "y.npy", "--full", "--batch-bytes", 2000, "--out", "state")
    broken = folder / "x-7.npy"
    whole, status = broken.read_bytes(), broken.stat()
    broken.write_bytes(whole[:-1])
    done = _torchrun(size, folder, *arguments)
    assert done.returncode != 0
    assert done.stderr.count("error: features x-7.npy is cut short") == 1
    assert done.stdout == ""
    broken.write_bytes(whole)
    os.utime(broken, ns=(status.st_atime_ns, status.st_mtime_ns))
    done = _torchrun(size, folder, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("samples N") == 1, "only the first process prints"
    assert_same_bits(ClassScatter.load(folder / "state"), expected)
    assert not (folder / "state.parts").exists()


def test_without_torchrun_the_command_goes_on_where_torchrun_stopped(
    folder, expected, monkeypatch, capsys
):
    monkeypatch.chdir(folder)
    arguments = ["x-*.npy", "y.npy", "--full", "--batch-bytes", "2000", "--out", "state"]
    (folder / "state.parts").mkdir()
    assert main(["stats", *arguments]) == 0
    assert_same_bits(ClassScatter.load(folder / "state"), expected)
    assert not (folder / "state.parts").exists()
    assert "samples N" in capsys.readouterr().out
