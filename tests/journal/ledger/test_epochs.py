"""Keys change by the hour and behind an end; the archive leads from each to the next; an identity signs beside them."""

from __future__ import annotations

import json
import os
import shlex
import stat
import sys
from pathlib import Path

import pytest

from otel_audit.journal.ledger.entries import Kind
from otel_audit.journal.ledger.epochs import EpochKeys, EpochRecord
from otel_audit.journal.ledger.identity import Identity
from otel_audit.journal.ledger.ledger import Ledger
from otel_audit.signing.keys import VerifierKey, create_identity
from otel_audit.signing.note import Note, Signature
from tests.journal.ledger.telling import Clock, a_ledger, last_checked, segments

HEAD = (Kind.HEAD, {"stream": "s", "size": 3, "root": "r", "hash": "h"})
END = (Kind.END, {"stream": "s", "size": 3, "root": "r", "hash": "h"})


def notes(directory: Path) -> list[Note]:
    lines = [json.loads(line) for path in segments(directory) for line in path.read_bytes().splitlines()]
    return [Note.parse(line["note"]["text"].encode()) for line in lines if line["system"] == "note"]


def test_a_key_signs_for_an_hour_whatever_the_clock_does(tmp_path: Path) -> None:
    clock = Clock()
    ledger = a_ledger(tmp_path, clock=clock)
    for passed_s in (0, 3500, 101, 60, -7300):
        clock.pass_s(passed_s)
        ledger.tell([HEAD])

    found = last_checked(tmp_path)
    assert found.kinds == ["begin", "head", "head", "head", "key", "head", "head", "key"]
    assert len(found.keys) == 3


def test_the_key_changes_behind_an_end_but_once_a_minute(tmp_path: Path) -> None:
    clock = Clock()
    ledger = a_ledger(tmp_path, clock=clock)
    for passed_s in (0, 59, 2, 30, 31):
        clock.pass_s(passed_s)
        ledger.tell([END])

    assert last_checked(tmp_path).kinds == ["begin", "end", "end", "end", "key", "end", "end", "key"]


def test_the_archive_leads_from_the_first_key_to_the_last_without_a_line_of_the_ledger(tmp_path: Path) -> None:
    clock = Clock()
    ledger = a_ledger(tmp_path, clock=clock)
    for _ in range(5):
        ledger.tell([HEAD, HEAD])
        clock.pass_s(3601)
    keys = last_checked(tmp_path).keys
    for path in segments(tmp_path):
        path.unlink()

    records = list(EpochKeys.read(tmp_path))

    trusted = VerifierKey.parse(keys[0])
    for number, record in enumerate(records, 1):
        assert record.number == number
        record.note.verified([trusted])
        record.announced()
        trusted = record.vkey
    assert [str(record.vkey) for record in records] == keys


def test_the_key_file_is_written_in_place_and_has_the_mode_of_the_journal(tmp_path: Path) -> None:
    clock = Clock()
    ledger = a_ledger(tmp_path, clock=clock, file_mode=0o660)
    ledger.tell([HEAD])
    before = (tmp_path / "ledger.key").stat()
    clock.pass_s(3601)

    ledger.tell([HEAD])

    after = (tmp_path / "ledger.key").stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o660}


def test_a_record_with_another_key_or_another_entry_is_refused(tmp_path: Path) -> None:
    a_ledger(tmp_path).tell([HEAD])
    (record,) = EpochKeys.read(tmp_path)
    other = VerifierKey(record.vkey.name, bytes(32))

    changed = [
        EpochRecord(record.number, other, record.announcement, record.path, record.note),
        EpochRecord(2, record.vkey, record.announcement, record.path, record.note),
        EpochRecord(record.number, record.vkey, record.announcement + b" ", record.path, record.note),
        EpochRecord(record.number, record.vkey, record.announcement, (bytes(32),), record.note),
    ]

    for each in changed:
        with pytest.raises(Exception, match=r"ledger\.keys|proof"):
            each.announced()


