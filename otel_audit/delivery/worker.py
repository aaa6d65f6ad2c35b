"""The thread of one exporter, which gives each of its streams a turn."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from queue import Empty

import msgspec

from otel_audit.delivery.destination import Backoff, Destination
from otel_audit.delivery.stream_export import Blocked, Halved, Idle, Moved, Step, StreamExport
from otel_audit.journal.shipment import Shipment
from otel_audit.notices import Notices
from otel_audit.threads import RealThread, SimpleQueue, new_lock, wait_for_word

__all__ = ["BatchLimits", "Worker"]

_REST_MIN_S = 0.02  # an exporter without a delay would keep a core busy


class BatchLimits(msgspec.Struct, frozen=True):
    """The most lines and bytes in one export, and the longest pause after a failure."""

    count: int = 512
    bytes: int = 3 << 20
    backoff_cap_s: float = 60.0


class Worker:
    """The thread of one exporter, which sends a batch of each stream in turn."""

    def __init__(self, destination: Destination, limits: BatchLimits, notices: Notices) -> None:
        self.destination = destination
        self._blocked = ""
        self._limits = limits
        self._notices = notices
        self._backoff = Backoff(limits.backoff_cap_s)
        self._not_before = 0.0
        self._asked_until = 0.0  # the destination's own retry time, which `hurry` does not override
        self._exports: list[StreamExport] = []
        self._exports_lock = new_lock()
        # Not an Event: a signal handler that logs may interrupt its own thread inside `set`.
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._draining = False
        self._closes = False
        self._leaves = False
        self._over = False
        self._waiting: set[SimpleQueue[None]] = set()
        self._thread = RealThread(self._run, name=f"otel-audit-{destination.exporter.name}")

    @property
    def blocked(self) -> str:
        """Return why delivery has stalled, either altogether or in one of the streams."""
        known = self.destination.stuck or self._blocked
        return known or next((export.blocked for export in self._exports if export.blocked), "")

    @property
    def is_alive(self) -> bool:
        """Return True while the thread runs that was started."""
        return not self._thread.is_over

    def say_stuck(self) -> None:
        """Report an export that does not come back. Another thread calls this: this one is inside the export."""
        if stuck := self.destination.stuck:
            self._say(stuck)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def add(self, shipment: Shipment) -> None:
        """Export this stream as well from now on."""
        export = StreamExport(
            shipment,
            self.destination,
            batch_count=self._limits.count,
            batch_bytes=self._limits.bytes,
            backoff_cap_s=self._limits.backoff_cap_s,
        )
        with self._exports_lock:
            self._exports = [*self._exports, export]

    def wake(self) -> None:
        """Look at the streams now, because there are enough lines for a batch."""
        self._wakes.put(None)

    def hurry(self) -> None:
        """Send all lines now, because somebody is waiting, and retry a failed destination at once.

        A destination that asked for a later retry is left alone until then.
        """
        self._not_before = self._asked_until
        for export in self._exports:
            export.retry_now()
        self._wakes.put(None)

    def drain(self) -> None:
        """Send all lines, then end the thread. It also ends as soon as the destination fails."""
        self._draining = True
        self.hurry()

    def finish(self) -> None:
        """Do what `drain` does, and then close the exporter."""
        self._closes = True
        self.drain()

    def leave(self) -> None:
        """End the thread without another export, as soon as the one that is under way is over."""
        self._leaves = True
        self._wakes.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread to end. Return True if it has sent what it could; it then releases the exporter."""
        self._thread.join(timeout_s)
        return self._over

    def abandon(self) -> None:
        """Close what the thread was reading, in a forked child, which has no such thread."""
        for export in self._exports:
            export.close()

    def wait_for(self, reached: Callable[[], bool], deadline: float) -> bool:
        """Wait until the deadline for something that only the progress of this worker can make true.

        Once the worker has ended, there is nothing to wait for.
        """
        # Not a Condition: an asynchronous exception could leave its lock taken for ever, and the thread would hang.
        turns: SimpleQueue[None] = SimpleQueue()
        self._waiting.add(turns)
        try:
            while not (self._over or reached()) and (left_s := deadline - time.monotonic()) > 0:
                wait_for_word(turns, left_s)
        finally:
            self._waiting.discard(turns)
        return reached()

    def _run(self) -> None:
        while True:
            # Read before the turn, so that a request to drain during it gets a turn of its own.
            draining = self._draining
            self._forget_wakes()
            more = not self._leaves and self._turn()
            self._over = self._leaves or (draining and not more)
            for turns in self._waiting.copy():
                turns.put(None)
            if self._over:
                self._let_go()
                return
            if not more:
                self._rest()

    def _let_go(self) -> None:
        """Close the exporter on this thread. A foreign one may take long, and nobody waits for this thread for ever."""
        for export in self._exports:
            export.close()
        if self._closes:
            with contextlib.suppress(Exception):  # the lines are in the journal, whatever happens here
                self.destination.exporter.close()

    def _forget_wakes(self) -> None:
        try:
            while True:
                self._wakes.get_nowait()
        except Empty:
            return

    def _rest(self) -> None:
        try:
            self._wakes.get(timeout=self._pause_s())
        except Empty:
            return

    def _turn(self) -> bool:
        """Give each stream a turn. Return True when there is more to send at once."""
        more = False
        self._drop_released()
        for export in self._exports:
            if self._leaves or time.monotonic() < self._not_before:
                return False
            if export.shipment.released:
                continue
            match self._step(export):
                case Blocked() as step:
                    self._failed(step)
                    self._put_last(export)
                    return False
                case Moved(full=full):
                    self._worked()
                    more = more or full
                case Halved() if self._draining:
                    export.retry_now()
                    more = True
            if export.blocked:
                self._say(export.blocked)
        return more

    def _step(self, export: StreamExport) -> Step:
        try:
            return export.step()
        except Exception as error:
            # The segment cannot be read, the cursor cannot be written, or the fault is ours. Only this stream waits.
            # The others go on, and the thread lives.
            export.hold(f"{export.shipment.stream_id}: {type(error).__name__}: {error}")
            return Idle()

    def _put_last(self, export: StreamExport) -> None:
        """Begin the next try with another stream, because the fault may lie in this one."""
        with self._exports_lock:
            self._exports = [*(each for each in self._exports if each is not export), export]

    def _drop_released(self) -> None:
        # Closed by this thread, since another one could close a file in the middle of a read.
        with self._exports_lock:
            released = [export for export in self._exports if export.shipment.released]
            self._exports = [export for export in self._exports if not export.shipment.released]
        for export in released:
            export.close()

    def _pause_s(self) -> float:
        return max(self.destination.exporter.delay_s, _REST_MIN_S, self._not_before - time.monotonic())

    def _failed(self, step: Blocked) -> None:
        self._blocked = step.reason
        self._not_before = time.monotonic() + self._backoff.failed(step.retry_after_s)
        self._asked_until = 0.0 if step.retry_after_s is None else self._not_before
        self._say(step.reason)

    def _worked(self) -> None:
        self._blocked = ""
        self._backoff.succeeded()

    def _say(self, reason: str) -> None:
        name = self.destination.exporter.name
        self._notices.say(f"blocked {name}", f"{name}: blocked: {reason}; events stay in the journal")
