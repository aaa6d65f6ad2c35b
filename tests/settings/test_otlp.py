"""OTel's OTLP variables mean here what they mean for the official Python exporters, beside which they are tested."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as OfficialGrpcExporter
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as OfficialHttpExporter
from requests.adapters import BaseAdapter

from otel_audit.errors import ConfigError
from otel_audit.settings import OtlpProtocol, OtlpSettings, Settings

HERE = str(Path(__file__).resolve())
HOME = {"XDG_STATE_HOME": "/state"}
HTTP = {**HOME, "OTEL_AUDIT_EXPORT": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
GRPC = {**HOME, "OTEL_AUDIT_EXPORT": "otlp"}
# What the official exporter and its HTTP client send by themselves.
OWN_HEADERS = {
    "accept",
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "user-agent",
}


@dataclass
class Sent:
    """One request as the HTTP client was about to put it on the wire."""

    request: requests.PreparedRequest
    timeout_s: float
    verify: bool | str
    cert: str | tuple[str, str] | None


class Wire(BaseAdapter):
    """Stands for the network: keeps the request and answers 200."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Sent] = []

    def send(  # type: ignore[override]  # the parameters as requests passes them, by keyword
        self,
        request: requests.PreparedRequest,
        *,
        timeout: float,
        verify: bool | str,
        cert: str | tuple[str, str] | None,
        **_: object,
    ) -> requests.Response:
        self.sent.append(Sent(request, timeout, verify, cert))
        response = requests.Response()
        response.status_code = 200
        response.request = request
        response.url = request.url or ""
        response._content = b""
        return response

    def close(self) -> None:
        """Nothing is open."""


