"""The settings for OTLP, from OTel's variables, read as the official Python exporters read them.

If a value is wrong, those warn and go on, or fail at the first export. Here it stops start-up.

Source: OTel specification, "OpenTelemetry Protocol Exporter"; opentelemetry-exporter-otlp-proto-http and -grpc 1.45.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Never
from urllib.parse import SplitResult, urlsplit

import msgspec
from opentelemetry.util.re import parse_env_headers

from otel_audit.settings.reader import Reader
from otel_audit.settings.setting import (
    Choice,
    ExistingPath,
    Milliseconds,
    Mismatch,
    Origin,
    Seconds,
    Setting,
    Switch,
    Variable,
)

__all__ = ["OTLP_TABLE", "Compression", "OtlpProtocol", "OtlpSettings", "is_otlp_configured", "read_otlp"]

_LOGS_ENDPOINT = "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"
_BASE_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_LOGS_PATH = "v1/logs"
_DEFAULT_HTTP = f"http://localhost:4318/{_LOGS_PATH}"
_DEFAULT_GRPC = "http://localhost:4317"
# gRPC resolves these by itself, and they have no http or https form.
_GRPC_RESOLVERS = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "vsock:")
_MAX_TIMEOUT_S = 600.0

# Source: RFC 9110, 5.6.2 (token); OTLP exporter specification: values as in W3C Baggage, not encoded ones too.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_ENCODED_VALUE = re.compile(r"[ !#-+\--:<-\[\]-~]*")  # printable ASCII without quote, comma, semicolon and backslash


class OtlpProtocol(StrEnum):
    """Source: OTel specification, OTEL_EXPORTER_OTLP_PROTOCOL."""

    GRPC = "grpc"
    HTTP_PROTOBUF = "http/protobuf"


class Compression(StrEnum):
    """Source: OTel specification, OTEL_EXPORTER_OTLP_COMPRESSION; `deflate` is known to the Python exporters too."""

    NONE = "none"
    GZIP = "gzip"
    DEFLATE = "deflate"


@dataclass(frozen=True, slots=True)
class OtlpSettings:
    """The settings for sending records over OTLP: the values of OTEL_EXPORTER_OTLP_[LOGS_]*, checked."""

    endpoint: str  # full URL with its path for http/protobuf; scheme, host and port for grpc
    protocol: OtlpProtocol = OtlpProtocol.GRPC
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # repr would show tokens
    timeout_s: float = 10.0
    compression: Compression = Compression.NONE
    certificate: str | None = None  # path of the CA bundle
    client_key: str | None = None
    client_certificate: str | None = None
    insecure: bool = False  # grpc only

    @property
    def shown_endpoint(self) -> str:
        """Return the endpoint without the user, password and query of its URL, which may be secrets."""
        scheme, separator, rest = self.endpoint.partition("?")[0].rpartition("://")
        return f"{scheme}{separator}{rest.rpartition('@')[2]}"


class Headers(msgspec.Struct, frozen=True):
    """Header names and values, as a text like OTel's variables, or as a mapping or pairs taken as they are."""

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return "a comma list of name=value, percent-encoded"

    def parse(self, given: object) -> tuple[tuple[str, str], ...]:
        """See `Kind`."""
        pairs = _pairs_of_text(given) if isinstance(given, str) else _pairs_of_python(given)
        if not all(_TOKEN.fullmatch(name) and _can_be_sent(value) for name, value in pairs):
            raise Mismatch
        return pairs


class Endpoint(msgspec.Struct, frozen=True):
    """A URL, or for grpc also host:port. The protocol determines its scheme, and both are checked together."""

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return "a URL like http://host:port"

    def parse(self, given: object) -> str:
        """See `Kind`."""
        if not isinstance(given, str) or re.search(r"[\s\x00-\x1f]", given) or not given:
            raise Mismatch
        return given


def _variables(suffix: str) -> tuple[Variable[Never], ...]:
    return (Variable(f"OTEL_EXPORTER_OTLP_LOGS_{suffix}"), Variable(f"OTEL_EXPORTER_OTLP_{suffix}"))


