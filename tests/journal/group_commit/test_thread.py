"""The thread that syncs ends with its journal, and is not missed where there is none."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import pytest

from otel_audit.errors import AuditUnavailable
from otel_audit.journal.stream import StreamWriter
from otel_audit.settings import Durability
from tests.chain_check import application_events
from tests.journal.slow_disk import SlowDisk
from tests.journal.writing import a_journal, append, the_stream
from tests.servers.polling import poll


def commit_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "otel-audit-commit"]


@pytest.mark.parametrize("closes", [True, False], ids=["closed", "forgotten"])
def test_the_thread_ends_with_its_journal(tmp_path: Path, closes: bool) -> None:
    poll(commit_threads, until=lambda names: not names, what="the threads of other tests to end")
    journal = a_journal(tmp_path, durability=Durability.FSYNC)
    append(journal, "a")
    assert len(commit_threads()) == 1

    if closes:
        journal.close()
    del journal

    def left() -> list[str]:
        gc.collect()
        return commit_threads()

    poll(left, until=lambda names: not names, what="the thread to end")


def test_an_event_is_durable_although_its_journal_is_closed_before_its_caller_waits(tmp_path: Path) -> None:
    """By another thread, between the write and the wait: as in a service that ends while requests still log."""

    def close_from_another_thread(stream: StreamWriter) -> None:
        thread = threading.Thread(target=ending.close)
        thread.start()
        thread.join()

    ending = a_journal(tmp_path, durability=Durability.FSYNC, on_open=close_from_another_thread)

    assert append(ending, "a").durable

    assert [each["event_id"] for each in application_events(tmp_path)] == ["a"]


def test_without_a_thread_every_line_is_synced_by_its_caller(
    tmp_path: Path, disk: SlowDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the end of the interpreter, or where there are too many threads."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    journal = a_journal(tmp_path, durability=Durability.FSYNC)
    append(journal, "a")
    disk.calls.clear()

    assert append(journal, "b").durable

    assert disk.calls == [the_stream(tmp_path).segment(1).name]
    disk.fails = True
    with pytest.raises(AuditUnavailable):
        append(journal, "c")
    disk.fails = False
    assert append(journal, "d").durable
    journal.close()
    assert disk.tried_again() == set()
    assert len(application_events(tmp_path)) == 4
