"""Feast's feature server as a process: `python served.py REPOSITORY PORT uvicorn|gunicorn LOG`.

LOG: where Feast's own file sink writes the same events, to compare with.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import uvicorn
from feast import FeatureStore
from feast.audit import audit_logger
from feast.cli.cli import cli
from feast.feature_server import get_app
from feast.permissions.auth.auth_manager import AuthManager, set_auth_manager
from feast.permissions.auth.token_parser import TokenParser
from feast.permissions.security_manager import SecurityManager, set_security_manager
from feast.permissions.server.rest_token_extractor import RestTokenExtractor
from feast.permissions.user import User
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

from otel_audit.integrations.feast import install
from tests.servers.ports import LOOPBACK
from tests.servers.span_file import provider_into

WORKERS = "2"


class Both:
    """Feast's file sink, and the one that was installed."""

    def __init__(self, *sinks: Any) -> None:
        self._sinks = sinks

    def emit(self, event: audit_logger.AuditEvent) -> None:
        for sink in self._sinks:
            sink.emit(event)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()


def write_beside(log: str) -> None:
    """From here on Feast's own file sink gets what the installed one gets."""
    factories = audit_logger._SINK_FACTORIES
    installed = factories["stdout"]

    def both(config: Mapping[str, Any]) -> Both:
        return Both(audit_logger.FileAuditSink(log), installed(config))

    factories["stdout"] = both


class NamedByToken(TokenParser):
    """A token is the name of its user and its role."""

    async def user_details_from_access_token(self, access_token: str) -> User:
        name, role = access_token.split(":")
        return User(username=name, roles=[role])


def ask_who_it_is(store: FeatureStore) -> None:
    """As `start_server` does where the store has this auth type, but for the provider that knows the tokens."""
    store.config.auth = {"type": "oidc", "auth_discovery_url": "http://127.0.0.1:9"}
    set_security_manager(SecurityManager(project=store.project, registry=store.registry))
    set_auth_manager(AuthManager(token_extractor=RestTokenExtractor(), token_parser=NamedByToken()))


def main(repository: str, port: str, server: str, log: str) -> None:
    install(replace="REPLACE" in os.environ)
    write_beside(log)
    if server == "uvicorn":
        store = FeatureStore(repo_path=repository)
        if "WITH_AUTH" in os.environ:
            ask_who_it_is(store)
        app = get_app(store)
        if path := os.environ.get("SPANS"):
            FastAPIInstrumentor.instrument_app(app, tracer_provider=provider_into(path))
        uvicorn.run(app, host=LOOPBACK, port=int(port), log_level="warning")
    else:
        cli(["--chdir", repository, "serve", "--port", port, "--workers", WORKERS, "--no-access-log"])


if __name__ == "__main__":
    main(*sys.argv[1:])
