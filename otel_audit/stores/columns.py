"""A packed trail: the Parquet files that `otel-audit pack` writes. The column `line` holds the exact journal line.

Only that column is verified. The others repeat its content in a form that any query engine reads, without proof.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from otel_audit.errors import AuditError
from otel_audit.stores.sorting import SortingStore
from otel_audit.stores.store import Kind, Stored, StoreUnreadable, stored_record

__all__ = ["ColumnStore", "is_packed", "load_duckdb", "packed_in"]

_MAGIC: Final = b"PAR1"  # Source: Apache Parquet, file format
_ROWS: Final = 1000  # rows fetched at a time
_MEMORY: Final = "256MB"
_PATTERN: Final = re.compile(r"[*?\[]")  # in a name, which DuckDB takes for one of several files unless it is bracketed


def is_packed(path: Path) -> bool:
    """Return True if a file is in the Parquet format.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def packed_in(path: Path) -> Sequence[Path]:
    """Return the Parquet files at or below a path, sorted by name.

    Raises:
        OSError: one of them cannot be read.
    """
    if not path.is_dir():
        return [path] if is_packed(path) else []
    return [each for each in sorted(path.rglob("*.parquet")) if each.is_file() and is_packed(each)]


class ColumnStore(SortingStore):
    """The trail in Parquet files. See `Store`.

    The segment of a `Line` is the number of its file, from 1, and its offset is its row.
    """

    kind = Kind.PACKED

    def __init__(self, files: Sequence[Path], where: Path) -> None:
        super().__init__()
        self.where = str(where)
        self.files = files

    def contents(self) -> Iterator[Stored]:
        """See `Store`."""
        duckdb = load_duckdb(StoreUnreadable, f"{self.where}: expected DuckDB, which reads Parquet files")
        for number, path in enumerate(self.files, 1):
            connection = duckdb.connect(config={"memory_limit": _MEMORY, "threads": "1"})
            try:
                answer = connection.execute("SELECT line FROM read_parquet([?])", [_PATTERN.sub(r"[\g<0>]", str(path))])
                row = 0
                while rows := answer.fetchmany(_ROWS):
                    for (line,) in rows:
                        yield self._stored(line, number, row)
                        row += 1
            except duckdb.Error as error:
                said = str(error).strip().splitlines()[0]
                raise StoreUnreadable(
                    f"{path}: expected a Parquet file of `otel-audit pack`, with a column `line`, got {said!r}"
                ) from error
            finally:
                connection.close()

    def _place(self, number: int, row: int) -> str:
        return f"{self.files[number - 1].name}, row {row}"

    def _stored(self, line: object, number: int, row: int) -> Stored:
        body = line.encode() if isinstance(line, str) else None
        place = self._place(number, row)
        return stored_record(body, dict, event_name="", time_ns=0, place=place, segment=number, offset=row)


def load_duckdb(kind: type[AuditError], expected: str) -> Any:
    """Return the module. Where it is missing, raise an error of this kind: what was expected, and how to get it."""
    try:
        import duckdb
    except ImportError as error:
        raise kind(f"{expected}, got an installation without it; run pip install 'otel-audit[query]'") from error
    return duckdb
