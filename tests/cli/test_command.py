"""What all commands have in common: help that is whole, and one line instead of a traceback."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from otel_audit.cli import main
from otel_audit.cli.command import COMMANDS
from tests.cli.journals import a_journal, record

COMMAND = Path(sys.executable).with_name("otel-audit")


def test_the_list_of_commands_says_what_each_does_and_cuts_no_sentence() -> None:
    shown = CliRunner().invoke(main, ["--help"]).stdout.partition("Commands:")[2]

    listed = [line.split()[0] for line in shown.splitlines() if line[2:3].strip()]
    assert listed == list(COMMANDS)
    assert "..." not in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_of_a_command_what_its_own_help_begins_with(name: str) -> None:
    shown = " ".join(CliRunner().invoke(main, [name, "--help"]).stdout.split())

    assert f" {COMMANDS[name]}. " in shown


@pytest.mark.processes
@pytest.mark.parametrize(
    "arguments",
    [("status", "DIR"), ("status", "--json", "DIR"), ("tail", "DIR"), ("tail", "--json", "DIR"), ("config",)],
    ids=" ".join,
)
def test_output_that_cannot_be_written_is_said_in_one_line(arguments: tuple[str, ...], tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    record(journal, "a")
    journal.close()
    env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}

    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [COMMAND, *(str(tmp_path) if each == "DIR" else each for each in arguments)],
            env=env,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )

    assert done.returncode == 1
    assert done.stderr == (
        f"otel-audit {arguments[0]}: expected to read or write its output, got No space left on device; "
        "correct that and run it again\n"
    )


def _environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PYTHONUNBUFFERED"))}
    return {**kept, **more}


@pytest.mark.processes
@pytest.mark.parametrize(
    "arguments",
    [
        ("tail",),
        ("query",),
        ("query", "--json"),
        ("query", "--csv"),
        ("query", "--sql", "SELECT * FROM events"),
        ("export", "--format", "ocsf"),
        ("status",),
        ("status", "--json"),
        ("verify",),
        ("verify", "--json"),
        ("schema",),
        (),
    ],
    ids=" ".join,
)
def test_a_reader_that_has_seen_enough_is_no_finding(arguments: tuple[str, ...], tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    record(journal, "a", "b")
    journal.close()
    reading, writing = os.pipe()
    os.close(reading)

    done = subprocess.run(
        [COMMAND, *arguments],
        env=_environment(OTEL_AUDIT_DIR=str(tmp_path)),
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    os.close(writing)

    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.processes
@pytest.mark.parametrize("arguments", [("tail", "--json"), ("query", "--json"), ("tail",)], ids=" ".join)
def test_a_full_disk_is_said_also_where_python_does_not_buffer(arguments: tuple[str, ...], tmp_path: Path) -> None:
    journal = a_journal(tmp_path / "journal")
    record(journal, *(f"detail {number}" for number in range(20)))
    journal.close()

    with open(tmp_path / "out", "w") as out:
        done = subprocess.run(
            [COMMAND, *arguments, str(tmp_path / "journal")],
            env=_environment(PYTHONUNBUFFERED="1", PYTHONDONTWRITEBYTECODE="1"),
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
        )

    assert (tmp_path / "out").stat().st_size == 1000
    assert done.returncode == 1
    assert f"otel-audit {arguments[0]}: expected to read or write its output, got File too large" in done.stderr


@pytest.mark.parametrize("name", ["status", "tail"])
def test_a_file_in_the_place_of_a_directory_is_not_said_to_be_missing(name: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()

    result = CliRunner().invoke(main, [name, str(file)])

    assert result.exit_code == 2
    assert "which is not a directory; give DIR or set OTEL_AUDIT_DIR" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("demo", "--seconds", "nan"),
        ("demo", "--seconds", "inf"),
        ("demo", "--seconds", "1e12"),
        ("demo", "--rate", "nan"),
        ("demo", "--rate", "0"),
        ("replay", "--give-up-after", "nan", "."),
        ("replay", "--give-up-after", "-1", "."),
    ],
    ids=" ".join,
)
def test_a_number_that_nothing_can_wait_for_is_wrong_usage(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, arguments)

    assert result.exit_code == 2
    assert "Invalid value for" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [("status", ""), ("tail", ""), ("ship", "--once", ""), ("doctor", ""), ("replay", ""), ("demo", "--dir", "")],
    ids=" ".join,
)
def test_an_empty_path_is_not_the_working_directory(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    result = CliRunner().invoke(main, arguments)

    assert result.exit_code == 2
    assert "expected a path, got an empty one" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "remedy"), [("verfy", "did you mean verify?"), ("xyzzy", "`otel-audit --help` lists them")]
)
def test_an_unknown_command_leads_to_the_one_that_was_meant(typed: str, remedy: str) -> None:
    result = CliRunner().invoke(main, [typed])

    assert result.exit_code == 2
    assert f"expected a command, got '{typed}'; {remedy}" in result.stderr


@pytest.mark.parametrize("name", ["status", "tail", "verify"])
def test_a_typo_in_the_directory_leads_to_the_journals_beside_it(name: str, tmp_path: Path) -> None:
    for right in ("shop", "stock"):
        record(journal := a_journal(tmp_path / right), "a")
        journal.close()

    result = CliRunner().invoke(main, [name, str(tmp_path / "shpo")])

    assert result.exit_code == 2
    assert f"did you mean {tmp_path / 'shop'} or {tmp_path / 'stock'}?" in result.stderr


@pytest.mark.parametrize("name", ["status", "tail"])
def test_a_directory_without_a_stream_is_told_from_one_without_events(name: str, tmp_path: Path) -> None:
    journal, elsewhere = a_journal(tmp_path / "journal"), tmp_path / "elsewhere"
    elsewhere.mkdir()

    mistaken = CliRunner().invoke(main, [name, str(elsewhere)])

    assert "no stream is in this directory" in mistaken.stderr
    assert mistaken.exit_code == 0
    record(journal, "a")
    assert CliRunner().invoke(main, [name, str(tmp_path / "journal")]).stderr == ""
    journal.close()


@pytest.mark.parametrize("name", ["status", "tail"])
def test_a_journal_that_this_user_may_not_read_says_which_file_and_what_to_do(name: str, tmp_path: Path) -> None:
    (tmp_path / "01a215e1-420e-74ab-b230-37369c098fc0.00000001.jsonl").mkdir()

    result = CliRunner().invoke(main, [name, str(tmp_path)])

    assert result.exit_code == 2
    assert "00000001.jsonl: expected a journal that uid" in result.stderr
    assert "got Is a directory" in result.stderr
    assert "OTEL_AUDIT_FILE_MODE=0640" in result.stderr
