"""The counts of a trail, for each of its exporters and summed over trails, as OTel metrics.

The numbers are read when the application's meter provider collects, so `log()` does nothing for them. Only the duration
of an export is recorded as it happens, by the thread that exported.

Source: the names are those of OTEP 0267 (audit logging, a draft). `audit.records.quarantined`, `audit.export.blocked`,
`audit.export.warnings` and the attributes are ours, because the draft has no word for what else an operator must see.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Protocol

from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, NoOpMeter, Observation, get_meter

from otel_audit._version import __version__
from otel_audit.delivery.outcomes import Accepted, ExportOutcome, Refused, Unavailable
from otel_audit.delivery.suppression import instrumentation_suppressed
from otel_audit.journal.counts import CountsByExporter
from otel_audit.threads import get_ident, new_lock, new_rlock

__all__ = ["AuditMetrics", "Counted", "metrics_of_process"]


SCOPE_NAME = "otel_audit"

_EXPORTER = "audit.exporter"
_REASON = "audit.drop.reason"
_OUTCOME = "audit.export.outcome"
_LEDGER = "audit.ledger.origin"

# Reported from the start, since an alert on the increase of a counter does not see its first appearance.
_FIRST_REASON = "disk full"
# In seconds. A healthy export takes milliseconds, and the longest allowed time-out is ten minutes.
_BOUNDARIES = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 600.0)
# How long the numbers of one moment are kept for instruments that have not read them yet.
_ONE_COLLECTION_S = 5.0
_FORK_WAITS_S = 1.0


class Counted(Protocol):
    """Something that has numbers, such as a trail."""

    def numbers(self) -> CountsByExporter:
        """Return the current numbers."""


class AuditMetrics:
    """The instruments of one meter provider, which sum over all watched trails. Any thread; fork-safe.

    The default `provider` is the global one, which may be set later. Watching does not keep a trail alive, and its last
    known numbers stay in the sums. A forked child begins with nothing.
    """

    def __init__(self, provider: MeterProvider | None = None) -> None:
        self._begin()
        self._watched: list[_Watched] = []
        _all.add(self)
        try:
            self._instrument(get_meter(SCOPE_NAME, __version__, provider))
        except Exception:  # the provider cannot be loaded, and events do not depend on it
            self._instrument(NoOpMeter(SCOPE_NAME, __version__))

    def _begin(self) -> None:
        self._lock = new_rlock()  # re-entrant: a signal handler may close a trail
        self.recording = new_lock()
        self._sums = CountsByExporter()
        self._taken_at = 0.0
        self._told: set[str] = set()
        self._gone = CountsByExporter()
        self._pid = os.getpid()

    def _instrument(self, meter: Meter) -> None:
        self._duration = meter.create_histogram(
            "audit.export.duration",
            unit="s",
            description="How long one export took",
            explicit_bucket_boundaries_advisory=_BOUNDARIES,
        )
        meter.create_observable_counter(
            "audit.records.emitted",
            [self._observer("emitted", lambda sums: [Observation(sums.emitted)])],
            unit="{record}",
            description="Audit events that the application recorded",
        )
        meter.create_observable_counter(
            "audit.records.exported",
            [self._by_exporter("exported", lambda sums, name: sums.exporters[name].exported)],
            unit="{record}",
            description="Audit events that the destination has accepted",
        )
        meter.create_observable_counter(
            "audit.records.dropped",
            [self._observer("dropped", _dropped)],
            unit="{record}",
            description="Audit events that could not be written, each told in the trail by a gap",
        )
        meter.create_observable_up_down_counter(
            "audit.records.quarantined",
            [self._by_exporter("quarantined", lambda sums, name: sums.exporters[name].quarantined)],
            unit="{record}",
            description="Audit events that the destination refused one by one; they are kept in the journal",
        )
        meter.create_observable_up_down_counter(
            "audit.queue.depth",
            [self._by_exporter("pending", lambda sums, name: sums.exporters[name].pending)],
            unit="{record}",
            description="Audit events in the journal that the destination does not have yet",
        )
        meter.create_observable_gauge(
            "audit.export.blocked",
            [self._by_exporter("blocked", lambda sums, name: int(name in sums.blocked))],
            unit="1",
            description="1 while nothing moves: the status and stderr say why",
        )
        meter.create_observable_gauge(
            "audit.space.low",
            [self._observer("low", lambda sums: [Observation(int(sums.is_low))])],
            unit="1",
            description="1 while the disk has so little free space that not every event is written",
        )
        meter.create_observable_gauge(
            "audit.ledger.note.age",
            [self._by_ledger("age", lambda size, time_ns: max(0.0, (time.time_ns() - time_ns) / 1e9))],
            unit="s",
            description="How old the last signed note of the directory's ledger is",
        )
        meter.create_observable_gauge(
            "audit.ledger.size",
            [self._by_ledger("size", lambda size, time_ns: size)],
            unit="{line}",
            description="How many lines of the directory's ledger are under its last signed note",
        )
        meter.create_observable_counter(
            "audit.export.warnings",
            [self._by_exporter("warnings", lambda sums, name: sums.warnings.get(name, 0))],
            unit="{warning}",
            description="Exports that the destination accepted with a remark",
        )

    def watch(self, trail: Counted) -> None:
        """Include this trail in the sums from now on."""
        with self._own_lock():
            self._let_go()  # otherwise, if nobody collects metrics, every trail would be kept for ever
            self._watched = [*self._watched, _Watched(trail)]

    def keep(self, trail: Counted) -> None:
        """Keep the numbers of a trail that is being closed in the sums."""
        with self._own_lock():
            watched = self._watched
        for each in watched:
            if each.is_of(trail):
                each.look()

    def exported(self, exporter: str, outcome: ExportOutcome, duration_s: float) -> None:
        """Record the duration of one export. Never raises, whatever the meter provider does."""
        with suppress(Exception), self.recording, instrumentation_suppressed():
            self._duration.record(duration_s, {_EXPORTER: exporter, _OUTCOME: _word(outcome)})

    def forked(self) -> None:
        """Start anew in a forked child: the counts are the parent's, and a missing thread may hold a lock."""
        self._begin()
        for each in self._watched:
            each.last = CountsByExporter()

    def _own_lock(self) -> threading.RLock:
        if os.getpid() != self._pid:
            self.forked()  # C code has forked, which runs no fork hooks
        return self._lock

    def _by_exporter(self, name: str, number: Callable[[CountsByExporter, str], int]) -> _Callback:
        return self._observer(
            name,
            lambda sums: [Observation(number(sums, exporter), {_EXPORTER: exporter}) for exporter in sums.exporters],
        )

    def _by_ledger(self, name: str, number: Callable[[int, int], float]) -> _Callback:
        return self._observer(
            name, lambda sums: [Observation(number(*note), {_LEDGER: origin}) for origin, note in sums.notes.items()]
        )

    def _observer(self, name: str, observed: Callable[[CountsByExporter], list[Observation]]) -> _Callback:
        return lambda options: observed(self._sums_for(name))

    def _sums_for(self, name: str) -> CountsByExporter:
        """Return the sums, from one moment for all instruments of a collection.

        An instrument that asks for the second time begins a new collection.
        """
        with self._own_lock():
            if name not in self._told and time.monotonic() - self._taken_at < _ONE_COLLECTION_S:
                self._told.add(name)
                return self._sums
            watched = self._watched
        for each in watched:  # without the lock: a trail takes its own, whose holder may be waiting for this one
            each.look()
        with self._lock:
            self._let_go()
            self._sums = CountsByExporter.sum([self._gone, *(each.last for each in self._watched)])
            self._told = {name}
            self._taken_at = time.monotonic()
            return self._sums

    def _let_go(self) -> None:
        gone = [each for each in self._watched if each.is_gone]
        if gone:
            self._gone = CountsByExporter.sum([self._gone, *(each.last.at_rest() for each in gone)])
            self._watched = [each for each in self._watched if each not in gone]


