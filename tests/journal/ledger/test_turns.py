"""Processes take turns at the ledger: each writes its entries and one signed note, and every size is signed once."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from otel_audit.errors import LedgerBusy
from otel_audit.journal.ledger.entries import Kind
from otel_audit.journal.locks import FileLock
from tests.journal.ledger.telling import Clock, a_ledger, checked, last_checked, segments
from tests.servers.polling import PATIENCE_S

HEAD = (Kind.HEAD, {"stream": "s", "size": 3, "root": "r", "hash": "h"})


def test_the_first_turn_begins_the_ledger_and_every_turn_ends_with_a_signed_note(tmp_path: Path) -> None:
    ledger = a_ledger(tmp_path)

    first = ledger.tell([HEAD])
    second = ledger.tell([HEAD, HEAD])

    (found,) = checked(tmp_path)
    assert found.kinds == ["begin", "head", "head", "head"]
    assert [note.size for note in found.notes] == [2, 4, 7]
    assert found.notes[1:] == [first.checkpoint, second.checkpoint]
    assert first.checkpoint.origin == f"otel-audit/shop/{found.directory_id}"
    assert found.entries[0]["former"] is None


def test_another_process_and_another_object_go_on_with_the_same_ledger(tmp_path: Path) -> None:
    for _ in range(3):
        a_ledger(tmp_path).tell([HEAD])

    (found,) = checked(tmp_path)
    assert found.kinds == ["begin", *["head"] * 3]


def test_without_an_entry_nothing_is_written(tmp_path: Path) -> None:
    ledger = a_ledger(tmp_path)
    ledger.tell([HEAD])
    before = segments(tmp_path)[0].read_bytes()

    ledger.tell([])

    assert segments(tmp_path)[0].read_bytes() == before


def test_a_turn_may_be_taken_without_writing_and_written_in_twice(tmp_path: Path) -> None:
    ledger = a_ledger(tmp_path)
    with ledger.turn():
        pass
    assert segments(tmp_path) == []

    with ledger.turn() as turn:
        turn.write([HEAD])
        turn.write([HEAD])

    assert [note.size for note in last_checked(tmp_path).notes] == [2, 4, 6]


def test_a_turn_is_not_had_while_another_process_has_it_and_the_lock_file_stays(tmp_path: Path) -> None:
    ledger = a_ledger(tmp_path)
    ledger.tell([HEAD])
    before = segments(tmp_path)[0].read_bytes()

    lock = FileLock.acquire(tmp_path / "ledger.lock")
    assert lock is not None
    with lock, pytest.raises(LedgerBusy, match="expected a turn"), ledger.turn(wait_s=0.05):
        pass

    assert (tmp_path / "ledger.lock").exists()
    assert segments(tmp_path)[0].read_bytes() == before
    ledger.tell([HEAD])


def test_a_turn_whose_lock_file_was_removed_writes_nothing(tmp_path: Path) -> None:
    ledger = a_ledger(tmp_path)
    ledger.tell([HEAD])

    with ledger.turn() as turn:
        (tmp_path / "ledger.lock").unlink()
        other = a_ledger(tmp_path).tell([HEAD])
        with pytest.raises(LedgerBusy, match="expected the lock file"):
            turn.write([HEAD])

    (found,) = checked(tmp_path)
    assert found.notes[-1] == other.checkpoint
    assert len({note.size for note in found.notes}) == len(found.notes)


def test_what_an_unfinished_turn_left_is_cut_off_at_every_byte(tmp_path: Path) -> None:
    ledger = a_ledger(tmp_path)
    ledger.tell([HEAD])
    path = segments(tmp_path)[0]
    whole = path.read_bytes()
    ledger.tell([HEAD, (Kind.RETAIN, {"segment": 1})])
    turn = path.read_bytes()[len(whole) :]
    edge = tmp_path / "ledger.edge"

    for length in range(0, len(turn), 7):
        path.write_bytes(whole + turn[:length])
        edge.unlink(missing_ok=True)  # else it says that the note was whole once
        a_ledger(tmp_path).tell([HEAD])
        (found,) = checked(tmp_path)
        assert found.kinds == ["begin", "head", "head"]


def test_segments_rotate_and_the_next_one_says_the_edge_of_the_tree(tmp_path: Path) -> None:
    ledger = a_ledger(tmp_path, segment_bytes=4096)
    for _ in range(20):
        ledger.tell([HEAD])

    (found,) = checked(tmp_path)
    assert len(segments(tmp_path)) > 3
    assert found.kinds == ["begin", *["head"] * 20]
    for path in segments(tmp_path)[:-2]:  # whoever prunes needs no earlier line to go on
        path.unlink()
    (tmp_path / "ledger.edge").unlink()
    a_ledger(tmp_path, segment_bytes=4096).tell([HEAD])
    assert len({os.path.basename(path) for path in segments(tmp_path)}) >= 2


def test_a_clock_that_was_set_back_changes_neither_order_nor_key(tmp_path: Path) -> None:
    clock = Clock()
    ledger = a_ledger(tmp_path, clock=clock)
    ledger.tell([HEAD])
    clock.pass_s(-30)

    ledger.tell([HEAD])

    found = last_checked(tmp_path)
    assert found.kinds == ["begin", "head", "head"]
    assert found.entries[-1]["time_ns"] < found.entries[-2]["time_ns"]


def test_an_urgent_entry_waits_for_few_of_the_turns_that_could_come_later(tmp_path: Path) -> None:
    ends = threading.Event()
    taken: list[int] = []

    def take_turns() -> None:
        ledger = a_ledger(tmp_path)
        while not ends.is_set():
            with ledger.turn(wait_s=PATIENCE_S):
                taken.append(threading.get_ident())
                time.sleep(0.01)
            time.sleep(0.005)

    crowd = [threading.Thread(target=take_turns) for _ in range(12)]
    for each in crowd:
        each.start()
    waited: list[int] = []
    for _ in range(12):
        before = len(taken)
        with a_ledger(tmp_path).turn(wait_s=PATIENCE_S, is_urgent=True):
            waited.append(len(taken) - before)
        time.sleep(random.uniform(0, 0.05))
    ends.set()
    for each in crowd:
        each.join(PATIENCE_S)

    assert sum(waited) < 5 * len(waited), waited  # one in the mean, and in any order twelve


@pytest.mark.processes
def test_whoever_waits_for_a_turn_has_imported_what_signs_it(tmp_path: Path) -> None:
    """All the others would wait for the import, which takes three times as long as the rest of a turn."""
    program = """
import pathlib, sys
from otel_audit.journal.ledger.entries import Kind
from tests.journal.ledger.telling import a_ledger
from tests.journal.moments import before_lock

def look(_: int) -> None:
    print("cryptography.hazmat.primitives.asymmetric.ed25519" in sys.modules)

directory = pathlib.Path(sys.argv[1])
sys.modules.pop("cryptography.hazmat.primitives.asymmetric.ed25519", None)  # the parts of the tests may need it
with before_lock(directory / "ledger.lock", look):
    a_ledger(directory).tell([(Kind.HEAD, {"stream": "s", "size": 3, "root": "r", "hash": "h"})])
"""
    said = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )

    assert said.stdout.split()[0] == "True"
