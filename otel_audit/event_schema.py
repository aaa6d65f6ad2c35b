"""The fields of an event by name, and its closed sets of words: everything about events that needs no model."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

__all__ = ["FIELDS", "Outcome", "PrincipalKind"]

# The fields of `AuditEvent`, in its order. A test compares both.
FIELDS: Final = (
    "event_type",
    "timestamp",
    "request_id",
    "trace_id",
    "span_id",
    "jsonrpc_id",
    "principal",
    "source",
    "action",
    "resource",
    "outcome",
    "duration_ms",
    "detail",
    "event_id",
    "trace_flags",
    "status_code",
    "error_type",
    "reason",
    "policy_id",
    "parent_id",
    "attributes",
    "tags",
    "redacted",
    "truncated",
)


class PrincipalKind(StrEnum):
    """The kind of actor. Source: OTel audit draft (OTEP 0267), `audit.actor.type`."""

    USER = "user"
    SERVICE = "service"
    SYSTEM = "system"


class Outcome(StrEnum):
    """The result of an event, from which severity and attributes follow. The word in the event itself never changes."""

    SUCCESS = "success"
    FAILURE = "failure"
    DENIED = "denied"
    ERROR = "error"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"

    @classmethod
    def of(cls, word: object) -> Outcome:
        """Return the outcome that a stored word stands for, `UNKNOWN` if the word is empty or unknown."""
        return _OUTCOME_BY_WORD.get(word, cls.UNKNOWN) if isinstance(word, str) else cls.UNKNOWN


_OUTCOME_BY_WORD = {
    **{outcome.value: outcome for outcome in Outcome},
    "allow": Outcome.SUCCESS,
    "deny": Outcome.DENIED,
    "mcp_error": Outcome.ERROR,
}
