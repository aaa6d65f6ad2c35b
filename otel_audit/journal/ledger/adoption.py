"""What the ledger is told of streams whose process is gone without a word, and of those that are older than it.

A writer that ends tells the ledger so, and removes its lock file. So a lock file that is there and that nobody holds
means that somebody has to: the stream is read to its last whole line, and how far it came is said once and for all. The
lock is held meanwhile, so that two do not say it. Many go into one turn.

A stream that an earlier version wrote is `found` instead: nothing shows that it was whole before, but from here on it
is. Its header knows no ledger; one whose header does was opened in it, or is not ours.
"""

from __future__ import annotations

import os
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from otel_audit.errors import NoteMalformed, ProofInvalid
from otel_audit.journal.files import StreamFiles, segments_in, writer_locks_in
from otel_audit.journal.ledger.draft import Telling
from otel_audit.journal.ledger.entries import Entry, Kind, statement, statements_backwards
from otel_audit.journal.ledger.files import LedgerFiles
from otel_audit.journal.ledger.ledger import Ledger
from otel_audit.journal.ledger.registrar import head_content
from otel_audit.journal.line import Line, Position
from otel_audit.journal.locks import FileLock, boot_id, host_id, may_live_elsewhere
from otel_audit.journal.reader import lines_before, lines_behind, segment_lines, stream_header
from otel_audit.journal.stream_tree import StreamTree, TreeBroken, TreeHead
from otel_audit.settings import Durability
from otel_audit.threads import real_sleep

__all__ = ["Adopter", "tree_of"]

_MOST_A_TURN: Final = 64
_LINES_AT_ONCE: Final = 256
_GIVE_WAY_S: Final = 0.0001
_FIND_AFTER_S: Final = 5.0
_KNOWN: Final = (b'"kind":"open"', b'"kind":"found"')


