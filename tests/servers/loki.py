"""A server that stores and answers as a real Loki did when it was recorded: see tests/stores/vectors/loki.json.

It takes OTLP in protobuf, answers `query_range` for a stream selector and label filters, and `series` for a selector.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tests.servers.ports import LOOPBACK

__all__ = ["LokiDouble"]

_LIMIT_MAX = 5000
_STRING = r'"(?:[^"\\]|\\.)*"'
_STAGE = re.compile(
    rf"\s*(?:\|\s*|,\s*|{{\s*)(?P<name>[a-z_]+)\s*(?P<operator>=~|!=|>=|=|<)\s*(?P<value>{_STRING}|\d+)\s*}}?"
    rf"|\s*\|~\s*(?P<line>{_STRING})"
)


@dataclass(slots=True)
class _Stored:
    time_ns: int
    body: str
    labels: dict[str, str]


@dataclass
class LokiDouble:
    """Listens on loopback. `letting_in` says of the headers of a request whether it is answered."""

    letting_in: Callable[[dict[str, str]], bool] = lambda headers: True
    entries: list[_Stored] = field(default_factory=list)
    answers_left_out: int = 0  # so many queries get a 503 first
    asked: list[dict[str, str]] = field(default_factory=list)

    def __enter__(self) -> Self:
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                double.put(ExportLogsServiceRequest.FromString(body))
                self.send_response(204)
                self.end_headers()

            def do_GET(self) -> None:
                status, body = double.answer(self.path, dict(self.headers.items()))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def base_url(self) -> str:
        return f"http://{LOOPBACK}:{self._server.server_port}"

    def put(self, request: ExportLogsServiceRequest) -> None:
        """Store the records of a request. An exact duplicate is merged."""
        for logs in request.resource_logs:
            resource = _labels(MessageToDict(logs.resource))
            for scope in logs.scope_logs:
                for record in scope.log_records:
                    stored = _record(record, {**resource, **_scope(scope.scope)})
                    if stored not in self.entries:
                        self.entries.append(stored)

    def _series(self, start: str, end: str, **selector: str) -> list[dict[str, str]]:
        wanted = _parsed(selector["match[]"])
        found = (each for each in self.entries if int(start) <= each.time_ns < int(end))
        return [each.labels for each in found if all(_matches(each, *one) for one in wanted)][:1]

    def answer(self, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        """Status and body for a query."""
        if not self.letting_in(headers):
            return 401, b"no org id"
        if self.answers_left_out:
            self.answers_left_out -= 1
            return 503, b"busy"
        parameters = {name: values[-1] for name, values in parse_qs(urlsplit(path).query).items()}
        if urlsplit(path).path.endswith("/series"):
            return 200, json.dumps({"status": "success", "data": self._series(**parameters)}).encode()
        self.asked.append(parameters)
        limit = int(parameters.get("limit", "100"))
        if limit > _LIMIT_MAX:
            said = f"max entries limit per query exceeded, limit > max_entries_limit_per_query ({limit} > {_LIMIT_MAX})"
            return 400, said.encode()
        begin, end = int(parameters["start"]), int(parameters["end"])
        if end - begin > 30 * 86_400 * 10**9 + 3_600 * 10**9:
            return 400, b"the query time range exceeds the limit"
        query, _, kept = parameters["query"].partition(" | keep ")
        wanted = _parsed(query)
        found = [
            entry
            for entry in sorted(self.entries, key=lambda each: each.time_ns)
            if begin <= entry.time_ns < end and all(_matches(entry, *each) for each in wanted)
        ]
        if parameters.get("direction") == "backward":
            found.reverse()
        streams: dict[str, dict[str, Any]] = {}
        for entry in found[:limit]:
            labels = {name: value for name, value in entry.labels.items() if not kept or name in kept.split(", ")}
            stream = streams.setdefault(json.dumps(labels, sort_keys=True), {"stream": labels, "values": []})
            stream["values"].append([str(entry.time_ns), entry.body])
        data = {"resultType": "streams", "result": list(streams.values())}
        return 200, json.dumps({"status": "success", "data": data}).encode()


def _parsed(query: str) -> list[tuple[str, str, str]]:
    """Return name, operator and value of each filter. A filter of lines has no name."""
    parsed: list[tuple[str, str, str]] = []
    place = 0
    while query[place:].strip():
        found = _STAGE.match(query, place)
        assert found, f"the double does not know {query[place:]!r}"
        place = found.end()
        if found["line"]:
            parsed.append(("", "|~", found["line"]))
        else:
            parsed.append((found["name"], found["operator"], found["value"]))
    return parsed


def _matches(entry: _Stored, name: str, operator: str, wanted: str) -> bool:
    value = entry.labels.get(name, "")
    match operator:
        case "=":
            return value == _text(wanted)
        case "!=":
            return value != _text(wanted)
        case "=~":
            return re.fullmatch(_pattern(wanted), value) is not None
        case "|~":
            return re.search(_pattern(wanted), entry.body) is not None
        case ">=":
            return value.isdecimal() and float(value) >= float(wanted)
        case _:
            return value.isdecimal() and float(value) < float(wanted)


def _text(written: str) -> str:
    return str(json.loads(written))


def _pattern(written: str) -> str:
    """Return a pattern of RE2 in the syntax of Python."""
    return re.sub(r"\\x\{([0-9a-f]+)\}", lambda found: re.escape(chr(int(found[1], 16))), _text(written))


def _record(record: Any, shared: dict[str, str]) -> _Stored:
    labels = {**shared, **_labels(MessageToDict(record))}
    time_ns = record.time_unix_nano or record.observed_time_unix_nano
    if record.observed_time_unix_nano and record.time_unix_nano:
        labels["observed_timestamp"] = str(record.observed_time_unix_nano)
    if record.severity_number:
        labels["severity_number"] = str(record.severity_number)
    if record.severity_text:
        labels |= {"severity_text": record.severity_text, "detected_level": record.severity_text.lower()}
    if record.event_name:
        labels["event_name"] = record.event_name
    if record.trace_id:
        labels |= {"trace_id": record.trace_id.hex(), "span_id": record.span_id.hex()}
    if record.flags:
        labels["flags"] = str(record.flags)
    return _Stored(time_ns, record.body.string_value, labels)


def _scope(scope: Any) -> dict[str, str]:
    return {"scope_name": scope.name, "scope_version": scope.version}


def _labels(holder: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in holder.get("attributes", ()):
        _add(found, re.sub(r"[^a-zA-Z0-9_]", "_", pair["key"]), pair.get("value", {}))
    return found


def _add(found: dict[str, str], name: str, value: dict[str, Any]) -> None:
    match value:
        case {"stringValue": str(text)}:
            found[name] = text
        case {"intValue": whole}:
            found[name] = str(whole)
        case {"boolValue": flag}:
            found[name] = "true" if flag else "false"
        case {"doubleValue": real}:
            found[name] = f"{real:g}"
        case {"bytesValue": encoded}:
            found[name] = base64.b64decode(encoded).decode()
        case {"arrayValue": array}:
            items = [item.get("stringValue", item) for item in array.get("values", ())]
            found[name] = json.dumps(items, separators=(",", ":"))
        case {"kvlistValue": pairs}:
            for pair in pairs.get("values", ()):
                _add(found, f"{name}_{pair['key']}", pair.get("value", {}))
