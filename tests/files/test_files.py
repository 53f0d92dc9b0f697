"""Features on disk: any format and any cut give the statistics of the whole, in bounded memory."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import deeprep
from deeprep import ClassScatter, class_scatter, class_scatter_of_files
from deeprep.base import validate
from deeprep.files import files, mapped_rows
from deeprep.files.shards import ArrayFiles

FEATURES = torch.randn(100, 7, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(100) % 4


def write(path, tensor, **others):
    """Write a .npy or, with other tensors beside it, a .safetensors file."""
    if path.suffix == ".npy":
        is_half = tensor.dtype == torch.bfloat16
        np.save(path, tensor.view(torch.int16).numpy().view("V2") if is_half else tensor.numpy())
    else:
        save_file({"x": tensor.contiguous(), **others}, path)
    return path


def assert_same(s, expected, tolerance=1e-6):
    assert torch.equal(s.counts, expected.counts)
    torch.testing.assert_close(s.means, expected.means, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(s.sumsq, expected.sumsq, rtol=tolerance, atol=0)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_one_block_gives_the_bits_of_features_in_memory(tmp_path, suffix, dtype):
    features = write(tmp_path / f"features{suffix}", FEATURES.to(dtype))
    labels = write(tmp_path / f"labels{suffix}", LABELS)
    s = class_scatter_of_files(features, labels, full=True)
    expected = class_scatter(FEATURES.to(dtype), LABELS, full=True)
    assert torch.equal(s.means, expected.means)
    assert torch.equal(s.sumsq, expected.sumsq)
    assert torch.equal(s.pooled_scatter, expected.pooled_scatter)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "i8"])
def test_labels_of_any_integer_type(tmp_path, dtype):
    features = write(tmp_path / "features.npy", FEATURES)
    np.save(tmp_path / "labels.npy", LABELS.numpy().astype(dtype))
    s = class_scatter_of_files(features, tmp_path / "labels.npy")
    assert_same(s, class_scatter(FEATURES, LABELS), 0)


@given(
    feature_cuts=st.lists(st.integers(0, 100), max_size=12),
    label_cuts=st.lists(st.integers(0, 100), max_size=3),
    batch_rows=st.integers(1, 120),
    suffix=st.sampled_from([".npy", ".safetensors"]),
)
def test_any_cut_into_files_and_blocks_gives_the_same(
    tmp_path_factory, feature_cuts, label_cuts, batch_rows, suffix
):
    folder = tmp_path_factory.mktemp("shards")
    for name, cuts, tensor in (("x", feature_cuts, FEATURES), ("y", label_cuts, LABELS)):
        # Twelve shards: 10 comes after 2 only in natural order. Some have no rows at all.
        for i, part in enumerate(torch.tensor_split(tensor, sorted(cuts))):
            write(folder / f"{name}-{i}{suffix}", part)
    done = []
    s = class_scatter_of_files(
        f"{folder}/x-*",
        f"{folder}/y-*",
        batch_bytes=batch_rows * 7 * 4,
        progress=lambda *progress: done.append(progress),
    )
    assert_same(s, class_scatter(FEATURES, LABELS))
    assert done[-1] == (100, 100)


@given(
    shards=st.lists(st.integers(0, 30), min_size=1, max_size=8),
    max_rows=st.integers(1, 40),
)
def test_blocks_cover_the_rows_in_order(tmp_path_factory, shards, max_rows):
    folder = tmp_path_factory.mktemp("shards")
    rows = torch.arange(2.0 * sum(shards)).reshape(-1, 2)
    for i, part in enumerate(rows.split(shards)):
        write(folder / f"{i}.npy", part)
    array = ArrayFiles("features", folder)
    read = [array.read(*block) for block in array.blocks(max_rows)]
    assert torch.equal(torch.cat([rows[:0], *read]), rows)
    assert all(0 < len(block) <= max_rows for block in read)


# Long enough for a shard to be mapped and not copied: 2**18 bytes.
@pytest.mark.parametrize("num_columns", [1, 7, 64, 257, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("label_dtype", [torch.int64, torch.uint8])
def test_rows_of_many_shards_are_one_matrix(tmp_path, num_columns, dtype, label_dtype):
    rows = 2**19 // (num_columns * dtype.itemsize)
    cuts = [rows, 3 * rows - 1, 3 * rows - 1, 3 * rows + 1]
    features = torch.randn(5 * rows, num_columns, generator=torch.Generator().manual_seed(0))
    features = features.to(dtype)
    for i, part in enumerate(features.tensor_split(cuts)):
        write(tmp_path / f"x-{i}.npy", part)
    array = ArrayFiles("features", f"{tmp_path}/x-*.npy")
    found, spans = array.read_apart(5, 5 * rows - 5)
    found = torch.cat([found[span.begin : span.begin + span.rows] for span in spans])
    assert torch.equal(found, features[5:-5])
    labels = torch.arange(5 * rows) % 11
    path = write(tmp_path / "y.npy", labels.to(label_dtype))
    s = class_scatter_of_files(f"{tmp_path}/x-*.npy", path, full=num_columns < 100, ignore_index=3)
    expected = class_scatter(features, labels, full=num_columns < 100, ignore_index=3)
    assert_same(s, expected)
    if s.full:
        scale = expected.pooled_scatter.abs().max().item()
        torch.testing.assert_close(
            s.pooled_scatter, expected.pooled_scatter, rtol=0, atol=1e-6 * scale
        )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone maps at an address")
def test_shards_of_a_usual_size_are_not_copied(tmp_path, monkeypatch):
    features = torch.randn(12_000, 60, generator=torch.Generator().manual_seed(0))
    for i, part in enumerate(features.split(3_000)):
        write(tmp_path / f"x-{i}.npy", part)
    labels = write(tmp_path / "y.npy", torch.arange(12_000) % 4)
    monkeypatch.setattr(mapped_rows, "copy", None)
    class_scatter_of_files(f"{tmp_path}/x-*.npy", labels)


def test_without_a_mapping_at_an_address_shards_are_copied(tmp_path, monkeypatch):
    features = torch.randn(12_000, 60, generator=torch.Generator().manual_seed(0))
    for i, part in enumerate(features.split(3_000)):
        write(tmp_path / f"x-{i}.npy", part)
    labels = torch.arange(12_000) % 4
    path = write(tmp_path / "y.npy", labels)
    monkeypatch.setattr(mapped_rows, "_map_at", lambda: None)
    s = class_scatter_of_files(f"{tmp_path}/x-*.npy", path, batch_bytes=2**20)
    assert_same(s, class_scatter(features, labels))


def test_a_shard_like_another_but_cut_short_is_refused(tmp_path):
    for i in range(3):
        write(tmp_path / f"x-{i}.npy", FEATURES)
    labels = write(tmp_path / "y.npy", LABELS.repeat(3))
    whole = (tmp_path / "x-2.npy").read_bytes()
    (tmp_path / "x-2.npy").write_bytes(whole[:-4])
    with pytest.raises(ValueError, match=r"x-2\.npy is cut short"):
        class_scatter_of_files(f"{tmp_path}/x-*.npy", labels)


def test_one_file_may_hold_both_and_a_name_chooses(tmp_path):
    both, many = tmp_path / "both.safetensors", tmp_path / "many.safetensors"
    write(both, FEATURES, y=LABELS)
    write(many, FEATURES + 1, **{"a:b": FEATURES}, y=LABELS, z=LABELS + 1)
    expected = class_scatter(FEATURES, LABELS)
    assert_same(class_scatter_of_files(both, both), expected, 0)
    assert_same(class_scatter_of_files(f"{many}:a:b", f"{many}:y"), expected, 0)
    assert_same(class_scatter_of_files(f"{tmp_path}/b*.safetensors:x", both), expected, 0)


def test_numbers_at_any_byte_of_a_file(tmp_path):
    # A header of any length and an array of odd size before: the features are at an odd address.
    header = {
        "odd": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "x": {"dtype": "F32", "shape": [100, 7], "data_offsets": [1, 2801]},
    }
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    content = FEATURES.numpy().tobytes()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" + content)
    labels = write(tmp_path / "labels.npy", LABELS)
    assert_same(class_scatter_of_files(path, labels), class_scatter(FEATURES, LABELS), 0)


def test_ignored_rows_and_classes_without_samples(tmp_path):
    labels = LABELS.clone()
    labels[::3] = 255
    features = write(tmp_path / "x.npy", FEATURES)
    path = write(tmp_path / "y.npy", labels)
    s = class_scatter_of_files(features, path, ignore_index=255)
    assert_same(s, class_scatter(FEATURES, labels, ignore_index=255), 0)
    assert s.num_classes == 4
    s = class_scatter_of_files(features, path, 9, ignore_index=255, batch_bytes=1)
    assert s.counts.tolist() == [*class_scatter(FEATURES, labels, 9, ignore_index=255).counts]


def _peak_bytes(name):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"/proc/self/status has no {name}")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is known on Linux")
@pytest.mark.parametrize("num_shards", [1, 3, 100])
def test_what_is_resident_does_not_grow_with_the_files(tmp_path, num_shards):
    rows = 400_000 // num_shards
    for i in range(num_shards):
        # A sparse file: 400 MB of zeros that take no room on the disk.
        np.lib.format.open_memmap(tmp_path / f"x-{i}.npy", "w+", np.float32, (rows, 256)).flush()
    labels = write(tmp_path / "y.npy", torch.arange(rows * num_shards) % 10)
    batch_bytes = 2**25
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _peak_bytes("VmRSS")
    s = class_scatter_of_files(f"{tmp_path}/x-*.npy", labels, batch_bytes=batch_bytes)
    grown = _peak_bytes("VmHWM") - before
    assert s.num_samples == rows * num_shards
    # One block, the labels of the check, and what threads and allocators take the first time.
    assert grown < 2.5 * batch_bytes


@pytest.mark.parametrize(
    ("features", "labels", "error", "message"),
    [
        ("none.npy", "y.npy", FileNotFoundError, "features .*/none.npy does not exist"),
        ("none-*.npy", "y.npy", FileNotFoundError, r"features .*/none-\*.npy matches no file"),
        (
            "empty",
            "y.npy",
            FileNotFoundError,
            "features .*/empty is a directory without .npy, .saf",
        ),
        (
            "x.txt",
            "y.npy",
            ValueError,
            "features .*/x.txt, expected a .npy, a .safetensors or a .parquet file",
        ),
        ("x.npy", "x.npy", ValueError, r"labels .*x.npy has shape \(100, 7\), expected \(N,\)"),
        ("y.npy", "y.npy", ValueError, r"features .*y.npy has shape \(100,\), expected \(N, d\)"),
        ("x.npy", "short.npy", ValueError, "labels .*short.npy has 99 rows, expected 100: one"),
        ("wide-*.npy", "y.npy", ValueError, r"wide-1.npy has shape \(9, 8\), expected \(N, 7\) as"),
        ("types-*.npy", "y.npy", TypeError, "types-1.npy has dtype <f8, expected <f4 as in .*s-0"),
        ("big.npy", "y.npy", TypeError, "big.npy has dtype >f4, expected one of float32, "),
        ("x.npy", "real.npy", TypeError, "real.npy has dtype <f4, expected one of .*int64"),
        ("fortran.npy", "y.npy", ValueError, "fortran.npy is stored column by column .*np.save"),
        ("cut.npy", "y.npy", ValueError, "features .*cut.npy is cut short or no .npy array"),
        ("text.npy", "y.npy", ValueError, "features .*text.npy is cut short or no .npy array"),
        ("objects.npy", "y.npy", ValueError, "objects.npy is cut short or no .npy array that can"),
        ("cut.safetensors", "y.npy", ValueError, "cut.safetensors is cut short or no safetensors"),
        (
            "two.safetensors",
            "y.npy",
            ValueError,
            r"two.safetensors holds .*x \(100, 7\).*, expected one array \(N, d\), or .*:NAME",
        ),
        ("two.safetensors:q", "y.npy", ValueError, "two.safetensors holds .*, expected 'q'"),
        ("no_columns.npy", "y.npy", ValueError, r"shape \(100, 0\), expected \(N, d\)"),
        ("no_rows.npy", "no_labels.npy", ValueError, "num_classes is None and there is no label"),
    ],
)
def test_files_that_do_not_fit_are_refused_before_anything_is_computed(
    tmp_path, monkeypatch, features, labels, error, message
):
    write(tmp_path / "x.npy", FEATURES)
    write(tmp_path / "y.npy", LABELS)
    write(tmp_path / "short.npy", LABELS[1:])
    write(tmp_path / "real.npy", LABELS.float())
    write(tmp_path / "no_rows.npy", FEATURES[:0])
    write(tmp_path / "no_labels.npy", LABELS[:0])
    write(tmp_path / "no_columns.npy", FEATURES[:, :0])
    write(tmp_path / "wide-0.npy", FEATURES[:91])
    write(tmp_path / "wide-1.npy", torch.ones(9, 8))
    write(tmp_path / "types-0.npy", FEATURES[:91])
    write(tmp_path / "types-1.npy", FEATURES[91:].double())
    np.save(tmp_path / "big.npy", FEATURES.numpy().astype(">f4"))
    np.save(tmp_path / "fortran.npy", np.asfortranarray(FEATURES.numpy()))
    np.save(tmp_path / "objects.npy", np.array([[{}]]), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-1])
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "x.txt").write_text("1 2 3")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "two.safetensors", FEATURES, z=FEATURES + 1)
    whole = (tmp_path / "two.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-1])

    def computed(*arguments):
        raise AssertionError("computed before everything was checked")

    monkeypatch.setattr(ClassScatter, "update", computed)
    with pytest.raises(error, match=message):
        class_scatter_of_files(tmp_path / features, tmp_path / labels)


@pytest.mark.parametrize(
    ("label", "num_classes", "message"),
    [
        (4, 4, r"labels\[20\] of .*y-2.npy is 4, expected a class in \[0, 4\) or ignore_index"),
        (-1, None, r"labels\[20\] of .*y-2.npy is -1, expected a class in \[0, 4\) or ignore_ind"),
        (2**40, 4, rf"labels\[20\] of .*y-2.npy is {2**40}, expected a class in \[0, 4\)"),
    ],
)
def test_a_label_that_is_no_class_is_named_with_its_file(
    tmp_path, monkeypatch, label, num_classes, message
):
    labels = LABELS.clone()
    labels[3] = -100
    labels[60] = label
    features = write(tmp_path / "x.npy", FEATURES)
    for i in range(3):
        write(tmp_path / f"y-{i}.npy", labels[20 * i : 20 * i + 20 if i < 2 else 100])
    monkeypatch.setattr(ClassScatter, "update", None)
    with pytest.raises(ValueError, match=message):
        class_scatter_of_files(features, f"{tmp_path}/y-*.npy", num_classes, batch_bytes=64)


@pytest.mark.parametrize(
    ("stray", "size"), [(2**62, r"309,237,645,312\.0 GiB"), (20_000_000, r"1\.3 GiB")]
)
def test_a_stray_label_is_named_before_it_takes_gigabytes(tmp_path, monkeypatch, stray, size):
    labels = LABELS.clone()
    labels[70:72] = stray
    x = write(tmp_path / "x.npy", FEATURES)
    for i, part in enumerate(labels.split(40)):
        write(tmp_path / f"y-{i}.npy", part)
    monkeypatch.setattr(files, "ClassScatter", None)
    message = (
        rf"labels\[30\] of .*y-1.npy is {stray}, expected one that num_classes can be "
        rf"inferred from: {stray + 1} classes of 7 features would take {size}, .* pass num_classes"
    )
    with pytest.raises(ValueError, match=message):
        class_scatter_of_files(x, f"{tmp_path}/y-*.npy", batch_bytes=64)


def test_many_classes_are_inferred_where_they_have_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(validate, "_UNASKED_STATE_BYTES", 1000)
    x = write(tmp_path / "x.npy", FEATURES)
    labels = torch.arange(100) * 10
    labels[:50:2] = -100
    labels[50:] = torch.arange(50) % 25 * 20
    s = class_scatter_of_files(x, write(tmp_path / "y.npy", labels), batch_bytes=64)
    assert s.num_classes == 491  # 50 of which have samples
    labels[1:50:2] = 490
    y = write(tmp_path / "z.npy", labels)
    with pytest.raises(ValueError, match=r"labels\[1\] of .*z.npy is 490, expected one that"):
        class_scatter_of_files(x, y, batch_bytes=64)
    assert class_scatter_of_files(x, y, 491).num_classes == 491


# Mapped, copied and, of many columns, mapped side by side.
@pytest.mark.parametrize(("cut", "num_columns"), [(False, 7), (True, 7), (True, 14_000)])
def test_a_file_that_shrinks_while_it_is_read_is_an_error_and_no_crash(tmp_path, cut, num_columns):
    features = FEATURES.repeat(1, num_columns // 7)
    parts = features.split(50) if cut else [features]
    for i, part in enumerate(parts):
        write(tmp_path / f"x-{i}.npy", part)
    labels = write(tmp_path / "y.npy", LABELS)

    def shrink(done, total):
        with (tmp_path / f"x-{len(parts) - 1}.npy").open("r+b") as file:
            file.truncate(300)

    with pytest.raises(ValueError, match="became shorter while it was read"):
        class_scatter_of_files(
            f"{tmp_path}/x-*", labels, batch_bytes=35 * 4 * num_columns, progress=shrink
        )


def test_settings_out_of_range_are_refused(tmp_path):
    x, y = write(tmp_path / "x.npy", FEATURES), write(tmp_path / "y.npy", LABELS)
    with pytest.raises(ValueError, match="batch_bytes is 0, expected a whole number >= 1"):
        class_scatter_of_files(x, y, batch_bytes=0)
    with pytest.raises(ValueError, match="num_classes is 0, expected a whole number >= 1"):
        deeprep.class_scatter_of_files(x, y, 0)


def test_a_group_without_all_reduce_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"group is given with all_reduce=False, expected"):
        class_scatter_of_files(tmp_path / "x.npy", tmp_path / "y.npy", group=object())
