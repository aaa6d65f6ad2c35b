"""The finding of one check of `doctor`, and the remedies for an export that failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from otel_audit.delivery.outcomes import Fault, Refused, RefusedFor, Unavailable

__all__ = ["Finding", "remedy_for"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. Without a `remedy` all is well."""

    check: str
    says: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        """Return True if there is nothing to do."""
        return not self.remedy


_CREDENTIALS: Final = (
    "send credentials that are valid there with OTEL_EXPORTER_OTLP_HEADERS, for instance authorization=Bearer%20TOKEN"
)
_PROXY: Final = "correct HTTPS_PROXY or HTTP_PROXY, or name the host of the endpoint in NO_PROXY"
_PATH: Final = (
    "write the path for OTLP logs: /v1/logs is added to OTEL_EXPORTER_OTLP_ENDPOINT, and "
    "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT is used unchanged; a collector also needs a pipeline for logs"
)
_SOMETHING_ELSE: Final = (
    "something else answers there, such as a sign-in page or a proxy: point OTEL_EXPORTER_OTLP_ENDPOINT at the "
    "collector itself, or send credentials with OTEL_EXPORTER_OTLP_HEADERS"
)
_PIPELINE: Final = (
    "the endpoint takes no OTLP logs over gRPC: give the collector a pipeline for logs, or set "
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
    "the endpoint speaks another protocol: set OTEL_EXPORTER_OTLP_PROTOCOL to grpc (port 4317) or http/protobuf (port "
    "4318), whichever the port is for, and write the endpoint with https:// if it has TLS"
)
_CLOSED: Final = (
    "the other side hangs up: set OTEL_EXPORTER_OTLP_PROTOCOL to what the port is for, grpc (4317) or http/protobuf "
    f"(4318), and write the endpoint with https:// if it has TLS; {_CLIENT_CERTIFICATE}"
)
_SLOW: Final = (
    "let the network and its firewalls pass the connection, check whether the collector is overloaded, or raise "
    "OTEL_EXPORTER_OTLP_TIMEOUT, in seconds"
)
_NOTHING: Final = "nothing listens there: start the collector, or correct OTEL_EXPORTER_OTLP_ENDPOINT"
_NAME: Final = "correct the host in OTEL_EXPORTER_OTLP_ENDPOINT, or the name service of this machine"
_REFUSED: Final = "the endpoint takes OTLP, but not this record: check its log, and the limits of the store behind it"
_BUSY: Final = "raise the limits of rate, size or memory there, or wait: events are kept in the journal"
_SERVER: Final = "check the log of the collector: it has a fault itself, or the system behind it has"
_ANY: Final = "correct OTEL_EXPORTER_OTLP_ENDPOINT, or the network between this machine and it"

_REMEDIES: Final = {
    Fault.CREDENTIALS: _CREDENTIALS,
    Fault.PROXY: _PROXY,
    Fault.PATH: _PATH,
    Fault.PROTOCOL: _OTHER_PROTOCOL,
    Fault.NOT_OTLP: _SOMETHING_ELSE,
    Fault.NO_SERVICE: _PIPELINE,
    Fault.BUSY: _BUSY,
    Fault.SLOW: _SLOW,
    Fault.SERVER: _SERVER,
    Fault.NOTHING_LISTENS: _NOTHING,
    Fault.NAME: _NAME,
    Fault.TLS: _TLS,
    Fault.CLOSED: _CLOSED,
    Fault.OTHER: _ANY,
}


def remedy_for(outcome: Refused | Unavailable) -> str:
    """Return the remedy for a refusal, or for an unavailable endpoint. It is never empty."""
    match outcome:
        case Refused(about=RefusedFor.SIZE):
            return _BUSY
        case Refused():
            return _REFUSED
        case Unavailable(fault=fault):
            return _REMEDIES[fault]
