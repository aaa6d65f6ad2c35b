"""Services with no line of ours, under `opentelemetry-instrument`: real processes, real requests, a real collector."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.instrumentation import auto_instrumentation
from starlette.applications import Starlette
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from otel_audit.integrations.auto import FastAPIAuditor, FrameworkAuditor, StarletteAuditor
from tests.chain_check import application_events
from tests.integrations.serving import a_logger, served
from tests.servers import Collector, free_port, poll

BIN = Path(sys.executable).parent
ENDING_S = 60

FASTAPI = """
from fastapi import Depends, FastAPI
from fastapi.security import OAuth2PasswordBearer

app = FastAPI()

def get_current_user(token = Depends(OAuth2PasswordBearer(tokenUrl="token", auto_error=False))):
    return {"iss": "https://idp.example", "sub": "00u17", "preferred_username": "ann"} if token else None

@app.get("/orders/{order}")
def read(order: int, user = Depends(get_current_user)) -> int:
    return order

@app.get("/broken")
def broken() -> None:
    raise ValueError("the password is hunter2")
"""

STARLETTE = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

def read(request):
    return PlainTextResponse(request.path_params["order"])

def broken(request):
    raise ValueError("the password is hunter2")

app = Starlette(routes=[Route("/orders/{order}", read), Route("/broken", broken)])
"""

# Lines that an application may have already, and the directory of its own that they write to.
ITS_OWN_MIDDLEWARE = """
import otel_audit
app.add_middleware(otel_audit.AuditMiddleware, audit=otel_audit.configure(directory=OWN))
"""
ITS_OWN_MIDDLEWARE_AROUND_IT = """
import otel_audit
app = otel_audit.AuditMiddleware(app, audit=otel_audit.configure(directory=OWN))
"""


