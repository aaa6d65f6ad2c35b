"""Encode OTLP requests straight from journal lines and the header of their segment.

Nothing of the exporting process gets in: no clock, no resource, no active span. So a line that is sent again, by any
process, makes an equal record. A line that holds a foreign record is sent as that record.

A line of a helper has fields of known types and nothing else. Such a line is read into one object, and the attributes
that repeat from line to line are found by the values, or the unread bytes, that they depend on. Any other line, such as
one of another program or one with its own attributes, is read as a dictionary. A property test holds that both ways
make the same record.

Source: OTLP 1.x `logs.proto`; OTel logs data model; attributes and severities as in `mapping`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from operator import attrgetter
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import msgspec
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs

from otel_audit.errors import AuditError
from otel_audit.records import attributes as keys
from otel_audit.records import wire
from otel_audit.records.facts import HttpFacts, Verdict, http_facts, http_facts_of, verdict_of
from otel_audit.records.mapping import (
    DURATION,
    KEPT,
    MCP_METHODS,
    OWN_TEXTS,
    SURELY_FITS_BYTES,
    AttributeValue,
    SegmentMapping,
    actor_attributes,
    kind_attributes,
    kind_of,
    plain_attributes,
)
from otel_audit.records.otlp_json import OTLP, ForeignRequest, foreign_resource_logs

__all__ = [
    "Segment",
    "Trace",
    "UnreadableLine",
    "UsualLine",
    "encoded_request",
    "foreign_of",
    "read_line",
    "read_object",
    "read_usual",
    "time_of",
    "trace_of",
]


class _Source(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    ip: str
    transport: str
    user_agent: str = ""


class _Action(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    mcp_tool: str
    path: str
    method: str = ""


class _Resource(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    type: str
    name: str
    actions: msgspec.Raw


_INT64_MAX: Final = 2**63 - 1
_Count = Annotated[int, msgspec.Meta(ge=0, le=_INT64_MAX)]


class UsualLine(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A line as a helper of the logger writes it. Parts that repeat from line to line are left as they stand there."""

    event_type: str
    timestamp: str
    request_id: str
    principal: msgspec.Raw
    source: _Source
    action: _Action
    resource: _Resource
    outcome: str
    detail: str
    event_id: str
    time_ns: _Count
    observed_ns: _Count
    stream_id: str
    seq: _Count
    trace_id: str = ""
    span_id: str = ""
    trace_flags: Annotated[int, msgspec.Meta(ge=0, le=0xFF)] = 0
    jsonrpc_id: str = ""
    duration_ms: Annotated[int, msgspec.Meta(ge=0, le=2**53)] | float | None = None
    status_code: Annotated[int, msgspec.Meta(ge=100, le=599)] | None = None
    error_type: str = ""
    parent_id: str = ""
    attributes: dict[str, str] = {}
    prev_hash: str = ""


_decode_usual: Final = msgspec.json.Decoder(UsualLine).decode


def read_usual(line: bytes) -> UsualLine | None:
    """Return a line if its record is made of these fields alone, or None if all of it has to be looked at."""
    try:
        usual = _decode_usual(line)
    except (ValueError, RecursionError):  # perhaps a line of another kind
        return None
    given = usual.attributes
    is_usual = usual.event_id and usual.event_type not in _WITH_MORE
    return usual if is_usual and (not given or (given.keys() <= _KEPT and all(given.values()))) else None


_KEPT: Final = frozenset(KEPT)
# Their records have more attributes than those of the fields.
_WITH_MORE: Final = frozenset(MCP_METHODS) - {"mcp.tools.call"}


class UnreadableLine(AuditError):
    """A line from which no record can be built. Only it is at fault; the others can be sent without it.

    `position` is its index among the given lines, or None if it was given alone.
    """

    def __init__(self, reason: str, position: int | None = None) -> None:
        self.reason, self.position = reason, position
        where = "" if position is None else f"line {position} of the batch: "
        super().__init__(f"{where}{reason}; set the line aside and verify the journal")


_NEEDED: Final = (("event_type", str), ("stream_id", str), ("time_ns", int), ("observed_ns", int), ("seq", int))
_decode: Final[Callable[[bytes], Any]] = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode


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


_Key = TypeVar("_Key", bound=Hashable)


