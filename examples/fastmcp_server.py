"""A FastMCP server whose tool calls are audited: `python fastmcp_server.py`, for a client that speaks stdio.

With `fastmcp run fastmcp_server.py --transport http` it is the same over HTTP.
"""

from fastmcp import FastMCP
from fastmcp.exceptions import ToolError

import otel_audit
from otel_audit import AuditResource
from otel_audit.integrations.mcp import audit_server, current_event

FEATURES = {"driver_stats": {"trips_today": 7}}

server = audit_server(FastMCP("features"), otel_audit.configure())


@server.tool
def get_online_features(view: str) -> dict[str, int]:
    """Return the newest features of a view."""
    event = current_event()
    if event is not None:  # facts that only the tool knows
        event.resource = AuditResource(type="feature_view", name=view, actions=["READ_ONLINE"])
    if view not in FEATURES:
        raise ToolError(f"there is no view {view}")
    return FEATURES[view]


if __name__ == "__main__":
    server.run(show_banner=False)
