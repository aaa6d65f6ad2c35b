"""A trail before DuckDB: the view `events`, and answers to questions about it, in bounded memory.

DuckDB reads the files that hold the trail and nothing else: no other file, no network, no extension, no variable of
this process. It is told so before the first question, and cannot be told otherwise afterwards. Only a single SELECT is
taken as a question, so none can write.

Source: DuckDB documentation, "Securing DuckDB": `enable_external_access`, `allowed_paths`, `lock_configuration`.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from otel_audit.errors import AuditError
from otel_audit.query.columns import COLUMNS, events_sql
from otel_audit.query.filters import Filters, Place
from otel_audit.query.gathering import Gathered, Segment, Spool, closed_segments
from otel_audit.stores.columns import ColumnStore, load_duckdb
from otel_audit.stores.directory import DirectoryStore
from otel_audit.stores.store import Store, StoreUnreadable

if TYPE_CHECKING:
    import duckdb

__all__ = ["Found", "QueryUnanswered", "TrailDatabase"]

_MEMORY: Final = "1GB"  # what does not fit goes to the temporary directory
_LINE_MAX_BYTES: Final = 1 << 20  # far above any line that is written
_BUFFER_BYTES: Final = 4 << 20  # for each thread and file
_ROW_GROUP: Final = 20_480  # what a writer of Parquet holds
_ROWS: Final = 1000  # fetched at a time
_ORDER: Final = "ORDER BY time_ns DESC, stream_id DESC, seq DESC"


class QueryUnanswered(AuditError):
    """A question cannot be answered: DuckDB is missing, or refuses it."""


class Found(NamedTuple):
    """One event of the answer, and its place in it."""

    place: Place
    line: bytes


class TrailDatabase:
    """The events of some stores. One thread; to be closed, since a copy of some lines may be in a temporary file.

    `out` is the one file, or the one directory, that may be written. `gathered` says what of the stores is no event.

    Raises:
        QueryUnanswered: DuckDB is not installed.
        OSError: a store cannot be read, or there is no room for the temporary file.
        StoreUnreadable: a log store cannot be asked.
    """

    def __init__(self, stores: Sequence[Store], *, out: Path | None = None) -> None:
        self._duckdb = load_duckdb(QueryUnanswered, "expected DuckDB, which answers questions about a trail")
        self.gathered = Gathered()
        self._out = out
        self._temporary = tempfile.TemporaryDirectory(prefix="otel-audit-query-")
        try:
            self._connection = self._connected()
            self._load(stores)
        except BaseException:
            self._temporary.cleanup()
            raise

    def find(self, filters: Filters, limit: int | None = None) -> Iterator[Found]:
        """Yield the events that all filters find, the newest first.

        Raises:
            QueryUnanswered: DuckDB cannot answer.
        """
        condition, values = filters.where()
        rows = self._rows(
            f"SELECT time_ns, stream_id, seq, line FROM sought WHERE {condition} {_ORDER}{_limit(limit)}",
            values,
        )
        for time_ns, stream_id, seq, line in rows:
            yield Found(Place(time_ns, stream_id, seq), line.encode())

    def select(self, filters: Filters, limit: int | None = None) -> tuple[str, list[object]]:
        """Return the question of `find` with all columns, and the values of its parameters."""
        condition, values = filters.where()
        # The columns of the lines that were found: to sort all columns of all lines takes many times as long.
        return events_sql(f"SELECT line, service FROM sought WHERE {condition} {_ORDER}{_limit(limit)}"), values

    def limited(self, question: str, limit: int) -> str:
        """Return a question for the first rows of its answer.

        Raises:
            QueryUnanswered: it is not one SELECT.
        """
        return f"SELECT * FROM (\n{self._single_select(question)}\n){_limit(limit)}"

    def rows(
        self, question: str, values: Sequence[object] = ()
    ) -> tuple[Sequence[str], Iterator[Sequence[str | None]]]:
        """Return the names of the columns of an answer and its rows, every value as a text.

        Raises:
            QueryUnanswered: it is not one SELECT, or DuckDB refuses it.
        """
        sql = self._single_select(question)
        names = [each[0] for each in self._execute(f"SELECT * FROM (\n{sql}\n) LIMIT 0", values).description or ()]
        return names, self._rows(f"SELECT COLUMNS(*)::VARCHAR FROM (\n{sql}\n)", values)

    def objects(self, question: str, values: Sequence[object] = ()) -> Iterator[str]:
        """Yield the rows of an answer as JSON objects.

        Raises:
            QueryUnanswered: it is not one SELECT, or DuckDB refuses it.
        """
        sql = self._single_select(question)
        for (row,) in self._rows(f"SELECT to_json(answer)::VARCHAR FROM (\n{sql}\n) AS answer", values):
            yield row

    def keep(self, question: str, values: Sequence[object] = ()) -> None:
        """Keep an answer as the table `kept`, instead of an earlier one, for several questions about it.

        Raises:
            QueryUnanswered: it is not one SELECT, or DuckDB refuses it.
        """
        self._execute(f"CREATE OR REPLACE TEMP TABLE kept AS (\n{self._single_select(question)}\n)", values)

    def write_parquet(self, question: str, values: Sequence[object] = ()) -> int:
        """Write an answer to the file `out`; return how many rows it has.

        Raises:
            QueryUnanswered: it is not one SELECT, or DuckDB refuses it; the file may be there in part.
        """
        sql = self._single_select(question)
        return self._copy(sql, values, self._out)

    def _copy(self, sql: str, values: Sequence[object], target: Path | None) -> int:
        how = f"FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {_ROW_GROUP}, USE_TMP_FILE false"
        written = self._execute(f"COPY (\n{sql}\n) TO {_quoted(str(target))} ({how})", values).fetchall()
        return int(written[0][0])

    def days(self) -> Sequence[tuple[str, str, int, int]]:
        """Return service, day, lines and their bytes for each service and day, the oldest day first."""
        return self._execute(
            f"SELECT coalesce(service, '') AS its, {_DAY} AS day, count(*), sum(strlen(line)) FROM events "
            "GROUP BY ALL ORDER BY day, its"
        ).fetchall()

    def write_day(self, service: str, day: str, packed: Sequence[Path], target: Path) -> int:
        """Write the events of a service on a day, sorted by time, but for those in packed files; return their number.

        Raises:
            QueryUnanswered: a packed file cannot be read, or there is no memory.
        """
        known = f" ANTI JOIN ({_packed_in(packed)}) AS packed USING (stream_id, seq)" if packed else ""
        lines = (
            f"SELECT line, service FROM (SELECT * FROM sought WHERE coalesce(service, '') = ? AND {_DAY} = ?) AS asked"
            f"{known} ORDER BY time_ns, stream_id, seq"
        )
        return self._copy(events_sql(lines), (service, day), target)

    def close(self) -> None:
        """Remove the temporary files."""
        self._connection.close()
        self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connected(self) -> duckdb.DuckDBPyConnection:
        connection: duckdb.DuckDBPyConnection = self._duckdb.connect(
            ":memory:",
            config={
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "python_enable_replacements": "false",  # or SQL could name a variable of this process
                "temp_directory": self._temporary.name,
                "memory_limit": _MEMORY,
            },
        )
        return connection

    def _load(self, stores: Sequence[Store]) -> None:
        """Make the view `events`, and allow nothing but it from then on."""
        path = Path(self._temporary.name) / "lines.jsonl"
        with open(path, "wb", buffering=1 << 20) as file:
            spool = Spool(file, self.gathered)
            closed: list[Segment] = []
            packed: list[Path] = []
            for store in stores:
                if isinstance(store, DirectoryStore):
                    closed += closed_segments(store, spool)
                elif isinstance(store, ColumnStore):
                    packed += store.files
                else:
                    spool.add_store(store)
            scans = self._scans([each.path for each in closed])
            whole = [each for each in closed if _is_whole(each, scans[str(each.path)])]
            for each in closed:
                if each not in whole:
                    spool.add_segment(each.store, each.stream_id, each.number)
        by_service: dict[str, list[Path]] = defaultdict(list)
        for each in whole:
            by_service[each.service].append(each.path)
        parts = [
            f"SELECT line, {_quoted(service)} AS service FROM ({_lines_of(paths)})"
            for service, paths in by_service.items()
        ]
        runs = [run for each in whole for run in scans[str(each.path)]]
        if spool.lines:
            spooled = self._scans([path], is_spool=True)[str(path)]
            # A number beyond a double, or half a surrogate, is JSON to Python and none to DuckDB.
            self.gathered.damaged += spool.lines - sum(run.lines for run in spooled if run.stream_id is not None)
            valid = f"SELECT {_VALID} AS line, stream FROM ({_lines_of([path], is_spool=True)})"
            self._execute("SET VARIABLE services = ?::VARCHAR[]", [spool.services])
            service = "getvariable('services')[stream + 1]"
            parts.append(f"SELECT line, {service} AS service FROM ({valid}) WHERE line IS NOT NULL")
            runs += spooled
        if packed:
            runs += self._packed_runs(packed)
        self._make_views(parts, packed, has_copies=_have_copies(runs))
        self._lock([*(each.path for each in whole), *packed, path])

    def _scans(self, paths: Sequence[Path], *, is_spool: bool = False) -> Mapping[str, Sequence[_Run]]:
        """Return what DuckDB finds in each file, by stream."""
        found: dict[str, list[_Run]] = defaultdict(list)
        if paths:
            lines = _lines_of(paths, is_spool=is_spool)
            known = f"SELECT filename, {_VALID} AS valid, strlen(line) + 1 AS size FROM ({lines})"
            parsed = (
                f"SELECT filename, json_extract_string(valid, ['$.stream_id', '$.seq']) AS ids, size FROM ({known})"
            )
            rows = self._execute(
                "SELECT filename, ids[1], count(*), sum(size), min(seq), max(seq), count(DISTINCT seq) "
                f"FROM (SELECT filename, ids, TRY_CAST(ids[2] AS BIGINT) AS seq, size FROM ({parsed})) GROUP BY ALL"
            ).fetchall()
            for filename, *run in rows:
                found[filename].append(_Run(*run))
        return found

    def _packed_runs(self, paths: Sequence[Path]) -> Sequence[_Run]:
        columns = ", ".join(column.name for column in COLUMNS if column.name not in ("stream_id", "seq"))
        try:
            self._execute(f"SELECT {columns} FROM ({_packed_in(paths)}) LIMIT 0")
            rows = self._execute(
                "SELECT stream_id, count(*), 0, min(seq), max(seq), count(DISTINCT seq) "
                f"FROM ({_packed_in(paths)}) GROUP BY stream_id, filename"
            ).fetchall()
        except QueryUnanswered as error:
            raise StoreUnreadable(
                f"{paths[0].parent}: expected Parquet files of `otel-audit pack`, got others or a damaged one; {error}"
            ) from error
        return [_Run(*row) for row in rows]

    def _make_views(self, parts: Sequence[str], packed: Sequence[Path], *, has_copies: bool) -> None:
        """Make `events`, and `sought`, which is the same and faster where few columns are looked at."""
        lines = " UNION ALL ".join(parts) or "SELECT '' AS line, '' AS service WHERE false"
        columns = ", ".join(column.name for column in COLUMNS)
        for name, few in (("events", False), ("sought", True)):
            events = events_sql(lines, few=few)
            if packed:
                events += f" UNION ALL SELECT {columns} FROM ({_packed_in(packed)})"
            if has_copies:
                copies = "row_number() OVER (PARTITION BY stream_id, seq ORDER BY line)"
                events = f"SELECT {columns} FROM ({events}) QUALIFY {copies} = 1"
            self._execute(f"CREATE VIEW {name} AS {events}")

    def _lock(self, paths: Sequence[Path]) -> None:
        if self._out is not None and self._out.is_dir():
            self._execute(f"SET allowed_directories = [{_quoted(str(self._out.absolute()))}]")
        elif self._out is not None:
            paths = [*paths, self._out]
        self._execute(f"SET allowed_paths = [{', '.join(_quoted(str(path)) for path in paths)}]")
        self._execute("SET enable_external_access = false")
        self._execute("SET lock_configuration = true")

    def _single_select(self, question: str) -> str:
        """Return a question without what ends it."""
        try:
            statements = self._connection.extract_statements(question)
        except self._duckdb.Error as error:
            raise QueryUnanswered(_first_line(error)) from error
        if len(statements) != 1 or statements[0].type != self._duckdb.StatementType.SELECT:
            raise QueryUnanswered(
                f"expected one SELECT, got {', '.join(str(each.type.name) for each in statements) or 'nothing'}; "
                "a trail is only read, and columns are those of the view `events`"
            )
        return statements[0].query.strip().rstrip(";")

    def _execute(self, sql: str, values: Sequence[object] = ()) -> duckdb.DuckDBPyConnection:
        try:
            return self._connection.execute(sql, list(values))
        except self._duckdb.Error as error:
            raise QueryUnanswered(_first_line(error)) from error

    def _rows(self, sql: str, values: Sequence[object] = ()) -> Iterator[tuple[Any, ...]]:
        answer = self._execute(sql, values)
        while True:
            try:
                rows = answer.fetchmany(_ROWS)
            except self._duckdb.Error as error:
                raise QueryUnanswered(_first_line(error)) from error
            if not rows:
                return
            yield from rows


class _Run(NamedTuple):
    """The lines of one stream in one file; of no stream those that are no JSON."""

    stream_id: str | None
    lines: int
    size_bytes: int
    first: int | None
    last: int | None
    numbers: int


_DAY: Final = "strftime(time, '%Y-%m-%d')"
_VALID: Final = "CASE WHEN json_valid(line) THEN line END"


def _lines_of(paths: Sequence[Path], *, is_spool: bool = False) -> str:
    """Return the query for the lines of files. JSON has no control character, so none divides a line in two."""
    names = ", ".join(_quoted(str(path)) for path in paths)
    columns = "{'stream': 'BIGINT', 'line': 'VARCHAR'}" if is_spool else "{'line': 'VARCHAR'}"
    return (
        f"SELECT * FROM read_csv([{names}], columns = {columns}, auto_detect = false, "
        "header = false, delim = chr(1), quote = '', escape = '', new_line = '\\n', strict_mode = false, "
        f"ignore_errors = true, filename = true, max_line_size = {_LINE_MAX_BYTES}, buffer_size = {_BUFFER_BYTES})"
    )


def _packed_in(paths: Sequence[Path]) -> str:
    names = ", ".join(_quoted(str(path)) for path in paths)
    return f"SELECT * FROM read_parquet([{names}], filename = true, hive_partitioning = false, union_by_name = true)"


def _is_whole(segment: Segment, runs: Sequence[_Run]) -> bool:
    """Return True if each byte of a segment is in a line of its stream that DuckDB takes for JSON."""
    return [(run.stream_id, run.size_bytes) for run in runs] == [(segment.stream_id, segment.size_bytes)]


def _have_copies(runs: Sequence[_Run]) -> bool:
    """Return True if two lines may have the same stream and number."""
    last: dict[str, int] = {}
    for run in sorted(runs, key=lambda run: run.first or 0):
        if run.stream_id is not None:
            if run.lines != run.numbers or (run.first or 0) <= last.get(run.stream_id, -1):
                return True
            last[run.stream_id] = run.last or 0
    return False


def _limit(limit: int | None) -> str:
    return "" if limit is None else f" LIMIT {int(limit)}"


def _quoted(text: str) -> str:
    return "'{}'".format(text.replace("'", "''"))


def _first_line(error: Exception) -> str:
    return f"the question cannot be answered: {str(error).strip().splitlines()[0] if str(error).strip() else error!r}"
