"""The user of a request, read when the request ends from wherever the application keeps it."""

from __future__ import annotations

import functools
import inspect
import time
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from enum import Enum
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from otel_audit.errors import AuditError, described
from otel_audit.event_schema import PrincipalKind
from otel_audit.notices import Notices

if TYPE_CHECKING:
    from otel_audit.event import AuditPrincipal

__all__ = ["NotAwaited", "PrincipalSource", "Principals", "principal_of", "principal_of_token"]

PrincipalSource = Callable[[MutableMapping[str, Any]], object] | ContextVar[Any]
"""The application's own source of its user: a plain function of the ASGI scope, or a ContextVar."""

_PLACES: Final = frozenset({"user", "state", "session"})
_STATE_KEYS: Final = ("principal", "user", "current_user")
# Claims that identify. Users may be free to choose all others. Source: OpenID Connect Core 1.0, section 5.7.
_IDS: Final = ("sub", "id", "identity")
_ISSUERS: Final = ("iss", "issuer")
_NAMES: Final = ("username", "preferred_username", "display_name", "name", "email")
_ROLES: Final = ("roles", "scopes", "scp")  # the last is Entra's
_CLAIMED_ROLES: Final = (*_ROLES, "scope")  # Source: RFC 8693, section 4.2. An attribute `scope` is something else
_CLIENTS: Final = ("client_id", "clientId", "azp")
_TEXTS: Final = (str, int, UUID)
_CREDENTIALS: Final = frozenset({b"authorization", b"cookie"})
_REFUSALS: Final = (401, 403)
_UNNAMED_S: Final = 60.0
_NOBODY_IS_NAMED: Final = (
    "for a minute requests have come with an Authorization header or a cookie, and no event says whose they are: let "
    "the dependency that returns the user stand on a scheme of fastapi.security, call otel_audit.integrations.asgi."
    "set_principal(user) where a user is authenticated, or pass AuditMiddleware(..., principal=...)"
)
# Python's own descriptors. Any other may load a field from a database when it is read.
_PLAIN_DESCRIPTORS: Final = (
    property,
    functools.cached_property,
    FunctionType,
    classmethod,
    staticmethod,
    MemberDescriptorType,  # of `__slots__`
    GetSetDescriptorType,
    type(namedtuple("_Pair", "field").field),  # type: ignore[attr-defined]  # the descriptor of a field, on the class
)


class NotAwaited(AuditError, TypeError):
    """A coroutine was given where a user was expected."""


