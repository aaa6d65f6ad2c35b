"""The stores behind the collector: what Loki accepts and for how long, what is scraped, and the links in Grafana."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.compose.stack import (
    CONFIGS,
    ROOT,
    dashboards,
    data_sources,
    load_yaml,
    loki,
    port_of,
    ports_listened_on,
    project,
    prometheus,
    services,
    tempo,
    volume_mounts,
)
from tests.compose.toolchain import parse_queries


def _limits() -> dict[str, Any]:
    limits: dict[str, Any] = loki()["limits_config"]
    return limits


def test_loki_accepts_a_backlog_however_old_it_is() -> None:
    assert _limits()["reject_old_samples"] is False
    assert _limits()["shard_streams"]["time_sharding_enabled"] is True
    assert loki()["schema_config"]["configs"][0]["from"] == "2020-01-01"


def test_loki_keeps_attributes_beside_the_body() -> None:
    assert _limits()["allow_structured_metadata"] is True
    assert int(loki()["schema_config"]["configs"][0]["schema"].removeprefix("v")) >= 13


def test_a_restarted_process_opens_no_new_stream_in_loki() -> None:
    resource = _limits()["otlp_config"]["resource_attributes"]

    labels = {name for rule in resource["attributes_config"] for name in rule["attributes"]}

    assert resource["ignore_defaults"] is True
    assert {"service.name", "log.source"} <= labels
    assert "service.instance.id" not in labels


@pytest.mark.processes
def test_loki_keeps_audit_records_longer_than_anything_else_and_deletes_what_is_over() -> None:
    [rule] = _limits()["retention_stream"]
    [selector] = parse_queries("logql", [rule["selector"]])

    assert selector.errors == ()
    assert selector.nodes["Identifier"] == ["log_source"]
    assert _hours(rule["period"]) >= 365 * 24 > _hours(_limits()["retention_period"])
    assert loki()["compactor"]["retention_enabled"] is True
    assert loki()["compactor"]["delete_request_store"] in loki()["common"]["storage"]


def _hours(duration: str) -> int:
    assert duration.endswith("h"), duration
    return int(duration.removesuffix("h"))


def test_loki_answers_queries_over_more_than_a_month() -> None:
    assert _limits()["max_query_length"] == "0s"  # no limit; its default is 30 days


def test_loki_deletes_nothing_on_request() -> None:
    assert _limits()["deletion_mode"] == "disabled"  # by default anybody who reaches the port can hide events


def test_loki_passes_on_as_many_events_as_one_query_may_return() -> None:
    # Tried with Loki itself: with the default of 4 MiB a query over some 1 500 events is not answered.
    server = loki()["server"]

    assert server["grpc_server_max_recv_msg_size"] == server["grpc_server_max_send_msg_size"] == 64 << 20


def test_loki_reads_an_hour_of_events_on_more_than_one_core() -> None:
    assert _limits()["tsdb_max_bytes_per_shard"] == "64MB"  # measured in docs/scale.md; the default is 600MB


def test_loki_counts_by_person_for_more_than_its_default_of_500() -> None:
    assert _limits()["max_query_series"] == 100_000


@pytest.mark.processes
@pytest.mark.parametrize("name", ["loki", "tempo"])
def test_a_store_writes_to_its_volume_only(name: str) -> None:
    [kept] = volume_mounts(name)

    config = {"loki": loki, "tempo": tempo}[name]()
    read = {config.get("ruler", {}).get("storage", {}).get("local", {}).get("directory")}
    written = [path for path in _paths(config) if path not in read]

    assert written
    assert [path for path in written if not PurePosixPath(path).is_relative_to(kept)] == []


def _paths(value: object) -> list[str]:
    """Every absolute path in a configuration."""
    if isinstance(value, dict):
        return [path for item in value.values() for path in _paths(item)]
    if isinstance(value, list):
        return [path for item in value for path in _paths(item)]
    return [value] if isinstance(value, str) and value.startswith("/") else []


@pytest.mark.processes
def test_no_store_sends_usage_statistics() -> None:
    assert loki()["analytics"]["reporting_enabled"] is False
    assert tempo()["usage_report"]["reporting_enabled"] is False
    assert services()["grafana"]["environment"]["GF_ANALYTICS_REPORTING_ENABLED"] == "false"


def test_tempo_takes_spans_from_other_containers() -> None:
    protocols = tempo()["distributor"]["receivers"]["otlp"]["protocols"]

    assert {urlsplit(f"//{protocol['endpoint']}").hostname for protocol in protocols.values()} == {"0.0.0.0"}


@pytest.mark.processes
def test_prometheus_scrapes_ports_that_are_open() -> None:
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in prometheus()["scrape_configs"]}

    assert "collector" in jobs
    for name, [target] in jobs.items():
        host, port = target.split(":")
        assert host in {name, "collector", "127.0.0.1"}
        assert int(port) in ports_listened_on()[name if host == "127.0.0.1" else host]


@pytest.mark.processes
def test_prometheus_scrapes_the_metrics_of_the_collector_and_its_counts_of_events() -> None:
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in prometheus()["scrape_configs"]}
    collector = services()["collector"]["environment"]

    assert jobs["collector"] == [f"collector:{collector['AUDIT_METRICS_PORT']}"]
    assert jobs["counts"] == [f"collector:{port_of(collector['AUDIT_COUNTS_ENDPOINT'])}"]


@pytest.mark.processes
def test_prometheus_takes_the_metrics_that_the_collector_sends_on() -> None:
    endpoint = urlsplit(services()["collector"]["environment"]["PROMETHEUS_OTLP_ENDPOINT"])

    assert "--web.enable-otlp-receiver" in services()["prometheus"]["command"]
    assert (endpoint.hostname, endpoint.path) == ("prometheus", "/api/v1/otlp")
    assert endpoint.port in ports_listened_on()["prometheus"]
    assert "service.name" in prometheus()["otlp"]["promote_resource_attributes"]


@pytest.mark.processes
def test_tempo_takes_the_spans_that_the_collector_sends_on() -> None:
    endpoint = urlsplit(services()["collector"]["environment"]["TEMPO_OTLP_ENDPOINT"])

    assert endpoint.hostname == "tempo"
    assert endpoint.port in ports_listened_on()["tempo"]


@pytest.mark.processes
def test_every_data_source_is_a_service_of_the_stack() -> None:
    for uid, source in data_sources().items():
        url = urlsplit(source["url"])
        assert url.hostname == uid == source["type"]
        assert url.port in ports_listened_on()[uid]


def test_an_event_links_to_its_trace() -> None:
    [link] = [field for field in data_sources()["loki"]["jsonData"]["derivedFields"] if field["name"] == "Trace"]

    assert (link["matcherType"], link["matcherRegex"]) == ("label", "trace_id")
    assert link["datasourceUid"] in data_sources()
    assert link["url"] == "$${__value.raw}"  # a single $ would be replaced by an environment variable: by nothing


def test_an_event_links_to_everything_of_its_actor_target_and_request() -> None:
    fields = {field["name"]: field for field in data_sources()["loki"]["jsonData"]["derivedFields"]}
    variables = {variable["name"] for variable in dashboards()["trail"]["templating"]["list"]}

    for name in ("Actor", "Target", "Request"):
        url = fields[name]["url"]
        assert url == f"/d/{dashboards()['trail']['uid']}?var-{name.lower()}=$${{__value.raw}}"
        assert name.lower() in variables
        assert fields[name]["matcherRegex"] == f"audit_{name.lower()}_id"


@pytest.mark.processes
def test_a_trace_links_to_its_events() -> None:
    link = data_sources()["tempo"]["jsonData"]["tracesToLogsV2"]
    written_out = link["query"].replace("$${__tags}", 'service_name="shop"').replace("$${__trace.traceId}", "0af7")

    [query] = parse_queries("logql", [written_out])

    assert link["datasourceUid"] in data_sources()
    assert link["customQuery"] is True
    assert query.errors == ()
    assert query.nodes["Identifier"] == ["log_source", "service_name", "trace_id"]
    assert link["tags"] == [{"key": "service.name", "value": "service_name"}]


def test_prometheus_is_asked_in_steps_of_its_scrape_interval() -> None:
    assert data_sources()["prometheus"]["jsonData"]["timeInterval"] == prometheus()["global"]["scrape_interval"]


@pytest.mark.processes
def test_what_fires_reaches_alertmanager_and_is_shown_in_grafana() -> None:
    [prometheus_sends_to] = [
        target
        for manager in prometheus()["alerting"]["alertmanagers"]
        for each in manager["static_configs"]
        for target in each["targets"]
    ]
    ruler = loki()["ruler"]

    assert prometheus_sends_to == urlsplit(ruler["alertmanager_url"]).netloc == "alertmanager:9093"
    assert data_sources()["alertmanager"]["url"] == ruler["alertmanager_url"]
    assert (ruler["enable_api"], ruler["enable_alertmanager_v2"]) == (True, True)


def test_every_route_of_alertmanager_leads_to_a_receiver() -> None:
    config = load_yaml(CONFIGS / "alertmanager.yaml")
    routes = [config["route"], *config["route"].get("routes", [])]

    assert {route["receiver"] for route in routes if "receiver" in route} <= {
        each["name"] for each in config["receivers"]
    }
    assert "receiver" in config["route"]


@pytest.mark.processes
def test_the_override_of_the_page_mounts_the_secret_where_the_receiver_of_the_page_reads_it(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    [section] = re.findall(r"^#### Be notified\n(.*?)^#### ", page, re.MULTILINE | re.DOTALL)
    receiver, override = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    (tmp_path / "override.yml").write_text(override, encoding="utf-8")

    mounts = project(tmp_path / "override.yml")["services"]["alertmanager"]["volumes"]
    [named] = yaml.safe_load(receiver)["receivers"][0]["webhook_configs"]
    [written] = re.findall(r"> (secrets/\S+)", section)

    assert {mount["target"]: mount["source"] for mount in mounts}[named["url_file"]] == str(ROOT / written)
    assert named["url_file"] in (CONFIGS / "alertmanager.yaml").read_text(encoding="utf-8")
