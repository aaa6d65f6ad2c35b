"""The segment that is written now: its file, and what is done when that is damaged, or taken away.

All that is known of one segment is here, so that none of it is left when the stream goes on in the next one.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from otel_audit.journal.line import Tail, digest, is_system
from otel_audit.journal.open_stream import Head
from otel_audit.journal.segment_file import copy_bytes, is_at, open_segment, sync_directory, write_whole

__all__ = ["Damage", "OpenSegment"]

_LOOK_BACK_BYTES: Final = 1 << 20  # more than the longest line
_CUT: Final = "truncated by somebody else"
_WRITTEN_TO: Final = "written by somebody else"


@dataclass(frozen=True, slots=True)
class Damage:
    """Where a segment ended before its time, and the bytes behind its last line; named in the next header."""

    segment: int
    offset: int
    length: int
    sha256: str
    reason: str

    def content(self) -> dict[str, Any]:
        """As the next header names it."""
        return {name: getattr(self, name) for name in self.__slots__}


class OpenSegment:
    """The file of one segment, open until `close`. For the one thread that holds the journal's lock.

    `is_over`: no line may follow here; `damage`: why, if not for its age. `is_broken`: a sync of it failed, or was
    interrupted: the kernel may have thrown pages away, and forget it. `is_distrusted`: a background sync of it failed;
    set by any thread.

    Raises:
        OSError: the file can be neither opened nor made.
    """

    descriptor = -1

    def __init__(self, path: Path, number: int, mode: int) -> None:
        self.path = path
        self.number = number
        self.is_over = False
        self.is_broken = False
        self.is_distrusted = False
        self.damage: Damage | None = None
        self._mode = mode
        self.descriptor = open_segment(path, mode)

    @property
    def size(self) -> int:
        """The length of the file in bytes."""
        return os.fstat(self.descriptor).st_size

    def put_header(self, header: bytes, stream_id: str, head: Head) -> bytes:
        """The segment begins with this line behind that head; which is in the file now.

        Raises:
            OSError: a piece of it may be.
        """
        # An interrupted earlier attempt may have left a header here: it goes if it is not whole, and stays if it is,
        # because an exporter may have read it.
        left = os.pread(self.descriptor, _LOOK_BACK_BYTES, 0)
        tail = Tail.of(left[:-1]) if left.endswith(b"\n") and left.count(b"\n") == 1 else None
        if (
            tail is not None
            and (tail.stream_id, tail.seq) == (stream_id, head.seq + 1)
            and (tail.prev_hash or "") == head.hash.decode()
        ):
            return left
        os.ftruncate(self.descriptor, 0)
        write_whole(self.descriptor, header)
        return header

    def settled(self, head: Head) -> Head:
        """The end of the chain by the file, after an exception came between a write and the new head.

        Raises:
            OSError: it could not be found out.
        """
        size = self.size
        rest = os.pread(self.descriptor, max(0, size - head.offset), head.offset)
        tail = Tail.of(rest[:-1]) if rest.endswith(b"\n") and rest.count(b"\n") == 1 else None
        if tail is not None and tail.seq == head.seq + 1 and tail.prev_hash == head.hash.decode():
            return Head(tail.seq, digest(rest[:-1]).encode(), size, head.system + is_system(rest))
        self.undo(head)
        return head

    def undo(self, head: Head) -> None:
        """Nothing is behind the last line any more, or the segment is over.

        Raises:
            OSError: what is there could not be found out.
        """
        size = self.size
        if size == head.offset or self.is_over:
            return
        if not self._is_whole_until(head):  # to cut here could cut lines that were acknowledged
            self.seal(_touched(size, head.offset), head.offset)
            return
        try:
            os.ftruncate(self.descriptor, head.offset)
        except OSError:
            self.seal("a failed write could not be undone", head.offset)

    def _is_whole_until(self, head: Head) -> bool:
        """True when the last line of the chain ends here: nobody else wrote into the file or cut it."""
        start = max(0, head.offset - _LOOK_BACK_BYTES)
        before = os.pread(self.descriptor, head.offset - start, start)
        return before.endswith(b"\n") and digest(before[:-1].rpartition(b"\n")[2]).encode() == head.hash

    def seal(self, reason: str, end: int) -> None:
        """No more lines here; the next header names the bytes behind the last whole line, which ends at this offset.

        Raises:
            OSError: they could not be read, and will not be named.
        """
        self.is_over = True
        size = self.size
        offset = min(end, size)
        rest = b""
        with contextlib.suppress(OSError):
            rest = os.pread(self.descriptor, size - offset, offset)
        self.damage = Damage(self.number, offset, len(rest), sha256(rest).hexdigest(), reason)

    def is_touched(self, end: int) -> bool:
        """True when somebody else has cut the file or written to it: its last line should end at this offset.

        Raises:
            OSError: that could not be found out.
        """
        return not self.is_over and self.size != end

    def seal_if_touched(self, end: int) -> None:
        """No more lines here if somebody else has cut the file or written to it.

        Raises:
            OSError: as `seal`.
        """
        if self.is_touched(end):
            self.seal(_touched(self.size, end), end)

    @property
    def is_cut(self) -> bool:
        """True when it was sealed because somebody else had cut it."""
        return self.damage is not None and self.damage.reason == _CUT

    @property
    def is_written_to(self) -> bool:
        """True when it was sealed because somebody else had written to it."""
        return self.damage is not None and self.damage.reason == _WRITTEN_TO

    def is_linked(self) -> bool:
        """True while the open file is the one that others find."""
        return is_at(self.path, self.descriptor)

    def put_back(self, end: int, observed_ns: int, *, syncs_name: bool) -> None:
        """The file that was removed, renamed or replaced is there again, up to this offset, and open.

        Raises:
            OSError: it could not be; the file without a name is still open.
        """
        path = self.path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists():
            path.rename(path.with_name(f"{path.name}.replaced-{observed_ns}"))
        copy = path.with_suffix(".restoring")
        copy.unlink(missing_ok=True)
        descriptor = open_segment(copy, self._mode)
        try:
            # As much as is there: what was cut off before is found by the next look at the file's length.
            copy_bytes(self.descriptor, descriptor, end)
            os.fdatasync(descriptor)
            copy.rename(path)
            if syncs_name:
                sync_directory(path.parent)
        except BaseException:
            os.close(descriptor)
            copy.unlink(missing_ok=True)
            raise
        removed, self.descriptor = self.descriptor, descriptor
        os.close(removed)

    def close(self) -> None:
        """The file is closed, unless it is already. Raises as `os.close`."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        # Of a journal that nobody closed, or where an asynchronous exception came before anybody knew of it.
        with contextlib.suppress(OSError):
            self.close()


def _touched(size: int, end: int) -> str:
    return _CUT if size < end else _WRITTEN_TO
