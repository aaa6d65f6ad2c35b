"""Which file system a directory is on, and what is wrong with some of them as the place of a journal.

Source: proc(5), "/proc/pid/mountinfo".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

__all__ = ["UNFIT", "Mount", "Unfit", "mount_of", "mounts_in", "mounts_of_this_process"]

_OCTAL: Final = re.compile(r"\\([0-7]{3})")
_MOUNT_POINT: Final = 4
_OPTIONAL_FIELDS: Final = 6  # none or several, ended by a "-"


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted file system: where it is, and of which kind, as the kernel calls it."""

    point: Path
    kind: str


@dataclass(frozen=True, slots=True)
class Unfit:
    """Why a journal should not be on a file system of some kind, and what to do."""

    why: str
    remedy: str


_NFS: Final = Unfit(
    "NFS turns the locks of the journal into ones that a process loses as soon as it closes any descriptor of the file",
    "put OTEL_AUDIT_DIR on a local disk",
)
_SMB: Final = Unfit(
    "locks and syncs there are as good as the server and the connection: two processes could write one stream",
    "put OTEL_AUDIT_DIR on a local disk",
)
_MEMORY: Final = Unfit(
    "it is memory: events that were acknowledged are gone when the machine or the container ends",
    "put OTEL_AUDIT_DIR on a disk",
)
_CONTAINER: Final = Unfit(
    "it is the container's own layer: events that were acknowledged are removed with the container",
    "mount a volume at OTEL_AUDIT_DIR",
)

UNFIT: Final[Mapping[str, Unfit]] = MappingProxyType(
    {
        "nfs": _NFS,
        "nfs4": _NFS,
        "cifs": _SMB,
        "smb3": _SMB,
        "smbfs": _SMB,
        "tmpfs": _MEMORY,
        "ramfs": _MEMORY,
        "overlay": _CONTAINER,
    }
)


def mounts_of_this_process() -> list[Mount]:
    """What this process sees mounted.

    Raises:
        OSError: /proc is not there.
    """
    return mounts_in(Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape"))


def mounts_in(mountinfo: str) -> list[Mount]:
    """The mounts of a mountinfo text, in the order in which they were mounted."""
    rows = (line.split(" ") for line in mountinfo.split("\n") if line)
    return [Mount(Path(_plain(row[_MOUNT_POINT])), row[row.index("-", _OPTIONAL_FIELDS) + 1]) for row in rows]


def _plain(field: str) -> str:
    """The field with the spaces, tabs, newlines and backslashes that it was written without."""
    return _OCTAL.sub(lambda escape: chr(int(escape[1], 8)), field)


def mount_of(path: Path, mounts: Sequence[Mount]) -> Mount | None:
    """The mount that a path, absolute and without symbolic links, is on: of two at one place the later one."""
    found = None
    for mount in mounts:
        is_above = path.is_relative_to(mount.point)
        if is_above and (found is None or mount.point.is_relative_to(found.point)):
            found = mount
    return found
