"""Count what became of the events of one process: what its journal has, less what each exporter has dealt with.

`emitted = exported + pending + quarantined + dropped` holds at every moment, because the exporters are looked at first:
what was emitted since then is pending. `Elsewhere` does the same for streams of this process that another one delivers,
such as `otel-audit ship` or the next owner of the directory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from otel_audit.delivery.metrics import ExporterNumbers, Numbers, Stats
from otel_audit.delivery.processor import BatchProcessor, FlushReport
from otel_audit.journal.cursor import Progress, read_cursor
from otel_audit.journal.files import StreamFiles
from otel_audit.journal.journal import Journal, Written
from otel_audit.journal.quarantine import Quarantined
from otel_audit.notices import Notices
from otel_audit.settings import ExporterName

__all__ = ["Elsewhere", "TrailNumbers", "blocked_elsewhere"]


_POLL_S = 0.05


class Elsewhere:
    """How far another process has come, by the cursors that it writes. Any thread."""

    def __init__(self, directory: Path, notices: Notices) -> None:
        self._directory = directory
        self._notices = notices
        self._last_seen: dict[str, Mapping[str, Progress]] = {}

    def progress(self, stream_id: str) -> Mapping[str, Progress]:
        """By exporter, how far the stream was delivered: as last seen, if retention has removed it since."""
        seen = self._read(stream_id) or self._last_seen.get(stream_id, {})
        self._last_seen[stream_id] = seen
        return seen

    def flush(self, seqs: Mapping[str, int], deadline: float) -> FlushReport:
        """Wait until each stream is delivered up to the given line, or until the deadline."""
        while True:
            # Only positions are asked for here: the list of what is in quarantine may be long, and is left unread.
            seen = {
                stream_id: self._read(stream_id, listed=False) or self._last_seen.get(stream_id, {})
                for stream_id in seqs
            }
            pending = sum(
                max(0, seq - min((each.position.seq for each in seen[stream_id].values()), default=0))
                for stream_id, seq in seqs.items()
            )
            left_s = deadline - time.monotonic()
            if not pending or left_s <= 0:
                for stream_id in seqs:
                    self.progress(stream_id)  # retention may remove it before somebody asks for its numbers
                return FlushReport(not pending, pending, blocked_elsewhere(seen.values()))
            time.sleep(min(_POLL_S, left_s))

    def _read(self, stream_id: str, *, listed: bool = True) -> Mapping[str, Progress]:
        cursor = StreamFiles(self._directory, stream_id).cursor
        try:
            return read_cursor(cursor, listed=listed)[0]
        except OSError as error:
            self._notices.say(
                "cursor",
                f"{cursor}: expected a file that this process (uid {os.geteuid()}) can read, got {error.strerror}; "
                "what it says is delivered counts as pending: give otel-audit ship this service's "
                "OTEL_AUDIT_FILE_MODE and group",
            )
            return {}


def blocked_elsewhere(streams: Iterable[Mapping[str, Progress]]) -> dict[str, str]:
    """Why nothing moves there, as the cursors say; empty when all is well."""
    reasons = {each.blocked: None for by_exporter in streams for each in by_exporter.values() if each.blocked}
    return {str(ExporterName.SHIP): "; ".join(reasons)} if reasons else {}


_MISSING: Final = "lines missing"  # a reason to be dropped: gone from the journal before an exporter had read them


class TrailNumbers:
    """The numbers of a journal. Any thread.

    `streams`: the ids of those of this process, added to and cleared by its owner. `exporters`: the names of those that
    deliver here; without any, the journal is the destination, unless it `is_shipped` by another process.
    """

    def __init__(
        self,
        journal: Journal,
        processor: BatchProcessor,
        elsewhere: Elsewhere,
        *,
        streams: Collection[str],
        exporters: Sequence[str],
        is_shipped: bool,
    ) -> None:
        self._journal = journal
        self._processor = processor
        self._elsewhere = elsewhere
        self._streams = streams
        self._exporters = exporters
        self._is_shipped = is_shipped

    def stats(self) -> Stats:
        """What all exporters together have."""
        streams = self._progress()
        written = self._journal.written
        if not self._exporters and not self._is_shipped:
            lost = written.dropped + written.gone
            return Stats(written.emitted, written.emitted - lost, 0, 0, lost)
        shares = [_shared_by_all(by_exporter.values()) for by_exporter in streams if by_exporter]
        exported = sum(share.exported for share in shares)
        quarantined = sum(share.quarantined for share in shares)
        in_journal = _at_least(exported + quarantined, written)
        missing = min(sum(share.missing for share in shares), in_journal - exported - quarantined)
        return Stats(
            emitted=in_journal + written.dropped,
            exported=exported,
            pending=in_journal - exported - quarantined - missing,
            quarantined=quarantined,
            dropped=written.dropped + missing,
            blocked=blocked_elsewhere(streams) if self._is_shipped else self._processor.blocked(),
        )

    def numbers(self) -> Numbers:
        """What each exporter has."""
        by_exporter = self._by_exporter(self._progress())
        warnings, blocked = self._processor.warnings(), self._processor.blocked()
        written = self._journal.written
        dealt_with = [sum(each.exported + each.quarantined for each in streams) for streams in by_exporter.values()]
        in_journal = _at_least(max(dealt_with, default=0), written)
        is_low = self._journal.space.is_low
        if not by_exporter:
            exporters = {str(ExporterName.NONE): ExporterNumbers(exported=in_journal - written.gone)}
            return Numbers(in_journal + written.dropped, _dropped(written, written.gone), exporters, is_low)
        missing = max(
            min(sum(each.missing for each in streams), in_journal - done)
            for streams, done in zip(by_exporter.values(), dealt_with, strict=True)
        )
        exporters = {
            name: _numbers(streams, in_journal - missing, warnings.get(name, 0), name in blocked)
            for name, streams in by_exporter.items()
        }
        return Numbers(in_journal + written.dropped, _dropped(written, missing), exporters, is_low)

    def _progress(self) -> list[Mapping[str, Progress]]:
        """For each stream of this process, how far each exporter has come."""
        if not self._exporters and not self._is_shipped:
            return []
        held = self._processor.progress()
        return [held.get(stream_id) or self._delivered_elsewhere(stream_id) for stream_id in list(self._streams)]

    def _delivered_elsewhere(self, stream_id: str) -> Mapping[str, Progress]:
        """Of the exporters of this process, if it has any: the next owner's others are not what its numbers are of."""
        seen = self._elsewhere.progress(stream_id)
        return {name: seen.get(name, Progress()) for name in self._exporters} if self._exporters else seen

    def _by_exporter(self, streams: Sequence[Mapping[str, Progress]]) -> dict[str, list[Progress]]:
        """For each exporter, how far it has come in each stream. What is shipped counts once all have it."""
        if self._is_shipped:
            behind = [min(each.values(), key=lambda one: one.rank) for each in streams if each]
            return {str(ExporterName.SHIP): behind}
        return {name: [each.get(name, Progress()) for each in streams] for name in self._exporters}


