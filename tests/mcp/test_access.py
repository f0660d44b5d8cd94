"""Who may call `/mcp`: keys, hosts, origins, methods, types and sizes."""

import json
from typing import Any

import pytest
from flask import Flask

from tests.support.api_client import ApiClient
from tests.support.marks import one_database
from tests.support.mcp import Answer, McpClient

pytestmark = one_database

PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}


def check_problem(answer: Answer, status: int, code: str) -> None:
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert (answer.json["status"], answer.json["code"]) == (status, code)


# --- keys --------------------------------------------------------------------------------


def test_key_may_be_in_either_header(app: Flask, alice: ApiClient, mcp: McpClient) -> None:
    assert mcp.post(PING).result == {}
    bearer = f"Bearer {alice.key}"
    for headers in (
        {"Authorization": bearer},
        {"apikey": alice.key, "Authorization": bearer},
        {"apikey": alice.key, "Authorization": "Bearer"},
    ):
        response = app.test_client().post("/mcp", json=PING, headers=headers)
        assert response.get_json()["result"] == {}


def test_request_without_a_valid_key_is_told_which_scheme_is_meant(
    app: Flask, alice: ApiClient
) -> None:
    both = {"apikey": alice.key, "Authorization": f"Bearer {alice.agent_key().key}"}
    bearers = ({"Authorization": "Bearer wrong"}, {"Authorization": "Bearer"})
    for headers in ({}, {"apikey": "wrong"}, *bearers, both):
        for method in ("POST", "GET", "DELETE", "OPTIONS"):
            response = app.test_client().open("/mcp", method=method, json=PING, headers=headers)
            answer = Answer(response.status_code, response.headers, response.get_json(silent=True))
            check_problem(answer, 401, "invalid_key")
            assert response.headers["WWW-Authenticate"] == 'Bearer realm="taskservice"'


@pytest.mark.parametrize("name", ["oauth-protected-resource", "oauth-authorization-server"])
def test_no_oauth_is_offered(app: Flask, name: str) -> None:
    for path in (f"/.well-known/{name}", f"/.well-known/{name}/mcp"):
        assert app.test_client().get(path).status_code == 404


def test_agent_key_cannot_call(alice: ApiClient) -> None:
    client = McpClient(alice.agent_key())
    for method in ("ping", "initialize", "server/discover", "tools/list", "tools/call"):
        answer = client.post(PING | {"method": method})
        check_problem(answer, 403, "user_key_required")
        assert "WWW-Authenticate" not in answer.headers


# --- hosts and origins -------------------------------------------------------------------

LOOPBACK = ["localhost", "localhost:8000", "127.0.0.1:1", "127.9.9.9", "[::1]:8000", "a.localhost"]
EVIL = "evil.example.com"
OUTSIDE = [EVIL, f"{EVIL}:8000", "10.0.0.1", "localhost.evil.com", "[::2]", "["]


@pytest.mark.parametrize("host", LOOPBACK)
def test_loopback_host_and_origin_may_call(mcp: McpClient, host: str) -> None:
    assert mcp.post(PING, Host=host, Origin=f"http://{host}").result == {}


@pytest.mark.parametrize("host", OUTSIDE)
def test_other_host_cannot_call_a_service_on_loopback(mcp: McpClient, host: str) -> None:
    check_problem(mcp.post(PING, Host=host), 403, "foreign_origin")


@pytest.mark.parametrize("host", [*OUTSIDE, "", "null"])
def test_page_from_elsewhere_cannot_call(mcp: McpClient, host: str) -> None:
    for origin in (f"http://{host}", f"https://{host}", host):
        answer = mcp.post(PING, Origin=origin)
        check_problem(answer, 403, "foreign_origin")
        assert "Origin must be a loopback name" in answer.json["detail"]


def test_browser_lets_no_page_of_another_origin_call(app: Flask, mcp: McpClient) -> None:
    for origin, status in (("http://localhost:6274", 401), ("https://evil.example", 403)):
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        preflight = app.test_client().options("/mcp", headers=asked)
        assert preflight.status_code == status
        for headers in (preflight.headers, mcp.post(PING, Origin=origin).headers):
            assert not [name for name, _ in headers.items() if name.startswith("Access-Control")]
            assert "Origin" in ", ".join(headers.getlist("Vary"))


@pytest.mark.parametrize(
    "settings", [{"BIND": "0.0.0.0:8000"}, {"BIND": "unix:/run/x"}, {"PROXY_HOPS": 1}]
)
def test_service_for_other_machines_has_any_host_and_needs_the_key(
    app: Flask, mcp: McpClient, settings: dict[str, Any]
) -> None:
    app.config.update(settings)
    assert mcp.post(PING, Host="tasks.example").status == 200
    origin = {"Host": "tasks.example", "Origin": "https://app.example"}
    answer = mcp.post(PING, **origin)
    assert answer.status == 200
    assert "Access-Control-Allow-Origin" not in answer.headers
    check_problem(mcp.post(PING, **origin, Authorization="Bearer wrong"), 401, "invalid_key")


# --- methods, types and sizes --------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"])
def test_other_methods_are_refused(mcp: McpClient, method: str) -> None:
    answer = mcp.send(method, None, {"Accept": "text/event-stream"})
    assert answer.status == 405
    assert answer.headers["Allow"] == "POST"


def test_other_types_are_refused(mcp: McpClient) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", None, ""):
        check_problem(mcp.post(PING, Content_Type=kind), 415, "unsupported_media_type")
    check_problem(mcp.post(PING, Content_Encoding="gzip"), 415, "unsupported_media_type")
    assert mcp.post(PING, Content_Type="application/json; charset=utf-8").result == {}


def ping_of(size: int) -> bytes:
    empty = len(json.dumps(PING | {"params": {"arguments": ""}}))
    return json.dumps(PING | {"params": {"arguments": "x" * (size - empty)}}).encode()


def test_body_of_more_than_2_mib_is_refused(mcp: McpClient) -> None:
    assert mcp.post(ping_of(2 * 1024 * 1024)).result == {}
    for size in (2 * 1024 * 1024 + 1, 3 * 1024 * 1024):
        check_problem(mcp.post(ping_of(size)), 413, "too_large")
