"""A place without a trail: every command says so, and only those that were asked for a proof end with 1."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from otel_audit.cli import main
from otel_audit.signing.keys import SigningKey
from tests.journal.retaining import Clocks, a_retention, delivered
from tests.verification.test_pruning import Service

NOTHING_IS_LISTENING = "http://127.0.0.1:1"
ASKED = ["tail", "status", "query", "export --format ocsf", "pack", "ship --once", "replay", "replay --quarantine"]


def run(command: str, directory: Path) -> Result:
    name, *options = command.split()
    into = [str(directory.parent / "packed")] if name == "pack" else []
    env = {
        "OTEL_AUDIT_DIR": "",
        "OTEL_SERVICE_NAME": "shop",
        "OTEL_EXPORTER_OTLP_ENDPOINT": NOTHING_IS_LISTENING,
        "XDG_STATE_HOME": str(directory.parent / "state"),
    }
    state = ["--state", str(directory.parent / "replayed")] if command == "replay" else []
    return CliRunner().invoke(main, [name, *options, *state, str(directory), *into], env=env)


def removed_by_retention(directory: Path) -> None:
    delivered(directory)
    clocks = Clocks()
    for _ in range(2):
        a_retention(directory, clocks).look()
        clocks.pass_days(31)


@pytest.fixture(params=["empty", "a new volume", "pruned without a ledger"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    directory = tmp_path / "journal"
    directory.mkdir()
    if request.param == "a new volume":
        (directory / "lost+found").mkdir()
    elif request.param == "pruned without a ledger":
        removed_by_retention(directory)
    assert not list(directory.glob("*-*.jsonl"))
    return directory


@pytest.mark.parametrize("command", ASKED)
def test_a_place_without_a_stream_is_no_error_to_who_asks_for_events(command: str, place: Path) -> None:
    result = run(command, place)

    assert result.exit_code == 0, result.output
    assert f"{place}: no stream is " in result.stderr


def test_verify_finds_no_trail_and_says_what_that_means(place: Path) -> None:
    result = run("verify", place)

    assert result.exit_code == 1
    assert result.stdout.startswith(f"EMPTY: expected a trail in {place}, got no line and no signed ledger: ")
    assert f"{place}: no stream is " in result.stderr
    assert json.loads(run("verify --json", place).stdout)["verdict"] == "empty"


def test_verify_says_what_an_unsigned_ledger_explains(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    removed_by_retention(directory)

    result = run("verify", directory)

    assert "an unsigned ledger says that retention removed 1 stream of " in result.stdout
    assert "no stream is left in this directory, only its ledger" in result.stderr


def test_verify_of_a_trail_that_retention_removed_under_a_signed_ledger_is_not_empty(tmp_path: Path) -> None:
    service = Service(tmp_path / "audit")
    service.live()
    service.let_all_go()

    result = run("verify", service.directory)

    assert result.exit_code == 0
    assert result.stdout.startswith("CONSISTENT: ")
    assert "  removed" in result.stdout
    assert "no stream is left in this directory, only its ledger" in result.stderr


def test_a_removed_trail_is_not_what_a_key_expected(place: Path) -> None:
    key = SigningKey.generate().verifier("otel-audit/shop")

    result = run(f"verify --key {key}", place)

    assert result.exit_code == 1
    assert result.stdout.startswith("BROKEN: ")


def test_a_report_on_nothing_ends_as_verify_does(place: Path) -> None:
    page = place.parent / "page.html"

    result = run(f"report --out {page}", place)

    assert result.exit_code == 1
    assert "EMPTY: expected a trail in " in page.read_text()


def test_a_directory_of_something_else_is_wrong_usage(tmp_path: Path) -> None:
    directory = tmp_path / "notes"
    directory.mkdir()
    shutil.copy(__file__, directory)

    for command in ("verify", "query", "replay"):
        result = run(command, directory)
        assert result.exit_code == 2
        assert "expected a directory with a journal or a collector archive, got neither; give the " in result.stderr
