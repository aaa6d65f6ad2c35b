"""A fork may come while any thread is anywhere in an append."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chain_check import application_events, read_streams
from tests.journal.writing import finish, said, start_script

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


@pytest.mark.timeout(150)
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
