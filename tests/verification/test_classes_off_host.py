"""The rows of the class table as an archive or a store shows them, alone and beside the journal.

A store has no files and no locks. It may have been set up later than the journal, and lets go of what is old.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from otel_audit.journal.cursor import Cursor, Progress
from otel_audit.journal.line import Position
from otel_audit.journal.quarantine import Quarantined
from otel_audit.signing.keys import SigningKey, VerifierKey
from otel_audit.stores.location import open_store
from otel_audit.verification.archive import verify_store
from otel_audit.verification.findings import Verdict
from otel_audit.verification.pins import Pins
from otel_audit.verification.verify import verify_directory
from tests.verification.forge import DAY_NS, NOW_NS, Forge, ForgedStream
from tests.verification.kept import Kept, all_lines, delivered, write_archive
from tests.verification.test_attacks import broken_at
from tests.verification.test_classes import seen

HOUR_NS = 3600 * 10**9


def test_a_stream_that_is_older_than_the_ledger_is_unproven(tmp_path: Path, kept: Kept) -> None:
    forge = Forge(tmp_path / "journal")
    found = forge.stream().log(9)
    forge.ledger.turn(("found", found.head()))

    assert seen(kept.alone(all_lines(forge))) == [("unproven", "before_ledger", found.stream_id, 1)]


def test_a_start_behind_lines_that_an_unsigned_ledger_removed_is_unproven(tmp_path: Path, kept: Kept) -> None:
    forge = Forge(tmp_path / "journal")
    found = forge.stream().log(9)
    forge.ledger.turn(("found", found.head()))

    report = kept.alone([*forge.ledger.lines, *found.lines[4:]])

    assert ("unproven", "window", found.stream_id, 1) in seen(report)
    assert broken_at(report) == []


def test_memory_and_an_unknown_format_are_unproven(tmp_path: Path, kept: Kept) -> None:
    forge = Forge(tmp_path / "journal")
    memory, later = forge.stream(), forge.stream()
    memory.header["durability"] = "memory"
    later.header["format"] = 2
    memory.log(3)
    later.log(3)
    forge.ledger.turn(("open", later.opening()), ("end", later.head()))

    assert seen(kept.alone(all_lines(forge))) == [
        ("unproven", "memory", memory.stream_id, None),
        ("unproven", "format", later.stream_id, 1),
    ]


def test_a_trail_without_a_ledger_is_unproven_and_with_a_pin_broken(tmp_path: Path, kept: Kept) -> None:
    stream = ForgedStream(tmp_path, "0199aabb-ccdd-7eef-8011-000000000009").log(9)

    assert {each[:2] for each in seen(kept.alone(stream.lines))} == {("unproven", "no_ledger")}
    pinned = kept.alone(stream.lines, Pins(SigningKey.generate().verifier("any")))
    assert pinned.verdict is Verdict.BROKEN


# what is young


def test_what_is_young_is_not_there_yet(tmp_path: Path, kept: Kept) -> None:
    """A minute later it is missing."""
    forge = Forge(tmp_path / "journal")
    late, absent, unknown = forge.honest_stream(ended=False), forge.honest_stream(), forge.stream()
    forge.ledger.turn(("head", late.head()))
    unknown.header["ledger"] = {"directory_id": forge.ledger.ledger_id, "size": 0}
    unknown.log(3)
    last = len(late.lines)
    lines = [*forge.ledger.lines, *late.lines[:-3], *unknown.lines]
    age_s = (datetime.now(UTC).timestamp() * 1e9 - NOW_NS) / 1e9

    assert seen(kept.alone(lines, settle_s=age_s + 60)) == [
        ("notice", "not_yet", late.stream_id, last - 2),
        ("notice", "young", unknown.stream_id, 1),
        ("notice", "not_yet", absent.stream_id, 1),
    ]
    assert broken_at(kept.alone(lines, settle_s=60)) == [
        (late.stream_id, "cut", last - 2, last),
        (unknown.stream_id, "unopened", 1, None),
        (absent.stream_id, "missing", 1, len(absent.lines)),
    ]


def test_lines_behind_the_last_head_are_a_notice_while_they_are_young(tmp_path: Path, kept: Kept) -> None:
    forge = Forge(tmp_path / "journal")
    stream = forge.honest_stream(ended=False)
    signed = 13
    age_s = (datetime.now(UTC).timestamp() * 1e9 - NOW_NS) / 1e9

    assert seen(kept.alone(all_lines(forge), settle_s=age_s + 60)) == [
        ("notice", "unsigned_yet", stream.stream_id, signed + 1)
    ]
    assert seen(kept.alone(all_lines(forge))) == [("unproven", "unsigned", stream.stream_id, signed + 1)]


# ends, adoptions, removals


def test_a_stream_that_was_taken_over_before_it_was_opened_is_unproven(tmp_path: Path, kept: Kept) -> None:
    """Its writer was killed within its first second."""
    forge = Forge(tmp_path / "journal")
    forge.honest_stream()
    stream = forge.stream()
    stream.header["ledger"] = {"directory_id": forge.ledger.ledger_id, "size": 0}
    stream.log(3)
    forge.ledger.turn(("adopt", stream.head(torn_bytes=0, adopter={"pid": 1})))

    report = kept.alone(all_lines(forge))

    assert broken_at(report) == []
    assert ("unproven", "unopened", stream.stream_id, 1) in seen(report)


def test_an_opener_that_ends_its_stream_after_an_adoption_is_a_notice(tmp_path: Path, kept: Kept) -> None:
    forge = Forge(tmp_path / "journal")
    stream = forge.honest_stream(ended=False)
    forge.ledger.turn(("adopt", stream.head(torn_bytes=7, adopter={"pid": 1})))
    taken_at = len(stream.lines)
    stream.log(3)
    forge.ledger.turn(("end", stream.head()))

    assert seen(kept.alone(all_lines(forge))) == [("notice", "adopted", stream.stream_id, taken_at)]


def test_damage_that_a_later_header_names_was_never_sent_and_nothing_of_it_is_missing(
    tmp_path: Path, kept: Kept
) -> None:
    forge = Forge(tmp_path / "journal")
    stream = forge.stream().log(5)
    stream.begin_segment(damage=stream.damage(1, b'{"event_type":"ord')).log(5)
    forge.ledger.turn(("open", stream.opening()), ("end", stream.head()))

    assert seen(kept.alone(all_lines(forge))) == []


def a_removal(tmp_path: Path) -> tuple[Forge, ForgedStream, ForgedStream]:
    """Retention has removed one stream from the journal as a whole, and the first segment of another one."""
    forge = Forge(tmp_path / "journal", identity=SigningKey.generate())
    whole, part = forge.honest_stream(segments=2), forge.honest_stream(segments=2)
    forge.ledger.turn(
        ("retain", whole.removal(1)),
        ("retain", whole.removal(2, whole=True)),
        ("retain", part.removal(1)),
        after_ns=31 * DAY_NS,
    )
    forge.write()
    delivered(forge)
    for path in (whole.path(1), whole.path(2), part.path(1)):
        path.unlink()
    return forge, whole, part


def test_lines_that_retention_removed_from_the_journal_are_still_there(tmp_path: Path, kept: Kept) -> None:
    forge, _, _ = a_removal(tmp_path)
    assert forge.identity is not None
    pins = Pins(identity=forge.identity.verifier("any"))

    alone, beside = kept.alone(all_lines(forge), pins), kept.beside(forge, all_lines(forge))

    assert alone.verdict is beside.verdict is Verdict.PROVEN
    assert {each[:2] for each in seen(alone)} == {("notice", "retained")}
    assert {each[:2] for each in seen(beside)} == {("notice", "retained"), ("notice", "store_only")}


def test_lines_that_are_neither_there_nor_in_the_journal_are_unproven(tmp_path: Path, kept: Kept) -> None:
    """Somebody deleted them, or the store was set up after retention had removed them: nothing tells the two apart."""
    forge, whole, part = a_removal(tmp_path)
    first = part.segments[1]
    lines = [*forge.ledger.lines, *part.lines[first - 1 :]]

    for report in (kept.alone(lines), kept.beside(forge, lines)):
        assert report.verdict is Verdict.CONSISTENT
        gone = [
            (each.weight, each.stream_id, each.seq, each.last_seq)
            for each in report.all_findings
            if each.kind == "retained_there"
        ]
        assert sorted(gone) == [
            ("unproven", whole.stream_id, 1, len(whole.lines)),
            ("unproven", part.stream_id, 1, first - 1),
        ]


def test_a_hole_beside_removed_lines_is_a_finding(tmp_path: Path, kept: Kept) -> None:
    forge, whole, part = a_removal(tmp_path)
    first = part.segments[1]
    lines = [*forge.ledger.lines, *whole.lines, *part.lines[first + 1 :]]

    assert broken_at(kept.alone(lines)) == [(part.stream_id, "missing", 1, first + 1)]
    assert broken_at(kept.beside(forge, lines)) == [(part.stream_id, "journal_only", first, first + 1)]


# a store that lets go of what is old


def a_long_trail(tmp_path: Path) -> tuple[Forge, ForgedStream, ForgedStream, ForgedStream]:
    """A stream of long ago, one that has gone on since, and one of now. Between them the ledger has begun a segment."""
    forge = Forge(tmp_path / "journal", identity=SigningKey.generate())
    old, long, new = forge.stream(), forge.stream(), forge.stream()
    old.log(9)
    long.log(9)
    forge.ledger.turn(("open", old.opening()), ("end", old.head()))
    forge.ledger.turn(("open", long.opening()), ("head", long.head()))
    forge.ledger.time_ns += DAY_NS
    forge.ledger.begin_segment()
    long.time_ns = new.time_ns = forge.ledger.time_ns
    long.begin_segment().log(5)
    new.log(9)
    forge.ledger.turn(("open", new.opening()), ("end", long.head()))
    forge.ledger.next_epoch(("end", new.head()))
    forge.ledger.turn(("head", new.head()))
    forge.write()
    delivered(forge)
    return forge, old, long, new


def young(lines: list[bytes], since_ns: int) -> list[bytes]:
    return [line for line in lines if int(line.split(b'"observed_ns":')[1].split(b",")[0]) >= since_ns]


def test_what_a_store_has_let_go_of_is_unproven_and_the_rest_is_checked(tmp_path: Path, kept: Kept) -> None:
    forge, old, long, new = a_long_trail(tmp_path)
    lines = young(all_lines(forge), NOW_NS + DAY_NS)
    first = long.segments[1]
    ledger_first = forge.ledger.pruned_to + 1

    assert seen(kept.alone(lines)) == [
        ("unproven", "window", forge.ledger.ledger_id, 1),
        ("unproven", "window", long.stream_id, 1),
    ]
    beside = kept.beside(forge, lines)
    assert [(each.weight, each.kind, each.stream_id, each.seq, each.last_seq) for each in beside.all_findings] == [
        ("unproven", "window", forge.ledger.ledger_id, 1, ledger_first - 1),
        ("unproven", "window", old.stream_id, 1, len(old.lines)),
        ("unproven", "window", long.stream_id, 1, first - 1),
    ]
    assert kept.beside(forge, lines, from_ns=NOW_NS + DAY_NS).verdict is Verdict.PROVEN

    without_one = [line for line in lines if line != new.lines[4]]
    assert broken_at(kept.alone(without_one)) == [(new.stream_id, "missing", 5, 5)]
    assert broken_at(kept.beside(forge, without_one)) == [(new.stream_id, "journal_only", 5, 5)]


def test_an_end_that_was_deleted_is_found_in_a_store_that_begins_later(tmp_path: Path, kept: Kept) -> None:
    forge, _, long, new = a_long_trail(tmp_path)
    lines = [line for line in young(all_lines(forge), NOW_NS + DAY_NS) if line not in (long.lines[-1], new.lines[-1])]

    assert broken_at(kept.alone(lines)) == [
        (long.stream_id, "cut", len(long.lines), len(long.lines)),
        (new.stream_id, "cut", len(new.lines), len(new.lines)),
    ]


def test_a_ledger_of_which_no_line_with_a_tree_is_left_proves_nothing(tmp_path: Path, kept: Kept) -> None:
    forge, _, _, new = a_long_trail(tmp_path)
    lines = [*forge.ledger.lines[forge.ledger.pruned_to + 3 :], *new.lines]

    report = kept.alone(lines)

    assert (report.verdict, broken_at(report)) == (Verdict.CONSISTENT, [])
    assert ("unproven", "window", forge.ledger.ledger_id, 1) in seen(report)
    assert [each.signed_to for each in report.streams] == [0]


def test_a_ledger_that_begins_later_says_which_removals_it_can_judge(tmp_path: Path, kept: Kept) -> None:
    """What it says of streams that it opened before its first line here is neither a lie nor shown to be true."""
    forge, old, _, new = a_long_trail(tmp_path)
    forge.ledger.turn(("retain", old.removal(1, whole=True)), ("retain", new.removal(1, whole=True)), after_ns=DAY_NS)
    lines = young(all_lines(forge), NOW_NS + DAY_NS)

    report = kept.alone(lines)

    assert broken_at(report) == [(new.stream_id, "retained_young", 1, len(new.lines))]
    assert ("notice", "window", old.stream_id, 1) in seen(report)


def test_a_key_that_signed_no_note_in_a_store_is_unproven(tmp_path: Path, kept: Kept) -> None:
    forge, _, long, _ = a_long_trail(tmp_path)
    lines = young(all_lines(forge), NOW_NS + DAY_NS)
    begin = forge.ledger.lines[1]
    first = VerifierKey.parse(begin.split(b'"keys":["')[1].split(b'"')[0].decode())
    unknown = SigningKey.generate().verifier(forge.ledger.origin)

    signed, unsigned = (kept.alone(lines, Pins(known_key=key)) for key in (first, unknown))

    assert ("unproven", "known", forge.ledger.ledger_id, None) in seen(unsigned)
    assert [each.anchored_to for each in unsigned.streams] == [0, 0]
    assert [each[1] for each in seen(signed)] == ["window", "window"]
    assert {each.stream_id: each.anchored_to for each in signed.streams}[long.stream_id] == len(long.lines)
    assert broken_at(signed) == broken_at(unsigned) == []


def test_a_store_from_which_the_whole_ledger_was_deleted_has_let_go_of_nothing(tmp_path: Path, kept: Kept) -> None:
    forge, old, long, _ = a_long_trail(tmp_path)
    lines = young([line for stream in forge.streams for line in stream.lines], NOW_NS + DAY_NS)

    found = {each[:3] for each in broken_at(kept.beside(forge, lines))}

    assert {(old.stream_id, "journal_only", 1), (long.stream_id, "journal_only", 1)} <= found


# beside the journal


def test_lines_in_quarantine_are_a_notice(tmp_path: Path, kept: Kept) -> None:
    forge = Forge(tmp_path / "journal")
    stream = forge.honest_stream()
    forge.write()
    delivered(forge)
    path = forge.directory / f"{stream.stream_id}.cursor"
    path.unlink()
    cursor = Cursor(path)
    quarantine = (Quarantined(5, 6, "413"),)
    cursor.advance("otlp", Progress(position=Position(9, 0, len(stream.lines)), quarantine=quarantine))
    cursor.close()
    gone = set(stream.lines[4:6])

    report = kept.beside(forge, [line for line in all_lines(forge) if line not in gone])

    assert seen(report) == [("notice", "quarantined", stream.stream_id, 5)]


def test_a_tombstone_of_a_line_is_a_notice_beside_the_line(tmp_path: Path, kept: Kept) -> None:
    forge = Forge(tmp_path / "journal")
    stream = forge.honest_stream()
    forge.write()
    delivered(forge)
    lines = all_lines(forge)
    lines[lines.index(stream.lines[7])] = stream.tombstone(8)

    assert seen(kept.beside(forge, lines)) == [("notice", "erased_there", stream.stream_id, 8)]


def test_a_number_that_no_stream_can_have_ends_in_a_report(tmp_path: Path, kept: Kept) -> None:
    """A stranger who writes to the store must not keep the verifier busy for ever."""
    forge, _, part = a_removal(tmp_path)
    far = ForgedStream(forge.directory, part.stream_id, lines=[b"{}"] * 4)
    far.log(1)
    line = far.lines[-1].replace(b'"seq":5', b'"seq":%d' % (2**63 - 1))

    found = broken_at(kept.beside(forge, [*all_lines(forge), line]))

    assert [each[:3] for each in found] == [(part.stream_id, "store_only", 2**63 - 1)]


def test_an_archive_that_breaks_off_says_where_and_names_the_lines_that_lack(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "journal")
    stream = forge.honest_stream()
    forge.write()
    delivered(forge)
    path = write_archive(tmp_path / "archive.jsonl", all_lines(forge))
    whole = path.read_bytes()
    offset = whole[:-1].rindex(b"\n") + 1
    path.write_bytes(whole[:-200])
    last = len(stream.lines)
    first = last - whole[offset:].count(b'"body"') + 1

    with open_store(path) as store:
        alone = verify_store(store)
    with open_store(path) as store:
        beside = verify_directory(forge.directory, beside=store)

    assert broken_at(alone) == [(stream.stream_id, "cut", first, last)]
    assert broken_at(beside) == [(stream.stream_id, "journal_only", first, last)]
    [damage] = [each for each in alone.all_findings if each.kind == "damage"]
    assert damage.message == f"archive.jsonl: {len(whole) - offset - 200} bytes at offset {offset} are not a record"
