"""Read a journal directory for the checks: its ledgers up to their last note, and its streams.

Nothing is locked for long, and nothing is written. The directory may be in use: lines are appended, and segments begin
and are removed while it is read. Questions that this leaves open are settled by reading the ledger again afterwards.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from otel_audit.errors import JournalUnreadable, NoteMalformed, ProofInvalid, SignatureInvalid
from otel_audit.journal.files import StreamFiles, segments_in
from otel_audit.journal.ledger.entries import SignedNote, statement
from otel_audit.journal.ledger.epochs import EpochKeys
from otel_audit.journal.ledger.files import LedgerFiles, LedgerLog
from otel_audit.journal.line import Line, Position
from otel_audit.journal.line_file import blocks, hash_between, opened
from otel_audit.journal.locks import FileLock
from otel_audit.journal.reader import segment_lines
from otel_audit.signing.keys import VerifierKey
from otel_audit.verification.anchors import Anchor, AnchorWalk, Bridge
from otel_audit.verification.chain import Chain, DamagedBytes, named_damage
from otel_audit.verification.claims import Claims, StreamClaims
from otel_audit.verification.findings import Findings
from otel_audit.verification.judging import judge_headers
from otel_audit.verification.ledger import LedgerCheck
from otel_audit.verification.pins import Pins

__all__ = ["LedgerReading", "StreamReading", "bytes_of", "heads_of", "is_alive", "read_ledgers", "read_stream"]


_ROUNDS: Final = 8  # of reading a ledger whose oldest segments are removed in the meantime


def read_ledgers(directory: Path, pins: Pins, claims: Callable[[], Claims]) -> LedgerReading:
    """Read all ledgers of a directory. `claims` makes new claims each time reading starts over, if segments vanish.

    Raises:
        OSError: a ledger cannot be read.
    """
    left = _ROUNDS
    while True:
        reading = LedgerReading(directory, claims(), pins)
        try:
            reading.read()
            return reading
        except FileNotFoundError:
            left -= 1
            if not left:
                raise


class LedgerReading:
    """Reads all ledgers of a directory. Each further call continues where the last one stopped.

    Only lines that a note covers are used, since later ones may be cut off and written again.
    """

    def __init__(self, directory: Path, claims: Claims, pins: Pins) -> None:
        self.checks: list[LedgerCheck] = []
        self._files = LedgerFiles(directory)
        self.claims = claims
        self._pins = pins
        self._places: dict[str, Position] = {}
        self.unfinished: list[Line] = []

    def read(self) -> bool:
        """Read the new lines. Return True if there were any.

        Raises:
            FileNotFoundError: retention has removed segments after the first ones that were read.
            OSError: the ledger cannot be read.
        """
        is_new = False
        for log in self._files.logs():
            check = self._check_of(log)
            is_new = self._read_log(log, check) or is_new
        return is_new

    def _check_of(self, log: LedgerLog) -> LedgerCheck:
        for check in self.checks:
            if check.ledger_id == log.stream_id:
                return check
        formers = {check.report.origin: check for check in self.checks}
        check = LedgerCheck(
            log.stream_id,
            self.claims,
            self._pins,
            formers=formers,
            follows=bool(self.checks),
            keys=partial(_keys_before, log),
        )
        self.checks.append(check)
        return check

    def _read_log(self, log: LedgerLog, check: LedgerCheck) -> bool:
        place = self._places.get(log.stream_id, Position())
        turn: list[Line] = []
        is_new = False
        for number in log.segments():
            if number < place.segment:
                continue
            if turn and turn[-1].segment != number:
                turn = self._abandoned(log, check, turn, number)
            try:
                for each in segment_lines(log, number, place if number == place.segment else None):
                    if not isinstance(each, Line):
                        check.take_damage(each.segment, each.offset, each.length)
                        continue
                    turn.append(each)
                    if isinstance(statement(each), SignedNote):
                        for line in turn:
                            check.take(line)
                        turn, is_new = [], True
                        place = self._places[log.stream_id] = each.end
            except FileNotFoundError:  # removed since it was listed
                if check.chain.seq:
                    raise
        self.unfinished = turn
        return is_new

    def _abandoned(self, log: LedgerLog, check: LedgerCheck, turn: list[Line], number: int) -> list[Line]:
        """Leave out lines without a note that the next segment does not continue, since their sync failed."""
        first = next((each for each in segment_lines(log, number) if isinstance(each, Line)), None)
        if first is None or first.tail.prev_hash == turn[-1].hash:
            return turn
        check.findings.broken(
            "entry",
            turn[0].seq,
            f"ledger lines {turn[0].seq} to {turn[-1].seq} have no note and are not the last turn",
        )
        return []


def _keys_before(log: LedgerLog, seq: int) -> Mapping[int, VerifierKey]:
    """Return the keys in the archive that a ledger announced before the line with this number.

    Each must be announced under a note that the previous key has signed.
    """
    found: dict[int, VerifierKey] = {}
    with contextlib.suppress(JournalUnreadable, NoteMalformed, ProofInvalid, SignatureInvalid):
        for record in EpochKeys.read(log.directory):
            if not record.origin.endswith(f"/{log.stream_id}"):
                continue
            if record.announced().line.seq >= seq or record.number != len(found) + 1:
                break
            record.note.verified([found.get(record.number - 1, record.vkey)])
            found[record.number] = record.vkey
    return found


@dataclass(slots=True)
class StreamReading:
    """The result of reading one stream. `torn_bytes` follow its last newline, and may be a line in the making."""

    findings: Findings
    chain: Chain
    walk: AnchorWalk
    torn_bytes: int = 0
    files: int = 0
    changed_ns: int = 0


def bytes_of(directory: Path) -> int:
    """Return the present size of the segments of all streams, in bytes."""
    size = 0
    for stream_id, numbers in segments_in(directory).items():
        for number in numbers:
            with contextlib.suppress(OSError):  # removed in this moment
                size += StreamFiles(directory, stream_id).segment(number).stat().st_size
    return size


def is_alive(files: StreamFiles) -> bool | None:
    """Return True if the writer of a stream is alive, or None if that cannot be determined."""
    try:
        return FileLock.is_held(files.writer_lock)
    except OSError:
        return None


def read_stream(
    files: StreamFiles,
    claims: StreamClaims | None,
    passed: Callable[[int], None],
    *,
    anchors: Sequence[Anchor] | None = None,
    unsigned: Sequence[Bridge] = (),
) -> StreamReading:
    """Read one stream from its first line to its last, and compare it with the claims of the ledger.

    `anchors` holds all of its heads if the last one is not enough. `unsigned` are lines whose removal is not in a
    signed ledger. `passed` is called with the number of bytes read.

    Raises:
        OSError: a file cannot be read.
    """
    if anchors is None:
        anchors = [claims.last] if claims is not None and claims.last is not None else []
    findings = Findings(files.stream_id)
    bridges = [*(claims.bridges if claims is not None else ()), *unsigned]
    begin = 1
    if claims is not None and claims.start is not None and (found := _segment_behind(files, claims.start)) is not None:
        begin = found
        bridges.append(Bridge(1, claims.start.size, None, claims.start.hash, claims.start.nodes))
    walk = AnchorWalk(anchors, bridges, findings)
    reading = StreamReading(findings, Chain(files.stream_id, walk, findings), walk)
    number = files.segment_from(begin)
    while number is not None:
        try:
            is_last = not _read_segment(files, number, reading, passed)
        except FileNotFoundError:
            is_last = False  # removed just now; the ledger explains the missing lines
        # A segment that began after the last look is not read, since this one may have got more lines before that.
        number = None if is_last else files.segment_from(number + 1)
    reading.chain.end()
    judge_headers(reading.chain, findings)
    _judge_damage(files, reading)
    return reading


def _segment_behind(files: StreamFiles, start: Anchor) -> int | None:
    """Return the segment that begins with the line after a head, or None if there is none."""
    for number in reversed(files.segments()):
        with contextlib.suppress(FileNotFoundError):
            first = next((each for each in segment_lines(files, number) if isinstance(each, Line)), None)
            if first is not None and first.seq <= start.size + 1:
                return number if first.seq == start.size + 1 else None
    return None


def _read_segment(files: StreamFiles, number: int, reading: StreamReading, passed: Callable[[int], None]) -> bool:
    """Read the present lines of a segment. Return True if a later segment began before the last of them was read."""
    with opened(files.segment(number)) as descriptor:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(None, "expected a file", str(files.segment(number)))
        reading.files += 1
        reading.changed_ns = max(reading.changed_ns, status.st_mtime_ns)
        offset = 0
        while True:
            begun = files.segment_from(number + 1) is not None
            for block in blocks(descriptor, offset):
                if block.data:
                    reading.chain.feed(block.data, number, block.offset)
                else:
                    reading.chain.take_damage(number, block.offset, block.end - 1 - block.offset)
                passed(block.end - offset)
                offset = block.end
            # A segment is complete only if a later one existed before it was read.
            if begun or files.segment_from(number + 1) is None:
                break
        reading.torn_bytes = os.fstat(descriptor).st_size - offset
    if reading.torn_bytes and begun:
        reading.chain.take_damage(number, offset, reading.torn_bytes)
        reading.torn_bytes = 0
    return begun


def _judge_damage(files: StreamFiles, reading: StreamReading) -> None:
    """Distinguish damage that the writer named in the next header from damage that somebody else caused."""
    named = [each for _, _, header in reading.chain.headers if (each := named_damage(header)) is not None]
    for damage in reading.chain.damage:
        if any(_is_named(files, damage, *each) for each in named):
            reading.findings.notice(
                "damage",
                damage.after_seq,
                f"{damage.length} bytes of segment {damage.segment} after line {damage.after_seq} are not a line, "
                "as the next segment says",
            )
        else:
            reading.findings.broken(
                "damage",
                damage.after_seq + 1,
                f"{damage.length} bytes of segment {damage.segment} at offset {damage.offset}, after line "
                f"{damage.after_seq}, are not a line of this stream",
            )


def _is_named(files: StreamFiles, damage: DamagedBytes, segment: int, offset: int, length: int, digest: str) -> bool:
    if damage.segment != segment or damage.offset < offset or damage.offset + damage.length > offset + length:
        return False
    with opened(files.segment(segment)) as descriptor:
        return hash_between(descriptor, offset, offset + length) == (length, digest)


def heads_of(directory: Path, streams: Mapping[str, list[Anchor]]) -> None:
    """Read the ledgers again for all heads of some streams, and add them to their lists.

    Raises:
        OSError: the ledger cannot be read.
    """

    def claims() -> Claims:
        for anchors in streams.values():
            anchors.clear()
        return Claims(watched={stream_id: anchors.append for stream_id, anchors in streams.items()})

    read_ledgers(directory, Pins(), claims)
