"""Who called an MCP server: what a verified token says, and apart from it what the client merely says of itself.

Only the token that the server's own verifier accepted for this very request is believed. All else that a client sends
(`_meta`, the name in its handshake) is recorded under `mcp.client.asserted_*`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, Final

from otel_audit.event import AuditPrincipal, AuditSource
from otel_audit.integrations.principals import principal_of_token

__all__ = ["asserted_by", "principal_of", "source_of", "token_attributes", "token_of_request"]

# The last step of a `_meta` key, in lower case, to what it claims.
_CLAIMS: Final = {
    **dict.fromkeys(("user", "user_id", "userid", "username", "sub", "subject", "principal", "enduser"), "user"),
    **dict.fromkeys(("agent", "agent_id", "agentid"), "agent"),
    **dict.fromkeys(("tenant", "tenant_id", "tenantid", "organization"), "tenant"),
    **dict.fromkeys(("session_id", "sessionid", "conversation_id"), "session"),
}
_MOST_CLAIMS: Final = 64
_MOST_CHARS: Final = 64  # of the end of a key: more than any claim has
_ASSERTED: Final = "mcp.client.asserted_"


def token_of_request(request: Any) -> Any:
    """The access token that was verified for this HTTP request; None where there was none.

    Read from the request and not from the SDK's ContextVar: in a session of SDK 1.x that one is of the first request.
    """
    scope = getattr(request, "scope", None)
    token = getattr(scope.get("user"), "access_token", None) if isinstance(scope, Mapping) else None
    # Other authentication than the SDK's may keep the text of a token under this name: that says nothing of the caller.
    return token if hasattr(token, "client_id") else None


def principal_of(token: Any) -> AuditPrincipal | None:
    """Whom a verified token names; None without a token."""
    return None if token is None else principal_of_token(token)


def token_attributes(token: Any) -> dict[str, Any]:
    """What else of a verified token is recorded: client, scopes and issuer. Never the token itself."""
    if token is None:
        return {}
    found = {
        "mcp.auth.client_id": _text(token.client_id),
        "mcp.auth.scopes": [_text(scope) for scope in token.scopes or ()],
        "mcp.auth.issuer": _text(_claims_of(token).get("iss")),
    }
    return {key: value for key, value in found.items() if value}


def asserted_by(meta: Mapping[str, Any], client: Any) -> dict[str, str]:
    """What the client says of itself, in `_meta` and in its handshake (`clientInfo`): not verified by anybody.

    Only the first entries of `_meta` are looked at: it may hold as many as fit into a request.
    """
    found: dict[str, str] = {}
    for key, value in itertools.islice(meta.items(), _MOST_CLAIMS):
        step = (
            str(key)[-_MOST_CHARS:].lower().replace("-", "_").replace("/", ".").removesuffix(".id").rpartition(".")[2]
        )
        if step in _CLAIMS and isinstance(value, str | int) and not isinstance(value, bool):
            found.setdefault(_ASSERTED + _CLAIMS[step], str(value))
    for name in ("name", "version"):
        if said := _text(getattr(client, name, None)):
            found[f"{_ASSERTED}{name}"] = said
    return found


def source_of(request: Any) -> AuditSource:
    """Where the request came from: the peer of the connection over HTTP; without HTTP, the process at the other end."""
    if request is None:
        return AuditSource(transport="mcp-stdio")
    peer = getattr(request, "client", None)
    return AuditSource(
        ip=peer.host if peer else "", transport="mcp-http", user_agent=request.headers.get("user-agent") or None
    )


def _claims_of(token: Any) -> Mapping[str, Any]:
    claims = getattr(token, "claims", None)
    return claims if isinstance(claims, Mapping) else {}


def _text(value: Any) -> str:
    return "" if value is None else str(value)
