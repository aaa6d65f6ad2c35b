"""Lock files, which decide who may write or export a stream, and whether the writer of an unlocked stream is gone.

They use `flock` on files that nothing else opens. A process would lose POSIX record locks as soon as it closed any
descriptor of the file. Liveness is never judged by a pid, since pids are reused and mean nothing across containers.

On the file system of a local disk no other kernel can hold a lock. A stream there whose lock is free has no writer,
whatever host wrote it; a volume that moved with its pod is the usual case. Anywhere else, a machine that shares the
volume may have a writer that the lock does not show, so only the streams of this host are taken over.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import re
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import msgspec

from otel_audit.errors import JournalUnwritable, remedy_of
from otel_audit.journal.files import is_at, open_with_mode
from otel_audit.threads import real_sleep

__all__ = [
    "FileLock",
    "Mount",
    "boot_id",
    "host_id",
    "is_on_a_local_disk",
    "is_young",
    "may_live_elsewhere",
    "mount_of",
    "mounts_in",
    "prove_locks",
    "remove_unheld",
]


# Made and removed at once, by `prove_locks` and `otel_audit.journal.room`.
_LEFT: Final = re.compile(r"\.[0-9a-f-]{36}\.(?:probe\.lock|reserve)\Z")
_YOUNG_S: Final = 60  # a maker that lives has removed or locked its file by then
_LOOKED_AT_MAX_S: Final = 0.1  # a look takes microseconds, or as long as its thread has to wait for the processor
_LOOKED_AT_POLL_S: Final = 0.002


class FileLock:
    """A lock that is held from `acquire` until `release` or the end of the process."""

    _descriptor = -1

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def acquire(cls, path: Path, *, mode: int = 0o600, creates: bool = True) -> FileLock | None:
        """Return the lock, or None if another process or descriptor holds it. Wait only for those who look at it.

        With `creates=False`, also return None if there is no lock file, since the last holder may have removed it.
        """
        try:
            return cls._locked(path, lambda: _open_to_lock(path, mode, creates=creates), fcntl.LOCK_EX)
        except FileNotFoundError:
            if creates:  # the directory is gone
                raise
            return None

    @classmethod
    def _locked(cls, path: Path, opened: Callable[[], int], kind: int) -> FileLock | None:
        while True:
            lock = cls(path)
            # Owned at once, since a lock on a descriptor that an asynchronous exception has orphaned would never end.
            lock._descriptor = opened()
            try:
                if not _is_locked(lock._descriptor, kind):
                    lock.abandon()
                    return None
            except BaseException:
                lock.abandon()
                raise
            if lock.is_in_place():
                return lock
            lock.abandon()  # the former owner removed the file after we had opened it

    @classmethod
    def is_held(cls, path: Path) -> bool:
        """Return True while somebody holds the lock. Nobody holds a lock whose file does not exist."""
        try:
            # Shared, so that two checks do not see each other.
            lock = cls._locked(path, lambda: _open_to_look(path), fcntl.LOCK_SH)
        except FileNotFoundError:
            return False
        if lock is None:
            return True
        lock.release()
        return False

    def release(self, *, remove: bool = False) -> None:
        """Release the lock. With `remove`, remove its file too, while the lock is still held.

        Never raises. On a disk that became read-only the file stays, and nobody holds it. Not for a forked child, which
        would take the lock from its parent: see `abandon`.
        """
        if self._descriptor < 0:
            return
        with contextlib.suppress(OSError):
            if remove and is_at(self._path, self._descriptor):
                self._path.unlink(missing_ok=True)
        # Unlocked as well as closed, since a child forked at this moment may keep the descriptor as long as it lives.
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self.abandon()

    def is_in_place(self) -> bool:
        """Return True while the held lock file is the one that others find at its path."""
        return self._descriptor >= 0 and is_at(self._path, self._descriptor)

    def abandon(self) -> None:
        """Close this process's descriptor, as a forked child must. The parent keeps the lock."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        # An asynchronous exception may come between the lock and its caller, and nobody else could free it.
        self.abandon()

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


def _is_locked(descriptor: int, kind: int) -> bool:
    """Lock a file, and return False if somebody else holds the lock. Somebody who only looks at it lets go at once."""
    until = None
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # which a look allows, and an owner does not
        except BlockingIOError:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        until = until or time.monotonic() + _LOOKED_AT_MAX_S
        if time.monotonic() >= until:
            return False
        real_sleep(random.uniform(0, _LOOKED_AT_POLL_S))  # another process that wants it must not try in step


def _open_to_lock(path: Path, mode: int, *, creates: bool) -> int:
    try:
        if not creates:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        return open_with_mode(path, os.O_RDWR, mode)
    except PermissionError:
        # A side-car under another user may only read what the writer made, and that is enough for flock.
        with contextlib.suppress(FileNotFoundError):
            return _open_to_look(path)
        raise


def _open_to_look(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)


