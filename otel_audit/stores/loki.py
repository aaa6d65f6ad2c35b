"""A trail in Loki. The body of a record is its log line; its attributes are structured metadata, with `_` for `.`.

The result of a query is limited to a page: the first lines of all streams by time. Each page begins at the last time of
the one before and reads the lines of that time again, since some of them may have been cut off. If one time has more
lines than fit on a page, they are fetched in ranges of their sequence numbers.

Source: the HTTP API of Loki, `query_range` and `series`, and LogQL, whose label filters compare numbers. `start` is
inclusive, `end` is exclusive.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from otel_audit.journal.line import stream_and_seq
from otel_audit.records import attributes as keys
from otel_audit.stores.endpoint import EndpointUrl, LogEndpoint
from otel_audit.stores.sorting import SortingStore
from otel_audit.stores.store import Kind, Sought, Stored, StoreUnreadable, pattern_of, stored_record

__all__ = ["LokiStore"]

_PATH: Final = "/loki/api/v1/query_range"
_SERIES: Final = "/loki/api/v1/series"
_PAGE_LINES: Final = 1000  # allowed by every store's defaults, and small enough to hold a page in memory
_DAY_NS: Final = 86_400 * 10**9
# By default (`max_query_length`), Loki answers queries over 30 days at most.
_LONGEST_NS: Final = 28 * _DAY_NS
_SHORTEST_NS: Final = 3600 * 10**9
_FIRST_NS: Final = 18_262 * _DAY_NS  # 2020: no trail is older
_STREAM_ID: Final = keys.SEQUENCE_STREAM_ID.replace(".", "_")
_NUMBER: Final = keys.SEQUENCE_NUMBER.replace(".", "_")
_SERVICE: Final = "service_name"
_SELECTOR: Final = '{service_name=~".+"}'
_WITHOUT_ATTRIBUTES: Final = f" | keep {_SERVICE}"
_NUMBERS: Final = (0, 2**53)  # Loki compares numbers as doubles


class _Entry(NamedTuple):
    """A log line with its labels and metadata."""

    time_ns: int
    body: str
    labels: Mapping[str, str]


class LokiStore(SortingStore):
    """The trail in Loki, found by the records that name their stream. See `Store`.

    The offset of a `Line` is its time in nanoseconds. The URL option `query` is a stream selector that narrows the
    search, such as `{service_name="shop"}`, and `tenant` is the `X-Scope-OrgID`.
    """

    kind = Kind.LOKI

    def __init__(
        self,
        url: EndpointUrl,
        *,
        pause: Callable[[float], object] = time.sleep,
        now_ns: Callable[[], int] = time.time_ns,
        page_lines: int = _PAGE_LINES,
    ) -> None:
        super().__init__()
        self.where = url.shown
        self._endpoint = LogEndpoint(url, {"X-Scope-OrgID": url.tenant} if url.tenant else {}, pause=pause)
        self._selector = url.query or _SELECTOR
        self._start_ns = _FIRST_NS if url.start_ns is None else url.start_ns
        self._end_ns = url.end_ns
        self._now_ns = now_ns
        self._page_lines = page_lines

    def contents(self) -> Iterator[Stored]:
        """Yield everything, by time. Records that arrive in the meantime may be missing."""
        return (_stored(entry) for entry in self._entries(Sought()))

    def search(self, sought: Sought) -> Iterator[tuple[Stored, str]]:
        """Yield the results of a query, each with the service of its writer."""
        return ((_stored(entry), entry.labels.get(_SERVICE, "")) for entry in self._entries(sought))

    def newest(self, count: int) -> Iterator[tuple[Stored, str]]:
        """Yield the newest lines of the last 28 days without reading the others, each with the service of its writer.

        They are at most a page.
        """
        query, end_ns = f'{self._selector} | {_STREAM_ID}!=""', self._last_ns()
        begin_ns = max(self._start_ns, end_ns - _LONGEST_NS)
        if begin_ns >= end_ns:
            return iter(())
        page = self._page(query, begin_ns, end_ns, min(count, self._page_lines), "backward")
        return ((_stored(entry), entry.labels.get(_SERVICE, "")) for entry in page)

    def _last_ns(self) -> int:
        return self._now_ns() + _DAY_NS if self._end_ns is None else self._end_ns  # clocks differ

    def _entries(self, sought: Sought) -> Iterator[_Entry]:
        query = self._selector + "".join(f" |~ {_quoted(pattern)}" for pattern in sought.patterns)
        query += f' | {_STREAM_ID}!=""'
        if sought.services:
            query += f" | {_SERVICE}=~{_quoted(sought.services)}"
        if sought.stream_id:
            query += f" | {_STREAM_ID}=~{_quoted(pattern_of(sought.stream_id))}"
        if sought.first:
            query += f" | {_NUMBER}>={sought.first}"
        if sought.end is not None:
            query += f" | {_NUMBER}<{sought.end}"
        span_ns, has_begun = _LONGEST_NS, False
        begin_ns, last_ns = sought.within(self._start_ns, self._last_ns())
        while begin_ns < last_ns:
            end_ns = min(begin_ns + span_ns, last_ns)
            if not has_begun and not (has_begun := self._has_streams(begin_ns, end_ns)):
                begin_ns = end_ns
                continue
            page = self._page(query, begin_ns, end_ns)
            if len(page) < self._page_lines:
                yield from page
                begin_ns, span_ns = end_ns, min(4 * span_ns, _LONGEST_NS)
                continue
            newest_ns = max(entry.time_ns for entry in page)
            if newest_ns == begin_ns:
                yield from self._moment(query, begin_ns, _NUMBERS)
                begin_ns += 1
            else:
                yield from (entry for entry in page if entry.time_ns < newest_ns)
                # Loki looks at each hour of the time that it is asked for, whether a page is full or not.
                span_ns = min(max(2 * (newest_ns - begin_ns), _SHORTEST_NS), _LONGEST_NS)
                begin_ns = newest_ns

    def close(self) -> None:
        """See `Store`."""
        super().close()
        self._endpoint.close()

    def _has_streams(self, begin_ns: int, end_ns: int) -> bool:
        """Return False if Loki has nothing in a time range. Asking its index takes a seventh of the time of a query."""
        if "|" in self._selector or end_ns - begin_ns <= _DAY_NS:
            return True  # the index takes only a selector, and for a short range there is nothing to save
        answer = self._endpoint.get(_SERIES, {"match[]": self._selector, "start": str(begin_ns), "end": str(end_ns)})
        try:
            found = json.loads(answer)
            return found["status"] != "success" or bool(found.get("data"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreUnreadable(
                f"{self.where}{_SERIES}: expected a list of streams, got {answer[:100]!r}: {error}"
            ) from error

    def _moment(self, query: str, time_ns: int, numbers: tuple[int, int]) -> Iterator[_Entry]:
        """Yield the lines of one time whose sequence numbers are in `numbers`, the end excluded."""
        first, end = numbers
        numbered = f"{query} | {_NUMBER}>={first} | {_NUMBER}<{end}"
        page = self._page(numbered, time_ns, time_ns + 1)
        if len(page) < self._page_lines:
            yield from page
        elif end - first == 1:
            raise StoreUnreadable(
                f"{self.where}: expected less than {self._page_lines} lines of the time {time_ns} with the number "
                f"{first}, got as many or more; narrow them by `query` in the URL"
            )
        else:
            # Half of the lines that are known, since half of all possible numbers would take dozens of requests.
            read = (stream_and_seq(entry.body.encode("utf-8", "surrogatepass")) for entry in page)
            known = sorted(each[1] for each in read if each is not None and first < each[1] < end)
            middle = known[len(known) // 2] if known else (first + end) // 2
            yield from self._moment(query, time_ns, (first, middle))
            yield from self._moment(query, time_ns, (middle, end))

    def _page(
        self, query: str, begin_ns: int, end_ns: int, limit: int | None = None, direction: str = "forward"
    ) -> Sequence[_Entry]:
        """Return the entries in a time range, up to a page of them, from the begin or `backward` from the end.

        The body of nearly every record is its journal line, which has everything. Without the attributes, which are
        more than twice as much, Loki answers four times as fast. They are fetched only if a body is not a line.
        """
        way = {"limit": str(limit or self._page_lines), "direction": direction}
        entries = self._answered(f"{query}{_WITHOUT_ATTRIBUTES}", begin_ns, end_ns, way)
        if all(stream_and_seq(entry.body.encode("utf-8", "surrogatepass")) is not None for entry in entries):
            return entries
        return self._answered(query, begin_ns, end_ns, way)

    def _answered(self, query: str, begin_ns: int, end_ns: int, way: Mapping[str, str]) -> Sequence[_Entry]:
        parameters = {"query": query, "start": str(begin_ns), "end": str(end_ns)}
        answer = self._endpoint.get(_PATH, {**parameters, **way})
        try:
            found = json.loads(answer)
            if found["status"] != "success" or found["data"]["resultType"] != "streams":
                raise ValueError("it is no list of streams")
            entries = [
                _Entry(int(time_ns), body, stream["stream"])
                for stream in found["data"]["result"]
                for time_ns, body in stream["values"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreUnreadable(
                f"{self.where}{_PATH}: expected streams of lines, got {answer[:100]!r}: {error}"
            ) from error
        return sorted(entries, key=lambda entry: entry.time_ns)


def _quoted(pattern: str) -> str:
    """Return a pattern as a string of LogQL, whose escapes are those of Go."""
    return '"{}"'.format(pattern.replace("\\", "\\\\"))


def _stored(entry: _Entry) -> Stored:
    labels = entry.labels
    return stored_record(
        entry.body.encode("utf-8", "surrogatepass"),
        lambda: {keys.SEQUENCE_STREAM_ID: labels.get(_STREAM_ID), keys.SEQUENCE_NUMBER: labels.get(_NUMBER)},
        event_name=labels.get("event_name", ""),
        time_ns=entry.time_ns,
        place=f"time {entry.time_ns}",
        offset=entry.time_ns,
    )
