"""What an exception says: of the outcome of the work that it ended, and on stderr."""

from __future__ import annotations

import os

from otel_audit.errors import AuditError

__all__ = ["described", "is_stop"]


def is_stop(error: BaseException | None) -> bool:
    """Whether work was ended from outside: a time-out, or a cancellation by whatever library, or a group of those."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_stop, error.exceptions))
    return isinstance(error, TimeoutError) or not isinstance(error, Exception | SystemExit | None)


def described(error: BaseException) -> str:
    """The text of one of our own; of any other the class, what the system says, and where it was raised.

    Its own message may hold a secret.
    """
    if isinstance(error, AuditError):
        return str(error)
    cause = f" ({os.strerror(error.errno)})" if isinstance(error, OSError) and error.errno else ""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    place = f" raised at {at.tb_frame.f_code.co_filename}:{at.tb_lineno}" if at is not None else ""
    return f"{type(error).__qualname__}{cause}{place}"
