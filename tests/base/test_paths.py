"""Files appear whole or not at all, and errors name the file that was asked for."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deeprep.base.paths import atomic_path, natural_order, write_text


def fail_with(error):
    def fail(*arguments, **options):
        raise error

    return fail


def write_half(path, error):
    with atomic_path(path) as partial:
        partial.write_text("half")
        raise error


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with atomic_path(path) as partial:
        partial.write_text("new")
        assert partial.suffix == ".txt"
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), OSError("a wire is loose"), KeyError("x")],
)
def test_on_an_error_the_old_file_stays_and_no_other(tmp_path, error):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(type(error)):
        write_half(path, error)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_names_the_file_that_was_asked_for(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(Path, "write_text", fail_with(full))
    message = rf"^\[Errno {errno.ENOSPC}\] No space left on device: '{re.escape(str(path))}'$"
    with pytest.raises(OSError, match=message) as raised:
        write_text(path, "text")
    assert raised.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_an_error_without_a_number_names_it_too(tmp_path):
    path = tmp_path / "a.txt"
    with (
        pytest.raises(OSError, match=f"^{re.escape(str(path))}: a wire is loose$"),
        atomic_path(path),
    ):
        raise OSError("a wire is loose")


def test_what_is_wrong_with_another_file_is_said_of_that(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"directory: '.*none'$"),
        atomic_path(tmp_path / "a.txt"),
    ):
        (tmp_path / "none").read_text()


@pytest.mark.parametrize("folder", ["none", "file"])
def test_a_folder_that_is_none_is_an_error_about_the_file(tmp_path, folder):
    (tmp_path / "file").touch()
    path = tmp_path / folder / "a.txt"
    with pytest.raises(OSError, match=f": '{re.escape(str(path))}'$"):
        write_text(path, "text")


def test_a_directory_in_the_place_of_the_file_is_named(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(OSError, match=r"directory: '[^']*/a.txt'$"):
        write_text(tmp_path / "a.txt", "text")
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="the limit of a process is of POSIX")
def test_when_the_system_itself_runs_out(tmp_path):
    """Not simulated: a process whose files may not grow beyond 1000 bytes."""
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from deeprep.base.paths import write_text\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_text(Path(sys.argv[1]), 'x' * 5000)\n"
    )
    path = tmp_path / "a.txt"
    run = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.endswith(f"OSError: [Errno {errno.EFBIG}] File too large: '{path}'\n")
    assert os.listdir(tmp_path) == []


def test_natural_order():
    names = ["a10", "a2", "a02", "b1", "a", "10", "9"]
    assert sorted(names, key=natural_order) == ["9", "10", "a", "a02", "a2", "a10", "b1"]
