"""Where an array is: the files that a path, a directory, a glob or a URL names.

A name of an array or a column follows the file after a colon: ``file.safetensors:name``,
``file.parquet:column``.
"""

from __future__ import annotations

import contextlib
import glob
import importlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from deeprep.base.paths import natural_order
from deeprep.files.arrays import Argument

__all__ = ["Found", "errors_of_store", "find", "find_local", "library", "shown"]

NPY, SAFETENSORS, PARQUET = ".npy", ".safetensors", ".parquet"
SUFFIXES = (NPY, SAFETENSORS, PARQUET)
_NAMED = re.compile(rf"(?P<path>.*?({re.escape(SAFETENSORS)}|{re.escape(PARQUET)})):(?P<name>.*)")
# Of a query, which may hold colons: no other than the last, and only before what can be a name.
_NAMED_AFTER_QUERY = re.compile(
    rf"(?P<path>\w+://[^?]*({re.escape(SAFETENSORS)}|{re.escape(PARQUET)})\?.*)"
    r":(?P<name>[^\W\d][\w.*?\[\]-]*|[*?\[][\w.*?\[\]-]*)"
)
_QUERY = re.compile(r"(\w+://[^\s?'\"]*)\?[^\s'\"]*")
_MAGIC = re.compile(r"[*\[]")  # not "?", after which a URL may have a query
_NOTHING_IN_IT = "is a directory without .npy, .safetensors or .parquet files"
_EXPECTED = "a .npy, a .safetensors or a .parquet file"


class Found(NamedTuple):
    """The files of a source, in natural order.

    Attributes
    ----------
    paths
        Local ones, or those of a store.
    array
        The array or column in each of them, where the source has named one.
    store
        The fsspec file system that has them; None for local files.
    about
        What the store says of each: its size, and more.
    """

    paths: list[str]
    array: str | None
    store: Any = None
    about: Sequence[dict[str, Any]] = ()

    def url(self, index: int) -> str:
        """Name a file, without the query of its URL, for messages and for resuming."""
        if self.store is None:
            return self.paths[index]
        return without_query(self.store.unstrip_protocol(self.paths[index]))

    @property
    def suffix(self) -> str:
        """Of all the files."""
        return suffix_of(self.paths[0])


def find(argument: Argument, source: str) -> Found:
    """Return the files of a source: a path, a directory, a glob, or a URL of any of these.

    Raises
    ------
    FileNotFoundError
        Where the source is nowhere or matches no file.
    ImportError
        For a URL, where fsspec or the library of its store is missing.
    OSError
        Where the store cannot be asked.
    ValueError
        For files of other kinds, or of more than one that cannot be read together.
    """
    if "://" not in source:
        return find_local(argument, source)
    path, name = _split(source)
    source = shown(source)
    fsspec = library("fsspec", f"{argument} {source} is a URL", "remote")
    options = {}
    if path.startswith(("http://", "https://")):
        aiohttp = library("aiohttp", f"{argument} {source} is on a web server", "remote")
        # aiohttp's own limit is five minutes for a file, however large it is.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=60, sock_read=60)
        options["client_kwargs"] = {"timeout": timeout}
    try:
        store, path = fsspec.core.url_to_fs(path, **options)
    except ImportError as error:
        raise ImportError(
            f"{argument} {source} is in a store that needs one more library: {error}"
        ) from error
    except ValueError as error:  # of a protocol that there is not
        raise ValueError(f"{argument} is {source}: {error}") from error
    if type(store).__name__ == "LocalFileSystem":  # then they can be mapped
        return find_local(argument, path if name is None else f"{path}:{name}")
    with errors_of_store(source):
        entries, missing = _in_store(store, path)
    found = _checked(argument, source, [entry["name"] for entry in entries], name, missing)
    about = {entry["name"]: entry for entry in entries}
    return found._replace(store=store, about=[about[each] for each in found.paths])


def find_local(argument: Argument, source: str) -> Found:
    """Return the files of a path, a directory or a glob."""
    source = os.path.expanduser(source)
    path, name = (source, None) if os.path.exists(source) else _split(source)
    if os.path.isdir(path):
        found = _readable([os.path.join(path, each) for each in os.listdir(path)])
        missing = _NOTHING_IN_IT
    elif os.path.exists(path):
        found, missing = [path], ""
    else:
        found = glob.glob(path, recursive=True)
        missing = "matches no file" if glob.has_magic(path) else "does not exist"
    return _checked(argument, source, found, name, missing)


