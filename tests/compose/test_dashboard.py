"""The dashboard "Audit": well formed, every query parses, and everything a query names is really written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, combinations
from threading import Thread
from typing import Any

import pytest
import requests

from otel_audit.event import Outcome
from otel_audit.records.attributes import ATTRIBUTES, STORE_FIELDS
from tests.compose.stack import (
    GRAFANA,
    bind_mounts,
    dashboard,
    data_sources,
    load_yaml,
    loki,
    panels,
    queries,
    services,
)
from tests.compose.toolchain import Parsed, parse_queries
from tests.servers import StartCollector, poll

COLUMNS = 24
GRAFANAS_VARIABLES = {"__auto": "5m", "__range": "1h", "__rate_interval": "1m"}
OWN_VARIABLES = {"service": ".+", "actor": "alice"}
VARIABLE = re.compile(r"\$\{?(\w+)\}?")
FIELD_OF_A_TEMPLATE = re.compile(r"[\s({]\.([A-Za-z_]\w*)")
FIELD_OF_A_LEGEND = re.compile(r"\{\{\s*(\w+)\s*\}\}")


def _written_out(expression: str) -> str:
    """The query as Grafana sends it, with every variable replaced."""
    return VARIABLE.sub(lambda match: {**GRAFANAS_VARIABLES, **OWN_VARIABLES}[match.group(1)], expression)


def _parsed(kind: str, language: str) -> list[Parsed]:
    return parse_queries(language, [_written_out(query["expr"]) for query in queries(kind)])


def _labels_in_loki() -> set[str]:
    """Everything a record can be asked for in Loki: its attributes, its own fields, and the labels of its resource."""
    indexed = loki()["limits_config"]["otlp_config"]["resource_attributes"]["attributes_config"]
    resource = chain.from_iterable(rule["attributes"] for rule in indexed if rule["action"] == "index_label")
    keys = {attribute.key for attribute in ATTRIBUTES}
    return {key.replace(".", "_") for key in {*keys, *resource}} | STORE_FIELDS


def test_the_dashboard_can_be_provisioned() -> None:
    assert dashboard()["uid"] == "otel-audit"
    assert dashboard()["id"] is None
    assert dashboard()["schemaVersion"] == 42
    assert "__inputs" not in dashboard()
    assert dashboard()["refresh"] == "30s"


def test_every_panel_has_an_id_of_its_own_and_says_what_it_shows() -> None:
    shown = [panel for panel in panels() if panel["type"] != "row"]

    assert len({panel["id"] for panel in panels()}) == len(panels())
    assert [panel["title"] for panel in shown if not panel.get("description")] == []


def test_no_panel_covers_another_or_leaves_the_grid() -> None:
    cells = {panel["title"] + str(panel["id"]): _cells(panel["gridPos"]) for panel in panels()}

    assert [pair for pair in combinations(cells, 2) if cells[pair[0]] & cells[pair[1]]] == []
    assert all(0 <= column < COLUMNS for column, _ in set.union(*cells.values()))


def _cells(place: dict[str, int]) -> set[tuple[int, int]]:
    columns = range(place["x"], place["x"] + place["w"])
    rows = range(place["y"], place["y"] + place["h"])
    return {(column, row) for column in columns for row in rows}


def test_every_data_source_of_the_dashboard_is_provisioned() -> None:
    named = [panel["datasource"] for panel in panels() if panel["type"] != "row"]
    named += [target["datasource"] for panel in panels() for target in panel.get("targets", [])]
    named += [variable["datasource"] for variable in dashboard()["templating"]["list"] if variable["type"] == "query"]

    assert {source["uid"]: source["type"] for source in named} == {
        uid: data_sources()[uid]["type"] for uid in {source["uid"] for source in named}
    }


def test_every_variable_that_a_query_uses_exists() -> None:
    used = {name for query in [*queries("loki"), *queries("prometheus")] for name in VARIABLE.findall(query["expr"])}

    defined = {variable["name"] for variable in dashboard()["templating"]["list"]}

    assert defined == set(OWN_VARIABLES)
    assert used == defined | set(GRAFANAS_VARIABLES)


@pytest.mark.processes
def test_every_logql_query_parses() -> None:
    assert len(queries("loki")) >= 10
    assert [parsed.text for parsed in _parsed("loki", "logql") if parsed.errors] == []


@pytest.mark.processes
def test_every_promql_query_parses() -> None:
    assert len(queries("prometheus")) >= 5
    assert [parsed.text for parsed in _parsed("prometheus", "promql") if parsed.errors] == []


@pytest.mark.processes
def test_the_parser_does_refuse_what_is_no_query() -> None:
    broken = ['sum by (audit_result (count_over_time({log_source="audit"}[5m]))', '{log_source="audit"} | = "x"']

    assert all(parsed.errors for parsed in parse_queries("logql", broken))


@pytest.mark.processes
def test_every_label_that_a_logql_query_names_is_one_that_is_written() -> None:
    for parsed in _parsed("loki", "logql"):
        made = set(re.findall(r"label_format (\w+)=", parsed.text))

        assert set(parsed.nodes.get("Identifier", [])) - made - _labels_in_loki() == set()


def test_every_field_that_a_line_shows_is_one_that_is_written() -> None:
    [lines] = [query["expr"] for query in queries("loki") if "line_format" in query["expr"]]

    shown = set(FIELD_OF_A_TEMPLATE.findall(lines.partition("line_format")[2]))

    assert shown >= {"audit_actor_id", "audit_action", "audit_result", "audit_target_id"}
    assert shown - _labels_in_loki() == set()


def test_the_filter_by_actor_finds_an_id_and_a_name() -> None:
    filtered = [query["expr"] for query in queries("loki") if "$actor" in query["expr"]]

    assert len(filtered) >= 10
    both = '| (audit_actor_id=~".*($actor).*" or audit_actor_name=~".*($actor).*")'
    assert [text for text in filtered if both not in text] == []


@pytest.mark.processes
def test_every_legend_shows_labels_that_its_query_keeps() -> None:
    for kind, language in (("loki", "logql"), ("prometheus", "promql")):
        for query, parsed in zip(queries(kind), _parsed(kind, language), strict=True):
            kept = " ".join([*parsed.nodes.get("Labels", []), *parsed.nodes.get("GroupingLabels", [])])
            shown = FIELD_OF_A_LEGEND.findall(query.get("legendFormat", ""))
            assert set(shown) <= set(re.findall(r"\w+", kept)), query["expr"]


def test_a_query_that_counts_sums_up_first() -> None:
    """Without it, every set of structured metadata is a series of its own, and Loki answers 500 of them at most."""
    counting = [query["expr"] for query in queries("loki") if "count_over_time" in query["expr"]]

    assert counting
    assert [text for text in counting if not re.search(r"\bsum( by \([\w, ]+\) )? ?\(count_over_time", text)] == []


def test_a_query_that_lists_names_of_callers_is_bounded() -> None:
    """Names, addresses and paths come from outside: somebody who guesses makes as many series as he likes."""
    open_ended = [text for text in (query["expr"] for query in queries("loki")) if "by (audit_result)" not in text]

    listing = [text for text in open_ended if " by (" in text]

    assert listing
    assert [text for text in listing if not text.startswith(("topk(10, ", "count("))] == []


def test_every_logql_query_asks_for_audit_records_of_the_chosen_services() -> None:
    for query in queries("loki"):
        assert '{log_source="audit", service_name=~"$service"}' in query["expr"]


def test_every_outcome_has_its_colour() -> None:
    [panel] = [panel for panel in panels() if panel["title"] == "Events by outcome"]

    coloured = {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]}

    assert coloured == {outcome.value for outcome in Outcome}


def test_every_outcome_that_is_asked_for_exists() -> None:
    asked = chain.from_iterable(re.findall(r'audit_result="(\w+)"', query["expr"]) for query in queries("loki"))

    assert set(asked) == {Outcome.DENIED, Outcome.ERROR}


@pytest.mark.processes
def test_grafana_finds_the_dashboard_and_opens_with_it() -> None:
    mounts = bind_mounts("grafana")
    [provider] = load_yaml(GRAFANA / "provisioning" / "dashboards" / "dashboards.yaml")["providers"]
    home = services()["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]

    folder = provider["options"]["path"]

    assert mounts[folder] == GRAFANA / "dashboards"
    assert home == f"{folder}/audit.json"
    assert mounts["/etc/grafana/provisioning"] == GRAFANA / "provisioning"


@pytest.mark.processes
def test_every_metric_of_the_dashboard_is_one_that_the_collector_has(start_collector: StartCollector) -> None:
    """With a destination that refuses for good: only then does the collector count what could not be delivered."""
    wanted = set(chain.from_iterable(parsed.nodes["Identifier"] for parsed in _parsed("prometheus", "promql")))
    with _loki_that_refuses() as refusing:
        collector = start_collector(loki_endpoint=f"http://127.0.0.1:{refusing.server_port}/otlp")
        requests.post(collector.logs_url, json=_one_record(), timeout=10).raise_for_status()

        seen = poll(
            lambda: set(re.findall(r"^(\w+)", collector.metrics(), re.MULTILINE)),
            until=wanted.issubset,
            what=f"the metrics {sorted(wanted)}",
        )

    assert wanted <= seen


def _one_record() -> dict[str, Any]:
    record = {"timeUnixNano": "1700000000000000000", "body": {"stringValue": "{}"}, "eventName": "authn.failure"}
    return {"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}


class _Refusal(BaseHTTPRequestHandler):
    """Answers 400 to everything, as Loki does to a record that it will never take."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(400)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: the tests' output is not its place."""


@contextmanager
def _loki_that_refuses() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusal) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
