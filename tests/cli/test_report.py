"""`otel-audit report`: the file, the JSON, the exit codes, and the verification in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from otel_audit import AuditPrincipal
from otel_audit.cli import main
from otel_audit.signing.keys import SigningKey
from tests.recording import recorder
from tests.reporting.pages import Page
from tests.stores.archives import archive_of
from tests.verification.forge import Forge, each_line
from tests.verification.kept import delivered


def run(*arguments: str | Path, directory: str | Path = "") -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)], env={"OTEL_AUDIT_DIR": str(directory)})


def reported(result: Result) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(result.stdout)
    return report


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    directory = tmp_path / "journal"
    with recorder(directory) as audit:
        alice = AuditPrincipal(username="alice")
        audit.log_http_request(method="GET", path="/orders/7", status_code=403, principal=alice, outcome="denied")
        audit.log_authn(outcome="failure", principal=AuditPrincipal(username="mallory"))
    return directory


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    forge = Forge(tmp_path / "signed", identity=SigningKey.generate())
    forge.honest_stream(segments=2)
    forge.write()
    delivered(forge)
    return forge


def test_the_page_and_the_json_are_of_one_report(journal: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"

    result = run("--out", out, "--json", directory=journal)

    assert result.exit_code == 0, result.output
    report, page = reported(result), Page(out.read_text())
    assert report["totals"]["events"] == 2
    assert [row["actor"] for row in report["denied"]["rows"]] == ["alice"]
    assert [row["actor"] for row in report["failed_logins"]["rows"]] == ["mallory"]
    assert report["conclusion"] in page.text
    assert "GET /orders/7" in page.text
    assert f"{out} written; CONSISTENT: " in result.stderr


@pytest.mark.parametrize("since", ["0001-01-01", "1970-01-01", "99999999w"])
def test_a_period_may_begin_and_end_beyond_every_time_that_a_line_can_hold(journal: Path, since: str) -> None:
    result = run("--since", since, "--until", "9999-12-31", "--json", directory=journal)

    assert result.exit_code == 0, result.output
    assert reported(result)["totals"]["events"] == 2


def test_only_its_maker_may_read_a_page_which_replaces_an_earlier_one(journal: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("an earlier one")
    out.chmod(0o644)

    assert run(journal, "--out", out).exit_code == 0

    assert out.stat().st_mode & 0o777 == 0o600
    assert out.read_text().startswith("<!DOCTYPE html>")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["journal", "report.html"]


def test_a_page_that_cannot_be_written_is_said_in_one_line(journal: Path, tmp_path: Path) -> None:
    out = tmp_path / "missing" / "report.html"

    result = run(journal, "--out", out)

    assert result.exit_code == 1
    assert result.stderr == (
        f"otel-audit report: expected to read or write {out}, got No such file or directory; "
        "correct the path or make its directory, and run it again\n"
    )


def test_a_filter_chooses_the_events(journal: Path) -> None:
    alice = reported(run(journal, "--actor", "alice", "--json"))
    nothing = reported(run(journal, "--until", "2020-01-01", "--service", "x", "--json"))

    assert alice["totals"]["events"] == 1
    assert alice["filters"] == {"actor": ["alice"]}
    assert nothing["totals"]["events"] == 0


def test_a_broken_trail_is_reported_with_its_reasons_and_exit_code_1(forge: Forge, tmp_path: Path) -> None:
    stream = forge.streams[0]
    each_line(stream.path(1), lambda lines: lines[:8] + lines[9:])
    out = tmp_path / "report.html"

    result = run(forge.directory, "--out", out, "--json")

    page = Page(out.read_text())
    assert result.exit_code == 1
    assert reported(result)["verification"]["verdict"] == "broken"
    assert "BROKEN: the trail in " in page.text
    assert "line 9 is not there" in page.text


def test_a_report_has_the_keys_and_the_note_that_the_verdict_rests_on(forge: Forge, tmp_path: Path) -> None:
    assert forge.identity is not None
    key = str(forge.identity.verifier("otel-audit/shop"))
    out = tmp_path / "report.html"

    result = run(forge.directory, "--key", key, "--out", out, "--json")

    report, page = reported(result), Page(out.read_text())
    assert result.exit_code == 0
    assert report["conclusion"].startswith("PROVEN: the 44 signed lines of the trail in ")
    ledger = report["verification"]["ledger"]
    assert ledger["vkey"] in page.text
    assert ledger["identity"] in page.text
    assert ledger["note"] in page.text
    assert "Pinned by --key." in page.text


def test_an_archive_is_reported_and_verified_too(journal: Path, tmp_path: Path) -> None:
    archive = archive_of(journal, tmp_path / "archive.jsonl")

    of_archive, of_journal = (reported(run(where, "--json")) for where in (archive, journal))

    assert of_archive["denied"] == of_journal["denied"]
    assert of_archive["verification"]["source"] == str(archive)


def test_a_log_of_events_is_reported_and_said_to_be_not_verified(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    event = {"event_type": "http.request", "timestamp": "2026-11-29T08:00:00.000Z", "outcome": "success"}
    log.write_text(json.dumps(event) + "\n")

    result = run(log, "--json")

    assert result.exit_code == 0, result.output
    report = reported(result)
    assert report["verification"] is None
    assert report["conclusion"].startswith("NOT VERIFIED: ")


def test_a_report_that_goes_nowhere_is_wrong_usage(journal: Path) -> None:
    result = run(journal)

    assert result.exit_code == 2
    assert "expected --out FILE.html, --evidence FILE.zip or --json, got none; give one" in result.stderr


def test_a_missing_trail_is_wrong_usage(tmp_path: Path) -> None:
    assert run(tmp_path / "nowhere", "--json").exit_code == 2
