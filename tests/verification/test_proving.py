"""A proof is made of what lies in a directory that real journals and ledgers have written, and checked by everybody."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from otel_audit.errors import ProofUnavailable
from otel_audit.event import AuditEvent
from otel_audit.journal.ledger.entries import Kind
from otel_audit.journal.ledger.identity import Identity
from otel_audit.journal.ledger.registrar import HeadLimits, head_content
from otel_audit.journal.stream import Limits
from otel_audit.journal.stream_tree import StreamTree
from otel_audit.signing.keys import create_identity
from otel_audit.signing.note import Signature
from otel_audit.verification.proof import EventProof
from otel_audit.verification.trail_lines import JournalLines
from tests.journal.ledger.telling import a_ledger, segments
from tests.journal.ledger.test_registrar import registered
from tests.verification.proven_trails import Trail, heads, proof_of, shown
from tests.verification.verifiers import of_go, of_package, of_python


def test_every_line_under_a_note_is_proven(trail: Trail) -> None:
    for _ in range(4):
        trail.log(9)
        trail.tell()
    trail.journal.close()

    assert len(trail.files.segments()) > 2
    for event_id, line in trail.events().items():
        assert shown(proof_of(trail, event_id)) == line


@pytest.mark.processes
def test_the_verifier_in_go_accepts_what_was_made_of_a_real_trail(trail: Trail, tmp_path: Path) -> None:
    trail.log(20)
    trail.tell(trail.head(Kind.END))
    for event_id, line in list(trail.events().items())[::6]:
        made = proof_of(trail, event_id)

        assert of_go(bytes(made.proof), made.signers[0], tmp_path).event == line


def test_the_first_entry_that_covers_a_line_proves_it_and_the_proof_stays_the_same(trail: Trail) -> None:
    trail.log(5)
    trail.tell()
    size, event_id = trail.tree().size, list(trail.events())[-1]
    before = bytes(proof_of(trail, event_id).proof)
    trail.log(5)
    trail.tell()
    trail.tell(trail.head(Kind.END))

    made = proof_of(trail, event_id)

    assert heads(made) == size
    assert bytes(made.proof) == before


def test_lines_that_retention_removed_before_the_event_are_not_needed(trail: Trail) -> None:
    trail.log(60)
    trail.tell()
    removed = list(trail.events())[3]
    trail.remove_oldest(2)

    first = json.loads(next(iter(trail.events().values())))["seq"]
    assert first > 10
    for event_id, line in trail.events().items():
        assert shown(proof_of(trail, event_id)) == line
    assert JournalLines(trail.directory).places(removed) == []


def test_without_the_edge_behind_removed_lines_there_is_no_proof(trail: Trail) -> None:
    trail.log(60)
    trail.tell()
    trail.files.segment(1).unlink()

    with pytest.raises(ProofUnavailable, match="the lines before it were removed, and the ledger has no edge"):
        proof_of(trail, list(trail.events())[-1])


def test_the_edge_of_a_head_stands_for_the_lines_before_it(trail: Trail) -> None:
    trail.log(1)
    while len(trail.files.segments()) < 2:
        trail.log(1)
    tree = StreamTree(trail.files)
    tree.read()
    trail.tell((Kind.HEAD, head_content(trail.files.stream_id, tree.borders[0], edge=True)))
    trail.log(5)
    trail.tell()
    trail.files.segment(1).unlink()

    for event_id, line in trail.events().items():
        assert shown(proof_of(trail, event_id)) == line


@pytest.mark.parametrize("is_alive", [True, False])
def test_what_is_not_under_a_note_yet_says_when_it_will_be(is_alive: bool, trail: Trail) -> None:
    trail.log(3)
    trail.tell()
    size = trail.tree().size
    trail.log(1)
    event_id = list(trail.events())[-1]
    if not is_alive:
        trail.journal.close()

    with pytest.raises(ProofUnavailable) as caught:
        proof_of(trail, event_id)

    said = str(caught.value)
    assert f"line {size + 1} of the stream" in said
    assert f"has signed this stream up to line {size}" in said
    assert ("within OTEL_AUDIT_HEAD_SECONDS" in said) is is_alive
    assert ("when the next process that uses this directory takes the stream over" in said) is not is_alive


def test_an_entry_behind_the_last_note_counts_for_nothing(trail: Trail) -> None:
    trail.log(3)
    trail.tell()
    size = trail.tree().size
    trail.log(1)
    trail.tell()
    (segment,) = segments(trail.directory)
    segment.write_bytes(b"".join(segment.read_bytes().splitlines(keepends=True)[:-1]))

    with pytest.raises(ProofUnavailable, match=f"has signed this stream up to line {size}"):
        proof_of(trail, list(trail.events())[-1])


def test_a_directory_without_a_ledger_proves_nothing(tmp_path: Path) -> None:
    trail = Trail(tmp_path, a_ledger(tmp_path))
    trail.log(1)

    with pytest.raises(ProofUnavailable, match="has no signed ledger"):
        proof_of(trail, next(iter(trail.events())))


def test_an_adoption_without_a_root_says_why(trail: Trail) -> None:
    trail.log(3)
    trail.tell(trail.head(Kind.ADOPT, root=None, why="its first segment is gone"))

    with pytest.raises(ProofUnavailable, match="no root of it, since its first segment is gone"):
        proof_of(trail, next(iter(trail.events())))


def test_a_changed_line_is_not_proven(trail: Trail) -> None:
    trail.log(5)
    trail.tell()
    trail.journal.close()
    ids = list(trail.events())
    path = trail.files.segment(1)
    path.write_bytes(path.read_bytes().replace(b"event 2", b"event 7"))

    for event_id in (ids[1], ids[3]):
        with pytest.raises(ProofUnavailable, match=r"is signed, and cannot be proven: .*`otel-audit verify` says"):
            proof_of(trail, event_id)


def test_a_line_that_was_cut_off_behind_the_event_is_not_proven(trail: Trail) -> None:
    trail.log(5)
    trail.tell()
    trail.journal.close()
    event_id = list(trail.events())[1]
    path = trail.files.segment(1)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))

    with pytest.raises(ProofUnavailable, match="is signed, and cannot be proven"):
        proof_of(trail, event_id)


def test_a_ledger_of_many_segments_and_epochs_proves_by_the_key_of_the_time(tmp_path: Path) -> None:
    clock = iter(range(1_800_000_000 * 10**9, 10**19, 1800 * 10**9))  # half an hour later at each look
    trail = Trail(tmp_path, a_ledger(tmp_path, segment_bytes=4096, clock=lambda: next(clock)))
    for _ in range(8):
        trail.log(2)
        trail.tell()
    assert len(segments(tmp_path)) > 3
    made = {event_id: proof_of(trail, event_id) for event_id in trail.events()}
    assert len({str(each.signers) for each in made.values()}) > 2

    for path in segments(tmp_path)[:-2]:  # what pruning does to the ledger
        path.unlink()

    first = json.loads(segments(tmp_path)[0].read_bytes().split(b"\n")[0])["seq"]
    there = {event_id for event_id, each in made.items() if each.proof.head_index + 1 >= first}
    assert 0 < len(there) < len(made)
    for event_id, line in trail.events().items():
        assert shown(made[event_id]) == line
        if event_id in there:
            assert proof_of(trail, event_id) == made[event_id]


def test_the_first_note_with_the_signature_of_the_identity_is_taken(tmp_path: Path) -> None:
    key = create_identity(tmp_path / "identity.pem")
    trail = Trail(tmp_path / "journal", a_ledger(tmp_path / "journal", identity=Identity(tmp_path / "identity.pem")))
    trail.log(3)
    trail.tell()

    made = proof_of(trail, next(iter(trail.events())))

    assert [each.public for each in made.signers][1:] == [key.verifier("x").public]
    assert shown(made) == next(iter(trail.events().values()))


def test_a_signature_that_came_later_is_put_under_its_note(tmp_path: Path) -> None:
    """As with a key that signs by a command: it is named in `begin`, and its signatures are entries of their own."""
    key = create_identity(tmp_path / "identity.pem")
    directory = tmp_path / "journal"
    trail = Trail(directory, a_ledger(directory, identity=Identity(tmp_path / "identity.pem")))
    trail.log(3)
    trail.tell()
    (tmp_path / "identity.pem").unlink()
    trail.ledger = a_ledger(directory)  # does not sign by the identity
    trail.log(3)
    trail.tell()
    event_id, line = list(trail.events().items())[-1]
    assert len(proof_of(trail, event_id).signers) == 1
    trail.tell(trail.head())
    note = trail.ledger.latest
    assert note is not None
    origin = note.checkpoint.origin
    signature = Signature(origin, key.verifier(origin).key_id, key.sign(note.note.text.encode()))
    trail.tell((Kind.SIGNATURE, {"size": note.checkpoint.size, "line": str(signature)}))

    made = proof_of(trail, event_id)

    assert key.verifier(origin) in made.signers
    assert shown(made) == line


def test_the_note_that_the_identity_signed_is_taken_also_where_the_first_entry_was_removed(tmp_path: Path) -> None:
    key = create_identity(tmp_path / "identity.pem")
    directory = tmp_path / "journal"
    trail = Trail(directory, a_ledger(directory, identity=Identity(tmp_path / "identity.pem"), segment_bytes=4096))
    trail.log(1)
    trail.tell()
    begin = json.loads(segments(directory)[0].read_bytes().split(b"\n")[1])["ledger"]
    (tmp_path / "identity.pem").unlink()
    trail.ledger = a_ledger(directory, segment_bytes=4096)  # does not sign by the identity
    while len(segments(directory)) < 3:
        trail.tell()
    trail.log(1)
    trail.tell()
    event_id, line = list(trail.events().items())[-1]
    trail.tell()
    note = trail.ledger.latest
    assert note is not None
    origin = note.checkpoint.origin
    signature = Signature(origin, key.verifier(origin).key_id, key.sign(note.note.text.encode()))
    trail.tell((Kind.SIGNATURE, {"size": note.checkpoint.size, "line": str(signature)}))
    trail.tell((Kind.RETAIN, {"stream": note.line.tail.stream_id, "begin": begin}))
    segments(directory)[0].unlink()

    made = proof_of(trail, event_id)

    assert key.verifier(origin) in made.signers
    assert shown(made) == line


def test_an_event_of_a_ledger_that_was_given_up_is_still_proven(tmp_path: Path) -> None:
    trail = Trail(tmp_path, a_ledger(tmp_path))
    trail.log(3)
    trail.tell()
    event_id, line = list(trail.events().items())[-1]
    before = bytes(proof_of(trail, event_id).proof)
    (tmp_path / "ledger.key").unlink()
    trail.ledger = a_ledger(tmp_path)
    trail.log(3)
    trail.tell()

    assert bytes(proof_of(trail, event_id).proof) == before
    newest = proof_of(trail, list(trail.events())[-1])
    assert shown(newest) != line
    assert newest.proof.note.text.split("\n")[0] != EventProof.parse(before).note.text.split("\n")[0]


@pytest.mark.processes
def test_a_trail_that_is_told_to_its_ledger_as_it_is_written_is_proven_to_everybody(tmp_path: Path) -> None:
    """And a changed proof of it shows no other event: all verifiers refuse the same changes."""
    directory, dice = tmp_path / "journal", random.Random(2)
    with registered(directory, heads=HeadLimits(lines=10), limits=Limits(segment_bytes=4096)) as journal:
        for number in range(40):
            event = AuditEvent(event_type="a", detail=f"event {number}", event_id=str(number), outcome="success")
            journal.append("", event.to_jsonl().encode(), 1, 1)
    trail = Trail.of(directory)
    trail.tell(trail.head(Kind.END))  # on a busy machine the journal may not have waited for its own
    lines = trail.events()

    assert len(lines) == 40
    for event_id, line in lines.items():
        assert shown(proof_of(trail, event_id)) == line

    made = proof_of(trail, "33")
    key, raw = made.signers[0], bytes(made.proof)
    for _ in range(30):
        place = dice.randrange(len(raw))
        changed = raw[:place] + dice.choice([b"", b"A", b"/", b"0", b"\n", dice.randbytes(1)]) + raw[place + 1 :]
        answers = [of_package(changed, key), of_python(changed, key), of_go(changed, key, tmp_path)]
        assert answers[0] == answers[1] == answers[2], (place, changed, answers)
        assert answers[0].event in (None, lines["33"])
