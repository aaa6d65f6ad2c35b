"""A stream in memory: the same lines and the same chain as in files, for as long as its process lives.

No file and no directory is touched. Lines are kept until every exporter has dealt with them; where they take all the
room that there is, new ones are refused. An old one never makes room for a new one.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Final, NamedTuple

from otel_audit.journal.cursor import Position, Progress
from otel_audit.journal.files import StreamFiles
from otel_audit.journal.line import FORMAT_VERSION, SEGMENT, is_system, system_body
from otel_audit.journal.open_stream import Head
from otel_audit.journal.reader import Chunk, Line
from otel_audit.settings import Durability
from otel_audit.threads import new_rlock

__all__ = ["Dealt", "MemoryCursor", "MemoryReader", "MemoryShipment", "MemoryStream", "QueueLimits"]

_SEGMENT_NUMBER: Final = 1  # there is no file to end, so there is only one


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How many events may wait, and how many bytes their lines may take, the journal's own lines included."""

    events: int = 2048
    bytes: int = 32 * 1024 * 1024


class Dealt(NamedTuple):
    """What every exporter has dealt with, so that it was freed. One tuple, so that it moves in a single step.

    `seq` is the last line of it, `bytes` its length. `exported` are the events that every exporter has, `refused` those
    that the destination of one of them refused.
    """

    seq: int = 0
    bytes: int = 0
    exported: int = 0
    refused: int = 0

    @property
    def events(self) -> int:
        """The events of the application among them."""
        return self.exported + self.refused


class MemoryStream:
    """The open end of a stream in memory, and the lines that wait. `files` names the stream: none of them exists.

    One thread writes at a time, `Journal` holds its lock for that; any thread reads and frees. `exporters` are the
    names of those that must have had a line before it is freed.
    """

    gone: Final = 0  # nobody else can touch it

    def __init__(
        self, files: StreamFiles, description: Mapping[str, Any], *, limits: QueueLimits, exporters: Sequence[str]
    ) -> None:
        self.files = files
        self.header: Mapping[str, Any] = {
            "format": FORMAT_VERSION,
            "stream_id": files.stream_id,
            "number": _SEGMENT_NUMBER,
            **description,
            "durability": str(Durability.MEMORY),
        }
        self.refusals: deque[int] = deque()  # when an event was refused by a destination, until a gap line tells it
        self._limits = limits
        self._tag = b',"stream_id":"%b","seq":' % files.stream_id.encode()
        self._head = Head(0, b"", 0, 0)  # its offset counts the bytes of all lines so far
        self._lines: dict[int, bytes] = {}
        self._dealt = Dealt()
        self._given_up = False
        self.cursor = MemoryCursor(self, exporters)
        self._put_header(time.time_ns())

    @property
    def head(self) -> Head:
        """The end of the chain. Any thread."""
        return self._head

    @property
    def dealt(self) -> Dealt:
        """What was freed so far. Any thread."""
        return self._dealt

    @property
    def events(self) -> int:
        """How many events were written. Any thread."""
        head = self._head
        return head.seq - head.system

    @property
    def left(self) -> int:
        """How many events will never be delivered: those that waited when it was given up. Any thread."""
        dealt = self._dealt
        return self.events - dealt.events if self._given_up else 0

    @property
    def durable(self) -> Position | None:
        """None: nothing is, so all of it may be exported."""
        return None

    def write(self, body: bytes, observed_ns: int, *, system: bool = False) -> int:
        """Append one line and return its number in the stream. See `StreamWriter.write`.

        Raises:
            OSError: nothing was written. ENOBUFS: there is no room for it. ESHUTDOWN: nobody delivers it any more.
        """
        self._check_events()
        seq, prev_hash, size, own = self._head
        seq += 1
        line = b'%b%b%d,"prev_hash":"%b"}' % (body, self._tag, seq, prev_hash)
        self._check_bytes(len(line))
        self._put(line, seq, size, own + system)
        return seq

    def write_system(self, kind: str, content: Mapping[str, Any], observed_ns: int) -> None:
        """Append one event of the journal itself, such as a gap, where there is room for an event behind it.

        Raises:
            OSError: as `write`.
        """
        self._check_events()
        self.write(system_body(kind, content, observed_ns), observed_ns, system=True)

    def tend(self, observed_ns: int) -> None:
        """Nothing needs to be looked after: nobody else has access to it."""

    def keeps_its_lock(self) -> bool:
        """True: it needs none."""
        return True

    def close(self) -> None:
        """The stream has ended; what waits is still delivered."""

    def leave(self) -> None:
        """There is nothing to let go of."""

    def abandon(self) -> None:
        """In a forked child: the lines are the parent's, and their memory is free."""
        self._lines = {}

    def line(self, seq: int) -> bytes | None:
        """The line of this number, without its newline; None when it is not there any more, or not yet. Any thread."""
        return self._lines.get(seq)

    def free(self, seq: int, refused: set[int]) -> None:
        """Every exporter has dealt with the lines up to this number. `refused`: those that one of them refused.

        For one thread at a time: `MemoryCursor` holds its lock.
        """
        _, size, exported, lost = self._dealt
        for number in range(self._dealt.seq + 1, seq + 1):
            line = self._lines.pop(number)
            size += len(line)
            if is_system(line):
                continue
            if number in refused:
                lost += 1
                self.refusals.append(time.time_ns())
            else:
                exported += 1
        self._dealt = Dealt(seq, size, exported, lost)

    def give_up(self) -> None:
        """Nothing is delivered any more: what waits is `left`, and what comes is refused."""
        with self.cursor.lock:
            self._given_up = True
            self._lines = {}

    @property
    def is_given_up(self) -> bool:
        """True when nothing is delivered any more."""
        return self._given_up

    def _check_events(self) -> None:
        if self._given_up:
            raise OSError(errno.ESHUTDOWN, "one that was closed")
        if self.events - self._dealt.events >= self._limits.events:
            raise OSError(errno.ENOBUFS, f"{self._limits.events} events that wait")

    def _check_bytes(self, line_bytes: int) -> None:
        waiting = self._head.offset - self._dealt.bytes
        if waiting and waiting + line_bytes > self._limits.bytes:
            raise OSError(errno.ENOBUFS, f"{waiting} bytes of events that wait")

    def _put(self, line: bytes, seq: int, size: int, system: int) -> None:
        head = Head(seq, sha256(line).hexdigest().encode(), size + len(line), system)
        # Nobody reads beyond the head: an asynchronous exception in between leaves a line that the next one replaces.
        self._lines[seq] = line
        self._head = head

    def _put_header(self, now_ns: int) -> None:
        body = system_body(SEGMENT, self.header, now_ns)
        self._put(b"%b%b1}" % (body, self._tag), 1, 0, 1)


