"""One audited server as a process: `python service.py SERVER stdio`, or `python service.py SERVER PORT` over HTTP."""

from __future__ import annotations

import asyncio
import importlib
import os
import resource
import sys
from typing import Any

import uvicorn
from opentelemetry import trace
from sdk import IS_SDK1
from starlette.applications import Starlette
from tools import Tools

import otel_audit
from otel_audit.integrations.asgi import AuditMiddleware
from otel_audit.integrations.mcp import audit_server
from tests.servers.span_file import provider_into


def traced(app: Any) -> Any:
    """The app with a server span of each request, by the instrumentation that there is for its SDK's OpenTelemetry."""
    if IS_SDK1 and isinstance(app, Starlette):
        from opentelemetry.instrumentation.starlette import StarletteInstrumentor

        StarletteInstrumentor.instrument_app(app)
        return app
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    return OpenTelemetryMiddleware(app)


def main(name: str, transport: str) -> None:
    servers = importlib.import_module("servers_" + name.partition("-")[0])
    if limit := os.environ.get("MOST_BYTES_OF_A_FILE"):  # in place of a disk that becomes full
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    if path := os.environ.get("SPANS"):
        trace.set_tracer_provider(provider_into(path))
    if os.environ.get("SPAN_OF_EACH_CALL"):
        servers.begin_a_span_of_each_call()
    with otel_audit.configure() as audit:
        server = audit_server(servers.SERVERS[name](Tools(audit)), audit)
        audit_server(server, audit)  # a second time, as an instrumentor and a program may
        if transport == "stdio":
            asyncio.run(servers.run_stdio(server))
        else:
            app = servers.asgi_app(server, os.environ.get("TRANSPORT", "http"))
            for layer in os.environ.get("AROUND", "").split():  # from the inside
                app = traced(app) if layer == "otel" else AuditMiddleware(app, audit=audit)
            uvicorn.run(app, port=int(transport), log_level="warning", proxy_headers=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
