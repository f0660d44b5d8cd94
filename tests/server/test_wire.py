"""The real service over a real socket: invalid requests get a problem."""

import json
import os
import select
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import psycopg
import pytest

from taskservice import auth, terms
from taskservice.error_codes import CODES
from taskservice.terms import MAX_CALLBACK, MAX_NAME, MAX_OBJECT
from tests.support.api_client import API, RemoteClient
from tests.support.databases import Databases
from tests.support.service import Service

JSON = "application/json"
MIB = 1024 * 1024


class Wire:
    """A service, a user of it, a task, and a socket for each request."""

    def __init__(self, service: Service, data: Path) -> None:
        self.service, self.data = service, data
        self.alice = service.add_user()
        self.key = str(self.alice.session.headers["apikey"])
        self.task = self.alice.start()

    def send(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        """The status, the headers and the body of the answer to these bytes, and no more."""
        with socket.create_connection(("127.0.0.1", self.service.port), timeout=20) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return int(first.split()[1]), headers, body

    def is_refused(self, data: bytes, *statuses: int) -> None:
        status, headers, body = self.send(data)
        assert status in statuses, (status, body[:500])
        assert headers["content-type"] == "application/problem+json"
        problem = json.loads(body)
        assert problem["status"] == CODES[problem["code"]].status == status
        assert b"Traceback" not in body

    def is_well(self) -> None:
        """It answers as ever, and nothing was stored or changed by what it refused."""
        tasks = self.alice.request("GET", "/task").json()
        assert tasks == [self.task]
        assert len(self.alice.request("GET", "/agent").json()) == 1

    def post(self, body: bytes, *headers: bytes, path: str = "/task") -> bytes:
        return self.head("POST", path, b"Content-Length: %d" % len(body), *headers) + body

    def head(self, method: str, path: str, *headers: bytes, key: bytes | None = None) -> bytes:
        bearer = b"apikey: " + (self.key.encode() if key is None else key)
        lines = [f"{method} {API}{path} HTTP/1.1".encode(), b"Host: x", bearer, *headers]
        return b"\r\n".join(lines) + b"\r\n\r\n"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def wire(
    request: pytest.FixtureRequest,
    databases: Databases,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Wire]:
    data = tmp_path_factory.mktemp("wire") / "data"
    # A separate database, since the others are emptied for each test.
    is_sqlite = request.param == "sqlite"
    url = databases.copy_sqlite(data) if is_sqlite else databases.new_postgresql()
    with Service(data, DATABASE_URL=url) as service:
        yield Wire(service, data)


def test_key_sent_twice_or_unlike_in_both_headers_is_401(wire: Wire) -> None:
    apikey, bearer = f"apikey: {wire.key}", f"Authorization: Bearer {wire.key}"
    other = f"Authorization: Bearer {wire.key[:-1]}{'y' if wire.key.endswith('x') else 'x'}"
    bodies = set()
    for headers in ([apikey] * 2, [bearer] * 2, [apikey, other], [other, apikey]):
        lines = [f"GET {API}/user HTTP/1.1", "Host: x", *headers, "", ""]
        status, _, body = wire.send("\r\n".join(lines).encode())
        assert status == 401
        bodies.add(body)
    assert len(bodies) == 1
    for headers in ([apikey], [bearer], [apikey, bearer]):
        lines = [f"GET {API}/user HTTP/1.1", "Host: x", *headers, "", ""]
        assert wire.send("\r\n".join(lines).encode())[0] == 200


TYPED = b"Content-Type: application/json"


def inside(text: bytes) -> bytes:
    return b'{"agentId":"summarizer","input":{"x":' + text + b"}}"


BODIES: dict[str, tuple[bytes, int]] = {
    "empty": (b"", 400),
    "null": (b"null", 422),
    "an array": (b"[]", 422),
    "UTF-16": ('{"agentId":"summarizer"}'.encode("utf-16"), 400),
    "a byte order mark": (b'\xef\xbb\xbf{"agentId":"summarizer"}', 400),
    "invalid UTF-8": (inside(b'"\xff"'), 400),
    "depth 100,000": (inside(b"[" * 100_000 + b"]" * 100_000), 400),
    "depth 100,000 of objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400),
    "NaN": (inside(b"NaN"), 400),
    "1e999": (inside(b"1e999"), 422),
    "5,000 digits": (inside(b"1" * 5_000), 422),
    "duplicate keys": (b'{"agentId":"summarizer","agentId":"summarizer"}', 400),
    "a lone surrogate": (inside(b'"\\ud800"'), 400),
    "a raw NUL": (inside(b'"a\0b"'), 400),
    "2**63 as a timeout": (b'{"agentId":"summarizer","timeout":9223372036854775808}', 422),
    "an unknown field": (b'{"agentId":"summarizer","nonsense":1}', 422),
    "a read-only field": (b'{"agentId":"summarizer","id":"x"}', 422),
}


def test_body_that_is_unreadable_or_unfit_is_refused(wire: Wire, subtests: pytest.Subtests) -> None:
    for name, (body, status) in BODIES.items():
        with subtests.test(name):
            wire.is_refused(wire.post(body, TYPED), status)
    wire.is_well()


OTHER_TYPES = (
    b"Content-Type: text/html",
    b"Content-Type: \xff",
    b"Content-Encoding: gzip",
    b"X: y",
)


def test_body_of_another_type_is_415(wire: Wire, subtests: pytest.Subtests) -> None:
    for header in OTHER_TYPES:
        with subtests.test(repr(header)):
            typed = [TYPED] if header.startswith(b"Content-Encoding") else []
            wire.is_refused(wire.post(b'{"agentId":"summarizer"}', header, *typed), 415)
    wire.is_well()


def test_numbers_and_nul_that_are_fit_are_kept(wire: Wire) -> None:
    status, _, body = wire.send(wire.post(inside(b'[9223372036854775808,"a\\u0000b"]'), TYPED))
    assert status == 201
    assert b'"x":[9223372036854775808,"a\xef\xbf\xbdb"]' in body
    wire.alice.request("DELETE", f"/task/{json.loads(body)['id']}").raise_for_status()
    wire.is_well()


ODD_KEYS: dict[str, tuple[bytes, int]] = {
    "empty": (b"", 401),
    "8 kB": (b"x" * 8000, 401),
    "over 8 kB": (b"x" * 8200, 431),
    "non-ASCII": ("tsk_usér".encode(), 401),
    "no UTF-8": (b"\xff\xfe", 401),
    "made up": (b"tsk_user_" + b"0" * 43, 401),
}


def test_unusual_key_is_refused(wire: Wire, subtests: pytest.Subtests) -> None:
    for name, (key, status) in ODD_KEYS.items():
        with subtests.test(name):
            wire.is_refused(wire.head("GET", "/user", key=key), status)
    wire.is_well()


def test_key_sent_twice_or_not_at_all_is_401(wire: Wire) -> None:
    wire.is_refused(wire.head("GET", "/user", b"apikey: " + wire.key.encode()), 401)
    wire.is_refused(f"GET {API}/user HTTP/1.1\r\nHost: x\r\n\r\n".encode(), 401)
    path = f"{API}/user?apikey={wire.key}"
    wire.is_refused(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), 401)
    wire.is_well()


