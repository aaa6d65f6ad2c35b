"""Check whether a journal can be kept in its directory, without making the directory or leaving anything there.

The check may run as another user than the service. A directory made by root would lock the service out.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final

from otel_audit.diagnosis.findings import Finding
from otel_audit.errors import JournalUnwritable
from otel_audit.journal.census import Census, census
from otel_audit.journal.files import exposure_of
from otel_audit.journal.locks import mount_of, prove_locks
from otel_audit.journal.room import Space
from otel_audit.moments import utc_text
from otel_audit.settings import Durability, ExporterName, Settings

__all__ = ["UNFIT", "directory_findings"]

_GIB: Final = 1024**3
# With less, a burst of events or an hour without a collector may fill the disk before anybody looks.
_FREE_BYTES: Final = _GIB
_FREE_SEGMENTS: Final = 10
# A stream has four files, and a service that restarts makes a few streams a day.
_FREE_FILES: Final = 1000
# Kernels stamp files milliseconds late, and some file systems in full seconds. A larger difference is another clock.
_SKEW_S: Final = 5.0
_EARLIEST: Final = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Unfit:
    """The reason why a journal should not be on a file system of this kind, and the remedy."""

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


def directory_findings(settings: Settings, *, time_ns: Callable[[], int] = time.time_ns) -> list[Finding]:
    """Return what prevents the user of this process from keeping a journal in the directory of the settings.

    Check the JSONL file too, if it is elsewhere. `time_ns` is the clock that gives events their time.
    """
    return [*_journal(settings, time_ns), *_jsonl(settings)]


def _journal(settings: Settings, time_ns: Callable[[], int]) -> list[Finding]:
    directory = settings.directory
    place = _nearest(directory)
    try:
        attempt = tempfile.TemporaryDirectory(prefix=".otel-audit-doctor-", dir=place)
    except OSError as error:
        return [_unusable(directory, place, error), _wall_clock(time_ns())]
    with attempt as made:
        return [
            _usable(directory, place),
            *([_permissions(settings)] if place == directory else []),
            _space(place, settings),
            _file_system(place, settings.durability),
            _locks(Path(made)),
            *(_streams(directory) if place == directory else []),
            _clock(Path(made), time_ns),
        ]


def _jsonl(settings: Settings) -> list[Finding]:
    path = settings.jsonl_path
    if ExporterName.JSONL not in settings.export or path.parent == settings.directory:
        return []
    place = _nearest(path.parent)
    try:
        tempfile.TemporaryDirectory(prefix=".otel-audit-doctor-", dir=place).cleanup()
    except OSError as error:
        says = f"{path}: expected a directory for it that can be written, got {error.strerror or error} at {place}"
        return [Finding("jsonl", says, "give its user the right to write there, or set OTEL_AUDIT_JSONL_PATH")]
    return [Finding("jsonl", f"{path} can be written by uid {os.geteuid()}")]


def _nearest(directory: Path) -> Path:
    """Return the directory, or its nearest parent that exists."""
    return next(path for path in (directory, *directory.parents) if os.path.lexists(path))


def _usable(directory: Path, place: Path) -> Finding:
    user = f"by uid {os.geteuid()}"
    if place == directory:
        return Finding("directory", f"{directory} can be written {user}")
    return Finding("directory", f"{directory} does not exist yet, and can be made {user}")


def _unusable(directory: Path, place: Path, error: OSError) -> Finding:
    return Finding(
        "directory",
        f"{directory}: expected a directory that uid {os.geteuid()} can make and write, got {error.strerror or error} "
        f"at {place}",
        f"mount a writable volume at {directory}, give its user the right to write, or set OTEL_AUDIT_DIR",
    )


def _permissions(settings: Settings) -> Finding:
    """Report files that others can read. For that they must be able to enter the directory and to read the file."""
    directory = settings.directory
    mode = stat.S_IMODE(directory.stat().st_mode)
    shown = f"{directory} has mode {mode:04o}"
    if (exposure := exposure_of(directory)) is not None:
        return Finding("permissions", exposure.says, exposure.remedy)
    if mode & stat.S_IXOTH and settings.file_mode & stat.S_IROTH:
        says = f"{shown} and its files {settings.file_mode:04o}: every user can read the events"
        return Finding("permissions", says, f"chmod o-rwx {directory}, or set OTEL_AUDIT_FILE_MODE=0640")
    readable = next(_readable_by_all(directory), None) if mode & stat.S_IXOTH else None
    if readable is not None:
        return Finding("permissions", f"{shown}: every user can read {readable} in it", f"chmod o-rwx {directory}")
    return Finding("permissions", f"{shown}; other users can read no event")


def _readable_by_all(directory: Path) -> Iterator[str]:
    for name in os.listdir(directory) if os.access(directory, os.R_OK) else ():
        with contextlib.suppress(FileNotFoundError):  # a live journal removes files
            mode = os.stat(directory / name, follow_symlinks=False).st_mode
            if stat.S_ISREG(mode) and mode & stat.S_IROTH:
                yield name


def _space(place: Path, settings: Settings) -> Finding:
    if (space := Space.of(place, settings.free_bytes)).is_low:
        return Finding("space", space.says, "free space, or set OTEL_AUDIT_DIR to a larger disk")
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize
    needed = max(_FREE_BYTES, _FREE_SEGMENTS * settings.segment_bytes)
    if settings.durability is Durability.MEMORY:
        needed = settings.queue_bytes
    says = f"{_size(free)} free"
    if free < needed:
        return Finding(
            "space", f"{says}, expected {_size(needed)}", "free space, or set OTEL_AUDIT_DIR to a larger disk"
        )
    if found.f_files and found.f_favail < _FREE_FILES:
        says = f"{says}, but room for {found.f_favail} files only, expected {_FREE_FILES}"
        return Finding("space", says, "remove files there, or set OTEL_AUDIT_DIR to another disk")
    return Finding("space", says)


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / 1024**2:.1f} MiB"


def _file_system(place: Path, durability: Durability) -> Finding:
    try:
        mount = mount_of(place.resolve())
    except OSError:
        mount = None
    if mount is None:
        says = f"of {place}: expected its mount in /proc/self/mountinfo, got none"
        return Finding("file system", says, "make sure that OTEL_AUDIT_DIR is on a local disk")
    if (unfit := UNFIT.get(mount.kind)) is _MEMORY and durability is Durability.MEMORY:
        says = f"{mount.kind} at {mount.point}: what is not delivered is gone with the machine or the container"
        return Finding("file system", says)
    if unfit is not None:
        return Finding("file system", f"{mount.kind} at {mount.point}: {unfit.why}", unfit.remedy)
    return Finding("file system", f"{mount.kind} at {mount.point}")


def _locks(made: Path) -> Finding:
    try:
        prove_locks(made)
    except JournalUnwritable as error:
        says, _, remedy = str(error).rpartition("; ")
        return Finding("locks", says, remedy)
    return Finding("locks", "a second process is kept out")


def _streams(directory: Path) -> list[Finding]:
    try:
        counted = census(directory)
    except OSError as error:
        return [Finding("journal", f"expected to read the streams, got {error}", "run this check as their user")]
    return [_whole(counted), _other_hosts(counted)]


def _whole(counted: Census) -> Finding:
    """Report what somebody removed. Every line has a number, so the journal itself shows what is missing."""
    told = [f"{each.stream_id}: {said}" for each in counted.streams if (said := each.says_missing)]
    if not told:
        return Finding("journal", "no line is missing, as far as the numbers show")
    return Finding(
        "journal",
        "; ".join(told),
        "restore the files from a backup, and find out who removes or truncates files there: leave the directory out "
        "of logrotate, and set OTEL_AUDIT_RETENTION_DAYS or OTEL_AUDIT_RETENTION_BYTES instead",
    )


def _other_hosts(counted: Census) -> Finding:
    foreign = counted.foreign
    if foreign.events:
        return Finding("other hosts", foreign.says, foreign.remedy)
    return Finding("other hosts", "none of their events wait here")


def _clock(made: Path, time_ns: Callable[[], int]) -> Finding:
    before_ns = time_ns()
    try:
        with tempfile.TemporaryFile(dir=made) as file:
            stamp_ns = os.fstat(file.fileno()).st_mtime_ns
    except OSError as error:
        says = f"expected to make a file in {made.parent}, got {error.strerror or error}"
        return Finding("clock", says, "free space, or set OTEL_AUDIT_DIR to another disk")
    after_ns = time_ns()
    skew_s = max(before_ns - stamp_ns, stamp_ns - after_ns) / 1e9
    if skew_s > _SKEW_S:
        says = f"{utc_text(after_ns)}, which is {skew_s:.0f} s off the {utc_text(stamp_ns)} of the file system"
        return Finding("clock", says, "keep both machines on one time (NTP), or set OTEL_AUDIT_DIR to a local disk")
    return _wall_clock(after_ns)


def _wall_clock(now_ns: int) -> Finding:
    if now_ns / 1e9 < _EARLIEST.timestamp():
        says = f"expected a time after {_EARLIEST:%Y-%m-%d}, got {utc_text(now_ns)}"
        return Finding("clock", says, "set the clock of the machine, and keep it right (NTP)")
    return Finding("clock", utc_text(now_ns))
