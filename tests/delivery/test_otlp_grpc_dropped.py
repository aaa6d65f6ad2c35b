"""A connection over gRPC that was dropped in silence, as no ping would tell: what it costs, and what it does not."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from otel_audit.delivery.otlp.grpc import OtlpGrpcExporter
from otel_audit.delivery.outcomes import Accepted, Unavailable, UnavailableFor
from otel_audit.settings import OtlpSettings, Settings
from otel_audit.trail import Stats, Trail
from tests.delivery.relay import Relay
from tests.metrics.reader import Reader, emit
from tests.servers import poll
from tests.servers.otlp_grpc_server import OtlpGrpcServer

REQUEST = b"\n\x00"  # one ResourceLogs with nothing in it
TIMEOUT_S = 3.0


@pytest.fixture
def server() -> Iterator[OtlpGrpcServer]:
    with OtlpGrpcServer() as running:
        yield running


@pytest.fixture
def relay(server: OtlpGrpcServer) -> Iterator[Relay]:
    with Relay(server.port) as between:
        yield between


def arrived(server: OtlpGrpcServer) -> list[str]:
    """The ids of the events that came, in order; without segment headers."""
    lines = [
        json.loads(record.body.string_value)
        for received in list(server.requests)
        for logs in ExportLogsServiceRequest.FromString(received.message).resource_logs
        for scope in logs.scope_logs
        for record in scope.log_records
    ]
    return [line["event_id"] for line in lines if "system" not in line]


def test_a_connection_that_was_dropped_in_silence_costs_one_time_out_and_the_next_export_makes_a_new_one(
    server: OtlpGrpcServer, relay: Relay
) -> None:
    settings = OtlpSettings(relay.endpoint, insecure=True, timeout_s=TIMEOUT_S)
    with closing(OtlpGrpcExporter(settings)) as exporter:
        assert exporter.export(REQUEST, 1) == Accepted()
        relay.fall_silent()
        began = time.monotonic()

        lost, again = exporter.export(REQUEST, 1), exporter.export(REQUEST, 1)

        took_s = time.monotonic() - began
    assert lost == Unavailable("DEADLINE_EXCEEDED: no answer within 3 s", UnavailableFor.TIMEOUT)
    assert again == Accepted()
    assert TIMEOUT_S <= took_s < 2 * TIMEOUT_S
    assert (relay.connections, len(server.requests)) == (2, 2)


def test_events_of_a_connection_that_was_dropped_in_silence_arrive_once_over_the_next_one(
    server: OtlpGrpcServer, relay: Relay, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = Reader()
    settings = Settings.load(
        {}, {"directory": str(tmp_path), "endpoint": relay.endpoint, "timeout_s": TIMEOUT_S, "batch_delay_s": 0.05}
    )
    before, after = [f"before-{number}" for number in range(50)], [f"after-{number}" for number in range(50)]
    with closing(Trail(settings, metrics=reader.metrics)) as trail:
        emit(trail, *before)
        assert trail.flush(timeout_s=20).complete

        relay.fall_silent()
        emit(trail, *after)

        poll(lambda: trail.stats().pending, until=lambda pending: pending == 0, what="the delivery, in nobody's hurry")
        assert trail.stats() == Stats(100, 0, 0, 0)

    said = capsys.readouterr().err
    assert "otlp: blocked: DEADLINE_EXCEEDED: no answer within 3 s; events stay in the journal" in said
    assert arrived(server) == before + after
    assert relay.connections == 2
    assert reader.values()["audit.export.duration"]["unavailable otlp"] == 1
