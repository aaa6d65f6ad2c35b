"""Sources of audit events besides our own API: web frameworks, MCP servers, Feast and log records."""
