"""Pieces of an OTLP request in protobuf's encoding, from which a whole request is put together.

Setting a field of a message costs several times as much as copying its bytes, and the way from disk to wire is all CPU.
So the official messages encode each shape once, with a placeholder of the same length instead of the real value. The
bytes before the value are kept, and the value itself is appended. Nothing here knows the number of a field.

Source: Protocol Buffers, "Encoding": a message is the concatenation of its fields, in any order, and of those of the
messages merged into it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from otel_audit.records.mapping import AttributeValue

__all__ = ["Heads", "HeadsOfKey", "add_span", "attributes", "envelope", "times"]

_HEADS_MAX: Final = 8192  # of about 60 bytes
_KEYS_MAX: Final = 1024
_DOUBLE: Final = -1  # in place of a length; from it downwards: varints, by their length
_BODY: Final = ""  # in place of a key


def attributes(values: Mapping[str, AttributeValue]) -> bytes:
    """Return the attributes as fields of a LogRecord."""
    record = LogRecord()
    _add(record.attributes, values)
    return record.SerializeToString()


class HeadsOfKey(dict[int, bytes]):
    """The bytes before each value of one key, by the length of the value. They are learned on first use."""

    __slots__ = ("_key", "_learned")

    def __init__(self, key: str, learned: Callable[[], None]) -> None:
        super().__init__()
        self._key = key
        self._learned = learned

    def __missing__(self, length: int) -> bytes:
        self._learned()
        head = self[length] = _head_of(self._key, length)
        return head


class Heads(dict[str, HeadsOfKey]):
    """Encode attributes and bodies one by one, and remember their shapes. Any thread."""

    __slots__ = ("_count", "body")

    def __init__(self) -> None:
        super().__init__()
        self._count = 0
        self.body = self[_BODY]

    def __missing__(self, key: str) -> HeadsOfKey:
        if len(self) >= _KEYS_MAX:
            self.clear()  # a thread that holds one of them may go on with it
        heads = self[key] = HeadsOfKey(key, self._learned)
        return heads

    def _learned(self) -> None:
        self._count += 1
        if self._count >= _HEADS_MAX:
            self._count = 0
            for heads in list(self.values()):
                heads.clear()

    def add_attributes(self, parts: list[bytes], values: Mapping[str, AttributeValue]) -> None:
        """Append the attributes, as fields of a LogRecord."""
        for key, value in values.items():
            kind = type(value)
            if kind is str:
                text = value.encode()  # type: ignore[union-attr]  # by its kind
                parts += (self[key][len(text)], text)
            elif kind is float:
                self.add_double(parts, key, value)  # type: ignore[arg-type]  # by its kind
            elif kind is int and value >= 0:  # type: ignore[operator]  # by its kind
                self.add_count(parts, key, value)  # type: ignore[arg-type]  # by its kind
            else:
                parts.append(attributes({key: value}))

    def add_double(self, parts: list[bytes], key: str, value: float) -> None:
        """Append an attribute that is a double."""
        parts += (self[key][_DOUBLE], _double(value))

    def add_count(self, parts: list[bytes], key: str, value: int) -> None:
        """Append an attribute that is an integer from 0 up."""
        encoded = _varint(value)
        parts += (self[key][_DOUBLE - len(encoded)], encoded)

    def add_body(self, parts: list[bytes], text: bytes) -> None:
        """Append a body, UTF-8, as fields of a LogRecord."""
        parts += (self.body[len(text)], text)


def _head_of(key: str, length: int) -> bytes:
    """Return the bytes before a text of `length` bytes, a `_DOUBLE`, or a varint of `_DOUBLE - length` bytes."""
    if length == _DOUBLE:
        return attributes({key: 1.0})[: -len(_double(1.0))]
    if length < _DOUBLE:
        varint_bytes = _DOUBLE - length
        return attributes({key: 1 << 7 * (varint_bytes - 1)})[:-varint_bytes]
    text = "x" * length
    whole = attributes({key: text}) if key else LogRecord(body=AnyValue(string_value=text)).SerializeToString()
    return whole[: len(whole) - length]


def times(time_ns: int, observed_ns: int) -> bytes:
    """Return both times of a record, in nanoseconds since 1970."""
    return _times(_TIME_TAG, time_ns, _OBSERVED_TAG, observed_ns)


def add_span(parts: list[bytes], trace_id: bytes, span_id: bytes, flags: int) -> None:
    """Append the span of a record: 16 bytes, and 8 or none."""
    if len(trace_id) == 16 and len(span_id) == 8:
        parts += (_TRACE_HEAD, trace_id, _SPAN_HEAD, span_id, _FLAGS_TAG, _flags(flags))
    else:
        parts.append(LogRecord(trace_id=trace_id, span_id=span_id, flags=flags).SerializeToString())


_double: Final = struct.Struct("<d").pack
_flags: Final = struct.Struct("<I").pack
_times: Final = struct.Struct("<cQcQ").pack
_TIME_TAG: Final = LogRecord(time_unix_nano=1).SerializeToString()[:1]
_OBSERVED_TAG: Final = LogRecord(observed_time_unix_nano=1).SerializeToString()[:1]
_FLAGS_TAG: Final = LogRecord(flags=1).SerializeToString()[:1]
_TRACE_HEAD: Final = LogRecord(trace_id=b"\1" * 16).SerializeToString()[:-16]
_SPAN_HEAD: Final = LogRecord(span_id=b"\1" * 8).SerializeToString()[:-8]

# The tag of a field that holds a message is that of the field with an empty message, whose length is the last byte.
_RESOURCE_LOGS_TAG: Final = ExportLogsServiceRequest(resource_logs=[ResourceLogs()]).SerializeToString()[:-1]
_SCOPE_LOGS_TAG: Final = ResourceLogs(scope_logs=[ScopeLogs()]).SerializeToString()[:-1]
_LOG_RECORD_TAG: Final = ScopeLogs(log_records=[LogRecord()]).SerializeToString()[:-1]


def envelope(
    resource: Mapping[str, AttributeValue],
    resource_schema_url: str,
    scope: Mapping[str, str],
    scope_attributes: Mapping[str, AttributeValue],
) -> Callable[[list[bytes]], bytes]:
    """Return a function that makes an ExportLogsServiceRequest of records, with one resource and one scope.

    The order of the records is kept. `scope` is name, version and schema_url.
    """
    resource_logs = ResourceLogs(resource=Resource(), schema_url=resource_schema_url)
    _add(resource_logs.resource.attributes, resource)
    named = InstrumentationScope(name=scope["name"], version=scope["version"])
    scope_logs = ScopeLogs(scope=named, schema_url=scope["schema_url"])
    _add(scope_logs.scope.attributes, scope_attributes)
    resource_head, scope_head = resource_logs.SerializeToString(), scope_logs.SerializeToString()

    def request(records: list[bytes]) -> bytes:
        parts = [b"", resource_head, b"", scope_head]
        for record in records:
            parts += (_LOG_RECORD_TAG, _varint(len(record)), record)
        # Joined once in full size, since the lengths are worked out before.
        inside = sum(map(len, parts)) - len(resource_head)
        parts[2] = _SCOPE_LOGS_TAG + _varint(inside)
        parts[0] = _RESOURCE_LOGS_TAG + _varint(len(resource_head) + len(parts[2]) + inside)
        return b"".join(parts)

    return request


def _varint_of(number: int) -> bytes:
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_SMALL: Final = tuple(_varint_of(number) for number in range(1 << 12))  # status codes, lengths of texts and records


def _varint(number: int) -> bytes:
    return _SMALL[number] if number < len(_SMALL) else _varint_of(number)


def _add(to: Any, values: Mapping[str, AttributeValue]) -> None:
    add: Callable[..., KeyValue] = to.add
    for key, value in values.items():
        _set_value(add(key=key).value, value)


def _set_value(to: AnyValue, value: AttributeValue) -> None:
    kind = type(value)
    if kind is str:
        to.string_value = value  # type: ignore[assignment]  # by its kind
    elif kind is int:
        to.int_value = value  # type: ignore[assignment]  # by its kind
    elif kind is float:
        to.double_value = value  # type: ignore[assignment]  # by its kind
    elif kind is bool:
        to.bool_value = value  # type: ignore[assignment]  # by its kind
    else:
        to.array_value.SetInParent()
        for item in value:  # type: ignore[union-attr]  # a list is left
            _set_value(to.array_value.values.add(), item)
