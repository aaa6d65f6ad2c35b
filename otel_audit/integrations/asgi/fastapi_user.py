"""The user of a FastAPI application: the result of a dependency built on a scheme of `fastapi.security`.

FastAPI resolves the dependencies of a request from the scheme outwards, and caches each result in a dictionary, so that
none is resolved twice. The caller may pass that dictionary, so we pass one that reports its results to the request.
"""

from __future__ import annotations

import functools
import inspect
import re
from typing import Any, Final

from fastapi import routing
from fastapi.security import HTTPAuthorizationCredentials, HTTPBasicCredentials
from fastapi.security.base import SecurityBase

from otel_audit.event import AuditPrincipal
from otel_audit.integrations.asgi.exchange import Exchange, exchange_of
from otel_audit.integrations.principals import Principals
from otel_audit.notices import Notices

__all__ = ["watch_dependencies"]

_WATCHED: Final = "otel_audit_watched"
_NEEDED: Final = frozenset({"request", "dependant", "dependency_cache"})
_REMEMBERED: Final = 4096  # routes
_NAME_CHARS: Final = 256  # a longer text is not a name, but may be a token
_PART_CHARS: Final = 8  # a text that shares this many characters with a secret is part of it, or contains it
_NOT_THIS_RELEASE: Final = (
    "users are not found in the dependencies of this release of FastAPI: call "
    "otel_audit.integrations.asgi.set_principal(user) where one is authenticated"
)
_DIGEST_USER: Final = re.compile(r'(?:^|[\s,])username="((?:[^"\\]|\\.)+)"')  # Source: RFC 7616, section 3.4

_any_value = Principals(None, Notices())


def watch_dependencies(notices: Notices) -> None:
    """From now on, in every application, make the user that a dependency returns the principal of its request.

    Requests that our middleware does not record are unaffected. If a release of FastAPI no longer has this hook, a
    notice says so, and applications run as before.
    """
    original = getattr(routing, "solve_dependencies", None)
    if hasattr(original, _WATCHED):
        return
    if original is None or not _takes_what_we_pass(original):
        notices.say("fastapi", _NOT_THIS_RELEASE)
        return

    @functools.wraps(original)
    async def solve(**given: Any) -> Any:
        exchange = exchange_of(given["request"].scope)
        try:
            standing = None if exchange is None else _standing_on_schemes(given["dependant"])
        except AttributeError:  # of a later release
            notices.say("fastapi", _NOT_THIS_RELEASE)
            standing = None
        if exchange is None or not standing or given.get("dependency_cache") is not None:
            return await original(**given)
        results = _Results(exchange, standing)
        solved = await original(**{**given, "dependency_cache": results})
        if results.claimed is not None and not getattr(solved, "errors", True):
            exchange.claimed = results.claimed  # no dependency has refused it so far
        return solved

    setattr(solve, _WATCHED, True)
    routing.solve_dependencies = solve  # type: ignore[attr-defined]  # where FastAPI itself looks it up


def _takes_what_we_pass(function: Any) -> bool:
    try:
        return inspect.signature(function).parameters.keys() >= _NEEDED
    except (TypeError, ValueError):
        return False


class _Results(dict[Any, Any]):
    """FastAPI's results for one request. Each key begins with the function of a dependency.

    Each result is reported as soon as it is stored, so it is kept even if a later dependency raises.
    """

    def __init__(self, exchange: Exchange, standing: dict[int, bool]) -> None:
        super().__init__()
        self.claimed: AuditPrincipal | None = None
        self._exchange = exchange
        self._standing = standing
        self._secrets: set[str] = set()

    def __bool__(self) -> bool:
        return True  # FastAPI 0.115 would replace an empty dictionary by its own

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        try:
            call = key[0]
            is_scheme = self._standing.get(id(call))
            if is_scheme is None and isinstance(call, SecurityBase):
                is_scheme = True  # under `dependency_overrides` an annotation is read again, and makes its scheme anew
            if is_scheme is not None and value is not None and self._exchange.found is None:
                self._note(value, is_scheme=is_scheme)
        except Exception as error:  # raised by the application's own objects; the request must go on
            _any_value.could_not_read(error)

    def _note(self, value: Any, *, is_scheme: bool) -> None:
        kinds = type(value).__mro__  # `isinstance` is slow for a Pydantic model
        if HTTPBasicCredentials in kinds:
            self._secrets.add(value.password)
            self.claimed = AuditPrincipal(username=value.username, auth_type="basic") if value.username else None
        elif HTTPAuthorizationCredentials in kinds:
            self._note_header(value)
        elif str in kinds and is_scheme:
            self._secrets.add(value)
        elif str in kinds and len(value) > _NAME_CHARS:
            return
        elif tuple in kinds and not hasattr(value, "_fields"):  # fastapi-users returns a user with its token
            for each in value:
                if not isinstance(each, str):
                    self._take(each)
        else:
            self._take(value)

    def _note_header(self, header: HTTPAuthorizationCredentials) -> None:
        if header.scheme.lower() == "digest":
            user = _DIGEST_USER.search(header.credentials)
            self.claimed = AuditPrincipal(username=user[1], auth_type="digest") if user else None
        else:
            self._secrets.add(header.credentials)

    def _take(self, value: object) -> None:
        if self._exchange.found is None:
            self._exchange.found = _any_value.named(value, unless=self._is_secret)

    def _is_secret(self, text: str) -> bool:
        return any(
            text == secret
            or (len(secret) >= _PART_CHARS and secret in text)
            or (len(text) >= _PART_CHARS and text in secret)
            for secret in self._secrets
        )


_trees: dict[int, tuple[Any, dict[int, bool]]] = {}


def _standing_on_schemes(dependant: Any) -> dict[int, bool]:
    """Return the dependencies that are built on a scheme, by the id of their function; True for a scheme itself."""
    known = _trees.get(id(dependant))
    if known is not None and known[0] is dependant:
        return known[1]
    found: dict[int, bool] = {}
    _gather(dependant, found)
    if len(_trees) >= _REMEMBERED:  # the application makes routes over and over
        _trees.clear()
    _trees[id(dependant)] = (dependant, found)
    return found


def _gather(dependant: Any, found: dict[int, bool]) -> bool:
    """Return True if any dependency below is a scheme or is built on one."""
    stands = False
    for each in dependant.dependencies:
        is_scheme = _is_scheme(each.call)
        if _gather(each, found) or is_scheme:
            found[id(each.call)] = is_scheme
            stands = True
    return stands


def _is_scheme(call: Any) -> bool:
    while isinstance(call, functools.partial):
        call = call.func
    return isinstance(inspect.unwrap(call), SecurityBase)
