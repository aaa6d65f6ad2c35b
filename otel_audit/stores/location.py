"""Find out which kind of trail a path or a URL holds, and open it as a store.

The first megabyte of a file decides, whatever its name or compression.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from otel_audit.errors import AuditError
from otel_audit.journal.files import journals_near, may_be_journal, segments_in
from otel_audit.journal.ledger.files import LedgerFiles
from otel_audit.stores.archive import ArchiveStore, is_archive_line
from otel_audit.stores.columns import ColumnStore, is_packed, packed_in
from otel_audit.stores.compression import Compression, can_unpack, compression_of
from otel_audit.stores.directory import DirectoryStore
from otel_audit.stores.endpoint import EndpointUrl
from otel_audit.stores.event_log import EventLogStore
from otel_audit.stores.lines import beginning
from otel_audit.stores.loki import LokiStore
from otel_audit.stores.store import Kind, Store
from otel_audit.stores.victorialogs import VictoriaLogsStore

__all__ = ["NothingStored", "files_in", "is_url", "kind_of", "open_store"]

_LOOKED_AT_BYTES: Final = 1 << 20


class NothingStored(AuditError):
    """A path holds no known kind of record."""


def is_url(where: str) -> bool:
    """Return True if this is the URL of a log store rather than a path."""
    return where.startswith(("loki+", "victorialogs+"))


def open_store(where: Path | str) -> Store:
    """Open the trail at a path or a URL such as `loki+https://HOST`. The caller closes it.

    Raises:
        NothingStored: the path holds no trail.
        StoreUnreadable: the URL cannot be understood.
        OSError: the path cannot be read.
    """
    if isinstance(where, str) and is_url(where):
        url = EndpointUrl.parse(where)
        return LokiStore(url) if url.kind == "loki" else VictoriaLogsStore(url)
    path = Path(where)
    match kind_of(path):
        case Kind.JOURNAL:
            return DirectoryStore(path)
        case Kind.ARCHIVE:
            return ArchiveStore(files_in(path), path)
        case Kind.PACKED:
            return ColumnStore(packed_in(path), path)
        case _:
            return EventLogStore(path)


def kind_of(path: Path) -> Kind:
    """Return the kind of trail at a path: journal, archive, packed trail or event log.

    An empty directory is a journal that has not begun, and one with other files of a journal has lost its lines.

    Raises:
        NothingStored: the path holds none of these.
        OSError: the path cannot be read.
    """
    if path.is_dir():
        if segments_in(path) or LedgerFiles(path).segments():
            return Kind.JOURNAL
        if files_in(path):
            return Kind.ARCHIVE
        if packed_in(path):
            return Kind.PACKED
        if may_be_journal(path):
            return Kind.JOURNAL
        near = journals_near(path)
        remedy = "give the directory of a service, or a log of events as a file"
        raise NothingStored(
            f"{path}: expected a directory with a journal or a collector archive, got neither; "
            + (f"did you mean {' or '.join(map(str, near))}?" if near else remedy)
        )
    if path.is_file() and is_packed(path):
        return Kind.PACKED
    kind = _kind_of_file(path) if path.is_file() else None
    if kind is None:
        raise NothingStored(
            f"{path}: expected a collector archive, a JSONL export or a Feast audit log, "
            "got a file without a line of one; give such a file, or a directory with a journal or an archive"
        )
    return kind


def files_in(path: Path) -> Sequence[Path]:
    """Return the files of an archive, oldest first: the path itself, or the archive files in that directory.

    Raises:
        NothingStored: one of them cannot be unpacked.
        OSError: one of them cannot be read.
    """
    if not path.is_dir():
        return [path]
    # Sorted by name, rotated files come before the current one: archive-<time>.jsonl, archive.jsonl.
    return [each for each in sorted(path.iterdir()) if each.is_file() and _kind_of_file(each) is Kind.ARCHIVE]


def _kind_of_file(path: Path) -> Kind | None:
    """Return the kind of trail in a file, or None. More than its first line is examined, since that may be torn.

    Raises:
        NothingStored: the file cannot be unpacked here. Skipping it silently would look as if it had been read.
    """
    compression = compression_of(path)
    if compression is not None and not can_unpack(compression):
        extra = "install otel-audit[zstd], or " if compression in (Compression.ZSTD, Compression.FRAMED_ZSTD) else ""
        raise NothingStored(
            f"{path}: expected a file of lines, got one that is compressed with {compression}; "
            f"{extra}unpack it first, and put the compressed one elsewhere"
        )
    start, damage = beginning(path, _LOOKED_AT_BYTES)
    lines = start.split(b"\n")
    if any(map(is_archive_line, lines)):
        return Kind.ARCHIVE
    if any(map(_is_event, lines)):
        return Kind.EVENT_LOG
    return Kind.ARCHIVE if damage else None  # of an unknown kind; its damage is reported


def _is_event(line: bytes) -> bool:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(event, dict) and isinstance(event.get("event_type"), str)
