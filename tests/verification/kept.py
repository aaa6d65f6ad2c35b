"""What was kept of a trail off its host, and the reports on it: alone, and beside the journal.

The same lines lie in a collector's archive or in Loki. A test that takes both shows that a row of the class table holds
for a store, whatever it is.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from otel_audit.journal.cursor import Cursor, Progress
from otel_audit.journal.line import Position
from otel_audit.records.encoding import encoded_request
from otel_audit.stores.location import open_store
from otel_audit.stores.store import Store
from otel_audit.verification.archive import verify_store
from otel_audit.verification.findings import Report
from otel_audit.verification.pins import Pins
from otel_audit.verification.verify import verify_directory
from tests.journal_lines import HEADER
from tests.servers.loki import LokiDouble
from tests.verification.forge import Forge

__all__ = ["Kept", "all_lines", "delivered", "request_of", "write_archive"]

A_REQUEST = 7


def request_of(bodies: Sequence[bytes | dict[str, Any]]) -> bytes:
    """One request of a collector's archive."""
    records = [{"body": {"stringValue": body.decode()}} if isinstance(body, bytes) else body for body in bodies]
    scope = {"scope": {"name": "otel_audit"}, "logRecords": records}
    return json.dumps({"resourceLogs": [{"resource": {}, "scopeLogs": [scope]}]}, separators=(",", ":")).encode()


def write_archive(path: Path, bodies: Sequence[bytes | dict[str, Any]], *, shuffled: bool = False) -> Path:
    requests = [request_of(bodies[begin : begin + A_REQUEST]) for begin in range(0, len(bodies), A_REQUEST)]
    if shuffled:
        random.Random(1).shuffle(requests)
    path.write_bytes(b"".join(request + b"\n" for request in requests))
    return path


def all_lines(forge: Forge) -> list[bytes]:
    return [*forge.ledger.lines, *(line for stream in forge.streams for line in stream.lines)]


def delivered(forge: Forge) -> None:
    """Every line was delivered, as the cursors say."""
    for stream in forge.streams:
        deliver(forge.directory / f"{stream.stream_id}.cursor", len(stream.lines))
    deliver(forge.directory / f"ledger.{forge.ledger.ledger_id}.cursor", len(forge.ledger.lines))


def deliver(cursor: Path, seq: int) -> None:
    """The lines up to this one were delivered, as a cursor says."""
    cursor.unlink(missing_ok=True)
    written = Cursor(cursor)
    written.advance("otlp", Progress(position=Position(9, 0, seq)))
    written.close()


@dataclass
class Kept:
    """Puts lines into one kind of store, `archive` or `loki`, and verifies what lies there."""

    kind: str
    place: Path

    def alone(self, lines: Sequence[bytes], pins: Pins | None = None, **how: Any) -> Report:
        with self.store(lines) as store:
            return verify_store(store, pins, **how)

    def beside(self, forge: Forge, lines: Sequence[bytes], pins: Pins | None = None, **how: Any) -> Report:
        with self.store(lines) as store:
            return verify_directory(forge.directory, pins, beside=store, **how)

    @contextmanager
    def store(self, lines: Sequence[bytes]) -> Iterator[Store]:
        """A store that holds these lines."""
        with self.at(lines) as source, open_store(source) as store:
            yield store

    @contextmanager
    def at(self, lines: Sequence[bytes]) -> Iterator[str]:
        """The path or the URL of a store that holds these lines."""
        if self.kind == "archive":
            yield str(write_archive(self.place / "archive.jsonl", lines))
            return
        with LokiDouble() as loki:
            loki.put(ExportLogsServiceRequest.FromString(encoded_request(HEADER, lines)))
            yield f"loki+{loki.base_url}?start=2026-08-01T00:00:00Z"
