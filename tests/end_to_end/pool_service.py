"""A pool of processes for the tests, of which each logs. Prints the ids that were acknowledged, and the pids.

Usage: `python -m tests.end_to_end.pool_service fork|spawn|forkserver close|terminate|shutdown`: how its processes are
started, and how they are ended: those of a `Pool` by two ways, those of an executor by the third.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor

import otel_audit
from otel_audit import AuditEvent

TASKS = 300
WORKERS = 3
audit = otel_audit.configure()


def call(number: int) -> tuple[str, int]:
    receipt = audit.log(AuditEvent(event_type="task", outcome="success", request_id=str(number)))
    assert receipt is not None
    assert receipt.event_id is not None
    return receipt.event_id, os.getpid()


def called(how: str, end: str) -> list[tuple[str, int]]:
    context = multiprocessing.get_context(how)
    if end == "shutdown":
        with ProcessPoolExecutor(WORKERS, mp_context=context) as executor:
            return list(executor.map(call, range(TASKS), chunksize=5))
    with context.Pool(WORKERS) as pool:
        acknowledged = pool.map(call, range(TASKS), chunksize=5)
        if end == "close":
            pool.close()
            pool.join()
    return acknowledged


def main(how: str, end: str) -> None:
    print(json.dumps([call(-1), *called(how, end), call(TASKS)]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
