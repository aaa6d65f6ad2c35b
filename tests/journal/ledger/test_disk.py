"""A disk that is full, and one whose sync fails."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from otel_audit.journal.ledger.entries import Kind
from otel_audit.journal.ledger.ledger import Ledger
from tests.journal.ledger.telling import Clock, a_ledger, checked, last_checked, segments
from tests.journal.writing import leave_no_room

HEAD = (Kind.HEAD, {"stream": "s", "size": 3, "root": "r", "hash": "h"})
RETAIN = (Kind.RETAIN, {"stream": "s", "detail": "x" * 200})


def tell_heads(ledger: Ledger) -> None:
    for _ in range(20):  # some fit into the block that was begun
        ledger.tell([HEAD])


@pytest.mark.processes
def test_on_a_full_disk_heads_are_left_out_and_what_must_be_said_takes_the_reserve(small_disk: Path) -> None:
    clock = Clock()
    ledger = a_ledger(small_disk, clock=clock)
    ledger.tell([HEAD])
    leave_no_room(small_disk)
    with pytest.raises(OSError, match="No space"):
        tell_heads(ledger)
    before = last_checked(small_disk).kinds

    clock.pass_s(3601)  # no key is changed for want of room, and none is lost
    written = [ledger.tell([HEAD, RETAIN]) for _ in range(5)]

    found = last_checked(small_disk)
    assert found.kinds == [*before, *["retain"] * 5]
    assert [each.left_out for each in written] == [(HEAD,)] * 5
    (small_disk / "ballast").unlink()
    ledger.tell([HEAD])
    found = last_checked(small_disk)
    assert found.kinds.count("begin") == 1
    assert len(found.keys) >= 2
    assert (small_disk / "ledger.reserve").stat().st_blocks * 512 >= 32 << 10


@pytest.mark.processes
def test_a_disk_that_is_full_before_the_ledger_begins_leaves_nothing_that_is_taken_for_one(small_disk: Path) -> None:
    leave_no_room(small_disk)
    with pytest.raises(OSError, match="No space"):
        a_ledger(small_disk).tell([RETAIN])

    (small_disk / "ballast").unlink()
    a_ledger(small_disk).tell([RETAIN])

    assert [each.kinds for each in checked(small_disk)] == [["begin", "retain"]]


class FailingSync:
    """Stands for `os.fdatasync` of a disk that has lost what was written to a segment of the ledger."""

    def __init__(self, patch: pytest.MonkeyPatch, times: int = 1) -> None:
        self.left = times
        self._real = os.fdatasync
        patch.setattr(os, "fdatasync", self)

    def __call__(self, descriptor: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        if self.left and name.endswith(".jsonl") and stat.S_ISREG(os.fstat(descriptor).st_mode):
            self.left -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._real(descriptor)


def test_a_failed_sync_seals_the_segment_for_every_process(tmp_path: Path) -> None:
    ledger = a_ledger(tmp_path)
    ledger.tell([HEAD])
    before = segments(tmp_path)[0].stat().st_size
    with pytest.MonkeyPatch.context() as patch:
        FailingSync(patch)
        with pytest.raises(OSError, match="Input/output"):
            ledger.tell([RETAIN])
    left = segments(tmp_path)[0].read_bytes()

    a_ledger(tmp_path).tell([RETAIN])

    first, second = segments(tmp_path)
    assert first.read_bytes() == left
    found = last_checked(tmp_path)
    damage = found.headers[-1]["damage"]
    assert (damage["segment"], damage["offset"], damage["length"]) == (1, before, len(left) - before)
    assert "fdatasync failed" in damage["reason"]
    assert len({note.size for note in found.notes}) == len(found.notes)
    # A loss of power may take what was not synced. The ledger goes on behind it, and says that something is missing.
    os.truncate(first, before)
    assert last_checked(tmp_path).kinds == ["begin", "head", "retain"]
    a_ledger(tmp_path).tell([HEAD])
    assert last_checked(tmp_path).kinds == ["begin", "head", "retain", "head"]
    assert second.exists()


def test_a_sync_that_fails_in_the_turn_that_changes_the_key_loses_no_key(tmp_path: Path) -> None:
    clock = Clock()
    ledger = a_ledger(tmp_path, clock=clock)
    ledger.tell([HEAD])
    clock.pass_s(3601)
    with pytest.MonkeyPatch.context() as patch:
        FailingSync(patch, times=2)
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output"):
                ledger.tell([RETAIN])

    ledger.tell([HEAD])

    (found,) = checked(tmp_path)
    assert len(found.keys) == 2
    assert found.kinds == ["begin", "head", "retain", "key", "retain", "head"]
