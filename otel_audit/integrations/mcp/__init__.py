"""MCP servers: one event for each tool call, resource read and prompt.

The life of one call, in reading order:

1. `server`: `audit_server` finds out which SDK the server uses: the official one (1.x or 2.x) or FastMCP.
2. `sdk1`, `sdk2`, `fastmcp`: each hooks into its SDK where calls are dispatched, and describes a call as a `Call`.
   `fastmcp` also has `audited_check`, which records the decisions of an auth check.
3. `call`: `recorded` runs the call inside an `Operation`. It finds the caller, the span and the HTTP request of the
   call, and the meaning of its result or exception. The event is written when the call ends. If the loss rule is
   `closed`, another one is written before it begins.
"""

from otel_audit.integrations.mcp.server import audit_server, current_event

__all__ = ["audit_server", "current_event"]
