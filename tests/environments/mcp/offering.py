"""The tools on a server that takes functions."""

from __future__ import annotations

from typing import Any

from tools import NAMES, RESOURCE_URI, Tools

__all__ = ["offer"]


def offer(server: Any, tools: Tools, context: Any) -> None:
    """The server has the tools, a resource and a prompt. `context`: what it gives to a tool that asks for it."""

    async def wait(ctx: Any) -> str:
        return await tools.wait(lambda progress: ctx.report_progress(progress))

    async def report(ctx: Any) -> str:
        return await tools.report(lambda progress: ctx.report_progress(progress))

    for tool in (wait, report):
        tool.__annotations__["ctx"] = context
    own = {"wait": wait, "report": report}
    for name in NAMES:
        server.tool()(own.get(name) or getattr(tools, name))

    @server.resource(RESOURCE_URI)
    async def rows() -> str:
        return "rows"

    @server.prompt()
    async def explain(what: str) -> str:
        return f"explain {what}"
