"""`otel-audit replay` as a process of its own: each kind of input, into the real collector."""

from __future__ import annotations

import bz2
import json
import lzma
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from otel_audit.delivery.jsonl import as_given
from otel_audit.event import AuditPrincipal
from otel_audit.fast_line import time_ns_of
from otel_audit.logger import AuditLogger
from otel_audit.settings import Settings
from otel_audit.trail import Trail
from tests.cli.journals import a_journal, record
from tests.delivery.audited_server import AuditedServer
from tests.replaying.logs import a_line, a_log
from tests.servers import Collector, Record, StartCollector, poll
from tests.servers.otlp_server import Answer

pytestmark = pytest.mark.processes

COMMAND = Path(sys.executable).with_name("otel-audit")


def environment(endpoint: str, state: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "AUDIT_"))}
    return {
        **kept,
        "NO_PROXY": "*",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_SERVICE_NAME": "replayer",
        "OTEL_AUDIT_DIR": str(state),
        **more,
    }


def command(name: str, *arguments: str | Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, name, *arguments], env=env, capture_output=True, text=True, timeout=100, check=False
    )


def replay(
    path: Path, endpoint: str, state: Path, *options: str | Path, exit_code: int = 0, **variables: str
) -> dict[str, Any]:
    """What the command says in JSON about one run."""
    done = command("replay", path, "--json", *options, env=environment(endpoint, state, **variables))
    assert done.returncode == exit_code, (done.returncode, done.stdout, done.stderr)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def assert_is_the_line(record: Record, line: str) -> None:
    """A record of a line of a log has its time, its span, its bytes and what is derived from them."""
    event = json.loads(line)
    assert record.event_name == event["event_type"]
    assert record.time_unix_nano == record.observed_time_unix_nano == time_ns_of(event["timestamp"])
    assert (record.trace_id, record.span_id) == (event.get("trace_id", ""), event.get("span_id", ""))
    assert as_given(record.body.encode()).decode() == line
    assert record.attributes["audit.record.id"] == json.loads(record.body)["event_id"]
    assert record.resource["service.name"] == "replayer"
    assert "service.instance.id" not in record.resource
    assert record.scope_name == "otel_audit"


def ids(records: Sequence[Record]) -> list[str]:
    return [record.attributes["audit.record.id"] for record in records]


def test_a_log_of_feast_arrives_once_and_another_replay_makes_no_new_ids(tmp_path: Path, collector: Collector) -> None:
    log, state = tmp_path / "feast_audit.log", tmp_path / "state"
    lines = a_log(log, 1200)

    said = replay(log, collector.http_endpoint, state)

    assert (said["kind"], said["read"], said["sent"]) == ("event log", 1200, 1200)
    first = collector.wait_for_archive(1200)
    for each, line in zip(first, lines, strict=True):
        assert_is_the_line(each, line)
    assert len(set(ids(first))) == 1200
    assert [record.attributes["audit.sequence.number"] for record in first] == list(range(1, 1201))
    assert len({record.attributes["audit.sequence.stream_id"] for record in first}) == 1

    assert replay(log, collector.http_endpoint, state)["sent"] == 1200
    renamed = log.rename(log.with_name("feast_audit.log.1"))
    assert replay(renamed, collector.http_endpoint, state, "--from-start")["sent"] == 1200

    assert collector.wait_for_archive(2400)[:2400] == first + first


def test_our_own_export_arrives_over_grpc_with_its_times_and_spans(tmp_path: Path, collector: Collector) -> None:
    overrides = {"directory": str(tmp_path / "journal"), "export": "jsonl"}
    settings = Settings.load({}, overrides)
    with closing(AuditLogger(Trail(settings))) as audit:
        audit.log_authn(outcome="failure", principal=AuditPrincipal(username="ann"), detail="駅 \u2028")
        audit.log_http_request(method="GET", path="/x", outcome="denied", status_code=403)

    replay(settings.jsonl_path, collector.grpc_endpoint, tmp_path / "state", OTEL_EXPORTER_OTLP_PROTOCOL="grpc")

    lines = settings.jsonl_path.read_text(encoding="utf-8").split("\n")[:-1]
    records = collector.wait_for_archive(2)
    assert len(records) == len(lines) == 2
    for each, line in zip(records, lines, strict=True):
        assert_is_the_line(each, line)
    assert records[1].attributes["http.response.status_code"] == 403


