"""The same trail in a collector's archive: alone, and beside the journal that it came from."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from otel_audit.signing.keys import SigningKey
from otel_audit.stores.location import open_store
from otel_audit.verification.archive import verify_store
from otel_audit.verification.findings import Class, Report, Verdict
from otel_audit.verification.pins import Pins
from otel_audit.verification.verify import verify_directory
from tests.verification.forge import DAY_NS, Forge, ForgedStream
from tests.verification.kept import all_lines, deliver, delivered, write_archive
from tests.verification.test_attacks import REWRITES, broken_at, hide, rewrite
from tests.verification.test_classes import known, seen


@pytest.fixture
def forge(forge: Forge) -> Forge:
    delivered(forge)
    return forge


def alone(path: Path, pins: Pins | None = None) -> Report:
    with open_store(path) as store:
        return verify_store(store, pins)


def beside(forge: Forge, path: Path) -> Report:
    with open_store(path) as store:
        return verify_directory(forge.directory, beside=store)


def test_an_archive_is_proven_by_the_ledger_lines_in_it_in_whatever_order_they_came(
    forge: Forge, tmp_path: Path, identity: SigningKey
) -> None:
    lines = all_lines(forge)
    path = write_archive(tmp_path / "archive.jsonl", [*lines, *lines[10:30]], shuffled=True)

    report = alone(path, Pins(identity=identity.verifier("any")))

    assert (report.verdict, report.all_findings) == (Verdict.PROVEN, [])
    assert [each.signed_to for each in report.streams] == [len(each.lines) for each in forge.streams]


def test_a_compressed_archive_is_read_as_well(forge: Forge, tmp_path: Path) -> None:
    path = write_archive(tmp_path / "archive.jsonl", all_lines(forge))
    packed = tmp_path / "archive.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))

    assert alone(packed, known(forge.ledger.notes[3])).verdict is Verdict.PROVEN


def test_journal_and_archive_that_agree_are_proven_by_each_other(forge: Forge, tmp_path: Path) -> None:
    report = beside(forge, write_archive(tmp_path / "archive.jsonl", all_lines(forge)))

    assert (report.verdict, report.all_findings) == (Verdict.PROVEN, [])


def test_a_changed_line_in_an_archive_is_found(forge: Forge, tmp_path: Path) -> None:
    lines = [line.replace(b"order 30", b"order 99") for line in all_lines(forge)]
    path = write_archive(tmp_path / "archive.jsonl", lines)

    ids = [stream.stream_id for stream in forge.streams]
    assert broken_at(alone(path)) == [(stream_id, "altered", 31, None) for stream_id in ids]
    assert broken_at(beside(forge, path)) == [(stream_id, "differs", 31, 31) for stream_id in ids]


def test_each_deleted_line_of_an_archive_is_named(forge: Forge, tmp_path: Path) -> None:
    one, other = forge.streams
    gone = {one.lines[4], one.lines[5], other.lines[40]}
    path = write_archive(tmp_path / "archive.jsonl", [line for line in all_lines(forge) if line not in gone])

    assert broken_at(alone(path)) == [
        (one.stream_id, "missing", 5, 6),
        (other.stream_id, "missing", 41, 41),
    ]
    assert broken_at(beside(forge, path)) == [
        (one.stream_id, "journal_only", 5, 6),
        (other.stream_id, "journal_only", 41, 41),
    ]


def test_a_tail_that_was_deleted_from_an_archive_is_found(forge: Forge, tmp_path: Path) -> None:
    stream = forge.streams[1]
    last = len(stream.lines)
    path = write_archive(tmp_path / "archive.jsonl", all_lines(forge)[:-3])

    assert broken_at(alone(path)) == [(stream.stream_id, "cut", last - 2, last)]
    assert broken_at(beside(forge, path)) == [(stream.stream_id, "journal_only", last - 2, last)]


def test_a_stream_that_was_deleted_from_an_archive_is_found(forge: Forge, tmp_path: Path) -> None:
    stream = forge.streams[0]
    path = write_archive(tmp_path / "archive.jsonl", [*forge.ledger.lines, *forge.streams[1].lines])

    assert broken_at(alone(path)) == [(stream.stream_id, "missing", 1, len(stream.lines))]
    assert broken_at(beside(forge, path)) == [(stream.stream_id, "journal_only", 1, len(stream.lines))]


def test_a_line_that_was_put_into_an_archive_is_found(forge: Forge, tmp_path: Path) -> None:
    stream = forge.streams[0]
    forged = stream.lines[9].replace(b"order 9", b"order 0")
    path = write_archive(tmp_path / "archive.jsonl", [*all_lines(forge), forged])

    assert broken_at(alone(path)) == [(stream.stream_id, "inserted", 10, None)]
    assert broken_at(beside(forge, path)) == [(stream.stream_id, "differs", 10, 10)]


@pytest.mark.parametrize("name", REWRITES)
def test_a_journal_that_was_rewritten_is_found_by_the_archive(forge: Forge, tmp_path: Path, name: str) -> None:
    path = write_archive(tmp_path / "archive.jsonl", all_lines(forge))
    stream = forge.streams[1]
    rewrite(stream, REWRITES[name])

    assert (stream.stream_id, "differs", 10) in {each[:3] for each in broken_at(beside(forge, path))}


def test_a_ledger_of_which_this_epoch_was_rewritten_is_found_by_the_archive(
    forge: Forge, tmp_path: Path, identity: SigningKey
) -> None:
    path = write_archive(tmp_path / "archive.jsonl", all_lines(forge))
    stream = forge.streams[1]
    hide(stream, forge.ledger, [forge.ledger.epoch_key, identity])

    found = {each[:2] for each in broken_at(beside(forge, path))}

    assert found == {(stream.stream_id, "differs"), (forge.ledger.ledger_id, "differs")}


def test_a_tail_that_was_cut_behind_the_last_head_is_found_by_the_archive(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "journal")
    stream = forge.honest_stream(ended=False)
    forge.write()
    delivered(forge)
    last = len(stream.lines)
    path = write_archive(tmp_path / "archive.jsonl", all_lines(forge))
    stream.write_segment(1, stream.lines[:-4])

    assert broken_at(beside(forge, path)) == [(stream.stream_id, "store_only", last - 3, last)]


def test_lines_that_a_loss_of_power_may_have_taken_are_unproven_beside_the_archive(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "journal")
    stream = forge.stream().log(9)
    forge.ledger.turn(("open", stream.opening(boot_id="another")), ("head", stream.head(5)))
    forge.write()
    delivered(forge)
    path = write_archive(tmp_path / "archive.jsonl", all_lines(forge))
    stream.write_segment(1, stream.lines[:-2])

    facts = seen(beside(forge, path))

    assert ("unproven", "store_only", stream.stream_id, len(stream.lines) - 1) in facts


def test_a_journal_that_was_rolled_back_is_found_by_the_archive(forge: Forge, tmp_path: Path) -> None:
    before = len(forge.ledger.lines)
    former = {path: path.read_bytes() for path in forge.directory.iterdir()}
    stream = forge.honest_stream()
    path = write_archive(tmp_path / "archive.jsonl", all_lines(forge))
    for each in forge.directory.iterdir():
        if each not in former:
            each.unlink()
    for each, content in former.items():
        each.write_bytes(content)

    found = broken_at(beside(forge, path))

    assert (forge.ledger.ledger_id, "store_only", before + 1, len(forge.ledger.lines)) in found
    assert stream.stream_id not in {each.stream_id for each in alone(path).streams if each.state == "missing"}


def test_two_clones_that_went_on_are_found_by_the_archive(forge: Forge, tmp_path: Path) -> None:
    common = len(forge.ledger.lines)
    clone = list(forge.ledger.lines)
    forge.ledger.turn(("open", forge.stream().log(1).opening()))
    one = list(forge.ledger.lines)
    forge.ledger.lines[:] = clone
    forge.ledger.turn(("open", forge.stream().log(2).opening()))
    forge.streams.clear()
    path = write_archive(tmp_path / "archive.jsonl", [*one, *all_lines(forge)])

    assert (forge.ledger.ledger_id, "inserted", common + 1) in {each[:3] for each in broken_at(alone(path))}


def test_what_retention_removed_from_the_journal_is_a_notice_beside_the_archive(forge: Forge, tmp_path: Path) -> None:
    stream = forge.streams[0]
    forge.ledger.turn(("retain", stream.removal(1)), after_ns=31 * DAY_NS)
    forge.write()
    delivered(forge)
    path = write_archive(tmp_path / "archive.jsonl", all_lines(forge))
    stream.path(1).unlink()

    report = beside(forge, path)

    assert report.verdict is Verdict.PROVEN
    assert {each[:3] for each in seen(report)} == {
        ("notice", "retained", stream.stream_id),
        ("notice", "store_only", stream.stream_id),
    }


def test_lines_that_are_not_delivered_yet_are_a_notice_beside_the_archive(forge: Forge, tmp_path: Path) -> None:
    stream = forge.streams[0]
    last = len(stream.lines)
    deliver(forge.directory / f"{stream.stream_id}.cursor", last - 5)
    gone = set(stream.lines[-5:])
    path = write_archive(tmp_path / "archive.jsonl", [line for line in all_lines(forge) if line not in gone])

    assert seen(beside(forge, path)) == [("notice", "pending", stream.stream_id, last - 4)]


def test_the_ledger_of_another_directory_is_a_notice_unless_it_speaks_of_a_stream_of_this_one(
    forge: Forge, tmp_path: Path
) -> None:
    other = Forge(tmp_path / "other")
    other.ledger.ledger_id = "0199aabb-ccdd-7eef-8011-0000000000ff"
    other.ledger.lines = []
    other.ledger.origin = f"otel-audit/shop/{other.ledger.ledger_id}"
    other.ledger.begin()
    harmless = write_archive(tmp_path / "one.jsonl", [*all_lines(forge), *other.ledger.lines])
    other.ledger.turn(("open", forge.streams[0].opening()))
    harmful = write_archive(tmp_path / "two.jsonl", [*all_lines(forge), *other.ledger.lines])

    assert seen(beside(forge, harmless)) == [("notice", "foreign_ledger", other.ledger.ledger_id, None)]
    assert (other.ledger.ledger_id, "foreign_ledger") in {each[:2] for each in broken_at(beside(forge, harmful))}


def test_an_archive_without_ledger_lines_is_unproven(forge: Forge, tmp_path: Path) -> None:
    path = write_archive(tmp_path / "archive.jsonl", [line for each in forge.streams for line in each.lines])

    report = alone(path)

    assert report.verdict is Verdict.CONSISTENT
    assert {(each.weight, each.kind) for each in report.all_findings} == {(Class.UNPROVEN, "no_ledger")}


def test_a_start_in_the_middle_of_a_stream_is_unproven_where_the_archive_lets_go_of_what_is_old(
    tmp_path: Path,
) -> None:
    stream = ForgedStream(tmp_path, "0199aabb-ccdd-7eef-8011-000000000009").log(9)
    path = write_archive(tmp_path / "archive.jsonl", stream.lines[4:])

    assert ("unproven", "window", stream.stream_id, 1) in seen(alone(path))


def test_a_body_that_a_store_cut_short_is_unproven_alone_and_a_notice_beside_the_journal(
    forge: Forge, tmp_path: Path
) -> None:
    stream = forge.streams[0]
    attributes = [
        {"key": "audit.sequence.stream_id", "value": {"stringValue": stream.stream_id}},
        {"key": "audit.sequence.number", "value": {"intValue": "10"}},
    ]
    short = {"body": {"stringValue": stream.lines[9][:60].decode()}, "attributes": attributes}
    lines = [short if line == stream.lines[9] else line for line in all_lines(forge)]
    path = write_archive(tmp_path / "archive.jsonl", lines)

    assert seen(alone(path)) == [("unproven", "cut_short", stream.stream_id, 10)]
    assert seen(beside(forge, path)) == [("notice", "cut_short", stream.stream_id, 10)]
