"""Whether a segment may go at all: delivered to its last line, not in quarantine, and not written any more."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from otel_audit.journal.cursor import Progress, read_cursor
from otel_audit.journal.files import StreamFiles
from otel_audit.journal.line import Tail
from otel_audit.journal.locks import FileLock
from otel_audit.journal.segments import pieces, pieces_backwards, whole_bytes

__all__ = ["end_lines", "ready_segments"]

_NOWHERE: Final = "none"
_ELSEWHERE: Final = "ship"


def ready_segments(
    files: StreamFiles,
    numbers: Sequence[int],
    header: Mapping[str, Any],
    *,
    exporters: Collection[str] = (),
    is_held: bool = False,
) -> list[int]:
    """Those segments that every exporter has, of which no line is in quarantine, and that nobody writes.

    The exporters are those that the header and the cursor name, and unless the stream was delivered to its end, the
    given ones. `is_held`: the caller holds locks of the stream, and its last segment is left alone.

    Raises:
        OSError: a file cannot be read.
    """
    words = header.get("export")
    if not isinstance(words, list):
        return []
    progress, ended = read_cursor(files.cursor)
    named = {word for word in words if isinstance(word, str)} - {_NOWHERE, _ELSEWHERE}
    required = {*progress, *named, *(() if ended else exporters)}
    if not required and _NOWHERE not in words:
        return []  # left to a shipper, and none has come
    reached = [progress.get(name, Progress()) for name in required]
    return [
        number
        for number in _complete(files, numbers, is_held=is_held)
        if all(_has(each, files, number) for each in reached) and not _is_evidence(files, number, reached)
    ]


def _complete(files: StreamFiles, numbers: Sequence[int], *, is_held: bool) -> list[int]:
    """The segments that nobody writes any more.

    A later segment that has a line behind its header proves it: one that is only begun may be given up again.
    """
    if not is_held and not FileLock.is_held(files.writer_lock):
        return list(numbers)
    for later in reversed(numbers[1:]):
        with contextlib.suppress(FileNotFoundError):
            if len(list(islice(pieces(files.segment(later)), 2))) == 2:
                return [number for number in numbers if number < later]
    return []


def _has(progress: Progress, files: StreamFiles, number: int) -> bool:
    """An exporter has every whole line of the segment."""
    segment, offset, _ = progress.position
    return segment > number or (segment == number and offset >= whole_bytes(files.segment(number)))


def _is_evidence(files: StreamFiles, number: int, reached: Sequence[Progress]) -> bool:
    """A line of the segment is in quarantine, or may be; or nothing in it can be read, which somebody should see."""
    ends = end_lines(files, number)
    if ends is None:
        return True
    (first, _), (last, _) = ends
    return any(progress.unlisted for progress in reached) or any(
        entry.first_seq <= last.seq and first.seq <= entry.last_seq
        for progress in reached
        for entry in progress.quarantine
    )


def end_lines(files: StreamFiles, number: int) -> tuple[tuple[Tail, bytes], tuple[Tail, bytes]] | None:
    """The first and the last line of a segment, each with its tail; None when there is no line of the stream in it.

    Raises:
        OSError: it cannot be read.
    """
    path = files.segment(number)
    first = _first_line(files.stream_id, (content for content, _ in pieces(path)))
    last = _first_line(files.stream_id, pieces_backwards(path, whole_bytes(path)))
    return None if first is None or last is None else (first, last)


def _first_line(stream_id: str, contents: Iterable[bytes]) -> tuple[Tail, bytes] | None:
    lines = ((Tail.of(content), content) for content in contents)
    return next(((tail, line) for tail, line in lines if tail is not None and tail.stream_id == stream_id), None)
