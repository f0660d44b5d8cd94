"""People and programs that call the service, in this process or over a socket."""

import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from flask import Flask
from werkzeug.test import TestResponse

from taskservice.client import Client
from taskservice.error_codes import CODES
from taskservice.services import users as user_service
from tests.support import conformance

API = "/api/v1"
# The statuses of a proxy for a service that does not respond.
OF_A_PROXY = (502, 504)


class ApiClient:
    """A client with an API key that calls an app in this process.

    Paths are relative to `/api/v1`; `json` and the other keywords are Werkzeug's.
    """

    def __init__(self, app: Flask, name: str, key: str) -> None:
        self.app, self.name, self.key = app, name, key
        self._client = app.test_client()
        self._registered: set[str] = set()

    def request(self, method: str, path: str, **options: Any) -> TestResponse:
        headers = {"apikey": self.key, **options.pop("headers", {})}
        response = self._client.open(API + path, method=method, headers=headers, **options)
        query = response.request.query_string.decode(errors="replace")
        conformance.check(method, f"{API}{path.partition('?')[0]}?{query}", response)
        return response

    def get(self, path: str, **options: Any) -> TestResponse:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> TestResponse:
        return self.request("POST", path, **options)

    def put(self, path: str, **options: Any) -> TestResponse:
        return self.request("PUT", path, **options)

    def patch(self, path: str, **options: Any) -> TestResponse:
        return self.request("PATCH", path, **options)

    def delete(self, path: str, **options: Any) -> TestResponse:
        self._registered.discard(path.removeprefix("/agent/"))
        return self.request("DELETE", path, **options)

    def register(self, agent_id: str = "summarizer", **fields: Any) -> dict[str, Any]:
        """Register an agent, or change it; returns it."""
        agent = dict(expect(self.put(f"/agent/{agent_id}", json=fields), 200, 201))
        self._registered.add(agent_id)
        return agent

    def start(self, agent_id: str = "summarizer", **fields: Any) -> dict[str, Any]:
        """Register an agent, and start a task of it; returns the task."""
        if agent_id not in self._registered:
            self.register(agent_id)
        return dict(expect(self.post("/task", json={"agentId": agent_id, **fields}), 201))

    def append(self, task: dict[str, Any], *lines: str, **fields: Any) -> dict[str, Any]:
        path = f"/task/{task['id']}/logs"
        return dict(expect(self.post(path, json={"logs": list(lines), **fields}), 201))

    def report(self, task: dict[str, Any], **changes: Any) -> dict[str, Any]:
        return dict(expect(self.patch(f"/task/{task['id']}", json=changes), 200))

    def task(self, task: dict[str, Any]) -> dict[str, Any]:
        """A task as it is now."""
        return dict(expect(self.get(f"/task/{task['id']}"), 200))

    def with_key(self, name: str) -> "ApiClient":
        """The same user with another user key."""
        key = expect(self.post("/key", json={"name": name}), 201)
        return ApiClient(self.app, self.name, key["key"])

    def read_key(self, agent_id: str | None = None) -> "ApiClient":
        """The same user with a key that can only read, everything or of one agent."""
        body = {"name": "screen", "access": "read", "agentId": agent_id}
        return ApiClient(self.app, self.name, expect(self.post("/key", json=body), 201)["key"])

    def agent_key(self, agent_id: str = "summarizer") -> "ApiClient":
        """The same user with a key that is narrowed to one agent."""
        self.register(agent_id)
        with self.app.app_context():
            key = user_service.add_key(self.name, "agent", agent_id, None)
        return ApiClient(self.app, self.name, key.text)


def expect(response: TestResponse, *statuses: int) -> Any:
    """The JSON of a response that must have one of these statuses."""
    assert response.status_code in statuses, response.get_data(as_text=True)
    return response.json


def is_replay(response: Any) -> bool:
    assert response.headers.get("Idempotency-Replayed") in (None, "true")
    return "Idempotency-Replayed" in response.headers


def of_task(agent: dict[str, Any]) -> dict[str, Any]:
    """The agent in a task with `expand=agent`."""
    return {name: agent[name] for name in ("id", "name", "description", "userId", "createdAt")}


