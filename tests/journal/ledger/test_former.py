"""The ledger is chained, durable before what it tells is done, and can be written on a full disk."""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_audit.journal.ledger.former import RETAIN, Entry, Ledger, entries, has_room, latest
from tests.journal.writing import leave_no_room


def tell(directory: Path, **content: object) -> Entry:
    ledger = Ledger.locked(directory)
    assert ledger is not None
    with ledger:
        return ledger.append(RETAIN, content, 7)


def stored(directory: Path) -> list[bytes]:
    return (directory / "ledger.jsonl").read_bytes().split(b"\n")[:-1]


def test_each_entry_holds_the_hash_of_the_line_before_it(tmp_path: Path) -> None:
    for number in range(4):
        tell(tmp_path, segment=number)

    lines = stored(tmp_path)
    told = [json.loads(line) for line in lines]
    assert [each["prev_hash"] for each in told] == [None, *(sha256(line).hexdigest() for line in lines[:-1])]
    assert [each["number"] for each in told] == [1, 2, 3, 4]
    assert told[2] == {
        "format": 1,
        "kind": "retain",
        "retain": {"segment": 2},
        "time_ns": 7,
        "number": 3,
        "prev_hash": sha256(lines[1]).hexdigest(),
    }
    assert [entry.content["segment"] for entry in entries(tmp_path)] == [0, 1, 2, 3]


def test_a_directory_without_a_ledger_has_no_entries(tmp_path: Path) -> None:
    assert list(entries(tmp_path)) == []
    assert latest(tmp_path, RETAIN) is None
    assert list(tmp_path.iterdir()) == []


def test_the_last_entry_of_a_kind_is_found_behind_those_of_others(tmp_path: Path) -> None:
    tell(tmp_path, segment=1)
    wanted = tell(tmp_path, segment=2)
    with (tmp_path / "ledger.jsonl").open("ab") as ledger:
        ledger.write(Entry("adopt", {"stream_id": "s"}, 8, 3, None).line() + b"\nno entry at all\n")

    assert latest(tmp_path, RETAIN) == wanted
    after = tell(tmp_path, segment=3)
    assert (after.number, after.prev_hash) == (5, sha256(b"no entry at all").hexdigest())


@settings(deadline=None)  # files, on a busy machine
@given(data=st.data())
def test_an_entry_that_was_torn_at_any_byte_is_cut_off_by_the_next_one(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("ledger")
    first = tell(directory, segment=1)
    whole = (directory / "ledger.jsonl").stat().st_size
    tell(directory, segment=2)
    size = (directory / "ledger.jsonl").stat().st_size
    os.truncate(directory / "ledger.jsonl", data.draw(st.integers(whole, size - 1)))

    assert list(entries(directory)) == [first]
    tell(directory, segment=3)

    assert [entry.content["segment"] for entry in entries(directory)] == [1, 3]
    assert [entry.number for entry in entries(directory)] == [1, 2]
    assert json.loads(stored(directory)[1])["prev_hash"] == sha256(stored(directory)[0]).hexdigest()


def test_only_one_has_the_right_to_write_and_its_lock_file_goes_with_it(tmp_path: Path) -> None:
    ledger = Ledger.locked(tmp_path)
    assert ledger is not None
    assert Ledger.locked(tmp_path, wait_s=0.05) is None

    ledger.release()

    assert not (tmp_path / "ledger.lock").exists()
    again = Ledger.locked(tmp_path)
    assert again is not None
    again.release()


@pytest.mark.processes
def test_an_entry_is_written_on_a_disk_that_is_full_to_its_last_block(small_disk: Path) -> None:
    tell(small_disk, segment=1)
    ledger = Ledger.locked(small_disk)
    assert ledger is not None
    with ledger:
        ledger.keep_room()
        assert has_room(small_disk)
        leave_no_room(small_disk)
        for number in range(30):  # 6 KiB, more than the block that it has begun
            ledger.append(RETAIN, {"segment": number, "detail": "x" * 100}, 7)
        ledger.keep_room()

    assert not has_room(small_disk)
    assert len(list(entries(small_disk))) == 31
    (small_disk / "ballast").unlink()
    with Ledger.locked(small_disk) or pytest.fail("the lock is taken") as ledger:
        ledger.keep_room()
    assert has_room(small_disk)


@pytest.mark.processes
def test_a_disk_without_room_or_reserve_keeps_the_ledger_as_it_was(small_disk: Path) -> None:
    before = tell(small_disk, segment=1)
    leave_no_room(small_disk)

    with pytest.raises(OSError, match="No space"):
        tell(small_disk, detail="x" * 10_000)

    assert latest(small_disk, RETAIN) == before
    assert (small_disk / "ledger.jsonl").read_bytes().endswith(b"\n")


def test_an_entry_that_cannot_be_synced_is_not_in_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tell(tmp_path, segment=1)

    def fsync(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="Input/output"):
            tell(tmp_path, segment=2)

    assert list(entries(tmp_path)) == [before]
