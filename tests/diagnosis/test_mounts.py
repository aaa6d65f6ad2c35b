"""Which file system a path is on, by what the kernel says of the mounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from otel_audit.diagnosis.mounts import UNFIT, Mount, mount_of, mounts_in, mounts_of_this_process

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
    assert mount_of(Path("/proc/self"), mounts_of_this_process()) == Mount(Path("/proc"), "proc")


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "overlay", "tmpfs"])
def test_what_is_unfit_for_a_journal_says_why_and_what_to_do(kind: str) -> None:
    assert UNFIT[kind].why
    assert "OTEL_AUDIT_DIR" in UNFIT[kind].remedy


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "f2fs"])
def test_a_local_disk_is_fit_for_a_journal(kind: str) -> None:
    assert kind not in UNFIT
