"""The shipped agent.yaml, in the real collector."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import yaml
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogExporter
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpLogExporter
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from tests.servers import AGENT_CONFIG, COLLECTOR, Collector, Record, StartCollector, VictoriaLogs, poll

BUILDER_CONFIG = AGENT_CONFIG.parent / "builder.yaml"

VARIABLES = {
    "AUDIT_GRPC_ENDPOINT": "127.0.0.1:4317",
    "AUDIT_HTTP_ENDPOINT": "127.0.0.1:4318",
    "AUDIT_HEALTH_ENDPOINT": "127.0.0.1:13133",
    "AUDIT_METRICS_HOST": "127.0.0.1",
    "AUDIT_METRICS_PORT": "8888",
    "AUDIT_COUNTS_ENDPOINT": "127.0.0.1:8889",
    "AUDIT_QUEUE_DIR": "/var/lib/otel-audit-collector/queue",
    "AUDIT_QUEUE_BYTES": "8589934592",
    "AUDIT_ARCHIVE_DIR": "/var/lib/otel-audit-collector/archive",
    "AUDIT_ARCHIVE_FILES": "100",
    "LOKI_OTLP_ENDPOINT": "http://127.0.0.1:3100/otlp",
    "TEMPO_OTLP_ENDPOINT": "http://127.0.0.1:14318",
    "PROMETHEUS_OTLP_ENDPOINT": "http://127.0.0.1:9090/api/v1/otlp",
}

OTHER_VALUES = {
    "AUDIT_GRPC_ENDPOINT": "127.0.0.2:24317",
    "AUDIT_HTTP_ENDPOINT": "127.0.0.2:24318",
    "AUDIT_HEALTH_ENDPOINT": "127.0.0.2:23133",
    "AUDIT_METRICS_HOST": "127.0.0.2",
    "AUDIT_METRICS_PORT": "28888",
    "AUDIT_COUNTS_ENDPOINT": "127.0.0.2:28889",
    "AUDIT_QUEUE_DIR": "/srv/elsewhere",
    "AUDIT_QUEUE_BYTES": "1000000",
    "AUDIT_ARCHIVE_DIR": "/mnt/and/elsewhere",
    "AUDIT_ARCHIVE_FILES": "0",
    "LOKI_OTLP_ENDPOINT": "http://127.0.0.2:23100/otlp",
    "TEMPO_OTLP_ENDPOINT": "http://127.0.0.2:24319",
    "PROMETHEUS_OTLP_ENDPOINT": "http://127.0.0.2:29090/api/v1/otlp",
}

TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C
SPAN_ID = 0x00F067AA0BA902B7

# Line ends that only some readers know, control characters, quotes, what JSON escapes, and what is beyond 16 bits.
ODD_TEXT = '{"detail":"a\u2028b\u0085c\x00d\\"e\\n\t<&>\'\x7f é 漢 😀 \u202e"}'

ConfigTree = dict[str, Any]


@contextmanager
def official_exporter(collector: Collector, protocol: str) -> Iterator[LogRecordExporter]:
    exporter: LogRecordExporter = (
        GrpcLogExporter(endpoint=collector.grpc_endpoint, insecure=True)
        if protocol == "grpc"
        else HttpLogExporter(endpoint=collector.logs_url)
    )
    try:
        yield exporter
    finally:
        exporter.shutdown()  # type: ignore[no-untyped-call]  # the SDK leaves it untyped


def sdk_record(body: str, *, time_ns: int | None = None, scope: str = "otel_audit") -> ReadableLogRecord:
    span = SpanContext(TRACE_ID, SPAN_ID, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return ReadableLogRecord(
        LogRecord(
            timestamp=time.time_ns() if time_ns is None else time_ns,
            observed_timestamp=(time.time_ns() if time_ns is None else time_ns) + 1,
            context=set_span_in_context(NonRecordingSpan(span)),
            severity_text="WARN",
            severity_number=SeverityNumber.WARN,
            body=body,
            attributes={
                "audit.sequence.number": 2**53 + 1,
                "user.roles": ["a", "b"],
                "ok": True,
                "audit.duration_ms": 0.5,
            },
            event_name="authn.failure",
        ),
        resource=Resource({"service.name": "orders", "service.instance.id": "i-1"}),
        instrumentation_scope=InstrumentationScope(scope, "1.2.3"),
    )


def send(collector: Collector, bodies: Sequence[str], *, protocol: str = "http", batch: int = 50) -> None:
    """Every body is acknowledged by the collector."""
    with official_exporter(collector, protocol) as exporter:
        for start in range(0, len(bodies), batch):
            records = [sdk_record(body) for body in bodies[start : start + batch]]
            assert exporter.export(records) is LogRecordExportResult.SUCCESS


def numbered(count: int, *, start: int = 0) -> list[str]:
    return [f'{{"n":{number}}}' for number in range(start, start + count)]


def bodies_of(records: Sequence[Record]) -> list[str]:
    return [record.body for record in records]


def collector_answer(*arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """What the collector prints for a subcommand, without any of the configuration's variables but those given."""
    inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    answer = subprocess.run(
        [COLLECTOR.path(), *arguments],
        env={**inherited, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def effective_config(environment: Mapping[str, str]) -> ConfigTree:
    text = collector_answer("print-config", f"--config={AGENT_CONFIG}", environment=environment)
    tree = yaml.safe_load(text)
    assert isinstance(tree, dict)
    return tree


def configured_values(config: ConfigTree) -> dict[str, list[Any]]:
    """Where each variable ends up in the effective configuration."""
    storage, archive = config["extensions"]["file_storage/queue"], config["exporters"]["file/archive"]
    to_loki = config["exporters"]["otlp_http/loki"]
    prometheus = config["service"]["telemetry"]["metrics"]["readers"][0]["pull"]["exporter"]["prometheus"]
    protocols = config["receivers"]["otlp"]["protocols"]
    return {
        "AUDIT_GRPC_ENDPOINT": [protocols["grpc"]["endpoint"]],
        "AUDIT_HTTP_ENDPOINT": [protocols["http"]["endpoint"]],
        "AUDIT_HEALTH_ENDPOINT": [config["extensions"]["health_check"]["endpoint"]],
        "AUDIT_METRICS_HOST": [prometheus["host"]],
        "AUDIT_METRICS_PORT": [str(prometheus["port"])],
        "AUDIT_COUNTS_ENDPOINT": [config["exporters"]["prometheus/counts"]["endpoint"]],
        "AUDIT_QUEUE_DIR": [storage["directory"], storage["compaction"]["directory"]],
        "AUDIT_QUEUE_BYTES": [str(to_loki["sending_queue"]["queue_size"])],
        "AUDIT_ARCHIVE_DIR": [archive["path"].removesuffix("/audit.jsonl")],
        "AUDIT_ARCHIVE_FILES": [str(archive["rotation"]["max_backups"])],
        "LOKI_OTLP_ENDPOINT": [to_loki["endpoint"]],
        "TEMPO_OTLP_ENDPOINT": [config["exporters"]["otlp_http/tempo"]["endpoint"]],
        "PROMETHEUS_OTLP_ENDPOINT": [config["exporters"]["otlp_http/prometheus"]["endpoint"]],
    }


@pytest.mark.processes
def test_the_shipped_configuration_is_valid() -> None:
    collector_answer("validate", f"--config={AGENT_CONFIG}")


def test_every_variable_of_the_configuration_has_a_default() -> None:
    references = re.findall(r"\$\{(?:env:)?([A-Za-z0-9_]+)(:-)?", AGENT_CONFIG.read_text())

    assert {name for name, _ in references} == set(VARIABLES)
    assert [name for name, default in references if not default] == []


@pytest.mark.processes
@pytest.mark.parametrize(
    ("environment", "expected"), [({}, VARIABLES), (OTHER_VALUES, OTHER_VALUES)], ids=["unset", "set"]
)
def test_every_variable_is_honoured(environment: dict[str, str], expected: dict[str, str]) -> None:
    values = configured_values(effective_config(environment))

    assert {name: set(found) for name, found in values.items()} == {name: {value} for name, value in expected.items()}


@pytest.mark.processes
def test_no_acknowledged_record_hangs_on_a_power_cut_or_on_the_length_of_an_outage() -> None:
    # Neither can be made to happen within a test run.
    config = effective_config({})

    assert config["extensions"]["file_storage/queue"]["fsync"] is True
    assert config["exporters"]["otlp_http/loki"]["retry_on_failure"]["max_elapsed_time"] == "0s"


@pytest.mark.processes
def test_every_component_of_the_configuration_is_built_into_the_collector() -> None:
    config, builder = yaml.safe_load(AGENT_CONFIG.read_text()), yaml.safe_load(BUILDER_CONFIG.read_text())
    available = yaml.safe_load(collector_answer("components"))

    for kind in ("extensions", "receivers", "processors", "connectors", "exporters"):
        modules = {entry["gomod"] for entry in builder[kind]}
        listed = {component["name"] for component in available[kind] if component["module"] in modules}
        assert {name.partition("/")[0] for name in config[kind]} <= listed, kind


@pytest.mark.processes
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_what_the_official_exporter_sends_is_archived_field_by_field(collector: Collector, protocol: str) -> None:
    with official_exporter(collector, protocol) as exporter:
        result = exporter.export([sdk_record(ODD_TEXT, time_ns=1_700_000_000_123_456_789)])

    assert result is LogRecordExportResult.SUCCESS
    assert collector.archive() == [
        Record(
            event_name="authn.failure",
            trace_id="0af7651916cd43dd8448eb211c80319c",
            span_id="00f067aa0ba902b7",
            flags=1,
            time_unix_nano=1_700_000_000_123_456_789,
            observed_time_unix_nano=1_700_000_000_123_456_790,
            severity_number=13,
            severity_text="WARN",
            body=ODD_TEXT,
            attributes={
                "audit.sequence.number": 2**53 + 1,
                "user.roles": ["a", "b"],
                "ok": True,
                "audit.duration_ms": 0.5,
            },
            resource={"service.name": "orders", "service.instance.id": "i-1", "log.source": "audit"},
            scope_name="otel_audit",
            scope_version="1.2.3",
        )
    ]


@pytest.mark.processes
def test_the_archive_keeps_every_acknowledged_record_over_kills(collector: Collector) -> None:
    for round_ in range(3):
        send(collector, numbered(100, start=100 * round_), batch=7)
        collector.kill()
        collector.start()

    assert bodies_of(collector.archive()) == numbered(300)


@pytest.mark.processes
def test_the_archive_keeps_so_many_closed_files_those_that_are_compressed_too(start_collector: StartCollector) -> None:
    rotation = "exporters::file/archive::rotation"
    collector = start_collector(overrides=[f"{rotation}::max_megabytes: 1", f"{rotation}::max_backups: 3"])
    bodies = [f"{number} {'x' * 100_000}" for number in range(50)]  # ten to a file
    directory = collector.archive_path.parent

    send(collector, bodies[:40], batch=1)

    closed = sorted(directory.glob("audit-*.jsonl"))
    assert len(closed) == 3
    assert bodies_of(collector.archive()) == bodies[:40]
    subprocess.run(["gzip", *closed], check=True)

    send(collector, bodies[40:], batch=1)

    kept = poll(
        lambda: sorted(path.name for path in directory.glob("audit-*")),
        until=lambda names: len(names) == 3,
        what="the oldest closed file to be removed",
    )
    assert kept[:2] == [f"{path.name}.gz" for path in closed[1:]]
    assert bodies_of(collector.archive()) == bodies[30:]


@pytest.mark.processes
def test_data_is_readable_by_its_owner_only(collector: Collector) -> None:
    send(collector, ["one"])

    assert {path.name: oct(path.stat().st_mode & 0o777) for path in collector.data_dir.iterdir() if path.is_dir()} == {
        "archive": "0o700",
        "queue": "0o700",
    }


@pytest.mark.processes
@pytest.mark.parametrize("scope", ["otel_audit", "orders"])
def test_loki_gets_the_event_name_and_what_is_asked_for_and_the_archive_all(
    start_collector: StartCollector, scope: str
) -> None:
    loki = start_collector()  # any OTLP receiver shows what Loki would get
    agent = start_collector(loki_endpoint=loki.http_endpoint)

    with official_exporter(agent, "http") as exporter:
        assert exporter.export([sdk_record("one", scope=scope)]) is LogRecordExportResult.SUCCESS

    (delivered,) = loki.wait_for_archive(1)
    (archived,) = agent.archive()
    assert (archived.scope_name, archived.flags & 1, archived.severity_text) == (scope, 1, "WARN")
    assert archived.attributes.keys() == {"audit.sequence.number", "user.roles", "ok", "audit.duration_ms"}
    named = {**archived.attributes, "event_name": "authn.failure"}
    if scope == "otel_audit":
        del named["user.roles"]
        expected = replace(archived, span_id="", flags=0, observed_time_unix_nano=0)
        expected = replace(expected, severity_text="", scope_name="", scope_version="")
    else:
        expected = archived
    without_instance = {name: value for name, value in archived.resource.items() if name != "service.instance.id"}
    assert delivered == replace(expected, attributes=named, resource=without_instance)


@pytest.mark.processes
def test_what_was_acknowledged_while_loki_was_down_is_delivered_once_after_a_kill(
    start_collector: StartCollector,
) -> None:
    loki = start_collector()
    agent = start_collector()
    send(agent, numbered(400), batch=9)

    agent.kill()
    agent.loki_endpoint = loki.http_endpoint
    agent.start()
    send(agent, numbered(100, start=400), batch=9)

    assert sorted(bodies_of(loki.wait_for_archive(500))) == sorted(numbered(500))


@pytest.mark.processes
def test_a_backlog_reaches_loki_in_the_order_of_arrival(start_collector: StartCollector) -> None:
    batch = "exporters::otlp_http/loki::sending_queue::batch"
    loki = start_collector()
    agent = start_collector(
        loki_endpoint=loki.http_endpoint,
        overrides=[f"{batch}::min_size: 2000", f"{batch}::max_size: 4000"],  # a backlog of many batches
    )
    loki.kill()
    send(agent, numbered(400), batch=9)
    poll(agent.log_tail, until=lambda text: "Will retry" in text, what="a failed attempt to deliver")

    loki.start()

    assert bodies_of(loki.wait_for_archive(400)) == numbered(400)


@pytest.mark.processes
def test_what_was_acknowledged_while_the_store_was_down_is_found_in_it_byte_for_byte(
    collector: Collector, victorialogs: VictoriaLogs
) -> None:
    sent = [ODD_TEXT, *numbered(299)]
    send(collector, sent)

    collector.kill()
    collector.loki_endpoint = victorialogs.otlp_endpoint
    collector.start()

    stored = victorialogs.wait_for("*", len(sent))
    assert sorted(row["_msg"] for row in stored) == sorted(sent)
    assert {(row["trace_id"], row["event_name"], row["log.source"]) for row in stored} == {
        (f"{TRACE_ID:032x}", "authn.failure", "audit")
    }


@pytest.mark.processes
def test_a_store_that_comes_back_gets_what_it_missed_without_a_restart_of_the_collector(
    start_collector: StartCollector, victorialogs: VictoriaLogs
) -> None:
    agent = start_collector(loki_endpoint=victorialogs.otlp_endpoint)
    victorialogs.kill()
    send(agent, numbered(50))
    poll(agent.log_tail, until=lambda text: "Will retry" in text, what="a failed attempt to deliver")

    victorialogs.start()

    stored = victorialogs.wait_for("*", 50)
    assert sorted(row["_msg"] for row in stored) == sorted(numbered(50))


@pytest.mark.processes
def test_the_collector_tells_its_own_queue_under_the_documented_name(collector: Collector) -> None:
    send(collector, numbered(10))

    metrics = poll(
        collector.metrics, until=lambda text: "otelcol_exporter_queue_size{" in text, what="the queue's size"
    )
    assert re.search(r"^otelcol_receiver_accepted_log_records\{.*\} 10$", metrics, re.MULTILINE)


@pytest.mark.processes
def test_a_second_agent_on_the_same_directories_ends_at_once_and_the_first_goes_on(collector: Collector) -> None:
    second = subprocess.run(
        [COLLECTOR.path(), f"--config={AGENT_CONFIG}"],
        env={**os.environ, **Collector(collector.data_dir).environment()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert second.returncode == 1
    assert 'failed to start "otlp_http/loki" exporter: timeout' in second.stderr  # so docs/operations.md
    with official_exporter(collector, "http") as exporter:
        assert exporter.export([sdk_record("after")]) is LogRecordExportResult.SUCCESS
    assert [record.body for record in collector.archive()] == ["after"]
