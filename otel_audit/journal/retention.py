"""Remove what is delivered and old, or more than the directory may hold, and nothing else.

A segment is *ready* when every exporter of its stream has all of it, none of its lines is in quarantine, and its writer
has gone on to a later one or is gone. With `none` the journal is the destination, so its lines count as delivered. A
ready segment is removed when it has been ready for some days, or when the directory holds more bytes than it may, the
oldest first. With the last segment of a stream that ended go its cursor and its lock files.

Only the holder of the right to export a stream removes its segments: a stream whose ship lock another process holds is
left to that one. The ledger tells of each removal first: see `otel_audit.journal.removal`.

Age is measured by a clock that nobody can set. A wall clock is set by hand, by NTP, by a broken battery, and a jump of
a year would make every line old at once, so no time in a line or a file is compared with it. A segment is as old as the
time that has passed since it was first *seen* ready to go, by the kernel's clock since boot, which also counts while no
process of ours runs and while the machine sleeps. It begins anew with each boot. How much passed from the last look
before a boot to the first one after it, only the wall clock can say; it is believed for a day and no more, and never
when it runs backwards. A jump of the wall clock while the machine runs has no effect at all, one over a reboot makes a
line older by a day at most, and a machine that was off for a month keeps its lines for almost a month longer. The same
holds for a directory that another host looks at. A state that is lost begins anew: lines are kept longer, never
shorter.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from otel_audit.journal.census import Retained
from otel_audit.journal.files import StreamFiles, open_with_mode, segments_in, write_whole
from otel_audit.journal.ledger.former import Ledger, has_room
from otel_audit.journal.locks import FileLock, boot_id, may_live_elsewhere
from otel_audit.journal.reader import stream_header
from otel_audit.journal.removal import finish_removal, obituary, ready_segments, remove
from otel_audit.journal.shipment import Shipment
from otel_audit.settings import Durability

__all__ = ["STATE_NAME", "Ages", "Moment", "Removed", "Retention", "RetentionLimits", "now"]


STATE_NAME: Final = "retention.state"
_BETWEEN_BOOTS_MAX_NS: Final = 86_400 * 10**9
_BOOTS_MAX: Final = 16  # hosts that look at one directory


class Moment(NamedTuple):
    """What the clocks say at one moment, in nanoseconds: since 1970, and since the boot of that id."""

    wall_ns: int
    boottime_ns: int
    boot_id: str


def now() -> Moment:
    """This moment. Source: clock_gettime(2), CLOCK_BOOTTIME: it cannot be set, and counts while the machine sleeps."""
    return Moment(time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), boot_id())


@dataclass(slots=True)
class Ages:
    """How old what is ready to go is. `lived_ns` is the time that has passed for this directory since its first look.

    `ready` says by stream and segment at which `lived_ns` it was first seen ready.
    """

    lived_ns: int = 0
    wall_ns: int | None = None
    boots: dict[str, tuple[int, int]] = field(default_factory=dict)  # clock since boot and `lived_ns` at its last look
    ready: dict[str, dict[int, int]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Ages:
        """As they were stored; all begins anew when they cannot be read.

        Raises:
            OSError: the file is there, and may not be read.
        """
        try:
            stored = json.loads(path.read_bytes())
            return cls._of(stored)
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return cls()

    @classmethod
    def _of(cls, stored: Mapping[str, Any]) -> Ages:
        return cls(
            int(stored["lived_ns"]),
            int(stored["wall_ns"]),
            {boot: (int(clock), int(lived)) for boot, (clock, lived) in stored["boots"].items()},
            {
                stream: {int(number): int(lived) for number, lived in segments.items()}
                for stream, segments in stored["ready"].items()
            },
        )

    def advance(self, moment: Moment) -> None:
        """Let the time pass that has passed, as far as it is certain."""
        clock, lived_ns = self.boots.get(moment.boot_id, (moment.boottime_ns + 1, 0))
        if moment.boottime_ns >= clock:
            lived_ns += moment.boottime_ns - clock
        else:
            step = 0 if self.wall_ns is None else moment.wall_ns - self.wall_ns
            lived_ns = self.lived_ns + min(max(0, step), _BETWEEN_BOOTS_MAX_NS)
        # Never back: where several hosts look in turn, each has its own clock since boot.
        self.lived_ns = max(self.lived_ns, lived_ns)
        self.wall_ns = moment.wall_ns
        self.boots[moment.boot_id] = (moment.boottime_ns, self.lived_ns)
        while len(self.boots) > _BOOTS_MAX:
            del self.boots[min(self.boots, key=lambda boot: self.boots[boot][1])]

    def is_ready(self, stream_id: str, number: int) -> bool:
        """It was seen ready before."""
        return number in self.ready.get(stream_id, {})

    def note(self, stream_id: str, number: int) -> None:
        """It is ready from now on, unless it was so before."""
        self.ready.setdefault(stream_id, {}).setdefault(number, self.lived_ns)

    def forget_all(self, segments: Iterable[tuple[str, int]]) -> None:
        """These are gone, or not ready any more."""
        for stream_id, number in segments:
            left = self.ready.get(stream_id, {})
            left.pop(number, None)
            if not left:
                self.ready.pop(stream_id, None)

    def by_age(self) -> list[tuple[int, str, int]]:
        """All that is ready, oldest first: for how many nanoseconds, stream, segment."""
        ready = [
            (lived_ns, stream_id, number)
            for stream_id, segments in self.ready.items()
            for number, lived_ns in segments.items()
        ]
        return [(self.lived_ns - lived_ns, stream_id, number) for lived_ns, stream_id, number in sorted(ready)]

    def store(self, path: Path, *, mode: int) -> None:
        """They are in the file, whole, or the file is as it was.

        Raises:
            OSError: it is as it was.
        """
        stored = {"lived_ns": self.lived_ns, "wall_ns": self.wall_ns, "boots": self.boots, "ready": self.ready}
        draft = path.with_name(f"{path.name}.new")
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()  # of somebody who was killed
        descriptor = open_with_mode(draft, os.O_WRONLY, mode)
        try:
            write_whole(descriptor, json.dumps(stored, separators=(",", ":")).encode())
            draft.rename(path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)


_LOOK_EVERY_S: Final = 60.0
_LOOK_EVERY_S_WITH_BYTES: Final = 5.0  # in a minute a busy service could write gigabytes
_IDLE_TIMES: Final = 100  # as long as a look that found nothing took is waited for the next one
_MOST_A_LOOK: Final = 256  # each takes two syncs
_STATE_EVERY_NS: Final = 3600 * 10**9
_DAY_NS: Final = 86_400 * 10**9


@dataclass(frozen=True, slots=True)
class RetentionLimits:
    """Days for which a segment is kept after it was delivered, and bytes that all segments may have. 0: no limit."""

    days: int = 0
    bytes: int = 0

    def is_old(self, age_ns: int) -> bool:
        """Whether a segment of this age in nanoseconds may go."""
        return self.days > 0 and age_ns >= self.days * _DAY_NS


@dataclass(frozen=True, slots=True)
class Removed:
    """What one look removed."""

    segments: int = 0
    bytes: int = 0


class Retention:
    """Keeps a directory within its limits. For one thread at a time; any number of processes may share the directory.

    `wanted` says by the header which streams are the caller's. `exporters` are those that the caller runs: what is not
    yet theirs stays. `foreign`: also streams whose writer may live on another host. `failed` is told of
    a stream that cannot be looked at or removed; the others are.
    """

    def __init__(
        self,
        directory: Path,
        limits: RetentionLimits,
        *,
        wanted: Callable[[Mapping[str, Any]], bool],
        exporters: Iterable[str] = (),
        foreign: bool = False,
        file_mode: int = 0o600,
        clock: Callable[[], Moment] = now,
        failed: Callable[[StreamFiles, Exception], None] = lambda files, error: None,
    ) -> None:
        self._directory = directory
        self._limits = limits
        self._wanted = wanted
        self._exporters = frozenset(exporters)
        self._foreign = foreign
        self._file_mode = file_mode
        self._clock = clock
        self._failed = failed
        self._unwanted: set[str] = set()  # streams that are left alone, by their headers, which never change
        self._begin()

    def _begin(self) -> None:
        self._locks: list[FileLock | Ledger] = []
        self._look_at = 0.0

    def forked(self) -> None:
        """In a forked child: what the parent holds is left to the parent."""
        for lock in self._locks:
            lock.abandon()
        self._begin()

    def look_if_due(
        self,
        held: Mapping[str, Shipment],
        guard: AbstractContextManager[object],
        stopped: Callable[[], bool],
        *,
        at_once: bool = False,
    ) -> Removed:
        """Do `look`, unless the last one was a short while ago and it need not be `at_once`.

        Beside tens of thousands of files a look that removes nothing takes some hundred milliseconds. It comes so
        seldom that it takes one percent of a core, but once a minute.
        """
        if self._limits == RetentionLimits() or (time.monotonic() < self._look_at and not at_once):
            return Removed()
        every_s = _LOOK_EVERY_S_WITH_BYTES if self._limits.bytes else _LOOK_EVERY_S
        self._look_at = time.monotonic() + every_s
        began_s = time.thread_time()
        removed = self.look(held, guard, stopped)
        if removed == Removed():
            idle_s = min(_LOOK_EVERY_S, (time.thread_time() - began_s) * _IDLE_TIMES)
            self._look_at = time.monotonic() + max(every_s, idle_s)
        return removed

    def look(
        self,
        held: Mapping[str, Shipment] | None = None,
        guard: AbstractContextManager[object] | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Removed:
        """Remove what may go now, some hundred segments at most.

        `held` are the streams that the caller exports, by id; none of them is released while `guard` is entered.
        `stopped` is asked before each removal.

        Raises:
            OSError: the directory, its ledger or its state cannot be used; what was not removed is as it was.
        """
        held = held or {}
        finish_removal(self._directory, file_mode=self._file_mode)
        segments = segments_in(self._directory)
        ages = self._aged(segments, held)
        removed = Removed()
        gone: list[tuple[str, int]] = []
        for reason, stream_id, number in islice(self._due(ages, segments), _MOST_A_LOOK):
            if stopped():
                break
            files = StreamFiles(self._directory, stream_id)
            try:
                shipment = held.get(stream_id)
                size = self._removed_held(files, number, reason, shipment, guard) if shipment else None
                size = size if shipment else self._removed(files, number, reason)
            except OSError as error:
                self._failed(files, error)
                continue
            if size is not None:
                gone.append((stream_id, number))
                removed = Removed(removed.segments + (size > 0), removed.bytes + size)
        if gone:
            self._keep(lambda state: state.forget_all(gone))
        return removed

    def _aged(self, segments: Mapping[str, Sequence[int]], held: Mapping[str, Shipment]) -> Ages:
        """How old what is ready is now. Kept when something is new."""
        ages = Ages.read(self._directory / STATE_NAME)
        known, before_ns = ages.boots, ages.lived_ns
        stale = [(stream, number) for _, stream, number in ages.by_age() if number not in segments.get(stream, ())]
        fresh = list(self._fresh(ages, segments, held))

        def change(state: Ages) -> None:
            state.forget_all(stale)
            for each in fresh:
                state.note(*each)

        moment = self._clock()
        is_known = moment.boot_id in known
        ages.advance(moment)
        is_worth_it = bool(ages.ready) and (not is_known or ages.lived_ns - before_ns >= _STATE_EVERY_NS)
        change(ages)
        if stale or fresh or is_worth_it or (segments and not has_room(self._directory)):
            self._keep(change)
        return ages

    def _fresh(
        self, ages: Ages, segments: Mapping[str, Sequence[int]], held: Mapping[str, Shipment]
    ) -> Iterator[tuple[str, int]]:
        """What is ready and was not so at an earlier look.

        But for what somebody has put back: the ledger says that it was removed, and whoever restored it wants it.
        """
        retained = Retained(self._directory)
        for stream_id, numbers in segments.items():
            if all(ages.is_ready(stream_id, number) for number in numbers):
                continue
            files = StreamFiles(self._directory, stream_id)
            try:
                fresh = [number for number in numbers if not ages.is_ready(stream_id, number)]
                ready = self._ready(files, numbers, is_held=stream_id in held, among=fresh)
            except OSError as error:
                self._failed(files, error)
                continue
            restored = retained.segments(stream_id) if ready else set()
            yield from ((stream_id, number) for number in ready if number not in restored)

    def _keep(self, change: Callable[[Ages], None]) -> None:
        """Change the state in the file. Left for the next look when somebody else is at it, or the disk is full."""
        with self._ledger() as ledger:
            if ledger is None:
                return
            ledger.keep_room()
            state = Ages.read(self._directory / STATE_NAME)
            state.advance(self._clock())
            change(state)
            # On a full disk segments still go by bytes, and those that are in the file by age.
            with contextlib.suppress(OSError):
                state.store(self._directory / STATE_NAME, mode=self._file_mode)

    def _due(self, ages: Ages, segments: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, str, int]]:
        """What should go now, oldest first, and why: asked for one by one, each is counted as gone."""
        sizes = self._sizes(segments) if self._limits.bytes else {}
        total = sum(sizes.values())
        for age_ns, stream_id, number in ages.by_age():
            is_old = self._limits.is_old(age_ns)
            if is_old or total > self._limits.bytes > 0:
                yield "age" if is_old else "bytes", stream_id, number
                total -= sizes.get((stream_id, number), 0)

    def _sizes(self, segments: Mapping[str, Sequence[int]]) -> Mapping[tuple[str, int], int]:
        sizes: dict[tuple[str, int], int] = {}
        for stream_id, numbers in segments.items():
            files = StreamFiles(self._directory, stream_id)
            for number in numbers:
                with contextlib.suppress(FileNotFoundError):
                    sizes[stream_id, number] = files.segment(number).stat().st_size
        return sizes

    def _ready(
        self, files: StreamFiles, numbers: Sequence[int], *, is_held: bool, among: Collection[int] | None = None
    ) -> list[int]:
        if files.stream_id in self._unwanted:
            return []
        header = stream_header(files, numbers)
        if not self._wanted(header) or not (self._foreign or not may_live_elsewhere(self._directory, header)):
            if header:  # of one that could not be read nothing is known
                self._unwanted.add(files.stream_id)
            return []
        return ready_segments(files, numbers, header, exporters=self._exporters, is_held=is_held, among=among)

    def _removed_held(
        self,
        files: StreamFiles,
        number: int,
        reason: str,
        shipment: Shipment,
        guard: AbstractContextManager[object] | None,
    ) -> int | None:
        """Remove a segment of a stream that the caller exports, never its last one. See `_removed`."""
        numbers = files.segments()
        if number not in self._ready(files, numbers, is_held=True, among=[number]):
            return None if [number] == numbers[-1:] else 0  # the last one goes when the stream is let go
        guard = guard or contextlib.nullcontext()
        if _is_in_memory(files, numbers):
            with guard:
                return None if shipment.released else _unlinked(files, number)
        content = obituary(files, number, reason)
        with self._ledger() as ledger, guard:
            return None if shipment.released else self._told_and_removed(ledger, files, content)

    def _removed(self, files: StreamFiles, number: int, reason: str) -> int | None:
        """Remove a segment of a stream that nobody exports: its bytes; 0 if it may not go; None: another time."""
        was_there = files.ship_lock.exists()
        ship_lock = FileLock.acquire(files.ship_lock, mode=self._file_mode)
        if ship_lock is None:
            return None
        with self._while_held(ship_lock, remove=not was_there):
            numbers = files.segments()
            if not numbers:
                # Another process has removed the whole stream since, and its lock file, which this one made again: the
                # file seen above was that of the other, and nobody would come by once more to remove this one.
                ship_lock.release(remove=True)
                return 0
            if number not in self._ready(files, numbers, is_held=False, among=[number]):
                return 0
            if numbers == [number]:
                return self._removed_whole(files, number, reason, ship_lock)
            if _is_in_memory(files, numbers):
                return _unlinked(files, number)
            content = obituary(files, number, reason)
            with self._ledger() as ledger:
                return self._told_and_removed(ledger, files, content)

    def _removed_whole(self, files: StreamFiles, number: int, reason: str, ship_lock: FileLock) -> int | None:
        writer_lock = FileLock.acquire(files.writer_lock, mode=self._file_mode)
        if writer_lock is None:
            return None
        with self._while_held(writer_lock):
            content = obituary(files, number, reason, whole=True)
            with self._ledger() as ledger:
                size = self._told_and_removed(ledger, files, content)
            if size is not None:
                ship_lock.release(remove=True)
            return size

    def _told_and_removed(
        self, ledger: Ledger | None, files: StreamFiles, content: Mapping[str, Any] | None
    ) -> int | None:
        if ledger is None or content is None or not remove(ledger, files, content, self._clock().wall_ns):
            return None
        ledger.keep_room()
        return int(content["bytes"])

    @contextlib.contextmanager
    def _ledger(self) -> Iterator[Ledger | None]:
        """The right to write the ledger, if nobody has it for long."""
        ledger = Ledger.locked(self._directory, mode=self._file_mode)
        if ledger is None:
            yield None
            return
        with self._while_held(ledger):
            yield ledger

    @contextlib.contextmanager
    def _while_held(self, lock: FileLock | Ledger, *, remove: bool = True) -> Iterator[None]:
        """Release it at the end, with its file; known meanwhile, so that a fork can let go of it."""
        self._locks.append(lock)
        try:
            yield
        finally:
            lock.release(remove=remove)
            if lock in self._locks:  # not in a child that was forked from here
                self._locks.remove(lock)


def _is_in_memory(files: StreamFiles, numbers: Sequence[int]) -> bool:
    return stream_header(files, numbers).get("durability") == Durability.MEMORY


def _unlinked(files: StreamFiles, number: int) -> int:
    size = files.segment(number).stat().st_size
    files.segment(number).unlink()
    return size
