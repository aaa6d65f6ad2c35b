"""`otel-audit prove` and `otel-audit verify --proof`, called by somebody with a trail and by somebody without one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from otel_audit.cli import main
from otel_audit.signing.keys import SigningKey
from otel_audit.verification.proof import EventProof
from otel_audit.verification.proving import ProofMade
from tests.verification.proven_trails import Trail, proof_of
from tests.verification.verifiers import of_package

# The command.


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["prove", *map(str, arguments)])


def test_the_command_writes_the_proof_and_says_who_signed_it(trail: Trail, tmp_path: Path) -> None:
    trail.log(3)
    trail.tell()
    event_id, line = list(trail.events().items())[-1]
    made = proof_of(trail, event_id)

    printed = run(event_id, trail.directory)
    written = run(event_id, trail.directory, "--out", tmp_path / "event.tlog-proof")

    assert (printed.exit_code, written.exit_code) == (0, 0)
    assert printed.stdout_bytes == bytes(made.proof) == (tmp_path / "event.tlog-proof").read_bytes()
    assert written.stdout == ""
    assert str(made.signers[0]) in printed.stderr
    assert f"proves line {json.loads(line)['seq']} of the stream {trail.files.stream_id}" in written.stderr


def test_the_command_says_when_there_is_no_proof_yet(trail: Trail) -> None:
    trail.log(3)

    result = run(next(iter(trail.events())), trail.directory)

    assert (result.exit_code, result.stdout) == (1, "")
    assert "otel-audit prove: line 2 of the stream" in result.stderr


def test_an_unknown_event_is_named(trail: Trail) -> None:
    result = run("no such\x1bevent", trail.directory)

    assert (result.exit_code, result.stdout) == (1, "")
    assert "expected an event with the id 'no such\\x1bevent'" in result.stderr


def test_an_id_that_an_application_used_twice_proves_the_first_and_names_the_other(trail: Trail) -> None:
    trail.append("one", "twice")
    trail.append("other", "twice")
    trail.append("twice", "once")
    trail.tell()

    result = run("twice", trail.directory)

    assert b'"detail":"one"' in EventProof.parse(result.stdout_bytes).event
    assert "line 3 of the stream" in result.stderr
    assert result.stderr.count("has the same event id, and is not in this proof") == 1


def test_keys_of_strangers_prove_nothing(trail: Trail) -> None:
    trail.log(1)
    trail.tell()
    made = proof_of(trail, next(iter(trail.events())))

    assert of_package(bytes(made.proof), SigningKey(bytes(32)).verifier(made.signers[0].name)).event is None


# `otel-audit verify --proof`.


def verified(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, arguments)], env={"OTEL_AUDIT_DIR": "/nonexistent"})


@dataclass
class Handed:
    """A proof in a file, and what it proves."""

    file: Path
    made: ProofMade
    line: bytes


@pytest.fixture
def handed(trail: Trail, tmp_path: Path) -> Handed:
    trail.log(2)
    trail.append("rings \x1b", "rings")
    trail.tell()
    event_id, line = list(trail.events().items())[-1]
    file = tmp_path / "event.tlog-proof"
    made = proof_of(trail, event_id)
    file.write_bytes(bytes(made.proof))
    return Handed(file, made, line)


@pytest.mark.parametrize("option", ["--key", "--known"])
def test_a_proof_is_verified_by_a_key_without_a_trail(option: str, handed: Handed) -> None:
    result = verified("--proof", handed.file, option, handed.made.signers[0])
    first, event, end = result.stdout.split("\n")

    assert (result.exit_code, end) == (0, "")
    assert first.startswith("PROVEN: line 4 of the stream ")
    assert first.endswith(f"as it was written, by {option}:")
    assert json.loads(event) == json.loads(handed.line)
    assert "\x1b" not in event


def test_a_proof_is_verified_by_its_note_that_was_kept_elsewhere(handed: Handed, tmp_path: Path) -> None:
    kept = tmp_path / "note"
    kept.write_bytes(bytes(handed.made.proof.note))

    assert verified("--proof", handed.file, "--known", kept).exit_code == 0


def test_another_note_says_nothing_of_a_proof(trail: Trail, handed: Handed, tmp_path: Path) -> None:
    trail.tell()
    kept, latest = tmp_path / "note", trail.ledger.latest
    assert latest is not None
    kept.write_bytes(bytes(latest.note))

    result = verified("--proof", handed.file, "--known", kept)

    assert result.exit_code == 1
    assert result.stdout.startswith("BROKEN: ")
    assert "give --key" in result.stdout


def test_a_proof_is_reported_as_json(handed: Handed) -> None:
    result = verified("--proof", handed.file, "--key", handed.made.signers[0], "--json")
    shown = json.loads(result.stdout)

    assert shown.pop("event").encode() == handed.line
    assert shown == {
        "verdict": "proven",
        "stream_id": json.loads(handed.line)["stream_id"],
        "seq": 4,
        "origin": handed.made.signers[0].name,
        "signers": [str(handed.made.signers[0])],
    }


def test_a_proof_by_another_key_is_refused(handed: Handed) -> None:
    key = SigningKey(bytes(32)).verifier(handed.made.signers[0].name)

    result = verified("--proof", handed.file, "--key", key)
    as_json = verified("--proof", handed.file, "--key", key, "--json")

    assert (result.exit_code, as_json.exit_code) == (1, 1)
    assert "proves nothing: note: expected a signature of" in result.stdout
    assert json.loads(as_json.stdout)["verdict"] == "broken"


@pytest.mark.parametrize(
    ("more", "said"),
    [((), "goes with --key or --known"), (("--key", "KEY", "--from", "2026-11-29"), "leave out the rest")],
    ids=["no pin", "a time"],
)
def test_a_proof_is_checked_with_a_pin_and_nothing_else(more: tuple[str, ...], said: str, handed: Handed) -> None:
    arguments = [str(handed.made.signers[0]) if each == "KEY" else each for each in more]

    result = verified("--proof", handed.file, *arguments)

    assert result.exit_code == 2
    assert said in result.stderr