def test_key_that_ends_in_this_second_is_401_from_then_on(wire: Wire) -> None:
    # A busy machine may need longer than the first key lives.
    for life in (1.5, 5, 20):
        end = datetime.now(UTC) + timedelta(seconds=life)
        fields = {"name": f"short {life}", "expiresAt": end.isoformat()}
        made = wire.alice.request("POST", "/key", json=fields)
        if made.ok:
            key = made.json()["key"].encode()
            if wire.send(wire.head("GET", "/user", key=key))[0] == 200:
                break
    else:
        pytest.fail("No key lived long enough")
    time.sleep(max(0.0, (end - datetime.now(UTC)).total_seconds()))
    wire.is_refused(wire.head("GET", "/user", key=key), 401)


def requests_that_are_no_http(wire: Wire) -> dict[str, tuple[bytes, int]]:
    key = b"apikey: %b\r\n" % wire.key.encode()
    get = b"GET /api/v1/user HTTP/1.1\r\n"
    return {
        "no Host": (get + key + b"\r\n", 400),
        "two lengths": (wire.post(b"{}", TYPED, b"Content-Length: 3"), 400),
        "a length and chunks": (wire.post(b"{}", TYPED, b"Transfer-Encoding: chunked"), 400),
        "a bad chunk": (wire.head("POST", "/task", b"Transfer-Encoding: chunked") + b"zz\r\n", 400),
        "a coding": (
            wire.head("POST", "/task", b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n", 501,
        ),
        "a header of 20 kB": (wire.head("GET", "/user", b"X: " + b"x" * 20_000), 431),
        "a URL of 10 kB": (wire.head("GET", f"/user?{'x' * 10_000}"), 414),
        "an unknown method": (wire.head("BREW", "/task"), 405),
        "a method in small letters": (wire.head("get", "/task"), 400),
    }  # fmt: skip


def test_malformed_http_is_refused(wire: Wire, subtests: pytest.Subtests) -> None:
    for name, (data, status) in requests_that_are_no_http(wire).items():
        with subtests.test(name):
            wire.is_refused(data, status)
            wire.is_well()


def test_malformed_chunks_of_a_form_are_400(wire: Wire, subtests: pytest.Subtests) -> None:
    for name, body in {
        "no size": b"zz\r\n",
        "no size of the second": b"5\r\ntoken\r\nzz\r\n",
        "a trailer": b"5\r\ntoken\r\n0\r\nno header\r\n\r\n",
    }.items():
        with subtests.test(name):
            assert wire.send(chunked_form(body))[0] == 400
            wire.is_well()


def test_chunked_form_past_the_limit_is_413(wire: Wire) -> None:
    # It could store what fits as the whole of an answer.
    for size, status in ((65_535, 403), (65_537, 413)):
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"token=".ljust(size, b"x"))
        assert wire.send(chunked_form(body))[0] == status