class Adopter:
    """Tells the ledger of the streams of a directory that nobody writes any more. For one thread.

    `foreign`: also of those whose writer may live on another machine. `begins`: where there is no ledger yet,
    one begins. `failed` is told of a stream that cannot be read.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        foreign: bool = False,
        file_mode: int = 0o600,
        find_after_s: float = _FIND_AFTER_S,
        begins: bool = True,
        failed: Callable[[StreamFiles, Exception], None] = lambda files, error: None,
    ) -> None:
        self._ledger = ledger
        self._directory = ledger.files.directory
        self._foreign = foreign
        self._file_mode = file_mode
        self._find_after_s = find_after_s
        self._begins = begins
        self._failed = failed
        self.forked()

    def forked(self) -> None:
        """In a forked child: begin anew."""
        self._known: set[str] | None = None  # streams that the ledger knows, or that are none of the older ones
        self._find_at_s = time.monotonic() + self._find_after_s

    def take_over(self, stopped: Callable[[], bool] = lambda: False) -> int:
        """Tell the ledger how far the streams came whose writers left their lock files, and return of how many.

        Raises:
            LedgerBusy: others had the turn for too long; the rest was not told.
            OSError: the directory or the ledger cannot be read or written.
        """
        if not self._is_wanted():
            return 0
        told = 0
        dead = [each for each in writer_locks_in(self._directory) if not self._is_held(each)]
        while dead and not stopped():
            told += self._take_over(dead[:_MOST_A_TURN], stopped)
            dead = dead[_MOST_A_TURN:]
        return told

    def _is_wanted(self) -> bool:
        return self._begins or bool(self._ledger.files.segments())

    def _is_held(self, stream_id: str) -> bool:
        with suppress(OSError):
            return FileLock.is_held(StreamFiles(self._directory, stream_id).writer_lock)
        return True

    def _take_over(self, stream_ids: list[str], stopped: Callable[[], bool]) -> int:
        held: list[FileLock] = []
        said: list[Telling] = []
        try:
            for stream_id in stream_ids:
                files = StreamFiles(self._directory, stream_id)
                header = stream_header(files)
                if stopped() or (not self._foreign and may_live_elsewhere(self._directory, header)):
                    continue
                try:
                    self._adopt(files, header, held, said)
                except (OSError, ProofInvalid) as error:
                    self._failed(files, error)
            if said:
                self._ledger.tell(said)
            while held:  # only those of which the ledger knows, or has to know nothing
                held.pop().release(remove=True)
            return len(said)
        finally:
            for lock in held:
                lock.release()

    def _adopt(self, files: StreamFiles, header: Mapping[str, Any], held: list[FileLock], said: list[Telling]) -> None:
        if header.get("durability") == Durability.MEMORY or not files.segments():
            if (lock := FileLock.acquire(files.writer_lock, mode=self._file_mode)) is not None:
                held.append(lock)
            return
        # Read before the lock is taken: meanwhile others would take its writer for alive.
        tree, why = tree_of(files)
        lock = FileLock.acquire(files.writer_lock, mode=self._file_mode)
        if lock is None:
            return
        held.append(lock)
        if not why:
            why = _read_on(tree)
        kind = Kind.ADOPT if "ledger" in header else Kind.FOUND
        said.append((kind, _told(files, tree, why)))

    def find(self, stopped: Callable[[], bool] = lambda: False) -> int:
        """Tell the ledger of the streams of earlier versions that ended, and return of how many.

        Nothing is done in the first seconds of a process: the whole ledger is read for it once.

        Raises:
            LedgerBusy: others had the turn for too long; the rest was not told.
            OSError: the directory or the ledger cannot be read or written.
        """
        if time.monotonic() < self._find_at_s or not self._is_wanted():
            return 0
        if self._known is None:
            self._known = set(_known_in(self._ledger.files))
        said: list[Telling] = []
        told = 0
        for stream_id in list(segments_in(self._directory)):
            if stream_id in self._known or stopped():
                continue
            files = StreamFiles(self._directory, stream_id)
            header = stream_header(files)
            is_ours = not header or "ledger" in header or header.get("durability") == Durability.MEMORY
            if not is_ours and (
                self._is_held(stream_id)
                or files.writer_lock.exists()  # taken over with the next look
                or (not self._foreign and may_live_elsewhere(self._directory, header))
            ):
                continue
            if not is_ours:
                try:
                    said.append((Kind.FOUND, _told(files, *tree_of(files))))
                except (OSError, ProofInvalid) as error:
                    self._failed(files, error)
            self._known.add(stream_id)
            if len(said) >= _MOST_A_TURN:
                told += self._say(said)
        return told + self._say(said)

    def _say(self, said: list[Telling]) -> int:
        """Have a turn. Where it fails, the streams are found again."""
        count = len(said)
        try:
            if said:
                self._ledger.tell(said)
        except BaseException:
            self._known = None
            raise
        said.clear()
        return count


def tree_of(files: StreamFiles) -> tuple[StreamTree, str]:
    """Return the tree of a stream up to its last whole line, and why it could not be built; empty when it was.

    Where its first lines were removed, the tree goes on from the edge that the ledger has of them.

    Raises:
        OSError: its files cannot be read.
    """
    numbers = files.segments()
    first = next(lines_behind(files, Position(numbers[0])), None) if numbers else None
    begin = None
    if first is not None and first.seq > 1:
        begin = _edge_before(files, first)
        if begin is None:
            return StreamTree(files), f"the lines before {first.seq} are gone, and no edge of their tree is kept"
    tree = StreamTree(files, begin=begin, position=Position(numbers[0] if numbers else 1))
    return tree, _read_on(tree)


def _read_on(tree: StreamTree) -> str:
    try:
        tree.read()
    except TreeBroken as error:
        return str(error)
    return "" if tree.size else "no line of it can be read"


def _edge_before(files: StreamFiles, first: Line) -> TreeHead | None:
    """Return the tree that ends before this line, as the ledger says of what was removed or of a rotation."""
    wanted = first.tail.prev_hash
    for log in reversed(LedgerFiles(files.directory).logs()):
        for each in statements_backwards(log):
            if not isinstance(each, Entry) or each.content.get("stream") != files.stream_id:
                continue
            edge, size = each.content.get("edge"), each.content.get("last_seq", each.content.get("size"))
            if isinstance(edge, list) and size == first.seq - 1 and each.content.get("hash") == wanted:
                with suppress(ValueError, TypeError, NoteMalformed):
                    nodes = tuple(b64decode(node, validate=True) for node in edge)
                    return TreeHead(first.seq - 1, b"", str(wanted), nodes)
    return None


def _told(files: StreamFiles, tree: StreamTree, why: str) -> dict[str, Any]:
    place = tree.place
    if why:
        last = _last_line(files)
        told: dict[str, Any] = {
            "stream": files.stream_id,
            "size": 0 if last is None else last.seq,
            "root": None,
            "hash": None if last is None else last.hash,
            "why": why,
        }
        place = Position() if last is None else last.end
    else:
        told = head_content(files.stream_id, tree.head())
    return {
        **told,
        "torn_bytes": _bytes_behind(files, place),
        "adopter": {"pid": os.getpid(), "host_id": host_id(), "boot_id": boot_id()},
    }


def _last_line(files: StreamFiles) -> Line | None:
    for number in reversed(files.segments()):
        if (line := next(lines_before(files, number), None)) is not None:
            return line
    return None


def _bytes_behind(files: StreamFiles, place: Position) -> int:
    with suppress(FileNotFoundError):
        return max(0, files.segment(place.segment).stat().st_size - place.offset)
    return 0


def _known_in(files: LedgerFiles) -> Iterator[str]:
    """Yield the streams that the ledgers of a directory know of. Only the entries that name a new one are parsed."""
    for log in files.logs():
        for number in log.segments():
            for count, line in enumerate(segment_lines(log, number)):
                if count % _LINES_AT_ONCE == 0:
                    real_sleep(_GIVE_WAY_S)
                if isinstance(line, Line) and any(kind in line.content for kind in _KNOWN):
                    entry = statement(line)
                    if isinstance(entry, Entry) and isinstance(stream_id := entry.content.get("stream"), str):
                        yield stream_id
