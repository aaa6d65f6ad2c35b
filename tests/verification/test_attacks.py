"""What somebody does who has taken over the host, with today's epoch key and the identity key in hand.

Each test is a sentence of docs/integrity.md: found in the journal alone, with the stream and the line; or not found
there, and found by what was kept elsewhere.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from otel_audit.signing.keys import SigningKey
from otel_audit.verification.findings import Class, Report, Verdict
from otel_audit.verification.pins import Pins
from tests.verification.forge import Forge, ForgedLedger, ForgedStream, each_line, relinked
from tests.verification.test_classes import known, verified


def broken_at(report: Report) -> list[tuple[str, str, int | None, int | None]]:
    return [
        (each.stream_id, each.kind, each.seq, each.last_seq)
        for each in report.all_findings
        if each.weight is Class.FINDING
    ]


def rewrite(stream: ForgedStream, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Change the lines of a stream, number and chain them anew, and write them as one segment."""
    lines = relinked(change(list(stream.lines)), stream.stream_id)
    for number in range(1, len(stream.segments) + 1):
        stream.path(number).unlink()
    stream.write_segment(1, lines)


REWRITES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "edit": lambda lines: [*lines[:9], lines[9].replace(b"order 9", b"order 8"), *lines[10:]],
    "insert": lambda lines: [*lines[:9], lines[5], *lines[9:]],
    "delete": lambda lines: [*lines[:9], *lines[10:]],
    "swap": lambda lines: [*lines[:9], lines[10], lines[9], *lines[11:]],
}


@pytest.mark.parametrize("name", REWRITES)
@pytest.mark.parametrize("number", [0, 1])
def test_a_change_that_is_chained_anew_is_found_before_the_next_head(forge: Forge, name: str, number: int) -> None:
    stream = forge.streams[number]
    rewrite(stream, REWRITES[name])

    stream_id, kind, first, last = broken_at(verified(forge))[0]

    # The first head has line 13, and the changed line is the tenth.
    assert (stream_id, kind, first, last) == (stream.stream_id, "altered", 1, 13)


def test_a_change_behind_a_head_is_found_between_that_one_and_the_next(forge: Forge) -> None:
    stream = forge.streams[0]
    rewrite(stream, lambda lines: [*lines[:19], lines[19].replace(b"order 19", b"order 18"), *lines[20:]])

    assert broken_at(verified(forge))[0] == (stream.stream_id, "altered", 14, 23)


def test_lines_of_another_stream_that_are_spliced_in_are_found(forge: Forge) -> None:
    one, other = forge.streams
    lines = [*one.lines[:9], *other.lines[9:]]
    rewrite(one, lambda _: lines)

    assert broken_at(verified(forge))[0] == (one.stream_id, "altered", 1, 13)


def test_a_tail_that_was_cut_before_a_head_is_found(forge: Forge) -> None:
    stream = forge.streams[1]
    each_line(stream.path(2), lambda lines: lines[:-5])
    last = len(stream.lines)

    assert broken_at(verified(forge)) == [(stream.stream_id, "cut", last - 4, last)]


def test_a_deleted_stream_is_found(forge: Forge) -> None:
    stream = forge.streams[1]
    for number in (1, 2):
        stream.path(number).unlink()

    assert broken_at(verified(forge)) == [(stream.stream_id, "missing", 1, len(stream.lines))]


def test_a_deleted_segment_is_found(forge: Forge) -> None:
    stream = forge.streams[1]
    stream.path(1).unlink()

    assert broken_at(verified(forge)) == [(stream.stream_id, "missing", 1, stream.segments[1] - 1)]


def hide(stream: ForgedStream, ledger: ForgedLedger, keys: list[SigningKey]) -> None:
    """Change the tenth line of a stream, and all that the ledger says of it."""
    lines = relinked(REWRITES["edit"](list(stream.lines)), stream.stream_id)
    forged = ForgedStream(stream.directory, stream.stream_id, lines=lines, segments=stream.segments)

    def change(entry: dict[str, object]) -> None:
        if entry.get("stream") == stream.stream_id and isinstance(size := entry.get("size"), int):
            entry.update(forged.head(size, edge="edge" in entry))

    ledger.rewritten(change, keys=keys)
    ledger.write()
    forged.write()


def test_a_ledger_that_was_rewritten_before_the_epoch_is_found(forge: Forge, identity: SigningKey) -> None:
    place = _line_of_key_entry(forge.ledger) + 1  # the note that ends the first epoch
    hide(forge.streams[0], forge.ledger, [forge.ledger.epoch_key, identity])

    assert (forge.ledger.ledger_id, "signature", place, None) in broken_at(verified(forge))


