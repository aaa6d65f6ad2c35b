"""The SDK's attribute limits: no event is cut by them, on any way out; records of the plain API were cut before us."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from opentelemetry._logs import LogRecord
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter

from otel_audit import AuditEvent, configure
from otel_audit.integrations.otel_logs import AuditLogRecordProcessor
from tests.servers.otlp_server import OtlpServer, Received

OWN: dict[str, Any] = {f"shop.field{number:02}": "a value longer than it may be" for number in range(20)}


@pytest.fixture(autouse=True)
def _limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    for prefix in ("OTEL_ATTRIBUTE", "OTEL_LOGRECORD_ATTRIBUTE"):
        monkeypatch.setenv(f"{prefix}_COUNT_LIMIT", "5")
        monkeypatch.setenv(f"{prefix}_VALUE_LENGTH_LIMIT", "3")


def sent(requests: Sequence[Received]) -> list[dict[str, str]]:
    """The attributes of each record, without those of the journal's own lines."""
    records = [
        record
        for request in requests
        for logs in ExportLogsServiceRequest.FromString(request.body).resource_logs
        for scope in logs.scope_logs
        for record in scope.log_records
    ]
    return [
        {pair.key: pair.value.string_value for pair in record.attributes}
        for record in records
        if '"system":' not in record.body.string_value
    ]


def test_an_event_reaches_every_exporter_with_all_its_attributes(tmp_path: Path) -> None:
    kept = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]  # the SDK left it untyped
    with OtlpServer() as server:
        destination: dict[str, Any] = {"endpoint": server.endpoint, "protocol": "http/protobuf"}
        with (
            closing(configure(directory=tmp_path / "ours", **destination)) as ours,
            closing(configure(directory=tmp_path / "of the SDK", exporters=[kept])) as of_the_sdk,
        ):
            for audit in (ours, of_the_sdk):
                audit.log(AuditEvent(event_type="test", attributes=OWN))

        (by_ours,) = sent(server.requests)
    by_the_sdk = dict(kept.get_finished_logs()[1].log_record.attributes or {})

    assert OWN.items() <= by_ours.items()
    assert OWN.items() <= by_the_sdk.items()
    body = json.loads(str(kept.get_finished_logs()[1].log_record.body))
    assert body["attributes"] == OWN


@pytest.mark.filterwarnings("ignore:Log record attributes were dropped")  # that is what it is about
def test_the_sdk_has_cut_a_record_of_the_plain_api_before_it_is_journalled(tmp_path: Path) -> None:
    with OtlpServer() as server:
        provider = LoggerProvider(shutdown_on_exit=False)
        destination: dict[str, Any] = {"endpoint": server.endpoint, "protocol": "http/protobuf"}
        provider.add_log_record_processor(AuditLogRecordProcessor(directory=tmp_path, **destination))
        provider.get_logger("shop").emit(LogRecord(body="sold", attributes=OWN))
        provider.shutdown()

        (attributes,) = sent(server.requests)

    assert len(attributes) == 5
    assert set(attributes.values()) == {"a v"}
