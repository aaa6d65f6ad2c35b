"""A WSGI application that knows nothing of this package: its requests are log records of the plain OTel API."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from opentelemetry._logs import get_logger

logger = get_logger("plain")


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    logger.emit(event_name="http.request", body=environ["PATH_INFO"])
    start_response("200 OK", [("content-length", "0")])
    return [b""]
