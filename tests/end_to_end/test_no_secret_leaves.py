"""A planted secret is in no byte that leaves the process: journal, OTLP, console, JSONL, stderr, quarantine, status."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st

from otel_audit import configure
from otel_audit.cli.command import main
from otel_audit.event import AuditAction, AuditEvent, AuditPrincipal, AuditResource, AuditSource
from otel_audit.logger import AuditLogger
from tests.examples import examples
from tests.secret_samples import SAMPLES
from tests.servers import poll
from tests.servers.otlp_server import Answer, OtlpServer, Received, partial_success

Way = Callable[[AuditLogger, str], object]


def in_model(**fields: Callable[[str], Any]) -> Way:
    """An event of the model with the text in these fields."""
    return lambda audit, text: audit.log(
        AuditEvent.model_construct(**{"event_type": "a", **{name: make(text) for name, make in fields.items()}})
    )


def failing(audit: AuditLogger, text: str) -> None:
    with contextlib.suppress(ValueError), audit.operation("a", exception_message=True):
        raise ValueError(text)


def required(audit: AuditLogger, text: str) -> None:
    with contextlib.suppress(PermissionError), audit.require("a", exception_message=True, detail=text):
        raise PermissionError(text)


def in_attributes(make: Callable[[str], dict[Any, Any]]) -> Way:
    return in_model(attributes=make)


_SCALAR_FIELDS = """
    event_type timestamp request_id trace_id span_id jsonrpc_id outcome detail event_id error_type
    reason policy_id parent_id
