"""Reading a stream back: whatever the limits, every whole line once, and an honest word about what is behind."""

from __future__ import annotations

import os
import tracemalloc
from hashlib import sha256
from pathlib import Path

import pytest

import otel_audit.journal.line_file as line_file_module
from otel_audit.journal.cursor import Position
from otel_audit.journal.files import StreamFiles
from otel_audit.journal.line import Damage, Line, Tail, digest, seq_reader
from otel_audit.journal.line_file import find_newline, hash_between, opened
from otel_audit.journal.reader import StreamReader, segment_lines, segment_lines_backwards
from otel_audit.journal.stream import Limits
from tests.journal.writing import a_journal, append, ids_of, lines_of, the_stream
from tests.journal_lines import STREAM_ID

OTHER_STREAM = "01990000-0000-7000-8000-0000000000ff"


def _line(seq: int, padding: int = 0, stream_id: str = STREAM_ID) -> bytes:
    chained = b',"prev_hash":"%b"' % (b"0" * 64) if seq > 1 else b""
    start = b'{"event_type":"a","detail":"%b","time_ns":1,"observed_ns":2' % (b"x" * padding)
    return b'%b,"stream_id":"%b","seq":%d%b}' % (start, stream_id.encode(), seq, chained)


def _read_all(reader: StreamReader, max_lines: int, max_bytes: int) -> list[Line]:
    found: list[Line] = []
    position = Position()
    while True:
        chunk = reader.read(position, max_lines=max_lines, max_bytes=max_bytes)
        if not chunk.lines:
            return found
        assert len(chunk.lines) <= max_lines
        found += chunk.lines
        assert chunk.end == found[-1].end
        position = chunk.end


@pytest.mark.parametrize(("max_lines", "max_bytes"), [(1, 1), (7, 1 << 20), (512, 100), (512, 3 << 20)])
def test_every_line_is_read_once_whatever_the_limits_and_however_the_lengths_change(
    tmp_path: Path, max_lines: int, max_bytes: int
) -> None:
    files = StreamFiles(tmp_path, STREAM_ID)
    lines = [_line(seq, padding=5_000 if seq % 50 > 40 else seq) for seq in range(1, 301)]
    files.segment(1).write_bytes(b"\n".join(lines) + b"\n")

    found = _read_all(StreamReader(files), max_lines, max_bytes)

    assert [line.content for line in found] == lines
    assert [line.seq for line in found] == list(range(1, 301))
    assert found[-1].end == Position(1, files.segment(1).stat().st_size, 300)


def test_a_read_that_a_limit_ended_says_that_there_is_more(tmp_path: Path) -> None:
    files = StreamFiles(tmp_path, STREAM_ID)
    files.segment(1).write_bytes(b"".join(_line(seq) + b"\n" for seq in range(1, 11)))
    reader = StreamReader(files)

    first = reader.read(Position(), max_lines=8, max_bytes=1 << 20)
    rest = reader.read(first.end, max_lines=8, max_bytes=1 << 20)

    assert (len(first.lines), first.more) == (8, True)
    assert (len(rest.lines), rest.more) == (2, False)


def test_other_threads_are_let_in_after_every_128_lines(tmp_path: Path) -> None:
    files = StreamFiles(tmp_path, STREAM_ID)
    files.segment(1).write_bytes(b"".join(_line(seq) + b"\n" for seq in range(1, 401)))
    ways: list[None] = []

    chunk = StreamReader(files, give_way=lambda: ways.append(None)).read(Position(), max_lines=2048, max_bytes=1 << 20)

    assert (len(chunk.lines), len(ways)) == (400, 3)


def test_a_read_that_a_segment_ended_says_that_another_one_follows(tmp_path: Path) -> None:
    files = StreamFiles(tmp_path, STREAM_ID)
    files.segment(1).write_bytes(_line(1) + b"\n")
    files.segment(2).write_bytes(_line(2) + b"\n")
    reader = StreamReader(files)

    first = reader.read(Position(), max_lines=8, max_bytes=1 << 20)
    border = reader.read(first.end, max_lines=8, max_bytes=1 << 20)
    last = reader.read(border.end, max_lines=8, max_bytes=1 << 20)

    assert [len(chunk.lines) for chunk in (first, border, last)] == [1, 0, 1]
    assert first.more
    assert not last.more


def test_lines_of_other_streams_and_damage_are_passed_over_and_counted(tmp_path: Path) -> None:
    files = StreamFiles(tmp_path, STREAM_ID)
    pieces = [_line(1), b"garbage", _line(2, stream_id=OTHER_STREAM), b"", _line(2)]
    files.segment(1).write_bytes(b"\n".join(pieces) + b"\n" + _line(3))  # the last one is still being written

    chunk = StreamReader(files).read(Position(), max_lines=100, max_bytes=1 << 20)

    assert [line.content for line in chunk.lines] == [_line(1), _line(2)]
    assert chunk.damaged == 3
    assert chunk.end == Position(1, files.segment(1).stat().st_size - len(_line(3)), 2)


