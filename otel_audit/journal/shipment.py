"""The right to export one stream, and how a process gets it: for its own streams, and for those whose writer is gone.

`Adoption` says which streams of other processes are taken over, and how many at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from otel_audit.journal.cursor import Cursor, Position, is_over
from otel_audit.journal.files import StreamFiles, segments_in
from otel_audit.journal.locks import FileLock, may_live_elsewhere
from otel_audit.journal.reader import StreamReader, has_lines_after, stream_header
from otel_audit.journal.removal import origin_of
from otel_audit.threads import give_way

__all__ = ["Adoption", "Shipment", "adopt", "take"]


def _unknown() -> Position | None:
    return None


@dataclass(slots=True)
class Shipment:
    """The right to export one stream, and its cursor: the ship lock is held until `release`.

    `writer_lock` is held too when the writer is gone: nothing more will come. `leaves_lock`: a lock file that a dead
    writer has left stays, since somebody tells the ledger of its end, and removes it then. `durable` says how far the
    writer knows its lines to be durable, and with that how far they may be exported; None where it is in another
    process.
    """

    files: StreamFiles
    cursor: Cursor
    ship_lock: FileLock
    writer_lock: FileLock | None
    durable: Callable[[], Position | None] = _unknown
    released: bool = False
    file_mode: int = 0o600
    leaves_lock: bool = False
    was_left: bool = False  # the writer died, or could not tell of its end: its lock file was still there

    @property
    def stream_id(self) -> str:
        """The id of the stream."""
        return self.files.stream_id

    def is_for(self, exporter: str) -> bool:
        """Return True if the exporter of this name is to have the stream."""
        return True

    def reader(self) -> StreamReader:
        """A reader of its lines, for one thread."""
        return StreamReader(self.files, give_way=give_way)

    def has_lines_after(self, position: Position) -> bool:
        """True when a whole line of the stream stands behind this position.

        Raises:
            OSError: its files cannot be read.
        """
        return has_lines_after(self.files, position)

    @property
    def ended(self) -> bool:
        """True when the writer is gone. Once true it stays so: a stream is never opened again."""
        if self.writer_lock is None and not FileLock.is_held(self.files.writer_lock):
            # A lock file that is missing was removed by a writer that ended, or by an adopter that saw its end.
            self.was_left = self.files.writer_lock.exists()
            self.writer_lock = FileLock.acquire(self.files.writer_lock)
        return self.writer_lock is not None

    def keeps_its_lock(self) -> bool:
        """Return False if another process has taken the stream since somebody removed the file of the ship lock.

        A lock file that is only missing is made again, and so is a cursor.

        Raises:
            OSError: it could not be made again.
        """
        if self.released:
            return True
        if not self.ship_lock.is_in_place():
            lock = FileLock.acquire(self.files.ship_lock, mode=self.file_mode)
            if lock is None:
                return False
            former, self.ship_lock = self.ship_lock, lock
            former.release()
        self.cursor.restore()
        return True

    def conclude(self) -> None:
        """Keep that the stream is over, if its writer is gone and every exporter that it has or had is at its end.

        One that this process does not run counts too: what is delivered over OTLP may still lack in a copy.
        """
        if not self.cursor.ended and self.ended and not any(map(self._is_behind, self._exporters())):
            self.cursor.end()

    def _is_behind(self, exporter: str) -> bool:
        return self.has_lines_after(self.cursor.progress(exporter).position)

    def _exporters(self) -> set[str]:
        words = stream_header(self.files).get("export")
        named = {word for word in words if isinstance(word, str)} if isinstance(words, list) else set()
        return {*self.cursor.exporters(), *named} - {"none", "ship"}

    def release(self) -> None:
        """Others may export the stream. Lock files of a stream that ended are removed."""
        over = self.writer_lock is not None or self.cursor.ended
        self.released = True
        self.cursor.close()
        if self.writer_lock is not None:
            self.writer_lock.release(remove=not (self.leaves_lock and self.was_left))
        self.ship_lock.release(remove=over)

    def abandon(self) -> None:
        """In a forked child: close the descriptors, and leave the locks to the parent."""
        self.cursor.abandon()
        self.ship_lock.abandon()
        if self.writer_lock is not None:
            self.writer_lock.abandon()


def take(
    files: StreamFiles,
    *,
    file_mode: int = 0o600,
    durable: Callable[[], Position | None] = _unknown,
    leaves_lock: bool = False,
) -> Shipment | None:
    """The right to export this stream, whether its writer lives or not; None when somebody else has it."""
    ship_lock = FileLock.acquire(files.ship_lock, mode=file_mode)
    if ship_lock is None:
        return None
    try:
        cursor = Cursor(files.cursor, mode=file_mode, origin=origin_of(files))
    except BaseException:
        ship_lock.release()
        raise
    return Shipment(files, cursor, ship_lock, None, durable, file_mode=file_mode, leaves_lock=leaves_lock)


def _nobody(header: Mapping[str, Any]) -> bool:
    return False


def _unheard(files: StreamFiles, error: Exception | None = None) -> None:
    """A stream that cannot be used is left for the next look, and one of another host for good."""


def adopt(
    directory: Path,
    *,
    wanted: Callable[[Mapping[str, Any]], bool],
    known: set[str],
    live: Callable[[Mapping[str, Any]], bool] = _nobody,
    foreign: bool = False,
    most: int = 64,
    file_mode: int = 0o600,
    failed: Callable[[StreamFiles, Exception], None] = _unheard,
    left: Callable[[StreamFiles], None] = _unheard,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Shipment]:
    """Take streams that nobody exports and whose writer is gone, oldest first, one by one, at most `most`.

    `wanted` says by the header whether a stream concerns the caller. `known` are ids not to look at again; those that
    are found delivered, or not to be wanted, are added. `live` says by the header which to take although their writer
    lives. `foreign`: also those whose writer may live on another host; else `left` is
    told of each that is wanted. A stream whose files cannot be used is told to `failed`, and the others are taken.
    `stopped` is asked before each.
    """
    taken = 0
    for stream_id in segments_in(directory):
        if stream_id in known:
            continue  # most of them, where thousands have ended
        if taken >= most or stopped():
            return
        files = StreamFiles(directory, stream_id)
        try:
            shipment = _taken(
                files,
                wanted=wanted,
                known=known,
                live=live,
                foreign=foreign,
                left=left,
                file_mode=file_mode,
            )
        except Exception as error:  # of the files, or of `wanted` on a header that was damaged
            failed(files, error)
            continue
        if shipment is not None:
            taken += 1
            yield shipment


def _taken(
    files: StreamFiles,
    *,
    wanted: Callable[[Mapping[str, Any]], bool],
    known: set[str],
    live: Callable[[Mapping[str, Any]], bool],
    foreign: bool,
    left: Callable[[StreamFiles], None],
    file_mode: int,
) -> Shipment | None:
    if is_over(files.cursor):
        known.add(files.stream_id)
        return None
    is_live = FileLock.is_held(files.writer_lock)
    if is_live and live is _nobody:
        return None  # the header of every live stream would be read at every look
    header = stream_header(files)
    if not wanted(header):
        known.add(files.stream_id)
        return None
    if not foreign and may_live_elsewhere(directory=files.directory, header=header):
        known.add(files.stream_id)
        left(files)
        return None
    if is_live and not live(header):
        return None
    # A writer that knows of a ledger has opened its stream there: how it ended has to be told there too.
    shipment = take(files, file_mode=file_mode, leaves_lock="ledger" in header)
    if shipment is not None and shipment.cursor.ended:
        known.add(files.stream_id)
        with contextlib.suppress(OSError):  # it is opened once more, by the next process
            shipment.cursor.end()
        shipment.release()
        return None
    return shipment


_STREAMS_AT_ONCE = 64


class Adoption(msgspec.Struct, frozen=True):
    """Which streams of other processes are taken over: those whose header is `wanted` and whose writer is gone.

    `live`: of those whose writer lives, which. `foreign`: also those whose writer may live on another host. `at_once`:
    how many are held at most; each takes about five descriptors.
    """

    wanted: Callable[[Mapping[str, Any]], bool]
    live: Callable[[Mapping[str, Any]], bool] | None = None
    foreign: bool = False
    at_once: int = _STREAMS_AT_ONCE

    def take(
        self,
        directory: Path,
        *,
        known: set[str],
        held: int,
        file_mode: int,
        failed: Callable[[StreamFiles, Exception], None],
        left: Callable[[StreamFiles], None] = lambda files: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[Shipment]:
        """Take what may be taken now, one by one, beside the `held` ones. See `otel_audit.journal.shipment.adopt`."""
        live = {} if self.live is None else {"live": self.live}
        return adopt(
            directory,
            wanted=self.wanted,
            known=known,
            foreign=self.foreign,
            most=self.at_once - held,
            file_mode=file_mode,
            failed=failed,
            left=left,
            stopped=stopped,
            **live,
        )
