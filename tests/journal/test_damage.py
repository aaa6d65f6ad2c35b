"""Damage costs the lines that it hit, and no other one; who touches an open file is noticed, and loses nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_audit.delivery.destination import Destination
from otel_audit.delivery.stream_export import Idle, StreamExport
from otel_audit.errors import JournalFull
from otel_audit.journal.cursor import Position
from otel_audit.journal.files import StreamFiles, streams_in
from otel_audit.journal.journal import Journal
from otel_audit.journal.reader import StreamReader
from otel_audit.journal.shipment import take
from otel_audit.journal.stream import Limits
from tests.chain_check import application_events, read_streams
from tests.journal.keeping import Keeping
from tests.journal.writing import a_journal, append, assert_chained, ids_of, lines_of, the_stream
from tests.servers.polling import poll


def a_written_segment(lines: int) -> tuple[str, bytes]:
    """The id of a stream, and what is in its only segment."""
    with TemporaryDirectory() as directory:
        journal = a_journal(Path(directory))
        for name in range(lines):
            append(journal, name)
        journal.close()
        files = the_stream(Path(directory))
        return files.stream_id, files.segment(1).read_bytes()


STREAM_ID, SEGMENT = a_written_segment(12)
LINES = SEGMENT.split(b"\n")[:-1]
STARTS = [sum(len(line) + 1 for line in LINES[:index]) for index in range(len(LINES))]
# How much damage takes away, and what it leaves in its place.
LENGTHS = st.one_of(st.integers(0, 5), st.integers(0, len(SEGMENT)))
HOLE_BYTES = 64 << 20
INSTEAD = st.one_of(st.binary(max_size=700), st.sampled_from([b"\n", b"{", b"\0" * 4096, LINES[3][50:], b"}\n{"]))


def test_a_last_line_torn_at_any_byte_costs_no_other_line(tmp_path: Path) -> None:
    files = StreamFiles(tmp_path, STREAM_ID)
    for cut in range(STARTS[-1], len(SEGMENT)):
        files.segment(1).write_bytes(SEGMENT[:cut])

        assert lines_of(files) == LINES[:-1]


def test_a_torn_line_does_not_keep_the_next_segment_from_being_read(tmp_path: Path) -> None:
    files = StreamFiles(tmp_path, STREAM_ID)
    for cut in range(STARTS[-1], len(SEGMENT), 7):
        files.segment(1).write_bytes(SEGMENT[:cut])
        files.segment(2).write_bytes(LINES[-1] + b"\n")

        assert lines_of(files) == LINES


@settings(deadline=None)  # files, on a busy machine
@given(start=st.integers(0, len(SEGMENT)), length=LENGTHS, instead=INSTEAD)
def test_every_line_that_damage_did_not_touch_is_read_and_exported(start: int, length: int, instead: bytes) -> None:
    stop = min(len(SEGMENT), start + length)
    damaged = SEGMENT[:start] + instead + SEGMENT[stop:]
    untouched = []
    for at, line in zip(STARTS, LINES, strict=True):
        before = SEGMENT[:start] + instead if at == stop else b"\n"
        if at + len(line) + 1 <= start or (at >= stop and (before.endswith(b"\n") or not before)):
            untouched.append(line)

    with TemporaryDirectory() as directory:
        files = StreamFiles(Path(directory), STREAM_ID)
        files.segment(1).write_bytes(damaged)
        for found in (lines_of(files), exported(files)):
            assert [line for line in found if line in untouched] == untouched


def exported(files: StreamFiles) -> list[bytes]:
    """What a destination gets of a stream, to its end."""
    shipment = take(files)
    assert shipment is not None
    exporter = Keeping()
    export = StreamExport(shipment, Destination(exporter), batch_count=5)
    while export.step() != Idle():
        pass
    export.close()
    shipment.release()
    return exporter.lines


@settings(deadline=None)
@given(start=st.integers(0, len(SEGMENT)), length=LENGTHS, instead=INSTEAD)
def test_damage_in_the_middle_of_the_open_file_costs_no_later_event(start: int, length: int, instead: bytes) -> None:
    with TemporaryDirectory() as directory:
        journal = a_journal(Path(directory))
        for name in range(12):
            append(journal, name)
        files = the_stream(Path(directory))
        whole = files.segment(1).read_bytes()
        last = len(whole) - 1  # the end of the last line stays
        start, stop = min(start, last), min(start + length, last)
        files.segment(1).write_bytes(whole[:start] + instead + whole[stop:])

        assert append(journal, "after").durable

        journal.close()
        for found in (lines_of(files), exported(files)):
            assert len([line for line in found if b'"event_id": "after"' in line]) == 1


def test_beside_a_damaged_stream_events_are_written_as_ever(tmp_path: Path) -> None:
    files = StreamFiles(tmp_path, STREAM_ID)
    files.segment(1).write_bytes(SEGMENT[:-40])
    journal = a_journal(tmp_path)

    append(journal, "after")
    journal.close()

    assert files.segment(1).read_bytes() == SEGMENT[:-40]
    (new,) = [each for each in streams_in(tmp_path) if each.stream_id != STREAM_ID]
    assert ids_of(lines_of(new)) == ["after"]


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"rubbish\n" * 1000)
    other.rename(path)


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/null")


TOUCHED: list[Callable[[Path], object]] = [
    Path.unlink,
    lambda path: path.rename(path.with_name("rotated.1")),
    _replace,
    _link,
]


@pytest.mark.parametrize("touch", TOUCHED, ids=["removed", "renamed", "replaced", "a link"])
def test_a_file_that_somebody_took_away_is_put_back_within_a_second_or_two(
    tmp_path: Path, touch: Callable[[Path], object]
) -> None:
    journal = a_journal(tmp_path)
    for name in range(10):
        append(journal, name)
    files = the_stream(tmp_path)

    touch(files.segment(1))

    # Nothing is logged meanwhile: the process might be killed before its next event.
    poll(lambda: _gaps(files), until=bool, what="a gap in the trail")
    append(journal, "after")
    journal.close()
    assert [each["event_id"] for each in application_events(tmp_path)] == [*map(str, range(10)), "after"]
    (gap,) = _gaps(files)
    assert gap == {"reason": "file removed", "segment": 1, "lines": 0}


def _gaps(files: StreamFiles) -> list[dict[str, object]]:
    try:
        content = files.segment(1).read_bytes()
    except OSError:
        return []
    return [json.loads(line)["gap"] for line in content.split(b"\n") if line.startswith(b'{"system":"gap"')]


def test_a_directory_that_was_removed_is_made_again_for_the_next_event(tmp_path: Path) -> None:
    directory = tmp_path / "audit"
    journal = a_journal(directory)
    append(journal, "before")
    shutil.rmtree(directory)

    names = iter(range(1000))

    def log_one() -> bool:
        append(journal, next(names))
        return directory.exists()

    poll(log_one, what="the directory to be there again")
    journal.close()
    ids = [each["event_id"] for each in application_events(directory)]
    assert ids == ["before", *map(str, range(next(names)))]


def test_a_reader_that_is_at_a_file_loses_nothing_when_it_is_taken_away(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    append(journal, "before")
    files = the_stream(tmp_path)
    reader = StreamReader(files)
    first = reader.read(Position(), max_lines=100, max_bytes=10_000)

    files.segment(1).unlink()
    append(journal, "meanwhile")
    poll(lambda: _gaps(files), what="a gap in the trail")
    append(journal, "after")

    rest: list[bytes] = []
    position = first.end
    while (chunk := reader.read(position, max_lines=100, max_bytes=10_000)).end != position:
        rest += [line.content for line in chunk.lines]
        position = chunk.end
    reader.close()
    assert ids_of(rest) == ["meanwhile", "after"]
    assert_chained([*(line.content for line in first.lines), *rest])


@pytest.mark.parametrize("leaves", [lambda journal: append(journal, "next"), Journal.close], ids=["rotation", "close"])
def test_a_file_that_was_removed_just_before_it_is_left_is_put_back(
    tmp_path: Path, leaves: Callable[[Journal], object]
) -> None:
    """With the next look it would be too late: nobody would have it open any more."""
    journal = a_journal(tmp_path, limits=Limits(segment_bytes=2000))
    append(journal, "a", detail="x" * 2000)
    files = the_stream(tmp_path)

    files.segment(1).unlink()
    leaves(journal)
    journal.close()

    assert application_events(tmp_path)[0]["event_id"] == "a"
    gaps = [json.loads(line)["gap"] for line in lines_of(files) if line.startswith(b'{"system":"gap"')]
    assert [(gap["reason"], gap["segment"]) for gap in gaps] == [("file removed", 1)]


def test_a_directory_that_was_removed_is_not_made_again_by_a_close(tmp_path: Path) -> None:
    journal = a_journal(tmp_path / "audit")
    append(journal, "a")

    shutil.rmtree(tmp_path / "audit")
    journal.close()

    assert not (tmp_path / "audit").exists()


@pytest.mark.parametrize("left", [0, 1000])
def test_a_file_that_was_cut_is_left_within_a_second_or_two(tmp_path: Path, left: int) -> None:
    journal = a_journal(tmp_path)
    for name in range(10):
        append(journal, name)
    files = the_stream(tmp_path)
    size = files.segment(1).stat().st_size

    os.truncate(files.segment(1), left)

    poll(lambda: files.segment(2).exists(), what="a new segment")
    append(journal, "after")
    header, gap, after = map(json.loads, lines_of(StreamFiles(tmp_path, files.stream_id))[-3:])
    assert header["segment"]["damage"]["reason"] == "truncated by somebody else"
    assert header["segment"]["damage"]["offset"] == left
    assert gap["gap"]["missing_bytes"] == size - left
    assert after["event_id"] == "after"
    assert header["seq"] == 12


def test_a_hole_behind_the_last_line_is_named_in_bounded_memory(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    append(journal, "before")
    files = the_stream(tmp_path)
    size = files.segment(1).stat().st_size
    tracemalloc.start()
    try:
        os.truncate(files.segment(1), size + HOLE_BYTES)
        poll(lambda: files.segment(2).exists(), what="a new segment")
        append(journal, "after")
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    header = json.loads((files.segment(2).read_bytes()).split(b"\n")[0])
    damage = header["segment"]["damage"]
    assert (damage["offset"], damage["length"]) == (size, HOLE_BYTES)
    assert damage["sha256"] == sha256(bytes(HOLE_BYTES)).hexdigest()
    assert ids_of(lines_of(files)) == ["before", "after"]
    assert most < 16 << 20


def test_bytes_that_somebody_wrote_into_a_file_cost_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = a_journal(tmp_path)
    append(journal, "a")
    files = the_stream(tmp_path)
    with files.segment(1).open("ab") as segment:
        segment.write(b"rubbish\n")
    append(journal, "b")
    write = os.write

    def is_full(descriptor: int, data: bytes) -> int:
        if bytes(data[:14]) == b'{"event_type":':
            write(descriptor, data[:50])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", is_full)
        with pytest.raises(JournalFull):  # to undo this by the offset that is known would cut the line of b
            append(journal, "c")
    append(journal, "d")

    lines = lines_of(files)
    assert ids_of(lines) == ["a", "b", "d"]
    assert_chained(lines)


def test_an_interrupted_rotation_is_gone_on_with(tmp_path: Path) -> None:
    """What a kill or an exception leaves of a header is replaced; a whole header stays, since it may have been read."""
    journal = a_journal(tmp_path, limits=Limits(segment_bytes=2000))
    append(journal, "a", detail="x" * 2000)
    files = the_stream(tmp_path)
    files.segment(2).write_bytes(lines_of(files)[0][:100])

    append(journal, "b", detail="x" * 2000)
    append(journal, "c")
    journal.close()

    assert [each["event_id"] for each in application_events(tmp_path)] == ["a", "b", "c"]
    assert len(read_streams(tmp_path)) == 1
