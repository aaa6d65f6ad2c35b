"""Copy events to a JSONL file for people and other tools, without the keys that this library adds.

If the caller set only Feast's fields, the line has the same bytes as one of Feast's own `AuditEvent`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from otel_audit.delivery.outcomes import Accepted, Batch, ExportOutcome, Refused, Unavailable
from otel_audit.journal.files import is_at, write_whole
from otel_audit.threads import new_lock, process, real_sleep

__all__ = ["ADDED_KEYS", "JsonlExporter", "JsonlFile", "as_given"]

ADDED_KEYS: Final = frozenset({"event_id", "trace_flags", "time_ns", "observed_ns", "stream_id", "seq", "prev_hash"})

_LOCK_WAIT_S: Final = 2.0
_LOCK_POLL_S: Final = 0.01
_decode: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def as_given(line: bytes) -> bytes:
    """Return a journal line's event as its caller gave it: the stored bytes of each value, without `ADDED_KEYS`.

    Raises:
        msgspec.DecodeError: the line is not a JSON object.
    """
    fields = (
        b"%b:%b" % (msgspec.json.encode(key), value) for key, value in _decode(line).items() if key not in ADDED_KEYS
    )
    return b"{%b}" % b",".join(fields)


class JsonlFile:
    """A file to which any thread of several processes appends whole lines.

    You may rename or remove it at any time. The next append makes a new one, with `mode`.
    """

    def __init__(self, path: str | os.PathLike[str], *, mode: int = 0o600) -> None:
        self.path = Path(os.path.abspath(path))
        self._mode = mode
        self._descriptor = -1
        self._owner = process()
        self._lock = new_lock()

    def append(self, lines: Sequence[bytes]) -> None:
        """Write the lines, given without newlines, to the end of the file, and sync it to disk.

        Raises:
            OSError: none of them is in the file.
        """
        with self._own_lock():
            descriptor = self._locked()
            try:
                _append(descriptor, b"\n".join(lines) + b"\n")
            finally:
                # Unlock explicitly: if a forked child has a copy of the descriptor, closing ours unlocks nothing.
                fcntl.flock(descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file. A later append opens it again."""
        with self._own_lock():
            self._let_go()

    def _own_lock(self) -> threading.Lock:
        if self._owner != process():
            # In a forked child, a thread that is gone may hold the lock, and a lock on the parent's descriptor
            # would not keep the parent out.
            self._owner, self._lock = process(), new_lock()
            self._let_go()
        return self._lock

    def _locked(self) -> int:
        """Return a descriptor of the file that is at the path now, locked against other processes."""
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            if self._descriptor < 0:
                self._descriptor = _open(self.path, self._mode)
            _wait_for_lock(self._descriptor, deadline)
            if is_at(self.path, self._descriptor):
                return self._descriptor
            self._let_go()  # renamed or removed, perhaps while we waited

    def _let_go(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class JsonlExporter:
    """Append each event of the application to a JSONL file, leaving out the journal's own lines.

    A new file gets `mode`. An event may wait `delay_s` seconds for others.
    """

    name = "jsonl"

    def __init__(self, path: str | os.PathLike[str], mode: int = 0o600, *, delay_s: float = 1.0) -> None:
        self.delay_s = delay_s
        self._file = JsonlFile(path, mode=mode)

    def export(self, batch: Batch) -> ExportOutcome:
        """Append all of the events. Return `Unavailable` if that fails: then the file has none of them."""
        try:
            lines = [as_given(line.content) for line in batch.lines if not line.system]
        except (msgspec.DecodeError, RecursionError) as error:
            return Refused(f"expected a line that is a JSON object, got {type(error).__name__}")
        if not lines:
            return Accepted()
        try:
            self._file.append(lines)
        except OSError as error:
            return Unavailable(
                f"{self._file.path}: expected to append {len(lines)} lines, got {error.strerror or error}"
            )
        return Accepted()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _open(path: Path, mode: int) -> int:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, mode)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "something that is not a regular file: lines could not be taken back", str(path))
    return descriptor


def _wait_for_lock(descriptor: int, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise OSError(errno.EAGAIN, f"a lock that another process held for {_LOCK_WAIT_S:g} s") from None
            real_sleep(_LOCK_POLL_S)
        else:
            return


def _append(descriptor: int, data: bytes) -> None:
    end = os.fstat(descriptor).st_size
    if end and os.pread(descriptor, 1, end - 1) != b"\n":
        data = b"\n" + data  # our first line must not become part of one that a crash left unfinished
    try:
        write_whole(descriptor, data)
        os.fdatasync(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, end)
        raise
