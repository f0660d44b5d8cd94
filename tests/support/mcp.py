"""An MCP client for requests of a test, by modern and legacy versions."""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple

from taskservice.services import users
from tests.support.api_client import ApiClient, RemoteClient

Json = dict[str, Any]

MODERN = "2026-07-28"
TASKS: Json = {"extensions": {"io.modelcontextprotocol/tasks": {}}}
FORMS: Json = {"elicitation": {}}
VERSION_KEY = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES_KEY = "io.modelcontextprotocol/clientCapabilities"
_NAMES = {"tools/call": "name"} | dict.fromkeys(
    ("tasks/get", "tasks/update", "tasks/cancel"), "taskId"
)


class Answer(NamedTuple):
    """The HTTP response; `json` is None without a body."""

    status: int
    headers: Any
    json: Any

    @property
    def result(self) -> Json:
        assert self.status == 200, self.json
        assert "result" in self.json, self.json
        return dict(self.json["result"])

    @property
    def code(self) -> int:
        """The code of a JSON-RPC error."""
        return int(self.json["error"]["code"])

    @property
    def refused(self) -> tuple[int, int]:
        """The HTTP status, and the JSON-RPC code."""
        return self.status, self.code


class McpClient:
    """A client with a user's key; `declares` are its capabilities, of the modern era."""

    def __init__(self, person: ApiClient | RemoteClient, *declares: Json) -> None:
        self.person = person
        self.declares: Json = {name: value for part in declares for name, value in part.items()}
        self._ids = count(1)

    def post(self, body: Any, **headers: str | None) -> Answer:
        """Send a body, as JSON unless it is bytes; `Mcp_Name="x"` is a header, None none."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = {"Content-Type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        return self.send("POST", data, {k: v for k, v in fields.items() if v is not None})

    def send(self, method: str, data: bytes | None, headers: dict[str, str]) -> Answer:
        if isinstance(self.person, RemoteClient):
            answer = self.person.session.request(
                method, f"{self.person.url}/mcp", data=data, headers=headers, timeout=60
            )
            text = answer.text
            return Answer(answer.status_code, answer.headers, json.loads(text) if text else None)
        key = {} if "Authorization" in headers else {"apikey": self.person.key}
        response = self.person.app.test_client().open(
            "/mcp", method=method, data=data, headers=key | headers
        )
        json_ = response.get_json(silent=True)
        return Answer(response.status_code, response.headers, json_)

    def legacy(self, method: str, params: Json | None = None, **headers: str | None) -> Answer:
        body = {"jsonrpc": "2.0", "id": next(self._ids), "method": method}
        return self.post(body | ({} if params is None else {"params": params}), **headers)

    def modern(self, method: str, params: Json | None = None, **headers: str | None) -> Answer:
        params = {"_meta": {}, **(params or {})}
        meta = {VERSION_KEY: MODERN, CAPABILITIES_KEY: self.declares} | params["_meta"]
        name: Any = params.get(_NAMES.get(method, ""))
        fitting: dict[str, str | None] = {
            "MCP_Protocol_Version": MODERN,
            "Mcp_Method": method,
            "Mcp_Name": name,
        }
        body = {"jsonrpc": "2.0", "id": next(self._ids), "method": method}
        return self.post(body | {"params": params | {"_meta": meta}}, **(fitting | headers))

    def call(self, name: str, arguments: Json | None = None, **fields: Any) -> Json:
        """The result of a tool, in the modern era."""
        return self.modern(
            "tools/call", {"name": name, "arguments": arguments or {}, **fields}
        ).result

    def state(self, task_id: str) -> Json:
        """What `tasks/get` says."""
        return self.modern("tasks/get", {"taskId": task_id}).result

    def tools(self) -> dict[str, Json]:
        """Name -> tool."""
        return {tool["name"]: tool for tool in self.modern("tools/list").result["tools"]}

    @contextmanager
    def calling(
        self, name: str, arguments: Json | None = None, **fields: Any
    ) -> Iterator[Future[Json]]:
        """The result of a tool that waits for the block."""
        with ThreadPoolExecutor(1) as pool:
            yield pool.submit(self.call, name, arguments, **fields)


def register_served_tool(person: ApiClient) -> None:
    """Register an agent as a tool, whose worker was seen just now."""
    person.register(tool=True)
    person.post("/agent/summarizer/claim")
    with person.app.app_context():
        users.record_last_uses()


def structured(result: Json) -> Json:
    """The structured content of a tool's result, which its text has too."""
    content = result["structuredContent"]
    (text,) = result["content"]
    assert text["type"] == "text"
    return dict(content)
