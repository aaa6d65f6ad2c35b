"""Whose numbers are counted: those of every trail of the process, closed ones and shipped ones too."""

from __future__ import annotations

import gc
import threading
import weakref
from contextlib import suppress
from pathlib import Path

import pytest
from opentelemetry.metrics import NoOpMeterProvider

from otel_audit.delivery import metrics as metrics_module
from otel_audit.delivery.metrics import AuditMetrics
from otel_audit.journal.counts import Counts, CountsByExporter
from otel_audit.journal.cursor import Cursor, Position, Progress
from otel_audit.journal.files import streams_in
from otel_audit.settings import Settings
from otel_audit.trail import Trail
from tests.delivery.audited_server import AuditedServer
from tests.metrics.reader import Reader, a_trail, emit, parts
from tests.servers import poll


def test_what_another_process_ships_is_counted_and_no_counter_goes_back_when_it_begins_anew(
    reader: Reader, tmp_path: Path
) -> None:
    trail = a_trail(tmp_path, reader, export="ship")
    emit(trail, "one", "two", "three")
    assert parts(reader.values(), "ship") == (0, 3, 0, 0)
    (files,) = streams_in(tmp_path)
    shipper = Cursor(files.cursor)

    shipper.advance("otlp", Progress(Position(1, 1, 3), Counts(exported=2, system=1)))
    assert parts(reader.values(), "ship") == (2, 1, 0, 0)
    shipper.restart("otlp")
    assert parts(reader.values(), "ship") == (2, 3, 0, 0)
    shipper.advance("otlp", Progress(Position(1, 1, 4), Counts(exported=3, system=1)))
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
        self._moments = iter(CountsByExporter(9, {}, {"otlp": Counts(9 - left, left)}) for left in pending)
        self.is_looked_at, self.may_go_on = threading.Event(), threading.Event()

    def numbers(self) -> CountsByExporter:
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


@pytest.mark.slow
def test_a_process_that_nobody_collects_from_keeps_nothing_of_its_former_trails(tmp_path: Path) -> None:
    def kept() -> int:
        return sum(isinstance(each, metrics_module._Watched) for each in gc.get_objects())

    metrics, before = AuditMetrics(NoOpMeterProvider()), kept()
    for number in range(50):
        settings = Settings.load({}, {"directory": str(tmp_path / str(number)), "export": "none"})
        trail = Trail(settings, metrics=metrics)
        emit(trail, "event")
        trail.close()
        del trail
        gc.collect()

    assert kept() <= before + 1
