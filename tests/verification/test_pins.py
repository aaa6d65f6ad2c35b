"""Which signed lines a pin vouches for, in a journal, an archive and a log store.

After an identity was replaced, its old key vouches for the lines that it signed, and for no later ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_audit.cli.verify import verdict_words
from otel_audit.signing.keys import SigningKey, VerifierKey
from otel_audit.signing.note import Note, Signature
from otel_audit.verification.findings import Report, Verdict
from otel_audit.verification.pins import Pins
from tests.verification.forge import Forge
from tests.verification.kept import Kept, all_lines, delivered
from tests.verification.test_classes import known, seen, verified
from tests.verification.test_ledger_rows import a_new_ledger, told_of

OLD, NEW = SigningKey.generate(), SigningKey.generate()
DAY_NS = 86_400 * 10**9


@pytest.fixture
def replaced(tmp_path: Path) -> Forge:
    """Streams of 23 and 13 lines under the old identity, and one of 11 under the new identity, in three epochs."""
    forge = Forge(tmp_path / "journal", identity=OLD)
    forge.honest_stream(20)
    forge.ledger.next_epoch()
    forge.honest_stream(10)
    forge.ledger.identity = NEW
    forge.honest_stream(8)
    forge.ledger.next_epoch()
    forge.ledger.turn()
    delivered(forge.write())
    return forge


def reports(forge: Forge, kept: Kept, pins: Pins) -> Iterator[Report]:
    """The reports on the same trail in the journal and off the host."""
    yield verified(forge, pins)
    yield kept.alone(all_lines(forge), pins)


def by(key: SigningKey) -> Pins:
    return Pins(identity=key.verifier("any"))


def anchored(report: Report) -> list[int]:
    return [stream.anchored_to for stream in report.streams]


def first_epoch(forge: Forge) -> VerifierKey:
    begin = forge.ledger.lines[1]
    return VerifierKey.parse(begin.split(b'"keys":["')[1].split(b'"')[0].decode())


def last_epoch(forge: Forge) -> VerifierKey:
    return forge.ledger.epoch_key.verifier(forge.ledger.origin)


def test_the_key_of_a_replaced_identity_vouches_for_what_it_signed(replaced: Forge, kept: Kept) -> None:
    for report in reports(replaced, kept, by(OLD)):
        assert anchored(report) == [23, 13, 0]
        assert [each[:3] for each in seen(report)] == [("unproven", "identity", replaced.ledger.ledger_id)]
        assert (report.verdict, report.exit_code) == (Verdict.CONSISTENT, 1)
        assert verdict_words(report).plain.endswith(
            "but 1 fact below is not proven by --key; 36 of the 47 signed lines are vouched for"
        )


def test_the_key_of_the_new_identity_vouches_for_the_lines_before_it_too(replaced: Forge, kept: Kept) -> None:
    for report in reports(replaced, kept, by(NEW)):
        assert anchored(report) == [23, 13, 11]
        assert (report.verdict, report.exit_code, seen(report)) == (Verdict.PROVEN, 0, [])
        assert verdict_words(report).plain.startswith("PROVEN: the 47 signed lines of the trail in ")


@pytest.mark.parametrize("remembered", [1, 2, 4096])
def test_an_old_identity_that_signs_again_vouches_for_all(
    replaced: Forge, kept: Kept, monkeypatch: pytest.MonkeyPatch, remembered: int
) -> None:
    monkeypatch.setattr("otel_audit.verification.pins.NOTES_REMEMBERED", remembered)
    replaced.ledger.identity = OLD
    replaced.ledger.turn()
    replaced.write()

    for report in reports(replaced, kept, by(OLD)):
        assert (report.verdict, anchored(report)) == (Verdict.PROVEN, [23, 13, 11])


def test_the_key_of_any_epoch_vouches_for_the_whole_ledger(replaced: Forge, kept: Kept) -> None:
    """For what came before by the tree of its notes, and for what came later by the keys that were announced."""
    for key in (first_epoch(replaced), last_epoch(replaced)):
        for report in reports(replaced, kept, Pins(known_key=key)):
            assert (report.verdict, anchored(report)) == (Verdict.PROVEN, [23, 13, 11])


def test_a_key_of_an_epoch_given_as_an_identity_vouches_for_its_own_notes(replaced: Forge, kept: Kept) -> None:
    pins = Pins(identity=first_epoch(replaced))

    for report in reports(replaced, kept, pins):
        assert (report.verdict, anchored(report)) == (Verdict.CONSISTENT, [23, 0, 0])


def test_a_key_of_an_identity_given_as_known_vouches_for_its_own_notes(replaced: Forge, kept: Kept) -> None:
    for key, expected in ((OLD, [23, 13, 0]), (NEW, [23, 13, 11])):
        pins = Pins(known_key=key.verifier(replaced.ledger.origin))
        for report in reports(replaced, kept, pins):
            assert (report.verdict, anchored(report), seen(report)) == (Verdict.PROVEN, expected, [])


def test_two_keys_vouch_for_what_either_of_them_does_and_are_judged_one_by_one(replaced: Forge, kept: Kept) -> None:
    both = Pins(OLD.verifier("any"), known_key=last_epoch(replaced))

    for report in reports(replaced, kept, both):
        assert anchored(report) == [23, 13, 11]
        assert [each[:2] for each in seen(report)] == [("unproven", "identity")]
        assert " not proven by --key and --known; 47 of the 47 signed " in verdict_words(report).plain


def test_a_key_of_another_ledger_vouches_for_nothing(replaced: Forge, kept: Kept, tmp_path: Path) -> None:
    other = Forge(tmp_path / "other", log_name="otel-audit/shed", identity=SigningKey.generate())
    assert other.identity is not None

    for report in reports(replaced, kept, by(other.identity)):
        assert (report.verdict, anchored(report)) == (Verdict.BROKEN, [0, 0, 0])
    for report in reports(replaced, kept, Pins(known_key=first_epoch(other))):
        assert (report.verdict, anchored(report)) == (Verdict.CONSISTENT, [0, 0, 0])


@pytest.fixture
def pruned(tmp_path: Path) -> Forge:
    """A ledger of which retention has removed the first lines, with one stream of 23 lines behind them."""
    forge = Forge(tmp_path / "journal", identity=OLD)
    first_key = forge.ledger.epoch_key.verifier(forge.ledger.origin)
    forge.ledger.turn()
    forge.ledger.begin_segment()
    forge.honest_stream(20)
    forge.ledger.retain_own()
    forge.write()
    forge.ledger.write_pruned(str(first_key))
    return forge


def test_a_note_of_removed_lines_vouches_by_its_key_for_the_whole_ledger_to_its_last_note(pruned: Forge) -> None:
    report = verified(pruned, known(pruned.ledger.notes[0]), anchored_within_s=3650 * 86_400)

    assert (report.verdict, anchored(report)) == (Verdict.PROVEN, [23])


def test_the_key_of_an_identity_is_no_unknown_key_of_an_epoch_where_the_first_lines_are_gone(pruned: Forge) -> None:
    (pruned.directory / "ledger.keys").unlink()

    for pins in (by(OLD), Pins(known_key=OLD.verifier(pruned.ledger.origin))):
        report = verified(pruned, pins)

        assert anchored(report) == [23]
        assert [each[:2] for each in seen(report)] == [("unproven", "ledger_begin"), ("notice", "ledger_retained")]


def test_a_note_that_was_kept_vouches_for_the_lines_of_that_time(replaced: Forge, kept: Kept) -> None:
    note = replaced.ledger.notes[6]  # over the first head of the second stream

    for report in reports(replaced, kept, known(note)):
        assert (report.verdict, anchored(report), report.exit_code) == (Verdict.PROVEN, [23, 8, 0], 0)
        assert verdict_words(report).plain.startswith("PROVEN: 31 of the 47 signed lines of the trail in ")
        assert "; the other 16 were signed later, and are not vouched for; " in verdict_words(report).plain


def test_a_store_beside_the_journal_vouches_up_to_its_newest_note(replaced: Forge, kept: Kept) -> None:
    lines = all_lines(replaced)
    replaced.ledger.turn(("open", replaced.stream().log(3).opening()))
    replaced.ledger.turn(("end", replaced.streams[-1].head()))
    replaced.write()

    report = kept.beside(replaced, lines)

    assert anchored(report) == [23, 13, 11, 0]


def test_a_signature_that_comes_later_vouches_for_its_own_note_only(tmp_path: Path, kept: Kept) -> None:
    """As with a command that signs: meanwhile more lines were signed by the ledger's key."""
    forge = Forge(tmp_path / "journal")
    stream = forge.honest_stream(20, ended=False)
    signed = forge.ledger.notes[-1]
    stream.log(10)
    forge.ledger.turn(("head", stream.head()))
    forge.ledger.turn(("head", stream.log(5).head()), ("signature", signature_of(signed, OLD, forge.ledger.origin)))
    forge.ledger.turn(("end", stream.head()))
    forge.write()

    for report in reports(forge, kept, by(OLD)):
        assert (report.verdict, anchored(report)) == (Verdict.PROVEN, [13])
        assert verdict_words(report).plain.startswith("PROVEN: 13 of the 38 signed lines of the trail in ")