def test_a_journal_is_sent_as_its_writer_would_have_and_its_cursors_stay(
    tmp_path: Path, start_collector: StartCollector
) -> None:
    directory, state = tmp_path / "journal", tmp_path / "state"
    for service in ("shop", "bank"):
        with closing(a_journal(directory, service=service, segment_bytes=4096)) as journal:
            record(journal, *(f"{service}-{number}" for number in range(30)))
    shipped, replayed = start_collector(), start_collector()
    before = {path.name: path.read_bytes() for path in directory.iterdir()}

    said = replay(directory, replayed.http_endpoint, state)

    assert (said["kind"], said["refused"], said["unreadable"]) == ("journal", 0, 0)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert len(list(directory.glob("*-*.jsonl"))) > 4
    assert command("ship", "--once", directory, env=environment(shipped.http_endpoint, state)).returncode == 0
    records = replayed.wait_for_archive(said["sent"])
    assert said["sent"] > 60
    assert records == shipped.wait_for_archive(said["sent"])


def test_a_journal_that_goes_on_gives_the_next_replay_only_what_is_new(tmp_path: Path, collector: Collector) -> None:
    directory, state = tmp_path / "journal", tmp_path / "state"
    with closing(a_journal(directory)) as first, closing(a_journal(directory)) as second:
        record(first, "a")
        record(second, "b")
        replay(directory, collector.http_endpoint, state)
        record(first, "c")
        record(second, "d")

        said = replay(directory, collector.http_endpoint, state)

    details = [json.loads(each.body)["detail"] for each in collector.wait_for_archive(6)]
    assert sorted(details) == ["", "", "a", "b", "c", "d"]
    assert said["sent"] == 6


def test_an_archive_is_sent_as_it_is_however_torn(tmp_path: Path, start_collector: StartCollector) -> None:
    first, second = start_collector(), start_collector()
    log, state = tmp_path / "log", tmp_path / "state"
    a_log(log, 300)
    replay(log, first.http_endpoint, state, OTEL_AUDIT_BATCH_COUNT="10", OTEL_RESOURCE_ATTRIBUTES="team=a,n=1")
    records = first.wait_for_archive(300)
    first.stop()
    lines = first.archive_path.read_bytes().split(b"\n")[:-1]
    torn = b"\n".join([*lines[:10], lines[10] + lines[11], lines[5][:500] + lines[12], *lines[13:], lines[7][:90]])
    rotated = first.archive_path.with_name("audit-2026-01-01T00-00-00.000.jsonl")
    rotated.write_bytes(torn)
    first.archive_path.write_bytes(b"")

    said = replay(first.archive_path.parent, second.http_endpoint, state, exit_code=1)

    assert (said["kind"], said["read"], said["sent"]) == ("collector archive", 300, 300)
    assert [each["file"] for each in said["unreadable_lines"]] == [rotated.name] * 2
    assert [each["line"] for each in said["unreadable_lines"]] == [12, len(lines)]
    assert second.wait_for_archive(300) == records
    assert replay(rotated, second.http_endpoint, state, "--from-start", exit_code=1)["sent"] == 300
    assert second.wait_for_archive(600) == records + records


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_what_was_ended_in_the_middle_goes_on_there(
    number: signal.Signals, tmp_path: Path, server: AuditedServer
) -> None:
    log, state = tmp_path / "log", tmp_path / "state"
    a_log(log, 100, ids=True)
    env = environment(server.base_url, state, OTEL_AUDIT_BATCH_COUNT="10")
    server.judge = lambda names: Answer(503, headers=(("Retry-After", "1"),)) if "event-51" in names else None
    with subprocess.Popen([COMMAND, "replay", log], env=env, stderr=subprocess.PIPE, text=True) as process:
        poll(lambda: server.requests, until=lambda requests: len(requests) > 5, what="a sixth parcel")
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    if number is not signal.SIGKILL:
        assert process.returncode == 1
        assert "the same command continues from here: stopped: 503" in errors
    server.judge = lambda names: None

    said = replay(log, server.base_url, state, OTEL_AUDIT_BATCH_COUNT="10")

    assert (said["read"], said["sent"], said["left"]) == (100, 100, None)
    assert server.accepted == [f"event-{each}" for each in range(1, 101)]