ENDPOINT: Setting[str | None] = Setting(
    name="endpoint",
    variables=_variables("ENDPOINT"),
    kind=Endpoint(),
    default=None,
    default_text=f"{_DEFAULT_GRPC} for grpc, {_DEFAULT_HTTP} for http/protobuf",
    doc=(
        "Where the collector listens. For http/protobuf the LOGS variable is the whole URL, and the other one is a "
        f"base, to which /{_LOGS_PATH} is added. A value from code or file is a base too, unless its path ends in "
        f"/{_LOGS_PATH}."
    ),
    reason="a collector on the same host opens these ports",
)
PROTOCOL: Setting[OtlpProtocol] = Setting(
    name="protocol",
    variables=_variables("PROTOCOL"),
    kind=Choice(OtlpProtocol),
    default=OtlpProtocol.GRPC,
    doc="OTLP over gRPC, or protobuf over HTTP.",
    reason="OTel's Python SDK takes it",
)
HEADERS: Setting[tuple[tuple[str, str], ...]] = Setting(
    name="headers",
    variables=_variables("HEADERS"),
    kind=Headers(),
    default=(),
    doc=(
        "Headers that are sent with each export, such as tokens. Their values are never shown. In code and file a "
        "mapping is accepted too, not encoded."
    ),
    reason="an agent on the same host asks for none",
    secret=True,
)
TIMEOUT_S: Setting[float] = Setting(
    name="timeout_s",
    variables=_variables("TIMEOUT"),
    kind=Seconds(
        0.001,
        _MAX_TIMEOUT_S,
        when_above="the OTel specification counts milliseconds, OTel's Python exporters and this package count "
        "seconds: write 10 for ten seconds",
    ),
    default=10.0,
    unit="s",
    doc="How long one export may take, its answer included. Lines of an export that took longer are sent again.",
    reason="it is OTel's default",
    fallbacks=(Variable("OTEL_BLRP_EXPORT_TIMEOUT", Milliseconds(0.001, _MAX_TIMEOUT_S)),),
)
COMPRESSION: Setting[Compression] = Setting(
    name="compression",
    variables=_variables("COMPRESSION"),
    kind=Choice(Compression),
    default=Compression.NONE,
    doc="How a request is compressed. deflate works with http/protobuf only.",
    reason="on the way to an agent on the same host, CPU costs more than bytes",
)
CERTIFICATE: Setting[str | None] = Setting(
    name="certificate",
    variables=_variables("CERTIFICATE"),
    kind=ExistingPath(),
    default=None,
    default_text="the system's CAs",
    doc="CA certificates, in PEM, that the server's certificate is checked against.",
    reason="it is right for a server with a public certificate",
)
CLIENT_KEY: Setting[str | None] = Setting(
    name="client_key",
    variables=_variables("CLIENT_KEY"),
    kind=ExistingPath(),
    default=None,
    doc="The private key, in PEM, of the client certificate.",
    reason="mutual TLS is the operator's choice",
)
CLIENT_CERTIFICATE: Setting[str | None] = Setting(
    name="client_certificate",
    variables=_variables("CLIENT_CERTIFICATE"),
    kind=ExistingPath(),
    default=None,
    doc="The client certificate, in PEM, for mutual TLS. It may hold the key as well.",
    reason="mutual TLS is the operator's choice",
)
INSECURE: Setting[bool | None] = Setting(
    name="insecure",
    variables=_variables("INSECURE"),
    kind=Switch(),
    default=None,
    default_text="true for http://, else false",
    doc="Send without TLS; grpc only. An https:// endpoint always has TLS.",
    reason="the URL's scheme says it already",
)

OTLP_TABLE: tuple[Setting[object], ...] = (
    ENDPOINT,
    PROTOCOL,
    HEADERS,
    TIMEOUT_S,
    COMPRESSION,
    CERTIFICATE,
    CLIENT_KEY,
    CLIENT_CERTIFICATE,
    INSECURE,
)


def is_otlp_configured(reader: Reader, *origins: Origin) -> bool:
    """Return True if one of `origins` gives any setting of OTLP. Nothing is parsed."""
    return any(reader.is_given(setting, *origins) for setting in OTLP_TABLE)


def read_otlp(reader: Reader) -> OtlpSettings:
    """Return the OTLP settings in force, checked one by one and together.

    Raises:
        ConfigError: one is not allowed, or contradicts another.
    """
    protocol = reader.value(PROTOCOL)
    endpoint, insecure = _grpc_target(reader) if protocol is OtlpProtocol.GRPC else (_http_url(reader), False)
    client_key, client_certificate = _client_files(reader)
    return OtlpSettings(
        endpoint=endpoint,
        protocol=protocol,
        headers=reader.value(HEADERS),
        timeout_s=reader.value(TIMEOUT_S),
        compression=_compression(reader, protocol),
        certificate=reader.value(CERTIFICATE),
        client_key=client_key,
        client_certificate=client_certificate,
        insecure=insecure,
    )


