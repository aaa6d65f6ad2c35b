"""`otel-audit status`: the numbers add up, and say what became of each event."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from otel_audit.cli import main
from otel_audit.journal.census import census
from otel_audit.journal.cursor import Cursor
from otel_audit.journal.files import streams_in
from otel_audit.journal.locks import FileLock
from otel_audit.journal.room import Space
from tests.cli.journals import Inbox, a_journal, deliver, record

NUMBERS = ("emitted", "exported", "pending", "quarantined", "dropped", "system")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["status", *map(str, arguments)])


def status_of(directory: Path) -> tuple[dict[str, Any], int]:
    result = run("--json", directory)
    status = json.loads(result.stdout)
    for each in (status, *status["streams"]):
        assert each["emitted"] == each["exported"] + each["pending"] + each["quarantined"] + each["dropped"]
    for number in NUMBERS:
        assert status[number] == sum(stream[number] for stream in status["streams"])
    return status, result.exit_code


def numbers_of(directory: Path) -> tuple[int, ...]:
    status, _ = status_of(directory)
    return tuple(status[name] for name in NUMBERS)


def test_events_that_no_exporter_has_come_to_are_pending(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    record(journal, "a", "b", "c")

    assert numbers_of(tmp_path) == (3, 0, 3, 0, 0, 1)
    assert run(tmp_path).exit_code == 0
    journal.close()


def test_events_that_were_delivered_are_exported_and_later_ones_pending(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    deliver(record(journal, "a", "b", "c"), Inbox())
    record(journal, "d")

    assert numbers_of(tmp_path) == (4, 3, 1, 0, 0, 1)
    journal.close()


def test_a_stream_over_several_segments_is_counted_once_and_whole(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, segment_bytes=2000)
    files = record(journal, *map(str, range(50)))
    deliver(files, Inbox(), steps=3, batch_count=7)
    segments = len(files.segments())

    status, _ = status_of(tmp_path)

    assert segments > 5
    assert (status["emitted"], status["system"]) == (50, segments)
    assert 0 < status["exported"] < 50
    journal.close()


def test_a_refused_event_is_quarantined_with_its_reason_and_is_a_finding(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    deliver(record(journal, "good", "poison", "good"), Inbox(refuses=b"poison"))

    status, code = status_of(tmp_path)

    assert tuple(status[name] for name in NUMBERS) == (3, 2, 0, 1, 0, 1)
    assert status["streams"][0]["exporters"]["otlp"]["quarantine"] == [
        {"first_seq": 3, "last_seq": 3, "reason": "bad record"}
    ]
    assert code == 1
    assert "quarantined lines 3 to 3: bad record" in run(tmp_path).stdout
    journal.close()


def test_many_refused_events_do_not_bury_what_comes_after_them(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    deliver(record(journal, *["poison", "good"] * 30), Inbox(refuses=b"poison"))

    text = run(tmp_path).stdout

    assert text.count("bad record") == 5
    assert "and 25 more quarantined lines: see --json" in text
    assert len(status_of(tmp_path)[0]["streams"][0]["exporters"]["otlp"]["quarantine"]) == 30
    journal.close()


def test_a_blocked_exporter_with_events_behind_it_is_a_finding_that_says_why(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    deliver(record(journal, "a"), Inbox(away="connection \x1b[31mrefused"))

    status, code = status_of(tmp_path)

    assert status["streams"][0]["exporters"]["otlp"]["blocked"] == "connection \x1b[31mrefused"
    assert (status["pending"], code) == (1, 1)
    assert "otlp: blocked behind line 0: connection \\x1b[31mrefused" in run(tmp_path).stdout
    journal.close()


def test_an_event_is_exported_when_every_exporter_has_it(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, export=("otlp", "jsonl"))
    files = record(journal, "a", "b")
    deliver(files, Inbox("jsonl"))

    assert numbers_of(tmp_path) == (2, 0, 2, 0, 0, 1)

    deliver(files, Inbox("otlp"))

    assert numbers_of(tmp_path) == (2, 2, 0, 0, 0, 1)
    journal.close()


def test_an_event_that_two_exporters_refused_is_quarantined_once(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, export=("otlp", "jsonl"))
    files = record(journal, "a", "poison for both", "poison", "d", "e")
    deliver(files, Inbox("otlp", refuses=b"poison for both"))
    deliver(files, Inbox("jsonl", refuses=b"poison"))

    assert numbers_of(tmp_path) == (5, 3, 0, 2, 0, 1)
    journal.close()


def test_what_the_faster_exporter_set_aside_is_pending_until_the_slower_one_has_come_to_it(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, export=("otlp", "jsonl"))
    files = record(journal, "a", "poison", "c")
    deliver(files, Inbox("jsonl", refuses=b"poison"))
    deliver(files, Inbox("otlp", away="down"))

    assert numbers_of(tmp_path) == (3, 0, 3, 0, 0, 1)
    journal.close()


def test_the_losses_that_a_refused_gap_line_tells_stay_in_the_numbers(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    record(journal, "a")
    journal._end.lost("disk full", 1, None)
    journal._end.lost("disk full", 2, None)
    files = record(journal, "b", "c")
    before = numbers_of(tmp_path)

    deliver(files, Inbox(refuses=b'"gap"'))

    assert before == (5, 0, 3, 0, 2, 2)
    assert numbers_of(tmp_path) == (5, 3, 0, 0, 2, 2)
    journal.close()


def test_a_refused_line_of_the_journal_itself_is_a_finding(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    deliver(record(journal, "a", "b"), Inbox(refuses=b"audit.segment"))

    status, code = status_of(tmp_path)

    assert (status["exported"], status["quarantined"], code) == (2, 0, 1)
    journal.close()


def test_damage_that_was_passed_over_is_a_finding(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    files = record(journal, "a", "b")
    journal.close()
    with files.segment(1).open("ab") as segment:
        segment.write(b"garbage\n")

    deliver(files, Inbox())

    status, code = status_of(tmp_path)
    assert (status["exported"], status["streams"][0]["exporters"]["otlp"]["damaged"], code) == (2, 1, 1)


def test_a_refused_line_of_the_journal_itself_is_no_quarantined_event(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, export=("otlp", "jsonl"))
    files = record(journal, "poison", "b", "c")
    deliver(files, Inbox("otlp", refuses=b"audit.segment"))
    deliver(files, Inbox("jsonl", refuses=b"poison"))

    assert numbers_of(tmp_path) == (3, 2, 0, 1, 0, 1)
    journal.close()


def test_with_the_journal_as_the_destination_everything_is_exported(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, export=("none",))
    record(journal, "a", "b")

    assert numbers_of(tmp_path) == (2, 2, 0, 0, 0, 1)
    journal.close()


def test_what_is_left_to_a_shipper_is_pending_until_one_has_come(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, export=("ship",))
    files = record(journal, "a", "b")

    assert numbers_of(tmp_path) == (2, 0, 2, 0, 0, 1)

    deliver(files, Inbox("otlp"))

    assert numbers_of(tmp_path) == (2, 2, 0, 0, 0, 1)
    journal.close()


def test_a_stream_that_ended_delivered_does_not_wait_for_an_exporter_that_never_came(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, export=("otlp", "console"))
    files = record(journal, "a", "b")
    journal.close()
    deliver(files, Inbox("otlp"))
    cursor = Cursor(files.cursor)
    cursor.end()
    cursor.close()

    assert numbers_of(tmp_path) == (2, 2, 0, 0, 0, 1)


@pytest.mark.processes
@pytest.mark.parametrize("export", ["otlp", "none"])
def test_events_that_a_full_disk_refused_are_dropped_and_a_finding(tmp_path: Path, export: str) -> None:
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from otel_audit.errors import AuditUnavailable\n"
        "from tests.cli.journals import a_journal, record\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "journal = a_journal(Path(sys.argv[1]), export=(sys.argv[2],))\n"
        "files = record(journal, 'before')\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (files.segment(1).stat().st_size + 10, hard))\n"
        "for _ in range(4):\n"
        "    try:\n"
        "        record(journal, 'lost')\n"
        "    except AuditUnavailable:\n"
        "        pass\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n"
        "record(journal, 'after')\n"
        "journal.close()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script, str(tmp_path), export], env=environment, timeout=60, check=True)

    status, code = status_of(tmp_path)

    assert (status["emitted"], status["dropped"], status["system"], code) == (6, 4, 2, 1)

    if export == "otlp":
        deliver(streams_in(tmp_path)[0], Inbox())
        assert numbers_of(tmp_path) == (6, 2, 0, 0, 4, 2)


def test_a_torn_last_line_and_damage_are_no_events(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    files = record(journal, "a", "b")
    journal.close()
    with files.segment(1).open("ab") as segment:
        segment.write(b'garbage\n{"event_type":"forged","seq":9}\n{"event_type":"to')

    assert numbers_of(tmp_path) == (2, 0, 2, 0, 0, 1)


def test_it_says_which_streams_live_and_of_which_service_they_are(tmp_path: Path) -> None:
    ended = a_journal(tmp_path, service="shop")
    record(ended, "a")
    ended.close()
    live = a_journal(tmp_path, service="bank")
    record(live, "b")

    streams = status_of(tmp_path)[0]["streams"]

    assert [(stream["service_name"], stream["state"]) for stream in streams] == [("shop", "ended"), ("bank", "live")]
    live.close()


@pytest.mark.processes
def test_a_writer_that_was_killed_and_a_child_that_left_have_ended_to_status_and_to_verify(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "import otel_audit\n"
        "audit = otel_audit.configure(directory=Path(sys.argv[1]), service_name='shop', export='none')\n"
        "audit.log_mcp_call(tool_name='parent', outcome='success')\n"
        "if (child := os.fork()) == 0:\n"
        "    audit.log_mcp_call(tool_name='child', outcome='success')\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL

    status, _ = status_of(tmp_path)
    verified = json.loads(CliRunner().invoke(main, ["verify", "--json", str(tmp_path)]).stdout)

    assert [stream["state"] for stream in status["streams"]] == ["ended", "ended"]
    assert [stream["state"] for stream in verified["streams"]] == ["ended", "ended"]
    assert [stream["ended"] for stream in verified["streams"]] == [False, False]


def test_people_read_one_sum_and_a_row_for_each_stream(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    files = record(journal, "a", "b")
    deliver(files, Inbox())
    record(journal, "c")

    lines = run(tmp_path).stdout.splitlines()

    assert lines[1] == "emitted 3 = exported 2 + pending 1 + quarantined 0 + dropped 0; system lines 1"
    assert lines[3].split() == [files.stream_id, "shop", "live", "3", "2", "1", "0", "0", "1", "otlp"]
    journal.close()


def test_many_delivered_streams_do_not_bury_the_one_that_waits(tmp_path: Path) -> None:
    waiting = a_journal(tmp_path)
    record(waiting, "the first stream")
    waiting.close()
    for number in range(30):
        journal = a_journal(tmp_path, export=("none",))
        record(journal, str(number))
        journal.close()

    text = run(tmp_path).stdout

    assert census(tmp_path).streams[0].stream_id in text
    assert "and 11 more streams: see --json" in text
    assert len(json.loads(run("--json", tmp_path).stdout)["streams"]) == 31


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_on_a_narrow_terminal_an_id_stays_in_one_piece_and_every_number_is_there(columns: int, tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    files = record(journal, "a", "b")
    deliver(files, Inbox())
    journal.close()
    environ = {"FORCE_COLOR": "1", "COLUMNS": str(columns), "NO_COLOR": "1"}

    shown = CliRunner().invoke(main, ["status", str(tmp_path)], env=environ).stdout.partition("system lines")[2]

    assert files.stream_id in shown
    words = re.sub(r"\x1b\[[0-9;]*m", "", shown).split()
    assert {"shop", "ended", "otlp", *NUMBERS} <= set(words)


def test_in_a_pipe_the_row_of_a_stream_is_one_line_however_long_its_service_is_named(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, service="shop" * 60)
    files = record(journal, "a")
    journal.close()

    rows = [line for line in run(tmp_path).stdout.splitlines() if line.startswith(files.stream_id)]

    assert [row.split()[1] for row in rows] == ["shop" * 60]


def test_events_that_nobody_delivers_are_told_from_those_that_somebody_will(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    files = record(journal, "a", "b")
    hint = f"nobody delivers 2 events of 1 ended stream: start their service, or run otel-audit ship {tmp_path}"

    assert not status_of(tmp_path)[0]["streams"][0]["unattended"]
    journal.close()
    assert status_of(tmp_path)[0]["streams"][0]["unattended"]
    shown = run(tmp_path)
    assert (hint in shown.stdout.splitlines(), shown.exit_code) == (True, 1)
    shipper = FileLock.acquire(files.ship_lock)
    assert shipper is not None
    assert not status_of(tmp_path)[0]["streams"][0]["unattended"]
    assert run(tmp_path).exit_code == 0
    shipper.release()
    deliver(files, Inbox())
    assert "nobody delivers" not in run(tmp_path).stdout
    assert run(tmp_path).exit_code == 0


def test_events_that_wait_for_a_word_that_another_host_is_gone_are_a_finding(memory_disk: Path) -> None:
    journal = a_journal(memory_disk, host="f" * 32)
    files = record(journal, "a", "b")
    assert not status_of(memory_disk)[0]["streams"][0]["foreign"]
    journal.close()

    told, code = status_of(memory_disk)
    shown = run(memory_disk)

    assert (told["streams"][0]["foreign"], code, shown.exit_code) == (True, 1, 1)
    assert "2 events of 1 stream from another host are waiting" in shown.stdout
    assert f"otel-audit ship --adopt-foreign {memory_disk}" in shown.stdout
    assert "nobody delivers" not in shown.stdout
    deliver(files, Inbox())
    assert run(memory_disk).exit_code == 0


@pytest.mark.processes
def test_on_a_local_disk_events_of_another_host_wait_for_nothing_but_an_owner(ext4_disk: Path) -> None:
    journal = a_journal(ext4_disk, host="f" * 32)
    record(journal, "a")
    journal.close()

    told, code = status_of(ext4_disk)

    assert (told["streams"][0]["unattended"], told["streams"][0]["foreign"], code) == (True, False, 1)


def test_too_little_free_space_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = Space.of(tmp_path, 0).free_bytes
    assert status_of(tmp_path)[0]["space"]["low"] is False

    monkeypatch.setenv("OTEL_AUDIT_FREE_BYTES", str(free + (1 << 30)))
    told, code = status_of(tmp_path)
    shown = run(tmp_path)

    assert (told["space"]["floor_bytes"], told["space"]["low"], code) == (free + (1 << 30), True, 1)
    assert "events with the outcome success, unless their rule is closed, will be lost" in shown.stdout
    monkeypatch.setenv("OTEL_AUDIT_FREE_BYTES", "a lot")
    assert status_of(tmp_path)[0]["space"]["low"] is False


def test_an_empty_directory_has_no_events(tmp_path: Path) -> None:
    assert numbers_of(tmp_path) == (0, 0, 0, 0, 0, 0)
    assert run(tmp_path).exit_code == 0


def test_a_directory_that_does_not_exist_is_wrong_usage_and_says_what_to_do(tmp_path: Path) -> None:
    result = run(tmp_path / "missing")

    assert result.exit_code == 2
    assert "give DIR or set OTEL_AUDIT_DIR" in result.stderr


def test_the_directory_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_AUDIT_DIR", str(tmp_path))

    assert json.loads(run("--json").stdout)["directory"] == str(tmp_path)


def test_the_directory_is_that_of_the_settings_when_nothing_else_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_AUDIT_DIR", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    (tmp_path / "otel-audit" / "shop").mkdir(parents=True)

    assert json.loads(run("--json").stdout)["directory"] == str(tmp_path / "otel-audit" / "shop")


def test_looking_changes_no_file(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    deliver(record(journal, "a"), Inbox())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    status_of(tmp_path)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    journal.close()


def test_of_a_service_in_memory_the_directory_is_the_one_that_it_chooses() -> None:
    environ = {"OTEL_AUDIT_DURABILITY": "memory", "OTEL_AUDIT_EXPORT": "console", "OTEL_SERVICE_NAME": "never started"}
    result = CliRunner().invoke(main, ["status"], env={"OTEL_AUDIT_DIR": None, **environ})

    assert f"/otel-audit-{os.geteuid()}/never_started-" in result.stderr
