"""MCP servers: one event for each tool call, resource read and prompt.

The life of one call, in reading order:

1. `server`: `audit_server` finds out which SDK the server is made with: the official one (1.x or 2.x) or FastMCP.
2. `sdk1`, `sdk2`, `fastmcp`: each stands where its SDK hands out a call, and describes it as a `Call`. `fastmcp` also
   has `audited_check`, which records what an auth check decides.
3. `call`: `recorded` runs the call inside an `Operation`. It finds out who called, which span and which HTTP request
   the call belongs to, and what its answer or its exception means. The event is written when the call ends; where the
   loss rule is `closed`, one is written before it begins.
"""

from otel_audit.integrations.mcp.server import audit_server, current_event

__all__ = ["audit_server", "current_event"]
