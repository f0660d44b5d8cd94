"""Mixed load on two workers while one of them is killed repeatedly: nothing is lost or doubled."""

import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from uuid import uuid4

import pytest
import requests

from tests.support.api_client import RemoteClient
from tests.support.service import Service

SECONDS = float(os.environ.get("CRASH_SECONDS", "10"))
CLIENTS = 32
AGENTS = 8
PEOPLE = 3
WATCHERS = 3
KILL_EVERY = 5.0
# How long after a kill a connection may still break because of it.
BREAK_SECONDS = 3.0


@dataclass
class Ledger:
    """What the clients were told, to be compared with what the service has afterwards."""

    lines: dict[str, list[str]] = field(default_factory=dict)
    finished: dict[str, str] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    # Of the questions, by their ids: as they were asked, as they ended for their agent, and what
    # people were told that their answers count.
    asked: dict[str, str] = field(default_factory=dict)
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)
    accepted: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    # The tasks of agents that ask: the output that each has reported, and what others saw.
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    seen: dict[str, dict[str, Any]] = field(default_factory=dict)
    unwatched: SimpleQueue[str] = field(default_factory=SimpleQueue)
    answers: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    breaks: list[float] = field(default_factory=list)


class Caller(threading.Thread):
    """Calls the service, and repeats whatever got no answer, by the means of the API for that."""

    def __init__(self, number: int, service: Service, key: str, ledger: Ledger) -> None:
        super().__init__()
        self.person = RemoteClient(service.url, key)
        self.random = random.Random(number)
        self.ledger = ledger
        self.until = time.monotonic() + SECONDS

    def call(
        self, method: str, path: str, repeated: int = 0, refused: int = 0, **options: Any
    ) -> requests.Response:
        """Call until there is an answer; `repeated` is what a second call may be told.

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

    def run(self) -> None:
        while time.monotonic() < self.until:
            task_id = self.start_task("worker")
            self.ledger.lines[task_id] = []
            self.add_lines(task_id)
            outcome = self.random.choice(["complete", "error", "running", "deleted"])
            if outcome == "deleted":
                self.call("DELETE", f"/task/{task_id}", repeated=404)
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
        """The question when it has ended; a few are withdrawn."""
        message, path = str(uuid4()), f"/task/{task_id}/question"
        headers = {"Idempotency-Key": message, "Prefer": f"wait={self.random.randrange(3)}"}
        body = {"message": message}
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
    """Answers what agents ask; several people answer the same questions."""

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


def kill_workers(service: Service, until: float) -> list[float]:
    """Kill one of the workers with -9 every few seconds; returns when that was."""
    kills: list[float] = []
    while time.monotonic() + KILL_EVERY / 2 < until:
        time.sleep(KILL_EVERY / 2 if not kills else KILL_EVERY)
        os.kill(random.choice(service.workers()), signal.SIGKILL)
        kills.append(time.monotonic())
    return kills


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 180)
def test_every_acknowledged_write_survives_killed_workers(
    database_url: str, data_folder: Path
) -> None:
    ledger = Ledger()
    with Service(data_folder, DATABASE_URL=database_url, WORKERS="2") as service:
        alice = service.add_user()
        for agent_id in ("worker", "asker"):
            alice.request("PUT", f"/agent/{agent_id}")
        load = callers(service, str(alice.session.headers["apikey"]), ledger)
        for caller in load:
            caller.start()
        kills = kill_workers(service, time.monotonic() + SECONDS)
        for caller in load:
            caller.join()
        stored = {task["id"]: task for task in alice.request("GET", "/task").json()}
        questions = [
            question
            for task_id in ledger.outputs
            for question in alice.request("GET", f"/task/{task_id}/question").json()
        ]
    print(f"\n{sum(ledger.answers.values())} answers {dict(ledger.answers)}, "
          f"{len(kills)} kills, {len(ledger.breaks)} broken connections, "
          f"{len(stored)} tasks, {len(questions)} questions")  # fmt: skip
    assert kills
    assert ledger.wrong == []
    assert [at for at in ledger.breaks if not any(0 <= at - k < BREAK_SECONDS for k in kills)] == []
    check_tasks(ledger, stored)
    check_questions(ledger, questions)
    if database_url.startswith("sqlite"):
        check_file(data_folder / "taskservice.db")


def callers(service: Service, key: str, ledger: Ledger) -> list[Caller]:
    agents = [Agent(number, service, key, ledger) for number in range(AGENTS)]
    people = [Person(number, service, key, ledger, agents=agents) for number in range(PEOPLE)]
    watchers = [Watcher(number, service, key, ledger, agents=agents) for number in range(WATCHERS)]
    clients = [Client(number, service, key, ledger) for number in range(CLIENTS)]
    return [*agents, *people, *watchers, *clients]


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
    """None is lost, none was asked twice, and the answer that a person was told of counts."""
    assert {each["id"]: each["message"] for each in stored} == ledger.asked
    assert len({each["message"] for each in stored}) == len(stored)
    assert {each["id"]: each for each in stored} == ledger.ended
    answers = {each["id"]: each["answer"] for each in stored if each["state"] != "withdrawn"}
    assert answers == ledger.accepted
    assert {"answered", "declined", "withdrawn"} == {each["state"] for each in stored}


def check_file(path: Path) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()
