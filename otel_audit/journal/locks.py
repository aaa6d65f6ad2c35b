"""Lock files: who may write a stream, and who may export it.

`flock` on files that nothing else opens. POSIX record locks would be lost as soon as the same process closes any
descriptor of the file. Liveness is never judged by a pid: pids are reused, and mean nothing across containers.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from otel_audit.errors import JournalUnwritable
from otel_audit.journal.files import open_with_mode
from otel_audit.journal.segment_file import is_at

__all__ = ["FileLock", "prove_locks"]


class FileLock:
    """A lock that is held, from `acquire` until `release` or the end of the process."""

    _descriptor = -1

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def acquire(cls, path: Path, *, mode: int = 0o600) -> FileLock | None:
        """The lock, or None when another process or descriptor holds it. Never waits."""
        return cls._locked(path, lambda: _open_to_lock(path, mode), fcntl.LOCK_EX)

    @classmethod
    def _locked(cls, path: Path, opened: Callable[[], int], kind: int) -> FileLock | None:
        while True:
            lock = cls(path)
            # Owned at once: a lock on a descriptor that an asynchronous exception made nobody's would never end.
            lock._descriptor = opened()
            try:
                fcntl.flock(lock._descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
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
        """True while somebody holds the lock. A lock file that does not exist is held by nobody."""
        try:
            # Shared: two that look do not see each other.
            lock = cls._locked(path, lambda: _open_to_look(path), fcntl.LOCK_SH)
        except FileNotFoundError:
            return False
        if lock is None:
            return True
        lock.release()
        return False

    def release(self, *, remove: bool = False) -> None:
        """Nobody holds the lock any more. `remove`: the file is gone too, removed while it was still held.

        Never raises: on a disk that became read-only the file stays, and nobody holds it. Not for a forked child, which
        would take the lock from its parent: see `abandon`.
        """
        if self._descriptor < 0:
            return
        with contextlib.suppress(OSError):
            if remove and is_at(self._path, self._descriptor):
                self._path.unlink(missing_ok=True)
        # Unlocked, not only closed: a child that was forked in this moment may have the descriptor for as long as it
        # lives.
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self.abandon()

    def is_in_place(self) -> bool:
        """True while the lock file that is held is the one that others would find."""
        return self._descriptor >= 0 and is_at(self._path, self._descriptor)

    def abandon(self) -> None:
        """Close this process's descriptor, as a forked child must: the parent keeps the lock."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        # An asynchronous exception may come between the lock and whoever asked for it: nobody else could free it.
        self.abandon()

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


def _open_to_lock(path: Path, mode: int) -> int:
    try:
        return open_with_mode(path, os.O_RDWR, mode)
    except PermissionError:
        # A side-car under another user may only read what the writer made, and that is enough for flock.
        with contextlib.suppress(FileNotFoundError):
            return _open_to_look(path)
        raise


def _open_to_look(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)


def prove_locks(directory: Path) -> None:
    """A second descriptor is kept out in this directory: its file system has working locks.

    Raises:
        JournalUnwritable: it has not, so that two processes could write one stream.
    """
    path = directory / f".{uuid.uuid4()}.probe.lock"
    try:
        first = FileLock.acquire(path)
        second = FileLock.acquire(path)
    except OSError as error:
        raise JournalUnwritable(
            f"{directory}: expected a file system where files can be made and locked with flock, got {error}; "
            "put OTEL_AUDIT_DIR on a local disk"
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
