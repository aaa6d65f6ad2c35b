"""Verify a journal directory: its ledgers, then its streams, and then the ledgers' new entries.

In this order a directory can be verified while it is in use. The ledger is read first, and claims nothing that is not
in the streams already, since a head is written once its lines are on the disk. Missing and surplus lines are judged
only after the ledger was read again. By then it has an entry for each segment that retention removed in the meantime,
and the `end` of each process that ended. A stream that fails is read again with all of its heads, so that the report
can say where.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from otel_audit.journal.census import STATES
from otel_audit.journal.files import StreamFiles, segments_in
from otel_audit.journal.ledger.former import RETAIN, entries
from otel_audit.notices import number_of
from otel_audit.stores.store import Store
from otel_audit.verification.anchors import Anchor, Bridge, join, rising
from otel_audit.verification.archive import SETTLE_S, TAKEN_OVER
from otel_audit.verification.claims import Claims, StreamClaims
from otel_audit.verification.crosscheck import CrossCheck
from otel_audit.verification.directory import StreamReading, heads_of, is_alive, read_ledgers, read_stream
from otel_audit.verification.findings import Class, Finding, Findings, Report, StreamReport
from otel_audit.verification.judging import describe, judge_ledgers, unfinished_words
from otel_audit.verification.pins import Pins

__all__ = ["verify_directory"]

_YOUNG_NS: Final = 60 * 10**9
_ROUNDS: Final = 8  # of a directory that changes while it is read


def _ignored(size_bytes: int) -> None:
    """Ignore the progress."""


def verify_directory(
    directory: Path,
    pins: Pins | None = None,
    *,
    anchored_within_s: float | None = None,
    from_ns: int | None = None,
    beside: Store | None = None,
    settle_s: float = SETTLE_S,
    passed: Callable[[int], None] = _ignored,
) -> Report:
    """Return the report on the trail in a journal directory.

    `anchored_within_s` is the highest age of the newest note that a pin vouches for. `from_ns` is the time at which to
    begin, as far as signed heads allow it. `beside` is a store to compare the journal with, to which a line may be on
    its way for `settle_s` seconds. `passed` is called with each number of bytes read.

    Raises:
        OSError: a file cannot be read.
    """
    check = CrossCheck(directory, beside, settle_s, from_ns) if beside is not None else None
    pins = pins or Pins()
    if check is not None:
        pins = replace(pins, stored=check.notes)
    return _Directory(directory, pins, from_ns, passed).verify(anchored_within_s, check)


class _Directory:
    """One verification of a directory."""

    def __init__(self, directory: Path, pins: Pins, from_ns: int | None, passed: Callable[[int], None]) -> None:
        self._directory = directory
        self._pins = pins
        self._passed = passed
        self._from_ns = from_ns
        self._removed: Mapping[str, Sequence[Bridge]] = {}
        self._readings: dict[str, StreamReading] = {}
        self._alive: dict[str, bool | None] = {}
        self._is_left: dict[str, bool] = {}  # the lock file of its writer is there, and nobody took the stream over
        self._findings = Findings()

    def verify(self, anchored_within_s: float | None, check: CrossCheck | None) -> Report:
        self._ledgers = read_ledgers(self._directory, self._pins, lambda: Claims(from_ns=self._from_ns))
        self._claims = self._ledgers.claims
        self._removed = _removed_before(self._directory)
        self._read_new()
        missing = self._missing()
        for _ in range(_ROUNDS):
            is_new = self._ledgers.read()
            is_new = self._read_new() or is_new
            self._removed = _removed_before(self._directory)
            failing = [stream_id for stream_id, reading in self._readings.items() if reading.findings.has_broken]
            # A stream that was removed after the last look into the ledger seems to be missing until the next one.
            missing, before = self._missing(), missing
            if not (failing or missing) or not (is_new or missing - before):
                break
            self._read_again(failing)
        else:
            self._ledgers.read()
        self._explain(failing)
        now_ns = time.time_ns()
        report = Report(str(self._directory), now_ns, self._pins.words())
        compared = self._compared(check)
        if check is not None:
            report.pins = (*report.pins, check.option)
        judge_ledgers(self._ledgers.checks, self._pins, report, self._findings, anchored_within_s)
        if check is not None:
            check.judge_notes(self._ledgers.checks, self._findings)
        if lines := self._ledgers.unfinished:
            self._findings.notice("unfinished", lines[0].seq, unfinished_words(lines), lines[-1].seq)
        report.streams = [self._judged(stream_id, now_ns) for stream_id in self._all_streams()]
        if self._removed and not (report.streams or report.ledgers):
            last = sum(max(each.last_seq for each in bridges) for bridges in self._removed.values())
            self._findings.unproven(
                "removed_unsigned",
                None,
                f"an unsigned ledger says that retention removed {number_of(len(self._removed), 'stream')} of "
                f"{number_of(last, 'line')}; nothing else is left of them",
            )
        report.findings = [*self._findings.all, *compared]
        return report

    def _compared(self, check: CrossCheck | None) -> list[Finding]:
        """Compare the journal with the store. Do so again if it lacks lines that retention may just have removed."""
        found: list[Finding] = []
        for _ in range(_ROUNDS if check is not None else 0):
            assert check is not None
            found = check.compare(self._claims)
            if not any(each.weight is Class.FINDING for each in found) or not self._ledgers.read():
                break
        return found

    def _all_streams(self) -> list[str]:
        return sorted({*self._readings, *self._claims.streams})

    def _read_new(self) -> bool:
        """Read the streams that have not been read yet. Return True if there were any."""
        new = [stream_id for stream_id in segments_in(self._directory) if stream_id not in self._readings]
        for stream_id in new:
            self._read(stream_id)
        return bool(new)

    def _missing(self) -> set[str]:
        """Return the streams in the ledger that are missing without an entry for their removal."""
        absent = (each for each in self._claims.streams.values() if each.stream_id not in self._readings)
        return {each.stream_id for each in absent if not each.retained_whole and not self._is_removed_unsigned(each)}

    def _read(self, stream_id: str, anchors: Sequence[Anchor] | None = None) -> None:
        files = StreamFiles(self._directory, stream_id)
        claims = self._claims.streams.get(stream_id)
        unsigned = self._removed.get(stream_id, ())
        self._readings[stream_id] = read_stream(files, claims, self._passed, anchors=anchors, unsigned=unsigned)
        # Asked after the lines were read, and before the ledger is read again: whoever died or ended in between has
        # said so there.
        self._alive[stream_id] = is_alive(files)
        self._is_left[stream_id] = files.writer_lock.exists()

    def _read_again(self, failing: Sequence[str]) -> None:
        for stream_id in failing:
            if segments_in(self._directory).get(stream_id):
                self._read(stream_id)
            else:
                del self._readings[stream_id], self._alive[stream_id]

    def _explain(self, failing: Sequence[str]) -> None:
        """Read the failing streams again with all heads, which show between which of them something was changed."""
        heads: dict[str, list[Anchor]] = {stream_id: [] for stream_id in failing if stream_id in self._readings}
        if not heads:
            return
        heads_of(self._directory, heads)
        for stream_id, anchors in heads.items():
            if segments_in(self._directory).get(stream_id):
                former = self._readings[stream_id]
                self._read(stream_id, rising(anchors))
                if not self._readings[stream_id].findings.has_broken:
                    self._readings[stream_id] = former  # all heads together show no less than the last one alone

    def _judged(self, stream_id: str, now_ns: int) -> StreamReport:
        claims, reading = self._claims.streams.get(stream_id), self._readings.get(stream_id)
        report = StreamReport(stream_id)
        findings = Findings(stream_id)
        if claims is not None:
            report.service, report.ended = claims.service, claims.end is not None
            findings.found += claims.findings.all
        if reading is None:
            assert claims is not None
            self._judge_absent(claims, report, findings)
        else:
            describe(report, reading.chain, reading.walk, claims)
            findings.found += reading.findings.all
            alive = self._alive[stream_id]
            report.state = STATES[alive]
            self._judge_opened(claims, reading, alive, findings, now_ns)
            self._judge_end(claims, reading, alive, findings)
            if stream_id in self._removed:
                last = max(bridge.last_seq for bridge in self._removed[stream_id])
                findings.unproven(
                    "removed_unsigned", 1, f"lines up to {last} were removed as only an unsigned ledger says", last
                )
        report.findings = findings.all
        return report

    def _judge_absent(self, claims: StreamClaims, report: StreamReport, findings: Findings) -> None:
        if claims.retained_whole:
            report.state = "removed"
        elif self._is_removed_unsigned(claims):
            report.state = "removed"
            findings.unproven("removed_unsigned", 1, "it was removed as only an unsigned ledger says")
        else:
            report.state = "missing"
            last = claims.signed_size()
            findings.broken(
                "missing",
                claims.removed_to() + 1,
                f"the stream is not there: the ledger knows it since line {claims.opened_place}, with "
                f"{last} signed lines, and does not say that it was removed",
                last or None,
            )

    def _is_removed_unsigned(self, claims: StreamClaims) -> bool:
        """Return True if an earlier version removed all signed lines of a stream that is older than the ledger.

        For a stream that was opened in the ledger only a signed entry counts, since anybody can write an unsigned one.
        """
        if claims.opened:
            return False
        last = max((bridge.last_seq for bridge in self._removed.get(claims.stream_id, ())), default=0)
        return 0 < claims.signed_size() <= last

    def _judge_opened(
        self,
        claims: StreamClaims | None,
        reading: StreamReading,
        alive: bool | None,
        findings: Findings,
        now_ns: int,
    ) -> None:
        if claims is not None and claims.opened:
            return
        begun_ns = min((check.begin_ns for check in self._ledgers.checks if check.begin_ns), default=0)
        first = reading.chain.first_seq or None
        if reading.chain.is_in_memory:
            return  # which is said
        if claims is not None and claims.found:
            findings.unproven(
                "before_ledger",
                first,
                "it is older than the ledger: nothing shows that it was whole before it was found, with "
                f"{claims.signed_size()} lines",
            )
        elif claims is not None and claims.adopted is not None:
            findings.unproven("unopened", first, TAKEN_OVER)
        elif not begun_ns:
            findings.unproven("no_ledger", first, "no signed ledger covers it: its chain shows nothing to a stranger")
        elif alive or now_ns - reading.changed_ns < _YOUNG_NS:
            findings.notice("young", first, "it has only begun, and is not yet in the ledger")
        elif reading.chain.time_ns and reading.chain.time_ns < begun_ns:
            findings.unproven("before_ledger", first, "it is older than the ledger, which does not know it")
        elif not reading.chain.lines:
            findings.notice("empty", None, "its file holds no line")
        elif self._is_left[reading.chain.stream_id]:  # whoever takes it over will record no more than that
            what = "its writer was killed before the ledger knew that it was opened, and nobody took over"
            findings.unproven("unopened", first, what)
        else:
            findings.broken("unopened", first, "the ledger does not know this stream: no entry says that it was opened")

    def _judge_end(
        self, claims: StreamClaims | None, reading: StreamReading, alive: bool | None, findings: Findings
    ) -> None:
        last, signed = reading.chain.seq, claims.signed_size() if claims is not None else 0
        if reading.torn_bytes and not alive:
            findings.notice(
                "torn", last, f"{reading.torn_bytes} bytes behind line {last} are of a line that was not finished"
            )
        if last <= signed or claims is None or not (claims.opened or claims.found):
            return
        words = f"lines {signed + 1} to {last}"
        if claims.end is not None and last > claims.end.size:
            findings.broken("behind_end", signed + 1, f"{words} stand behind the end of the stream", last)
        elif claims.adopted is not None and claims.end is None and not claims.found:
            findings.broken(
                "behind_adopt", signed + 1, f"{words} stand behind the end at which the stream was taken over", last
            )
        elif alive:
            findings.notice("unsigned_yet", signed + 1, f"{words} are not signed yet; the writer is at work", last)
        else:
            findings.unproven(
                "unsigned",
                signed + 1,
                f"{words} were never signed: the writer is gone, and nobody took over",
                last,
            )


def _removed_before(directory: Path) -> Mapping[str, Sequence[Bridge]]:
    """Return by stream the lines that retention removed before there was a signed ledger.

    They are in the unsigned `ledger.jsonl` of earlier versions, which explains a hole but proves nothing.

    Raises:
        OSError: the unsigned ledger cannot be read.
    """
    found: dict[str, list[Bridge]] = {}
    for entry in entries(directory):
        told = entry.content
        stream_id, first, last = told.get("stream_id"), told.get("first_seq"), told.get("last_seq")
        if entry.kind != RETAIN or type(stream_id) is not str or type(first) is not int or type(last) is not int:
            continue
        digest, before = _hash(told.get("last_hash")), _hash(told.get("prev_hash"))
        join(found.setdefault(stream_id, []), Bridge(first, last, before, digest))
    return found


def _hash(value: object) -> str | None:
    return value if type(value) is str else None