@pytest.mark.parametrize(
    "line",
    [
        _line(1),
        _line(2, padding=10_000),
        _line(10**15),
        _line(2, stream_id=OTHER_STREAM),
        _line(2)[1:],
        _line(2) + b" ",
        _line(2).replace(b'"time_ns":1', b'"time_ns":-1'),
        _line(2).replace(b'"time_ns"', b'"time"'),
        _line(2).replace(b'"seq":2', b'"seq":-2'),
        _line(2).replace(b"0" * 64, b"0" * 63),
        b"{}",
        b"",
    ],
)
def test_the_quick_look_at_a_line_agrees_with_the_whole_one(line: bytes) -> None:
    tail = Tail.of(line)

    assert seq_reader(STREAM_ID)(line) == (tail.seq if tail is not None and tail.stream_id == STREAM_ID else None)


def test_reading_goes_on_over_the_border_of_segments(tmp_path: Path) -> None:
    files = StreamFiles(tmp_path, STREAM_ID)
    for number in range(1, 5):
        lines = [_line(seq) + b"\n" for seq in range(10 * number, 10 * number + 10)]
        files.segment(number).write_bytes(b"".join(lines))

    assert lines_of(files) == [_line(seq) for seq in range(10, 50)]


def test_a_segment_that_is_missing_does_not_stop_the_reader(tmp_path: Path) -> None:
    files = StreamFiles(tmp_path, STREAM_ID)
    for number in (1, 2, 5, 6):
        files.segment(number).write_bytes(_line(number) + b"\n")
    files.segment(1).unlink()

    assert lines_of(files) == [_line(seq) for seq in (2, 5, 6)]
    assert lines_of(files, Position(3, 700, 2)) == [_line(5), _line(6)]


def test_a_line_that_is_still_being_written_waits_for_its_newline(tmp_path: Path) -> None:
    files = StreamFiles(tmp_path, STREAM_ID)
    reader = StreamReader(files)
    assert reader.read(Position(), max_lines=10, max_bytes=1000).lines == ()

    with files.segment(1).open("ab", buffering=0) as segment:
        segment.write(_line(1) + b"\n")
        position = reader.read(Position(), max_lines=10, max_bytes=1000).end
        line = _line(2) + b"\n"
        for index in range(len(line)):
            assert reader.read(position, max_lines=10, max_bytes=1000).end == position
            segment.write(line[index : index + 1])

    chunk = reader.read(position, max_lines=10, max_bytes=1000)
    assert [each.content for each in chunk.lines] == [_line(2)]
    reader.close()


def test_a_line_is_split_at_newlines_only(tmp_path: Path) -> None:
    files = StreamFiles(tmp_path, STREAM_ID)
    line = _line(1).replace(b'"detail":""', '"detail":"a\u2028b\u0085c\fd\x0be\rf"'.encode())
    files.segment(1).write_bytes(line + b"\n")

    assert lines_of(files) == [line]


def test_the_header_of_another_segment_stands_in_for_a_damaged_one(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, limits=Limits(segment_bytes=2000))
    for name in range(20):
        append(journal, name)
    journal.close()
    files = the_stream(tmp_path)
    first = bytearray(files.segment(1).read_bytes())
    first[5:20] = b"?" * 15
    files.segment(1).write_bytes(first)

    chunk = StreamReader(files).read(Position(), max_lines=10, max_bytes=10_000)

    assert chunk.header["resource"]["service.name"] == "shop"


def test_a_file_that_was_put_back_is_read_on_where_the_last_line_ended(tmp_path: Path) -> None:
    files = StreamFiles(tmp_path, STREAM_ID)
    files.segment(1).write_bytes(_line(1) + b"\n")
    reader = StreamReader(files)
    position = reader.read(Position(), max_lines=10, max_bytes=1000).end

    files.segment(1).unlink()
    assert reader.read(position, max_lines=10, max_bytes=1000).end == position
    files.segment(1).write_bytes(_line(1) + b"\n" + _line(2) + b"\n")

    chunk = reader.read(position, max_lines=10, max_bytes=1000)
    assert [line.seq for line in chunk.lines] == [2]
    reader.close()


def test_what_was_read_of_a_file_that_took_its_place_is_not_counted_on(tmp_path: Path) -> None:
    files = StreamFiles(tmp_path, STREAM_ID)
    files.segment(1).write_bytes(b"rubbish\n" * 200)
    reader = StreamReader(files)
    position = reader.read(Position(), max_lines=1000, max_bytes=10_000).end
    assert position.offset == 1600

    files.segment(1).unlink()
    files.segment(1).write_bytes(b"".join(_line(seq) + b"\n" for seq in range(1, 20)))

    chunk = reader.read(position, max_lines=100, max_bytes=10_000)
    assert [line.seq for line in chunk.lines] == list(range(1, 20))
    reader.close()


