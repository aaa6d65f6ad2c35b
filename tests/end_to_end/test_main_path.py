"""From an audit event to the collector, through real processes and the real collector with the shipped config."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.chain_check import application_events, read_streams
from tests.servers import Collector, Record, VictoriaLogs, poll
from tests.servers.collector import StartCollector

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).with_name("otel-audit")


def environment(**variables: str) -> dict[str, str]:
    """What a fresh shell has, and these variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "AUDIT_"))}
    return {**kept, **variables}


def to(collector: Collector, directory: Path, **more: str) -> dict[str, str]:
    return environment(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.http_endpoint,
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
        OTEL_AUDIT_DIR=str(directory),
        **more,
    )


def service(events: int, *options: str) -> list[str]:
    return [sys.executable, "-m", "tests.end_to_end.logging_service", str(events), *options]


def otel_audit(*arguments: str, env: dict[str, str], exit_code: int = 0) -> str:
    done = subprocess.run([COMMAND, *arguments], env=env, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == exit_code, (done.returncode, done.stdout, done.stderr)
    return done.stdout


def numbers(directory: Path, *, exit_code: int = 0) -> dict[str, int]:
    status = json.loads(otel_audit("status", "--json", str(directory), env=environment(), exit_code=exit_code))
    return {name: status[name] for name in ("emitted", "exported", "pending", "quarantined", "dropped")}


def lines_of(directory: Path) -> dict[tuple[str, int], bytes]:
    """Every stored line by stream and number, those of the ledger too, after the check of the chains."""
    read_streams(directory)
    paths = [*directory.glob("*-*.jsonl"), *directory.glob("ledger.*.jsonl")]
    lines = [line for path in paths for line in path.read_bytes().split(b"\n")[:-1]]
    return {(event["stream_id"], event["seq"]): line for line in lines for event in [json.loads(line)]}


def place(record: Record) -> tuple[str, int]:
    return record.attributes["audit.sequence.stream_id"], record.attributes["audit.sequence.number"]


def by_stream(records: list[Record]) -> dict[str, list[Record]]:
    """The records of each stream and of the ledger in the order in which they came."""
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        found[place(record)[0]].append(record)
    return found


def assert_is_the_line(record: Record, event: dict[str, Any]) -> None:
    assert record.event_name == event["event_type"]
    assert (record.trace_id, record.span_id) == (event.get("trace_id", ""), event.get("span_id", ""))
    assert record.flags & 0xFF == event.get("trace_flags", 0)
    assert record.time_unix_nano == event["time_ns"]
    assert record.observed_time_unix_nano == event["observed_ns"]
    assert record.attributes["audit.record.id"] == event["event_id"]
    assert record.attributes["audit.result"] == (event["outcome"] or "unknown")
    assert record.severity_text == ("WARN" if event["outcome"] == "denied" else "INFO")
    assert record.severity_number == (13 if event["outcome"] == "denied" else 9)
    if event["event_type"] == "mcp.tools.call":
        assert record.attributes["audit.actor.id"] == "alice"
        assert record.attributes["user.roles"] == ["reader", "writer"]
        assert record.attributes["gen_ai.tool.name"] == "get_online_features"
        assert record.attributes["client.address"] == "192.0.2.7"
        assert record.attributes["audit.duration_ms"] == event["duration_ms"]


def assert_holds_the_journal(records: list[Record], directory: Path) -> None:
    """Each line is there once, its fields right, and the records of a stream came in its order."""
    lines = lines_of(directory)
    assert Counter(map(place, records)) == dict.fromkeys(lines, 1)
    for record in records:
        line = lines[place(record)]
        assert record.body.encode() == line
        assert_is_the_line(record, json.loads(line))
    for stream_id in {stream for stream, _ in lines}:
        arrived = [seq for stream, seq in map(place, records) if stream == stream_id]
        assert arrived == sorted(arrived)


def test_ten_thousand_events_from_threads_and_a_loop_are_in_the_archive_once(
    collector: Collector, tmp_path: Path
) -> None:
    directory = tmp_path / "audit"

    subprocess.run(service(10_000), cwd=ROOT, env=to(collector, directory), check=True, timeout=120)

    events = application_events(directory)
    assert len(events) == 10_000
    assert all(event["trace_id"] and event["span_id"] for event in events)
    records = collector.wait_for_archive(10_000 + len(read_streams(directory)))
    assert_holds_the_journal(records, directory)
    expected = {"emitted": 10_000, "exported": 10_000, "pending": 0, "quarantined": 0, "dropped": 0}
    assert numbers(directory) == expected


def ledger_of(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.glob("ledger.*.jsonl"))


def test_what_a_killed_process_left_is_sent_by_another_service_as_its_writer_would_have(
    collector: Collector, tmp_path: Path
) -> None:
    directory = tmp_path / "audit"
    collector.stop()
    writer = subprocess.Popen(
        service(5_000, "--then-hang"),
        cwd=ROOT,
        env=to(collector, directory, OTEL_SERVICE_NAME="shop", OTEL_RESOURCE_ATTRIBUTES="shop.branch=north"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "logged\n"
    # A stream is opened in the ledger half a second after its first line.
    poll(lambda: ledger_of(directory).count(b'{"system":"note"'), until=bool, what="a note in the ledger")
    writer.kill()
    writer.wait()
    writer.stdout.close()
    assert numbers(directory, exit_code=1)["pending"] == 5_000  # 1: blocked, and it says so
    collector.start()
    other = to(collector, directory, OTEL_SERVICE_NAME="night-shift", OTEL_RESOURCE_ATTRIBUTES="shop.branch=south")

    otel_audit("ship", "--once", str(directory), env=other)

    records = collector.wait_for_archive(len(lines_of(directory)))
    assert len(records) > 5_001  # with the ledger
    assert_holds_the_journal(records, directory)
    assert {record.resource["service.name"] for record in records} == {"shop"}
    assert {record.resource["shop.branch"] for record in records} == {"north"}
    expected = {"emitted": 5_000, "exported": 5_000, "pending": 0, "quarantined": 0, "dropped": 0}
    assert numbers(directory) == expected

    otel_audit("ship", "--once", "--again", str(directory), env=other)

    twice = collector.wait_for_archive(2 * len(records))
    assert by_stream(twice[len(records) :]) == by_stream(records)
    assert numbers(directory) == expected


def test_what_was_sent_is_queried_back_from_a_store_byte_for_byte(
    start_collector: StartCollector, victorialogs: VictoriaLogs, tmp_path: Path
) -> None:
    directory = tmp_path / "audit"
    collector = start_collector(loki_endpoint=victorialogs.otlp_endpoint)

    subprocess.run(
        service(200), cwd=ROOT, env=to(collector, directory, OTEL_SERVICE_NAME="shop"), check=True, timeout=60
    )

    lines = lines_of(directory)
    rows = victorialogs.wait_for("*", len(lines))
    assert sorted(row["_msg"].encode() for row in rows) == sorted(lines.values())
    denied = victorialogs.wait_for('"audit.result":=denied', 16)
    assert {row["audit.actor.id"] for row in denied} == {"alice"}
    assert all(row["trace_id"] for row in denied)


def test_without_a_variable_of_otel_the_console_shows_each_event(tmp_path: Path) -> None:
    done = subprocess.run(
        service(40),
        cwd=ROOT,
        env=environment(OTEL_AUDIT_EXPORT="console", OTEL_AUDIT_DIR=str(tmp_path)),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    shown = [line for line in done.stderr.splitlines() if "mcp.tools.call" in line or "http.request" in line]
    assert len(shown) == 40
    assert sum("denied" in line and "alice" in line and "get_online_features" in line for line in shown) == 8
    assert "\x1b" not in done.stderr
