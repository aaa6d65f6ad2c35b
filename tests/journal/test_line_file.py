"""A file of lines: the same forwards and backwards, in bounded memory, past holes of any size."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import otel_audit.journal.line_file as line_file_module
from otel_audit.journal.line_file import Piece, opened, pieces, pieces_backwards, read_block, whole_bytes

HOLE_BYTES = 5 << 29  # 2.5 GiB, of which a disk holds nothing


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200).map(lambda data: data.replace(b"x", b"\n")), st.integers(1, 20), st.integers(1, 20))
def test_a_file_reads_the_same_forwards_and_backwards_whatever_is_in_it(
    tmp_path: Path, data: bytes, block_bytes: int, first_block_bytes: int
) -> None:
    path = tmp_path / "segment"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_file_module, "BLOCK_BYTES", block_bytes)
        patch.setattr(line_file_module, "_FIRST_BLOCK_BYTES", first_block_bytes)
        end = whole_bytes(path)

        forwards = list(pieces(path))

        assert [piece.content for piece in forwards] == data.split(b"\n")[:-1]
        assert [data[offset : offset + length] for offset, length, _ in forwards] == data.split(b"\n")[:-1]
        assert list(pieces_backwards(path)) == forwards[::-1]
        assert end == data.rfind(b"\n") + 1


def test_a_piece_that_is_longer_than_any_line_is_told_and_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_file_module, "BLOCK_BYTES", 10)
    monkeypatch.setattr(line_file_module, "LINE_MAX_BYTES", 30)
    path = tmp_path / "segment"
    path.write_bytes(b"first\n" + b"\0" * 100 + b"\nlast\n")

    expected = [Piece(0, 5, b"first"), Piece(6, 100, None), Piece(107, 4, b"last")]
    assert list(pieces(path)) == expected
    assert list(pieces_backwards(path)) == expected[::-1]


@pytest.mark.parametrize("holes", [1, 3])
def test_holes_of_gigabytes_are_passed_over_in_both_directions(tmp_path: Path, holes: int) -> None:
    path = tmp_path / "segment"
    expected = [Piece(0, 5, b"first")]
    with path.open("wb") as file:
        file.write(b"first\n")
        for _ in range(holes):
            begin = file.tell()
            file.seek(HOLE_BYTES, os.SEEK_CUR)
            file.write(b"\nline\n")
            expected += [Piece(begin, HOLE_BYTES, None), Piece(begin + HOLE_BYTES + 1, 4, b"line")]
        file.truncate(file.tell() + HOLE_BYTES)  # and one that no newline ends
    if path.stat().st_blocks * 512 >= HOLE_BYTES:
        pytest.fail("expected a file system with holes for the temporary directory")

    tracemalloc.start()
    try:
        forwards, backwards = list(pieces(path)), list(pieces_backwards(path))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert forwards == expected
    assert backwards == expected[::-1]
    assert most < 16 << 20


def test_no_line_is_read_that_ends_behind_the_place_to_stop_at(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    path.write_bytes(b"0123456789abcdef\n")

    with opened(path) as descriptor:
        assert read_block(descriptor, 0, 10, stop=10).data == b""
        assert read_block(descriptor, 0, 10, stop=17).data == b"0123456789abcdef\n"
