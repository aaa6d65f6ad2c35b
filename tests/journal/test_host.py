"""Which file system a path is on, by what the kernel says of the mounts; whether another machine may write there."""

from __future__ import annotations

from pathlib import Path

import pytest

from otel_audit.journal.locks import (
    Mount,
    boot_id,
    host_id,
    is_on_a_local_disk,
    may_live_elsewhere,
    mount_of,
    mounts_in,
)
from tests.journal.disks import tmpfs

# Lines as kernels write them: shared and private mounts, with none and several optional fields, escaped spaces.
MOUNTINFO = """\
22 1 0:21 / / rw,relatime - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w
23 22 0:22 / /proc rw,nosuid - proc proc rw
36 22 98:0 / /var/lib rw,noatime shared:7 master:1 - ext4 /dev/vda1 rw,errors=continue
37 36 0:45 / /var/lib/audit\\040logs rw,relatime shared:8 - nfs4 server:/export rw,vers=4.2
38 36 0:46 /a/b /var/lib/share rw,relatime unbindable - cifs //server/share rw
39 22 0:47 / /memory rw - tmpfs tmpfs rw,size=8k
40 39 98:1 / /memory rw - xfs /dev/vdb rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "point"),
    [
        ("/srv/audit", "overlay", "/"),
        ("/var/lib/otel-audit/shop", "ext4", "/var/lib"),
        ("/var/library", "overlay", "/"),
        ("/var/lib/audit logs/shop", "nfs4", "/var/lib/audit logs"),
        ("/var/lib/share", "cifs", "/var/lib/share"),
        ("/memory/audit", "xfs", "/memory"),
    ],
)
def test_a_path_is_on_the_innermost_mount_and_of_two_at_one_place_on_the_later(
    path: str, kind: str, point: str
) -> None:
    assert mount_of(Path(path), mounts_in(MOUNTINFO)) == Mount(Path(point), kind)


def test_without_a_mount_above_it_a_path_is_on_none() -> None:
    assert mount_of(Path("/srv"), [Mount(Path("/var"), "ext4")]) is None


def test_the_mounts_of_this_process_are_those_that_the_kernel_names() -> None:
    assert mount_of(Path("/proc/self")) == Mount(Path("/proc"), "proc")


@pytest.mark.parametrize(
    ("path", "is_local"),
    [
        ("/srv/audit", False),  # the container's own layer
        ("/var/lib/otel-audit/shop", True),  # a named volume in it
        ("/var/lib/audit logs", False),
        ("/var/lib/share", False),
        ("/memory/audit", True),
    ],
)
def test_a_volume_is_judged_by_its_own_file_system_and_not_by_that_of_the_container(path: str, is_local: bool) -> None:
    mount = mount_of(Path(path), mounts_in(MOUNTINFO))

    assert mount is not None
    assert mount.is_local is is_local


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs"])
def test_one_kernel_has_a_local_disk_for_itself(kind: str) -> None:
    assert Mount(Path("/"), kind).is_local


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "9p", "virtiofs", "fuse.sshfs", "ceph", "overlay", "gfs2"])
def test_what_several_kernels_may_share_and_what_is_unknown_is_not_local(kind: str) -> None:
    assert not Mount(Path("/"), kind).is_local


@pytest.mark.processes
def test_a_writer_of_another_host_may_live_only_where_that_host_could_hold_a_lock(
    ext4_disk: Path, memory_disk: Path
) -> None:
    another, this, unsaid = {"host_id": "f" * 32}, {"host_id": host_id(), "boot_id": boot_id()}, {"number": 1}

    assert (is_on_a_local_disk(ext4_disk), is_on_a_local_disk(memory_disk)) == (True, False)
    assert [may_live_elsewhere(ext4_disk, header) for header in (another, this, unsaid)] == [False, False, False]
    assert [may_live_elsewhere(memory_disk, header) for header in (another, this, unsaid)] == [True, False, False]
    assert not is_on_a_local_disk(ext4_disk / "missing")


@pytest.mark.processes
def test_what_is_mounted_while_the_process_lives_is_seen(ext4_disk: Path) -> None:
    place = ext4_disk / "audit"
    place.mkdir()
    assert is_on_a_local_disk(place)
    place.rmdir()

    with tmpfs(place, "size=64k"):
        assert not is_on_a_local_disk(place)

    assert is_on_a_local_disk(place)
