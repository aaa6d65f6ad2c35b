"""A service whose code knows nothing of us: `opentelemetry-instrument`, by a variable and by a configuration file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from opentelemetry.sdk import environment_variables

from tests.chain_check import read_streams
from tests.servers import Collector, Record

pytestmark = pytest.mark.processes

INSTRUMENT = Path(sys.executable).with_name("opentelemetry-instrument")

SERVICE = """
from opentelemetry import trace
from opentelemetry._logs import SeverityNumber, get_logger

with trace.get_tracer("shop").start_as_current_span("order"):
    get_logger("shop", "1.0").emit(
        event_name="shop.sold", body={"item": 7}, attributes={"user.id": "alice"}, severity_number=SeverityNumber.INFO
    )
"""

# What it says about itself: where its events go, and what became of the one that it logged.
AUDITED = """
import otel_audit

audit = otel_audit.configure()
audit.log_authn(outcome="success")
print(audit.settings.export[0].value, audit.flush(timeout_s=2).complete, audit.stats().pending)
"""

CONFIGURATION = """
file_format: "1.0"
resource:
  attributes:
    - {name: service.name, value: shop}
tracer_provider:
  processors:
    - simple: {exporter: {console: {}}}
logger_provider:
  processors:
    - simple:
        exporter:
          otel_audit:
            directory: ${AUDIT_DIRECTORY}
            batch_delay_s: 0.1
"""

JSONL_CONFIGURATION = (
    CONFIGURATION.partition("          otel_audit:")[0]
    + """\
          otel_audit_jsonl:
            path: ${AUDIT_FILE}
"""
)


def run(collector: Collector, **variables: str) -> str:
    """What the service said on stderr."""
    endpoint = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.http_endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    }
    return instrumented(SERVICE, {**endpoint, **variables}).stderr


def instrumented(code: str, variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment = {**kept, "OTEL_SERVICE_NAME": "shop", **variables}
    command = [str(INSTRUMENT), sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_without_an_endpoint_the_journal_is_the_destination_and_one_notice_says_so(tmp_path: Path) -> None:
    quiet = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}

    done = instrumented(AUDITED, {**quiet, "OTEL_AUDIT_DIR": str(tmp_path / "audit")})

    assert done.stdout.split() == ["none", "True", "0"]
    assert done.stderr.count("OTEL_LOGS_EXPORTER is set and has no effect on audit events") == 1
    assert "blocked" not in done.stderr


def assert_is_what_was_sold(records: list[Record]) -> None:
    (sold,) = [record for record in records if record.event_name == "shop.sold"]
    assert sold.body == '{"item": 7}'
    assert sold.attributes == {"user.id": "alice"}
    assert sold.resource["service.name"] == "shop"
    assert (sold.scope_name, sold.scope_version) == ("shop", "1.0")
    assert sold.trace_id
    assert sold.span_id


def assert_is_journalled(directory: Path) -> None:
    (lines,) = read_streams(directory).values()
    assert [line["event_type"] for line in lines if "otlp" in line] == ["shop.sold"]


def test_a_variable_journals_and_delivers_what_a_service_logs(collector: Collector, tmp_path: Path) -> None:
    said = run(
        collector,
        OTEL_LOGS_EXPORTER="otel_audit",
        OTEL_TRACES_EXPORTER="none",
        OTEL_METRICS_EXPORTER="none",
        OTEL_AUDIT_DIR=str(tmp_path / "audit"),
    )

    assert_is_what_was_sold(collector.wait_for_archive(2))
    assert_is_journalled(tmp_path / "audit")
    assert "Traceback" not in said


def test_variables_show_what_a_service_logs_and_append_it_to_a_file_without_a_journal(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    variables = {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "none", "OTEL_AUDIT_JSONL_PATH": str(file)}

    done = instrumented(SERVICE, {**variables, "OTEL_LOGS_EXPORTER": "otel_audit_console,otel_audit_jsonl"})

    (shown,) = [line for line in done.stderr.splitlines() if "shop.sold" in line]
    (written,) = file.read_text(encoding="utf-8").splitlines()
    assert json.loads(shown) == json.loads(written)
    assert json.loads(written)["body"] == {"item": 7}
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["events.jsonl"]


# A release of the SDK that knows no such file has nothing that could read it.
if hasattr(environment_variables, "OTEL_CONFIG_FILE"):

    def test_a_configuration_file_journals_and_delivers_what_a_service_logs(
        collector: Collector, tmp_path: Path
    ) -> None:
        file = tmp_path / "otel.yaml"
        file.write_text(CONFIGURATION, encoding="utf-8")

        said = run(collector, OTEL_CONFIG_FILE=str(file), AUDIT_DIRECTORY=str(tmp_path / "audit"))

        assert_is_what_was_sold(collector.wait_for_archive(2))
        assert_is_journalled(tmp_path / "audit")
        assert "Traceback" not in said

    def test_a_configuration_file_appends_what_a_service_logs_to_a_file_without_a_journal(tmp_path: Path) -> None:
        file, config = tmp_path / "events.jsonl", tmp_path / "otel.yaml"
        config.write_text(JSONL_CONFIGURATION, encoding="utf-8")

        done = instrumented(SERVICE, {"OTEL_CONFIG_FILE": str(config), "AUDIT_FILE": str(file)})

        (written,) = file.read_text(encoding="utf-8").splitlines()
        assert json.loads(written)["event_name"] == "shop.sold"
        assert "Traceback" not in done.stderr
