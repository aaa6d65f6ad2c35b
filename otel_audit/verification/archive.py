"""Verify a trail in a collector's archive or another store, with the ledger lines that were delivered to it.

A store has no locks, so nobody knows whether a writer is alive, and recent lines may still be on their way. Missing
lines of the last hour, `settle_s`, are therefore "not there yet".

A store may remove old lines: an archive is rotated, and Loki has a retention period. Then its ledger begins later too,
and lines written before that are unproven. No later line may be missing, since the journal delivers lines before
retention removes them. A store that was set up later than the journal lacks lines that the journal had removed by then.
Nothing in it distinguishes this from a deletion, so these lines are unproven as well.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from otel_audit.journal.ledger.entries import ENTRY, NOTE, SignedNote, statement
from otel_audit.journal.line import SEGMENT, Line, system_start
from otel_audit.stores.store import Content, DamagedBytes, Kind, Remains, Store
from otel_audit.verification.anchors import Anchor, AnchorWalk, rising
from otel_audit.verification.chain import Chain
from otel_audit.verification.claims import Claims, StreamClaims
from otel_audit.verification.findings import Class, Findings, Report, StreamReport
from otel_audit.verification.judging import describe, judge_headers, judge_ledgers, unfinished_words
from otel_audit.verification.ledger import LedgerCheck
from otel_audit.verification.pins import Pins

__all__ = ["SETTLE_S", "TAKEN_OVER", "directory_in", "is_ledger", "verify_store"]

SETTLE_S: Final = 3600.0
TAKEN_OVER: Final = "it was taken over, and the ledger does not know that it was opened"
_AT_ONCE: Final = 256
_HEADER: Final = system_start(SEGMENT)
_OF_LEDGER: Final = (system_start(ENTRY), system_start(NOTE))


def verify_store(
    store: Store,
    pins: Pins | None = None,
    *,
    settle_s: float = SETTLE_S,
    anchored_within_s: float | None = None,
    passed: Callable[[int], None] = lambda size_bytes: None,
) -> Report:
    """Return the report on the trail in a store.

    A line may be on its way for `settle_s` seconds. `passed` is called with each number of bytes read.

    Raises:
        OSError: the store cannot be read.
    """
    return _Store(store, pins or Pins(), settle_s, passed).verify(anchored_within_s)


class _Store:
    """One verification of a store."""

    def __init__(self, store: Store, pins: Pins, settle_s: float, passed: Callable[[int], None]) -> None:
        self._store = store
        self._pins = pins
        self._passed = passed
        self._now_ns = time.time_ns()
        self._due_ns = self._now_ns - int(settle_s * 1e9)
        self._claims = Claims(due_ns=self._due_ns)
        self._checks: list[LedgerCheck] = []
        self._findings = Findings()

    def verify(self, anchored_within_s: float | None) -> Report:
        report = Report(self._store.where, self._now_ns, self._pins.words())
        streams = []
        for stream_id in self._store.streams():
            if is_ledger(stream_id, self._store.lines_of(stream_id)):
                self._read_ledger(stream_id)
            else:
                streams.append(stream_id)
        judge_ledgers(self._checks, self._pins, report, self._findings, anchored_within_s)
        report.streams = [self._read_stream(stream_id) for stream_id in streams]
        report.streams += [
            self._absent(self._claims.of(each)) for each in sorted(self._claims.streams.keys() - set(streams))
        ]
        # A log store has only records, and would have to be read a second time.
        for each in self._store.others() if self._store.kind is Kind.ARCHIVE else ():
            if isinstance(each, DamagedBytes):
                self._findings.notice(
                    "damage", None, f"{each.file}: {each.length} bytes at offset {each.offset} are not a record"
                )
        report.findings = self._findings.all
        return report

    def _read_ledger(self, stream_id: str) -> None:
        formers = {check.report.origin: check for check in self._checks}
        check = LedgerCheck(stream_id, self._claims, self._pins, formers=formers, has_window=True)
        turn: list[Line] = []
        for each in self._store.lines_of(stream_id):
            if isinstance(each, Remains):
                check.chain.take_remains(each.seq, each.body)
            if not isinstance(each, Line):
                continue
            turn.append(each)
            self._passed(len(each.content))
            if isinstance(statement(each), SignedNote):
                for line in turn:
                    check.take(line)
                turn = []
        if turn:
            self._findings.notice("unfinished", turn[0].seq, unfinished_words(turn), turn[-1].seq)
        self._checks.append(check)

    def _read_stream(self, stream_id: str) -> StreamReport:
        """Check a stream by its last head; one that fails by all, which say between which it was changed."""
        claims = self._claims.streams.get(stream_id)
        report = self._read_by(stream_id, [claims.last] if claims is not None and claims.last is not None else [])
        if claims is None or not any(each.kind in ("altered", "cut") for each in report.findings):
            return report
        explained = self._read_by(stream_id, rising(self._heads_of(stream_id)))
        return explained if any(each.weight is Class.FINDING for each in explained.findings) else report

    def _heads_of(self, stream_id: str) -> list[Anchor]:
        anchors: list[Anchor] = []
        claims = Claims(watched={stream_id: anchors.append})
        for check in self._checks:
            again, turn = LedgerCheck(check.ledger_id, claims, Pins(), has_window=True), list[Line]()
            for each in self._store.lines_of(check.ledger_id):
                if not isinstance(each, Line):
                    continue
                turn.append(each)
                if isinstance(statement(each), SignedNote):
                    for line in turn:
                        again.take(line)
                    turn = []
        return anchors

    def _read_by(self, stream_id: str, anchors: Sequence[Anchor]) -> StreamReport:
        claims = self._claims.streams.get(stream_id)
        findings = Findings(stream_id)
        walk = AnchorWalk(anchors, claims.bridges if claims is not None else (), findings)
        is_opened = claims is not None and claims.opened
        chain = Chain(stream_id, walk, findings, has_window=not is_opened, has_foreign=True)
        for portion in self._portions(stream_id, chain):
            chain.feed(portion, 1, 0 if portion.startswith(_HEADER) else 1)
            self._passed(len(portion))
        chain.end(claims.due if claims is not None else None)
        report = StreamReport(stream_id, state="ended" if claims is not None and claims.end is not None else "unknown")
        describe(report, chain, walk, claims)
        if claims is not None:
            findings.found += claims.findings.all
        self._judge(claims, chain, findings)
        report.findings = findings.all
        return report

    def _portions(self, stream_id: str, chain: Chain) -> Iterator[bytes]:
        """Yield the lines of a stream, some at a time; a header begins a portion."""
        waiting: list[bytes] = []
        for each in self._store.lines_of(stream_id):
            is_line = isinstance(each, Line)
            is_header = isinstance(each, Line) and each.content.startswith(_HEADER)
            if waiting and (len(waiting) >= _AT_ONCE or is_header or not is_line):
                yield b"\n".join(waiting) + b"\n"
                waiting = []
            if isinstance(each, Line):
                waiting.append(each.content)
            elif isinstance(each, Remains):
                chain.take_remains(each.seq, each.body)
        if waiting:
            yield b"\n".join(waiting) + b"\n"

    def _judge(self, claims: StreamClaims | None, chain: Chain, findings: Findings) -> None:
        last, signed = chain.seq, claims.signed_size() if claims is not None else 0
        is_young = chain.last_ns > self._due_ns
        judge_headers(chain, findings)
        for first, end in chain.bridged:
            findings.unproven(
                "retained_there",
                first,
                f"lines {first} to {end} were removed from the journal by retention, and are not here either: nothing "
                "shows what they were",
                end,
            )
        if claims is None or not (claims.opened or claims.found):
            if not self._is_before_window(claims, chain):
                if claims is None or claims.adopted is None:
                    self._judge_unopened(chain, findings, is_young=is_young)
                    return
                findings.unproven("unopened", chain.first_seq, TAKEN_OVER)
            elif chain.first_seq <= 1:  # otherwise the missing beginning is reported
                findings.unproven("window", chain.first_seq, "it was begun before the first line of the ledger here")
            if claims is None:
                return
        if claims.found and not claims.opened:
            findings.unproven("before_ledger", chain.first_seq, "it is older than the ledger")
        if last < signed and claims.due < signed:
            what = f"lines {max(last, claims.due) + 1} to {signed} are not there yet"
            findings.notice("not_yet", last + 1, what, signed)
        if last <= signed:
            return
        words = f"lines {signed + 1} to {last}"
        if claims.end is not None:
            findings.broken("behind_end", signed + 1, f"{words} stand behind the end of the stream", last)
        elif claims.adopted is not None and not claims.found:
            findings.broken(
                "behind_adopt", signed + 1, f"{words} stand behind the end at which the stream was taken over", last
            )
        elif is_young:
            findings.notice("unsigned_yet", signed + 1, f"{words} are young, and not signed yet", last)
        else:
            findings.unproven("unsigned", signed + 1, f"{words} are under no head that is there", last)

    def _is_before_window(self, claims: StreamClaims | None, chain: Chain) -> bool:
        """Return True if the line may have been removed in which the ledger knew of the stream first."""
        later = [check for check in self._checks if check.begins_later]
        if claims is not None:
            return bool(later)
        begun_ns = max((check.begin_ns or self._now_ns for check in later), default=0)
        return bool(later) and (chain.first_seq > 1 or chain.time_ns < begun_ns)

    def _judge_unopened(self, chain: Chain, findings: Findings, *, is_young: bool) -> None:
        named = chain.ledger_id
        if chain.is_in_memory:
            return
        if not named or named not in {check.ledger_id for check in self._checks}:
            which = f"the ledger {named}, which it names, is not there" if named else "it names no ledger"
            findings.unproven("no_ledger", chain.first_seq or None, f"nothing shows that it is whole: {which}")
        elif is_young:
            findings.notice("young", chain.first_seq, "it has only begun, and is not yet in the ledger")
        else:
            findings.broken("unopened", chain.first_seq, "its ledger does not know this stream")

    def _absent(self, claims: StreamClaims) -> StreamReport:
        report = StreamReport(claims.stream_id, claims.service, "missing", ended=claims.end is not None)
        findings = Findings(claims.stream_id)
        findings.found += claims.findings.all
        if claims.opened_ns > self._due_ns:
            report.state = "not there yet"
            findings.notice("not_yet", 1, "it has only begun, and is not there yet")
        elif not claims.opened and any(check.begins_later for check in self._checks):
            report.state = "removed"
            findings.notice("window", 1, "it is older than the first line of the ledger here")
        elif claims.retained_whole:
            report.state = "removed"
            findings.unproven(
                "retained_there",
                1,
                "the journal removed it by retention, and it is not here either: nothing shows what it was",
                claims.removed_to(),
            )
        elif claims.durability == "memory":
            findings.unproven("memory", None, "it was written with durability `memory`, which signs nothing")
        else:
            findings.broken(
                "missing",
                1,
                f"the stream is not there: the ledger knows it since line {claims.opened_place}, and {claims.due} "
                "lines have to be there",
                claims.due or None,
            )
        report.findings = findings.all
        return report


def is_ledger(stream_id: str, lines: Iterator[Content]) -> bool:
    """Return True for the lines of a ledger, which begin as no line of an application can."""
    first = next((each for each in lines if isinstance(each, Line)), None)
    if first is None:
        return False
    return first.content.startswith(_OF_LEDGER) or directory_in(first.content) == stream_id


def directory_in(content: bytes) -> str:
    """Return the directory id in the header of a ledger's segment, or an empty text for any other line."""
    if not content.startswith(_HEADER):
        return ""
    try:
        named = json.loads(content)["segment"]["directory_id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return named if isinstance(named, str) else ""
