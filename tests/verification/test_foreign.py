"""Records of the plain logs API, which a store keeps without their journal lines: nothing of them is called missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from opentelemetry._logs import LogRecord
from opentelemetry.sdk._logs import LoggerProvider

from otel_audit.integrations.otel_logs import AuditLogRecordProcessor
from otel_audit.stores.location import open_store
from otel_audit.verification.archive import verify_store
from otel_audit.verification.findings import Verdict
from otel_audit.verification.verify import verify_directory
from tests.chain_check import read_streams
from tests.servers import Collector
from tests.verification.forge import Forge, ForgedStream
from tests.verification.kept import all_lines, delivered, write_archive
from tests.verification.test_archive import alone, beside
from tests.verification.test_attacks import broken_at
from tests.verification.test_classes import seen

RECORD = {"body": {"stringValue": "sold 7"}}  # without number and hash


def foreign_stream(forge: Forge) -> ForgedStream:
    """Two segments of ten records each."""
    stream = forge.stream()
    stream.header["foreign"] = True
    stream.log(10, otlp={}).begin_segment().log(10, otlp={})
    forge.ledger.turn(("open", stream.opening()), ("end", stream.head()))
    forge.write()
    delivered(forge)
    return stream


def without_lines(path: Path, forge: Forge, *, ledger: bool = True) -> Path:
    """The archive, which has of each record only what the application sent."""
    lines = all_lines(forge) if ledger else [line for stream in forge.streams for line in stream.lines]
    return write_archive(path, [line if line.startswith(b'{"system"') else RECORD for line in lines])


@pytest.mark.parametrize("ledger", [True, False])
def test_their_lines_are_unproven_in_an_archive_alone(tmp_path: Path, ledger: bool) -> None:
    forge = Forge(tmp_path / "journal")
    stream = foreign_stream(forge)

    report = alone(without_lines(tmp_path / "archive.jsonl", forge, ledger=ledger))

    assert report.verdict is Verdict.CONSISTENT
    [fact] = [each for each in report.all_findings if each.kind == "foreign"]
    last = 22 if ledger else 11  # where the ledger says how far it came
    assert (fact.weight, fact.stream_id, fact.seq, fact.last_seq) == ("unproven", stream.stream_id, 2, last)
    assert fact.message.startswith(f"{20 if ledger else 10} of the lines 2 to {last} are records of the plain logs API")


def test_their_lines_are_a_notice_beside_the_journal(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "journal")
    stream = foreign_stream(forge)

    report = beside(forge, without_lines(tmp_path / "archive.jsonl", forge))

    assert seen(report) == [
        ("notice", "foreign", stream.stream_id, 2),
        ("notice", "foreign", stream.stream_id, 13),
    ]


def test_a_hole_beside_a_line_that_is_no_record_of_the_plain_api_is_a_finding(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "journal")
    stream = foreign_stream(forge)
    lines = [line for line in all_lines(forge) if line not in stream.lines[4:8]]

    assert broken_at(alone(write_archive(tmp_path / "archive.jsonl", lines))) == [(stream.stream_id, "missing", 5, 8)]


def test_a_line_that_is_missing_in_their_journal_is_a_finding(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "journal")
    stream = foreign_stream(forge)
    stream.write_segment(1, stream.lines[:1])

    assert broken_at(verify_directory(forge.directory)) == [(stream.stream_id, "missing", 2, 11)]


@pytest.mark.processes
@pytest.mark.collector
def test_a_real_archive_of_a_service_that_emits_through_the_api_is_not_broken(
    tmp_path: Path, collector: Collector
) -> None:
    provider = LoggerProvider(shutdown_on_exit=False)
    processor = AuditLogRecordProcessor(
        directory=tmp_path / "journal",
        endpoint=collector.http_endpoint,
        protocol="http/protobuf",
        segment_bytes=4096,
    )
    provider.add_log_record_processor(processor)
    for number in range(30):
        provider.get_logger("shop").emit(LogRecord(body=f"sold {number}"))
    assert provider.force_flush(30_000)
    provider.shutdown()
    [lines] = read_streams(tmp_path / "journal").values()
    collector.wait_for_archive(len(lines))

    with open_store(collector.archive_path) as store:
        by_itself = verify_store(store, settle_s=0)
    with open_store(collector.archive_path) as store:
        both = verify_directory(tmp_path / "journal", beside=store, settle_s=0)

    assert len([line for line in lines if "segment" in line]) > 2
    assert (by_itself.verdict, both.verdict) == (Verdict.CONSISTENT, Verdict.CONSISTENT)
    assert {each.kind for each in by_itself.all_findings} == {"foreign"}
    assert ("notice", "foreign") in {(each.weight, each.kind) for each in both.all_findings}
