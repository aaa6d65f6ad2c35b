"""A service that logs from eight threads: `python -m tests.end_to_end.proven_service EVENTS ENDING`.

`well`: it closes after so many events. `killed`: its threads go on after so many, slowly, until somebody kills it.
`forked`: it forks while its threads log, and both processes log so many and close.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from itertools import count

import otel_audit
from otel_audit import AuditEvent, AuditPrincipal

THREADS = 8


def main(events: int, ending: str) -> None:
    audit = otel_audit.configure()
    numbers = count(1)  # whose `next` is one step for all threads
    has_begun = threading.Event()

    def log() -> None:
        while (number := next(numbers)) <= events or ending == "killed":
            principal = AuditPrincipal(username=f"user-{number % 7}")
            audit.log(AuditEvent(event_type="order.read", outcome="success", principal=principal, detail=f"{number}"))
            has_begun.set()
            if number > events:
                time.sleep(0.01)

    def started() -> list[threading.Thread]:
        threads = [threading.Thread(target=log) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        return threads

    threads = started()
    child = None
    if ending == "forked":
        has_begun.wait()
        child = os.fork()
        if child == 0:  # none of the threads is here
            numbers = count(1)
            threads = started()
    for thread in threads:
        thread.join()
    audit.close()
    if child:
        _, status = os.waitpid(child, 0)
        assert status == 0


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
