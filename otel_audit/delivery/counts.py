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
from typing import Final

from otel_audit.delivery.processor import BatchProcessor, FlushReport
from otel_audit.journal.counts import Counts, CountsByExporter, Progress, Stats, furthest_behind, shared_by_all
from otel_audit.journal.cursor import read_cursor
from otel_audit.journal.files import StreamFiles
from otel_audit.journal.journal import Journal
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
        counted, _ = self._counted({"": sum(map(_shared, streams), Counts())})
        counts = counted[""]
        blocked = blocked_elsewhere(streams) if self._is_shipped else self._processor.blocked()
        return Stats(counts.exported, counts.pending, counts.quarantined, counts.dropped, blocked=blocked)

    def numbers(self) -> CountsByExporter:
        """What each exporter has."""
        streams = self._progress()
        if self._is_shipped:  # counts once all of its exporters have it
            dealt_with = {str(ExporterName.SHIP): sum(map(_shared, streams), Counts())}
            blocked = set(blocked_elsewhere(streams))
        else:
            by_name = {name: [each.get(name, Progress()) for each in streams] for name in self._exporters}
            dealt_with = {name: sum(map(_dealt_with, each), Counts()) for name, each in by_name.items()}
            told = {name for name, each in by_name.items() if any(progress.blocked for progress in each)}
            blocked = {*self._processor.blocked(), *told}  # another process tells it of what it ships
        exporters, dropped = self._counted(dealt_with or {str(ExporterName.NONE): Counts()})
        return CountsByExporter(
            next(iter(exporters.values())).emitted,
            dropped,
            exporters,
            self._processor.warnings(),
            blocked,
            self._journal.space.is_low,
        )

    def _counted(self, dealt_with: Mapping[str, Counts]) -> tuple[dict[str, Counts], Mapping[str, int]]:
        """What became of the events by exporter, and by reason how many were dropped.

        `dealt_with`: what each is known to have done; `dropped` there are the lines that it did not find. What one of
        them lacks for good is missing for the others too.
        """
        in_journal, losses = self._journal.counts.pending, self._journal.losses
        if not self._exporters and not self._is_shipped:
            gone = self._journal.gone
            dealt_with = {name: Counts(exported=in_journal - gone, dropped=gone) for name in dealt_with}
        # A line may be delivered before the thread that wrote it comes to count it.
        in_journal = max([in_journal, *(each.exported + each.quarantined for each in dealt_with.values())])
        missing = max(min(each.dropped, in_journal - each.exported - each.quarantined) for each in dealt_with.values())
        there, lost = in_journal - missing, sum(losses.values()) + missing
        counts = {}
        for name, each in dealt_with.items():
            exported = min(each.exported, there - each.quarantined)
            counts[name] = Counts(exported, there - exported - each.quarantined, each.quarantined, lost)
        return counts, {**losses, _MISSING: missing} if missing else losses

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


def _dealt_with(progress: Progress) -> Counts:
    return Counts(progress.counts.exported, 0, progress.counts.quarantined, progress.missing)


def _shared(by_exporter: Mapping[str, Progress]) -> Counts:
    """The same for all exporters of a stream together, if there is any yet."""
    exporters = by_exporter.values()
    return shared_by_all(exporters) + Counts(dropped=furthest_behind(exporters).missing)
