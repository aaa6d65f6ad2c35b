"""SQL for the files that DuckDB reads: the lines of a trail in place, and the facts that one scan of them finds.

A file is read through its open descriptor, so it stays readable after retention removes its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from otel_audit.query.columns import COLUMN_NAMES, events_sql
from otel_audit.query.filters import Clue, Filters

__all__ = [
    "SPOOL_TABLE",
    "Lines",
    "Parts",
    "Run",
    "Span",
    "have_copies",
    "packed_rows",
    "packed_runs",
    "portions",
    "quoted",
    "runs_in",
    "spans_in",
]

_BARS: Final = 1024  # of the histogram by which lines are divided
_LINE_MAX_BYTES: Final = 1 << 20  # far above any line that is written
_BUFFER_BYTES: Final = 4 << 20  # for each thread and file
SPOOL_TABLE: Final = "spooled"  # a table with the time of each line, instead of the file
_VALID: Final = "CASE WHEN json_valid(line) THEN line END"


class Rows(Protocol):
    """Asks DuckDB one question, with the values of its parameters, and returns all rows of the answer."""

    def __call__(self, sql: str, values: Sequence[object] = ()) -> Sequence[tuple[Any, ...]]: ...


Ask = Callable[[Filters], tuple[str, list[object]]]
"""Returns the query for the lines that match filters, and the values of its parameters."""


class Run(NamedTuple):
    """The lines of one stream in one file. Lines that are not JSON have no stream.

    `is_dense` is True if each number from `first` to `last` is there exactly once. The times are those of the events.
    """

    file: str
    stream_id: str | None
    lines: int
    size_bytes: int
    first: int | None
    last: int | None
    first_ns: int | None
    last_ns: int | None
    is_dense: bool


class Span(NamedTuple):
    """The first and the last time of the events in a part of a trail, and the number of its lines."""

    first_ns: int | None
    last_ns: int | None
    lines: int


@dataclass(frozen=True, slots=True)
class Lines:
    """The lines in some files, each with the service that wrote it.

    `files` hold nothing but lines, and the table `sources` has their services. `spool` is a file in which the number of
    the stream in the variable `services` precedes each line.
    """

    files: Sequence[str] = ()
    spool: str | None = None

    def sql(self, condition: str = "true", since_ns: int | None = None, last_ns: int | None = None) -> str:
        """Return the query for `line` and `service` of the lines that meet a condition over `line`.

        Lines in the table are left out if they are outside the given time.
        """
        parts = []
        if self.files:
            parts.append(
                f"SELECT line, service FROM ({_lines_in(self.files)}) JOIN sources USING (filename) WHERE {condition}"
            )
        if self.spool == SPOOL_TABLE:
            bounds = [condition]
            bounds += [] if since_ns is None else [f"time_ns >= {since_ns}"]
            bounds += [] if last_ns is None else [f"time_ns <= {last_ns}"]
            parts.append(f"SELECT line, service FROM {SPOOL_TABLE} WHERE {' AND '.join(bounds)}")
        elif self.spool is not None:
            # Python accepts a number beyond a double and half a surrogate as JSON, and DuckDB does not.
            valid = f"SELECT {_VALID} AS line, stream FROM ({_lines_in([self.spool], is_spool=True)})"
            parts.append(
                f"SELECT line, getvariable('services')[stream + 1] AS service FROM ({valid}) "
                f"WHERE line IS NOT NULL AND {condition}"
            )
        return " UNION ALL ".join(parts) or "SELECT '' AS line, '' AS service WHERE false"


@dataclass(slots=True)
class Parts:
    """The parts of a trail. `files` are whole segments, `services` their writers, and `spans` the row groups of the
    packed files.

    With an index, the views do not read them.
    """

    files: Mapping[str, Span] = field(default_factory=dict)
    services: Mapping[str, str] = field(default_factory=dict)
    spool: str | None = None
    packed: Sequence[str] = ()
    spans: Sequence[Span] = ()
    has_copies: bool = False
    size_bytes: int = 0
    has_differing: bool | None = None
    is_indexed: bool = False

    @property
    def is_packed(self) -> bool:
        """True if the whole trail is in packed files."""
        return bool(self.packed) and not self.files and self.spool is None

    def events(
        self,
        *,
        few: bool,
        since_ns: int | None = None,
        last_ns: int | None = None,
        clues: Sequence[Clue] = (),
        service: str | None = None,
    ) -> str:
        """Return the query for the events, except those that cannot be within the time or that lack a clue.

        With a service, files of other services are left out.
        """
        files = [
            file
            for file, span in self.files.items()
            if _overlap(span, since_ns, last_ns) and service in (None, self.services.get(file))
        ]
        condition = " AND ".join(["true", *map(_has_clue, clues)])
        parts = []
        if files or self.spool is not None or not self.packed:
            parts.append(events_sql(Lines(files, self.spool).sql(condition, since_ns, last_ns), few=few))
        if self.packed:
            bounds = ["true"]
            bounds += [f"time_ns >= {since_ns}"] * (since_ns is not None) + [f"time_ns <= {last_ns}"] * (
                last_ns is not None
            )
            parts.append(f"{packed_rows(self.packed, COLUMN_NAMES)} WHERE {' AND '.join(bounds)}")
        return " UNION ALL ".join(parts)

    def newest(self, lines: int, last_ns: int | None) -> tuple[int | None, int]:
        """Return the time from which the newest parts have this many lines, and the number. No time if that is all."""
        if self.spool is not None or self.is_indexed:
            return None, 0
        found = 0
        since_ns: int | None = None
        for span in sorted([*self.files.values(), *self.spans], key=lambda span: span.last_ns or 0, reverse=True):
            if span.first_ns is None or not _overlap(span, None, last_ns):
                continue
            if found >= lines:
                return since_ns, found
            since_ns = span.first_ns if since_ns is None else min(since_ns, span.first_ns)
            found += span.lines
        return None, found


def runs_in(files: Sequence[str], rows: Rows, *, is_spool: bool = False) -> Sequence[Run]:
    """Return the result of one scan of files. It parses each line once, which is most of its cost."""
    if not files:
        return ()
    # TRY gives NULL for a line that is not JSON. Calling json_valid first would parse each line twice.
    ids = "TRY(json_extract_string(line, ['$.stream_id', '$.seq', '$.time_ns']))"
    parsed = f"SELECT filename, strlen(line) + 1 AS size, {ids} AS ids FROM ({_lines_in(files, is_spool=is_spool)})"
    found = (
        "SELECT filename AS file, ids[1] AS stream_id, size, TRY_CAST(ids[2] AS BIGINT) AS seq, "
        f"TRY_CAST(ids[3] AS BIGINT) AS time_ns FROM ({parsed})"
    )
    return [Run(*row) for row in rows(_grouped(found))]


def packed_rows(files: Sequence[str], columns: str = "*") -> str:
    """Return the query for columns of packed files."""
    return f"SELECT {columns} FROM read_parquet([{_names(files)}], hive_partitioning = false, union_by_name = true)"


def packed_runs(files: Sequence[str], rows: Rows) -> Sequence[Run]:
    """Return the runs of packed files, without the sizes and times of their lines."""
    columns = "filename AS file, stream_id, 0 AS size, seq, NULL::BIGINT AS time_ns"
    source = f"read_parquet([{_names(files)}], filename = true, hive_partitioning = false, union_by_name = true)"
    return [Run(*row) for row in rows(_grouped(f"SELECT {columns} FROM {source}"))]


def spans_in(files: Sequence[str], rows: Rows) -> Sequence[Span]:
    """Return the row groups of packed files, from their footers."""
    found = rows(
        "SELECT TRY_CAST(stats_min_value AS BIGINT), TRY_CAST(stats_max_value AS BIGINT), row_group_num_rows "
        f"FROM parquet_metadata([{_names(files)}]) WHERE path_in_schema = 'time_ns'"
    )
    return [Span(*row) for row in found]


def have_copies(runs: Sequence[Run]) -> bool:
    """Return True if two lines may have the same stream and number."""
    last: dict[str, int] = {}
    for run in sorted(runs, key=lambda run: run.first or 0):
        if run.stream_id is not None:
            if not run.is_dense or (run.first or 0) <= last.get(run.stream_id, -1):
                return True
            last[run.stream_id] = run.last or 0
    return False


def portions(filters: Filters, span_ns: tuple[int, int], ask: Ask, rows: Rows, most_bytes: int) -> Iterator[Filters]:
    """Yield filters for consecutive parts of a span of time, each with no more lines than these bytes.

    `ask` returns the query for the lines that match filters. Lines of the same moment stay together, however many they
    are.
    """
    first_ns, last_ns = span_ns
    width_ns = (last_ns - first_ns) // _BARS + 1
    question, values = ask(filters.within(first_ns, last_ns + 1))
    bars = rows(
        f"SELECT (time_ns::HUGEINT - ({first_ns})) // {width_ns} AS bar, sum(strlen(line))::BIGINT "
        f"FROM ({question}) GROUP BY bar ORDER BY bar",
        values,
    )
    begin_ns, held_bytes = first_ns, 0
    for bar, size_bytes in bars:
        bar_ns = first_ns + bar * width_ns
        if held_bytes and held_bytes + size_bytes > most_bytes:
            yield filters.within(begin_ns, bar_ns)
            begin_ns, held_bytes = bar_ns, 0
        held_bytes += size_bytes
        if size_bytes > most_bytes and width_ns > 1:
            yield from portions(filters, (bar_ns, bar_ns + width_ns - 1), ask, rows, most_bytes)
            begin_ns, held_bytes = bar_ns + width_ns, 0
    if held_bytes:
        yield filters.within(begin_ns, last_ns + 1)


def quoted(text: str) -> str:
    """Return a text as SQL."""
    return "'{}'".format(text.replace("'", "''"))


def _overlap(span: Span, since_ns: int | None, last_ns: int | None) -> bool:
    """Return True if one of its events can be within the time. An event without a time never is."""
    if span.first_ns is None or span.last_ns is None:
        return since_ns is None and last_ns is None
    return (since_ns is None or span.last_ns >= since_ns) and (last_ns is None or span.first_ns <= last_ns)


def _has_clue(clue: Clue) -> str:
    groups = (" AND ".join(f"contains(line, {quoted(text)})" for text in texts) for texts in clue)
    return f"({' OR '.join(groups)} OR contains(line, '\\u'))"


def _grouped(lines: str) -> str:
    """Return the query for the runs of lines with `file`, `stream_id`, `size`, `seq` and `time_ns`.

    Counting distinct numbers takes memory for each. The sum of their hashes takes none, and equals that of all numbers
    from the first to the last exactly if each of them is there once.
    """
    runs = (
        "SELECT file, stream_id, count(*) AS lines, sum(size) AS size, min(seq) AS first, max(seq) AS last, "
        "min(time_ns) AS first_ns, max(time_ns) AS last_ns, sum(hash(seq)::HUGEINT) AS hashes "
        f"FROM ({lines}) GROUP BY ALL"
    )
    # All others get an empty range, since the query is planned as a join, which an outer condition does not prevent.
    end = f"CASE WHEN last::HUGEINT - first + 1 = lines AND last < {2**63 - 1} THEN last + 1 ELSE first END"
    every = f"SELECT sum(hash(number)::HUGEINT) FROM range(first, {end}) AS numbers(number)"
    return (
        f"WITH runs AS MATERIALIZED ({runs}) "
        f"SELECT file, stream_id, lines, size, first, last, first_ns, last_ns, coalesce(({every}) = hashes, false) "
        "FROM runs"
    )


def _lines_in(files: Sequence[str], *, is_spool: bool = False) -> str:
    """Return the query for the lines of files. JSON contains no control character, so a line is never split."""
    columns = "{'stream': 'BIGINT', 'line': 'VARCHAR'}" if is_spool else "{'line': 'VARCHAR'}"
    return (
        f"SELECT * FROM read_csv([{_names(files)}], columns = {columns}, auto_detect = false, "
        "header = false, delim = chr(1), quote = '', escape = '', new_line = '\\n', strict_mode = false, "
        f"ignore_errors = true, filename = true, max_line_size = {_LINE_MAX_BYTES}, buffer_size = {_BUFFER_BYTES})"
    )


def _names(files: Sequence[str]) -> str:
    return ", ".join(map(quoted, files))
