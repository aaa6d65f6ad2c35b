"""Pack a trail into Parquet: a folder for each service, with files for each day, sorted by time.

    DIRECTORY/shop/2026-11-29.0001.parquet

Each run adds the missing lines in files of its own. It changes and removes nothing, neither in the trail nor in the
files of earlier runs, so it can be repeated at any time. If a run is killed, the next one continues.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

from otel_audit.journal.files import sync_directory, sync_file
from otel_audit.query.database import TrailDatabase
from otel_audit.query.filters import Filters

__all__ = ["Day", "Packing"]

_NO_SERVICE: Final = "-"
_FILE_BYTES: Final = 512 << 20  # of lines, which are sorted at once and have to fit into memory
_UNFINISHED: Final = ".unfinished"


class Day(NamedTuple):
    """The lines of one service on one day, UTC."""

    service: str
    day: str
    lines: int
    size_bytes: int


class Packing:
    """Write the events of a trail to a directory. One run at a time; the database must be allowed to write there."""

    def __init__(self, database: TrailDatabase, directory: Path) -> None:
        self._database = database
        self._directory = directory

    def days(self) -> Sequence[Day]:
        """Return every day of the trail, the oldest first, including those that were packed before.

        Unfinished files of a killed run are removed.
        """
        for left in self._directory.glob(f"*/*.parquet{_UNFINISHED}"):
            left.unlink()
        return [Day(*row) for row in self._database.days()]

    def pack(self, day: Day) -> tuple[int, int]:
        """Write the lines of a day that are not packed yet. Return their number and the size of their file in bytes.

        Raises:
            QueryUnanswered: a packed file cannot be read, or there is no memory.
            OSError: the file cannot be written. No file of that name is left.
        """
        folder = self._directory / _folder_of(day.service)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        packed = sorted(folder.glob(f"{day.day}.*.parquet"))
        parts = [Filters.of_day(day.day)]
        if day.size_bytes > _FILE_BYTES:
            parts = list(self._database.parts_of_day(day.service, day.day, _FILE_BYTES))
        written = [self._write(day, packed, number, part) for number, part in enumerate(parts)]
        return sum(lines for lines, _ in written), sum(size for _, size in written)

    def _write(self, day: Day, packed: Sequence[Path], number: int, part: Filters) -> tuple[int, int]:
        folder = self._directory / _folder_of(day.service)
        target = folder / f"{day.day}.{_number_behind(packed) + number:04d}.parquet"
        unfinished = target.with_name(target.name + _UNFINISHED)
        try:
            count = self._database.write_day(day.service, part, packed, unfinished)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        if not count:
            unfinished.unlink()
            return 0, 0
        sync_file(unfinished)
        os.rename(unfinished, target)
        sync_directory(folder)
        return count, target.stat().st_size


def _folder_of(service: str) -> str:
    name = quote(service, safe=" ") or _NO_SERVICE
    return name.replace(".", "%2E") if name in (".", "..") else name  # these two would be other directories


def _number_behind(packed: Sequence[Path]) -> int:
    return max((int(path.name.split(".")[1]) for path in packed), default=0) + 1
