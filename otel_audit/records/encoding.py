"""Encode OTLP requests straight from journal lines and the header of their segment.

Nothing of the exporting process gets in: no clock, no resource, no active span. So a line that is sent again, by any
process, makes an equal record. A line that holds a foreign record is sent as that record.

A line that the logger wrote has its keys in one order, and few of its texts need an escape. Such a line becomes a
record made of its own slices, without parsing. Any other line, such as one of another program, or one with its own
attributes or a quote in a text, is read as JSON. Whatever the pattern matches is JSON, and its groups have the values
that a JSON reader would find. A property test holds that both ways make the same record.

Source: OTLP 1.x `logs.proto`; OTel logs data model; attributes and severities as in `mapping`.
"""

from __future__ import annotations

import re
from binascii import unhexlify
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs

from otel_audit.errors import AuditError
from otel_audit.records import attributes as keys
from otel_audit.records import wire
from otel_audit.records.facts import HttpFacts, Verdict, http_facts_of, verdict_of
from otel_audit.records.mapping import (
    DURATION,
    KEPT,
    MCP_METHODS,
    OWN_TEXTS,
    SURELY_FITS_BYTES,
    AttributeValue,
    SegmentMapping,
    kind_of,
    plain_attributes,
    repeating_attributes,
)
from otel_audit.records.otlp_json import OTLP, ForeignRequest, foreign_resource_logs

__all__ = [
    "GROUPS",
    "USUAL_LINE",
    "Segment",
    "Trace",
    "UnreadableLine",
    "encoded_request",
    "foreign_of",
    "read_line",
    "read_object",
    "time_of",
    "trace_of",
]


# A text without an escape, whose bytes are its value. Control characters have to be escaped in JSON.
_TEXT: Final = r'[^"\\\x00-\x1f]*'
_SOME_TEXT: Final = _TEXT[:-1] + "+"
_WORD: Final = r'[^" \\\x00-\x1f]+'
_LIST: Final = rf'\[(?:"{_TEXT}"(?:,"{_TEXT}")*)?\]'
_INT64: Final = r"(?:0|[1-8][0-9]{0,18}|9[0-9]{0,17})"  # from 0 up to the largest that OTLP can hold
_BYTE: Final = r"(?:0|[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5])"
# An integer has no more digits than a double holds exactly. JSON's -0 would be an integer that has no sign.
_DECIMAL: Final = r"(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,20})?(?:e[-+]?[0-9]{1,2})?"
_KEPT: Final = "|".join(map(re.escape, KEPT))
# Their records have more attributes than those of the fields.
_WITH_MORE: Final = "|".join(re.escape(name) for name in MCP_METHODS if name != "mcp.tools.call")
_KEPT_PAIR: Final = rf'"(?:{_KEPT})":"{_SOME_TEXT}"'


def _optional(key: str, group: str) -> str:
    return rf'(?:,"{key}":"(?P<{group}>{_TEXT})")?'


_PATTERN: Final = "".join(
    (
        rf'\{{"event_type":"(?!(?:{_WITH_MORE})")(?P<event_type>{_TEXT})","timestamp":"{_TEXT}"',
        rf',"request_id":"(?P<request_id>{_TEXT})"',
        r'(?:,"trace_id":"(?!0{32})(?P<trace_id>[0-9a-f]{32})","span_id":"(?!0{16})(?P<span_id>[0-9a-f]{16})")?',
        _optional("jsonrpc_id", "jsonrpc_id"),
        rf',"principal":(?P<principal>\{{"username":"{_TEXT}","roles":{_LIST},"auth_type":"{_TEXT}"',
        *(rf'(?:,"{name}":"{_TEXT}")?' for name in ("id", "issuer", "kind", "on_behalf_of")),
        rf'\}}),"source":\{{"ip":"(?P<source_ip>{_TEXT})","transport":"(?P<transport>{_TEXT})"',
        _optional("user_agent", "source_user_agent"),
        rf'\}},"action":\{{"mcp_tool":"(?P<tool>{_TEXT})","path":"(?P<path>{_TEXT})"',
        _optional("method", "method"),
        rf'\}},"resource":\{{"type":"(?P<target_type>{_TEXT})","name":"(?P<resource_name>{_TEXT})"',
        rf',"actions":(?P<actions>{_LIST})\}},"outcome":"(?P<outcome>{_TEXT})"',
        rf'(?:,"duration_ms":(?P<duration_ms>{_DECIMAL}))?',
        # The text that `log_http_request` writes there: METHOD path -> status.
        rf',"detail":"(?P<detail>(?P<said_method>{_WORD}) {_TEXT} -> (?P<said_status>[0-9]{{3}})|{_TEXT})"',
        rf',"event_id":"(?P<event_id>{_SOME_TEXT})"',
        rf'(?:,"trace_flags":(?P<flags>{_BYTE}))?(?:,"status_code":(?P<status_code>[1-5][0-9]{{2}}))?',
        _optional("error_type", "error_type"),
        _optional("parent_id", "parent_id"),
        rf'(?:,"attributes":(?P<attributes>\{{{_KEPT_PAIR}(?:,{_KEPT_PAIR})*\}}))?',
        rf',"time_ns":(?P<time_ns>{_INT64}),"observed_ns":(?P<observed_ns>{_INT64})',
        rf',"stream_id":"(?P<stream_id>{_TEXT})","seq":(?P<seq>{_INT64})(?:,"prev_hash":"[0-9a-f]{{64}}")?\}}',
    )
).encode()

