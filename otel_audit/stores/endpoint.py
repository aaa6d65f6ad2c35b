"""A log store behind HTTP: its URL, the credentials, and one response at a time.

    loki+https://ann:secret@logs.example.com/prefix?tenant=audit&ca_file=/etc/ca.pem

The URL holds the credentials: `user:password@` for basic authentication, `bearer_file` for a file with a token, and
`tenant` for a store with several tenants. A URL cannot hold a token, since every user of a machine can read the
arguments of a process. The environment contributes only proxies: no `.netrc` overrides the URL.

Source: RFC 9110 for HTTP, RFC 6750 for bearer tokens, RFC 7617 for basic authentication.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from otel_audit.fast_line import time_ns_of
from otel_audit.stores.store import StoreUnreadable

if TYPE_CHECKING:
    import requests

__all__ = ["EndpointUrl", "LogEndpoint"]

_OPTIONS: Final = ("bearer_file", "ca_file", "cert_file", "end", "key_file", "query", "start", "tenant")
_TIMEOUT_S: Final = (10.0, 120.0)  # to connect, and between two bytes of an answer
_TRIES: Final = 5
_FIRST_PAUSE_S: Final = 0.5
_COME_BACK: Final = frozenset({429, 502, 503, 504})
_LINE_MAX_BYTES: Final = 64 << 20
_SAID_CHARS: Final = 300


@dataclass(frozen=True, slots=True)
class EndpointUrl:
    """The parts of a store's URL. `start_ns` and `end_ns` bound the times to read; None means no bound."""

    kind: str
    base: str  # without user, password and options
    user: str = ""
    password: str = ""
    tenant: str = ""
    bearer_file: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    query: str = ""
    start_ns: int | None = None
    end_ns: int | None = None

    @classmethod
    def parse(cls, url: str) -> EndpointUrl:
        """Parse the URL of a log store.

        Raises:
            StoreUnreadable: the URL is not that of a log store, or it has an unknown option.
        """
        parts = urlsplit(url)
        kind, _, scheme = parts.scheme.partition("+")
        if kind not in ("loki", "victorialogs") or scheme not in ("http", "https") or not parts.hostname:
            raise StoreUnreadable(
                "expected loki+http://HOST, loki+https://HOST, victorialogs+http://HOST or victorialogs+https://HOST, "
                f"got a URL that begins with {parts.scheme[:40]!r}"
            )
        options: dict[str, Any] = dict(parse_qsl(parts.query, keep_blank_values=True))
        if unknown := sorted(options.keys() - set(_OPTIONS)):
            raise StoreUnreadable(f"expected options of {', '.join(_OPTIONS)}, got {unknown[0]!r} in the URL of {kind}")
        times = {name: _time_of(name, options.pop(name)) for name in ("start", "end") if name in options}
        return cls(
            kind,
            urlunsplit((scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", "")),
            unquote(parts.username or ""),
            unquote(parts.password or ""),
            **options,
            start_ns=times.get("start"),
            end_ns=times.get("end"),
        )

    @property
    def shown(self) -> str:
        """The URL without credentials."""
        return f"{self.kind}+{self.base}"


def _time_of(name: str, text: str) -> int:
    found = time_ns_of(text)
    if found is None:
        raise StoreUnreadable(f"expected a time such as 2026-01-31T12:00:00Z for {name}, got {text[:40]!r}")
    return found


class LogEndpoint:
    """A client of a log store. For one thread."""

    def __init__(
        self, url: EndpointUrl, headers: Mapping[str, str], *, pause: Callable[[float], object] = time.sleep
    ) -> None:
        import requests  # takes 0.1 s, which commands that only read files should not spend

        self._url = url
        self._pause = pause
        self._session = requests.Session()
        self._session.headers.update(headers)
        self._session.auth = _authorisation(url)
        if url.cert_file:
            self._session.cert = (url.cert_file, url.key_file) if url.key_file else url.cert_file

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def get(self, path: str, parameters: Mapping[str, str]) -> bytes:
        """Return a whole response body.

        Raises:
            StoreUnreadable: there was no response, or it was an error.
        """
        with self._answer(path, parameters) as answer, self._said(path):
            return answer.content

    def lines(self, path: str, parameters: Mapping[str, str]) -> Iterator[bytes]:
        """Yield the lines of a response as they arrive, without their newlines. Only one line is held in memory.

        Raises:
            StoreUnreadable: there was no response, it was an error, or it broke off.
        """
        held = b""
        with self._answer(path, parameters) as answer, self._said(path):
            for portion in answer.iter_content(64 << 10):
                *whole, rest = portion.split(b"\n")
                if whole:
                    yield held + whole[0]
                    yield from whole[1:]
                    held = rest
                else:
                    held += rest
                if len(held) > _LINE_MAX_BYTES:
                    raise StoreUnreadable(f"{self._url.shown}{path}: expected lines, got one of more than 64 MiB")
        if held:
            yield held

    @contextmanager
    def _answer(self, path: str, parameters: Mapping[str, str]) -> Iterator[requests.Response]:
        answer = self._asked(path, parameters)
        try:
            if answer.status_code != 200:
                with self._said(path):
                    said = answer.text[:_SAID_CHARS]
                raise StoreUnreadable(f"{self._url.shown}{path}: {_expected(answer.status_code)}: {said!r}")
            yield answer
        finally:
            answer.close()

    def _asked(self, path: str, parameters: Mapping[str, str]) -> requests.Response:
        """Send a request, and once more after a pause if the store is busy or cannot be reached."""
        from requests import RequestException

        pause_s = _FIRST_PAUSE_S
        for left in reversed(range(_TRIES)):
            try:
                answer = self._session.get(
                    self._url.base + path,
                    params=dict(parameters),
                    timeout=_TIMEOUT_S,
                    stream=True,
                    verify=self._url.ca_file or None,  # REQUESTS_CA_BUNDLE would override the session's own setting
                    allow_redirects=False,  # a login page is not data, and no other host may see the password
                )
            except RequestException as error:
                if not left:
                    raise self._unreadable(path, error) from error
            else:
                if answer.status_code not in _COME_BACK or not left:
                    return answer
                answer.close()
            self._pause(pause_s)
            pause_s *= 2
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def _said(self, path: str) -> Iterator[None]:
        from requests import RequestException

        try:
            yield
        except RequestException as error:
            raise self._unreadable(path, error) from error

    def _unreadable(self, path: str, error: Exception) -> StoreUnreadable:
        # The text of the error may hold the URL with its parameters, but no credentials: those are in headers.
        return StoreUnreadable(f"{self._url.shown}{path}: expected an answer, got {type(error).__name__}: {error}")


def _authorisation(url: EndpointUrl) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    """Return a function that adds the credentials to a request. Without one, `requests` would look in `.netrc`."""
    from requests.auth import HTTPBasicAuth

    if url.bearer_file:
        try:
            token = Path(url.bearer_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            got = error.strerror if isinstance(error, OSError) else "bytes that are not UTF-8"
            raise StoreUnreadable(
                f"{url.bearer_file}: expected a file with a bearer token, got {got}; correct bearer_file= in the URL"
            ) from error

        def bearer(request: requests.PreparedRequest) -> requests.PreparedRequest:
            request.headers["Authorization"] = f"Bearer {token}"
            return request

        return bearer
    if url.user or url.password:
        return HTTPBasicAuth(url.user.encode(), url.password.encode())
    return lambda request: request


def _expected(status: int) -> str:
    match status:
        case 401 | 403:
            return (
                f"expected to be let in, got {status}; give user:password@ or bearer_file in the URL, and tenant if "
                "the store has several"
            )
        case _ if 300 <= status < 400:
            return f"expected an answer, got {status}, which leads elsewhere; give the URL of the store itself"
        case _:
            return f"expected an answer, got {status}"
