"""What to do about an export that failed, by the reason that it gave.

A reason begins with a status of HTTP, or a code of gRPC, or is of the connection; then come the words of the server or
the client's library. What a server says about itself comes after its status, so statuses are looked at first.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["remedy_for"]

_CREDENTIALS: Final = (
    "send credentials that are valid there with OTEL_EXPORTER_OTLP_HEADERS, for instance authorization=Bearer%20TOKEN"
)
_PROXY: Final = "correct HTTPS_PROXY or HTTP_PROXY, or name the host of the endpoint in NO_PROXY"
_PATH: Final = (
    "write the path for OTLP logs: /v1/logs is added to OTEL_EXPORTER_OTLP_ENDPOINT, and "
    "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT is taken as it is; a collector also needs a pipeline for logs"
)
_SOMETHING_ELSE: Final = (
    "something else answers there, such as a sign-in page or a proxy: point OTEL_EXPORTER_OTLP_ENDPOINT at the "
    "collector itself, or send credentials with OTEL_EXPORTER_OTLP_HEADERS"
)
_PIPELINE: Final = (
    "no OTLP logs are taken over gRPC there: give the collector a pipeline for logs, or set "
    "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf if the port is for HTTP"
)
_CLIENT_CERTIFICATE: Final = (
    "for a server that asks for a client certificate set OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and "
    "OTEL_EXPORTER_OTLP_CLIENT_KEY"
)
_TLS: Final = (
    "set OTEL_EXPORTER_OTLP_CERTIFICATE to the CA of the server's certificate, which must name the host of the "
    f"endpoint; {_CLIENT_CERTIFICATE}; for one without TLS write the endpoint with http://"
)
_OTHER_PROTOCOL: Final = (
    "another protocol is spoken there: set OTEL_EXPORTER_OTLP_PROTOCOL to grpc (port 4317) or http/protobuf (port "
    "4318), whichever the port is for, and write the endpoint with https:// if it has TLS"
)
_CLOSED: Final = (
    "the other side hangs up: set OTEL_EXPORTER_OTLP_PROTOCOL to what the port is for, grpc (4317) or http/protobuf "
    f"(4318), and write the endpoint with https:// if it has TLS; {_CLIENT_CERTIFICATE}"
)
_SLOW: Final = (
    "let the network and its firewalls pass connections there, look whether the collector is overloaded, or raise "
    "OTEL_EXPORTER_OTLP_TIMEOUT, in seconds"
)
_NOTHING: Final = "nothing listens there: start the collector, or correct OTEL_EXPORTER_OTLP_ENDPOINT"
_NAME: Final = "correct the host in OTEL_EXPORTER_OTLP_ENDPOINT, or the name service that this machine asks"
_REFUSED: Final = (
    "OTLP is taken there, but not this record: look into its log, and at the limits of the store behind it"
)
_BUSY: Final = "raise the limits of rate, size or memory there, or wait: events are kept in the journal"
_SERVER: Final = "look into the log of the collector: it has trouble itself, or what is behind it has"
_ANY: Final = "correct OTEL_EXPORTER_OTLP_ENDPOINT, or what stands between this machine and it"

_REMEDIES: Final = tuple(
    (re.compile(pattern), remedy)
    for pattern, remedy in (
        (r"^(401|403)\b|^(UNAUTHENTICATED|PERMISSION_DENIED)\b", _CREDENTIALS),
        (r"^407\b|: proxy: ", _PROXY),
        (r"^(404|405)\b|^NOT_FOUND\b", _PATH),
        (r"^3\d\d\b|^2\d\d with a body that is not OTLP|^OK with a message that is not OTLP", _SOMETHING_ELSE),
        (r"^UNIMPLEMENTED\b", _PIPELINE),
        (r"^(413|429)\b|^RESOURCE_EXHAUSTED\b", _BUSY),
        (r"^(400|422)\b|^INVALID_ARGUMENT\b|^\d+ of \d+ records rejected", _REFUSED),
        (r"^415\b", _OTHER_PROTOCOL),
        (r"^408\b|^DEADLINE_EXCEEDED\b", _SLOW),
        (r"^[45]\d\d\b", _SERVER),
        (r"[Cc]onnection refused", _NOTHING),
        (r"host name not found|DNS resolution failed|[Dd]omain name not found", _NAME),
        (r"no (answer|connection) within|[Tt]imed? ?out", _SLOW),
        (r"TLS |[Hh]andshake|SSL|CERTIFICATE", _TLS),
        (r"not HTTP|HTTP/2|http1", _OTHER_PROTOCOL),
        (r"connection closed|[Ss]ocket closed|[Cc]onnection reset", _CLOSED),
        (r"^(UNAVAILABLE|INTERNAL|UNKNOWN|ABORTED|CANCELLED|OUT_OF_RANGE|DATA_LOSS)\b", _SERVER),
    )
)


def remedy_for(reason: str) -> str:
    """What to do about the reason of a refusal or of an endpoint that does not answer well; never empty."""
    return next((remedy for pattern, remedy in _REMEDIES if pattern.search(reason)), _ANY)
