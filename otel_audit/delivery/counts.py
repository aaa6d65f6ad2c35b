"""Count the events of one process: those in its journal, minus those that each exporter has dealt with.

`emitted = exported + pending + quarantined + dropped` holds at every moment, because the exporters are read first and
events emitted after that count as pending. `Elsewhere` does the same for streams of this process that another process
delivers, such as `otel-audit ship` or the next owner of the directory.
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
    """The progress of other processes, read from the cursors that they write. Any thread."""

    def __init__(self, directory: Path, notices: Notices) -> None:
        self._directory = directory
        self._notices = notices
        self._last_seen: dict[str, Mapping[str, Progress]] = {}

    def progress(self, stream_id: str) -> Mapping[str, Progress]:
        """Return the progress of each exporter of a stream. If retention has removed it, return the last one seen."""
        seen = self._read(stream_id) or self._last_seen.get(stream_id, {})
        self._last_seen[stream_id] = seen
        return seen

    def flush(self, seqs: Mapping[str, int], deadline: float) -> FlushReport:
        """Wait until each stream is delivered up to the given line, or until the deadline."""
        while True:
            # Only positions matter here, so the quarantine, which may be long, is not read.
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
                    self.progress(stream_id)  # remember it, since retention may remove the cursor
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
    """Return, by exporter, why delivery has stalled according to the cursors. It is empty if all is well."""
    reasons = {each.blocked: None for by_exporter in streams for each in by_exporter.values() if each.blocked}
    return {str(ExporterName.SHIP): "; ".join(reasons)} if reasons else {}


_MISSING: Final = "lines missing"  # the drop reason of lines that vanished before an exporter had read them


class TrailNumbers:
    """The numbers of a journal. Any thread.

    `streams` holds the ids of this process's streams, and its owner adds to it and clears it. `exporters` are the names
    of the exporters in this process. Without any, the journal is the destination, unless another process delivers it
    (`is_shipped`).
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
        """Return the numbers over all exporters together."""
        streams = self._progress()
        counted, _ = self._counted({"": sum(map(_shared, streams), Counts())})
        counts = counted[""]
        blocked = blocked_elsewhere(streams) if self._is_shipped else self._processor.blocked()
        return Stats(counts.exported, counts.pending, counts.quarantined, counts.dropped, blocked=blocked)

    def numbers(self) -> CountsByExporter:
        """Return the numbers of each exporter."""
        streams = self._progress()
        if self._is_shipped:  # an event counts once all exporters of the other process have it
            dealt_with = {str(ExporterName.SHIP): sum(map(_shared, streams), Counts())}
            blocked = set(blocked_elsewhere(streams))
        else:
            by_name = {name: [each.get(name, Progress()) for each in streams] for name in self._exporters}
            dealt_with = {name: sum(map(_dealt_with, each), Counts()) for name, each in by_name.items()}
            told = {name for name, each in by_name.items() if any(progress.blocked for progress in each)}
            blocked = {*self._processor.blocked(), *told}  # `told` is of streams that another process ships
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
        """Return the counts by exporter, and the numbers of dropped events by reason.

        `dealt_with` is the known work of each exporter, where `dropped` counts lines that it did not find. A line that
        one of them lacks for good is missing for the others too.
        """
        in_journal, losses = self._journal.counts.pending, self._journal.losses
        if not self._exporters and not self._is_shipped:
            gone = self._journal.gone
            dealt_with = {name: Counts(exported=in_journal - gone, dropped=gone) for name in dealt_with}
        # A line may be delivered before the thread that wrote it has counted it.
        in_journal = max([in_journal, *(each.exported + each.quarantined for each in dealt_with.values())])
        missing = max(min(each.dropped, in_journal - each.exported - each.quarantined) for each in dealt_with.values())
        there, lost = in_journal - missing, sum(losses.values()) + missing
        counts = {}
        for name, each in dealt_with.items():
            exported = min(each.exported, there - each.quarantined)
            counts[name] = Counts(exported, there - exported - each.quarantined, each.quarantined, lost)
        return counts, {**losses, _MISSING: missing} if missing else losses

    def _progress(self) -> list[Mapping[str, Progress]]:
        """Return, for each stream of this process, the progress of each exporter."""
        if not self._exporters and not self._is_shipped:
            return []
        held = self._processor.progress()
        return [held.get(stream_id) or self._delivered_elsewhere(stream_id) for stream_id in list(self._streams)]

    def _delivered_elsewhere(self, stream_id: str) -> Mapping[str, Progress]:
        """Return the progress of this process's exporters in other processes; if it has none, that of all exporters.

        The next owner may have further exporters, which do not belong in the numbers of this process.
        """
        seen = self._elsewhere.progress(stream_id)
        return {name: seen.get(name, Progress()) for name in self._exporters} if self._exporters else seen


def _dealt_with(progress: Progress) -> Counts:
    return Counts(progress.counts.exported, 0, progress.counts.quarantined, progress.missing)


def _shared(by_exporter: Mapping[str, Progress]) -> Counts:
    """Return the counts over all exporters of a stream together, or empty counts if there is none yet."""
    exporters = by_exporter.values()
    return shared_by_all(exporters) + Counts(dropped=furthest_behind(exporters).missing)
