"""Processes that are killed before their first line is written leave nothing for ever."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from otel_audit.cli import main
from otel_audit.journal import locks, removal
from otel_audit.journal.files import StreamFiles, streams_in
from otel_audit.journal.locks import FileLock
from otel_audit.journal.removal import remove_unbegun
from tests.journal.retaining import Clocks, a_retention
from tests.journal.writing import a_journal, append, start_script, the_stream

A_SERVICE = """
    import os, signal, sys
    from pathlib import Path
    import otel_audit

    directory, call, ending = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    real = getattr(os, call)

    def killed(what, *arguments, **options):
        name = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else os.fspath(what)
        if name.endswith(ending) and "ledger" not in name:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(what, *arguments, **options)

    setattr(os, call, killed)
    audit = otel_audit.configure(directory=directory, service_name="shop", export="none", ledger=False)
    audit.log_mcp_call(tool_name="never", outcome="success")
    print("not killed", flush=True)
"""
BEFORE = {
    "the first line": ("write", ".00000001.jsonl"),
    "the first file": ("open", ".00000001.jsonl"),
    "the end of the proof of locks": ("unlink", ".probe.lock"),
    "the reserve loses its name": ("unlink", ".reserve"),
}


def killed(directory: Path, before: str) -> list[str]:
    """Let a service be killed, and return what it left."""
    with start_script(A_SERVICE, directory, *BEFORE[before]) as process:
        assert process.wait(60) == -signal.SIGKILL
    return sorted(path.name.partition(".")[2] for path in directory.iterdir())


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(locks, "_YOUNG_S", 0)
    return tmp_path / "audit"


@pytest.mark.processes
@pytest.mark.parametrize("before", BEFORE)
def test_what_a_process_leaves_that_was_killed_at_its_birth_is_removed(before: str, directory: Path) -> None:
    assert killed(directory, before) != []

    journal = a_journal(directory)
    journal.prepare()
    a_retention(directory, Clocks()).look()
    append(journal, "alive")
    journal.close()

    begun = {files.stream_id for files in streams_in(directory) if files.segment(1).stat().st_size}
    of_none = {path.name for path in directory.iterdir() if path.name.partition(".")[0] not in begun}
    assert of_none <= {"ledger.lock", "ledger.reserve", "retention.state"}


@pytest.mark.processes
def test_a_shipper_removes_a_stream_that_never_began_and_leaves_no_cursor(directory: Path) -> None:
    assert killed(directory, "the first line") == ["00000001.jsonl", "writer.lock"]

    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_AUDIT_RETENTION_DAYS": "0"}
    result = CliRunner().invoke(main, ["ship", "--once", str(directory)], env=environment)

    assert result.exit_code == 0
    assert list(directory.glob("*-*")) == []


@pytest.mark.processes
def test_a_cursor_that_an_earlier_version_made_goes_too(directory: Path) -> None:
    killed(directory, "the first line")
    (files,) = streams_in(directory)
    files.cursor.touch()

    assert remove_unbegun(files)

    assert list(directory.glob("*-*")) == []


def test_a_lock_that_a_writer_has_just_made_is_left_to_it(tmp_path: Path) -> None:
    """It is not locked yet, perhaps. If retention took its lock at this moment, the event would be lost."""
    lock = StreamFiles(tmp_path, "01a22aa6-2050-77d9-9f76-43a18f295c97").writer_lock
    lock.touch()

    removal.finish_removal(tmp_path)
    assert lock.exists()

    an_hour_ago_s = time.time() - 3600
    os.utime(lock, (an_hour_ago_s, an_hour_ago_s))
    removal.finish_removal(tmp_path)
    assert not lock.exists()


@pytest.mark.parametrize("reason", ["its writer lives", "it is exported", "it has a byte", "it was truncated later"])
def test_a_stream_that_may_have_begun_stays(reason: str, directory: Path) -> None:
    journal = a_journal(directory)
    append(journal, "a")
    files: StreamFiles = the_stream(directory)
    journal.close()
    os.truncate(files.segment(1), 0)
    born_ns = (int(files.stream_id[:8] + files.stream_id[9:13], 16)) * 10**6
    os.utime(files.segment(1), ns=(born_ns, born_ns))
    held = None
    if reason == "its writer lives":
        held = FileLock.acquire(files.writer_lock)
    elif reason == "it is exported":
        held = FileLock.acquire(files.ship_lock)
    elif reason == "it has a byte":
        files.segment(1).write_bytes(b"{")
        os.utime(files.segment(1), ns=(born_ns, born_ns))
    else:
        os.utime(files.segment(1), ns=(born_ns, born_ns + 2 * 10**9))

    assert not remove_unbegun(files)

    assert files.segment(1).exists()
    assert not files.ship_lock.exists() or reason != "its writer lives", "its writer is about to take it"
    if held is not None:
        held.release()
        assert remove_unbegun(files)
