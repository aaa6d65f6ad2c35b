"""The exceptions of this package, and what may be told about any exception that ended some work.

AuditError
├── ConfigError           a setting is wrong (a ValueError too)
├── JournalUnreadable     a segment is of an unknown format
├── LedgerBusy            it was not this process's turn at the ledger
└── AuditUnavailable      the event is not known to be durable
    ├── JournalFull
    └── JournalUnwritable
"""

from __future__ import annotations

import os

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
]


class AuditError(Exception):
    """Anything that this package raises on purpose."""


class ConfigError(AuditError, ValueError):
    """A setting has a value that is not allowed, or a name that does not exist. Nothing was started."""


class JournalUnreadable(AuditError):
    """A segment is of a format that this version does not know: nothing of it was read, sent or removed."""


class AuditUnavailable(AuditError):
    """The event is not known to be durable.

    `in_journal`: its line is in the chain all the same and will be delivered, unless the machine loses power before.
    """

    in_journal = False

    def told_of(self, what: str) -> str:
        """Return the notice about events that are lost, or may be. `what` names them."""
        return f"{what} {'may not survive a loss of power' if self.in_journal else 'are lost'}: {self}"


class JournalFull(AuditUnavailable):
    """Nothing was written: there is no room for the line."""


class JournalUnwritable(AuditUnavailable):
    """Nothing was written: the journal's directory or file does not accept writes."""


class LedgerBusy(AuditError):
    """It was not this process's turn at the ledger: nothing was written, and it may be tried again."""


class KeyUnusable(AuditError):
    """A key is missing, may be read by others, or is none. Nothing was signed with it."""


class NoteMalformed(AuditError, ValueError):
    """A signed note, a checkpoint or a key is not written as its specification says. Nothing of it may be believed."""


class SignatureInvalid(AuditError):
    """No trusted key signed a note, or a signature in it is not of the key that it names."""


class ProofInvalid(AuditError):
    """A proof does not show what it is said to show."""


class ProofUnavailable(AuditError):
    """No proof of an event can be made: it is not signed yet, or what a proof would stand on is gone. It says which."""


def is_stop(error: BaseException | None) -> bool:
    """Return True if work was ended from outside: by a time-out, a cancellation of any library, or a group of them."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_stop, error.exceptions))
    return isinstance(error, TimeoutError) or not isinstance(error, Exception | SystemExit | None)


def described(error: BaseException) -> str:
    """Return the message of an error of ours; of any other its class, the system's reason and where it was raised.

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
