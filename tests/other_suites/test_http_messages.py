"""What httplint, the checker behind REDbot, says of the bytes of a response of each kind."""

import socket
from dataclasses import dataclass, field

import pytest
from httplint import HttpRequestLinter, HttpResponseLinter
from httplint.note import levels

from tests.support.api_client import API, RemoteClient
from tests.support.receiver import Receiver
from tests.support.service import Service
from tests.support.waiting import PATIENCE_SECONDS

JSON = {"Content-Type": "application/json"}
TEXT = {"Content-Type": "text/plain"}
STREAM = b"Content-Type: text/event-stream"
COMPLAINTS = (levels.WARN, levels.BAD)
HTML = {"Accept": "text/html"}
# (method, last part of the path, note) -> why it is not a defect.
SAME_URL = "what is created is at the URL of the request"
EXCUSED = {
    ("PUT", "linted", "CREATED_WITHOUT_LOCATION"): SAME_URL,
    ("POST", "logs", "CREATED_WITHOUT_LOCATION"): SAME_URL,
    ("PUT", "logs", "CREATED_WITHOUT_LOCATION"): SAME_URL,
    ("POST", "callback-secret", "CREATED_WITHOUT_LOCATION"): SAME_URL,
    ("POST", "key", "CREATED_WITHOUT_LOCATION"): "a key can be listed, but not be got alone",
    ("POST", "task", "STATUS_BAD_REQUEST"): "the request is a bad one on purpose",
    ("POST", "mcp", "STATUS_BAD_REQUEST"): "the request is a bad one on purpose",
}
Fields = list[tuple[bytes, bytes]]


@dataclass
class Request:
    """A request, and the status of the response to it."""

    method: str
    path: str
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    has_key: bool = True


@pytest.fixture
def requests_of_each_kind(owner: RemoteClient, receiver: Receiver) -> list[Request]:
    """They are sent in this order, each with the status of its response."""
    task = owner.start(callback=receiver.url, claim=True)
    path = f"{API}/task/{task['id']}"
    etag = owner.request("GET", f"/task/{task['id']}").headers["ETag"]
    return [
        Request("GET", f"{API}/task", 200),
        Request("HEAD", f"{API}/task", 200),
        Request("OPTIONS", f"{API}/task", 200),
        Request("DELETE", f"{API}/task", 405),
        Request("GET", f"{API}/task?limit=0", 422),
        Request("GET", f"{API}/task", 401, has_key=False),
        Request("GET", f"{API}/nowhere", 404),
        Request("POST", f"{API}/task", 201, JSON, b'{"agentId": "summarizer"}'),
        Request("POST", f"{API}/task", 400, JSON, b'{"agentId"'),
        Request("POST", f"{API}/task", 415, TEXT, b"summarizer"),
        Request("POST", f"{API}/task", 422, JSON, b"{}"),
        Request("GET", path, 200),
        Request("HEAD", path, 200),
        Request("GET", path, 304, {"If-None-Match": etag}),
        Request("GET", path, 406, {"Accept": "image/png"}),
        Request("POST", f"{path}/question", 201, JSON, b'{"message": "Go on?"}'),
        Request("GET", f"{path}/question", 200),
        Request("POST", f"{path}/logs", 201, JSON, b'{"logs": ["one"]}'),
        Request("PUT", f"{path}/logs", 201, TEXT, b"two\n"),
        Request("GET", f"{path}/logs", 200),
        Request("GET", f"{path}/logs", 200, {"Accept": "text/plain"}),
        Request("GET", f"{path}/events", 200),
        Request("POST", f"{path}/deliveries", 409),
        Request("PATCH", path, 200, JSON, b'{"status": "complete"}'),
        Request("GET", f"{path}/events", 200),
        Request("POST", f"{path}/cancel", 409),
        Request("GET", f"{path}/deliveries", 200),
        Request("POST", f"{path}/deliveries", 202),
        Request("POST", f"{path}/rerun", 201),
        Request("DELETE", path, 200),
        Request("GET", path, 404),
        Request("GET", f"{API}/agent", 200),
        Request("PUT", f"{API}/agent/linted", 201),
        Request("PUT", f"{API}/agent/linted", 200, JSON, b'{"name": "Linted"}'),
        Request("GET", f"{API}/agent/linted", 200),
        Request("POST", f"{API}/agent/linted/claim", 204),
        Request("DELETE", f"{API}/agent/linted", 200),
        Request("GET", f"{API}/user", 200),
        Request("GET", f"{API}/key", 200),
        Request("POST", f"{API}/key", 201, JSON, b'{"name": "linted"}'),
        Request("GET", f"{API}/callback-secret", 200),
        Request("POST", f"{API}/callback-secret", 201),
        Request("POST", "/mcp", 200, JSON, b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}'),
        Request("POST", "/mcp", 400, JSON, b"{}"),
        Request("GET", "/mcp", 405),
        Request("GET", "/livez", 200, has_key=False),
        Request("GET", "/readyz", 200, has_key=False),
        Request("GET", "/metrics", 200, has_key=False),
        Request("GET", "/openapi.json", 200, has_key=False),
        Request("GET", "/docs", 200, HTML, has_key=False),
        Request("GET", "/docs/docs.css", 200, has_key=False),
        Request("GET", "/docs/docs.js", 200, has_key=False),
        Request("GET", "/", 303, HTML, has_key=False),
        Request("GET", "/sign-in", 200, HTML, has_key=False),
        Request("POST", "/sign-in", 403, HTML, has_key=False),
        Request("GET", "/nowhere", 404, HTML, has_key=False),
        Request("GET", "/favicon.ico", 200, has_key=False),
    ]


