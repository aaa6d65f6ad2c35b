"""Names that only the holder of a key can find again."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_audit.cli.command import main
from otel_audit.errors import ConfigError
from otel_audit.redaction import Redactor, Rules
from otel_audit.redaction.pseudonyms import PseudonymKey, Pseudonyms, read_keyring

OLD, NEW = "0f" * 32, "A5" * 32


def keyring_file(directory: Path, content: str, mode: int = 0o600) -> Path:
    path = directory / "pseudonym-keys"
    path.write_text(content)
    path.chmod(mode)
    return path


def test_a_pseudonym_is_an_hmac_of_the_name_under_the_newest_key(tmp_path: Path) -> None:
    keys = read_keyring(keyring_file(tmp_path, f"# newest first\n{NEW}  # since May\n\n{OLD}\n"))

    whole = hmac.new(bytes.fromhex(NEW), "zoë@example.com".encode(), hashlib.sha256).hexdigest()
    assert keys.of("zoë@example.com") == f"p1:{keys.keys[0].id}:{whole[:32]}"
    assert re.fullmatch("[0-9a-f]{8}", keys.keys[0].id)
    assert keys.of("") == ""


def test_after_a_rotation_the_older_keys_find_what_was_recorded_before(tmp_path: Path) -> None:
    before = read_keyring(keyring_file(tmp_path, OLD))
    after = read_keyring(keyring_file(tmp_path, f"{NEW}\n{OLD}\n"))

    assert after.of("alice") != before.of("alice")
    assert after.all_of("alice") == [after.of("alice"), before.of("alice")]


def test_principal_and_whom_they_act_for_are_pseudonyms_before_anything_is_written() -> None:
    keys = Pseudonyms((PseudonymKey.of(b"k" * 32),))
    principal = {
        "username": "alice",
        "roles": ["admin"],
        "auth_type": "oidc",
        "id": "0815",
        "issuer": "idp",
        "on_behalf_of": "bob",
    }

    event = Redactor(rules=Rules(pseudonyms=keys)).clean({"event_type": "a", "principal": principal})

    names = {"username": keys.of("alice"), "id": keys.of("0815"), "on_behalf_of": keys.of("bob")}
    assert event["principal"] == {**principal, **names}
    assert principal["username"] == "alice"
    assert "redacted" not in event  # a pseudonym says itself what it is


def test_a_name_that_looks_like_a_pseudonym_gets_one_too() -> None:
    keys = Pseudonyms((PseudonymKey.of(b"k" * 32),))
    forged = keys.of("alice")

    event = Redactor(rules=Rules(pseudonyms=keys)).clean({"event_type": "a", "principal": {"username": forged}})

    assert event["principal"]["username"] == keys.of(forged) != forged


@given(st.text(min_size=1) | st.integers() | st.lists(st.text(min_size=1), min_size=1) | st.binary(min_size=1))
@settings(deadline=None)
def test_whatever_stands_for_a_name_becomes_a_pseudonym(name: object) -> None:
    redactor = Redactor(rules=Rules(pseudonyms=Pseudonyms((PseudonymKey.of(b"k" * 32),))))

    as_part = redactor.clean({"event_type": "a", "principal": {"username": name}})["principal"]["username"]

    assert re.fullmatch("p1:[0-9a-f]{8}:[0-9a-f]{32}", as_part)


@pytest.mark.parametrize("name", ["", None])
def test_nobody_stays_nobody(name: str | None) -> None:
    redactor = Redactor(rules=Rules(pseudonyms=Pseudonyms((PseudonymKey.of(b"k" * 32),))))

    assert redactor.clean({"event_type": "a", "principal": {"username": name}})["principal"] == {"username": name}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666])
def test_a_file_of_keys_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = keyring_file(tmp_path, NEW, mode)

    with pytest.raises(ConfigError, match=rf"mode 0600 or less, got {mode:04o}; run: chmod 600"):
        read_keyring(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected a key of 64 hex digits, got none"),
        ("# only words\n", "expected a key of 64 hex digits, got none"),
        (f"{NEW}\n{NEW[:-1]}\n", ":2: expected a key of 64 hex digits, got another line of 63 characters"),
        (f"{NEW}\n{OLD}\n{NEW.lower()}\n", "expected each key once, got one a second time"),
    ],
)
def test_what_is_no_file_of_keys_is_refused_and_no_key_is_told(tmp_path: Path, content: str, message: str) -> None:
    path = keyring_file(tmp_path, content)

    with pytest.raises(ConfigError, match=re.escape(message)) as refused:
        read_keyring(path)

    assert NEW[:16] not in str(refused.value)


def test_no_key_is_in_what_python_shows_of_a_keyring(tmp_path: Path) -> None:
    assert OLD[:16] not in repr(Rules(pseudonyms=read_keyring(keyring_file(tmp_path, OLD))))
    assert str(bytes.fromhex(OLD))[2:10] not in repr(read_keyring(keyring_file(tmp_path, OLD)))


def run(*arguments: str, stdin: str = "", environ: dict[str, str] | None = None) -> Result:
    unset = {name: None for name in os.environ if name.startswith("OTEL_")}
    return CliRunner().invoke(main, ["pseudonym", *arguments], input=stdin, env={**unset, **(environ or {})})


def test_the_command_prints_every_pseudonym_of_a_name(tmp_path: Path) -> None:
    path = keyring_file(tmp_path, f"{NEW}\n{OLD}\n")
    keys = read_keyring(path)

    plain = run("alice", "--keys", str(path))
    from_stdin = run("-", "--json", stdin="alice\nbob\n", environ={"OTEL_AUDIT_PSEUDONYM_KEYS": str(path)})

    assert plain.stdout.splitlines() == keys.all_of("alice")
    assert [json.loads(line) for line in from_stdin.stdout.splitlines()] == [
        {"name": "alice", "pseudonyms": keys.all_of("alice")},
        {"name": "bob", "pseudonyms": keys.all_of("bob")},
    ]


def test_the_command_without_keys_or_names_says_what_is_missing(tmp_path: Path) -> None:
    without_keys = run("alice")
    without_names = run("--keys", str(keyring_file(tmp_path, NEW)))

    assert (without_keys.exit_code, without_names.exit_code) == (2, 2)
    assert "set OTEL_AUDIT_PSEUDONYM_KEYS" in without_keys.stderr
    assert "expected names, got none" in without_names.stderr
