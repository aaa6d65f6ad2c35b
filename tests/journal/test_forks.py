"""A fork may come while any thread is anywhere in an append."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chain_check import application_events, read_streams
from tests.journal.writing import finish, said, start_script

pytestmark = pytest.mark.processes

# Every tenth child logs; the others end at once, so that the forks come close together.
FORKS = """
    import os, sys, threading, warnings
    from pathlib import Path
    from otel_audit.settings import Durability
    from tests.journal.writing import a_journal, append

    warnings.simplefilter("ignore")  # newer Pythons warn of a fork with threads, which is what is tested
    sys.setswitchinterval(1e-4)  # more places to fork at, and no long wait for the lock that is contended
    journal = a_journal(Path(sys.argv[1]), durability=Durability(sys.argv[4]))
    forkers, forks = int(sys.argv[2]), int(sys.argv[3])
    stop = threading.Event()
    acknowledged = []

    def write(index):
        number = 0
        while not stop.is_set():
            receipt = append(journal, f"{index}-{number}")
            if receipt.durable:
                acknowledged.append(receipt.event_id)
            number += 1
            if number % 20 == 0:
                stop.wait(0.001)

    def fork(index):
        for number in range(forks):
            child = os.fork()
            if child == 0:
                if number % 10 == 0:
                    append(journal, f"child-{index}-{number}")
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        after = append(journal, f"forker-{index}")
        assert after.durable, "the thread that forked is taken for one that is inside an append"

    writers = [threading.Thread(target=write, args=(index,)) for index in range(4)]
    threads = [threading.Thread(target=fork, args=(index,)) for index in range(forkers)]
    for thread in writers + threads:
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    for thread in writers:
        thread.join()
    journal.close()
    print(*acknowledged, flush=True)
"""


@pytest.mark.parametrize(
    ("forkers", "forks", "durability"),
    [(1, 500, "os"), (2, 250, "os"), (2, 100, "fsync")],
    ids=["one thread forks", "two threads fork", "each event is synced"],
)
def test_forks_while_threads_log_neither_deadlock_nor_break_a_chain(
    tmp_path: Path, forkers: int, forks: int, durability: str
) -> None:
    process = start_script(FORKS, tmp_path, forkers, forks, durability)
    acknowledged = said(process).split()
    finish(process)

    assert process.returncode == 0
    ids = [each["event_id"] for each in application_events(tmp_path)]
    assert len(ids) == len(set(ids))
    children = {f"child-{index}-{number}" for index in range(forkers) for number in range(0, forks, 10)}
    assert children <= set(ids)
    assert set(acknowledged) <= set(ids)
    assert {f"forker-{index}" for index in range(forkers)} <= set(ids)
    assert len(acknowledged) > 100
    assert len(read_streams(tmp_path)) == 1 + len(children)


INTERRUPTED = """
    import asyncio, ctypes, logging, os, signal, sys, threading, warnings
    from functools import partial
    from pathlib import Path

    warnings.simplefilter("ignore")
    # In C, behind the hooks of the standard library and before those of the journal: nothing of Python is in between.
    interrupt = partial(ctypes.PyDLL(None)["raise"], signal.SIGINT)
    when = sys.argv[2]
    if when == "afterwards":
        os.register_at_fork(after_in_parent=interrupt)
    from tests.journal.writing import a_journal, append

    journal = a_journal(Path(sys.argv[1]))
    append(journal, "before")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    writing, write_on = threading.Event(), threading.Event()
    write = os.write

    def slow_write(descriptor, data):
        if b"slow" in bytes(data):
            writing.set()
            write_on.wait(30)
        return write(descriptor, data)

    def log_in_a_thread(name):
        thread = threading.Thread(target=append, args=(journal, name), daemon=True)
        thread.start()
        return thread

    if when == "while it waits":
        os.write = slow_write
        log_in_a_thread("slow")
        writing.wait(30)

        def stop(signum, frame):
            write_on.set()
            raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        child = os.fork()
        if child == 0:
            os._exit(0)
    except KeyboardInterrupt:
        pass
    thread = log_in_a_thread("another thread")
    thread.join(10)
    assert not thread.is_alive(), "the journal is locked for ever"
    assert append(journal, "this thread").durable, "the thread is taken for one that is inside an append"
    journal.close()
    print("over", flush=True)
"""


@pytest.mark.parametrize("when", ["while it waits", "afterwards"])
def test_a_fork_that_is_interrupted_locks_no_journal(tmp_path: Path, when: str) -> None:
    process = start_script(INTERRUPTED, tmp_path, when)
    assert said(process) == "over"
    finish(process)

    ids = {each["event_id"] for each in application_events(tmp_path)}
    assert {"before", "another thread", "this thread"} <= ids
    assert not list(tmp_path.glob("*.lock"))
