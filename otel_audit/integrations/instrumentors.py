"""The instrumentors that `opentelemetry-instrument` finds: no line of a service is changed, and it is audited.

Each works only where its framework is installed, and records to one logger of the process, made from the environment.
`OTEL_PYTHON_DISABLED_INSTRUMENTATIONS` leaves out those named in it, by the names of the entry points.

This is the only module that cannot be imported without the package `opentelemetry-instrumentation`, and nothing imports
it but that.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from typing import Any

from opentelemetry.instrumentation.dependencies import DependencyConflictError
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]  # not typed

from otel_audit.integrations.instrumentation import Instrumentation
from otel_audit.integrations.instrumented_asgi import audit_applications
from otel_audit.integrations.instrumented_feast import audit_feature_servers
from otel_audit.integrations.instrumented_mcp import audit_fastmcp_servers, audit_sdk_servers

__all__ = ["FastAPIAuditor", "FastMCPAuditor", "FeastAuditor", "FrameworkAuditor", "MCPAuditor", "StarletteAuditor"]


class FrameworkAuditor(BaseInstrumentor):  # type: ignore[misc]  # not typed
    """`instrument()` makes a framework audit what is built on it, `uninstrument()` undoes it.

    `instrument(audit=...)` takes a logger in place of that of the process.

    Source: OpenTelemetry Python, `BaseInstrumentor`; entry point `opentelemetry_instrumentor`.
    """

    _instrumentation: Instrumentation | None = None  # the instance is one for the process, and made anew by nobody

    def _instrument(self, **kwargs: Any) -> None:
        # The command does not ask whether the framework is there at all, and in which release.
        conflict = self._check_dependency_conflicts()
        if conflict is not None:
            raise DependencyConflictError(conflict)
        self._instrumentation = Instrumentation(kwargs.get("audit"))
        self._begin(self._instrumentation)

    def _uninstrument(self, **kwargs: Any) -> None:
        if self._instrumentation is not None:
            self._instrumentation.undo()
            self._instrumentation = None

    @abstractmethod
    def _begin(self, instrumentation: Instrumentation) -> None:
        """The framework is wrapped."""


class StarletteAuditor(FrameworkAuditor):
    """One event for each request and connection of a Starlette application, and of what is built on it."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """The releases of Starlette."""
        return ["starlette >= 0.40"]

    def _begin(self, instrumentation: Instrumentation) -> None:
        from starlette.applications import Starlette

        audit_applications(_of(Starlette, "starlette"), instrumentation)


class FastAPIAuditor(FrameworkAuditor):
    """One event for each request and connection of a FastAPI application."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """The releases of FastAPI."""
        return ["fastapi >= 0.115"]

    def _begin(self, instrumentation: Instrumentation) -> None:
        from fastapi import FastAPI

        audit_applications(_of(FastAPI, "fastapi"), instrumentation)


def _of(kind: type, framework: str) -> type:
    """The framework's own class: OpenTelemetry's instrumentors put one that is derived from it in its place."""
    return next(each for each in kind.__mro__ if each.__module__.partition(".")[0] == framework)


class MCPAuditor(FrameworkAuditor):
    """One event for each tool call, resource read and prompt of a server of the official MCP SDK."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """The releases of the SDK."""
        return ["mcp >= 1.29, < 3"]

    def _begin(self, instrumentation: Instrumentation) -> None:
        instrumentation.when_imported(
            "mcp.server.lowlevel.server", lambda module: audit_sdk_servers(module.Server, instrumentation)
        )


class FastMCPAuditor(FrameworkAuditor):
    """One event for each tool call, resource read and prompt of a server of the package `fastmcp`."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """The releases of FastMCP."""
        return ["fastmcp >= 4, < 5"]

    def _begin(self, instrumentation: Instrumentation) -> None:
        instrumentation.when_imported(
            "fastmcp.server.server", lambda module: audit_fastmcp_servers(module.FastMCP, instrumentation)
        )


class FeastAuditor(FrameworkAuditor):
    """One event for each request and each tool call of Feast's feature server, if its store has audit logging enabled.

    A server that is built already goes on recording after `uninstrument()`.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """The releases of Feast."""
        return ["feast >= 0.67"]

    def _begin(self, instrumentation: Instrumentation) -> None:
        audit_feature_servers(instrumentation)
