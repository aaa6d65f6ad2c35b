"""What the ledger is told of the streams of this process: when each was opened, how far it came, and how it ended.

One thread does all of it, away from whoever logs: it builds the trees, syncs what a head is about to vouch for, and
takes a turn of the ledger when something is to be said. A stream is opened in the ledger within a second of its first
line, and has a head whenever it moved far enough or for long enough, and at the end of each segment. Its end is told
while its writer lock is still held. A process that lives for less than a second says both in one turn.

A turn that fails costs nothing but freshness: what was to be told is told later, by this process, or by whoever takes
the stream over when it is gone.
"""

from __future__ import annotations

import os
import time
import weakref
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty
from typing import Any, Final

from otel_audit.errors import described
from otel_audit.journal.files import StreamFiles, sync_directory, sync_file
from otel_audit.journal.ledger.draft import Telling
from otel_audit.journal.ledger.entries import Kind, SignedNote
from otel_audit.journal.ledger.ledger import Ledger
from otel_audit.journal.stream import StreamWriter, SyncFailed
from otel_audit.journal.stream_tree import StreamTree, TreeBroken, TreeHead
from otel_audit.notices import Notices
from otel_audit.threads import RealThread, SimpleQueue, new_lock, wait_for_word

__all__ = ["END_WAIT_S", "HeadLimits", "Registrar", "anchor_of", "head_content"]

_LOOK_S: Final = 1.0
_LOOK_MIN_S: Final = 0.02
_LEAVES_A_LOOK: Final = 2048  # half of what the list takes
_OPEN_AFTER_S: Final = 0.5  # what ends sooner opens and ends in one turn
_WAIT_S: Final = 2.0
END_WAIT_S: Final = 4.0  # for a turn that others have, and for a disk that is slow
_RETRY_S: Final = 1.0
_RETRY_MAX_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """After how many lines, and after how many seconds in which it moved, a stream has another head."""

    lines: int = 10_000
    seconds: float = 300.0


def anchor_of(note: SignedNote) -> dict[str, Any]:
    """Return what the header of a segment says of the ledger's last note, so that every exported one is an anchor."""
    checkpoint = note.checkpoint
    root = b64encode(checkpoint.root).decode()
    return {
        "directory_id": note.line.tail.stream_id,
        "origin": checkpoint.origin,
        "size": checkpoint.size,
        "root": root,
    }


def head_content(stream_id: str, head: TreeHead, *, edge: bool = False) -> dict[str, Any]:
    """Return what an entry says of a stream that came so far. `edge`: with what the tree can be continued from."""
    told = {"stream": stream_id, "size": head.size, "root": b64encode(head.root).decode(), "hash": head.hash}
    return {**told, "edge": [b64encode(node).decode() for node in head.edge]} if edge else told


@dataclass(slots=True)
class _Life:
    """One stream of this process, from its first line until the ledger knows of its end."""

    stream: StreamWriter
    tree: StreamTree
    begun_s: float
    opening: Mapping[str, Any]
    told_s: float
    told_size: int = 0
    origin: str = ""  # of the ledger that knows of it
    is_ending: bool = False  # said by whoever closes the stream, at any moment of a look
    is_whole: bool = False  # the tree has all lines of a stream that has ended, or cannot be built
    is_over: bool = False
    broken: str = ""
    synced_to: int = 0  # the last segment that was left and whose lines are on the disk
    named: tuple[int, int] = (0, 0)  # the last segment of which the name is on the disk, and its inode

    @property
    def files(self) -> StreamFiles:
        """Where it is."""
        return self.stream.files

    def grow(self) -> int:
        """Build the tree as far as lines may be vouched for, and return by how many lines it grew."""
        before, is_ending = self.tree.size, self.is_ending
        if not self.broken:
            try:
                if is_ending:
                    self.tree.reach(self.stream.head)
                else:
                    durable = self.stream.durable
                    leaves = self.stream.leaves
                    newest = leaves[-1].seq if leaves else before
                    self.tree.grow(newest if durable is None else min(newest, durable.seq))
            except TreeBroken as error:
                self.broken = str(error)
        self.is_whole = is_ending
        return self.tree.size - before

    def sync(self) -> bool:
        """Have on the disk what the tree has, and the names of the files. False: a sync of the writer is not over yet.

        What the writer has synced is not synced again. With `fsync` that is all of it.

        Raises:
            OSError: it may not be.
            SyncFailed: a sync of the writer has failed; the kernel tells that only once, so another one would succeed.
        """
        if self.stream.durable is None:
            self._sync_segments()
        # In this order: what came of a sync is kept before it is over.
        is_over = not self.stream.is_being_synced
        if (error := self.stream.unvouched()) is not None:
            raise SyncFailed(error.errno, error.strerror, str(self.files.directory))
        return is_over

    def _sync_segments(self) -> None:
        now = self.tree.place.segment
        for number in range(self.synced_to + 1, now + 1):
            if not self.stream.is_synced(number):
                # A descriptor of its own, so that an error of the write-back is told to the writer's one as well.
                sync_file(self.files.segment(number))
            self.synced_to = min(number, now - 1)
        name = (now, os.stat(self.files.segment(now)).st_ino)
        if name != self.named:
            sync_directory(self.files.directory)
            self.named = name

    def due(self, now_s: float, limits: HeadLimits, open_after_s: float) -> list[Telling]:
        """Return what is to be told now."""
        said: list[Telling] = []
        if not self.origin:
            if not self.is_whole and now_s - self.begun_s < open_after_s:
                return []
            said.append((Kind.OPEN, self.opening))
        stream_id = self.files.stream_id
        said += [(Kind.HEAD, head_content(stream_id, border, edge=True)) for border in self.tree.borders]
        if self.is_whole:
            said.append((Kind.END, self._end()))
        elif not self.broken and self._is_head_due(now_s, limits):
            said.append((Kind.HEAD, head_content(stream_id, self.tree.head())))
        return said

    def _is_head_due(self, now_s: float, limits: HeadLimits) -> bool:
        moved = self.tree.size - self.told_size
        return moved >= limits.lines or (moved > 0 and now_s - self.told_s >= limits.seconds)

    def _end(self) -> Mapping[str, Any]:
        if not self.broken:
            return head_content(self.files.stream_id, self.tree.head())
        last = self.stream.head
        told = {"stream": self.files.stream_id, "size": last.seq, "root": None, "hash": last.hash.decode()}
        return {**told, "why": self.broken}

    def told(self, said: Sequence[Telling], origin: str, now_s: float) -> None:
        """The ledger of this origin has these entries."""
        for kind, content in said:
            match kind:
                case Kind.OPEN:
                    self.origin = origin
                case Kind.HEAD | Kind.END:
                    self.told_size, self.told_s = content["size"], now_s
                    if "edge" in content:
                        self.tree.borders.popleft()
            self.is_over = self.is_over or kind == Kind.END