class MemoryReader:
    """Reads a stream in memory. See `LineReader`."""

    def __init__(self, stream: MemoryStream) -> None:
        self._stream = stream

    def read(self, position: Position, *, max_lines: int, max_bytes: int, until: Position | None = None) -> Chunk:
        """The next lines, at least one if there is one, however long."""
        last = self._stream.head.seq
        lines: list[Line] = []
        size = 0
        for seq in range(position.seq + 1, min(last, position.seq + max_lines) + 1):
            content = self._stream.line(seq)
            if content is None:
                break  # given up meanwhile
            size += len(content)
            if lines and size > max_bytes:
                break
            lines.append(Line(content, seq, _SEGMENT_NUMBER))
        end = lines[-1].end if lines else position
        return Chunk(self._stream.header, tuple(lines), end, more=end.seq < last)

    def sync(self) -> None:
        """There is nothing to sync."""

    def close(self) -> None:
        """There is nothing to let go of."""


class MemoryCursor:
    """How far each exporter has come in a stream in memory. It frees what all of them have dealt with.

    What is kept has no list of what was refused: the lines are gone, and nobody could send them again. Any thread.
    """

    note: str | None = None
    ended = False

    def __init__(self, stream: MemoryStream, exporters: Iterable[str]) -> None:
        self.lock = new_rlock()  # a signal handler may close what its own thread is closing
        self._stream = stream
        self._progress = {exporter: Progress() for exporter in exporters}
        self._refused: set[int] = set()

    def progress(self, exporter: str) -> Progress:
        """How far this exporter has come."""
        return self._progress.get(exporter, Progress())

    seen = progress

    def advance(self, exporter: str, progress: Progress) -> None:
        """Keep the progress of one exporter. Once the stream is given up, nothing changes any more."""
        with self.lock:
            if self._stream.is_given_up:
                return
            for entry in progress.quarantine:
                self._refused.update(range(entry.first_seq, entry.last_seq + 1))
            self._progress[exporter] = replace(progress, quarantine=())
            seq = min(each.position.seq for each in self._progress.values())
            self._stream.free(seq, self._refused)
            self._refused = {each for each in self._refused if each > seq}


class MemoryShipment:
    """The right to export a stream in memory, which nobody else can have. See `Exportable`."""

    ended = False  # when its process is over nobody is left to keep that

    def __init__(self, stream: MemoryStream) -> None:
        self._stream = stream
        self.stream_id = stream.files.stream_id
        self.cursor = stream.cursor
        self.released = False

    def durable(self) -> Position | None:
        """None: all of it may be exported."""
        return None

    def reader(self) -> MemoryReader:
        """A reader of its lines."""
        return MemoryReader(self._stream)

    def has_lines_after(self, position: Position) -> bool:
        """True when a line stands behind this position, delivered or given up."""
        return self._stream.head.seq > position.seq

    def conclude(self) -> None:
        """There is nothing to keep."""

    def release(self) -> None:
        """Who exports stops."""
        self.released = True

    def abandon(self) -> None:
        """In a forked child: it is the parent's."""
