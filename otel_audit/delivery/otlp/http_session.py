"""A `requests` session whose whole exchange ends by a deadline.

The time-out of `requests` counts from one received byte to the next: a server that drips a byte a second holds the
caller for ever. Here every connect, send and receive gets the time that is left of one total.
No thread watches over it, because none can be started any more when a process flushes at its exit.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import msgspec
import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import ssl_

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["BoundedSession", "HttpExchange", "exchange_within"]

# A slow receiver is noticed at the deadline, not after the whole body: TLS writes 16 KiB at a time and would start
# the time-out anew with each.
_SENT_AT_ONCE_BYTES = 64 * 1024
# All but 101, after which the connection is no longer HTTP. Source: RFC 9110, 15.2.
_INTERIM = frozenset(range(100, 200)) - {http.HTTPStatus.SWITCHING_PROTOCOLS}


class HttpExchange(msgspec.Struct):
    """The progress of one request and its answer."""

    deadline: float  # seconds of time.monotonic()
    fresh: bool = False  # a connection was opened for it
    sent: bool = False  # something went out over an open connection
    answered: bool = False  # at least one byte came back

    def remaining_s(self) -> float:
        """Return the seconds left, always more than 0.

        Raises:
            TimeoutError: the deadline has passed.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline of the exchange has passed")
        return left

    @property
    def met_a_stale_connection(self) -> bool:
        """Return True if a failure says nothing about the endpoint, since the server had closed an idle connection."""
        return self.sent and not self.fresh and not self.answered and time.monotonic() < self.deadline

    def start_again(self) -> None:
        """Reset the progress. The deadline stays."""
        self.fresh = self.sent = self.answered = False


_current: ContextVar[HttpExchange] = ContextVar("otel_audit_http_exchange")


@contextmanager
def exchange_within(timeout_s: float) -> Iterator[HttpExchange]:
    """End everything that a `BoundedSession` does on this thread inside the block within `timeout_s` seconds.

    Only the resolver keeps its own time, since the operating system cannot be told when to give up on a name.
    """
    exchange = HttpExchange(time.monotonic() + timeout_s)
    token = _current.set(exchange)
    try:
        yield exchange
    finally:
        _current.reset(token)


class _BoundedStream(io.RawIOBase):
    """The incoming bytes of a socket, each receive within the time that is left."""

    def __init__(self, sock: socket.socket, incoming: io.BufferedIOBase) -> None:
        self._sock = sock
        self._incoming = incoming  # closing it is what lets go of the socket
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        exchange = _current.get()
        self._sock.settimeout(exchange.remaining_s())
        count = self._sock.recv_into(buffer)
        exchange.answered = exchange.answered or count > 0
        self.ended = count == 0
        return count

    def close(self) -> None:
        self._incoming.close()
        super().close()


class _BoundedResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._stream = _BoundedStream(sock, self.fp)
        self.fp = io.BufferedReader(self._stream)

    def begin(self) -> None:
        """Read the final status and its headers. `http.client` takes a 103, which only comes before it, for the answer.

        Raises:
            IncompleteRead: they break off. To `http.client` that is their end, and a 200 cut short a success.
        """
        super().begin()
        while self.status in _INTERIM and not self._stream.ended:
            self.headers = None  # type: ignore[assignment]  # as before the first one: else `begin` does nothing
            super().begin()
        if self._stream.ended:
            raise http.client.IncompleteRead(b"")


class _BoundedConnection(HTTPConnection):
    response_class = _BoundedResponse

    def _new_conn(self) -> socket.socket:
        exchange = _current.get()
        exchange.fresh = True
        sock = _connected(self._dns_host.strip("[]"), self.port, exchange)
        for option in self.socket_options or ():
            sock.setsockopt(*option)
        sys.audit("http.client.connect", self, self.host, self.port)
        sock.settimeout(exchange.remaining_s())  # of the TLS handshake, which counts it as a total
        return sock

    def send(self, data: Any) -> None:
        """Send `data`, slice by slice, each within the time that is left."""
        exchange = _current.get()
        if self.sock is None:
            self.connect()
        exchange.sent = True
        view = memoryview(data)
        for start in range(0, len(view), _SENT_AT_ONCE_BYTES):
            self.sock.settimeout(exchange.remaining_s())
            super().send(view[start : start + _SENT_AT_ONCE_BYTES])


class _BoundedTlsConnection(_BoundedConnection, HTTPSConnection):
    def connect(self) -> None:
        """Connect, with a context that works in this process."""
        if ssl_.SSLContext is not ssl.SSLContext:
            # gevent has patched `ssl` since urllib3 was imported, whose contexts call themselves for ever from then on.
            self.ssl_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self.ssl_context.minimum_version = ssl.TLSVersion.TLSv1_2
        super().connect()


def _connected(host: str, port: int, exchange: HttpExchange) -> socket.socket:
    """Return a socket connected to the first address of the host that answers.

    A silent one leaves time for the others.
    """
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    failure: OSError = OSError(f"{host} has no address")
    for tried, (family, kind, protocol, _, address) in enumerate(addresses):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(exchange.remaining_s() / (len(addresses) - tried))
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _BoundedConnection


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _BoundedTlsConnection


_POOLS = {"http": _HttpPool, "https": _HttpsPool}


class _BoundedAdapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        if not proxy.lower().startswith("socks"):  # SOCKS connects in its own way; only single steps are bounded there
            manager.pool_classes_by_scheme = _POOLS
        return manager


class BoundedSession(requests.Session):
    """A session for use inside `exchange_within`, which never looks where a redirect would lead."""

    def __init__(self) -> None:
        super().__init__()
        self.mount("http://", _BoundedAdapter())
        self.mount("https://", _BoundedAdapter())

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return None.

        Even when told not to follow, `requests` reads the whole body of a redirect to prepare the next.
        """
