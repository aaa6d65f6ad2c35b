"""`otel-audit ship` as a process of its own, over the streams of processes that died or leave the delivery to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from otel_audit.journal.census import census
from otel_audit.journal.cursor import read_cursor
from otel_audit.journal.files import StreamFiles, streams_in
from otel_audit.journal.journal import Journal
from otel_audit.journal.locks import FileLock
from tests.delivery.audited_server import AuditedServer
from tests.journal.writing import append, description
from tests.servers import free_port, poll
from tests.servers.otlp_server import Answer, OtlpServer
from tests.servers.ports import LOOPBACK

pytestmark = pytest.mark.processes

COMMAND = Path(sys.executable).with_name("otel-audit")


def environment(server: OtlpServer, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return {
        **kept,
        "NO_PROXY": "*",
        "OTEL_EXPORTER_OTLP_ENDPOINT": server.base_url,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_SERVICE_NAME": "shipper",
        **more,
    }


def ship(directory: Path, server: OtlpServer, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "ship", "--once", *options, str(directory)],
        env=environment(server, **variables),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@contextmanager
def shipping(directory: Path, server: OtlpServer, *options: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """`ship` without --once, until the end of the block; SIGKILL if it is then still there."""
    with subprocess.Popen(
        [COMMAND, "ship", *options, str(directory)],
        env=environment(server, **{"OTEL_AUDIT_BATCH_DELAY_S": "0.05", "OTEL_AUDIT_CLOSE_TIMEOUT_S": "3", **variables}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline().startswith(f"shipping {directory} to {server.endpoint}")
            yield process
        finally:
            process.kill()


def asked(port: int, path: str) -> tuple[int, dict[str, Any]]:
    with requests.get(f"http://{LOOPBACK}:{port}{path}", timeout=10) as answer:
        assert answer.headers["Content-Type"] == "application/json"
        return answer.status_code, answer.json()


def journal_of(directory: Path, export: str = "otlp", **more: object) -> Journal:
    def describe() -> Mapping[str, Any]:
        return {**description(), "export": [export], **more}

    return Journal(directory, describe=describe)


def left_behind(directory: Path, *names: str, export: str = "otlp", **more: object) -> StreamFiles:
    journal = journal_of(directory, export, **more)
    for name in names:
        append(journal, name)
    assert journal.stream is not None
    files = journal.stream.files
    journal.close()
    return files


def totals(directory: Path) -> dict[str, int]:
    counted = census(directory).totals
    return {name: getattr(counted, name) for name in ("emitted", "exported", "pending", "quarantined")}


def test_everything_of_every_service_is_delivered_and_the_streams_are_over(
    tmp_path: Path, server: AuditedServer
) -> None:
    files = [
        left_behind(tmp_path, "a", "b"),
        left_behind(tmp_path, "c", resource={"service.name": "other"}),
        left_behind(tmp_path, "d", export="none"),
        left_behind(tmp_path, "e", export="ship"),
    ]

    done = ship(tmp_path, server)

    assert done.returncode == 0, done.stderr
    assert done.stdout == f"5 events and 4 system lines of 4 streams sent to {server.endpoint}, 0 quarantined\n"
    assert done.stderr == ""
    assert [name for name in server.accepted if name != "header"] == ["a", "b", "c", "d", "e"]
    assert all(read_cursor(each.cursor)[1] for each in files)
    assert list(tmp_path.glob("*-*.lock")) == []
    assert totals(tmp_path) == {"emitted": 5, "exported": 5, "pending": 0, "quarantined": 0}


def test_a_second_run_finds_nothing_to_do(tmp_path: Path, server: AuditedServer) -> None:
    left_behind(tmp_path, "a")
    ship(tmp_path, server)

    done = ship(tmp_path, server, "--json")

    assert done.returncode == 0
    assert json.loads(done.stdout) == {
        "directory": str(tmp_path),
        "endpoint": server.endpoint,
        "streams": 0,
        "exported": 0,
        "quarantined": 0,
        "system": 0,
        "left": [],
    }
    assert server.accepted == ["header", "a"]


def test_what_was_sent_again_is_equal_and_the_numbers_stay_true(tmp_path: Path, server: AuditedServer) -> None:
    left_behind(tmp_path, "a", "b")
    ship(tmp_path, server)

    done = ship(tmp_path, server, "--again")

    assert done.returncode == 0, done.stderr
    first, second = server.requests
    assert first.body == second.body
    assert totals(tmp_path) == {"emitted": 2, "exported": 2, "pending": 0, "quarantined": 0}


def test_sending_again_gives_quarantined_lines_another_chance(tmp_path: Path, server: AuditedServer) -> None:
    left_behind(tmp_path, "a", "b", "c")
    server.judge = lambda names: Answer(400, b"no") if "b" in names else None
    done = ship(tmp_path, server, "--json")
    assert json.loads(done.stdout)["quarantined"] == 1
    assert totals(tmp_path) == {"emitted": 3, "exported": 2, "pending": 0, "quarantined": 1}

    server.judge = lambda names: None
    done = ship(tmp_path, server, "--again", "--json")

    assert json.loads(done.stdout)["exported"] == 3
    assert totals(tmp_path) == {"emitted": 3, "exported": 3, "pending": 0, "quarantined": 0}


def test_a_destination_that_is_away_is_said_and_not_waited_for(tmp_path: Path) -> None:
    streams = [left_behind(tmp_path, f"event-{number}") for number in range(6)]
    with OtlpServer() as gone:
        pass

    done = ship(tmp_path, gone)

    assert done.returncode == 1
    left = dict(line.split(": not sent: ", 1) for line in done.stderr.splitlines())
    assert set(left) == {each.stream_id for each in streams}
    assert all("connection refused" in reason for reason in left.values())
    assert totals(tmp_path)["pending"] == 6


def test_a_silent_destination_is_not_tried_with_every_stream(tmp_path: Path, server: AuditedServer) -> None:
    server.judge = lambda names: Answer(delay_s=60)
    for number in range(20):
        left_behind(tmp_path, f"event-{number}")

    done = ship(tmp_path, server, "--json", OTEL_EXPORTER_OTLP_TIMEOUT="1")

    assert done.returncode == 1
    assert len(server.requests) == 3
    reasons = [left["reason"] for left in json.loads(done.stdout)["left"]]
    assert len(reasons) == 20
    assert all("no answer within 1 s" in reason for reason in reasons)


def test_a_batch_that_is_too_large_is_halved_at_once(tmp_path: Path, server: AuditedServer) -> None:
    server.judge = lambda names: Answer(413) if len(names) > 4 else None
    left_behind(tmp_path, *(f"event-{number}" for number in range(100)))

    done = ship(tmp_path, server)

    assert done.returncode == 0, done.stderr
    assert server.accepted == ["header", *(f"event-{number}" for number in range(100))]


@pytest.mark.parametrize(
    "answer", [Answer(429), Answer(504), Answer(cut_after_bytes=0, reset=True)], ids=["429", "504", "closed"]
)
def test_a_line_that_alone_is_too_large_is_found_although_the_endpoint_does_not_say_so(
    answer: Answer, tmp_path: Path, server: AuditedServer
) -> None:
    long = "long" * 1000
    server.judge = lambda names: answer if long in names else None
    left_behind(tmp_path, "a", long, "b")

    done = ship(tmp_path, server)

    assert done.returncode == 0, done.stderr
    assert {"a", "b"} <= set(server.accepted)
    assert totals(tmp_path) == {"emitted": 3, "exported": 2, "pending": 0, "quarantined": 1}


def test_a_bad_record_at_the_end_of_one_stream_is_settled_by_the_next(tmp_path: Path, server: AuditedServer) -> None:
    server.judge = lambda names: Answer(400, b"no") if "bad" in names else None
    left_behind(tmp_path, "a", "bad")
    left_behind(tmp_path, "b")

    done = ship(tmp_path, server)

    assert done.returncode == 0, done.stderr
    assert totals(tmp_path) == {"emitted": 3, "exported": 2, "pending": 0, "quarantined": 1}


def test_good_records_between_a_row_of_bad_ones_and_a_bad_last_one_arrive(
    tmp_path: Path, server: AuditedServer
) -> None:
    server.judge = lambda names: Answer(400, b"no") if any(name.startswith("bad") for name in names) else None
    good = [f"good-{number}" for number in range(100)]
    left_behind(tmp_path, *(f"bad-{number}" for number in range(40)), *good, "bad-last")

    done = ship(tmp_path, server)

    assert done.returncode == 0, done.stderr
    assert set(good) < set(server.accepted)
    assert totals(tmp_path) == {"emitted": 141, "exported": 100, "pending": 0, "quarantined": 41}


def test_records_are_left_where_the_endpoint_never_took_one(tmp_path: Path, server: AuditedServer) -> None:
    server.judge = lambda names: Answer(400, b"no")
    files = left_behind(tmp_path, "a", "b")

    done = ship(tmp_path, server)

    assert done.returncode == 1
    assert done.stderr == f"{files.stream_id}: not sent: 400 Bad Request: no\n"
    assert totals(tmp_path) == {"emitted": 2, "exported": 0, "pending": 2, "quarantined": 0}


def test_a_stream_of_another_host_is_left_unless_it_is_asked_for(memory_disk: Path, server: AuditedServer) -> None:
    files = left_behind(memory_disk, "a", host_id="another")

    done = ship(memory_disk, server)
    assert done.returncode == 1
    assert f"{files.stream_id}: not sent: written on another host" in done.stderr
    assert "--adopt-foreign" in done.stderr
    assert server.requests == []

    done = ship(memory_disk, server, "--adopt-foreign")
    assert done.returncode == 0
    assert server.accepted == ["header", "a"]


def test_a_stream_of_another_format_is_left_for_the_version_that_wrote_it(
    tmp_path: Path, server: AuditedServer
) -> None:
    later, known = left_behind(tmp_path, "later"), left_behind(tmp_path, "known")
    segment = later.segment(1)
    segment.write_bytes(segment.read_bytes().replace(b'"format":1', b'"format":2', 1))

    done = ship(tmp_path, server)

    assert done.returncode == 1
    assert f"{segment}: expected a segment of format 1, got 2" in done.stdout + done.stderr
    assert [name for name in server.accepted if name != "header"] == ["known"]
    assert (read_cursor(later.cursor)[1], read_cursor(known.cursor)[1]) == (False, True)


def test_a_live_writer_that_delivers_itself_is_left_alone(tmp_path: Path, server: AuditedServer) -> None:
    journal = journal_of(tmp_path, "otlp")
    append(journal, "its own")

    done = ship(tmp_path, server)

    assert done.returncode == 0, done.stderr
    assert server.requests == []
    journal.close()


def test_what_a_live_writer_leaves_to_ship_is_delivered_up_to_now(tmp_path: Path, server: AuditedServer) -> None:
    journal = journal_of(tmp_path, "ship")
    append(journal, "a")

    assert ship(tmp_path, server).returncode == 0
    assert server.accepted == ["header", "a"]
    append(journal, "b")
    assert ship(tmp_path, server).returncode == 0

    assert server.accepted == ["header", "a", "b"]
    assert journal.stream is not None
    assert FileLock.is_held(journal.stream.files.writer_lock)
    assert not read_cursor(journal.stream.files.cursor)[1]
    journal.close()


LOGS_AND_FLUSHES = """
    import sys
    import otel_audit

    audit = otel_audit.configure()
    for line in sys.stdin:
        request_id, timeout_s = line.split()
        audit.log_authn(request_id=request_id, outcome="success")
        report = audit.flush(timeout_s=float(timeout_s))
        print(report.complete, report.pending, audit.stats().pending, flush=True)
