"""`export`: users with their agents, hooks and tasks as lines of JSON."""

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import delete, select, update

from taskservice import __version__
from taskservice.config import Config
from taskservice.database.models import Log, LogChunk, Task
from taskservice.database.transactions import transaction
from taskservice.errors import Problem
from taskservice.services import exports
from tests.support.all_tables import ODD_TEXTS, fill
from tests.support.api_client import ApiClient, add_user, expect
from tests.support.commands import memory_of, without_database
from tests.support.documents import table
from tests.support.fork_server import ForkedPopen, run_forked
from tests.support.internals import before_reads, copy_task, rows, set_columns
from tests.support.receiver import Receiver
from tests.support.service import COMMAND, environment

Json = dict[str, Any]


@dataclass
class Place:
    """A database, and the app and the commands on it."""

    folder: Path
    url: str
    app: Flask

    def run(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        done = run_forked(
            [*COMMAND, *arguments], env=environment(self.folder, DATABASE_URL=self.url),
            capture_output=True, timeout=100, input=stdin,
        )  # fmt: skip
        done.stderr = without_database(done.stderr.decode()).encode()
        return done

    def export(self, *arguments: str) -> bytes:
        done = self.run("export", *arguments)
        assert (done.returncode, done.stderr) == (0, b""), done
        return bytes(done.stdout)


@pytest.fixture
def source(app: Flask, config: Config, tmp_path: Path) -> Place:
    return Place(tmp_path, str(config.DATABASE_URL), app)


def parsed(lines: bytes) -> list[Json]:
    return [json.loads(line) for line in lines.splitlines()]


def test_export_has_what_the_api_shows(source: Place, receiver: Receiver) -> None:
    people = fill(source.app, receiver)
    lines = parsed(source.export())
    assert lines[0] == {"type": "export", "format": 1, "version": __version__}
    users = {line["id"]: line for line in lines if line["type"] == "user"}
    assert sorted(line["name"] for line in users.values()) == ["alice", "bob"]
    of_tasks = [line["id"] for line in lines if line["type"] == "task"]
    assert of_tasks == sorted(of_tasks)
    assert lines[-1] == {"type": "end", "tasks": len(of_tasks)}
    for person in people:
        user = expect(person.get("/user"), 200)
        hooks = expect(person.get("/hook"), 200)
        for hook in hooks:
            del hook["failingSince"]
        assert users[user["id"]]["hooks"] == hooks
        agents = [fields(line) for line in lines if line["type"] == "agent"]
        agents = [agent for agent in agents if agent["userId"] == user["id"]]
        assert agents == sorted(expect(person.get("/agent"), 200), key=lambda agent: agent["id"])
        tasks = expect(person.get("/task?limit=100"), 200)
        assert {task["id"] for task in tasks} == {
            line["id"] for line in lines if line.get("userId") == user["id"] and "status" in line
        }
        for task in tasks:
            check_task(person, task["id"], lines)


def check_task(person: ApiClient, task_id: str, lines: list[Json]) -> None:
    """The lines of a task are what the API shows."""
    path = f"/task/{task_id}"
    task = expect(person.get(path), 200)
    [exported] = [line for line in lines if line["type"] == "task" and line["id"] == task_id]
    assert (
        exported.items()
        >= {
            name: value
            for name, value in task.items()
            if name not in ("logs", "questions", "hangingSince")
        }.items()
    )
    of_task = [line for line in lines if line.get("taskId") == task_id]
    shown = expect(person.get(f"{path}/question"), 200)
    assert [fields(line, "taskId", "idempotencyKey") for line in of_task
            if line["type"] == "question"] == shown  # fmt: skip
    deliveries = expect(person.get(f"{path}/deliveries"), 200)
    for line in (fields(line, "taskId") for line in of_task if line["type"] == "delivery"):
        line["attempts"] = [fields(attempt, "answer") for attempt in line["attempts"]]
        assert line in deliveries
    log = expect(person.get(f"{path}/logs?times=true&limit=10000"), 200)
    of_log = [line for line in of_task if line["type"] == "log"]
    assert [text for line in of_log for text in line["lines"]] == log["logs"]
    times = (
        line["at"] if isinstance(line["at"], list) else [line["at"]] * len(line["lines"])
        for line in of_log
    )
    assert [at for of_line in times for at in of_line] == log["times"]


def fields(line: Json, *others: str) -> Json:
    """The fields of a line that the API has too."""
    return {name: value for name, value in line.items() if name not in ("type", *others)}


def test_keys_and_secrets_are_not_exported(source: Place, receiver: Receiver) -> None:
    (alice,) = fill(source.app, receiver, ("alice",))
    exported = source.export().decode()
    secret = expect(alice.get("/callback-secret"), 200)["secret"]
    digests = [str(row[4]) for row in rows(source.app)["api_keys"]]
    assert not [hidden for hidden in (alice.key, secret, *digests) if hidden in exported]
    assert '"name":"expired"' not in exported


# --- which tasks -------------------------------------------------------------------------


def test_export_of_one_user_and_since_a_time(source: Place) -> None:
    alice, bob = add_user(source.app, "alice"), add_user(source.app, "bob")
    old, new = alice.start(name="old"), alice.start(name="new")
    child = alice.start(name="child", parentId=old["id"])
    bob.start()
    set_columns(source.app, old, updated_at="2026-01-01T00:00:00.000Z")
    lines = parsed(source.export("--user", "alice", "--since", "2026-01-01T01:00:00.001+01:00"))
    assert [line["name"] for line in lines if line["type"] == "user"] == ["alice"]
    assert [line["id"] for line in lines if line["type"] == "task"] == [new["id"], child["id"]]
    assert lines[-1] == {"type": "end", "tasks": 2}
    everything = parsed(source.export("--since", "2026-01-01T00:00:00Z"))
    assert len([line for line in everything if line["type"] == "task"]) == 4


def test_unknown_user_and_wrong_time_are_refused(source: Place) -> None:
    done = source.run("export", "--user", "nobody")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"There is no user nobody" in done.stderr
    done = source.run("export", "--since", "yesterday")
    assert done.returncode == 2
    assert b"Must be an RFC 3339 time" in done.stderr


def test_lines_of_an_export_are_documented(source: Place, receiver: Receiver) -> None:
    fill(source.app, receiver, ("alice",))
    documented = {
        row[0].strip("`"): set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)|;.*", "", row[1])))
        for row in table("docs/operate/export.md", "## Export format")
    }
    schemas = expect(source.app.test_client().get("/openapi.json"), 200)["components"]["schemas"]
    exported = {
        line["type"]: line.keys() - schemas.get(line["type"].title(), {}).get("properties", {})
        for line in parsed(source.export())
    }
    exported["void"] = {"type", "taskId"}
    assert documented == {name: names - {"type"} for name, names in exported.items()}


