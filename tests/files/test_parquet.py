"""Columns of Parquet files are features and labels: the bits of the same numbers in a .npy file."""

import numpy as np
import pytest
import torch

import deeprep
from deeprep import class_scatter, class_scatter_of_files
from deeprep.files import parquet, sources
from deeprep.files.opened import open_array

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

FEATURES = np.random.default_rng(0).standard_normal((100, 7)).astype(np.float32)
LABELS = np.arange(100) % 4


def fixed(features):
    return pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1])


def lists(features):
    return pa.array(list(features))


def write(path, *, rows_per_group=30, **columns):
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)
    return path


def same_bits(found, expected):
    assert torch.equal(found.counts, expected.counts)
    assert torch.equal(found.means, expected.means)
    assert torch.equal(found.sumsq, expected.sumsq)


@pytest.mark.parametrize("kind", [fixed, lists])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("label_dtype", [np.int32, np.int64, np.uint8])
def test_a_column_of_lists_gives_the_bits_of_npy(tmp_path, kind, dtype, label_dtype):
    x, y = FEATURES.astype(dtype), LABELS.astype(label_dtype)
    path = write(tmp_path / "all.parquet", text=pa.array(["a"] * 100), x=kind(x), y=pa.array(y))
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    for batch_bytes in (2**20, 500):
        expected = class_scatter_of_files(
            tmp_path / "x.npy", tmp_path / "y.npy", batch_bytes=batch_bytes
        )
        for features in (path, f"{path}:x"):
            same_bits(class_scatter_of_files(features, path, batch_bytes=batch_bytes), expected)


def test_one_column_a_feature(tmp_path):
    # In the file pixel10 comes before pixel2, in the matrix after it.
    columns = {f"pixel{i}": pa.array(FEATURES[:, i % 7]) for i in (10, 2, 0)}
    path = write(tmp_path / "all.parquet", label=pa.array(LABELS), **columns)
    found = class_scatter_of_files(f"{path}:pixel*", f"{path}:label")
    same_bits(found, class_scatter(FEATURES[:, [0, 2, 3]], LABELS))


