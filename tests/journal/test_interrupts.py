"""An asynchronous exception may come between any two steps of an append: Ctrl-C, a soft time limit."""

from __future__ import annotations

import ctypes
import itertools
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.chain_check import application_events
from tests.journal.writing import a_journal, append


class SoftTimeLimit(Exception):
    """What a task queue raises in the thread of a task that takes too long."""


@pytest.mark.parametrize(("durability", "interrupts"), [("os", 10_000), ("fsync", 3000)])
def test_thousands_of_interrupts_inside_append_break_no_chain_and_lose_nothing_acknowledged(
    tmp_path: Path, durability: str, interrupts: int
) -> None:
    # In a process of its own: an interrupt may also come into code of pytest's that runs inside an append.
    done = subprocess.run(
        [sys.executable, "-m", "tests.journal.interrupted_writer", str(tmp_path), str(interrupts), durability],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    acknowledged, tried = done.stdout.split("\n")[:-1], int(done.stderr.split()[-1])

    ids = [each["event_id"] for each in application_events(tmp_path)]
    assert len(acknowledged) > 100  # or nothing was shown
    assert set(acknowledged) <= set(ids)
    assert len(ids) == len(set(ids))
    assert len(ids) <= tried + 1


def test_a_soft_time_limit_in_one_thread_does_not_stop_the_others(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    append(journal, "first")
    acknowledged: set[str] = set()
    stop = threading.Event()

    def write(name: str) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                append(journal, f"{name}-{number}")
                acknowledged.add(f"{name}-{number}")
            except SoftTimeLimit:
                continue

    def write_whatever_comes(index: int) -> None:
        for attempt in itertools.count():
            try:
                if stop.is_set():
                    return
                write(f"{index}.{attempt}")
            except SoftTimeLimit:  # outside of the inner `try`
                continue

    threads = [threading.Thread(target=write_whatever_comes, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 3
    while time.monotonic() < until:
        victim = random.choice(threads).ident
        assert victim is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(victim), ctypes.py_object(SoftTimeLimit))
        time.sleep(0.001)
    stop.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    append(journal, "last")
    journal.close()

    ids = {each["event_id"] for each in application_events(tmp_path)}
    assert len(acknowledged) > 1000
    assert acknowledged <= ids
    assert {"first", "last"} <= ids
