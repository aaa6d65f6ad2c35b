"""Lines for a proof, taken from the index of a store that was read.

A proof then needs no query to the store. It proves the same lines that the page shows, even if the store cannot be
reached.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from otel_audit.journal.ledger.entries import ENTRY
from otel_audit.journal.line import Line, system_start
from otel_audit.query.index import TrailIndex
from otel_audit.verification.trail_lines import Place, StoreLines

__all__ = ["IndexLines"]

_OF_LEDGER: Final = system_start(ENTRY).decode()


class _Indexed:
    """The streams of an index."""

    def __init__(self, index: TrailIndex, where: str) -> None:
        self._index = index
        self.where = where

    def streams(self) -> Sequence[str]:
        return self.texts("SELECT DISTINCT stream_id FROM sought WHERE stream_id IS NOT NULL ORDER BY stream_id")

    def lines_of(self, stream_id: str, after: int = 0) -> Iterator[Line]:
        return self.lines("stream_id = ? AND seq > ?", [stream_id, after])

    def lines(self, condition: str, values: Sequence[object]) -> Iterator[Line]:
        question = f"SELECT seq, line FROM sought WHERE seq IS NOT NULL AND line IS NOT NULL AND {condition}"
        with self._index.reader() as reader:  # a separate one, since several are read at a time
            for seq, line in reader.rows(f"{question} ORDER BY seq", values)[1]:
                yield Line(str(line).encode(), int(str(seq)))

    def texts(self, question: str, values: Sequence[object] = ()) -> list[str]:
        with self._index.reader() as reader:
            return [str(text) for (text,) in reader.rows(question, values)[1]]


class IndexLines(StoreLines):
    """The lines of a store that was read into an index. `where` is the place of the store for display.

    Raises, in every method:
        QueryUnanswered: DuckDB cannot answer.
    """

    def __init__(self, index: TrailIndex, where: str) -> None:
        self._indexed = _Indexed(index, where)
        super().__init__(self._indexed)

    def place_at(self, stream_id: str, seq: int) -> Place | None:
        """See `TrailLines`."""
        line = next(self._indexed.lines("stream_id = ? AND seq = ?", [stream_id, seq]), None)
        return Place(self, stream_id, line) if line is not None else None

    def ledgers(self) -> Sequence[str]:
        """See `TrailLines`."""
        condition = "system = 'ledger' AND starts_with(line, ?) AND stream_id IS NOT NULL"
        question = f"SELECT DISTINCT stream_id FROM sought WHERE {condition} ORDER BY stream_id"
        return self._indexed.texts(question, [_OF_LEDGER])