"""


def test_a_service_that_leaves_delivery_to_ship_hears_from_flush_what_ship_delivered(
    tmp_path: Path, server: AuditedServer
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(LOGS_AND_FLUSHES)],
        env={**os.environ, "OTEL_AUDIT_DIR": str(tmp_path), "OTEL_AUDIT_EXPORT": "ship", "OTEL_SERVICE_NAME": "shop"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as service:
        assert service.stdin is not None
        assert service.stdout is not None
        service.stdin.write("a 0.1\n")
        service.stdin.flush()
        assert service.stdout.readline() == "False 2 1\n"
        with shipping(tmp_path, server):
            poll(lambda: server.accepted, what="what is there already")
            service.stdin.write("b 60\n")
            service.stdin.flush()
            assert service.stdout.readline() == "True 0 0\n"
            service.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_goes_on_until_it_is_told_to_end_and_lets_go_of_every_lock(
    number: signal.Signals, tmp_path: Path, server: AuditedServer
) -> None:
    left_behind(tmp_path, "dead")
    journal = journal_of(tmp_path, "ship")
    append(journal, "live-1")
    with shipping(tmp_path, server) as process:
        poll(lambda: server.accepted, until=lambda names: len(names) == 4, what="four records")
        append(journal, "live-2")
        poll(lambda: "live-2" in server.accepted, what="what came later")

        process.send_signal(number)
        _, errors = process.communicate(timeout=120)

    assert process.returncode == 0, errors
    assert errors == "stopped; all is delivered\n"
    assert not any(FileLock.is_held(each.ship_lock) for each in streams_in(tmp_path))
    journal.close()


def test_it_ends_in_time_and_says_so_while_the_destination_is_away(tmp_path: Path, server: AuditedServer) -> None:
    server.judge = lambda names: Answer(503)
    left_behind(tmp_path, "a")
    with shipping(tmp_path, server, "--json") as process:
        poll(lambda: server.requests, what="a try")

        process.terminate()
        output, _ = process.communicate(timeout=120)

    assert process.returncode == 1
    said = json.loads(output)
    assert said["delivered"] is False
    assert said["blocked"] == "503 Service Unavailable"


def test_two_of_them_share_a_directory_without_sending_twice(tmp_path: Path, server: AuditedServer) -> None:
    streams = [left_behind(tmp_path, *(f"{number}-{index}" for index in range(50))) for number in range(20)]
    port, both_have_looked = free_port(), threading.Event()
    patient = {"OTEL_EXPORTER_OTLP_TIMEOUT": "100"}
    with AuditedServer() as second:
        server.judge = second.judge = lambda names: None if both_have_looked.wait(60) else Answer(503)
        with shipping(tmp_path, server, **patient):
            poll(lambda: server.requests, what="the first one at work")
            with shipping(tmp_path, second, "--health", str(port), **patient):
                poll(lambda: asked(port, "/readyz")[0], until=lambda code: code == 200, what="the second one's look")
                both_have_looked.set()
                poll(lambda: totals(tmp_path)["pending"], until=lambda pending: pending == 0, what="all of it")

        arrived = [name for name in server.accepted + second.accepted if name != "header"]
        assert len(arrived) == len(set(arrived)) == 50 * len(streams)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, "OTEL_EXPORTER_OTLP_TIMEOUT: expected"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "not a url"}, "OTEL_EXPORTER_OTLP_ENDPOINT: expected"),
    ],
)
def test_a_wrong_setting_is_wrong_usage(
    variables: dict[str, str], words: str, tmp_path: Path, server: AuditedServer
) -> None:
    done = ship(tmp_path, server, **variables)

    assert done.returncode == 2
    assert words in done.stderr


def test_a_directory_that_does_not_exist_is_wrong_usage(tmp_path: Path, server: AuditedServer) -> None:
    done = ship(tmp_path / "missing", server)

    assert done.returncode == 2
    assert "does not exist" in done.stderr