def test_an_identity_in_a_file_signs_every_note_beside_the_key_of_the_hour(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    directory.mkdir()
    key = create_identity(tmp_path / "identity.pem")
    a_ledger(directory, identity=Identity(tmp_path / "identity.pem")).tell([HEAD])

    found = last_checked(directory)
    identity = key.verifier(found.notes[0].origin)
    assert found.entries[0]["keys"][1:] == [str(identity)]
    for note in notes(directory):
        assert [signature.name for signature in note.signatures] == [identity.name] * 2
        note.verified([identity])


def test_an_identity_that_others_may_read_does_not_sign_and_the_ledger_goes_on(tmp_path: Path) -> None:
    directory, said = tmp_path / "journal", []
    directory.mkdir()
    create_identity(tmp_path / "identity.pem")
    os.chmod(tmp_path / "identity.pem", 0o644)

    identity = Identity(tmp_path / "identity.pem", say=lambda kind, text: said.append(text))
    a_ledger(directory, identity=identity).tell([HEAD])

    assert last_checked(directory).kinds == ["begin", "head"]
    assert "chmod 600" in said[0]


SIGNS = """
import sys
from pathlib import Path
from otel_audit.signing.keys import read_identity
sys.stdout.buffer.write(read_identity(Path(sys.argv[1])).sign(sys.stdin.buffer.read()))
"""


def signer(tmp_path: Path, script: str = SIGNS) -> tuple[Path, str]:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    create_identity(tmp_path / "vault.pem")
    private = load_pem_private_key((tmp_path / "vault.pem").read_bytes(), None)
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "public.pem").write_bytes(public)
    (tmp_path / "sign.py").write_text(script)
    return tmp_path / "public.pem", shlex.join([sys.executable, str(tmp_path / "sign.py"), str(tmp_path / "vault.pem")])


@pytest.mark.processes
def test_a_command_signs_the_last_note_in_an_entry_of_its_own_once_a_minute(tmp_path: Path) -> None:
    directory, clock = tmp_path / "journal", Clock()
    directory.mkdir()
    public, command = signer(tmp_path)

    ledger = a_ledger(directory, identity=Identity(public, command), clock=clock)
    last = ledger.tell([HEAD]).checkpoint

    assert ledger.countersign()

    found = last_checked(directory)
    (entry,) = found.told("signature")
    assert entry["size"] == last.size
    signature = Signature.parse(entry["line"])
    identity = VerifierKey.parse(found.entries[0]["keys"][1])
    (signed,) = [note for note in notes(directory) if note.text.split("\n")[1] == str(last.size)]
    Note(signed.text, (signature,)).verified([identity])
    # Neither a note over nothing but signatures, nor a second one within a minute.
    assert not fresh(directory, public, command, clock).countersign()
    ledger.tell([HEAD])
    assert not fresh(directory, public, command, clock).countersign()
    clock.pass_s(61)
    assert fresh(directory, public, command, clock).countersign()


def fresh(directory: Path, public: Path, command: str, clock: Clock) -> Ledger:
    return a_ledger(directory, identity=Identity(public, command), clock=clock)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("import sys; sys.stdout.write('x' * 64)", "another key"),
        ("import sys; sys.stdout.write('x' * 63)", "63 bytes"),
        ("import sys; sys.exit('no token')", "no token"),
    ],
)
def test_what_a_command_answers_is_checked_before_it_is_stored(tmp_path: Path, script: str, says: str) -> None:
    directory, said = tmp_path / "journal", []
    directory.mkdir()
    public, command = signer(tmp_path, script)
    identity = Identity(public, command, say=lambda kind, text: said.append(text))
    ledger = a_ledger(directory, identity=identity)
    ledger.tell([HEAD])

    assert not ledger.countersign()

    assert last_checked(directory).kinds == ["begin", "head"]
    assert says in said[0]
