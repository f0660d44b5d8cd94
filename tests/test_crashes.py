"""Mixed load on two workers while one of them is killed repeatedly: nothing is lost."""

import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests

from tests.support.api_client import RemoteClient
from tests.support.service import Service

SECONDS = float(os.environ.get("CRASH_SECONDS", "10"))
CLIENTS = 32
KILL_EVERY = 5.0
# How long after a kill a connection may still break because of it.
BREAK_SECONDS = 3.0


@dataclass
class Ledger:
    """What the clients were told, to be compared with what the service has afterwards."""

    lines: dict[str, list[str]] = field(default_factory=dict)
    finished: dict[str, str] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    answers: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    breaks: list[float] = field(default_factory=list)


class Client(threading.Thread):
    """One user's program: starts tasks, adds lines, reports, lists, deletes, and repeats
    whatever got no answer, by the means that the API has for that."""

    def __init__(self, number: int, service: Service, key: str, ledger: Ledger) -> None:
        super().__init__()
        self.person = RemoteClient(service.url, key)
        self.random = random.Random(number)
        self.ledger = ledger
        self.until = time.monotonic() + SECONDS

    def run(self) -> None:
        while time.monotonic() < self.until:
            task_id = self.start_task()
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

    def start_task(self) -> str:
        headers = {"Idempotency-Key": str(uuid4())}
        answer = self.call("POST", "/task", json={"agentId": "worker"}, headers=headers)
        task_id: str = answer.json()["id"]
        self.ledger.lines[task_id] = []
        return task_id

    def add_lines(self, task_id: str) -> None:
        lines = self.ledger.lines[task_id]
        for _ in range(self.random.randrange(6)):
            fresh = [str(uuid4()) for _ in range(self.random.randrange(1, 4))]
            body = {"logs": fresh, "seq": len(lines) + 1}
            self.call("POST", f"/task/{task_id}/logs", json=body)
            lines.extend(fresh)

    def call(
        self, method: str, path: str, repeated: int | None = None, **options: Any
    ) -> requests.Response:
        """Call until there is an answer; `repeated` is what a second call may be told."""
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
            if not answer.ok and not (again and answer.status_code == repeated):
                self.ledger.wrong.append(f"{method} {path}: {answer.status_code} {answer.text}")
            return answer


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
def test_every_acknowledged_write_survives_killed_workers(tmp_path: Path) -> None:
    ledger = Ledger()
    with Service(tmp_path / "data", WORKERS="2") as service:
        alice = service.add_user()
        alice.request("PUT", "/agent/worker")
        key = str(alice.session.headers["apikey"])
        clients = [Client(number, service, key, ledger) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        kills = kill_workers(service, time.monotonic() + SECONDS)
        for client in clients:
            client.join()
        stored = {task["id"]: task for task in alice.request("GET", "/task").json()}
    print(f"\n{sum(ledger.answers.values())} answers {dict(ledger.answers)}, "
          f"{len(kills)} kills, {len(ledger.breaks)} broken connections, "
          f"{len(stored)} tasks")  # fmt: skip
    assert kills
    assert ledger.wrong == []
    assert [at for at in ledger.breaks if not any(0 <= at - k < BREAK_SECONDS for k in kills)] == []
    assert stored.keys() == ledger.lines.keys() - ledger.deleted
    for task_id, task in stored.items():
        assert task["logs"] == ledger.lines[task_id]
        assert task["status"] == ledger.finished.get(task_id, "running")
    connection = sqlite3.connect(tmp_path / "data" / "taskservice.db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()
