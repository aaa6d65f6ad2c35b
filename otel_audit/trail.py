"""The trail: one journal and its delivery, the sink that `configure()` puts behind a logger.

`exporters_of` makes the exporters that the settings name. When a process ends normally, every open trail is closed, so
that it can deliver its last events. This takes an exit handler and, for the processes that `multiprocessing` forks
itself or through its fork server, a finalizer of `multiprocessing`, since those run no exit handlers.
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

import msgspec
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
from otel_audit.signing.keys import import_signatures
from otel_audit.sinks import AuditSink, JsonlEvent
from otel_audit.threads import begin_anew

__all__ = ["Stats", "Trail", "close_at_end", "exporters_of", "is_vital"]


def exporters_of(settings: Settings) -> list[Exporter]:
    """Return one exporter per destination; none if the journal is the destination or another process delivers.

    Raises:
        ConfigError: an exporter cannot be made.
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
            # Not at the top: `rich` is slow to load, and most services have no console exporter.
            from otel_audit.delivery.console import ConsoleExporter

            return ConsoleExporter()
        case ExporterName.JSONL:
            return JsonlExporter(settings.jsonl_path, mode=settings.file_mode, delay_s=settings.batch_delay_s)
        case ExporterName.NONE | ExporterName.SHIP:
            return None


SCOPE_NAME = "otel_audit"
_POLL_S = 0.05
_SEGMENTS_IN_MEMORY = 32  # the smallest queue gives segments of 32 KiB, of which a header takes 1 to 2 KB
_LEAVES_AT_ONCE = 2048  # half of the leaves kept for the tree: any more are read back, at several times the cost
_ON_THIS_HOST = frozenset({ExporterName.CONSOLE, ExporterName.JSONL})
_CLOSED = OnLoss.CLOSED  # looking up a member of an enum is slow


