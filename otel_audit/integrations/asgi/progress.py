"""How far a request or a WebSocket connection has come, and what its end means."""

from __future__ import annotations

from typing import Any, Final, Protocol

from otel_audit.errors import is_stop
from otel_audit.event import Outcome
from otel_audit.integrations.asgi.types import Message

__all__ = ["HttpProgress", "Progress", "SocketProgress", "outcome_of_status"]

_CLIENT_CLOSED: Final = 499  # Source: nginx
_SERVER_ERROR: Final = 500
_FORBIDDEN: Final = 403
_SWITCHING: Final = 101

# Source: RFC 6455, section 7.4.1, and the IANA registry of close codes (3000 and 3003).
_GOOD_CLOSE: Final = frozenset({1000, 1001})
_NO_CODE: Final = 1005
_DENIED_CLOSE: Final = frozenset({1008, 3000, 3003})
_ERROR_CLOSE: Final = frozenset({1011, 1012, 1013, 1014})
_FAILED_CLOSE: Final = frozenset({1002, 1003, 1007, 1009, 1010})


class Progress(Protocol):
    """What is seen of one request or connection, message by message.

    `is_ending`: the server is about to get the last message. `is_gone`: the client left before that. `is_doubtful`: the
    last message is one that also ends an answer that failed, so that what is raised next tells how it went.
    """

    status_code: int | None
    is_ending: bool
    is_gone: bool
    is_doubtful: bool

    def is_last(self, message: Message) -> bool:
        """Whether nothing comes after this message of the application."""

    def sent(self, message: Message) -> None:
        """The server has this message of the application."""

    def received(self, message: Message) -> bool:
        """Whether it is over with this message to the application."""

    def outcome(self, error: BaseException | None) -> Outcome:
        """How it ended; `error`: what the application raised. `status_code` is known from here on."""

    @property
    def facts(self) -> dict[str, Any]:
        """What else is known of the end, as attributes."""


def outcome_of_status(status_code: int) -> Outcome:
    """What a status says of a request that was answered."""
    if status_code < 400:
        return Outcome.SUCCESS
    if status_code in (401, _FORBIDDEN):
        return Outcome.DENIED
    if status_code == _CLIENT_CLOSED:
        return Outcome.CANCELLED
    return Outcome.FAILURE if status_code < _SERVER_ERROR else Outcome.ERROR


class HttpProgress:
    """Of an HTTP request. Whole is only an answer whose last byte the server has taken."""

    __slots__ = ("_has_trailers", "_is_streamed", "_is_whole", "is_doubtful", "is_ending", "is_gone", "status_code")

    def __init__(self) -> None:
        self.status_code: int | None = None
        self.is_ending = False
        self.is_gone = False
        self.is_doubtful = False
        self._is_streamed = False
        self._is_whole = False
        self._has_trailers = False

    @property
    def facts(self) -> dict[str, Any]:
        """See `Progress`."""
        return {}

    def is_last(self, message: Message) -> bool:
        """See `Progress`."""
        match message["type"]:
            case "http.response.body" | "http.response.zerocopysend":
                return not message.get("more_body", False) and not self._has_trailers
            case "http.response.trailers":
                return not message.get("more_trailers", False)
            case "http.response.pathsend":
                return not self._has_trailers
        return False

    def sent(self, message: Message) -> None:
        """See `Progress`.

        What answers 500 for an exception lets it go on behind the answer. And a stream that breaks off below
        Starlette's `BaseHTTPMiddleware` ends as if it were whole, with an empty message, before the exception goes on.
        """
        if message["type"] == "http.response.start":
            self.status_code = message["status"]
            self._has_trailers = message.get("trailers", False)
        elif message.get("more_body", False):
            self._is_streamed = True
        if self.is_ending:
            self._is_whole = True
            self.is_doubtful = (self.status_code or 0) >= _SERVER_ERROR or (
                self._is_streamed and not message.get("body")
            )

    def received(self, message: Message) -> bool:
        """See `Progress`. That the client has gone is no end: the application may go on.

        Servers say it after the last byte too.
        """
        if message["type"] == "http.disconnect" and not self.is_ending:
            self.is_gone = True
        return False

    def outcome(self, error: BaseException | None) -> Outcome:
        """See `Progress`. An answer that nobody waited for any more is `cancelled`."""
        if self.status_code is None and not self.is_gone and isinstance(error, Exception | None):
            self.status_code = _SERVER_ERROR  # what servers answer then
        if self.is_gone or is_stop(error):
            return Outcome.CANCELLED
        if not self._is_whole or self.status_code is None:
            return Outcome.ERROR
        status = outcome_of_status(self.status_code)
        return Outcome.ERROR if error is not None and status is Outcome.SUCCESS else status


class SocketProgress:
    """Of a WebSocket connection, from its handshake to its close."""

    __slots__ = ("_close_code", "_denies", "is_doubtful", "is_ending", "is_gone", "status_code")

    def __init__(self) -> None:
        self.status_code: int | None = None
        self.is_ending = False
        self.is_gone = False
        self.is_doubtful = False
        self._close_code: int | None = None
        self._denies = False

    @property
    def facts(self) -> dict[str, Any]:
        """See `Progress`: the close code, if there is one."""
        return {} if self._close_code is None else {"websocket.close_code": self._close_code}

    def is_last(self, message: Message) -> bool:
        """See `Progress`."""
        kind = message["type"]
        return kind == "websocket.close" or (
            kind == "websocket.http.response.body" and not message.get("more_body", False)
        )

    def sent(self, message: Message) -> None:
        """See `Progress`."""
        match message["type"]:
            case "websocket.accept":
                self.status_code = _SWITCHING
            case "websocket.close" if self.status_code is None:
                self._denies = True
                self.status_code = _FORBIDDEN  # Source: ASGI specification, "Close - send event"
            case "websocket.close":
                self._close_code = message.get("code", 1000)
            case "websocket.http.response.start":
                self._denies = True
                self.status_code = message["status"]
        self.is_doubtful = self.is_ending and (self.status_code or 0) >= _SERVER_ERROR

    def received(self, message: Message) -> bool:
        """See `Progress`."""
        if message["type"] != "websocket.disconnect" or self.is_ending:
            return False
        self.is_gone = True
        self._close_code = message.get("code", _NO_CODE)
        return True

    def outcome(self, error: BaseException | None) -> Outcome:
        """See `Progress`.

        `unknown` after a code of the application's own, from 4000 on, and after 1005, which servers say of a client
        that closed without a code, and of one that was cut off.
        """
        if self._denies:
            return outcome_of_status(self.status_code or _FORBIDDEN)
        if self._close_code is not None:
            return self._outcome_of_close(self._close_code)
        is_refused = self.status_code is None
        if is_refused and not self.is_gone and isinstance(error, Exception | None):
            self.status_code = _SERVER_ERROR  # what servers answer a handshake that nobody took
        if self.is_gone or is_stop(error):
            return Outcome.CANCELLED
        return Outcome.SUCCESS if error is None and not is_refused else Outcome.ERROR

    def _outcome_of_close(self, code: int) -> Outcome:
        if code in _GOOD_CLOSE and self.status_code is not None:
            return Outcome.SUCCESS
        if self.is_gone:
            return Outcome.UNKNOWN if code == _NO_CODE and self.status_code is not None else Outcome.CANCELLED
        if code in _DENIED_CLOSE:
            return Outcome.DENIED
        if code in _ERROR_CLOSE:
            return Outcome.ERROR
        return Outcome.FAILURE if code in _FAILED_CLOSE else Outcome.UNKNOWN