def _http_url(reader: Reader) -> str:
    if reader.is_given(INSECURE, Origin.CODE, Origin.FILE):
        asked = reader.value(INSECURE)
        raise reader.error(INSECURE, asked, "no value with http/protobuf", "write the endpoint with http:// instead")
    given = reader.value(ENDPOINT)
    if given is None:
        return _DEFAULT_HTTP
    parts = _split(given)
    if parts is None or parts.scheme not in ("http", "https"):
        raise reader.error(ENDPOINT, given, "a URL like http://host:port for http/protobuf")
    where = reader.sources[ENDPOINT.name].where
    has_path = where != _BASE_ENDPOINT and parts.path.rstrip("/").endswith(f"/{_LOGS_PATH}")
    if where == _LOGS_ENDPOINT or has_path:
        return given
    if parts.query or parts.fragment:
        raise reader.error(
            ENDPOINT,
            given,
            f"a base URL, to which /{_LOGS_PATH} can be added",
            f"set the whole URL as {_LOGS_ENDPOINT}",
        )
    return f"{given.removesuffix('/')}/{_LOGS_PATH}"


def _grpc_target(reader: Reader) -> tuple[str, bool]:
    given = reader.value(ENDPOINT) or _DEFAULT_GRPC
    asked = reader.value(INSECURE)
    if given.startswith(_GRPC_RESOLVERS):
        return given, bool(asked)
    parts = _split(given if "://" in given else f"//{given}")
    if parts is None or parts.scheme not in ("http", "https", ""):
        raise reader.error(ENDPOINT, given, "http://host:port, https://host:port or host:port for grpc")
    by_scheme = parts.scheme == "http"
    insecure = parts.scheme != "https" and (by_scheme if asked is None else asked)
    return f"{'http' if insecure else 'https'}://{parts.netloc}", insecure


def _split(url: str) -> SplitResult | None:
    """Return the parts of a URL, or None if it has no host or an impossible port."""
    try:
        parts = urlsplit(url)
        return parts if parts.hostname and parts.port != 0 else None
    except ValueError:
        return None


def _client_files(reader: Reader) -> tuple[str | None, str | None]:
    key, certificate = reader.value(CLIENT_KEY), reader.value(CLIENT_CERTIFICATE)
    if key is not None and certificate is None:
        # The official exporters silently go on without mutual TLS.
        raise reader.error(CLIENT_KEY, key, "a client certificate beside the key", "set client_certificate too")
    return key, certificate


def _compression(reader: Reader, protocol: OtlpProtocol) -> Compression:
    compression = reader.value(COMPRESSION)
    if protocol is OtlpProtocol.GRPC and compression is Compression.DEFLATE:
        raise reader.error(COMPRESSION, compression.value, "none or gzip with grpc")
    return compression


def _pairs_of_text(text: str) -> tuple[tuple[str, str], ...]:
    items = [item.strip() for item in text.split(",")]
    items = [item for item in items if item]
    # Checked before it is parsed, since the official parser logs a wrong item with the token in it.
    if not all(_is_pair(item) for item in items):
        raise Mismatch
    return tuple(parse_env_headers(",".join(items), liberal=True).items())


def _is_pair(item: str) -> bool:
    name, equals, value = item.partition("=")
    return bool(equals and _TOKEN.fullmatch(name.strip(" \t")) and _ENCODED_VALUE.fullmatch(value.strip(" \t")))


def _pairs_of_python(given: object) -> tuple[tuple[str, str], ...]:
    if isinstance(given, Mapping):
        given = tuple(given.items())
    if not isinstance(given, Iterable) or isinstance(given, bytes):
        raise Mismatch
    return tuple(_pair(item) for item in given)


def _pair(item: object) -> tuple[str, str]:
    match item:
        case (str(name), str(value)):
            return name.lower(), value
    raise Mismatch


def _can_be_sent(value: str) -> bool:
    # HTTP clients encode as Latin-1; a control character would start another header.
    return all(" " <= character <= "\xff" and not "\x7f" <= character < "\xa0" for character in value)
