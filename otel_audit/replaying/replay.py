"""The two runs of `otel-audit replay`: send the records of a source, or the quarantined lines of a journal again.

`Replay` keeps its progress in a small file that survives a kill, and the same command goes on from there. A record is
skipped if it was refused twice alone and another one was accepted in between, so an endpoint that refuses everything
costs no record.

`QuarantineReplay` needs no file and no lock. The cursors belong to the process that ships the streams, and accepted
lines are recorded beside them.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Self

from otel_audit.delivery.otlp.exporter import OtlpExporter
from otel_audit.journal.cursor import Position, Progress, read_cursor
from otel_audit.journal.files import StreamFiles, replace_file, streams_in
from otel_audit.journal.line import is_system
from otel_audit.journal.quarantine import Quarantined, Released, release
from otel_audit.journal.reader import StreamReader
from otel_audit.replaying.sending import JournalLine, Parcel, Patience, Place, RequestSender, Sending, Trouble
from otel_audit.replaying.source import ParcelLimits, Portion, ReplaySource
from otel_audit.stores.lines import Mark

__all__ = ["QuarantineReplay", "QuarantineReport", "Replay", "ReplayReport", "ReplayState", "Tally", "state_path"]


_FORMAT: Final = 1
_TROUBLES_KEPT: Final = 1000


@dataclass(frozen=True, slots=True)
class Tally:
    """The results for the records so far, over all runs: `read = sent + refused`.

    `unreadable` counts pieces of lines. The first thousand of each kind of trouble are listed.
    """

    read: int = 0
    sent: int = 0
    refused: int = 0
    unreadable: int = 0
    refused_lines: tuple[Trouble, ...] = ()
    unreadable_lines: tuple[Trouble, ...] = ()

    def with_sent(self, records: int) -> Tally:
        """Return the tally with more records that were accepted."""
        return replace(self, read=self.read + records, sent=self.sent + records)

    def with_refused(self, troubles: Sequence[Trouble]) -> Tally:
        """Return the tally with more records that were refused, one for each trouble."""
        return replace(
            self,
            read=self.read + len(troubles),
            refused=self.refused + len(troubles),
            refused_lines=(*self.refused_lines, *troubles)[:_TROUBLES_KEPT],
        )

    def with_unreadable(self, troubles: Sequence[Trouble]) -> Tally:
        """Return the tally with more pieces that are not records."""
        return replace(
            self,
            unreadable=self.unreadable + len(troubles),
            unreadable_lines=(*self.unreadable_lines, *troubles)[:_TROUBLES_KEPT],
        )


def state_path(directory: Path, source: str, endpoint: str) -> Path:
    """Return the file for a source and an endpoint, since the same records may be sent to another place as well."""
    digest = sha256(f"{source}\n{endpoint}".encode()).hexdigest()[:32]
    return directory / f"replay-{digest}.json"


@dataclass(slots=True)
class ReplayState:
    """The marks of the files that were begun, and the tally up to there. The directory of `path` exists.

    `note` says why an existing state is not used.
    """

    path: Path
    marks: dict[str, Mark] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    note: str = ""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return the state that an earlier run kept, or a new one.

        Raises:
            OSError: the file exists and cannot be read.
        """
        try:
            stored = path.read_bytes()
        except FileNotFoundError:
            return cls(path)
        try:
            return cls(path, *_read(json.loads(stored)))
        except (ValueError, KeyError, TypeError, AttributeError):
            return cls(path, note=f"{path}: expected the state of a replay, got something else; sending all of it")

    def keep(self, marks: Mapping[str, Mark], tally: Tally) -> None:
        """Record that everything before these marks, by file, is dealt with. It is in the file when this returns.

        Raises:
            OSError: it is not, and the next run begins further back.
        """
        self.marks, self.tally = {**self.marks, **marks}, tally
        replace_file(self.path, json.dumps(self._stored(), separators=(",", ":")).encode(), mode=0o600)

    def _stored(self) -> Mapping[str, Any]:
        tally = self.tally
        return {
            "format": _FORMAT,
            "marks": self.marks,
            "read": tally.read,
            "sent": tally.sent,
            "refused": tally.refused,
            "unreadable": tally.unreadable,
            "refused_lines": tally.refused_lines,
            "unreadable_lines": tally.unreadable_lines,
        }