def chunked_form(body: bytes) -> bytes:
    """The request that sends the sign-in form with this body of chunks."""
    form = b"Content-Type: application/x-www-form-urlencoded"
    lines = [b"POST /sign-in HTTP/1.1", b"Host: x", form, b"Transfer-Encoding: chunked"]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def test_malformed_host_header_never_causes_a_500(wire: Wire, subtests: pytest.Subtests) -> None:
    hosts = (b"xn--zzzzzzzzz99999", b"[.:.]", b"...", b"%zz", b"x:99999")
    for path, host in product((b"/sign-in", b"/", b"/nothing", b"/livez"), hosts):
        with subtests.test(f"{path!r} {host!r}"):
            status, _, body = wire.send(b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (path, host))
            assert status < 500, body


def test_body_that_is_cut_off_stores_nothing(wire: Wire) -> None:
    for data in (
        wire.head("POST", "/task", TYPED, b"Content-Length: 200") + b'{"agentId":"summarizer"}',
        wire.head("POST", "/task", TYPED, b"Transfer-Encoding: chunked") + b"18\r\n{",
    ):
        with socket.create_connection(("127.0.0.1", wire.service.port), timeout=20) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1000).startswith(b"HTTP/1.1 400 ")
        wire.is_well()


# --- limits ------------------------------------------------------------------------------


def callback(size: int) -> str:
    start = "http://127.0.0.1:9/"
    return start + "x" * (size - len(start))


def filling(size: int) -> dict[str, Any]:
    """An object with this many bytes as compact JSON."""
    return {"x": "y" * (size - len('{"x":""}'))}


LIMITS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "name": ({"name": "x" * MAX_NAME}, {"name": "x" * (MAX_NAME + 1)}),
    "callback": ({"callback": callback(MAX_CALLBACK)}, {"callback": callback(MAX_CALLBACK + 1)}),
    "input": ({"input": filling(MAX_OBJECT)}, {"input": filling(MAX_OBJECT + 1)}),
    "timeout": ({"timeout": terms.MAX_TIMEOUT}, {"timeout": terms.MAX_TIMEOUT + 1}),
}


@pytest.mark.parametrize("field", LIMITS)
def test_limit_is_fit_and_one_past_it_is_422(wire: Wire, field: str) -> None:
    fit, unfit = LIMITS[field]
    body = json.dumps({"agentId": "summarizer", **unfit}).encode()
    wire.is_refused(wire.post(body, TYPED), 422)
    wire.is_well()
    task = wire.alice.start(**fit)
    assert task[field] == fit[field] if field in task else True
    wire.alice.request("DELETE", f"/task/{task['id']}").raise_for_status()


def test_limits_of_a_report_and_of_a_line_are_exact(wire: Wire) -> None:
    task = wire.alice.start()
    path = f"/task/{task['id']}"
    largest = filling(MAX_OBJECT)
    for output, status in ((largest, 200), ({"z": 1}, 422), (filling(MAX_OBJECT + 1), 422)):
        answer = wire.alice.request("PATCH", path, json={"output": output})
        assert answer.status_code == status
    for size, status in ((terms.MAX_LINE, 201), (terms.MAX_LINE + 1, 422)):
        answer = wire.alice.request("POST", f"{path}/logs", json={"logs": ["x" * size]})
        assert answer.status_code == status
    kept = wire.alice.request("DELETE", path).json()
    assert (kept["output"] == largest, kept["logCount"]) == (True, 1)


