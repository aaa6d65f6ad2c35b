"""The dashboards: well formed, every query parses, and everything a query names is really written."""

from __future__ import annotations

import re
from itertools import chain, combinations
from typing import Any

import pytest

from otel_audit.event import Outcome
from otel_audit.records.attributes import ATTRIBUTES, STORE_FIELDS
from tests.compose.stack import (
    CONFIGS,
    GRAFANA,
    bind_mounts,
    dashboards,
    data_sources,
    load_yaml,
    loki,
    panels,
    queries,
    services,
)
from tests.compose.toolchain import Parsed, parse_queries

COLUMNS = 24
ALL = pytest.mark.parametrize("name", ["audit", "pipeline", "trail"])
GRAFANAS_VARIABLES = {"__interval": "1m", "__range": "1h", "__rate_interval": "10s", "__auto": "1m"}
VARIABLE = re.compile(r"\$\{?(\w+)(?::raw)?\}?")
_AGENT = load_yaml(CONFIGS / "agent.yaml")
_ASKED = str(_AGENT["processors"]["transform/asked"]["log_statements"][0]["statements"][0])
_LEFT_OUT = re.compile(_ASKED.split('"')[1])
FIELD_OF_A_TEMPLATE = re.compile(r"[\s({]\.([A-Za-z_]\w*)")
FIELD_OF_A_LEGEND = re.compile(r"\{\{\s*(\w+)\s*\}\}")
PERSONAL = ("actor", "on_behalf_of", "target", "request", "trace")


def written_out(expression: str, **values: str) -> str:
    """The query as Grafana sends it, with every variable replaced: by default all is chosen and no box filled in."""
    chosen = {
        **GRAFANAS_VARIABLES,
        **dict.fromkeys(("service", "environment", "event_type", "outcome"), ".*"),
        **dict.fromkeys(PERSONAL, ""),
        **values,
    }
    return VARIABLE.sub(lambda match: chosen[match.group(1)], expression)


def _parsed(kind: str, language: str, **values: str) -> list[Parsed]:
    return parse_queries(language, [written_out(query["expr"], **values) for query in queries(kind)])


def labels_in_loki() -> set[str]:
    """Everything a record can be asked for in Loki: its attributes, its own fields, and the labels of its resource."""
    indexed = loki()["limits_config"]["otlp_config"]["resource_attributes"]["attributes_config"]
    resource = chain.from_iterable(rule["attributes"] for rule in indexed if rule["action"] == "index_label")
    keys = {attribute.key for attribute in ATTRIBUTES if not _LEFT_OUT.match(attribute.key)}
    left_out = {"flags", "level", "observed_timestamp", "scope_name", "scope_version", "severity_text", "span_id"}
    return {key.replace(".", "_") for key in {*keys, *resource}} | STORE_FIELDS - left_out


def _in_loki() -> list[str]:
    return [query["expr"] for query in queries("loki")]


def _of_loki(panel: dict[str, Any]) -> list[dict[str, Any]]:
    return [target for target in panel.get("targets", []) if target["datasource"]["type"] == "loki"]


@ALL
def test_a_dashboard_can_be_provisioned(name: str) -> None:
    dashboard = dashboards()[name]

    assert dashboard["uid"] == {"audit": "otel-audit"}.get(name, f"otel-audit-{name}")
    assert dashboard["id"] is None
    assert dashboard["schemaVersion"] == 42
    assert "__inputs" not in dashboard


def test_there_is_no_dashboard_that_is_not_looked_at_here() -> None:
    assert set(dashboards()) == {"audit", "pipeline", "trail"}


@ALL
def test_every_panel_has_an_id_of_its_own_and_says_what_it_shows(name: str) -> None:
    shown = [panel for panel in panels(name) if panel["type"] != "row"]

    assert len({panel["id"] for panel in panels(name)}) == len(panels(name))
    assert [panel["title"] for panel in shown if not panel.get("description")] == []


@ALL
def test_no_panel_covers_another_or_leaves_the_grid(name: str) -> None:
    cells = {panel["title"] + str(panel["id"]): _cells(panel["gridPos"]) for panel in panels(name)}

    assert [pair for pair in combinations(cells, 2) if cells[pair[0]] & cells[pair[1]]] == []
    assert all(0 <= column < COLUMNS for column, _ in set.union(*cells.values()))


def _cells(place: dict[str, int]) -> set[tuple[int, int]]:
    columns = range(place["x"], place["x"] + place["w"])
    rows = range(place["y"], place["y"] + place["h"])
    return {(column, row) for column in columns for row in rows}


@ALL
def test_every_data_source_of_a_dashboard_is_provisioned(name: str) -> None:
    named = [panel["datasource"] for panel in panels(name) if panel["type"] != "row"]
    named += [target["datasource"] for panel in panels(name) for target in panel.get("targets", [])]
    named += [variable["datasource"] for variable in _variables(name) if variable["type"] == "query"]

    assert {source["uid"]: source["type"] for source in named} == {
        uid: data_sources()[uid]["type"] for uid in {source["uid"] for source in named}
    }


