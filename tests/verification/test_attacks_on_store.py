"""The attacks of docs/integrity.md against an archive or a store alone: stream and number are named as in a journal.

It holds the ledger's lines, and whoever changes it can chain anew and sign with today's keys.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from otel_audit.signing.keys import SigningKey
from otel_audit.signing.note import Note
from otel_audit.verification.findings import Verdict
from otel_audit.verification.pins import Pins
from tests.verification.forge import DAY_NS, Forge, ForgedLedger, relinked
from tests.verification.kept import Kept, all_lines, delivered
from tests.verification.test_attacks import REWRITES, broken_at, hide
from tests.verification.test_classes import known, seen, verified


@pytest.fixture
def forge(forge: Forge) -> Forge:
    delivered(forge)
    return forge


@pytest.mark.parametrize("name", REWRITES)
@pytest.mark.parametrize("number", [0, 1])
def test_a_change_that_is_chained_anew_is_found(forge: Forge, kept: Kept, name: str, number: int) -> None:
    stream = forge.streams[number]
    stream.lines = relinked(REWRITES[name](list(stream.lines)), stream.stream_id)

    report = kept.alone(all_lines(forge))

    assert broken_at(report)[0] == (stream.stream_id, "altered", 1, 13)  # where the first head is


def test_lines_of_another_stream_that_are_spliced_in_are_found(forge: Forge, kept: Kept) -> None:
    one, other = forge.streams
    one.lines = relinked([*one.lines[:9], *other.lines[9:]], one.stream_id)

    report = kept.alone(all_lines(forge))

    assert broken_at(report)[0][:3] == (one.stream_id, "altered", 1)


def test_a_deleted_segment_is_found(forge: Forge, kept: Kept) -> None:
    stream = forge.streams[1]
    last = stream.segments[1] - 1
    del stream.lines[:last]

    report = kept.alone(all_lines(forge))

    assert broken_at(report) == [(stream.stream_id, "missing", 1, last)]


def test_a_line_that_is_overwritten_as_erased_is_found(forge: Forge, kept: Kept) -> None:
    stream = forge.streams[0]
    stream.lines[7] = stream.tombstone(8)

    report = kept.alone(all_lines(forge))

    assert (stream.stream_id, "tombstone", 8) in {each[:3] for each in broken_at(report)}


def test_a_ledger_that_was_rewritten_before_the_epoch_is_found(forge: Forge, kept: Kept, identity: SigningKey) -> None:
    lines = list(forge.ledger.lines)
    place = next(seq for seq, line in enumerate(lines, 1) if b'"kind":"key"' in line) + 1
    hide(forge.streams[0], forge.ledger, [forge.ledger.epoch_key, identity])

    report = kept.alone(all_lines(forge))

    assert (forge.ledger.ledger_id, "signature", place, None) in broken_at(report)


def test_a_ledger_that_was_cut_in_an_earlier_epoch_and_continued_is_found(forge: Forge, kept: Kept) -> None:
    ledger = forge.ledger
    place = next(seq for seq, line in enumerate(ledger.lines, 1) if b'"kind":"key"' in line)
    del ledger.lines[place - 3 :]
    ledger.turn(("end", forge.streams[0].head()))
    forge.streams.pop()

    report = kept.alone(all_lines(forge))

    assert (ledger.ledger_id, "signature", len(ledger.lines), None) in broken_at(report)


def test_an_archive_that_was_rolled_back_is_found_by_what_was_kept_and_not_alone(forge: Forge, kept: Kept) -> None:
    before = all_lines(forge)
    forge.honest_stream()

    assert broken_at(kept.alone(before)) == []
    assert [(each[0], each[1]) for each in broken_at(kept.alone(before, known(forge.ledger.notes[-1])))] == [
        (forge.ledger.ledger_id, "known")
    ]


def test_lines_behind_the_end_are_found(forge: Forge, kept: Kept) -> None:
    stream = forge.streams[1]
    last = len(stream.lines)
    stream.log(2)

    report = kept.alone(all_lines(forge))

    assert broken_at(report) == [(stream.stream_id, "behind_end", last + 1, last + 2)]


def test_lines_behind_an_adoption_are_found(tmp_path: Path, kept: Kept) -> None:
    forge = Forge(tmp_path / "journal")
    stream = forge.honest_stream(ended=False)
    forge.ledger.turn(("adopt", stream.head(torn_bytes=0, adopter={"pid": 1})))
    last = len(stream.lines)
    stream.log(2)

    report = kept.alone(all_lines(forge))

    assert broken_at(report) == [(stream.stream_id, "behind_adopt", last + 1, last + 2)]


def test_a_stream_that_names_the_ledger_and_was_not_opened_is_found(forge: Forge, kept: Kept) -> None:
    stream = forge.stream()
    stream.header["ledger"] = {"directory_id": forge.ledger.ledger_id, "size": 0}
    stream.log(5)

    report = kept.alone(all_lines(forge))

    assert broken_at(report) == [(stream.stream_id, "unopened", 1, None)]


@pytest.mark.parametrize(("days", "after_days"), [(30, 29), (None, 40)])
def test_a_removal_that_was_not_declared_is_found(
    tmp_path: Path, kept: Kept, days: int | None, after_days: int
) -> None:
    forge = Forge(tmp_path / "journal")
    stream = forge.stream().log(9)
    forge.ledger.turn(("open", stream.opening(retention_days=days)), ("end", stream.head()))
    forge.ledger.turn(("retain", stream.removal(1, whole=True)), after_ns=after_days * DAY_NS)

    report = kept.alone(all_lines(forge))

    assert ("finding", "retained_young", stream.stream_id, 1) in seen(report)


def test_a_removal_of_unsigned_lines_is_found(tmp_path: Path, kept: Kept) -> None:
    forge = Forge(tmp_path / "journal")
    stream = forge.stream().log(9)
    forge.ledger.turn(("open", stream.opening()), ("head", stream.head(5)))
    forge.ledger.turn(("retain", stream.removal(1, whole=True)), after_ns=31 * DAY_NS)

    report = kept.alone(all_lines(forge))

    assert ("finding", "retained_unsigned", stream.stream_id, 6) in seen(report)


def test_a_gap_and_lines_behind_the_last_head_are_said_and_no_finding(tmp_path: Path, kept: Kept) -> None:
    forge = Forge(tmp_path / "journal")
    stream = forge.stream().log(3)
    stream.gap()
    forge.ledger.turn(("open", stream.opening()), ("head", stream.head()))
    stream.log(3)

    report = kept.alone(all_lines(forge))

    assert broken_at(report) == []
    assert {("notice", "gap", stream.stream_id, 5), ("unproven", "unsigned", stream.stream_id, 6)} <= set(seen(report))


def a_forged_trail(forge: Forge, identity: SigningKey, ledger_id: str) -> Forge:
    """In the place of the trail, another one, with a ledger that the stolen identity key has signed."""
    shutil.rmtree(forge.directory)
    forged = Forge(forge.directory, identity=identity)
    forged.ledger = ForgedLedger(forge.directory, ledger_id, log_name="otel-audit/shop", identity=identity)
    forged.ledger.begin()
    for _ in range(20):
        forged.honest_stream(count=30)
    return forged.write()


def test_a_new_ledger_under_the_stolen_identity_key_is_found_by_what_was_kept(
    forge: Forge, kept: Kept, identity: SigningKey
) -> None:
    lines = all_lines(forge)
    forged = a_forged_trail(forge, identity, forge.ledger.ledger_id)
    delivered(forged)
    ids = {stream.stream_id for stream in forge.streams}
    pins = Pins(identity=identity.verifier("any"))

    assert verified(forged, pins).verdict is Verdict.PROVEN
    found = {each[:3] for each in broken_at(kept.beside(forged, lines, pins))}
    assert (forge.ledger.ledger_id, "differs", 2) in found
    assert {(stream_id, "differs", 24) for stream_id in ids} <= found  # a header is the first line that is another one


def test_a_new_ledger_of_another_directory_id_is_vouched_for_by_nothing_that_was_kept(
    forge: Forge, kept: Kept, identity: SigningKey
) -> None:
    """It may be that of a new directory, so it is no finding; it is not proven either, whatever key has signed it."""
    lines, note = all_lines(forge), forge.ledger.notes[-1]
    forged = a_forged_trail(forge, identity, "0199aabb-ccdd-7eef-8011-0000000000ff")
    forged.streams.clear()
    pins = Pins(identity=identity.verifier("any"))

    assert verified(forged, pins).verdict is Verdict.PROVEN
    assert ("unproven", "known", "", None) in seen(verified(forged, known(note)))
    beside = kept.beside(forged, lines, pins)
    assert ("unproven", "store_notes", "", None) in seen(beside)
    assert beside.exit_code == 1


def test_an_epoch_that_was_rewritten_with_both_keys_is_found_by_a_note_in_what_was_kept(
    forge: Forge, kept: Kept, identity: SigningKey
) -> None:
    lines = all_lines(forge)
    stream = forge.streams[1]
    hide(stream, forge.ledger, [forge.ledger.epoch_key, identity])
    pins = Pins(identity=identity.verifier("any"))

    assert verified(forge, pins).verdict is Verdict.PROVEN
    found = {each[:3] for each in broken_at(kept.beside(forge, lines, pins))}
    assert (stream.stream_id, "differs", 10) in found
    assert (forge.ledger.ledger_id, "differs") in {each[:2] for each in found}
    [ledger] = kept.alone(lines).ledgers
    note = Note.parse(ledger.note.encode())
    assert [each[:2] for each in broken_at(verified(forge, known(note)))] == [(forge.ledger.ledger_id, "known")]
