"""Features and labels by URL: the bits of the same files on disk, read once."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from web import CutShort, Plain, Ranges, serving

from deeprep import class_scatter_of_files
from deeprep.cli import main
from deeprep.files import remote, sources
from deeprep.files.opened import open_array
from deeprep.files.shards import ArrayFiles

pytest.importorskip("aiohttp")
fsspec = pytest.importorskip("fsspec")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

FEATURES = np.random.default_rng(0).standard_normal((2000, 7)).astype(np.float32)
LABELS = np.arange(2000) % 4


@pytest.fixture
def folder(tmp_path):
    """Three files of features in each format, and the labels in one."""
    for i, (x, y) in enumerate(
        zip(np.array_split(FEATURES, 3), np.array_split(LABELS, 3), strict=True)
    ):
        np.save(tmp_path / f"x-{i}.npy", x)
        save_file({"x": x, "y": y}, tmp_path / f"both-{i}.safetensors")
        table = pa.table({"x": pa.array(list(x)), "y": pa.array(y)})
        pq.write_table(table, tmp_path / f"rows-{i}.parquet", row_group_size=100)
    np.save(tmp_path / "y.npy", LABELS)
    return tmp_path


@pytest.fixture
def memory(folder):
    """The same files in fsspec's memory."""
    store = fsspec.filesystem("memory")
    for path in folder.iterdir():
        store.pipe(f"/bucket/{path.name}", path.read_bytes())
    yield "memory://bucket"
    store.rm("/bucket", recursive=True)


def same_bits(found, expected):
    assert torch.equal(found.counts, expected.counts)
    assert torch.equal(found.means, expected.means)
    assert torch.equal(found.sumsq, expected.sumsq)


SOURCES = [
    ("x-*.npy", "y.npy"),
    ("both-*.safetensors", "both-*.safetensors:y"),
    ("rows-*.parquet", "rows-*.parquet:y"),
    ("x-*.npy", "rows-*.parquet"),
]


@pytest.mark.parametrize(("features", "labels"), SOURCES)
@pytest.mark.parametrize("batch_bytes", [2**20, 3000])
def test_a_bucket_gives_the_bits_of_the_disk(folder, memory, features, labels, batch_bytes):
    local = class_scatter_of_files(
        f"{folder}/{features}", f"{folder}/{labels}", batch_bytes=batch_bytes
    )
    found = class_scatter_of_files(
        f"{memory}/{features}", f"{memory}/{labels}", batch_bytes=batch_bytes
    )
    same_bits(found, local)


@pytest.mark.parametrize("handler", [Ranges, Plain])
@pytest.mark.parametrize("name", ["x-0.npy", "both-0.safetensors", "rows-0.parquet"])
def test_a_web_server_gives_the_bits_of_the_disk(folder, handler, name, monkeypatch):
    monkeypatch.setattr(remote, "RANGE_BYTES", 1000)
    labels = name if "npy" not in name else "both-0.safetensors"
    local = class_scatter_of_files(folder / name, folder / labels, batch_bytes=5000)
    with serving(folder, handler) as url:
        if handler is Plain and "parquet" in name:
            with pytest.raises(ValueError, match="does not serve ranges of bytes, expected one"):
                class_scatter_of_files(f"{url}/{name}", f"{url}/{labels}")
            return
        found = class_scatter_of_files(f"{url}/{name}?key=1", f"{url}/{labels}", batch_bytes=5000)
        signed = open_array("features", f"{url}/{name}?key=1").shards
        assert signed == open_array("features", f"{url}/{name}").shards  # finished parts stay valid
    same_bits(found, local)


def test_a_web_server_without_ranges_is_asked_for_every_byte_once(folder, monkeypatch):
    """Of features; of labels twice."""
    monkeypatch.setattr(remote, "RANGE_BYTES", 1000)
    asked = []

    class Counting(Plain):
        def do_GET(self):  # noqa: N802
            asked.append(self.path)
            super().do_GET()

    with serving(folder, Counting) as url:
        array = open_array("features", f"{url}/x-0.npy")
        opened = len(asked)
        rows = [block.clone() for block in array.read_each(array.blocks(50))]
    assert np.array_equal(torch.cat(rows).numpy(), np.load(folder / "x-0.npy"))
    assert len(asked) <= opened + 1


