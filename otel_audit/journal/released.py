"""Lines that were released from quarantine: refused once, sent again by somebody, and accepted.

The cursor belongs to whoever ships the stream. Who sends quarantined lines again writes here instead, a file beside it,
so that it can be done while a shipper lives. Whoever reads a cursor takes this off its quarantine.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from otel_audit.journal.files import open_with_mode
from otel_audit.journal.segment_file import write_whole

__all__ = ["Released", "disjoint", "read_released", "release"]


class Released(NamedTuple):
    """A range of lines, both ends included, that an exporter's destination has. `system`: the journal's own lines."""

    exporter: str
    first_seq: int
    last_seq: int
    system: bool


def release(cursor: Path, released: Sequence[Released], *, mode: int) -> None:
    """The lines count as exported from now on. `mode` is that of a new file.

    Raises:
        OSError: some do not, and may be sent again.
    """
    descriptor = open_with_mode(_beside(cursor), os.O_RDWR | os.O_APPEND, mode)
    try:
        with contextlib.suppress(OSError):  # only root can: the service that owns the cursor must be able to read it
            owner = cursor.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        end = os.fstat(descriptor).st_size
        torn = end and os.pread(descriptor, 1, end - 1) != b"\n"
        lines = (json.dumps(each, separators=(",", ":")).encode() + b"\n" for each in released)
        write_whole(descriptor, b"\n" * bool(torn) + b"".join(lines))
    finally:
        os.close(descriptor)


def read_released(cursor: Path) -> list[Released]:
    """What was released in the stream of this cursor. A line that is torn is passed over: it counts as not released."""
    try:
        content = _beside(cursor).read_bytes()
    except (FileNotFoundError, PermissionError):  # what one may not read is still told as quarantined
        return []
    return [each for line in content.split(b"\n") if (each := _read(line)) is not None]


def disjoint(released: Iterable[Released]) -> list[Released]:
    """The same lines in ascending order, each once: two that send the same quarantine again both write it down."""
    found: list[Released] = []
    done = 0
    for each in sorted(released, key=lambda one: (one.first_seq, one.last_seq)):
        first = max(each.first_seq, done + 1)
        if first <= each.last_seq:
            found.append(each._replace(first_seq=first))
            done = each.last_seq
    return found


def _read(line: bytes) -> Released | None:
    try:
        exporter, first_seq, last_seq, system = json.loads(line)
        return Released(str(exporter), int(first_seq), int(last_seq), bool(system))
    except (ValueError, TypeError):
        return None


def _beside(cursor: Path) -> Path:
    return cursor.with_suffix(".released")
