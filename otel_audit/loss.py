"""Write a recorded event to its sink, and apply the loss rule if the sink refuses it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from otel_audit.errors import AuditUnavailable, described
from otel_audit.journal.background import Commit
from otel_audit.journal.journal import Receipt
from otel_audit.notices import Notices
from otel_audit.settings import Durability, OnLoss
from otel_audit.sinks import AuditSink
from otel_audit.trail import Trail

if TYPE_CHECKING:
    from otel_audit.event import AuditEvent

__all__ = ["GuardedSink"]

_ROUNDS: Final = 8  # of events that a sink's own writing causes; more would be a loop


class GuardedSink:
    """A sink with the loss rule. A trail gets events as the bytes of a line, any other sink as models, one at a time.

    If the sink refuses an event, its `on_loss` decides: `closed` raises `AuditUnavailable`, `open` reports the loss on
    stderr and returns a receipt that is not durable. `emitted` and `dropped` count the events that this process wrote
    to a sink other than a trail. Safe in any thread and after a fork.
    """

    def __init__(self, sink: AuditSink, notices: Notices) -> None:
        self._sink = sink
        self.trail = sink if isinstance(sink, Trail) else None
        self.journal = self.trail.journal if self.trail is not None else None
        self.syncs = self.journal is not None and self.journal.durability is Durability.FSYNC
        self._warns_of_loops = self.syncs
        self._notices = notices
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.RLock()  # reentrant: a sink or a signal handler that logs has it already
        self._is_emitting = False
        self._from_inside: list[AuditEvent] = []
        self.emitted = 0
        self.dropped = 0
        self._pid = os.getpid()

    def write(
        self, fields: Mapping[str, Any], time_ns: int, observed_ns: int, on_loss: OnLoss, is_vital: bool
    ) -> Receipt:
        """Write the event to the sink, or apply the loss rule.

        Raises:
            AuditUnavailable: only with `closed`: the event may not be durable.
        """
        if self.journal is None:
            return self._emit(fields, on_loss)
        self.warn_on_loop()
        event_id = fields["event_id"]
        try:
            return self.journal.append(event_id, _json_of(fields), time_ns, observed_ns, is_vital)
        except Exception as error:
            return self.failed(event_id, error, on_loss)

    def begin(
        self, fields: Mapping[str, Any], time_ns: int, observed_ns: int, on_loss: OnLoss, is_vital: bool
    ) -> tuple[Receipt, Commit | None]:
        """Do the same as `write`, but leave the wait for the disk, if there is one, to `committed`.

        Raises:
            AuditUnavailable: as `write`.
        """
        if self.journal is None:
            return self._emit(fields, on_loss), None
        event_id, commits = fields["event_id"], list[Commit]()
        try:
            receipt = self.journal.append(event_id, _json_of(fields), time_ns, observed_ns, is_vital, commits)
        except Exception as error:
            return self.failed(event_id, error, on_loss), None
        return receipt, commits[0] if commits else None

    async def committed(self, receipt: Receipt, commit: Commit, on_loss: OnLoss) -> Receipt:
        """Return the receipt once its line is synced, without holding a thread meanwhile.

        Raises:
            AuditUnavailable: as `write`.
        """
        assert self.journal is not None
        loop = asyncio.get_running_loop()
        served = asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile, so nobody waits
                loop.call_soon_threadsafe(served.set)

        commit.call_when_served(tell)
        with contextlib.suppress(TimeoutError):  # `confirm` reports it
            async with asyncio.timeout(self.journal.commit_timeout_s):
                await served.wait()
        try:
            self.journal.confirm(commit)
        except Exception as error:
            return self.failed(receipt.event_id, error, on_loss)
        return receipt

    def warn_on_loop(self) -> None:
        """Warn once if `log()` waits for the disk on a running event loop, which it blocks."""
        if not self._warns_of_loops or asyncio._get_running_loop() is None:
            return
        self._warns_of_loops = False
        self._notices.say(
            "loop",
            "log() was called on a running event loop with OTEL_AUDIT_DURABILITY=fsync, which blocks the loop until "
            "the disk has the event; use `await alog()`",
        )

    def failed(self, event_id: str | None, error: Exception, on_loss: OnLoss) -> Receipt:
        """Apply the loss rule to an event that the journal refused or could not make durable.

        Raises:
            AuditUnavailable: as `write`.
        """
        if not isinstance(error, AuditUnavailable):  # a bug here or in an exporter must not stop the application
            error = AuditUnavailable(f"expected to record an event, got {described(error)}")
        return self._lost(event_id, error, on_loss)

    def _emit(self, fields: Mapping[str, Any], on_loss: OnLoss) -> Receipt:
        from otel_audit.event import as_event

        event = as_event(fields)
        if os.getpid() != self._pid:
            self._begin()  # a thread of the parent may have been inside the sink, and does not exist here
        try:
            with self._lock:
                self.emitted += 1
                self._write(event)
        except Exception as error:
            return self._lost(event.event_id, self._refused(described(error)), on_loss)
        return Receipt(event.event_id, None, None, False)

    def _write(self, event: AuditEvent) -> None:
        """Write the event to the sink, or queue it until the sink is done if the sink itself is the caller."""
        if self._is_emitting:
            self._from_inside.append(event)
            return
        self._is_emitting = True
        try:
            self._sink.emit(event)
        finally:
            try:
                self._write_from_inside()
            finally:
                self._is_emitting = False

    def _write_from_inside(self) -> None:
        """Write the queued events. Their callers have gone on, so any loss rule counts and reports a refusal."""
        for _ in range(_ROUNDS):
            events, self._from_inside = self._from_inside, []
            for event in events:
                try:
                    self._sink.emit(event)
                except Exception as error:
                    self._lost(event.event_id, self._refused(described(error)), OnLoss.OPEN)
        left, self._from_inside = self._from_inside, []
        for event in left:
            self._lost(event.event_id, self._refused("one that its own writing causes, each time"), OnLoss.OPEN)

    def _refused(self, got: str) -> AuditUnavailable:
        self.dropped += 1
        return AuditUnavailable(f"{type(self._sink).__name__}: expected to take an event, got {got}")

    def _lost(self, event_id: str | None, error: AuditUnavailable, on_loss: OnLoss) -> Receipt:
        if on_loss is OnLoss.CLOSED:
            raise error
        self._notices.say("sync" if error.in_journal else "loss", error.told_of("events"))
        return Receipt(event_id, None, None, False)


def _json_of(fields: Mapping[str, Any]) -> bytes:
    import pydantic_core

    return pydantic_core.to_json(fields, inf_nan_mode="null")
