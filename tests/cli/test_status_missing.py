"""Files of a journal that somebody removed: `status` and `doctor` say so, and say nothing of what retention removed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from otel_audit.cli import main
from otel_audit.diagnosis.directory import directory_findings
from otel_audit.journal.ages import RetentionLimits
from otel_audit.journal.files import StreamFiles, streams_in
from otel_audit.journal.journal import Journal
from otel_audit.journal.retention import Retention
from otel_audit.settings import Settings
from tests.cli.journals import Inbox, a_journal, deliver, record

EVENTS = 60


def status_of(directory: Path) -> tuple[dict[str, Any], int, str]:
    as_json = CliRunner().invoke(main, ["status", "--json", str(directory)])
    told = json.loads(as_json.stdout)
    assert told["emitted"] == told["exported"] + told["pending"] + told["quarantined"] + told["dropped"]
    return told, as_json.exit_code, CliRunner().invoke(main, ["status", str(directory)]).stdout


def doctor_says(directory: Path) -> str:
    (finding,) = (
        each for each in directory_findings(Settings.load({}, {"directory": str(directory)})) if each.check == "journal"
    )
    return "" if finding.ok else finding.says


@dataclass
class Stream:
    """A stream of some segments, of which so many batches were delivered. It lives as long as its journal."""

    files: StreamFiles
    journal: Journal

    @classmethod
    def of(cls, directory: Path, *, delivered: int, is_live: bool = False, export: str = "otlp") -> Stream:
        journal = a_journal(directory, segment_bytes=3_000, export=[export])
        files = record(journal, *map(str, range(EVENTS)))
        if delivered:
            deliver(files, Inbox(), steps=delivered)
        if not is_live:
            journal.close()
        return cls(files, journal)


def remove(files: StreamFiles, numbers: list[int]) -> int:
    """Remove these segments; how many events they had."""
    events = 0
    for number in numbers:
        events += sum(b'"system":' not in line[:12] for line in files.segment(number).read_bytes().splitlines())
        files.segment(number).unlink()
    return events


@pytest.mark.parametrize("is_live", [False, True], ids=["dead", "live"])
@pytest.mark.parametrize("numbers", [[1], [3], [1, 4], [2, 3]], ids=str)
def test_undelivered_segments_that_somebody_removed_are_a_finding(
    tmp_path: Path, numbers: list[int], is_live: bool
) -> None:
    written = Stream.of(tmp_path, delivered=0, is_live=is_live)
    files = written.files
    events = remove(files, numbers)

    before, code, shown = status_of(tmp_path)
    deliver(files, Inbox())
    after, code_after, _ = status_of(tmp_path)

    assert (before["emitted"], before["pending"], before["dropped"]) == (EVENTS, EVENTS - events, events)
    assert (after["emitted"], after["exported"], after["pending"], after["dropped"]) == (
        EVENTS,
        EVENTS - events,
        0,
        events,
    )
    assert (code, code_after) == (1, 1)
    (stream,) = after["streams"]
    assert (stream["missing"], stream["missing_segments"]) == (events, numbers)
    assert f"{events} events were taken out of the journal" in shown
    assert f"{stream['stream_id']}: {events} events were taken out" in doctor_says(tmp_path)


def test_delivered_segments_that_somebody_removed_are_a_finding_and_cost_no_event(tmp_path: Path) -> None:
    files = Stream.of(tmp_path, delivered=100).files
    last = files.segments()[-1]
    remove(files, [2, last])

    told, code, shown = status_of(tmp_path)

    assert (told["exported"], told["dropped"], code) == (EVENTS, 0, 1)
    assert f"somebody removed its segments 2, {last}" in shown
    assert f"somebody removed its segments 2, {last}" in doctor_says(tmp_path)


def test_a_stream_of_which_only_the_cursor_is_left_is_a_finding(tmp_path: Path) -> None:
    files = Stream.of(tmp_path, delivered=3).files
    Stream.of(tmp_path, delivered=100)
    remove(files, files.segments())

    told, code, shown = status_of(tmp_path)

    assert [bool(stream["missing_segments"]) for stream in told["streams"]] == [True, False]
    assert code == 1
    assert f"{files.stream_id}: somebody removed its segment" in shown
    assert doctor_says(tmp_path)


@pytest.mark.parametrize("is_live", [False, True], ids=["whole streams", "segments of a live stream"])
@pytest.mark.parametrize("export", ["otlp", "none"])
def test_what_retention_removed_is_no_finding(tmp_path: Path, is_live: bool, export: str) -> None:
    delivered = 100 if export == "otlp" else 0
    streams = [Stream.of(tmp_path, delivered=delivered, is_live=live, export=export) for live in (is_live, False)]

    Retention(tmp_path, RetentionLimits(bytes=9_000 if is_live else 4_000), wanted=lambda header: True).look()
    assert len(streams_in(tmp_path)) == 1 + is_live
    assert 1 not in {number for stream in streams for number in stream.files.segments()}
    if export == "none":
        deliver(streams[1].files, Inbox())  # a new exporter, which had none of what was removed

    told, code, _ = status_of(tmp_path)
    assert (told["emitted"], told["dropped"], code) == (2 * EVENTS, 0, 0)
    assert doctor_says(tmp_path) == ""


def test_what_was_taken_from_a_journal_that_is_the_destination_is_a_finding(tmp_path: Path) -> None:
    files = Stream.of(tmp_path, delivered=0, export="none").files
    Retention(tmp_path, RetentionLimits(bytes=14_000), wanted=lambda header: True).look()
    events = remove(files, [files.segments()[1]])

    told, code, _ = status_of(tmp_path)

    assert (told["emitted"], told["exported"], told["dropped"], code) == (EVENTS, EVENTS - events, events, 1)