USUAL_LINE: Final = re.compile(_PATTERN)
"""Matches the whole of a usual line, without its newline."""

GROUPS: Final = tuple(USUAL_LINE.groupindex)
"""The names of the groups, in their order. One named as a part and its field, such as `source_ip`, holds that field."""


class UnreadableLine(AuditError):
    """A line from which no record can be built. Only it is at fault; the others can be sent without it.

    `position` is its index among the given lines, or None if it was given alone.
    """

    def __init__(self, reason: str, position: int | None = None) -> None:
        self.reason, self.position = reason, position
        where = "" if position is None else f"line {position} of the batch: "
        super().__init__(f"{where}{reason}; set the line aside and verify the journal")


_INT64_MAX: Final = 2**63 - 1
_NEEDED: Final = (("event_type", str), ("stream_id", str), ("time_ns", int), ("observed_ns", int), ("seq", int))
_decode: Final[Callable[[bytes], Any]] = msgspec.json.Decoder().decode


def read_line(line: bytes) -> dict[str, Any]:
    """Return the event of a journal line, with the journal's keys.

    Raises:
        UnreadableLine: it is not a JSON object, or lacks `event_type`, `time_ns`, `observed_ns`, `stream_id` or `seq`.
    """
    event = read_object(line)
    get = event.get
    observed_ns, seq = get("observed_ns"), get("seq")
    if not (
        type(get("event_type")) is type(get("stream_id")) is str
        and type(get("time_ns")) is int
        and type(observed_ns) is type(seq) is int
    ):
        raise _lacking(event)
    if not (0 <= observed_ns <= _INT64_MAX and 0 <= seq <= _INT64_MAX):
        raise UnreadableLine("expected numbers from 0 to 2^63-1 - at `$.observed_ns` or `$.seq`")
    return event


def read_object(content: bytes) -> dict[str, Any]:
    """Return these bytes as a JSON object.

    Raises:
        UnreadableLine: they are something else.
    """
    try:
        found = _decode(content)
    except (ValueError, RecursionError) as error:
        raise UnreadableLine(f"expected a JSON object in UTF-8, got {type(error).__name__} - at `$`") from error
    if type(found) is not dict:
        raise UnreadableLine(f"expected a JSON object, got {type(found).__name__} - at `$`")
    return found


def _lacking(event: Mapping[str, Any]) -> UnreadableLine:
    key, kind = next((key, kind) for key, kind in _NEEDED if type(event.get(key)) is not kind)
    return UnreadableLine(f"expected {kind.__name__}, got {type(event.get(key)).__name__} - at `$.{key}`")


def foreign_of(event: Mapping[str, Any]) -> ResourceLogs:
    """Return the foreign record of a line that has one.

    Raises:
        UnreadableLine: it is not OTLP-JSON.
    """
    try:
        return foreign_resource_logs(event)
    except ValueError as error:
        raise UnreadableLine(f"{error} - at `$.{OTLP}`") from error


class Trace(NamedTuple):
    """The span that was active at `log()`: 16 and 8 bytes, empty if there was none, and the W3C flags."""

    trace_id: bytes = b""
    span_id: bytes = b""
    flags: int = 0


_NO_TRACE: Final = Trace()


def time_of(event: Mapping[str, Any]) -> int:
    """Return nanoseconds since 1970. Earlier times, which OTLP cannot hold, become 0, which means unknown.

    Source: OTLP `LogRecord.time_unix_nano`, "0 indicates unknown or missing timestamp".
    """
    time_ns: int = event["time_ns"]
    return time_ns if 0 <= time_ns <= _INT64_MAX else 0


def trace_of(event: Mapping[str, Any]) -> Trace:
    """Return the span of an event.

    A malformed id or one of zeros counts as none. Without a trace id there is no span id.

    Source: W3C Trace Context, "trace-id", "parent-id" and "trace-flags".
    """
    written = event.get("trace_id")
    if written is None:
        return _NO_TRACE
    trace_id = _id_bytes(written, 16)
    if not trace_id:
        return _NO_TRACE
    flags = event.get("trace_flags")
    return Trace(
        trace_id, _id_bytes(event.get("span_id"), 8), flags if type(flags) is int and 0 <= flags <= 0xFF else 0
    )