def test_many_files_and_groups_of_rows(tmp_path):
    """Some without rows, some without groups; labels are cut elsewhere."""
    for i, (begin, end) in enumerate([(0, 0), (0, 61), (61, 61), (61, 100)]):
        write(tmp_path / f"x-{i}.parquet", rows_per_group=7, x=lists(FEATURES[begin:end]))
        if i in (0, 2):
            schema = pa.schema({"x": pa.list_(pa.float32())})
            with pq.ParquetWriter(tmp_path / f"x-{i}.parquet", schema):
                pass
    write(tmp_path / "y.parquet", y=pa.array(LABELS))
    expected = class_scatter(FEATURES, LABELS)
    for batch_bytes in (2**20, 333):
        s = class_scatter_of_files(
            f"{tmp_path}/x-*.parquet:x", tmp_path / "y.parquet", batch_bytes=batch_bytes
        )
        assert torch.equal(s.counts, expected.counts)
        torch.testing.assert_close(s.means, expected.means, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(s.sumsq, expected.sumsq, rtol=1e-6, atol=0)


def test_edges_are_those_of_groups_of_rows(tmp_path):
    for i in range(2):
        write(tmp_path / f"x-{i}.parquet", rows_per_group=40, x=fixed(FEATURES))
    array = open_array("features", f"{tmp_path}/x-*.parquet")
    assert array.edges == [0, 40, 80, 100, 140, 180, 200]
    blocks = [(35, 45), (95, 130)]  # not from the beginning, and with a gap
    for block, rows in zip(blocks, array.read_each(blocks), strict=True):
        wanted = np.concatenate([FEATURES, FEATURES])[slice(*block)]
        assert np.array_equal(rows.numpy(), wanted)


def test_a_group_of_rows_is_never_in_memory_as_a_whole(tmp_path):
    rows = 40_000
    features = np.zeros((rows, 512), np.float32)  # 80 MB
    features[:, 0] = np.arange(rows)
    table = pa.table({"x": fixed(features), "y": pa.array(np.arange(rows) % 3)})
    path = tmp_path / "all.parquet"
    pq.write_table(table, path, row_group_size=rows, compression="none", use_dictionary=False)
    del table
    pool = pa.default_memory_pool()
    before, largest = pool.bytes_allocated(), 0

    def look(done, total):
        nonlocal largest
        largest = max(largest, pool.bytes_allocated() - before)

    s = class_scatter_of_files(path, path, batch_bytes=2**21, progress=look)
    assert s.num_samples == rows
    assert largest < 32 * 2**20


@pytest.mark.parametrize(
    ("columns", "features", "labels", "error", "message"),
    [
        ({}, ":z", ":y", ValueError, r"all.parquet holds x \(.*\), y \(int64\), expected 'z'"),
        ({}, ":x", ":z*", ValueError, r"labels .*all.parquet holds .*, expected 'z\*'"),
        ({}, ":y", ":y", TypeError, r"all.parquet:y has dtype I64, expected one of float32"),
        (
            {},
            ":x",
            ":x",
            TypeError,
            r"all.parquet:x has dtype fixed_size_list<.*, expected one of u",
        ),
        ({"z": fixed(FEATURES)}, "", "", ValueError, "expected one column of lists of numbers, or"),
        ({"z": pa.array(LABELS)}, "", "", ValueError, "expected one column of integers, or .*:COL"),
        ({"z": pa.array(["a"] * 100)}, ":z", "", TypeError, "all.parquet:z has dtype string"),
        ({"z": lists(LABELS[:, None])}, ":z", ":y", TypeError, "all.parquet:z has dtype I64"),
        (
            {"x": pa.array([*FEATURES[:50], FEATURES[0, :3], *FEATURES[51:]])},
            "",
            "",
            ValueError,
            "row 50 of .*all.parquet:x has 3 numbers, expected 7 as in the first row",
        ),
        (
            {"x": pa.array([*FEATURES[:50], None, *FEATURES[51:]])},
            "",
            "",
            ValueError,
            "row 50 of .*all.parquet:x has a null, expected numbers",
        ),
        (
            {"x": pa.array([[1.0, 2.0]] * 70 + [[1.0, None]] + [[1.0, 2.0]] * 29)},
            "",
            "",
            ValueError,
            "row 70 of .*all.parquet:x has a null, expected numbers",
        ),
        (
            {"y": pa.array([*range(40), None, *range(59)])},
            "",
            "",
            ValueError,
            "row 40 of .*all.parquet:y has a null, expected an integer",
        ),
        ({"p0": pa.array(LABELS), "p1": pa.array([0.5] * 100)}, ":p*", ":y", TypeError, "columns"),
    ],
)
def test_columns_that_do_not_fit_are_named(tmp_path, columns, features, labels, error, message):
    path = tmp_path / "all.parquet"
    write(path, **{"x": fixed(FEATURES), "y": pa.array(LABELS), **columns})
    with pytest.raises(error, match=message):
        class_scatter_of_files(f"{path}{features}", f"{path}{labels}")


def test_files_of_different_columns_are_refused(tmp_path):
    write(tmp_path / "x-0.parquet", x=fixed(FEATURES))
    write(tmp_path / "x-1.parquet", x=fixed(FEATURES[:, :5]))
    write(tmp_path / "y.parquet", y=pa.array(np.arange(200)))
    with pytest.raises(ValueError, match=r"x-1.parquet:x has shape \(100, 5\), expected \(N, 7\)"):
        class_scatter_of_files(f"{tmp_path}/x-*.parquet", tmp_path / "y.parquet")
    np.save(tmp_path / "x-2.npy", FEATURES)
    with pytest.raises(ValueError, match=r"has .parquet and other files, expected one kind"):
        class_scatter_of_files(f"{tmp_path}/x-*", tmp_path / "y.parquet")


def test_a_file_that_is_damaged_is_named(tmp_path):
    path = write(tmp_path / "all.parquet", x=fixed(FEATURES), y=pa.array(LABELS))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"all.parquet is cut short, damaged or no Parquet file"):
        class_scatter_of_files(path, path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"all.parquet is cut short, damaged or no Parquet file"):
        class_scatter_of_files(path, path)
    path.write_bytes(whole[:4] + bytes(400) + whole[404:])  # pages, the footer being whole
    with pytest.raises(ValueError, match=r"all.parquet is cut short, damaged or no Parquet file"):
        class_scatter_of_files(path, path)


def test_no_rows_at_all(tmp_path):
    path = write(tmp_path / "all.parquet", x=fixed(FEATURES[:0]), y=pa.array(LABELS[:0]))
    assert class_scatter_of_files(path, path, 3).num_samples == 0
    path = write(tmp_path / "lists.parquet", x=pa.array([], pa.list_(pa.float32())))
    labels = write(tmp_path / "y.parquet", y=pa.array(LABELS[:0]))
    with pytest.raises(ValueError, match=r"lists.parquet:x has shape \(0, 0\), expected \(N, d\)"):
        class_scatter_of_files(path, labels, 3)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "all.parquet", x=fixed(FEATURES), y=pa.array(LABELS))

    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(sources.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"needs pyarrow: pip install 'deeprep\[parquet\]'"):
        deeprep.class_scatter_of_files(path, path)


def test_labels_of_parquet_and_features_of_npy(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_DECODED_BYTES", 64)  # batches of a few rows
    np.save(tmp_path / "x.npy", FEATURES)
    path = write(tmp_path / "y.parquet", y=pa.array(LABELS), x=lists(FEATURES))
    expected = class_scatter(FEATURES, LABELS)
    same_bits(class_scatter_of_files(tmp_path / "x.npy", path), expected)
    same_bits(class_scatter_of_files(path, f"{path}:y"), expected)
