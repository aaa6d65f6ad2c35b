"""The route of a request: the template of its path, read when Starlette, FastAPI or Litestar have found it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from otel_audit.integrations.asgi_types import Scope

__all__ = ["route_of"]


def route_of(scope: Scope) -> str:
    """The template of its path, those of mounted applications included; empty where no route was met.

    What a proxy or the server has in front of all paths (`root_path`) is not in it.
    """
    route = scope.get("route")
    inner = scope.get("fastapi")
    # A router that is included has its prefix only here.
    effective = inner.get("effective_route_context") if type(inner) is dict else None
    of_litestar = scope.get("path_template", "")
    template = getattr(effective or route, "path", "") if hasattr(route, "endpoint") else of_litestar
    mounts = _template_of_mounts(scope) if "app_root_path" in scope else ""
    return mounts + template if isinstance(template, str) else mounts


def _template_of_mounts(scope: Scope) -> str:
    """Of the mounts that the request has gone through."""
    outside: str = scope["app_root_path"]
    mounted: str = scope["root_path"][len(outside) :]
    if not scope.get("path_params"):
        return mounted
    whole: str = scope["path"]
    path = whole.removeprefix(outside)
    template = _found(getattr(scope.get("router"), "routes", ()), path if path.startswith("/") else whole, mounted)
    return mounted if template is None else template


def _found(routes: Sequence[Any], path: str, mounted: str) -> str | None:
    """The template of the mounts that took the part `mounted` of a path.

    Asked of the mounts themselves: that a step of the path equals the value of a parameter does not make it one, and a
    client may choose the value.
    """
    for route in routes:
        inner = getattr(route, "routes", None)
        if not isinstance(inner, Sequence):
            continue  # no mount
        pattern = getattr(route, "path_regex", None)
        if pattern is None:  # by host, not by path
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
        # Behind other middleware the routes of a mounted application are not to be seen.
        return own + (_found(inner, path[len(prefix) :], rest) or rest)
    return None
