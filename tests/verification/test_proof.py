"""The proof of one event: what is accepted, and each way to be refused, by the package and by both strangers."""

from __future__ import annotations

import base64
import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_audit.errors import NoteMalformed, ProofInvalid
from otel_audit.signing.keys import SigningKey, VerifierKey
from otel_audit.signing.note import Note, Signature
from otel_audit.verification.proof import EventProof
from tests.signing.test_note import VECTORS
from tests.verification.logs import (
    DIRECTORY,
    EPOCH,
    IDENTITY,
    LOG_NAME,
    STREAM,
    Log,
    changed_extra,
    extra_of,
    file_of,
    with_extra,
)
from tests.verification.verifiers import Answer, loaded, of_go, of_package, of_python, of_python_command

LOG = Log()
PROOF = bytes(LOG.proof())
EVENT = LOG.line(8)


def everywhere(proof: bytes, key: VerifierKey, scratch: Path) -> Answer:
    """What all verifiers say, which is the same."""
    answers = [of_package(proof, key), of_python(proof, key), of_go(proof, key, scratch)]
    assert answers[0] == answers[1] == answers[2], answers
    return answers[0]


@pytest.mark.processes
@pytest.mark.parametrize("seq", [1, 2, 8, 16, 17, 20, 21])
@pytest.mark.parametrize("kind", ["head", "adopt", "end"])
def test_the_event_of_a_proof_is_printed_as_it_was_written(seq: int, kind: str, tmp_path: Path) -> None:
    log = Log(kind=kind)
    proof = bytes(log.proof(seq))

    answer = everywhere(proof, log.vkey(), tmp_path)

    assert answer.event == log.line(seq)
    assert of_python_command(proof, log.vkey(), tmp_path) == answer


@pytest.mark.processes
def test_a_stream_and_a_ledger_of_one_line_are_proven_without_a_path(tmp_path: Path) -> None:
    log = Log(events=1)

    assert everywhere(bytes(log.proof(1)), log.vkey(EPOCH), tmp_path).event == log.line(1)


def test_what_is_shown_names_the_line_the_log_and_who_signed() -> None:
    shown = EventProof.parse(PROOF).check([LOG.vkey(EPOCH), LOG.vkey(IDENTITY)])

    assert (shown.stream_id, shown.seq, shown.origin) == (STREAM, 8, LOG.origin)
    assert shown.signers == (LOG.vkey(EPOCH), LOG.vkey(IDENTITY))


@pytest.mark.parametrize("seq", [1, 8, 21])
def test_a_proof_is_read_as_it_was_written(seq: int) -> None:
    proof = LOG.proof(seq)

    assert EventProof.parse(bytes(proof)) == proof


def test_a_proof_has_the_lines_of_its_specification() -> None:
    first, extra, index, *path = PROOF.decode().partition("\n\n")[0].split("\n")

    assert first == "c2sp.org/tlog-proof@v1"
    assert extra.startswith("extra ")
    assert index == "index 4"
    assert [len(line) for line in path] == [44, 44, 44]  # of entry 5 among 7 lines
    assert PROOF.partition(b"\n\n")[2] == bytes(LOG.proof().note)
    assert list(extra_of(PROOF)) == ["event", "index", "size", "path", "head"]


@pytest.mark.processes
@pytest.mark.parametrize("name", [LOG.origin, LOG_NAME, f"{LOG_NAME}/{STREAM}"], ids=["this", "log name", "another"])
def test_a_key_is_trusted_for_every_directory_of_its_log_name(name: str, tmp_path: Path) -> None:
    assert everywhere(PROOF, IDENTITY.verifier(name), tmp_path).event == EVENT


@pytest.mark.processes
@pytest.mark.parametrize(
    "key",
    [
        SigningKey(bytes(32)).verifier(LOG.origin),
        IDENTITY.verifier("otel-audit/shop2"),
        IDENTITY.verifier("otel-audit"),
        IDENTITY.verifier(f"otel-audit/{DIRECTORY}"),
        IDENTITY.verifier(f"{LOG.origin}/{DIRECTORY}"),
    ],
    ids=["another key", "another log", "a log above", "a directory above", "a log below"],
)
def test_a_key_that_is_not_of_this_log_proves_nothing(key: VerifierKey, tmp_path: Path) -> None:
    assert everywhere(PROOF, key, tmp_path).event is None


