"""Export over OTLP/gRPC: each request is one call with one outcome.

Source: OTLP specification, "OTLP/gRPC". Target, metadata, compression and TLS are as in the official Python exporter,
with these differences: a client certificate is used also when no CA is set, and its file may hold the key; certificate
files are read again when they change; an export is one call, since the batch processor waits and sends again.

The first part of this module keeps forks and gRPC's library apart. The library runs threads of its own, which a child
does not have. Between calls it is prepared for a fork and starts anew in the child; during a call it is not. This was
found by running grpcio 1.85 with each value that the environment variable GRPC_ENABLE_FORK_SUPPORT may have when the
library is loaded:

* not set: one child in ten that is forked during a call is ended by a segmentation fault;
* `1`: a child that is forked during a call never comes back from `os.fork()`;
* `0`: every call in a child hangs, past its deadline, or aborts the process, if its parent made a call before.

So a fork waits for calls that are under way, and ends those that take long: their records are sent again. A fork from
C runs no hooks of Python, and calls of other parts of the process are theirs to look after.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty
from urllib.parse import urlsplit

import grpc
import grpc._channel  # the library would import it at the first call: a child that is forked then waits for it for ever
import msgspec

from otel_audit._version import __version__
from otel_audit.delivery.otlp.grpc_answers import GrpcAnswer, outcome_of
from otel_audit.delivery.otlp.http_answers import readable
from otel_audit.delivery.outcomes import ExportOutcome, Fault, Unavailable
from otel_audit.delivery.suppression import instrumentation_suppressed, keep_clients_quiet
from otel_audit.errors import ConfigError
from otel_audit.settings import Compression, OtlpSettings
from otel_audit.threads import SimpleQueue, new_lock, process

__all__ = ["OtlpGrpcExporter", "call_in_progress", "trouble_after_fork"]


# A call to a healthy endpoint has ended by then, and a fork that takes a second is not yet taken for one that hangs.
_CALL_MAY_TAKE_S = 1.0
_END_MAY_TAKE_S = 5.0

_SETTING = os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "").strip().lower()
_IS_OFF = _SETTING in ("0", "false", "no", "off")


class _Calls:
    """The calls that are under way in this process, and the forks that wait for them."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._enders: list[Callable[[], None]] = []
        self._forks: list[threading.Lock] = []  # each is locked until its fork is over
        self._ends: SimpleQueue[None] = SimpleQueue()

    def begin(self, end: Callable[[], None]) -> None:
        while True:
            with self._lock:
                if not self._forks:
                    self._enders.append(end)
                    return
                fork = self._forks[-1]
            with fork:
                continue

    def ended(self, end: Callable[[], None]) -> None:
        with self._lock:
            self._enders.remove(end)
            for _ in self._forks:
                self._ends.put(None)

    def before_fork(self) -> None:
        fork = new_lock()
        fork.acquire()
        with self._lock:
            self._forks.append(fork)
        if self._are_over_within(_CALL_MAY_TAKE_S):
            return
        with self._lock:
            enders = list(self._enders)
        for end in enders:
            end()
        self._are_over_within(_END_MAY_TAKE_S)

    def after_fork(self) -> None:
        with self._lock:
            if self._forks:
                self._forks.pop().release()

    def _are_over_within(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self._enders and (left_s := deadline - time.monotonic()) > 0:
            with suppress(Empty):
                self._ends.get(timeout=left_s)
        return not self._enders


_calls = _Calls()
_used_by_pid: int | None = None


@contextmanager
def call_in_progress(end: Callable[[], None]) -> Iterator[None]:
    """Use gRPC's library inside this context: forks wait meanwhile. It cannot be nested.

    If a fork cannot wait any longer, another thread calls `end`, which makes the call return at once.
    """
    global _used_by_pid
    calls = _calls
    calls.begin(end)
    _used_by_pid = os.getpid()
    try:
        yield
    finally:
        calls.ended(end)


def trouble_after_fork() -> str | None:
    """Return why a call would hang in this process, or None if calls work."""
    if _IS_OFF and _used_by_pid not in (None, os.getpid()):
        return (
            f"gRPC does not work in a forked process with GRPC_ENABLE_FORK_SUPPORT={_SETTING}: do not set it, or set "
            "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"
        )
    return None


def _after_fork_in_child() -> None:
    global _calls
    _calls = _Calls()  # threads of the parent may have been inside the other one


os.register_at_fork(
    before=lambda: _calls.before_fork(),
    after_in_parent=lambda: _calls.after_fork(),
    after_in_child=_after_fork_in_child,
)


_METHOD = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
_STATUS_TRAILER = "grpc-status-details-bin"
# Source: gRPC over HTTP/2, "Custom-Metadata". The library refuses others at each call.
_METADATA_NAME = re.compile(r"[0-9a-z_.-]+")
_METADATA_VALUE = re.compile(r"[\x20-\x7e]*")
# Shorter parts of a header ("Bearer", a tenant's number) may be ordinary words of a message.
_SECRET_MIN_CHARS = 8
# The part of the time-out in which a connection must be made. A call without one ends as UNAVAILABLE by then,
# so that a time-out always means that the request was under way.
_CONNECT_SHARE = 0.75
# After these, the connection or its certificates may be at fault. The next export makes a new one,
# without the growing pauses of the library, since the batch processor has its own.
_RECONNECT_AFTER = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
    }
)

