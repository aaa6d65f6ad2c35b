"""What may be said on stderr of an exception."""

from __future__ import annotations

from otel_audit.errors import AuditError

__all__ = ["described"]


def described(error: BaseException) -> str:
    """The text of one of our own; of any other the class and where it was raised: its message may hold a secret."""
    if isinstance(error, AuditError):
        return str(error)
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    place = f" raised at {at.tb_frame.f_code.co_filename}:{at.tb_lineno}" if at is not None else ""
    return f"{type(error).__qualname__}{place}"
