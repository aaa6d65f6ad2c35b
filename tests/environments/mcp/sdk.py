"""Which major release of the official SDK this environment has, and the servers that it can run."""

from __future__ import annotations

from importlib.metadata import version

__all__ = ["IS_SDK1", "MODES", "SERVERS"]

IS_SDK1 = version("mcp").startswith("1.")

SERVERS = ["sdk1-lowlevel", "sdk1-fastmcp", "fastmcp"] if IS_SDK1 else ["sdk2-lowlevel", "sdk2-mcpserver", "fastmcp"]

# How a client begins: by the handshake of old, or without one. SDK 2.x knows both.
MODES = ["legacy"] if IS_SDK1 else ["legacy", "auto"]
