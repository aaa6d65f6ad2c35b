"""Archives as a collector writes them, made of the lines of real journals."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from otel_audit.journal.files import streams_in
from otel_audit.journal.line import Line, Position
from otel_audit.journal.reader import lines_behind, stream_header
from otel_audit.records.encoding import encoded_request
from tests.cli.journals import a_journal, record

__all__ = ["archive_of", "archived", "contents", "headers_of", "journal_lines", "some_streams"]


def some_streams(directory: Path, *, streams: int = 3, events: int = 12) -> dict[str, list[bytes]]:
    """Write streams of some segments each; their lines."""
    journals = [a_journal(directory, segment_bytes=3000) for _ in range(streams)]
    for number in range(events):
        for journal in journals:
            record(journal, f"event {number} \u2028 \U0001f600")
    for journal in journals:
        journal.close()
    return journal_lines(directory)


def journal_lines(directory: Path) -> dict[str, list[bytes]]:
    """All lines in the segments of a directory, by stream."""
    return {
        files.stream_id: [line.content for number in files.segments() for line in lines_behind(files, Position(number))]
        for files in streams_in(directory)
    }


def headers_of(directory: Path) -> Mapping[str, Mapping[str, Any]]:
    """The header of each stream."""
    return {files.stream_id: stream_header(files) for files in streams_in(directory)}


def archived(header: Mapping[str, Any], lines: Sequence[bytes]) -> bytes:
    """One request as a line of the archive, without its newline. Source: OTLP-JSON, whose ids are hex."""
    request = MessageToDict(ExportLogsServiceRequest.FromString(encoded_request(header, lines)))
    for scope in (scope for logs in request.get("resourceLogs", ()) for scope in logs["scopeLogs"]):
        for each in scope["logRecords"]:
            for key in each.keys() & {"traceId", "spanId"}:
                each[key] = base64.b64decode(each[key]).hex()
    return json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode()


def archive_of(journal: Path, path: Path) -> Path:
    """Write the lines of a journal as an archive, a request for each stream."""
    headers = headers_of(journal)
    path.write_bytes(
        b"".join(archived(headers[stream], lines) + b"\n" for stream, lines in journal_lines(journal).items())
    )
    return path


def contents(found: Sequence[object]) -> list[bytes]:
    """The bytes of what must be lines."""
    assert all(isinstance(each, Line) for each in found), found
    return [each.content for each in found if isinstance(each, Line)]
