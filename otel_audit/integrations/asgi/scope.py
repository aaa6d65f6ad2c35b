"""Read the scope of a request: its path, its route, and the claims in its headers. Also the types of ASGI.

Source: ASGI specification 3.0.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, Final

__all__ = [
    "ASGIApp",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "known_id",
    "path_in",
    "route_of",
    "text_of",
    "traceparent_in",
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_LONG_HEADER_BYTES: Final = 64 * 1024  # most servers accept no more than this for all headers together
# The forms of ids that proxies and tracers make. Anything else, or anything longer, is a client's own invention.
_SANE_ID: Final = re.compile(rb"[0-9A-Za-z._:/+=@-]{1,128}")
# Source: W3C Trace Context, section 3.2. Later versions match too, without any parts that they append.
_TRACEPARENT: Final = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def path_in(scope: Mapping[str, Any]) -> str:
    """Return the path of a request or connection as the server decoded it, with any question mark encoded again.

    The `url` of a framework is never used, since it is built from the host that the client names.
    """
    path: str = scope["path"]
    return path.replace("?", "%3F") if "?" in path else path


def traceparent_in(scope: Mapping[str, Any]) -> str | None:
    """Return the client's `traceparent`. Source: W3C Trace Context, section 3.2: two headers count as none."""
    given = [value for name, value in scope["headers"] if name == b"traceparent"]
    return given[0].decode() if len(given) == 1 and _TRACEPARENT.fullmatch(given[0]) else None


def known_id(header: bytes) -> str | None:
    """Return the value of an `X-Request-Id` if it looks like an id, else None."""
    return header.decode() if _SANE_ID.fullmatch(header) else None


def text_of(header: bytes) -> str:
    """Return the value of a header, or only its length and hash if it is longer than any real one.

    Decoding, encoding and screening a megabyte blocks the event loop for milliseconds, hashing it for half of one.
    """
    if len(header) <= _LONG_HEADER_BYTES:
        return header.decode("utf-8", "replace")
    return f"[{len(header)} bytes, sha256:{hashlib.sha256(header).hexdigest()}]"


def route_of(scope: Scope) -> str:
    """Return the template of the path, including mounted applications, or an empty string if no route matched.

    Starlette, FastAPI and Litestar leave it in the scope once they have found it. The `root_path` that a proxy or the
    server puts before all paths is not part of it.
    """
    route = scope.get("route")
    inner = scope.get("fastapi")
    # Only this has the prefix of an included router: in itself if the route is FastAPI's own for HTTP, otherwise in the
    # Starlette route. That may be a mount, which is not the route but leads to it.
    effective = inner.get("effective_route_context") if type(inner) is dict else None
    effective = getattr(effective, "starlette_route", None) or effective
    met = effective if hasattr(effective, "endpoint") else route
    template = getattr(met, "path", "") if hasattr(met, "endpoint") else scope.get("path_template", "")  # of Litestar
    mounts = _template_of_mounts(scope) if "app_root_path" in scope else ""
    return mounts + template if isinstance(template, str) else mounts


def _template_of_mounts(scope: Scope) -> str:
    """Return the template of the mounts that the request has gone through."""
    outside: str = scope["app_root_path"]
    mounted: str = scope["root_path"][len(outside) :]
    if not scope.get("path_params"):
        return mounted
    whole: str = scope["path"]
    path = whole.removeprefix(outside)
    template = _found(getattr(scope.get("router"), "routes", ()), path if path.startswith("/") else whole, mounted)
    return mounted if template is None else template


def _found(routes: Sequence[Any], path: str, mounted: str) -> str | None:
    """Return the template of the mounts that took the part `mounted` of a path.

    The mounts themselves match the path. Comparing its steps with the values of parameters would not do, since a client
    can choose a value that equals another step.
    """
    for route in _each(routes):
        inner = getattr(route, "routes", None)
        if not isinstance(inner, Sequence):
            continue  # not a mount
        pattern = getattr(route, "path_regex", None)
        if pattern is None:  # mounted by host, not by path
            if (template := _found(inner, path, mounted)) is not None:
                return template
            continue
        match = pattern.match(path)
        prefix = path[: match.start("path") - 1] if match and "path" in pattern.groupindex else None
        if prefix is None or not mounted.startswith(prefix):
            continue
        own: str = route.path
        rest = mounted[len(prefix) :]
        if not rest:
            return own
        # The routes of a mounted application cannot be seen through other middleware.
        return own + (_found(inner, path[len(prefix) :], rest) or rest)
    return None


def _each(routes: Sequence[Any]) -> Iterator[Any]:
    """Yield the routes, and in place of a router that FastAPI included the Starlette routes in it, with its prefix."""
    for route in routes:
        contexts = getattr(route, "effective_route_contexts", None)
        if contexts is None:
            yield route
        else:
            yield from (context.starlette_route for context in contexts())
