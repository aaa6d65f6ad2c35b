"""Loggers with handlers for the length of a test, and the events that come of them."""

from __future__ import annotations

import logging
import logging.config
import logging.handlers
import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from otel_audit.integrations.stdlib_logging import AuditHandler
from tests.chain_check import application_events
from tests.recording import recorder

__all__ = ["every_byte", "logger_with", "queued", "recorded"]


@contextmanager
def logger_with(*handlers: logging.Handler, name: str = "shop") -> Iterator[logging.Logger]:
    """A logger with these handlers and no others, as it was before at the end."""
    logger = logging.getLogger(name)
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield logger
    finally:
        logger.setLevel(level)
        logger.propagate = propagate
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


@contextmanager
def queued(handler: logging.Handler, *filters: logging.Filter) -> Iterator[logging.Handler]:
    """A queue in front of the handler, empty at the end."""
    records: queue.SimpleQueue[Any] = queue.SimpleQueue()
    front = logging.handlers.QueueHandler(records)
    for each in filters:
        front.addFilter(each)
    listener = logging.handlers.QueueListener(records, handler, respect_handler_level=True)
    listener.start()
    try:
        yield front
    finally:
        listener.stop()


def recorded(directory: Path, log: Callable[[logging.Logger], object], *, name: str = "shop") -> list[dict[str, Any]]:
    """The events of what is logged through a handler with a journal."""
    with recorder(directory) as audit, logger_with(AuditHandler(audit), name=name) as logger:
        log(logger)
    return application_events(directory)


def every_byte(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())
