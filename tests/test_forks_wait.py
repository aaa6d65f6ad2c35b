"""A fork waits for code whose native locks its child would inherit, and who comes to that code waits for the fork."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from rich.text import Text

from otel_audit import AuditEvent, AuditLogger
from otel_audit.delivery.console import Terminal
from otel_audit.notices import Notices
from otel_audit.redaction.redactor import Redactor
from otel_audit.threads import FORKS_WAIT
from tests.recording import recorder

# Each round is a process that has built no event yet, with two threads that begin to, and children forked meanwhile.
FIRST_EVENTS = """
import os, signal, threading
from otel_audit.event import AuditEvent, fields_of

def build_until(stop):
    while not stop.is_set():
        fields_of(AuditEvent(event_type="x"))

def in_child(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        work()
        os._exit(0)
    return pid

def first_events():
    stop = threading.Event()
    for _ in range(2):
        threading.Thread(target=build_until, args=(stop,), daemon=True).start()
    children = [in_child(lambda: fields_of(AuditEvent(event_type="x"))) for _ in range(5)]
    stop.set()
    assert not any(os.waitpid(child, 0)[1] for child in children), "a child waits for a lock of its parent"

for _ in range(40):
    assert os.waitpid(in_child(first_events), 0)[1] == 0
"""


def in_child(work: Callable[[], bool]) -> bool:
    """What `work` returned in a forked child; False too if it did not end there."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        os._exit(0 if work() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class SlowText(io.StringIO):
    """A stream that takes a while for a write, as a pipe does whose reader is slow."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.is_written = False

    def write(self, text: str) -> int:
        self.begun.set()
        time.sleep(0.1)
        self.is_written = True
        return len(text)


def write_a_notice(stream: SlowText) -> None:
    with redirect_stderr(stream):
        Notices().say("kind", "something is up")


def show_an_event(stream: SlowText) -> None:
    Terminal(stream).write(lambda view: [Text("an event")])


@pytest.mark.processes
@pytest.mark.parametrize("write", [write_a_notice, show_an_event])
def test_a_fork_waits_for_a_write_to_a_stream_whose_buffer_has_a_lock(write: Callable[[SlowText], None]) -> None:
    stream = SlowText()
    thread = threading.Thread(target=write, args=(stream,))
    thread.start()
    stream.begun.wait()

    assert in_child(lambda: stream.is_written)
    thread.join()


@pytest.mark.processes
def test_a_fork_waits_until_nobody_is_inside() -> None:
    entered, leave, left = threading.Event(), threading.Event(), []

    def inside() -> None:
        with FORKS_WAIT, FORKS_WAIT:
            entered.set()
            leave.wait()
            left.append(True)

    thread = threading.Thread(target=inside)
    thread.start()
    entered.wait()
    timer = threading.Timer(0.05, leave.set)
    timer.start()

    assert in_child(lambda: left == [True])
    thread.join()
    timer.join()


@pytest.mark.processes
def test_who_is_inside_itself_can_fork_and_so_can_its_child() -> None:
    with FORKS_WAIT:
        assert in_child(lambda: in_child(lambda: Redactor().is_clean(["a"])))

    assert in_child(lambda: Redactor().is_clean(["a"]))


def test_who_comes_during_a_fork_waits_for_it() -> None:
    inside = threading.Event()

    def enter() -> None:
        with FORKS_WAIT:
            inside.set()

    thread = threading.Thread(target=enter)
    FORKS_WAIT.before_fork()
    try:
        thread.start()
        assert not inside.wait(0.05)
    finally:
        FORKS_WAIT.after_fork_in_parent()
    thread.join()
    assert inside.is_set()


@pytest.mark.processes
def test_children_forked_while_other_threads_log_can_log_too(tmp_path: Path) -> None:
    stop = threading.Event()

    def log_texts_that_differ(audit: AuditLogger, number: int) -> None:
        while not stop.is_set():
            number += 1
            # New states of RE2's automaton are made under its mutex.
            audit.log_mcp_call(tool_name=f"t{number} é http://a:b{number * 7919}", detail=f"x{number} " * (number % 30))
            audit.log(AuditEvent(event_type="x", detail=f"y{number}", attributes={"a": number}))

    def log_in_child(audit: AuditLogger) -> bool:
        first = audit.log_mcp_call(tool_name="child é http://u:p@h", detail="z" * 200)
        second = audit.log(AuditEvent(event_type="child"))
        return first is not None and second is not None

    with recorder(tmp_path) as audit:
        threads = [threading.Thread(target=log_texts_that_differ, args=(audit, at * 10**6)) for at in range(2)]
        for thread in threads:
            thread.start()
        try:
            assert all(in_child(lambda: log_in_child(audit)) for _ in range(60))
        finally:
            stop.set()
            for thread in threads:
                thread.join()


@pytest.mark.processes
def test_children_forked_while_other_threads_build_their_first_event_can_build_one() -> None:
    subprocess.run([sys.executable, "-c", FIRST_EVENTS], check=True)