def test_export_ends_quietly_with_its_reader(source: Place) -> None:
    alice = add_user(source.app, "alice")
    copy_task(source.app, alice.start(input={"text": "x" * 1_000}), 500)
    settings = environment(source.folder, DATABASE_URL=source.url)
    command = [*COMMAND, "export"]
    with ForkedPopen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout
        assert run.stderr
        assert b'"type":"export"' in run.stdout.readline()
        run.stdout.close()
        assert without_database(run.stderr.read().decode()) == ""


def test_log_that_lacks_lines_ends_an_export(app: Flask) -> None:
    alice = add_user(app, "alice")
    task = alice.start(claim=True)
    alice.append(task, "one")
    set_columns(app, task, log_count=2)
    with app.app_context(), pytest.raises(Problem, match=f"log of task {task['id']}"):
        b"".join(exports.lines())


def test_task_whose_log_goes_while_it_is_exported_is_exported_as_it_is_then(
    source: Place,
) -> None:
    alice = add_user(source.app, "alice")
    tasks = [alice.start(name=name, claim=True) for name in ("stays", "goes", "loses its log")]
    for task in tasks:
        alice.append(task, "one", *ODD_TEXTS)
    seen: list[str] = []

    def act(statement: str, _parameters: Any) -> None:
        if "log_chunks" in statement:
            seen.append(statement)
            if len(seen) == 2:
                drop_log(source.app, tasks[1])
                expect(alice.delete(f"/task/{tasks[1]['id']}"), 200)
            elif len(seen) == 3:
                drop_log(source.app, tasks[2])

    with source.app.app_context(), before_reads(source.app, act):
        exported = b"".join(exports.lines())
    kept: dict[str, list[Json]] = {}
    for line in parsed(exported)[:-1]:
        if line["type"] == "task":
            kept[line["id"]] = [line]
        elif line["type"] == "void":
            del kept[line["taskId"]]
        elif "taskId" in line:
            kept[line["taskId"]].append(line)
    assert [[line["type"] for line in lines] for lines in kept.values()] == [
        ["task", "log"], ["task"],
    ]  # fmt: skip
    assert [lines[0]["name"] for lines in kept.values()] == ["stays", "loses its log"]
    assert parsed(exported)[-1] == {"type": "end", "tasks": 2}


def drop_log(app: Flask, task: Json) -> None:
    """As retention and the sweep after it do."""
    with app.app_context(), transaction() as connection:
        log_id = connection.scalar(select(Log.id).where(Log.task_id == task["id"]))
        connection.execute(delete(LogChunk).where(LogChunk.log_id == log_id))
        connection.execute(delete(Log).where(Log.id == log_id))
        of_task = update(Task).where(Task.id == task["id"])
        connection.execute(of_task.values(first_log=Task.log_count + 1, version=Task.version + 1))


# --- much of it --------------------------------------------------------------------------

MEGABYTE = 1024 * 1024


def test_many_tasks_and_a_full_log_are_exported_in_bounded_memory(
    source: Place, tmp_path: Path
) -> None:
    alice = add_user(source.app, "alice")
    task = alice.start(input={"text": "x" * 400}, labels={"env": "prod"})
    copy_task(source.app, task, 300)
    for _ in range(10):
        alice.append(task, *["x" * 99] * 100_000)
    large = {"text": "x" * (MEGABYTE - 20)}
    for _ in range(30):
        alice.report(alice.start(input=large, claim=True), output=large)
    exported = tmp_path / "tasks.jsonl"
    with open(exported, "wb") as out:
        cost = memory_of(source.folder, "export", database=source.url, stdout=out)
    print(f"export {cost} MiB")
    assert exported.stat().st_size > 150 * MEGABYTE
    assert cost < 100


def test_questions_with_large_answers_are_exported_in_bounded_memory(
    source: Place, tmp_path: Path
) -> None:
    alice = add_user(source.app, "alice")
    task = alice.start(claim=True)
    path = f"/task/{task['id']}/question"
    content = {"action": "accept", "content": {"answer": "x" * (MEGABYTE - 20)}}
    for _ in range(120):
        question = expect(alice.post(path, json={"message": "Which?"}), 201)
        expect(alice.post(f"{path}/{question['id']}/answer", json=content), 200)
    exported = tmp_path / "tasks.jsonl"
    with open(exported, "wb") as out:
        cost = memory_of(source.folder, "export", database=source.url, stdout=out)
    assert exported.stat().st_size > 120 * (MEGABYTE - 20)
    assert cost < 50
