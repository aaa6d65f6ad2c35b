"""Record one request of an MCP client while it runs, in the same way for every SDK.

A `Call` holds the SDK's knowledge of the request. `recorded` runs it, and writes its event when it ends. The caller is
known only from the token that the server's own verifier accepted for this very request. Anything else that a client
sends (`_meta`, the name in its handshake) is recorded under `mcp.client.asserted_*`.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any, Final, TypeVar

import msgspec
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Span, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_audit import ids
from otel_audit.errors import AuditUnavailable
from otel_audit.event import AuditAction, AuditEvent, AuditPrincipal, AuditResource, AuditSource
from otel_audit.integrations import principals
from otel_audit.integrations.asgi.exchange import Exchange, carrier_of
from otel_audit.integrations.asgi.scope import path_in, traceparent_in
from otel_audit.integrations.lease import Instrumentation
from otel_audit.integrations.parent import parent_id, within
from otel_audit.integrations.principals import principal_of_token
from otel_audit.logger import AuditLogger, mcp_audit_request_id
from otel_audit.notices import Notices
from otel_audit.operation import Operation, operation
from otel_audit.records.attributes import TRACEPARENT

__all__ = [
    "EVENT_TYPES",
    "REFUSAL",
    "Call",
    "FindPrincipal",
    "asserted_by",
    "current_call",
    "digest_of",
    "name_error",
    "note_contexts",
    "recorded",
    "set_meanwhile",
    "source_of",
    "token_attributes",
    "token_of_request",
]


T = TypeVar("T")
V = TypeVar("V")

REFUSAL: Final = "The call could not be recorded in the audit trail, and was refused."
"""The error that a client gets if the loss rule is `closed`. It reveals nothing about the server's disk."""

_current_call: ContextVar[AuditEvent | None] = ContextVar("otel_audit_mcp_event", default=None)

# The last part of a `_meta` key, in lower case, and the name of its claim.
_CLAIMS: Final = {
    **dict.fromkeys(("user", "user_id", "userid", "username", "sub", "subject", "principal", "enduser"), "user"),
    **dict.fromkeys(("agent", "agent_id", "agentid"), "agent"),
    **dict.fromkeys(("tenant", "tenant_id", "tenantid", "organization"), "tenant"),
    **dict.fromkeys(("session_id", "sessionid", "conversation_id"), "session"),
}
_MOST_CLAIMS: Final = 64
_MOST_KEY_CHARS: Final = 64  # taken from the end of a key; longer than the name of any claim
_ASSERTED: Final = "mcp.client.asserted_"


def token_of_request(request: Any) -> Any:
    """Return the access token that was verified for this HTTP request, or None.

    It comes from the request and not from the SDK's ContextVar, which in a session of SDK 1.x holds the token of the
    first request.
    """
    scope = getattr(request, "scope", None)
    token = getattr(scope.get("user"), "access_token", None) if isinstance(scope, Mapping) else None
    # Authentication other than the SDK's may keep the text of a token under this name, which does not name a caller.
    return token if hasattr(token, "client_id") else None


def token_attributes(token: Any) -> dict[str, Any]:
    """Return further attributes of a verified token: client, scopes and issuer, but never the token itself."""
    if token is None:
        return {}
    found = {
        "mcp.auth.client_id": _text(token.client_id),
        "mcp.auth.scopes": [_text(scope) for scope in token.scopes or ()],
        "mcp.auth.issuer": _text(_claims_of(token).get("iss")),
    }
    return {key: value for key, value in found.items() if value}


def asserted_by(meta: Mapping[str, Any], client: Any) -> dict[str, str]:
    """Return the client's own, unverified claims in `_meta` and in its handshake (`clientInfo`).

    Only the first entries of `_meta` are examined, since a request may hold any number of them.
    """
    found: dict[str, str] = {}
    for key, value in itertools.islice(meta.items(), _MOST_CLAIMS):
        step = (
            str(key)[-_MOST_KEY_CHARS:]
            .lower()
            .replace("-", "_")
            .replace("/", ".")
            .removesuffix(".id")
            .rpartition(".")[2]
        )
        if step in _CLAIMS and isinstance(value, str | int) and not isinstance(value, bool):
            found.setdefault(_ASSERTED + _CLAIMS[step], str(value))
    for name in ("name", "version"):
        if said := _text(getattr(client, name, None)):
            found[f"{_ASSERTED}{name}"] = said
    return found


