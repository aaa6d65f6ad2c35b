"""Every row of the class table: what is seen, and whether it is a finding, unproven or a notice."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from otel_audit.journal.locks import FileLock
from otel_audit.signing.keys import SigningKey, VerifierKey
from otel_audit.signing.note import Checkpoint, Note
from otel_audit.verification.findings import Class, Report, Verdict
from otel_audit.verification.pins import KnownNote, Pins
from otel_audit.verification.verify import verify_directory
from tests.verification.forge import DAY_NS, Forge, ForgedLedger, ForgedStream, each_line

AN_HOUR_AGO_S = time.time() - 3600


def seen(report: Report) -> list[tuple[str, str, str, int | None]]:
    """The facts of a report: class, kind, stream, number."""
    return [(str(each.weight), each.kind, each.stream_id, each.seq) for each in report.all_findings]


def verified(forge: Forge, pins: Pins | None = None, *, anchored_within_s: float | None = None) -> Report:
    for stream in forge.streams:  # as if nothing had been written for an hour
        for path in forge.directory.glob(f"{stream.stream_id}.*.jsonl"):
            os.utime(path, (AN_HOUR_AGO_S, AN_HOUR_AGO_S))
    return verify_directory(forge.directory, pins, anchored_within_s=anchored_within_s)


def known(note: Note) -> Pins:
    return Pins(known_note=KnownNote(note, Checkpoint.parse(note.text)))


def test_an_honest_trail_is_consistent_and_with_a_pin_proven(tmp_path: Path) -> None:
    identity = SigningKey.generate()
    forge = Forge(tmp_path, identity=identity)
    forge.honest_stream(segments=3)
    forge.ledger.next_epoch()
    stream = forge.honest_stream()
    forge.write()

    without = verified(forge)
    pinned = verified(forge, Pins(identity.verifier("any-name")))
    earlier = verified(forge, known(forge.ledger.notes[3]))
    epoch = verified(forge, Pins(known_key=VerifierKey.parse(without.ledgers[0].vkey)))

    assert seen(without) == seen(pinned) == seen(earlier) == seen(epoch) == []
    assert (without.verdict, without.exit_code) == (Verdict.CONSISTENT, 0)
    assert {(each.verdict, each.exit_code) for each in (pinned, earlier, epoch)} == {(Verdict.PROVEN, 0)}
    assert [each.signed_to for each in without.streams] == [len(each.lines) for each in forge.streams]
    assert [each.anchored_to for each in pinned.streams] == [len(each.lines) for each in forge.streams]
    assert pinned.streams[1].stream_id == stream.stream_id


def test_a_directory_without_a_ledger_is_unproven_and_with_a_pin_broken(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    stream = forge.stream().log(5).write()

    assert (Class.UNPROVEN, "no_ledger", stream.stream_id, 1) in seen(verified(forge))
    assert verified(forge).verdict is Verdict.CONSISTENT
    assert verified(forge, Pins(SigningKey.generate().verifier("any"))).verdict is Verdict.BROKEN


def test_a_changed_line_is_a_finding(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    stream = forge.honest_stream(segments=2)
    forge.write()
    each_line(stream.path(2), lambda lines: [line.replace(b"order 30", b"order 99") for line in lines])

    assert seen(verified(forge)) == [("finding", "altered", stream.stream_id, 31)]


@pytest.mark.parametrize("place", [5, 12, 20])
def test_a_missing_line_is_a_finding(tmp_path: Path, place: int) -> None:
    forge = Forge(tmp_path)
    stream = forge.honest_stream()
    forge.write()
    each_line(stream.path(), lambda lines: lines[: place - 1] + lines[place:])

    assert seen(verified(forge)) == [("finding", "missing", stream.stream_id, place)]


def test_several_missing_lines_are_one_finding(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    stream = forge.honest_stream()
    forge.write()
    each_line(stream.path(), lambda lines: lines[:7] + lines[11:])

    [finding] = verified(forge).all_findings

    assert (finding.kind, finding.seq, finding.last_seq) == ("missing", 8, 11)


def test_an_inserted_line_is_a_finding(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    stream = forge.honest_stream()
    forge.write()
    each_line(stream.path(), lambda lines: [*lines[:7], lines[6].replace(b"order 6", b"order 7"), *lines[7:]])

    assert seen(verified(forge)) == [("finding", "inserted", stream.stream_id, 7)]


def test_two_lines_that_changed_places_are_findings(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    stream = forge.honest_stream()
    forge.write()
    each_line(stream.path(), lambda lines: [*lines[:6], lines[7], lines[6], *lines[8:]])

    assert seen(verified(forge)) == [
        ("finding", "inserted", stream.stream_id, 8),
        ("finding", "moved", stream.stream_id, 8),
    ]


def test_a_stream_that_is_shorter_than_signed_is_a_finding(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    stream = forge.honest_stream()
    forge.write()
    each_line(stream.path(), lambda lines: lines[:-4])

    [finding] = verified(forge).all_findings

    assert (finding.kind, finding.seq, finding.last_seq) == ("cut", len(stream.lines) - 3, len(stream.lines))


def test_lines_of_another_stream_are_a_finding(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    one, other = forge.honest_stream(), forge.honest_stream()
    forge.write()
    each_line(one.path(), lambda lines: [*lines[:7], other.lines[7], *lines[7:]])

    assert seen(verified(forge)) == [("finding", "damage", one.stream_id, 8)]


def test_a_stream_that_is_gone_is_a_finding_unless_it_was_removed_whole(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    gone, removed = forge.honest_stream(), forge.honest_stream()
    forge.ledger.turn(("retain", removed.removal(1, whole=True)), after_ns=31 * DAY_NS)
    forge.write()
    gone.path().unlink()
    removed.path().unlink()

    report = verified(forge)

    assert seen(report) == [
        ("finding", "missing", gone.stream_id, 1),
        ("notice", "retained", removed.stream_id, 1),
    ]
    assert [each.state for each in report.streams] == ["missing", "removed"]


def test_a_stream_that_was_not_opened_is_a_finding(tmp_path: Path) -> None:
    forge = Forge(tmp_path).write()
    stream = forge.stream()
    stream.time_ns += DAY_NS
    stream.log(5).write()

    assert seen(verified(forge)) == [("finding", "unopened", stream.stream_id, 1)]


def test_a_stream_that_was_not_opened_yet_is_a_notice_while_it_is_young_or_its_writer_lives(tmp_path: Path) -> None:
    forge = Forge(tmp_path).write()
    stream = forge.stream()
    stream.time_ns += DAY_NS
    stream.log(5).write()

    assert seen(verify_directory(tmp_path)) == [("notice", "young", stream.stream_id, 1)]
    lock = held(stream)
    assert seen(verified(forge)) == [("notice", "young", stream.stream_id, 1)]
    lock.release()


def test_a_stream_that_is_older_than_the_ledger_is_unproven(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    unknown, found = forge.stream(), forge.stream()
    for stream in (unknown, found):
        stream.time_ns -= DAY_NS
        stream.log(5)
    forge.ledger.turn(("found", found.head()))
    forge.write()

    assert seen(verified(forge)) == [
        ("unproven", "before_ledger", unknown.stream_id, 1),
        ("unproven", "before_ledger", found.stream_id, 1),
    ]


def test_a_stream_that_was_found_is_held_to_what_it_was_then(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    found = forge.stream().log(9)
    forge.ledger.turn(("found", found.head()))
    forge.write()
    each_line(found.path(), lambda lines: lines[:-2])

    assert ("finding", "cut", found.stream_id, 9) in seen(verified(forge))


def test_lines_behind_the_last_head_are_a_notice_while_the_writer_lives_and_unproven_once_it_died(
    tmp_path: Path,
) -> None:
    forge = Forge(tmp_path)
    stream = forge.honest_stream(ended=False)
    signed = 13
    forge.write()

    lock = held(stream)
    assert seen(verified(forge)) == [("notice", "unsigned_yet", stream.stream_id, signed + 1)]
    lock.release()
    assert seen(verified(forge)) == [("unproven", "unsigned", stream.stream_id, signed + 1)]


def test_lines_behind_the_end_are_a_finding(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    stream = forge.honest_stream()
    last = len(stream.lines)
    stream.log(2)
    forge.write()

    assert seen(verified(forge)) == [("finding", "behind_end", stream.stream_id, last + 1)]


def test_lines_behind_an_adoption_are_a_finding_unless_the_opener_ended_the_stream(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    bad, good = forge.honest_stream(ended=False), forge.honest_stream(ended=False)
    for stream in (bad, good):
        forge.ledger.turn(("adopt", stream.head(torn_bytes=0, adopter={"pid": 1})))
        stream.log(3)
    forge.ledger.turn(("end", good.head()))
    forge.write()

    facts = [fact for fact in seen(verified(forge)) if fact[1] != "adopted"]

    assert facts == [("finding", "behind_adopt", bad.stream_id, len(bad.lines) - 2)]


def test_a_dead_stream_that_was_adopted_is_a_notice(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    stream = forge.honest_stream(ended=False)
    forge.ledger.turn(("adopt", stream.head(torn_bytes=7, adopter={"pid": 1})))
    forge.write()
    stream.write_segment(1, stream.lines, torn=b'{"event')

    assert {fact[:2] for fact in seen(verified(forge))} == {("notice", "adopted"), ("notice", "torn")}


def test_a_start_behind_removed_lines_is_a_notice_and_one_without_a_reason_a_finding(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    kept, cut = forge.honest_stream(segments=3), forge.honest_stream(segments=2)
    forge.ledger.turn(("retain", kept.removal(1)), ("retain", kept.removal(2)), after_ns=31 * DAY_NS)
    forge.write()
    kept.path(1).unlink()
    kept.path(2).unlink()
    cut.path(1).unlink()

    assert seen(verified(forge)) == [
        ("notice", "retained", kept.stream_id, 1),
        ("notice", "retained", kept.stream_id, kept.segments[1]),
        ("finding", "missing", cut.stream_id, 1),
    ]


@pytest.mark.parametrize("order", [(1, 3, 2), (3, 2, 1), (2, 1, 3)])
def test_lines_that_were_removed_in_another_order_are_a_notice(tmp_path: Path, order: tuple[int, ...]) -> None:
    forge = Forge(tmp_path)
    stream = forge.honest_stream(segments=4)
    for number in order:
        forge.ledger.turn(("retain", stream.removal(number)), after_ns=31 * DAY_NS)
    forge.write()
    for number in order:
        stream.path(number).unlink()

    report = verified(forge)

    assert {fact[:2] for fact in seen(report)} == {("notice", "retained")}
    assert [each.signed_to for each in report.streams] == [len(stream.lines)]


def test_a_changed_line_behind_removed_ones_is_a_finding(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    stream = forge.honest_stream(segments=3)
    forge.ledger.turn(("retain", stream.removal(1)), after_ns=31 * DAY_NS)
    forge.write()
    stream.path(1).unlink()
    each_line(stream.path(2), lambda lines: [lines[0].replace(b"shop", b"shoq"), *lines[1:]])

    assert ("finding", "altered", stream.stream_id, stream.segments[1]) in seen(verified(forge))


def test_a_start_behind_lines_that_an_unsigned_ledger_removed_is_unproven(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    stream = forge.honest_stream(segments=2)
    told = stream.removal(1)
    forge.write()
    stream.path(1).unlink()
    content = {**told, "stream_id": told["stream"], "last_hash": told["hash"]}
    write_former_ledger(tmp_path, content)

    assert seen(verified(forge)) == [("unproven", "removed_unsigned", stream.stream_id, 1)]


@pytest.mark.parametrize(
    ("kind", "expected"), [("found", ("unproven", "removed_unsigned")), ("open", ("finding", "missing"))]
)
def test_what_only_an_unsigned_ledger_says_was_removed_is_unproven_if_the_stream_is_older_than_the_signed_one(
    tmp_path: Path, kind: str, expected: tuple[str, str]
) -> None:
    forge = Forge(tmp_path)
    stream = forge.stream().log(9)
    if kind == "open":
        forge.ledger.turn(("open", stream.opening()))
    forge.ledger.turn(("found" if kind == "found" else "end", stream.head()))
    told = stream.removal(1)
    forge.write()
    stream.path(1).unlink()
    write_former_ledger(tmp_path, {**told, "stream_id": told["stream"], "last_hash": told["hash"]})

    assert seen(verified(forge)) == [(*expected, stream.stream_id, 1)]


def test_removing_unsigned_lines_is_a_finding(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    stream = forge.stream().log(9)
    forge.ledger.turn(("open", stream.opening()), ("head", stream.head(5)))
    forge.ledger.turn(("retain", stream.removal(1, whole=True)), after_ns=31 * DAY_NS)
    forge.write()
    stream.path().unlink()

    assert ("finding", "retained_unsigned", stream.stream_id, 6) in seen(verified(forge))


@pytest.mark.parametrize(("days", "after_days"), [(30, 29), (None, 4000)])
def test_removing_lines_before_the_declared_days_is_a_finding(
    tmp_path: Path, days: int | None, after_days: int
) -> None:
    forge = Forge(tmp_path)
    stream = forge.stream().log(9)
    forge.ledger.turn(("open", stream.opening(retention_days=days)), ("end", stream.head()))
    forge.ledger.turn(("retain", stream.removal(1, whole=True)), after_ns=after_days * DAY_NS)
    forge.write()
    stream.path().unlink()

    assert ("finding", "retained_young", stream.stream_id, 1) in seen(verified(forge))


def test_removing_young_lines_is_allowed_where_the_limit_of_bytes_was_declared(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    stream = forge.stream().log(9)
    forge.ledger.turn(("open", stream.opening(retention_days=None, retention_bytes=10**6)), ("end", stream.head()))
    forge.ledger.turn(("retain", stream.removal(1, whole=True, reason="bytes")))
    forge.write()
    stream.path().unlink()

    assert seen(verified(forge)) == [("notice", "retained", stream.stream_id, 1)]


def test_a_gap_that_the_writer_tells_of_is_a_notice(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    stream = forge.stream().log(3)
    stream.gap()
    stream.log(3)
    forge.ledger.turn(("open", stream.opening()), ("end", stream.head()))
    forge.write()

    assert seen(verified(forge)) == [("notice", "gap", stream.stream_id, 5)]


def test_a_tombstone_without_its_entry_is_a_finding(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    stream = forge.honest_stream()
    forge.write()
    each_line(stream.path(), lambda lines: [*lines[:7], stream.tombstone(8), *lines[8:]])

    assert seen(verified(forge)) == [("finding", "tombstone", stream.stream_id, 8)]


def test_damage_that_a_later_line_names_is_a_notice_and_any_other_a_finding(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    named, other = forge.stream().log(5), forge.stream().log(5)
    torn = b'{"event_type":"ord'
    for stream in (named, other):
        stream.begin_segment(**({"damage": stream.damage(1, torn)} if stream is named else {})).log(5)
        forge.ledger.turn(("open", stream.opening()), ("end", stream.head()))
    forge.write()
    for stream in (named, other):
        stream.write_segment(1, stream.lines[: stream.segments[1] - 1], torn=torn)

    assert seen(verified(forge)) == [
        ("notice", "damage", named.stream_id, 6),
        ("finding", "damage", other.stream_id, 7),
    ]


def test_memory_and_an_unknown_format_are_unproven(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    memory, later = forge.stream(), forge.stream()
    memory.header["durability"] = "memory"
    later.header["format"] = 2
    memory.log(3)
    later.log(3)
    forge.ledger.turn(("open", later.opening()), ("end", later.head()))
    forge.write()

    assert seen(verified(forge)) == [
        ("unproven", "memory", memory.stream_id, None),
        ("unproven", "format", later.stream_id, 1),
    ]


def test_an_entry_without_a_note_is_a_finding_if_the_ledger_goes_on_without_it(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    stream = forge.honest_stream()
    signed = len(forge.ledger.lines)
    forge.ledger.entry("open", {"stream": "x"})
    forge.write()

    assert seen(verified(forge)) == [("notice", "unfinished", "", signed + 1)]
    forge.ledger.lines.pop()
    forge.ledger.begin_segment()
    forge.ledger.turn(("head", stream.head()))
    later = forge.ledger.lines[signed:]
    (tmp_path / "ledger.00000002.jsonl").write_bytes(b"".join(line + b"\n" for line in later))

    assert ("finding", "entry", forge.ledger.ledger_id, signed + 1) in seen(verified(forge))


def test_a_ledger_of_which_the_first_lines_are_gone_goes_on_with_the_key_that_it_names_next(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    forge.ledger.begin_segment()
    stream = forge.honest_stream()
    forge.ledger.next_epoch()
    forge.ledger.turn(("head", stream.head()))
    forge.write()
    later = forge.ledger.lines[forge.ledger.pruned_to :]
    (tmp_path / "ledger.00000002.jsonl").write_bytes(b"".join(line + b"\n" for line in later))

    report = verified(forge)

    id_ = forge.ledger.ledger_id
    assert seen(report) == [("unproven", "ledger_begin", id_, 1), ("finding", "ledger_cut", id_, 1)]
    assert [each.signed_to for each in report.streams] == [len(stream.lines)]


def test_a_ledger_of_which_the_first_lines_were_removed_goes_on_by_its_archive_of_keys(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    first_key = forge.ledger.epoch_key.verifier(forge.ledger.origin)
    forge.ledger.begin_segment()
    stream = forge.honest_stream()
    forge.ledger.retain_own()
    forge.write()
    (tmp_path / "ledger.00000002.jsonl").unlink()
    forge.ledger.write_pruned(str(first_key))

    report = verified(forge, Pins(known_key=first_key))

    id_ = forge.ledger.ledger_id
    assert report.verdict is Verdict.PROVEN
    assert seen(report) == [("notice", "ledger_begin", id_, 1), ("notice", "ledger_retained", id_, 1)]
    assert [each.signed_to for each in report.streams] == [len(stream.lines)]
    (tmp_path / "ledger.keys").unlink()
    assert seen(verified(forge))[0] == ("unproven", "ledger_begin", id_, 1)


def test_a_ledger_of_which_first_lines_are_gone_that_no_entry_tells_of_is_cut(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    first_key = forge.ledger.epoch_key.verifier(forge.ledger.origin)
    forge.ledger.begin_segment()
    forge.honest_stream()
    forge.write()
    (tmp_path / "ledger.00000002.jsonl").unlink()
    forge.ledger.write_pruned(str(first_key))

    report = verified(forge, Pins(known_key=first_key))

    assert report.verdict is Verdict.BROKEN
    assert ("finding", "ledger_cut", forge.ledger.ledger_id, 1) in seen(report)


def held(stream: ForgedStream) -> FileLock:
    lock = FileLock.acquire(stream.directory / f"{stream.stream_id}.writer.lock")
    assert lock is not None
    return lock


def write_former_ledger(directory: Path, content: dict[str, object]) -> None:
    from otel_audit.journal.ledger.former import RETAIN, Ledger

    ledger = Ledger.locked(directory)
    assert ledger is not None
    with ledger:
        ledger.append(RETAIN, content, 1)


__all__ = ["ForgedLedger", "known", "seen", "verified"]
