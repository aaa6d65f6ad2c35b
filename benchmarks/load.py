"""A load of HTTP requests: connections that each send the next request when the last one is answered.

As `wrk -t1 -c16` makes it, and without anything to install. It takes about a tenth of the time that a FastAPI
application takes for the same requests, so it is not what is measured.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Final

__all__ = ["P99_MS", "PER_SECOND", "load"]

PER_SECOND: Final = "per_second"
P99_MS: Final = "p99_ms"

_CONNECTIONS: Final = 16
_ANSWER_TIMEOUT_S: Final = 30.0
_END_OF_HEAD: Final = b"\r\n\r\n"
_GOOD: Final = b"HTTP/1.1 200 "
_LENGTH: Final = b"content-length: "


def load(port: int, path: str, seconds: float) -> tuple[int, Mapping[str, float]]:
    """Return how many requests a server on loopback has answered, its requests a second, and their 99th percentile.

    Raises:
        RuntimeError: an answer was not 200, or a connection was closed.
        TimeoutError: an answer did not come.
    """
    return asyncio.run(_load(port, path, seconds))


async def _load(port: int, path: str, seconds: float) -> tuple[int, Mapping[str, float]]:
    loop = asyncio.get_running_loop()
    headers = (f"host: 127.0.0.1:{port}", "user-agent: benchmark/1.0", "accept: application/json")
    request = "\r\n".join((f"GET {path} HTTP/1.1", *headers, "", ""))
    clients = [
        (await loop.create_connection(lambda: _Client(request.encode(), loop), "127.0.0.1", port))[1]
        for _ in range(_CONNECTIONS)
    ]
    started = time.perf_counter()
    for client in clients:
        client.begin(started + seconds)
    async with asyncio.timeout(seconds + _ANSWER_TIMEOUT_S):
        await asyncio.gather(*(client.done for client in clients))
    elapsed = time.perf_counter() - started
    took = sorted(each for client in clients for each in client.took_s)
    return len(took), {PER_SECOND: len(took) / elapsed, P99_MS: took[len(took) * 99 // 100] * 1000}


class _Client(asyncio.Protocol):
    """One connection. `took_s`: how long each of its requests took."""

    def __init__(self, request: bytes, loop: asyncio.AbstractEventLoop) -> None:
        self.took_s: list[float] = []
        self.done: asyncio.Future[None] = loop.create_future()
        self._request = request
        self._received = b""

    def begin(self, until: float) -> None:
        """Send the first request, and none any more at this time of the performance counter."""
        self._until = until
        self._ask()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._is_whole():
            return
        now = time.perf_counter()
        self.took_s.append(now - self._asked)
        if not self._received.startswith(_GOOD):
            self._end(RuntimeError(f"expected answers with status 200, got {self._received!r}"))
        elif now < self._until:
            self._ask()
        else:
            self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(RuntimeError(f"expected an answer, got the end of the connection: {exc}"))

    def _ask(self) -> None:
        self._received = b""
        self._asked = time.perf_counter()
        self._transport.write(self._request)

    def _is_whole(self) -> bool:
        head, found, body = self._received.partition(_END_OF_HEAD)
        return bool(found) and len(body) >= int(head.partition(_LENGTH)[2].partition(b"\r")[0])

    def _end(self, error: Exception | None) -> None:
        if not self.done.done():
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)
        self._transport.close()
