"""Somebody cuts the files of a journal that is written and delivered, as `logrotate copytruncate` does.

What is left is delivered, what is gone is counted once, and `flush`, `stats` and `status` say the same.
"""

from __future__ import annotations

import json
import os
import random
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.delivery.destination import Destination
from otel_audit.delivery.outcomes import Batch, ExportOutcome, Unavailable
from otel_audit.delivery.stream_export import Idle, StreamExport
from otel_audit.journal.census import census
from otel_audit.journal.counts import Counts
from otel_audit.journal.files import streams_in
from otel_audit.journal.shipment import Shipment, take
from otel_audit.journal.stream import Limits
from otel_audit.settings import Settings
from otel_audit.stores.directory import Latest
from otel_audit.trail import Trail
from tests.examples import examples
from tests.journal.keeping import Keeping
from tests.journal.writing import a_journal, append, lines_of, the_stream
from tests.servers.polling import poll


class Reached(Keeping):
    """Keeps the lines, unless it is away."""

    def __init__(self, name: str = "otlp") -> None:
        super().__init__()
        self.name = name
        self.is_away = False
        self.tries = 0

    def export(self, batch: Batch) -> ExportOutcome:
        self.tries += 1
        return Unavailable("away") if self.is_away else super().export(batch)

    def come_back(self, trail: Trail) -> None:
        """It accepts what is read from now on: not a batch that was read before."""
        tried = self.tries
        poll(lambda: trail.flush(timeout_s=0.05), until=lambda _: self.tries >= tried + 2, what="another try")
        self.is_away = False


def a_trail(directory: Path, *exporters: Reached, **more: object) -> Trail:
    return Trail(Settings.load({}, {"directory": str(directory), "export": "none", **more}), exporters=exporters)


def gaps_in(lines: list[bytes]) -> list[dict[str, object]]:
    gaps = (json.loads(line)["gap"] for line in lines if line.startswith(b'{"system":"gap"'))
    return [gap for gap in gaps if gap["reason"] == "segment truncated"]


def assert_agreement(trail: Trail, directory: Path, *, emitted: int, exported: int) -> None:
    """Nothing is pending, and all three say so."""
    report, stats, counted = trail.flush(timeout_s=10), trail.stats(), census(directory)
    assert (report.complete, report.pending) == (True, 0)
    assert (stats.emitted, stats.exported, stats.pending) == (emitted, exported, 0)
    assert stats.dropped == emitted - exported
    totals = counted.totals
    assert (totals.emitted, totals.exported, totals.pending, totals.dropped) == (
        emitted,
        exported,
        0,
        emitted - exported,
    )
    assert counted.is_stuck is (stats.dropped > 0)


@pytest.mark.parametrize("durability", ["os", "fsync"])
@pytest.mark.parametrize("left_bytes", [0, 100, 2_000, 5_000])
@pytest.mark.parametrize("is_pending", [False, True], ids=["delivered", "pending"])
def test_what_is_left_of_a_file_that_was_cut_is_delivered_and_the_rest_is_told_once(
    tmp_path: Path, durability: str, left_bytes: int, is_pending: bool
) -> None:
    exporter = Reached()
    exporter.is_away = is_pending
    trail = a_trail(tmp_path, exporter, durability=durability)
    for name in range(30):
        append(trail.journal, name)
    trail.flush(timeout_s=0 if is_pending else 10)

    os.truncate(the_stream(tmp_path).segment(1), left_bytes)
    for name in range(30, 40):
        append(trail.journal, name)
    trail.journal.tend()
    if is_pending:
        exporter.come_back(trail)

    trail.flush(timeout_s=10)
    ids = exporter.ids
    assert len(ids) == len({*ids})
    assert [str(name) for name in range(30, 40)] == ids[-10:]
    assert len(ids) == 40 if not is_pending else 10 <= len(ids) < 40
    assert_agreement(trail, tmp_path, emitted=40, exported=len(ids))
    (gap,) = gaps_in(exporter.lines)
    assert gap["lines"] == 40 - len(ids)
    trail.close()


def test_a_flush_looks_before_it_answers(tmp_path: Path) -> None:
    exporter = Reached()
    trail = a_trail(tmp_path, exporter)
    append(trail.journal, "a")
    trail.flush(timeout_s=10)
    exporter.is_away = True
    for name in range(5):
        append(trail.journal, name)
    os.truncate(the_stream(tmp_path).segment(1), 0)
    exporter.come_back(trail)

    assert_agreement(trail, tmp_path, emitted=6, exported=1)
    assert [gap["lines"] for gap in gaps_in(exporter.lines)] == [5]
    trail.close()


