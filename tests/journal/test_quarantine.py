"""Refused lines are listed beside the cursor, cost the same however many there are, and count once, released or not."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from otel_audit.journal.counts import Counts
from otel_audit.journal.cursor import Cursor, Position, Progress, read_cursor
from otel_audit.journal.quarantine import (
    Again,
    Held,
    Quarantined,
    QuarantineFile,
    Record,
    Released,
    SetAside,
    release,
)
from tests.journal.writing import leave_no_room

SYSTEM = frozenset({3, 4, 11})  # the journal's own lines in these tests
seqs = st.sets(st.integers(1, 24))
LAST = 24


def ranges_of(lines: Iterable[int]) -> list[tuple[int, int]]:
    """The lines as ranges of neighbours of one kind."""
    found: list[tuple[int, int]] = []
    for seq in sorted(lines):
        if found and found[-1][1] == seq - 1 and (seq in SYSTEM) == (seq - 1 in SYSTEM):
            found[-1] = (found[-1][0], seq)
        else:
            found.append((seq, seq))
    return found


def released(lines: Iterable[int], exporter: str = "otlp") -> list[Released]:
    return [Released(exporter, first, last, first in SYSTEM) for first, last in ranges_of(lines)]


def aside(lines: Iterable[int]) -> list[SetAside]:
    return [SetAside("otlp", first, last, "400") for first, last in ranges_of(lines)]


def refused(before: Progress, *lines: int) -> Progress:
    """With these lines set aside, as whoever ships the stream counts them."""
    for seq in lines:
        before = before.with_quarantined(seq, "400")
    events = sum(seq not in SYSTEM for seq in lines)
    position = Position(1, 100 * max(lines, default=0), max([before.position.seq, *lines]))
    return replace(before, position=position, counts=before.counts + Counts(quarantined=events))


def numbers_of(progress: Progress) -> tuple[int, int, list[int]]:
    """How many events are exported, how many quarantined, and which lines are listed."""
    return progress.counts.exported, progress.counts.quarantined, lines_of(progress.quarantine)


def lines_of(ranges: Iterable[Quarantined]) -> list[int]:
    return [seq for each in ranges for seq in range(each.first_seq, each.last_seq + 1)]


def in_quarantine(path: Path, exporter: str = "otlp") -> list[int]:
    return lines_of(read_cursor(path)[0][exporter].quarantine)


records = st.lists(
    st.one_of(seqs.map(aside), seqs.map(released), st.integers(0, LAST).map(lambda seq: [Again("otlp", seq)])),
    max_size=8,
)


@given(records, st.data())
def test_a_line_counts_once_and_the_last_record_of_it_holds(groups: list[list[Record]], data: st.DataObject) -> None:
    known: dict[int, str] = {}
    for record in (each for group in groups for each in group):
        match record:
            case SetAside(first_seq=first, last_seq=last):
                known.update(dict.fromkeys(range(first, last + 1), "aside"))
            case Released(first_seq=first, last_seq=last):
                known.update({seq: "freed" for seq in range(first, last + 1) if seq in known})
            case Again(after_seq=after):
                known = {seq: state for seq, state in known.items() if seq <= after}
    written: list[Record] = [each for group in groups for each in group]
    cut = data.draw(st.integers(0, len(written)))
    held = Held()

    held.apply(written[:cut])
    held.apply(written[cut:])

    assert lines_of(held.aside) == sorted(seq for seq, state in known.items() if state == "aside")
    freed = [seq for seq, state in known.items() if state == "freed"]
    assert held.freed_events == sum(seq not in SYSTEM for seq in freed)
    said_anew = Held()
    said_anew.apply([*written, *held.records("otlp")])
    assert lines_of(said_anew.aside) == lines_of(held.aside)
    assert said_anew.freed_events == held.freed_events


def test_the_hundred_thousandth_refused_line_costs_no_more_than_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "stream.cursor"
    cursor = Cursor(path)
    bytes_moved = 0
    write, pwrite, pread = os.write, os.pwrite, os.pread

    def counted(done: int) -> int:
        nonlocal bytes_moved
        bytes_moved += done
        return done

    def counted_pread(descriptor: int, length: int, offset: int) -> bytes:
        data = pread(descriptor, length, offset)
        counted(len(data))
        return data

    monkeypatch.setattr(os, "write", lambda descriptor, data: counted(write(descriptor, data)))
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: counted(pwrite(descriptor, data, offset)))
    monkeypatch.setattr(os, "pread", counted_pread)
    progress, cost = Progress(position=Position(1, 0, 1_000_000)), []
    for number in range(3000):
        before = bytes_moved
        seq = 1_000_000 + 10 * number
        at = replace(progress, position=Position(1, seq, seq), counts=Counts(quarantined=100_000 + number))
        cursor.advance("otlp", at.with_quarantined(seq, "400 Bad Request"))
        cost.append(bytes_moved - before)

    assert max(cost) - min(cost) <= 2  # the digits of the generation
    assert path.stat().st_size == 2 * 8192
    assert len(read_cursor(path)[0]["otlp"].quarantine) == 3000


def test_who_looks_again_reads_only_what_was_appended(tmp_path: Path) -> None:
    file = QuarantineFile(tmp_path / "stream.cursor")
    file.append(aside({5, 6}))
    first = file.held()
    path = tmp_path / "stream.quarantine"
    content = path.read_bytes()
    path.write_bytes(b"?" * (len(content) - 1) + b"\n")  # the same file

    file.append(aside({9}))

    assert lines_of(file.held()["otlp"].aside) == [5, 6, 9]
    assert lines_of(first["otlp"].aside) == [5, 6]
    path.unlink()
    file.append(aside({12}))
    assert lines_of(file.held()["otlp"].aside) == [12]


def test_whoever_reads_a_cursor_sees_what_was_released_and_its_owner_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "stream.cursor"
    cursor = Cursor(path)
    cursor.advance("otlp", refused(Progress(counts=Counts(exported=100)), 3, 5, 6, 9))
    cursor.advance("jsonl", refused(Progress(), 5))

    release(path, released({3, 5, 6}), mode=0o640)

    seen = read_cursor(path)[0]
    assert numbers_of(seen["otlp"]) == (102, 1, [9])
    assert numbers_of(seen["jsonl"]) == (0, 1, [5])
    assert {name: cursor.seen(name) for name in seen} == seen
    assert cursor.progress("otlp").counts.exported == 100
    cursor.advance("otlp", refused(cursor.progress("otlp"), 12))
    assert in_quarantine(path) == [9, 12]
    cursor.close()
    assert Cursor(path).seen("otlp") == read_cursor(path)[0]["otlp"]


def test_a_torn_record_costs_only_itself(tmp_path: Path) -> None:
    file = QuarantineFile(tmp_path / "stream.cursor")
    file.append(aside({5}))
    with (tmp_path / "stream.quarantine").open("ab") as torn:
        torn.write(b'["aside","otlp",6')
    file.append(aside({7}))
    with (tmp_path / "stream.quarantine").open("ab") as strange:
        strange.write(b'["of a later version","otlp",8,8]\n["aside","otlp",9,1,"400"]\n["aside","otlp",11')

    assert lines_of(QuarantineFile(tmp_path / "stream.cursor").held()["otlp"].aside) == [5, 7]


@pytest.mark.parametrize("accepted", [True, False], ids=["accepted then", "refused again"])
def test_a_death_between_the_quarantine_and_the_cursor_counts_the_line_once(tmp_path: Path, accepted: bool) -> None:
    path = tmp_path / "stream.cursor"
    cursor = Cursor(path)
    cursor.advance("otlp", refused(Progress(counts=Counts(exported=4)), 5))
    cursor.close()
    QuarantineFile(path).append(aside({6}))  # and no slot

    assert in_quarantine(path) == [5]
    again = Cursor(path)
    assert lines_of(again.seen("otlp").quarantine) == [5]
    kept = again.progress("otlp")
    after = kept.passed(Position(1, 600, 6), Counts(exported=1)) if accepted else refused(kept, 6)
    again.advance("otlp", after)

    assert in_quarantine(path) == ([5] if accepted else [5, 6])
    assert read_cursor(path)[0]["otlp"].counts.quarantined == (1 if accepted else 2)
    assert again.seen("otlp") == read_cursor(path)[0]["otlp"]


@pytest.mark.parametrize("how", ["restart", "lost", "lost and gone on"])
def test_a_stream_that_is_sent_again_has_nothing_in_quarantine(tmp_path: Path, how: str) -> None:
    path = tmp_path / "stream.cursor"
    cursor = Cursor(path)
    cursor.advance("otlp", refused(Progress(counts=Counts(exported=4)), 5, 6, 9))
    release(path, released({6}), mode=0o600)

    if how == "restart":
        cursor.restart("otlp")
    else:
        cursor.close()
        path.unlink()
        cursor = Cursor(path)

    assert cursor.progress("otlp") == Progress()
    assert cursor.seen("otlp") == Progress()
    cursor.advance("otlp", refused(Progress(counts=Counts(exported=5)), 6))
    seen = read_cursor(path)[0]["otlp"]
    assert numbers_of(seen) == (5, 1, [6])
    assert cursor.seen("otlp") == seen


@pytest.mark.processes
def test_without_room_the_stream_is_blocked_and_goes_on_when_there_is_some(small_disk: Path) -> None:
    path = small_disk / "stream.cursor"
    cursor = Cursor(path)
    cursor.advance("otlp", Progress(Position(1, 200, 2), Counts(exported=2)))
    leave_no_room(small_disk)

    for _ in range(2):
        with pytest.raises(OSError, match="no room for the quarantine"):
            cursor.advance("otlp", refused(cursor.progress("otlp"), 3))

    kept = read_cursor(path)[0]["otlp"]
    assert kept == cursor.progress("otlp")
    assert (kept.position.seq, kept.counts.quarantined, kept.blocked) == (2, 0, "no room for the quarantine")
    (small_disk / "ballast").unlink()
    cursor.advance("otlp", refused(replace(kept, blocked=""), 3))
    assert in_quarantine(path) == [3]


# The release before kept the quarantine in the slot, and what was released in a file of its own.


def a_slot_of_before(ranges: list[tuple[int, int, str]], *, slot_bytes: int = 8192, seq: int = 20) -> bytes:
    progress = {
        "position": {"segment": 1, "offset": 2000, "seq": seq},
        "exported": 14,
        "system": 1,
        "quarantined": 5,
        "damaged": 0,
        "dropped": 0,
        "quarantine": [{"first_seq": first, "last_seq": last, "reason": why} for first, last, why in ranges],
        "blocked": "",
    }
    payload = json.dumps({"ended": False, "exporters": {"otlp": progress}}, separators=(",", ":")).encode()
    head = struct.pack("<8sQII", b"otaudcur", 7, len(payload), zlib.crc32(payload, 7))
    return (b"\0" * slot_bytes + (head + payload).ljust(slot_bytes, b"\0")).ljust(2 * slot_bytes, b"\0")


def a_cursor_of_before(path: Path, *, slot_bytes: int = 8192) -> None:
    path.write_bytes(a_slot_of_before([(5, 7, "400"), (9, 10, "too old")], slot_bytes=slot_bytes))
    path.with_suffix(".released").write_bytes(b'["otlp",6,6,false]\n["otlp",10,')


@pytest.mark.parametrize("slot_bytes", [8192, 32768])
def test_a_cursor_of_the_release_before_is_continued(tmp_path: Path, slot_bytes: int) -> None:
    path = tmp_path / "stream.cursor"
    a_cursor_of_before(path, slot_bytes=slot_bytes)
    before = read_cursor(path)[0]["otlp"]
    assert (before.position.seq, before.counts.exported, before.counts.quarantined) == (20, 15, 4)
    assert before.quarantine == ((5, 5, "400"), (7, 7, "400"), (9, 10, "too old"))

    release(path, released({7}), mode=0o600)  # by a replay of this version, before anybody ships the stream
    cursor = Cursor(path)
    assert cursor.note is None
    assert cursor.progress("otlp").position.seq == 20
    assert lines_of(cursor.seen("otlp").quarantine) == [5, 9, 10]
    cursor.advance("otlp", refused(cursor.progress("otlp"), 21))

    for seen in (read_cursor(path)[0]["otlp"], cursor.seen("otlp"), Cursor(path).seen("otlp")):
        assert numbers_of(seen) == (16, 4, [5, 9, 10, 21])
    assert path.stat().st_size == 2 * slot_bytes
    assert not path.with_suffix(".released").exists()


def test_a_death_while_it_is_taken_over_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "stream.cursor"
    a_cursor_of_before(path)
    old = path.read_bytes()
    Cursor(path).end()
    path.write_bytes(old)  # the file was appended to, and the slot not written

    assert in_quarantine(path) == [5, 7, 9, 10]
    Cursor(path).end()

    seen = read_cursor(path)[0]["otlp"]
    assert numbers_of(seen) == (15, 4, [5, 7, 9, 10])


@pytest.mark.processes
def test_a_full_disk_keeps_the_quarantine_of_the_release_before(small_disk: Path) -> None:
    path = small_disk / "stream.cursor"
    a_cursor_of_before(path)
    before = read_cursor(path)[0]["otlp"]
    leave_no_room(small_disk)
    cursor = Cursor(path)

    further = cursor.progress("otlp").passed(Position(1, 2100, 21), Counts())

    with pytest.raises(OSError, match="no room for the quarantine"):
        cursor.advance("otlp", further)

    assert read_cursor(path)[0]["otlp"] == before == cursor.seen("otlp")


def test_the_release_before_goes_on_where_this_one_came_to_and_keeps_the_segments(tmp_path: Path) -> None:
    path = tmp_path / "stream.cursor"
    cursor = Cursor(path)
    cursor.advance("otlp", refused(Progress(counts=Counts(exported=4)), 5, 9))
    cursor.close()
    slot = path.read_bytes()[8192:]
    _, _, length, _ = struct.unpack_from("<8sQII", slot)
    stored = json.loads(slot[24 : 24 + length])["exporters"]["otlp"]
    assert set(stored) == set(json.loads(a_slot_of_before([])[8192 + 24 :].rstrip(b"\0"))["exporters"]["otlp"])
    assert stored["position"]["seq"] == 9
    ((coarse,)) = stored["quarantine"]
    assert (coarse["first_seq"], coarse["last_seq"]) == (5, 9)

    # It sets another line aside, as it does, and this release takes the stream again.
    path.write_bytes(a_slot_of_before([(5, 9, coarse["reason"]), (12, 12, "413")]))

    assert in_quarantine(path) == [5, 9, 12]
    again = Cursor(path)
    assert lines_of(again.seen("otlp").quarantine) == [5, 9, 12]
    again.end()
    assert in_quarantine(path) == [5, 9, 12]
