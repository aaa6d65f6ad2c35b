"""The agent as the one door for all signals: where traces and metrics go, and what the counts of events say."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

import otel_audit
from tests.servers import AGENT_CONFIG, Collector, StartCollector, poll
from tests.servers.otlp_server import OtlpServer, Received

pytestmark = pytest.mark.processes

_COUNT = re.compile(r"^audit_events_total\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@pytest.fixture
def tempo() -> Iterator[OtlpServer]:
    """Whatever takes spans over OTLP."""
    with OtlpServer() as running:
        yield running


@pytest.fixture
def prometheus() -> Iterator[OtlpServer]:
    """Whatever takes metrics over OTLP."""
    with OtlpServer() as running:
        yield running


@pytest.fixture
def agent(start_collector: StartCollector, tempo: OtlpServer, prometheus: OtlpServer) -> Collector:
    """An agent that can deliver traces and metrics. Its Loki is down."""
    return start_collector(tempo_endpoint=tempo.base_url, prometheus_endpoint=f"{prometheus.base_url}/api/v1/otlp")


def first_request(server: OtlpServer) -> Received:
    return poll(lambda: list(server.requests), until=bool, what="a request")[0]


def body_of(request: Received) -> bytes:
    return gzip.decompress(request.body) if request.header("Content-Encoding") == "gzip" else request.body


def post(
    collector: Collector, service: str, records: list[dict[str, Any]], *, instance: str = "i-1", **resource_of: str
) -> None:
    """Send records as one request, which has to be accepted."""
    named = {"service.name": service, "service.instance.id": instance, **resource_of}
    resource = {"attributes": [_attribute(key, value) for key, value in named.items()]}
    request = {"resourceLogs": [{"resource": resource, "scopeLogs": [{"logRecords": records}]}]}
    requests.post(collector.logs_url, json=request, timeout=30).raise_for_status()


def record(event_type: str, outcome: str, **attributes: str) -> dict[str, Any]:
    given = {"audit.result": outcome, **attributes}
    return {
        "timeUnixNano": "1700000000000000000",
        "eventName": event_type,
        "body": {"stringValue": "{}"},
        "attributes": [_attribute(key, value) for key, value in given.items()],
    }


def _attribute(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "value": {"stringValue": value}}


def counted(collector: Collector) -> list[tuple[dict[str, str], int]]:
    """Each series of the counts: its labels and its value."""
    return [(dict(_LABEL.findall(labels)), int(float(value))) for labels, value in _COUNT.findall(collector.counts())]


def counts_of(collector: Collector) -> dict[tuple[str, str, str], int]:
    return {
        (labels["service_name"], labels["event_type"], labels["outcome"]): value for labels, value in counted(collector)
    }


def test_one_endpoint_takes_events_spans_and_metrics(
    agent: Collector, tempo: OtlpServer, prometheus: OtlpServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", agent.http_endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_AUDIT_DIR", str(tmp_path / "journal"))
    tracers, meters = TracerProvider(), MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())])
    tracers.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))

    with ExitStack() as closing:
        closing.callback(meters.shutdown)
        closing.callback(tracers.shutdown)
        audit = otel_audit.configure()
        closing.callback(audit.close)
        meters.get_meter("shop").create_counter("orders").add(7)
        with tracers.get_tracer("shop").start_as_current_span("checkout") as span:
            audit.log_authn(outcome="failure", principal=otel_audit.AuditPrincipal(username="alice"))

    events = [event for event in agent.archive() if event.event_name == "authn.failure"]
    to_tempo, to_prometheus = first_request(tempo), first_request(prometheus)
    [resource_spans] = ExportTraceServiceRequest.FromString(body_of(to_tempo)).resource_spans
    [resource_metrics] = ExportMetricsServiceRequest.FromString(body_of(to_prometheus)).resource_metrics
    assert [event.trace_id for event in events] == [f"{span.get_span_context().trace_id:032x}"]
    assert (to_tempo.path, resource_spans.scope_spans[0].spans[0].name) == ("/v1/traces", "checkout")
    assert to_prometheus.path == "/api/v1/otlp/v1/metrics"
    assert resource_metrics.scope_metrics[0].metrics[0].name == "orders"


def test_events_are_taken_while_tempo_and_prometheus_are_away(collector: Collector) -> None:
    requests.post(f"{collector.http_endpoint}/v1/traces", json={"resourceSpans": []}, timeout=30).raise_for_status()

    post(collector, "shop", [record("authn.failure", "failure")])

    assert [event.event_name for event in collector.archive()] == ["authn.failure"]


def test_nothing_samples_or_filters_what_is_archived_and_delivered() -> None:
    pipelines = yaml.safe_load(AGENT_CONFIG.read_text(encoding="utf-8"))["service"]["pipelines"]

    on_the_way = {name: pipelines[name].get("processors", []) for name in ("logs/in", "logs/archive", "logs/loki")}

    assert on_the_way == {
        "logs/in": ["memory_limiter", "resource/source"],
        "logs/archive": [],
        "logs/loki": ["transform/event_name", "transform/asked"],
    }


def test_events_are_counted_by_service_type_and_outcome_to_the_last_one(collector: Collector) -> None:
    """Many requests at once, from two processes of a service, with times that do not rise."""
    expected: Counter[tuple[str, str, str]] = Counter()
    batches = []
    for number in range(120):
        service, event_type = ("shop", "bank")[number % 2], ("http.request", "authn.failure")[number // 2 % 2]
        batch = [(service, event_type, outcome) for outcome in ("success", "denied") for _ in range(5 + number % 7)]
        expected.update(batch)
        batches.append((f"i-{number % 3}", batch))

    def send(instance: str, batch: list[tuple[str, str, str]]) -> None:
        post(collector, batch[0][0], [record(kind, outcome) for _, kind, outcome in batch], instance=instance)

    with ThreadPoolExecutor(4) as senders:
        list(senders.map(send, *zip(*batches, strict=True)))

    got = poll(
        lambda: counts_of(collector),
        until=lambda counts: sum(counts.values()) >= expected.total(),
        what=f"{expected.total()} counted events",
    )
    assert got == dict(expected)


def test_the_counts_hold_nothing_of_a_person_or_a_process(collector: Collector) -> None:
    personal = {"audit.actor.id": "alice", "client.address": "192.0.2.7", "url.path": "/orders/7"}

    post(collector, "shop", [record("http.request", "denied", **personal)], instance="i-77")

    [(labels, value)] = poll(lambda: counted(collector), until=bool, what="a count")
    assert value == 1
    assert labels == {
        "service_name": "shop",
        "environment": "unknown",
        "event_type": "http.request",
        "outcome": "denied",
    }
    assert "i-77" not in collector.counts()


def test_the_environment_of_a_service_is_counted_apart(collector: Collector) -> None:
    for environment in ("test", "production"):
        post(collector, "shop", [record("http.request", "denied")], **{"deployment.environment.name": environment})

    series = poll(lambda: counted(collector), until=lambda found: len(found) == 2, what="two series")

    assert {labels["environment"] for labels, _ in series} == {"test", "production"}


def test_a_record_of_the_plain_logs_api_is_counted_too(collector: Collector) -> None:
    post(collector, "shop", [{"body": {"stringValue": "no event"}}])

    got = poll(lambda: counts_of(collector), until=bool, what="a count")

    assert got == {("shop", "unknown", "unknown"): 1}
