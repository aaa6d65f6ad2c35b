"""`otel-audit export`: the same events from wherever the trail lies, and a word on what could not be written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import otel_audit
from otel_audit.cli import main
from otel_audit.journal.files import streams_in
from otel_audit.journal.line import is_system
from tests.servers import VictoriaLogs
from tests.servers.loki import LokiDouble
from tests.stores.archives import archived, headers_of, journal_lines, some_streams
from tests.stores.test_log_stores import put


def run(*arguments: str | Path, directory: str | Path = "") -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)], env={"OTEL_AUDIT_DIR": str(directory)})


def exported(*arguments: str | Path, directory: str | Path = "") -> list[dict[str, Any]]:
    result = run(*arguments, "--format", "ocsf", directory=directory)
    assert (result.exit_code, result.stderr) == (0, "")
    return [json.loads(line) for line in result.stdout.split("\n")[:-1]]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    some_streams(tmp_path / "journal")
    return tmp_path / "journal"


def hashes_of(journal: Path) -> list[str]:
    lines = (line for of_stream in journal_lines(journal).values() for line in of_stream)
    return [hashlib.sha256(line).hexdigest() for line in lines if not is_system(line)]


def test_every_event_of_a_journal_is_written_once_with_the_hash_of_its_line(journal: Path) -> None:
    events = exported(journal)

    assert sorted(event["raw_data_hash"]["value"] for event in events) == sorted(hashes_of(journal))
    assert {event["metadata"]["log_provider"] for event in events} == {"shop"}
    assert {event["class_uid"] for event in events} == {4002}


def test_without_a_source_it_is_the_journal_of_the_environment(journal: Path) -> None:
    assert exported(directory=journal) == exported(journal)


def test_an_archive_gives_the_events_of_the_journal_and_copies_once(journal: Path, tmp_path: Path) -> None:
    headers = headers_of(journal)
    requests = [archived(headers[stream], lines) for stream, lines in journal_lines(journal).items()]
    (tmp_path / "archive.jsonl").write_bytes(b"\n".join([*requests, requests[0], b""]))

    assert exported(tmp_path / "archive.jsonl") == exported(journal)


def test_a_loki_gives_the_events_of_the_journal(journal: Path) -> None:
    headers = headers_of(journal)
    with LokiDouble() as loki:
        for stream_id, lines in journal_lines(journal).items():
            put(loki, lines, headers[stream_id])

        assert exported(f"loki+{loki.base_url}") == exported(journal)


def test_a_victorialogs_gives_the_events_of_the_journal(journal: Path, victorialogs: VictoriaLogs) -> None:
    headers = headers_of(journal)
    for stream_id, lines in journal_lines(journal).items():
        put(victorialogs, lines, headers[stream_id])

    assert exported(f"victorialogs+{victorialogs.base_url}") == exported(journal)


def test_a_log_of_feast_is_written_too(tmp_path: Path) -> None:
    event = otel_audit.AuditEvent(event_type="authn.failure", timestamp="2026-09-21T13:33:20.123Z", outcome="failure")
    (tmp_path / "feast_audit.log").write_text(event.to_jsonl() + "\n")

    (written,) = exported(tmp_path / "feast_audit.log")

    assert (written["class_uid"], written["time"]) == (3002, 1789997600123)
    assert written["metadata"]["original_time"] == "2026-09-21T13:33:20.123Z"


def test_what_is_damaged_is_counted_and_all_else_is_written(journal: Path) -> None:
    files = streams_in(journal)[0]
    path = files.segment(files.segments()[0])
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], b"\x00 torn", *lines[3:]]))

    result = run(journal, "--format", "ocsf")

    assert result.exit_code == 1
    assert len(result.stdout.split("\n")) - 1 == len(hashes_of(journal))
    assert "damaged lines left out: 1; `otel-audit verify` says where" in result.stderr


def test_what_a_terminal_would_obey_is_escaped(tmp_path: Path) -> None:
    with otel_audit.configure(directory=tmp_path, export="none", service_name="shop") as audit:
        audit.log_mcp_call(tool_name="clear \x1b[2J\u202e")

    result = run(tmp_path, "--format", "ocsf")

    assert "\x1b" not in result.stdout
    assert result.stdout.isascii()
    assert json.loads(result.stdout)["api"]["operation"] == "clear \x1b[2J\u202e"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("/nowhere", "--format", "ocsf"), "expected the directory of a journal, got '/nowhere', which does not exist"),
        (("", "--format", "ocsf"), "expected a path or a URL as SOURCE, got an empty one"),
        ((".",), "expected --format, got none; `"),
    ],
    ids=["nowhere", "empty", "no format"],
)
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments)

    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_a_file_that_is_no_trail_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no event\n")

    result = run(tmp_path / "notes.txt", "--format", "ocsf")

    assert result.exit_code == 2
    assert "got a file without a line of one" in result.stderr


def test_a_log_store_that_cannot_be_asked_is_said_in_one_line() -> None:
    result = run("victorialogs+http://127.0.0.1:9", "--format", "ocsf")

    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
