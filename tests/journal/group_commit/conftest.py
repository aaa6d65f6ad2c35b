"""A journal that syncs, on a disk that can be held."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from otel_audit.journal.journal import Journal, Receipt
from otel_audit.settings import Durability
from tests.journal.slow_disk import SlowDisk
from tests.journal.writing import a_journal, append


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    return SlowDisk(monkeypatch)


@pytest.fixture
def journal(tmp_path: Path, disk: SlowDisk) -> Iterator[Journal]:
    """A journal whose first event is durable."""
    journal = a_journal(tmp_path, durability=Durability.FSYNC)
    append(journal, "first")
    yield journal
    disk.gate.set()
    journal.close()


@pytest.fixture
def in_threads() -> Iterator[Callable[..., Future[Receipt]]]:
    with ThreadPoolExecutor(64) as pool:

        def start(journal: Journal, name: object) -> Future[Receipt]:
            return pool.submit(append, journal, name)

        yield start
