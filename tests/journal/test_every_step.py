"""An asynchronous exception at every step at which Python may raise one, one after the other, not at random."""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from otel_audit.journal.journal import Journal, Receipt
from otel_audit.journal.locks import FileLock
from otel_audit.journal.stream import Limits, StreamWriter
from otel_audit.settings import Durability
from tests.chain_check import application_events, read_streams
from tests.journal.writing import a_journal, append, open_files
from tests.stepping import Step, interrupted

pytestmark = pytest.mark.slow

SEGMENT_BYTES = 3000


Prepare = Callable[[Journal, Path], None]
Do = Callable[[Journal], None]


def nothing(journal: Journal, directory: Path) -> None:
    """The stream is not open yet."""


def one_event(journal: Journal, directory: Path) -> None:
    append(journal, "first")


def a_full_segment(journal: Journal, directory: Path) -> None:
    append(journal, "first", detail="x" * SEGMENT_BYTES)


def a_look_is_due(journal: Journal, directory: Path) -> None:
    an_hour_ago_ns = time.time_ns() - 3600 * 10**9
    journal.append("first", b'{"event_type":"test","event_id":"first"}', an_hour_ago_ns, an_hour_ago_ns)


def a_removed_file(journal: Journal, directory: Path) -> None:
    a_look_is_due(journal, directory)
    next(directory.glob("*.jsonl")).unlink()


def a_removed_lock(journal: Journal, directory: Path) -> None:
    a_look_is_due(journal, directory)
    next(directory.glob("*.writer.lock")).unlink()


def log(journal: Journal) -> None:
    append(journal, "interrupted")


def close(journal: Journal) -> None:
    journal.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python tells of one in a `__del__`
@pytest.mark.parametrize(
    ("prepare", "do", "durability"),
    [
        (nothing, log, "os"),
        (a_full_segment, log, "os"),
        (a_removed_file, log, "os"),
        (a_removed_lock, log, "os"),
        (one_event, close, "os"),
        (one_event, log, "fsync"),
        (a_full_segment, log, "fsync"),
        (one_event, close, "fsync"),
    ],
    ids=lambda value: value.__name__ if callable(value) else value,
)
def test_whatever_step_is_interrupted_the_journal_goes_on(
    tmp_path: Path, prepare: Prepare, do: Do, durability: str
) -> None:
    for step in itertools.count(1):
        directory = tmp_path / str(step)
        opened: list[StreamWriter] = []
        journal = a_journal(
            directory,
            durability=Durability(durability),
            limits=Limits(segment_bytes=SEGMENT_BYTES),
            on_open=opened.append,
        )
        prepare(journal, directory)
        where = interrupted(partial(do, journal), step)
        if where is None:
            journal.close()
            assert step > 10, "or nothing was shown"
            return
        assert_goes_on(journal, directory, opened, where, prepare)


def assert_goes_on(
    journal: Journal, directory: Path, opened: list[StreamWriter], where: Step, prepare: Prepare
) -> None:
    receipts: list[Receipt] = []
    other = threading.Thread(target=lambda: receipts.append(append(journal, "another thread")), daemon=True)
    other.start()
    other.join(30)
    assert not other.is_alive(), f"locked for ever: {where}"
    receipts.append(append(journal, "this thread"))
    assert [each.durable for each in receipts] == [True, True], where
    assert opened[-1] is journal.stream, f"nobody delivers the stream: {where}"

    opened.clear()
    ending = threading.Thread(target=journal.close, daemon=True)
    ending.start()
    ending.join(30)
    assert not ending.is_alive(), f"never closed: {where}"

    names = {event["event_id"] for event in application_events(directory)}
    assert names >= {"another thread", "this thread"} | ({"first"} if prepare is not nothing else set()), where
    assert len(names) == sum(len(events) for events in application_ids(directory)), f"twice: {where}"
    if not where.lost_a_descriptor:
        gc.collect()
        assert open_files(directory) == [], where
        assert not any(FileLock.is_held(lock) for lock in directory.glob("*.lock")), where


def application_ids(directory: Path) -> list[list[str]]:
    return [
        [event["event_id"] for event in events if "system" not in event] for events in read_streams(directory).values()
    ]