def _id_bytes(text: object, length: int) -> bytes:
    if type(text) is not str or len(text) != 2 * length:
        return b""
    try:
        octets = bytes.fromhex(text)
    except ValueError:
        return b""
    return octets if len(octets) == length and any(octets) else b""  # fromhex skips spaces


class Segment:
    """The common parts of all records of one segment, from its header: resource, scope and attribute mapping."""

    __slots__ = ("mapping", "resource", "resource_schema_url", "scope", "scope_attributes")

    def __init__(self, header: Mapping[str, Any]) -> None:
        self.resource = plain_attributes(header.get("resource"))
        self.resource_schema_url = _text(header.get("resource_schema_url"))
        scope = header.get("scope")
        scope = scope if isinstance(scope, Mapping) else {}
        self.scope = {name: _text(scope.get(name)) for name in ("name", "version", "schema_url")}
        self.scope_attributes = plain_attributes(scope.get("attributes"))
        self.mapping = SegmentMapping(self.resource)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def encoded_request(
    header: Mapping[str, Any], lines: Sequence[bytes], *, give_way: Callable[[], None] | None = None
) -> bytes:
    """Return one request with a record for each line, in their order, with the resource and scope of the header.

    `header` is the `segment` object of the segment's first line, and is not changed between calls. Lines may end in a
    newline, which is not sent. `give_way` is called after every 32 records, since building a batch takes milliseconds
    in which an event loop of the same process would stand still.

    Raises:
        UnreadableLine: it names the line; nothing was built.
    """
    return _encoder_of(header).request(lines, give_way)


def _encoder_of(header: Mapping[str, Any]) -> _Encoder:
    """Return the encoder for a segment, which is kept from batch to batch.

    It is found by the identity of the header, since comparing headers costs as much as reading one. Each entry holds
    its header, so that no other can have its id.
    """
    known = _encoders.get(id(header))
    if known is None:
        if len(_encoders) >= _ENCODERS_MAX:
            _encoders.clear()
        known = _encoders[id(header)] = (header, _Encoder(Segment(header)))
    return known[1]


_ENCODERS_MAX: Final = 16  # streams that are exported in turn
_encoders: Final[dict[int, tuple[Mapping[str, Any], _Encoder]]] = {}


class _Common(NamedTuple):
    """The common fields of records of one kind, as fields of a LogRecord.

    `attributes` is their number besides the constants.
    """

    encoded: bytes
    attributes: int


class _Request:
    """A request of our records and foreign ones, in the order in which they are added."""

    __slots__ = ("_envelope", "_foreign", "_own", "_parts")

    def __init__(self, envelope: Callable[[list[bytes]], bytes]) -> None:
        self._envelope = envelope
        self._parts: list[bytes] = []  # whole requests, which joined together are one
        self._own: list[bytes] = []
        self._foreign: ForeignRequest | None = None

    def add(self, record: bytes) -> None:
        if self._foreign is not None:
            self._end_run()
        self._own.append(record)

    def add_foreign(self, records: ResourceLogs) -> None:
        if self._foreign is None:
            self._end_run()
            self._foreign = ForeignRequest()
        self._foreign.add(records)

    def encoded(self) -> bytes:
        self._end_run()
        return b"".join(self._parts) or self._envelope([])

    def _end_run(self) -> None:
        if self._foreign is not None:
            self._parts.append(self._foreign.encoded())
            self._foreign = None
        elif self._own:
            self._parts.append(self._envelope(self._own))
            self._own = []


