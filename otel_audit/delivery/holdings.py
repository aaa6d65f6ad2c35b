"""The streams that a process may export: its own, and those that it took over.

The process's own streams are added by `expect` and `take_waiting`, under one lock of the caller. Other streams are
taken over and released under a second lock, and `release` needs both. Methods that only read need neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from otel_audit.journal.census import Foreign, stream_counts
from otel_audit.journal.cursor import Progress, read_cursor
from otel_audit.journal.files import StreamFiles
from otel_audit.journal.ledger.shipping import LedgerShipment, LedgerShipping
from otel_audit.journal.shipment import Adoption, Shipment
from otel_audit.notices import Notices

__all__ = ["Holdings"]


class Holdings:
    """The streams of a directory that this process holds, each until all `exporters` have it or until `release`.

    `ledger` takes the right to deliver the directory's ledger, which is held like a stream.
    """

    def __init__(
        self,
        directory: Path,
        exporters: Sequence[str],
        *,
        file_mode: int,
        notices: Notices,
        ledger: LedgerShipping | None = None,
    ) -> None:
        self._directory = directory
        self._exporters = exporters
        self._file_mode = file_mode
        self._notices = notices
        self._waiting: list[Callable[[], Shipment | None]] = []
        self._own: list[Shipment] = []
        self._adopted: list[Shipment] = []
        self._known: set[str] = set()
        self._foreign: list[StreamFiles] = []
        self._ledger_shipping = ledger
        self._ledger: LedgerShipment | None = None

    @property
    def shipments(self) -> dict[str, Shipment]:
        """All held streams, by their ids."""
        return {each.stream_id: each for each in [*self._own, *self._adopted]}

    @property
    def removable(self) -> dict[str, Shipment]:
        """All that retention may remove from: the held streams and the ledger, by their ids."""
        ledger = self._ledger
        return self.shipments if ledger is None or ledger.released else {**self.shipments, ledger.stream_id: ledger}

    def expect(self, taking: Callable[[], Shipment | None]) -> None:
        """Take a stream of this process as soon as possible."""
        self._waiting.append(taking)

    @property
    def is_expecting(self) -> bool:
        """True while a stream of this process waits to be taken."""
        return bool(self._waiting)

    def take_waiting(self) -> list[Shipment]:
        """Take streams of this process that could not be taken before, since the disk was full or another had them."""
        taken: list[Shipment] = []
        for taking in list(self._waiting):
            try:
                shipment = taking()
            except OSError as error:
                self._notices.say(
                    "take", f"{self._directory}: events wait in the journal, delivery cannot begin: {error}"
                )
                continue
            if shipment is not None:
                self._waiting.remove(taking)
                self._own.append(shipment)
                self._known.add(shipment.stream_id)
                taken.append(shipment)
        return taken

    def adopt(self, adoption: Adoption, stopped: Callable[[], bool]) -> Iterator[Shipment]:
        """Take over the streams that are free now. Each one is held before the search continues."""
        for shipment in adoption.take(
            self._directory,
            known=self._known,
            held=len(self._adopted),
            file_mode=self._file_mode,
            failed=self._not_taken,
            left=self._foreign.append,
            stopped=stopped,
        ):
            self._known.add(shipment.stream_id)
            self._adopted.append(shipment)
            yield shipment

    def take_ledger(self) -> list[Shipment]:
        """Take the ledger of the directory if nobody has it, or its successor if it was replaced."""
        if self._ledger_shipping is None:
            return []
        try:
            if self._ledger is not None and self._ledger.is_followed():
                self._ledger.release()
            if self._ledger is None or self._ledger.released:
                self._ledger = self._ledger_shipping.take()
                return [] if self._ledger is None else [self._ledger]
        except OSError as error:
            self._notices.say("take ledger", f"{self._directory}: the ledger cannot be delivered: {error}")
        return []

    def say_foreign(self, stopped: Callable[[], bool]) -> None:
        """Say, once for each stream, how many events of other hosts were passed over. This reads all of them."""
        left, self._foreign = self._foreign, []
        pending = [stream_counts(files, files.segments()).pending for files in left if not stopped()]
        if events := sum(pending):
            foreign = Foreign(self._directory, events, sum(map(bool, pending)))
            self._notices.say("foreign", f"{self._directory}: {foreign.says}; {foreign.remedy}")

    def let_go(self) -> None:
        """Release the streams that ended and are delivered, and those that another process has taken.

        Delivered streams of this process are kept for their numbers.
        """
        for shipment in [*self._own, *self._adopted]:
            if self._is_lost(shipment):
                self._own = [each for each in self._own if each is not shipment]
                self._adopted = [each for each in self._adopted if each is not shipment]
                shipment.release()
        if self._ledger is not None and self._is_lost(self._ledger):
            self._ledger.release()
        for own in filter(self._is_over, list(self._own)):
            self._conclude(own)
        for shipment in list(filter(self._is_over, self._adopted)):
            self._adopted.remove(shipment)
            self._release(shipment)

    def release(self, deadline: float) -> bool:
        """Release everything. Return True if all of it was delivered."""
        delivered = all(map(self._is_delivered, self._own))
        for own in self._own:
            self._release(own)
        for shipment in self._adopted:
            # There may be dozens, each with files to check. The next owner deals with those that there is no time for.
            is_over = time.monotonic() < deadline and self._is_delivered(shipment)
            if is_over:
                self._conclude(shipment)
            shipment.release()
            delivered = delivered and is_over
        if self._ledger is not None and not self._ledger.released:
            self._ledger.release()
        self._own, self._adopted, self._ledger = [], [], None
        return delivered

    def abandon(self) -> None:
        """Abandon all of it in a forked child: it belongs to the parent."""
        for shipment in [*self._own, *self._adopted]:
            shipment.abandon()
        if self._ledger is not None and not self._ledger.released:
            self._ledger.abandon()

    def progress(self) -> dict[str, dict[str, Progress]]:
        """Return how far each exporter has come, by stream of this process."""
        return {
            shipment.stream_id: {exporter: shipment.cursor.seen(exporter) for exporter in self._exporters}
            for shipment in list(self._own)
        }

    def missing(self, seqs: Mapping[str, int], exporter: str) -> int:
        """Return how many lines of this process, up to the given ones, this exporter has not dealt with."""
        done = {shipment.stream_id: shipment.cursor.progress(exporter) for shipment in list(self._own)}
        return sum(
            max(0, seq - (done.get(stream_id) or self._elsewhere(stream_id, exporter)).position.seq)
            for stream_id, seq in seqs.items()
        )

    def _elsewhere(self, stream_id: str, exporter: str) -> Progress:
        """Return the progress of another process that ships a stream of this one."""
        try:
            cursor = StreamFiles(self._directory, stream_id).cursor
            return read_cursor(cursor, listed=False)[0].get(exporter, Progress())
        except OSError:
            return Progress()  # unknown, so nothing counts as delivered

    def _not_taken(self, files: StreamFiles, error: Exception) -> None:
        self._notices.say(f"take {files.stream_id}", f"{files.segment(1)}: a stream cannot be delivered: {error!r}")

    def _is_lost(self, shipment: Shipment) -> bool:
        """Return True if somebody removed the lock file and another process now delivers the stream."""
        try:
            return not shipment.keeps_its_lock()
        except OSError as error:
            what = f"{shipment.files.cursor}: the cursor or the lock beside it was removed, and cannot be made again"
            self._notices.say("restore", f"{what}: {error}")
            return False

    def _is_over(self, shipment: Shipment) -> bool:
        """Return True if the writer was already gone when its lines were last read."""
        return not shipment.cursor.ended and shipment.ended and self._is_delivered(shipment)

    def _is_delivered(self, shipment: Shipment) -> bool:
        try:
            return not any(
                shipment.has_lines_after(shipment.cursor.progress(exporter).position) for exporter in self._exporters
            )
        except OSError:
            return False  # its worker reports the reason

    def _conclude(self, shipment: Shipment) -> None:
        try:
            shipment.conclude()
        except OSError as error:  # the next owner finds it delivered, and marks it
            self._notices.say("conclude", f"{self._directory}: the end of a stream cannot be kept: {error}")

    def _release(self, shipment: Shipment) -> None:
        if self._is_delivered(shipment):  # the cursor does not name exporters that have not begun with the stream
            self._conclude(shipment)
        shipment.release()
