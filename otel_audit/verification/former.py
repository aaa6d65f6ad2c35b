"""What the unsigned `ledger.jsonl` of earlier versions says was removed: it explains a hole, and proves nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from otel_audit.journal.ledger.former import RETAIN, entries
from otel_audit.verification.anchors import Bridge, join

__all__ = ["removed_before"]


def removed_before(directory: Path) -> Mapping[str, Sequence[Bridge]]:
    """Return by stream which lines retention removed before there was a signed ledger.

    Raises:
        OSError: it cannot be read.
    """
    found: dict[str, list[Bridge]] = {}
    for entry in entries(directory):
        told = entry.content
        stream_id, first, last = told.get("stream_id"), told.get("first_seq"), told.get("last_seq")
        if entry.kind != RETAIN or type(stream_id) is not str or type(first) is not int or type(last) is not int:
            continue
        digest, before = _hash(told.get("last_hash")), _hash(told.get("prev_hash"))
        join(found.setdefault(stream_id, []), Bridge(first, last, before, digest))
    return found


def _hash(value: object) -> str | None:
    return value if type(value) is str else None