class SegmentThatGoes(StreamFiles):
    """A stream whose first segment is removed between the look for it and its opening."""

    def segment_from(self, number: int) -> int | None:
        found = super().segment_from(number)
        self.segment(1).unlink(missing_ok=True)
        return found


def test_a_segment_that_is_removed_while_it_is_opened_is_passed_over(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, limits=Limits(segment_bytes=4096))
    for name in range(30):
        append(journal, name, detail="x" * 300)
    journal.close()
    files = the_stream(tmp_path)
    second = files.segment(2).read_bytes().split(b"\n")[0]

    lines = lines_of(SegmentThatGoes(tmp_path, files.stream_id))

    assert lines[0] == second
    assert ids_of(lines)[-1] == "29"


def _with_hole(files: StreamFiles, hole_bytes: int) -> None:
    with files.segment(1).open("wb") as segment:
        segment.write(_line(1) + b"\n" + _line(2) + b"\n")
        segment.seek(hole_bytes, os.SEEK_CUR)
        segment.write(b"\n" + _line(3) + b"\n" + _line(4) + b"\n")


@pytest.mark.parametrize("hole_bytes", [1000, 9 << 20, 5 << 29])
def test_lines_behind_a_hole_are_read_and_the_hole_is_told_as_damage(tmp_path: Path, hole_bytes: int) -> None:
    files = StreamFiles(tmp_path, STREAM_ID)
    _with_hole(files, hole_bytes)
    hole = Damage(1, 2 + len(_line(1)) + len(_line(2)), hole_bytes)
    reader = StreamReader(files)
    lines: list[Line] = []
    damage: list[Damage] = []
    position = Position()

    tracemalloc.start()
    try:
        while (chunk := reader.read(position, max_lines=512, max_bytes=3 << 20)).end != position:
            lines, damage, position = [*lines, *chunk.lines], [*damage, *chunk.damage], chunk.end
        forwards, backwards = list(segment_lines(files, 1)), list(segment_lines_backwards(files, 1))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        reader.close()

    assert [line.content for line in lines] == [_line(seq) for seq in range(1, 5)]
    assert damage == [hole]
    assert position == Position(1, files.segment(1).stat().st_size, 4)
    assert [each if isinstance(each, Damage) else each.seq for each in forwards] == [1, 2, hole, 3, 4]
    assert [each if isinstance(each, Damage) else each.seq for each in backwards] == [4, 3, hole, 2, 1]
    assert most < 64 << 20


def test_the_hash_of_damage_is_that_of_its_bytes(tmp_path: Path) -> None:
    files = StreamFiles(tmp_path, STREAM_ID)
    _with_hole(files, 3 << 20)

    (damage,) = [each for each in segment_lines(files, 1) if isinstance(each, Damage)]

    with opened(files.segment(1)) as descriptor:
        end = damage.offset + damage.length
        assert hash_between(descriptor, damage.offset, end) == (3 << 20, sha256(b"\0" * (3 << 20)).hexdigest())


def test_a_long_piece_without_end_is_searched_once_and_read_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = StreamFiles(tmp_path, STREAM_ID)
    files.segment(1).write_bytes(_line(1) + b"\n" + b"x" * (20 << 20))
    reader = StreamReader(files)
    position = reader.read(Position(), max_lines=100, max_bytes=1 << 20).end
    assert reader.read(position, max_lines=100, max_bytes=1 << 20).end == position
    asked: list[int] = []

    def watched(descriptor: int, offset: int) -> int:
        asked.append(offset)
        return find_newline(descriptor, offset)

    monkeypatch.setattr(line_file_module, "find_newline", watched)

    assert reader.read(position, max_lines=100, max_bytes=1 << 20).end == position
    assert asked == [files.segment(1).stat().st_size]
    with files.segment(1).open("ab") as segment:
        segment.write(b"\n" + _line(2) + b"\n")

    torn = reader.read(position, max_lines=100, max_bytes=1 << 20)
    assert torn.damage == (Damage(1, position.offset, 20 << 20),)
    assert [line.seq for line in reader.read(torn.end, max_lines=100, max_bytes=1 << 20).lines] == [2]
    reader.close()


def test_a_line_parses_nothing_but_says_all_when_it_is_asked(tmp_path: Path) -> None:
    line = Line(_line(7), 7, 2, 100)

    assert line.end == Position(2, 100 + len(_line(7)) + 1, 7)
    assert line.tail == Tail(1, 2, STREAM_ID, 7, "0" * 64)
    assert line.hash == digest(_line(7))
    assert not line.system
    with pytest.raises(ValueError, match="expected the keys of a journal"):
        _ = Line(b"{}", 1).tail
