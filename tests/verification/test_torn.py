"""Whatever a file holds, `verify` ends with a report: it never raises, and never calls a damaged trail whole."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from otel_audit.verification.findings import Verdict
from otel_audit.verification.verify import verify_directory
from tests.verification.forge import Forge, ForgedLedger


def forged(place: str) -> Forge:
    forge = Forge(Path(place) / "journal")
    forge.honest_stream(count=6, segments=2)
    return forge.write()


@settings(max_examples=25)
@given(data=st.data())
def test_a_stream_that_is_torn_anywhere_is_broken_and_says_where_it_ends(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        forge = forged(place)
        stream = forge.streams[0]
        content = stream.path(2).read_bytes()
        size = data.draw(st.integers(0, len(content) - 1))
        stream.path(2).write_bytes(content[:size])
        left = stream.segments[1] - 1 + content[:size].count(b"\n")

        report = verify_directory(forge.directory)

    [finding] = [each for each in report.all_findings if each.weight == "finding"]
    assert (finding.kind, finding.seq, finding.last_seq) == ("cut", left + 1, len(stream.lines))


@settings(max_examples=25)
@given(where=st.sampled_from(["stream", "ledger"]), place_in=st.floats(0, 1), junk=st.binary(min_size=1, max_size=40))
def test_foreign_bytes_anywhere_make_a_report_and_no_error(where: str, place_in: float, junk: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        forge = forged(place)
        path = forge.streams[0].path(1) if where == "stream" else forge.directory / "ledger.00000001.jsonl"
        content = path.read_bytes()
        at = int(place_in * (len(content) - 1))
        path.write_bytes(content[:at] + junk + content[at:])

        report = verify_directory(forge.directory)

    assert report.verdict is not Verdict.PROVEN
    if where == "stream":
        assert report.verdict is Verdict.BROKEN


BAD_ENTRIES: list[dict[str, object]] = [
    {"size": -1},
    {"size": 1.0},
    {"size": "13"},
    {"size": 2**63},
    {"size": True},
    {"hash": "AB" * 32},
    {"hash": "ab" * 31},
    {"hash": None},
    {"root": "not base64"},
    {"root": "AAAA"},
    {"edge": ["AAAA"]},
    {"edge": 7},
    {"stream": None},
    {"stream": ["x"]},
]


def test_an_entry_that_is_not_exactly_one_is_a_finding_with_its_line(tmp_path: Path) -> None:
    for number, change in enumerate(BAD_ENTRIES):
        forge = Forge(tmp_path / str(number))
        stream = forge.stream().log(5)
        forge.ledger.turn(("open", stream.opening()), ("end", stream.head()))
        forge.ledger.turn(("head", {**stream.head(), **change}))
        place = len(forge.ledger.lines) - 1
        forge.write()

        found = {(each.kind, each.seq) for each in verify_directory(forge.directory).all_findings}

        assert ("entry", place) in found, change


def test_a_line_of_the_ledger_that_has_a_key_twice_is_a_finding(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    forge.honest_stream()
    ledger: ForgedLedger = forge.ledger
    body = json.dumps({"system": "ledger", "event_type": "audit.ledger", "ledger": {"kind": "x"}})
    twice = body.replace('"kind": "x"', '"kind": "x", "kind": "head"').replace(", ", ",").replace(": ", ":")
    ledger.append("ledger", {"kind": "x"})
    ledger.lines[-1] = ledger.lines[-1].replace(
        body.replace(", ", ",").replace(": ", ":")[:-1].encode(), twice[:-1].encode()
    )
    place = len(ledger.lines)
    ledger.note()
    forge.write()

    assert ("entry", place) in {(each.kind, each.seq) for each in verify_directory(tmp_path).all_findings}
