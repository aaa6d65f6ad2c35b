"""Export over OTLP/HTTP: each request has one answer and one outcome.

Source: OTLP specification, "OTLP/HTTP". URL, headers, compression, TLS, proxies and `.netrc` are as in the official
Python exporter, which stands on `requests` too, with three differences: an `authorization` header that is set is sent,
where `.netrc` or a user in the URL would replace it there; a CA that is set for the exporter is used even when
REQUESTS_CA_BUNDLE is set for the process; and cookies are sent back only while every answer is a success.
"""

from __future__ import annotations

import gzip
import http.client
import netrc  # noqa: F401  # else `requests` imports it in its first call: a child forked then never gets that lock
import socket
import ssl
import zlib
from collections.abc import Iterator
from urllib.parse import urlsplit

import requests
import urllib3

from otel_audit._version import __version__
from otel_audit.delivery.otlp.http_answers import HttpAnswer, outcome_of, readable
from otel_audit.delivery.otlp.http_session import BoundedSession, HttpExchange, exchange_within
from otel_audit.delivery.outcomes import ExportOutcome, Fault, Unavailable, UnavailableFor
from otel_audit.delivery.suppression import instrumentation_suppressed, keep_clients_quiet
from otel_audit.errors import ConfigError
from otel_audit.settings import Compression, OtlpSettings
from otel_audit.threads import process

__all__ = ["OtlpHttpExporter"]

# A success is believed when all of its body is OTLP, however long its warning is; this is gRPC's limit for an answer.
_SUCCESS_LIMIT_BYTES = 4 * 1024 * 1024
# Only a short message of any other answer is kept, so reading more would be wasted.
_FAILURE_LIMIT_BYTES = 64 * 1024
_READ_AT_ONCE_BYTES = 4096  # what arrived before a connection broke may give the reason
# A balance of speed and size: level 9 takes three times as long to save a few per cent.
_GZIP_LEVEL = 6
_COOKIES_MAX = 32
# Shorter parts of a header ("Bearer", a tenant's number) may be ordinary words of a message.
_SECRET_MIN_CHARS = 8

# ValueError: a name cannot be encoded for the resolver. The others come from the network or from TLS files.
_FAULTS = (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError, ValueError)


