"""Send the quarantined lines of a journal again, once the cause is mended.

This needs no lock. The cursors belong to the process that ships the streams, and what is accepted is written down
beside them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from otel_audit.delivery.otlp.exporter import OtlpExporter
from otel_audit.journal.cursor import Position, Progress, read_cursor
from otel_audit.journal.files import StreamFiles, streams_in
from otel_audit.journal.line import is_system
from otel_audit.journal.quarantine import Quarantined, Released, release
from otel_audit.journal.reader import StreamReader
from otel_audit.replaying.sending import JournalLine, Parcel, Patience, Place, Sending, Trouble
from otel_audit.replaying.source import ParcelLimits

__all__ = ["QuarantineReplay", "QuarantineReport"]


@dataclass(frozen=True, slots=True)
class QuarantineReport:
    """What became of the quarantined lines, those of the journal itself included: `lines = sent + refused + missing`.

    Unless `left` says why it did not come to the end. `missing` lines are not in the journal any more. A place here is
    a stream and the number of the line in it. `streams`: how many have a quarantine.
    """

    streams: int
    lines: int
    sent: int
    missing: int
    refused: Sequence[Trouble]
    left: str

    @property
    def is_complete(self) -> bool:
        """Return True if nothing is in quarantine any more."""
        return not (self.left or self.refused or self.missing)


class QuarantineReplay:
    """One run over the quarantines that this exporter has in a directory."""

    def __init__(
        self,
        directory: Path,
        exporter: OtlpExporter,
        *,
        limits: ParcelLimits | None = None,
        patience: Patience | None = None,
        file_mode: int = 0o600,
    ) -> None:
        self._directory = directory
        self._name = exporter.name
        self._limits = limits or ParcelLimits()
        self._patience = patience or Patience()
        self._file_mode = file_mode
        self._streams = self._lines = self._found = self._sent = 0
        self._refused: list[Trouble] = []
        self._sending = Sending(exporter, self._patience, accepted=self._release, refused=self._refused.append)

    def run(self) -> QuarantineReport:
        """Send every quarantined line again. The report says what was not sent, and why.

        What was accepted and cannot be written down stays in quarantine.
        """
        try:
            left = next((left for files in streams_in(self._directory) if (left := self._replay(files))), "")
            left = left or self._sending.settle()
        except OSError as error:
            left = f"expected files that can be read and written, got {error}"
        missing = 0 if left else self._lines - self._found
        return QuarantineReport(self._streams, self._lines, self._sent, missing, self._refused, left)

    def _replay(self, files: StreamFiles) -> str:
        quarantine = read_cursor(files.cursor)[0].get(self._name, Progress()).quarantine
        if not quarantine:
            return ""
        self._streams += 1
        self._lines += sum(each.last_seq - each.first_seq + 1 for each in quarantine)
        for parcel in _parcels(files, quarantine, self._limits):
            self._found += parcel.records
            if left := self._sending.deliver(parcel):
                return left
        return ""

    def _release(self, parcel: Parcel) -> None:
        lines = [piece for piece in parcel.pieces if isinstance(piece, JournalLine)]
        files = StreamFiles(self._directory, parcel.place.file)
        release(files.cursor, list(_runs(self._name, lines)), mode=self._file_mode)
        self._sent += len(lines)


def _parcels(files: StreamFiles, quarantine: Sequence[Quarantined], limits: ParcelLimits) -> Iterator[Parcel]:
    """Return the quarantined lines of a stream, in their order."""
    ranges = sorted(quarantine, key=lambda each: each.first_seq)
    firsts, last = [each.first_seq for each in ranges], max(each.last_seq for each in ranges)
    reader, position = StreamReader(files), Position()
    try:
        while position.seq < last:
            chunk = reader.read(position, max_lines=limits.records, max_bytes=limits.bytes)
            if chunk.end == position:
                return
            position = chunk.end
            wanted = [
                JournalLine(Place(files.stream_id, line.seq), chunk.header, line.content)
                for line in chunk.lines
                if (index := bisect_right(firsts, line.seq)) and line.seq <= ranges[index - 1].last_seq
            ]
            if wanted:
                yield Parcel(wanted)
    finally:
        reader.close()


def _runs(exporter: str, lines: Sequence[JournalLine]) -> Iterator[Released]:
    """Yield neighbours of one kind as one range."""
    kinds = [(line.place.line, is_system(line.content)) for line in lines]
    first = kinds[0][0]
    for (seq, system), (next_seq, next_system) in pairwise([*kinds, (0, False)]):
        if (next_seq, next_system) != (seq + 1, system):
            yield Released(exporter, first, seq, system)
            first = next_seq
