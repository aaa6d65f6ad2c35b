"""`otel-audit keygen` and `otel-audit vkey`: a key of the service's own, and what auditors get of it."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from otel_audit.cli.command import main
from otel_audit.journal.ledger.entries import Kind
from otel_audit.journal.ledger.identity import Identity
from otel_audit.signing.keys import VerifierKey, read_identity
from tests.journal.ledger.telling import a_ledger, last_checked


def run(*arguments: object, **environ: str) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments], env={"OTEL_SERVICE_NAME": "shop", **environ})


def test_a_key_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "identity.pem"

    made = run("keygen", file)

    assert made.exit_code == 0, made.output
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert b"BEGIN PRIVATE KEY" in file.read_bytes()
    assert "vkey" in made.output


def test_a_file_that_exists_is_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "identity.pem"
    file.write_text("kept")

    made = run("keygen", file)

    assert made.exit_code == 2
    assert "never overwritten" in made.stderr
    assert file.read_text() == "kept"


def test_the_verifier_key_of_a_directory_verifies_the_notes_there(tmp_path: Path) -> None:
    file, directory = tmp_path / "identity.pem", tmp_path / "journal"
    directory.mkdir()
    run("keygen", file)
    a_ledger(directory, identity=Identity(file)).tell([(Kind.HEAD, {"stream": "s"})])

    printed = run("vkey", file, directory)

    assert printed.exit_code == 0, printed.output
    key = VerifierKey.parse(printed.stdout.strip())
    assert key == read_identity(file).verifier(f"otel-audit/shop/{last_checked(directory).directory_id}")
    assert last_checked(directory).entries[0]["keys"][1] == str(key)


def test_without_a_directory_the_key_has_the_log_name_of_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "identity.pem"
    run("keygen", file)

    assert run("vkey", file).stdout.startswith("otel-audit/shop+")
    assert run("vkey", file, OTEL_AUDIT_LOG_NAME="audit.example").stdout.startswith("audit.example+")


def test_a_directory_without_a_ledger_is_said(tmp_path: Path) -> None:
    file = tmp_path / "identity.pem"
    run("keygen", file)

    printed = run("vkey", file, tmp_path)

    assert printed.exit_code == 1
    assert "expected a ledger" in printed.stderr


def test_a_file_that_is_no_key_is_said(tmp_path: Path) -> None:
    file = tmp_path / "identity.pem"
    file.write_text("no key")

    printed = run("vkey", file)

    assert printed.exit_code == 2
    assert "expected an Ed25519 key" in printed.stderr


@pytest.mark.processes
def test_the_public_half_that_openssl_writes_gives_the_same_verifier_key(tmp_path: Path) -> None:
    file, public = tmp_path / "identity.pem", tmp_path / "public.pem"
    run("keygen", file)
    subprocess.run(["openssl", "pkey", "-in", file, "-pubout", "-out", public], check=True, capture_output=True)
    os.chmod(public, 0o644)

    assert run("vkey", public).stdout == run("vkey", file).stdout
