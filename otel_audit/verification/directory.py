"""Read what a journal directory holds into the checks: its ledgers up to their last note, and its streams.

Nothing is locked for long and nothing is written. The directory may live: lines are appended, segments begun and
removed while it is read. What that leaves open is found again by whoever reads the ledger once more afterwards.
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


_ROUNDS: Final = 8  # of a directory of which the ledger is pruned while it is read


def read_ledgers(directory: Path, pins: Pins, claims: Callable[[], Claims]) -> LedgerReading:
    """Read all ledgers of a directory. `claims` gives new ones, since it begins anew if segments go meanwhile.

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
    """Reads all ledgers of a directory, and goes on where it stopped when it is called again.

    Only what a note covers is taken: the lines behind the last note may be cut off and written anew.
    """

    def __init__(self, directory: Path, claims: Claims, pins: Pins) -> None:
        self.checks: list[LedgerCheck] = []
        self._files = LedgerFiles(directory)
        self.claims = claims
        self._pins = pins
        self._places: dict[str, Position] = {}
        self.unfinished: list[Line] = []

    def read(self) -> bool:
        """Take what is new. Return True if there was anything.

        Raises:
            FileNotFoundError: retention has removed segments behind the first ones that were read.
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
        """Leave out lines without a note that the next segment does not go on from: a failed sync has ended them."""
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
    """Return the keys that a ledger announced before the line of this number, as far as the archive shows them.

    Each must be announced under a note that the key before it has signed.
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
    """What reading one stream gave. `torn_bytes` stand behind its last newline, where its writer may still be at it."""

    findings: Findings
    chain: Chain
    walk: AnchorWalk
    torn_bytes: int = 0
    files: int = 0
    changed_ns: int = 0


def bytes_of(directory: Path) -> int:
    """Return how many bytes the segments of all streams have now."""
    size = 0
    for stream_id, numbers in segments_in(directory).items():
        for number in numbers:
            with contextlib.suppress(OSError):  # removed in this moment
                size += StreamFiles(directory, stream_id).segment(number).stat().st_size
    return size


def is_alive(files: StreamFiles) -> bool | None:
    """Return True while the writer of a stream lives; None if that cannot be found out."""
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
    """Read one stream from its first line to its last, against what is claimed of it.

    `anchors`: all of its heads, where the last one is not enough. `unsigned` are lines that were removed as no signed
    ledger says. `passed` is told of bytes that were read.

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
            is_last = False  # removed in this moment: what is missing then is asked of the ledger
        # One that is begun after the last look is not read: before it this segment may have had more lines.
        number = None if is_last else files.segment_from(number + 1)
    reading.chain.end()
    judge_headers(reading.chain, findings)
    _judge_damage(files, reading)
    return reading


def _segment_behind(files: StreamFiles, start: Anchor) -> int | None:
    """Return the segment that begins with the line behind a head; None if there is none."""
    for number in reversed(files.segments()):
        with contextlib.suppress(FileNotFoundError):
            first = next((each for each in segment_lines(files, number) if isinstance(each, Line)), None)
            if first is not None and first.seq <= start.size + 1:
                return number if first.seq == start.size + 1 else None
    return None


def _read_segment(files: StreamFiles, number: int, reading: StreamReading, passed: Callable[[int], None]) -> bool:
    """Read all lines of a segment that are there now. Return True if a later one was begun before the last of them."""
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
            # Only what is read once a later segment is known is all that will ever be there.
            if begun or files.segment_from(number + 1) is None:
                break
        reading.torn_bytes = os.fstat(descriptor).st_size - offset
    if reading.torn_bytes and begun:
        reading.chain.take_damage(number, offset, reading.torn_bytes)
        reading.torn_bytes = 0
    return begun


def _judge_damage(files: StreamFiles, reading: StreamReading) -> None:
    """Tell damage that the writer itself named in the next header from what somebody else left."""
    named = [each for _, _, header in reading.chain.headers if (each := named_damage(header)) is not None]
    for damage in reading.chain.damage:
        if any(_is_named(files, damage, *each) for each in named):
            reading.findings.notice(
                "damage",
                damage.after_seq,
                f"{damage.length} bytes of segment {damage.segment} behind line {damage.after_seq} are no line, as the "
                "next segment says",
            )
        else:
            reading.findings.broken(
                "damage",
                damage.after_seq + 1,
                f"{damage.length} bytes of segment {damage.segment} at offset {damage.offset}, behind line "
                f"{damage.after_seq}, are no line of this stream",
            )


def _is_named(files: StreamFiles, damage: DamagedBytes, segment: int, offset: int, length: int, digest: str) -> bool:
    if damage.segment != segment or damage.offset < offset or damage.offset + damage.length > offset + length:
        return False
    with opened(files.segment(segment)) as descriptor:
        return hash_between(descriptor, offset, offset + length) == (length, digest)


def heads_of(directory: Path, streams: Mapping[str, list[Anchor]]) -> None:
    """Read the ledgers again for every head of some streams, and add these to their lists.

    Raises:
        OSError: the ledger cannot be read.
    """

    def claims() -> Claims:
        for anchors in streams.values():
            anchors.clear()
        return Claims(watched={stream_id: anchors.append for stream_id, anchors in streams.items()})

    read_ledgers(directory, Pins(), claims)
