"""The right to export one stream, for streams of this process and for those whose writer is gone.

`Adoption` decides which streams of other processes are taken over, and how many at a time.
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
from otel_audit.journal.removal import origin_of, remove_unbegun
from otel_audit.threads import give_way

__all__ = ["Adoption", "Shipment", "adopt", "take"]


def _unknown() -> Position | None:
    return None


@dataclass(slots=True)
class Shipment:
    """The right to export one stream, with its cursor. The ship lock is held until `release`.

    If the writer is gone, `writer_lock` is held too, and no more lines will come. With `leaves_lock`, the lock file of
    a dead writer stays, since another component records its end in the ledger and then removes it. `durable` returns
    the position up to which the writer knows its lines to be durable and lets them be exported. It is None if the
    writer is in another process.
    """

    files: StreamFiles
    cursor: Cursor
    ship_lock: FileLock
    writer_lock: FileLock | None
    durable: Callable[[], Position | None] = _unknown
    released: bool = False
    file_mode: int = 0o600
    leaves_lock: bool = False
    was_left: bool = False  # the writer died or could not report its end, since its lock file was still there

    @property
    def stream_id(self) -> str:
        """The id of the stream."""
        return self.files.stream_id

    def is_for(self, exporter: str) -> bool:
        """Return True if the exporter of this name gets the stream."""
        return True

    def reader(self) -> StreamReader:
        """Return a reader of its lines, for one thread."""
        return StreamReader(self.files, give_way=give_way)

    def has_lines_after(self, position: Position) -> bool:
        """Return True if a whole line of the stream follows this position.

        Raises:
            OSError: its files cannot be read.
        """
        return has_lines_after(self.files, position)

    @property
    def ended(self) -> bool:
        """Return True if the writer is gone. It then stays True, since a stream is never opened again."""
        if self.writer_lock is None and not FileLock.is_held(self.files.writer_lock):
            # A missing lock file was removed by a writer that ended, or by an adopter that saw its end.
            self.was_left = self.files.writer_lock.exists()
            self.writer_lock = FileLock.acquire(self.files.writer_lock)
        return self.writer_lock is not None

    def keeps_its_lock(self) -> bool:
        """Return False if the file of the ship lock was removed and another process has taken the stream since.

        A missing lock file is made again if nobody has, and so is a cursor.

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
        """Mark the stream as over, if its writer is gone and every exporter that it has or had is at its end.

        Exporters that this process does not run count too: what is delivered over OTLP may still be missing in a copy.
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
        """Let others export the stream, and remove the lock files of a stream that ended."""
        over = self.writer_lock is not None or self.cursor.ended
        self.released = True
        self.cursor.close()
        if self.writer_lock is not None:
            self.writer_lock.release(remove=not (self.leaves_lock and self.was_left))
        self.ship_lock.release(remove=over)

    def abandon(self) -> None:
        """Close the descriptors and leave the locks to the parent, in a forked child."""
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
    """Return the right to export this stream, whether its writer lives or not.

    Return None if another process has it, or has just removed the stream.
    """
    ship_lock = FileLock.acquire(files.ship_lock, mode=file_mode)
    if ship_lock is None:
        return None
    try:
        if files.segment_from(1) is None:  # a cursor that is made now would stay for ever
            ship_lock.release(remove=True)
            return None
        cursor = Cursor(files.cursor, mode=file_mode, origin=origin_of(files))
    except BaseException:
        ship_lock.release()
        raise
    return Shipment(files, cursor, ship_lock, None, durable, file_mode=file_mode, leaves_lock=leaves_lock)


def _nobody(header: Mapping[str, Any]) -> bool:
    return False


def _unheard(files: StreamFiles, error: Exception | None = None) -> None:
    """Ignore a stream that cannot be used until the next search, and one of another host for good."""


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

    `wanted` decides by the header whether a stream concerns the caller. `known` are ids to skip; streams found
    delivered or unwanted are added. `live` decides by the header which streams to take although their writer lives.
    With `foreign`, streams whose writer may live on another host are taken too; otherwise `left` is called with each
    wanted one. `failed` is called with a stream whose files cannot be used, and the others are taken. `stopped` is
    called before each.
    """
    taken = 0
    for stream_id in segments_in(directory):
        if stream_id in known:
            continue  # true of most, if thousands have ended
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
        except Exception as error:  # raised by the files, or by `wanted` for a damaged header
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
        return None  # otherwise every search would read the header of every live stream
    header = stream_header(files)
    if not header and not is_live and remove_unbegun(files):
        return None
    if not wanted(header):
        known.add(files.stream_id)
        return None
    if not foreign and may_live_elsewhere(directory=files.directory, header=header):
        known.add(files.stream_id)
        left(files)
        return None
    if is_live and not live(header):
        return None
    # A writer with a ledger has recorded its stream there, so its end has to be recorded there too.
    shipment = take(files, file_mode=file_mode, leaves_lock="ledger" in header)
    if shipment is not None and shipment.cursor.ended:
        known.add(files.stream_id)
        with contextlib.suppress(OSError):  # the next process opens it once more
            shipment.cursor.end()
        shipment.release()
        return None
    return shipment


_STREAMS_AT_ONCE = 64


class Adoption(msgspec.Struct, frozen=True):
    """The rule for taking over streams of other processes: the header must be `wanted`, and the writer gone.

    `live` chooses streams whose writer lives. With `foreign`, streams whose writer may live on another host are taken
    too. At most `at_once` are held, since each takes about five descriptors.
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
        """Take streams now, one by one, in addition to the `held` ones. See `otel_audit.journal.shipment.adopt`."""
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
