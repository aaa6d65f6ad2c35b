"""Every error of the command line says what was expected, what it got, and what to do, and shows no secret."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from otel_audit.cli import main
from otel_audit.signing.keys import create_identity

ESC = "\x1b[31m\u202e"
LONG = "long" * 100


def run(*arguments: str | Path, **env: str) -> Result:
    environment = {"OTEL_AUDIT_DIR": "", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", **env}
    return CliRunner().invoke(main, list(map(str, arguments)), env=environment, prog_name="otel-audit")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "note.txt").write_text("hello\n")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nosuch"], "expected an option of otel-audit, got '--nosuch'; `otel-audit --help` lists them"),
        (["query", "--limt", "3"], "expected an option of otel-audit query, got '--limt'; did you mean --limit?"),
        (["prove"], "expected EVENT_ID, got none; `otel-audit prove --help` says what it is"),
        (["export"], "expected --format, got none; `otel-audit export --help` says what it is"),
        (["verify", "--key"], "expected a value after --key, got none; `otel-audit verify --help` says which"),
        (["verify", "--json=3"], "expected no value for --json, got one; leave it out"),
        (["schema", "x", "y"], "expected no more arguments, got 'x y'; `otel-audit schema --help` says which it takes"),
        (["query", "--limit", "x"], "expected a whole number from 1 on, got 'x'; correct it"),
        (["view", "--port", "70000"], "expected a whole number from 0 to 65535, got '70000'; correct it"),
        (["replay", "--give-up-after", "nan", "."], "expected a number from 0 to 31536000, got 'nan'; correct it"),
        (["export", "--format", "csv"], "expected one of ocsf, got 'csv'; correct it"),
        (["replay", "{}/gone"], "expected a path that exists, got '{}/gone', which does not exist; correct it"),
        (["vkey", "{}/" + LONG], f"got '{{}}/{LONG}', which cannot be reached: File name too long; correct it"),
        (["vkey", "{}/empty/x"], "got '{}/empty/x', which cannot be reached: Not a directory; correct it"),
        (["verify", "--known", LONG], "expected a file with a note, or a vkey: verifier key: expected <name>+<8 hex"),
        (["vkey", "{}/loop"], "got '{}/loop', which is a link that leads nowhere; correct it"),
        (["vkey", "{}/empty"], "got something else; make one with `otel-audit keygen`"),
        (["keygen", "{}/dir"], "expected a file, got '{}/dir', which is a directory; name a file in it"),
        (["pseudonym", "--keys", "{}/dir", "a"], "which is a directory; name a file in it"),
        (["pack", ".", "{}/empty"], "expected a directory, got '{}/empty', which is a file; name another place"),
        (["config", "--explain", "{}/dir"], "got '{}/dir': Is a directory; correct the path"),
        (["verify", "--key", "{}/empty"], "got '{}/empty'; give what `otel-audit vkey FILE` prints"),
        (["verify", "--known", "{}/empty"], "expected a note or a vkey in {}/empty, got something else; give a note"),
        (["query", ""], "got an empty one; leave it out, or set its variable"),
    ],
)
def test_an_error_says_what_was_expected_what_it_got_and_what_to_do(
    arguments: list[str], said: str, place: Path
) -> None:
    result = run(*(each.replace("{}", str(place)) for each in arguments))

    assert result.exit_code == 2
    assert said.replace("{}", str(place)) in result.stderr


SOURCES = ["verify", "verify --archive", "query", "tail", "status", "export --format ocsf", "report --json", "prove x"]


@pytest.mark.parametrize(
    ("command", "given"),
    [
        (command, given)
        for command in [*SOURCES, "ship --once", "replay", "replay --quarantine", "vkey", "config --explain"]
        for given in ["gone", "empty", "binary", "dir", "loop", "fifo"]
        if given != "fifo" or command not in ("vkey", "config --explain")  # which may read a pipe, and wait for it
    ],
)
def test_no_argument_ends_a_command_in_a_traceback_or_without_a_word(command: str, given: str, place: Path) -> None:
    result = run(*command.split(), place / given)

    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stderr.strip()
    if result.exit_code == 2:
        error = result.stderr.partition("expected ")[2]
        assert ", got " in error
        assert "; " in error


@pytest.mark.parametrize("command", [*SOURCES, "ship --once", "replay", "vkey", "schema", "nosuch", "pack x", "keygen"])
def test_a_hostile_argument_changes_no_terminal(command: str, tmp_path: Path) -> None:
    result = run(*command.split(), tmp_path / f"{ESC}{os.fsdecode(bytes([0xFF]))}" / "x")

    assert not set(ESC[0] + ESC[-1]) & set(result.output)


def test_a_private_key_that_is_given_as_a_note_is_not_shown(tmp_path: Path) -> None:
    create_identity(tmp_path / "identity.pem")
    secret = (tmp_path / "identity.pem").read_text().split("\n")[1]

    for option in ("--known", "--proof", "--archive"):
        result = run("verify", option, tmp_path / "identity.pem", "--key", "x" if option == "--proof" else "")
        assert secret not in result.output
    assert secret not in run("verify", "--known", tmp_path / "identity.pem", tmp_path).output


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"service_name: [a\n", ":2:1: expected YAML, got '<stream end>'; correct it there or just before"),
        (b"service_name:\n\t- x\n", "got character '\\t' that cannot start any token; indent with spaces"),
        (b"service_name: a\nservice_name: b\n", ":2:1: $.service_name: expected each key once, got it a second time, "),
        (b'service_name: "\xff"\n', ":1:16: expected UTF-8, got byte 0xff; save the file as UTF-8"),
        (
            b"service_name: a\x1b\n",
            ":1:16: expected YAML, got the character U+001B, which it does not allow; remove it",
        ),
        (b"- a\n", ":1:1: $: expected `name: value` lines, got a list; correct it"),
        (b"batch_count: lots\n", ":1:1); correct it, or leave it out for the default: 2048"),
        (b"[" * 5000, "expected YAML, got brackets in brackets, too deep to read; use fewer"),
    ],
)
def test_a_settings_file_that_cannot_be_read_says_where_and_what_to_do(
    content: bytes, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "audit.yaml"
    file.write_bytes(content)

    result = run("config", OTEL_AUDIT_CONFIG=str(file))

    assert result.exit_code == 2
    assert str(file) in result.stderr
    assert said in result.stderr
