"""Every write of the API and of MCP, while the database accepts none, and afterwards."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests

from tests.support.api_client import RemoteClient
from tests.support.mcp import TASKS, Answer, McpClient
from tests.support.waiting import until

# Texts that no response may contain: words of a driver, and names of files.
INSIDES = ("sqlite", "psycopg", "errno", "taskservice.db", "traceback", "i/o error")


class EveryWrite:
    """A user's things, and one request for each write that they allow."""

    def __init__(self, alice: RemoteClient, callback: str | None = None) -> None:
        self.alice = alice
        self.tasks = {
            name: alice.start(name=name, claim=name != "claim", callback=callback)
            for name in ("append", "report", "cancel", "delete", "rerun", "ask", "claim")
        }
        alice.request("PUT", "/agent/summarizer", json={"tool": True}).raise_for_status()
        self.question = self._asked("Deploy?")
        self.withdrawn = self._asked("Really?")
        alice.request("PUT", "/agent/unused").raise_for_status()
        added = alice.request("POST", "/key", json={"name": "other"})
        self.other_key = added.json()["id"]

    def _asked(self, message: str) -> str:
        where = f"/task/{self.tasks['ask']['id']}/question"
        answer = self.alice.request("POST", where, json={"message": message})
        answer.raise_for_status()
        return str(answer.json()["id"])

    def requests(self) -> dict[str, tuple[str, str, Any]]:
        """Name -> method, path and body; each succeeds once, in any order."""
        path = {name: f"/task/{task['id']}" for name, task in self.tasks.items()}
        questions = f"{path['ask']}/question"
        return {
            "start": ("POST", "/task", {"agentId": "summarizer", "name": "new"}),
            "append": ("POST", f"{path['append']}/logs", {"logs": ["a line"], "seq": 1}),
            "report": ("PATCH", path["report"], {"status": "complete", "output": {"n": 1}}),
            "cancel": ("POST", f"{path['cancel']}/cancel", None),
            "delete": ("DELETE", path["delete"], None),
            "rerun": ("POST", f"{path['rerun']}/rerun", None),
            "ask": ("POST", questions, {"message": "Once more?"}),
            "answer": (
                "POST",
                f"{questions}/{self.question}/answer",
                {"action": "accept", "content": {"answer": "yes"}},
            ),
            "withdraw": ("DELETE", f"{questions}/{self.withdrawn}", None),
            "claim": ("POST", "/agent/summarizer/claim", None),
            "register an agent": ("PUT", "/agent/new", {"name": "New"}),
            "delete an agent": ("DELETE", "/agent/unused", None),
            "add a key": ("POST", "/key", {"name": "another"}),
            "revoke a key": ("DELETE", f"/key/{self.other_key}", None),
            "rotate the secret": ("POST", "/callback-secret", None),
        }

    def are_refused(self) -> None:
        """All at once, each returns 503, as the contract says; reads work, nothing has changed."""
        before = self.state()
        with ThreadPoolExecutor(20) as pool:
            sent = {
                name: pool.submit(self._send, *request) for name, request in self.requests().items()
            }
            sent["call a tool"] = pool.submit(self._call_tool)
            for name, answer in sent.items():
                _is_unavailable(name, answer.result())
        assert self.state() == before
        assert self.probe("/livez") == 200
        assert self.probe("/readyz") == 503

    def succeed(self) -> None:
        """As soon as the service is ready again, each succeeds."""
        until(lambda: self.probe("/readyz") == 200)
        self.are_done()

    def are_done(self) -> None:
        """Each succeeds."""
        for name, request in self.requests().items():
            assert self._send(*request).status in (200, 201), name
        assert self._call_tool().status == 200
        listed = self._read("/task")
        tasks = {task["name"]: task for task in listed}
        assert tasks["append"]["logs"] == ["a line"]
        assert (tasks["report"]["status"], tasks["report"]["output"]) == ("complete", {"n": 1})
        assert tasks["cancel"]["error"]["type"] == "cancelled"
        assert tasks["claim"]["claimedAt"]
        assert "delete" not in tasks
        # One is deleted; a start, a rerun and a tool have created three.
        assert len(listed) == len(self.tasks) + 2

    def probe(self, path: str) -> int:
        key = {"apikey": str(self.alice.session.headers["apikey"])}
        return requests.get(self.alice.url + path, headers=key, timeout=30).status_code

    def _send(self, method: str, path: str, body: Any) -> Answer:
        answer = self._sender().request(method, path, json=body, timeout=60)
        return Answer(answer.status_code, answer.headers, answer.json())

    def _call_tool(self) -> Answer:
        return McpClient(self._sender(), TASKS).modern("tools/call", {"name": "summarizer"})

    def _sender(self) -> RemoteClient:
        # A session is for one thread.
        return RemoteClient(self.alice.url, str(self.alice.session.headers["apikey"]))

    def state(self) -> dict[str, Any]:
        """All that can be read, except the times of the use of keys."""
        tasks = [f"/task/{task['id']}" for task in self.tasks.values()]
        deliveries = [f"{task}/deliveries" for task in tasks]
        questions = f"/task/{self.tasks['ask']['id']}/question"
        paths = ["/task", "/agent", "/callback-secret", questions, *tasks, *deliveries]
        state = {path: self._read(path) for path in paths}
        return state | {"/key": [(key["id"], key["revokedAt"]) for key in self._read("/key")]}

    def _read(self, path: str) -> Any:
        answer = self.alice.request("GET", path)
        return answer.json() if answer.ok else answer.status_code


def _is_unavailable(name: str, answer: Answer) -> None:
    assert answer.status == 503, (name, answer.json)
    assert answer.headers["Content-Type"] == "application/problem+json", name
    assert answer.json["code"] == "unavailable", name
    assert int(answer.headers["Retry-After"]) > 0, name
    assert not any(word in str(answer.json).lower() for word in INSIDES), answer.json
