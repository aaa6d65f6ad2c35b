"""Many lines proven by one reading of their stream: each proof is the same as that of the line alone."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.errors import ProofInvalid, ProofUnavailable
from otel_audit.journal.line import Line
from otel_audit.signing.keys import SigningKey
from otel_audit.signing.tree import Edge, paths_behind
from otel_audit.verification.proving import ProofMade, prove, prove_all
from otel_audit.verification.trail_lines import JournalLines, Place
from tests.examples import examples
from tests.verification.forge import DAY_NS, Forge, ForgedStream

LEAVES = [sha256(b"%d" % number).digest() for number in range(80)]


def places(stream: ForgedStream, first: int = 1) -> list[Place]:
    trail = JournalLines(stream.directory)
    return [Place(trail, stream.stream_id, Line(line, seq)) for seq, line in enumerate(stream.lines, 1) if seq >= first]


@examples(200)
@given(size=st.integers(1, 80), data=st.data())
def test_paths_are_those_of_each_leaf_alone(size: int, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, size - 1))
    indexes = data.draw(st.sets(st.integers(begin, size - 1)))
    edge = Edge()
    edge.extend(LEAVES[:begin])

    found = paths_behind(edge, size, indexes, iter(LEAVES[begin:]))

    assert edge.size == begin
    for index in indexes:
        before = Edge()
        before.extend(LEAVES[:index])
        assert found.pop(index) == paths_behind(before, size, [index], iter(LEAVES[index:]))[index]
    assert found == {}


@pytest.mark.parametrize(
    ("size", "indexes", "leaves"), [(5, [1], 5), (9, [9], 9), (9, [4], 6)], ids=["before", "behind", "too few"]
)
def test_a_leaf_that_is_not_there_has_no_path(size: int, indexes: list[int], leaves: int) -> None:
    edge = Edge()
    edge.extend(LEAVES[:3])

    with pytest.raises(ProofInvalid):
        paths_behind(edge, size, indexes, iter(LEAVES[3:leaves]))


@pytest.mark.parametrize("step", [1, 3, 7])
def test_the_proofs_of_many_lines_are_those_of_each_alone(tmp_path: Path, step: int) -> None:
    forge = Forge(tmp_path / "signed", identity=SigningKey.generate())
    stream = forge.honest_stream(segments=3)
    forge.write()

    asked = places(stream)[::step]
    made = list(prove_all(asked))

    assert [place for place, _ in made] == asked
    for place, proof in made:
        assert proof == prove(place)


def test_what_retention_has_left_is_proven_together(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "retained")
    stream = forge.honest_stream(segments=3)
    forge.ledger.time_ns += 60 * DAY_NS
    forge.ledger.turn(("retain", stream.removal(1)))
    forge.write()
    stream.path(1).unlink()

    for place, proof in prove_all(places(stream, stream.segments[1])):
        assert proof == prove(place)


def test_lines_behind_the_last_head_have_the_reason_in_the_place_of_a_proof(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "open")
    stream = forge.honest_stream(ended=False)
    forge.write()

    made = [proof for _, proof in prove_all(places(stream))]

    signed = stream.lines.index(stream.lines[-1]) + 1 - 10
    assert all(isinstance(proof, ProofMade) for proof in made[:signed])
    assert all(isinstance(proof, ProofUnavailable) for proof in made[signed:])
    assert len(made) - signed == 10
    assert "is not under a signed note yet" in str(made[-1])


def test_a_line_that_was_changed_has_no_proof_and_the_others_none_that_is_wrong(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "signed")
    stream = forge.honest_stream()
    forge.write()
    asked = places(stream)
    changed = replace(asked[4], line=Line(asked[4].line.content.replace(b"order", b"ordre"), 5))

    made = list(prove_all([*asked[:4], changed, *asked[5:]]))

    assert isinstance(made[4][1], ProofUnavailable)
    assert all(proof == prove(place) for place, proof in made[:4])
