"""A receiver of OTLP over HTTP and gRPC in a process of its own: `python -m benchmarks.receiver`.

It answers as a collector does and keeps what it got; how many different records that was is worked out only when it is
asked, so that it takes as little of the processor as it can while something is measured.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from urllib.request import Request, urlopen

import grpc
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse

__all__ = ["Receiver", "receiver"]

_ACCEPTED: Final = ExportLogsServiceResponse().SerializeToString()
_RECORD_ID: Final = "audit.record.id"
_ASK_TIMEOUT_S: Final = 60.0


class Receiver:
    """A running receiver, for who measures."""

    def __init__(self, port: int, grpc_port: int) -> None:
        self.base = f"http://127.0.0.1:{port}"
        self.grpc_url = f"http://127.0.0.1:{grpc_port}"

    @property
    def logs_url(self) -> str:
        """Where log records are posted."""
        return f"{self.base}/v1/logs"

    def take(self) -> set[str]:
        """The ids of all records that came since the last time."""
        with urlopen(Request(f"{self.base}/take", method="GET"), timeout=_ASK_TIMEOUT_S) as answer:
            return set(json.load(answer))


@contextlib.contextmanager
def receiver() -> Iterator[Receiver]:
    """A receiver in a child process, ended with the block."""
    command = [sys.executable, "-m", "benchmarks.receiver"]
    root = Path(__file__).resolve().parents[1]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            ports = child.stdout.readline().split()
            if not ports:
                raise RuntimeError(f"expected the receiver to say its ports, got its end: exit status {child.wait()}")
            yield Receiver(*map(int, ports))
        finally:
            child.stdin.close()  # it lives as long as this pipe, so it never outlives the benchmark


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()
        self.bodies: list[tuple[str, bytes]] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        with self.server.lock:
            self.server.bodies.append((self.headers.get("Content-Encoding", ""), body))
        self._answer("application/x-protobuf", _ACCEPTED)

    def do_GET(self) -> None:
        with self.server.lock:
            bodies, self.server.bodies = self.server.bodies, []
        self._answer("application/json", json.dumps(_record_ids(bodies)).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""

    def _answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _record_ids(bodies: list[tuple[str, bytes]]) -> list[str]:
    """The ids of the events; records that the journal wrote itself are none."""
    ids = []
    for encoding, body in bodies:
        request = ExportLogsServiceRequest.FromString(gzip.decompress(body) if encoding == "gzip" else body)
        for resource_logs in request.resource_logs:
            for scope_logs in resource_logs.scope_logs:
                for record in scope_logs.log_records:
                    if not record.event_name.startswith("audit."):
                        ids += [each.value.string_value for each in record.attributes if each.key == _RECORD_ID]
    return ids


class _Calls(grpc.GenericRpcHandler):
    """Takes each call as an export of logs, as it stands on the wire."""

    def __init__(self, server: _Server) -> None:
        self._server = server

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        return grpc.unary_unary_rpc_method_handler(self._export)

    def _export(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        with self._server.lock:
            self._server.bodies.append(("", body))
        return _ACCEPTED


def _serve() -> None:
    server = _Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    calls = grpc.server(ThreadPoolExecutor(1), handlers=[_Calls(server)])
    grpc_port = calls.add_insecure_port("127.0.0.1:0")
    calls.start()
    print(server.server_address[1], grpc_port, flush=True)
    sys.stdin.read()
    calls.stop(None)


if __name__ == "__main__":
    _serve()