def test_a_second_replay_of_the_same_sends_nothing_while_the_first_is_under_way(
    tmp_path: Path, server: AuditedServer
) -> None:
    log, state = tmp_path / "log", tmp_path / "state"
    a_log(log, 100, ids=True)
    server.judge = lambda names: Answer(503, headers=(("Retry-After", "1"),)) if "event-51" in names else None
    env = environment(server.base_url, state, OTEL_AUDIT_BATCH_COUNT="10")
    with subprocess.Popen([COMMAND, "replay", log], env=env, stdout=subprocess.DEVNULL) as first:
        poll(lambda: server.requests, until=lambda requests: len(requests) > 5, what="a sixth parcel")

        for options in ((), ("--from-start",)):
            second = replay(log, server.base_url, state, *options, exit_code=1)

            assert second["left"].startswith("another process sends it at this moment, and holds ")
        server.judge = lambda names: None
        assert first.wait(120) == 0

    assert server.accepted == [f"event-{each}" for each in range(1, 101)]
    assert [path.suffix for path in state.iterdir()] == [".json"]


def test_a_log_that_only_begins_like_one_that_was_sent_is_sent_whole(tmp_path: Path, server: AuditedServer) -> None:
    sent, other, state = tmp_path / "sent", tmp_path / "other", tmp_path / "state"
    lines = a_log(sent, 3, ids=True)
    replay(sent, server.base_url, state)
    other.write_text(f"{lines[0]}\n" + "".join(f"{a_line(9, event_id=f'other-{each}')}\n" for each in range(5)))

    done = command("replay", other, env=environment(server.base_url, state))

    assert server.accepted[3:] == ["event-1", *(f"other-{each}" for each in range(5))]
    assert done.stdout.startswith("6 of 6 records")
    assert "that of another one with the same beginning" in done.stderr


@pytest.mark.parametrize(("kind", "pack"), [("bzip2", bz2.compress), ("xz", lzma.compress)])
def test_what_cannot_be_unpacked_is_named_and_not_left_out_in_silence(
    kind: str, pack: Callable[[bytes], bytes], tmp_path: Path, server: AuditedServer
) -> None:
    log, archive = tmp_path / "log", tmp_path / "archive"
    a_log(log, 2)
    packed = tmp_path / "packed"
    packed.write_bytes(pack(log.read_bytes()))
    archive.mkdir()
    (archive / "audit.jsonl").write_text('{"resourceLogs":[]}\n')
    (archive / "audit-2026.jsonl.gz").write_bytes(packed.read_bytes())

    for path in (packed, archive):
        done = command("replay", path, env=environment(server.base_url, tmp_path / "state"))

        assert done.returncode == 2
        assert f"got one that is compressed with {kind}; unpack it first" in done.stderr
    assert server.requests == []


def test_each_endpoint_has_its_own_place_in_the_log(tmp_path: Path, server: AuditedServer) -> None:
    log, state = tmp_path / "log", tmp_path / "state"
    a_log(log, 2, ids=True)
    with AuditedServer() as other:
        replay(log, server.base_url, state)
        replay(log, other.base_url, state)

        assert server.accepted == other.accepted == ["event-1", "event-2"]
    assert len(list(state.glob("replay-*.json"))) == 2


def test_the_state_can_be_kept_elsewhere(tmp_path: Path, server: AuditedServer) -> None:
    log, elsewhere = tmp_path / "log", tmp_path / "a" / "b"
    a_log(log, 2, ids=True)

    said = replay(log, server.base_url, tmp_path / "state", "--state", elsewhere)

    assert Path(said["state"]).parent == elsewhere
    assert not (tmp_path / "state").exists()
    assert sorted(tmp_path.iterdir()) == [elsewhere.parent, log]


