"""Programs and people that use a service, and record its responses, for crash tests."""

import random
import threading
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any
from uuid import uuid4

import requests

from tests.support.api_client import RemoteClient
from tests.support.mcp import FORMS, TASKS, Json, McpClient

# The error of `tasks/update` for a question that is no longer open.
INVALID_PARAMS = -32602


@dataclass
class Ledger:
    """The responses that the clients got, to be compared with the service afterwards."""

    lines: dict[str, list[str]] = field(default_factory=dict)
    finished: dict[str, str] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    # Of the questions, by their IDs: as they were asked, as they ended for their agent, and the
    # answers that people saw accepted.
    asked: dict[str, str] = field(default_factory=dict)
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)
    accepted: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    # The tasks of agents that ask: the output that each has reported, and what others saw.
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    seen: dict[str, dict[str, Any]] = field(default_factory=dict)
    unwatched: SimpleQueue[str] = field(default_factory=SimpleQueue)
    answers: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    # When requests got no response of the service, and when they got its own 503.
    breaks: list[float] = field(default_factory=list)
    refusals: list[float] = field(default_factory=list)
    # The calls of tools, by a token in their arguments: what they gave, and how often they ran.
    results: dict[str, Json] = field(default_factory=dict)
    runs: Counter[str] = field(default_factory=Counter)


class Caller(threading.Thread):
    """Calls the service, and repeats requests without a response, by the means of the API."""

    def __init__(self, number: int, person: RemoteClient, ledger: Ledger, until: float) -> None:
        """`until` is a time of the monotonic clock: nothing new is begun after it."""
        super().__init__(daemon=True)
        self.number = number
        self.person = person.copy()
        self.random = random.Random(number)
        self.ledger = ledger
        self.until = until

    def call(
        self, method: str, path: str, repeated: int = 0, refused: int = 0, **options: Any
    ) -> requests.Response:
        """Call until there is an answer; `repeated` is the possible response to a second call.

        `refused` is a status of answers that are right too.
        """
        again = False
        while True:
            try:
                answer = self.person.request(method, path, **options)
            except requests.RequestException:
                self.ledger.breaks.append(time.monotonic())
                again = True
                continue
            self.ledger.answers[answer.status_code] += 1
            honest = answer.status_code == 503 and "Retry-After" in answer.headers
            if honest:
                self.ledger.refusals.append(time.monotonic())
                # The change may have been committed.
                again = True
                time.sleep(0.2)
                continue
            right = (refused, repeated) if again else (refused,)
            if not answer.ok and answer.status_code not in right:
                self.ledger.wrong.append(f"{method} {path}: {answer.status_code} {answer.text}")
            return answer

    def start_task(self, agent_id: str, **fields: Any) -> str:
        headers = {"Idempotency-Key": str(uuid4())}
        body = {"agentId": agent_id, **fields}
        task_id: str = self.call("POST", "/task", json=body, headers=headers).json()["id"]
        return task_id


class Client(Caller):
    """One user's program: starts tasks, adds lines, reports, lists, deletes."""

    # The reports of a task with a callback are checked by its receiver.
    callback: str | None = None
    # The possible responses to a DELETE that is not repeated here: nginx may have repeated it.
    gone: int = 0

    def run(self) -> None:
        while time.monotonic() < self.until:
            task_id = self.start_task("worker", callback=self.callback)
            self.ledger.lines[task_id] = []
            self.add_lines(task_id)
            outcome = self.random.choice(["complete", "error", "running", "deleted"])
            if outcome == "deleted":
                self.call("DELETE", f"/task/{task_id}", repeated=404, refused=self.gone)
                self.ledger.deleted.add(task_id)
            elif outcome != "running":
                self.call("PATCH", f"/task/{task_id}", json={"status": outcome})
                self.ledger.finished[task_id] = outcome
            if self.random.random() < 0.05:
                self.call("GET", "/task?fields=id,status,logs")

    def add_lines(self, task_id: str) -> None:
        lines = self.ledger.lines[task_id]
        for _ in range(self.random.randrange(6)):
            fresh = [str(uuid4()) for _ in range(self.random.randrange(1, 4))]
            body = {"logs": fresh, "seq": len(lines) + 1}
            self.call("POST", f"/task/{task_id}/logs", json=body)
            lines.extend(fresh)


class Agent(Caller):
    """Asks, waits for the answers, and ends its task with the last one."""

    def run(self) -> None:
        while time.monotonic() < self.until:
            task_id = self.start_task("asker", claim=True)
            self.ledger.unwatched.put(task_id)
            for _ in range(self.random.randrange(1, 4)):
                question = self.ask(task_id)
            output = {"answer": question["answer"]}
            self.call("PATCH", f"/task/{task_id}", json={"status": "complete", "output": output})
            self.ledger.outputs[task_id] = output

    def ask(self, task_id: str) -> dict[str, Any]:
        """The question after its end; a few are withdrawn."""
        message, path = str(uuid4()), f"/task/{task_id}/question"
        headers = {"Idempotency-Key": message, "Prefer": f"wait={self.random.randrange(3)}"}
        # A question that is asked twice, and never answered, must not delay the test.
        body = {"message": message, "timeout": 90}
        question: dict[str, Any] = self.call("POST", path, json=body, headers=headers).json()
        self.ledger.asked[question["id"]] = message
        path = f"{path}/{question['id']}"
        if self.random.random() < 0.1:
            self.call("DELETE", path, refused=409)
        while question["state"] == "open":
            question = self.call("GET", path, headers={"Prefer": "wait=10"}).json()
        self.ledger.ended[question["id"]] = question
        return question


class Person(Caller):
    """Answers questions of agents; several people answer the same ones."""

    def __init__(self, *arguments: Any, agents: Collection[Agent]) -> None:
        super().__init__(*arguments)
        self.agents = agents

    def run(self) -> None:
        query = "agentId=asker&status=running&fields=id,questions"
        while any(agent.is_alive() for agent in self.agents):
            for task in self.call("GET", f"/task?{query}").json():
                for question in task["questions"]:
                    self.answer(f"/task/{task['id']}/question/{question['id']}", question["id"])
            time.sleep(0.05)

    def answer(self, path: str, question_id: str) -> None:
        content = {"answer": str(uuid4())} if self.random.random() < 0.9 else None
        body = {"action": "accept", "content": content} if content else {"action": "decline"}
        if self.call("POST", f"{path}/answer", json=body, refused=409).ok:
            before = self.ledger.accepted.setdefault(question_id, content)
            if before != content:
                self.ledger.wrong.append(f"{path}: {content} counts after {before}")


class Watcher(Caller):
    """Waits for the ends of the tasks of agents that ask, one after another."""

    def __init__(self, *arguments: Any, agents: Collection[Agent]) -> None:
        super().__init__(*arguments)
        self.agents = agents

    def run(self) -> None:
        while any(agent.is_alive() for agent in self.agents) or not self.ledger.unwatched.empty():
            try:
                self.watch(self.ledger.unwatched.get(timeout=0.1))
            except Empty:
                continue

    def watch(self, task_id: str) -> None:
        task: dict[str, Any] = {"status": "running"}
        while task["status"] == "running":
            task = self.call("GET", f"/task/{task_id}", headers={"Prefer": "wait=10"}).json()
        self.ledger.seen[task_id] = task


class Worker(Agent):
    """Claims the tasks that tools start, runs each, and asks in some of them."""

    def __init__(self, *arguments: Any, chats: Collection[threading.Thread]) -> None:
        super().__init__(*arguments)
        self.chats = chats

    def run(self) -> None:
        while any(chat.is_alive() for chat in self.chats):
            headers = {"Idempotency-Key": str(uuid4()), "Prefer": "wait=1"}
            claimed = self.call("POST", "/agent/tool/claim", headers=headers)
            if claimed.status_code == 200:
                self.work(claimed.json())

    def work(self, task: dict[str, Any]) -> None:
        self.ledger.runs[task["input"]["token"]] += 1
        self.ledger.unwatched.put(task["id"])
        answer = self.ask(task["id"])["answer"] if self.random.random() < 0.5 else None
        output = {"token": task["input"]["token"], "answer": answer}
        path = f"/task/{task['id']}"
        self.call("PATCH", path, json={"status": "complete", "output": output})
        self.ledger.outputs[task["id"]] = output


