"""`otel-audit tail`: the last events of all streams, and those that come, without touching a lock."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from otel_audit.cli import main
from otel_audit.cli.command import COMMANDS
from tests.cli.journals import a_journal, record
from tests.servers.polling import poll


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["tail", *map(str, arguments)])


def details(text: str) -> list[str]:
    return [json.loads(line)["detail"] for line in text.splitlines()]


def test_the_last_events_of_all_streams_come_in_the_order_in_which_they_were_recorded(tmp_path: Path) -> None:
    one, other = a_journal(tmp_path), a_journal(tmp_path)
    for number in range(10):
        record(one if number % 3 else other, f"number {number}")

    result = run("--json", "-n", "4", tmp_path)

    assert details(result.stdout) == [f"number {number}" for number in (6, 7, 8, 9)]
    assert result.exit_code == 0
    one.close()
    other.close()


def test_json_is_the_line_of_the_journal_byte_for_byte(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    files = record(journal, "駅\u2028")
    stored = files.segment(1).read_bytes().split(b"\n")[1]

    assert run("--json", tmp_path).stdout_bytes == stored + b"\n"
    journal.close()


def test_people_see_one_line_an_event_and_no_header(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    record(journal, "GET /a -> 200", "\x1b[2Jboo")

    lines = run(tmp_path).stdout.splitlines()

    assert len(lines) == 2
    assert "success    http.request        anonymous           GET /a" in lines[0]
    assert lines[1].endswith("\\x1b[2Jboo")
    journal.close()


def test_it_looks_back_over_segments_and_past_damage(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, segment_bytes=1500)
    files = record(journal, *map(str, range(30)))
    journal.close()
    with files.segment(files.segments()[-1]).open("ab") as segment:
        segment.write(b'junk\n\n{"event_type":"to')

    assert details(run("--json", "-n", "25", tmp_path).stdout) == list(map(str, range(5, 30)))
    assert len(files.segments()) > 5


def test_fewer_events_than_asked_for_are_all_of_them(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    record(journal, "a")

    assert details(run("--json", "-n", "100", tmp_path).stdout) == ["a"]
    assert run("-n", "0", tmp_path).stdout == ""
    journal.close()


def test_an_empty_directory_is_fine_and_a_missing_one_is_wrong_usage(tmp_path: Path) -> None:
    assert (run(tmp_path).exit_code, run(tmp_path).stdout) == (0, "")
    assert run(tmp_path / "missing").exit_code == 2
    assert run("-n", "-1", tmp_path).exit_code == 2


@pytest.mark.processes
def test_following_ends_with_its_reader_although_nothing_new_is_recorded(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    record(journal, "a")
    journal.close()
    command = [sys.executable, "-c", "from otel_audit.cli import main; main()", "tail", "-f", str(tmp_path)]

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()

        assert process.wait(120) == 141
        assert process.stderr.read() == b""


@contextmanager
def following(directory: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A real `otel-audit tail -f`, and the lines that it has printed so far."""
    command = [sys.executable, "-u", "-c", "from otel_audit.cli import main; main()", "tail", "-f", *options]
    process = subprocess.Popen([*command, str(directory)], stdout=subprocess.PIPE, text=True, encoding="utf-8")
    lines: list[str] = []
    assert process.stdout is not None
    reading = threading.Thread(target=lines.extend, args=(process.stdout,))
    reading.start()
    try:
        yield process, lines
    finally:
        process.kill()
        process.wait(120)
        reading.join(timeout=30)
        process.stdout.close()


@pytest.mark.processes
def test_following_shows_new_events_segments_and_streams_each_once(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, segment_bytes=2000)
    record(journal, "before")
    with following(tmp_path, "--json") as (_, lines):
        poll(lambda: details("".join(lines)), until=lambda seen: seen == ["before"], what="the event that is there")
        record(journal, *(f"same stream {number}" for number in range(20)))
        other = a_journal(tmp_path)
        record(other, "other stream")

        expected = {"before", "other stream", *(f"same stream {number}" for number in range(20))}
        poll(lambda: set(details("".join(lines))), until=lambda seen: seen == expected, what="every new event")
        record(journal, "the end")
        poll(lambda: details("".join(lines))[-1], until=lambda last: last == "the end", what="the last event")

        assert sorted(details("".join(lines))) == sorted([*expected, "the end"])
    journal.close()
    other.close()


@pytest.mark.processes
def test_following_shows_the_first_stream_of_an_empty_directory(tmp_path: Path) -> None:
    with following(tmp_path, "-n", "0") as (_, lines):
        journal = a_journal(tmp_path)

        def recorded_once_more() -> str:
            record(journal, "a new one")  # again and again, since one from before the first look is not new
            return "".join(lines)

        poll(recorded_once_more, until=lambda text: "a new one" in text, what="a new event")
    journal.close()


@pytest.mark.processes
def test_ctrl_c_ends_following_in_peace(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    record(journal, "a")
    with following(tmp_path) as (process, lines):
        poll(lambda: len(lines), what="the first line")
        process.send_signal(signal.SIGINT)

        assert process.wait(120) == 0
    journal.close()


@pytest.mark.processes
def test_a_half_written_line_is_shown_when_it_is_whole(tmp_path: Path) -> None:
    journal = a_journal(tmp_path / "source")
    files = record(journal, "whole", "torn")
    journal.close()
    content = files.segment(1).read_bytes()
    watched = tmp_path / "watched"
    watched.mkdir()
    with (
        following(watched, "--json") as (_, lines),
        (watched / files.segment(1).name).open("wb", buffering=0) as segment,
    ):
        segment.write(content[:-30])
        poll(lambda: details("".join(lines)), until=lambda seen: seen == ["whole"], what="the whole line alone")
        segment.write(content[-30:])

        poll(lambda: details("".join(lines)), until=lambda seen: seen == ["whole", "torn"], what="the line made whole")


@pytest.mark.processes
def test_no_lock_file_is_opened_by_looking(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    record(journal, "a")
    script = (
        "import sys\n"
        "sys.addaudithook(lambda name, args: name == 'open' and print('OPENED', args[0], file=sys.stderr))\n"
        "from otel_audit.cli import main\n"
        "main(['tail', '--json', sys.argv[1]])\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )

    opened = [line for line in ran.stderr.splitlines() if line.startswith("OPENED") and str(tmp_path) in line]

    assert opened
    assert not [line for line in opened if ".lock" in line]
    journal.close()


@pytest.mark.processes
def test_a_reader_that_has_enough_is_no_traceback(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    record(journal, *(f"{number} {'x' * 1000}" for number in range(500)))
    command = [sys.executable, "-c", "from otel_audit.cli import main; main()", "tail", "-n", "500", str(tmp_path)]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody:
        ran = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, text=True, timeout=60, check=False)

    assert "Traceback" not in ran.stderr
    journal.close()


def test_the_command_knows_its_version_and_every_command_has_help() -> None:
    runner = CliRunner()

    assert runner.invoke(main, ["--version"]).stdout.startswith("otel-audit, version ")
    for name in COMMANDS:
        assert runner.invoke(main, [name, "--help"]).exit_code == 0
        assert name in runner.invoke(main, ["--help"]).stdout
    assert runner.invoke(main, ["no-such-command"]).exit_code == 2
