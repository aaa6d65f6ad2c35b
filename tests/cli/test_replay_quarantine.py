"""`otel-audit replay --quarantine`: what was refused is sent again, with and without somebody who ships the streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from otel_audit.journal.census import census
from otel_audit.journal.cursor import read_cursor
from otel_audit.journal.files import StreamFiles
from otel_audit.logger import AuditLogger
from otel_audit.settings import Settings
from otel_audit.trail import Trail
from tests.cli.journals import Inbox, a_journal, deliver
from tests.delivery.audited_server import AuditedServer
from tests.journal.writing import append
from tests.servers import poll
from tests.servers.otlp_server import Answer

pytestmark = pytest.mark.processes

COMMAND = Path(sys.executable).with_name("otel-audit")


def command(name: str, *arguments: str | Path, endpoint: str, **more: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "AUDIT_"))}
    return subprocess.run(
        [COMMAND, name, *arguments],
        env={
            **kept,
            "NO_PROXY": "*",
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            **more,
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def replay(directory: Path, server: AuditedServer, *options: str, exit_code: int = 0) -> dict[str, Any]:
    done = command("replay", "--quarantine", directory, "--json", *options, endpoint=server.base_url)
    assert done.returncode == exit_code, (done.returncode, done.stdout, done.stderr)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def a_stream(directory: Path, *names: str) -> StreamFiles:
    """A stream of a process that ended, of which the names with `spoilt` in them were refused."""
    with closing(a_journal(directory, segment_bytes=4096)) as journal:
        for name in names:
            append(journal, name)
        assert journal.stream is not None
        files = journal.stream.files
    deliver(files, Inbox(refuses=b"spoilt"))
    return files


def some_names(count: int, bad: Sequence[int]) -> list[str]:
    return [f"spoilt-{number}" if number in bad else f"good-{number}" for number in range(count)]


def totals(directory: Path) -> dict[str, int]:
    counted = census(directory).totals
    return {name: getattr(counted, name) for name in ("emitted", "exported", "pending", "quarantined")}


def test_what_is_accepted_now_is_in_quarantine_no_more(tmp_path: Path, server: AuditedServer) -> None:
    bad = [1, 2, 3, 17, 58]
    names = some_names(60, bad)
    a_stream(tmp_path, *names)
    a_stream(tmp_path, "spoilt-other", "good-other")
    assert totals(tmp_path) == {"emitted": 62, "exported": 56, "pending": 0, "quarantined": 6}

    said = replay(tmp_path, server)

    assert (said["streams"], said["lines"], said["sent"], said["refused"], said["missing"]) == (2, 6, 6, 0, 0)
    assert server.accepted == [*(f"spoilt-{number}" for number in bad), "spoilt-other"]
    assert totals(tmp_path) == {"emitted": 62, "exported": 62, "pending": 0, "quarantined": 0}
    assert command("status", tmp_path, endpoint=server.base_url).returncode == 0
    assert replay(tmp_path, server)["lines"] == 0


def test_the_record_is_the_one_that_was_refused(tmp_path: Path, server: AuditedServer) -> None:
    files = a_stream(tmp_path, "spoilt", "good")
    replay(tmp_path, server)
    command("ship", "--once", "--again", tmp_path, endpoint=server.base_url)

    first, *later = [request.body for request in server.requests]

    assert server.batches[0] == ["spoilt"]
    assert b'"event_id": "spoilt"' in first
    line = next(line for line in files.segment(1).read_bytes().split(b"\n") if b'"spoilt"' in line)
    assert line in first
    assert any(line in body for body in later)
    assert totals(tmp_path) == {"emitted": 2, "exported": 2, "pending": 0, "quarantined": 0}


def test_what_is_refused_again_stays_and_is_said(tmp_path: Path, server: AuditedServer) -> None:
    files = a_stream(tmp_path, "good-1", "spoilt-1", "spoilt-2", "spoilt-3", "good-2")
    server.judge = lambda names: Answer(400, b"no") if "spoilt-2" in names else None

    done = command("replay", "--quarantine", tmp_path, endpoint=server.base_url)

    assert done.returncode == 1
    assert done.stdout == (
        f"2 of 3 quarantined lines of 1 stream sent to {server.endpoint}, 1 refused again, 0 missing\n"
    )
    assert done.stderr == f"{files.stream_id}:4: refused again: 400 Bad Request: no\n"
    assert totals(tmp_path) == {"emitted": 5, "exported": 4, "pending": 0, "quarantined": 1}
    (left,) = read_cursor(files.cursor)[0]["otlp"].quarantine
    assert (left.first_seq, left.last_seq) == (4, 4)


def test_an_endpoint_that_is_away_or_refuses_everything_changes_nothing(tmp_path: Path, server: AuditedServer) -> None:
    a_stream(tmp_path, *some_names(100, range(50, 100)))
    before = totals(tmp_path)
    for answer in (Answer(503), Answer(400, b"no")):
        server.judge = lambda names, answer=answer: answer  # type: ignore[misc]

        said = replay(tmp_path, server, "--give-up-after", "0", exit_code=1)

        assert said["left"]
        assert said["sent"] == 0
        assert totals(tmp_path) == before


def test_what_a_first_run_did_is_not_done_again(tmp_path: Path, server: AuditedServer) -> None:
    a_stream(tmp_path, "spoilt-1", "good")
    a_stream(tmp_path, "spoilt-2", "good")
    server.judge = lambda names: Answer(503) if "spoilt-2" in names else None
    assert replay(tmp_path, server, "--give-up-after", "0", exit_code=1)["sent"] == 1
    assert totals(tmp_path)["quarantined"] == 1
    server.judge = lambda names: None

    assert replay(tmp_path, server)["sent"] == 1

    assert server.accepted == ["spoilt-1", "spoilt-2"]
    assert totals(tmp_path) == {"emitted": 4, "exported": 4, "pending": 0, "quarantined": 0}


def test_lines_that_are_gone_are_missing(tmp_path: Path, server: AuditedServer) -> None:
    files = a_stream(tmp_path, *some_names(60, [1, 58]))
    files.segment(1).unlink()

    said = replay(tmp_path, server, exit_code=1)

    assert (said["sent"], said["missing"]) == (1, 1)
    assert server.accepted == ["spoilt-58"]


def test_a_live_service_counts_what_was_released_and_goes_on(tmp_path: Path, server: AuditedServer) -> None:
    server.judge = lambda names: Answer(400, b"no") if b"poison" in server.requests[-1].body else None
    settings = Settings.load(
        {},
        {
            "directory": str(tmp_path),
            "export": "otlp",
            "endpoint": server.endpoint,
            "protocol": "http/protobuf",
            "batch_delay_s": 0.05,
        },
    )
    with closing(AuditLogger(Trail(settings))) as audit:
        for detail in ("a", "poison", "b"):
            audit.log_authn(outcome="success", detail=detail)
        poll(audit.stats, until=lambda stats: (stats.exported, stats.quarantined) == (2, 1), what="one in quarantine")
        server.judge = lambda names: None

        assert replay(tmp_path, server)["sent"] == 1

        assert (audit.stats().exported, audit.stats().quarantined) == (3, 0)
        audit.log_authn(outcome="success", detail="c")
        poll(audit.stats, until=lambda stats: (stats.exported, stats.pending) == (4, 0), what="all exported")
        assert totals(tmp_path) == {"emitted": 4, "exported": 4, "pending": 0, "quarantined": 0}

    assert totals(tmp_path) == {"emitted": 4, "exported": 4, "pending": 0, "quarantined": 0}
    assert len(set(server.accepted) - {"header"}) == 4


def test_a_shipper_that_is_at_work_is_not_in_the_way(tmp_path: Path, server: AuditedServer) -> None:
    server.judge = lambda names: Answer(400, b"no") if "spoilt" in names else None
    with closing(a_journal(tmp_path, export=["ship"])) as journal:
        for name in ("good-1", "spoilt", "good-2"):
            append(journal, name)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "AUDIT_"))}
        env = {**kept, "OTEL_EXPORTER_OTLP_ENDPOINT": server.base_url, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
        with subprocess.Popen([COMMAND, "ship", tmp_path], env=env, stderr=subprocess.DEVNULL) as shipper:
            poll(lambda: totals(tmp_path)["quarantined"], what="a line in quarantine")
            server.judge = lambda names: None

            assert replay(tmp_path, server)["sent"] == 1

            assert totals(tmp_path) == {"emitted": 3, "exported": 3, "pending": 0, "quarantined": 0}
            append(journal, "good-3")
            poll(lambda: totals(tmp_path)["exported"], until=lambda exported: exported == 4, what="the next one")
            shipper.terminate()
    assert totals(tmp_path) == {"emitted": 4, "exported": 4, "pending": 0, "quarantined": 0}


def test_a_line_of_the_journal_itself_can_be_released(tmp_path: Path, server: AuditedServer) -> None:
    with closing(a_journal(tmp_path)) as journal:
        append(journal, "good")
        assert journal.stream is not None
        files = journal.stream.files
    deliver(files, Inbox(refuses=b'{"system":"segment"'))
    assert len(read_cursor(files.cursor)[0]["otlp"].quarantine) == 1

    assert replay(tmp_path, server)["sent"] == 1

    assert server.accepted == ["header"]
    assert read_cursor(files.cursor)[0]["otlp"].quarantine == ()
    assert totals(tmp_path) == {"emitted": 1, "exported": 1, "pending": 0, "quarantined": 0}


def test_the_directory_of_the_settings_is_the_one_without_a_path(tmp_path: Path, server: AuditedServer) -> None:
    a_stream(tmp_path, "spoilt", "good")

    done = command("replay", "--quarantine", endpoint=server.base_url, OTEL_AUDIT_DIR=str(tmp_path))

    assert done.returncode == 0, done.stderr
    assert server.accepted == ["spoilt"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "expected PATH"),
        (("--quarantine", "--from-start", "."), "do not go with --quarantine"),
        (("--quarantine", __file__), "expected the directory of a journal"),
    ],
)
def test_what_does_not_go_together_is_wrong_usage(options: tuple[str, ...], words: str, server: AuditedServer) -> None:
    done = command("replay", *options, endpoint=server.base_url)

    assert done.returncode == 2
    assert words in done.stderr
