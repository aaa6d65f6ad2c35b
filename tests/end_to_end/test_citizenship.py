"""Beside the application's own OpenTelemetry: what of us is seen there, what must not be, and what we take from it.

Each in a process of its own, since the providers are global.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tests.delivery.audited_server import AuditedServer, names_in
from tests.end_to_end.services import events_in_archive
from tests.end_to_end.test_main_path import ROOT, environment
from tests.servers import Collector, Record, StartCollector, free_port, poll
from tests.servers.otlp_server import Answer, OtlpServer

pytestmark = pytest.mark.processes

PROTOCOLS = ["http/protobuf", "grpc"]


def endpoint(collector: Collector, protocol: str) -> str:
    return collector.grpc_endpoint if protocol == "grpc" else collector.http_endpoint


def run(script: str, *arguments: object, **variables: str) -> str:
    """What a script prints when it has ended well."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Metrics


def metrics_in(archive: Path) -> dict[str, dict[str, Any]]:
    """The last state of each metric of ours in a collector's file of metrics, by name."""
    found = {}
    for line in archive.read_bytes().split(b"\n")[:-1]:
        for resource in json.loads(line)["resourceMetrics"]:
            assert {"key": "service.name", "value": {"stringValue": "shop"}} in resource["resource"]["attributes"]
            for scope in resource["scopeMetrics"]:
                if scope["scope"]["name"] == "otel_audit":
                    found.update({metric["name"]: metric for metric in scope["metrics"]})
    return found


def points(metric: dict[str, Any]) -> list[dict[str, Any]]:
    for kind in ("sum", "gauge", "histogram"):
        if kind in metric:
            return list(metric[kind]["dataPoints"])
    raise AssertionError(metric)


def total(metric: dict[str, Any]) -> int:
    return sum(int(point["asInt"]) for point in points(metric))


METERED = """
    import shutil, sys
    from pathlib import Path
    import otel_audit
    from opentelemetry import metrics
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    directory, collector, refusing, nowhere = Path(sys.argv[1]), *sys.argv[2:]
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(collector + "/v1/metrics"), 3_600_000)
    metrics.set_meter_provider(MeterProvider([reader]))

    def trail(name, endpoint):
        return otel_audit.configure(directory=directory / name, endpoint=endpoint, protocol="http/protobuf")

    def log(audit, *names):
        for name in names:
            audit.log(otel_audit.AuditEvent(event_type="test", event_id=name))

    delivered, refused, pending = trail("a", collector), trail("b", refusing), trail("c", nowhere)
    log(delivered, *"abcdefghijklmnopqrst")
    log(refused, "bad", "good")
    log(pending, *"abcdefg")
    assert delivered.flush(timeout_s=30).complete and refused.flush(timeout_s=30).complete
    assert not pending.flush(timeout_s=1).complete
    delivered.close()
    shutil.rmtree(directory / "a")
    (directory / "a").write_text("no directory")
    log(delivered, "lost", "lost too")
    metrics.get_meter_provider().force_flush()
"""


def test_the_real_collector_gets_metrics_whose_numbers_add_up(start_collector: StartCollector, tmp_path: Path) -> None:
    archive = tmp_path / "metrics.jsonl"
    collector = start_collector(
        overrides=[
            f"exporters::file/metrics::path: {archive}",
            "exporters::file/metrics::rotation::max_megabytes: 10",
            "service::pipelines::metrics::receivers: [otlp]",
            "service::pipelines::metrics::exporters: [file/metrics]",
        ]
    )
    nowhere = f"http://127.0.0.1:{free_port()}"
    with AuditedServer(lambda names: Answer(400) if "bad" in names else None) as server:
        run(METERED, tmp_path / "audit", collector.http_endpoint, server.base_url, nowhere, OTEL_SERVICE_NAME="shop")

    found = poll(lambda: metrics_in(archive) if archive.exists() else {}, what="the metrics in the archive")
    assert {name: metric["unit"] for name, metric in found.items()} == {
        "audit.records.emitted": "{record}",
        "audit.records.exported": "{record}",
        "audit.records.dropped": "{record}",
        "audit.records.quarantined": "{record}",
        "audit.queue.depth": "{record}",
        "audit.export.duration": "s",
        "audit.export.blocked": "1",
        "audit.export.warnings": "{warning}",
        "audit.space.low": "1",
        "audit.ledger.note.age": "s",
        "audit.ledger.size": "{line}",
    }
    assert total(found["audit.records.emitted"]) == 31
    assert total(found["audit.records.exported"]) == 21
    assert total(found["audit.queue.depth"]) == 7
    assert total(found["audit.records.quarantined"]) == 1
    assert total(found["audit.records.dropped"]) == 2
    assert total(found["audit.export.blocked"]) == 1
    outcomes = {
        attribute["value"]["stringValue"]
        for point in points(found["audit.export.duration"])
        for attribute in point["attributes"]
        if attribute["key"] == "audit.export.outcome"
    }
    assert outcomes == {"accepted", "refused", "unavailable"}