def fields(service: Service, owner: RemoteClient, request: Request) -> Fields:
    """The headers of the request as it is sent."""
    headers = {"Host": f"127.0.0.1:{service.port}", "Connection": "close", **request.headers}
    if request.has_key:
        headers["apikey"] = str(owner.session.headers["apikey"])
    if request.method in ("POST", "PUT", "PATCH"):
        headers["Content-Length"] = str(len(request.body))
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def response(service: Service, request: Request, headers: Fields) -> tuple[bytes, bytes]:
    """The bytes of a response, head and body; of a stream only the head."""
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    line = f"{request.method} {request.path} HTTP/1.1\r\n".encode()
    with socket.create_connection(("127.0.0.1", service.port), PATIENCE_SECONDS) as connection:
        connection.sendall(line + lines + b"\r\n" + request.body)
        with connection.makefile("rb") as stream:
            head = b"".join(iter(stream.readline, b"\r\n"))
            return head, b"" if STREAM in head else stream.read()


def linted(service: Service, owner: RemoteClient, request: Request) -> HttpResponseLinter:
    """The response to a request, as httplint sees it."""
    headers = fields(service, owner, request)
    head, body = response(service, request, headers)
    asked = HttpRequestLinter()
    asked.process_request_topline(
        request.method.encode(), f"{service.url}{request.path}".encode(), b"HTTP/1.1"
    )
    asked.process_headers(headers)
    asked.feed_content(request.body)
    asked.finish_content(True)
    line, *lines = head.splitlines()
    answered = HttpResponseLinter(no_content=STREAM in head)
    answered.request = asked
    answered.is_head_response = request.method == "HEAD"
    version, status, phrase = line.split(b" ", 2)
    answered.process_response_topline(version, status, phrase)
    answered.process_headers(
        [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    )
    answered.feed_content(body)
    answered.finish_content(True)
    return answered


def test_httplint_has_no_complaint_about_any_kind_of_response(
    shared: Service, owner: RemoteClient, requests_of_each_kind: list[Request]
) -> None:
    complaints, excused = [], set()
    for request in requests_of_each_kind:
        answered = linted(shared, owner, request)
        assert answered.status_code == request.status, (request, answered.content_sample)
        for note in answered.notes:
            if note.level in COMPLAINTS:
                what = (request.method, request.path.rpartition("/")[2], type(note).__name__)
                excused |= {what} & EXCUSED.keys()
                complaints += [(request.path, *what, note.summary)] * (what not in EXCUSED)
    assert complaints == []
    # An excuse that is no longer needed goes.
    assert excused == EXCUSED.keys()
