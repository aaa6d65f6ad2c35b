"""What keeps a signed ledger from going on: a lost key, an open one, a removed lock, late notes, an older version."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from otel_audit.diagnosis.findings import Finding
from otel_audit.diagnosis.ledger import ledger_findings
from otel_audit.journal.ledger import former
from otel_audit.journal.ledger.entries import Kind
from otel_audit.journal.ledger.files import LedgerFiles
from otel_audit.settings import Settings
from tests.cli.journals import a_journal, record
from tests.journal.ledger.telling import a_ledger

HOUR_NS = 3600 * 10**9


def findings(directory: Path, *, now_ns: int | None = None, **more: object) -> list[Finding]:
    settings = Settings.load({}, {"directory": str(directory), **more})
    return ledger_findings(settings, time_ns=time.time_ns if now_ns is None else lambda: now_ns)


@pytest.fixture
def files(tmp_path: Path) -> LedgerFiles:
    a_ledger(tmp_path).tell([(Kind.HEAD, {"stream": "s", "size": 1})])
    return LedgerFiles(tmp_path)


def test_a_ledger_that_can_go_on_is_one_line(files: LedgerFiles) -> None:
    (finding,) = findings(files.directory)

    assert finding.ok
    assert finding.says.startswith("4 lines signed, the last note is ")


def test_where_there_is_no_ledger_it_is_said_why(tmp_path: Path) -> None:
    assert findings(tmp_path) == [Finding("ledger", "it begins with the first event")]
    assert findings(tmp_path, ledger=False) == [Finding("ledger", "switched off: nothing can be proven to a stranger")]
    assert findings(tmp_path, durability="memory", export="console") == [
        Finding("ledger", "durability memory keeps none: nothing can be proven to a stranger")
    ]


def test_memory_mode_is_asked_for_a_ledger_in_vain(tmp_path: Path) -> None:
    (finding,) = findings(tmp_path, durability="memory", export="console", ledger=True)

    assert not finding.ok


def test_a_key_that_is_gone_is_named(files: LedgerFiles) -> None:
    files.key.unlink()

    (finding,) = findings(files.directory)

    assert not finding.ok
    assert finding.says.startswith(f"{files.key} is not there")


def test_a_key_that_every_user_can_read_is_named(files: LedgerFiles) -> None:
    files.key.chmod(0o644)

    assert findings(files.directory) == [
        Finding(
            "ledger",
            f"{files.key} has mode 0644: every user who can enter the directory can sign false entries",
            f"chmod o-rwx {files.key}",
        )
    ]


def test_a_lock_that_somebody_removed_is_named(files: LedgerFiles) -> None:
    files.lock.unlink()

    (finding,) = findings(files.directory)

    assert finding.says.startswith(f"{files.lock} is not there")


def test_an_unsigned_ledger_that_grows_beside_it_shows_an_older_version(files: LedgerFiles) -> None:
    def removed_at(time_ns: int) -> None:
        ledger = former.Ledger.locked(files.directory)
        assert ledger is not None
        ledger.append(former.RETAIN, {"stream_id": "s"}, time_ns)
        ledger.release()

    removed_at(time.time_ns() - HOUR_NS)
    assert all(each.ok for each in findings(files.directory))

    removed_at(time.time_ns() + HOUR_NS)
    (finding,) = findings(files.directory)
    assert finding.says.startswith(f"{files.former} still grows")


def test_notes_that_are_late_are_named_only_while_a_writer_lives_whose_lines_wait(files: LedgerFiles) -> None:
    journal = a_journal(files.directory)
    record(journal, "a")
    assert all(each.ok for each in findings(files.directory))

    (finding,) = findings(files.directory, now_ns=time.time_ns() + HOUR_NS)
    assert not finding.ok
    assert "are not signed" in finding.says

    journal.close()
    assert all(each.ok for each in findings(files.directory, now_ns=time.time_ns() + HOUR_NS))