class _Encoder:
    """Encodes the lines of one segment. The common parts of events of a kind are encoded once. Any thread."""

    __slots__ = ("_common", "_envelope", "_heads", "_mapping", "_usual_common")

    def __init__(self, segment: Segment) -> None:
        self._mapping = segment.mapping
        self._common: dict[bytes, _Common] = {}
        self._usual_common: dict[tuple[bytes | str | int | None, ...], _Common] = {}  # by slices of the line
        self._heads = wire.Heads()
        self._envelope = wire.envelope(
            segment.resource, segment.resource_schema_url, segment.scope, segment.scope_attributes
        )

    def request(self, lines: Sequence[bytes], give_way: Callable[[], None] | None) -> bytes:
        request = _Request(self._envelope)
        for position, line in enumerate(lines):
            if give_way is not None and position and position % _RECORDS_AT_A_TIME == 0:
                give_way()
            line = line.removesuffix(b"\n")
            usual = self._usual_record(line)
            if usual is not None:
                request.add(usual)
                continue
            try:
                event = read_line(line)
                if OTLP in event:
                    request.add_foreign(foreign_of(event))
                else:
                    request.add(self._record(line, event))
            except UnreadableLine as error:
                raise UnreadableLine(error.reason, position) from error
        return request.encoded()

    def _usual_record(self, line: bytes) -> bytes | None:
        """Return the record of a usual line, made of slices of it, or None for a line that has to be parsed."""
        match = _usual(line) if len(line) <= SURELY_FITS_BYTES else None
        if match is None or not (line.isascii() or _is_utf8(line)):
            return None
        values = match.groups()
        # fmt: off
        (
            event_type, _, trace_id, span_id, _, principal, _, transport, _, tool, path, method, target_type, _,
            actions, outcome, duration_ms, _, said_method, said_status, event_id, flags, status, error_type, _,
            attributes, time_ns, observed_ns, stream_id, seq,
        ) = values
        # fmt: on
        if event_type == _HTTP_REQUEST:
            if not path:
                return None
            method, status = method or said_method, status or said_status
        elif path[:1] != b"/":
            path = b""
        kind = (
            event_type,
            stream_id,
            outcome,
            error_type,
            principal,
            tool,
            target_type,
            actions,
            transport,
            method,
            status,
        )
        common = self._usual_common.get(kind)
        if common is None:
            event = read_line(line)
            common = self._common_of(event, http_facts_of(event))
            if len(self._usual_common) >= _KINDS_MAX:
                self._usual_common.clear()
            self._usual_common[kind] = common
        heads = self._heads
        parts = [
            common.encoded,
            wire.times(int(time_ns), int(observed_ns)),
            heads[keys.RECORD_ID][len(event_id)],
            event_id,
        ]
        heads.add_count(parts, keys.SEQUENCE_NUMBER, int(seq))
        if path:
            path = path.partition(b"?")[0]
            parts += (heads[keys.URL_PATH][len(path)], path)
        if duration_ms is not None:
            heads.add_double(parts, DURATION, float(duration_ms))
        if attributes is not None:
            given = _decode(attributes)
            heads.add_attributes(parts, {key: given[key] for key in KEPT if key in given})
        for index, key in _OWN_TEXTS:
            if value := values[index]:
                parts += (heads[key][len(value)], value)
        parts += (heads.body[len(line)], line)
        if trace_id is not None:
            wire.add_span(parts, unhexlify(trace_id), unhexlify(span_id), int(flags or 0))
        return b"".join(parts)

    def _record(self, line: bytes, event: Mapping[str, Any]) -> bytes:
        if len(line) <= SURELY_FITS_BYTES:
            http = http_facts_of(event)
            common = self._common_of(event, http)
            own, left_out = self._mapping.own(event, http, common.attributes)
        else:
            verdict = verdict_of(event.get("outcome"))
            repeating, own, left_out = self._mapping.attributes(event, verdict, len(line))
            common = self._encoded(event, verdict, repeating)
        parts = [common.encoded, wire.times(time_of(event), event["observed_ns"])]
        self._heads.add_attributes(parts, own)
        self._heads.add_body(parts, line)
        trace = trace_of(event)
        if trace.trace_id:
            wire.add_span(parts, *trace)
        if left_out:
            parts.append(LogRecord(dropped_attributes_count=left_out).SerializeToString())
        return b"".join(parts)

    def _common_of(self, event: Mapping[str, Any], http: HttpFacts) -> _Common:
        try:
            kind = kind_of(event, http)
        except RecursionError:  # as deep as a line that can just be read
            kind = b""
        known = self._common.get(kind)
        if known is None:
            verdict = verdict_of(event.get("outcome"))
            known = self._encoded(event, verdict, repeating_attributes(event, verdict, http))
            if len(self._common) >= _KINDS_MAX:
                self._common.clear()
            if kind:
                self._common[kind] = known
        return known

    def _encoded(self, event: Mapping[str, Any], verdict: Verdict, repeating: Mapping[str, AttributeValue]) -> _Common:
        record = LogRecord(
            severity_number=verdict.severity_number,  # type: ignore[arg-type]  # an open enum: a number will do
            severity_text=verdict.severity_text,
            event_name=event["event_type"],
        )
        constants = self._mapping.constants
        return _Common(record.SerializeToString() + wire.attributes({**constants, **repeating}), len(repeating))


_RECORDS_AT_A_TIME: Final = 32
_KINDS_MAX: Final = 2048  # about a megabyte
_usual: Final = USUAL_LINE.fullmatch
_HTTP_REQUEST: Final = b"http.request"
_OWN_TEXTS: Final = tuple(
    (GROUPS.index(group), key)
    for part, fields in OWN_TEXTS
    for field, key in fields
    if (group := f"{part}_{field}" if part else field) in GROUPS
)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
