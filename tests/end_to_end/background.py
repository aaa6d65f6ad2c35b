"""A thread of a service that logs on and on, also while its process forks or ends."""

from __future__ import annotations

import os
import threading
import time

from otel_audit import AuditEvent, AuditLogger

__all__ = ["log_in_the_background"]


def log_in_the_background(audit: AuditLogger) -> None:
    """Log until the process is gone, when `SERVICE_LOGS_TO` names a file for the ids that were acknowledged."""
    path = os.environ.get("SERVICE_LOGS_TO")
    if path is not None:
        acknowledged = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        threading.Thread(target=_log_for_ever, args=(audit, acknowledged), daemon=True).start()


def _log_for_ever(audit: AuditLogger, acknowledged: int) -> None:
    while True:
        receipt = audit.log(AuditEvent(event_type="background", outcome="success"))
        if receipt is not None and receipt.durable:
            os.write(acknowledged, f"{receipt.event_id}\n".encode())
        time.sleep(0.001)
