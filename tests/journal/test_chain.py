"""The chain stays whole whoever writes: threads, an event loop, a forked child, a signal handler."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from otel_audit.journal.journal import Journal, Receipt
from otel_audit.journal.stream import Limits
from tests.chain_check import application_events, read_streams
from tests.journal.writing import a_journal, append, description


def test_the_first_line_of_a_stream_is_its_header_and_has_no_predecessor(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)

    receipt = append(journal, "a")

    (events,) = read_streams(tmp_path).values()
    assert [each["event_type"] for each in events] == ["audit.segment", "test"]
    assert events[0]["segment"]["resource"] == {"service.name": "shop", "service.instance.id": "i-1"}
    assert "prev_hash" not in events[0]
    assert receipt == ("a", events[0]["stream_id"], 2, True)


def test_no_stream_is_opened_before_the_first_event(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    journal.tend()
    journal.close()

    assert list(tmp_path.iterdir()) == []


def test_every_segment_begins_with_a_header_that_continues_the_chain(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, limits=Limits(segment_bytes=4096))

    for name in range(200):
        append(journal, name)
    journal.close()

    assert len(list(tmp_path.glob("*.jsonl"))) > 5
    for path in tmp_path.glob("*.jsonl"):
        assert path.read_bytes().startswith(b'{"system":"segment"')
    assert [each["event_id"] for each in application_events(tmp_path)] == [str(name) for name in range(200)]


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    journal = a_journal(tmp_path / "made")
    append(journal, "a")

    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "made").iterdir()} == {0o600}


@pytest.mark.processes
def test_threads_an_event_loop_a_signal_handler_and_a_forked_child_leave_whole_chains(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, limits=Limits(segment_bytes=100_000))
    names = iter(range(10**9))

    def on_alarm(number: int, frame: FrameType | None) -> None:
        append(journal, f"signal-{next(names)}")

    def write(source: str) -> None:
        for number in range(500):
            append(journal, f"{source}-{number}")

    async def write_in_tasks() -> None:
        async def one(number: int) -> None:
            await asyncio.sleep(0)
            append(journal, f"task-{number}")

        await asyncio.gather(*(one(number) for number in range(500)))

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        threads = [threading.Thread(target=write, args=(f"thread-{index}",)) for index in range(8)]
        for thread in threads:
            thread.start()
        child = os.fork()
        if child == 0:
            signal.setitimer(signal.ITIMER_REAL, 0)
            write("child")
            os._exit(0)
        asyncio.run(write_in_tasks())
        write("main")
        for thread in threads:
            thread.join()
        assert os.waitpid(child, 0)[1] == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    journal.close()

    ids = [each["event_id"] for each in application_events(tmp_path)]
    assert len(ids) == len(set(ids))
    wanted = {
        f"{source}-{n}" for source in ("task", "main", "child", *(f"thread-{i}" for i in range(8))) for n in range(500)
    }
    assert wanted <= set(ids)
    signalled = {each for each in ids if each.startswith("signal-")}
    assert len(ids) == len(wanted) + len(signalled)
    assert signalled == {f"signal-{n}" for n in range(next(names))}
    assert len(read_streams(tmp_path)) == 2


@pytest.mark.processes
def test_a_fork_that_runs_no_hooks_opens_a_stream_of_its_own(tmp_path: Path) -> None:
    script = f"""
        import ctypes, os
        from pathlib import Path
        from tests.journal.writing import a_journal, append, description

        journal = a_journal(Path({str(tmp_path)!r}))
        append(journal, "parent-1")
        child = ctypes.PyDLL(None).fork()
        if child == 0:
            append(journal, "child-1")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        append(journal, "parent-2")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, cwd=Path(__file__).parents[2])

    streams = read_streams(tmp_path)
    by_stream = sorted([each["event_id"] for each in events[1:]] for events in streams.values())
    assert by_stream == [["child-1"], ["parent-1", "parent-2"]]


def test_a_call_from_inside_a_call_is_written_by_the_outer_one(tmp_path: Path) -> None:
    """A description that logs stands for `__del__` and logging handlers: it runs in the middle of an append."""
    inner: list[Receipt] = []

    def description_that_logs() -> dict[str, Any]:
        inner.append(append(journal, "inner"))
        return description()

    journal = Journal(tmp_path, describe=description_that_logs)

    outer = append(journal, "outer")

    assert (outer.seq, outer.durable) == (2, True)
    assert (inner[0].seq, inner[0].durable) == (None, False)
    assert [each["event_id"] for each in application_events(tmp_path)] == ["outer", "inner"]


def test_after_close_the_next_event_opens_a_new_stream(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    append(journal, "a")
    journal.close()
    append(journal, "b")
    journal.close()

    assert [len(events) for events in read_streams(tmp_path).values()] == [2, 2]
    assert not list(tmp_path.glob("*.lock"))
    assert journal.counts.emitted == 2


@pytest.mark.parametrize("size", [1, 300, 64 * 1024])
def test_a_line_holds_its_event_byte_for_byte(tmp_path: Path, size: int) -> None:
    journal = a_journal(tmp_path)
    text = ('\u2028\x00"\\é😀' * size)[:size]

    append(journal, "a", detail=text)

    (events,) = read_streams(tmp_path).values()
    assert events[1]["detail"] == text
