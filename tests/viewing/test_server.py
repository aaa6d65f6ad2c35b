"""Who is let in to the page: this machine, by its own name, with the token, and to read."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing

import pytest

from otel_audit.http_server import CONNECTIONS_MAX
from otel_audit.viewing.server import PageServer
from tests.viewing.trails import logging, some_events, viewed

PAGE = ("", "view.css", "view.js")
QUESTIONS = ("state", "verification", "events", "timeline", "values?name=actor", "event", "line", "proof")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    directory = tmp_path_factory.mktemp("trail") / "journal"
    with logging(directory) as audit:
        some_events(audit)
    with viewed(directory) as trail, closing(PageServer(trail)) as server:
        server.start()
        yield server


def answered(
    server: PageServer, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None
) -> tuple[int, Mapping[str, str], bytes]:
    host, port = server.server_address[:2]
    connection = http.client.HTTPConnection(str(host), int(port), timeout=30)
    with closing(connection):
        connection.request(method, path, headers=dict(headers or {}))
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()


@pytest.mark.parametrize("name", [*PAGE, *(f"api/{each}" for each in QUESTIONS)])
def test_without_the_token_nothing_is_told(server: PageServer, name: str) -> None:
    other = f"{server.token[:-1]}{'a' if server.token[-1] != 'a' else 'b'}"

    for path in (f"/{name}", f"/{other}/{name}", f"/{server.token[:-1]}/{name}"):
        assert answered(server, path)[::2] == (403, b"403 Forbidden\n"), path


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "evil.example@127.0.0.1", "", "10.0.0.1", "[", "a b"],
)
def test_a_name_that_another_site_points_here_is_refused(server: PageServer, host: str) -> None:
    assert answered(server, f"/{server.token}/", headers={"Host": host})[0] == 403


def test_a_second_name_beside_the_own_one_is_refused(server: PageServer) -> None:
    host, port = server.server_address[:2]
    for names in (("127.0.0.1", "evil.example"), ("evil.example", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ()):
        with socket.create_connection((str(host), int(port)), timeout=30) as connection:
            given = "".join(f"Host: {name}\r\n" for name in names)
            connection.sendall(f"GET /{server.token}/ HTTP/1.1\r\n{given}\r\n".encode())
            assert connection.recv(4096).startswith(b"HTTP/1.1 403 "), names


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "127.0.0.5", "[::1]:8080", "LOCALHOST:1"])
def test_this_machine_is_let_in_by_any_of_its_own_names_and_through_a_tunnel(server: PageServer, host: str) -> None:
    assert answered(server, f"/{server.token}/", headers={"Host": host})[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "X"])
def test_only_get_is_answered(server: PageServer, method: str) -> None:
    status, headers, _ = answered(server, f"/{server.token}/api/state", method=method)

    assert (status, headers["allow"]) == (405, "GET")
    assert answered(server, "/api/state", method=method)[0] == 403


@pytest.mark.parametrize(
    "path", [*PAGE, "api/state", "api/nothing", "api/events?since=never", "../trail.py", "nothing"]
)
def test_every_answer_forbids_the_browser_what_a_page_need_not_do(server: PageServer, path: str) -> None:
    _, headers, _ = answered(server, f"/{server.token}/{path}")

    policy = dict(each.strip().partition(" ")[::2] for each in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert [name for name in headers if name.startswith("access-control")] == []
    assert "Python" not in headers["server"]


@pytest.mark.parametrize(
    "path", ["trail.py", "../trail.py", "page/index.html", "..%2ftrail.py", "api/", "api", "view.css/"]
)
def test_nothing_but_the_page_and_its_answers_is_served(server: PageServer, path: str) -> None:
    assert answered(server, f"/{server.token}/{path}")[0] == 404


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("events?since=never", "expected a time such as"),
        ("events?before=x", "expected a place"),
        ("events?limit=x", "limit: expected a whole number"),
        ("event?stream=x&seq=1", "expected line 1 of the stream 'x', got none"),
        ("values?name=line", "expected one of actor"),
        ("events?" + "&".join(f"a{number}=1" for number in range(200)), "fields"),
    ],
)
def test_a_question_that_cannot_be_answered_says_why(server: PageServer, path: str, says: str) -> None:
    status, _, body = answered(server, f"/{server.token}/api/{path}")

    assert status == 400
    assert says in json.loads(body)["error"]


def test_a_line_is_saved_as_a_file_byte_for_byte(server: PageServer) -> None:
    (row, *_) = json.loads(answered(server, f"/{server.token}/api/events")[2])["events"]
    assert server.trail.directory is not None
    (segment,) = server.trail.directory.glob("0*.jsonl")

    _, headers, body = answered(server, f"/{server.token}/api/line?stream={row['stream_id']}&seq={row['seq']}")

    assert headers["content-disposition"].startswith("attachment")
    assert body in segment.read_bytes().splitlines(keepends=True)


def test_it_listens_on_the_loopback_address_and_on_ipv6_only_when_asked(server: PageServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("::1", int(server.server_address[1])), timeout=5)
    with closing(PageServer(server.trail, ipv6=True)) as other:
        other.start()
        assert other.url.startswith("http://[::1]:")
        assert answered(other, f"/{other.token}/")[0] == 200
    assert other.token != server.token


def test_connections_that_say_nothing_lock_nobody_out(server: PageServer) -> None:
    host, port = server.server_address[:2]
    with ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection((str(host), int(port)))) for _ in range(2 * CONNECTIONS_MAX)
        ]

        assert answered(server, f"/{server.token}/")[0] == 200
        assert silent[0].recv(1) == b""
