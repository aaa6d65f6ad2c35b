"""Compare a journal directory with a store, line by line.

A change to only one of them is found, whatever keys the attacker has. A line that only one of them has may have a good
reason: retention removed it from the journal after delivery, it is still on its way to the store, or the store's
retention removed it with all older lines. Therefore the progress of each exporter is read first, then the store, and
the journal last.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from otel_audit.journal.cursor import Progress, read_cursor
from otel_audit.journal.files import StreamFiles, streams_in
from otel_audit.journal.ledger.entries import ENTRY, NOTE, Entry, SignedNote, statement
from otel_audit.journal.ledger.entries import Kind as EntryKind
from otel_audit.journal.ledger.files import LedgerFiles
from otel_audit.journal.line import SEGMENT, Line, system_start
from otel_audit.journal.locks import boot_id
from otel_audit.signing.note import Checkpoint
from otel_audit.stores.directory import DirectoryStore
from otel_audit.stores.store import Kind, Remains, Store
from otel_audit.verification.anchors import Bridge
from otel_audit.verification.archive import directory_in
from otel_audit.verification.claims import Claims, StreamClaims
from otel_audit.verification.findings import Class, Finding, Findings
from otel_audit.verification.ledger import LedgerCheck

__all__ = ["CrossCheck"]

_HEADER: Final = system_start(SEGMENT)
_OF_LEDGER: Final = (system_start(ENTRY), system_start(NOTE))


@dataclass(frozen=True, slots=True)
class _Fact:
    """What is wrong with one line, or worth knowing about it."""

    weight: Class
    kind: str
    says: str


_OTHER_BYTES: Final = _Fact(Class.FINDING, "differs", "are other lines in the journal than in {store}")
_CUT_SHORT: Final = _Fact(Class.NOTICE, "cut_short", "are cut short in {store}")
_TOMBSTONE: Final = _Fact(Class.NOTICE, "erased_there", "are erased on one side, with the same digest")
_RETAINED: Final = _Fact(Class.NOTICE, "store_only", "are in {store} only: retention removed them from the journal")
_LOST_WITH_POWER: Final = _Fact(
    Class.UNPROVEN, "store_only", "are in {store} only: the machine was started anew since, and may have lost them"
)
_REMOVED: Final = _Fact(Class.FINDING, "store_only", "are in {store} and not in the journal")
_PENDING: Final = _Fact(Class.NOTICE, "pending", "are not delivered yet")
_QUARANTINED: Final = _Fact(Class.NOTICE, "quarantined", "were refused, and are in quarantine")
_UNSETTLED: Final = _Fact(Class.NOTICE, "not_yet", "are young, and not in {store} yet")
_TOO_OLD: Final = _Fact(
    Class.UNPROVEN, "window", "are older than all that {store} has of this directory (--from leaves them out)"
)
_IN_NEITHER: Final = _Fact(
    Class.UNPROVEN,
    "retained_there",
    "were removed from the journal by retention, and are not in {store} either: nothing shows what they were",
)
_FOREIGN: Final = _Fact(Class.NOTICE, "foreign", "are records of the plain logs API, of which {store} keeps no lines")
_MISSING: Final = _Fact(Class.FINDING, "journal_only", "were delivered, and are not in {store}")


class CrossCheck:
    """Compares a directory with a store. It reads the store at once; verify the journal next, then call `compare`.

    A line may be on its way for `settle_s` seconds. Lines from before `from_ns` are not reported if the store no longer
    has them.

    `notes` holds the newest note in the store for each ledger of the directory. An attacker on the host cannot take
    that note back.

    Raises:
        OSError: one of them cannot be read.
    """

    def __init__(self, directory: Path, store: Store, settle_s: float, from_ns: int | None = None) -> None:
        self._directory = directory
        self._store = store
        self._from_ns = from_ns or 0
        self._window_ns = 0  # the store no longer has older lines
        self._due_ns = time.time_ns() - int(settle_s * 1e9)
        self._progress = _progress_in(directory)
        self._there = frozenset(store.streams())
        self._told: dict[str, Mapping[str, bool] | None] = {}
        ledgers = [log.stream_id for log in LedgerFiles(directory).logs() if log.stream_id in self._there]
        self.notes = {each: note for each in ledgers if (note := _newest_note(store, each)) is not None}

    @property
    def option(self) -> str:
        """The option of `verify` that named the store."""
        return f"--{self._store.kind.lower()}" if self._store.kind in (Kind.LOKI, Kind.VICTORIALOGS) else "--archive"

    def compare(self, claims: Claims) -> list[Finding]:
        """Return the result of the comparison. `claims` are the present claims of the directory's ledgers.

        Raises:
            OSError: one of them cannot be read.
        """
        found: list[Finding] = []
        with DirectoryStore(self._directory) as journal:
            here = frozenset(journal.streams())
            ledgers = {log.stream_id for log in LedgerFiles(self._directory).logs()}
            self._window_ns = self._begin_of_store(here | ledgers | claims.streams.keys(), ledgers)
            for stream_id in sorted(here | self._there | claims.streams.keys()):
                told = claims.streams.get(stream_id)
                if stream_id in here or told is not None:
                    removed = claims.removed.get(stream_id)
                    is_ledger = stream_id in ledgers
                    found += self._compare_stream(journal, stream_id, told, is_ledger=is_ledger, removed=removed)
                else:
                    found += self._judge_stranger(stream_id, here, ledgers, claims.removed)
        return found

    def _begin_of_store(self, ours: Set[str], ledgers: Set[str]) -> int:
        """Return the time of the store's oldest line of this directory, or 0 if the store cannot have begun later.

        A ledger continues as long as the directory is used. If the store has no line of it, somebody deleted them.
        """
        there = self._there & ours
        if not there or (ledgers and not ledgers & there):
            return 0
        lines = (
            next((each for each in self._store.lines_of(every) if isinstance(each, Line)), None) for every in there
        )
        return min((line.tail.observed_ns for line in lines if line is not None), default=0)

    def _compare_stream(
        self,
        journal: DirectoryStore,
        stream_id: str,
        claims: StreamClaims | None,
        *,
        is_ledger: bool,
        removed: Bridge | None,
    ) -> list[Finding]:
        spans = _Spans(stream_id, self._store.where)
        progress = self._progress.get(stream_id, {})
        last, before = 0, b""
        for seq, ours, theirs in _side_by_side(journal, self._store, stream_id):
            fact: _Fact | None
            for first, end in self._in_neither(claims, last + 1, seq - 1):
                spans.add(first, _FOREIGN if _is_before_foreign(before) else _IN_NEITHER, end)
            if removed is not None and last and seq > last + 1:  # the store may lack lines before its first one
                spans.add(last + 1, _IN_NEITHER, seq - 1)
            last, before = seq, _body_of(ours or theirs)
            if ours is None:
                is_removed = removed is not None and removed.covers(seq, seq)  # lines of the ledger itself
                fact = _RETAINED if is_removed else self._in_store_only(seq, claims, is_ledger=is_ledger)
            elif theirs is None:
                fact = self._in_journal_only(seq, ours, progress)
            else:
                fact = _copy(ours, theirs)
            spans.add(seq, fact)
        for first, end in self._in_neither(claims, last + 1, claims.removed_to() if claims is not None else 0):
            spans.add(first, _FOREIGN if _is_before_foreign(before) else _IN_NEITHER, end)
        return spans.finish()

    def _in_neither(self, claims: StreamClaims | None, first: int, last: int) -> list[tuple[int, int]]:
        """Return which of these lines, which neither side has, were removed by retention. The journal lacks the others.

        If the stream was opened before the store's oldest line, the store may no longer have them.
        """
        if claims is None or not claims.opened or claims.opened_ns < self._window_ns:
            return []
        spans = ((max(first, each.first_seq), min(last, each.last_seq)) for each in claims.bridges)
        return sorted(span for span in spans if span[0] <= span[1])

    def _in_store_only(self, seq: int, claims: StreamClaims | None, *, is_ledger: bool) -> _Fact:
        if claims is not None and any(bridge.covers(seq, seq) for bridge in claims.bridges):
            return _RETAINED
        durability, boot = (claims.durability, claims.boot_id) if claims is not None else ("", "")
        if not is_ledger and durability == "os" and boot and boot != boot_id():
            return _LOST_WITH_POWER
        return _REMOVED

    def _in_journal_only(self, seq: int, line: Line, progress: Mapping[str, Progress]) -> _Fact | None:
        if not progress or any(seq > each.position.seq for each in progress.values()):
            return _PENDING
        if any(entry.first_seq <= seq <= entry.last_seq for each in progress.values() for entry in each.quarantine):
            return _QUARANTINED
        if line.tail.observed_ns > self._due_ns:
            return _UNSETTLED
        if line.tail.observed_ns < self._window_ns:
            return None if line.tail.observed_ns < self._from_ns else _TOO_OLD
        return _FOREIGN if _is_foreign(line) else _MISSING

    def judge_notes(self, checks: Sequence[LedgerCheck], findings: Findings) -> None:
        """Report if the store vouches for no note of the directory, since it then shows nothing about signed lines."""
        if checks and not any(check.pins.is_stored for check in checks):
            what = f"no note of this ledger is in {self._store.where}, which vouches for none therefore"
            findings.unproven("store_notes", None, what)

    def _judge_stranger(
        self, stream_id: str, here: frozenset[str], ledgers: set[str], removed: Mapping[str, Bridge]
    ) -> list[Finding]:
        """Judge a stream of the store that is not in this directory: it belongs to another one, or was removed.

        The ledger may have removed its entries about the stream. Then the store's copy of them decides.
        """
        findings = Findings(stream_id)
        is_ledger, named = False, False
        for each in self._store.lines_of(stream_id):
            if not isinstance(each, Line):
                continue
            is_ledger = is_ledger or each.content.startswith(_OF_LEDGER) or directory_in(each.content) == stream_id
            named_by = (ledger for ledger in ledgers if b'"directory_id":"%b"' % ledger.encode() in each.content)
            if not is_ledger and (ledger := next(named_by, None)) is not None:
                self._judge_forgotten(findings, stream_id, ledger, removed.get(ledger))
                break
            if is_ledger and (subject := _subject_of(each)) in here:
                findings.broken(
                    "foreign_ledger",
                    each.seq,
                    f"another ledger in {self._store.where} speaks of {subject}, a stream of this one",
                )
                named = True
                break
            if not is_ledger and not each.content.startswith(b'{"system"'):
                break  # its headers name its ledger, and the store has the first of them
        if is_ledger and not named:
            findings.notice("foreign_ledger", None, f"another directory's ledger is in {self._store.where}")
        elif not is_ledger and not findings.all:  # as the first stream of a directory, whose headers name no ledger yet
            for ledger, gone in removed.items():
                if stream_id in (self._told_before(ledger, gone) or {}):
                    self._judge_forgotten(findings, stream_id, ledger, gone)
        return findings.all

    def _judge_forgotten(self, findings: Findings, stream_id: str, ledger: str, removed: Bridge | None) -> None:
        """Judge a stream of this directory that only the store has, and that is no longer in the ledger."""
        told = self._told_before(ledger, removed) if removed is not None else {}
        what = f"it is in {self._store.where}, of this directory, and not in the journal"
        if told is None:
            why = "the ledger lines that may say so were removed, and are not whole there either"
            findings.unproven("store_only", 1, f"{what}: {why}")
        elif told.get(stream_id):
            findings.notice("store_only", 1, f"{what}: retention removed it, as ledger lines say that are there only")
        else:
            findings.broken("store_only", 1, what)

    def _told_before(self, ledger: str, removed: Bridge) -> Mapping[str, bool] | None:
        """Return the streams in a ledger's removed lines, and whether as removed, or None if the store lacks lines.

        The store's lines are believed if their chain leads to the line that the journal's ledger names as the last.
        """
        if ledger not in self._told:
            self._told[ledger] = _told_in(self._store, ledger, removed)
        return self._told[ledger]


def _told_in(store: Store, ledger: str, removed: Bridge) -> Mapping[str, bool] | None:
    told: dict[str, bool] = {}
    seq, digest = 0, None
    for each in store.lines_of(ledger):
        if not isinstance(each, Line) or seq == removed.last_seq:
            break
        if each.seq == seq:
            continue  # a copy
        if each.seq != seq + 1 or each.tail.prev_hash != digest:
            return None
        seq, digest = each.seq, each.hash
        said = statement(each)
        if isinstance(said, Entry) and isinstance(stream_id := said.content.get("stream"), str):
            is_gone = said.kind == EntryKind.RETAIN and said.content.get("whole") is True
            told[stream_id] = told.get(stream_id, False) or is_gone
    return told if seq == removed.last_seq and digest == removed.hash else None


def _newest_note(store: Store, ledger_id: str) -> Checkpoint | None:
    newest: Checkpoint | None = None
    for each in store.lines_of(ledger_id):
        if isinstance(each, Line) and isinstance(note := statement(each), SignedNote):
            newest = note.checkpoint
    return newest


def _progress_in(directory: Path) -> Mapping[str, Mapping[str, Progress]]:
    files: list[StreamFiles] = [*streams_in(directory), *LedgerFiles(directory).logs()]
    return {each.stream_id: read_cursor(each.cursor)[0] for each in files}


def _side_by_side(
    journal: DirectoryStore, store: Store, stream_id: str
) -> Iterator[tuple[int, Line | None, Line | Remains | None]]:
    """Yield each number with the journal's line and the store's. Differing copies are yielded one after the other."""
    ours = _rising(journal, stream_id)
    theirs = (each for each in store.lines_of(stream_id) if isinstance(each, Line | Remains))
    mine, other = next(ours, None), next(theirs, None)
    while mine is not None or other is not None:
        if other is None or (mine is not None and mine.seq < other.seq):
            assert mine is not None
            yield mine.seq, mine, None
            mine = next(ours, None)
        elif mine is None or other.seq < mine.seq:
            yield other.seq, None, other
            other = next(theirs, None)
        else:
            seq = mine.seq
            while other is not None and other.seq == seq:
                yield seq, mine, other
                other = next(theirs, None)
            mine = next(ours, None)


def _rising(journal: DirectoryStore, stream_id: str) -> Iterator[Line]:
    """Yield the lines of the journal, except lines out of order, which verifying the journal reports."""
    last = 0
    for each in journal.lines_of(stream_id):
        if isinstance(each, Line) and each.seq > last:
            last = each.seq
            yield each


def _copy(ours: Line, theirs: Line | Remains) -> _Fact | None:
    body = theirs.content if isinstance(theirs, Line) else theirs.body
    if body == ours.content:
        return None
    if isinstance(theirs, Remains) and ours.content.startswith(body):
        return _CUT_SHORT
    if b'"erased":"%b"' % ours.hash.encode() in body[:200]:
        return _TOMBSTONE
    return _OTHER_BYTES


def _body_of(line: Line | Remains | None) -> bytes:
    return line.content if isinstance(line, Line) else b"" if line is None else line.body


def _is_before_foreign(line: bytes) -> bool:
    """Return True if this is a header that records of the plain logs API follow."""
    return line.startswith(_HEADER) and b'"foreign":true' in line


def _is_foreign(line: Line) -> bool:
    try:
        return "otlp" in json.loads(line.content)
    except (ValueError, TypeError, RecursionError):
        return False


def _subject_of(line: Line) -> str:
    try:
        subject = json.loads(line.content)["ledger"]["stream"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return subject if isinstance(subject, str) else ""


class _Spans:
    """Joins equal findings about neighbouring lines into one."""

    def __init__(self, stream_id: str, store: str) -> None:
        self._findings = Findings(stream_id)
        self._store = store
        self._fact: _Fact | None = None
        self._first = self._last = 0

    def add(self, seq: int, fact: _Fact | None, last: int | None = None) -> None:
        """Add the finding about the next line, or about all lines up to `last`. None means that there is none."""
        last = last or seq
        if fact is self._fact and seq <= self._last + 1:
            self._last = last
            return
        self._tell()
        self._fact, self._first, self._last = fact, seq, last

    def finish(self) -> list[Finding]:
        """Return all findings."""
        self._tell()
        return self._findings.all

    def _tell(self) -> None:
        if self._fact is not None:
            words = f"lines {self._first} to {self._last} {self._fact.says.format(store=self._store)}"
            self._findings.add(self._fact.weight, self._fact.kind, self._first, words, self._last)