def source_of(request: Any) -> AuditSource:
    """Return the source of the request: over HTTP the peer of the connection, else the process at the other end."""
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


EVENT_TYPES: Final = {
    "tools/call": "mcp.tools.call",
    "resources/read": "mcp.resources.read",
    "prompts/get": "mcp.prompts.get",
}
"""The recorded methods, with the event type of each."""

FindPrincipal = Callable[[Any], object]
"""A function that names the caller of an HTTP request (Starlette's; None on stdio) without a verified token.

`principals.principal_of` reads its result: a principal, a name, claims, a user object, or None.
"""

_CONTEXT: Final = "otel_audit.context"
# A `traceparent` has 55 characters, and later versions may append some. OpenTelemetry's parser would scan a long one
# many times. Source: W3C Trace Context, 3.2.4 and 3.3.1.5.
_MOST_CHARS: Final = {"traceparent": 128, "tracestate": 512}
_W3C: Final = TraceContextTextMapPropagator()
_PRINCIPALS: Final = principals.Principals(None, Notices())


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """The SDK's knowledge of one request.

    `target` is the name of the tool or prompt, or the URI of the resource. `request` is the HTTP request that carried
    it, None on stdio. `token` is the access token that was verified for it. `client` is the client's description of
    itself. `inherited` is set if the SDK runs the call in a task that another request began: it is the span of that
    request, and the context of the task does not belong to this call. `is_local` means that code of this process made
    the call, not a client.
    """

    method: str
    target: str
    arguments: Any = None
    meta: Mapping[str, Any] = msgspec.field(default_factory=dict)
    jsonrpc_id: str | None = None
    request: Any = None
    token: Any = None
    client: Any = None
    protocol_version: str = ""
    inherited: Span | None = None
    is_local: bool = False

    @property
    def carrier(self) -> Exchange | None:
        """The exchange of the HTTP request that carried the call, if the ASGI middleware records it."""
        return None if self.request is None else carrier_of(self.request.scope)

    def principal(self, find: FindPrincipal | None) -> AuditPrincipal | None:
        """Return the caller according to the token, else to `find`, else to the application around the server.

        Raises what `find` raises.
        """
        if self.token is not None:
            return principal_of_token(self.token)
        verified = None if find is None else principals.principal_of(find(self.request))
        if verified is not None or self.request is None:
            return verified
        told, found = (None, None) if self.carrier is None else (self.carrier.told, self.carrier.found)
        return told or _PRINCIPALS.of(self.request.scope, found)

    def operation(self, audit: AuditLogger, principal: AuditPrincipal | None, span: Span) -> Operation:
        """Return the operation for this call, whose event belongs to the span."""
        carrier = self.carrier
        owns_task = self.inherited is None
        inherited = mcp_audit_request_id.get() if owns_task else None
        parent = parent_id() if owns_task else None
        begun = operation(
            audit.recorder,
            EVENT_TYPES[self.method],
            context=set_span_in_context(span, Context()),
            principal=principal,
            source=self._source(),
            action=self._action(),
            resource=self._resource(),
            request_id=inherited or (carrier.request_id if carrier else audit.new_request_id()),
            attributes=self._attributes(span) or None,
        )
        begun.event.jsonrpc_id = self.jsonrpc_id
        begun.event.event_id = str(ids.new_id())
        begun.event.parent_id = parent or (carrier.own_id if carrier else None)
        return begun

    def _source(self) -> AuditSource:
        if self.is_local:
            return AuditSource(transport="mcp-local")
        source = source_of(self.request)
        if self.carrier is not None:
            source.ip = self.carrier.ip  # the client's address, even behind trusted proxies
        return source

    def _action(self) -> AuditAction:
        is_tool = self.method == "tools/call"
        return AuditAction(
            mcp_tool=self.target if is_tool else "",
            path=self._path(),
            arguments_digest=None if self.method == "resources/read" else digest_of(self.arguments),
        )

    def _path(self) -> str:
        """Return the path from the scope, since Starlette's `url` raises if the query is not UTF-8."""
        return "" if self.request is None else path_in(self.request.scope)

    def _resource(self) -> AuditResource | None:
        match self.method:
            case "resources/read":
                return AuditResource(type="mcp.resource", name=self.target)
            case "prompts/get":
                return AuditResource(type="mcp.prompt", name=self.target)
        return None

    def _attributes(self, span: Span) -> dict[str, Any]:
        known = {"mcp.protocol.version": self.protocol_version} if self.protocol_version else {}
        if self.request is not None and span is INVALID_SPAN and (claimed := traceparent_in(self.request.scope)):
            known[TRACEPARENT] = claimed
        return {**known, **token_attributes(self.token), **asserted_by(self.meta, self.client)}

    @contextlib.contextmanager
    def trace(self) -> Iterator[Span]:
        """Yield the span of the event. Inside the block, the call runs under the span of its own request.

        The event belongs to the span that an instrumentation began for the call, else to that of `_meta.traceparent`,
        else to that of the request. The work of the call belongs to the first or the last of these, since it is part of
        the service's own trace, and to the second only if the service traces nothing. Source: ours; for `_meta` the MCP
        specification.
        """
        span, context = self._span_and_context()
        token = None if context is None else otel_context.attach(context)
        try:
            yield span
        except GeneratorExit:
            token = None  # ended with its event loop, in another context, where OTel could not detach it and would log
            raise
        finally:
            if token is not None:
                otel_context.detach(token)

    def _span_and_context(self) -> tuple[Span, Context | None]:
        """Return the span of the event, and the context to run the call in, or None for the current one."""
        here, said = get_current_span(), self._said()
        if self.request is None:
            if said is None or _is_one_trace(here, said):
                return here, None
            return said, set_span_in_context(said)
        context: Context | None = self.request.scope.get(_CONTEXT)
        if context is None and self.inherited is not None:
            context = Context()  # the context of this task belongs to another request
        of_request = get_current_span(context)
        if _is_of_this_process(here) and here is not self.inherited and here is not of_request:
            return here, None
        if self.inherited is None:
            context = None
        if _is_of_this_process(of_request):
            return said or of_request, context
        # If nothing is traced here, the active span may be one that a header names, which is not believed.
        return (INVALID_SPAN, context) if said is None else (said, set_span_in_context(said, context))

    def _said(self) -> Span | None:
        """Return the span that the caller names. Its baggage is dropped, since the client could claim anything."""
        said = {key: self.meta.get(key) for key in _MOST_CHARS}
        carrier = {key: text for key, text in said.items() if isinstance(text, str) and len(text) <= _MOST_CHARS[key]}
        span = get_current_span(_W3C.extract(carrier, Context()))
        return span if span.get_span_context().is_valid else None


