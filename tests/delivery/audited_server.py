"""A recording OTLP server that answers by what is in a request, and what it was sent in the words of the tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from otel_audit.delivery.otlp.exporter import OtlpExporter
from otel_audit.settings import OtlpProtocol, OtlpSettings
from tests.servers.otlp_server import Answer, OtlpServer, Received, accepted

__all__ = ["AuditedServer", "exporter_to", "names_in"]


class AuditedServer(OtlpServer):
    """`judge` gets the names of the events of each request; None from it is a yes. One client at a time."""

    def __init__(self, judge: Callable[[Sequence[str]], Answer | None] = lambda names: None) -> None:
        super().__init__()
        self.judge = judge
        self.answers: list[Answer] = []

    def next_answer(self) -> Answer:
        scripted = super().next_answer() if self._answers else self.judge(names_in(self.requests[-1]))
        answer = scripted or accepted()
        self.answers.append(answer)
        return answer

    @property
    def batches(self) -> list[list[str]]:
        """The names of the events of each request, as they came."""
        return [names_in(request) for request in list(self.requests)]

    @property
    def accepted(self) -> list[str]:
        """The names of the events that were answered with yes, in order."""
        answered = zip(self.batches, list(self.answers), strict=False)
        return [name for names, answer in answered if answer == accepted() for name in names]


def names_in(request: Received) -> list[str]:
    """The ids of the events in a request; `header` for the line that begins a segment. Not the lines of the ledger."""
    message = ExportLogsServiceRequest.FromString(request.body)
    records = [each for logs in message.resource_logs for scope in logs.scope_logs for each in scope.log_records]
    lines = [json.loads(record.body.string_value) for record in records]
    return [_name(line) for line in lines if not _is_of_the_ledger(line)]


def _name(event: dict[str, Any]) -> str:
    return "header" if event.get("system") == "segment" else event["event_id"]


def _is_of_the_ledger(line: dict[str, Any]) -> bool:
    return line.get("system") in ("ledger", "note") or "edge" in line.get("segment", {})


def exporter_to(
    server: OtlpServer, *, timeout_s: float = 10.0, delay_s: float = 0.05, batch_bytes: int = 3 << 20
) -> OtlpExporter:
    """The exporter of the settings with this endpoint."""
    settings = OtlpSettings(server.endpoint, OtlpProtocol.HTTP_PROTOBUF, timeout_s=timeout_s)
    return OtlpExporter(settings, delay_s=delay_s, batch_bytes=batch_bytes)
