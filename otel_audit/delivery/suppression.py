"""Keep our own exports out of the telemetry, so that they cause neither spans nor log records."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# The API has no public name for this key; this module is the only one that imports it.
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, detach, set_value

__all__ = ["instrumentation_suppressed", "is_exporting", "keep_clients_quiet"]

_exporting: ContextVar[bool] = ContextVar("otel_audit_exporting", default=False)
_CLIENTS = ("urllib3", "requests", "grpc")


@contextmanager
def instrumentation_suppressed() -> Iterator[None]:
    """Inside the block, keep instrumented HTTP and gRPC clients from making spans and metrics.

    Otherwise every export would be traced, and its trace exported in turn.
    """
    exporting = _exporting.set(True)
    token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
    try:
        yield
    finally:
        detach(token)
        _exporting.reset(exporting)


def is_exporting() -> bool:
    """Return True on a thread that is inside an export of ours, whose log records must not be exported in turn.

    OTel's key for suppressed instrumentation is no substitute, since an application may set it around its own work.
    """
    return _exporting.get()


class _NotOfAnExport(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not is_exporting()


_not_of_an_export = _NotOfAnExport()


def keep_clients_quiet() -> None:
    """Keep the loggers of the HTTP and gRPC clients silent during exports, from now on.

    Otherwise, with the root logger at DEBUG and an OTel handler, each export would cause the records of the next one,
    for ever. Each logger gets the filter itself, because filters of a parent do not see the records of its children.
    """
    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] in _CLIENTS:
            logging.getLogger(name).addFilter(_not_of_an_export)
