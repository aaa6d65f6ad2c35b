"""The exceptions of this package, and a description of any exception that gives away no secret.

AuditError
├── ConfigError           a setting is wrong (a ValueError too)
├── JournalUnreadable     a segment is of an unknown format
├── LedgerBusy            another process had its turn at the ledger
└── AuditUnavailable      the event may not be durable
    ├── JournalFull
    └── JournalUnwritable
"""

from __future__ import annotations

import errno
import os
from typing import Final

__all__ = [
    "AuditError",
    "AuditUnavailable",
    "ConfigError",
    "JournalFull",
    "JournalUnreadable",
    "JournalUnwritable",
    "KeyUnusable",
    "LedgerBusy",
    "NoteMalformed",
    "ProofInvalid",
    "ProofUnavailable",
    "SignatureInvalid",
    "described",
    "is_stop",
    "remedy_of",
]

_REMEDIES: Final = {
    errno.EMFILE: "raise the limit of open files (LimitNOFILE=, ulimit -n), or find what leaves them open",
    errno.ENFILE: "raise the limit of open files of the machine (fs.file-max)",
    errno.EFBIG: "raise the limit of the size of a file (LimitFSIZE=, ulimit -f)",
    errno.EDQUOT: "raise the quota of this user, or remove some of its files",
    errno.EROFS: "mount it writable again, after a look at the kernel's log, or set OTEL_AUDIT_DIR to another volume",
    errno.EIO: "replace the disk, or set OTEL_AUDIT_DIR to another volume",
    errno.ENOSPC: "free space and inodes (df, df -i), or set OTEL_AUDIT_DIR to another volume",
}


class AuditError(Exception):
    """The base of every exception that this package raises on purpose."""


class ConfigError(AuditError, ValueError):
    """A setting has a value that is not allowed, or a name that does not exist. Nothing was started."""


class JournalUnreadable(AuditError):
    """A segment has a format that this version does not know. It was not read, sent or removed."""


class AuditUnavailable(AuditError):
    """The event may not be durable.

    If `in_journal` is true, its line is in the chain and will be delivered, unless the machine loses power first.
    """

    in_journal = False

    def told_of(self, what: str) -> str:
        """Return a notice that events are lost, or may be. `what` names them."""
        return f"{what} {'may not survive a loss of power' if self.in_journal else 'are lost'}: {self}"


class JournalFull(AuditUnavailable):
    """Nothing was written: there is no room for the line."""


class JournalUnwritable(AuditUnavailable):
    """Nothing was written: the journal's directory or file does not accept writes."""


class LedgerBusy(AuditError):
    """Another process had its turn at the ledger. Nothing was written; try again later."""


class KeyUnusable(AuditError):
    """A key is missing, malformed or readable by others. Nothing was signed with it."""


class NoteMalformed(AuditError, ValueError):
    """A signed note, a checkpoint or a key breaks its specification. Trust nothing in it."""


class SignatureInvalid(AuditError):
    """No trusted key signed a note, or a signature in it was not made by the key that it names."""


class ProofInvalid(AuditError):
    """A proof does not prove what it claims."""


class ProofUnavailable(AuditError):
    """No proof of an event can be made, because it is not signed yet or something that the proof needs is gone."""


def is_stop(error: BaseException | None) -> bool:
    """Return True if the work was stopped from outside: by a time-out or a cancellation, or a group of them."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_stop, error.exceptions))
    return isinstance(error, TimeoutError) or not isinstance(error, Exception | SystemExit | None)


def remedy_of(error: BaseException | None, otherwise: str) -> str:
    """Return what to do about a write that the system refused, or `otherwise` if the reason does not say."""
    return _REMEDIES.get(error.errno or 0, otherwise) if isinstance(error, OSError) else otherwise


def described(error: BaseException) -> str:
    """Return the message of one of our errors.

    For any other, return its class, the system's reason and where it was raised.

    Its message is left out, since it may hold a secret.
    """
    if isinstance(error, AuditError):
        return str(error)
    cause = f" ({os.strerror(error.errno)})" if isinstance(error, OSError) and error.errno else ""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    place = f" raised at {at.tb_frame.f_code.co_filename}:{at.tb_lineno}" if at is not None else ""
    return f"{type(error).__qualname__}{cause}{place}"
