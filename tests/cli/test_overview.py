"""`otel-audit` without a command says what is here, and the command that helps next."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import otel_audit
from otel_audit.cli import main
from tests.cli.journals import Inbox, a_journal, deliver, record
from tests.end_to_end.other_users import as_user, require_other_users


def shown() -> str:
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 0
    assert result.stderr == ""
    return result.stdout


def following(text: str) -> str:
    (line,) = (line for line in text.splitlines() if line.startswith("Next: "))
    return line.removeprefix("Next: ")


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OTEL_AUDIT_DIR", str(tmp_path))
    return tmp_path


def test_where_nothing_was_recorded_it_makes_nothing_and_names_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_AUDIT_DIR", str(tmp_path / "journal"))

    text = shown()

    assert f"none yet in {tmp_path / 'journal'}" in text
    assert following(text) == "otel-audit demo"
    assert list(tmp_path.iterdir()) == []


def test_it_counts_the_events_of_the_journal_and_how_many_were_delivered(directory: Path) -> None:
    journal = a_journal(directory)
    deliver(record(journal, "a", "b", "c"), Inbox())
    record(journal, "d")

    text = shown()

    assert "  events     4 events in 1 stream of shop\n" in text
    assert "  delivered  3, 1 pending\n" in text
    assert "  signed     nothing: there is no signed ledger; `otel-audit status` says why\n" in text
    assert following(text) == f"otel-audit tail {directory}"
    journal.close()


def test_what_nobody_delivers_is_looked_into_with_status(directory: Path) -> None:
    journal = a_journal(directory)
    record(journal, "a")
    journal.close()

    assert following(shown()) == f"otel-audit status {directory}"


def test_a_journal_without_an_event_is_looked_into_with_doctor(directory: Path) -> None:
    assert following(shown()) == f"otel-audit doctor {directory}"


def test_a_trail_with_a_signed_ledger_is_verified_next(directory: Path) -> None:
    audit = otel_audit.configure(directory=directory)
    audit.log_authn(outcome="success")
    audit.close()

    text = shown()

    assert following(text) == f"otel-audit verify {directory}"
    assert "  signed     by otel-audit/" in text


def test_a_mistaken_setting_is_named_and_config_tells_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_AUDIT_DURABILITY", "always")

    text = shown()

    assert "OTEL_AUDIT_DURABILITY" in text
    assert following(text) == "otel-audit config"


@pytest.mark.processes
@pytest.mark.parametrize("hidden", ["outer/journal", "outer"])
def test_a_journal_that_this_user_may_not_read_is_named_with_the_reason(hidden: str, tmp_path: Path) -> None:
    require_other_users()
    directory = tmp_path / "outer" / "journal"
    directory.parent.mkdir()
    journal = a_journal(directory)
    record(journal, "a")
    journal.close()
    for each in (directory, directory.parent):
        each.chmod(0o755)
    (tmp_path / hidden).chmod(0o700)

    done = subprocess.run(
        as_user(65534, 65534, [Path(sys.executable).with_name("otel-audit")], umask=0o022, shown=[tmp_path]),
        env={**os.environ, "OTEL_AUDIT_DIR": str(directory)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert f"{directory} cannot be read: Permission denied" in done.stdout
    assert following(done.stdout) == f"otel-audit doctor {directory}"