def signature_of(note: Note, key: SigningKey, origin: str) -> dict[str, object]:
    signature = Signature(origin, key.verifier(origin).key_id, key.sign(note.text.encode()))
    return {"size": int(note.text.split("\n")[1]), "line": str(signature)}


def test_a_forged_signature_of_a_pinned_key_vouches_for_nothing(tmp_path: Path, kept: Kept) -> None:
    forge = Forge(tmp_path / "journal")
    forge.honest_stream(20)
    last = forge.ledger.notes[-1]
    forged = Signature(forge.ledger.origin, OLD.verifier(forge.ledger.origin).key_id, bytes(64))
    forge.ledger.turn(("signature", {"size": int(last.text.split("\n")[1]), "line": str(forged)}))
    forge.write()

    for pins in (by(OLD), Pins(known_key=OLD.verifier(forge.ledger.origin))):
        for report in reports(forge, kept, pins):
            assert (report.verdict, anchored(report)) == (Verdict.BROKEN, [0])


@pytest.mark.parametrize(("is_named", "expected"), [(True, [23, 10]), (False, [0, 10])])
def test_a_new_ledger_vouches_for_the_one_that_it_names(
    tmp_path: Path, kept: Kept, is_named: bool, expected: list[int]
) -> None:
    forge = Forge(tmp_path / "journal")
    forge.honest_stream(20)
    forge.write()
    told: dict[str, object] = (
        told_of(forge.ledger) if is_named else {"origin": "otel-audit/shop/gone", "reason": "nobody knows"}
    )
    new = a_new_ledger(forge, told)
    key = new.epoch_key.verifier(new.origin)
    stream = forge.stream().log(9)
    new.turn(("open", stream.opening()), ("end", stream.head())).write()
    stream.write()
    lines = [*all_lines(forge), *new.lines]

    for report in (verified(forge, Pins(known_key=key)), kept.alone(lines, Pins(known_key=key))):
        assert anchored(report) == expected


def test_removed_lines_are_not_counted_as_signed(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "journal", identity=OLD)
    stream = forge.honest_stream(segments=2)
    forge.ledger.turn(("retain", stream.removal(1)), after_ns=31 * DAY_NS)
    forge.write()
    stream.path(1).unlink()
    left = len(stream.lines) - stream.segments[1] + 1

    report = verified(forge, by(OLD))

    assert (report.signed_lines, report.vouched_lines) == (left, left)
    assert verdict_words(report).plain.startswith(f"PROVEN: the {left} signed lines of the trail in ")
