"""One audited server as a process: `python service.py SERVER stdio`, or `python service.py SERVER PORT` over HTTP."""

from __future__ import annotations

import asyncio
import importlib
import os
import resource
import sys

import uvicorn
from tools import Tools

import otel_audit
from otel_audit.integrations.asgi import AuditMiddleware
from otel_audit.integrations.mcp import audit_server


def main(name: str, transport: str) -> None:
    servers = importlib.import_module("servers_" + name.partition("-")[0])
    if limit := os.environ.get("MOST_BYTES_OF_A_FILE"):  # in place of a disk that becomes full
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    with otel_audit.configure() as audit:
        server = audit_server(servers.SERVERS[name](Tools(audit)), audit)
        audit_server(server, audit)  # a second time, as an instrumentor and a program may
        if transport == "stdio":
            asyncio.run(servers.run_stdio(server))
        else:
            app = servers.asgi_app(server)
            if os.environ.get("WITH_ASGI_MIDDLEWARE"):
                app = AuditMiddleware(app, audit=audit)
            uvicorn.run(app, port=int(transport), log_level="warning", proxy_headers=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