# Resource

DETECTOR = """
from opentelemetry.sdk.resources import Resource, ResourceDetector

class ShopFloor(ResourceDetector):
    def detect(self):
        return Resource({"shop.floor": 3})
"""


def install_detector(directory: Path) -> None:
    """A distribution with a resource detector, as it lies in site-packages."""
    (directory / "shop_floor.py").write_text(DETECTOR)
    information = directory / "shop_floor-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: shop-floor\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        "[opentelemetry_resource_detector]\nshop_floor = shop_floor:ShopFloor\n"
    )


def resource_of(body: bytes) -> dict[str, Any]:
    (logs,) = ExportLogsServiceRequest.FromString(body).resource_logs
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in logs.resource.attributes}


DETECTED = """
    import os, sys
    import otel_audit

    audit = otel_audit.configure(directory=sys.argv[1], endpoint=sys.argv[2], protocol="http/protobuf")

    def log_and_flush():
        audit.log_authn(outcome="success")
        assert audit.flush(timeout_s=30).complete
        print(os.getpid(), flush=True)

    log_and_flush()
    if os.fork() == 0:
        log_and_flush()
        os._exit(0)
    os.wait()
"""


def test_records_carry_what_the_resource_detectors_and_the_variable_say_of_their_process(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    install_detector(site)
    with OtlpServer() as server:
        printed = run(
            DETECTED,
            tmp_path / "audit",
            server.base_url,
            OTEL_EXPERIMENTAL_RESOURCE_DETECTORS="process,os,shop_floor",
            OTEL_RESOURCE_ATTRIBUTES="shop.branch=north,service.version=7",
            OTEL_SERVICE_NAME="shop",
            PYTHONPATH=str(site),
        )

    resources = [resource_of(request.body) for request in server.requests if names_in(request)]
    for resource in resources:
        assert resource["service.name"] == "shop"
        assert (resource["shop.branch"], resource["service.version"]) == ("north", "7")
        assert resource["shop.floor"] == 3
        assert resource["os.type"] == "linux"
        assert resource["process.runtime.name"] == "cpython"
    parent, child = map(int, printed.split())
    assert [resource["process.pid"] for resource in resources] == [parent, child]
    assert resources[1]["process.parent_pid"] == parent
    assert len({resource["service.instance.id"] for resource in resources}) == 2


# Spans

TRACED = """
    import importlib.util, sys, warnings
    warnings.simplefilter("ignore")  # of the instrumentation itself
    from opentelemetry import trace
    from opentelemetry.instrumentation.grpc import GrpcInstrumentorClient
    from opentelemetry.instrumentation.requests import RequestsInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    finished = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(finished))
    trace.set_tracer_provider(provider)
    RequestsInstrumentor().instrument()
    GrpcInstrumentorClient().instrument()
    # Its releases lag behind those of the SDK that each goes with: see noxfile.py.
    with_urllib3 = importlib.util.find_spec("opentelemetry.instrumentation.urllib3") is not None
    if with_urllib3:
        from opentelemetry.instrumentation.urllib3 import URLLib3Instrumentor
        URLLib3Instrumentor().instrument()

    import grpc, requests, urllib3
    import otel_audit

    directory, protocol, endpoint, health = sys.argv[1:]

    def names():
        made = [span.name for span in finished.get_finished_spans()]
        finished.clear()
        return made

    audit = otel_audit.configure(directory=directory, endpoint=endpoint, protocol=protocol)
    for _ in range(3):
        audit.log_authn(outcome="success")
        assert audit.flush(timeout_s=30).complete
    audit.close()
    print(names())

    requests.get(health, timeout=20).close()
    assert len(names()) == 1
    with grpc.insecure_channel(endpoint.removeprefix("http://")) as channel, warnings.catch_warnings():
        try:
            channel.unary_unary("/test.Other/Call")(b"", timeout=20)
        except grpc.RpcError:
            pass
    assert names() == ["/test.Other/Call"]
    if with_urllib3:
        urllib3.PoolManager().request("GET", health)
        assert len(names()) == 1
"""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_instrumented_clients_make_spans_of_the_calls_of_the_application_and_none_of_the_delivery(
    protocol: str, collector: Collector, tmp_path: Path
) -> None:
    printed = run(TRACED, tmp_path, protocol, endpoint(collector, protocol), collector.health_endpoint)

    assert printed == "[]\n"
    assert len(events_in_archive(collector)) == 3


# Log records

LOGGING = """
    import logging, sys
    import requests
    from opentelemetry.instrumentation.logging.handler import LoggingHandler
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
    import otel_audit
    from otel_audit.integrations.otel_logs import AuditLogRecordProcessor

    beside, directory, endpoint, protocol, official, health = sys.argv[1:]

    def processor():
        if beside == "ours":
            return AuditLogRecordProcessor(directory=directory + "-logs", endpoint=endpoint, protocol=protocol)
        # Over gRPC: the official exporter over HTTP loops by itself, on what its own client logs.
        from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
        exporter = OTLPLogExporter(official, insecure=True)
        if beside == "official behind ours":
            return AuditLogRecordProcessor(exporter, directory=directory + "-logs")
        return BatchLogRecordProcessor(exporter, schedule_delay_millis=200)

    audit = otel_audit.configure(directory=directory, endpoint=endpoint, protocol=protocol)
    provider = LoggerProvider()
    provider.add_log_record_processor(processor())
    logging.getLogger().addHandler(LoggingHandler(logger_provider=provider))
    logging.getLogger().setLevel(logging.DEBUG)

    for number in range(5):
        audit.log_authn(outcome="success")
        assert audit.flush(timeout_s=30).complete
        logging.getLogger("shop").debug("sold %d", number)
        assert provider.force_flush()
    requests.get(health, timeout=20).close()
    assert provider.force_flush()
    print("done", flush=True)
    sys.stdin.read()
"""
QUIET_S = 3.0  # each exporter sends what it has every second, or sooner


def quiet_archive(collector: Collector) -> list[Record]:
    """The records once none came for some seconds."""
    since = [(0, time.monotonic())]

    def for_how_long() -> float:
        count, now = len(collector.archive()), time.monotonic()
        if count != since[-1][0]:
            since.append((count, now))
        return now - since[-1][1]

    poll(for_how_long, until=lambda quiet_s: quiet_s > QUIET_S, what="no more records")
    return collector.archive()


@pytest.mark.parametrize("beside", ["official", "ours", "official behind ours"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_delivery_makes_log_records_of_itself_though_all_that_is_logged_is_exported(
    protocol: str, beside: str, collector: Collector, tmp_path: Path
) -> None:
    delivering = endpoint(collector, protocol), protocol, collector.grpc_endpoint
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(LOGGING),
            beside,
            tmp_path / "audit",
            *delivering,
            collector.health_endpoint,
        ],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        done = process.stdout.readline()
        records = quiet_archive(collector) if done else []
        _, said = process.communicate(timeout=120)
    assert (done, process.returncode) == ("done\n", 0), said

    assert [record.event_name for record in records if record.scope_name == "otel_audit"].count("authn.success") == 5
    logged = [record for record in records if record.scope_name != "otel_audit"]
    assert [record.body for record in logged if record.scope_name == "shop"] == [f"sold {n}" for n in range(5)]
    clients = [record.body for record in logged if record.scope_name != "shop"]
    assert clients  # of the application's own request
    port = collector.health_endpoint.rpartition(":")[2]
    assert [body for body in clients if port not in body] == []
