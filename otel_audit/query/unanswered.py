"""The reasons why a question has no answer, from the errors of DuckDB."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from otel_audit.errors import AuditError

if TYPE_CHECKING:
    import duckdb

__all__ = ["QueryFailed", "QueryUnanswered", "unanswered"]


class QueryUnanswered(AuditError):
    """A question cannot be answered: DuckDB refuses it, or `QueryFailed` says why it failed."""


class QueryFailed(QueryUnanswered):
    """The question is not at fault: DuckDB is missing, disk or memory is full, or a file cannot be read."""


def unanswered(error: duckdb.Error, out: Path | None, temporary: Path) -> QueryUnanswered:
    """Return the exception for an error of DuckDB. `out` is the file to be written, `temporary` has temporary files."""
    import duckdb

    # Up to the excerpt of the question.
    reason = _words(error, until="\nLINE ") or repr(error)
    said = f"expected a question that DuckDB can answer, got {reason}"
    if isinstance(error, duckdb.IOException):
        if out is not None and str(out) in said:
            return QueryFailed(f"{said}; give another file, or make room where it is")
        if "No such file" in said or "No files found" in said:
            return QueryFailed(f"{said}; retention removed a file meanwhile, ask again")
        return QueryFailed(
            f"{said}; make room where it writes and in {temporary}, which has its "
            "temporary files (TMPDIR names another)"
        )
    if isinstance(error, duckdb.OutOfMemoryException):
        # Without DuckDB's advice to change its settings, which are locked.
        reason = _words(error, until="\n\n")
        return QueryFailed(
            f"expected a question that can be answered in limited memory, got {reason}; "
            "narrow it by a time, ask for fewer columns, or sort and group fewer rows"
        )
    return QueryUnanswered(f"{said}; docs/query.md has the columns of the view `events`")


def _words(error: Exception, *, until: str) -> str:
    return " ".join(str(error).partition(until)[0].split())
