"""Check whether the signed ledger of a directory can go on: its key, its lock, its progress, and other writers."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from otel_audit.diagnosis.findings import Finding
from otel_audit.journal.files import streams_in
from otel_audit.journal.ledger import former
from otel_audit.journal.ledger.entries import SignedNote, statements
from otel_audit.journal.ledger.files import LedgerFiles
from otel_audit.journal.ledger.standing import LedgerState
from otel_audit.journal.locks import FileLock
from otel_audit.journal.reader import lines_before
from otel_audit.settings import Durability, Origin, Settings

__all__ = ["ledger_findings"]

_CHECK: Final = "ledger"
_UNPROVEN: Final = "nothing can be proven to a stranger"
_SLACK_S: Final = 60.0  # a turn takes some milliseconds, or as long as a slow disk and the other processes need


def ledger_findings(settings: Settings, *, time_ns: Callable[[], int] = time.time_ns) -> list[Finding]:
    """Return what keeps the ledger from being signed, or one line on its state, or on why there is none."""
    files = LedgerFiles(settings.directory)
    try:
        if settings.durability is Durability.MEMORY:
            return [_in_memory(is_asked_for=settings.ledger and _is_set(settings))]
        if not files.segments():
            says = "it begins with the first event" if settings.ledger else f"switched off: {_UNPROVEN}"
            return [Finding(_CHECK, says)]
        found = [_key(files), _lock(files), _older_version(files), _note(files, settings, time_ns())]
    except OSError as error:
        return [Finding(_CHECK, f"expected to read the ledger, got {error}", "run this check as the service's user")]
    wrong = [each for each in found if not each.ok]
    return wrong or [found[-1]]


def _in_memory(*, is_asked_for: bool) -> Finding:
    remedy = "keep the journal on a disk (OTEL_AUDIT_DURABILITY=os), or leave out OTEL_AUDIT_LEDGER"
    return Finding(_CHECK, f"durability memory keeps none: {_UNPROVEN}", remedy if is_asked_for else "")


def _is_set(settings: Settings) -> bool:
    return settings.sources["ledger"].origin is not Origin.DEFAULT


def _key(files: LedgerFiles) -> Finding:
    try:
        mode = stat.S_IMODE(files.key.stat().st_mode)
    except FileNotFoundError:
        return Finding(
            _CHECK,
            f"{files.key} is not there: this ledger can no longer be signed, and the next process begins a new one",
            "find out who removed it; `otel-audit verify` checks both ledgers",
        )
    if mode & 0o007:
        says = f"{files.key} has mode {mode:04o}: every user who can enter the directory can sign false entries"
        return Finding(_CHECK, says, f"chmod o-rwx {files.key}")
    return Finding(_CHECK, "its key is there")


def _lock(files: LedgerFiles) -> Finding:
    if files.lock.exists():
        return Finding(_CHECK, "its lock is in place")
    return Finding(
        _CHECK,
        f"{files.lock} is not there: processes that are at work may not see each other's turns",
        "exclude the directory from whatever removes files there; the next turn makes the lock again",
    )


def _older_version(files: LedgerFiles) -> Finding:
    """Report an unsigned ledger that has grown since the signed one began: this version does not write it then."""
    last = former.latest(files.directory, former.RETAIN)
    log = files.logs()[0] if last is not None else None
    begun = next((each for each in statements(log) if isinstance(each, SignedNote)), None) if log is not None else None
    if last is None or begun is None or last.time_ns <= begun.line.tail.time_ns + int(_SLACK_S * 1e9):
        return Finding(_CHECK, "no older version is at work")
    return Finding(
        _CHECK,
        f"{files.former} still grows: an older version of otel-audit is at work, and removes events unsigned",
        "upgrade every process that uses the directory to this version",
    )


def _note(files: LedgerFiles, settings: Settings, now_ns: int) -> Finding:
    state = LedgerState.of(files.directory)
    if state is None:
        says = "no note of the ledger can be read, so nothing is signed"
        return Finding(_CHECK, says, f"run `otel-audit verify {files.directory}`")
    due_ns = now_ns - int((settings.head_seconds + _SLACK_S) * 1e9)
    waiting = _unsigned_since(files.directory, state.note_time_ns, due_ns)
    says = f"{state.size} lines signed, the last note is {state.age_s(now_ns):.0f} s old"
    if waiting:
        return Finding(
            _CHECK,
            f"{says}, and lines of {waiting} that are older than {settings.head_seconds:g} s are not signed",
            "look for `ledger` in the stderr of that service: a full disk, or another process that has the turn",
        )
    return Finding(_CHECK, says)


def _unsigned_since(directory: Path, note_ns: int, due_ns: int) -> str:
    """Return a stream with a living writer whose last line should be signed by now, or an empty text if all are."""
    for files in streams_in(directory):
        if not FileLock.is_held(files.writer_lock):
            continue
        number = next(reversed(files.segments()), None)
        last = None if number is None else next(lines_before(files, number), None)
        if last is not None and note_ns < last.tail.observed_ns < due_ns:
            return files.stream_id
    return ""
