"""MCP servers: one event for each tool call, resource read and prompt."""

from otel_audit.integrations.mcp.server import audit_server, current_event

__all__ = ["audit_server", "current_event"]
