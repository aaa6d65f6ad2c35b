"""Query a trail in DuckDB through the view `events`, in bounded memory.

DuckDB can read the files of the trail and nothing else: no other file, no network, no extension, no variable of this
process. This is set before the first question, and cannot be changed afterwards. A question must be a single SELECT,
so it cannot write.

Source: DuckDB documentation, "Securing DuckDB": `enable_external_access`, `allowed_paths`, `lock_configuration`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from otel_audit.journal.files import is_device
from otel_audit.query.columns import COLUMN_NAMES, COLUMNS, events_sql
from otel_audit.query.filters import UNDATED, Filters, Place
from otel_audit.query.gathering import Gathered, HeldFiles, Segment, Spool
from otel_audit.query.interruption import Interruption
from otel_audit.query.lines import (
    SPOOL_TABLE,
    Lines,
    Parts,
    Run,
    Span,
    have_copies,
    packed_rows,
    packed_runs,
    portions,
    quoted,
    runs_in,
    spans_in,
)
from otel_audit.query.unanswered import QueryFailed, QueryUnanswered, unanswered
from otel_audit.stores.columns import ColumnStore, load_duckdb
from otel_audit.stores.directory import DirectoryStore
from otel_audit.stores.loki import LokiStore
from otel_audit.stores.store import Sought, Store, StoreUnreadable
from otel_audit.stores.victorialogs import VictoriaLogsStore

if TYPE_CHECKING:
    import duckdb

__all__ = ["Found", "TrailDatabase"]

_MEMORY_MB: Final = 1000  # what does not fit goes to the temporary directory
_THREAD_MB: Final = 192  # a writer of Parquet takes 4 MB for each column and thread
_ROW_GROUP: Final = 20_480  # rows that a writer of Parquet holds in memory
_ROWS: Final = 1000  # fetched at a time
_ORDER: Final = "ORDER BY time_ns DESC, stream_id DESC, seq DESC"
_ORDER_BY_TIME: Final = "ORDER BY time_ns DESC"
_PAGE_MAX: Final = 10_000  # the longest answer for which the newest part of the trail is searched first
_SORTED_MAX_BYTES: Final = 700 << 20  # of lines; DuckDB can sort these in its memory, but not many more
_SLICE_BYTES: Final = 128 << 20  # of them, if there are more
_LINE_BYTES: Final = 700  # of packed lines, whose bytes are not counted
_EVERYTHING: Final = Sought()
_FIRST_TRY: Final = 20  # lines for each requested event
_TRIES: Final = 2  # the second with a part whose size follows from the result of the first

_Told = Callable[[int], None]


def _untold(size_bytes: int) -> None:
    """Report no progress."""


class Found(NamedTuple):
    """One event of the answer, and its place in it."""

    place: Place
    line: bytes


class TrailDatabase:
    """The events of some stores. For one thread. Close it, since copies of lines may be in temporary files.

    `out` is the only file or directory that may be written. `gathered` counts what the stores hold besides events. With
    `asked`, log stores are asked only for events that match these filters, so no question may go beyond them. `passed`
    is called with the bytes of each line that is copied while the stores are read.

    Raises:
        QueryFailed: DuckDB is not installed.
        OSError: a store cannot be read, or there is no room for the temporary file.
        StoreUnreadable: a log store cannot be asked.
    """

    def __init__(
        self, stores: Sequence[Store], *, out: Path | None = None, asked: Filters | None = None, passed: _Told = _untold
    ) -> None:
        self._begin(out, ":memory:", _MEMORY_MB)
        try:
            self._load(stores, (asked or Filters()).sought(), passed)
        except BaseException:
            self.close()
            raise

    def _begin(self, out: Path | None, file: str, memory_mb: int) -> None:
        """Connect to a database in memory, or in a file of the temporary directory."""
        self._duckdb = load_duckdb(QueryFailed, "expected DuckDB, which answers questions about a trail")
        self.gathered = Gathered()
        self._out = out
        self._temporary = tempfile.TemporaryDirectory(prefix="otel-audit-query-")
        self._held = HeldFiles(Path(self._temporary.name), self.gathered)
        self._trail = Parts()
        try:
            self._connection = self._connected(file, memory_mb)
            self._interruption = Interruption(self._connection.interrupt)
        except BaseException:
            self._held.close()
            self._temporary.cleanup()
            raise

    def find(self, filters: Filters, limit: int | None = None) -> Iterator[Found]:
        """Yield the events that match all filters, the newest first.

        Raises:
            QueryUnanswered: DuckDB cannot answer.
        """
        since_ns = self._newest_with(filters, limit)
        if since_ns is not None:
            filters = replace(filters, since_ns=since_ns)
        left = limit
        for each in self._slices(filters, limit):
            rows = self._rows(*self._in_order("time_ns, stream_id, seq, line", each, left))
            for time_ns, stream_id, seq, line in rows:
                yield Found(Place(time_ns, stream_id, seq), line.encode())
                left = None if left is None else left - 1
            if left == 0:
                return

    def _slices(self, filters: Filters, limit: int | None) -> Iterator[Filters]:
        """Yield filters that together find the same events, the newest first, each few enough to sort in memory."""
        is_short = limit is not None and limit <= _PAGE_MAX
        if is_short or self._trail.size_bytes <= _SORTED_MAX_BYTES or self._has_differing_copies():
            yield filters
            return
        self._keep_spool()
        yield from reversed(list(portions(filters, self._extent_ns(), self._matching, self._all_rows, _SLICE_BYTES)))
        if filters.since_ns is None and filters.until_ns is None:
            yield replace(filters, undated=True)

    def _extent_ns(self) -> tuple[int, int]:
        """Return the first and the last time in the trail."""
        spans = [*self._trail.files.values(), *self._trail.spans]
        if self._trail.spool == SPOOL_TABLE:
            spans += [Span(*row) for row in self._all_rows(f"SELECT min(time_ns), max(time_ns), 0 FROM {SPOOL_TABLE}")]
        firsts = [span.first_ns for span in spans if span.first_ns is not None]
        return min(firsts, default=0), max((span.last_ns for span in spans if span.last_ns is not None), default=0)

    def _keep_spool(self) -> None:
        """Keep the lines of the spool in a table, so that a question about a time reads no more than it needs."""
        if self._trail.spool not in (None, SPOOL_TABLE) and not self._has_differing_copies():
            lines = events_sql(Lines(spool=self._trail.spool).sql(), few=True)
            self._execute(f"CREATE TEMP TABLE {SPOOL_TABLE} AS SELECT line, service, time_ns FROM ({lines})")
            self._trail.spool = SPOOL_TABLE

    def _matching(self, filters: Filters) -> tuple[str, list[object]]:
        """Return the query for the lines that match the filters, with all their copies, and its values."""
        condition, values = filters.where()
        events = self._events_like(filters)
        return f"SELECT line, service, time_ns, stream_id, seq FROM ({events}) WHERE {condition}", values

    def _in_order(self, columns: str, filters: Filters, limit: int | None) -> tuple[str, list[object]]:
        """Return the query for columns of the matching lines, each line once and the newest first, and its values."""
        question, values = self._matching(filters)
        return f"SELECT {columns} FROM ({self._once(question)}) {_ORDER}{_limit(limit)}", values

    def select(self, filters: Filters, limit: int | None = None) -> tuple[str, list[object]]:
        """Return the question of `find` for all columns, and the values of its parameters.

        A long answer is first sorted into a table in the temporary directory, which the next call replaces.

        Raises:
            QueryUnanswered: DuckDB cannot answer.
        """
        slices = list(self._slices(filters, limit))
        # Extract the columns of the matching lines only: sorting all columns of all lines takes many times as long.
        if len(slices) == 1:
            question, values = self._in_order("line, service", slices[0], limit)
            return events_sql(question), values
        self._execute("CREATE OR REPLACE TEMP TABLE found (line VARCHAR, service VARCHAR)")
        left = limit
        for each in slices:
            question, values = self._in_order("line, service", each, left)
            [(added,)] = self._all_rows(f"INSERT INTO found {question}", values)
            left = None if left is None else left - added
        return events_sql("SELECT line, service FROM found"), []

    def limited(self, question: str, limit: int) -> str:
        """Return the question with its answer limited to the first rows.

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
        """Store an answer in the table `kept`, in place of an earlier one, for several questions about it.

        Raises:
            QueryUnanswered: it is not one SELECT, or DuckDB refuses it.
        """
        self._execute(f"CREATE OR REPLACE TEMP TABLE kept AS (\n{self._single_select(question)}\n)", values)

    def write_parquet(self, question: str, values: Sequence[object] = ()) -> int:
        """Write an answer to the file `out`, which is replaced once the answer is complete. Return its number of rows.

        Raises:
            QueryUnanswered: it is not one SELECT, or DuckDB refuses it; `out` is unchanged.
            OSError: the file cannot be replaced; `out` is unchanged.
        """
        sql = self._single_select(question)
        out, unfinished = Path(str(self._out)), Path(f"{self._out}.unfinished")
        if is_device(out):
            return self._copy(sql, values, out)
        try:
            count = self._copy(sql, values, unfinished)
            os.replace(unfinished, out)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        return count

    def _copy(self, sql: str, values: Sequence[object], target: Path | None) -> int:
        how = f"FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {_ROW_GROUP}, USE_TMP_FILE false"
        written = self._all_rows(f"COPY (\n{sql}\n) TO {quoted(str(target))} ({how})", values)
        return int(written[0][0])

    def days(self) -> Sequence[tuple[str, str, int, int]]:
        """Return service, day, number of lines and their bytes for each service and day, the oldest day first.

        Lines that are not read in place are kept in a table, so that `write_day` reads each line about once.
        """
        self._keep_spool()
        question = f"SELECT {_ITS} AS its, {_DAY} AS day, line, stream_id, seq FROM ({self._events_like(Filters())})"
        return self._all_rows(
            f"SELECT its, day, count(*), sum(strlen(line)) FROM ({self._once(question)}) GROUP BY ALL ORDER BY day, its"
        )

    def parts_of_day(self, service: str, day: str, most_bytes: int) -> Sequence[Filters]:
        """Return filters for parts of a day, each with no more lines of a service than these bytes, if possible."""
        if (of_day := Filters.of_day(day)).since_ns is None or of_day.until_ns is None:
            return [of_day]
        span_ns = (of_day.since_ns, of_day.until_ns - 1)
        return list(portions(of_day, span_ns, lambda part: self._of_service(service, part), self._all_rows, most_bytes))

    def _of_service(self, service: str, part: Filters) -> tuple[str, list[object]]:
        condition, values = part.where(every=True)
        like = replace(part, words={"service": [service]})
        return f"SELECT * FROM ({self._events_like(like)}) WHERE {_ITS} = ? AND {condition}", [service, *values]

    def write_day(self, service: str, part: Filters, packed: Sequence[Path], target: Path) -> int:
        """Write a service's events of a day or a part of it, by time, without packed ones. Return their number.

        Raises:
            QueryUnanswered: a packed file cannot be read, or there is no room.
        """
        question, values = self._of_service(service, part)
        lines = f"SELECT line, service FROM ({self._once(question)}) AS asked"
        if packed:
            known = packed_rows([*map(self._held.name_of, packed)], "stream_id, seq")
            lines += f" ANTI JOIN ({known}) AS packed USING (stream_id, seq)"
        return self._copy(events_sql(f"{lines} ORDER BY time_ns, stream_id, seq"), values, target)

    def close(self) -> None:
        """Remove the temporary files."""
        self._interruption.close()
        self._connection.close()
        self._held.close()
        self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connected(self, file: str, memory_mb: int) -> duckdb.DuckDBPyConnection:
        connection: duckdb.DuckDBPyConnection = self._duckdb.connect(
            str(Path(self._temporary.name) / file) if file != ":memory:" else file,
            config={
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "python_enable_replacements": "false",  # otherwise SQL could name a variable of this process
                "temp_directory": self._temporary.name,
                "memory_limit": f"{memory_mb}MB",
            },
        )
        connection.execute("SET enable_progress_bar_print = false")  # the bar would be printed into the answer
        # A thread for each processor of a large machine would need more memory than is allowed.
        connection.execute(f"SET threads = least(current_setting('threads'), {max(1, memory_mb // _THREAD_MB)})")
        return connection

    def _load(self, stores: Sequence[Store], sought: Sought = _EVERYTHING, passed: _Told = _untold) -> None:
        """Create the view `events`, and then let DuckDB read nothing else."""
        path = Path(self._temporary.name) / "lines.jsonl"
        segments: list[Segment] = []
        packed: list[str] = []
        with open(path, "wb", buffering=1 << 20) as file:
            spool = Spool(file, self.gathered, passed)
            for store in stores:
                if isinstance(store, DirectoryStore):
                    segments += self._held.add_journal(store, spool)
                elif isinstance(store, ColumnStore):
                    packed += map(self._held.name_of, store.files)
                elif isinstance(store, LokiStore | VictoriaLogsStore):
                    spool.add_found(store, sought)
                else:
                    spool.add_store(store)
            runs: dict[str, list[Run]] = {each.file: [] for each in segments}
            for run in runs_in(list(runs), self._all_rows):
                runs[run.file].append(run)
            whole = [each for each in segments if each.is_whole(runs[each.file])]
            are_whole = {each.file for each in whole}
            for each in segments:
                if each.file not in are_whole:
                    spool.add_segment(each)
        known = [run for each in whole for run in runs[each.file]]
        if spool.lines:
            others = runs_in([str(path)], self._all_rows, is_spool=True)
            self.gathered.damaged += spool.lines - sum(run.lines for run in others if run.stream_id is not None)
            known += others
        spans: list[Span] = []
        if packed:
            known += self._packed_runs(packed)
            spans += spans_in(packed, self._all_rows)
        self._execute("SET VARIABLE services = ?::VARCHAR[]", [spool.services])
        services = {each.file: spool.service_of(each.stream_id) for each in whole}
        self._execute(
            "CREATE TEMP TABLE sources AS SELECT unnest(?::VARCHAR[]) AS filename, unnest(?::VARCHAR[]) AS service",
            [list(services), list(services.values())],
        )
        files = {run.file: Span(run.first_ns, run.last_ns, run.lines) for each in whole for run in runs[each.file]}
        spooled = str(path) if spool.lines else None
        self._trail = Parts(files, services, spooled, packed, spans, have_copies(known))
        self._trail.size_bytes = sum(run.size_bytes or run.lines * _LINE_BYTES for run in known)
        self._make_views()
        self._lock([*files, *self._held.removed_names, *packed, str(path)])

    def _packed_runs(self, files: Sequence[str]) -> Sequence[Run]:
        columns = ", ".join(column.name for column in COLUMNS if column.name not in ("stream_id", "seq"))
        try:
            self._execute(f"{packed_rows(files, columns)} LIMIT 0")
            return packed_runs(files, self._all_rows)
        except QueryUnanswered as error:
            raise StoreUnreadable(
                f"{Path(files[0]).resolve().parent}: expected Parquet files of `otel-audit pack`, got others or a "
                f"damaged one; {error}"
            ) from error

    def _make_views(self) -> None:
        """Create `events`, and `sought`, which has the same rows and is faster for a question about few columns."""
        for name, few in (("events", False), ("sought", True)):
            self._execute(f"CREATE VIEW {name} AS {self._once(self._trail.events(few=few), COLUMN_NAMES)}")

    def _once(self, question: str, columns: str = "*") -> str:
        """Return a question with each event once. The given one must return the stream, number and line of each."""
        if not self._trail.has_copies:
            return question
        copies = "row_number() OVER (PARTITION BY stream_id, seq ORDER BY line)"
        return f"SELECT {columns} FROM ({question}) QUALIFY {copies} = 1"

    def _events_like(self, filters: Filters) -> str:
        """Return a query whose events include all that match the filters."""
        if self._trail.is_indexed or self._has_differing_copies():
            return "SELECT * FROM sought"
        services = filters.words.get("service", ())
        return self._trail.events(
            few=True,
            since_ns=filters.since_ns,
            last_ns=filters.last_ns(),
            clues=filters.clues(),
            service=services[0] if len(services) == 1 and "*" not in services[0] else None,
        )

    def _newest_with(self, filters: Filters, limit: int | None) -> int | None:
        """Return a time from which there are as many events as requested, or None if there are fewer."""
        if limit is None or limit > _PAGE_MAX or self._has_differing_copies():
            return None
        wanted = _FIRST_TRY * limit
        for _ in range(_TRIES):
            since_ns, lines = self._trail.newest(wanted, filters.last_ns())
            if since_ns is None or (filters.since_ns is not None and since_ns <= filters.since_ns):
                break
            found, first_ns = self._first_of(replace(filters, since_ns=since_ns), limit)
            if found == limit:
                return first_ns
            if not found:
                break
            wanted = 2 * lines * limit // found
        # In packed files the times are a separate column, which shows which lines have to be unpacked.
        return self._first_of(filters, limit)[1] if self._trail.is_packed else None

    def _first_of(self, filters: Filters, limit: int) -> tuple[int, int | None]:
        """Return the number of matching events, at most `limit`, and the time of the first if all have a time."""
        condition, values = filters.where()
        question = f"SELECT time_ns, stream_id, seq, line FROM ({self._events_like(filters)}) WHERE {condition}"
        times = f"SELECT time_ns FROM ({self._once(question)}) {_ORDER_BY_TIME}{_limit(limit)}"
        [(found, with_time, first_ns)] = self._all_rows(
            f"SELECT count(*), count(time_ns), min(time_ns) FROM ({times})", values
        )
        return found, first_ns if found == with_time else None

    def _has_differing_copies(self) -> bool:
        """Return True if two lines with the same stream and number differ.

        Then all lines must be read to decide which copy is the event, before any is left out.
        """
        if self._trail.has_differing is None:
            lines = self._trail.events(few=True)
            differing = f"SELECT 1 FROM ({lines}) GROUP BY stream_id, seq HAVING min(hash(line)) <> max(hash(line))"
            self._trail.has_differing = self._trail.has_copies and bool(self._all_rows(f"{differing} LIMIT 1"))
        return self._trail.has_differing

    def _lock(self, paths: Sequence[str]) -> None:
        if self._out is not None and self._out.is_dir():
            allowed = [quoted(str(each)) for each in (self._out.absolute(), self._temporary.name)]
            self._execute(f"SET allowed_directories = [{', '.join(allowed)}]")
        elif self._out is not None:
            paths = [*paths, str(self._out), f"{self._out}.unfinished"]
        self._execute(f"SET allowed_paths = [{', '.join(map(quoted, paths))}]")
        self._execute("SET enable_external_access = false")
        self._execute("SET lock_configuration = true")

    def _single_select(self, question: str) -> str:
        """Return a question without its final semicolon."""
        try:
            question.encode()  # half a surrogate stands for a byte that is not UTF-8
            statements = self._connection.extract_statements(question)
        except UnicodeEncodeError as error:
            raise QueryUnanswered("expected a question in UTF-8, got other bytes; ask in UTF-8") from error
        except self._duckdb.Error as error:
            raise self._unanswered(error) from error
        if len(statements) != 1 or statements[0].type != self._duckdb.StatementType.SELECT:
            raise QueryUnanswered(
                f"expected one SELECT, got {', '.join(str(each.type.name) for each in statements) or 'nothing'}; "
                "a trail is only read, and columns are those of the view `events`"
            )
        return statements[0].query.strip().rstrip(";")

    def _execute(self, sql: str, values: Sequence[object] = ()) -> duckdb.DuckDBPyConnection:
        try:
            return self._interruption.run(lambda: self._connection.execute(sql, list(values)))
        except self._duckdb.Error as error:
            raise self._unanswered(error) from error

    def _unanswered(self, error: duckdb.Error) -> QueryUnanswered:
        return unanswered(error, self._out, Path(self._temporary.name).parent)

    def _all_rows(self, sql: str, values: Sequence[object] = ()) -> Sequence[tuple[Any, ...]]:
        answer = self._execute(sql, values)
        return self._interruption.run(answer.fetchall)

    def _rows(self, sql: str, values: Sequence[object] = ()) -> Iterator[tuple[Any, ...]]:
        answer = self._execute(sql, values)
        while True:
            try:
                rows = self._interruption.run(lambda: answer.fetchmany(_ROWS))
            except self._duckdb.Error as error:
                raise self._unanswered(error) from error
            if not rows:
                return
            yield from rows


_ITS: Final = "coalesce(service, '')"
_DAY: Final = f"coalesce(strftime(time, '%Y-%m-%d'), '{UNDATED}')"


def _limit(limit: int | None) -> str:
    return "" if limit is None else f" LIMIT {int(limit)}"
