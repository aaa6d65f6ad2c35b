"""The trail: one journal and its delivery. It is a sink, and what `configure()` puts behind a logger.

`exporters_of` makes the exporters that the settings name. At the normal end of a process every open trail is closed,
so that it delivers what it has. A process that `multiprocessing` forks, from its fork server too, runs finalizers of
its own and no exit handlers: both are used.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
import uuid
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pydantic_core
from opentelemetry.sdk.resources import (
    PROCESS_PARENT_PID,
    PROCESS_PID,
    SERVICE_INSTANCE_ID,
    SERVICE_NAME,
    Resource,
)

from otel_audit import ids
from otel_audit._version import __version__
from otel_audit.delivery.counts import Elsewhere, TrailNumbers
from otel_audit.delivery.jsonl import JsonlExporter
from otel_audit.delivery.metrics import AuditMetrics, metrics_of_process
from otel_audit.delivery.outcomes import Exporter
from otel_audit.delivery.processor import Adoption, BatchProcessor, FlushReport
from otel_audit.delivery.sweep import adopter_of, ledger_of, retention_of
from otel_audit.delivery.worker import BatchLimits
from otel_audit.errors import ConfigError
from otel_audit.journal.counts import CountsByExporter, Stats
from otel_audit.journal.files import make_private, say_exposure
from otel_audit.journal.journal import Journal
from otel_audit.journal.ledger.entries import last_note
from otel_audit.journal.ledger.files import LedgerFiles
from otel_audit.journal.ledger.ledger import Ledger
from otel_audit.journal.ledger.registrar import END_WAIT_S, HeadLimits, Registrar, anchor_of
from otel_audit.journal.ledger.shipping import LedgerShipping
from otel_audit.journal.locks import boot_id, host_id
from otel_audit.journal.retention import Retention
from otel_audit.journal.stream import Limits, StreamWriter
from otel_audit.notices import Notices
from otel_audit.settings import Durability, ExporterName, OnLoss, Settings
from otel_audit.sinks import AuditSink, JsonlEvent
from otel_audit.threads import begin_anew

__all__ = ["Stats", "Trail", "close_at_end", "exporters_of", "is_vital"]


def exporters_of(settings: Settings) -> list[Exporter]:
    """One for each destination; none where the journal is the destination, or another process delivers.

    Raises:
        ConfigError: one cannot be made.
    """
    return [exporter for name in settings.export if (exporter := _exporter(name, settings)) is not None]


def _exporter(name: ExporterName, settings: Settings) -> Exporter | None:
    match name:
        case ExporterName.OTLP:
            if settings.otlp is None:
                raise ConfigError("OTEL_EXPORTER_OTLP_ENDPOINT: expected an endpoint for the exporter otlp, got none")
            from otel_audit.delivery.otlp.exporter import OtlpExporter  # loads the messages of protobuf

            return OtlpExporter(settings.otlp, delay_s=settings.batch_delay_s, batch_bytes=settings.batch_bytes)
        case ExporterName.CONSOLE:
            # Not at the top: `rich` takes a while to load, and most services show nothing.
            from otel_audit.delivery.console import ConsoleExporter

            return ConsoleExporter()
        case ExporterName.JSONL:
            return JsonlExporter(settings.jsonl_path, mode=settings.file_mode, delay_s=settings.batch_delay_s)
        case ExporterName.NONE | ExporterName.SHIP:
            return None


SCOPE_NAME = "otel_audit"
_POLL_S = 0.05
_SEGMENTS_IN_MEMORY = 32  # a header takes 1 to 2 KB of the smallest, 32 KiB
_LEAVES_AT_ONCE = 2048  # half of what waits for the tree: what does not fit is read back, at several times the cost
_ON_THIS_HOST = frozenset({ExporterName.CONSOLE, ExporterName.JSONL})
_CLOSED = OnLoss.CLOSED  # a member of an enum is slow to look up


class Trail(AuditSink):
    """A journal in a directory, delivered by the exporters of the settings. Any thread; fork-safe.

    `resource` is the OTel Resource of the writer; without it, the one that the SDK finds: `OTEL_RESOURCE_ATTRIBUTES`,
    `OTEL_SERVICE_NAME`, resource detectors. `exporters` replaces those of the settings, `metrics` those of the process.
    `policy_hash` (hex SHA-256) says in the segment headers which policy chose the events. `is_foreign`: they say that
    the lines are records of the plain logs API, which a store keeps without their lines and numbers.

    Raises:
        JournalUnwritable: the directory cannot be written.
        ConfigError: an exporter cannot be made from the settings.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        resource: Resource | None = None,
        exporters: Sequence[Exporter] | None = None,
        notices: Notices | None = None,
        metrics: AuditMetrics | None = None,
        policy_hash: str | None = None,
        is_foreign: bool = False,
    ) -> None:
        self.settings = settings
        self.notices = notices or Notices()
        self._metrics = metrics or metrics_of_process()
        self._resource = resource or Resource.create({SERVICE_NAME: settings.service_name})
        self._instance_id = self._resource.attributes.get(SERVICE_INSTANCE_ID) or str(uuid.uuid4())
        self._policy_hash = policy_hash
        self._is_foreign = is_foreign
        self._pid = os.getpid()
        self._streams: dict[str, StreamWriter] = {}
        self._full_seq = 0  # the line with which the next batch is full
        self._holders: weakref.WeakSet[object] = weakref.WeakSet()
        exporters = exporters_of(settings) if exporters is None else exporters
        service = self._resource.attributes.get(SERVICE_NAME)
        self._exporter_names = [exporter.name for exporter in exporters]
        self._anchor: Mapping[str, Any] = {"size": 0}  # the ledger's last note when this process began
        self.journal = self._journal()
        self._registrar = self._new_registrar()
        adoption = Adoption(lambda header: header.get("resource", {}).get(SERVICE_NAME) == service)
        ledger = None if self._registrar is None else self._registrar.ledger
        self._processor = BatchProcessor(
            settings.directory,
            exporters,
            adoption=adoption,
            limits=BatchLimits(settings.batch_count, settings.batch_bytes, settings.backoff_cap_s),
            file_mode=settings.file_mode,
            notices=self.notices,
            metrics=self._metrics,
            retention=None if self._is_shipped else self._retention(adoption, ledger),
            adopter=adopter_of(ledger, settings, self.notices),
            countersign=(lambda: None) if ledger is None else ledger.countersign,
            ledger=None if ledger is None else self._ledger_shipping(),
            on_room=lambda: self.journal.room_made(),
        )
        self._elsewhere = Elsewhere(settings.directory, self.notices)
        self._numbers = TrailNumbers(
            self.journal,
            self._processor,
            self._elsewhere,
            streams=self._streams,
            exporters=self._exporter_names,
            is_shipped=self._is_shipped,
        )
        self._metrics.watch(self)

    def _journal(self) -> Journal:
        settings = self.settings
        if settings.durability is Durability.MEMORY and not self._exporter_names:
            raise ConfigError("durability: expected an exporter beside memory, got none: nobody would have the events")
        if settings.is_directory_in_memory:
            make_private(settings.directory)
        journal = Journal(
            settings.directory,
            describe=self._stream_description,
            limits=_limits(settings),
            durability=settings.durability,
            on_open=self._opened,
            on_close=self._finished,
            on_fork=self._forked,
            on_wake=self._woken,
            ask_for_room=lambda: self._processor.make_room(),
            notices=self.notices,
        )
        say_exposure(settings.directory, self.notices)
        return journal

    def _new_registrar(self) -> Registrar | None:
        """Tells the ledger of the streams of this process; None where none is kept.

        One that was begun goes on whatever the setting says now, or its streams would look as if they were cut.
        """
        settings = self.settings
        if not settings.ledger and not LedgerFiles(settings.directory).segments():
            return None
        ledger = ledger_of(settings, self._description, self.notices)
        if ledger is None:
            return None
        try:
            note = last_note(ledger.files)
        except OSError as error:
            self.notices.say("ledger", f"{settings.directory}: the ledger cannot be read: {error}")
            note = None
        if note is not None:
            self._anchor = anchor_of(note)
        return Registrar(
            ledger,
            describe=self._opening,
            limits=HeadLimits(settings.head_lines, settings.head_seconds),
            is_waited_for=settings.durability is Durability.FSYNC or settings.on_loss is OnLoss.CLOSED,
            end_wait_s=max(END_WAIT_S, settings.close_timeout_s),
            notices=self.notices,
        )

    def _ledger_shipping(self) -> LedgerShipping:
        """Deliver the ledger to whatever keeps it off this host: a copy beside the journal is no anchor for it."""
        names = [name for name in self._exporter_names if name not in _ON_THIS_HOST]
        return LedgerShipping(self.settings.directory, names, file_mode=self.settings.file_mode)

    def _retention(self, adoption: Adoption, ledger: Ledger | None) -> Retention | None:
        return retention_of(self.settings, adoption, self._exporter_names, self.notices, ledger=ledger)

    @property
    def _is_shipped(self) -> bool:
        """Another process delivers."""
        return ExporterName.SHIP in self.settings.export and not self._exporter_names

    def emit(self, event: JsonlEvent) -> None:
        """Put an event into the journal as it is: what redacts and fills in is `AuditLogger`.

        Raises:
            AuditUnavailable: it is not known to be durable; the loss is counted.
        """
        now_ns = time.time_ns()
        fields = pydantic_core.from_json(event.to_jsonl())
        event_id = fields.setdefault("event_id", str(ids.new_id()))
        line = pydantic_core.to_json(fields, inf_nan_mode="null")
        self.journal.append(event_id, line, now_ns, now_ns, is_vital(fields.get("outcome"), self.settings.on_loss))

    def start(self) -> None:
        """Deliver in this process from now on, also what dead processes left, as with the first event or `flush`."""
        self.journal.leave_to_parent()
        self._processor.start()

    def flush(self, timeout_s: float = 5.0) -> FlushReport:
        """Wait until every exporter has what was logged before this call, or until the time in seconds is over."""
        deadline = time.monotonic() + timeout_s
        self.start()
        self.journal.tend()
        seqs = self._seqs(deadline)
        if self._is_shipped:
            report = self._elsewhere.flush(seqs, deadline)
        else:
            report = self._processor.flush(seqs, timeout_s=deadline - time.monotonic())
        waiting = self._not_written()
        return replace(report, complete=False, pending=report.pending + waiting) if waiting else report

    def _seqs(self, deadline: float) -> dict[str, int]:
        """The number of the last line in each stream of this process.

        One that another thread has just opened is waited for: its lines are acknowledged before anybody delivers it.
        """
        while (stream := self.journal.stream) is not None and stream.files.stream_id not in self._streams:
            if (left_s := deadline - time.monotonic()) <= 0:
                break
            time.sleep(min(_POLL_S, left_s))
        return {stream_id: stream.head.seq for stream_id, stream in self._all_streams().items()}

    def _all_streams(self) -> dict[str, StreamWriter]:
        streams, newest = dict(self._streams), self.journal.stream
        return streams if newest is None else {**streams, newest.files.stream_id: newest}

    def _not_written(self) -> int:
        """The events that have no line yet: of a signal handler inside `log()`, where the disk refuses them now.

        Nobody waits while other threads write: whoever writes a line writes what waits before it.
        """
        before, accepted, after = self._events(), self.journal.counts.pending, self._events()
        return max(0, accepted - before) if before == after else 0

    def _events(self) -> int:
        heads = [stream.head for stream in self._all_streams().values()]
        return sum(head.seq - head.system for head in heads)

    def reopen(self) -> None:
        """Go on as a process of its own, after the memory of this one was copied, as by a snapshot that is restored.

        Nothing is written to the stream that was open, nor unlocked: the next line goes into a new one, with a new
        `service.instance.id`, fresh ids and fresh connections. What was not delivered is, as what a dead process left.
        After `close` this opens the trail again. Nobody may log meanwhile.
        """
        begin_anew()
        ids.renew()
        if self.journal.leave_to_parent():
            return
        self._instance_id = str(uuid.uuid4())
        if self._registrar is not None:
            self._registrar.forked()
        had_begun = self._processor.reopen(timeout_s=self.settings.close_timeout_s)
        self.journal.reopen()
        if had_begun:
            self._processor.start()

    def stats(self) -> Stats:
        """The numbers of this process now."""
        self.journal.leave_to_parent()
        return self._numbers.stats()

    def numbers(self) -> CountsByExporter:
        """The numbers of this process now, for each exporter, and how old the ledger's last note is."""
        self.journal.leave_to_parent()
        return replace(self._numbers.numbers(), notes=self._notes())

    def _notes(self) -> Mapping[str, tuple[int, int]]:
        if self._registrar is None or self.is_closed:
            return {}
        try:
            note = last_note(LedgerFiles(self.settings.directory))
        except OSError:  # whoever takes the next turn says why
            return {}
        return {} if note is None else {note.checkpoint.origin: (note.checkpoint.size, note.line.tail.time_ns)}

    @property
    def is_closed(self) -> bool:
        """True from `close` on: what is logged later is left to the next owner."""
        return self._processor.is_closed

    def hold(self, holder: object) -> None:
        """Share this trail, until `give_back` or for as long as the holder lives."""
        self._holders.add(holder)

    def give_back(self, holder: object, timeout_s: float | None = None) -> None:
        """Close the trail if nobody else holds it; else deliver within the same time, and leave it open."""
        self._holders.discard(holder)
        if not self._holders:
            self.close(timeout_s)
        elif self._exporter_names:
            self.flush(self.settings.close_timeout_s if timeout_s is None else timeout_s)

    def close(self, timeout_s: float | None = None) -> None:
        """Deliver within the time in seconds (setting `close_timeout_s`), end the stream and release it.

        What is left is in the journal, and goes out with the next owner. A later event opens a new stream.
        """
        self.journal.close()
        self._processor.close(timeout_s=self.settings.close_timeout_s if timeout_s is None else timeout_s)
        if self._registrar is not None:
            self._registrar.close()
        self._metrics.keep(self)

    def _description(self) -> dict[str, Any]:
        attributes = {**self._resource.attributes, SERVICE_INSTANCE_ID: self._instance_id}
        if os.getpid() != self._pid:  # what was made in the parent names the parent
            attributes |= {name: own for name, own in _process_ids().items() if name in attributes}
        return {
            "resource": attributes,
            "resource_schema_url": self._resource.schema_url or "",
            "scope": {"name": SCOPE_NAME, "version": __version__},
            "export": self._exporter_names or [str(name) for name in self.settings.export],
            **({"policy_hash": self._policy_hash} if self._policy_hash is not None else {}),
            **({"foreign": True} if self._is_foreign else {}),
            "host_id": host_id(),
            "boot_id": boot_id(),
            "pid": os.getpid(),
        }

    def _stream_description(self) -> dict[str, Any]:
        """Return it with the ledger's last note as it was when this process began; later segments name later ones."""
        anchor = {} if self._registrar is None else {"ledger": self._anchor}
        return {**self._description(), **anchor}

    def _opening(self) -> dict[str, Any]:
        """Return what the ledger says of this process when one of its streams is opened."""
        settings = self.settings
        return {
            "service": self._resource.attributes.get(SERVICE_NAME),
            "pid": os.getpid(),
            "host_id": host_id(),
            "boot_id": boot_id(),
            "version": __version__,
            "policy_hash": self._policy_hash,
            "retention_days": settings.retention_days or None,
            "retention_bytes": settings.retention_bytes or None,
            "durability": str(settings.durability),
        }

    def _opened(self, stream: StreamWriter) -> None:
        self._full_seq = self._processor.batch_count
        self.journal.wake_seq = min(_LEAVES_AT_ONCE, self._full_seq)
        try:
            self._processor.ship(stream.files, durable=lambda: stream.durable)
        except Exception as error:  # the event is in the journal, and must not be reported as lost
            self.notices.say("delivery", f"events wait in the journal, delivery cannot begin: {error!r}")
        finally:
            self._streams[stream.files.stream_id] = stream
        if self._registrar is not None:
            self._registrar.follow(stream)

    def _finished(self, stream: StreamWriter) -> bool:
        """The stream has ended, and its writer lock is still held. Return True if the ledger knows."""
        return self._registrar is None or self._registrar.end(stream)

    def _forked(self) -> None:
        self._instance_id = str(uuid.uuid4())
        self._streams.clear()
        self._processor.forked()
        if self._registrar is not None:
            self._registrar.forked()

    def _woken(self) -> None:
        stream = self.journal.stream
        seq = self._full_seq if stream is None else stream.head.seq
        if seq >= self._full_seq:
            self._full_seq = seq + self._processor.batch_count
            self._processor.wake()
        self.journal.wake_seq = min(seq + _LEAVES_AT_ONCE, self._full_seq)
        if self._registrar is not None:
            self._registrar.wake()


