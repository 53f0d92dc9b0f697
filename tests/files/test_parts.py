"""Files summed up in parts, stopped anywhere: the same bits."""

import itertools
import os
import time

import numpy as np
import pytest
import torch
from file_parts import FILES, ROWS, assert_same_bits, make_files, scatter
from hypothesis import given
from hypothesis import strategies as st

from deeprep import ClassScatter, class_scatter_of_files
from deeprep.files import parts
from deeprep.files.arrays import Array, Shard
from deeprep.files.labelled import LabelledFiles
from deeprep.files.opened import open_array


@pytest.fixture
def folder(tmp_path):
    make_files(tmp_path / "data")
    return tmp_path / "data"


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
