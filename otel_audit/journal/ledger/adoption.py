"""Record in the ledger how streams ended whose process was killed, and streams that are older than the ledger.

A writer that closes its stream records the end itself, and removes its lock file. So a lock file that nobody holds
belongs to a stream whose end still has to be recorded: the stream is read to its last whole line, and its length is
recorded for good. The lock is held meanwhile, so that only one process does this. It first checks whether another
process has recorded the end, but was killed before it removed the lock file. One turn takes many streams.

A stream written by an earlier version is recorded as `found`. Nothing proves that it was whole until then, but any
later change is noticed. Such a stream has no ledger in its header. If the header does name one, the stream was opened
in that ledger, or is not ours.
"""

from __future__ import annotations

import os
import re
import time
from base64 import b64decode
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from otel_audit.errors import NoteMalformed, ProofInvalid
from otel_audit.journal.files import StreamFiles, segments_in, sync_directory, sync_file, writer_locks_in
from otel_audit.journal.ledger.draft import Telling
from otel_audit.journal.ledger.entries import Entry, Kind, SignedNote, last_note, statement, statements_backwards
from otel_audit.journal.ledger.files import LedgerFiles, LedgerLog, id_of
from otel_audit.journal.ledger.ledger import Ledger
from otel_audit.journal.ledger.registrar import anchor_of, head_content
from otel_audit.journal.line import Damage, Line, Position
from otel_audit.journal.locks import FileLock, boot_id, host_id, may_live_elsewhere
from otel_audit.journal.reader import lines_before, lines_behind, segment_lines, segment_lines_backwards, stream_header
from otel_audit.journal.stream_tree import StreamTree, TreeBroken, TreeHead
from otel_audit.settings import Durability
from otel_audit.threads import giving_way

__all__ = ["Adopter", "tree_of"]

_MOST_A_TURN: Final = 64

_FIND_AFTER_S: Final = 5.0
_NEW: Final = (b'"kind":"open"', b'"kind":"found"')
_OVER: Final = frozenset({Kind.END, Kind.ADOPT, Kind.FOUND})
_STREAM: Final = re.compile(rb'"stream":"([0-9a-f-]{36})"')


class Adopter:
    """Records the streams of a directory that no longer have a writer. For one thread.

    With `foreign`, streams are included whose writer may be alive on another machine. With `begins`, a ledger begins if
    there is none yet. `failed` is called for a stream that cannot be read.
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
        """Start again in a forked child."""
        self._settled: set[str] = set()  # streams that are recorded, or that this version wrote
        self._found = _Found(self._ledger.files)
        self._find_at_s = time.monotonic() + self._find_after_s

    def take_over(self, stopped: Callable[[], bool] = lambda: False) -> int:
        """Record the end of each stream whose writer left its lock file, and return their number.

        Raises:
            LedgerBusy: others had the turn for too long; the rest was not recorded.
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
        seen = _last_place(self._ledger.files)
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
                sync_directory(self._directory)
                said = self._tell(said, seen, stopped)
            while held:  # only streams that are recorded, or need not be
                held.pop().release(remove=True)
            return len(said)
        finally:
            for lock in held:
                lock.release()

    def _adopt(self, files: StreamFiles, header: Mapping[str, Any], held: list[FileLock], said: list[Telling]) -> None:
        is_in_memory = header.get("durability") == Durability.MEMORY
        if is_in_memory or not files.segments():
            lock = self._left_lock(files)
            if lock is not None and (is_in_memory or not files.segments()):
                held.append(lock)
            elif lock is not None:  # its writer was born just now, and has died since: the next look records its end
                lock.release()
            return
        # Read before the lock is taken, since others take a stream with a held lock for alive.
        tree, why = tree_of(files)
        lock = self._left_lock(files)
        if lock is None:  # another process holds it, or has recorded the end already
            return
        try:
            header = stream_header(files)  # read again, since its writer may have been born just before its death
            content = self._content(files, header, tree, why)
        except BaseException:
            lock.release()  # but keep the lock file, since the end is not recorded yet
            raise
        held.append(lock)
        if content is not None:
            said.append((Kind.ADOPT if "ledger" in header else Kind.FOUND, content))

    def _content(
        self, files: StreamFiles, header: Mapping[str, Any], tree: StreamTree, why: str
    ) -> Mapping[str, Any] | None:
        """Return the entry for a stream whose lock is held now, or None if it has been written."""
        if _is_told(self._ledger.files, files.stream_id, header.get("ledger")):
            return None  # by a process that was killed before it removed the lock file
        if why := why or _read_on(tree):  # retention may have removed lines while they were read, so try once more
            tree, why = tree_of(files)
        for number in files.segments():  # its writer may not have synced them, and the power may fail now
            with suppress(FileNotFoundError):  # retention has just removed it
                sync_file(files.segment(number))
        content = _told(files, tree, why)
        if content["hash"] is None:  # its writer died before its first line, so there is nothing to vouch for
            return None
        return content

    def _tell(self, said: list[Telling], seen: Mapping[str, Any], stopped: Callable[[], bool]) -> list[Telling]:
        """Record the ends in a turn, and return them, without those that the ledger has got since it was at `seen`.

        A writer that had waited too long may have let its lock go while its end was being written.
        """
        files = self._ledger.files
        with self._ledger.turn(stopped=stopped) as turn:
            if _last_place(files) != seen:
                said = [each for each in said if not _is_told(files, each[1]["stream"], seen)]
            turn.write(said)
        return said

    def _left_lock(self, files: StreamFiles) -> FileLock | None:
        return FileLock.acquire(files.writer_lock, mode=self._file_mode, creates=False)

    def find(self, stopped: Callable[[], bool] = lambda: False) -> int:
        """Record the ended streams of earlier versions, and return their number.

        This reads the header of each stream once, and therefore does nothing in the first seconds of a process. The
        whole ledger is read only if there is a stream of an earlier version.

        Raises:
            LedgerBusy: others had the turn for too long; the rest was not recorded.
            OSError: the directory or the ledger cannot be read or written.
        """
        if time.monotonic() < self._find_at_s or not self._is_wanted():
            return 0
        said: list[Telling] = []
        told = 0
        has_read = False
        for stream_id in list(segments_in(self._directory)):
            if stream_id in self._settled or stopped():
                continue
            files = StreamFiles(self._directory, stream_id)
            header = stream_header(files)
            is_ours = not header or "ledger" in header or header.get("durability") == Durability.MEMORY
            if not is_ours and (
                self._is_held(stream_id)
                or files.writer_lock.exists()  # the next `take_over` records it
                or (not self._foreign and may_live_elsewhere(self._directory, header))
            ):
                continue
            if not is_ours:
                if not has_read:  # this takes long, and most directories have no such stream
                    self._found.refresh()
                    has_read = True
                try:
                    if stream_id not in self._found.streams:
                        said.append((Kind.FOUND, _told(files, *tree_of(files))))
                except (OSError, ProofInvalid) as error:
                    self._failed(files, error)
            self._settled.add(stream_id)
            if len(said) >= _MOST_A_TURN:
                told += self._say(said)
        return told + self._say(said)

    def _say(self, said: list[Telling]) -> int:
        """Take a turn, and record the streams that no other process has recorded. If it fails, they are found again.

        Many processes that start with a new version at the same time find the same streams.
        """
        if not said:
            return 0
        try:
            with self._ledger.turn() as turn:
                self._found.refresh()
                new = [each for each in said if each[1]["stream"] not in self._found.streams]
                turn.write(new)
        except BaseException:
            self._settled -= {each[1]["stream"] for each in said}
            raise
        said.clear()
        return len(new)