def _limits(settings: Settings) -> Limits:
    """The limits of the journal. In memory mode the queue is the directory, in segments that can go piece by piece."""
    segment_bytes, directory_bytes = settings.segment_bytes, settings.directory_bytes
    if settings.durability is Durability.MEMORY:
        segment_bytes = min(segment_bytes, settings.queue_bytes // _SEGMENTS_IN_MEMORY)
        directory_bytes = min(settings.queue_bytes, directory_bytes or settings.queue_bytes)
    return Limits(segment_bytes, settings.segment_age_s, settings.file_mode, directory_bytes, settings.free_bytes)


def is_vital(outcome: object, on_loss: OnLoss) -> bool:
    """Return True if an event is written on a disk that is nearly full too. See `otel_audit.journal.room`."""
    return outcome != "success" or on_loss is _CLOSED


def _process_ids() -> dict[str, int]:
    """What the detector `process` says of this one and no other process."""
    return {PROCESS_PID: os.getpid(), PROCESS_PARENT_PID: os.getppid()}


# After the finalizers of `multiprocessing` itself, which wait for the children of the process.
_LATE = -100

# In a forked child too: to close a trail there that nothing was logged to does no more than to forget it.
_open: weakref.WeakSet[Trail] = weakref.WeakSet()
_is_watched = False


def close_at_end(trail: Trail) -> None:
    """The trail is closed at the normal end of this process, and of each that is forked from it."""
    _open.add(trail)
    _watch_multiprocessing()


def _close_all() -> None:
    for trail in list(_open):
        try:
            trail.close()
        except Exception as error:
            Notices().say("close", f"closing failed: {error!r}")


def _watch_multiprocessing() -> None:
    """Every process that `multiprocessing` starts from here on finalizes its trails, and so does this one.

    Nothing happens where it was not imported: then it has started no process, and did not start this one.
    """
    global _is_watched
    # Not by an import, which could wait for ever in a forked child for the lock of a thread that is not there.
    register_after_fork = getattr(sys.modules.get("multiprocessing.util"), "register_after_fork", None)
    if _is_watched or register_after_fork is None:
        return
    _is_watched = True
    # Called when the process has forgotten the finalizers of its parent, and those made while its module was imported.
    register_after_fork(_open, _finalize)
    _finalize()


def _finalize(_: object = None) -> None:
    process, util = sys.modules["multiprocessing.process"], sys.modules["multiprocessing.util"]
    if process.parent_process() is not None:  # the first process runs exit handlers
        util.Finalize(None, _close_all, exitpriority=_LATE)


atexit.register(_close_all)
os.register_at_fork(after_in_child=_watch_multiprocessing)
