"""Copy the events of a trail once into a table on disk, where each question takes milliseconds.

The table is in a temporary directory that only its owner can read, and is removed at the end. It is about half as large
as the trail.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import Final, Self

from otel_audit.query.columns import COLUMN_NAMES, events_sql
from otel_audit.query.database import TrailDatabase
from otel_audit.query.lines import Parts
from otel_audit.stores.store import Store

__all__ = ["TrailIndex"]

_FILE: Final = "trail.duckdb"
_MEMORY_MB: Final = 384
_LOADING: Final = 0.2  # of the time of `fill`, before the lines are copied
_VALID: Final = "SELECT line, service FROM (SELECT unnest(?::VARCHAR[]) AS line, unnest(?::VARCHAR[]) AS service)"


class TrailIndex(TrailDatabase):
    """The events of a trail in a table. It is empty until `fill` returns, and grows with `add`.

    One thread calls `fill` and `add`. Other threads query it through `reader`, and may call `share` and `stop`.

    Raises:
        QueryFailed: DuckDB is not installed.
    """

    def __init__(self) -> None:
        self._is_copying = False
        self._share = 0.0
        self._begin(None, _FILE, _MEMORY_MB)
        # Without the bar, DuckDB would report no progress to `share`. It is never printed.
        for setting in ("enable_progress_bar = true", "enable_progress_bar_print = false"):
            self._execute(f"SET {setting}")

    def fill(self, stores: Sequence[Store], passed: Callable[[int], None] = lambda size_bytes: None) -> None:
        """Copy the events of some stores into the table. `passed` is called with the bytes of each line that is copied.

        Raises:
            QueryUnanswered: there is no room for the table, or `stop` was called.
            OSError: a store cannot be read, or there is no room for the temporary file.
            StoreUnreadable: a log store cannot be asked.
        """
        self._load(stores, passed=passed)
        self._is_copying = True
        self._execute("CREATE TABLE indexed AS SELECT * FROM events")
        for view in ("events", "sought"):
            self._execute(f"CREATE OR REPLACE VIEW {view} AS SELECT * FROM indexed")
        self._trail = Parts(is_indexed=True)
        self._held.close()

    def add(self, lines: Sequence[tuple[bytes, str]], *, once: bool = False) -> int:
        """Add lines, each with the service that wrote it. Return their number, without those that are not JSON.

        With `once`, lines whose stream and number are in the table already are left out too.

        Raises:
            QueryUnanswered: there is no room for them.
        """
        texts = [line.decode("utf-8", "surrogateescape") for line, _ in lines]
        whole = [(text, lines[place][1]) for place, text in enumerate(texts) if text.isascii() or _is_utf8(text)]
        given = [[text for text, _ in whole], [service for _, service in whole]]
        question = f"INSERT INTO indexed SELECT {COLUMN_NAMES} FROM ({events_sql(f'{_VALID} WHERE json_valid(line)')})"
        if once:
            copies = "row_number() OVER (PARTITION BY stream_id, seq ORDER BY line)"
            question += f" AS added ANTI JOIN indexed USING (stream_id, seq) QUALIFY {copies} = 1"
        added = int(self._execute(question, given).fetchall()[0][0])
        self.gathered.damaged += 0 if once else len(lines) - added
        return added

    def newest_ns(self, until_ns: int) -> int | None:
        """Return the time of the newest event before a moment, or None if there is none."""
        found = self._execute("SELECT max(time_ns) FROM indexed WHERE time_ns < ?", [until_ns]).fetchall()[0][0]
        return None if found is None else int(found)

    def time_ns_of(self, stream_id: str, seq: int) -> int | None:
        """Return the time of a line, or None if it is not in the table or has no time."""
        question = "SELECT max(time_ns) FROM indexed WHERE stream_id = ? AND seq = ?"
        found = self._execute(question, [stream_id, seq]).fetchall()[0][0]
        return None if found is None else int(found)

    def reached(self) -> dict[str, int]:
        """Return the number of the last line of each stream in the table."""
        return dict(
            self._execute("SELECT stream_id, max(seq) FROM indexed WHERE seq IS NOT NULL GROUP BY 1").fetchall()
        )

    @contextlib.contextmanager
    def reader(self) -> Iterator[Self]:
        """Inside the block, give another thread access to the trail for some questions."""
        other = copy(self)
        other._connection = self._connection.cursor()
        try:
            yield other
        finally:
            other._connection.close()

    def share(self) -> float:
        """Return the completed share of `fill`, from 0 to 1. It never falls."""
        with contextlib.suppress(self._duckdb.Error, AttributeError):
            percent = max(0.0, float(self._connection.query_progress()))  # below 0 if no query is running
            done = _LOADING + (1 - _LOADING) * percent / 100 if self._is_copying else _LOADING * percent / 100
            self._share = max(self._share, done)
        return self._share

    def stop(self) -> None:
        """Stop the running query, which raises `QueryUnanswered`."""
        with contextlib.suppress(self._duckdb.Error):
            self._connection.interrupt()


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
