"""Who has to keep its word: this package, and the stock batch processor with the stock OTLP exporter."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

import otel_audit
from otel_audit import AuditEvent, AuditPrincipal
from otel_audit.errors import AuditUnavailable
from otel_audit.journal.journal import Receipt
from tests.chaos.ledger import NO_PLACE, Place

__all__ = ["CONTENDERS", "Contender", "ContenderName", "Ours", "Stock"]

_ALICE = AuditPrincipal(username="alice", roles=["reader"], auth_type="oidc")


class ContenderName(StrEnum):
    """The words of the command line."""

    OURS = "ours"
    STOCK = "stock"


class Contender(Protocol):
    """Something that logs events. Any thread."""

    def log(self, name: str, draw: random.Random) -> Place | None:
        """Log an event of this name; None when it was refused."""

    def close(self) -> None:
        """The regular end."""


class Ours:
    """`configure()`, and every way to log that it has, with lines from short ones to some that cross a page."""

    def __init__(self) -> None:
        self._audit = otel_audit.configure()
        self._ways: tuple[Callable[[str, str], Receipt | None], ...] = (
            self._event,
            self._mcp_call,
            self._http_request,
            self._from_a_loop,
        )

    def log(self, name: str, draw: random.Random) -> Place | None:
        """See `Contender`."""
        detail = "x" * int(draw.expovariate(1 / 150)) if draw.random() < 0.95 else "y" * draw.randrange(6000)
        try:
            receipt = draw.choices(self._ways, (30, 30, 30, 3))[0](name, detail)
        except AuditUnavailable:  # with the rule `closed`
            return None
        if receipt is None:
            raise AssertionError(f"{name}: expected a receipt, got None: the event was filtered")
        if not receipt.durable:
            return None
        if receipt.event_id is None or receipt.stream_id is None or receipt.seq is None:
            raise AssertionError(f"{name}: expected a durable receipt to name its place, got {receipt}")
        return Place(receipt.event_id, receipt.stream_id, receipt.seq)

    def close(self) -> None:
        """See `Contender`."""
        self._audit.close()

    def _event(self, name: str, detail: str) -> Receipt | None:
        return self._audit.log(AuditEvent(event_type="chaos", request_id=name, outcome="success", detail=detail))

    def _mcp_call(self, name: str, detail: str) -> Receipt | None:
        return self._audit.log_mcp_call(
            request_id=name, tool_name="push", principal=_ALICE, outcome="denied", duration_ms=1.5, detail=detail
        )

    def _http_request(self, name: str, detail: str) -> Receipt | None:
        return self._audit.log_http_request(
            request_id=name, method="POST", path=f"/push/{detail[:200]}", principal=_ALICE, status_code=200
        )

    def _from_a_loop(self, name: str, detail: str) -> Receipt | None:
        event = AuditEvent(event_type="chaos.async", request_id=name, outcome="error", detail=detail)
        return asyncio.run(self._audit.alog(event))


class Stock:
    """The SDK as its documentation sets it up, over OTLP/HTTP, with its defaults. A call that returned counts."""

    def __init__(self) -> None:
        self._provider = LoggerProvider()
        self._provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
        self._logger = self._provider.get_logger("chaos")

    def log(self, name: str, draw: random.Random) -> Place | None:
        """See `Contender`."""
        attributes = {"audit.detail": "x" * int(draw.expovariate(1 / 150))}
        record = LogRecord(body=name, event_name="chaos", severity_number=SeverityNumber.INFO, attributes=attributes)
        self._logger.emit(record)
        return NO_PLACE

    def close(self) -> None:
        """See `Contender`."""
        self._provider.shutdown()


CONTENDERS: dict[ContenderName, Callable[[], Contender]] = {ContenderName.OURS: Ours, ContenderName.STOCK: Stock}
