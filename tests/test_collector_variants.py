"""The files beside agent.yaml, in the real collector: an event goes through each, and who may not write cannot."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

import otel_audit
from otel_audit.delivery.processor import FlushReport
from tests.servers import AGENT_CONFIG, Collector, StartCollector, poll
from tests.servers.certificates import Authority
from tests.servers.collector import VARIANTS
from tests.servers.otlp_server import OtlpServer
from tests.servers.victorialogs import VictoriaLogs

pytestmark = pytest.mark.processes

NAMES = sorted(path.stem for path in VARIANTS.glob("*.yaml"))
EVENT = "authn.failure"


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


def tls_in(ours: Authority) -> dict[str, str]:
    """The variables of tls-in.yaml."""
    pair = ours.issue("collector")
    return {"AUDIT_IN_CERT_FILE": pair.certificate, "AUDIT_IN_KEY_FILE": pair.key}


def send(
    agent: Collector, monkeypatch: pytest.MonkeyPatch, directory: Path, protocol: str = "http/protobuf", **more: str
) -> FlushReport:
    """Log an event in a service that delivers to this agent over TLS, or not; what the flush says."""
    endpoint = agent.http_endpoint if protocol == "http/protobuf" else agent.grpc_endpoint
    scheme = "https" if "OTEL_EXPORTER_OTLP_CERTIFICATE" in more else "http"
    with monkeypatch.context() as patch:
        patch.setenv("OTEL_SERVICE_NAME", "shop")
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.replace("http", scheme, 1))
        patch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        for name, value in more.items():
            patch.setenv(name, value)
        audit = otel_audit.configure(directory=directory, close_timeout_s=1)
        audit.log_authn(outcome="failure")
        try:
            return audit.flush(timeout_s=30) if "refused" not in directory.name else audit.flush(timeout_s=1)
        finally:
            audit.close()


def archived(agent: Collector) -> list[str]:
    return [record.event_name for record in agent.archive() if record.event_name == EVENT]


def test_every_variant_is_tried_here_and_says_how_it_is_started() -> None:
    tried = set(
        re.findall(
            r'"((?:m?tls|bearer)-(?:in-out|in|out)|tenant|all-attributes)"', Path(__file__).read_text(encoding="utf-8")
        )
    )

    assert tried == set(NAMES)
    for name in NAMES:
        assert f"--config variants/{name}.yaml" in _text(name)


def test_a_variant_that_names_the_extensions_names_those_of_the_agent_too() -> None:
    agent = extensions_of(AGENT_CONFIG)
    naming = {name: extensions_of(VARIANTS / f"{name}.yaml") for name in NAMES if name.startswith("bearer")}

    assert [name for name in NAMES if "extensions:" in _text(name) and name not in naming] == []
    assert all(each[: len(agent)] == agent for each in naming.values())
    added = {extension for each in naming.values() for extension in each[len(agent) :]}
    assert set(naming["bearer-in-out"]) == {*agent, *added}


def extensions_of(config: Path) -> list[str]:
    found: list[str] = yaml.safe_load(config.read_text(encoding="utf-8"))["service"]["extensions"]
    return found


def _text(name: str) -> str:
    return (VARIANTS / f"{name}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_events_come_in_over_tls(
    protocol: str, start_collector: StartCollector, ours: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    agent = start_collector(variants=["tls-in"], variables=tls_in(ours))

    report = send(agent, monkeypatch, tmp_path / "j", protocol, OTEL_EXPORTER_OTLP_CERTIFICATE=ours.bundle)

    assert report.complete, report.blocked
    assert archived(agent) == [EVENT]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_only_who_has_a_certificate_can_write(
    protocol: str, start_collector: StartCollector, ours: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    variables = {**tls_in(ours), "AUDIT_IN_CLIENT_CA_FILE": ours.bundle}
    agent = start_collector(variants=["tls-in", "mtls-in"], variables=variables)
    trust, pair = {"OTEL_EXPORTER_OTLP_CERTIFICATE": ours.bundle}, ours.issue("shop")
    own = {"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": pair.certificate, "OTEL_EXPORTER_OTLP_CLIENT_KEY": pair.key}

    refused = send(agent, monkeypatch, tmp_path / "refused", protocol, **trust)
    accepted = send(agent, monkeypatch, tmp_path / "j", protocol, **trust, **own)

    assert (refused.complete, accepted.complete) == (False, True), (refused, accepted)
    assert archived(agent) == [EVENT]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_only_who_knows_a_token_can_write(
    protocol: str, start_collector: StartCollector, ours: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("the-old-one\nthe-new-one\n")
    variables = {**tls_in(ours), "AUDIT_IN_TOKEN_FILE": str(tokens)}
    agent = start_collector(variants=["tls-in", "bearer-in"], variables=variables)
    trust = {"OTEL_EXPORTER_OTLP_CERTIFICATE": ours.bundle}
    reports = {
        token: send(
            agent,
            monkeypatch,
            tmp_path / ("refused" if token == "a-guess" else token),
            protocol,
            **trust,
            OTEL_EXPORTER_OTLP_HEADERS=f"Authorization=Bearer%20{token}",
        ).complete
        for token in ("a-guess", "the-old-one", "the-new-one")
    }

    assert reports == {"a-guess": False, "the-old-one": True, "the-new-one": True}
    assert archived(agent) == [EVENT] * 2


def delivered(
    start_collector: StartCollector,
    loki: OtlpServer,
    variants: list[str],
    variables: Mapping[str, str],
    monkeypatch: pytest.MonkeyPatch,
    directory: Path,
) -> dict[str, str | None]:
    """Send an event through an agent with these variants; the headers of the request that Loki got."""
    agent = start_collector(loki_endpoint=f"{loki.base_url}/otlp", variants=variants, variables=variables)
    assert send(agent, monkeypatch, directory).complete
    request = poll(lambda: list(loki.requests), until=bool, what="a request to Loki")[0]
    return {name: request.header(name) for name in ("Authorization", "X-Scope-OrgID")}


def test_events_go_out_over_tls_to_a_store_that_wants_a_certificate_of_the_collector(
    start_collector: StartCollector, ours: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, collector = ours.issue("loki"), ours.issue("agent")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(store.certificate, store.key)
    context.load_verify_locations(ours.bundle)
    context.verify_mode = ssl.CERT_REQUIRED
    variables = {
        "AUDIT_OUT_CA_FILE": ours.bundle,
        "AUDIT_OUT_CERT_FILE": collector.certificate,
        "AUDIT_OUT_KEY_FILE": collector.key,
    }
    with OtlpServer(context) as loki:
        delivered(start_collector, loki, ["tls-out", "mtls-out"], variables, monkeypatch, tmp_path / "j")


def test_loki_is_told_the_token_and_the_tenant(
    start_collector: StartCollector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    variables = {"AUDIT_OUT_TOKEN_FILE": str(token), "LOKI_TENANT": "bank"}
    with OtlpServer() as loki:
        headers = delivered(start_collector, loki, ["bearer-out", "tenant"], variables, monkeypatch, tmp_path / "j")

    assert headers == {"Authorization": "Bearer s3cret", "X-Scope-OrgID": "bank"}


def test_a_store_that_is_not_loki_gets_every_attribute_that_the_archive_has(
    start_collector: StartCollector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with VictoriaLogs(tmp_path / "store") as store:
        for variants in ([], ["all-attributes"]):
            agent = start_collector(loki_endpoint=store.otlp_endpoint, variants=variants)
            assert send(agent, monkeypatch, tmp_path / f"j{len(variants)}").complete
            store.wait_for(f"audit.result:* event_name:={EVENT}", 1 + len(variants))
            [archive] = [record for record in agent.archive() if record.event_name == EVENT]
        [fewer, everything] = store.query(f"audit.result:* event_name:={EVENT} | sort by (_time)")

    sent = {key for key, value in archive.attributes.items() if value not in ("", [])}
    assert sent - {"log.source"} <= everything.keys()
    assert sent - fewer.keys() >= {"audit.outcome", "audit.record.id"}


def test_all_of_them_work_together(
    start_collector: StartCollector, ours: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, agent_pair, shop = ours.issue("loki"), ours.issue("agent"), ours.issue("shop")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(store.certificate, store.key)
    (tmp_path / "token").write_text("s3cret\n")
    variables = {
        **tls_in(ours),
        "AUDIT_IN_CLIENT_CA_FILE": ours.bundle,
        "AUDIT_IN_TOKEN_FILE": str(tmp_path / "token"),
        "AUDIT_OUT_CA_FILE": ours.bundle,
        "AUDIT_OUT_CERT_FILE": agent_pair.certificate,
        "AUDIT_OUT_KEY_FILE": agent_pair.key,
        "AUDIT_OUT_TOKEN_FILE": str(tmp_path / "token"),
    }
    with OtlpServer(context) as loki:
        agent = start_collector(
            loki_endpoint=f"{loki.base_url}/otlp",
            variants=["tls-in", "mtls-in", "tls-out", "mtls-out", "tenant", "bearer-in", "bearer-out", "bearer-in-out"],
            variables=variables,
        )
        report = send(
            agent,
            monkeypatch,
            tmp_path / "j",
            OTEL_EXPORTER_OTLP_CERTIFICATE=ours.bundle,
            OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=shop.certificate,
            OTEL_EXPORTER_OTLP_CLIENT_KEY=shop.key,
            OTEL_EXPORTER_OTLP_HEADERS="Authorization=Bearer%20s3cret",
        )
        assert report.complete, report.blocked
        [request] = poll(lambda: list(loki.requests), until=bool, what="a request to Loki")[:1]

    assert request.header("X-Scope-OrgID") == "audit"
