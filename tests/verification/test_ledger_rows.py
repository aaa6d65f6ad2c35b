"""The rows of the class table about the ledger itself, and about what the verifier brings along to hold it against.

From the journal, and from an archive or a store that has the ledger's lines.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from otel_audit.signing.keys import SigningKey
from otel_audit.verification.findings import Verdict
from otel_audit.verification.pins import Pins
from tests.verification.forge import Forge, ForgedLedger
from tests.verification.kept import Kept, all_lines, delivered
from tests.verification.test_attacks import broken_at
from tests.verification.test_classes import known, seen, verified

HOUR_NS = 3600 * 10**9


def test_an_entry_without_a_note_is_a_notice_if_it_is_the_last_and_a_finding_before_others(
    tmp_path: Path, kept: Kept
) -> None:
    forge = Forge(tmp_path / "journal")
    stream = forge.honest_stream()
    whole = len(forge.ledger.lines)
    forge.ledger.entry("open", {"stream": "x"})
    last = all_lines(forge)
    # A failed sync made nobody sign it; the ledger went on behind the last note, with other lines of these numbers.
    abandoned = forge.ledger.lines.pop()
    forge.ledger.begin_segment()
    forge.ledger.turn(("head", stream.head()))

    assert seen(kept.alone(last)) == [("notice", "unfinished", "", whole + 1)]
    assert (forge.ledger.ledger_id, "inserted", whole + 1) in {
        each[:3] for each in broken_at(kept.alone([*all_lines(forge), abandoned]))
    }


def test_a_line_of_the_ledger_that_was_changed_or_deleted_is_a_finding(tmp_path: Path, kept: Kept) -> None:
    forge = Forge(tmp_path / "journal")
    forge.honest_stream()
    lines = forge.ledger.lines
    changed = [line.replace(b'"service":"shop"', b'"service":"shed"') for line in lines]
    place = next(seq for seq, line in enumerate(lines, 1) if b'"service":"shop"' in line)
    streams = forge.streams[0].lines

    found = broken_at(kept.alone([*changed, *streams]))
    assert (forge.ledger.ledger_id, "altered", place) in {each[:3] for each in found}
    found = broken_at(kept.alone([*lines[: place - 1], *lines[place:], *streams]))
    assert (forge.ledger.ledger_id, "missing", place) in {each[:3] for each in found}


def test_a_note_with_a_root_that_is_not_that_of_its_lines_is_a_finding(tmp_path: Path, kept: Kept) -> None:
    forge = Forge(tmp_path / "journal")
    forge.honest_stream()
    ledger = forge.ledger
    true, ledger.lines[1] = ledger.lines[1], ledger.lines[1].replace(b"4c4c4544", b"5c4c4544")
    ledger.note()  # over another beginning
    ledger.lines[1] = true
    forge.write()
    place = len(ledger.lines)

    assert (ledger.ledger_id, "root", place, None) in broken_at(kept.alone(all_lines(forge)))
    assert (ledger.ledger_id, "root", place, None) in broken_at(verified(forge))


def test_two_notes_of_one_size_are_a_finding(tmp_path: Path, kept: Kept) -> None:
    forge = Forge(tmp_path / "journal")
    forge.honest_stream()
    ledger = forge.ledger
    signed = list(ledger.lines)
    ledger.lines.pop()
    ledger.lines[-1] = ledger.lines[-1].replace(b'"kind":"end"', b'"kind":"End"')
    ledger.note()
    place = len(ledger.lines)

    report = kept.alone([*signed, *all_lines(forge)])

    assert {(ledger.ledger_id, "inserted", place - 1), (ledger.ledger_id, "inserted", place)} <= {
        each[:3] for each in broken_at(report)
    }


def a_new_ledger(forge: Forge, former: dict[str, object]) -> ForgedLedger:
    """The ledger that follows on that of the directory, which is not continued."""
    new = ForgedLedger(
        forge.directory, "0199aabb-ccdd-7eef-8011-0000000000ff", log_name="otel-audit/shop", identity=None
    )
    new.number = forge.ledger.number + 1
    new.time_ns = forge.ledger.time_ns
    return new.begin(former)


def told_of(ledger: ForgedLedger) -> dict[str, object]:
    """What a new ledger says of the one before it."""
    _, size, root, *_ = ledger.notes[-1].text.split("\n")
    return {"origin": ledger.origin, "size": int(size), "root": root, "reason": "the key is gone"}


def test_a_ledger_that_follows_another_one_is_a_notice_if_that_one_verifies(tmp_path: Path, kept: Kept) -> None:
    forge = Forge(tmp_path / "journal")
    forge.honest_stream()
    forge.write()
    new = a_new_ledger(forge, told_of(forge.ledger)).write()
    lines = [*all_lines(forge), *new.lines]

    assert seen(verified(forge)) == seen(kept.alone(lines)) == [("notice", "former", new.ledger_id, 2)]


def test_a_ledger_whose_former_one_is_gone_is_unproven(tmp_path: Path, kept: Kept) -> None:
    forge = Forge(tmp_path / "journal")
    new = a_new_ledger(forge, told_of(forge.ledger)).write()

    assert seen(verified(forge)) == seen(kept.alone(new.lines)) == [("unproven", "former", new.ledger_id, 2)]


def cut_by_a_turn(told: dict[str, object], ledger: ForgedLedger) -> dict[str, object]:
    return {**told, "size": int(str(told["size"])) - 2}


def of_other_lines(told: dict[str, object], ledger: ForgedLedger) -> dict[str, object]:
    return {**told, "root": ledger.notes[0].text.split("\n")[2]}


@pytest.mark.parametrize("change", [cut_by_a_turn, of_other_lines])
def test_a_ledger_whose_former_one_is_not_what_it_says_is_a_finding(
    tmp_path: Path, kept: Kept, change: Callable[[dict[str, object], ForgedLedger], dict[str, object]]
) -> None:
    forge = Forge(tmp_path / "journal")
    forge.honest_stream()
    forge.write()
    new = a_new_ledger(forge, change(told_of(forge.ledger), forge.ledger)).write()

    wrong = [(new.ledger_id, "former", 2, None)]
    assert broken_at(verified(forge)) == broken_at(kept.alone([*all_lines(forge), *new.lines])) == wrong


def test_a_former_ledger_that_is_shorter_than_when_its_note_was_kept_is_a_finding(tmp_path: Path, kept: Kept) -> None:
    """Whoever has the host cuts the ledger, and begins another one that confirms it."""
    forge = Forge(tmp_path / "journal")
    forge.honest_stream()
    cut = list(forge.ledger.lines)
    stream = forge.honest_stream()
    note, size = forge.ledger.notes[-1], len(forge.ledger.lines)
    forge.ledger.lines = cut
    del forge.ledger.notes[-3:]
    forge.streams.remove(stream)
    forge.write()
    new = a_new_ledger(forge, told_of(forge.ledger)).write()
    lines = [*all_lines(forge), *new.lines]

    assert broken_at(verified(forge)) == broken_at(kept.alone(lines)) == []
    wrong = [(forge.ledger.ledger_id, "known", len(cut) + 1, size - 1)]
    assert broken_at(verified(forge, known(note))) == broken_at(kept.alone(lines, known(note))) == wrong


def test_a_ledger_that_the_key_did_not_sign_is_a_finding(tmp_path: Path, kept: Kept) -> None:
    forge = Forge(tmp_path / "journal", identity=SigningKey.generate())
    forge.honest_stream()
    stranger = Pins(identity=SigningKey.generate().verifier("any"))

    assert broken_at(kept.alone(all_lines(forge), stranger)) == [(forge.ledger.ledger_id, "identity", None, None)]


@pytest.mark.parametrize(("behind_ns", "expected"), [(HOUR_NS, []), (HOUR_NS + 2 * 10**9, [("unproven", "identity")])])
def test_a_ledger_that_the_key_signed_more_than_an_hour_ago_is_unproven(
    tmp_path: Path, kept: Kept, behind_ns: int, expected: list[tuple[str, str]]
) -> None:
    identity = SigningKey.generate()
    forge = Forge(tmp_path / "journal", identity=identity)
    forge.honest_stream()
    forge.ledger.identity = None
    forge.ledger.turn(after_ns=behind_ns)
    forge.write()
    pins = Pins(identity=identity.verifier("any"))

    for report in (verified(forge, pins), kept.alone(all_lines(forge), pins)):
        assert [each[:2] for each in seen(report)] == expected
        assert report.exit_code == len(expected)


@pytest.mark.parametrize(("younger_s", "wrong"), [(-60, True), (60, False)])
def test_an_anchor_that_is_too_old_is_a_finding(tmp_path: Path, kept: Kept, younger_s: int, wrong: bool) -> None:
    identity = SigningKey.generate()
    forge = Forge(tmp_path / "journal", identity=identity)
    forge.honest_stream()
    forge.write()
    delivered(forge)
    age_s = (datetime.now(UTC).timestamp() * 1e9 - forge.ledger.time_ns) / 1e9
    within_s, pins = age_s + younger_s, Pins(identity=identity.verifier("any"))

    for report in (
        verified(forge, pins, anchored_within_s=within_s),
        kept.alone(all_lines(forge), pins, anchored_within_s=within_s),
        kept.beside(forge, all_lines(forge), anchored_within_s=within_s),
    ):
        assert [(each[0], each[1]) for each in broken_at(report)] == ([("", "anchor")] if wrong else [])


def test_an_earlier_note_and_an_earlier_key_are_known_there(tmp_path: Path, kept: Kept) -> None:
    forge = Forge(tmp_path / "journal")
    first = forge.ledger.epoch_key.verifier(forge.ledger.origin)
    forge.honest_stream()
    forge.ledger.next_epoch()
    forge.honest_stream()
    lines = all_lines(forge)
    stranger = SigningKey.generate().verifier(forge.ledger.origin)

    assert kept.alone(lines, known(forge.ledger.notes[2])).verdict is Verdict.PROVEN
    assert kept.alone(lines, Pins(known_key=first)).verdict is Verdict.PROVEN
    assert [each[:2] for each in broken_at(kept.alone(lines, Pins(known_key=stranger)))] == [
        (forge.ledger.ledger_id, "known")
    ]
