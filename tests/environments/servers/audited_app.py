"""A WSGI application whose requests are events: 200 when its event is durable. `/flush` delivers before it answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import otel_audit

audit = otel_audit.configure()


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    receipt = audit.log_http_request(method="GET", path=environ["PATH_INFO"], status_code=200)
    is_done = receipt is not None and receipt.durable
    if environ["PATH_INFO"] == "/flush":
        is_done = audit.flush(timeout_s=30).complete and is_done
    start_response("200 OK" if is_done else "500 Not Durable", [("content-length", "0")])
    return [b""]