def tree_of(files: StreamFiles) -> tuple[StreamTree, str]:
    """Return the tree of a stream up to its last whole line, and why it could not be built, or an empty text.

    If the first lines were removed, the tree continues from the edge that the ledger has for them.

    Raises:
        OSError: the files of the stream cannot be read.
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
    """Return the tree of the lines before this one, from the ledger's entry for their removal or their segment."""
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


def _last_place(files: LedgerFiles) -> Mapping[str, Any]:
    note = last_note(files)
    return {} if note is None else anchor_of(note)


def _is_told(files: LedgerFiles, stream_id: str, anchor: object) -> bool:
    """Return True if a ledger of the directory has the end of the stream.

    `anchor` is the ledger's note that the stream's first header names. No older line can be about the stream.
    """
    named = anchor if isinstance(anchor, Mapping) else {}
    wanted = b'"stream":"%b"' % stream_id.encode()
    for log in reversed(files.logs()):
        is_signed = False
        for number in reversed(log.segments()):
            for line in segment_lines_backwards(log, number):
                if isinstance(line, Damage):
                    continue
                if log.directory_id == named.get("directory_id") and line.seq <= named.get("size", 0):
                    return False
                is_signed = is_signed or isinstance(statement(line), SignedNote)
                if is_signed and wanted in line.content and isinstance(entry := statement(line), Entry):
                    if entry.kind in _OVER:
                        return True
                    if entry.kind == Kind.OPEN:  # other entries, such as removals, may follow an end
                        return False
    return False


class _Found:
    """The streams that are recorded as opened or found in the ledgers of a directory.

    Only entries that name a new stream are read, each of them once, and only if a note follows.
    """

    def __init__(self, files: LedgerFiles) -> None:
        self._files = files
        self._place = Position(0)  # after the last note
        self.streams: set[str] = set()

    def refresh(self) -> None:
        """Read the entries that have been written since.

        Raises:
            OSError: a ledger cannot be read.
        """
        for number in self._files.segments():
            if number >= self._place.segment and (directory_id := id_of(self._files.segment(number))):
                self._read(LedgerLog(self._files.directory, directory_id, (number,)), number)

    def _read(self, log: LedgerLog, number: int) -> None:
        after = self._place if self._place.segment == number else None
        turn: list[str] = []
        for line in giving_way(segment_lines(log, number, after)):
            if isinstance(line, Damage):
                continue
            if any(kind in line.content for kind in _NEW) and (named := _STREAM.search(line.content)):
                turn.append(named[1].decode())
            elif isinstance(statement(line), SignedNote):
                self.streams.update(turn)
                turn, self._place = [], line.end
