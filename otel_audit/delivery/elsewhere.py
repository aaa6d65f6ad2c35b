"""Streams of this process that another one delivers: `otel-audit ship`, or the next owner of the directory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from otel_audit.delivery.processor import FlushReport
from otel_audit.journal.cursor import Progress, read_cursor
from otel_audit.journal.files import StreamFiles
from otel_audit.notices import Notices
from otel_audit.settings import ExporterName

__all__ = ["Elsewhere", "blocked_elsewhere"]

_POLL_S = 0.05


class Elsewhere:
    """How far another process has come, by the cursors that it writes. Any thread."""

    def __init__(self, directory: Path, notices: Notices) -> None:
        self._directory = directory
        self._notices = notices
        self._last_seen: dict[str, Mapping[str, Progress]] = {}

    def progress(self, stream_id: str) -> Mapping[str, Progress]:
        """By exporter, how far the stream was delivered: as last seen, if retention has removed it since."""
        seen = self._read(stream_id) or self._last_seen.get(stream_id, {})
        self._last_seen[stream_id] = seen
        return seen

    def flush(self, seqs: Mapping[str, int], deadline: float) -> FlushReport:
        """Wait until each stream is delivered up to the given line, or until the deadline."""
        while True:
            seen = {stream_id: self.progress(stream_id) for stream_id in seqs}
            pending = sum(
                max(0, seq - min((each.position.seq for each in seen[stream_id].values()), default=0))
                for stream_id, seq in seqs.items()
            )
            left_s = deadline - time.monotonic()
            if not pending or left_s <= 0:
                return FlushReport(not pending, pending, blocked_elsewhere(seen.values()))
            time.sleep(min(_POLL_S, left_s))

    def _read(self, stream_id: str) -> Mapping[str, Progress]:
        cursor = StreamFiles(self._directory, stream_id).cursor
        try:
            return read_cursor(cursor)[0]
        except OSError as error:
            self._notices.say(
                "cursor",
                f"{cursor}: expected a file that this process (uid {os.geteuid()}) can read, got {error.strerror}; "
                "what it says is delivered counts as pending: give otel-audit ship this service's "
                "OTEL_AUDIT_FILE_MODE and group",
            )
            return {}


def blocked_elsewhere(streams: Iterable[Mapping[str, Progress]]) -> dict[str, str]:
    """Why nothing moves there, as the cursors say; empty when all is well."""
    reasons = {each.blocked: None for by_exporter in streams for each in by_exporter.values() if each.blocked}
    return {str(ExporterName.SHIP): "; ".join(reasons)} if reasons else {}
