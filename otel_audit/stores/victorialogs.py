"""A trail in VictoriaLogs, as its OTLP endpoint stored it: the body of a record is its `_msg`.

Results are streamed line by line, so neither side holds more than one. The store ends a query after some time, by
default half a minute, so a large trail is read in windows of time. Lines with equal times are in one window, so none is
lost between two. The store first counts the lines of each window, and exactly that many must arrive.

Source: LogsQL, and the HTTP query API of VictoriaLogs 1.52.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

import msgspec

from otel_audit.fast_line import time_ns_of
from otel_audit.records import attributes as keys
from otel_audit.stores.endpoint import EndpointUrl, LogEndpoint
from otel_audit.stores.sorting import SortingStore
from otel_audit.stores.store import Kind, Sought, Stored, StoreUnreadable, pattern_of, stored_record

__all__ = ["VictoriaLogsStore"]

_PATH: Final = "/select/logsql/query"
_OURS: Final = f'"{keys.SEQUENCE_STREAM_ID}":*'
_SERVICE: Final = "service.name"
_FIELDS: Final = f'fields _msg, _time, event_name, "{_SERVICE}", "{keys.SEQUENCE_STREAM_ID}", "{keys.SEQUENCE_NUMBER}"'
_WINDOW_LINES: Final = 50_000
_INT64_END: Final = 2**63
_ALL_NS: Final = (0, _INT64_END - 1)
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


class VictoriaLogsStore(SortingStore):
    """The trail in VictoriaLogs, found by the records that name their stream. See `Store`.

    The offset of a `Line` is its time in nanoseconds. The URL option `query` is a LogsQL filter that narrows the
    search, such as `"service.name":="shop"`, and `tenant` is `AccountID` or `AccountID:ProjectID`.
    """

    kind = Kind.VICTORIALOGS

    def __init__(self, url: EndpointUrl, *, pause: Callable[[float], object] = time.sleep) -> None:
        super().__init__()
        self.where = url.shown
        account, _, project = url.tenant.partition(":")
        tenant = {"AccountID": account, "ProjectID": project or "0"} if account else {}
        self._endpoint = LogEndpoint(url, tenant, pause=pause)
        self._filter = f"{_OURS} ({url.query})" if url.query else _OURS
        self._start_ns = url.start_ns
        self._end_ns = url.end_ns

    def contents(self) -> Iterator[Stored]:
        """Yield everything, by time. Records that arrive in the meantime with later times are left out."""
        return map(_stored, self._found(Sought()))

    def search(self, sought: Sought) -> Iterator[tuple[Stored, str]]:
        """Yield the results of a query, each with the service of its writer."""
        return ((_stored(row), str(row.get(_SERVICE, ""))) for row in self._found(sought))

    def newest(self, count: int) -> Iterator[tuple[Stored, str]]:
        """Yield the newest lines without reading the others, each with the service of its writer."""
        parameters = {"limit": str(count)}  # the store then answers with the newest ones
        bounds = "" if (span := self._bounds(Sought())) == _ALL_NS else f"{_window(*span)} "
        return (
            (_stored(row), str(row.get(_SERVICE, "")))
            for row in self._rows(f"{bounds}{self._filter} | {_FIELDS}", parameters)
        )

    def _found(self, sought: Sought) -> Iterator[dict[str, Any]]:
        query = " ".join([self._filter, *(f"_msg:~{_quoted(pattern)}" for pattern in sought.patterns)])
        if sought.services:
            query += f' "{_SERVICE}":~{_quoted(f"^(?:{sought.services})$")}'
        if sought.stream_id:
            query += f' "{keys.SEQUENCE_STREAM_ID}":~{_quoted(f"^(?:{pattern_of(sought.stream_id)})$")}'
        if sought.first or sought.end is not None:
            end = _INT64_END if sought.end is None else sought.end
            query += f' "{keys.SEQUENCE_NUMBER}":range[{sought.first}, {end})'
        extent = self._extent(query, sought)
        windows = [] if extent is None else [extent]
        while windows:
            begin_ns, end_ns = windows.pop()
            count = self._count(query, begin_ns, end_ns)
            if count > _WINDOW_LINES and end_ns - begin_ns > 1:
                middle_ns = (begin_ns + end_ns) // 2
                windows += [(middle_ns, end_ns), (begin_ns, middle_ns)]
            elif count:
                yield from self._window(query, begin_ns, end_ns, count)

    def close(self) -> None:
        """See `Store`."""
        super().close()
        self._endpoint.close()

    def _extent(self, query: str, sought: Sought) -> tuple[int, int] | None:
        """Return the time of the first line and a time after the last one, or None if there are no lines."""
        begin_ns, end_ns = self._bounds(sought)
        if begin_ns >= end_ns:
            return None
        is_bounded = (begin_ns, end_ns) != _ALL_NS
        span = f"{_window(begin_ns, end_ns)} " if is_bounded else ""
        [row] = self._rows(f"{span}{query} | stats min(_time) as first, max(_time) as last, count() as lines")
        if row.get("lines") == "0":
            return None
        begin_ns, end_ns = max(begin_ns, _time_ns(row.get("first"))), min(end_ns, _time_ns(row.get("last")) + 1)
        return (begin_ns, end_ns) if begin_ns < end_ns else None

    def _bounds(self, sought: Sought) -> tuple[int, int]:
        """Return the first time that is asked for, and the one after the last."""
        begin_ns, end_ns = sought.within(*_ALL_NS)
        begin_ns = begin_ns if self._start_ns is None else max(begin_ns, self._start_ns)
        return begin_ns, end_ns if self._end_ns is None else min(end_ns, self._end_ns)

    def _count(self, query: str, begin_ns: int, end_ns: int) -> int:
        [row] = self._rows(f"{_window(begin_ns, end_ns)} {query} | stats count() as lines")
        return int(row.get("lines", "0"))

    def _window(self, query: str, begin_ns: int, end_ns: int, count: int) -> Iterator[dict[str, Any]]:
        found = 0
        for row in self._rows(f"{_window(begin_ns, end_ns)} {query} | {_FIELDS}"):
            found += 1
            yield row
        # Its retention may have removed lines since the count. In that case a new count agrees.
        if found < count and found < (left := self._count(query, begin_ns, end_ns)):
            raise StoreUnreadable(
                f"{self.where}: expected {left} lines from {_written(begin_ns)} to {_written(end_ns)}, got {found}; "
                "ask again, and see -search.maxQueryDuration of the store"
            )

    def _rows(self, query: str, parameters: Mapping[str, str] = MappingProxyType({})) -> Iterator[dict[str, Any]]:
        for line in self._endpoint.lines(_PATH, {"query": query, **parameters}):
            if line:
                try:
                    yield _decode(line)
                except msgspec.MsgspecError:
                    yield self._row(line)

    def _row(self, line: bytes) -> dict[str, Any]:
        """Return a row that may hold half a surrogate, which only Python reads."""
        try:
            row = json.loads(line)
        except ValueError as error:
            raise StoreUnreadable(f"{self.where}: expected rows in JSON, got {line[:100]!r}") from error
        if not isinstance(row, dict):
            raise StoreUnreadable(f"{self.where}: expected rows that are objects, got {line[:100]!r}")
        return row


def _stored(row: dict[str, Any]) -> Stored:
    body, moment = row.get("_msg"), row.get("_time")
    time_ns = _time_ns(moment)
    return stored_record(
        body.encode("utf-8", "surrogatepass") if isinstance(body, str) else None,
        lambda: row,
        event_name=str(row.get("event_name", "")),
        time_ns=time_ns,
        place=f"_time {moment}",
        offset=time_ns,
    )


def _quoted(pattern: str) -> str:
    """Return a pattern as a string of LogsQL, whose escapes are those of Go."""
    return '"{}"'.format(pattern.replace("\\", "\\\\"))


def _window(begin_ns: int, end_ns: int) -> str:
    return f"_time:[{_written(begin_ns)}, {_written(end_ns)})"


def _written(time_ns: int) -> str:
    """Return a time in the format of LogsQL. Source: RFC 3339, with nanoseconds."""
    seconds, rest_ns = divmod(time_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest_ns:09d}Z"


def _time_ns(text: object) -> int:
    """Return a time with up to nine decimals in nanoseconds since 1970."""
    whole, _, rest = str(text).removesuffix("Z").partition(".")
    seconds_ns = _seconds_ns(whole)
    if seconds_ns is None or not (rest.isdecimal() or not rest) or len(rest) > 9:
        raise StoreUnreadable(f"expected a time such as 2026-01-31T12:00:00.123456789Z, got {str(text)[:40]!r}")
    return seconds_ns + int(rest.ljust(9, "0"))


@lru_cache  # lines come by time, many of them in one second
def _seconds_ns(text: str) -> int | None:
    return time_ns_of(f"{text}Z")
