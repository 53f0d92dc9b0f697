"""What a process may take of the machine."""

from __future__ import annotations

import pytest

from deeprep.base.machine import free_memory

MIB = 2**20
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    2: ("memory.max", "memory.current", ""),
}


@pytest.fixture
def machine(tmp_path):
    """A machine with 64 MiB of available memory, and a function that limits a control group."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(
        f"MemTotal: 100000 kB\nMemFree: 5 kB\nMemAvailable: {64 * 1024} kB\n"
    )

    def limit(version, group, most, used, files=0):
        folder = tmp_path / "sys/fs/cgroup" / ("memory" if version == 1 else "") / group
        folder.mkdir(parents=True, exist_ok=True)
        most_file, used_file, prefix = _FILES[version]
        (folder / most_file).write_text(f"{most}\n")
        (folder / used_file).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(
            f"anon 7\n{prefix}inactive_file {files}\n{prefix}active_file {files}\n"
        )

    return tmp_path, limit


def belong(root, version, group):
    listed = f"0::{group}\n" if version == 2 else f"9:cpu:/x\n4:cpuset,memory:{group}\n0::/\n"
    (root / "proc/self/cgroup").write_text(listed)


def test_without_control_groups_it_is_what_the_machine_has(machine, tmp_path_factory):
    root, _ = machine
    assert free_memory(root) == 64 * MIB
    assert free_memory(tmp_path_factory.mktemp("other-system")) is None


@pytest.mark.parametrize("version", [1, 2])
def test_a_control_group_may_leave_less(machine, version):
    root, limit = machine
    belong(root, version, "/job/step")
    assert free_memory(root) == 64 * MIB  # seen from where there are no such folders
    limit(version, "job/step", 40 * MIB, 25 * MIB, files=2 * MIB)
    assert free_memory(root) == 19 * MIB
    limit(version, "job", 20 * MIB, 18 * MIB)
    assert free_memory(root) == 2 * MIB
    limit(version, "job", 20 * MIB, 21 * MIB)
    assert free_memory(root) == 0


@pytest.mark.parametrize(("version", "unlimited"), [(1, 2**63 - 4096), (2, "max")])
def test_a_control_group_without_a_limit_leaves_all(machine, version, unlimited):
    root, limit = machine
    belong(root, version, "/job")
    limit(version, "job", unlimited, 25 * MIB)
    assert free_memory(root) == 64 * MIB


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("group", ["/", "/../..", "/docker/0123"])
def test_inside_of_a_container_its_group_is_the_mount(machine, version, group):
    root, limit = machine
    belong(root, version, group)
    limit(version, "", 10 * MIB, 4 * MIB)
    assert free_memory(root) == 6 * MIB