def note_contexts(instrumentation: Instrumentation) -> None:
    """Make each HTTP request that carries a message keep its OTel context, for the call in that message.

    SDK 1.x runs a call in the context of the first request of its session, so the context of the carrying request would
    be lost. In SDK 2.x, a span begun for the call hides that of the request. Both SDKs create the metadata changed here
    in the task of the request, over each of their transports and those of others.
    """
    from mcp.shared.message import ServerMessageMetadata

    def note(original: Callable[..., None], metadata: Any, *args: Any, **kwargs: Any) -> None:
        original(metadata, *args, **kwargs)
        scope = getattr(getattr(metadata, "request_context", None), "scope", None)
        if isinstance(scope, MutableMapping):
            scope[_CONTEXT] = otel_context.get_current()

    instrumentation.wrap(ServerMessageMetadata, "__init__", note)


def _is_of_this_process(span: Span) -> bool:
    ids = span.get_span_context()
    return ids.is_valid and not ids.is_remote


def _is_one_trace(span: Span, other: Span) -> bool:
    return span.get_span_context().trace_id == other.get_span_context().trace_id


def digest_of(arguments: Any) -> str | None:
    """Return the hex SHA-256 of the arguments as canonical JSON: keys sorted, no spaces, UTF-8.

    No arguments count as `{}`. Return None for arguments that JSON cannot represent. Source: ours; equal to RFC 8785
    for objects of strings, small integers and booleans.
    """
    try:
        text = json.dumps(arguments or {}, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):  # odd keys, a circular reference, too deep
        return None
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def current_call() -> AuditEvent | None:
    """Return the event of the current MCP call, even inside a request that it makes, or None outside of a call."""
    return _current_call.get()


