"""A service for the tests that leaves delivery to `otel-audit ship`.

Usage: `python -m tests.end_to_end.shipped_service`. It logs as many events as a line of its standard input says and
answers with its stream; the line `flush SECONDS` is answered with what `flush` and `stats` say.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import otel_audit
from otel_audit import AuditEvent, AuditLogger


def flushed(audit: AuditLogger, timeout_s: float) -> str:
    report = audit.flush(timeout_s=timeout_s)
    stats = audit.stats()
    return json.dumps({"report": asdict(report), "emitted": stats.emitted, "exported": stats.exported})


def logged(audit: AuditLogger, count: int) -> str:
    stream_id = None
    for _ in range(count):
        receipt = audit.log(AuditEvent(event_type="test", outcome="success"))
        assert receipt is not None
        assert receipt.durable
        stream_id = receipt.stream_id
    return str(stream_id)


def main() -> None:
    audit = otel_audit.configure()
    for line in sys.stdin:
        match line.split():
            case ["flush", timeout_s]:
                print(flushed(audit, float(timeout_s)), flush=True)
            case [count]:
                print(logged(audit, int(count)), flush=True)


if __name__ == "__main__":
    main()
