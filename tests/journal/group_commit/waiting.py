"""How the tests of group commit hold a sync, and see who waits for it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from otel_audit.journal.journal import Receipt
from tests.journal.slow_disk import SlowDisk
from tests.servers.polling import poll

__all__ = ["Start", "hold", "wait_for_written", "written"]

Start = Callable[..., Future[Receipt]]


def written(directory: Path) -> int:
    """How many events of the application are in the files, durable or not."""
    return sum(path.read_bytes().count(b'{"event_type":') for path in directory.glob("*.jsonl"))


def wait_for_written(directory: Path, count: int) -> None:
    """So many are in the files, and no more."""
    poll(lambda: written(directory), until=lambda found: found == count, what=f"{count} events in the file")


def hold(disk: SlowDisk) -> None:
    """The next sync of a segment reaches the gate and stays there."""
    while disk.entered.acquire(blocking=False):
        pass
    disk.gate.clear()
