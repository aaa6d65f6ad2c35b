"""The exception tree.

AuditError
├── ConfigError            a setting is wrong; nothing was started
├── JournalUnreadable      a segment is of a format that this version does not know; nothing of it was read
└── AuditUnavailable       the event is not known to be durable
    ├── JournalFull        nothing was written: there is no room
    └── JournalUnwritable  nothing was written: the directory or file does not accept writes
"""

from __future__ import annotations

__all__ = [
    "AuditError",
    "AuditUnavailable",
    "ConfigError",
    "JournalFull",
    "JournalUnreadable",
    "JournalUnwritable",
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
        """What is said on stderr of events, or of what they are called, that are lost or may be."""
        return f"{what} {'may not survive a loss of power' if self.in_journal else 'are lost'}: {self}"


class JournalFull(AuditUnavailable):
    """Nothing was written: there is no room for the line."""


class JournalUnwritable(AuditUnavailable):
    """Nothing was written: the journal's directory or file does not accept writes."""