class Trail(AuditSink):
    """A journal in a directory and the exporters that deliver it. Safe in any thread and after a fork.

    `resource` is the OTel Resource of the writer. By default it is the one that the SDK detects from
    `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_SERVICE_NAME` and resource detectors. `exporters` replaces those of the settings,
    `metrics` those of the process. The segment headers carry `policy_hash` (hex SHA-256), which identifies the policy
    that chose the events. `is_foreign` makes them say that the lines are records of the plain logs API, which a store
    keeps without the journal's line and number.

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
        self._full_seq = 0  # the line that completes the next batch
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
        """Return the registrar, which enters this process's streams in the ledger, or None if there is no ledger.

        An existing ledger is continued whatever the setting says now, or its streams would look as if they were cut.
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
            on_open=lambda: self._processor.ledger_begun(),
            notices=self.notices,
        )

    def _ledger_shipping(self) -> LedgerShipping:
        """Deliver the ledger to the exporters that leave this host. A copy beside the journal cannot anchor it."""
        return LedgerShipping(self.settings.directory, self._off_host, file_mode=self.settings.file_mode)

    @property
    def _off_host(self) -> Sequence[str]:
        return [name for name in self._exporter_names if name not in _ON_THIS_HOST]

    def _retention(self, adoption: Adoption, ledger: Ledger | None) -> Retention | None:
        names = self._exporter_names
        return retention_of(self.settings, adoption, names, self.notices, ledger=ledger, off_host=self._off_host)

    @property
    def _is_shipped(self) -> bool:
        """True if another process delivers."""
        return ExporterName.SHIP in self.settings.export and not self._exporter_names

    def emit(self, event: JsonlEvent) -> None:
        """Write an event to the journal as it is. Completing and redacting it is the task of `AuditLogger`.

        Raises:
            AuditUnavailable: the event may not be durable; the loss is counted.
        """
        import pydantic_core

        now_ns = time.time_ns()
        fields = pydantic_core.from_json(event.to_jsonl())
        event_id = fields.setdefault("event_id", str(ids.new_id()))
        line = pydantic_core.to_json(fields, inf_nan_mode="null")
        self.journal.append(event_id, line, now_ns, now_ns, is_vital(fields.get("outcome"), self.settings.on_loss))

    def start(self) -> None:
        """Start delivery in this process, including events that dead processes left. See `AuditLogger.start`."""
        self.journal.leave_to_parent()
        if self._registrar is not None:
            import_signatures()  # here, where no greenlet can be in the way of the thread that would do it
        self._processor.start()

    def flush(self, timeout_s: float = 5.0) -> FlushReport:
        """Wait until every exporter has all events logged before this call, for at most `timeout_s` seconds."""
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
        """Return the number of the last line in each stream of this process.

        Wait for a stream that another thread has just opened: its lines are acknowledged before delivery knows of it.
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
        """Return how many events have no line yet: a signal handler logged them inside `log()`, and the disk fails.

        While other threads write, the answer is 0, since every write also writes the events that wait.
        """
        before, accepted, after = self._events(), self.journal.counts.pending, self._events()
        return max(0, accepted - before) if before == after else 0

    def _events(self) -> int:
        heads = [stream.head for stream in self._all_streams().values()]
        return sum(head.seq - head.system for head in heads)

    def reopen(self) -> None:
        """Continue as a separate process after this one's memory was copied, as when a snapshot is restored.

        The open stream is neither written to nor unlocked. The next line goes into a new stream, with a new
        `service.instance.id`, fresh ids and fresh connections. Events that were not delivered are treated as those of a
        dead process. After `close`, this opens the trail again. No other thread may log during the call.
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
        """Return the current numbers of this process."""
        self.journal.leave_to_parent()
        return self._numbers.stats()

    def numbers(self) -> CountsByExporter:
        """Return the current numbers of this process by exporter, and the size and time of the ledger's last note."""
        self.journal.leave_to_parent()
        return msgspec.structs.replace(self._numbers.numbers(), notes=self._notes())

    def _notes(self) -> Mapping[str, tuple[int, int]]:
        if self._registrar is None or self.is_closed:
            return {}
        try:
            note = last_note(LedgerFiles(self.settings.directory))
        except OSError:  # the next turn at the ledger reports why
            return {}
        return {} if note is None else {note.checkpoint.origin: (note.checkpoint.size, note.line.tail.time_ns)}

    @property
    def is_closed(self) -> bool:
        """True once `close` was called. The next owner of the directory delivers events that are logged later."""
        return self._processor.is_closed

    def hold(self, holder: object) -> None:
        """Share this trail until `give_back`, or for as long as the holder lives."""
        self._holders.add(holder)

    def give_back(self, holder: object, timeout_s: float | None = None) -> None:
        """Close the trail if nobody else holds it. Otherwise deliver within the same time, and leave it open."""
        self._holders.discard(holder)
        if not self._holders:
            self.close(timeout_s)
        elif self._exporter_names:
            self.flush(self.settings.close_timeout_s if timeout_s is None else timeout_s)

    def close(self, timeout_s: float | None = None) -> None:
        """End the stream and deliver, for at most `timeout_s` seconds (by default `close_timeout_s`), then release it.

        Waiting for the ledger counts, and may take 4 s of a shorter time. Undelivered events stay in the journal, and
        its next owner delivers them. A later event opens a new stream.
        """
        timeout_s = self.settings.close_timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        if self._registrar is not None:
            self._registrar.end_wait_s = max(END_WAIT_S, timeout_s)
        self.journal.close()
        self._processor.close(timeout_s=max(0.0, deadline - time.monotonic()))
        if self._registrar is not None:
            self._registrar.close()
        self._metrics.keep(self)

    def _description(self) -> dict[str, Any]:
        attributes = {**self._resource.attributes, SERVICE_INSTANCE_ID: self._instance_id}
        if os.getpid() != self._pid:  # the resource was made in the parent, and names it
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
        """Return `_description` and the ledger's last note when this process began. Later segments name later notes."""
        anchor = {} if self._registrar is None else {"ledger": self._anchor}
        return {**self._description(), **anchor}

    def _opening(self) -> dict[str, Any]:
        """Return the facts about this process that the ledger records when it opens a stream."""
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
        """Tell the ledger that the stream has ended, and return True if it took note. The writer lock is still held."""
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
    """Return the journal's limits. In memory mode the directory is the queue, freed one small segment at a time."""
    segment_bytes, directory_bytes = settings.segment_bytes, settings.directory_bytes
    if settings.durability is Durability.MEMORY:
        segment_bytes = min(segment_bytes, settings.queue_bytes // _SEGMENTS_IN_MEMORY)
        directory_bytes = min(settings.queue_bytes, directory_bytes or settings.queue_bytes)
    return Limits(segment_bytes, settings.segment_age_s, settings.file_mode, directory_bytes, settings.free_bytes)


def is_vital(outcome: object, on_loss: OnLoss) -> bool:
    """Return True if an event is written even on a nearly full disk. See `otel_audit.journal.room`."""
    return outcome != "success" or on_loss is _CLOSED


def _process_ids() -> dict[str, int]:
    """Return the attributes of the resource detector `process` that differ from one process to the next."""
    return {PROCESS_PID: os.getpid(), PROCESS_PARENT_PID: os.getppid()}


# After the finalizers of `multiprocessing` itself, which wait for the children of the process.
_LATE = -100

# A forked child keeps this set: closing a trail that the child never logged to only forgets it.
_open: weakref.WeakSet[Trail] = weakref.WeakSet()
_is_watched = False


def close_at_end(trail: Trail) -> None:
    """Close the trail at the normal end of this process and of every process forked from it."""
    _open.add(trail)
    _watch_multiprocessing()


def _close_all() -> None:
    for trail in list(_open):
        try:
            trail.close()
        except Exception as error:
            Notices().say("close", f"closing failed: {error!r}")


def _watch_multiprocessing() -> None:
    """Register a finalizer that closes all trails, for this process and every one that `multiprocessing` will start.

    If `multiprocessing` was not imported, it neither started this process nor any other, and there is nothing to do.
    """
    global _is_watched
    # No import statement: in a forked child it could wait for ever for a lock of a thread that only the parent has.
    register_after_fork = getattr(sys.modules.get("multiprocessing.util"), "register_after_fork", None)
    if _is_watched or register_after_fork is None:
        return
    _is_watched = True
    # `multiprocessing` calls this after a new process has dropped the finalizers that it inherited or made on import.
    register_after_fork(_open, _finalize)
    _finalize()


def _finalize(_: object = None) -> None:
    process, util = sys.modules["multiprocessing.process"], sys.modules["multiprocessing.util"]
    if process.parent_process() is not None:  # the first process runs exit handlers
        util.Finalize(None, _close_all, exitpriority=_LATE)


atexit.register(_close_all)
os.register_at_fork(after_in_child=_watch_multiprocessing)
