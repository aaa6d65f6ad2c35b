"""What stands between a client and a server on loopback: it passes on, keeps what was sent, and can fall silent."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

__all__ = ["Relay"]


class Relay:
    """Passes connections on to a server while entered, and keeps what the latest client sent."""

    def __init__(self, port: int) -> None:
        self.sent = bytearray()
        self.connections = 0
        self._upstream = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._sockets: list[socket.socket] = []
        self._silence = threading.Event()  # of the connections that there are

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):  # it is closed already
                each.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def fall_silent(self) -> None:
        """Nothing goes over the connections that there are any more, and no side is told; later ones are passed on.

        So does a firewall that has forgotten a connection.
        """
        fallen, self._silence = self._silence, threading.Event()
        fallen.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.sent = bytearray()  # a new one: the connection before may still say its last words
            self.connections += 1
            self._threads.append(threading.Thread(target=self._serve, args=(client, self.sent, self._silence)))
            self._threads[-1].start()

    def _serve(self, client: socket.socket, sent: bytearray, silence: threading.Event) -> None:
        with client, socket.create_connection(self._upstream) as server:
            self._sockets += [client, server]
            back = threading.Thread(target=self._pump, args=(server, client, bytearray(), silence))
            back.start()
            self._pump(client, server, sent, silence)
            back.join()

    def _pump(self, source: socket.socket, sink: socket.socket, kept: bytearray, silence: threading.Event) -> None:
        try:
            while data := source.recv(65536):
                kept += data
                if not silence.is_set():
                    sink.sendall(data)
            if not silence.is_set():
                sink.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the other side went first
