"""Archives that a collector compressed itself: each request in a zstd frame of its own, behind its length."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from otel_audit.stores.compression import Compression, compression_of
from otel_audit.stores.lines import NumberedLine, hash_of, is_marked, numbered_lines

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LINES = [b'{"resourceLogs":[%d],"id":"%b"}' % (number, os.urandom(40).hex().encode()) for number in range(5)]


def framed(content: bytes) -> bytes:
    packed = zstd.compress(content, options={zstd.CompressionParameter.checksum_flag: 1})
    return len(packed).to_bytes(4, "big") + packed


def whole(read: list[NumberedLine]) -> list[bytes | None]:
    return [line.content for line in read if line.content in LINES]


def test_each_frame_is_a_line_and_the_marks_are_those_of_the_plain_file(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    plain.write_bytes(b"".join(line + b"\n" for line in LINES))
    packed.write_bytes(b"".join(map(framed, LINES)))

    read = list(numbered_lines(plain))

    assert compression_of(packed) is Compression.FRAMED_ZSTD
    assert list(numbered_lines(packed)) == read
    for index, line in enumerate(read):
        assert is_marked(packed, line.end)
        assert list(numbered_lines(packed, line.end)) == read[index + 1 :]


@pytest.mark.parametrize("torn", [1, 3, 4, 7, 8, 9, 40, -1])
def test_a_frame_that_is_torn_costs_no_other_frame_and_its_bytes_are_given(tmp_path: Path, torn: int) -> None:
    path = tmp_path / "archive"
    first, second, third, *_ = map(framed, LINES)
    path.write_bytes(first + second[:torn] + third)

    read = list(numbered_lines(path))

    assert whole(read) == [LINES[0], LINES[2]]
    damaged = [line for line in read if line.content not in LINES]
    assert b"\n".join(line.content or b"" for line in damaged) == second[:torn]
    assert not read[-1].damage


def test_a_changed_byte_anywhere_costs_its_own_frame_at_most_and_is_said(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    frames = list(map(framed, LINES[:3]))
    content = b"".join(frames)

    for place in range(len(frames[0]), len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        read = list(numbered_lines(path))
        assert LINES[0] in whole(read)
        assert len(whole(read)) >= 2
        assert len(whole(read)) == 3 or len(read) > len(whole(read))


def test_a_last_frame_that_is_not_yet_whole_is_said_and_read_when_it_is(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    first, second, *_ = map(framed, LINES)
    path.write_bytes(first + second[:20])
    read = list(numbered_lines(path))
    assert read[0].content == LINES[0]
    assert (read[-1].ended, read[-1].damage[:22]) == (False, "expected a whole frame")

    path.write_bytes(first + second)

    assert [line.content for line in numbered_lines(path, read[0].end)] == [LINES[1]]


def test_a_frame_that_unpacks_to_more_than_any_line_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(framed(LINES[0]) + framed(bytes(200 << 20)) + framed(LINES[1]))
    assert path.stat().st_size < 1 << 16

    read = list(numbered_lines(path))

    assert whole(read) == [LINES[0], LINES[1]]
    assert len(read) > 2


def test_the_bytes_of_damage_have_a_hash_whatever_their_file_is_compressed_by(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    plain.write_bytes(b"".join(line + b"\n" for line in LINES))
    packed.write_bytes(b"".join(map(framed, LINES)))

    assert hash_of(plain, 10, 100) == hash_of(packed, 10, 100)
    assert hash_of(plain, 0, 10) != hash_of(plain, 10, 100)
