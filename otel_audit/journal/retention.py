"""Retention: remove delivered segments that are old or exceed the directory's limit, and nothing else.

A segment is *ready* when every exporter of its stream has all of it, none of its lines is in quarantine, and its writer
has moved on to a later one or is gone. With the exporter `none`, the journal is the destination, so its lines count as
delivered. A ready segment is removed, oldest first, when it has been ready for some days or when the directory holds
more bytes than it may. The last segment of an ended stream takes its cursor and its lock files with it.

Only the holder of a stream's ship lock removes its segments; a stream locked by another process is left to that one.
The ledger records each removal beforehand: see `otel_audit.journal.removal`. If the directory has a signed ledger, only
lines that an entry covers are removed. `otel_audit.journal.ages` keeps the age of each segment. Segments of the ledger
itself go in the end: see `otel_audit.journal.pruning`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from otel_audit.errors import LedgerBusy
from otel_audit.journal.ages import STATE_NAME, Ages, Moment, RetentionLimits, now
from otel_audit.journal.census import Retained
from otel_audit.journal.files import StreamFiles, segment_sizes, segments_in
from otel_audit.journal.ledger import former
from otel_audit.journal.ledger.files import LedgerFiles, LedgerLog
from otel_audit.journal.ledger.ledger import Ledger
from otel_audit.journal.ledger.removals import Removals, is_kept
from otel_audit.journal.locks import FileLock, may_live_elsewhere
from otel_audit.journal.pruning import LedgerPruning
from otel_audit.journal.reader import stream_header
from otel_audit.journal.removal import (
    end_lines,
    finish_removal,
    is_in_memory,
    obituary,
    ready_segments,
    remove,
    remove_signed,
    remove_unbegun,
    signed_obituary,
    unlinked,
)
from otel_audit.journal.shipment import Shipment
from otel_audit.journal.stream_tree import TreeBroken
from otel_audit.settings import Durability

__all__ = ["Removed", "Retention"]

_LOOK_EVERY_S: Final = 60.0
_LOOK_EVERY_S_WITH_BYTES: Final = 5.0  # in a whole minute a busy service could write gigabytes
_IDLE_TIMES: Final = 100  # the wait after a look that found nothing, as a multiple of its own duration
_MOST_A_LOOK: Final = 256
_MOST_A_TURN: Final = 32  # the locks of their streams are held meanwhile
_FIRST_LOOK_S: Final = 5.0  # the first look reads the signed ledger, and a process that ends sooner is spared that
_STATE_EVERY_NS: Final = 3600 * 10**9
_LEDGER_DAYS: Final = 30  # what the ledger says is kept for, where streams are removed by bytes alone


class Removed(msgspec.Struct, frozen=True):
    """The segments and bytes that one look removed."""

    segments: int = 0
    bytes: int = 0


class Retention:
    """Keep a directory within its limits. For one thread at a time; any number of processes may share the directory.

    `wanted` takes a segment header and returns True if the stream is the caller's. `exporters` are those that the
    caller runs; lines that they do not have yet stay. `foreign` includes streams whose writer may live on another host.
    If a stream cannot be examined or removed, `failed` is called, and the others go ahead. `ledger` is the signed
    ledger of the directory. Without it, removals are recorded in the unsigned one, and a directory that has a signed
    ledger is left alone. `begins` says that the signed ledger exists or will. `keeps_room` sets room aside for the
    entries that must be written on a full disk; memory mode needs none. `off_host`: those of the exporters that the
    ledger goes to as well.
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
        ledger: Ledger | None = None,
        begins: bool = True,
        keeps_room: bool = True,
        off_host: Collection[str] = (),
    ) -> None:
        self._directory = directory
        self._ledger = ledger
        self._begins = begins
        self._keeps_room = keeps_room
        self._off_host = off_host
        self._limits = limits
        self._wanted = wanted
        self._exporters = frozenset(exporters)
        self._foreign = foreign
        self._file_mode = file_mode
        self._clock = clock
        self._failed = failed
        self._unwanted: set[str] = set()  # streams to leave alone; kept, since their headers never change
        self._begin()

    def _begin(self) -> None:
        self._locks: list[FileLock | former.Ledger] = []
        self._removals = Removals(self._directory)
        self._pruning = LedgerPruning(self._directory, self._off_host, file_mode=self._file_mode)
        self._is_signed = False  # the directory keeps a signed ledger, or will
        self._look_at = 0.0 if self._ledger is None else time.monotonic() + _FIRST_LOOK_S

    def forked(self) -> None:
        """Leave everything that the parent holds to the parent, in a forked child."""
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
        """Do `look`, unless the last one was a short while ago. With `at_once`, do it in any case.

        With tens of thousands of files, a look that removes nothing takes some hundred milliseconds. Such looks are
        spaced out to take one percent of a core, but happen at least once a minute.
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
        """Remove segments that may go now, a few hundred at most.

        `held` are the streams that the caller exports, by id. None of them is released while `guard` is entered.
        `stopped` is called before each segment, and ends the look. Segments that were read by then still go.

        Raises:
            OSError: the directory, its ledger or its state cannot be used; the remaining segments are unchanged.
        """
        held = held or {}
        guard = guard or contextlib.nullcontext()
        self._is_signed = (self._ledger is not None and self._begins) or is_kept(self._directory)
        finish_removal(self._directory, file_mode=self._file_mode, removals=self._removals)
        segments = segments_in(self._directory)
        ledger = LedgerFiles(self._directory).latest() if self._ledger is not None and self._is_signed else None
        ages = self._aged(segments, held, ledger)
        removed = Removed()
        gone: list[tuple[str, int]] = []
        waiting: set[str] = set()
        due = islice(self._due(ages, segments), _MOST_A_LOOK)
        for batch in _batches(due, segments, _MOST_A_TURN if self._is_signed else 1):
            if stopped():
                break
            for segment, size in self._removed_together(batch, held, guard, waiting, stopped):
                gone.append(segment)
                removed = Removed(removed.segments + (size > 0), removed.bytes + size)
        if gone:
            self._keep(lambda state: state.forget_all(gone))
        if ledger is not None and not stopped():
            self._prune(ledger, ages, held.get(ledger.directory_id), guard)
        return removed

    def _prune(
        self, log: LedgerLog, ages: Ages, shipment: Shipment | None, guard: AbstractContextManager[object]
    ) -> None:
        """Remove segments of the ledger that are as old as a stream may get. See `otel_audit.journal.pruning`."""
        limits = RetentionLimits(self._limits.days or _LEDGER_DAYS)
        old = {number for age_ns, each, number in ages.by_age() if each == log.directory_id and limits.is_old(age_ns)}
        if self._ledger is None or not old:
            return
        try:
            self._pruning.prune(self._ledger, self._removals, old, shipment, guard)
        except LedgerBusy:
            return
        except OSError as error:
            self._failed(log, error)

    def _aged(
        self, segments: Mapping[str, Sequence[int]], held: Mapping[str, Shipment], ledger: LedgerLog | None
    ) -> Ages:
        """Return the current ages of the ready segments, and store them if there is anything new."""
        ages = Ages.read(self._directory / STATE_NAME)
        known, before_ns = ages.boots, ages.lived_ns
        left = {} if ledger is None else {ledger.directory_id: ledger.numbers[:-1]}  # that nobody writes any more
        there = {**segments, **left}
        stale = [(stream, number) for _, stream, number in ages.by_age() if number not in there.get(stream, ())]
        fresh = list(self._fresh(ages, segments, held))
        fresh += [(each, number) for each in left for number in left[each] if not ages.is_ready(each, number)]

        def change(state: Ages) -> None:
            state.forget_all(stale)
            for each in fresh:
                state.note(*each)

        moment = self._clock()
        is_known = moment.boot_id in known
        ages.advance(moment)
        is_worth_it = bool(ages.ready) and (not is_known or ages.lived_ns - before_ns >= _STATE_EVERY_NS)
        change(ages)
        lacks_room = self._keeps_room and segments and not former.has_room(self._directory)
        if stale or fresh or is_worth_it or lacks_room:
            self._keep(change)
        return ages

    def _fresh(
        self, ages: Ages, segments: Mapping[str, Sequence[int]], held: Mapping[str, Shipment]
    ) -> Iterator[tuple[str, int]]:
        """Yield the segments that have become ready since the last look.

        Segments that somebody restored are left out: the ledger lists them as removed, and whoever restored them wants
        them.
        """
        retained = Retained(self._directory, self._removals)
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
        """Update the state in the file. If another process is at it, or the disk is full, the next look tries again."""
        with self._unsigned() as ledger:
            if ledger is None:
                return
            if self._keeps_room:
                ledger.keep_room()
            state = Ages.read(self._directory / STATE_NAME)
            state.advance(self._clock())
            change(state)
            # On a full disk, removal by bytes still works, and removal by age for the segments already in the file.
            with contextlib.suppress(OSError):
                state.store(self._directory / STATE_NAME, mode=self._file_mode)

    def _due(self, ages: Ages, segments: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, str, int]]:
        """Yield the segments to remove now, oldest first, and why. Each one yielded is counted as removed."""
        sizes = segment_sizes(self._directory, segments) if self._limits.bytes else {}
        total = sum(sizes.values())
        for age_ns, stream_id, number in ages.by_age():
            if stream_id not in segments:
                continue  # the ledger
            is_old = self._limits.is_old(age_ns)
            if is_old or total > self._limits.bytes > 0:
                yield "age" if is_old else "bytes", stream_id, number
                total -= sizes.get((stream_id, number), 0)

    def _ready(
        self, files: StreamFiles, numbers: Sequence[int], *, is_held: bool, among: Collection[int] | None = None
    ) -> list[int]:
        if files.stream_id in self._unwanted:
            return []
        header = stream_header(files, numbers)
        if not header and remove_unbegun(files):
            return []
        if not self._wanted(header) or not (self._foreign or not may_live_elsewhere(self._directory, header)):
            if header:  # an unreadable one may be readable the next time
                self._unwanted.add(files.stream_id)
            return []
        ready = ready_segments(files, numbers, header, exporters=self._exporters, is_held=is_held, among=among)
        if not self._is_signed or header.get("durability") == Durability.MEMORY:
            return ready
        return [number for number in ready if self._is_signed_to_its_end(files, numbers, number)]

    def _is_signed_to_its_end(self, files: StreamFiles, numbers: Sequence[int], number: int) -> bool:
        ends = end_lines(files, number)
        signed = self._removals.signed(files.stream_id)
        return self._ledger is not None and ends is not None and signed.covers(ends[1], whole=number == numbers[-1])

    def _removed_together(
        self,
        batch: Sequence[tuple[str, str, int]],
        held: Mapping[str, Shipment],
        guard: AbstractContextManager[object],
        waiting: set[str],
        stopped: Callable[[], bool],
    ) -> Iterator[tuple[tuple[str, int], int]]:
        """Remove segments in one turn, and yield those that are gone, with their bytes.

        Segments that may not go are yielded with 0 bytes. Those that have to wait for another look are left out, and
        their streams are added to `waiting`.
        """
        doomed: list[_Doomed] = []
        self._removals.refresh()
        with contextlib.ExitStack() as locks:
            turn = _Turn(locks, {}, {})
            for position, (reason, stream_id, number) in enumerate(batch):
                if position and stopped():  # to read 32 segments may take half a minute
                    break
                if stream_id in waiting:  # behind a segment that stays, nobody could build the tree over the hole
                    continue
                files = StreamFiles(self._directory, stream_id)
                try:
                    found = self._doomed(files, number, reason, held.get(stream_id), guard, turn)
                except (OSError, TreeBroken) as error:
                    self._failed(files, error)
                    continue
                if isinstance(found, _Doomed):
                    doomed.append(found)
                    turn.told[stream_id] = found.content
                elif found is not None:
                    yield (stream_id, number), found
                else:
                    waiting.add(stream_id)
            left = {(each.files.stream_id, each.content["segment"]) for each in doomed}
            for each in self._told_and_removed(doomed, guard) if doomed else ():
                left.discard((each.files.stream_id, each.content["segment"]))
                if each.ship_lock is not None:
                    each.ship_lock.release(remove=True)
                yield (each.files.stream_id, each.content["segment"]), int(each.content["bytes"])
            waiting.update(stream_id for stream_id, _ in left)

    def _doomed(
        self,
        files: StreamFiles,
        number: int,
        reason: str,
        shipment: Shipment | None,
        guard: AbstractContextManager[object],
        turn: _Turn,
    ) -> _Doomed | int | None:
        """Take the locks of a stream, and return the entry that the ledger needs before its segment is removed.

        If the segment needs no entry and is already gone, return its bytes. Return 0 if it may not go, and None if it
        has to wait for another look.
        """
        if shipment is not None:  # the last segment goes when the stream is released
            numbers = files.segments()
            if number not in self._ready(files, numbers, is_held=True, among=[number]):
                return None if [number] == numbers[-1:] else 0
            if is_in_memory(files, numbers):
                with guard:
                    return None if shipment.released else unlinked(files, number)
            return self._described(_Doomed(files, {}, shipment=shipment), number, reason, turn)
        ship_lock = turn.ship_locks.get(files.stream_id)
        if ship_lock is None:
            was_there = files.ship_lock.exists()
            ship_lock = FileLock.acquire(files.ship_lock, mode=self._file_mode)
            if ship_lock is None:
                return None
            turn.locks.enter_context(self._while_held(ship_lock, remove=not was_there))
            turn.ship_locks[files.stream_id] = ship_lock
        numbers = files.segments()
        if not numbers:
            # Another process has meanwhile removed the whole stream with its lock file, which this one then made again.
            # The lock file seen above was the other's, and nobody would ever come back to remove this one.
            ship_lock.release(remove=True)
            return 0
        if number not in self._ready(files, numbers, is_held=False, among=[number]):
            return 0
        if numbers == [number]:
            writer_lock = FileLock.acquire(files.writer_lock, mode=self._file_mode)
            if writer_lock is None:
                return None
            turn.locks.enter_context(self._while_held(writer_lock))
            return self._described(_Doomed(files, {}, ship_lock=ship_lock), number, reason, turn)
        if is_in_memory(files, numbers):
            return unlinked(files, number)
        return self._described(_Doomed(files, {}), number, reason, turn)

    def _described(self, doomed: _Doomed, number: int, reason: str, turn: _Turn) -> _Doomed | None:
        files, whole = doomed.files, doomed.ship_lock is not None
        # In memory mode a segment needs no entry, but a whole stream does: nothing else records its cursor's counts.
        if self._is_signed and not is_in_memory(files, files.segments()):
            before = turn.told.get(files.stream_id)
            content = signed_obituary(files, number, reason, self._removals, whole=whole, before=before)
        else:
            content = obituary(files, number, reason, whole=whole, removals=self._removals)
        return None if content is None else doomed._replace(content=content)

    def _told_and_removed(self, doomed: Sequence[_Doomed], guard: AbstractContextManager[object]) -> Sequence[_Doomed]:
        signed = [each for each in doomed if "stream" in each.content]
        rest = [each for each in doomed if "stream" not in each.content]
        return [*(self._signed_and_removed(signed, guard) if signed else ()), *self._said_and_removed(rest, guard)]

    def _signed_and_removed(
        self, doomed: Sequence[_Doomed], guard: AbstractContextManager[object]
    ) -> Sequence[_Doomed]:
        if self._ledger is None:
            return ()
        try:
            with self._ledger.turn() as turn, guard:
                told = [each.content for each in doomed if each.is_free]
                gone = remove_signed(turn, self._removals, told, self._failed)
        except LedgerBusy:
            return ()
        except OSError as error:
            for each in doomed:
                self._failed(each.files, error)
            return ()
        went = {(content["stream"], content["segment"]) for content in gone}
        return [each for each in doomed if (each.files.stream_id, each.content["segment"]) in went]

    def _said_and_removed(self, doomed: Sequence[_Doomed], guard: AbstractContextManager[object]) -> Iterator[_Doomed]:
        for each in doomed:
            try:
                with self._unsigned() as ledger, guard:
                    if ledger is None or not each.is_free:
                        continue
                    if remove(ledger, each.files, each.content, self._clock().wall_ns):
                        if self._keeps_room:
                            ledger.keep_room()
                        yield each
            except OSError as error:
                self._failed(each.files, error)

    @contextlib.contextmanager
    def _unsigned(self) -> Iterator[former.Ledger | None]:
        """Yield the lock on the unsigned ledger and the state, or None if another process holds it for long."""
        ledger = former.Ledger.locked(self._directory, mode=self._file_mode)
        if ledger is None:
            yield None
            return
        with self._while_held(ledger):
            yield ledger

    @contextlib.contextmanager
    def _while_held(self, lock: FileLock | former.Ledger, *, remove: bool = True) -> Iterator[None]:
        """Release the lock at the end, with its file. Until then it is listed, so that a forked child can drop it."""
        self._locks.append(lock)
        try:
            yield
        finally:
            lock.release(remove=remove)
            if lock in self._locks:  # False in a child that was forked inside this block
                self._locks.remove(lock)


class _Doomed(NamedTuple):
    """A segment to remove, and its ledger entry. `ship_lock` is set if the whole stream goes."""

    files: StreamFiles
    content: Mapping[str, Any]
    shipment: Shipment | None = None
    ship_lock: FileLock | None = None

    @property
    def is_free(self) -> bool:
        """True unless the caller has released the stream in the meantime."""
        return self.shipment is None or not self.shipment.released


class _Turn(NamedTuple):
    """What is known of the streams of one turn: their locks, and the last entry of each."""

    locks: contextlib.ExitStack
    ship_locks: dict[str, FileLock]
    told: dict[str, Mapping[str, Any]]


def _batches(
    due: Iterable[tuple[str, str, int]], segments: Mapping[str, Sequence[int]], most: int
) -> Iterator[Sequence[tuple[str, str, int]]]:
    """Yield the segments of each turn. The last one of a stream follows the others, since it counts what is left."""
    batch: list[tuple[str, str, int]] = []
    for each in due:
        is_last = segments[each[1]][-1] == each[2]
        if len(batch) == most or (is_last and any(stream_id == each[1] for _, stream_id, _ in batch)):
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch
