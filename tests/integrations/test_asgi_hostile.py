"""Hostile requests, seeded: each that reaches the application leaves one well-formed event, and no secret.

2 000 of them; 10 000 with OTEL_AUDIT_TESTS_LONG=1.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from otel_audit import AuditEvent, AuditMiddleware, Outcome
from tests.chain_check import application_events
from tests.integrations.serving import a_logger, served
from tests.long_form import LONG

COUNT = 10_000 if LONG else 2_000
SEED = 20_260_901
# In no byte that is written: as bearer token, in a query, in a path, in a user agent, in a body, in a cookie.
SECRETS = (
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJoNHgwciJ9.c2lnbmF0dXJlc2lnbmF0dXJl",
    "ghp_A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7r8",
    "AKIAIOSFODNN7QWERTYU",
)
QUERY_SECRET = "hunter2-in-a-query"
BODY_SECRET = "hunter2-in-a-body"
BYTES = [bytes([number]) for number in range(256) if number not in b"\r\n"]
PRINTABLE = BYTES[32 - 2 : 127 - 2]
# Texts that look like many secrets at once, or as if something was hidden in them.
LARGE = (b"\xe2\x80\x8b", b"token: ", b"password=a,", b"authorization: digest a=", b"a\xe2\x80\x8bpass=a1 ", b"x")
LARGEST = (50_000, 400_000)  # h11 refuses the second
MOST_BYTES = 13 * 1024  # of journal for one request; docs/privacy.md says it
HEADERS = (
    *(b"user-agent", b"x-request-id", b"authorization", b"cookie", b"x-user"),
    *(b"x-forwarded-for", b"forwarded", b"x-break", b"traceparent", b"expect"),
)


class Counted:
    """An application, and how many requests have reached it."""

    def __init__(self) -> None:
        self.requests = 0
        routes = [
            Route("/", self._answer, methods=["GET", "POST", "PUT"]),
            Route("/items/{item:path}", self._answer),
            Route("/stream", self._stream),
            Mount("/inner", routes=[Route("/{name}", self._answer)]),
            Route("/fail", self._fail),
        ]
        self._app = Starlette(routes=routes)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.requests += scope["type"] == "http"
        await self._app(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        body = await request.body()
        request.state.user = request.headers.get("x-user")
        return PlainTextResponse(str(len(body)), status_code=(200, 201, 401, 404, 500)[len(body) % 5])

    async def _stream(self, request: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"a"
            if "x-break" in request.headers:
                raise LookupError(BODY_SECRET)
            yield b"b"

        return StreamingResponse(chunks())

    async def _fail(self, request: Request) -> Response:
        raise RuntimeError(f"{BODY_SECRET} {request.headers}")


def a_request(draw: random.Random) -> bytes:
    """One request, mostly of HTTP, with something wrong or odd in it."""
    body = BODY_SECRET.encode() * draw.choice((0, 1, 2, 5_000))
    lines = [b" ".join((a_method(draw), a_target(draw), draw.choice((b"HTTP/1.1",) * 9 + (b"HTTP/1.0", b"HTTP/3"))))]
    lines += [b"host: x", b"connection: close", *(a_header(draw) for _ in range(draw.randrange(8)))]
    if draw.random() < 0.3:
        lines.append(b"content-length: %d" % draw.choice((len(body), len(body), len(body) + 5, 0, 10**9)))
    elif draw.random() < 0.1:
        lines.append(b"transfer-encoding: chunked")
        body = draw.choice((b"5\r\nabcde\r\n0\r\n\r\n", b"zz\r\n", b"5\r\nab"))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def a_method(draw: random.Random) -> bytes:
    return draw.choice((b"GET",) * 6 + (b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PURGE", b"get", b"G\xffT", b""))


def a_target(draw: random.Random) -> bytes:
    path = draw.choice(
        (
            b"/",
            b"/stream",
            b"/fail",
            b"/nowhere",
            b"/inner/" + noise(draw, 20),
            b"/items/" + noise(draw, 60),
            b"/items/%s" % draw.choice(SECRETS).encode(),
            b"/items/../../etc/passwd",
            b"/items/%00%0a%0d%1b[31m",
            b"/items/%ff%fe%ed%a0%80",
            b"/items/%F0%9F%92%A9%E2%80%AE",
            b"/" + large(draw, 30_000).translate(None, b" "),
            b"http://evil.example/items/1",
            b"*",
            noise(draw, 10),
        )
    )
    return path + draw.choice((b"", b"", b"?token=%s" % QUERY_SECRET.encode(), b"?q=" + noise(draw, 20)))


def a_header(draw: random.Random) -> bytes:
    name = draw.choice((*HEADERS, noise(draw, 8)))
    value = draw.choice(
        (
            draw.choice(SECRETS).encode(),
            b"Bearer %s" % draw.choice(SECRETS).encode(),
            b'for="6.6.6.6", 6.6.6.6, unknown',
            b"00-00000000000000000000000000000000-0000000000000000-01",
            b"100-continue",
            large(draw, draw.choice((200, 5_000, *LARGEST))),
            noise(draw, 40),
        )
    )
    return name + b": " + value


def large(draw: random.Random, most: int) -> bytes:
    """As many bytes of one of `LARGE`, or fewer."""
    return (draw.choice(LARGE) * most)[: draw.choice((10, most // 10, most))]


def noise(draw: random.Random, most: int) -> bytes:
    """Any bytes but those that end a line, which would only shift what follows; more often printable ones."""
    return b"".join(draw.choices(BYTES if draw.random() < 0.2 else PRINTABLE, k=draw.randrange(most)))


def hostile(address: tuple[str, int], app: Counted, draw: random.Random) -> None:
    """Send requests until so many have reached the application. Others do not get past the server."""
    while app.requests < COUNT // 2:
        request = a_request(draw)
        cut = request[: draw.randrange(len(request))] if draw.random() < 0.05 else request
        with socket.create_connection(address, timeout=10) as connection:
            try:
                connection.sendall(cut)
                if draw.random() < 0.9:
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass
            except OSError:
                continue  # it was hostile enough to be thrown out


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_hostile_requests_leave_one_well_formed_event_each_and_no_secret(
    tmp_path: Path, http: str, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "audit"
    draw = random.Random(f"{SEED} {http}")
    app = Counted()
    audited = AuditMiddleware(app, audit=a_logger(directory), trusted_proxies=["127.0.0.1"], audit_id_header=True)

    with served(audited, http=http) as server:
        hostile(server.address, app, draw)

    events = application_events(directory)
    assert len(events) == app.requests >= COUNT // 2
    assert len({event["event_id"] for event in events}) == len(events)
    for event in events:
        assert_well_formed(event)
    written = b"".join(path.read_bytes() for path in directory.iterdir()) + capfd.readouterr().err.encode()
    for secret in (*SECRETS, QUERY_SECRET, BODY_SECRET):
        assert secret.encode() not in written


@pytest.mark.parametrize("chars", [600, 2_700, 200_000])
@pytest.mark.parametrize("piece", ["\x01", "\u200b", "\U0001f600", '\\"\x7f', "a", "\x01a", "password=a,"], ids=ascii)
def test_one_request_writes_no_more_than_its_bound_whatever_it_sends(tmp_path: Path, piece: str, chars: int) -> None:
    text = (piece * chars)[:chars]
    headers = [(name, text.encode()) for name in (b"user-agent", b"x-request-id", b"traceparent", b"authorization")]
    audited = AuditMiddleware(Counted(), audit=a_logger(tmp_path))

    asyncio.run(ask_in_process(audited, f"/{text}", headers))

    (segment,) = tmp_path.glob("*-*.jsonl")
    (line,) = [
        line for line in segment.read_bytes().splitlines(keepends=True) if b'"event_type":"http.request"' in line
    ]
    assert len(line) <= MOST_BYTES


def test_a_header_longer_than_any_real_one_is_recorded_as_what_identifies_it(tmp_path: Path) -> None:
    agent = b"\xe2\x80\x8b" * 300_000
    audited = AuditMiddleware(Counted(), audit=a_logger(tmp_path))

    asyncio.run(ask_in_process(audited, "/", [(b"user-agent", agent)]))

    (event,) = application_events(tmp_path)
    assert event["source"]["user_agent"] == f"[900000 bytes, sha256:{hashlib.sha256(agent).hexdigest()}]"


async def ask_in_process(app: Any, path: str, headers: list[tuple[bytes, bytes]]) -> None:
    """What no server would let through comes in too."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        assert message["type"].startswith("http.response")

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": headers, "scheme": "http"}
    await app({**scope, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80)}, receive, send)


def assert_well_formed(event: dict[str, Any]) -> None:
    model = TypeAdapter(AuditEvent).validate_python(event, strict=False)
    assert model.event_type == "http.request"
    assert model.outcome in set(Outcome) - {Outcome.UNKNOWN}
    assert model.request_id
    assert model.duration_ms is not None
    assert model.duration_ms >= 0
    assert model.status_code is None or 100 <= model.status_code <= 599
    assert "?" not in model.action.path
    json.dumps(event).encode()