class OtlpHttpExporter:
    """Post serialised requests to one endpoint over connections that are kept, one export at a time.

    Nothing is shared over a fork: a child opens connections of its own.

    Raises:
        ConfigError: the endpoint or a header cannot be sent at all.
    """

    def __init__(self, settings: OtlpSettings) -> None:
        self._settings = settings
        self._headers = _headers(settings)
        self._session: BoundedSession | None = None
        self._owner = process()
        self._in_use = False
        self._abandoned: BoundedSession | None = None
        _check_sendable(settings.endpoint, self._headers)
        keep_clients_quiet()

    def export(self, request: bytes, records: int) -> ExportOutcome:
        """Send a serialised ExportLogsServiceRequest of `records` records, and return what became of them.

        It returns within the time-out of the settings, whatever the network does. Only the resolver has its own limit.
        """
        with instrumentation_suppressed(), exchange_within(self._settings.timeout_s) as exchange:
            result = self._posted(_compressed(request, self._settings.compression), exchange)
        return outcome_of(result, records) if isinstance(result, HttpAnswer) else result

    def close(self) -> None:
        """Close all connections. A later export opens a new one."""
        self._let_go_of_a_parents_session()
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _posted(self, body: bytes, exchange: HttpExchange) -> HttpAnswer | Unavailable:
        try:
            return self._answer_to(body, exchange)
        except _FAULTS as error:
            self.close()
            if not exchange.met_a_stale_connection:
                return _fault(error, exchange, self._settings)
        # Sending twice is safe: delivery is at least once, and records carry their ids.
        exchange.start_again()
        try:
            return self._answer_to(body, exchange)
        except _FAULTS as error:
            self.close()
            return _fault(error, exchange, self._settings)

    def _answer_to(self, body: bytes, exchange: HttpExchange) -> HttpAnswer:
        session = self._own_session()
        self._in_use = True
        try:
            with session.post(
                self._settings.endpoint,
                data=body,
                headers=self._headers,
                timeout=exchange.remaining_s(),
                allow_redirects=False,
                stream=True,
                auth=_as_given if "authorization" in self._headers else None,
                verify=self._settings.certificate,
                cert=_client_certificate(self._settings),
            ) as response:
                if response.status_code >= 300 or len(session.cookies) > _COOKIES_MAX:
                    # A cookie may be what is wrong: too many or too long ones, or one that pins us to a broken server.
                    session.cookies.clear()
                return self._read(response, exchange)
        finally:
            self._in_use = False

    def _read(self, response: requests.Response, exchange: HttpExchange) -> HttpAnswer:
        body, cut = bytearray(), None
        is_success = 200 <= response.status_code < 300
        limit = _SUCCESS_LIMIT_BYTES if is_success else _FAILURE_LIMIT_BYTES
        try:
            for piece in _pieces(response, limit):
                body += piece
            if is_success and len(body) == limit and response.raw.read(1, decode_content=True):
                cut = Unavailable(
                    f"{response.status_code} with a body of more than {limit} bytes, which no answer of OTLP has",
                    fault=Fault.NOT_OTLP,
                )
        except _FAULTS as error:
            cut = _fault(error, exchange, self._settings)
        secrets = _secrets(response.request, self._headers)
        return HttpAnswer(response.status_code, response.headers, bytes(body), cut, secrets)

    def _own_session(self) -> BoundedSession:
        self._let_go_of_a_parents_session()
        if self._session is None:
            self._session = BoundedSession()
        return self._session

    def _let_go_of_a_parents_session(self) -> None:
        """Close the copies of a parent's connections that a fork left in this child. The parent goes on using them."""
        if self._owner == process():
            return
        inherited, self._session = self._session, None
        if inherited is not None and self._in_use:
            # A thread of the parent was inside it at the fork: locks in there may be held for ever. Even its
            # destructor would take them, so it is kept.
            self._abandoned = inherited
        elif inherited is not None:
            inherited.close()
        self._owner, self._in_use = process(), False


def _headers(settings: OtlpSettings) -> dict[str, str]:
    headers = {"content-type": "application/x-protobuf", "user-agent": f"otel-audit/{__version__}"}
    headers.update((name.lower(), value) for name, value in settings.headers)
    if settings.compression is not Compression.NONE:
        headers.setdefault("content-encoding", settings.compression.value)
    return headers


def _check_sendable(endpoint: str, headers: dict[str, str]) -> None:
    """Raise for settings that would fail at every export. Never show the value of a header: it may be a token."""
    try:
        scheme = urlsplit(endpoint).scheme
        requests.Request("POST", endpoint).prepare()
    except (requests.RequestException, ValueError):
        scheme = ""
    if scheme not in ("http", "https"):
        raise ConfigError(
            "OTEL_EXPORTER_OTLP_ENDPOINT: expected a URL that begins with http:// or https://, "
            f"got {readable(endpoint.rpartition('@')[2])!r}; for OTLP over gRPC set OTEL_EXPORTER_OTLP_PROTOCOL=grpc"
        )
    for name, value in headers.items():
        if not _is_sendable(name, value):
            raise ConfigError(
                "OTEL_EXPORTER_OTLP_HEADERS: expected text that an HTTP header can carry (Latin-1, one line), "
                f"got other characters in the name or the value of {readable(name)!r}; percent-encode them"
            )


def _is_sendable(name: str, value: str) -> bool:
    try:
        requests.utils.check_header_validity((name, value))
        value.encode("latin-1")
        name.encode("ascii")
    except (requests.exceptions.InvalidHeader, UnicodeError):
        return False
    return True


def _compressed(request: bytes, compression: Compression) -> bytes:
    match compression:
        case Compression.GZIP:
            return gzip.compress(request, compresslevel=_GZIP_LEVEL, mtime=0)
        case Compression.DEFLATE:
            return zlib.compress(request)
        case Compression.NONE:
            return request


