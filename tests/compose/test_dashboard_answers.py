"""Every PromQL query of the dashboards, asked of a real store that holds what a service and the collectors wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import requests
from click.testing import CliRunner
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from prometheus_client.parser import text_string_to_metric_families

from otel_audit.cli import main
from otel_audit.delivery.metrics import AuditMetrics
from otel_audit.logger import AuditLogger
from otel_audit.settings import Settings
from otel_audit.trail import Trail
from tests.compose.stack import panels, queries
from tests.compose.test_dashboard import written_out
from tests.servers import Collector, StartCollector, VictoriaMetrics, poll

pytestmark = pytest.mark.processes

COUNTED = [("http.request", "success")] * 5 + [("http.request", "denied")] * 3 + [("http.request", "error")] * 2
COUNTED += [("authn.failure", "failure")] * 4 + [("audit.gap", "unknown")]
COUNTED += [("audit.ledger", "success"), ("audit.note", "success")]  # which are no events of the application


def as_prometheus_does(expression: str) -> str:
    """The query with Prometheus' `increase` and `rate`. MetricsQL's own count from 0 when a counter appears."""
    return re.sub(r"\b(increase|rate)\(", r"\1_prometheus(", written_out(expression))


class _Refusal(BaseHTTPRequestHandler):
    """Answers 400 to everything, as Loki does to a record that it will never take."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(400)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: the tests' output is not its place."""


@contextmanager
def a_destination_that_refuses() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusal) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def a_service(directory: Path, agent: Collector) -> Iterator[None]:
    """A service with a trail and a meter provider that both deliver to the agent."""
    resource = Resource({"service.name": "shop", "service.instance.id": "i-1"})
    exporter = OTLPMetricExporter(endpoint=f"{agent.http_endpoint}/v1/metrics")
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=500)
    provider = MeterProvider([reader], resource, shutdown_on_exit=False)
    settings = Settings.load(
        {
            "OTEL_SERVICE_NAME": "shop",
            "OTEL_AUDIT_DIR": str(directory),
            "OTEL_EXPORTER_OTLP_ENDPOINT": agent.http_endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        }
    )
    trail = Trail(settings, resource=resource, metrics=AuditMetrics(provider))
    try:
        AuditLogger(trail).log_authn(outcome="failure")
        yield
    finally:
        trail.close()
        provider.shutdown()


def post(collector: Collector, path: str, request: Mapping[str, Any]) -> None:
    requests.post(f"{collector.http_endpoint}/v1/{path}", json=request, timeout=30).raise_for_status()


def _records(*kinds: tuple[str, str]) -> dict[str, Any]:
    records = [
        {
            "eventName": event_type,
            "body": {"stringValue": "{}"},
            "attributes": [{"key": "audit.result", "value": {"stringValue": outcome}}],
        }
        for event_type, outcome in kinds
    ]
    service = {"attributes": [{"key": "service.name", "value": {"stringValue": "bank"}}]}
    return {"resourceLogs": [{"resource": service, "scopeLogs": [{"logRecords": records}]}]}


SPANS = {
    "resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "0a" * 16, "spanId": "0b" * 8, "name": "checkout"}]}]}]
}
METRICS = {
    "resourceMetrics": [
        {"scopeMetrics": [{"metrics": [{"name": "x", "gauge": {"dataPoints": [{"timeUnixNano": "1", "asInt": "1"}]}}]}]}
    ]
}

# Also those without a device, which are all that some containers have.
EVERY_FILE_SYSTEM = "receivers::host_metrics/disks::scrapers::filesystem::include_virtual_filesystems: true"

# What the metrics of a real Loki said after it had refused a record of tomorrow; no Loki runs in the tests.
OF_LOKI = """\
loki_discarded_samples_total{format="otlp",policy="",reason="too_far_in_future",retention_hours="744",tenant="fake"} 1
"""