def _read(stored: Mapping[str, Any]) -> tuple[dict[str, Mark], Tally]:
    if stored["format"] != _FORMAT:
        raise ValueError("another format")
    marks = {
        file_id: Mark(int(offset), int(line), str(before))
        for file_id, (offset, line, before) in stored["marks"].items()
    }
    return marks, Tally(
        int(stored["read"]),
        int(stored["sent"]),
        int(stored["refused"]),
        int(stored["unreadable"]),
        _troubles(stored["refused_lines"]),
        _troubles(stored["unreadable_lines"]),
    )


def _troubles(stored: Sequence[Any]) -> tuple[Trouble, ...]:
    return tuple(Trouble(Place(str(file), int(line)), str(reason)) for (file, line), reason in stored)


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """The state at the end. `left` says why the run did not come to the end of the source, and is empty if it did."""

    tally: Tally
    left: str

    @property
    def is_complete(self) -> bool:
        """Return True if every record of the source was accepted."""
        return not (self.left or self.tally.refused or self.tally.unreadable)


class Replay:
    """One run over a source, from where the state says. `moved` is called with the number of bytes that were passed."""

    def __init__(
        self,
        source: ReplaySource,
        sender: RequestSender,
        state: ReplayState,
        *,
        limits: ParcelLimits | None = None,
        patience: Patience | None = None,
        moved: Callable[[int], None] = lambda size_bytes: None,
    ) -> None:
        self._source = source
        self._state = state
        self._limits = limits or ParcelLimits()
        self._patience = patience or Patience()
        self._moved = moved
        self._sending = Sending(sender, self._patience, accepted=self._count_sent, refused=self._count_refused)
        self._tally = state.tally
        self._passed: dict[str, Mark] = {}  # not stored yet

    def run(self) -> ReplayReport:
        """Send everything. The report says what was not sent, and why.

        Raises:
            OSError: a file cannot be read, or the state cannot be stored.
        """
        unfinished: list[Trouble] = []
        for portion in self._source.portions(dict(self._state.marks), self._limits):
            left = "stopped" if self._patience.stopped() else self._deliver(portion)
            if left:
                return ReplayReport(self._state.tally, left)
            self._passed[portion.file_id] = portion.mark
            self._keep()
            self._moved(portion.size_bytes)
            unfinished += [portion.unfinished] if portion.unfinished else []
        left = self._sending.settle()
        self._keep()
        return ReplayReport(self._state.tally.with_unreadable(unfinished), left)

    def _keep(self) -> None:
        if self._passed and self._sending.is_settled:
            self._state.keep(self._passed, self._tally)
            self._passed = {}

    def _deliver(self, portion: Portion) -> str:
        """Send a portion.

        Return why the replay stops, or an empty text if each record was accepted or refused alone.
        """
        self._tally = self._tally.with_unreadable(portion.unreadable)
        return self._sending.deliver(portion.parcel) if portion.parcel else ""

    def _count_sent(self, part: Parcel) -> None:
        self._tally = self._tally.with_sent(part.records)

    def _count_refused(self, trouble: Trouble) -> None:
        self._tally = self._tally.with_refused([trouble])


@dataclass(frozen=True, slots=True)
class QuarantineReport:
    """The results for the quarantined lines, including the journal's own: `lines = sent + refused + missing`.

    That does not hold if `left` says why the run did not come to the end. `missing` lines are no longer in the journal.
    A place here is a stream and the number of the line in it. `streams` is how many have a quarantine.
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

        An accepted line stays in quarantine if that cannot be recorded.
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
    """Yield neighbouring lines of one kind as one range."""
    kinds = [(line.place.line, is_system(line.content)) for line in lines]
    first = kinds[0][0]
    for (seq, system), (next_seq, next_system) in pairwise([*kinds, (0, False)]):
        if (next_seq, next_system) != (seq + 1, system):
            yield Released(exporter, first, seq, system)
            first = next_seq
