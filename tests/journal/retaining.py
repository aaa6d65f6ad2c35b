"""How the tests of retention make streams of several segments, deliver them, and let time pass."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from otel_audit.journal.ages import Moment, RetentionLimits
from otel_audit.journal.files import StreamFiles, segments_in
from otel_audit.journal.journal import Journal
from otel_audit.journal.removal import finish_removal
from otel_audit.journal.retention import Retention
from tests.cli.journals import Inbox, a_journal, deliver, record

__all__ = [
    "DAY_NS",
    "Clocks",
    "a_retention",
    "a_stream",
    "delivered",
    "kept",
    "kept_seqs",
    "live_stream",
    "log",
]

DAY_NS = 86_400 * 10**9
_SEGMENT_BYTES = 4096


class Clocks:
    """The clocks of a machine: what passes, what somebody sets, and a reboot."""

    def __init__(self) -> None:
        self.wall_ns = 1_790_000_000 * 10**9
        self.boottime_ns = 5 * DAY_NS
        self.boots = 1

    def __call__(self) -> Moment:
        return Moment(self.wall_ns, self.boottime_ns, f"boot-{self.boots}")

    def pass_days(self, days: float) -> None:
        """Time passes, on every clock."""
        self.wall_ns += int(days * DAY_NS)
        self.boottime_ns += int(days * DAY_NS)

    def jump_days(self, days: float) -> None:
        """The wall clock is set."""
        self.wall_ns += int(days * DAY_NS)

    def reboot(self, *, off_days: float = 0.0) -> None:
        """The machine was off for so long, or its wall clock says so."""
        self.wall_ns += int(off_days * DAY_NS)
        self.boottime_ns = 30 * 10**9
        self.boots += 1


def a_retention(directory: Path, clocks: Clocks, *, days: int = 30, max_bytes: int = 0, **options: Any) -> Retention:
    """Retention of every stream, by these clocks."""
    limits = RetentionLimits(days, max_bytes)
    return Retention(directory, limits, **{"wanted": lambda header: True, "clock": clocks, **options})


def log(journal: Journal, count: int) -> StreamFiles:
    """Append so many events of some 400 bytes."""
    return record(journal, *("x" * 100 for _ in range(count)))


def live_stream(
    directory: Path, *, segments: int = 3, export: Sequence[str] = ("otlp",)
) -> tuple[Journal, StreamFiles]:
    """A stream that is written, with at least so many segments, the last of which has lines."""
    journal = a_journal(directory, export=export, segment_bytes=_SEGMENT_BYTES)
    files = log(journal, 1)
    while len(files.segments()) < segments:
        log(journal, 1)
    log(journal, 1)
    return journal, files


def a_stream(directory: Path, *, segments: int = 3, export: Sequence[str] = ("otlp",)) -> StreamFiles:
    """The same, ended."""
    journal, files = live_stream(directory, segments=segments, export=export)
    journal.close()
    return files


def delivered(directory: Path, *, segments: int = 3) -> StreamFiles:
    """An ended stream that its exporter has."""
    files = a_stream(directory, segments=segments)
    deliver(files, Inbox("otlp"))
    return files


def kept(directory: Path) -> dict[str, list[int]]:
    """By stream, which segments are there, once what a crash left was finished."""
    finish_removal(directory)
    return {stream_id: list(numbers) for stream_id, numbers in segments_in(directory).items()}


def kept_seqs(files: StreamFiles) -> set[int]:
    """The numbers of the lines that are in the files."""
    return {
        json.loads(line)["seq"]
        for number in files.segments()
        for line in files.segment(number).read_bytes().split(b"\n")[:-1]
    }
