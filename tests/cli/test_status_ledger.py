"""`otel-audit status` of a directory with a signed ledger: how far it came, and where else it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

import otel_audit
from otel_audit.journal.ledger.entries import Kind
from otel_audit.journal.ledger.shipping import LedgerShipping
from tests.cli.journals import a_journal, record
from tests.cli.test_status import run, status_of
from tests.journal.ledger.telling import a_ledger
from tests.servers.otlp_server import OtlpServer


def test_the_ledger_of_a_service_is_shown(tmp_path: Path) -> None:
    audit = otel_audit.configure(
        directory=tmp_path,
        export="none",
        service_name="shop",
        log_name="example.com/shop",
        close_timeout_s=60,
    )
    audit.log_authn(outcome="success")
    audit.close()

    status, _ = status_of(tmp_path)
    said = run(tmp_path).stdout

    ledger = status["ledger"]
    assert ledger["origin"].startswith("example.com/shop/")
    assert ledger["vkey"].startswith(ledger["origin"])
    assert ledger["size"] > 0
    assert f"ledger {ledger['origin']}: {ledger['size']} lines signed, the note is " in said
    assert ledger["exporters"] == {}
    assert " s old, it is on this host only\n" in said


def test_how_far_the_ledger_was_delivered_is_shown(tmp_path: Path) -> None:
    with OtlpServer() as server:
        audit = otel_audit.configure(
            directory=tmp_path,
            export="otlp",
            endpoint=server.base_url,
            protocol="http/protobuf",
            close_timeout_s=60,
        )
        audit.log_authn(outcome="success")
        audit.close()
    status, code = status_of(tmp_path)
    ledger = status["ledger"]
    assert (ledger["exporters"]["otlp"]["seq"], code) == (ledger["size"] + 1, 0)
    assert " s old, otlp has all of it\n" in run(tmp_path).stdout

    a_ledger(tmp_path).tell([(Kind.HEAD, {"stream": "s", "size": 1})])
    assert " s old, 2 lines wait for otlp\n" in run(tmp_path).stdout

    shipment = LedgerShipping(tmp_path, ["otlp"]).take()
    assert shipment is not None
    shipment.cursor.advance("otlp", replace(shipment.cursor.progress("otlp"), blocked="401"))
    shipment.release()
    assert "ledger otlp: blocked behind line " in run(tmp_path).stdout
    assert status_of(tmp_path)[1] == 1


@pytest.mark.parametrize(
    ("durability", "says"),
    [
        ("memory", "no signed ledger, so nothing here can be proven: memory mode keeps none\n"),
        (
            "os",
            "no signed ledger, so nothing here can be proven: a service begins one, unless OTEL_AUDIT_LEDGER is "
            "false\n",
        ),
    ],
)
def test_where_nothing_is_signed_it_is_said_why(tmp_path: Path, durability: str, says: str) -> None:
    journal = a_journal(tmp_path, durability=durability)
    record(journal, "a")

    status, code = status_of(tmp_path)

    assert (status["ledger"], code) == (None, 0)
    assert says in run(tmp_path).stdout
    journal.close()