"""
_PARTS = {
    "principal": (AuditPrincipal, "username auth_type id issuer on_behalf_of kind"),
    "source": (AuditSource, "ip transport user_agent"),
    "action": (AuditAction, "mcp_tool path verb method arguments_digest"),
    "resource": (AuditResource, "type name"),
}
WAYS: dict[str, Way] = {
    **{name: in_model(**{name: str}) for name in _SCALAR_FIELDS.split()},
    **{
        f"{part}.{name}": in_model(**{part: lambda text, model=model, name=name: model.model_construct(**{name: text})})
        for part, (model, names) in _PARTS.items()
        for name in names.split()
    },
    "principal.roles": in_model(principal=lambda text: AuditPrincipal(roles=["a", text])),
    "resource.actions": in_model(resource=lambda text: AuditResource(actions=[text, "a"])),
    "redacted": in_model(redacted=lambda text: [text]),
    "truncated": in_model(truncated=lambda text: [text]),
    "an attribute": in_attributes(lambda text: {"note": text}),
    "a list": in_attributes(lambda text: {"notes": ["a", text]}),
    "a key": in_attributes(lambda text: {text: 1}),
    "bytes": in_attributes(lambda text: {"note": text.encode()}),
    "a mapping in a list": in_attributes(lambda text: {"note": [{"deep": [text]}]}),
    "an exception": in_attributes(lambda text: {"note": ValueError(text)}),
    "log_http_request": lambda audit, text: audit.log_http_request(
        method="GET", path=text, source=AuditSource(user_agent=text), outcome=text
    ),
    "log_mcp_call": lambda audit, text: audit.log_mcp_call(tool_name=text, detail=text, jsonrpc_id=text),
    "log_authn": lambda audit, text: audit.log_authn(outcome="failure", detail=text, request_id=text),
    "log_authz": lambda audit, text: audit.log_authz(outcome="deny", resource=AuditResource(name=text)),
    "the message of an error": failing,
    "a required operation": required,
}
INVISIBLE = ["", "", "", "\u200b", "\u00ad"]


def needles_of(secret: str) -> set[bytes]:
    """The secret as it would stand in a text, in JSON and in what Python shows."""
    return {secret.encode(), json.dumps(secret)[1:-1].encode(), repr(secret)[1:-1].encode()}


def everything_in(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file())


class Refusing(OtlpServer):
    """Refuses requests that hold the word poison, and says what it should not."""

    def __init__(self, says: str) -> None:
        super().__init__()
        self._says = says

    def received(self, request: Received) -> Answer:
        accepted = super().received(request)
        return partial_success(1, self._says) if b"poison" in request.body else accepted


# Only generated, not shrunk: an example is a whole service with its server.
@pytest.mark.slow
@given(st.data())
@examples(5, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
def test_a_planted_secret_is_in_no_byte_that_leaves_the_process(data: st.DataObject) -> None:
    samples = [sample for of_kind in SAMPLES.values() for sample in of_kind]
    ways = itertools.cycle(data.draw(st.permutations(sorted(WAYS))))
    refused = data.draw(st.sampled_from(samples))
    answered = data.draw(refused.secret)
    planted = [("the answer of the server", answered)]
    # All is drawn before the service runs: its back-off draws too, and Hypothesis takes that for a strategy's doing.
    texts: list[tuple[Way, str]] = []
    for sample, way in zip(samples, ways, strict=False):
        secret = data.draw(sample.secret)
        split = data.draw(st.sampled_from(INVISIBLE)).join((secret[: len(secret) // 2], secret[len(secret) // 2 :]))
        planted += [(way, secret), (way, split)]
        texts.append((WAYS[way], f"it is {sample.before}{split}{sample.after} ok"))
    said, out = io.StringIO(), io.StringIO()
    with (
        tempfile.TemporaryDirectory() as directory,
        Refusing(f"record {refused.before}{answered}{refused.after} ok") as server,
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(out),
        configure(
            directory=directory,
            export="otlp,console,jsonl",
            endpoint=server.base_url,
            protocol="http/protobuf",
            compression="none",
            batch_delay_s=0.05,
        ) as audit,
    ):
        audit.log(AuditEvent(event_type="poison"))
        for log, text in texts:
            log(audit, text)
        report = audit.flush(60)
        quarantined = audit.stats().quarantined
        status = CliRunner().invoke(main, ["status", directory, "--json"]).output
        audit.close()
        left = [
            everything_in(Path(directory)),
            *(request.body + repr(request.headers).encode() for request in server.requests),
            said.getvalue().encode("utf-8", "surrogateescape"),
            out.getvalue().encode("utf-8", "surrogateescape"),
            status.encode(),
        ]

    assert len(samples) >= len(WAYS)  # each way was used
    assert report.complete
    assert quarantined == 1
    assert "[REDACTED]" in status
    assert left[0].count(b"[REDACTED]") >= len(samples)
    assert sum(request.body.count(b"[REDACTED]") for request in server.requests) >= len(samples)
    assert said.getvalue().count("[REDACTED]") > 0
    assert [
        (way, secret) for way, secret in planted for needle in needles_of(secret) for b in left if needle in b
    ] == []


def test_what_a_server_says_of_a_refused_record_is_screened_before_it_is_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        Refusing("record {'user': 'al', 'password': 'hunter2-of-al'} by ghp_" + "a1" * 18) as server,
        configure(
            directory=str(tmp_path / "journal"),
            export="otlp",
            endpoint=server.base_url,
            protocol="http/protobuf",
            batch_delay_s=0.05,
        ) as audit,
    ):
        for event_type in ("good", "poison", "better"):
            audit.log(AuditEvent(event_type=event_type))
        poll(lambda: audit.stats().quarantined, until=lambda count: count == 1, what="one record in quarantine")
        audit.flush(20)
    unset = {name: None for name in os.environ if name.startswith("OTEL_")}
    status = CliRunner().invoke(main, ["status", str(tmp_path / "journal"), "--json"], env=unset).output
    shown = capfd.readouterr()

    kept = everything_in(tmp_path / "journal")
    assert b"'password': '[REDACTED]'" in kept
    assert "'password': '[REDACTED]'" in status
    for text in (kept, status.encode(), shown.err.encode(), shown.out.encode()):
        assert b"hunter2" not in text
        assert b"a1a1a1" not in text