def _at_least(dealt_with: int, written: Written) -> int:
    """The events in the journal. A line may be delivered before the thread that wrote it comes to count it."""
    return max(dealt_with, written.emitted - written.dropped)


def _dropped(written: Written, missing: int) -> Mapping[str, int]:
    return {**written.by_reason, _MISSING: missing} if missing else written.by_reason


def _numbers(streams: Sequence[Progress], there: int, warnings: int, is_blocked: bool) -> ExporterNumbers:
    """`there`: the events that are not missing. What another exporter lacks for good is missing for this one too."""
    quarantined = sum(each.quarantined for each in streams)
    exported = min(sum(each.exported for each in streams), there - quarantined)
    blocked = is_blocked or any(each.blocked for each in streams)  # as another process says that ships the streams
    return ExporterNumbers(exported, there - exported - quarantined, quarantined, warnings, blocked)


class _Share(NamedTuple):
    exported: int
    quarantined: int
    missing: int


def _shared_by_all(progress: Collection[Progress]) -> _Share:
    """How many events of a stream every exporter has, how many one of them set aside, and how many one of them lacks.

    As far as the last one has come. What another one set aside or lacks is not what every exporter has.
    """
    behind = min(progress, key=lambda one: one.rank)
    seq = behind.position.seq
    by_any = _lines_in([entry for one in progress for entry in one.quarantine], seq)
    by_others = min(by_any - _lines_in(behind.quarantine, seq), sum(one.quarantined for one in progress))
    lacked = behind.lacked_by(progress)
    return _Share(behind.exported - by_others - lacked, behind.quarantined + by_others, behind.missing + lacked)


def _lines_in(ranges: Iterable[Quarantined], last_seq: int) -> int:
    """How many lines up to `last_seq` the ranges have together."""
    lines = done = 0
    for first, last in sorted((each.first_seq, min(each.last_seq, last_seq)) for each in ranges):
        lines += max(0, last - max(first, done + 1) + 1)
        done = max(done, last)
    return lines
