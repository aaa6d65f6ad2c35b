"""The Merkle tree of a stream, whose root the ledger records. It is built by another thread than the writer's.

For each event the writer only adds the end of its chain to a bounded list. Ends that are missing there, because of an
asynchronous exception or of a burst that was too long for the list, are read back from the file. Before a root is used,
the last leaf is compared with its line.
"""

from __future__ import annotations

from binascii import unhexlify
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Final

import msgspec
from msgspec.structs import replace

from otel_audit.journal.files import StreamFiles
from otel_audit.journal.line import Line, Position
from otel_audit.journal.reader import StreamReader
from otel_audit.journal.segment import Head
from otel_audit.signing.tree import Edge, leaf_hash
from otel_audit.threads import give_way

__all__ = ["StreamTree", "TreeBroken", "TreeHead"]

_READ_LINES: Final = 2048
_READ_BYTES: Final = 1 << 20
# A thread that logs meanwhile waits for the interpreter only as long as these take, not for its switch interval. Giving
# way costs as much as thirty leaves.
_LEAVES_AT_ONCE: Final = 256
_LINES_AT_ONCE: Final = 64  # lines, which are parsed and hashed as well


class TreeBroken(Exception):
    """The tree cannot be built, since a line of the stream is missing or was replaced. The message names it."""


class TreeHead(msgspec.Struct, frozen=True):
    """The tree of the first `size` lines: its root, the hex hash of its last line, and the edge from which it
    continues.
    """

    size: int
    root: bytes
    hash: str
    edge: Sequence[bytes]


class StreamTree:
    """The tree of the first `size` lines of a stream. For one thread.

    `leaves` is the list to which the writer adds the ends of its chain. It is empty for a stream without a writer. The
    tree begins at the first line, or after the last line of a `TreeHead`, which is the line before `position`.
    """

    def __init__(
        self,
        files: StreamFiles,
        leaves: deque[Head] | None = None,
        *,
        begin: TreeHead | None = None,
        position: Position | None = None,
    ) -> None:
        self._files = files
        self._leaves: deque[Head] = deque() if leaves is None else leaves
        self._edge = Edge() if begin is None else Edge(begin.size, begin.edge)
        self._segment, offset, _ = position or Position()
        self._last = Head(self._edge.size, b"" if begin is None else begin.hash.encode(), offset, 0)
        self._next: Head | None = None  # taken from the list, but not yet in the tree
        self.borders: deque[TreeHead] = deque()  # the tree at the end of each segment that was passed

    @property
    def size(self) -> int:
        """The number of leaves."""
        return self._edge.size

    @property
    def place(self) -> Position:
        """The position after the last leaf."""
        return Position(self._segment, self._last.offset, self._last.seq)

    def head(self) -> TreeHead:
        """Return the size, root and edge of the tree."""
        return TreeHead(self._edge.size, self._edge.root(), self._last.hash.decode(), self._edge.nodes)

    def grow(self, seq: int, *, rest: Callable[[], None] = give_way) -> None:
        """Build the tree up to the line with this number, which is written. `rest` is called after every 256 leaves.

        Raises:
            TreeBroken: a line on the way is missing.
            OSError: a line has to be read back, and cannot be read now.
        """
        while self._edge.size < seq:
            head = self._next = self._next or self._taken()
            if head is None or head.seq > self._edge.size + 1:
                self._read_back(seq if head is None else min(seq, head.seq - 1))
            elif head.seq <= self._edge.size:  # the line was read back
                self._next = None
            else:
                self._add_all(seq, rest)

    def reach(self, head: Head) -> TreeHead:
        """Build the tree up to the end of a chain, and return its head.

        Raises:
            TreeBroken: its last leaf is not the last line of the chain.
            OSError: a line has to be read back, and cannot be read now.
        """
        self.grow(head.seq)
        if self._edge.size != head.seq or self._last.hash != head.hash:
            raise TreeBroken(
                f"the tree ends with line {self._edge.size}, which is not the line {head.seq} that was written"
            )
        return self.head()

    def read(self) -> None:
        """Build the tree from the file alone, up to the last whole line of a stream that no longer has a writer.

        Raises:
            TreeBroken: a line is missing.
            OSError: the file cannot be read.
        """
        self._read_on(None)

    def _taken(self) -> Head | None:
        with suppress(IndexError):
            return self._leaves.popleft()
        return None

    def _add_all(self, seq: int, rest: Callable[[], None]) -> None:
        """Add the next line and those that follow it without a hole, up to this number."""
        while run := self._run(seq):
            if run[0].offset <= self._last.offset:
                self._pass_border(self._segment + 1)
            self._edge.extend([sha256(b"\0" + unhexlify(head.hash)).digest() for head in run])
            self._last = run[-1]
            if len(run) == _LEAVES_AT_ONCE:
                rest()

    def _run(self, seq: int) -> list[Head]:
        """Take the next lines of one segment out of the list. The first one after them stays in `_next`.

        A line that does not end further in the file than the line before is the first one of the next segment.
        """
        leaves, head, last = self._leaves, self._next, self._last
        run: list[Head] = []
        while head is not None and head.seq == last.seq + 1 and last.seq < seq and len(run) < _LEAVES_AT_ONCE:
            if run and head.offset <= last.offset:
                break
            run.append(head)
            last = head
            head = leaves.popleft() if leaves else None
        self._next = head
        return run

    def _pass_border(self, segment: int) -> None:
        """Keep the tree at the end of a segment. The following lines are in this one."""
        if self._edge.size:
            self.borders.append(self.head())
        self._segment = segment

    def _read_back(self, seq: int) -> None:
        self._read_on(seq)
        if self._edge.size < seq:
            raise _missing(self._edge.size + 1)

    def _read_on(self, seq: int | None) -> None:
        """Read lines from the files, up to this number or the last one."""
        reader = StreamReader(self._files)
        try:
            while seq is None or self._edge.size < seq:
                begin = self.place
                chunk = reader.read(begin, max_lines=_READ_LINES, max_bytes=_READ_BYTES)
                if chunk.end == begin:
                    return
                for line in chunk.lines:
                    if seq is not None and line.seq > seq:
                        return
                    self._add_line(line)
                if chunk.end.segment > self._segment:
                    self._pass_border(chunk.end.segment)
                self._last = replace(self._last, offset=chunk.end.offset)  # after damage, which is skipped
        finally:
            reader.close()

    def _add_line(self, line: Line) -> None:
        if line.segment > self._segment:
            self._pass_border(line.segment)
        line_hash = self._last.hash
        if line.seq > self._edge.size:
            if line.seq > self._edge.size + 1:
                raise _missing(self._edge.size + 1)
            line_hash = line.hash.encode()
            self._edge.append(leaf_hash(unhexlify(line_hash)))
            if not line.seq % _LINES_AT_ONCE:
                give_way()
        self._last = Head(self._edge.size, line_hash, line.end.offset, 0)


def _missing(seq: int) -> TreeBroken:
    return TreeBroken(f"line {seq} is not in the files any more")