def test_body_of_10_mib_is_fit_and_one_byte_more_is_413(wire: Wire) -> None:
    task = wire.alice.start()
    path, size = f"/task/{task['id']}/logs", 10 * 1024 * 1024
    body = (b"x" * 1023 + b"\n") * (size // 1024)
    answer = wire.alice.request("PUT", path, data=body)
    assert (answer.status_code, answer.json()["logCount"]) == (201, size // 1024)
    wire.is_refused(wire.head("PUT", f"{path}", b"Content-Length: %d" % (size + 1)), 413)
    wire.alice.request("DELETE", f"/task/{task['id']}?fields=id").raise_for_status()
    wire.is_well()


# --- large bodies ------------------------------------------------------------------------


def large_append(wire: Wire, size: int, *headers: bytes, key: bytes | None = None) -> bytes:
    """The head of an append whose body has `size` bytes."""
    path, length = f"/task/{wire.task['id']}/logs", b"Content-Length: %d" % size
    return wire.head("PUT", path, b"Content-Type: text/plain", length, *headers, key=key)


def connect(wire: Wire, data: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", wire.service.port), timeout=20)
    client.sendall(data)
    return client


@pytest.mark.parametrize(
    "framing",
    [
        (b"Content-Length: 70000",),
        (b"Content-Length: 99999999999",),
        (b"Transfer-Encoding: chunked",),
        (b"Content-Length: 70000", b"Expect: 100-continue"),
    ],
    ids=["large", "too-large", "chunked", "asking-first"],
)
@pytest.mark.parametrize(
    "key",
    [b"", b"wrong", auth.new(for_agent=True).encode()],
    ids=["empty", "malformed", "made-up"],
)
def test_wrong_key_is_401_before_a_large_body_comes(
    wire: Wire, framing: tuple[bytes, ...], key: bytes
) -> None:
    with connect(wire, wire.head("POST", "/task", TYPED, *framing, key=key)) as client:
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 401 ")
    assert b"Content-Type: application/problem+json" in head
    usual = wire.send(wire.head("POST", "/task", TYPED, b"Content-Length: 2", key=key) + b"{}")
    assert (usual[0], usual[2]) == (401, body)
    wire.is_well()


def test_large_bodies_of_one_user_leave_room_for_others(wire: Wire) -> None:
    bob = wire.service.add_user("bob")
    key = str(bob.session.headers["apikey"]).encode()
    task = wire.alice.start()
    path = f"/task/{task['id']}/logs"
    with ExitStack() as stack:
        short = large_append(wire, MIB, key=key) + bytes(1000)
        clients = [stack.enter_context(connect(wire, short)) for _ in range(30)]
        refused, _, _ = select.select(clients, [], [], 20)
        assert refused[0].recv(100).startswith(b"HTTP/1.1 503 ")
        answer = wire.alice.request("PUT", path, data=b"x" * 65_535 + b"\n" * 16)
        assert answer.status_code == 201
        answer = wire.alice.request("PUT", path, data=(b"x" * 1023 + b"\n") * 1024)
        assert answer.status_code == 201
    wire.alice.request("DELETE", f"/task/{task['id']}?fields=id").raise_for_status()
    wire.is_well()


def test_form_that_needs_no_key_is_small(wire: Wire) -> None:
    form = b"Content-Type: application/x-www-form-urlencoded"
    for size, status in ((65_536, 403), (65_537, 413)):
        lines = [b"POST /sign-in HTTP/1.1", b"Host: x", form, b"Content-Length: %d" % size]
        assert wire.send(b"\r\n".join(lines) + b"\r\n\r\n" + b"x" * size)[0] == status
    wire.is_well()


def test_right_key_is_told_to_continue_with_a_large_body(wire: Wire) -> None:
    task = wire.alice.start()
    head = large_append(wire, 70_000, b"Expect: 100-continue")
    with connect(wire, head.replace(wire.task["id"].encode(), task["id"].encode())) as client:
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"line\n" * 14_000)
        assert client.recv(100).startswith(b"HTTP/1.1 201 ")
    wire.alice.request("DELETE", f"/task/{task['id']}?fields=id").raise_for_status()
    wire.is_well()


# --- users that are gone -----------------------------------------------------------------


def test_key_of_a_deleted_user_is_401(wire: Wire) -> None:
    added = wire.service.run("user", "add", "leaver")
    leaver = RemoteClient(wire.service.url, added.stdout.strip())
    assert leaver.request("GET", "/user").status_code == 200
    delete_user(wire, "leaver")
    answer = leaver.request("GET", "/user")
    assert (answer.status_code, answer.json()["detail"]) == (401, "API key is invalid")
    wire.is_well()


def delete_user(wire: Wire, name: str) -> None:
    """In the database itself: there is no other way."""
    url = wire.service.environment["TASKSERVICE_DATABASE_URL"]
    if url.startswith("sqlite"):
        connection = sqlite3.connect(os.fspath(wire.data / "taskservice.db"))
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("DELETE FROM users WHERE name = ?", [name])
        connection.commit()
        connection.close()
    else:
        with psycopg.connect(url) as server:
            server.execute("DELETE FROM users WHERE name = %s", [name])
