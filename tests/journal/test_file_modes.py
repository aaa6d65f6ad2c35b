"""The files of a journal have the permissions that were asked for, whatever the umask of their process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from otel_audit.journal.files import open_with_mode
from otel_audit.journal.quarantine import files_beside
from otel_audit.journal.shipment import take
from otel_audit.journal.stream import Limits
from tests.journal.writing import a_journal, append, the_stream

READ_WRITE_FOR_GROUP = 0o660


@pytest.fixture(params=[0o000, 0o022, 0o077], ids="umask {:03o}".format)
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def modes(directory: Path) -> dict[str, str]:
    return {path.suffixes[-1]: f"{path.stat().st_mode & 0o777:04o}" for path in directory.iterdir()}


@pytest.mark.usefixtures("_umask")
@pytest.mark.parametrize("mode", [0o600, 0o640, READ_WRITE_FOR_GROUP], ids="{:04o}".format)
def test_every_file_has_the_mode_of_the_setting(mode: int, tmp_path: Path) -> None:
    with ExitStack() as opened:
        journal = a_journal(tmp_path, limits=Limits(file_mode=mode))
        opened.callback(journal.close)
        append(journal, "a")
        shipment = take(the_stream(tmp_path), file_mode=mode)
        assert shipment is not None
        opened.callback(shipment.release)

        assert modes(tmp_path) == dict.fromkeys([".jsonl", ".lock", ".cursor"], f"{mode:04o}")
        for path in tmp_path.glob("*.lock"):
            assert path.stat().st_mode & 0o777 == mode


@pytest.mark.usefixtures("_umask")
def test_a_cursor_that_was_put_back_has_it_too_and_so_has_a_quarantine(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    append(journal, "a")
    shipment = take(the_stream(tmp_path), file_mode=READ_WRITE_FOR_GROUP)
    assert shipment is not None
    shipment.files.cursor.unlink()

    shipment.cursor.advance("otlp", shipment.cursor.progress("otlp").with_quarantined(2, "400"))

    quarantine, _ = files_beside(shipment.files.cursor)
    assert quarantine.stat().st_mode & 0o777 == READ_WRITE_FOR_GROUP
    assert shipment.files.cursor.stat().st_mode & 0o777 == READ_WRITE_FOR_GROUP
    shipment.release()
    journal.close()


def test_the_mode_of_a_file_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    path.touch(mode=0o640)
    path.chmod(0o640)

    os.close(open_with_mode(path, os.O_RDWR, 0o600))

    assert path.stat().st_mode & 0o777 == 0o640
