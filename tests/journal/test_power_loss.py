"""What a loss of power would leave: of each file, what the disk was known to have when its last sync began."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from otel_audit.errors import AuditUnavailable
from otel_audit.journal.journal import Journal
from otel_audit.journal.stream import Limits
from otel_audit.settings import Durability
from tests.journal.writing import a_journal, append

THREADS = 12
EVENTS = 150


@dataclass
class ForgetfulDisk:
    """Stands for `os.fdatasync` of a disk that fails now and then, and then has lost what it was given since.

    `kept` says by inode how many bytes of a file are on the disk for certain. After a failure that never grows, though
    later syncs of the file say success, as they do on Linux.
    """

    dice: random.Random
    fails_one_in: int
    kept: dict[int, int] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)
    syncs: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fdatasync(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        with self._lock:
            self.syncs += 1
            pause_s = self.dice.uniform(0, 0.002)
            fails = found.st_size > 4096 and self.dice.randrange(self.fails_one_in) == 0
        time.sleep(pause_s)
        with self._lock:
            if found.st_ino in self.failed:
                return
            if fails:
                self.failed.add(found.st_ino)
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            self.kept[found.st_ino] = max(self.kept.get(found.st_ino, 0), found.st_size)


def lines_after_power_loss(directory: Path, disk: ForgetfulDisk) -> dict[str, bytes]:
    """The whole lines that are left, by the id of their event."""
    left: dict[str, bytes] = {}
    for path in sorted(directory.glob("*.jsonl")):
        kept = path.read_bytes()[: disk.kept.get(path.stat().st_ino, 0)]
        left |= {json.loads(line)["event_id"]: line for line in kept.split(b"\n")[:-1]}
    return left


def log_from_threads(journal: Journal) -> tuple[set[str], set[str]]:
    """The ids of the events that were acknowledged, and of those that were not."""
    acknowledged: set[str] = set()
    refused: set[str] = set()

    def log(thread: int) -> None:
        for number in range(EVENTS):
            name = f"{thread}-{number}"
            try:
                append(journal, name, detail="x" * 100)
            except AuditUnavailable:
                refused.add(name)
            else:
                acknowledged.add(name)

    threads = [threading.Thread(target=log, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return acknowledged, refused


@pytest.mark.parametrize("seed", range(3))
def test_no_acknowledged_event_is_lost_with_the_power_even_where_syncs_fail(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = ForgetfulDisk(random.Random(seed), fails_one_in=15)
    monkeypatch.setattr(os, "fdatasync", disk.fdatasync)
    journal = a_journal(tmp_path, durability=Durability.FSYNC, limits=Limits(segment_bytes=40_000))

    acknowledged, refused = log_from_threads(journal)

    left = lines_after_power_loss(tmp_path, disk)  # before the end of the stream, which syncs too
    assert disk.failed, "no sync failed, so nothing was shown"
    assert refused
    assert len(acknowledged) > THREADS * EVENTS // 2
    assert acknowledged - left.keys() == set()
    assert disk.syncs < len(acknowledged), "the callers shared no sync"
    journal.close()


def test_what_is_left_after_a_loss_of_power_is_a_chain_without_a_hole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = ForgetfulDisk(random.Random(1), fails_one_in=10**9)
    monkeypatch.setattr(os, "fdatasync", disk.fdatasync)
    journal = a_journal(tmp_path, durability=Durability.FSYNC, limits=Limits(segment_bytes=20_000))
    writer = threading.Thread(target=log_from_threads, args=(journal,))
    writer.start()
    looks = 0

    while writer.is_alive():
        kept = dict(disk.kept)
        hashes = ""
        for path in sorted(tmp_path.glob("*.jsonl")):
            content = path.read_bytes()[: kept.get(path.stat().st_ino, 0)]
            for line in content.split(b"\n")[:-1]:
                assert json.loads(line).get("prev_hash", "") == hashes, f"{path.name} goes on after lines that are gone"
                hashes = hashlib.sha256(line).hexdigest()
        looks += 1

    writer.join()
    assert looks > 5
    assert len(list(tmp_path.glob("*.jsonl"))) > 5
    journal.close()