_Callback = Callable[[CallbackOptions], Iterable[Observation]]


class _Watched:
    """A weak reference to a trail, and its last known numbers."""

    def __init__(self, trail: Counted) -> None:
        self._trail = weakref.ref(trail)
        self._looks = 0
        self.last = CountsByExporter()

    @property
    def is_gone(self) -> bool:
        return self._trail() is None

    def is_of(self, trail: Counted) -> bool:
        return self._trail() is trail

    def look(self) -> None:
        trail = self._trail()
        if trail is None:
            return
        looks = self._looks
        with suppress(Exception):  # if a cursor cannot be read now, the last known numbers stand
            numbers = trail.numbers()
            if self._looks == looks:  # otherwise another thread has read in the meantime, perhaps a later moment
                self._looks += 1
                self.last = numbers.after(self.last)


def _dropped(sums: CountsByExporter) -> list[Observation]:
    return [Observation(count, {_REASON: reason}) for reason, count in {_FIRST_REASON: 0, **sums.dropped}.items()]


def _word(outcome: ExportOutcome) -> str:
    match outcome:
        case Accepted():
            return "accepted"
        case Refused():
            return "refused"
        case Unavailable():
            return "unavailable"


# A thread that records holds locks of the SDK, and the SDK does not renew them in a child, where an export would wait
# for them for ever. So a fork waits until the recording is over, which takes microseconds.
_all: weakref.WeakSet[AuditMetrics] = weakref.WeakSet()
_held_for_fork: dict[int, list[threading.Lock]] = {}  # by thread: two may fork at the same time


def _before_fork() -> None:
    for metrics in list(_all):
        if metrics.recording.acquire(timeout=_FORK_WAITS_S):
            _held_for_fork.setdefault(get_ident(), []).append(metrics.recording)


def _after_fork_in_parent() -> None:
    for lock in _held_for_fork.pop(get_ident(), []):
        lock.release()


def _after_fork_in_child() -> None:
    _held_for_fork.clear()
    for metrics in list(_all):
        metrics.forked()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)

_process: AuditMetrics | None = None
_making = new_lock()


def metrics_of_process() -> AuditMetrics:
    """Return the metrics of the global meter provider, which all trails of the process share.

    A second instrument of the same name would not be collected.
    """
    global _process
    with _making:
        _process = _process or AuditMetrics()
        return _process