class _Common(NamedTuple):
    """Fields of a LogRecord that many records share: those of a kind with the constants, or those of an actor.

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
    """Encodes the lines of one segment. The common parts of events of a kind, or of an actor, are encoded once.

    The two are kept apart, since every user may do everything, and there would be too many pairs to keep. Any thread.
    """

    __slots__ = ("_actors", "_envelope", "_heads", "_kinds", "_mapping", "_usual_kinds")

    def __init__(self, segment: Segment) -> None:
        self._mapping = segment.mapping
        self._actors: dict[bytes, _Common] = {}  # by the JSON of the principal
        self._kinds: dict[bytes, _Common] = {}
        self._usual_kinds: dict[tuple[bytes | str | int | None, ...], _Common] = {}
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
            try:
                usual = self._usual_record(line)
                if usual is not None:
                    request.add(usual)
                    continue
                event = read_line(line)
                if OTLP in event:
                    request.add_foreign(foreign_of(event))
                else:
                    request.add(self._record(line, event))
            except UnreadableLine as error:
                raise UnreadableLine(error.reason, position) from error
        return request.encoded()

    def _usual_record(self, line: bytes) -> bytes | None:
        """Return the record of a usual line, or None for any other."""
        usual = read_usual(line) if len(line) <= SURELY_FITS_BYTES else None
        if usual is None:
            return None
        event_type, action, resource = usual.event_type, usual.action, usual.resource
        http = http_facts(event_type, action.method, action.path, usual.status_code, usual.detail)
        principal = bytes(usual.principal)
        # fmt: off
        kind = (
            event_type, usual.stream_id, usual.outcome, usual.error_type, action.mcp_tool, resource.type,
            bytes(resource.actions), usual.source.transport, http.method, http.status_code,
        )
        # fmt: on
        common = self._usual_kinds.get(kind)
        if common is None:
            common = _kept(self._usual_kinds, kind, self._kind_of(read_line(line), http))
        actor = self._actors.get(principal)
        if actor is None:
            actor = _kept(self._actors, principal, self._encoded_actor(read_object(b'{"principal":%b}' % principal)))
        heads = self._heads
        event_id = usual.event_id.encode()
        parts = [
            common.encoded,
            actor.encoded,
            wire.times(usual.time_ns, usual.observed_ns),
            heads[keys.RECORD_ID][len(event_id)],
            event_id,
        ]
        heads.add_count(parts, keys.SEQUENCE_NUMBER, usual.seq)
        if http.path:
            path = http.path.encode()
            parts += (heads[keys.URL_PATH][len(path)], path)
        if usual.duration_ms is not None:
            heads.add_double(parts, DURATION, float(usual.duration_ms))
        if given := usual.attributes:
            heads.add_attributes(parts, {key: given[key] for key in KEPT if key in given})
        for key, text in zip(_OWN_KEYS, _own_texts(usual), strict=True):
            if text:
                value = text.encode()
                parts += (heads[key][len(value)], value)
        parts += (heads.body[len(line)], line)
        if usual.trace_id and (trace_id := _id_bytes(usual.trace_id, 16)):
            wire.add_span(parts, trace_id, _id_bytes(usual.span_id, 8), usual.trace_flags)
        return b"".join(parts)

    def _record(self, line: bytes, event: Mapping[str, Any]) -> bytes:
        if len(line) <= SURELY_FITS_BYTES:
            http = http_facts_of(event)
            kind, actor = self._kind_of(event, http), self._actor_of(event)
            own, left_out = self._mapping.own(event, http, kind.attributes + actor.attributes)
            parts = [kind.encoded, actor.encoded]
        else:
            verdict = verdict_of(event.get("outcome"))
            repeating, own, left_out = self._mapping.attributes(event, verdict, len(line))
            parts = [self._encoded(event, verdict, repeating).encoded]
        parts.append(wire.times(time_of(event), event["observed_ns"]))
        self._heads.add_attributes(parts, own)
        self._heads.add_body(parts, line)
        trace = trace_of(event)
        if trace.trace_id:
            wire.add_span(parts, *trace)
        if left_out:
            parts.append(LogRecord(dropped_attributes_count=left_out).SerializeToString())
        return b"".join(parts)

    def _kind_of(self, event: Mapping[str, Any], http: HttpFacts) -> _Common:
        verdict = verdict_of(event.get("outcome"))
        try:
            kind = kind_of(event, http)
        except RecursionError:  # as deep as a line that can just be read
            return self._encoded(event, verdict, kind_attributes(event, verdict, http))
        known = self._kinds.get(kind)
        return known or _kept(self._kinds, kind, self._encoded(event, verdict, kind_attributes(event, verdict, http)))

    def _actor_of(self, event: Mapping[str, Any]) -> _Common:
        try:
            principal = _encode(event.get("principal"))
        except RecursionError:  # as above
            return self._encoded_actor(event)
        return self._actors.get(principal) or _kept(self._actors, principal, self._encoded_actor(event))

    def _encoded_actor(self, event: Mapping[str, Any]) -> _Common:
        values = actor_attributes(event)
        parts: list[bytes] = []
        self._heads.add_attributes(parts, values)
        return _Common(b"".join(parts), len(values))

    def _encoded(self, event: Mapping[str, Any], verdict: Verdict, repeating: Mapping[str, AttributeValue]) -> _Common:
        record = LogRecord(
            severity_number=verdict.severity_number,  # type: ignore[arg-type]  # an open enum: a number will do
            severity_text=verdict.severity_text,
            event_name=event["event_type"],
        )
        constants = self._mapping.constants
        return _Common(record.SerializeToString() + wire.attributes({**constants, **repeating}), len(repeating))


def _kept(known: dict[_Key, _Common], key: _Key, common: _Common) -> _Common:
    """Keep what was encoded once, and return it."""
    if len(known) >= _COMMON_MAX:
        known.clear()
    known[key] = common
    return common


_RECORDS_AT_A_TIME: Final = 32
_COMMON_MAX: Final = 2048  # about half a megabyte
_FIELDS: Final = frozenset(UsualLine.__struct_fields__)
_OWN_TEXTS: Final = tuple(
    (f"{part}.{field}" if part else field, key)
    for part, fields in OWN_TEXTS
    for field, key in fields
    if (part or field) in _FIELDS
)
_OWN_KEYS: Final = tuple(key for _, key in _OWN_TEXTS)
_own_texts: Final[Callable[[UsualLine], tuple[str, ...]]] = attrgetter(*(place for place, _ in _OWN_TEXTS))
