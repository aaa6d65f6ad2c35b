"""Remove one segment: decide whether it may go, record that in the ledger, and finish the removal after a crash.

A segment may go when every exporter has it to its last line, none of its lines is in quarantine, and nobody writes it
any more. Its `retain` entry is durable before it goes. The entry names the numbers and the hashes at both ends, so that
a chain which begins or goes on after it can be verified. It also keeps the counts that no cursor holds any more.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from base64 import b64encode
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from otel_audit.journal.census import ELSEWHERE, NOWHERE, Retained, segment_counts, stream_counts
from otel_audit.journal.counts import Counts, Progress
from otel_audit.journal.cursor import read_cursor
from otel_audit.journal.files import StreamFiles, segments_in, sync_directory, writer_locks_in
from otel_audit.journal.ledger.entries import Kind, leaf_of
from otel_audit.journal.ledger.former import RETAIN, Ledger, is_begun, latest
from otel_audit.journal.ledger.removals import Removals, is_kept, stream_of
from otel_audit.journal.ledger.standing import edge_of
from otel_audit.journal.ledger.turn import Turn
from otel_audit.journal.line import Line, Position
from otel_audit.journal.line_file import pieces, whole_bytes
from otel_audit.journal.locks import FileLock, is_on_a_local_disk, is_young, remove_unheld
from otel_audit.journal.quarantine import files_beside
from otel_audit.journal.reader import lines_before, lines_behind, stream_header
from otel_audit.journal.stream_tree import TreeBroken
from otel_audit.settings import Durability

__all__ = [
    "end_lines",
    "finish_removal",
    "is_in_memory",
    "obituary",
    "origin_of",
    "ready_segments",
    "remove",
    "remove_signed",
    "remove_unbegun",
    "signed_obituary",
    "unlinked",
]

_BIRTH_NS: Final = 10**9  # between the id of a stream and its first file, also on a busy machine


def ready_segments(
    files: StreamFiles,
    numbers: Sequence[int],
    header: Mapping[str, Any],
    *,
    exporters: Collection[str] = (),
    is_held: bool = False,
    among: Collection[int] | None = None,
) -> list[int]:
    """Return the segments that every exporter has, that nobody writes, and of which no line is in quarantine.

    If `among` is given, only these are examined.

    The exporters are those that the header and the cursor name and, unless the stream was delivered to its end, the
    given ones. If `is_held`, the caller holds locks of the stream, and its last segment is left alone.

    Raises:
        OSError: a file cannot be read.
    """
    words = header.get("export")
    if not isinstance(words, list):
        return []
    progress, ended = read_cursor(files.cursor)
    named = {word for word in words if isinstance(word, str)} - {NOWHERE, ELSEWHERE}
    required = {*progress, *named, *(() if ended else exporters)}
    if not required and NOWHERE not in words:
        return []  # left to a shipper, but none has come
    reached = [progress.get(name, Progress()) for name in required]
    return [
        number
        for number in _complete(files, numbers, is_held=is_held)
        if (among is None or number in among)
        and all(_has(each, files, number) for each in reached)
        and not _is_evidence(files, number, reached)
    ]


def _complete(files: StreamFiles, numbers: Sequence[int], *, is_held: bool) -> list[int]:
    """Yield the segments that nobody writes any more.

    The proof is a later segment with a line after its header. One that has only begun may be given up again.
    """
    if not is_held and not FileLock.is_held(files.writer_lock):
        return list(numbers)
    for later in reversed(numbers[1:]):
        with contextlib.suppress(FileNotFoundError):
            if len(list(islice(pieces(files.segment(later)), 2))) == 2:
                return [number for number in numbers if number < later]
    return []


def _has(progress: Progress, files: StreamFiles, number: int) -> bool:
    """Return True if an exporter has every whole line of the segment."""
    segment, offset, _ = progress.position
    return segment > number or (segment == number and offset >= whole_bytes(files.segment(number)))


def _is_evidence(files: StreamFiles, number: int, reached: Sequence[Progress]) -> bool:
    """Return True if a line of the segment is or may be in quarantine, or if nothing in it can be read.

    Somebody should see the latter.
    """
    ends = end_lines(files, number)
    if ends is None:
        return True
    first, last = ends
    return any(progress.unlisted for progress in reached) or any(
        entry.first_seq <= last.seq and first.seq <= entry.last_seq
        for progress in reached
        for entry in progress.quarantine
    )


def end_lines(files: StreamFiles, number: int) -> tuple[Line, Line] | None:
    """Return the first and the last line of a segment, or None if it has no line of the stream.

    Raises:
        OSError: it cannot be read.
    """
    first = next(lines_behind(files, Position(number)), None)
    last = next(lines_before(files, number), None)
    return None if first is None or last is None else (first, last)


def obituary(
    files: StreamFiles, number: int, reason: str, *, whole: bool = False, removals: Removals | None = None
) -> Mapping[str, Any] | None:
    """Return what the unsigned ledger will record of a removed segment, or None if it has no line.

    This reads all of it.

    `whole` means that the stream has ended and goes with it.

    Raises:
        OSError: it cannot be read.
    """
    ends = end_lines(files, number)
    if ends is None:
        return None
    first, last = ends
    lines = segment_counts(files, number)
    return {
        "stream_id": files.stream_id,
        "segment": number,
        "whole": whole,
        "reason": reason,
        "bytes": files.segment(number).stat().st_size,
        "file": _identity(files.segment(number)),
        "first_seq": first.seq,
        "prev_hash": first.tail.prev_hash,
        "last_seq": last.seq,
        "last_hash": last.hash,
        "lines": lines.exported + lines.system,
        "events": lines.exported,
        "system": lines.system,
        "dropped": lines.dropped,
        "counts": _leaving(files, lines, whole=whole, removals=removals).stored(),
    }


def remove(ledger: Ledger, files: StreamFiles, content: Mapping[str, Any], time_ns: int) -> bool:
    """Record in the ledger that the segment of this obituary goes, then remove it. Return False if it was gone already.

    Only for the process that has the right to export the stream.

    Raises:
        OSError: the segment is there; if the entry was written, `finish_removal` will remove it.
    """
    last = latest(files.directory, RETAIN)
    segment = files.segment(content["segment"])
    if _finish(files.directory, None if last is None else last.content) and not segment.exists():
        return False
    before = {} if last is None else last.content.get("totals", {})
    ledger.append(RETAIN, {**content, "totals": _totals(before, content)}, time_ns)
    _unlink(files, content["segment"], whole=content["whole"])
    sync_directory(files.directory)  # done before the next entry, since only the last one may be unfinished
    return True


def signed_obituary(
    files: StreamFiles,
    number: int,
    reason: str,
    removals: Removals,
    *,
    whole: bool = False,
    before: Mapping[str, Any] | None = None,
) -> Mapping[str, Any] | None:
    """Return what the signed ledger will record of a removed segment, or None if it has no line. See `obituary`.

    It includes the edge of the stream's tree after its last line, so that the tree goes on without it. `before` is what
    the same turn will record of an earlier segment of the stream.

    Raises:
        OSError: it cannot be read.
        TreeBroken: its lines are not the ones that were signed; it is evidence, and must stay.
    """
    told = obituary(files, number, reason, whole=whole, removals=removals)
    if told is None:
        return None
    named = {"stream": told["stream_id"], "hash": told["last_hash"]}
    kept = {name: value for name, value in told.items() if name not in ("stream_id", "last_hash")}
    nodes, why = _edge_behind(files, number, removals, before or {})
    edge = None if nodes is None else [b64encode(node).decode() for node in nodes]
    return {**named, **kept, "edge": edge, **({"why": why} if why else {})}


def _edge_behind(
    files: StreamFiles, number: int, removals: Removals, before: Mapping[str, Any]
) -> tuple[Sequence[bytes] | None, str]:
    """Return the edge of the stream's tree after a segment, and the reason if there is none; empty if there is one.

    Raises:
        TreeBroken: another tree was signed there.
    """
    signed = removals.signed(files.stream_id)
    ends = end_lines(files, number)
    if ends is None:
        return None, "no line of it can be read"
    first, last = ends
    edge = None
    if before.get("last_seq") == first.seq - 1 and before.get("hash") == first.tail.prev_hash:
        edge = edge_of(first.seq - 1, before.get("edge"))
    edge = edge or removals.edge_before(files.stream_id, first)
    if edge is None:
        border = signed.borders.get(last.seq)
        why = f"no edge of the lines before {first.seq} is kept"
        return (border[1].nodes, "") if border is not None else (None, why)
    for line in lines_behind(files, Position(number)):
        if line.seq > edge.size + 1:
            raise TreeBroken(f"line {edge.size + 1} is not in the files any more: its segment is not removed")
        if line.seq == edge.size + 1:
            edge.append(leaf_of(line))
    border = signed.borders.get(edge.size)
    is_other = border is not None and border[1].nodes != edge.nodes
    if is_other or (edge.size == signed.size and signed.root not in (None, edge.root())):
        raise TreeBroken(
            f"the lines up to {edge.size} are not those that the ledger has signed: their segment is not removed; "
            "`otel-audit verify` shows what was changed"
        )
    return edge.nodes, ""


def remove_signed(
    turn: Turn,
    removals: Removals,
    told: Sequence[Mapping[str, Any]],
    failed: Callable[[StreamFiles, Exception], None],
) -> Sequence[Mapping[str, Any]]:
    """Record in the signed ledger that the segments of these obituaries go, then remove them. Return the removed ones.

    Only for the process that has the right to export the streams. `failed` is called with a segment that was recorded
    and is still there: `finish_removal` will remove it.

    Raises:
        LedgerBusy: nothing was recorded.
        OSError: the entries may not be durable, and nothing was removed; or the removals may not be.
    """
    directory = turn.log.directory
    removals.refresh()
    for each in removals.last:
        _finish(directory, each)
    if any(_is_unfinished(directory, each) for each in removals.last):
        return []  # only removals of the last turn may be unfinished
    totals = removals.signed_totals
    said: list[Mapping[str, Any]] = []
    for content in told:
        if _files_of(directory, content).segment(content["segment"]).exists():
            totals = _totals(totals, content)
            said.append({**content, "totals": totals})
    turn.write([(Kind.RETAIN, content) for content in said])
    gone = []
    stuck: set[str] = set()  # of which nothing later goes, so that no hole is seen
    for content in said:
        files = _files_of(directory, content)
        if files.stream_id in stuck:
            continue
        try:
            _unlink(files, content["segment"], whole=content["whole"])
            gone.append(content)
        except OSError as error:
            failed(files, error)
            stuck.add(files.stream_id)
    if said:
        sync_directory(directory)
    return gone


def _files_of(directory: Path, content: Mapping[str, Any]) -> StreamFiles:
    return StreamFiles(directory, str(stream_of(content)))


def origin_of(files: StreamFiles) -> Progress:
    """Return the progress at which an exporter that is new to a stream begins, with the counts of what was removed.

    Lines that had the journal as their destination are left out, since the totals of the ledger count them already.

    Raises:
        OSError: the ledger cannot be read.
    """
    if not is_begun(files.directory) and not is_kept(files.directory):
        return Progress()  # before a listing, since this is called for each of thousands of streams
    numbers = files.segments()
    if numbers == list(range(1, len(numbers) + 1)):
        return Progress()
    return Progress(counts=Retained(files.directory).counts(files.stream_id, by_ledger=False))


def finish_removal(directory: Path, *, file_mode: int = 0o600, removals: Removals | None = None) -> None:
    """Remove what the ledgers record as removed and a crash may have left.

    A different file with the same name was restored from a backup since, and stays. `removals` are the removals, if
    already read.

    Raises:
        OSError: a file cannot be removed.
    """
    removals = removals or Removals(directory)
    removals.refresh()
    if any(_is_unfinished(directory, each) for each in removals.last):
        ledger = Ledger.locked(directory, mode=file_mode)
        if ledger is not None:
            with ledger:
                removals.refresh()
                for each in removals.last:
                    _finish(directory, each)
    for each in removals.last:
        _remove_left_locks(directory, each)
    for stream_id in set(writer_locks_in(directory)) - segments_in(directory).keys():
        remove_unheld(StreamFiles(directory, stream_id).writer_lock)  # its writer was killed before it made a segment


def remove_unbegun(files: StreamFiles) -> bool:
    """Remove a stream whose writer was killed before it wrote a line: an empty segment, its cursor and its locks.

    Return False, with nothing changed, if there is more in it, if its writer or an exporter is at work, or if its
    segment was changed after its birth. It may have been truncated then, which is for somebody to see.

    Raises:
        OSError: a file of it cannot be read or removed.
    """
    # A writer that lives is about to take the ship lock, which must not be touched then.
    is_due = not FileLock.is_held(files.writer_lock) and _is_unbegun(files)
    if not is_due or (ship_lock := FileLock.acquire(files.ship_lock)) is None:
        return False
    with ship_lock:
        if (writer_lock := FileLock.acquire(files.writer_lock)) is None:
            return False
        with writer_lock:
            if not _is_unbegun(files):
                return False
            _unlink(files, 1, whole=True)
            writer_lock.release(remove=True)
        ship_lock.release(remove=True)
    return True


def _is_unbegun(files: StreamFiles) -> bool:
    if files.segments() != [1]:
        return False
    status = files.segment(1).stat()
    born_ns = (uuid.UUID(files.stream_id).int >> 80) * 10**6  # RFC 9562, UUID version 7: milliseconds since 1970
    is_due = not is_young(files.segment(1)) or is_on_a_local_disk(files.directory)
    return (
        status.st_size == 0
        and is_due  # elsewhere a lock does not show that a writer on another machine is gone
        and abs(status.st_mtime_ns - born_ns) < _BIRTH_NS
        and not any(progress.position.seq for progress in read_cursor(files.cursor, listed=False)[0].values())
    )


def _remove_left_locks(directory: Path, last: Mapping[str, Any]) -> None:
    """Remove the lock files of a stream that was removed as a whole, unless the remover still holds them."""
    told = _subject(directory, last)
    if told is None or not told[2] or told[0].segments():
        return
    for path in (told[0].ship_lock, told[0].writer_lock):
        if path.exists() and (lock := FileLock.acquire(path)) is not None:
            lock.release(remove=True)


def _is_unfinished(directory: Path, last: Mapping[str, Any] | None) -> bool:
    told = _subject(directory, last)
    if told is None:
        return False
    files, number, whole, is_restored = told
    return not is_restored and (files.segment(number).exists() or (whole and files.cursor.exists()))


def _finish(directory: Path, last: Mapping[str, Any] | None) -> bool:
    """Unlink what a last entry records, if that was not done.

    Return True if there was anything. Only under the ledger's lock.
    """
    told = _subject(directory, last)
    if told is None or not _is_unfinished(directory, last):
        return False
    files, number, whole, _ = told
    ship_lock = FileLock.acquire(files.ship_lock) if whole else None
    writer_lock = FileLock.acquire(files.writer_lock) if ship_lock is not None else None
    try:
        _unlink(files, number, whole=writer_lock is not None)
        sync_directory(directory)
    finally:
        for lock in (ship_lock, writer_lock):
            if lock is not None:
                lock.release(remove=writer_lock is not None or not files.segments())
    return True


def _subject(directory: Path, last: Mapping[str, Any] | None) -> tuple[StreamFiles, int, bool, bool] | None:
    """Return the subject of an entry, whether its stream goes as a whole, and whether the segment was restored.

    The name never leads outside the directory, whoever wrote the entry.
    """
    if last is None:
        return None
    try:
        files = StreamFiles(directory, str(uuid.UUID(stream_of(last))))
        number = int(last["segment"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    there = _identity(files.segment(number))
    is_restored = there is not None and there != last.get("file")
    return files, number, last.get("whole") is True, is_restored


def _identity(path: Path) -> Mapping[str, int] | None:
    """Return what distinguishes a file from a copy with the same name and content, such as a restored backup.

    None: no file.

    An inode may be reused. The time of the last change cannot be set, so a copy never has that of the file.
    """
    try:
        status = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return {"inode": status.st_ino, "changed_ns": status.st_ctime_ns}


def is_in_memory(files: StreamFiles, numbers: Sequence[int]) -> bool:
    """Return True if the stream was written in memory mode, so that its segments go without an entry."""
    return stream_header(files, numbers).get("durability") == Durability.MEMORY


def unlinked(files: StreamFiles, number: int) -> int:
    """Remove a segment that needs no entry, and return its bytes.

    Raises:
        OSError: it is still there.
    """
    size = files.segment(number).stat().st_size
    files.segment(number).unlink()
    return size


def _unlink(files: StreamFiles, number: int, *, whole: bool) -> None:
    files.segment(number).unlink(missing_ok=True)
    if whole and not files.segments():
        for path in (files.cursor, *files_beside(files.cursor)):
            path.unlink(missing_ok=True)


def _leaving(files: StreamFiles, lines: Counts, *, whole: bool, removals: Removals | None) -> Counts:
    """Return the counts that no stream holds any more without this segment.

    A cursor goes on counting the lines that it has passed until it goes too. Without one, lines are counted where they
    are.
    """
    if whole:
        return stream_counts(files, files.segments(), removals)
    is_destination = not read_cursor(files.cursor, listed=False)[0] and stream_header(files).get("export") == [NOWHERE]
    return lines if is_destination else Counts()


def _totals(before: Mapping[str, Any], content: Mapping[str, Any]) -> Mapping[str, int]:
    """Return the counts of all removals in this directory that this ledger records, this one included."""
    counts = Counts.of(before) + Counts.of(content["counts"])
    return {
        "segments": int(before.get("segments", 0)) + 1,
        "bytes": int(before.get("bytes", 0)) + int(content["bytes"]),
        **counts.stored(),
    }
