"""The numbers as OTel metrics: what a reader of the application's meter provider sees."""

from __future__ import annotations

import gc
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.metrics import Histogram, Meter, MeterProvider, NoOpMeter
from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, Metric, NumberDataPoint

from otel_audit.delivery.metrics import AuditMetrics
from otel_audit.delivery.numbers import ExporterNumbers, Numbers
from otel_audit.errors import AuditUnavailable, JournalFull
from otel_audit.event import AuditEvent
from otel_audit.journal.cursor import Cursor, Position, Progress
from otel_audit.journal.files import streams_in
from otel_audit.settings import Settings
from otel_audit.sinks import AuditSink
from otel_audit.trail import Trail
from tests.delivery.audited_server import AuditedServer, exporter_to
from tests.servers import poll
from tests.servers.otlp_server import Answer, partial_success

ROOT = Path(__file__).parents[1]
UNAVAILABLE = Answer(503)
REFUSED = Answer(400)


class Reader:
    """A meter provider of its own, and what is seen through it."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.metrics = AuditMetrics(SdkMeterProvider([self._reader], shutdown_on_exit=False))

    def collect(self) -> dict[str, Metric]:
        data = self._reader.get_metrics_data()
        assert data is not None
        (resource,) = data.resource_metrics
        (scope,) = resource.scope_metrics
        assert scope.scope.name == "otel_audit"
        return {metric.name: metric for metric in scope.metrics}

    def values(self) -> dict[str, dict[str, float]]:
        """By name, and by the values of the attributes, in the order of their names."""
        return {name: dict(map(value_of, metric.data.data_points)) for name, metric in self.collect().items()}


def value_of(point: Any) -> tuple[str, float]:
    assert isinstance(point, NumberDataPoint | HistogramDataPoint)
    key = " ".join(str(value) for _, value in sorted((point.attributes or {}).items()))
    return key, point.count if isinstance(point, HistogramDataPoint) else point.value


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def server() -> Iterator[AuditedServer]:
    with AuditedServer() as running:
        yield running


def a_trail(directory: Path, reader: Reader, server: AuditedServer | None = None, **overrides: object) -> Trail:
    settings = Settings.load({}, {"directory": str(directory), "export": "none", "backoff_cap_s": 1, **overrides})
    exporters = None if server is None else [exporter_to(server)]
    return Trail(settings, exporters=exporters, metrics=reader.metrics)


def emit(sink: AuditSink, *names: str) -> None:
    for name in names:
        sink.emit(AuditEvent(event_type="test", event_id=name))


def parts(values: Mapping[str, Mapping[str, float]], exporter: str) -> tuple[float, float, float, float]:
    """Exported, pending, quarantined and dropped."""
    exported, pending, quarantined = (
        values[f"audit.{name}"][exporter] for name in ("records.exported", "queue.depth", "records.quarantined")
    )
    return exported, pending, quarantined, sum(values["audit.records.dropped"].values())


def test_the_instruments_are_those_of_the_documents(reader: Reader, tmp_path: Path, server: AuditedServer) -> None:
    row = re.compile(r"^\| `(audit\.[a-z.]+)` \| ([a-z -]+) \| `([^`]+)` \|", re.MULTILINE)
    documented = set(row.findall((ROOT / "docs" / "delivery.md").read_text()))

    trail = a_trail(tmp_path, reader, server)
    emit(trail, "one")
    trail.close()

    assert {(name, kind_of(metric), metric.unit) for name, metric in reader.collect().items()} == documented


def kind_of(metric: Metric) -> str:
    kind = type(metric.data).__name__
    if kind == "Sum":
        return "counter" if getattr(metric.data, "is_monotonic") else "up-down counter"  # noqa: B009
    return kind.lower()


def test_what_was_emitted_is_exported_pending_quarantined_or_dropped(
    reader: Reader, tmp_path: Path, server: AuditedServer
) -> None:
    server.judge = lambda names: REFUSED if "bad" in names else UNAVAILABLE if "late" in names else None
    trail = a_trail(tmp_path / "audit", reader, server)
    emit(trail, "one", "bad", "two", "three")
    assert trail.flush(timeout_s=20).complete
    assert parts(reader.values(), "otlp") == (3, 0, 1, 0)

    emit(trail, "late")
    assert not trail.flush(timeout_s=0.5).complete
    trail.close(timeout_s=0)
    shutil.rmtree(tmp_path / "audit")
    (tmp_path / "audit").write_text("no directory")
    with pytest.raises(AuditUnavailable):
        emit(trail, "never")

    values = reader.values()
    assert values["audit.records.emitted"] == {"": 6}
    assert parts(values, "otlp") == (3, 1, 1, 1)
    stats = trail.stats()
    assert parts(values, "otlp") == (stats.exported, stats.pending, stats.quarantined, stats.dropped)
    assert values["audit.records.dropped"] == {"disk full": 0, **trail.journal.written.by_reason}


def test_what_a_full_disk_took_is_told_apart(reader: Reader, small_disk: Path) -> None:
    trail = a_trail(small_disk, reader)
    assert reader.values()["audit.records.dropped"] == {"disk full": 0}

    def fill() -> None:
        for _ in range(100_000):
            emit(trail, "x" * 300)

    with pytest.raises(JournalFull):
        fill()

    assert reader.values()["audit.records.dropped"] == {"disk full": 1}
    trail.close()


def test_the_numbers_of_one_collection_are_of_one_moment(reader: Reader, tmp_path: Path, server: AuditedServer) -> None:
    trail = a_trail(tmp_path, reader, server)
    collected = threading.Event()

    def write() -> None:
        while not collected.is_set():
            emit(trail, "one")

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    seen = [reader.values()]
    try:
        poll(
            lambda: seen.append(reader.values()),
            until=lambda _: len(seen) > 30 and seen[0]["audit.records.emitted"] != seen[-1]["audit.records.emitted"],
            what="events between two collections",
        )
    finally:
        collected.set()
        for writer in writers:
            writer.join()
    trail.close()

    assert [values["audit.records.emitted"][""] for values in seen] == [sum(parts(v, "otlp")) for v in seen]


def test_each_exporter_has_its_own_numbers(reader: Reader, tmp_path: Path, server: AuditedServer) -> None:
    server.judge = lambda names: UNAVAILABLE
    with AuditedServer() as other:
        fast, slow = exporter_to(other), exporter_to(server)
        fast.name = "fast"
        trail = Trail(
            Settings.load({}, {"directory": str(tmp_path), "export": "none"}),
            exporters=[fast, slow],
            metrics=reader.metrics,
        )
        emit(trail, "one", "two")

        values = poll(
            reader.values,
            until=lambda values: parts(values, "fast")[0] == 2 and values["audit.export.blocked"]["otlp"] == 1,
            what="the export to one of them, and a failure of the other",
        )
        trail.close(timeout_s=0)

    assert parts(values, "fast") == (2, 0, 0, 0)
    assert parts(values, "otlp") == (0, 2, 0, 0)
    assert values["audit.export.blocked"] == {"fast": 0, "otlp": 1}


def test_an_exporter_is_blocked_until_its_destination_answers(
    reader: Reader, tmp_path: Path, server: AuditedServer
) -> None:
    server.judge = lambda names: UNAVAILABLE
    trail = a_trail(tmp_path, reader, server)
    emit(trail, "one")
    poll(lambda: reader.values()["audit.export.blocked"], until=lambda seen: seen == {"otlp": 1}, what="the failure")

    server.judge = lambda names: None
    assert trail.flush(timeout_s=20).complete

    poll(lambda: reader.values()["audit.export.blocked"], until=lambda seen: seen == {"otlp": 0}, what="the success")
    trail.close()


def test_remarks_of_the_destination_are_counted(reader: Reader, tmp_path: Path, server: AuditedServer) -> None:
    server.will_answer(partial_success(0, "slow down"))
    trail = a_trail(tmp_path, reader, server)
    emit(trail, "one")
    assert trail.flush(timeout_s=20).complete

    assert reader.values()["audit.export.warnings"] == {"otlp": 1}
    trail.close()
    assert reader.values()["audit.export.warnings"] == {"otlp": 1}


def test_each_export_has_its_duration_by_what_became_of_it(
    reader: Reader, tmp_path: Path, server: AuditedServer
) -> None:
    server.will_answer(Answer(503, delay_s=0.3), REFUSED)
    trail = a_trail(tmp_path, reader, server)
    emit(trail, "one", "two")
    assert trail.flush(timeout_s=20).complete
    trail.close()

    duration = reader.collect()["audit.export.duration"]
    counts = dict(map(value_of, duration.data.data_points))
    assert counts["unavailable otlp"] == counts["refused otlp"] == 1
    assert sum(counts.values()) == len(server.requests)
    (slow,) = (each for each in duration.data.data_points if "unavailable" in value_of(each)[0])
    assert isinstance(slow, HistogramDataPoint)
    assert 0.3 <= slow.sum < 10


def test_without_an_exporter_the_journal_is_the_destination(reader: Reader, tmp_path: Path) -> None:
    trail = a_trail(tmp_path, reader)
    emit(trail, "one", "two")

    assert parts(reader.values(), "none") == (2, 0, 0, 0)
    trail.close()


def test_what_another_process_ships_is_counted_and_no_counter_goes_back_when_it_begins_anew(
    reader: Reader, tmp_path: Path
) -> None:
    trail = a_trail(tmp_path, reader, export="ship")
    emit(trail, "one", "two", "three")
    assert parts(reader.values(), "ship") == (0, 3, 0, 0)
    (files,) = streams_in(tmp_path)
    shipper = Cursor(files.cursor)

    shipper.advance("otlp", Progress(Position(1, 1, 3), exported=2, system=1))
    assert parts(reader.values(), "ship") == (2, 1, 0, 0)
    shipper.restart("otlp")
    assert parts(reader.values(), "ship") == (2, 3, 0, 0)
    shipper.advance("otlp", Progress(Position(1, 1, 4), exported=3, system=1))
    assert parts(reader.values(), "ship") == (3, 0, 0, 0)
    shipper.close()
    trail.close()


def test_the_trails_of_a_process_are_counted_together_also_after_they_are_gone(reader: Reader, tmp_path: Path) -> None:
    first, second = a_trail(tmp_path / "first", reader), a_trail(tmp_path / "second", reader)
    emit(first, "one", "two")
    emit(second, "three")
    assert reader.values()["audit.records.emitted"] == {"": 3}
    emit(first, "four")

    gone = weakref.ref(first)
    first.close()
    del first
    gc.collect()
    poll(gone, until=lambda trail: trail is None, what="the end of a closed trail")  # its threads are ending

    assert reader.values()["audit.records.emitted"] == {"": 4}
    assert parts(reader.values(), "none") == (4, 0, 0, 0)
    second.close()
    del second
    gc.collect()
    assert parts(reader.values(), "none") == (4, 0, 0, 0)


def test_what_is_logged_after_a_close_is_counted_too(reader: Reader, tmp_path: Path, server: AuditedServer) -> None:
    trail = a_trail(tmp_path, reader, server)
    emit(trail, "one", "two")
    trail.close()
    assert parts(reader.values(), "otlp") == (2, 0, 0, 0)

    emit(trail, "three")

    assert reader.values()["audit.records.emitted"] == {"": 3}
    assert parts(reader.values(), "otlp") == (2, 1, 0, 0)  # the next owner of the directory exports it
    trail.close()
    assert parts(reader.values(), "otlp") == (2, 1, 0, 0)


class Moments:
    """Something with numbers, each look a later moment; the first look takes as long as the test wants."""

    def __init__(self, *pending: int) -> None:
        self._moments = iter(Numbers(9, {}, {"otlp": ExporterNumbers(9 - left, left)}) for left in pending)
        self.is_looked_at, self.may_go_on = threading.Event(), threading.Event()

    def numbers(self) -> Numbers:
        moment = next(self._moments)
        if not self.is_looked_at.is_set():
            self.is_looked_at.set()
            self.may_go_on.wait(30)
        return moment


def test_a_collection_that_a_close_overtakes_does_not_bring_back_what_was_pending(reader: Reader) -> None:
    moments = Moments(5, 0)
    reader.metrics.watch(moments)
    collecting = threading.Thread(target=reader.collect)
    collecting.start()
    assert moments.is_looked_at.wait(30)

    reader.metrics.keep(moments)
    moments.may_go_on.set()
    collecting.join()
    del moments
    gc.collect()

    assert parts(reader.values(), "otlp") == (9, 0, 0, 0)


class Broken(MeterProvider):
    """A meter provider that gives instruments which cannot be used, or gives none."""

    def __init__(self, *, gives: bool) -> None:
        self._gives = gives

    def get_meter(self, name: str, version: str | None = None, *more: Any, **others: Any) -> Meter:
        if not self._gives:
            raise RuntimeError("no meter")
        return BrokenMeter(name)


class BrokenHistogram(Histogram):
    def __init__(self) -> None:
        self.asked = 0

    def record(self, *arguments: Any, **others: Any) -> None:
        self.asked += 1
        raise RuntimeError("no measurement")


class BrokenMeter(NoOpMeter):
    def create_histogram(self, *arguments: Any, **others: Any) -> Histogram:
        return BrokenHistogram()


@pytest.mark.parametrize("gives", [True, False])
def test_a_meter_provider_that_fails_stops_no_event(gives: bool, tmp_path: Path, server: AuditedServer) -> None:
    trail = Trail(
        Settings.load({}, {"directory": str(tmp_path), "export": "none"}),
        exporters=[exporter_to(server)],
        metrics=AuditMetrics(Broken(gives=gives)),
    )
    emit(trail, "one")

    assert trail.flush(timeout_s=20).complete
    trail.close()


def run(script: str, *arguments: object) -> str:
    """What a script prints, in a process whose global meter provider is its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *map(str, arguments)],
        cwd=ROOT,
        env={"OTEL_SERVICE_NAME": "shop", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


GLOBAL = """
import os, sys, threading
import otel_audit
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

reader = InMemoryMetricReader()

def log(audit, count):
    for _ in range(count):
        audit.log_authn(outcome="success")

def emitted():
    found = [
        (scope.scope.version == otel_audit.__version__, metric.data.data_points[0].value)
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "audit.records.emitted"
    ]
    return found

def trail(name):
    return otel_audit.configure(directory=sys.argv[1] + name, export="none")
"""


def test_the_global_meter_provider_may_be_set_before_or_after_a_trail_is_made(tmp_path: Path) -> None:
    script = """
first = trail("/first")
log(first, 2)
metrics.set_meter_provider(MeterProvider([reader]))
print(emitted())
second = trail("/second")
log(second, 3)
print(emitted())
"""
    assert run(GLOBAL + script, tmp_path) == "[(True, 2)]\n[(True, 5)]\n"


def test_a_forked_child_counts_its_own_events_only(tmp_path: Path) -> None:
    script = """
metrics.set_meter_provider(MeterProvider([reader]))
closed = trail("/closed")
log(closed, 5)
closed.close()
del closed
audit = trail("/open")
log(audit, 2)
print(emitted(), flush=True)
if os.fork() == 0:
    print(emitted(), flush=True)
    log(audit, 1)
    print(emitted(), flush=True)
    os._exit(0)
os.wait()
print(emitted())
"""
    printed = run(GLOBAL + script, tmp_path)

    assert printed == "[(True, 7)]\n[(True, 0)]\n[(True, 1)]\n[(True, 7)]\n"


def test_without_a_meter_provider_nothing_of_the_metrics_sdk_is_loaded(tmp_path: Path) -> None:
    script = """
    import sys
    import otel_audit
    with otel_audit.configure(directory=sys.argv[1], export="jsonl") as audit:
        audit.log_authn(outcome="success")
        assert audit.flush().complete
    print([name for name in sys.modules if name.startswith("opentelemetry.sdk.metrics")])
    """
    assert run(script, tmp_path) == "[]\n"


def test_a_fork_waits_for_a_measurement_that_is_being_recorded(tmp_path: Path) -> None:
    """Or the child would wait for ever for a lock that only a thread of its parent can release."""
    script = """
    import os, sys, threading
    from opentelemetry.metrics import MeterProvider, NoOpMeter
    from otel_audit.delivery.metrics import AuditMetrics
    from otel_audit.delivery.outcomes import Accepted

    inside, lock = threading.Event(), threading.Lock()

    class Meter(NoOpMeter):
        def create_histogram(self, *arguments, **others):
            return self

        def record(self, *arguments, **others):
            with lock:
                inside.set()
                threading.Event().wait(0.3)

    class Provider(MeterProvider):
        def get_meter(self, name, *more, **others):
            return Meter(name)

    metrics = AuditMetrics(Provider())
    exporting = threading.Thread(target=metrics.exported, args=("otlp", Accepted(), 0.1))
    exporting.start()
    inside.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if lock.acquire(timeout=5) else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    metrics.exported("otlp", Accepted(), 0.1)
    exporting.join()
    """
    assert run(script) == "0\n"


def test_a_trail_that_cannot_be_looked_at_keeps_what_was_seen(reader: Reader, tmp_path: Path) -> None:
    trail = a_trail(tmp_path, reader, export="ship")
    emit(trail, "one")
    assert parts(reader.values(), "ship") == (0, 1, 0, 0)
    (files,) = streams_in(tmp_path)
    with suppress(FileNotFoundError):
        files.cursor.unlink()
    files.cursor.mkdir()  # reading it fails

    assert parts(reader.values(), "ship") == (0, 1, 0, 0)
    files.cursor.rmdir()
    trail.close()