def _in_store(store: Any, path: str) -> tuple[list[dict[str, Any]], str]:
    """Return what a store says of the files of a path, a directory or a glob."""
    # Of a web page it cannot be known whether it is a directory but by loading it.
    if suffix_of(path) in SUFFIXES and not _MAGIC.search(path):
        try:
            about = store.info(path)
        except FileNotFoundError as error:
            return [], _why_missing(error)
        if about.get("type") != "directory":  # as Spark writes, named x.parquet
            return [{**about, "name": path}], ""
    if _MAGIC.search(path):
        return list(store.glob(path, detail=True).values()), "matches no file"
    try:
        entries = {entry["name"]: entry for entry in store.ls(path, detail=True)}
    except FileNotFoundError as error:
        return [], _why_missing(error)
    if path in entries:
        return [entries[path]], ""
    return [entries[name] for name in _readable(list(entries))], _NOTHING_IN_IT


def _why_missing(error: FileNotFoundError) -> str:
    """Say why a store has not found a path: fsspec's error is the same where access is denied."""
    cause = error.__cause__
    if cause is None or getattr(cause, "status", 404) == 404:  # of a web server
        return "does not exist"
    return f"cannot be found or read: {without_query(str(cause))}"


def _checked(
    argument: Argument, source: str, found: list[str], name: str | None, missing: str
) -> Found:
    if not found:
        raise FileNotFoundError(f"{argument} {source} {missing}")
    for each in found:
        if suffix_of(each) not in SUFFIXES:
            raise ValueError(f"{argument} is {shown(each)}, expected {_EXPECTED}")
        if name is not None and suffix_of(each) == NPY:
            raise ValueError(
                f"{argument} {shown(each)} is a .npy file, expected one that holds "
                f"{name!r} beside others"
            )
    if len({suffix_of(each) == PARQUET for each in found}) > 1:
        raise ValueError(f"{argument} {source} has .parquet and other files, expected one kind")
    return Found(sorted(found, key=natural_order), name)


def _split(source: str) -> tuple[str, str | None]:
    """Split ``path:name``; None for a path alone.

    >>> _split("s3://bucket/x.parquet:embedding")
    ('s3://bucket/x.parquet', 'embedding')
    >>> _split("x.npy")
    ('x.npy', None)
    >>> _split("https://host/x.parquet?expires=12:30:embedding")
    ('https://host/x.parquet?expires=12:30', 'embedding')
    >>> _split("https://host/x.parquet?expires=12:30")
    ('https://host/x.parquet?expires=12:30', None)
    """
    match = _NAMED_AFTER_QUERY.fullmatch(source) or _NAMED.fullmatch(source)
    return (match["path"], match["name"]) if match else (source, None)


def _readable(names: list[str]) -> list[str]:
    return [
        name
        for name in names
        if suffix_of(name) in SUFFIXES and not os.path.basename(name).startswith(".")
    ]


def suffix_of(path: str) -> str:
    """Return the suffix of a path, or of a URL, where a query may follow it.

    >>> suffix_of("https://host/x.npy?version=3"), suffix_of("a?b.npy")
    ('.npy', '.npy')
    """
    return os.path.splitext(urlsplit(path).path if "://" in path else path)[1]


def shown(source: str) -> str:
    """Return a source as messages name it, without the query of a URL.

    >>> shown("https://host/x.parquet?signature=3e1:embedding")
    'https://host/x.parquet:embedding'
    """
    path, name = _split(source)
    return without_query(path) + ("" if name is None else f":{name}")


def without_query(text: str) -> str:
    """Return text with the queries of URLs in it, which may hold a signature, left out.

    >>> without_query("https://host/x.npy?signature=3e1 cannot be read"), without_query("a?b.npy")
    ('https://host/x.npy cannot be read', 'a?b.npy')
    """
    return _QUERY.sub(r"\1", text)


def library(name: str, what_for: str, extra: str) -> Any:
    """Import a library that only some sources need.

    Raises
    ------
    ImportError
        Where it is missing, naming the extra of deeprep that brings it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{what_for}, which needs {name.partition('.')[0]}: pip install 'deeprep[{extra}]' "
            f"({error})"
        ) from error


@contextlib.contextmanager
def errors_of_store(url: str) -> Iterator[None]:
    """Have whatever a store raises, each with classes of its own, name the URL."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        text = without_query(str(error))
        if url in text == str(error) and isinstance(error, OSError | ValueError):
            raise
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
        raise kind(f"{url} cannot be read: {type(error).__name__}: {text}") from error
