"""An HTTP server for a handful of clients: the page of `otel-audit view`, and the probes of `otel-audit ship`.

Whoever can reach its port can open connections, and each takes a thread and a descriptor of a process that has more
important things to do with them. So there is a bound, and beyond it the connection that has been open for longest is
ended. To refuse the new one instead would let somebody lock out a probe by connections that say nothing.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

__all__ = ["CONNECTIONS_MAX", "BoundedHTTPServer"]

CONNECTIONS_MAX: Final = 32  # a browser opens six


class BoundedHTTPServer(ThreadingHTTPServer):
    """Answers on one address, each connection in a thread of its own, at most `CONNECTIONS_MAX` at a time.

    Raises:
        OSError: this process cannot listen at the address.
    """

    daemon_threads = True
    request_queue_size = CONNECTIONS_MAX
    block_on_close = False  # a client that is slow must not hold up the end

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: dict[socket.socket, None] = {}  # the oldest first
        self._opening = threading.Lock()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind. The base class would then ask a name server what the address is called."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection. If there are too many, the one that has been open for longest ends."""
        with self._opening:
            self._open[request] = None
            oldest = next(iter(self._open)) if len(self._open) > CONNECTIONS_MAX else None
            if oldest is not None:
                del self._open[oldest]
                with contextlib.suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # wakes its thread, which closes it
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._opening:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that hung up."""