def test_what_was_not_sent_is_said_to_people_and_machines(tmp_path: Path, server: AuditedServer) -> None:
    log, state = tmp_path / "log", tmp_path / "state"
    log.write_text(f"{a_line(1, event_id='a')}\nnonsense\n{a_line(2, event_id='bad')}\n{a_line(3, event_id='c')}\n")
    server.judge = lambda names: Answer(400, b"no") if "bad" in names else None

    done = command("replay", log, env=environment(server.base_url, state))

    assert done.returncode == 1
    assert done.stdout == (
        f"2 of 3 records of the event log {log} sent to {server.endpoint}, 1 refused, 1 unreadable lines\n"
    )
    assert done.stderr.splitlines() == [
        "log:3: refused: 400 Bad Request: no",
        "log:2: unreadable: expected a JSON object in UTF-8, got DecodeError - at `$`",
    ]
    said = replay(log, server.base_url, state, exit_code=1)
    assert said["refused_lines"] == [{"file": "log", "line": 3, "reason": "400 Bad Request: no"}]
    assert [each["line"] for each in said["unreadable_lines"]] == [2]


def test_an_endpoint_that_stays_away_is_given_up(tmp_path: Path, server: AuditedServer) -> None:
    log, state = tmp_path / "log", tmp_path / "state"
    a_log(log, 2, ids=True)
    server.judge = lambda names: Answer(503)

    said = replay(log, server.base_url, state, "--give-up-after", "0.5", exit_code=1)

    assert said["left"] == "503 Service Unavailable"
    assert (said["read"], said["sent"]) == (0, 0)


def test_on_a_terminal_a_bar_shows_how_far_it_is(tmp_path: Path, server: AuditedServer) -> None:
    log, state = tmp_path / "audit {of} [red].log", tmp_path / "state"
    a_log(log, 100, ids=True)
    env = {**environment(server.base_url, state, OTEL_AUDIT_BATCH_COUNT="10"), "TERM": "xterm", "COLUMNS": "100"}
    ours, theirs = pty.openpty()
    seen: list[bytes] = []

    def look() -> None:
        try:
            while data := os.read(ours, 4096):
                seen.append(data)
        except OSError:  # the other end is closed
            return

    looking = threading.Thread(target=look)
    looking.start()
    done = subprocess.run(
        [COMMAND, "replay", log], env=env, stdout=subprocess.PIPE, stderr=theirs, timeout=60, check=True
    )
    os.close(theirs)
    looking.join(30)
    os.close(ours)

    shown = b"".join(seen).decode()
    assert log.name in shown
    assert "kB" in shown
    assert b"100 of 100" in done.stdout


def peak_kib(log: Path, server: AuditedServer, state: Path) -> int:
    with subprocess.Popen([COMMAND, "replay", log], env=environment(server.base_url, state)) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_maxrss


def test_a_log_of_any_size_takes_the_same_memory(tmp_path: Path, server: AuditedServer) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    a_log(small, 1_000, ids=True)
    lines = a_log(large, 1_000, ids=True)
    large.write_text("".join(f"{line}\n" for line in lines) * 40)
    assert large.stat().st_size > 15 << 20

    grown_kib = peak_kib(large, server, tmp_path / "state") - peak_kib(small, server, tmp_path / "state")

    assert grown_kib < 8 << 10


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "got a file without a line of one"),
        (b"hello\n{}\n", "got a file without a line of one"),
    ],
)
def test_what_cannot_be_replayed_is_wrong_usage(
    content: bytes, words: str, tmp_path: Path, server: AuditedServer
) -> None:
    path = tmp_path / "path"
    path.write_bytes(content)

    done = command("replay", path, env=environment(server.base_url, tmp_path / "state"))

    assert done.returncode == 2
    assert words in done.stderr
    assert server.requests == []


def test_a_wrong_setting_is_wrong_usage(tmp_path: Path, server: AuditedServer) -> None:
    log = tmp_path / "log"
    a_log(log, 1)

    done = command("replay", log, env=environment("not a url", tmp_path / "state"))

    assert done.returncode == 2
    assert "OTEL_EXPORTER_OTLP_ENDPOINT: expected" in done.stderr


def test_a_segment_that_was_kept_alone_is_sent_with_its_own_header(tmp_path: Path, collector: Collector) -> None:
    with closing(a_journal(tmp_path / "journal")) as journal:
        files = record(journal, "a")
    kept = files.segment(1).rename(tmp_path / "kept.jsonl")

    replay(kept, collector.http_endpoint, tmp_path / "state")

    records = collector.wait_for_archive(2)
    assert [each.body for each in records] == kept.read_text().split("\n")[:-1]
    assert {each.resource["service.name"] for each in records} == {"shop"}
    assert [each.time_unix_nano for each in records] == [json.loads(each.body)["time_ns"] for each in records]