def made_vkey(name: str, material: bytes) -> str:
    key_id = sha256(name.encode() + b"\n" + material).hexdigest()[:8]
    return f"{name}+{key_id}+{base64.b64encode(material).decode()}"


@pytest.mark.processes
@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "key",
        str(LOG.vkey()).replace("+", "+A", 1),
        str(LOG.vkey()) + "=",
        str(LOG.vkey()).replace("shop", "shop2"),
        f"{LOG.origin}+{LOG.vkey().key_id.hex().upper()}+{str(LOG.vkey()).rpartition('+')[2]}",
        made_vkey(LOG.origin, b"\x02" + LOG.vkey().public),
        made_vkey(LOG.origin, b"\x01" + LOG.vkey().public[:-1]),
        made_vkey("otel audit", b"\x01" + LOG.vkey().public),
        made_vkey("", b"\x01" + LOG.vkey().public),
    ],
    ids=[
        "empty",
        "a word",
        "a false id",
        "padded",
        "renamed",
        "upper case",
        "a cosigner",
        "short",
        "a space",
        "no name",
    ],
)
def test_what_is_no_key_proves_nothing(vkey: str, tmp_path: Path) -> None:
    assert of_python(PROOF, vkey).event is None
    if vkey:  # without one, the verifier in Go shows its usage
        assert of_go(PROOF, vkey, tmp_path).event is None


# A log that lies: everything is signed, and the lines are not what a proof is made of.

LIES: dict[str, Callable[[], EventProof]] = {
    "a retain": lambda: Log(kind="retain").proof(),
    "an open": lambda: Log(kind="open").proof(),
    "a found": lambda: Log(kind="found").proof(),
    "another stream": lambda: Log(content={"stream": DIRECTORY}).proof(),
    "no stream": lambda: Log(content={"stream": None}).proof(),
    "no root": lambda: Log(content={"root": None}).proof(),
    "another root": lambda: Log(content={"root": base64.b64encode(bytes(32)).decode()}).proof(),
    "a short root": lambda: Log(content={"root": base64.b64encode(bytes(31)).decode()}).proof(),
    "a line without content": lambda: Log(
        kind="open", entry_line=lambda line: line.replace(b'"ledger":{', b'"more":{')
    ).proof(),
    "a text as content": lambda: Log(
        entry_line=lambda line: re.sub(rb'"ledger":\{.*?\}', b'"ledger":"head"', line)
    ).proof(),
    "a stream without an id": lambda: Log(
        content={"stream": "shop"}, event_line=lambda line: line.replace(STREAM.encode(), b"shop")
    ).proof(),
    "a size as text": lambda: Log(content={"size": "21"}).proof(),
    "a size as fraction": lambda: Log(content={"size": 21.0}).proof(),
    "an entry of another ledger": lambda: Log(directory_id=STREAM).proof(),
    "an entry of another number": lambda: Log(entry_line=lambda line: line.replace(b'"seq":5', b'"seq":6')).proof(),
    "an entry that an application wrote": lambda: Log(
        entry_line=lambda line: line.replace(b'{"system":"ledger",', b"{")
    ).proof(),
    "an entry of another event type": lambda: Log(
        entry_line=lambda line: line.replace(b"audit.ledger", b"audit.ledgex")
    ).proof(),
    "an entry that says its kind twice": lambda: Log(
        entry_line=lambda line: line.replace(b'"kind":"head"', b'"kind":"head","kind":"head"')
    ).proof(),
    "an entry of two ledgers": lambda: Log(
        kind="open", entry_line=lambda line: line.replace(b',"time_ns"', b',"Ledger":{"kind":"head"},"time_ns"')
    ).proof(),
    "an event of another stream": lambda: Log(
        event_line=lambda line: line.replace(STREAM.encode(), DIRECTORY.replace("1", "3").encode())
    ).proof(),
    "a line of the ledger": lambda: Log(
        content={"stream": DIRECTORY}, event_line=lambda line: line.replace(STREAM.encode(), DIRECTORY.encode())
    ).proof(),
    "an entry as event": lambda: Log(
        event_line=lambda line: line.replace(b'{"event_type"', b'{"system":"ledger","event_type"')
    ).proof(),
    "a note as event": lambda: Log(
        event_line=lambda line: line.replace(b'{"event_type"', b'{"system":"note","event_type"')
    ).proof(),
    "an event of number 0": lambda: Log(
        event_line=lambda line: line.replace(b'"seq":8,"prev', b'"seq":0,"prev')
    ).proof(),
    "an event of another number": lambda: Log(
        event_line=lambda line: line.replace(b'"seq":8,"prev', b'"seq":9,"prev')
    ).proof(),
    "an event of two lines": lambda: Log(event_line=lambda line: line.replace(b',"time_ns"', b',\n"time_ns"')).proof(),
    "an event of two numbers": lambda: Log(
        event_line=lambda line: line.replace(b',"time_ns"', b',"seq":9,"time_ns"')
    ).proof(),
    "an event of two details": lambda: Log(
        event_line=lambda line: line.replace(b',"time_ns"', b',"detail":"","time_ns"')
    ).proof(),
    "an event with half a character": lambda: Log(
        event_line=lambda line: line.replace(b',"time_ns"', b',"more":"\\ud83d","time_ns"')
    ).proof(),
    "an event with two halves of a character": lambda: Log(
        event_line=lambda line: line.replace(b',"time_ns"', b',"more":"\\udc00\\ud83d","time_ns"')
    ).proof(),
    "an event that is not JSON": lambda: Log(
        event_line=lambda line: line.replace(b',"time_ns"', b',,"time_ns"')
    ).proof(),
    "an event with NaN": lambda: Log(event_line=lambda line: line.replace(b'"seq":8}', b'"seq":NaN}')).proof(),
    "an event with a tab": lambda: Log(event_line=lambda line: line.replace(b"event 8", b"event\t8")).proof(),
    "an event too deep": lambda: Log(
        event_line=lambda line: line.replace(b',"time_ns"', b',"more":' + b"[" * 70 + b"]" * 70 + b',"time_ns"')
    ).proof(),
    "an event far too deep": lambda: Log(
        event_line=lambda line: line.replace(b',"time_ns"', b',"more":' + b"[" * 20_000 + b"]" * 20_000 + b',"time_ns"')
    ).proof(),
    "an origin without an id": lambda: Log(origin=LOG_NAME).proof(),
    "an origin of another directory": lambda: Log(origin=f"{LOG_NAME}/{STREAM}").proof(),
    "an origin in upper case": lambda: Log(origin=f"{LOG_NAME}/{DIRECTORY.upper()}").proof(),
    "signed by nobody known": lambda: Log(signers=[EPOCH]).proof(),
}


