"""One request of an MCP client, and the event that it becomes."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.propagate import extract
from opentelemetry.trace import INVALID_SPAN, Span, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_audit import draft
from otel_audit.event import AuditAction, AuditPrincipal, AuditResource, AuditSource
from otel_audit.integrations import principals
from otel_audit.integrations.asgi_exchange import Exchange, exchange_of
from otel_audit.integrations.mcp_caller import asserted_by, principal_of, source_of, token_attributes
from otel_audit.integrations.parent import parent_id
from otel_audit.logger import AuditLogger, mcp_audit_request_id
from otel_audit.notices import Notices
from otel_audit.operation import Operation

__all__ = ["EVENT_TYPES", "Call", "FindPrincipal", "digest_of"]

EVENT_TYPES: Final = {
    "tools/call": "mcp.tools.call",
    "resources/read": "mcp.resources.read",
    "prompts/get": "mcp.prompts.get",
}
"""The methods that are recorded, and the type of the event of each."""

FindPrincipal = Callable[[Any], object]
"""From the HTTP request (Starlette's; None on stdio) to who called, where no verified token says it.

What it gives is read as `principals.principal_of` does: a principal, a name, claims, an object of a user, or None.
"""

_W3C: Final = TraceContextTextMapPropagator()
_PRINCIPALS: Final = principals.Principals(None, Notices())


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What an SDK knows of one request.

    `target` is the tool's or prompt's name, or the resource's URI. `request` is the HTTP request that carried it, None
    on stdio. `token` is the access token that was verified for it. `client` is what the client said it is. `owns_task`
    is False where the SDK runs the call in a task that another request began: its span is not this call's then.
    `is_local`: no client asked, but code of the same process.
    """

    method: str
    target: str
    arguments: Any = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    jsonrpc_id: str | None = None
    request: Any = None
    token: Any = None
    client: Any = None
    protocol_version: str = ""
    owns_task: bool = True
    is_local: bool = False

    @property
    def exchange(self) -> Exchange | None:
        """The HTTP request that carried it, as the ASGI middleware knows it, if there is that middleware."""
        return None if self.request is None else exchange_of(self.request.scope)

    def principal(self, find: FindPrincipal | None) -> AuditPrincipal | None:
        """Who called: by the token, else by `find`, else as the application around the server knows it.

        Raises what `find` raises.
        """
        verified = principal_of(self.token) or (None if find is None else principals.principal_of(find(self.request)))
        if verified is not None or self.request is None:
            return verified
        told = None if self.exchange is None else self.exchange.told
        return told or _PRINCIPALS.of(self.request.scope)

    def operation(self, audit: AuditLogger, principal: AuditPrincipal | None) -> Operation:
        """The operation whose event says all of this."""
        exchange = self.exchange
        inherited = mcp_audit_request_id.get() if self.owns_task else None
        parent = parent_id() if self.owns_task else None
        operation = audit.operation(
            EVENT_TYPES[self.method],
            principal=principal,
            source=self._source(),
            action=self._action(),
            resource=self._resource(),
            request_id=inherited or (exchange.request_id if exchange else audit.new_request_id()),
            attributes=self._attributes() or None,
        )
        operation.event.jsonrpc_id = self.jsonrpc_id
        operation.event.event_id = str(draft.new_id())
        operation.event.parent_id = parent or (exchange.own_id if exchange else None)
        return operation

    def _source(self) -> AuditSource:
        if self.is_local:
            return AuditSource(transport="mcp-local")
        source = source_of(self.request)
        if self.exchange is not None:
            source.ip = self.exchange.ip  # behind proxies that are trusted, that of the client
        return source

    def _action(self) -> AuditAction:
        is_tool = self.method == "tools/call"
        return AuditAction(
            mcp_tool=self.target if is_tool else "",
            path=self._path(),
            arguments_digest=None if self.method == "resources/read" else digest_of(self.arguments),
        )

    def _path(self) -> str:
        """From the scope: Starlette's `url` raises for a query that is no UTF-8."""
        path = "" if self.request is None else str(self.request.scope["path"])
        return path.replace("?", "%3F")  # decoded by the server: it is no begin of a query

    def _resource(self) -> AuditResource | None:
        match self.method:
            case "resources/read":
                return AuditResource(type="mcp.resource", name=self.target)
            case "prompts/get":
                return AuditResource(type="mcp.prompt", name=self.target)
        return None

    def _attributes(self) -> dict[str, Any]:
        version = {"mcp.protocol.version": self.protocol_version} if self.protocol_version else {}
        return {**version, **token_attributes(self.token), **asserted_by(self.meta, self.client)}

    @contextlib.contextmanager
    def trace(self) -> Iterator[None]:
        """The active span inside is one of this call's own trace, or none.

        `_meta.traceparent` counts before the headers of the request, and both before what the task inherited. A span
        that was begun for this call in the same trace stays.
        """
        span = self._span()
        token = None if span is None else otel_context.attach(set_span_in_context(span))
        try:
            yield
        except GeneratorExit:
            token = None  # thrown away with its event loop, in another context: OTel would log that it cannot go back
            raise
        finally:
            if token is not None:
                otel_context.detach(token)

    def _span(self) -> Span | None:
        """The span to make active; None to leave the one that is."""
        said = self._said()
        here = get_current_span()
        if said is None:
            return None if self.owns_task or here is INVALID_SPAN else INVALID_SPAN
        is_begun_for_it = here.get_span_context().trace_id == said.get_span_context().trace_id
        return None if self.owns_task and is_begun_for_it else said

    def _said(self) -> Span | None:
        """The caller's span. Baggage stays outside: it is the client's word."""
        carrier = {key: self.meta[key] for key in ("traceparent", "tracestate") if isinstance(self.meta.get(key), str)}
        return _valid(_W3C.extract(carrier, Context())) or (
            None if self.request is None else _valid(extract(dict(self.request.headers), Context()))
        )


def _valid(context: Context) -> Span | None:
    span = get_current_span(context)
    return span if span.get_span_context().is_valid else None


def digest_of(arguments: Any) -> str | None:
    """The hex SHA-256 of the arguments as canonical JSON: keys sorted, no spaces, UTF-8. No arguments count as `{}`.

    None for what JSON cannot hold. Source: ours; equal to RFC 8785 for objects of texts, small integers, booleans.
    """
    try:
        text = json.dumps(arguments or {}, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):  # a mapping of odd keys, a circle, too deep
        return None
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