@contextmanager
def running(directory: Path, code: str, *options: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`opentelemetry-instrument uvicorn app:app` on this code, and its address. It may end by itself before it answers.

    Its journal is in `audit`, what it says is in `said`, both in the directory.
    """
    (directory / "app.py").write_text(code, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "AUDIT_"))}
    environment = {
        **kept,
        "OTEL_SERVICE_NAME": "shop",
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_AUDIT_DIR": str(directory / "audit"),
        **variables,
    }
    port = free_port()
    command = [*(str(BIN / name) for name in ("opentelemetry-instrument", "uvicorn")), "app:app", "--port", str(port)]
    with (directory / "said").open("w") as output:
        process = subprocess.Popen(
            [*command, *options], cwd=directory, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        poll(lambda: process.poll() is not None or answers(url), what="the service to start")
        yield process, url
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(ENDING_S)
    finally:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    try:
        httpx.get(url + "/orders/0")
    except httpx.TransportError:
        return False
    return True


def ask(url: str) -> None:
    """Three requests, each of which ends in another way."""
    headers = {"authorization": "Bearer qzv7-kx0w"}
    paths = ("/orders/7?key=1", "/nowhere", "/broken")
    assert [httpx.get(url + path, headers=headers).status_code for path in paths] == [200, 404, 500]


def seen(directory: Path) -> list[tuple[str, str, int, str | None]]:
    """What is recorded of the requests, without those that asked whether the service is there."""
    events = application_events(directory) if directory.exists() else []
    found = [
        (event["event_type"], event["action"]["path"], event["status_code"], event.get("error_type"))
        for event in sorted(events, key=lambda event: event["timestamp"])
    ]
    return [each for each in found if each[1] != "/orders/0"]


# uvicorn ends a worker that does not answer within five seconds, unless told otherwise: a busy machine needs more.
WORKERS = ("--workers", "2", "--timeout-worker-healthcheck", "60")
# Earlier releases of the command do not instrument the processes that uvicorn starts.
SERVERS = [(), WORKERS] if hasattr(auto_instrumentation, "_initialize") else [()]

ONE_EACH = [
    ("http.request", "/orders/7", 200, None),
    ("http.request", "/nowhere", 404, None),
    ("http.request", "/broken", 500, "ValueError"),
]


@pytest.mark.processes
@pytest.mark.parametrize("code", [FASTAPI, STARLETTE], ids=["fastapi", "starlette"])
@pytest.mark.parametrize("options", SERVERS, ids=" ".join)
def test_each_request_is_one_event_in_the_journal_and_the_collector(
    code: str, options: tuple[str, ...], collector: Collector, tmp_path: Path
) -> None:
    delivery = {
        "OTEL_AUDIT_EXPORT": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.http_endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    }

    with running(tmp_path, code, *options, **delivery) as (_, url):
        ask(url)

    events = application_events(tmp_path / "audit")
    assert seen(tmp_path / "audit") == ONE_EACH
    wanted = {event["event_id"] for event in events}
    records = poll(
        lambda: [record for record in collector.archive() if record.event_name == "http.request"],
        until=lambda found: len(found) >= len(wanted),
        what="the events in the archive",
    )
    assert len(records) == len(wanted)
    assert {record.resource["service.name"] for record in records} == {"shop"}
    assert "hunter2" not in "".join(str(event) for event in events)
    (order,) = [event for event in events if event["action"]["path"] == "/orders/7"]
    assert order["principal"].get("id") == ("00u17" if code is FASTAPI else None)
    assert "otel_audit_" not in (tmp_path / "said").read_text(encoding="utf-8")  # MCP is not here, and nobody minds


@pytest.mark.processes
@pytest.mark.parametrize("own", [ITS_OWN_MIDDLEWARE, ITS_OWN_MIDDLEWARE_AROUND_IT], ids=["added", "around"])
def test_an_application_that_audits_itself_keeps_its_own_logger(own: str, tmp_path: Path) -> None:
    unusable = str(tmp_path / "app.py")  # is a file

    code = f"OWN = {str(tmp_path / 'own')!r}\n" + FASTAPI + own
    with running(tmp_path, code, OTEL_AUDIT_EXPORT="none", OTEL_AUDIT_DIR=unusable) as (_, url):
        ask(url)

    assert seen(tmp_path / "own") == ONE_EACH


@pytest.mark.processes
def test_what_a_middleware_around_the_application_leaves_out_is_left_out(tmp_path: Path) -> None:
    own = ITS_OWN_MIDDLEWARE_AROUND_IT.replace("audit=", "exclude=['/nowhere', '/brok*'], audit=")
    code = f"OWN = {str(tmp_path / 'own')!r}\n" + FASTAPI + own

    with running(tmp_path, code, OTEL_AUDIT_EXPORT="none") as (_, url):
        ask(url)

    assert seen(tmp_path / "own") == ONE_EACH[:1]
    assert seen(tmp_path / "audit") == []


@pytest.mark.processes
@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [("OTEL_AUDIT_BATCH_COUNT", "many", "OTEL_AUDIT_BATCH_COUNT"), ("OTEL_AUDIT_DIR", "/proc/audit", "/proc/audit")],
)
def test_a_service_that_cannot_be_audited_does_not_start(variable: str, value: str, said: str, tmp_path: Path) -> None:
    with running(tmp_path, FASTAPI, **{"OTEL_AUDIT_EXPORT": "none", variable: value}) as (process, _):
        assert process.wait(ENDING_S) == 3  # of uvicorn, for a startup that failed

    assert said in (tmp_path / "said").read_text(encoding="utf-8")


@pytest.mark.processes
def test_without_a_lifespan_no_request_is_answered_that_cannot_be_audited(tmp_path: Path) -> None:
    with running(tmp_path, FASTAPI, "--lifespan", "off", OTEL_AUDIT_EXPORT="none", OTEL_AUDIT_DIR="/proc/audit") as (
        _,
        url,
    ):
        assert httpx.get(url + "/orders/7").status_code == 500


@pytest.mark.processes
def test_a_framework_that_is_left_out_is_not_audited(tmp_path: Path) -> None:
    left_out = "otel_audit_fastapi,otel_audit_starlette"

    with running(tmp_path, FASTAPI, OTEL_AUDIT_EXPORT="none", OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=left_out) as (
        _,
        url,
    ):
        ask(url)

    assert not (tmp_path / "audit").exists()


def test_each_instrumentor_is_found_by_its_name() -> None:
    names = {entry.name: entry.load() for entry in entry_points(group="opentelemetry_instrumentor")}

    ours = {name: kind for name, kind in names.items() if name.startswith("otel_audit_")}
    assert set(ours) >= {f"otel_audit_{name}" for name in ("fastapi", "fastmcp", "feast", "mcp", "starlette")}
    assert all(issubclass(kind, FrameworkAuditor) for kind in ours.values())


@pytest.mark.processes
def test_no_other_module_needs_the_instrumentation_package() -> None:
    code = """
        import importlib, pkgutil, sys

        sys.modules["opentelemetry.instrumentation"] = None
        import otel_audit

        for info in pkgutil.walk_packages(otel_audit.__path__, "otel_audit."):
            if not info.name.endswith((".integrations.auto", ".__main__")):
                importlib.import_module(info.name)
        print("done")
    """

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120, check=False
    )

    assert done.stdout == "done\n", done.stderr


def an_app(kind: type) -> Any:
    if kind is FastAPI:
        app = FastAPI()
        app.add_api_route("/orders", lambda: "orders")
        return app
    return Starlette(routes=[Route("/orders", orders), Mount("/inner", Starlette(routes=[Route("/orders", orders)]))])


def orders(request: Request) -> PlainTextResponse:
    return PlainTextResponse("orders")


@pytest.fixture(params=[FastAPI, Starlette], ids=["fastapi", "starlette"])
def kind(request: pytest.FixtureRequest) -> type:
    found: type = request.param
    return found


@contextmanager
def instrumented(directory: Path) -> Iterator[None]:
    """Both frameworks, of which one stands on the other."""
    audit = a_logger(directory)
    instrumentors = [StarletteAuditor(), FastAPIAuditor()]
    for instrumentor in instrumentors:
        instrumentor.instrument(audit=audit)
    try:
        yield
    finally:
        for instrumentor in instrumentors:
            instrumentor.uninstrument()


def test_an_application_that_was_made_before_is_audited_too(kind: type, tmp_path: Path) -> None:
    app = an_app(kind)

    with instrumented(tmp_path), served(app) as server:
        httpx.get(server.url + "/orders")

    assert [path for _, path, *_ in seen(tmp_path)] == ["/orders"]


def test_an_application_that_runs_already_is_audited_from_here_on(kind: type, tmp_path: Path) -> None:
    with served(an_app(kind)) as server:
        httpx.get(server.url + "/orders")
        with instrumented(tmp_path):
            httpx.get(server.url + "/orders")
        httpx.get(server.url + "/orders")

    assert [path for _, path, *_ in seen(tmp_path)] == ["/orders"]


def test_the_stack_of_an_application_is_the_one_that_other_instrumentors_know(kind: type, tmp_path: Path) -> None:
    with instrumented(tmp_path):
        stack = an_app(kind).build_middleware_stack()

    assert type(stack) is ServerErrorMiddleware  # OpenTelemetry's instrumentor of FastAPI makes no spans of another


def test_all_applications_are_audited_where_another_instrumentor_puts_its_own_class_in_place(
    kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = an_app(kind)
    module = "starlette.applications" if kind is Starlette else "fastapi"
    monkeypatch.setattr(f"{module}.{kind.__name__}", type("Traced", (kind,), {}))  # as OpenTelemetry's do

    with instrumented(tmp_path), served(app) as server:
        httpx.get(server.url + "/orders")

    assert [path for _, path, *_ in seen(tmp_path)] == ["/orders"]


def test_an_application_within_another_is_part_of_it(tmp_path: Path) -> None:
    with instrumented(tmp_path), served(an_app(Starlette)) as server:
        assert httpx.get(server.url + "/inner/orders").text == "orders"

    assert [path for _, path, *_ in seen(tmp_path)] == ["/inner/orders"]


def test_uninstrument_undoes_it_for_running_applications_too(kind: Any, tmp_path: Path) -> None:
    before = dict(vars(kind))

    with instrumented(tmp_path):
        app = an_app(kind)
        with served(app) as server:
            httpx.get(server.url + "/orders")
    with served(app) as server, served(an_app(kind)) as another:
        httpx.get(server.url + "/orders")
        httpx.get(another.url + "/orders")

    assert len(application_events(tmp_path)) == 1
    assert dict(vars(kind)) == before