@pytest.mark.processes
@pytest.mark.parametrize("lie", LIES)
def test_a_signed_lie_is_refused(lie: str, tmp_path: Path) -> None:
    proof = file_of(LIES[lie](), 8, 21)

    assert everywhere(proof, LOG.vkey(), tmp_path).event is None


@pytest.mark.processes
@pytest.mark.parametrize("size", [8, 16, 33, 40])
def test_a_root_under_another_size_is_refused(size: int, tmp_path: Path) -> None:
    """Of another shape, that is: in a tree of 22 lines the path is the same as in one of 21."""
    proof = file_of(Log(content={"size": size}).proof(), 8, size)

    assert everywhere(proof, LOG.vkey(), tmp_path).event is None


def test_what_tells_no_lie_is_written_as_the_package_writes_it() -> None:
    assert EventProof.parse(file_of(LOG.proof(), 8, 21)) == EventProof.parse(PROOF)


# A file that lies: what the log holds is true.


def swapped(**changes: Any) -> bytes:
    return changed_extra(PROOF, **changes)


def other(seq: int) -> dict[str, Any]:
    return extra_of(bytes(LOG.proof(seq)))


def extra_text(find: str, put: str) -> bytes:
    text = json.dumps(extra_of(PROOF), ensure_ascii=False, separators=(",", ":"))
    assert find in text
    return with_extra(PROOF, text.replace(find, put, 1))


