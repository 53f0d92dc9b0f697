"""Files summed up in parts, by any number of processes, stopped anywhere: the same bits."""

import itertools
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rank_checks import join
from torch import distributed

import deeprep
from deeprep import ClassScatter, RankLostError, class_scatter_of_files
from deeprep.base.ranks import Ranks
from deeprep.base.torchrun import Alarm, OtherRankError
from deeprep.cli import main
from deeprep.files import parts
from deeprep.files.arrays import Array, Shard
from deeprep.files.labelled import LabelledFiles
from deeprep.files.opened import open_array

FILES, ROWS = 13, 60


@pytest.fixture
def folder(tmp_path):
    """Shards of features, some of no rows; labels are cut elsewhere."""
    folder = tmp_path / "data"
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
    return folder


def scatter(folder, **options):
    return class_scatter_of_files(
        f"{folder}/x-*.npy", folder / "y.npy", full=True, batch_bytes=2000, **options
    )


def assert_same_bits(found, expected):
    for name in ("counts", "means", "sumsq", "pooled_scatter"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.unit_roundoff == expected.unit_roundoff


# ---------------------------------------------------------------- cutting and dealing out


@given(st.integers(1, 200), st.data())
def test_every_stretch_has_its_other_half(num_parts, data):
    """From any part up, halves lead to the whole, and left halves are powers of two."""
    part = data.draw(st.integers(0, num_parts - 1))
    stretch = (part, part + 1)
    while stretch != (0, num_parts):
        left, right = parts.halves(stretch, num_parts)
        assert stretch in (left, right)
        assert left[1] == right[0]
        size = left[1] - left[0]
        assert size & (size - 1) == 0
        assert right[1] - right[0] <= size
        stretch = (left[0], right[1])


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(0, 2**22))
def test_parts_cover_the_rows_in_order(tmp_path_factory, rows, state_bytes):
    folder = tmp_path_factory.mktemp("shards")
    for i, count in enumerate(rows):
        np.save(folder / f"{i}.npy", np.zeros((count, 2), np.float32))
    cuts = parts.cut(open_array("features", folder), state_bytes)
    assert cuts[0][0] == 0
    assert cuts[-1][1] == sum(rows)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(cuts))
    assert sum(rows) == 0 or all(begin < end for begin, end in cuts)
    assert len(cuts) <= len(rows)
    if state_bytes >= 2**21:
        assert len(cuts) == 1  # what is kept of a part is never larger than the part


def test_files_are_cut_at_their_edges_and_long_ones_inside(tmp_path, monkeypatch):
    for i, count in enumerate((100, 100, 700, 100)):
        np.save(tmp_path / f"{i}.npy", np.zeros((count, 4), np.float32))
    array = open_array("features", tmp_path)
    assert parts.cut(array, 0) == [(0, 200), (200, 500), (500, 750), (750, 1000)]
    monkeypatch.setattr(parts, "_PART_BYTES", 1600)
    assert [begin for begin, _ in parts.cut(array, 0)] == list(range(0, 1000, 100))


@given(st.lists(st.integers(1, 100), max_size=60), st.integers(1, 9))
def test_shares_are_runs_of_neighbours_of_about_one_size(rows, size):
    edges = np.cumsum([0, *rows]).tolist()
    cut = list(itertools.pairwise(edges))
    dealt = parts.shares(cut, range(len(cut)), size)
    assert [part for share in dealt for part in share] == list(range(len(cut)))
    assert len(dealt) == size
    most = max((sum(rows[part] for part in share) for share in dealt), default=0)
    assert most <= sum(rows) / size + max(rows, default=0)


# ---------------------------------------------------------------- one process


def test_one_part_has_the_bits_of_no_parts(folder, tmp_path):
    for path in folder.glob("x-*.npy"):
        if path.name != "x-0.npy":
            path.unlink()
    np.save(folder / "x-0.npy", np.random.default_rng(1).standard_normal((FILES * ROWS, 6)))
    assert_same_bits(scatter(folder, parts=tmp_path / "parts"), scatter(folder))


def test_parts_are_merged_as_a_whole(folder, tmp_path):
    found, expected = scatter(folder, parts=tmp_path / "parts"), scatter(folder)
    assert torch.equal(found.counts, expected.counts)
    torch.testing.assert_close(found.means, expected.means, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.sumsq, expected.sumsq, rtol=1e-5, atol=0)