@pytest.mark.parametrize("features", ["x-*.npy", "rows-*.parquet"])
def test_a_listing_of_a_web_server(folder, features):
    local = class_scatter_of_files(f"{folder}/{features}", folder / "y.npy")
    with serving(folder) as url:
        same_bits(class_scatter_of_files(f"{url}/{features}", f"{url}/y.npy"), local)


def test_a_url_of_a_local_file_is_mapped(folder):
    assert isinstance(open_array("features", f"file://{folder}/x-0.npy"), ArrayFiles)
    array = open_array("labels", f"file://{folder}/both-*.safetensors:y")
    assert isinstance(array, ArrayFiles)
    assert array.num_rows == 2000


def test_a_directory_in_a_bucket(memory):
    store = fsspec.filesystem("memory")
    for i in range(12):  # x-10 comes after x-2
        for name, values in (("x", np.full((2, 3), i, np.float32)), ("y", np.array([i, i]))):
            with store.open(f"/bucket/{name}/{name}-{i}.npy", "wb") as file:
                np.save(file, values)
    with store.open("/bucket/x/README.md", "wb") as file:
        file.write(b"about")
    s = class_scatter_of_files(f"{memory}/x", f"{memory}/y/")
    assert s.means[:, 0].tolist() == list(range(12))


@pytest.mark.parametrize("name", ["both-0.safetensors", "rows-0.parquet"])
def test_a_name_follows_a_query_which_may_hold_colons(folder, name):
    local = class_scatter_of_files(folder / name, f"{folder / name}:y")
    with serving(folder) as url:
        source = f"{url}/{name}?expires=12:30"
        same_bits(class_scatter_of_files(f"{source}:x", f"{source}:y"), local)


def test_nothing_printed_has_the_query_of_a_url(folder, capsys):
    """It may be a signature, by which whoever reads it could read the file."""
    with serving(folder) as url:
        query = "?signature=3e1"
        for options in ([], ["--json"]):
            sources = (f"{url}/rows-0.parquet{query}:x", f"{url}/rows-0.parquet{query}:y")
            assert main(["stats", *sources, *options]) == 0
            printed = capsys.readouterr()
            assert f"{url}/rows-0.parquet:x" in "".join(printed.out.split())
            assert "sign" not in "".join((printed.out + printed.err).split())
        for source in ("none.npy", "x-0.txt", "y.npy", "x-1.npy", "rows-0.parquet:z"):
            name, _, column = source.partition(":")
            source = f"{url}/{name}{query}" + (column and f":{column}")
            assert main(["stats", source, f"{url}/x-0.npy{query}"]) != 0
            printed = capsys.readouterr()
            assert url in printed.err
            assert "sign" not in "".join((printed.out + printed.err).split())


def test_a_server_that_denies_access_is_not_said_to_lack_the_file(folder):
    class Denying(Ranges):
        def do_GET(self):  # noqa: N802
            self.send_error(403)

        do_HEAD = do_GET  # noqa: N815

    with serving(folder, Denying) as url, pytest.raises(FileNotFoundError) as caught:
        class_scatter_of_files(f"{url}/x-0.npy?signature=3e1", f"{url}/y.npy")
    assert "cannot be found or read: 403" in str(caught.value)
    assert "3e1" not in str(caught.value)
    with serving(folder) as url, pytest.raises(FileNotFoundError, match="does not exist"):
        class_scatter_of_files(f"{url}/none.npy", f"{url}/y.npy")


def test_a_directory_named_as_a_file(memory, folder):
    """As Spark writes them."""
    store = fsspec.filesystem("memory")
    for i in range(3):
        content = (folder / f"rows-{i}.parquet").read_bytes()
        store.pipe(f"/bucket/all.parquet/part-{i}.parquet", content)
    store.pipe("/bucket/all.parquet/_SUCCESS", b"")
    source = f"{memory}/all.parquet"
    found = class_scatter_of_files(f"{source}:x", f"{source}:y")
    same_bits(found, class_scatter_of_files(f"{memory}/rows-*.parquet", f"{memory}/y.npy"))


