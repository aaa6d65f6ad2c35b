"""What a trail says of its events: in `stats()`, in a flush, while others deliver, and after its end."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.util.types import Attributes

from otel_audit.delivery.outcomes import Accepted, Batch, Exporter, ExportOutcome, Refused, Unavailable
from otel_audit.delivery.processor import Adoption, BatchProcessor, FlushReport
from otel_audit.event import AuditEvent
from otel_audit.journal.cursor import read_cursor
from otel_audit.journal.files import streams_in
from otel_audit.journal.ledger.files import LedgerFiles
from otel_audit.journal.locks import FileLock
from otel_audit.journal.reader import stream_header
from otel_audit.settings import Settings
from otel_audit.trail import Stats, Trail
from tests.opening import opening
from tests.servers import poll


class Taking:
    """A destination that takes what its judge does not mind."""

    def __init__(
        self, name: str = "otlp", judge: Callable[[Sequence[str]], ExportOutcome | None] = lambda types: None
    ) -> None:
        self.name = name
        self.delay_s = 0.02
        self.judge = judge

    def export(self, batch: Batch) -> ExportOutcome:
        return self.judge([line.content.decode() for line in batch.lines]) or Accepted()

    def close(self) -> None:
        """Nothing to let go of."""


def bad(texts: Sequence[str]) -> ExportOutcome | None:
    return Refused("a bad record") if any('"bad"' in text for text in texts) else None


def away(texts: Sequence[str]) -> ExportOutcome | None:
    return Unavailable("503 Service Unavailable")


def a_trail(directory: Path, *exporters: Exporter, resource: Resource | None = None, **settings: object) -> Trail:
    chosen = Settings.load({"OTEL_SERVICE_NAME": "shop"}, {"directory": str(directory), "export": "none", **settings})
    return Trail(chosen, exporters=exporters or None, resource=resource)


def log(trail: Trail, *types: str) -> None:
    for event_type in types:
        trail.emit(AuditEvent(event_type=event_type))


@contextmanager
def shipping(directory: Path, exporter: Exporter) -> Iterator[None]:
    """Somebody else delivers the streams of the directory."""
    everything = Adoption(lambda header: True, live=lambda header: True)
    processor = BatchProcessor(directory, [exporter], adoption=everything)
    processor.start()
    yield
    processor.close(timeout_s=10)


def test_a_close_that_waited_for_the_ledger_delivers_only_for_the_rest_of_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[float] = []
    close = BatchProcessor.close

    def closes(processor: BatchProcessor, *, timeout_s: float) -> bool:
        left.append(timeout_s)
        return close(processor, timeout_s=timeout_s)

    monkeypatch.setattr(BatchProcessor, "close", closes)
    trail = a_trail(tmp_path, Taking())
    held = FileLock.acquire(LedgerFiles(tmp_path).lock)
    assert held is not None
    trail.emit(AuditEvent(event_type="order"))

    trail.close(4.0)

    held.release()
    assert left == [0.0]


def test_what_somebody_else_delivered_after_the_close_counts(tmp_path: Path) -> None:
    trail = a_trail(tmp_path, Taking(judge=away))
    log(trail, *"abcde")
    trail.close(timeout_s=5)
    assert (trail.stats().exported, trail.stats().pending) == (0, 5)

    with shipping(tmp_path, Taking()):
        poll(lambda: trail.stats().exported, until=lambda count: count == 5, what="all to be delivered")

    assert trail.stats().pending == 0
    assert trail.numbers().exporters["otlp"].exported == 5


def test_what_another_exporter_of_the_next_owner_lacks_does_not_count(tmp_path: Path) -> None:
    exporter = Taking()
    trail = a_trail(tmp_path, exporter)
    log(trail, *"abc")
    assert trail.flush(20).complete
    exporter.judge = away
    log(trail, *"de")
    trail.close(timeout_s=5)
    (files,) = streams_in(tmp_path)

    with shipping(tmp_path, Taking("copy", judge=away)):
        poll(lambda: read_cursor(files.cursor)[0].keys(), until=lambda names: "copy" in names, what="the next owner")
        stats = trail.stats()

    assert (stats.exported, stats.pending) == (3, 2)


def test_what_a_side_car_delivered_counts_also_when_its_stream_is_gone(tmp_path: Path) -> None:
    trail = a_trail(tmp_path, export="ship")
    log(trail, *"abc")
    trail.close()
    with shipping(tmp_path, Taking()):
        poll(lambda: trail.stats().exported, until=lambda count: count == 3, what="all to be delivered")

    for files in streams_in(tmp_path):
        files.cursor.unlink()

    assert trail.stats() == Stats(3, 0, 0, 0)


def test_why_a_side_car_does_not_deliver_is_in_the_numbers_of_the_service(tmp_path: Path) -> None:
    with closing(a_trail(tmp_path, export="ship")) as trail:
        log(trail, "a")
        with shipping(tmp_path, Taking(judge=away)):
            poll(lambda: trail.stats().blocked, what="a reason")

        assert trail.stats().blocked == {"ship": "503 Service Unavailable"}


IN_A_CHILD = """
    import os, sys
    from opentelemetry.sdk.resources import Resource
    from otel_audit.event import AuditEvent
    from otel_audit.settings import Settings
    from otel_audit.trail import Trail

    settings = Settings.load({"OTEL_SERVICE_NAME": "shop"}, {"directory": sys.argv[1], "export": "none"})
    trail = Trail(settings, resource=Resource({"service.name": "shop", **dict([sys.argv[2:]] if sys.argv[2:] else [])}))
    trail.emit(AuditEvent(event_type="parent"))
    child = os.fork()
    for event_type in ("before its close", "after it"):
        trail.emit(AuditEvent(event_type=event_type))
        trail.close()
    if child:
        os.waitpid(child, 0)