def name_error(event: AuditEvent, error: BaseException) -> None:
    """Put the code of a JSON-RPC error into the event. For other exceptions the class is enough: see `Operation`."""
    code = getattr(getattr(error, "error", None), "code", None)
    if isinstance(code, int):
        event.error_type = event.error_type or str(code)  # Source: OTel MCP conventions, `error.type`


async def recorded(
    audit: AuditLogger,
    call: Call,
    run: Callable[[], Awaitable[T]],
    *,
    refusal: Callable[[str], Exception],
    find_principal: FindPrincipal | None = None,
    on_error: Callable[[AuditEvent, BaseException], None] = name_error,
) -> T:
    """Run the call, record one event when it ends, however it ends, and return the result of `run`.

    `on_error` fills in the event after an exception. If the loss rule is `closed` and the call cannot be recorded, it
    does not run, and `refusal` makes the error for the client. Nor does it run if `find_principal` raises.
    """
    principal, doubt = _principal(call, find_principal)
    with call.trace() as span:
        operation = call.operation(audit, principal, span)
        event = operation.event
        try:
            async with operation:
                with _inside(event, event.event_id if operation.begun is None else operation.begun.event_id):
                    try:
                        if doubt is not None:
                            raise doubt
                        answer = await run()
                    except BaseException as error:
                        on_error(event, error)
                        raise
                    _answered(event, answer)
                return answer
        except AuditUnavailable as error:
            raise refusal(REFUSAL) from error


def _principal(call: Call, find: FindPrincipal | None) -> tuple[AuditPrincipal | None, Exception | None]:
    """Return the caller, or the exception if finding it failed, since such a call is recorded too."""
    try:
        return call.principal(find), None
    except Exception as error:
        return None, error


@contextlib.contextmanager
def set_meanwhile(variable: ContextVar[V], value: V) -> Iterator[None]:
    """Give the variable this value inside the block."""
    token = variable.set(value)
    try:
        yield
    finally:
        # A coroutine discarded with its event loop ends in another context, where there is nothing to restore.
        with contextlib.suppress(ValueError):
            variable.reset(token)


@contextlib.contextmanager
def _inside(event: AuditEvent, own_id: str | None) -> Iterator[None]:
    """Make events recorded inside the block belong to this call."""
    request_id = set_meanwhile(mcp_audit_request_id, event.request_id)
    with set_meanwhile(_current_call, event), request_id, within(own_id, lambda: event):
        yield


def _answered(event: AuditEvent, answer: Any) -> None:
    """Fill in the outcome from the result. Source: MCP, "Error Handling" of tools: an error result is the tool's."""
    if _said(answer, "isError", "is_error") is True:
        event.outcome = event.outcome or "mcp_error"
        event.error_type = event.error_type or "tool_error"  # Source: OTel MCP conventions, `error.type`
        return
    # FastMCP wraps a result that asks the client for more input.
    kind = _said(getattr(answer, "input_required", answer), "resultType", "result_type")
    if isinstance(kind, str) and kind != "complete":
        event.outcome = event.outcome or kind  # `input_required`: neither done nor failed yet
    elif _said(answer, "task", "task") is not None:
        event.outcome = event.outcome or "task_created"


def _said(answer: Any, alias: str, name: str) -> Any:
    """Return a value from a result, which is either a mapping in wire format or a model of either SDK."""
    if isinstance(answer, dict):
        return answer.get(alias)
    return getattr(answer, alias, getattr(answer, name, None))