def test_who_follows_the_journal_sees_what_is_written_into_a_file_that_was_cut(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    journal = a_journal(tmp_path)
    for name in range(5):
        append(journal, name)
    latest = Latest(tmp_path)
    latest.last(10)
    append(journal, "before")
    latest.new()

    os.truncate(the_stream(tmp_path).segment(1), 0)
    append(journal, "after")

    assert [json.loads(seen.line)["event_id"] for seen in latest.new()] == ["after"]
    poll(lambda: "6 events were taken out of the journal" in capfd.readouterr().err, what="a notice")
    append(journal, "last")
    assert [json.loads(seen.line)["event_id"] for seen in latest.new()][1:] == ["last"]  # behind a gap
    journal.close()


def test_the_journal_as_the_destination_says_what_was_taken_from_it(tmp_path: Path) -> None:
    trail = a_trail(tmp_path)
    for name in range(5):
        append(trail.journal, name)
    os.truncate(the_stream(tmp_path).segment(1), 0)
    append(trail.journal, "after")

    assert_agreement(trail, tmp_path, emitted=6, exported=1)
    trail.close()
    assert [gap["lines"] for gap in gaps_in(lines_of(the_stream(tmp_path)))] == [5]


def test_what_one_exporter_lacks_is_not_what_every_exporter_has(tmp_path: Path) -> None:
    there, away = Reached("there"), Reached("away")
    away.is_away = True
    trail = a_trail(tmp_path, there, away)
    for name in range(10):
        append(trail.journal, name)
    trail.flush(timeout_s=1)
    os.truncate(the_stream(tmp_path).segment(1), 0)
    append(trail.journal, "after")
    away.come_back(trail)

    assert_agreement(trail, tmp_path, emitted=11, exported=1)
    assert len(there.ids) == 11
    assert [gap["lines"] for gap in gaps_in(there.lines)] == [0]  # one of them had all
    numbers = trail.numbers()
    assert {name: (each.exported, each.pending) for name, each in numbers.exporters.items()} == {
        "there": (1, 0),
        "away": (1, 0),
    }
    assert numbers.dropped == {"lines missing": 10}
    trail.close()


def test_a_file_that_is_cut_just_before_it_is_left_is_told(tmp_path: Path) -> None:
    exporter = Reached()
    exporter.is_away = True
    trail = a_trail(tmp_path, exporter, segment_bytes=65_536)
    append(trail.journal, "a", detail="x" * 66_000)
    os.truncate(the_stream(tmp_path).segment(1), 0)
    append(trail.journal, "b")
    exporter.come_back(trail)

    assert_agreement(trail, tmp_path, emitted=2, exported=1)
    assert [gap["lines"] for gap in gaps_in(exporter.lines)] == [1]
    trail.close()


def test_a_dead_stream_that_was_cut_is_delivered_as_far_as_it_is_there(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, limits=Limits(segment_bytes=3_000))
    for name in range(30):
        append(journal, name)
    journal.close()
    files = the_stream(tmp_path)
    os.truncate(files.segment(2), 1_000)
    is_there = [json.loads(line) for line in lines_of(files)]
    left = [each["event_id"] for each in is_there if "system" not in each]

    assert census(tmp_path).totals.dropped == 30 - len(left) > 0
    exporter = Reached()
    deliver(files.directory, exporter)

    assert exporter.ids == left
    counts = census(tmp_path).totals
    assert (counts.emitted, counts.exported, counts.pending, counts.dropped) == (30, len(left), 0, 30 - len(left))


def deliver(directory: Path, exporter: Reached) -> None:
    with ExitStack() as stack:
        for files in streams_in(directory):
            shipment = take(files)
            assert shipment is not None
            stack.callback(shipment.release)
            export_all(shipment, exporter)


def export_all(shipment: Shipment, exporter: Reached) -> None:
    export = StreamExport(shipment, Destination(exporter), batch_count=7)
    while export.step() != Idle():
        pass
    export.close()


@examples(60)
@given(seed=st.integers(0, 2**32))
def test_whatever_is_cut_and_when_every_event_is_delivered_once_or_counted_as_dropped(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    chance = random.Random(seed)
    directory = tmp_path_factory.mktemp("cut")
    journal = a_journal(directory, limits=Limits(segment_bytes=20_000))
    append(journal, 0)
    files = the_stream(directory)
    shipment = take(files)
    assert shipment is not None
    exporters = [Reached("otlp"), Reached("second")][: chance.choice([1, 1, 2])]
    exports = [StreamExport(shipment, Destination(each), batch_count=5) for each in exporters]
    emitted = 1

    for _ in range(chance.randint(3, 25)):
        match chance.choice(["append", "append", "cut", "look", "step", "step", "rest"]):
            case "append":
                for _ in range(chance.randint(1, 8)):
                    append(journal, emitted, detail="x" * chance.randint(0, 400))
                    emitted += 1
            case "cut":
                path = files.segment(files.segments()[-1])
                os.truncate(path, chance.choice([0, chance.randint(0, path.stat().st_size)]))
            case "look":
                journal.tend()
            case "step":
                chance.choice(exports).step()
            case "rest":
                export = chance.choice(exports)
                while export.step() != Idle():
                    pass
    journal.close()
    for export in exports:
        while export.step() != Idle():
            pass
        export.close()
    shipment.release()

    for exporter in exporters:
        assert len(exporter.ids) == len({*exporter.ids})
    exported = min(len(exporter.ids) for exporter in exporters)  # by the one that lacks most
    counts = census(directory).totals
    assert counts == Counts(exported, 0, 0, emitted - exported, counts.system)