"""


@pytest.mark.processes
@pytest.mark.parametrize("given", [(), ("service.instance.id", "shop-1")], ids=["made", "given"])
def test_a_process_is_one_instance_in_all_its_streams(given: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(IN_A_CHILD)]

    subprocess.run([*command, str(tmp_path), *given], timeout=60, check=True)

    headers = [stream_header(files) for files in streams_in(tmp_path)]
    named = {(header["pid"], header["resource"]["service.instance.id"]) for header in headers}
    assert len(headers) == 4
    assert len(named) == len({pid for pid, _ in named}) == len({instance for _, instance in named}) == 2
    assert not given or given[1] in {instance for _, instance in named}


def test_a_cursor_that_cannot_be_read_does_not_keep_a_service_from_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trail = a_trail(tmp_path, export="ship")
    log(trail, "a")
    (files,) = streams_in(tmp_path)
    files.cursor.mkdir()

    trail.close()

    assert trail.stats().pending == 1
    assert str(files.cursor) in capsys.readouterr().err


@pytest.mark.parametrize("refusing_first", [True, False])
def test_what_one_of_two_exporters_set_aside_is_not_exported(refusing_first: bool, tmp_path: Path) -> None:
    refusing, copying = Taking(judge=bad), Taking("jsonl")
    exporters = (refusing, copying) if refusing_first else (copying, refusing)
    with closing(a_trail(tmp_path, *exporters)) as trail:
        log(trail, "a", "bad", "b")
        poll(lambda: trail.flush(5).complete, what="all to be dealt with")

        assert trail.stats() == Stats(exported=2, pending=0, quarantined=1, dropped=0)

        copying.judge = away
        log(trail, "c")
        poll(lambda: trail.numbers().exporters["otlp"].exported, until=lambda count: count == 3, what="one to have it")
        stats = trail.stats()

    assert (stats.exported, stats.pending, stats.quarantined) == (2, 1, 1)


def test_the_numbers_add_up_while_ten_threads_log_and_all_is_delivered(tmp_path: Path) -> None:
    wrong: list[Stats] = []
    is_over = threading.Event()
    before = sys.getswitchinterval()
    with closing(a_trail(tmp_path, Taking())) as trail:

        def write() -> None:
            for _ in range(300):
                log(trail, "a")

        def look() -> None:
            while not is_over.is_set():
                stats = trail.stats()
                if stats.pending < 0 or stats.emitted != stats.exported + stats.pending:
                    wrong.append(stats)

        writers = [threading.Thread(target=write) for _ in range(10)]
        looking = [threading.Thread(target=look) for _ in range(2)]
        sys.setswitchinterval(1e-6)
        try:
            for thread in (*writers, *looking):
                thread.start()
            for thread in writers:
                thread.join()
            poll(lambda: trail.flush(5).complete, what="all to be delivered")
        finally:
            sys.setswitchinterval(before)
            is_over.set()
        for thread in looking:
            thread.join()
        assert trail.stats() == Stats(3000, 0, 0, 0)

    assert wrong == []


def test_an_event_that_is_delivered_before_its_writer_comes_to_count_it_is_counted(tmp_path: Path) -> None:
    has_written, is_looked_at = threading.Event(), threading.Event()

    def hold(frame: FrameType, happening: str, argument: Any) -> None:
        if happening == "c_return" and argument is os.write:
            has_written.set()
            is_looked_at.wait(30)

    def log_slowly() -> None:
        sys.setprofile(hold)
        log(trail, "second")

    with closing(a_trail(tmp_path, Taking())) as trail:
        log(trail, "first")
        writing = threading.Thread(target=log_slowly)
        writing.start()
        assert has_written.wait(30)

        poll(lambda: trail.stats().exported, until=lambda count: count == 2, what="both to be delivered")
        stats, numbers = trail.stats(), trail.numbers()

        is_looked_at.set()
        writing.join()
    assert stats == Stats(2, 0, 0, 0)
    assert (numbers.emitted, numbers.exporters["otlp"].exported, numbers.exporters["otlp"].pending) == (2, 2, 0)


def test_a_flush_waits_for_a_stream_that_another_thread_is_opening(tmp_path: Path) -> None:
    is_opening, may_go_on = threading.Event(), threading.Event()

    def hold(frame: FrameType, happening: str, argument: Any) -> None:
        if happening == "call" and frame.f_code.co_name == "follow":
            is_opening.set()
            may_go_on.wait(30)

    def log_slowly() -> None:
        sys.setprofile(hold)
        log(trail, "first")

    with closing(a_trail(tmp_path, Taking())) as trail:
        opening = threading.Thread(target=log_slowly)
        opening.start()
        assert is_opening.wait(30)
        log(trail, "second")

        report = trail.flush(timeout_s=0.2)
        assert (report.complete, report.pending) == (False, 3)  # with the header

        threading.Timer(0.2, may_go_on.set).start()
        assert trail.flush(timeout_s=30).complete
        opening.join()
        assert trail.stats().exported == 2


class Telling(Resource):
    """Whoever asks for its attributes comes in again: a header is written inside of `log()`."""

    asked: Callable[[], None] = staticmethod(lambda: None)

    @property
    def attributes(self) -> Attributes:  # type: ignore[override]  # the SDK's own is one that it left untyped
        asked, self.asked = self.asked, lambda: None
        asked()
        return super().attributes


def test_no_call_waits_for_the_search_for_what_dead_processes_left(tmp_path: Path) -> None:
    for number in range(3):
        with closing(a_trail(tmp_path, Taking(judge=away))) as dead:
            log(dead, f"old-{number}")
    left = {files.stream_id for files in streams_in(tmp_path)}

    with opening(tmp_path, lambda thread, name: thread == "otel-audit-keep" and name.split(".")[0] in left) as search:
        trail = a_trail(tmp_path, Taking())
        trail.flush(0)
        assert search.is_held.wait(30)

        log(trail, "first")
        assert trail.flush(30).complete
        assert trail.stats() == Stats(1, 0, 0, 0)
        trail.close(0.1)

        assert search.is_held.is_set()
        assert {thread for thread, name in search.opened if name.split(".")[0] in left} == {"otel-audit-keep"}
        search.may_go_on.set()
        poll(lambda: not any(FileLock.is_held(files.ship_lock) for files in streams_in(tmp_path)), what="free streams")


def test_a_flush_does_not_call_complete_what_was_logged_from_inside_of_log(tmp_path: Path) -> None:
    reports: list[FlushReport] = []
    resource = Telling({"service.name": "shop"})

    def from_inside() -> None:
        log(trail, "inner")
        reports.append(trail.flush(timeout_s=0))

    with closing(a_trail(tmp_path, Taking(), resource=resource)) as trail:
        resource.asked = from_inside
        log(trail, "outer")

        assert [(report.complete, report.pending) for report in reports] == [(False, 1)]
        assert trail.flush(timeout_s=30).complete
        assert trail.stats() == Stats(2, 0, 0, 0)
