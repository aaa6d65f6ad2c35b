"""Control the room for events in a directory, by free space and by a limit, and count the events that found none.

Below a floor of free space, a flood of unimportant events must take neither the room of the important ones nor that of
everybody else on the disk. So only vital events are written, down to a tenth of the floor. If there is no room at all,
every event is refused. The journal's own lines are never refused: the number of lost events and the header of a new
segment are written into reserved space.

`Losses` counts events that could not be written, until a gap line reports them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Empty
from typing import Any, Final

import msgspec

from otel_audit.journal.files import journal_bytes
from otel_audit.journal.line import GAP, system_start
from otel_audit.threads import SimpleQueue, wait_for_word

__all__ = [
    "RESERVE_BYTES",
    "TRUNCATED",
    "Limited",
    "Losses",
    "NearlyFull",
    "Room",
    "Space",
    "is_full",
    "lost_events",
    "reason_of",
]


# Some three hundred gap lines, which last for hours at one a minute and one header an hour.
RESERVE_BYTES: Final = 256 * 1024
# It is taken if four times as much is free. So a disk that is nearly full is left to the events, and one that was full
# has room for more than a few of them before the reserve is taken again.
_AMPLE_BYTES: Final = 4 * RESERVE_BYTES
# Listing 20 000 files takes some 50 ms.
_MEASURE_INTERVAL_S: Final = 5.0
_FLOOR_PARTS: Final = 10
_FLOOR_MAX_BYTES: Final = 1024**3
# More than one process writes in the second between two checks of the disk. With more than that above the floor,
# nothing need be counted. With less, a flood would break through a small floor before the next check.
_NEAR_BYTES: Final = 128 * 1024**2
# Room is asked for before the limit is reached, since removing delivered files takes longer than an event may wait.
_ASK_AT: Final = 0.75
_ASK_EVERY_S: Final = 1.0
# The answer takes milliseconds, unless the machine has no time for its thread.
_WAIT_S: Final = 0.25
_WAIT_EVERY_S: Final = 5.0
_LIMIT: Final = "OTEL_AUDIT_DIRECTORY_BYTES allows (in memory mode OTEL_AUDIT_QUEUE_BYTES)"


class Limited(OSError):
    """The journal has reached the limit of its directory.

    `reason` is the reason under which the lost events are counted.
    """

    reason = "directory limit"


class NearlyFull(Limited):
    """The disk has less free space than the floor."""

    reason = "disk nearly full"


class Space(msgspec.Struct, frozen=True):
    """The free bytes of a file system, and the floor below which not every event is written. A floor of 0 is none."""

    free_bytes: int = 0
    floor_bytes: int = 0

    @classmethod
    def of(cls, directory: Path, floor_bytes: int | None) -> Space:
        """Return the current space. If `floor_bytes` is None, it is a tenth of the file system, at most 1 GiB.

        Raises:
            OSError: the file system does not tell.
        """
        found = os.statvfs(directory)
        if floor_bytes is None:
            floor_bytes = min(found.f_blocks * found.f_frsize // _FLOOR_PARTS, _FLOOR_MAX_BYTES)
        return cls(found.f_bavail * found.f_frsize, floor_bytes)

    @property
    def is_low(self) -> bool:
        """Return True while only vital events are written."""
        return self.free_bytes < self.floor_bytes

    @property
    def is_spent(self) -> bool:
        """Return True while no event is written."""
        return self.free_bytes < self.floor_bytes // _FLOOR_PARTS

    @property
    def says(self) -> str:
        """Return which events are lost while space is low."""
        lost = "every event" if self.is_spent else "events with the outcome success, unless their rule is closed,"
        return (
            f"{self.free_bytes} bytes free, less than {'a tenth of ' if self.is_spent else ''}the floor of "
            f"{self.floor_bytes} (OTEL_AUDIT_FREE_BYTES): {lost} will be lost until there are more"
        )


class Room:
    """The room in a directory, as far as one process knows. If `limit_bytes` is None, only the disk counts.

    For `floor_bytes` see `Space`. `ask_for_room` asks somebody to remove what may go, and returns True if there is
    somebody, who then calls `answered`. It is called from three quarters of the limit on, once a second as long as that
    does not help. An event that finds the limit reached waits for the answer, for a quarter of a second at most. If
    that does not help, the event is lost, and no event waits for the next five seconds.

    The reserve is a file without a name, one for each process. Nothing is left of it however the process ends, and
    nobody else can give it away.
    """

    _reserve = -1

    def __init__(
        self,
        directory: Path,
        limit_bytes: int | None,
        *,
        floor_bytes: int | None = 0,
        ask_for_room: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._floor_bytes = floor_bytes
        self._clock = clock
        self._ask_for_room = ask_for_room
        self._asked_at = 0.0
        self._next_ask_at = self._next_wait_at = -math.inf
        self._pause_s = _ASK_EVERY_S
        self._answers: SimpleQueue[None] = SimpleQueue()
        self._measured_at: float | None = None
        self._used_bytes = 0
        self._written_bytes = 0
        self._seen = (Space(), 0)  # the last measurement, and the number of bytes written before it
        self._is_given = False
        # False as long as no event is refused and none need be counted, which is nearly always and must cost nothing.
        self.is_scarce = limit_bytes is not None

    @property
    def space(self) -> Space:
        """Return the free space at the last check, minus what was written near the floor since."""
        seen, written_bytes = self._seen
        if not seen.floor_bytes:
            return seen
        return Space(max(0, seen.free_bytes - (self._written_bytes - written_bytes)), seen.floor_bytes)

    @property
    def is_refused(self) -> bool:
        """Return True while events are refused, either all or those that are not vital."""
        return self._is_given or self.space.is_low or self._is_over_limit()

    def check(self, *, is_vital: bool) -> None:
        """Return if an event may be written. `is_vital` marks the ones that matter most.

        Raises:
            Limited: the limit of the directory is reached, or free space is below the floor.
            OSError: the disk was full, and has not had ample room since.
        """
        if self._is_given:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._directory))
        space = self.space
        if space.is_spent or (space.is_low and not is_vital):
            raise NearlyFull(errno.ENOSPC, space.says, str(self._directory))
        if self._is_over_limit() and not self._is_room_made():
            used = f"{self._used_bytes} bytes in use, of {self._limit_bytes} that {_LIMIT}"
            raise Limited(errno.EDQUOT, used, str(self._directory))

    def added(self, line_bytes: int) -> None:
        """Count a written line. Its length need not be exact, since the directory is measured again."""
        self._used_bytes += line_bytes
        self._written_bytes += line_bytes
        if self._limit_bytes is not None and self._used_bytes >= _ASK_AT * self._limit_bytes:
            now = self._clock()
            if now >= self._next_ask_at:
                self._ask(now)

    def answered(self) -> None:
        """Measure the directory, since files were removed, and release the event that waits for it."""
        self._pause_s = max(_ASK_EVERY_S, self._clock() - self._asked_at)
        self._measure_used()
        if self._limit_bytes is not None and self._used_bytes < _ASK_AT * self._limit_bytes:
            self._next_ask_at = self._next_wait_at = -math.inf
        self._answers.put(None)

    def _ask(self, now: float) -> bool:
        self._asked_at, self._next_ask_at = now, now + self._pause_s
        return self._ask_for_room()

    def _is_room_made(self) -> bool:
        """Wait a moment for files to be removed. Return True if there is room then."""
        now = self._clock()
        if now < self._next_wait_at:
            return False
        self._next_wait_at = now + max(_WAIT_EVERY_S, self._pause_s)
        with contextlib.suppress(Empty):  # answers to earlier questions
            while True:
                self._answers.get_nowait()
        if not self._ask(now):
            return not self._is_over_limit()
        until = time.monotonic() + _WAIT_S
        while self._is_over_limit():  # the first answer may be to an earlier question
            left_s = until - time.monotonic()
            if left_s <= 0:
                return False
            wait_for_word(self._answers, left_s)
        return True

    def look(self) -> None:
        """Take the reserve, for the first time or again, if there is ample room. Never raises."""
        if self._reserve >= 0:
            return
        if self._is_ample():
            with contextlib.suppress(OSError):
                self._reserve = _nameless(self._directory, RESERVE_BYTES)
                self._written_bytes += RESERVE_BYTES
                self._set_given(False)

    def measure(self) -> None:
        """Measure free space, and the files of the journal if a limit is set and it is time.

        This is for the thread that tends the journal once a second, and for a new stream. Never raises.
        """
        if self._floor_bytes != 0:
            written_bytes = self._written_bytes
            with contextlib.suppress(OSError):
                self._seen = (Space.of(self._directory, self._floor_bytes), written_bytes)
            self._weigh()
        if self._limit_bytes is None:
            return
        now = self._clock()
        if self._measured_at is not None and now - self._measured_at < _MEASURE_INTERVAL_S:
            return
        self._measure_used()

    def _measure_used(self) -> None:
        self._measured_at = self._clock()
        with contextlib.suppress(OSError):
            self._used_bytes = journal_bytes(self._directory)

    def give(self, error: OSError) -> None:
        """After a failed write, free the reserve for the journal's own lines, if the disk was full.

        Events are then refused until the reserve is taken again. If the disk is short of something other than blocks,
        or there is no reserve, nothing changes and the next event is tried.
        """
        if isinstance(error, Limited) or self._reserve < 0:
            return  # checked before the disk is asked, which would happen for each refused event
        if error.errno == errno.EDQUOT or (error.errno == errno.ENOSPC and not self._is_ample()):
            self._set_given(True)
            self._free()

    def _free(self) -> None:
        # Truncated as well as closed, since a child that ran no hooks after its fork may hold it open as long as it
        # lives.
        with contextlib.suppress(OSError):
            os.ftruncate(self._reserve, 0)
        self.abandon()

    def close(self) -> None:
        """Give the reserve back to the disk."""
        if self._reserve >= 0:
            self._free()
        self._set_given(False)

    def abandon(self) -> None:
        """Leave the reserve to the parent, in a forked child."""
        reserve, self._reserve = self._reserve, -1
        if reserve >= 0:
            os.close(reserve)

    def __del__(self) -> None:
        self.abandon()  # if nobody closed the journal

    def _set_given(self, is_given: bool) -> None:
        self._is_given = is_given
        self._weigh()

    def _weigh(self) -> None:
        space = self.space
        is_near = space.floor_bytes > 0 and space.free_bytes < space.floor_bytes + _NEAR_BYTES
        self.is_scarce = self._is_given or self._limit_bytes is not None or is_near

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
        path.unlink(missing_ok=True)  # other processes remove it as a leftover once it is a minute old
        os.posix_fallocate(descriptor, 0, size_bytes)
    except BaseException:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    return descriptor


TRUNCATED: Final = "segment truncated"  # not counted here: these lines have numbers, so the missing numbers count them

_GAP: Final = system_start(GAP)
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_full(error: OSError | None) -> bool:
    """Return True if there is no room and nothing else is wrong."""
    return error is not None and error.errno in _FULL


def reason_of(error: OSError) -> str:
    """Return the reason under which an event that could not be written is counted."""
    if isinstance(error, Limited):
        return error.reason
    return "disk full" if is_full(error) else errno.errorcode.get(error.errno or 0, "write failed")


def lost_events(line: bytes) -> int:
    """Return the number of events that a line reports as lost before they had a number, or 0 if it is no gap line."""
    if not line.startswith(_GAP):
        return 0
    try:
        gap = json.loads(line)["gap"]
        return 0 if gap.get("reason") == TRUNCATED else int(gap["lines"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return 0


class _Loss(msgspec.Struct):
    """The losses of one reason since the last gap line."""

    count: int
    first_ns: int
    last_ns: int


class Losses:
    """The losses of one process. A signal handler may add to them at any step."""

    def __init__(self) -> None:
        self._untold: dict[str, _Loss] = {}
        self.total: dict[str, int] = {}  # all losses by reason; empty if there never was one

    def __bool__(self) -> bool:
        """Return True if there are losses that no gap line has reported."""
        return any(loss.count for loss in list(self._untold.values()))

    def add(self, reason: str, observed_ns: int) -> None:
        """Count one more lost event."""
        self.total[reason] = self.total.get(reason, 0) + 1
        loss = self._untold.setdefault(reason, _Loss(0, observed_ns, observed_ns))
        if not loss.count:
            loss.first_ns = observed_ns
        loss.count += 1
        loss.last_ns = observed_ns

    def untold(self) -> dict[str, Any]:
        """Return the content of the gap line that is due now."""
        by_reason = {
            reason: {"count": loss.count, "first_ns": loss.first_ns, "last_ns": loss.last_ns}
            for reason, loss in list(self._untold.items())
            if loss.count
        }
        return {"reason": "lost", "lines": sum(loss["count"] for loss in by_reason.values()), "by_reason": by_reason}

    def told(self, gap: Mapping[str, Any]) -> None:
        """Note that the gap line is written. Losses added meanwhile wait for the next one."""
        # No entry is removed, since a signal handler may be adding to it.
        for reason, loss in gap["by_reason"].items():
            self._untold[reason].count -= loss["count"]