def prove_locks(directory: Path) -> None:
    """Check that a second descriptor is kept out, so that the file system of this directory has working locks.

    Also remove the files that processes left behind when they were killed at their start.

    Raises:
        JournalUnwritable: it has not, and two processes could write one stream.
    """
    path = directory / f".{uuid.uuid4()}.probe.lock"
    try:
        first = FileLock.acquire(path)
        second = FileLock.acquire(path)
    except OSError as error:
        raise JournalUnwritable(
            f"{directory}: expected a file system where files can be made and locked with flock, got "
            f"{error.strerror or error}; {remedy_of(error, 'put OTEL_AUDIT_DIR on a local disk')}"
        ) from error
    if second is not None:
        second.release()
    if first is not None:
        first.release(remove=True)
    if first is None or second is not None:
        raise JournalUnwritable(
            f"{directory}: expected a file system that keeps a second descriptor out of a flock, got one that does "
            "not; put OTEL_AUDIT_DIR on a local disk"
        )
    with contextlib.suppress(OSError):  # of another user, perhaps
        _remove_left(directory)


def remove_unheld(path: Path) -> None:
    """Remove a lock file that nobody holds, unless it is so young that its maker may be about to lock it.

    Raises:
        OSError: it cannot be opened.
    """
    if not is_young(path) and (lock := FileLock.acquire(path, creates=False)) is not None:
        lock.release(remove=True)


def is_young(path: Path) -> bool:
    """Return True for a file of a process that may still be about to lock, fill or remove it, or has removed it."""
    try:
        return time.time() - path.stat().st_mtime < _YOUNG_S
    except FileNotFoundError:  # its maker has removed it
        return True


def _remove_left(directory: Path) -> None:
    for name in filter(_LEFT.match, os.listdir(directory)):
        path = directory / name
        if name.endswith(".lock"):
            remove_unheld(path)
        elif not is_young(path):
            path.unlink(missing_ok=True)  # its maker needs no name


# Not tmpfs: nobody else can mount it, but a volume that moves with a pod is never there. Nor an unknown kind.
_LOCAL: Final = frozenset({"btrfs", "ext4", "xfs", "zfs"})
_OCTAL: Final = re.compile(r"\\([0-7]{3})")
_MOUNT_POINT: Final = 4
_OPTIONAL_FIELDS: Final = 6  # optional fields, ended by a "-"


class Mount(msgspec.Struct, frozen=True):
    """A mounted file system: its place, and its kind as the kernel calls it."""

    point: Path
    kind: str

    @property
    def is_local(self) -> bool:
        """Return True if one kernel has it to itself. False if its kind is unknown."""
        return self.kind in _LOCAL


@cache
def host_id() -> str:
    """Return 32 hex digits that stay the same on this machine.

    It is a digest, since the machine id itself must not be published. Source: machine-id(5), systemd.
    """
    known = _first_line("/etc/machine-id") or _first_line("/var/lib/dbus/machine-id") or socket.gethostname()
    return hashlib.sha256(b"otel-audit\0" + known.encode()).hexdigest()[:32]


@cache
def boot_id() -> str:
    """Return the kernel's id of this boot, or an empty text if there is none. Source: random(4), Linux."""
    return _first_line("/proc/sys/kernel/random/boot_id")


def may_live_elsewhere(directory: Path, header: Mapping[str, Any]) -> bool:
    """Return True if the writer of a stream may live on another machine although its lock is free.

    A damaged header that names no host counts as one of this host.
    """
    return bool(header.get("host_id", host_id()) != host_id()) and not is_on_a_local_disk(directory)


def is_on_a_local_disk(directory: Path) -> bool:
    """Return True if the directory is on a file system that one kernel has to itself."""
    try:
        return _is_local(directory.resolve(), directory.stat().st_dev)
    except OSError:
        return False


@lru_cache(maxsize=16)
def _is_local(directory: Path, device: int) -> bool:
    """Return True for a local disk. `device` is a key of the cache, so that a new mount at the place is examined anew.

    Raises:
        OSError: /proc is not there.
    """
    mount = mount_of(directory)
    return mount is not None and mount.is_local


def mount_of(path: Path, mounts: Sequence[Mount] | None = None) -> Mount | None:
    """Return the mount of a path that is absolute and has no symbolic links.

    If two are at one place, the later one counts.

    Without `mounts`, it is one of those that this process sees.

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
    """Return the mounts of a mountinfo text, in the order in which they were mounted.

    Source: proc(5), "/proc/pid/mountinfo".
    """
    rows = (line.split(" ") for line in mountinfo.split("\n") if line)
    return [Mount(Path(_plain(row[_MOUNT_POINT])), row[row.index("-", _OPTIONAL_FIELDS) + 1]) for row in rows]


def _plain(field: str) -> str:
    """Return the field with its spaces, tabs, newlines and backslashes restored."""
    return _OCTAL.sub(lambda escape: chr(int(escape[1], 8)), field)


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().partition("\n")[0].strip()
    except OSError:
        return ""
