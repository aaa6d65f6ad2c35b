"""Record the streams of this process in the ledger: when each was opened, how far it has come, and how it ended.

One thread does all of this, so that no caller of `log()` waits for it. The thread builds the trees, syncs the lines
that a head is about to vouch for, and takes a turn of the ledger when an entry is due. A stream is opened in the ledger
within a second of its first line. It gets a head after a number of lines or seconds, and at the end of each segment.
Its end is recorded while its writer lock is still held. For a process that lives for less than a second, both are
recorded in one turn.

If a turn fails, its entries are only late: this process writes them in a later turn, or the process that adopts the
stream does.
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

from otel_audit.errors import LedgerBusy, described, remedy_of
from otel_audit.journal.files import StreamFiles, sync_directory, sync_file
from otel_audit.journal.ledger.draft import Telling
from otel_audit.journal.ledger.entries import Kind, SignedNote
from otel_audit.journal.ledger.ledger import Ledger
from otel_audit.journal.stream import StreamWriter, SyncFailed
from otel_audit.journal.stream_tree import StreamTree, TreeBroken, TreeHead
from otel_audit.notices import Notices
from otel_audit.threads import RealThread, SimpleQueue, give_way, new_lock, wait_for_word

__all__ = ["END_WAIT_S", "HeadLimits", "Registrar", "anchor_of", "head_content"]

_LOOK_S: Final = 1.0
_LOOK_MIN_S: Final = 0.02
_LEAVES_A_LOOK: Final = 2048  # half the capacity of the list
_REST_S: Final = 0.002  # so that a request waits for one run of leaves, and not for several in a row
_OPEN_AFTER_S: Final = 0.5  # a stream that ends sooner is opened and ended in one turn
_WAIT_S: Final = 2.0
END_WAIT_S: Final = 4.0  # for a few turns of other processes, or for a slow disk
_URGENT: Final = frozenset({Kind.OPEN, Kind.END})
_RETRY_S: Final = 1.0
_RETRY_MAX_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """The number of new lines, and of seconds with new lines, after which a stream gets another head."""

    lines: int = 10_000
    seconds: float = 300.0


def anchor_of(note: SignedNote) -> dict[str, Any]:
    """Return the ledger's last note as a segment header holds it, so that every exported header is an anchor."""
    checkpoint = note.checkpoint
    root = b64encode(checkpoint.root).decode()
    return {
        "directory_id": note.line.tail.stream_id,
        "origin": checkpoint.origin,
        "size": checkpoint.size,
        "root": root,
    }


def head_content(stream_id: str, head: TreeHead, *, edge: bool = False) -> dict[str, Any]:
    """Return the entry for a stream that has come this far, with `edge` including the edge to continue its tree."""
    told = {"stream": stream_id, "size": head.size, "root": b64encode(head.root).decode(), "hash": head.hash}
    return {**told, "edge": [b64encode(node).decode() for node in head.edge]} if edge else told