def _client_certificate(settings: OtlpSettings) -> str | tuple[str, str] | None:
    if settings.client_certificate and settings.client_key:
        return settings.client_certificate, settings.client_key
    return settings.client_certificate  # a file that holds the key as well


def _as_given(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keep our headers. Without this, `requests` would replace them by the credentials of `.netrc` or the URL."""
    return request


def _pieces(response: requests.Response, limit_bytes: int) -> Iterator[bytes]:
    response.raw.enforce_content_length = True  # off in urllib3 1, where a body that was cut would look empty
    left = limit_bytes
    while left > 0 and (piece := response.raw.read(min(left, _READ_AT_ONCE_BYTES), decode_content=True)):
        yield piece[:left]
        left -= len(piece)


def _secrets(request: requests.PreparedRequest, ours: dict[str, str]) -> tuple[str, ...]:
    """Return the parts of the request that may be tokens, since a server may repeat them in its message."""
    names = {*ours, "authorization", "proxy-authorization", "cookie"} - {
        "content-type",
        "content-encoding",
        "user-agent",
    }
    words = {word for name in names for word in request.headers.get(name, "").split()}
    return tuple(sorted((word for word in words if len(word) >= _SECRET_MIN_CHARS), key=len, reverse=True))


def _fault(error: BaseException, exchange: HttpExchange, settings: OtlpSettings) -> Unavailable:
    """Return why there is no complete answer. A time-out counts as one only if something was sent.

    Otherwise the size of the batch is not the reason, and halving it would not help.
    """
    place = urlsplit(settings.endpoint).netloc.rpartition("@")[2]
    causes = list(_causes(error))
    if any(isinstance(cause, TimeoutError | urllib3.exceptions.TimeoutError) for cause in causes):
        missing = "answer" if exchange.sent else "connection"
        cause = UnavailableFor.TIMEOUT if exchange.sent else UnavailableFor.ENDPOINT
        return Unavailable(f"{place}: no {missing} within {settings.timeout_s:g} s", cause, fault=Fault.SLOW)
    words, fault = _words(causes, exchange)
    if any(isinstance(cause, urllib3.exceptions.ProxyError) for cause in causes):
        words, fault = f"proxy: {words}", Fault.PROXY
    cause = UnavailableFor.OVERLOAD if fault is Fault.CLOSED and exchange.sent else UnavailableFor.ENDPOINT
    return Unavailable(f"{place}: {words}", cause, fault=fault)


def _words(causes: list[BaseException], exchange: HttpExchange) -> tuple[str, Fault]:
    """Return the innermost cause in a few words, without texts of the HTTP libraries, which quote URLs and headers."""
    broken = f"connection closed {'within the' if exchange.answered else 'before an'} answer"
    for cause in reversed(causes):
        match cause:
            case socket.gaierror():
                return f"host name not found ({cause.strerror})", Fault.NAME
            case ssl.SSLCertVerificationError():
                return f"TLS certificate not trusted ({cause.verify_message})", Fault.TLS
            case ssl.SSLError():
                return f"TLS error ({cause.reason or 'connection closed'})", Fault.TLS
            case ConnectionRefusedError():
                return "connection refused", Fault.NOTHING_LISTENS
            case ConnectionError() | http.client.IncompleteRead() | urllib3.exceptions.IncompleteRead():
                return broken, Fault.CLOSED
            case http.client.HTTPException():
                return "an answer that is not HTTP", Fault.PROTOCOL
            case OSError() if not isinstance(cause, requests.RequestException):
                # Without a number, the error is what `requests` says about a TLS file.
                return readable(cause.strerror or str(cause)), Fault.TLS if cause.errno is None else Fault.OTHER
            case requests.exceptions.SSLError():
                return "TLS error (the server's certificate, most likely)", Fault.TLS
    return type(causes[0]).__name__, Fault.OTHER


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Return the error and its causes, outermost first, also those that the libraries wrap in arguments."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    for cause in waiting:
        if isinstance(cause, BaseException) and id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            waiting += [*cause.args, getattr(cause, "reason", None), cause.__cause__, cause.__context__]
