"""What is delivered and old goes, in the order in which it was written; what is not, stays whatever the clock says."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import otel_audit.journal.retention as retention_module
from otel_audit.delivery.processor import Adoption
from otel_audit.delivery.sweep import restart
from otel_audit.journal.ages import RetentionLimits
from otel_audit.journal.census import census
from otel_audit.journal.cursor import Cursor, Progress, read_cursor
from otel_audit.journal.files import StreamFiles
from otel_audit.journal.ledger.former import RETAIN, entries
from otel_audit.journal.quarantine import Released, files_beside, release
from otel_audit.journal.reader import stream_header
from otel_audit.journal.retention import Removed, Retention
from otel_audit.journal.shipment import take
from otel_audit.stores.directory import Latest
from tests.cli.journals import Inbox, deliver
from tests.journal.retaining import (
    Clocks,
    a_retention,
    a_stream,
    delivered,
    kept,
    kept_seqs,
    live_stream,
    log,
)
from tests.journal.writing import lines_of

EVERYTHING = Adoption(lambda header: True)


def test_a_segment_stays_for_the_days_of_the_setting_after_it_was_delivered(tmp_path: Path) -> None:
    files, clocks = delivered(tmp_path), Clocks()
    retention = a_retention(tmp_path, clocks, days=30)

    assert retention.look() == Removed()
    clocks.pass_days(29.9)
    assert retention.look() == Removed()
    assert kept(tmp_path) == {files.stream_id: [1, 2, 3]}
    clocks.pass_days(0.2)
    removed = retention.look()

    assert removed.segments == 3
    assert removed.bytes > 8192
    assert kept(tmp_path) == {}


def test_a_stream_that_ended_goes_with_its_cursor_and_its_locks(tmp_path: Path) -> None:
    files, clocks = delivered(tmp_path), Clocks()
    release(files.cursor, [Released("otlp", 1, 1, False)], mode=0o600)
    retention = a_retention(tmp_path, clocks)
    retention.look()
    clocks.pass_days(31)

    retention.look()

    assert sorted(path.name for path in tmp_path.iterdir()) == ["ledger.jsonl", "ledger.reserve", "retention.state"]


def test_days_are_counted_over_processes_that_look_and_end(tmp_path: Path) -> None:
    delivered(tmp_path)
    clocks = Clocks()
    for _ in range(15):
        assert a_retention(tmp_path, clocks).look() == Removed()
        clocks.pass_days(2.1)

    assert a_retention(tmp_path, clocks).look().segments == 3


def test_a_stream_that_is_written_keeps_the_segment_that_is_written(tmp_path: Path) -> None:
    journal, files = live_stream(tmp_path, segments=3)
    deliver(files, Inbox())
    clocks = Clocks()
    retention = a_retention(tmp_path, clocks)
    retention.look()
    clocks.pass_days(400)

    assert retention.look().segments == 2

    assert kept(tmp_path) == {files.stream_id: [3]}
    assert files.cursor.exists()
    log(journal, 1)
    journal.close()
    deliver(files, Inbox())
    retention.look()
    clocks.pass_days(31)
    assert retention.look().segments == 1
    assert kept(tmp_path) == {}


def test_a_segment_is_not_taken_for_left_while_the_next_one_has_no_line(tmp_path: Path) -> None:
    journal, files = live_stream(tmp_path, segments=2)
    log(journal, 30)
    *_, before, last = files.segments()
    content = files.segment(last).read_bytes()
    deliver(files, Inbox())
    clocks = Clocks()
    retention = a_retention(tmp_path, clocks, days=0, max_bytes=1)
    files.segment(last).write_bytes(content[: content.index(b"\n") + 1])  # its writer may still give it up

    retention.look()

    assert kept(tmp_path)[files.stream_id] == [before, last]
    files.segment(last).write_bytes(content)
    journal.close()


def test_what_one_exporter_has_not_got_stays(tmp_path: Path) -> None:
    files, clocks = a_stream(tmp_path, segments=4, export=("otlp", "jsonl")), Clocks()
    deliver(files, Inbox("otlp"))
    deliver(files, Inbox("jsonl"), steps=3, batch_count=6)
    behind = read_cursor(files.cursor)[0]["jsonl"].position
    retention = a_retention(tmp_path, clocks)
    retention.look()
    clocks.pass_days(400)
    retention.look()

    assert 1 < behind.segment < 4
    assert kept(tmp_path) == {files.stream_id: [number for number in range(1, 5) if number >= behind.segment]}
    deliver(files, Inbox("jsonl"))
    retention.look()
    clocks.pass_days(31)
    retention.look()
    assert kept(tmp_path) == {}


def test_what_nobody_delivered_stays_whatever_the_limits_are(tmp_path: Path) -> None:
    a_stream(tmp_path, export=("otlp",))
    a_stream(tmp_path, export=("ship",))
    before = kept(tmp_path)
    clocks = Clocks()
    retention = a_retention(tmp_path, clocks, days=1, max_bytes=1)
    for _ in range(3):
        retention.look()
        clocks.pass_days(400)

    assert kept(tmp_path) == before
    assert list(entries(tmp_path)) == []


def test_a_segment_with_a_line_in_quarantine_stays_until_it_is_released(tmp_path: Path) -> None:
    journal, files = live_stream(tmp_path, segments=3)
    seqs = [json.loads(line)["seq"] for line in files.segment(2).read_bytes().split(b"\n")[:-1]]
    journal.close()
    deliver(files, Inbox("otlp", refuses=b'"seq":%d,' % seqs[2]))
    (entry,) = read_cursor(files.cursor)[0]["otlp"].quarantine
    assert (entry.first_seq, entry.last_seq) == (seqs[2], seqs[2])
    clocks = Clocks()
    retention = a_retention(tmp_path, clocks)
    retention.look()
    clocks.pass_days(400)
    retention.look()

    assert kept(tmp_path) == {files.stream_id: [2]}
    counted = census(tmp_path).totals
    assert counted.quarantined == 1
    quarantine, _ = files_beside(files.cursor)
    listed = quarantine.read_bytes()
    quarantine.unlink()
    retention.look()
    assert kept(tmp_path) == {files.stream_id: [2]}, "what was refused is known no more, and went"
    quarantine.write_bytes(listed)
    release(files.cursor, [Released("otlp", seqs[2], seqs[2], False)], mode=0o600)
    retention.look()
    clocks.pass_days(31)
    retention.look()
    assert kept(tmp_path) == {}
    assert census(tmp_path).totals == replace(counted, exported=counted.exported + 1, quarantined=0)


def test_the_journal_as_its_own_destination_is_removed_by_age(tmp_path: Path) -> None:
    journal, files = live_stream(tmp_path, segments=3, export=("none",))
    events = census(tmp_path).totals
    clocks = Clocks()
    retention = a_retention(tmp_path, clocks, days=400)
    retention.look()
    clocks.pass_days(401)

    assert retention.look().segments == 2

    assert census(tmp_path).totals == events
    assert census(tmp_path).removed.exported > 10
    assert kept(tmp_path) == {files.stream_id: [3]}
    assert not files.cursor.exists()
    journal.close()
    retention.look()
    clocks.pass_days(401)
    retention.look()
    assert kept(tmp_path) == {}
    assert not list(tmp_path.glob(f"{files.stream_id}*"))
    assert census(tmp_path).totals == events


def test_an_exporter_that_was_added_has_a_stream_of_its_own_service_before_it_goes(tmp_path: Path) -> None:
    files, clocks = a_stream(tmp_path, export=("none",)), Clocks()
    a_retention(tmp_path, clocks, days=400).look()
    clocks.pass_days(399)

    a_retention(tmp_path, clocks, days=30, exporters=["otlp"]).look()
    assert kept(tmp_path) == {files.stream_id: [1, 2, 3]}
    deliver(files, Inbox("otlp"))
    retention = a_retention(tmp_path, clocks, days=30, exporters=["otlp"])
    retention.look()
    clocks.pass_days(31)
    retention.look()
    assert kept(tmp_path) == {}


def test_a_stream_that_somebody_else_exports_is_left_to_that_one(tmp_path: Path) -> None:
    files, clocks = delivered(tmp_path), Clocks()
    retention = a_retention(tmp_path, clocks)
    retention.look()
    clocks.pass_days(31)
    shipment = take(files)
    assert shipment is not None

    assert retention.look() == Removed()
    assert kept(tmp_path) == {files.stream_id: [1, 2, 3]}
    assert retention.look({files.stream_id: shipment}).segments == 2  # the last one goes when it is let go
    shipment.release()
    assert retention.look().segments == 1


def test_a_stream_that_was_let_go_while_its_removal_was_prepared_is_left_alone(tmp_path: Path) -> None:
    files, clocks = delivered(tmp_path), Clocks()
    retention = a_retention(tmp_path, clocks)
    retention.look()
    clocks.pass_days(31)
    shipment = take(files)
    assert shipment is not None

    theirs = shipment

    class LettingGo(contextlib.AbstractContextManager[None]):
        def __enter__(self) -> None:
            theirs.release()

        def __exit__(self, *raised: object) -> None:
            pass

    assert retention.look({files.stream_id: shipment}, LettingGo()) == Removed()
    assert kept(tmp_path) == {files.stream_id: [1, 2, 3]}


def test_streams_of_others_and_of_other_hosts_are_left_alone(memory_disk: Path) -> None:
    delivered(memory_disk)
    before, clocks = kept(memory_disk), Clocks()
    unwanted = a_retention(memory_disk, clocks, wanted=lambda header: header["resource"]["service.name"] == "bank")
    for _ in range(2):
        unwanted.look()
        clocks.pass_days(400)
    assert kept(memory_disk) == before

    for number in (1, 2, 3):
        files = StreamFiles(memory_disk, next(iter(before)))
        content = files.segment(number).read_bytes()
        host = json.loads(content.partition(b"\n")[0])["segment"]["host_id"].encode()
        files.segment(number).write_bytes(content.replace(host, b"f" * 32))
    for _ in range(2):
        a_retention(memory_disk, clocks).look()
        clocks.pass_days(400)
    assert kept(memory_disk) == before
    a_retention(memory_disk, clocks, foreign=True).look()
    clocks.pass_days(31)
    assert a_retention(memory_disk, clocks, foreign=True).look().segments == 3


def test_a_wall_clock_that_jumps_a_year_deletes_nothing(tmp_path: Path) -> None:
    files, clocks = delivered(tmp_path), Clocks()
    retention = a_retention(tmp_path, clocks)
    retention.look()
    clocks.pass_days(2)

    clocks.jump_days(365)
    assert retention.look() == Removed()
    assert a_retention(tmp_path, clocks).look() == Removed()
    clocks.reboot(off_days=365)
    assert a_retention(tmp_path, clocks).look() == Removed()
    clocks.jump_days(-1000)
    clocks.pass_days(26)

    assert a_retention(tmp_path, clocks).look() == Removed()
    assert kept(tmp_path) == {files.stream_id: [1, 2, 3]}
    clocks.pass_days(2)
    assert a_retention(tmp_path, clocks).look().segments == 3


def test_a_directory_that_is_met_by_a_clock_a_year_ahead_keeps_all_for_the_days_of_the_setting(tmp_path: Path) -> None:
    delivered(tmp_path)
    clocks = Clocks()
    clocks.jump_days(365)

    assert a_retention(tmp_path, clocks).look() == Removed()
    clocks.pass_days(29)
    assert a_retention(tmp_path, clocks).look() == Removed()
    clocks.pass_days(2)
    assert a_retention(tmp_path, clocks).look().segments == 3


def test_over_the_limit_of_bytes_the_oldest_delivered_segments_go_before_their_time(tmp_path: Path) -> None:
    older, newer, waiting = delivered(tmp_path), delivered(tmp_path), a_stream(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.jsonl"))
    first = older.segment(1).stat().st_size
    clocks = Clocks()

    assert a_retention(tmp_path, clocks, max_bytes=size).look() == Removed()
    assert a_retention(tmp_path, clocks, max_bytes=size - 1).look() == Removed(1, first)
    assert kept(tmp_path)[older.stream_id] == [2, 3]
    a_retention(tmp_path, clocks, max_bytes=1).look()

    assert kept(tmp_path) == {waiting.stream_id: [1, 2, 3]}
    assert [entry.content["reason"] for entry in entries(tmp_path)] == ["bytes"] * 6
    assert [entry.content["stream_id"] for entry in entries(tmp_path)] == [older.stream_id] * 3 + [newer.stream_id] * 3


def test_the_ledger_tells_both_ends_of_what_was_removed(tmp_path: Path) -> None:
    files, clocks = delivered(tmp_path), Clocks()
    lines, sizes = lines_of(files), [files.segment(number).stat().st_size for number in files.segments()]
    contents = {number: files.segment(number).read_bytes().split(b"\n")[:-1] for number in files.segments()}
    retention = a_retention(tmp_path, clocks)
    retention.look()
    clocks.pass_days(31)
    retention.look()

    told = [entry.content for entry in entries(tmp_path)]
    assert [each["segment"] for each in told] == [1, 2, 3]
    assert [each["whole"] for each in told] == [False, False, True]
    assert [each["bytes"] for each in told] == sizes
    assert told[0]["first_seq"] == 1
    assert told[0]["prev_hash"] is None
    for before, after in pairwise(told):
        assert (after["first_seq"], after["prev_hash"]) == (before["last_seq"] + 1, before["last_hash"])
    assert told[2]["last_seq"] == len(lines)
    assert told[2]["last_hash"] == sha256(lines[-1]).hexdigest()
    assert [each["lines"] for each in told] == [len(content) for content in contents.values()]
    assert sum(each["events"] for each in told) == len(lines) - 3
    assert told[2]["totals"] == {"segments": 3, "bytes": sum(sizes), "exported": len(lines) - 3, "system": 3}
    assert {entry.kind for entry in entries(tmp_path)} == {RETAIN}


@pytest.mark.parametrize("export", ["otlp", "none"])
def test_the_numbers_of_a_directory_stay_true_while_its_streams_go(tmp_path: Path, export: str) -> None:
    for _ in range(3):
        files = a_stream(tmp_path, export=(export,))
        if export == "otlp":
            deliver(files, Inbox("otlp"))
    totals = census(tmp_path).totals
    retention, looks = a_retention(tmp_path, Clocks(), days=0, max_bytes=1), 0

    while kept(tmp_path):
        retention.look(stopped=iter([False, True]).__next__)
        looks += 1
        assert census(tmp_path).totals == totals

    assert looks == 9
    assert census(tmp_path).removed == totals
    assert not census(tmp_path).is_stuck


def test_sending_again_from_the_oldest_line_keeps_the_numbers_true(tmp_path: Path) -> None:
    journal, files = live_stream(tmp_path, segments=4)
    deliver(files, Inbox("otlp"))
    totals = census(tmp_path).totals
    a_retention(tmp_path, Clocks(), days=0, max_bytes=9000).look()
    assert files.segments()[0] > 1
    events = [line for line in lines_of(files) if not line.startswith(b'{"system"')]

    assert restart(tmp_path, "otlp", EVERYTHING) == 0

    assert census(tmp_path).totals == replace(
        totals,
        exported=totals.exported - len(events),
        pending=len(events),
    )
    deliver(files, Inbox("otlp"))
    assert census(tmp_path).totals == totals
    journal.close()


def test_what_is_to_be_sent_again_is_not_ready_any_more(tmp_path: Path) -> None:
    files, clocks = delivered(tmp_path), Clocks()
    retention = a_retention(tmp_path, clocks)
    retention.look()
    clocks.pass_days(29)
    restart(tmp_path, "otlp", EVERYTHING)
    clocks.pass_days(3)

    assert retention.look() == Removed()
    deliver(files, Inbox("otlp"))
    assert retention.look() == Removed()
    clocks.pass_days(31)
    assert retention.look().segments == 3


def test_who_reads_a_stream_goes_on_where_its_oldest_line_is(tmp_path: Path) -> None:
    journal, files = live_stream(tmp_path, segments=4)
    latest = Latest(tmp_path)
    latest.last(1)
    deliver(files, Inbox("otlp"))
    a_retention(tmp_path, Clocks(), days=0, max_bytes=1).look()
    log(journal, 2)

    assert files.segments() == [4]
    assert [seen.seq for seen in latest.new()][-1] == max(kept_seqs(files))
    assert {seen.seq for seen in Latest(tmp_path).last(1000)} == kept_seqs(files) - {min(kept_seqs(files))}
    (stream,) = census(tmp_path).streams
    assert stream.counts.pending == 2
    assert stream.service_name == "shop"
    joined = Inbox("jsonl")
    deliver(files, joined)
    assert read_cursor(files.cursor)[0]["jsonl"].position.seq == max(kept_seqs(files))
    journal.close()


def test_a_segment_without_a_readable_line_stays_for_whoever_looks_into_it(tmp_path: Path) -> None:
    files, clocks = a_stream(tmp_path), Clocks()
    size = files.segment(2).stat().st_size
    files.segment(2).write_bytes(b"\0" * (size - 1) + b"\n")
    deliver(files, Inbox("otlp"))
    retention = a_retention(tmp_path, clocks)
    retention.look()
    clocks.pass_days(31)
    retention.look()

    assert kept(tmp_path) == {files.stream_id: [2]}


def test_a_stream_that_cannot_be_looked_at_does_not_keep_others_from_going(tmp_path: Path) -> None:
    broken, good, clocks = a_stream(tmp_path), delivered(tmp_path), Clocks()
    broken.cursor.mkdir()
    failed: list[str] = []
    retention = a_retention(tmp_path, clocks, failed=lambda files, error: failed.append(files.stream_id))
    retention.look()
    clocks.pass_days(31)
    retention.look()

    assert set(failed) == {broken.stream_id}
    assert kept(tmp_path) == {broken.stream_id: [1, 2, 3]}
    assert not good.cursor.exists()


def test_without_limits_nothing_is_looked_at(tmp_path: Path) -> None:
    delivered(tmp_path)
    before = sorted(tmp_path.iterdir())

    retention = a_retention(tmp_path, Clocks(), days=0)
    assert retention.look_if_due({}, contextlib.nullcontext(), lambda: False) == Removed()

    assert sorted(tmp_path.iterdir()) == before


def test_a_cursor_that_is_lost_makes_nothing_delivered(tmp_path: Path) -> None:
    files, clocks = delivered(tmp_path), Clocks()
    retention = a_retention(tmp_path, clocks)
    retention.look()
    clocks.pass_days(31)
    files.cursor.unlink()

    assert retention.look() == Removed()
    cursor = Cursor(files.cursor)
    cursor.advance("otlp", Progress())
    cursor.close()
    assert retention.look() == Removed()
    assert kept(tmp_path) == {files.stream_id: [1, 2, 3]}


def test_the_header_of_a_stream_that_is_not_ours_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    delivered(tmp_path)
    read: list[str] = []

    def watched(files: StreamFiles, numbers: Sequence[int] | None = None) -> Mapping[str, Any]:
        read.append(files.stream_id)
        return stream_header(files, numbers)

    monkeypatch.setattr(retention_module, "stream_header", watched)
    retention = Retention(tmp_path, RetentionLimits(bytes=1), wanted=lambda header: False)

    for _ in range(3):
        assert retention.look() == Removed()

    assert len(read) == 1
