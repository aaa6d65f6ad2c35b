"""A trail that is shown on the page: read into an index, verified and followed, all in the background.

The newest events of a journal, a packed trail or a log store are there at once, while the rest is read. Then a journal
is followed line by line. While somebody follows it, a log store is asked for what is new, and any other store is read
again, for at most a tenth of the time. The same limit applies to verifying a trail that has grown.

A log store cannot be asked what arrived since a moment, only for events by their own times. So each request reaches
back some minutes, since clocks differ and delivery takes time. If the new lines of a stream do not continue those that
are known, the ones in between are asked for by their numbers, however old they are. What arrives even later, such as
the backlog of a process that has ended, is found when the whole store is read again, which also happens now and then.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from otel_audit.errors import AuditError
from otel_audit.journal.files import StreamFiles, segments_in
from otel_audit.journal.line import Line
from otel_audit.journal.reader import service_in, stream_header
from otel_audit.query.database import TrailDatabase
from otel_audit.query.filters import Filters
from otel_audit.query.index import TrailIndex
from otel_audit.stores.columns import ColumnStore
from otel_audit.stores.directory import Latest, Seen
from otel_audit.stores.loki import LokiStore
from otel_audit.stores.store import Kind, Sought, Store, StoreUnreadable
from otel_audit.stores.victorialogs import VictoriaLogsStore
from otel_audit.verification.archive import verify_store
from otel_audit.verification.directory import bytes_of
from otel_audit.verification.findings import Report
from otel_audit.verification.pins import Pins
from otel_audit.verification.verify import verify_directory
from otel_audit.viewing.standing import Standings

__all__ = ["Stage", "ViewedTrail"]

_FIRST: Final = 200  # events that are shown before all of the trail has been read
_LOOK_EVERY_S: Final = 0.5
_AGAIN_S: Final = 5.0  # at least this long between two readings, or two verifications
_SHARE: Final = 10  # they take one part in this many of the time
_OVERLAP_NS: Final = 300 * 10**9  # events may arrive so late, or be so far behind by their clock
_WHOLE_S: Final = 300.0  # at least this long between two readings of a whole log store
_ADDED: Final = 1000  # lines at a time
_FOLLOWED_S: Final = 15.0  # after the page last asked
_RETRY_S: Final = 15.0  # after a log store could not be read
_STOP_S: Final = 5.0


class _Closed(Exception):
    """The trail was closed."""


@dataclass(frozen=True, slots=True)
class Stage:
    """The progress of reading or verifying.

    `share` is from 0 to 1, or None if it is unknown. `size_bytes` counts the bytes of the lines read so far. `error`
    says why it failed.
    """

    is_done: bool = False
    share: float | None = None
    error: str = ""
    size_bytes: int = 0


class ViewedTrail:
    """A trail that is read and verified in the background from `start` to `close`. Any thread may query it.

    `opened` opens the store, once for each thread. `grown` counts how often events were added, and `verified` how often
    the trail was verified. `outdated` says why the trail could not be read again, so that the page may show old events;
    it is empty if all is well.
    """

    def __init__(self, opened: Callable[[], Store], pins: Pins) -> None:
        self._opened = opened
        self._pins = pins
        with opened() as store:
            self.kind = store.kind
            self.where = store.where
        self.directory = Path(self.where) if self.kind is Kind.JOURNAL else None
        self.report: Report | None = None
        self.standings = Standings(None)
        self.grown = 0
        self.verified = 0
        self.outdated = ""
        self._read_bytes = 0
        self._verified_bytes = 0
        self._all_bytes = 0
        self._reading = Stage()
        self._verifying = Stage()
        self._index: TrailIndex | None = None
        self._filling: TrailIndex | None = None
        self._services: dict[str, str] = {}
        self._asked_ns = 0  # when the store was last asked, without an error
        self._followed_at = float("-inf")
        self._closing = threading.Event()
        self._is_read = threading.Event()
        self._changed = threading.Event()
        self._swap = threading.Lock()
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=f"view-{name}", daemon=True)
            for name, work in (("read", self._read), ("verify", self._verify))
        ]

    def start(self) -> None:
        """Start to read and to verify the trail."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop, and remove the temporary files."""
        self._closing.set()
        self._is_read.set()
        self._changed.set()
        for index in (self._filling, self._index):
            if index is not None:
                index.stop()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(_STOP_S)
        for index in (self._filling, self._index):
            if index is not None:
                index.close()

    @property
    def reading(self) -> Stage:
        """The progress of reading."""
        filling = self._filling
        if self._reading.is_done or self._reading.error or filling is None:
            return self._reading
        return Stage(share=filling.share(), size_bytes=self._read_bytes)

    @property
    def verifying(self) -> Stage:
        """The progress of the current or last verification. The first begins when the trail has been read."""
        if self._verifying.is_done or self._verifying.error or not self._all_bytes:
            return self._verifying
        return Stage(share=min(1.0, self._verified_bytes / self._all_bytes))

    def follow(self) -> None:
        """Note that somebody follows the trail now."""
        self._followed_at = time.monotonic()

    @contextlib.contextmanager
    def index(self) -> Iterator[TrailIndex | None]:
        """Inside the block, give the index of the events read so far, or None before there are any."""
        with contextlib.ExitStack() as stack:
            with self._swap:
                reader = stack.enter_context(self._index.reader()) if self._index is not None else None
            yield reader

    def _guarded(self, work: Callable[[], None]) -> None:
        with contextlib.suppress(_Closed):
            work()

    # Reading.

    def _read(self) -> None:
        try:
            latest = Latest(self.directory) if self.directory is not None else None
            if latest is not None:
                self._show_first([self._with_service(each) for each in latest.last(_FIRST)])
            self._fill_at_last()
        except (AuditError, OSError) as error:
            if self._closing.is_set():
                return
            self._reading = Stage(error=str(error))
            return
        finally:
            self._is_read.set()
        if latest is not None:
            self._follow_lines(latest)
        else:
            self._follow_by_reading_again()

    def _fill_at_last(self) -> None:
        """Read the trail. If a log store cannot be read, try again until it can."""
        while True:
            try:
                if self._index is None and (newest := self._newest_of_store()):
                    self._show_first(newest)
                self._fill()
                self._reading = Stage(is_done=True)
                return
            except StoreUnreadable as error:
                self._reading = Stage(error=str(error))
                if self._closing.wait(_RETRY_S):
                    raise _Closed from error
                self._reading = Stage()

    def _show_first(self, lines: Sequence[tuple[bytes, str]]) -> None:
        """Show some lines, each with its service, until all have been read."""
        first = TrailIndex()
        first.fill([])
        first.add(lines)
        self._show(first)

    def _newest_of_store(self) -> Sequence[tuple[bytes, str]]:
        """Return the newest lines of a log store or a packed trail, each once. Others have to be read to find them."""
        found: dict[bytes, str] = {}
        with self._opened() as store:
            if isinstance(store, ColumnStore):
                return _newest_packed(store)
            for stored, service in store.newest(_FIRST) if isinstance(store, LokiStore | VictoriaLogsStore) else ():
                match stored:
                    case (str(), Line() as line):
                        found[line.content] = service
        return list(found.items())

    def _fill(self) -> None:
        filling = self._filling = TrailIndex()
        self._read_bytes, begun_ns = 0, time.time_ns()
        try:
            with self._opened() as store:
                filling.fill([store], self._was_read)
        except BaseException:
            self._filling = None
            filling.close()
            raise
        self._show(filling)
        self._filling, self._asked_ns = None, begun_ns

    def _was_read(self, size_bytes: int) -> None:
        if self._closing.is_set():
            raise _Closed
        self._read_bytes += size_bytes

    def _show(self, index: TrailIndex) -> None:
        with self._swap:
            if self._closing.is_set():  # `close` may have stopped waiting for this thread
                index.close()
                raise _Closed
            former, self._index = self._index, index
        self._grown()
        if former is not None:
            former.close()  # a thread that queries it now has its own connection

    def _grown(self) -> None:
        self.grown += 1
        self._changed.set()

    def _with_service(self, seen: Seen) -> tuple[bytes, str]:
        service = self._services.get(seen.stream_id)
        if service is None and self.directory is not None:
            service = service_in(stream_header(StreamFiles(self.directory, seen.stream_id)))
            self._services[seen.stream_id] = service
        return seen.line, service or ""

    def _follow_lines(self, latest: Latest) -> None:
        index = self._index
        assert index is not None  # `_fill` has shown it
        reached = index.reached()
        while not self._closing.wait(_LOOK_EVERY_S):
            self.outdated = self._lost()
            with contextlib.suppress(AuditError, OSError):  # the next look may succeed; `verify` says what is wrong
                new = [each for each in latest.new() if each.seq > reached.get(each.stream_id, 0)]
                if new:
                    index.add([self._with_service(each) for each in new])
                    for each in new:
                        reached[each.stream_id] = max(each.seq, reached.get(each.stream_id, 0))
                    self._grown()

    def _lost(self) -> str:
        """Return why nothing of a journal is there any more, or an empty text.

        An empty directory is a journal that has not begun, of which nothing is wrong, unless lines of it were read.
        """
        if self.directory is None or not self._services or segments_in(self.directory):
            return ""
        return f"{self.where}: expected the journal that was read before, got no segment of it; it was moved or removed"

    def _follow_by_reading_again(self) -> None:
        """Read all of a store again, or ask a log store for what is new, while somebody follows it."""
        is_asked = self.kind in (Kind.LOKI, Kind.VICTORIALOGS)
        took_s, whole_s, whole_at, known = 0.0, 0.0, time.monotonic(), self._files()
        while not self._closing.wait(_RETRY_S if self.outdated else max(_AGAIN_S, _SHARE * took_s)):
            if time.monotonic() - self._followed_at > _FOLLOWED_S or (known and self._files() == known):
                continue
            begun, known = time.monotonic(), self._files()
            is_whole = not is_asked or begun - whole_at > max(_WHOLE_S, _SHARE * whole_s)
            try:
                if is_whole:
                    self._fill()
                else:
                    self._add_new()
                self.outdated = ""
            except (AuditError, OSError) as error:
                self.outdated, known = str(error), {}
            took_s = time.monotonic() - begun
            if is_whole and not self.outdated:
                whole_s, whole_at = took_s, time.monotonic()
                took_s = 0.0 if is_asked else took_s  # `whole_s` keeps the next one away

    def _add_new(self) -> None:
        """Ask a log store for the lines since the last time, and for those that are missing before them."""
        index, begun_ns = self._index, time.time_ns()
        assert index is not None  # `_fill` has shown it
        newest_ns = index.newest_ns(self._asked_ns)
        since_ns = (self._asked_ns if newest_ns is None else newest_ns) - _OVERLAP_NS
        reached, first = index.reached(), dict[str, int]()
        with self._opened() as store:
            added = 0
            for lines in _portions(store, Sought(since_ns=since_ns)):
                added += index.add([(line.content, service) for _, line, service in lines], once=True)
                for stream_id, line, _ in lines:
                    if line.seq > reached.get(stream_id, 0):
                        first[stream_id] = min(line.seq, first.get(stream_id, line.seq))
            for stream_id, seq in first.items():
                last = reached.get(stream_id, 0)
                if seq > last + 1:
                    time_ns = index.time_ns_of(stream_id, last)
                    since = None if time_ns is None else time_ns - _OVERLAP_NS
                    missing = Sought(stream_id=stream_id, since_ns=since, first=last + 1, end=seq)
                    for lines in _portions(store, missing):
                        added += index.add([(line.content, service) for _, line, service in lines], once=True)
        self._asked_ns = begun_ns
        if added:
            self._grown()

    # Verifying.

    def _verify(self) -> None:
        self._is_read.wait()
        if self.kind is Kind.EVENT_LOG:
            return
        while not self._closing.is_set():
            self._changed.clear()
            begun, known = time.monotonic(), self._files()
            try:
                report = self._verified()
                self.standings, self.report = Standings(report), report
                self._verifying = Stage(is_done=True)
            except (AuditError, OSError) as error:
                self._verifying = Stage(error=str(error))
                self.verified += 1
                self._closing.wait(_RETRY_S)
                continue
            self.verified += 1
            took_s = time.monotonic() - begun
            self._closing.wait(max(_AGAIN_S, _SHARE * took_s))
            while not self._closing.is_set() and (self._files() == known if known else not self._changed.is_set()):
                self._closing.wait(_AGAIN_S)

    def _verified(self) -> Report:
        self._verified_bytes, self._all_bytes = 0, 0
        if self.directory is not None:
            if lost := self._lost():
                raise StoreUnreadable(lost)
            self._all_bytes = bytes_of(self.directory)
            return verify_directory(self.directory, self._pins, passed=self._passed)
        with self._opened() as store:
            return verify_store(store, self._pins, passed=self._passed)

    def _passed(self, size_bytes: int) -> None:
        if self._closing.is_set():
            raise _Closed
        self._verified_bytes += size_bytes

    def _files(self) -> Mapping[str, tuple[int, int]]:
        """Return size and time of each file of the trail, which change as it grows. Empty for a log store."""
        found: dict[str, tuple[int, int]] = {}
        path = Path(self.where)
        with contextlib.suppress(OSError, ValueError):
            for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
                with contextlib.suppress(OSError):
                    state = each.stat()
                    found[str(each)] = (state.st_size, state.st_mtime_ns)
        return found


def _portions(store: Store, sought: Sought) -> Iterator[Sequence[tuple[str, Line, str]]]:
    """Yield the lines of a log store that are asked for, each with its stream and service, some at a time."""
    found = store.search(sought) if isinstance(store, LokiStore | VictoriaLogsStore) else iter(())
    lines = ((*stored, service) for stored, service in found if isinstance(stored, tuple) and len(stored) == 2)
    while portion := list(islice(lines, _ADDED)):
        yield portion


def _newest_packed(store: ColumnStore) -> Sequence[tuple[bytes, str]]:
    with TrailDatabase([store]) as database:
        found = list(database.find(Filters(), _FIRST))
        # Their services are read from that time on, and not from the whole trail.
        question, values = database.select(Filters(since_ns=found[-1].place.time_ns if found else None), _FIRST)
        _, rows = database.rows(f"SELECT line, service FROM ({question})", values)
        return [(str(line).encode(), service or "") for line, service in rows]
