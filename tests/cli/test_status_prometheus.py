"""`otel-audit status --prometheus`: the numbers of the status, under the names that alerts ask for."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

import otel_audit
from otel_audit.ids import new_id
from otel_audit.journal.ages import RetentionLimits
from otel_audit.journal.files import streams_in
from otel_audit.journal.journal import Journal
from otel_audit.journal.retention import Retention
from tests.cli.journals import Inbox, a_journal, deliver, record
from tests.cli.test_status import run, status_of

ALERTS = Path(__file__).parents[2] / "collector-config" / "alerts" / "audit.yaml"
OF_THE_COLLECTOR = {"audit_events_total"}  # what is asked for and comes from the counts of the collector


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """Four events: two delivered, one refused, one waiting."""
    written = a_journal(tmp_path)
    deliver(record(written, "good", "poison", "good"), Inbox(refuses=b"poison"))
    record(written, "waiting")
    yield written
    written.close()


def metrics_of(directory: Path) -> dict[str, Metric]:
    said = run("--prometheus", directory)
    assert said.stderr == ""
    return {family.name: family for family in text_string_to_metric_families(said.stdout)}


def status_of_all(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("--json", directory).stdout)
    return found


def values_of(path: Path, **labels: str) -> dict[str, float]:
    """The value of each metric, summed over the series with these labels."""
    found: dict[str, float] = {}
    for family in metrics_of(path).values():
        for sample in family.samples:
            if labels.items() <= sample.labels.items():
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def test_the_numbers_are_those_of_the_status(tmp_path: Path, journal: Journal) -> None:
    status, _ = status_of(tmp_path)

    values = values_of(tmp_path, service_name="shop", directory=str(tmp_path))

    assert (status["emitted"], status["exported"], status["pending"], status["quarantined"]) == (4, 2, 1, 1)
    assert values == {
        "audit_records_emitted_total": 4,
        "audit_records_exported_total": 2,
        "audit_records_dropped_total": 0,
        "audit_records_quarantined": 1,
        "audit_queue_depth": 1,
        "audit_export_blocked_ratio": 0,
        "audit_space_low_ratio": 0,
    }


@pytest.mark.parametrize(("what", "code"), [("empty", 0), ("missing", 2), ("a file", 2), ("unreadable", 2)])
def test_a_directory_without_a_journal_is_a_number_that_an_alert_notices(tmp_path: Path, what: str, code: int) -> None:
    """Also where healthy numbers of an earlier run are in the file: with exit code 2 they would have stayed there."""
    directory, out = tmp_path / 'a "journal"', tmp_path / "audit.prom"
    journal = a_journal(directory)
    record(journal, "a")
    journal.close()
    before = time.time()
    assert run("--prometheus", "--out", out, directory).exit_code == 1  # nobody delivers it
    assert samples_of(out)["audit_journal_missing_ratio"].value == 0
    take_away(directory, what)

    said = run("--prometheus", "--out", out, directory)

    assert (said.stdout, said.exit_code) == ("", code)
    assert str(directory) in said.stderr.replace('\\"', '"')
    found = samples_of(out)
    assert found.keys() == {"audit_journal_missing_ratio", "audit_status_timestamp_seconds"}
    assert {sample.labels["directory"] for sample in found.values()} == {str(directory)}
    assert found["audit_journal_missing_ratio"].value == 1
    assert found["audit_status_timestamp_seconds"].value >= before - 0.001


def without_times(text: str) -> str:
    return re.sub(r"(?m)^(audit_status_timestamp_seconds\S*) .*", r"\1", text)


def samples_of(path: Path) -> dict[str, Sample]:
    families = text_string_to_metric_families(path.read_text())
    return {sample.name: sample for family in families for sample in family.samples}


def take_away(directory: Path, what: str) -> None:
    shutil.rmtree(directory)
    if what == "a file":
        directory.touch()
    elif what != "missing":
        directory.mkdir()
    if what == "unreadable":  # for root too
        (directory / f"{new_id()}.00000001.jsonl").mkdir()


def test_a_directory_that_has_only_its_ledger_left_still_has_a_journal(tmp_path: Path) -> None:
    audit = otel_audit.configure(directory=tmp_path, export="none", close_timeout_s=60)
    audit.log_authn(outcome="success")
    audit.close()
    for files in streams_in(tmp_path):  # as retention does, long after the last event
        files.segment(1).unlink()
    assert status_of_all(tmp_path)["streams"] == []

    assert run("--prometheus", "--out", tmp_path / "audit.prom", tmp_path).exit_code == 0
    assert samples_of(tmp_path / "audit.prom")["audit_journal_missing_ratio"].value == 0


def test_every_metric_says_what_it_is(tmp_path: Path, journal: Journal) -> None:
    families = metrics_of(tmp_path)

    assert all(family.documentation for family in families.values())
    counters = {name for name, family in families.items() if family.type == "counter"}
    assert counters == {"audit_records_emitted", "audit_records_exported", "audit_records_dropped"}
    assert {families[name].type for name in families.keys() - counters} == {"gauge"}


def test_every_alert_about_a_service_finds_its_metrics(tmp_path: Path) -> None:
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    asked = " ".join(re.sub(r"\b(by|on) \(.*?\)", "", rule["expr"]) for rule in rules)
    wanted = set(re.findall(r"\baudit_\w+", asked)) - OF_THE_COLLECTOR
    audit = otel_audit.configure(directory=tmp_path, export="none", close_timeout_s=60)
    audit.log_authn(outcome="success")
    audit.close()

    written = {sample.name for family in metrics_of(tmp_path).values() for sample in family.samples}

    assert len(wanted) >= 5
    assert wanted - written == set()


def test_each_service_and_each_exporter_has_its_own_series(tmp_path: Path) -> None:
    shop = a_journal(tmp_path, export=("otlp", "jsonl"))
    deliver(record(shop, "a", "b"), Inbox("jsonl"))
    bank = a_journal(tmp_path, service="bank", export=("none",))
    record(bank, "c")
    bank.close()

    assert values_of(tmp_path, service_name="shop", audit_exporter="otlp")["audit_queue_depth"] == 2
    assert values_of(tmp_path, service_name="shop", audit_exporter="jsonl")["audit_queue_depth"] == 0
    assert values_of(tmp_path, service_name="bank", audit_exporter="none")["audit_records_exported_total"] == 1
    assert values_of(tmp_path, service_name="bank")["audit_records_emitted_total"] == 1
    shop.close()


def test_an_exporter_that_is_blocked_is_shown(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    deliver(record(journal, "a"), Inbox(away="connection refused"))

    assert values_of(tmp_path, audit_exporter="otlp")["audit_export_blocked_ratio"] == 1
    assert run("--prometheus", tmp_path).exit_code == 1  # as the status has it
    journal.close()


def test_events_that_retention_removed_stay_counted(tmp_path: Path) -> None:
    """A counter that went down would look like a restart, and its rest like new events."""
    for _ in range(2):
        journal = a_journal(tmp_path, export=("none",), segment_bytes=2000)
        record(journal, *map(str, range(50)))
        journal.close()
    before = values_of(tmp_path)
    del before["audit_status_timestamp_seconds"]

    Retention(tmp_path, RetentionLimits(bytes=9_000), wanted=lambda header: True).look()

    assert status_of_all(tmp_path)["removed"]["emitted"] > 0
    assert before["audit_records_emitted_total"] == 100
    after = values_of(tmp_path)
    assert {name: after[name] for name in before} == before


def test_a_name_is_quoted(tmp_path: Path) -> None:
    name = 'a"b\\c\nd'
    journal = a_journal(tmp_path, service=name)
    record(journal, "x")

    assert values_of(tmp_path, service_name=name)["audit_records_emitted_total"] == 1
    journal.close()


def test_the_file_of_a_text_file_collector_is_replaced_whole_and_everybody_can_read_it(
    tmp_path: Path, journal: Journal
) -> None:
    out = tmp_path / "out" / "audit.prom"
    out.parent.mkdir()
    out.write_text("# the one before\n")
    before = out.stat().st_ino

    said = run("--prometheus", "--out", out, tmp_path)

    assert (said.stdout, said.exit_code) == ("", 1)  # a line is in quarantine
    assert without_times(out.read_text()) == without_times(run("--prometheus", tmp_path).stdout)
    assert out.stat().st_ino != before
    assert stat.S_IMODE(out.stat().st_mode) == 0o644
    assert list(out.parent.iterdir()) == [out]


def test_a_file_that_cannot_be_replaced_stays_as_it_was(tmp_path: Path, journal: Journal) -> None:
    said = run("--prometheus", "--out", tmp_path / "none" / "audit.prom", tmp_path)

    assert said.exit_code == 1
    assert "expected to read or write" in said.stderr
    assert str(tmp_path / "none") in said.stderr


def test_a_pipe_or_a_device_is_written_to_and_not_replaced(journal: Journal, tmp_path: Path) -> None:
    """Root could replace /dev/null or /dev/stdout by a file, and nothing on that machine would work any more."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    kept = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)  # so that neither side waits for the other
    regular = os.open(tmp_path / "regular", os.O_RDWR | os.O_CREAT)
    try:
        for out in (pipe, Path(f"/dev/fd/{regular}")):
            assert run("--prometheus", "--out", out, tmp_path).exit_code == 1  # a line is quarantined

        assert os.read(kept, 1 << 16).startswith(b"# HELP")
        assert stat.S_ISFIFO(pipe.stat().st_mode)
        assert os.read(regular, 1 << 16).startswith(b"# HELP")
    finally:
        os.close(kept)
        os.close(regular)


@pytest.mark.parametrize("options", [("--json", "--prometheus"), ("--out", "audit.prom")])
def test_options_that_exclude_each_other_are_refused(tmp_path: Path, options: tuple[str, ...]) -> None:
    said = run(*options, tmp_path)

    assert said.exit_code == 2
    assert "expected --" in said.stderr
