"""A pool of processes for the tests, of which each logs. Prints the ids that were acknowledged, and the pids.

Usage: `python -m tests.end_to_end.pool_service fork|spawn|forkserver close|terminate`: how the pool is ended.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys

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


def main(how: str, end: str) -> None:
    acknowledged = [call(-1)]
    with multiprocessing.get_context(how).Pool(WORKERS) as pool:
        acknowledged += pool.map(call, range(TASKS), chunksize=5)
        if end == "close":
            pool.close()
            pool.join()
    acknowledged.append(call(TASKS))
    print(json.dumps(acknowledged))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
