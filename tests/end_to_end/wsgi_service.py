"""A WSGI service for the tests: every request is one event, whose id the answer carries. `/ready` is no event."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import otel_audit
from otel_audit import AuditEvent
from tests.end_to_end.background import log_in_the_background

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["application"]

audit = otel_audit.configure()
log_in_the_background(audit)


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    headers = [("content-type", "text/plain")]
    if environ["PATH_INFO"] != "/ready":
        receipt = audit.log(AuditEvent(event_type="http.request", outcome="success"))
        assert receipt is not None
        assert receipt.event_id is not None
        headers.append(("event-id", receipt.event_id))
    start_response("200 OK", headers)
    return [str(os.getpid()).encode()]
