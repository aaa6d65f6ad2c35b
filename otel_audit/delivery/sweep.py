"""Deliver a directory in one sweep, as `otel-audit ship --once` does.

Every free stream is taken, delivered as far as possible and released, on the caller's thread and without waiting for a
destination that is away. `restart` makes streams pending again. `retention_of`, `ledger_of` and `adopter_of` make the
retention, the ledger and the adopter that the settings ask for, for every caller that delivers a directory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from otel_audit.delivery.destination import Destination
from otel_audit.delivery.outcomes import Exporter
from otel_audit.delivery.stream_export import Blocked, Halved, Idle, Moved, StreamExport
from otel_audit.delivery.worker import BatchLimits
from otel_audit.errors import described
from otel_audit.journal.ages import RetentionLimits
from otel_audit.journal.counts import Counts, Progress
from otel_audit.journal.cursor import Position, is_over, read_cursor
from otel_audit.journal.files import StreamFiles, streams_in
from otel_audit.journal.ledger.adoption import Adopter
from otel_audit.journal.ledger.identity import Identity
from otel_audit.journal.ledger.ledger import Ledger
from otel_audit.journal.ledger.removals import is_kept
from otel_audit.journal.ledger.shipping import LedgerShipping
from otel_audit.journal.locks import FileLock, may_live_elsewhere
from otel_audit.journal.reader import has_lines_after, stream_header
from otel_audit.journal.removal import finish_removal
from otel_audit.journal.retention import Retention
from otel_audit.journal.shipment import Adoption, Shipment, take
from otel_audit.notices import Notices
from otel_audit.settings import Durability, Settings
from otel_audit.settings.proof import default_log_name
from otel_audit.threads import real_sleep

__all__ = ["Left", "Sweep", "SweepReport", "adopter_of", "ledger_of", "restart", "retention_of"]


# Each attempt at a destination that does not answer takes a whole time-out, and nobody waits for a thousand of them.
_BLOCKED_IN_A_ROW = 3
# The third overload in a row halves the batch, since it may be too large.
_TRIES = 3
_PAUSE_S = 0.5
# A stream may look taken just while another process tries its lock.
_LOOKS = 2


class Left(msgspec.Struct, frozen=True):
    """A stream with undelivered lines, and the reason."""

    stream_id: str
    reason: str


class SweepReport(msgspec.Struct):
    """The result of a sweep: the streams that it took, their gains, and the streams that it left."""

    streams: int = 0
    counts: Counts = msgspec.field(default_factory=Counts)
    left: list[Left] = msgspec.field(default_factory=list)


class _Errand(msgspec.Struct):
    shipment: Shipment
    export: StreamExport
    until: Position | None  # the end of a live stream when it was taken
    before: Counts
    accepted_before: int = 0  # by the destination, when the stream came no further
    reason: str = ""


class Sweep:
    """Deliver the present lines of a directory's streams. `stopped` is called before each batch."""

    def __init__(
        self,
        directory: Path,
        exporter: Exporter,
        adoption: Adoption,
        *,
        limits: BatchLimits | None = None,
        file_mode: int = 0o600,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._directory = directory
        self._destination = Destination(exporter)
        self._adoption = adoption
        self._limits = limits or BatchLimits()
        self._file_mode = file_mode
        self._stopped = stopped
        self._known: set[str] = set()
        self._report = SweepReport()
        self._blocked: list[str] = []  # the reasons of the streams in a row of which nothing was accepted

    def run(self) -> SweepReport:
        """Try every free stream, and report those that are not delivered to their end.

        Raises:
            OSError: the directory cannot be listed.
        """
        looks = 0
        while looks < _LOOKS and not self._stopped():
            taken = list(
                self._adoption.take(
                    self._directory, known=self._known, held=0, file_mode=self._file_mode, failed=self._unusable
                )
            )
            looks = 0 if taken else looks + 1
            self._deliver(taken)
        self._find_the_others()
        return self._report

    def deliver_ledger(self, shipping: LedgerShipping) -> None:
        """Deliver the ledgers of the directory, which `run` leaves alone. Call this last, after all entries are made.

        Raises:
            OSError: they cannot be read.
        """
        while not self._stopped() and (shipment := shipping.take()) is not None:
            if shipment.stream_id in self._known:  # the current ledger, or one that makes no more progress
                shipment.release()
                return
            self._deliver([shipment])

    def _deliver(self, taken: Sequence[Shipment]) -> None:
        errands = [self._errand(shipment) for shipment in taken]
        try:
            for errand in errands:
                errand.reason = self._exhausted(errand)
                errand.accepted_before = self._destination.accepted
            for errand in errands:
                self._look_again(errand)
        finally:
            for errand in errands:
                self._end(errand)

    def _errand(self, shipment: Shipment) -> _Errand:
        self._known.add(shipment.files.stream_id)
        export = StreamExport(
            shipment,
            self._destination,
            batch_count=self._limits.count,
            batch_bytes=self._limits.bytes,
            backoff_cap_s=self._limits.backoff_cap_s,
        )
        until = None if shipment.ended else _end_of(shipment.files)
        return _Errand(shipment, export, until, export.progress.counts)

    def _exhausted(self, errand: _Errand) -> str:
        """Send the lines of a stream. Return the reason if it stalls, otherwise an empty text."""
        if len(self._blocked) >= _BLOCKED_IN_A_ROW:
            return f"not tried any more: {self._blocked[-1]}"
        accepted = self._destination.accepted
        reason = self._tried(errand)
        if self._destination.accepted > accepted:
            self._blocked = []
        elif reason:
            self._blocked.append(reason)
        return reason

    def _tried(self, errand: _Errand) -> str:
        export, asked, tries = errand.export, False, 0
        try:
            while not self._stopped():
                if errand.until is not None and export.progress.position >= errand.until:
                    return ""
                step = export.step()
                tries = tries + 1 if isinstance(step, Blocked) else 0
                match step:
                    case Blocked(is_overload=True) if tries < _TRIES:
                        real_sleep(_PAUSE_S)
                    case Blocked(reason=reason):
                        return reason
                    case Idle() if export.blocked and not asked:
                        asked = True  # no further line will settle the refused ones, so a copy must be sent
                        export.retry_now()
                    case Idle():
                        return export.blocked
                    case Halved():
                        export.retry_now()
                    case Moved():
                        continue
        except Exception as error:  # a fault of this stream's files must not stop the other streams
            export.hold(f"{type(error).__name__}: {error}")
            return export.blocked
        return "stopped"

    def _look_again(self, errand: _Errand) -> None:
        """Continue a stream whose refused lines can be settled, since another stream had lines accepted."""
        if errand.export.blocked and self._destination.accepted > errand.accepted_before:
            errand.reason = self._tried(errand)

    def _end(self, errand: _Errand) -> None:
        errand.export.close()
        files, progress = errand.shipment.files, errand.export.progress
        self._report.streams += 1
        self._report.counts += progress.counts - errand.before
        try:
            behind = _is_behind(errand, progress.position)
            if not behind:
                errand.shipment.conclude()
        except OSError as error:
            behind, errand.reason = True, str(error)
        finally:
            errand.shipment.release()
        if behind:
            self._leave(files, errand.reason or "not delivered")

    def _unusable(self, files: StreamFiles, error: Exception) -> None:
        self._known.add(files.stream_id)
        self._leave(files, f"its files cannot be used: {error}")

    def _leave(self, files: StreamFiles, reason: str) -> None:
        self._report.left.append(Left(files.stream_id, reason))

    def _find_the_others(self) -> None:
        """Report the streams that were not taken: of a live writer that delivers, of another host, or not reached."""
        settled = {left.stream_id for left in self._report.left}
        for files in streams_in(self._directory):
            if files.stream_id in settled or is_over(files.cursor) or FileLock.is_held(files.ship_lock):
                continue
            if not self._adoption.foreign and may_live_elsewhere(self._directory, stream_header(files)):
                self._leave_if_behind(files, "written on another host, where its writer may live; see --adopt-foreign")
            elif files.stream_id not in self._known and self._stopped():
                self._leave_if_behind(files, "stopped")

    def _leave_if_behind(self, files: StreamFiles, reason: str) -> None:
        progress, ended = read_cursor(files.cursor, listed=False)
        position = progress.get(self._destination.exporter.name, Progress()).position
        try:
            behind = not ended and has_lines_after(files, position)
        except OSError as error:
            behind, reason = True, str(error)
        if behind:
            self._leave(files, reason)


def restart(directory: Path, exporter: str, adoption: Adoption, *, file_mode: int = 0o600) -> int:
    """Make every free stream pending again for this exporter, from its oldest line.

    The counts restart from those of the lines that retention has removed, so that they still add up. Quarantined lines
    get another chance. Return the number of streams that were left alone because another process delivers them.
    """
    busy = 0
    finish_removal(directory, file_mode=file_mode)
    for files in streams_in(directory):
        header = stream_header(files)
        if not adoption.wanted(header) or (not adoption.foreign and may_live_elsewhere(directory, header)):
            continue
        shipment = take(files, file_mode=file_mode)
        if shipment is None:
            busy += 1
            continue
        shipment.cursor.restart(exporter)
        shipment.release()
    if is_kept(directory) and not LedgerShipping(directory, [exporter], file_mode=file_mode).restart(exporter):
        busy += 1
    return busy


def _is_behind(errand: _Errand, position: Position) -> bool:
    """Return True if lines follow the position. The size is no proof, as a live stream may end in half a line."""
    if errand.until is not None:
        return bool(errand.reason) and position < errand.until
    return has_lines_after(errand.shipment.files, position)


def _end_of(files: StreamFiles) -> Position:
    """Return a position after everything that is in the stream now."""
    last = files.segments()[-1]
    return Position(last, os.stat(files.segment(last)).st_size, 0)


def ledger_of(settings: Settings, describe: Callable[[], Mapping[str, Any]], notices: Notices) -> Ledger | None:
    """Return the ledger that the settings ask for, or None in memory mode, which has none.

    `describe` returns the description of this process for the headers of the ledger's segments.
    """
    if settings.durability is Durability.MEMORY:
        return None
    return Ledger(
        settings.directory,
        settings.log_name or default_log_name(settings.service_name),
        describe,
        identity=Identity(settings.identity_key, settings.sign_command, say=notices.say),
        file_mode=settings.file_mode,
        say=notices.say,
    )


def adopter_of(
    ledger: Ledger | None,
    settings: Settings,
    notices: Notices,
    *,
    foreign: bool = False,
    begins: bool = True,
) -> Adopter | None:
    """Return the adopter, which tells the ledger about streams whose process is gone, or None without a ledger."""
    if ledger is None:
        return None

    def failed(files: StreamFiles, error: Exception) -> None:
        said = f"{files.segment(1)}: the ledger cannot be told of a stream: {described(error)}"
        notices.say(f"adopt {files.stream_id}", said)

    return Adopter(ledger, foreign=foreign, file_mode=settings.file_mode, begins=begins, failed=failed)


def retention_of(
    settings: Settings,
    adoption: Adoption,
    exporters: Iterable[str],
    notices: Notices,
    *,
    ledger: Ledger | None = None,
    begins: bool = True,
    off_host: Collection[str] = (),
) -> Retention | None:
    """Return the retention for streams delivered by these exporters, or None if everything is kept for ever.

    Removals are entered in `ledger` first, if it exists or `begins`. `off_host`: the exporters that deliver the ledger.
    """
    limits = RetentionLimits(settings.retention_days, settings.retention_bytes)
    if settings.durability is Durability.MEMORY:
        limits = RetentionLimits(settings.retention_days, bytes=1)  # remove delivered events at once, to make room
    if limits == RetentionLimits():
        return None

    def failed(files: StreamFiles, error: Exception) -> None:
        notices.say(
            f"retention {files.stream_id}", f"{files.segment(1)}: a stream cannot be looked at for retention: {error!r}"
        )

    return Retention(
        settings.directory,
        limits,
        wanted=adoption.wanted,
        exporters=exporters,
        foreign=adoption.foreign,
        file_mode=settings.file_mode,
        failed=failed,
        ledger=ledger,
        begins=begins,
        keeps_room=settings.durability is not Durability.MEMORY,
        off_host=off_host,
    )