NOTE = LOG.proof().note
FORGED = Signature(LOG.origin, LOG.vkey().key_id, bytes(64))
FALSE_FILES: dict[str, bytes] = {
    "empty": b"",
    "text": b"a proof\n",
    "no note": PROOF.partition(b"\n\n")[0],
    "another version": PROOF.replace(b"@v1", b"@v2", 1),
    "no extra": PROOF.replace(PROOF.split(b"\n")[1] + b"\n", b"", 1),
    "extra in upper case": PROOF.replace(b"extra ", b"EXTRA ", 1),
    "two extras": PROOF.replace(PROOF.split(b"\n")[1], PROOF.split(b"\n")[1] + b"\n" + PROOF.split(b"\n")[1], 1),
    "no index": PROOF.replace(b"index 4\n", b"", 1),
    "another index": PROOF.replace(b"index 4\n", b"index 5\n", 1),
    "an index with a zero before it": PROOF.replace(b"index 4\n", b"index 04\n", 1),
    "an index with a sign": PROOF.replace(b"index 4\n", b"index +4\n", 1),
    "an index with a space": PROOF.replace(b"index 4\n", b"index 4 \n", 1),
    "an index below zero": PROOF.replace(b"index 4\n", b"index -4\n", 1),
    "an index beyond 64 bits": PROOF.replace(b"index 4\n", b"index 9999999999999999999\n", 1),
    "an index in other digits": PROOF.replace(b"index 4\n", "index ٤\n".encode(), 1),
    "Windows line ends": PROOF.replace(b"\n", b"\r\n"),
    "a header in upper case": PROOF.replace(b"index 4\n", b"Index 4\n", 1),
    "text behind the note": PROOF + b"more\n",
    "an empty line behind the note": PROOF + b"\n",
    "cut by one byte": PROOF[:-1],
    "a shorter path": PROOF.replace(PROOF.split(b"\n")[3] + b"\n", b"", 1),
    "a longer path": PROOF.replace(b"index 4\n", b"index 4\n" + PROOF.split(b"\n")[3] + b"\n", 1),
    "a path element with a space": PROOF.replace(PROOF.split(b"\n")[3], PROOF.split(b"\n")[3] + b" ", 1),
    "extra with a space": PROOF.replace(b"\nindex", b" \nindex", 1),
    "extra with two spaces": PROOF.replace(b"extra ", b"extra  ", 1),
    "extra in the other alphabet": PROOF.replace(
        PROOF.split(b"\n")[1], b"extra " + base64.urlsafe_b64encode(b"\xff" + json.dumps(extra_of(PROOF)).encode()), 1
    ),
    "another event": swapped(event=other(9)["event"]),
    "another event and its number": swapped(event=other(9)["event"], index=8),
    "another event and its path": swapped(event=other(9)["event"], path=other(9)["path"]),
    "another head": swapped(head=Log(events=20).proof().head.decode()),
    "another index of the event": swapped(index=8),
    "an index of the event as text": swapped(index="7"),
    "an index of the event as fraction": swapped(index=7.0),
    "an index of the event as power": extra_text('"index":7', '"index":7e0'),
    "an index of the event below zero": extra_text('"index":7', '"index":-7'),
    "no number of the event": swapped(index=None),
    "true as a number": swapped(index=True),
    "another size": swapped(size=20),
    "a size with a zero before it": extra_text('"size":21', '"size":021'),
    "a size beyond 64 bits": extra_text('"size":21', '"size":18446744073709551637'),
    "a very long size": extra_text('"size":21', '"size":' + "2" * 5000),
    "no path": swapped(path=None),
    "a path as text": swapped(path="".join(other(8)["path"])),
    "a path of numbers": swapped(path=[1, 2, 3]),
    "a path in another order": swapped(path=other(8)["path"][::-1]),
    "a path that is shorter": swapped(path=other(8)["path"][:-1]),
    "a path that is longer": swapped(path=[*other(8)["path"], other(8)["path"][0]]),
    "a path that is not canonical": swapped(path=[other(8)["path"][0].rstrip("="), *other(8)["path"][1:]]),
    "the event as an object": swapped(event=json.loads(other(8)["event"])),
    "the event with its newline": swapped(event=other(8)["event"] + "\n"),
    "the event twice": extra_text('{"event":', '{"event":"","event":'),
    "the event twice, once escaped": extra_text('{"event":', '{"\\u0065vent":"","event":'),
    "the event in upper case": extra_text('{"event":', '{"EVENT":'),
    "the event in upper case too": extra_text('{"event":', '{"EVENT":"","event":'),
    "the event in upper case behind it": extra_text('"index":7', f'"EVENT":{json.dumps(other(9)["event"])},"index":7'),
    "a sixth key": swapped(more=1),
    "a fourth key only": with_extra(PROOF, json.dumps({k: v for k, v in other(8).items() if k != "size"})),
    "a byte order mark": with_extra(PROOF, "\ufeff" + json.dumps(other(8))),
    "text behind extra's object": with_extra(PROOF, json.dumps(other(8)) + "{}"),
    "extra as a list": with_extra(PROOF, json.dumps([other(8)])),
    "extra that is no JSON": with_extra(PROOF, "extra"),
    "extra that is no UTF-8": with_extra(PROOF, json.dumps(other(8)).encode().replace(b"event 8", b"event \xff")),
    "extra with half a character": extra_text("event 8", "event \\ud800 8"),
    "extra with a NUL": extra_text("event 8", "event \\u0000 8"),
    "the signature of nobody": bytes(LOG.proof()).partition(b"\n\n")[0] + b"\n\n" + bytes(Note(NOTE.text)),
    "a false signature": bytes(replace(LOG.proof(), note=Note(NOTE.text, (NOTE.signatures[0], FORGED)))),
    "a false signature behind a true one": bytes(
        replace(LOG.proof(), note=Note(NOTE.text, (*NOTE.signatures, FORGED)))
    ),
    "a short signature": bytes(
        replace(LOG.proof(), note=Note(NOTE.text, (Signature(LOG.origin, LOG.vkey().key_id, bytes(63)),)))
    ),
    "102 signatures": bytes(replace(LOG.proof(), note=Note(NOTE.text, NOTE.signatures * 51))),
    "a hyphen before an unknown name": PROOF + b"- witness AAAAAAA=\n",
    "an unknown name with a control character": PROOF + "— wit\x01ness AAAAAAA=\n".encode(),
    "an unknown name with another control character": PROOF + "— wit\x7fness AAAAAAA=\n".encode(),
    "an unknown name with a plus": PROOF + "— wit+ness AAAAAAA=\n".encode(),
    "an unknown name with a space of Unicode": PROOF + "— wit\u2003ness AAAAAAA=\n".encode(),
    "an unknown name that is no UTF-8": PROOF + "— wit".encode() + b"\xff" + b"ness AAAAAAA=\n",
    "no unknown name": PROOF + "—  AAAAAAA=\n".encode(),
    "an unknown signature of no bytes": PROOF + "— witness AAAAAA==\n".encode(),
    "an unknown signature in the other alphabet": PROOF + "— witness AAA_AAA=\n".encode(),
    "an unknown signature with bits left over": PROOF + "— witness AAAAAAB=\n".encode(),
    "another size in the note": PROOF.replace(b"\n7\n", b"\n8\n", 1),
    "a note of an extension": bytes(
        replace(LOG.proof(), note=Note(NOTE.text + "more\n").signed(IDENTITY, LOG.origin))
    ),
}  # fmt: skip