class Registrar:
    """Tells the ledger of the streams of this process. Any thread may call it; its own one does the work.

    `describe` says what an `open` entry does, of the process and its settings. `is_waited_for`: the first receipt of a
    stream waits until it is opened in the ledger. `end_wait_s`: how long who ends a stream may wait for its end to be
    told. `on_open` is called by that thread when a stream of this process is in the ledger.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        describe: Callable[[], Mapping[str, Any]],
        limits: HeadLimits | None = None,
        is_waited_for: bool = False,
        end_wait_s: float = END_WAIT_S,
        on_open: Callable[[], object] = lambda: None,
        notices: Notices | None = None,
    ) -> None:
        self.ledger = ledger
        self._describe = describe
        self._limits = limits or HeadLimits()
        self._is_waited_for = is_waited_for
        self._end_wait_s = end_wait_s
        self._on_open = on_open
        self._notices = notices or Notices()
        self._begin()

    def _begin(self) -> None:
        self.trouble = ""  # why the last turn failed; empty when it did not
        self._lives: dict[str, _Life] = {}
        self._ended: set[str] = set()
        self._words: SimpleQueue[None] = SimpleQueue()
        self._waiting: set[SimpleQueue[None]] = set()
        self._thread: RealThread | None = None
        self._looking = new_lock()
        self._not_before_s = 0.0
        self._retry_s = _RETRY_S
        self._last_pause_s = _LOOK_S

    def forked(self) -> None:
        """In a forked child: the streams are the parent's, and so is the thread."""
        self._begin()

    def follow(self, stream: StreamWriter) -> None:
        """Tell the ledger of this stream of the process, from now until its end.

        Where the first receipt waits for the ledger this returns when the stream is opened there, or after 2 s.
        """
        now_s = time.monotonic()
        opening = {"stream": stream.files.stream_id, **self._describe()}
        life = _Life(stream, StreamTree(stream.files, stream.leaves), now_s, opening, now_s)
        self._lives[stream.files.stream_id] = life
        self._start()
        if self._is_waited_for:
            self._wait_for(lambda: bool(life.origin or self.trouble), _WAIT_S)

    def end(self, stream: StreamWriter) -> bool:
        """Tell the ledger that this stream has ended; its file is closed, and its writer lock still held.

        False: the ledger does not know, and whoever takes the stream over will tell it.
        """
        stream_id = stream.files.stream_id
        if (life := self._lives.get(stream_id)) is not None:
            life.is_ending = True
            self._not_before_s = 0.0
            if self._thread is None:  # the interpreter is about to end, and no thread was started any more
                self.look()
            else:
                self._wait_for(lambda: stream_id not in self._lives, self._end_wait_s)
            self._lives.pop(stream_id, None)
        return stream_id in self._ended

    def wake(self) -> None:
        """Build the trees now, because many lines wait for it. This takes no lock, because `log()` calls it."""
        self._words.put(None)

    def close(self) -> None:
        """The thread ends by itself. A stream that is followed later has another one."""
        words, self._words = self._words, SimpleQueue()
        self._thread = None
        words.put(None)

    def look(self, words: SimpleQueue[None] | None = None) -> float:
        """Build the trees, tell the ledger what is due, and return in how many seconds to look again.

        A negative time: not again. `words` are those of the thread that looks.
        """
        if words is not None and words is not self._words:
            return -1.0
        looking, waiting = self._looking, self._waiting  # a process that is opened again has others meanwhile
        if not looking.acquire(blocking=False):
            return _LOOK_S  # a thread that was to end has not come back from the disk
        try:
            return self._look()
        finally:
            looking.release()
            for turns in waiting.copy():
                turns.put(None)

    def _look(self) -> float:
        now_s = time.monotonic()
        grown = 0
        due: list[tuple[_Life, list[Telling]]] = []
        for life in list(self._lives.values()):
            try:
                grown += life.grow()
                said = life.due(now_s, self._limits, 0.0 if self._is_waited_for else _OPEN_AFTER_S)
                if said and now_s >= self._not_before_s and life.sync():
                    due.append((life, said))
            except Exception as error:  # of one stream's files, or a fault of ours: the others go on
                self._failed(error)
        if due:
            self._take_turn(due)
        return self._pause_s(grown, now_s)

    def _take_turn(self, due: Sequence[tuple[_Life, list[Telling]]]) -> None:
        try:
            written = self.ledger.tell([each for _, said in due for each in said])
        except Exception as error:  # whatever it was, the next turn may be better
            self._failed(error)
            return
        now_s, origin = time.monotonic(), written.checkpoint.origin
        opens = any(kind == Kind.OPEN for _, said in due for kind, _ in said)
        left_out = {id(content) for _, content in written.left_out}
        for life, said in due:
            life.told([each for each in said if id(each[1]) not in left_out], origin, now_s)
            if life.is_over:
                self._ended.add(life.files.stream_id)
                self._lives.pop(life.files.stream_id, None)
        note = self.ledger.latest
        for life in self._lives.values():
            life.stream.anchor = None if note is None else anchor_of(note)
            if life.origin != origin:  # a ledger was begun anew, and does not know of it yet
                life.origin = ""
        self.trouble, self._retry_s = "", _RETRY_S
        if opens:
            self._on_open()

    def _failed(self, error: Exception) -> None:
        self.trouble = f"the ledger cannot be written, and is told later: {described(error)}"
        self._not_before_s = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _RETRY_MAX_S)
        for life in list(self._lives.values()):
            if life.is_ending:  # whoever closes it waits no longer
                self._lives.pop(life.files.stream_id, None)
        self._notices.say("ledger", self.trouble)

    def _pause_s(self, grown: int, now_s: float) -> float:
        """Look again before the list of the busiest writer is full, and when a stream is to be opened."""
        pause_s = _LOOK_S if grown < _LEAVES_A_LOOK else _LOOK_MIN_S
        if 0 < grown < _LEAVES_A_LOOK:
            pause_s = max(_LOOK_MIN_S, min(_LOOK_S, self._last_pause_s * _LEAVES_A_LOOK / grown))
        for life in self._lives.values():
            if life.is_ending:  # a sync of its writer is not over
                pause_s = _LOOK_MIN_S
            elif not life.origin:
                pause_s = min(pause_s, max(_LOOK_MIN_S, life.begun_s + _OPEN_AFTER_S - now_s))
        self._last_pause_s = pause_s
        return pause_s

    def _start(self) -> None:
        if self._thread is None:
            work = _Work(weakref.ref(self), self._words)
            thread = RealThread(work.run, name="otel-audit-ledger")
            with suppress(RuntimeError):  # the interpreter is about to end: nothing new is started
                thread.start()
                self._thread = thread
        self._words.put(None)

    def _wait_for(self, is_done: Callable[[], bool], timeout_s: float) -> None:
        # Not a Condition: an asynchronous exception could leave its lock to nobody, and the thread would stand still.
        turns: SimpleQueue[None] = SimpleQueue()
        self._waiting.add(turns)
        deadline = time.monotonic() + timeout_s
        try:
            self._words.put(None)
            while not is_done() and (left_s := deadline - time.monotonic()) > 0:
                wait_for_word(turns, left_s)
        finally:
            self._waiting.discard(turns)


class _Work:
    """The thread of a registrar, for as long as somebody else has it."""

    def __init__(self, registrar: weakref.ref[Registrar], words: SimpleQueue[None]) -> None:
        self._registrar = registrar
        self._words = words

    def run(self) -> None:
        """Look now and again until the registrar is gone."""
        while (registrar := self._registrar()) is not None:
            pause_s = registrar.look(self._words)
            del registrar  # or it would live for as long as this thread waits
            if pause_s < 0:
                return
            self._rest(pause_s)

    def _rest(self, pause_s: float) -> None:
        with suppress(Empty):
            self._words.get(timeout=pause_s)
