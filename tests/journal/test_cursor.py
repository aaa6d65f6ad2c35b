"""The cursor survives torn writes and full disks, or says that it starts again."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from otel_audit.journal.counts import Counts
from otel_audit.journal.cursor import Cursor, Position, Progress, is_over, read_cursor
from otel_audit.journal.quarantine import Quarantined
from tests.journal.writing import leave_no_room

SLOT_BYTES = 8192


def at(number: int) -> Progress:
    return Progress(Position(1, 100 * number, number), Counts(exported=number))


def exported(path: Path) -> int:
    """How far the exporter is, by the file; 0 when nothing can be read."""
    return read_cursor(path)[0].get("otlp", Progress()).counts.exported


@pytest.mark.parametrize("goes_on", [False, True], ids=["closed", "advanced"])
def test_a_file_that_somebody_removed_is_there_again(tmp_path: Path, goes_on: bool) -> None:
    cursor = Cursor(tmp_path / "cursor")
    cursor.advance("otlp", at(3))
    (tmp_path / "cursor").unlink()

    if goes_on:
        cursor.advance("otlp", at(4))
        assert exported(tmp_path / "cursor") == 4
    cursor.close()

    assert exported(tmp_path / "cursor") == 3 + goes_on


def test_a_cursor_whose_directory_was_removed_is_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    cursor = Cursor(tmp_path / "audit" / "cursor")
    cursor.advance("otlp", at(3))
    shutil.rmtree(tmp_path / "audit")

    cursor.advance("otlp", at(4))
    cursor.close()

    assert cursor.progress("otlp") == at(4)
    assert not (tmp_path / "audit").exists()


def test_what_was_stored_is_there_after_the_file_was_opened_again(tmp_path: Path) -> None:
    cursor = Cursor(tmp_path / "cursor")
    progress = Progress(
        Position(3, 70, 9), Counts(exported=5, quarantined=1, dropped=4, system=2), damaged=1, blocked="503"
    )
    cursor.advance("otlp", progress)
    cursor.advance("jsonl", at(4))
    cursor.end()
    cursor.close()

    again = Cursor(tmp_path / "cursor")

    assert again.exporters() == {"otlp": progress, "jsonl": at(4)}
    assert again.ended
    assert again.note is None


def test_the_end_of_a_stream_stands_in_the_size_of_its_cursor_until_it_is_sent_again(tmp_path: Path) -> None:
    path = tmp_path / "cursor"
    cursor = Cursor(path)
    cursor.advance("otlp", at(3))
    assert not is_over(path)

    cursor.end()

    assert is_over(path)
    assert Cursor(path).ended
    assert Cursor(path).exporters() == cursor.exporters()
    cursor.restart("otlp")
    assert not is_over(path)
    assert not Cursor(path).ended
    assert not is_over(tmp_path / "missing")


def test_a_cursor_that_stored_nothing_yet_is_no_damage(tmp_path: Path) -> None:
    Cursor(tmp_path / "cursor").close()

    again = Cursor(tmp_path / "cursor")

    assert again.note is None
    assert again.progress("otlp") == Progress()


def test_neighbours_in_quarantine_become_one_range() -> None:
    progress = Progress()
    for seq in (3, 4, 5, 9):
        progress = progress.with_quarantined(seq, "400")
    progress = progress.with_quarantined(10, "413")

    assert progress.quarantine == (Quarantined(3, 5, "400"), Quarantined(9, 9, "400"), Quarantined(10, 10, "413"))


@settings(deadline=None)  # files, on a busy machine
@given(
    stores=st.integers(1, 6),
    torn_at=st.integers(0, SLOT_BYTES),
    rubbish=st.binary(max_size=64),
)
def test_a_store_torn_anywhere_leaves_the_last_state_or_the_one_before(
    stores: int, torn_at: int, rubbish: bytes
) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "cursor"
        cursor = Cursor(path)
        for number in range(1, stores):
            cursor.advance("otlp", at(number))
        before = path.read_bytes()
        cursor.advance("otlp", at(stores))
        after = path.read_bytes()
        cursor.close()
        changed = [index for index, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
        slot = changed[0] // SLOT_BYTES * SLOT_BYTES
        assert changed[-1] < slot + SLOT_BYTES, "the other slot was touched"
        cut = slot + torn_at
        torn = after[:cut] + (rubbish + before[cut + len(rubbish) :])[: len(before) - cut]
        path.write_bytes(torn[: slot + SLOT_BYTES] + before[slot + SLOT_BYTES :])

        assert exported(path) in (stores - 1, stores)
        again = Cursor(path)
        again.advance("otlp", at(stores + 1))
        again.close()
        assert exported(path) == stores + 1


def test_without_a_readable_slot_it_starts_from_the_oldest_line_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "cursor"
    cursor = Cursor(path)
    cursor.advance("otlp", at(1))
    cursor.advance("otlp", at(2))
    cursor.close()
    path.write_bytes(b"?" * path.stat().st_size)

    again = Cursor(path)

    assert again.progress("otlp") == Progress()
    assert again.note is not None
    assert "sending again from the oldest line" in again.note
    again.advance("otlp", at(1))
    assert exported(path) == 1


@pytest.mark.parametrize("length", [10, SLOT_BYTES, SLOT_BYTES + 100])
def test_a_file_that_was_cut_is_usable_again(tmp_path: Path, length: int) -> None:
    path = tmp_path / "cursor"
    cursor = Cursor(path)
    for number in (1, 2, 3):
        cursor.advance("otlp", at(number))
    cursor.close()
    os.truncate(path, length)

    again = Cursor(path)
    for number in (4, 5):
        again.advance("otlp", at(number))
        assert exported(path) == number
    again.close()


def test_a_slot_whose_write_failed_is_written_again_and_not_the_last_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cursor"
    cursor = Cursor(path)
    for number in (1, 2):
        cursor.advance("otlp", at(number))
    pwrite = os.pwrite

    def fails_half_way(descriptor: int, data: bytes, offset: int) -> int:
        pwrite(descriptor, data[: len(data) // 2], offset)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fails_half_way)
        for number in (3, 4, 5):
            with pytest.raises(OSError, match="Input/output"):
                cursor.advance("otlp", at(number))
            assert exported(path) == 2
            assert cursor.progress("otlp") == at(number)
    cursor.advance("otlp", at(6))

    assert exported(path) == 6


def test_the_file_has_its_first_length_however_long_the_reasons_are(tmp_path: Path) -> None:
    path = tmp_path / "cursor"
    cursor = Cursor(path)

    for name in ("otlp", "jsonl", "console"):
        cursor.advance(name, replace(at(1), blocked=f"<html>{chr(0x1F600) * 20_000}"))

    assert path.stat().st_size == 2 * SLOT_BYTES
    progress, _ = read_cursor(path)
    assert [each.blocked[:6] for each in progress.values()] == ["<html>"] * 3
    with pytest.raises(OSError, match="expected at most 8192 bytes for all exporters"):
        cursor.advance("x" * SLOT_BYTES, at(1))
    assert path.stat().st_size == 2 * SLOT_BYTES


@pytest.mark.processes
def test_progress_is_stored_on_a_full_disk(small_disk: Path) -> None:
    path = small_disk / "cursor"
    cursor = Cursor(path)
    leave_no_room(small_disk)

    for number in range(1, 6):
        cursor.advance("otlp", at(number))

    assert exported(path) == 5


def test_nothing_is_said_to_be_delivered_before_the_file_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cursor = Cursor(tmp_path / "cursor")
    cursor.advance("otlp", at(1))
    pwrite, said = os.pwrite, []

    def slow_pwrite(descriptor: int, data: bytes, offset: int) -> int:
        said.append((cursor.progress("otlp"), exported(tmp_path / "cursor")))
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", slow_pwrite)
    cursor.advance("otlp", at(2))

    assert said == [(at(1), 1)]
    assert (cursor.progress("otlp"), exported(tmp_path / "cursor")) == (at(2), 2)