@contextmanager
def only_environment(environ: Mapping[str, str]) -> Iterator[None]:
    """Inside, the process has these variables of OTel and no others."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("OTEL_")]:
            patch.delenv(name)
        for name, value in environ.items():
            patch.setenv(name, value)
        yield


def sent_by_the_official_exporter(environ: Mapping[str, str]) -> Sent:
    wire = Wire()
    with requests.Session() as session, only_environment(environ):
        session.trust_env = False
        session.mount("http://", wire)
        session.mount("https://", wire)
        exporter = OfficialHttpExporter(session=session)
        exporter.export([])
        exporter.shutdown()  # type: ignore[no-untyped-call]  # the official exporter's own gap
    return wire.sent[0]


def ours(environ: Mapping[str, str], **overrides: object) -> OtlpSettings:
    otlp = Settings.load(environ, overrides).otlp
    assert otlp is not None
    return otlp


def assert_same_request(otlp: OtlpSettings, official: Sent) -> None:
    headers = {name.lower(): value for name, value in official.request.headers.items()}
    assert requests.Request("POST", otlp.endpoint).prepare().url == official.request.url
    assert dict(otlp.headers) == {name: value for name, value in headers.items() if name not in OWN_HEADERS}
    assert otlp.timeout_s == pytest.approx(official.timeout_s, abs=0.4)  # the official one has begun to count down
    assert otlp.compression == headers.get("content-encoding", "none")
    assert (otlp.certificate or True) == official.verify
    pair = otlp.client_certificate and otlp.client_key and (otlp.client_certificate, otlp.client_key)
    assert (pair or otlp.client_certificate) == official.cert


def variables(suffix: str, values: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, str]]:
    """The variable for all signals, the one for logs, both or none; an empty value among them."""
    values = values | st.just("")
    return st.fixed_dictionaries(
        {}, optional={f"OTEL_EXPORTER_OTLP_{suffix}": values, f"OTEL_EXPORTER_OTLP_LOGS_{suffix}": values}
    )


urls = st.builds(
    "{}://{}{}{}".format,
    st.sampled_from(["http", "https"]),
    st.sampled_from(["localhost", "127.0.0.1", "[::1]", "collector.example"]),
    st.sampled_from(["", ":4318", ":80"]),
    st.sampled_from(["", "/", "//", "/otlp", "/otlp/", "/v1/logs", "/a%20b"]),
)
header_values = st.lists(
    st.sampled_from(["a", "Z", "0", " ", "=", "/", "+", ":", "{", "'", "%20", "%C3%A4", "%2C", "%3d", "%zz"]),
    max_size=5,
).map("".join)
header_items = st.builds(
    "{}{}{}={}".format,
    st.sampled_from(["", " "]),
    st.sampled_from(["authorization", "X-Key", "x_y", "a%62"]),
    st.sampled_from(["", " ", "\t"]),
    header_values,
)
headers = st.lists(header_items | st.just(""), max_size=4).map(",".join)
timeouts = st.integers(1, 600).map(str) | st.sampled_from(["2.5", " 7 ", "1e2"])


environments = st.tuples(
    variables("ENDPOINT", urls),
    variables("HEADERS", headers),
    variables("TIMEOUT", timeouts),
    variables("COMPRESSION", st.sampled_from(["none", "gzip", "deflate", " GZIP "])),
    variables("CERTIFICATE", st.just(HERE)),
    variables("CLIENT_CERTIFICATE", st.just(HERE)),
).map(lambda parts: {name: value for part in parts for name, value in part.items()})


@settings(deadline=None)  # the first session that a process makes loads certificates
@given(environments)
def test_over_http_the_variables_make_the_request_that_the_official_exporter_makes(environ: dict[str, str]) -> None:
    # Older releases of the exporter fail with an empty variable; OTel's specification takes it for unset.
    official = sent_by_the_official_exporter({name: value for name, value in environ.items() if value})

    assert_same_request(ours({**HTTP, **environ}), official)


def test_over_http_a_client_key_is_used_as_the_official_exporter_uses_it() -> None:
    environ = {"OTEL_EXPORTER_OTLP_CLIENT_KEY": HERE, "OTEL_EXPORTER_OTLP_LOGS_CLIENT_CERTIFICATE": HERE}

    assert_same_request(ours({**HTTP, **environ}), sent_by_the_official_exporter(environ))


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:1"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://localhost:1/path"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:1"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:1", "OTEL_EXPORTER_OTLP_INSECURE": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:1", "OTEL_EXPORTER_OTLP_INSECURE": "False"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://localhost:1", "OTEL_EXPORTER_OTLP_INSECURE": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://localhost:1", "OTEL_EXPORTER_OTLP_LOGS_INSECURE": "true"},
        {"OTEL_EXPORTER_OTLP_INSECURE": "true", "OTEL_EXPORTER_OTLP_LOGS_INSECURE": "false"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:1", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://localhost:2"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "unix:/tmp/otlp.sock", "OTEL_EXPORTER_OTLP_INSECURE": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "dns:///localhost:1"},
        {"OTEL_EXPORTER_OTLP_HEADERS": "a=b%20c, D=e f", "OTEL_EXPORTER_OTLP_TIMEOUT": "2.5"},
        {"OTEL_EXPORTER_OTLP_HEADERS": "a=b", "OTEL_EXPORTER_OTLP_LOGS_HEADERS": "a=c"},
        {"OTEL_EXPORTER_OTLP_TIMEOUT": "5", "OTEL_EXPORTER_OTLP_LOGS_TIMEOUT": "7"},
        {"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"},
        {"OTEL_EXPORTER_OTLP_LOGS_COMPRESSION": " GZIP "},
    ],
    ids=str,
)
def test_over_grpc_the_variables_mean_what_the_official_exporter_takes_them_for(environ: dict[str, str]) -> None:
    otlp = ours({**GRPC, **environ})
    with only_environment(environ):
        official = OfficialGrpcExporter()
    official.shutdown()

    # Private names: a channel tells nobody where it would go.
    assert otlp.endpoint.removeprefix("https://").removeprefix("http://") == official._endpoint
    assert otlp.insecure == official._insecure
    assert isinstance(official._headers, tuple)
    assert set(otlp.headers) <= set(official._headers)
    assert otlp.timeout_s == official._timeout
    assert (otlp.compression == "gzip") == (official._compression.name == "Gzip")
    if "://" in otlp.endpoint and not otlp.endpoint.startswith("dns:"):
        assert otlp.endpoint.startswith("http://") == otlp.insecure


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://c:4318", "http://c:4318/v1/logs"),
        ("http://c:4318/", "http://c:4318/v1/logs"),
        ("http://c:4318/otlp", "http://c:4318/otlp/v1/logs"),
        ("http://c:4318/v1/logs", "http://c:4318/v1/logs"),
        ("http://c:4318/v1/logs/", "http://c:4318/v1/logs/"),
        ("http://c:4318/v1/logs?tenant=a", "http://c:4318/v1/logs?tenant=a"),
    ],
)
def test_an_endpoint_in_code_is_a_base_unless_it_names_the_logs_path(endpoint: str, url: str) -> None:
    assert ours(HOME, endpoint=endpoint, protocol="http/protobuf").endpoint == url


def test_protocol_unset_is_grpc() -> None:
    assert ours(GRPC).protocol is OtlpProtocol.GRPC


def test_variables_of_otlp_do_not_stop_a_service_that_does_not_export_by_otlp() -> None:
    environ = {
        **HOME,
        "OTEL_AUDIT_EXPORT": "jsonl",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "10000",
    }

    assert Settings.load(environ).otlp is None


def test_settings_of_otlp_in_code_are_checked_whatever_the_exporters_are() -> None:
    with pytest.raises(ConfigError, match=r"^timeout_s: expected seconds from"):
        Settings.load(HOME, {"export": "console", "timeout_s": 10_000})


def test_a_time_out_that_looks_like_milliseconds_is_refused_with_the_explanation() -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.load({**HTTP, "OTEL_EXPORTER_OTLP_TIMEOUT": "10000"})

    assert str(caught.value) == (
        "OTEL_EXPORTER_OTLP_TIMEOUT: expected seconds from 0.001 to 600, got '10000' (environment); the OTel "
        "specification counts milliseconds, OTel's Python exporters and this package count seconds: write 10 for ten "
        "seconds"
    )


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"ENDPOINT": "c.example:4318"}, "ENDPOINT: expected a URL like http://host:port for http/protobuf"),
        ({"ENDPOINT": "grpc://c.example"}, "ENDPOINT: expected a URL like http://host:port for http/protobuf"),
        ({"ENDPOINT": "http://"}, "ENDPOINT: expected a URL like"),
        ({"ENDPOINT": "http://c:66000"}, "ENDPOINT: expected a URL like"),
        ({"ENDPOINT": "http://[::1"}, "ENDPOINT: expected a URL like"),
        ({"ENDPOINT": "http://c/?a=b"}, "ENDPOINT: expected a base URL, to which /v1/logs can be added"),
        ({"PROTOCOL": "grpc", "ENDPOINT": "grpc://c:1"}, "expected http://host:port, https://host:port or host:port"),
        ({"PROTOCOL": "grpc", "COMPRESSION": "deflate"}, "COMPRESSION: expected none or gzip with grpc"),
        ({"PROTOCOL": "http/json"}, "PROTOCOL: expected one of grpc, http/protobuf"),
        ({"COMPRESSION": "zstd"}, "COMPRESSION: expected one of none, gzip, deflate"),
        ({"TIMEOUT": "0"}, "TIMEOUT: expected seconds from 0.001 to 600"),
        ({"TIMEOUT": "inf"}, "TIMEOUT: expected seconds from 0.001 to 600"),
        ({"CLIENT_KEY": HERE}, "CLIENT_KEY: expected a client certificate beside the key"),
        ({"CERTIFICATE": "/no/such"}, "CERTIFICATE: expected the path of an existing file"),
    ],
    ids=str,
)
def test_what_the_official_exporters_would_fail_with_later_stops_start_up(
    environ: dict[str, str], message: str
) -> None:
    variables = {f"OTEL_EXPORTER_OTLP_{suffix}": value for suffix, value in environ.items()}

    with pytest.raises(ConfigError) as caught:
        Settings.load({**HTTP, **variables})

    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "s3cret",
        "a=s3cret,b",
        "a b=s3cret",
        'a="s3cret"',
        "a=s3cret;b=c",
        "a=s3cret%0Ab",
        "a=s3cret%E2%82%AC",
        "%20a%3A=s3cret",
        "=s3cret",
        "a=s3crét",
    ],
)
def test_headers_that_cannot_be_sent_stop_start_up_and_are_shown_nowhere(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.load({**HTTP, "OTEL_EXPORTER_OTLP_HEADERS": text})

    assert "expected a comma list of name=value, percent-encoded, got a value that is not shown" in str(caught.value)
    assert "s3cr" not in str(caught.value) + caplog.text


@pytest.mark.parametrize("headers", [{"a": 1}, {"a b": "c"}, {"a": "b\r\nc: d"}, [("a",)], 5, b"a=b"], ids=repr)
def test_headers_in_code_that_cannot_be_sent_stop_start_up(headers: object) -> None:
    with pytest.raises(ConfigError, match=r"^headers: expected"):
        Settings.load(HTTP, {"headers": headers})


def test_headers_in_code_replace_those_of_the_environment() -> None:
    environ = {**HTTP, "OTEL_EXPORTER_OTLP_HEADERS": "a=b"}

    assert ours(environ, headers=[("X-Key", "a%20b")]).headers == (("x-key", "a%20b"),)
    assert "a%20b" not in repr(Settings.load(environ, {"headers": {"x": "a%20b"}}))


def test_insecure_in_code_is_refused_where_it_has_no_meaning() -> None:
    with pytest.raises(ConfigError, match=r"^insecure: expected no value with http/protobuf"):
        Settings.load(HTTP, {"insecure": True})
    assert ours({**HTTP, "OTEL_EXPORTER_OTLP_INSECURE": "true"}).insecure is False


@pytest.mark.parametrize(
    ("endpoint", "shown"),
    [
        ("http://collector:4318/v1/logs", "http://collector:4318/v1/logs"),
        ("https://ann:s3cret@collector/v1/logs", "https://collector/v1/logs"),
        ("https://collector/v1/logs?token=s3cret", "https://collector/v1/logs"),
        ("https://ann:s3@cret@collector:4317", "https://collector:4317"),
        ("unix:/run/collector.sock", "unix:/run/collector.sock"),
    ],
)
def test_an_endpoint_is_shown_without_what_may_be_secret(endpoint: str, shown: str) -> None:
    assert OtlpSettings(endpoint).shown_endpoint == shown
