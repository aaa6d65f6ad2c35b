"""Lines by number, from any place on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_audit.stores import lines as module
from otel_audit.stores.lines import Mark, is_marked, numbered_lines


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=6).filter(lambda line: b"\n" not in line), max_size=6), st.booleans())
def test_from_each_line_on_the_rest_is_read(tmp_path: Path, lines: list[bytes], ended: bool) -> None:
    path = tmp_path / "log"
    lines = [b"{", *lines]  # else it may begin as a compressed file does
    path.write_bytes(b"".join(line + b"\n" for line in lines) + (b"" if ended else b"rest"))
    expected = [*((line, True) for line in lines), *(() if ended else ((b"rest", False),))]

    read = list(numbered_lines(path))

    assert [(line.content, line.ended) for line in read] == expected
    assert [line.end.line for line in read] == list(range(1, len(expected) + 1))
    for index, line in enumerate(read):
        assert list(numbered_lines(path, line.end)) == read[index + 1 :]


def test_a_mark_behind_the_end_is_of_another_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a\n")

    assert [line.content for line in numbered_lines(path, Mark(3, 1))] == [b"a"]
    assert list(numbered_lines(path, Mark(2, 1))) == []


@pytest.mark.parametrize("rest", [b"", b"and more\n", b"\n"])
def test_a_mark_is_known_from_what_is_before_it(tmp_path: Path, rest: bytes) -> None:
    path, other = tmp_path / "log", tmp_path / "other"
    path.write_bytes(b"same\n" + b"a" * 300 + b"\nb\n" + b"no end")
    other.write_bytes(b"same\n" + b"a" * 300 + b"\nc\n" + b"no end")
    marks = [line.end for line in numbered_lines(path)]

    assert [is_marked(other, mark) for mark in [Mark(), *marks]] == [True, True, True, False, False]
    with path.open("ab") as file:
        file.write(rest)
    assert all(is_marked(path, mark) for mark in [Mark(), *marks])
    path.write_bytes(b"same\n")
    assert [is_marked(path, mark) for mark in marks] == [True, False, False, False]
    assert [line.content for line in numbered_lines(other, marks[2])] == [b"same", b"a" * 300, b"c", b"no end"]


@pytest.mark.parametrize("length", [10, 11, 19, 20, 21, 35])
def test_a_line_that_is_too_long_is_passed_by_in_pieces(
    length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LINE_MAX_BYTES", 10)
    path = tmp_path / "log"
    path.write_bytes(b"a\n" + b"x" * length + b"\nb\n")

    read = list(numbered_lines(path))

    assert [(line.content, line.end.line, line.ended) for line in read] == [
        (b"a", 1, True),
        (None, 2, True),
        (b"b", 3, True),
    ]