def test_a_ledger_of_which_this_epoch_was_rewritten_is_found_by_what_was_kept_and_not_alone(
    forge: Forge, identity: SigningKey
) -> None:
    kept = forge.ledger.notes[-1]
    hide(forge.streams[1], forge.ledger, [forge.ledger.epoch_key, identity])

    assert broken_at(verified(forge)) == []
    assert verified(forge, Pins(identity=identity.verifier("any"))).verdict is Verdict.PROVEN
    assert [(each[0], each[1]) for each in broken_at(verified(forge, known(kept)))] == [
        (forge.ledger.ledger_id, "known")
    ]


def test_a_ledger_that_was_cut_in_an_earlier_epoch_and_continued_is_found(forge: Forge) -> None:
    ledger = forge.ledger
    del ledger.lines[_line_of_key_entry(ledger) - 3 :]
    ledger.turn(("end", forge.streams[0].head()))
    ledger.write()
    for path in forge.directory.glob(f"{forge.streams[1].stream_id}.*"):
        path.unlink()

    assert (ledger.ledger_id, "signature", len(ledger.lines), None) in broken_at(verified(forge))


def test_a_ledger_and_streams_that_were_rolled_back_are_found_by_what_was_kept_and_not_alone(
    forge: Forge, tmp_path: Path, identity: SigningKey
) -> None:
    backup = tmp_path / "backup"
    shutil.copytree(forge.directory, backup)
    forge.honest_stream()
    forge.write()
    kept = forge.ledger.notes[-1]
    shutil.rmtree(forge.directory)
    shutil.copytree(backup, forge.directory)
    forge.streams.pop()

    assert broken_at(verified(forge)) == []
    [(_, kind, first, last)] = broken_at(verified(forge, known(kept)))
    assert kind == "known"
    assert first is not None
    assert last is not None


def test_a_new_ledger_under_the_stolen_identity_key_is_found_by_what_was_kept_and_not_alone(
    forge: Forge, identity: SigningKey
) -> None:
    kept = forge.ledger.notes[-1]
    shutil.rmtree(forge.directory)
    forged = Forge(forge.directory, identity=identity)
    forged.ledger.lines.clear()
    forged.ledger = ForgedLedger(forge.directory, forge.ledger.ledger_id, log_name="otel-audit/shop", identity=identity)
    forged.ledger.begin()
    for _ in range(20):
        forged.honest_stream()
    forged.write()

    assert verified(forged, Pins(identity=identity.verifier("any"))).verdict is Verdict.PROVEN
    assert [kind for _, kind, _, _ in broken_at(verified(forged, known(kept)))] == ["known"]


def test_a_new_ledger_of_another_origin_says_nothing_to_what_was_kept(forge: Forge, tmp_path: Path) -> None:
    other = Forge(tmp_path / "other", log_name="otel-audit/other")
    other.honest_stream()
    other.write()

    report = verified(other, known(forge.ledger.notes[-1]))

    assert (report.verdict, report.exit_code) == (Verdict.CONSISTENT, 1)


def test_a_ledger_of_another_identity_is_found_by_the_key(forge: Forge) -> None:
    stranger = SigningKey.generate().verifier("any")

    assert [kind for _, kind, _, _ in broken_at(verified(forge, Pins(identity=stranger)))] == ["identity"]


def test_a_forged_end_and_a_forged_removal_are_listed(forge: Forge) -> None:
    stream = forge.streams[1]
    forge.ledger.turn(
        ("retain", stream.removal(1)), ("retain", stream.removal(2, whole=True)), after_ns=40 * 86400 * 10**9
    )
    forge.write()
    for number in (1, 2):
        stream.path(number).unlink()

    report = verified(forge)

    assert broken_at(report) == []
    assert {each.kind for each in report.all_findings if each.stream_id == stream.stream_id} == {"retained"}


def test_what_is_changed_behind_the_last_head_is_not_found_in_the_journal_alone(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    stream = forge.honest_stream(ended=False)
    forge.write()
    signed = 13
    lines = [*stream.lines[:signed], *stream.lines[signed:-4]]
    stream.write_segment(1, lines)

    report = verified(forge)

    assert broken_at(report) == []
    assert [(each.weight, each.kind, each.seq) for each in report.all_findings] == [
        (Class.UNPROVEN, "unsigned", signed + 1)
    ]


def test_the_epochs_key_alone_signs_nothing_of_an_earlier_epoch(forge: Forge) -> None:
    """The key of the first epoch is gone: its notes can be signed by nobody any more."""
    before = hashlib.sha256(forge.ledger.lines[2]).hexdigest()
    forge.ledger.rewritten(lambda entry: entry.pop("policy_hash", None), keys=[forge.ledger.epoch_key])
    forge.write()

    assert hashlib.sha256(forge.ledger.lines[2]).hexdigest() == before
    assert "signature" in {kind for _, kind, _, _ in broken_at(verified(forge))}


def _line_of_key_entry(ledger: ForgedLedger) -> int:
    return next(seq for seq, line in enumerate(ledger.lines, 1) if b'"kind":"key"' in line)
