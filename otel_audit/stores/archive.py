"""A collector's file archive: OTLP requests in JSON, one per line, as its file exporter writes them.

The exporter writes each newline with a second call. If it is killed, it can leave half a request, or a whole one
without its newline, and then the next request follows on the same line.

`read_archive_line` returns the requests as official messages, for sending them again. `ArchiveStore` returns the
journal lines in the bodies of their records, for verifying or searching, and reads only the fields that this takes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import msgspec
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from otel_audit.records.otlp_json import read_request
from otel_audit.stores.lines import LONGER_THAN_HELD, NumberedLine, hash_of, numbered_lines
from otel_audit.stores.sorting import SortingStore
from otel_audit.stores.store import DamagedBytes, Kind, Stored, stored_record

__all__ = ["ArchiveLine", "ArchiveStore", "halves_of", "is_archive_line", "read_archive_line", "records_in"]

_T = TypeVar("_T")

# Every request begins with these bytes. They occur nowhere else, since quotes inside a JSON string are escaped.
_START: Final = b'{"resourceLogs":'
_raw_decode: Final = json.JSONDecoder().raw_decode


@dataclass(frozen=True, slots=True)
class ArchiveLine:
    """The requests in one line, and for every other piece of the line the reason why it is not a request."""

    requests: Sequence[ExportLogsServiceRequest]
    unreadable: Sequence[str]


class _Torn(NamedTuple):
    """Bytes of a line that belong to no request."""

    offset: int
    length: int
    reason: str


def is_archive_line(line: bytes) -> bool:
    """Return True if a request begins in this line."""
    return _START in line


def read_archive_line(line: bytes) -> ArchiveLine:
    """Return every whole request in a line, however torn the rest of it is."""
    requests, torn = _requests_in(line, lambda text: read_request(json.loads(text)))
    return ArchiveLine(requests, [each.reason for each in torn])


def _requests_in(line: bytes, read: Callable[[bytes], _T]) -> tuple[list[_T], list[_Torn]]:
    before, *parts = line.split(_START)
    requests: list[_T] = []
    torn = _torn(before, 0)
    offset = len(before)
    for part in parts:
        piece = _START + part
        try:
            requests.append(read(piece))
        except (ValueError, TypeError, RecursionError):
            found, rest = _request_before(piece, read)
            requests += found
            torn += (each._replace(offset=offset + each.offset) for each in rest)
        offset += len(piece)
    return requests, torn


def _request_before(piece: bytes, read: Callable[[bytes], _T]) -> tuple[list[_T], list[_Torn]]:
    """Return the request at the beginning of a piece, if it is whole, and the remaining bytes."""
    text = piece.decode("utf-8", "surrogateescape")  # a torn request may end inside a character
    try:
        _, end = _raw_decode(text)
        whole = text[:end].encode("utf-8", "surrogateescape")
        return [read(whole)], _torn(piece[len(whole) :], len(whole))
    except (ValueError, TypeError, RecursionError) as error:
        return [], [_Torn(0, len(piece), _reason(text, error))]


def _torn(piece: bytes, offset: int) -> list[_Torn]:
    if not piece.strip():
        return []
    return [_Torn(offset, len(piece), f"expected an OTLP request in JSON, got {len(piece)} bytes that belong to none")]


def _reason(text: str, error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"expected a whole OTLP request, got the first {len(text)} characters of one"
    return str(error) or type(error).__name__


def records_in(request: ExportLogsServiceRequest) -> int:
    """Return the number of records in a request."""
    return sum(len(scope.log_records) for logs in request.resource_logs for scope in logs.scope_logs)


def halves_of(request: ExportLogsServiceRequest) -> tuple[ExportLogsServiceRequest, ExportLogsServiceRequest]:
    """Split a request in two. Each record keeps its resource and scope."""
    count = records_in(request)
    return _slice(request, 0, count // 2), _slice(request, count // 2, count)


def _slice(request: ExportLogsServiceRequest, first: int, last: int) -> ExportLogsServiceRequest:
    part, number = ExportLogsServiceRequest(), 0
    for logs in request.resource_logs:
        for scope in logs.scope_logs:
            wanted = scope.log_records[max(0, first - number) : max(0, last - number)]
            number += len(scope.log_records)
            if wanted:
                kept = part.resource_logs.add(resource=logs.resource, schema_url=logs.schema_url)
                kept.scope_logs.add(scope=scope.scope, schema_url=scope.schema_url, log_records=wanted)
    return part


class _Value(msgspec.Struct, frozen=True, gc=False):
    """An AnyValue. Source: OTLP specification, JSON Protobuf encoding: an integer may be a string."""

    stringValue: str | None = None
    intValue: str | int | None = None


class _Attribute(msgspec.Struct, frozen=True, gc=False):
    key: str = ""
    value: _Value = _Value()


class _Record(msgspec.Struct, frozen=True, gc=False):
    body: _Value | None = None
    attributes: msgspec.Raw = msgspec.Raw(b"[]")
    eventName: str = ""
    timeUnixNano: str | int = 0


class _ScopeLogs(msgspec.Struct, frozen=True, gc=False):
    logRecords: list[_Record] = []


class _ResourceLogs(msgspec.Struct, frozen=True, gc=False):
    scopeLogs: list[_ScopeLogs] = []


class _Request(msgspec.Struct, frozen=True, gc=False):
    resourceLogs: list[_ResourceLogs] = []


_decode_request: Final = msgspec.json.Decoder(_Request).decode
_decode_attributes: Final = msgspec.json.Decoder(list[_Attribute]).decode


class ArchiveStore(SortingStore):
    """The trail in the files of a collector's archive. See `Store`.

    The segment of a `Line` is the number of its file, from 1, and its offset is that of the file's line with its
    request.
    """

    kind = Kind.ARCHIVE

    def __init__(self, files: Sequence[Path], where: Path) -> None:
        super().__init__()
        self.where = str(where)
        self._files = files

    def contents(self) -> Iterator[Stored]:
        """Yield the records of all files, in the order of the files."""
        for number, path in enumerate(self._files, 1):
            offset = 0
            for line in numbered_lines(path):
                yield from self._in_line(number, path, line, offset)
                offset = line.end.offset

    def _place(self, number: int, offset: int) -> str:
        return f"{self._files[number - 1].name}, byte {offset}"

    def _in_line(self, number: int, path: Path, line: NumberedLine, offset: int) -> Iterator[Stored]:
        if line.content is None:
            length = line.end.offset - line.ended - offset
            yield DamagedBytes(path.name, offset, length, hash_of(path, offset, length), LONGER_THAN_HELD)
            return
        requests, torn = _requests_in(line.content, _decode_request)
        place = self._place(number, offset)
        for request in requests:
            for logs in request.resourceLogs:
                for scope in logs.scopeLogs:
                    for record in scope.logRecords:
                        yield _stored(record, number, offset, place)
        if line.damage and not torn:
            torn = [_Torn(0, len(line.content), "")]
        for begin, length, reason in torn:
            digest = sha256(line.content[begin : begin + length]).hexdigest()
            yield DamagedBytes(path.name, offset + begin, length, digest, line.damage or reason)


def _stored(record: _Record, segment: int, offset: int, place: str) -> Stored:
    body = record.body.stringValue if record.body is not None else None
    return stored_record(
        None if body is None else body.encode(),
        lambda: _attributes(record.attributes),
        segment=segment,
        offset=offset,
        place=place,
        event_name=record.eventName,
        time_ns=record.timeUnixNano,
    )


def _attributes(written: msgspec.Raw) -> Mapping[str, str | int | None]:
    try:
        found = _decode_attributes(written)
    except ValueError:
        return {}
    return {
        each.key: each.value.intValue if each.value.stringValue is None else each.value.stringValue for each in found
    }
