"""Feast's feature server recorded by us, though no line of it says so.

Feast is not imported here: it takes seconds, and most commands of a machine that has it serve no features.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from otel_audit.integrations.feast import install_meanwhile
from otel_audit.integrations.feast_server import HOOKS
from otel_audit.integrations.instrumentation import Instrumentation
from otel_audit.integrations.kept_out import keep_out

__all__ = ["audit_feature_servers"]

_SERVER, _MCP_SERVER = HOOKS


def audit_feature_servers(instrumentation: Instrumentation) -> None:
    """What `get_app()` makes from here on is recorded as after `install(replace=True)`, if its store asks for audit.

    Feast goes on recording, as after `install()`, where its configuration leaves successful reads out: only Feast
    knows what it takes for a read. An `install()` of the caller's own stays as it is. In each case the instrumentors of
    FastAPI, Starlette and MCP leave the application to it. `get_app()` raises what the logger of the process does.
    """

    def make(original: Callable[..., Any], store: Any, *args: Any, **kwargs: Any) -> Any:
        config = getattr(store.config.feature_server, "audit_logging", None)
        if not instrumentation.is_on or config is None or not config.enabled:
            return original(store, *args, **kwargs)
        with _making, install_meanwhile(lambda: instrumentation.audit, replace=config.log_successful_reads):
            app = original(store, *args, **kwargs)
        keep_out(app)
        return app

    def record_calls(original: Callable[..., None], mcp: Any, *args: Any, **kwargs: Any) -> None:
        original(mcp, *args, **kwargs)
        keep_out(mcp.server)

    instrumentation.when_imported(_SERVER, lambda server: instrumentation.wrap(server, "get_app", make))
    instrumentation.when_imported(
        _MCP_SERVER, lambda server: instrumentation.wrap(server, HOOKS[_MCP_SERVER], record_calls)
    )


_making = threading.RLock()  # one application at a time: what is installed counts for all threads