@pytest.mark.processes
@pytest.mark.parametrize("kind", FALSE_FILES)
def test_a_changed_file_is_refused(kind: str, tmp_path: Path) -> None:
    assert FALSE_FILES[kind] != PROOF
    assert everywhere(FALSE_FILES[kind], LOG.vkey(), tmp_path).event is None


@pytest.mark.processes
@pytest.mark.parametrize(
    "proof",
    [
        with_extra(PROOF, json.dumps(extra_of(PROOF), indent=2)),
        with_extra(PROOF, json.dumps(dict(reversed(extra_of(PROOF).items())))),
        extra_text('{"event":', '{"\\u0065v\\u0065nt":'),
        bytes(replace(LOG.proof(), note=NOTE.signed(SigningKey(bytes(32)), "witness.example/w1"))),
        bytes(replace(LOG.proof(), note=Note(NOTE.text, NOTE.signatures[::-1]))),
        bytes(replace(LOG.proof(), note=Note(NOTE.text, NOTE.signatures * 2))),
    ],
    ids=["spaces", "another order", "a key in escapes", "a witness", "the other signature first", "signed twice"],
)
def test_another_way_to_write_the_same_proves_the_same(proof: bytes, tmp_path: Path) -> None:
    assert proof != PROOF
    assert everywhere(proof, LOG.vkey(), tmp_path).event == EVENT


