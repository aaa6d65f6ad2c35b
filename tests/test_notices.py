"""What is said on stderr reaches it, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from otel_audit.notices import Notices
from tests.servers import poll


@contextmanager
def full_pipe_as_stderr() -> Iterator[int]:
    """stderr is a pipe that is full; its other end. No fixture: pytest has a stderr of its own for each phase."""
    other_end, end = os.pipe()
    os.set_blocking(end, False)
    with suppress(BlockingIOError):
        while True:
            os.write(end, b"." * 4096)
    os.set_blocking(end, True)
    with pytest.MonkeyPatch.context() as patch, os.fdopen(end, "w") as stream:
        patch.setattr(sys, "stderr", stream)
        yield other_end


def test_a_kind_is_said_once_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 59.0, 60.0, 61.0])
    notices = Notices(clock=lambda: next(times))

    for number in range(4):
        notices.say("loss", f"events are lost: {number}")

    assert capsys.readouterr().err == "otel-audit: events are lost: 0\notel-audit: events are lost: 2\n"


def test_a_notice_is_not_left_out_because_another_thread_is_at_one() -> None:
    looks: list[float] = []
    notices = Notices(clock=lambda: looks.append(0.0) or 0.0)  # type: ignore[func-returns-value]  # it also counts
    kinds = ("nothing moves", "events are lost")
    threads = [threading.Thread(target=notices.say, args=(kind, kind)) for kind in kinds]
    said = bytearray()
    with full_pipe_as_stderr() as pipe:
        for thread in threads:
            thread.start()
        poll(lambda: len(looks) == 2, what="both threads to be inside")

        reader = threading.Thread(target=_read, args=(pipe, said))
        reader.start()
        for thread in threads:
            thread.join()
    reader.join()
    os.close(pipe)

    assert all(kind.encode() in said for kind in kinds)


def _read(pipe: int, into: bytearray) -> None:
    while piece := os.read(pipe, 1 << 16):
        into += piece


@pytest.mark.processes
def test_without_stderr_nothing_is_written_to_stdout() -> None:
    script = "from otel_audit.notices import Notices; Notices().say('loss', 'events are lost')"

    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, script], stdout=subprocess.PIPE, timeout=60, check=True
    )

    assert done.stdout == b""


IN_A_CHILD = """
    import os, sys, threading
    from otel_audit.notices import Notices

    class Stuck:
        def write(self, text):
            inside.set()
            threading.Event().wait()

    inside, notices, stderr = threading.Event(), Notices(), sys.stderr
    sys.stderr = Stuck()
    threading.Thread(target=notices.say, args=("blocked", "nothing moves"), daemon=True).start()
    inside.wait()
    child = os.fork()
    sys.stderr = stderr
    if not child:
        notices.say("loss", "events are lost")
        os._exit(0)
    os._exit(os.waitpid(child, 0)[1])
"""


@pytest.mark.processes
def test_a_child_speaks_although_a_thread_of_its_parent_was_speaking_at_the_fork() -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(IN_A_CHILD)]

    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)

    assert done.stderr == "otel-audit: events are lost\n"