class Chat(Caller):
    """An MCP client: calls a tool again and again; every second one does not know of tasks."""

    def run(self) -> None:
        follows = self.number % 2 == 0
        self.mcp = McpClient(self.person, *((TASKS, FORMS) if follows else ()))
        while time.monotonic() < self.until:
            token = str(uuid4())
            meta = {"taskservice/idempotencyKey": token}
            result = self.tool("tool", {"token": token}, _meta=meta)
            ended = self.followed(result) if follows else self.waited(result)
            self.ledger.results[token] = ended

    def followed(self, result: Json) -> Json:
        """The result of a task, by `tasks/get` and `tasks/update`."""
        while result.get("status") in ("working", "input_required"):
            for question_id in result.get("inputRequests", ()):
                content = {"answer": str(uuid4())}
                responses = {question_id: {"action": "accept", "content": content}}
                params = {"taskId": result["taskId"], "inputResponses": responses}
                if "result" in self.rpc("tasks/update", params, refused=INVALID_PARAMS):
                    self.ledger.accepted[question_id] = content
            time.sleep(0.05)
            result = self.rpc("tasks/get", {"taskId": result["taskId"]})["result"]
        structured: Json = result.get("result", result)["structuredContent"]
        return structured

    def waited(self, result: Json) -> Json:
        """The result of a task, by the fixed tools."""
        structured: Json = result["structuredContent"]
        while structured["status"] == "running":
            for question in structured.get("questions", ()):
                content = {"answer": str(uuid4())}
                ids = {"taskId": structured["taskId"], "questionId": question["questionId"]}
                if not self.tool("answer_task", {**ids, "content": content}).get("isError"):
                    self.ledger.accepted[question["questionId"]] = content
            result = self.tool("wait_task", {"taskId": structured["taskId"], "seconds": 5})
            structured = result["structuredContent"]
        return structured

    def tool(self, name: str, arguments: Json, **fields: Any) -> Json:
        params = {"name": name, "arguments": arguments, **fields}
        result: Json = self.rpc("tools/call", params)["result"]
        return result

    def rpc(self, method: str, params: Json, refused: int = 0) -> Json:
        """Call until there is an answer; `refused` is the code of an error that is right too."""
        while True:
            try:
                answer = self.mcp.modern(method, params)
            except requests.RequestException:
                self.ledger.breaks.append(time.monotonic())
                continue
            self.ledger.answers[answer.status] += 1
            if answer.status == 503 and "Retry-After" in answer.headers:
                time.sleep(0.2)
                continue
            message: Json = answer.json
            if "result" not in message and message["error"]["code"] != refused:
                self.ledger.wrong.append(f"{method} {params}: {message}")
            return message


def check_tasks(ledger: Ledger, stored: dict[str, dict[str, Any]]) -> None:
    assert stored.keys() == (ledger.lines.keys() - ledger.deleted) | ledger.outputs.keys()
    assert ledger.seen.keys() == ledger.outputs.keys()
    for task_id, task in stored.items():
        if task_id in ledger.outputs:
            assert (task["status"], task["output"]) == ("complete", ledger.outputs[task_id])
            assert ledger.seen[task_id] == task
        else:
            assert task["logs"] == ledger.lines[task_id]
            assert task["status"] == ledger.finished.get(task_id, "running")


def check_questions(ledger: Ledger, stored: Sequence[dict[str, Any]]) -> None:
    """None is lost, none was asked twice, and the answer that a person saw accepted counts."""
    assert {question["id"]: question["message"] for question in stored} == ledger.asked
    assert len({question["message"] for question in stored}) == len(stored)
    assert {question["id"]: question for question in stored} == ledger.ended
    answers = {
        question["id"]: question["answer"]
        for question in stored
        if question["state"] != "withdrawn"
    }
    assert answers == ledger.accepted