def one_change(proof: bytes, place: int, dice: random.Random) -> bytes:
    character = dice.choice([bytes([proof[place] ^ 1 << dice.randrange(8)]), dice.randbytes(1), b"A", b"=", b"\n", b""])
    return proof[:place] + character + proof[place + 1 :]


@pytest.mark.slow
def test_no_change_of_one_character_makes_another_event() -> None:
    proof, dice = bytes(Log(signers=[IDENTITY]).proof()), random.Random(0)

    for place in range(len(proof)):
        changed = one_change(proof, place, dice)
        if changed != proof:
            answers = of_package(changed, LOG.vkey()), of_python(changed, LOG.vkey())
            assert answers == (Answer(None), Answer(None)), (place, changed, answers)


@pytest.mark.processes
def test_no_change_of_some_characters_is_understood_in_two_ways(tmp_path: Path) -> None:
    """Of the JSON in `extra` and of the note, where a change may be harmless. In both cases all verifiers agree."""
    dice = random.Random(1)
    inner = json.dumps(extra_of(PROOF), ensure_ascii=False).encode()
    shown = 0

    for _ in range(80):
        changed = inner
        for _ in range(dice.randint(1, 2)):
            place = dice.choice([dice.randrange(len(changed)), inner.index(b'"index"') + dice.randrange(20)])
            put = dice.choice([b" ", b'"', b"\\", b",", b"0", b"e", b".", b"-", b"\n", b"E", dice.randbytes(1)])
            changed = changed[:place] + put + changed[place + dice.randint(0, 1) :]
        answer = everywhere(with_extra(PROOF, changed), LOG.vkey(), tmp_path)
        assert answer.event in (None, EVENT)
        shown += answer.event is not None
    for _ in range(50):
        changed = one_change(PROOF, dice.randrange(PROOF.index(b"index "), len(PROOF)), dice)
        answer = everywhere(changed, LOG.vkey(), tmp_path)
        assert answer.event in (None, EVENT)
        shown += answer.event is not None

    assert shown > 10  # else nothing was compared but refusals


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["event", "index", "size", "path", "head", "EVENT", ""]), JSON))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_whatever_stands_in_extra_proves_the_event_or_nothing(changes: dict[str, Any]) -> None:
    changed = changed_extra(PROOF, **changes)

    answer = of_package(changed, LOG.vkey())

    assert answer == of_python(changed, LOG.vkey())
    assert answer.event in (None, EVENT)


def test_a_file_too_large_is_not_looked_at() -> None:
    for reader in (lambda raw: EventProof.parse(raw), lambda raw: loaded().proven_event(raw, str(LOG.vkey()))):
        with pytest.raises((ProofInvalid, loaded().Refused), match="at most 16777216 bytes"):
            reader(PROOF + bytes(16 << 20))


def test_a_refusal_says_what_was_expected() -> None:
    with pytest.raises(ProofInvalid, match=r"origin of a proof: expected a log that a key is trusted for"):
        EventProof.parse(PROOF).check([IDENTITY.verifier("another")])
    with pytest.raises(NoteMalformed, match="canonical base64"):
        EventProof.parse(FALSE_FILES["extra with a space"])
    with pytest.raises(ProofInvalid, match="expected each key once, got one twice"):
        EventProof.parse(FALSE_FILES["the event twice"])


@pytest.mark.parametrize("number", VECTORS)
def test_the_signatures_of_the_verifier_in_python_are_judged_as_wycheproof_judges_them(number: str) -> None:
    case = VECTORS[number]
    given = (bytes.fromhex(case[name]) for name in ("public", "message", "signature"))

    assert loaded().ed25519_verifies(*given) is case["valid"]


@pytest.mark.parametrize("key", ["", "nonsense", "shop", "shop+1a2b3c4d"])
def test_a_text_that_is_no_key_is_answered_with_the_form_of_one(key: str) -> None:
    with pytest.raises(loaded().Refused, match=r"expected <name>\+<key id>\+<base64>, got"):
        loaded().parse_vkey(key)
