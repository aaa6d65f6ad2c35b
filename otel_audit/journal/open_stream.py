"""What a journal needs of the stream that it writes, wherever its lines are: in files, or in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from otel_audit.journal.cursor import Position
from otel_audit.journal.files import StreamFiles

__all__ = ["Head", "OpenStream"]


class Head(NamedTuple):
    """The end of the chain. One tuple, so that it moves in a single step or not at all.

    `seq` is the number of the last line, `offset` the end of it in the segment, `system` how many of the lines so far
    are the journal's own.
    """

    seq: int
    hash: bytes
    offset: int
    system: int


class OpenStream(Protocol):
    """The open end of a stream. The journal holds its lock around every call that writes."""

    @property
    def files(self) -> StreamFiles:
        """The name of the stream, and where its files are if it has any."""

    @property
    def head(self) -> Head:
        """The end of the chain. Any thread."""

    @property
    def gone(self) -> int:
        """The events that nobody can read any more, of those that no exporter had. Any thread."""

    @property
    def durable(self) -> Position | None:
        """How far it may be exported; None: as far as it is written. Any thread."""

    def write(self, body: bytes, observed_ns: int, *, system: bool = False) -> int:
        """Append one line and return its number in the stream.

        Raises:
            OSError: nothing of the line is left in the chain.
        """

    def write_system(self, kind: str, content: Mapping[str, Any], observed_ns: int) -> None:
        """Append one event of the journal itself. Raises as `write`."""

    def tend(self, observed_ns: int) -> None:
        """What is looked at once a second. Raises as `write`."""

    def keeps_its_lock(self) -> bool:
        """False when somebody else has taken the stream over."""

    def close(self) -> None:
        """The stream has ended."""

    def leave(self) -> None:
        """Let go of the stream where it is, without a word to it: another process may have the same memory."""

    def abandon(self) -> None:
        """In a forked child: the stream is its parent's."""
