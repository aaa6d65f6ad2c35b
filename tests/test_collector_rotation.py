"""What is replaced or limited while the agent runs: certificates, tokens, and the rate of its store."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import requests

import otel_audit
from tests.servers import Collector, StartCollector, poll
from tests.servers.certificates import Authority, KeyPair
from tests.servers.otlp_server import Answer, OtlpServer

pytestmark = pytest.mark.processes

RECORD = {"resourceLogs": [{"scopeLogs": [{"logRecords": [{"body": {"stringValue": "{}"}}]}]}]}


def replaced(path: str | Path, text: str) -> None:
    """Put a new file in the place of the old one, as those do who renew certificates or mount secrets."""
    new = Path(f"{path}.new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def renew(old: KeyPair, new: KeyPair) -> None:
    replaced(old.key, Path(new.key).read_text(encoding="utf-8"))
    replaced(old.certificate, Path(new.certificate).read_text(encoding="utf-8"))


def test_an_expired_certificate_of_the_agent_holds_events_back_until_it_is_renewed(
    start_collector: StartCollector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither the agent nor the service is started again."""
    ours = Authority(tmp_path, "ours")
    pair = ours.issue("agent", expired=True)
    agent = start_collector(
        variants=["tls-in"],
        variables={"AUDIT_IN_CERT_FILE": pair.certificate, "AUDIT_IN_KEY_FILE": pair.key},
        overrides=["receivers::otlp::protocols::http::tls::reload_interval: 1s"],  # not an hour, as in the file
    )
    for name, value in {
        "OTEL_SERVICE_NAME": "shop",
        "OTEL_EXPORTER_OTLP_ENDPOINT": agent.http_endpoint.replace("http", "https", 1),
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": ours.bundle,
        "OTEL_AUDIT_BACKOFF_CAP_S": "1",
    }.items():
        monkeypatch.setenv(name, value)
    audit = otel_audit.configure(directory=tmp_path / "journal", close_timeout_s=1)
    try:
        audit.log_authn(outcome="failure")
        before = audit.flush(timeout_s=3)
        renew(pair, ours.issue("renewed"))
        after = audit.flush(timeout_s=60)
    finally:
        audit.close()

    assert not before.complete
    assert "certificate has expired" in str(before.blocked)
    assert after.complete, after.blocked
    assert "authn.failure" in {record.event_name for record in agent.archive()}


@pytest.mark.parametrize("write", [replaced, lambda path, text: path.write_text(text)], ids=["replaced", "rewritten"])
def test_a_token_counts_as_soon_as_it_is_in_the_file_and_no_longer_than_that(
    write: Callable[[Path, str], object], start_collector: StartCollector, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("old\n")
    agent = start_collector(variants=["bearer-in"], variables={"AUDIT_IN_TOKEN_FILE": str(tokens)})
    answers = []
    for text, expected in [("old\n", (200, 401)), ("old\nnew\n", (200, 200)), ("new\n", (401, 200))]:
        write(tokens, text)
        now = poll(partial(_answers, agent), until=partial(tuple.__eq__, expected), what=f"{expected} for {text!r}")
        answers.append(now)

    assert answers == [(200, 401), (200, 200), (401, 200)]


def _answers(agent: Collector) -> tuple[int, int]:
    """What the agent says to whoever has the old token, and to whoever has the new one."""
    old, new = (
        requests.post(agent.logs_url, json=RECORD, headers={"Authorization": f"Bearer {token}"}, timeout=30).status_code
        for token in ("old", "new")
    )
    return old, new


def test_a_store_that_limits_the_rate_for_some_time_gets_everything_once_it_stops(
    start_collector: StartCollector,
) -> None:
    with OtlpServer() as loki:
        limits = 5
        loki.will_answer(*[Answer(429, headers=(("Retry-After", "1"),))] * limits)
        agent = start_collector(loki_endpoint=loki.base_url)

        requests.post(agent.logs_url, json=RECORD, timeout=30).raise_for_status()
        poll(
            lambda: len(loki.requests), until=lambda count: count > limits, timeout_s=90, what="a request that is taken"
        )

        said = requests.get(agent.metrics_endpoint, timeout=30).text
    assert len({request.body for request in loki.requests}) == 1  # the same record each time
    assert "otelcol_exporter_send_failed_log_records{" not in said
