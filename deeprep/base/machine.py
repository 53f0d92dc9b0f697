"""The machine that this process runs on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class _Accounting(NamedTuple):
    """Where control groups of one version say what memory they take, and may take."""

    limit: str
    used: str
    # Pages of files, which the kernel takes back when others need the memory.
    reclaimed: tuple[str, ...]


_V1 = _Accounting(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)
_V2 = _Accounting("memory.max", "memory.current", ("inactive_file", "active_file"))


def available_cores() -> int:
    """Return how many cores this process may use.

    >>> available_cores() >= 1
    True
    """
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def processor() -> str:
    """Return the model of the CPU, as far as the system tells.

    >>> len(processor()) > 0
    True
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def free_memory(root: Path = Path("/")) -> int | None:
    """Return how many bytes of main memory this process can still take.

    That is what the machine has, or what the control groups of a container or a batch system leave
    of it, where that is less.

    Parameters
    ----------
    root
        Folder that holds `proc` and `sys`.

    Returns
    -------
    The number of bytes, or None where the system does not tell.

    >>> free_memory() is None or free_memory() > 0
    True
    """
    meminfo = root / "proc/meminfo"
    lines = meminfo.read_text().splitlines() if meminfo.is_file() else []
    rooms = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    for folder, accounting in _control_groups(root):
        try:
            limit, used = ((folder / name).read_text().strip() for name in accounting[:2])
            stat = [line.split() for line in (folder / "memory.stat").read_text().splitlines()]
        except OSError:  # no such group, as seen from inside of a container, or not ours to read
            continue
        if limit != "max":
            files = sum(int(size) for name, size in stat if name in accounting.reclaimed)
            rooms.append(max(0, int(limit) - int(used) + files))
    return min(rooms, default=None)


def _control_groups(root: Path) -> Iterator[tuple[Path, _Accounting]]:
    """Where the control groups of this process may be: each one limits all those in it."""
    listed = root / "proc/self/cgroup"
    mount = root / "sys/fs/cgroup"
    for line in listed.read_text().splitlines() if listed.is_file() else []:
        _, controllers, name = line.split(":", 2)
        if "memory" in controllers.split(","):
            base, accounting = mount / "memory", _V1
        elif not controllers:
            base, accounting = mount, _V2
        else:
            continue
        # A name may lead out of what a container sees, which is then the mount alone.
        group = PurePosixPath("/" if ".." in name else name).relative_to("/")
        for each in (group, *group.parents):
            yield base / each, accounting