def _variables(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = dashboards()[name]["templating"]["list"]
    return found


@ALL
def test_every_variable_exists_and_is_used(name: str) -> None:
    expressions = [target["expr"] for panel in panels(name) for target in panel.get("targets", [])]

    used = set(chain.from_iterable(VARIABLE.findall(expression) for expression in expressions))

    assert used - set(GRAFANAS_VARIABLES) == {variable["name"] for variable in _variables(name)}


@ALL
def test_a_click_goes_to_a_dashboard_and_a_filter_that_exist(name: str) -> None:
    urls = [
        link["url"]
        for panel in panels(name)
        for link in panel.get("fieldConfig", {}).get("defaults", {}).get("links", [])
    ]

    assert urls or name != "audit"
    filters = {variable["name"] for variable in _variables("audit")}
    for url in urls:
        assert url.startswith("/d/otel-audit?${__url_time_range}&")
        assert set(re.findall(r"var-(\w+)=", url)) | set(re.findall(r"\$\{(\w+):queryparam\}", url)) <= filters


@pytest.mark.processes
def test_every_logql_query_parses() -> None:
    assert len(queries("loki")) >= 10
    assert [parsed.text for parsed in _parsed("loki", "logql") if parsed.errors] == []


@pytest.mark.processes
@pytest.mark.parametrize("name", [r"CORP\dave", "alice+dev@example.com", "O'Brien", 'a"b', "(a|b)*", "", "a b"])
def test_a_name_is_asked_for_as_it_stands(name: str) -> None:
    """Not as a regular expression, and not as a text with escapes: both would refuse or not find the first two."""
    for query in _parsed("loki", "logql", actor=name, target=name):
        assert query.errors == (), query.text
        if "audit_actor_id=" in query.text:
            assert f"`{name}`" in query.nodes["String"]


@pytest.mark.processes
def test_every_promql_query_parses() -> None:
    assert len(queries("prometheus")) >= 15
    assert [parsed.text for parsed in _parsed("prometheus", "promql") if parsed.errors] == []


@pytest.mark.processes
def test_the_parser_does_refuse_what_is_no_query() -> None:
    broken = ['sum by (audit_result (count_over_time({log_source="audit"}[5m]))', '{log_source="audit"} | = "x"']

    assert all(parsed.errors for parsed in parse_queries("logql", broken))


@pytest.mark.processes
def test_every_label_that_a_logql_query_names_is_one_that_is_written() -> None:
    for parsed in _parsed("loki", "logql"):
        assert set(parsed.nodes.get("Identifier", [])) - labels_in_loki() == set()


def test_the_collector_leaves_out_of_lokis_copy_only_what_the_table_names() -> None:
    left_out = {attribute.key for attribute in ATTRIBUTES if _LEFT_OUT.match(attribute.key)}

    assert len(left_out) == _ASKED.count("|") + 1


def test_every_field_that_a_line_shows_is_one_that_is_written() -> None:
    lines = {text.partition("line_format")[2] for text in _in_loki() if "line_format" in text}

    for line in lines:
        shown = set(FIELD_OF_A_TEMPLATE.findall(line))
        assert shown >= {"audit_actor_id", "audit_action", "audit_result", "audit_target_id"}
        assert shown - labels_in_loki() == set()


def test_the_filter_by_actor_finds_an_id_and_a_name() -> None:
    """An empty box leaves `log_source=`audit``, which is true of every record."""
    filtered = [query["expr"] for panel in panels("audit") for query in _of_loki(panel)]

    assert len(filtered) >= 5
    both = "| (log_source=`audit${actor:raw}` or audit_actor_id=`${actor:raw}` or audit_actor_name=`${actor:raw}`)"
    assert [text for text in filtered if both not in text] == []


@pytest.mark.processes
def test_every_legend_shows_labels_that_its_query_keeps() -> None:
    for kind, language in (("loki", "logql"), ("prometheus", "promql")):
        for query, parsed in zip(queries(kind), _parsed(kind, language), strict=True):
            kept = " ".join([*parsed.nodes.get("Labels", []), *parsed.nodes.get("GroupingLabels", [])])
            shown = FIELD_OF_A_LEGEND.findall(query.get("legendFormat", ""))
            assert set(shown) <= set(re.findall(r"\w+", kept)), query["expr"]


def test_loki_is_asked_for_people_and_single_events_only() -> None:
    """A count over every event takes Loki longer the more there are. The collector has counted them before."""
    counting = [text for text in _in_loki() if "_over_time" in text]
    folded = [each for name in dashboards() for each in dashboards()[name]["panels"] if each.get("collapsed")]

    asked_when_opened = [target["expr"] for row in folded for panel in row["panels"] for target in panel["targets"]]

    assert len(folded) == 2
    assert set(counting) == set(asked_when_opened)


def test_every_logql_query_asks_for_audit_records() -> None:
    assert [text for text in _in_loki() if '{log_source="audit"' not in text] == []


def test_every_outcome_has_its_colour() -> None:
    [panel] = [panel for panel in panels("audit") if panel["title"] == "Events by outcome"]

    coloured = {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]}

    assert coloured == {outcome.value for outcome in Outcome}


def test_every_outcome_that_is_asked_for_exists() -> None:
    asked = chain.from_iterable(re.findall(r'outcome="(\w+)"', query["expr"]) for query in queries("prometheus"))

    assert set(asked) == {Outcome.DENIED, Outcome.ERROR}


@pytest.mark.processes
def test_grafana_finds_the_dashboards_and_opens_with_the_first() -> None:
    mounts = bind_mounts("grafana")
    [provider] = load_yaml(GRAFANA / "provisioning" / "dashboards" / "dashboards.yaml")["providers"]
    home = services()["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]

    folder = provider["options"]["path"]

    assert mounts[folder] == GRAFANA / "dashboards"
    assert home == f"{folder}/audit.json"
    assert mounts["/etc/grafana/provisioning"] == GRAFANA / "provisioning"