@pytest.mark.parametrize("stop_after", [1, 2, 9])
def test_a_further_call_reads_what_is_left(folder, tmp_path, monkeypatch, stop_after):
    expected = scatter(folder, parts=tmp_path / "whole")
    read = []
    take_in = LabelledFiles.take_in

    def watched(self, state, begin, end, after_batch):
        if len(read) == stop_after:
            read.append("stopped")
            raise KeyboardInterrupt
        read.append((begin, end))
        take_in(self, state, begin, end, after_batch)

    monkeypatch.setattr(LabelledFiles, "take_in", watched)
    with pytest.raises(KeyboardInterrupt):
        scatter(folder, parts=tmp_path / "parts")
    kept = list((tmp_path / "parts").iterdir())
    assert 0 < len(kept) == bin(stop_after).count("1")  # merged where they could be
    assert_same_bits(scatter(folder, parts=tmp_path / "parts"), expected)
    read.remove("stopped")
    assert sorted(read) == sorted(set(read))
    assert_same_bits(scatter(folder, parts=tmp_path / "parts"), expected)
    assert len(read) == len(set(read)), "the whole was there"


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_state_is_missing(folder, tmp_path, monkeypatch, damage):
    """It is found before anything is read, and its part of the files read again."""
    directory = tmp_path / "parts"
    expected = scatter(folder, parts=tmp_path / "whole")
    taken = []
    take_in = LabelledFiles.take_in

    def stopping(*arguments):
        if len(taken) == 3:
            raise KeyboardInterrupt
        taken.append(1)
        take_in(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(LabelledFiles, "take_in", stopping)
        with pytest.raises(KeyboardInterrupt):
            scatter(folder, parts=directory)
    bad = next(directory.glob("parts-0-2.*"))
    if damage == "cut":
        bad.write_bytes(bad.read_bytes()[:-9])
    else:
        ClassScatter(7, 6).save(bad)
    with pytest.warns(UserWarning, match=r"parts-0-2.*; its part of the files is read again"):
        found = scatter(folder, parts=directory)
    assert_same_bits(found, expected)


def test_halves_that_were_not_removed_count_once(folder, tmp_path, monkeypatch):
    expected = scatter(folder, parts=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(parts.Finished, "_drop", lambda self, stretch: None)
        assert_same_bits(scatter(folder, parts=tmp_path / "parts"), expected)
    assert len(list((tmp_path / "parts").iterdir())) > 1
    assert_same_bits(scatter(folder, parts=tmp_path / "parts"), expected)


def test_states_of_other_files_or_settings_are_left_alone(folder, tmp_path):
    directory = tmp_path / "parts"
    scatter(folder, parts=directory)
    with pytest.warns(UserWarning, match=r"parts holds states of other files or settings"):
        assert scatter(folder, parts=directory, num_classes=6).num_classes == 6
    x = np.load(folder / "x-3.npy")
    np.save(folder / "x-3.npy", x + 1)
    os.utime(folder / "x-3.npy", ns=(0, time.time_ns() + 10**9))
    with pytest.warns(UserWarning, match=r"parts holds states of other files or settings"):
        found = scatter(folder, parts=directory)
    assert_same_bits(found, scatter(folder, parts=tmp_path / "fresh"))
    assert len(list(directory.iterdir())) == 3
    (directory / "notes.txt").write_text("mine")
    kept = next(directory.glob("parts-*"))
    (directory / f".{kept.stem}.partial.safetensors").write_bytes(b"half")
    parts.remove_parts(directory)
    assert [path.name for path in directory.iterdir()] == ["notes.txt"]


def test_states_of_other_cuts_have_another_name():
    arrays = [Array("features", [Shard("x.npy", (4, 2), "<f4", 0, "1")])]
    one, other = (parts.fingerprint(arrays, [(0, i), (i, 4)], {}) for i in (1, 2))
    assert one != other


@pytest.mark.parametrize("stretch", [(1, 3), (0, 7), (0, 9), (5, 5), (-1, 2)])
def test_a_stretch_that_is_not_in_the_tree_has_no_halves(stretch):
    with pytest.raises(ValueError, match="expected a half in the tree of 7"):
        parts.halves(stretch, 7)


def test_no_rows(folder, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((0, 3), np.float32))
    np.save(tmp_path / "y.npy", np.zeros(0, np.int64))
    s = class_scatter_of_files(tmp_path / "x.npy", tmp_path / "y.npy", 2, parts=tmp_path / "parts")
    assert s.num_samples == 0


# ---------------------------------------------------------------- many processes


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
