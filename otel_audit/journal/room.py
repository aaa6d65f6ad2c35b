"""Room for events in a directory: what the disk has left, and what a limit leaves of it.

Events are refused while there is none. The journal's own lines are not: how many events were lost, and the header of a
new segment, are written into space that was set aside for them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

__all__ = ["RESERVE_BYTES", "Limited", "Room"]

# Some three hundred gap lines: for hours, at one a minute beside a header an hour.
RESERVE_BYTES: Final = 256 * 1024
# Taken where four of them are free: a disk that is nearly full is left to the events, and one that was full has room
# for more than the next few of them before they are taken again.
_AMPLE_BYTES: Final = 4 * RESERVE_BYTES
# A listing of 20 000 files takes some 50 ms.
_MEASURE_INTERVAL_S: Final = 5.0


class Limited(OSError):
    """The directory holds as much as its limit allows."""


class Room:
    """What one process knows of the room in its directory. `limit_bytes` None: only the disk counts.

    The reserve is a file without a name, for each process its own: nothing is left of it however the process ends, and
    nobody else can give it away.
    """

    _reserve = -1

    def __init__(
        self, directory: Path, limit_bytes: int | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._clock = clock
        self._measured_at: float | None = None
        self._used_bytes = 0
        self._is_given = False
        # False while no event is refused and none need be counted: nearly always, so it must cost nothing.
        self.is_scarce = limit_bytes is not None

    @property
    def is_refused(self) -> bool:
        """True while events are refused."""
        return self._is_given or self._is_over_limit()

    def check(self) -> None:
        """Return if an event may be written.

        Raises:
            Limited: the directory's limit is reached.
            OSError: the disk was full, and has not had ample room since.
        """
        if self._is_given:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._directory))
        if self._is_over_limit():
            used = f"{self._used_bytes} bytes in use, of {self._limit_bytes} that OTEL_AUDIT_DIRECTORY_BYTES allows"
            raise Limited(errno.EDQUOT, used, str(self._directory))

    def added(self, line_bytes: int) -> None:
        """A line was written; its length need not be exact, since the directory is measured again."""
        self._used_bytes += line_bytes

    def look(self) -> None:
        """The reserve is taken, or taken again, if there is ample room. Never raises: it can be done without."""
        if self._reserve >= 0:
            return
        if self._is_ample():
            with contextlib.suppress(OSError):
                self._reserve = _nameless(self._directory, RESERVE_BYTES)
                self._set_given(False)

    def measure(self) -> None:
        """What the files of the directory take is known anew, if a limit is set and it is time. Never raises."""
        if self._limit_bytes is None:
            return
        now = self._clock()
        if self._measured_at is not None and now - self._measured_at < _MEASURE_INTERVAL_S:
            return
        self._measured_at = now
        with contextlib.suppress(OSError):
            self._used_bytes = _bytes_in(self._directory)

    def give(self, error: OSError) -> None:
        """After a write that failed: if that was for want of space, the reserve is free for the journal's own lines.

        Events are then refused until it is taken again. Where blocks are not what the disk is short of, or there is no
        reserve, nothing changes: the next event is tried.
        """
        is_full = error.errno == errno.EDQUOT or (error.errno == errno.ENOSPC and not self._is_ample())
        if is_full and self._reserve >= 0 and not isinstance(error, Limited):
            self._set_given(True)
            self._free()

    def _free(self) -> None:
        # Cut, not only closed: a child that ran no hooks after its fork may hold it open for as long as it lives.
        with contextlib.suppress(OSError):
            os.ftruncate(self._reserve, 0)
        self.abandon()

    def close(self) -> None:
        """The reserve is given back to the disk."""
        if self._reserve >= 0:
            self._free()
        self._set_given(False)

    def abandon(self) -> None:
        """In a forked child: the reserve is its parent's."""
        reserve, self._reserve = self._reserve, -1
        if reserve >= 0:
            os.close(reserve)

    def __del__(self) -> None:
        self.abandon()  # of a journal that nobody closed

    def _set_given(self, is_given: bool) -> None:
        self._is_given = is_given
        self.is_scarce = is_given or self._limit_bytes is not None

    def _is_ample(self) -> bool:
        try:
            found = os.statvfs(self._directory)
        except OSError:
            return False
        return found.f_bavail * found.f_frsize >= _AMPLE_BYTES

    def _is_over_limit(self) -> bool:
        return self._limit_bytes is not None and self._used_bytes >= self._limit_bytes


def _nameless(directory: Path, size_bytes: int) -> int:
    path = directory / f".{uuid.uuid4()}.reserve"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        path.unlink()
        os.posix_fallocate(descriptor, 0, size_bytes)
    except BaseException:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    return descriptor


def _bytes_in(directory: Path) -> int:
    used = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                if entry.is_file(follow_symlinks=False):
                    used += entry.stat(follow_symlinks=False).st_size
    return used