@pytest.fixture
def store(
    victoriametrics: VictoriaMetrics, start_collector: StartCollector, tmp_path: Path
) -> Iterator[VictoriaMetrics]:
    """Two collectors were scraped: one that delivers, and one that everybody refuses. A service is running."""
    with a_destination_that_refuses() as refusing:
        agent = start_collector(prometheus_endpoint=victoriametrics.otlp_endpoint, overrides=[EVERY_FILE_SYSTEM])
        refused = start_collector(
            loki_endpoint=refusing, tempo_endpoint=refusing, prometheus_endpoint=f"{refusing}/api/v1/otlp"
        )
        with a_service(tmp_path / "journal", agent):
            post(agent, "logs", _records(*COUNTED))
            post(refused, "logs", _records(("http.request", "success")))
            post(refused, "traces", SPANS)
            post(refused, "metrics", METRICS)
            victoriametrics.scrape([agent.metrics_endpoint, agent.counts_endpoint, refused.metrics_endpoint])
            yield victoriametrics


def test_every_query_has_an_answer(store: VictoriaMetrics) -> None:
    asked = {query["expr"]: as_prometheus_does(query["expr"]) for query in queries("prometheus")}

    def unanswered_now() -> list[str]:
        store.take(OF_LOKI)
        return [text for text, query in asked.items() if not store.query(query)]

    unanswered = poll(
        unanswered_now,
        until=lambda texts: not texts,
        what=f"an answer to each of {len(asked)} queries",
    )

    assert unanswered == []


def test_the_counts_are_those_of_the_events_though_the_counters_have_only_just_appeared(store: VictoriaMetrics) -> None:
    shown = {panel["title"]: panel["targets"][0]["expr"] for panel in panels("audit") if panel["type"] == "stat"}
    # The service of the fixture logs one failed login itself.
    expected = {"Events": 15.0, "Denied": 3.0, "Failed logins": 5.0, "Errors": 2.0, "Gaps": 1.0, "Services": 2.0}

    got = poll(
        lambda: {title: _value(store, expression) for title, expression in shown.items()},
        until=lambda values: values == expected,
        what=f"{expected}",
    )

    assert got == expected


def _value(store: VictoriaMetrics, expression: str) -> float:
    return sum(float(series["value"][1]) for series in store.query(as_prometheus_does(expression)))


def test_a_refusal_is_shown_though_its_counter_appears_with_it(store: VictoriaMetrics) -> None:
    [panel] = [panel for panel in panels("pipeline") if panel["title"] == "Refused records"]
    [_, failed] = [target["expr"] for target in panel["targets"]]

    [series] = poll(lambda: store.query(as_prometheus_does(failed)), until=bool, what="the refused record")

    assert series["metric"] == {"exporter": "otlp_http/loki"}
    assert float(series["value"][1]) == 1.0


def test_the_status_of_a_directory_has_the_names_and_labels_of_the_metrics_of_its_service(
    store: VictoriaMetrics, tmp_path: Path
) -> None:
    shown = poll(
        lambda: _shown_by_status(tmp_path / "journal"),
        until=lambda names: any(name.startswith("audit_ledger") for name, _ in names),  # behind the first note
        what="a metric of the ledger",
    )

    def lacking() -> set[tuple[str, frozenset[str]]]:
        series = [each["metric"] for each in store.query('{service_name="shop"}')]
        kept = [(each["__name__"], {name for name in each if name.startswith("audit_")}) for each in series]
        return shown - {(name, frozenset({*labels, "service_name"})) for name, labels in kept}

    own = {"audit_journal_missing_ratio", "audit_status_timestamp_seconds"}  # no service says either
    assert own < {name for name, _ in shown}
    shown = {each for each in shown if each[0] not in own}
    assert len(shown) == 9
    poll(lacking, until=lambda names: not names, what="each metric of the status among the service's")


def _shown_by_status(directory: Path) -> set[tuple[str, frozenset[str]]]:
    said = CliRunner().invoke(main, ["status", "--prometheus", str(directory)]).stdout
    samples = [sample for family in text_string_to_metric_families(said) for sample in family.samples]
    return {(sample.name, frozenset(sample.labels) - {"directory"}) for sample in samples}
