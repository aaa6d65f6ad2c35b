"""Which machine and which boot a stream was written on, and whether a lock says that its writer is gone.

On the file system of a local disk no other kernel can hold a lock: a stream there whose lock is free has no writer,
whatever host wrote it. A volume that moved with its pod is the usual case. Anywhere else a machine that shares the
volume may have a writer of which a lock says nothing, so only the streams of this host are taken over.
"""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final

__all__ = ["Mount", "boot_id", "host_id", "is_on_a_local_disk", "may_live_elsewhere", "mount_of", "mounts_in"]

# Not tmpfs, which nobody else can mount either: what moves with a pod is never there. Not what is unknown.
_LOCAL: Final = frozenset({"btrfs", "ext4", "xfs", "zfs"})
_OCTAL: Final = re.compile(r"\\([0-7]{3})")
_MOUNT_POINT: Final = 4
_OPTIONAL_FIELDS: Final = 6  # none or several, ended by a "-"


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted file system: where it is, and of which kind, as the kernel calls it."""

    point: Path
    kind: str

    @property
    def is_local(self) -> bool:
        """True when one kernel has it for itself. False for what is unknown."""
        return self.kind in _LOCAL


@cache
def host_id() -> str:
    """32 hex digits that stay the same on this machine.

    A digest, since the machine id itself is not to be shown outside. Source: machine-id(5), systemd.
    """
    known = _first_line("/etc/machine-id") or _first_line("/var/lib/dbus/machine-id") or socket.gethostname()
    return hashlib.sha256(b"otel-audit\0" + known.encode()).hexdigest()[:32]


@cache
def boot_id() -> str:
    """The kernel's id of this boot; empty where there is none. Source: random(4), Linux."""
    return _first_line("/proc/sys/kernel/random/boot_id")


def may_live_elsewhere(directory: Path, header: Mapping[str, Any]) -> bool:
    """Return True if the writer of a stream may live although its lock is free: on another machine.

    A header that is damaged and names no host counts as of this one.
    """
    return bool(header.get("host_id", host_id()) != host_id()) and not is_on_a_local_disk(directory)


def is_on_a_local_disk(directory: Path) -> bool:
    """Return True if the directory is on a file system that one kernel has for itself."""
    try:
        return _is_local(directory.resolve(), directory.stat().st_dev)
    except OSError:
        return False


@lru_cache(maxsize=16)
def _is_local(directory: Path, device: int) -> bool:
    """`device` is only there to ask anew when something else was mounted at the place.

    Raises:
        OSError: /proc is not there.
    """
    mount = mount_of(directory)
    return mount is not None and mount.is_local


def mount_of(path: Path, mounts: Sequence[Mount] | None = None) -> Mount | None:
    """The mount that a path, absolute and without symbolic links, is on: of two at one place the later one.

    Of those that this process sees, unless `mounts` are given.

    Raises:
        OSError: /proc is not there.
    """
    if mounts is None:
        mounts = mounts_in(Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape"))
    found = None
    for mount in mounts:
        is_above = path.is_relative_to(mount.point)
        if is_above and (found is None or mount.point.is_relative_to(found.point)):
            found = mount
    return found


def mounts_in(mountinfo: str) -> list[Mount]:
    """The mounts of a mountinfo text, in the order in which they were mounted.

    Source: proc(5), "/proc/pid/mountinfo".
    """
    rows = (line.split(" ") for line in mountinfo.split("\n") if line)
    return [Mount(Path(_plain(row[_MOUNT_POINT])), row[row.index("-", _OPTIONAL_FIELDS) + 1]) for row in rows]


def _plain(field: str) -> str:
    """The field with the spaces, tabs, newlines and backslashes that it was written without."""
    return _OCTAL.sub(lambda escape: chr(int(escape[1], 8)), field)


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().partition("\n")[0].strip()
    except OSError:
        return ""
