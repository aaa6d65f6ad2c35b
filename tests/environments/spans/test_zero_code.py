"""`opentelemetry-instrument uvicorn app:app` as people run it: no line of the service knows of spans or of audit."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from tests.chain_check import application_events
from tests.servers.polling import poll
from tests.servers.ports import free_port

BIN = Path(sys.executable).parent

SERVICE = """
from fastapi import FastAPI, HTTPException, WebSocket
from fastapi.responses import StreamingResponse
from starlette.middleware.base import BaseHTTPMiddleware

class PassOn(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        return await call_next(request)

app = FastAPI()
app.add_middleware(PassOn)

@app.get("/ok")
def ok(): return 1

@app.get("/boom")
async def boom(): raise RuntimeError

@app.get("/unavailable")
async def unavailable(): raise HTTPException(503)

@app.get("/stream")
async def stream():
    async def chunks():
        yield b"1"
        yield b"2"
    return StreamingResponse(chunks())

@app.websocket("/socket")
async def socket(socket: WebSocket):
    await socket.accept()
    raise RuntimeError
"""
PATHS = ("/ok", "/nowhere", "/boom", "/unavailable", "/stream", "/socket")


def test_each_event_has_the_ids_of_the_one_server_span_of_its_request(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(SERVICE, encoding="utf-8")
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("OTEL_")},
        "OTEL_SERVICE_NAME": "shop",
        "OTEL_TRACES_EXPORTER": "console",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_AUDIT_DIR": str(tmp_path / "audit"),
    }
    command = [*(str(BIN / name) for name in ("opentelemetry-instrument", "uvicorn")), "app:app", "--port", str(port)]
    spans = tmp_path / "spans"
    with spans.open("w") as output:
        process = subprocess.Popen(
            [*command, "--log-level", "critical"], cwd=tmp_path, env=environment, stdout=output, stderr=output
        )
    try:
        poll(lambda: process.poll() is None and ask(port), what="the service to answer")
        served = poll(
            lambda: server_spans(spans.read_text(encoding="utf-8")),
            until=lambda found: len(found) == len(PATHS),
            what="the server spans",
        )
        events = application_events(tmp_path / "audit")
    finally:
        process.kill()
        process.wait()

    assert {event["action"]["path"]: (event["trace_id"], event["span_id"]) for event in events} == served


def ask(port: int) -> bool:
    """Ask for every path; False if nobody answers yet."""
    try:
        for path in PATHS[:-1]:
            httpx.get(f"http://127.0.0.1:{port}{path}")
    except httpx.ConnectError:
        return False
    with connect(f"ws://127.0.0.1:{port}{PATHS[-1]}") as socket, contextlib.suppress(ConnectionClosedError):
        socket.recv()
    return True


def server_spans(printed: str) -> dict[str, tuple[str, str]]:
    """The path and the ids of each server span that the console exporter has printed so far."""
    found = {}
    for text in printed.split("\n}\n")[:-1]:
        span = json.loads(text[text.index("{") :] + "\n}")
        if span["kind"] == "SpanKind.SERVER":
            context = span["context"]
            path = span["attributes"].get("http.target") or span["attributes"]["http.url"].partition("/socket")[1]
            found[path] = (context["trace_id"].removeprefix("0x"), context["span_id"].removeprefix("0x"))
    return found