def problem(response: TestResponse, status: int) -> dict[str, Any]:
    """The problem of a response that must be an error with this status."""
    body = expect(response, status)
    assert response.content_type == "application/problem+json"
    assert body["status"] == status
    assert body["type"]
    assert body["title"]
    assert body["detail"]
    assert CODES[body["code"]].status == status
    assert (status == 422) == ("errors" in body)
    return dict(body)


def check_invalid_fields(
    send: Callable[..., TestResponse],
    valid: dict[str, Any],
    invalid: dict[str, list[Any]],
    subtests: pytest.Subtests,
) -> None:
    """A body with one invalid field gets a 422 that names it, for each of these values."""
    for name, values in invalid.items():
        for value in values:
            with subtests.test(f"{name}: {value!r}"[:60]):
                assert list(problem(send(json=valid | {name: value}), 422)["errors"]) == [name]


def problem_text(response: TestResponse) -> dict[str, Any]:
    """The members of a problem, without the request ID."""
    # The response to HEAD has no body.
    body: dict[str, Any] = json.loads(response.data or b"{}")
    return {name: value for name, value in body.items() if name != "requestId"}


def add_user(app: Flask, name: str) -> ApiClient:
    with app.app_context():
        return ApiClient(app, name, user_service.add(name).text)


class RemoteClient:
    """A client with an API key that calls a service over a socket, with `requests`."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["apikey"] = key

    @property
    def key(self) -> str:
        return str(self.session.headers["apikey"])

    def client(self, url: str = "", retry_timeout: float = 20) -> Client:
        """The Python client with the same key; a proxy can be at the `url`."""
        return Client(url or self.url, self.key, retry_timeout)

    def copy(self) -> "RemoteClient":
        """The same person with separate connections, for another thread."""
        other = RemoteClient(self.url, self.key)
        other.session.verify = self.session.verify
        return other

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        options.setdefault("timeout", 30)
        response = self.session.request(method, self.url + API + path, **options)
        if response.status_code in OF_A_PROXY:
            response.close()
            raise requests.ConnectionError(f"{method} {path}: {response.status_code}")
        # The test reads a stream itself, as slowly as it needs to.
        if not options.get("stream"):
            query = urlsplit(str(response.request.url)).query
            conformance.check(method, f"{API}{path.partition('?')[0]}?{query}", response)
        return response

    def start(self, agent_id: str = "summarizer", **fields: Any) -> dict[str, Any]:
        self.request("PUT", f"/agent/{agent_id}").raise_for_status()
        response = self.request("POST", "/task", json={"agentId": agent_id, **fields})
        response.raise_for_status()
        return dict(response.json())

    def read(self, path: str, **query: str) -> Any:
        response = self.request("GET", path, params=query)
        assert response.ok, response.text
        return response.json()

    def write(self, method: str, path: str, **body: Any) -> Any:
        response = self.request(method, path, json=body or None)
        assert response.ok, response.text
        return response.json()

    def register(self, agent_id: str, **fields: Any) -> None:
        self.write("PUT", f"/agent/{agent_id}", **fields)

    def append(self, task: Mapping[str, Any], *lines: str, **fields: Any) -> None:
        self.write("POST", f"/task/{task['id']}/logs", logs=lines, **fields)

    def report(self, task: Mapping[str, Any], **changes: Any) -> None:
        self.write("PATCH", f"/task/{task['id']}", **changes)

    def cancel(self, task: Mapping[str, Any]) -> None:
        self.write("POST", f"/task/{task['id']}/cancel")

    def delete(self, task: Mapping[str, Any]) -> None:
        self.write("DELETE", f"/task/{task['id']}")

    def agent_key(self, agent_id: str) -> str:
        """A new key that is narrowed to one agent."""
        self.register(agent_id)
        return str(self.write("POST", "/key", name="narrow", agentId=agent_id)["key"])

    def tasks(self, **query: str) -> list[dict[str, Any]]:
        """All tasks, newest first, with their logs."""
        return list(self.read("/task", **query))

    def the_task(self) -> dict[str, Any]:
        """The only task."""
        (task,) = self.tasks()
        return task

    def the_log(self) -> list[str]:
        """The lines of the newest task; empty without one."""
        return [line for task in self.tasks()[:1] for line in task["logs"]]
