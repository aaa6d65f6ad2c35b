"""The batch log processor: threads that read the journal back and send it on, one for each exporter.

The journal is the queue; there is none in memory. Live traffic, a backlog after an outage and the leftovers of a
crashed process are read in the same way and take turns.

Source: OpenTelemetry specification, "Batching processor". Its limits (count, delay) are kept. Records are not dropped
when a queue is full, because there is no queue to fill.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty

from otel_audit.delivery.destination import Destination
from otel_audit.delivery.holdings import Holdings
from otel_audit.delivery.metrics import AuditMetrics
from otel_audit.delivery.outcomes import Exporter
from otel_audit.delivery.worker import BatchLimits, Worker
from otel_audit.errors import LedgerBusy, described, remedy_of
from otel_audit.journal.cursor import Position, Progress
from otel_audit.journal.files import StreamFiles
from otel_audit.journal.ledger.adoption import Adopter
from otel_audit.journal.ledger.shipping import LedgerShipping
from otel_audit.journal.retention import Retention
from otel_audit.journal.shipment import Adoption, Shipment, take
from otel_audit.notices import Notices
from otel_audit.threads import RealThread, SimpleQueue, acquired, new_rlock

__all__ = ["Adoption", "BatchProcessor", "Closing", "FlushReport"]


class Closing:
    """Signal that closing has begun. Any thread may set it, once; one thread waits for it.

    It is no `Event`, because an asynchronous exception may leave the lock of one locked, and the next close would hang.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._said: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Begin the end. Any thread may call this, also a signal handler that interrupts the same call."""
        self._is_set = True
        self._said.put(None)

    def is_set(self) -> bool:
        """Return True once closing has begun."""
        return self._is_set

    def is_set_within(self, timeout_s: float) -> bool:
        """Wait until closing begins, for at most so many seconds. Only one thread may wait."""
        if not self._is_set:
            with suppress(Empty):
                self._said.get(timeout=max(0.0, timeout_s))
        return self._is_set

    def look_up(self) -> None:
        """Wake the waiting thread although closing has not begun. Any thread."""
        self._said.put(None)


_ADOPT_INTERVAL_S = 10.0
_TURN_S = 0.5  # a turn of the ledger takes some milliseconds, unless the disk or other processes are slow


@dataclass(frozen=True, slots=True)
class FlushReport:
    """The result of a flush: what was really delivered by its end.

    `pending` counts the lines of this process that some exporter has neither accepted nor set aside. `blocked` says
    why, by exporter.
    """

    complete: bool
    pending: int
    blocked: Mapping[str, str]


class BatchProcessor:
    """Deliver the journal of a directory: the streams of this process, and those it may adopt. Any thread.

    `adopter` tells the ledger about streams whose process is gone. `countersign` lets the user's sign command, if there
    is one, sign the ledger's last note. `ledger` takes the right to deliver the ledger to the exporters that it names.
    `on_room` is called after each removal that `make_room` asked for.

    No thread runs until `start` or the first `ship`: a server may fork in C code, which runs no hooks, and a thread
    that held a lock or the interpreter at that moment would leave a dead worker.
    """

    def __init__(
        self,
        directory: Path,
        exporters: Sequence[Exporter],
        *,
        adoption: Adoption | None = None,
        limits: BatchLimits | None = None,
        file_mode: int = 0o600,
        notices: Notices | None = None,
        metrics: AuditMetrics | None = None,
        retention: Retention | None = None,
        adopter: Adopter | None = None,
        countersign: Callable[[], object] = lambda: None,
        ledger: LedgerShipping | None = None,
        on_room: Callable[[], None] = lambda: None,
    ) -> None:
        self._directory = directory
        self._metrics = metrics
        self._retention = retention
        self._adopter = adopter
        self._countersign = countersign
        self._ledger = ledger
        self._on_room = on_room
        self._is_room_wanted = False
        self._is_ledger_there = False
        self._is_child = False
        self._exporters = exporters
        self._adoption = adoption
        self._limits = limits or BatchLimits()
        self._file_mode = file_mode
        self._notices = notices or Notices()
        self._begin()

    def _begin(self) -> None:
        # Re-entrant: a signal handler that logs, flushes or closes must not wait for its own thread. The first lock is
        # for the streams of this process, and the first `log()` takes it. The second is held during the search for
        # other streams, which takes long among thousands of files. A thread that needs both takes the second first.
        self._lock = new_rlock()
        self._adopting = new_rlock()
        self._is_left = False
        self._workers: list[Worker] = []
        self._holdings = Holdings(
            self._directory,
            [exporter.name for exporter in self._exporters],
            file_mode=self._file_mode,
            notices=self._notices,
            ledger=self._ledger,
        )
        self._keeper: RealThread | None = None
        self._has_looked = False
        self._closing = Closing()

    @property
    def batch_count(self) -> int:
        """The number of lines in a full batch."""
        return self._limits.count

    @property
    def is_closed(self) -> bool:
        """True once `close` was called, but not in a child that is forked later."""
        return self._closing.is_set()

    @property
    def threads(self) -> dict[str, bool]:
        """Return whether each thread runs, under `keep` or the name of its exporter. Before a start there is none."""
        if self._keeper is None:
            return {}
        workers = {worker.destination.exporter.name: worker.is_alive for worker in self._workers}
        return {"keep": not self._keeper.is_over, **workers}

    @property
    def has_looked(self) -> bool:
        """True if the last look through the directory found every stream that may be delivered."""
        return self._has_looked

    def start(self) -> None:
        """Start the threads. They also deliver what dead processes have left."""
        with self._lock:
            self._ensure_threads()

    def ship(self, files: StreamFiles, *, durable: Callable[[], Position | None] = lambda: None) -> None:
        """Deliver a stream of this process, from now until its end, unless another process ships it.

        `durable` returns the position up to which it may be exported, or None for everything that is written.
        """
        with self._lock:
            if self._closing.is_set():
                return  # opened after `close`: the next owner of the directory ships it
            if self._exporters:
                leaves_lock = self._adopter is not None
                self._holdings.expect(
                    lambda: take(files, file_mode=self._file_mode, durable=durable, leaves_lock=leaves_lock)
                )
            if self._ensure_threads():
                self._assign(self._holdings.take_waiting())

    def wake(self) -> None:
        """Send a batch before its delay is over. This takes no lock, because `log()` calls it."""
        for worker in self._workers:
            worker.wake()

    def make_room(self) -> bool:
        """Ask for removable segments to be removed now, and return True if there is a thread to do it.

        This takes no lock, because `log()` calls it.
        """
        if self._retention is None or self._keeper is None or self._closing.is_set():
            return False
        self._is_room_wanted = True
        self._closing.look_up()
        return True

    def ledger_begun(self) -> None:
        """Take note that a stream of this process is in the ledger, which may not have been there before. Any thread.

        Without this the keeper would look for a new ledger ten seconds later.
        """
        self._is_ledger_there = True
        self._closing.look_up()

    def flush(self, seqs: Mapping[str, int], *, timeout_s: float) -> FlushReport:
        """Wait until every exporter has dealt with each stream up to the given line, or until the time is over.

        This never raises. The report says what was really accepted.
        """
        deadline = time.monotonic() + timeout_s
        for worker in self._workers:
            worker.hurry()
        holdings = self._holdings
        for worker in self._workers:
            name = worker.destination.exporter.name
            worker.wait_for(lambda name=name: not holdings.missing(seqs, name), deadline)  # type: ignore[misc]  # bound now
        pending = max((holdings.missing(seqs, exporter.name) for exporter in self._exporters), default=0)
        return FlushReport(pending == 0, pending, self.blocked())

    def blocked(self) -> dict[str, str]:
        """Return why delivery has stalled, by exporter. It is empty when all is well."""
        return {worker.destination.exporter.name: worker.blocked for worker in self._workers if worker.blocked}

    def warnings(self) -> dict[str, int]:
        """Return how many exports were accepted with a remark, by exporter."""
        return {worker.destination.exporter.name: worker.destination.warnings for worker in self._workers}

    def progress(self) -> dict[str, dict[str, Progress]]:
        """Return how far each exporter has come, by stream of this process."""
        return self._holdings.progress()

    def adopt(self, *, deadline: float = math.inf) -> int:
        """Take over streams now and return how many were found. Let go of those that ended and are delivered."""
        adopted = 0
        with self._adopting:
            with self._lock:
                if self._closing.is_set() or not self._ensure_threads():
                    return 0
                self._assign(self._holdings.take_waiting())
            self._holdings.let_go()
            self._assign(self._holdings.take_ledger())
            if self._adoption is None:
                return 0
            for shipment in self._holdings.adopt(self._adoption, partial(self._is_over, deadline)):
                self._assign([shipment])
                adopted += 1
        if adopted:
            self.wake()
        return adopted

    def _is_over(self, deadline: float) -> bool:
        return self._closing.is_set() or time.monotonic() >= deadline

    def close(self, *, timeout_s: float) -> bool:
        """Send all lines within the time, then release every stream. Return True if everything was delivered.

        A processor that delivers for live writers first searches once more for streams that they have opened. One that
        has not started yet searches for streams of dead processes, except in a forked child that has logged nothing.
        """
        deadline = time.monotonic() + timeout_s
        if self._adoption is not None and (
            self._adoption.live is not None or (self._keeper is None and not self._is_child)
        ):
            self._look(deadline)
        self._take_ledger(deadline)
        self._closing.set()
        for worker in self._workers:
            worker.finish()
        ended = [worker.join(deadline - time.monotonic()) for worker in self._workers]
        if self._keeper is not None:  # after `close` returns, the keeper must not remove anything
            self._keeper.join(deadline - time.monotonic())
        delivered = self._release(deadline)
        # Tell the ledger about streams released just now, unless this is a child without any, or there is no time left.
        if self._keeper is not None and deadline - time.monotonic() > _TURN_S:
            self._tell_of_the_dead(lambda: time.monotonic() > deadline - _TURN_S)
        return delivered and all(ended)

    def reopen(self, *, timeout_s: float) -> bool:
        """Abandon all streams, since a process with the same memory may hold them too. Return True if it was started.

        Afterwards the processor is as new, even after a `close`. Threads that do not end within the time end by
        themselves when their export is over.
        """
        deadline = time.monotonic() + timeout_s
        had_begun = self._keeper is not None
        self._closing.set()
        for worker in self._workers:
            worker.leave()
        for worker in self._workers:
            worker.join(deadline - time.monotonic())
        if self._keeper is not None:
            self._keeper.join(deadline - time.monotonic())
        self._holdings.abandon()
        self._begin()
        return had_begun

    def _release(self, deadline: float) -> bool:
        """Release every stream. If the keeper is busy with them, leave it to the keeper, whose disk may be hanging."""
        if not acquired(self._adopting, deadline - time.monotonic()):
            self._is_left = True
            if not self._adopting.acquire(blocking=False):  # the keeper may have begun just before
                return False
        try:
            with self._lock:
                return self._holdings.release(deadline)
        finally:
            self._adopting.release()

    def forked(self) -> None:
        """Start anew in a forked child. The parent keeps its streams, threads and locks."""
        for worker in self._workers:
            worker.abandon()
        self._holdings.abandon()
        if self._retention is not None:
            self._retention.forked()
        if self._adopter is not None:
            self._adopter.forked()
        self._is_child = True
        self._begin()

    def _ensure_threads(self) -> bool:
        """Start the threads if they do not run yet. Return True if there is an exporter to deliver to."""
        if (
            self._keeper is not None
            or self._closing.is_set()
            or not (self._exporters or self._retention or self._adopter)
        ):
            return bool(self._workers)
        workers = [
            Worker(Destination(each, metrics=self._metrics), self._limits, self._notices) for each in self._exporters
        ]
        keeper = RealThread(self._keep_for_ever, name="otel-audit-keep")
        started: list[Worker] = []
        try:
            for worker in workers:
                worker.start()
                started.append(worker)
            keeper.start()
        except RuntimeError as error:  # the interpreter is going down, or there are too many threads
            for worker in started:
                worker.drain()
            if self._holdings.is_expecting:
                self._notices.say("threads", f"events wait in the journal, no thread can be started: {error}")
            return False
        self._workers, self._keeper = workers, keeper
        return bool(workers)

    def _keep_for_ever(self) -> None:
        closing = self._closing
        while True:
            self._look()
            self._tell_of_the_dead(closing.is_set, finds=True)
            self._have_signed()
            self._say_foreign(closing)
            self._retain(closing)
            for worker in self._workers:
                worker.say_stuck()
            if self._is_closing_within(closing, _ADOPT_INTERVAL_S):
                break
        with self._adopting, self._lock:
            if self._is_left:
                self._holdings.release(time.monotonic())

    def _is_closing_within(self, closing: Closing, interval_s: float) -> bool:
        """Wait until closing begins, and in the meantime do at once what others ask for."""
        next_look = time.monotonic() + interval_s
        while not closing.is_set_within(next_look - time.monotonic()):
            if self._is_ledger_there:
                self._is_ledger_there = False
                with self._adopting:
                    self._assign(self._holdings.take_ledger())
            if self._is_room_wanted:
                self._is_room_wanted = False
                self._retain(closing, at_once=True)
                self._on_room()
            elif time.monotonic() >= next_look:
                return False
        return True

    def _look(self, deadline: float = math.inf) -> None:
        try:
            self.adopt(deadline=deadline)
            self._has_looked = True
        except Exception as error:  # whatever it was, the next look may be better
            self._has_looked = False
            self._notices.say("adopt", f"{self._directory}: streams of dead processes cannot be read: {error!r}")

    def _take_ledger(self, deadline: float) -> None:
        """Take the ledger before the end, since a short-lived process may not have looked for it before."""
        if self._workers and acquired(self._adopting, deadline - time.monotonic()):
            try:
                self._assign(self._holdings.take_ledger())
            finally:
                self._adopting.release()

    def _tell_of_the_dead(self, stopped: Callable[[], bool], *, finds: bool = False) -> None:
        if self._adopter is None:
            return
        try:
            self._adopter.take_over(stopped)
            if finds:
                self._adopter.find(stopped)
        except LedgerBusy:  # others write what is more urgent, and the next look is soon
            return
        except Exception as error:  # whatever it was, the next look may be better
            said = f"{self._directory}: expected to record ends of streams in the ledger, got {described(error)}"
            remedy = remedy_of(error, "let the user of the service read and write the files there")
            self._notices.say("ledger adopt", f"{said}; the next look tries again; {remedy}")

    def _have_signed(self) -> None:
        try:
            self._countersign()
        except Exception as error:  # the note still has the ledger's own signature
            self._notices.say("ledger sign", f"{self._directory}: the ledger lacks a signature: {described(error)}")

    def _say_foreign(self, closing: Closing) -> None:
        try:
            self._holdings.say_foreign(closing.is_set)
        except OSError as error:
            self._notices.say("foreign", f"{self._directory}: streams of another host cannot be read: {error}")

    def _retain(self, closing: Closing, *, at_once: bool = False) -> None:
        if self._retention is None:
            return
        with self._adopting:
            held = self._holdings.removable
        try:
            self._retention.look_if_due(held, self._adopting, closing.is_set, at_once=at_once)
        except Exception as error:  # whatever it was, the next look may be better
            self._notices.say("retention", f"{self._directory}: old events cannot be removed: {error!r}")

    def _assign(self, shipments: Iterable[Shipment]) -> None:
        for shipment in shipments:
            if shipment.cursor.note:
                self._notices.say(f"cursor {shipment.stream_id}", shipment.cursor.note)
            for worker in self._workers:
                if shipment.is_for(worker.destination.exporter.name):
                    worker.add(shipment)
