"""Mixed load on two workers while one of them is killed repeatedly: nothing is lost or doubled."""

import os
import random
import signal
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.api_client import RemoteClient
from tests.support.crash_load import (
    Agent,
    Caller,
    Chat,
    Client,
    Ledger,
    Person,
    Watcher,
    Worker,
    check_questions,
    check_tasks,
)
from tests.support.service import Service

SECONDS = float(os.environ.get("CRASH_SECONDS", "10"))
CLIENTS = 32
AGENTS = 8
PEOPLE = 3
WATCHERS = 3
CHATS = 6
WORKERS = 4
KILL_EVERY = 5.0
# How long after a kill a connection may still break because of it.
BREAK_SECONDS = 3.0


def kill_workers(service: Service, until: float) -> list[float]:
    """Kill one of the workers with -9 every few seconds; returns when that was."""
    kills: list[float] = []
    while time.monotonic() + KILL_EVERY / 2 < until:
        time.sleep(KILL_EVERY / 2 if not kills else KILL_EVERY)
        # The time before: a connection can break before this thread runs again.
        kills.append(time.monotonic())
        os.kill(random.choice(service.workers()), signal.SIGKILL)
    return kills


@pytest.mark.timeout(SECONDS + 180)
def test_every_acknowledged_write_survives_killed_workers(
    database_url: str, data_folder: Path
) -> None:
    ledger = Ledger()
    with Service(data_folder, DATABASE_URL=database_url, WORKERS="2") as service:
        alice = service.add_user()
        for agent_id in ("worker", "asker", "tool"):
            alice.request("PUT", f"/agent/{agent_id}", json={"tool": True})
        load = callers(alice, ledger)
        for caller in load:
            caller.start()
        kills = kill_workers(service, time.monotonic() + SECONDS)
        for caller in load:
            caller.join()
        # The last kill may still break a connection.
        reader = Caller(0, alice, ledger, time.monotonic())
        stored = {task["id"]: task for task in reader.call("GET", "/task").json()}
        questions = [
            question
            for task_id in ledger.outputs
            for question in reader.call("GET", f"/task/{task_id}/question").json()
        ]
    print(f"\n{sum(ledger.answers.values())} answers {dict(ledger.answers)}, "
          f"{len(kills)} kills, {len(ledger.breaks)} broken connections, "
          f"{len(stored)} tasks, {len(questions)} questions, "
          f"{len(ledger.results)} calls of tools")  # fmt: skip
    assert kills
    assert ledger.wrong == []
    assert [at for at in ledger.breaks if not any(0 <= at - k < BREAK_SECONDS for k in kills)] == []
    check_tasks(ledger, stored)
    check_tools(ledger, stored)
    check_questions(ledger, questions)
    ends, states = (
        {"answered", "declined", "withdrawn"},
        {question["state"] for question in questions},
    )
    # Few are declined or withdrawn, by chance none in a shorter run.
    assert states == ends if SECONDS >= 30 else {"answered"} <= states <= ends
    if database_url.startswith("sqlite"):
        check_file(data_folder / "taskservice.db")


def callers(person: RemoteClient, ledger: Ledger) -> list[Caller]:
    common = (person, ledger, time.monotonic() + SECONDS)
    agents = [Agent(number, *common) for number in range(AGENTS)]
    people = [Person(number, *common, agents=agents) for number in range(PEOPLE)]
    chats = [Chat(number, *common) for number in range(CHATS)]
    workers = [Worker(number, *common, chats=chats) for number in range(WORKERS)]
    busy = [*agents, *workers]
    watchers = [Watcher(number, *common, agents=busy) for number in range(WATCHERS)]
    clients = [Client(number, *common) for number in range(CLIENTS)]
    return [*agents, *people, *chats, *workers, *watchers, *clients]


def check_tools(ledger: Ledger, stored: dict[str, dict[str, Any]]) -> None:
    """Each call of a tool has started one task, which ran once and whose result came back."""
    tasks = [task for task in stored.values() if task["agentId"] == "tool"]
    assert Counter(task["input"]["token"] for task in tasks) == ledger.runs
    assert set(ledger.runs.values()) == {1}
    outputs = {task["input"]["token"]: task["output"] for task in tasks}
    assert {token: result["output"] for token, result in ledger.results.items()} == outputs


def check_file(path: Path) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()
