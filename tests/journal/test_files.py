"""Which streams are in a directory: listed when a name in it has changed, and not before."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

import otel_audit.journal.files as files_module
from otel_audit.journal.files import StreamFiles, segments_in
from otel_audit.journal.line import Position
from otel_audit.journal.reader import StreamReader
from tests.journal.writing import a_journal, append, the_stream
from tests.journal_lines import STREAM_ID


def _at_rest(directory: Path) -> None:
    """The last name in the directory changed a while ago."""
    a_while_ago = time.time() - 60.25
    os.utime(directory, (a_while_ago, a_while_ago))


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The directories that were listed."""
    found: list[Path] = []
    names_in = files_module._names_in

    def watched(directory: Path) -> list[str]:
        found.append(directory)
        return names_in(directory)

    monkeypatch.setattr(files_module, "_names_in", watched)
    return found


def test_whoever_waits_at_the_end_of_a_stream_does_not_list_its_directory(tmp_path: Path, listed: list[Path]) -> None:
    journal = a_journal(tmp_path)
    append(journal, 1)
    files = the_stream(tmp_path)
    _at_rest(tmp_path)
    reader = StreamReader(files)
    position = reader.read(Position(), max_lines=100, max_bytes=1 << 20).end
    listed.clear()

    for _ in range(100):
        assert reader.read(position, max_lines=100, max_bytes=1 << 20).end == position

    assert len(listed) <= 1
    reader.close()
    journal.close()


def test_a_segment_that_comes_is_seen_at_once_and_so_is_one_that_goes(tmp_path: Path) -> None:
    files = StreamFiles(tmp_path, STREAM_ID)
    files.segment(1).touch()
    _at_rest(tmp_path)
    assert segments_in(tmp_path) == {STREAM_ID: [1]}

    for number in range(2, 200):
        files.segment(number).touch()
        assert files.segments() == list(range(1, number + 1))
        assert files.segment_from(number) == number
    for number in range(1, 200):
        assert files.segment_from(number) == number
        files.segment(number).unlink()
        assert files.segment_from(number) == (number + 1 if number < 199 else None)


def test_a_directory_that_takes_the_place_of_another_is_listed(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for directory, number in ((one, 1), (other, 2)):
        directory.mkdir()
        StreamFiles(directory, STREAM_ID).segment(number).touch()
        os.utime(directory, (1_700_000_000.25, 1_700_000_000.25))
    assert segments_in(one) == {STREAM_ID: [1]}

    one.rename(tmp_path / "former")
    other.rename(one)

    assert segments_in(one) == {STREAM_ID: [2]}