class Principals:
    """Find the principal of a request.

    It is searched for in this order: `source`; the user that a FastAPI dependency returned (`found`); `scope["user"]`
    with `scope["auth"]`, as Starlette's AuthenticationMiddleware sets them; and `principal`, `user` or `current_user`
    in `request.state` and in the session. A client's mere claims do not count: no header is read, and the application
    has signed the session. `clock` returns seconds.

    Raises:
        TypeError: `source` is a coroutine function.
    """

    def __init__(
        self, source: PrincipalSource | None, notices: Notices, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if inspect.iscoroutinefunction(source) or inspect.iscoroutinefunction(getattr(source, "__call__", None)):  # noqa: B004
            raise TypeError(
                f"principal: expected a plain function or ContextVar, got the coroutine function {source!r}; "
                "await it inside the request, and call set_principal() with what it returns"
            )
        self._source = source
        self._notices = notices
        self._clock = clock
        self._unnamed_since: float | None = None
        self.is_settled = False

    def of(self, scope: MutableMapping[str, Any], found: AuditPrincipal | None = None) -> AuditPrincipal | None:
        """Return the principal, or None if nobody is named. Never raises."""
        if self._source is None and (found is not None or scope.keys().isdisjoint(_PLACES)):
            return found
        try:
            return self._found(scope, found)
        except Exception as error:  # raised by the application's own objects; the request is still recorded
            self.could_not_read(error)
            return None

    def named(self, value: object, *, unless: Callable[[str], bool] | None = None) -> AuditPrincipal | None:
        """Return the principal that a value names, or None. Never raises. `unless` is as in `principal_of`."""
        try:
            return principal_of(value, unless=unless)
        except Exception as error:  # as above
            self.could_not_read(error)
            return None

    def note(self, scope: MutableMapping[str, Any], principal: AuditPrincipal | None, status_code: int | None) -> None:
        """Note the user of a request. If for a minute no request with credentials has a user, say so on stderr."""
        if self.is_settled:
            return
        if principal is not None:
            self.is_settled = True
        elif status_code not in _REFUSALS and not _CREDENTIALS.isdisjoint(dict(scope["headers"])):
            now = self._clock()
            self._unnamed_since = now if self._unnamed_since is None else self._unnamed_since
            if now - self._unnamed_since >= _UNNAMED_S:
                self.is_settled = True
                self._notices.say("unnamed", _NOBODY_IS_NAMED)

    def could_not_read(self, error: Exception) -> None:
        """Say on stderr that an object of the application could not be read as a principal."""
        self._notices.say("principal", f"who makes a request could not be found out: {described(error)}")

    def _found(self, scope: MutableMapping[str, Any], found: AuditPrincipal | None) -> AuditPrincipal | None:
        if self._source is not None:
            value = self._source.get(None) if isinstance(self._source, ContextVar) else self._source(scope)
            if (asked := principal_of(value)) is not None:
                return asked
        if found is not None:
            return found
        if (user := scope.get("user")) is not None and (named := principal_of(user)) is not None:
            return named if named.roles else _with_roles(named, scope.get("auth"))
        for kept in (scope.get("state"), scope.get("session")):
            if isinstance(kept, dict):
                for key in _STATE_KEYS:
                    if key in kept and (named := principal_of(dict.get(kept, key))) is not None:
                        return named
        return None


@functools.cache
def _principal_model() -> type[AuditPrincipal]:
    """Return `AuditPrincipal`. An import statement would cost each request 0.6 us, however often it ran before."""
    from otel_audit.event import AuditPrincipal

    return AuditPrincipal


def principal_of(value: object, *, unless: Callable[[str], bool] | None = None) -> AuditPrincipal | None:
    """Return the principal that a value names: a principal, a name, a UUID, the claims of a token, or a user object.

    Return None if it names nobody, or a user who is not authenticated. `unless` returns True for a text that must not
    become an id or a name, since it is a secret.

    Raises:
        NotAwaited: the value is a coroutine.
        Exception: raised by the value's own methods.
    """
    if value is None:
        return None
    AuditPrincipal = _principal_model()
    if isinstance(value, AuditPrincipal):
        return value
    if isinstance(value, str):
        return AuditPrincipal(username=value) if value and not (unless and unless(value)) else None
    if isinstance(value, UUID):
        return AuditPrincipal(username=str(value), id=str(value))
    if inspect.iscoroutine(value):
        value.close()  # otherwise Python would warn when it is garbage-collected
        raise NotAwaited(f"expected a principal, got the coroutine {value.__qualname__}; await it")
    if isinstance(value, Mapping):
        return None if value.get("is_authenticated") is False else _principal_in(value.get, _CLAIMED_ROLES, unless)
    stored = getattr(value, "__dict__", {})
    if _is_mapped(type(value)):  # type: ignore[arg-type]  # a class is hashable, whatever its instances are
        if stored.get("is_authenticated") is False:
            return None
        return _principal_in(stored.get, _ROLES, unless) or _principal_in(_key_of(stored).get, (), unless)
    # Looking up missing attributes is expensive, above all on a Pydantic model.
    read = _attributes_of(value) if _tells_more(type(value)) else stored.get  # type: ignore[arg-type]  # as above
    if read("is_authenticated") is False:
        return None
    if hasattr(token := stored.get("access_token"), "client_id"):  # the MCP SDK's user holds the verified token
        return principal_of_token(token)
    found = _principal_in(stored.get, _ROLES, unless)
    if found is None and read is not stored.get:
        found = _principal_in(read, _ROLES, unless)
    if found is None and isinstance(claims := stored.get("claims"), Mapping):  # for example a token of joserfc
        return _principal_in(claims.get, _CLAIMED_ROLES, unless)
    return found


def principal_of_token(token: Any) -> AuditPrincipal:
    """Return the subject of a token that an MCP SDK has verified, or else its client, with the name in its claims.

    A subject that is not the client is a user. Everything else is a service.
    """
    from otel_audit.event import AuditPrincipal

    claims = getattr(token, "claims", None)
    claims = claims if isinstance(claims, Mapping) else {}
    named = _principal_in(claims.get, (), None) or AuditPrincipal()
    # Verifiers that do not set `subject`, which is new in SDK 1.27, leave it in the claims.
    client, subject = _text(token.client_id), _text(getattr(token, "subject", None)) or _text(claims.get("sub"))
    # If the claims name no client, a verifier of FastMCP uses the subject as the client.
    is_service = not subject or (subject == client and "sub" not in claims)
    return AuditPrincipal(
        username=named.username or subject or client,
        auth_type="bearer",
        id=subject or client or None,
        issuer=named.issuer or _text(claims.get("iss")) or None,
        kind=PrincipalKind.SERVICE if is_service else named.kind or PrincipalKind.USER,
    )


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _key_of(stored: Mapping[str, Any]) -> dict[str, object]:
    """Return the primary key of an SQLAlchemy row, which stays when a commit expires the row's fields."""
    key = getattr(stored.get("_sa_instance_state"), "identity", None)
    return {"id": key[0]} if isinstance(key, tuple) and len(key) == 1 else {}


def _principal_in(
    read: Callable[[str], object], role_keys: Sequence[str], unless: Callable[[str], bool] | None
) -> AuditPrincipal | None:
    """Return the principal that these claims or fields name, or None if they have neither an id nor a name."""
    identity = _first(read, _IDS, unless)
    name = _first(read, _NAMES, unless) or identity
    if not name:
        return None
    roles = next((found for key in role_keys if (found := _words(read(key)))), [])
    auth_type = read("auth_type")
    return _principal_model()(
        username=name,
        roles=roles,
        auth_type=auth_type if isinstance(auth_type, str) else "",
        id=identity or None,
        issuer=_first(read, _ISSUERS) or None,
        kind=PrincipalKind.SERVICE if _is_service(read, identity) else None,
    )


def _is_service(read: Callable[[str], object], identity: str) -> bool:
    """Return True if a token was issued to a client for itself, and not on behalf of a user."""
    if read("idtyp") == "app" or read("gty") == "client-credentials":  # Source: Entra ID, optional claims; Auth0
        return True
    # Source: RFC 9068, section 2.2: `sub` is then the client. Keycloak creates a user for the client instead.
    for key in _CLIENTS:
        client = read(key)
        if client and (client == identity or read("preferred_username") == f"service-account-{client}"):
            return True
    return False


@functools.lru_cache(maxsize=256)
def _is_mapped(kind: type) -> bool:
    """Return True if reading a field of this class may query a database, since a descriptor is not Python's own."""
    for key in (*_IDS, *_NAMES, *_ROLES):
        field = inspect.getattr_static(kind, key, None)
        if hasattr(type(field), "__get__") and not isinstance(field, _PLAIN_DESCRIPTORS):
            return True
    return False


@functools.lru_cache(maxsize=256)
def _tells_more(kind: type) -> bool:
    """Return True if objects of this class may have values outside `__dict__`: a property, slot or `__getattr__`."""
    from pydantic import BaseModel

    if hasattr(kind, "__getattr__") and not (issubclass(kind, BaseModel) and kind.model_config.get("extra") != "allow"):
        return True
    keys = (*_IDS, *_NAMES, *_ROLES, "is_authenticated")
    return any(inspect.getattr_static(kind, key, None) is not None for key in keys)


def _attributes_of(value: object) -> Callable[[str], object]:
    def read(name: str) -> object:
        try:
            return getattr(value, name, None)
        except NotImplementedError:  # raised for example by `BaseUser.identity` of Starlette
            return None

    return read


def _first(read: Callable[[str], object], keys: Sequence[str], unless: Callable[[str], bool] | None = None) -> str:
    for key in keys:
        found = read(key)
        if isinstance(found, _TEXTS) and not isinstance(found, bool) and found != "":
            text = str(found)
            if unless is None or not unless(text):
                return text
    return ""


def _with_roles(principal: AuditPrincipal, auth: object) -> AuditPrincipal:
    """Return the principal with the scopes of Starlette's AuthCredentials, except `authenticated`, which is no role."""
    roles = [word for word in _words(getattr(auth, "scopes", None)) if word != "authenticated"]
    return principal.model_copy(update={"roles": roles}) if roles else principal


def _words(value: object) -> list[str]:
    if isinstance(value, str):
        return value.split()  # Source: RFC 8693, `scope`
    if not isinstance(value, Iterable):
        return []
    words = (word.value if isinstance(word, Enum) else word for word in value)
    return [word for word in words if isinstance(word, str)]
