"""A real gRPC server on loopback that records what it receives and answers as a test says."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo  # type: ignore[import-untyped]  # it ships no types
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # it ships no types
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsPartialSuccess, ExportLogsServiceResponse

from tests.servers.certificates import Authority, KeyPair
from tests.servers.ports import LOOPBACK

__all__ = ["GrpcReceived", "GrpcReply", "OtlpGrpcServer", "error_info", "partly", "refusal", "retry_info"]

_STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class GrpcReply:
    """What the server does with one call."""

    code: grpc.StatusCode = grpc.StatusCode.OK
    details: str = ""
    message: bytes = b""
    trailers: tuple[tuple[str, str | bytes], ...] = ()
    delay_s: float = 0.0  # before anything is sent


@dataclass(frozen=True, slots=True)
class GrpcReceived:
    """One call, as it came."""

    method: str
    metadata: tuple[tuple[str, str | bytes], ...]
    message: bytes
    connection: str  # the client's address: the same on a kept connection

    def metadatum(self, name: str) -> str | bytes | None:
        """The value under a name, or None."""
        return dict(self.metadata).get(name)


def partly(rejected: int, message: str) -> GrpcReply:
    """An OK that says how many records were not taken."""
    partial = ExportLogsPartialSuccess(rejected_log_records=rejected, error_message=message)
    return GrpcReply(message=ExportLogsServiceResponse(partial_success=partial).SerializeToString())


def refusal(code: grpc.StatusCode, details: str, *more: Message) -> GrpcReply:
    """A status with messages beside it, in the trailer that is meant for them."""
    packed = []
    for detail in more:
        packed.append(AnyMessage())
        packed[-1].Pack(detail)
    status = Status(code=code.value[0], message=details, details=packed).SerializeToString()
    return GrpcReply(code, details, trailers=(("grpc-status-details-bin", status),) if more else ())


def retry_info(seconds: int, nanos: int = 0) -> Message:
    """When to come back."""
    asked: Message = RetryInfo(retry_delay=Duration(seconds=seconds, nanos=nanos))
    return asked


def error_info() -> Message:
    """A detail that says nothing of when to come back."""
    info: Message = ErrorInfo(reason="BUSY")
    return info


class _AnyMethod(grpc.GenericRpcHandler):
    def __init__(self, answer: Callable[[str, bytes, grpc.ServicerContext], bytes]) -> None:
        self._answer = answer

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """What takes the call, whatever its method; messages stay bytes."""
        return grpc.unary_unary_rpc_method_handler(partial(self._answer, handler_call_details.method))


class OtlpGrpcServer:
    """Listens on loopback while entered; accepts everything that no test said to refuse.

    `tls` is its certificate; `clients_of` issued those of the clients, which it then asks for. `address` is instead of
    loopback and `port`. It may be entered again.
    """

    def __init__(
        self,
        tls: KeyPair | None = None,
        clients_of: Authority | None = None,
        *,
        port: int = 0,
        address: str | None = None,
        options: Sequence[tuple[str, int]] = (),
    ) -> None:
        self.requests: list[GrpcReceived] = []
        self.port = port
        self._address = address
        self._tls = tls
        self._clients_of = clients_of
        self._options = [("grpc.so_reuseport", 0), *options]
        self._replies: deque[GrpcReply] = deque()
        self.judge: Callable[[bytes], GrpcReply | None] = lambda message: None  # where no reply was said before
        self._stopping = threading.Event()
        self._server: grpc.Server | None = None

    @property
    def endpoint(self) -> str:
        """The URL for clients."""
        return f"{'https' if self._tls else 'http'}://{LOOPBACK}:{self.port}"

    def will_answer(self, *replies: GrpcReply) -> None:
        """The next calls get these replies, in order."""
        self._replies.extend(replies)

    def __enter__(self) -> Self:
        self._stopping.clear()
        self._server = grpc.server(ThreadPoolExecutor(8), options=self._options)
        self._server.add_generic_rpc_handlers((_AnyMethod(self._answer),))
        self.port = self._bind(self._server, self._address or f"{LOOPBACK}:{self.port}")
        self._server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._server is not None
        self._stopping.set()
        assert self._server.stop(0).wait(_STOP_S), "the server did not stop"
        self._server = None

    def _bind(self, server: grpc.Server, address: str) -> int:
        if self._tls is None:
            return server.add_insecure_port(address)
        pair = (Path(self._tls.key).read_bytes(), Path(self._tls.certificate).read_bytes())
        roots = Path(self._clients_of.bundle).read_bytes() if self._clients_of else None
        return server.add_secure_port(address, grpc.ssl_server_credentials([pair], roots, roots is not None))

    def _answer(self, method: str, message: bytes, context: grpc.ServicerContext) -> bytes:
        metadata = tuple((name, value) for name, value in context.invocation_metadata())
        self.requests.append(GrpcReceived(method, metadata, message, context.peer()))
        reply = self._replies.popleft() if self._replies else self.judge(message) or GrpcReply()
        self._stopping.wait(reply.delay_s)
        context.set_trailing_metadata(reply.trailers)
        if reply.code is not grpc.StatusCode.OK:
            context.set_code(reply.code)
            context.set_details(reply.details)
        return reply.message
