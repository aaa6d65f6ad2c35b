"""The alerts: each one fires and is silent in its own unit test, and has a section that says what to do."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from otel_audit.journal.ledger.entries import ENTRY, NOTE
from otel_audit.journal.line import GAP, SEGMENT
from tests.compose.stack import ROOT, bind_mounts, load_yaml, loki, panels, prometheus
from tests.compose.test_dashboard import labels_in_loki
from tests.compose.toolchain import parse_queries
from tests.servers import VMALERT_TOOL

pytestmark = pytest.mark.processes

RULES = ROOT / "collector-config" / "alerts" / "audit.yaml"
UNIT_TESTS = Path(__file__).parent / "alerts" / "audit.yaml"
OF_LOKI = RULES.parent / "loki" / "people.yaml"
OPERATIONS = ROOT / "docs" / "operations.md"


def rules(path: Path = RULES) -> list[dict[str, Any]]:
    return [rule for group in load_yaml(path)["groups"] for rule in group["rules"]]


def unit_tests() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = load_yaml(UNIT_TESTS)["tests"]
    return found


def cases(alert: str) -> list[dict[str, Any]]:
    return [case for test in unit_tests() for case in test["alert_rule_test"] if case["alertname"] == alert]


@pytest.mark.parametrize("increase", ["increase", "increase_prometheus"])
def test_every_alert_fires_and_is_silent_as_its_unit_test_says(tmp_path: Path, increase: str) -> None:
    """Also with an `increase` as Prometheus has it, which begins with the first value of a counter and not with 0."""
    tree = load_yaml(RULES)
    for rule in tree["groups"][0]["rules"]:
        rule["expr"] = re.sub(r"\bincrease\(", f"{increase}(", rule["expr"])
        del rule["annotations"]  # the tool would want the text of each in each case
    (tmp_path / RULES.name).write_text(yaml.safe_dump(tree), encoding="utf-8")
    (tmp_path / "unit-tests.yaml").write_bytes(UNIT_TESTS.read_bytes())

    done = subprocess.run(
        [VMALERT_TOOL.path(), "unittest", "--disableAlertgroupLabel", "--files=unit-tests.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout + done.stderr


def test_every_alert_is_seen_to_fire_and_to_be_silent() -> None:
    names = [rule["alert"] for rule in rules()]

    assert len(set(names)) == len(names) >= 10
    for name in names:
        assert any(case["exp_alerts"] for case in cases(name)), f"{name} never fires"
        assert any(not case["exp_alerts"] for case in cases(name)) or name == "AuditCollectorDown", name


def test_every_counter_of_a_unit_test_is_not_there_at_first() -> None:
    """Many counters appear with their first event: an alert that needs the 0 before it never fires."""
    for test in unit_tests():
        if not test["name"].endswith(("that was there", "that never was")):
            assert [series["series"] for series in test["input_series"] if not series["values"].startswith("_")] == []


def test_a_line_that_the_journal_writes_by_itself_is_no_sign_of_life() -> None:
    """A service that records nothing any more still rolls its segments and signs them."""
    [panel] = [panel for panel in panels("pipeline") if panel["title"] == "Time since the last event"]
    [silent] = [rule for rule in rules() if rule["alert"] == "AuditSilent"]

    for expression in (silent["expr"], panel["targets"][0]["expr"]):
        left_out = re.findall(r'audit_events_total{[^}]*event_type!~"([^"]+)"', expression)
        assert len(left_out) == expression.count("audit_events_total")
        for kind in (SEGMENT, GAP, ENTRY, NOTE):
            assert all(re.fullmatch(pattern, f"audit.{kind}") for pattern in left_out)


@pytest.mark.parametrize(("path", "language"), [(RULES, "promql"), (OF_LOKI, "logql")])
def test_every_expression_parses_and_keeps_the_labels_that_its_texts_show(path: Path, language: str) -> None:
    read = rules(path)
    for rule, parsed in zip(read, parse_queries(language, [rule["expr"] for rule in read]), strict=True):
        kept = set(re.findall(r"\w+", " ".join(parsed.nodes.get("GroupingLabels", parsed.nodes.get("Labels", [])))))
        shown = set(re.findall(r"\$labels\.(\w+)", "".join(rule["annotations"].values())))
        assert parsed.errors == (), rule["alert"]
        assert shown <= kept, rule["alert"]


def test_every_alert_has_a_section_that_says_what_to_do() -> None:
    headings = re.findall(r"^#### (\w+)$", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE)

    everything = [*rules(), *rules(OF_LOKI)]
    assert headings == [rule["alert"] for rule in everything]
    for rule in everything:
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in {"critical", "warning"}


def test_prometheus_loads_the_alerts() -> None:
    [pattern] = prometheus()["rule_files"]

    assert bind_mounts("prometheus")[str(Path(pattern).parent)] == RULES.parent
    assert [path.name for path in RULES.parent.glob(Path(pattern).name)] == [RULES.name]


def test_every_job_that_a_rule_names_is_one_that_is_scraped() -> None:
    asked = re.findall(r'job=~?"([^"]+)"', "".join(rule["expr"] for rule in rules()))

    named = {name for names in asked for name in names.split("|")}
    assert len(named) == 4
    assert named <= {job["job_name"] for job in prometheus()["scrape_configs"]}


def test_every_label_that_a_rule_of_loki_names_is_one_that_is_written() -> None:
    for parsed in parse_queries("logql", [rule["expr"] for rule in rules(OF_LOKI)]):
        assert set(parsed.nodes["Identifier"]) - labels_in_loki() == set()


def test_loki_loads_its_rules_for_the_tenant_that_everybody_is() -> None:
    [target] = [target for target, source in bind_mounts("loki").items() if source == OF_LOKI.parent]

    assert target == f"{loki()['ruler']['storage']['local']['directory']}/fake"
    assert loki()["auth_enabled"] is False
