"""Keeps what an export causes out of the telemetry: no spans and no log records of our own calls."""

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
    """Inside, an instrumented HTTP or gRPC client makes no spans and no metrics of what it sends.

    Otherwise every export would be traced, and the traces of the export exported.
    """
    exporting = _exporting.set(True)
    token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
    try:
        yield
    finally:
        detach(token)
        _exporting.reset(exporting)


def is_exporting() -> bool:
    """True on a thread that is in an export of ours: what is logged there is about the export, and must not join it.

    OTel's key for suppressed instrumentation does not tell that: an application may set it around its own work.
    """
    return _exporting.get()


class _NotOfAnExport(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not is_exporting()


_not_of_an_export = _NotOfAnExport()


def keep_clients_quiet() -> None:
    """From now on the loggers of the HTTP and gRPC clients leave out what they say of an export.

    With the root logger at DEBUG and an OTel handler, each export would otherwise make the records of the next one, for
    ever. By each logger's own filters, because those of a parent are not asked for the records of its children.
    """
    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] in _CLIENTS:
            logging.getLogger(name).addFilter(_not_of_an_export)