_FileState = tuple[int, int, int]


class _Connection(msgspec.Struct, frozen=True):
    """A channel, the process that may use it, and the state of the TLS files that it was made with."""

    channel: grpc.Channel
    export: grpc.UnaryUnaryMultiCallable[bytes, bytes]
    owner: tuple[int, int]
    files: tuple[_FileState, ...]


class OtlpGrpcExporter:
    """Send serialised requests to one endpoint over one connection, one export at a time.

    Nothing is shared over a fork: a child makes a connection of its own. A fork waits a second for an export that is
    under way, then ends it, and its records are sent again. No pings keep an idle connection open, since
    servers punish them by default; one that broke in silence costs the time-out of one export.
    `options` are added to those of the channel. Source: gRPC core, "grpc_types.h".

    Raises:
        ConfigError: the endpoint or a header cannot be sent at all.
    """

    def __init__(self, settings: OtlpSettings, *, options: Sequence[tuple[str, str | int]] = ()) -> None:
        self._settings = settings
        self._target = _target(settings.endpoint)
        self._metadata = tuple(_metadatum(name.lower(), value) for name, value in settings.headers)
        self._secrets = _secrets(settings)
        self._options = (*_options(settings), *options)
        self._connection: _Connection | None = None
        self._abandoned: list[_Connection] = []
        keep_clients_quiet()

    def export(self, request: bytes, records: int) -> ExportOutcome:
        """Send a serialised ExportLogsServiceRequest of `records` records, and return what became of them.

        It returns within the time-out of the settings, whatever the network does.
        """
        if trouble := trouble_after_fork():
            return Unavailable(trouble)
        with instrumentation_suppressed(), call_in_progress(self._end_call):
            try:
                connection = self._current_connection()
            except OSError as error:  # of a TLS file
                return Unavailable(f"{error.filename}: {error.strerror}", fault=Fault.TLS)
            answer = self._answer_to(request, connection)
            if answer.code in _RECONNECT_AFTER:
                self._let_go()
        return outcome_of(answer, records)

    def close(self) -> None:
        """Close the connection. A later export opens a new one."""
        if self._connection is not None:
            with call_in_progress(self._end_call):
                self._let_go()

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if connection.owner == process():
            connection.channel.close()
        else:
            # Closing takes locks that a thread of the parent may have held at the fork, and so does its destructor.
            self._abandoned.append(connection)

    def _end_call(self) -> None:
        connection = self._connection
        if connection is not None:
            connection.channel.close()  # a call that is under way comes back as CANCELLED

    def _answer_to(self, request: bytes, connection: _Connection) -> GrpcAnswer:
        try:
            message = connection.export(request, timeout=self._settings.timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            return self._failed(error)
        except ValueError:  # what the library raises when the channel was closed before the call
            return GrpcAnswer(grpc.StatusCode.CANCELLED, "the connection was closed")
        return GrpcAnswer(grpc.StatusCode.OK, message=message, secrets=self._secrets)

    def _failed(self, error: grpc.RpcError) -> GrpcAnswer:
        if not isinstance(error, grpc.Call):
            return GrpcAnswer(grpc.StatusCode.UNKNOWN, type(error).__name__)
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            details = f"no answer within {self._settings.timeout_s:g} s"
        status = dict(error.trailing_metadata() or ()).get(_STATUS_TRAILER, b"")
        return GrpcAnswer(code, details, status=bytes(status), secrets=self._secrets)

    def _current_connection(self) -> _Connection:
        files = tuple(_state(path) for path in _tls_files(self._settings))
        held = self._connection
        if held is not None and held.owner == process() and held.files == files:
            return held
        self._let_go()
        self._connection = connection = self._connected(files)
        return connection

    def _connected(self, files: tuple[_FileState, ...]) -> _Connection:
        """Return a connection that is made at its first call. `state` was read before the files: a change between
        the two is noticed at the next export."""
        compression = _COMPRESSION[self._settings.compression]
        if self._settings.insecure:
            channel = grpc.insecure_channel(self._target, self._options, compression)
        else:
            channel = grpc.secure_channel(self._target, _credentials(self._settings), self._options, compression)
        # Pass bytes both ways: the request is serialised already, and the library would log an answer that is not OTLP.
        return _Connection(channel, channel.unary_unary(_METHOD), process(), files)


_COMPRESSION = {Compression.NONE: grpc.Compression.NoCompression, Compression.GZIP: grpc.Compression.Gzip}


def _options(settings: OtlpSettings) -> tuple[tuple[str, str | int], ...]:
    connect_ms = max(1, int(settings.timeout_s * 1000 * _CONNECT_SHARE))
    return (
        ("grpc.primary_user_agent", f"otel-audit/{__version__}"),
        # Channels to one place share their connection otherwise: with other exporters of the process, with their
        # pauses after a failure, and in a forked child with the parent.
        ("grpc.use_local_subchannel_pool", 1),
        # An attempt to connect lasts for the longer of the two; the library adds up to a fifth to the second.
        ("grpc.min_reconnect_backoff_ms", connect_ms),
        ("grpc.initial_reconnect_backoff_ms", connect_ms),
        ("grpc.dns_ares_query_timeout_ms", connect_ms),
    )


def _target(endpoint: str) -> str:
    """Return the target in the form that the library takes: host and port, or its own kind of URL."""
    try:
        parts = urlsplit(endpoint)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https"):
        return endpoint
    if not parts.netloc or "@" in parts.netloc:
        raise ConfigError(
            "OTEL_EXPORTER_OTLP_ENDPOINT: expected http://host:port or https://host:port without a user for gRPC, got "
            f"{readable(parts.netloc.rpartition('@')[2])!r} behind the user; send credentials with "
            "OTEL_EXPORTER_OTLP_HEADERS"
        )
    return parts.netloc


def _metadatum(name: str, value: str) -> tuple[str, str | bytes]:
    """Return one header as metadata. If its name ends in `-bin`, its value is base64 and becomes bytes.

    Source: gRPC over HTTP/2, "Binary-Header".
    """
    try:
        if _METADATA_NAME.fullmatch(name) and _METADATA_VALUE.fullmatch(value):
            return (name, _decoded(value)) if name.endswith("-bin") else (name, value)
    except binascii.Error:
        pass
    raise ConfigError(
        "OTEL_EXPORTER_OTLP_HEADERS: expected names of a-z, 0-9, - _ . and values of printable ASCII for gRPC (base64 "
        f"for a name that ends in -bin), got something else in the name or the value of {readable(name)!r}"
    ) from None


def _decoded(value: str) -> bytes:
    return base64.b64decode(value + "=" * (-len(value) % 4), validate=True)


def _secrets(settings: OtlpSettings) -> tuple[str, ...]:
    """Return the parts of the headers that may be tokens, since a server may repeat them in its message."""
    words = {word for _, value in settings.headers for word in value.split()}
    return tuple(sorted((word for word in words if len(word) >= _SECRET_MIN_CHARS), key=len, reverse=True))


def _tls_files(settings: OtlpSettings) -> list[str]:
    if settings.insecure:
        return []
    return [path for path in (settings.certificate, settings.client_key, settings.client_certificate) if path]


def _state(path: str) -> _FileState:
    """Return a value that changes if the file is written or replaced, also behind a symbolic link."""
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns


def _credentials(settings: OtlpSettings) -> grpc.ChannelCredentials:
    chain = _content(settings.client_certificate)
    # Without a key the library would abort the process, so the certificate's file must hold it.
    key = _content(settings.client_key or settings.client_certificate)
    return grpc.ssl_channel_credentials(_content(settings.certificate), key, chain)


def _content(path: str | None) -> bytes | None:
    if path is None:
        return None
    with open(path, "rb") as file:
        return file.read()