def test_a_download_that_is_cut_short_is_named(folder):
    with serving(folder, CutShort) as url, pytest.raises((OSError, ValueError)) as caught:
        class_scatter_of_files(f"{url}/x-0.npy", folder / "both-0.safetensors")
    assert f"{url}/x-0.npy" in str(caught.value)


def test_a_file_that_has_become_shorter_is_named(memory, folder):
    array = open_array("features", f"{memory}/x-0.npy")
    fsspec.filesystem("memory").pipe("/bucket/x-0.npy", b"short")
    with pytest.raises(ValueError, match=r"memory://.*x-0.npy became shorter while it was read"):
        list(array.read_each(array.blocks(100)))


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("none.npy", FileNotFoundError, "features memory://bucket/none.npy does not exist"),
        ("none-*.npy", FileNotFoundError, r"features memory://.*none-\*.npy matches no file"),
        ("none", FileNotFoundError, "features memory://bucket/none does not exist"),
        ("z.txt", ValueError, "z.txt, expected a .npy, a .safetensors or a .parquet file"),
        ("cut.npy", ValueError, r"memory:///bucket/cut.npy has 18\d* bytes, expected 18"),
        ("empty.npy", ValueError, "memory:///bucket/empty.npy is cut short or no .npy array"),
        ("text.npy", ValueError, "memory:///bucket/text.npy is cut short or no .npy array"),
        ("objects.npy", ValueError, "objects.npy is cut short or no .npy .*Python objects"),
        ("fortran.npy", ValueError, "fortran.npy is stored column by column"),
        ("cut.safetensors", ValueError, "cut.safetensors is cut short or no safetensors file"),
        ("both-0.safetensors:z", ValueError, r"both-0.safetensors holds .*, expected 'z'"),
        ("cut.parquet", ValueError, "cut.parquet is cut short, damaged or no Parquet file"),
    ],
)
def test_what_cannot_be_read_is_named_by_its_url(folder, memory, source, error, message):
    store = fsspec.filesystem("memory")
    for name in ("x-0.npy", "both-0.safetensors", "rows-0.parquet"):
        whole = (folder / name).read_bytes()
        store.pipe(f"/bucket/cut.{name.partition('.')[2]}", whole[:-4])
    store.pipe("/bucket/empty.npy", b"")
    store.pipe("/bucket/text.npy", b"no array at all")
    store.pipe("/bucket/z.txt", b"1 2 3")
    for name, array in (
        ("objects", np.array([[{}]])),
        ("fortran", np.asfortranarray(FEATURES[:9])),
    ):
        with store.open(f"/bucket/{name}.npy", "wb") as file:
            np.save(file, array, allow_pickle=True)
    with pytest.raises(error, match=message):
        class_scatter_of_files(f"{memory}/{source}", f"{memory}/y.npy")


def test_a_store_that_fails_is_named(memory, monkeypatch):
    def failing(self, *arguments, **options):
        raise RuntimeError("no credentials")

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "cat_file", failing)
    with pytest.raises(OSError, match=r"memory:///bucket/x-0.npy cannot be read: .*no credentials"):
        class_scatter_of_files(f"{memory}/x-0.npy", f"{memory}/y.npy")


def test_memory_that_a_store_lacks_is_no_error_of_the_store():
    with pytest.raises(MemoryError), sources.errors_of_store("s3://b/x.npy"):
        raise MemoryError


def test_libraries_that_are_missing_are_named(monkeypatch):
    with pytest.raises(ValueError, match=r"features is what://x\.npy: Protocol not known: what"):
        class_scatter_of_files("what://x.npy", "y.npy")

    def missing(name):
        raise ImportError(f"No module named {name!r}")

    def store(url, **options):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", store)
    with pytest.raises(ImportError, match=r"features s3://b/x\.npy .* needs one more .* s3fs"):
        class_scatter_of_files("s3://b/x.npy", "y.npy")
    monkeypatch.setattr(sources.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"needs fsspec: pip install 'deeprep\[remote\]'"):
        class_scatter_of_files("s3://b/x.npy", "y.npy")