@dataclass(slots=True)
class _Life:
    """One stream of this process, from its first line until its end is in the ledger."""

    stream: StreamWriter
    tree: StreamTree
    begun_s: float
    opening: Mapping[str, Any]
    told_s: float
    told_size: int = 0
    origin: str = ""  # of the ledger in which it is open
    is_ending: bool = False  # set by the thread that closes the stream, at any time
    not_before_s: float = 0.0  # its files failed, and are tried again then
    busy_until_s: float = 0.0  # until then its end waits although other processes have the turn
    is_whole: bool = False  # the stream has ended, and its tree has all lines or cannot be built
    is_over: bool = False  # its end is in the ledger
    broken: str = ""  # why its tree cannot be built
    synced_to: int = 0  # the last finished segment whose lines are on the disk
    named: tuple[int, int] = (0, 0)  # the last segment whose name is on the disk, and its inode

    @property
    def files(self) -> StreamFiles:
        """The files of the stream."""
        return self.stream.files

    def grow(self) -> int:
        """Add to the tree all lines that may be vouched for, and return their number."""
        before, is_ending = self.tree.size, self.is_ending
        if not self.broken:
            try:
                if is_ending:
                    self.tree.reach(self.stream.head)
                else:
                    durable = self.stream.durable
                    leaves = self.stream.leaves
                    newest = leaves[-1].seq if leaves else before
                    self.tree.grow(newest if durable is None else min(newest, durable.seq), rest=self._rest)
            except TreeBroken as error:
                self.broken = str(error)
        self.is_whole = is_ending
        return self.tree.size - before

    def _rest(self) -> None:
        if self.is_ending:
            give_way()
        else:
            give_way(_REST_S)

    def sync(self) -> bool:
        """Make the lines in the tree and the names of their files durable, except lines that the writer has synced.

        With `fsync` the writer syncs every line. Return False while one of its syncs is still running.

        Raises:
            OSError: the lines may not be durable.
            SyncFailed: the same, because a sync of the writer failed; the kernel reports that once, and a second sync
                would succeed although lines may be lost.
        """
        if self.stream.durable is None:
            self._sync_segments()
        # In this order, since the result of a sync is stored before it counts as over.
        is_over = not self.stream.is_being_synced
        if (error := self.stream.unvouched()) is not None:
            raise SyncFailed(error.errno, error.strerror, str(self.files.directory))
        return is_over

    def _sync_segments(self) -> None:
        now = self.tree.place.segment
        for number in range(self.synced_to + 1, now + 1):
            if not self.stream.is_synced(number):
                # Through another descriptor, so that the kernel also reports a write-back error to the writer's.
                sync_file(self.files.segment(number))
            self.synced_to = min(number, now - 1)
        name = (now, os.stat(self.files.segment(now)).st_ino)
        if name != self.named:
            sync_directory(self.files.directory)
            self.named = name

    def due(self, now_s: float, limits: HeadLimits, open_after_s: float) -> list[Telling]:
        """Return the entries that are due now."""
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
        """Note that these entries are in the ledger of this origin."""
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
    """Records the streams of this process in the ledger. Any thread may call it; its own thread does the work.

    `describe` returns what an `open` entry holds about the process and its settings. If `is_waited_for`, the first
    receipt of a stream waits until the stream is open in the ledger. `end_wait_s` limits the time that ending a stream
    may take, and may be changed. The thread calls `on_open` when a stream of this process is in the ledger.
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
        self.end_wait_s = end_wait_s
        self._on_open = on_open
        self._notices = notices or Notices()
        self._begin()

    def _begin(self) -> None:
        self.trouble = ""  # why the last turn failed, or empty
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
        """Forget streams and thread in a forked child, since both are the parent's."""
        self._begin()

    def follow(self, stream: StreamWriter) -> None:
        """Record this stream in the ledger, from now until its end.

        If the first receipt waits for the ledger, return when the stream is open there, or after 2 s.
        """
        now_s = time.monotonic()
        opening = {"stream": stream.files.stream_id, **self._describe()}
        life = _Life(stream, StreamTree(stream.files, stream.leaves), now_s, opening, now_s)
        self._lives[stream.files.stream_id] = life
        self._start()
        if self._is_waited_for:
            self._wait_for(lambda: bool(life.origin or self.trouble), _WAIT_S)

    def end(self, stream: StreamWriter) -> bool:
        """Record in the ledger that this stream has ended. Its file is closed, and its writer lock is still held.

        Return False if the end could not be recorded, which the process that adopts the stream will do.
        """
        stream_id = stream.files.stream_id
        if (life := self._lives.get(stream_id)) is not None:
            life.busy_until_s = time.monotonic() + self.end_wait_s
            life.is_ending = True
            self._not_before_s = 0.0
            if self._thread is None:  # the interpreter is ending, and no thread could be started
                self.look()
            else:
                self._wait_for(lambda: stream_id not in self._lives, self.end_wait_s)
            self._lives.pop(stream_id, None)
        return stream_id in self._ended

    def wake(self) -> None:
        """Build the trees now, because many lines wait for it. This takes no lock, because `log()` calls it."""
        self._words.put(None)

    def close(self) -> None:
        """Let the thread end by itself. Following another stream starts a new one."""
        words, self._words = self._words, SimpleQueue()
        self._thread = None
        words.put(None)

    def look(self, words: SimpleQueue[None] | None = None) -> float:
        """Build the trees, write the entries that are due, and return the seconds until the next look.

        A negative time means never. `words` is the queue of the calling thread.
        """
        if words is not None and words is not self._words:
            return -1.0
        looking, waiting = self._looking, self._waiting  # reopening the journal replaces both
        if not looking.acquire(blocking=False):
            return _LOOK_S  # a thread that should have ended is still waiting for the disk
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
                if said and now_s >= max(self._not_before_s, life.not_before_s) and life.sync():
                    due.append((life, said))
            except Exception as error:  # with the files of one stream, or a bug: the others must go on
                life.not_before_s = now_s + _RETRY_S
                self._failed(error, [life])
        if due:
            self._take_turn(due)
        return self._pause_s(grown, now_s)

    def _take_turn(self, due: Sequence[tuple[_Life, list[Telling]]]) -> None:
        ending = {life.files.stream_id: life for life, said in due if any(kind == Kind.END for kind, _ in said)}
        left_s = max((life.busy_until_s - time.monotonic() for life in ending.values()), default=_WAIT_S)
        # A head is only late if it comes later. Without its `open` a stream is unproven once its process is gone.
        is_urgent = any(kind in _URGENT for _, said in due for kind, _ in said)

        def has_changed() -> bool:
            """Return True if a stream has begun to end: one turn is then enough for its `open` and its `end`."""
            return any(life.is_ending and stream_id not in ending for stream_id, life in list(self._lives.items()))

        try:
            with self.ledger.turn(wait_s=max(0.0, left_s), is_urgent=is_urgent, stopped=has_changed) as turn:
                # Whoever closes a stream may have given up meanwhile, and the stream may have been taken over.
                due = [(life, said) for life, said in due if self._lives.get(life.files.stream_id) is life]
                if not due:
                    return
                written = turn.write([each for _, said in due for each in said])
        except Exception as error:  # whatever it was, the next turn may succeed
            if isinstance(error, LedgerBusy) and has_changed():
                return  # the next look is at once
            if self._failed(error, list(self._lives.values())):
                self._not_before_s = time.monotonic() + self._retry_s
                self._retry_s = min(2 * self._retry_s, _RETRY_MAX_S)
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
            if life.origin != origin:  # a new ledger has begun, in which the stream is not open yet
                life.origin = ""
        self.trouble, self._retry_s = "", _RETRY_S
        if opens:
            self._on_open()

    def _failed(self, error: Exception, lives: Sequence[_Life]) -> bool:
        """Say why entries of these streams are late, and give up those that are ending. Return False to go on trying.

        The thread that closes a stream waits for more than one turn of other processes.
        """
        said = f"{self.ledger.files.directory}: expected to write the ledger, got {described(error)}"
        self.trouble = f"{said}; no event is lost by it, and its entries will be late"
        if not isinstance(error, LedgerBusy):  # which says itself what to do
            self.trouble += f"; {remedy_of(error, 'let the user of the service write its files')}"
        now_s = time.monotonic()
        ending = [life for life in lives if life.is_ending]
        if isinstance(error, LedgerBusy) and any(now_s < life.busy_until_s for life in ending):
            return False
        for life in ending:
            self._lives.pop(life.files.stream_id, None)
        self._notices.say("ledger", self.trouble)
        return True

    def _pause_s(self, grown: int, now_s: float) -> float:
        """Return a pause that ends before the busiest writer's list is full, and when a stream has to be opened."""
        pause_s = _LOOK_S if grown < _LEAVES_A_LOOK else _LOOK_MIN_S
        if 0 < grown < _LEAVES_A_LOOK:
            pause_s = max(_LOOK_MIN_S, min(_LOOK_S, self._last_pause_s * _LEAVES_A_LOOK / grown))
        for life in self._lives.values():
            if life.is_ending:  # a sync of its writer is still running
                pause_s = _LOOK_MIN_S
            elif not life.origin:
                pause_s = min(pause_s, max(_LOOK_MIN_S, life.begun_s + _OPEN_AFTER_S - now_s))
        self._last_pause_s = pause_s
        return pause_s

    def _start(self) -> None:
        if self._thread is None:
            work = _Work(weakref.ref(self), self._words)
            thread = RealThread(work.run, name="otel-audit-ledger")
            with suppress(RuntimeError):  # the interpreter is ending, and starts no thread
                thread.start()
                self._thread = thread
        self._words.put(None)

    def _wait_for(self, is_done: Callable[[], bool], timeout_s: float) -> None:
        # Not a Condition, since an asynchronous exception could leave its lock locked, and the thread would hang.
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
    """The thread of a registrar. It does not keep the registrar alive."""

    def __init__(self, registrar: weakref.ref[Registrar], words: SimpleQueue[None]) -> None:
        self._registrar = registrar
        self._words = words

    def run(self) -> None:
        """Look now and again until the registrar is gone."""
        while (registrar := self._registrar()) is not None:
            pause_s = registrar.look(self._words)
            del registrar  # otherwise it would live while this thread waits
            if pause_s < 0:
                return
            self._rest(pause_s)

    def _rest(self, pause_s: float) -> None:
        with suppress(Empty):
            self._words.get(timeout=pause_s)
