"""The settings of the ledger: its name, the key that signs it, and how often."""

from __future__ import annotations

import pytest

from otel_audit.settings import Settings
from otel_audit.settings.proof import default_log_name
from otel_audit.signing.keys import checked_name
from tests.setting_examples import HERE, HOME, refusal


@pytest.mark.parametrize("service", ["shop", "my shop", "a+b", "kiosk\N{NO-BREAK SPACE}1", "\x00", "x" * 500])
def test_the_ledger_of_every_service_has_a_name_that_can_stand_in_a_note(service: str) -> None:
    assert checked_name(default_log_name(service)).startswith("otel-audit/")


def test_a_command_that_signs_needs_the_public_key_that_it_signs_for() -> None:
    assert "OTEL_AUDIT_IDENTITY_KEY" in refusal({"OTEL_AUDIT_SIGN_COMMAND": "sign"})

    both = {"OTEL_AUDIT_SIGN_COMMAND": "sign", "OTEL_AUDIT_IDENTITY_KEY": HERE}
    assert Settings.load({**HOME, **both}).sign_command == "sign"


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\tb", "a\N{LINE SEPARATOR}b", "x" * 201])
def test_a_name_that_cannot_stand_in_a_note_is_refused(name: str) -> None:
    assert "log_name" in refusal({}, log_name=name) or "OTEL_AUDIT_LOG_NAME" in refusal({}, log_name=name)
