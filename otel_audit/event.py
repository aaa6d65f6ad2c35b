"""What an audit event is.

The first thirteen fields of `AuditEvent` are those of Feast's audit logger, in its order and with its defaults, so
that its code and its log files work unchanged. All others are optional and left out of the line when unset.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, Field

__all__ = ["AuditAction", "AuditEvent", "AuditPrincipal", "AuditResource", "AuditSource", "Outcome", "PrincipalKind"]

Scalar = str | bool | int | float


class PrincipalKind(StrEnum):
    """What acted. Source: OTel audit draft (OTEP 0267), `audit.actor.type`."""

    USER = "user"
    SERVICE = "service"
    SYSTEM = "system"


class Outcome(StrEnum):
    """How it ended: derived from the stored word, for severity and attributes. The stored word is never changed."""

    SUCCESS = "success"
    FAILURE = "failure"
    DENIED = "denied"
    ERROR = "error"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"

    @classmethod
    def of(cls, word: object) -> Outcome:
        """The outcome that a stored word stands for; `UNKNOWN` for an empty or unknown one."""
        return _OUTCOME_BY_WORD.get(word, cls.UNKNOWN) if isinstance(word, str) else cls.UNKNOWN


_OUTCOME_BY_WORD = {
    **{outcome.value: outcome for outcome in Outcome},
    "allow": Outcome.SUCCESS,
    "deny": Outcome.DENIED,
    "mcp_error": Outcome.ERROR,
}


class AuditPrincipal(BaseModel):
    """Who acted. Only `id` and `issuer` identify: a user may be free to choose the name that `username` shows.

    The fields from `id` on are ours. Source: OpenID Connect Core 1.0, section 5.7: `sub` and `iss`.
    """

    username: str = ""
    roles: list[str] = Field(default_factory=list)
    auth_type: str = ""
    id: str | None = None
    issuer: str | None = None
    kind: PrincipalKind | None = None
    on_behalf_of: str | None = None


class AuditSource(BaseModel):
    """Where the request came from. `user_agent` is ours."""

    ip: str = ""
    transport: str = ""
    user_agent: str | None = None


class AuditAction(BaseModel):
    """What was asked for. `verb` (READ, CREATE, ...), `method` and `arguments_digest` (hex SHA-256) are ours."""

    mcp_tool: str = ""
    path: str = ""
    verb: str | None = None
    method: str | None = None
    arguments_digest: str | None = None


class AuditResource(BaseModel):
    """What it was done to."""

    type: str = ""
    name: str = ""
    actions: list[str] = Field(default_factory=list)


class AuditEvent(BaseModel):
    """One audit event: who did what, when, and how it ended.

    Mutable, and unknown fields are ignored, as in Feast. `event_type` and `outcome` are free words, stored as given.

    Source: Feast 0.67 `audit_logger.AuditEvent`; the fields from `event_id` on are ours, after OTEP 0267.
    """

    event_type: str
    timestamp: str = ""
    request_id: str = ""
    trace_id: str | None = None
    span_id: str | None = None
    jsonrpc_id: str | None = None
    principal: AuditPrincipal = Field(default_factory=AuditPrincipal)
    source: AuditSource = Field(default_factory=AuditSource)
    action: AuditAction = Field(default_factory=AuditAction)
    resource: AuditResource = Field(default_factory=AuditResource)
    outcome: str = ""
    duration_ms: float | None = None
    detail: str = ""
    event_id: str | None = Field(default=None, description="UUIDv7 of the event; made by the logger when unset.")
    trace_flags: int | None = Field(default=None, description="W3C trace flags of the active span.")
    status_code: int | None = Field(default=None, description="HTTP status code of the answer.")
    error_type: str | None = Field(default=None, description="Class name of the exception.")
    reason: str | None = Field(default=None, description="Why it was allowed or denied.")
    policy_id: str | None = Field(default=None, description="The rule that allowed or denied.")
    parent_id: str | None = Field(default=None, description="`event_id` of the event that this one belongs to.")
    attributes: dict[str, Scalar | list[Scalar]] | None = Field(
        default=None, description="Facts of your own: flat, scalar or list values."
    )
    redacted: list[str] | None = Field(default=None, description="Paths whose value was removed as a secret.")
    truncated: list[str] | None = Field(default=None, description="Paths whose value was cut to its cap.")

    def to_jsonl(self) -> str:
        """The event as one compact JSON object, unset fields left out. With Feast's fields only: Feast's bytes."""
        return self.model_dump_json(exclude_none=True)
