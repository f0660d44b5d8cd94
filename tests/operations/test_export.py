"""`export` and `import`: tasks as lines of JSON that come back as they were, or not at all."""

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import delete, select, update

from taskservice.config import Config
from taskservice.database import clock, migrations
from taskservice.database.address import parse
from taskservice.database.engine import dispose
from taskservice.database.models import Log, LogChunk, Task
from taskservice.database.transactions import transaction
from taskservice.event_kinds import EVENTS
from taskservice.schemas import export_lines
from taskservice.services import exports, imports
from taskservice.services import users as user_service
from tests.support.all_tables import ODD_TEXTS, fill
from tests.support.api_client import ApiClient, add_user, expect
from tests.support.apps import Apps
from tests.support.commands import memory_of, without_database
from tests.support.databases import Databases
from tests.support.deliveries import the_delivery
from tests.support.documents import table
from tests.support.fork_server import ForkedPopen, run_forked
from tests.support.internals import before_reads, copy_task, rows, set_columns
from tests.support.receiver import Receiver, answer
from tests.support.service import COMMAND, Service, environment

Json = dict[str, Any]
OTHER_ID = "0193a6f0-0000-7000-8000-000000000001"
FAILED = {"type": "failed", "message": "x"}


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

    def add(self, lines: bytes) -> Json:
        done = self.run("import", "--json", stdin=lines)
        assert done.returncode == 0, done
        return dict(json.loads(done.stdout))

    def refuse(self, lines: bytes) -> str:
        """The reason for which an import was refused; nothing has changed."""
        before = rows(self.app)
        done = self.run("import", stdin=lines)
        assert (done.returncode, done.stdout) == (1, b""), done
        (line,) = done.stderr.decode().splitlines()
        assert rows(self.app) == before
        return str(line)

    def person(self, name: str) -> ApiClient:
        """A user of an import, with a new key."""
        with self.app.app_context():
            return ApiClient(self.app, name, user_service.add_key(name, "new", None, None).text)


@pytest.fixture
def source(app: Flask, config: Config, tmp_path: Path) -> Place:
    return Place(tmp_path, str(config.DATABASE_URL), app)


@pytest.fixture(params=["sqlite", "postgresql"])
def target(
    request: pytest.FixtureRequest,
    standard_config: Config,
    databases: Databases,
    apps: Apps,
    tmp_path: Path,
) -> Iterator[Place]:
    """Another database, which is empty."""
    with new_place(request.param, standard_config, databases, apps, tmp_path / "target") as place:
        yield place


@contextmanager
def new_place(
    kind: str, config: Config, databases: Databases, apps: Apps, folder: Path
) -> Iterator[Place]:
    folder.mkdir()
    url = databases.new_postgresql() if kind == "postgresql" else databases.copy_sqlite(folder)
    migrations.upgrade(parse(url))
    app = apps.new(replace(config, DATA=folder, DATABASE_URL=parse(url)))
    yield Place(folder, url, app)
    dispose(app)


def parsed(lines: bytes) -> list[Json]:
    return [json.loads(line) for line in lines.splitlines()]


def with_line(lines: bytes, change: Callable[[Json], Any], kind: str) -> bytes:
    """The export with a change of its first line of a kind."""
    objects = parsed(lines)
    change(next(line for line in objects if line["type"] == kind))
    return b"".join(json.dumps(line).encode() + b"\n" for line in objects)


both_ways = pytest.mark.parametrize(
    ("database_url", "target"), [("sqlite", "postgresql"), ("postgresql", "sqlite")], indirect=True
)


# --- and back ----------------------------------------------------------------------------


def test_export_comes_back_as_it_was(source: Place, target: Place, receiver: Receiver) -> None:
    people = fill(source.app, receiver)
    exported = source.export()
    imported = target.add(exported)
    assert imported["tasks"] == len(rows(source.app)["tasks"])
    assert imported["existing_tasks"] == 0
    assert sorted(imported["users"]) == ["alice", "bob"]
    again = target.export()
    changed = [(a, b) for a, b in zip(parsed(exported), parsed(again), strict=True) if a != b]
    # Only a pending delivery differs, which is cancelled, and the hooks, which are off.
    assert {a["type"] for a, _ in changed} == {"delivery", "user"}
    of_deliveries = [(a["state"], b["state"]) for a, b in changed if a["type"] == "delivery"]
    assert set(of_deliveries) == {("pending", "cancelled")}
    off = {"state": "off", "reason": imports.IMPORTED}
    for before, after in ((a["hooks"], b["hooks"]) for a, b in changed if a["type"] == "user"):
        assert after == [hook | off for hook in before]
    for person in people:
        assert answers(target.person(person.name)) == answers(person)


def answers(person: ApiClient) -> Any:
    """What the API says of tasks."""
    tasks = expect(person.get("/task?expand=agent,user"), 200)
    agents = expect(person.get("/agent?expand=health"), 200)
    for agent in agents:
        # An export does not contain when a worker was seen.
        del agent["health"]["workerSeenAt"]
    bodies = [tasks, agents]
    for task in tasks:
        path = f"/task/{task['id']}"
        bodies.append(person.get(path).headers["ETag"])
        bodies.append(expect(person.get(f"{path}/question"), 200))
        bodies.append(expect(person.get(f"{path}/logs?times=true&limit=10000"), 200))
        deliveries = expect(person.get(f"{path}/deliveries"), 200)
        for delivery in deliveries:
            is_pending = delivery["state"] == "pending"
            delivery |= {"state": "cancelled", "nextAttemptAt": None} if is_pending else {}
        bodies.append(deliveries)
    for query in ("label=env:prod", "q=%C4%B0", "sort=finishedAt"):
        bodies.append(expect(person.get(f"/task?{query}"), 200))
    return bodies


@both_ways
def test_state_of_an_agent_follows_from_its_imported_tasks(source: Place, target: Place) -> None:
    alice = add_user(source.app, "alice")
    for agent_id, outcomes in {"broken": "+-+--x-", "ok": "--+-+x+", "new": "x"}.items():
        for outcome in outcomes:
            task = alice.start(agent_id, claim=True)
            if outcome == "x":
                expect(alice.post(f"/task/{task['id']}/cancel"), 200)
            else:
                alice.report(task, status="complete" if outcome == "+" else "error")
    exported = source.export()
    target.add(exported)
    imported = target.person("alice")
    assert answers(imported) == answers(alice)
    attention = expect(imported.get("/attention"), 200)
    assert [item["text"] for item in attention] == ["Failed 3 times in a row"]
    assert attention == expect(alice.get("/attention"), 200)
    # Tasks that exist already change nothing.
    imported.report(imported.start("broken", claim=True), status="complete")
    target.add(exported)
    assert expect(imported.get("/attention"), 200) == []


@both_ways
def test_import_tells_no_hooks(source: Place, target: Place, receiver: Receiver) -> None:
    alice = add_user(source.app, "alice")
    alice.report(alice.start("backup", claim=True), status="complete")
    target.add(source.export())
    imported = target.person("alice")
    hook = expect(imported.post("/hook", json={"target": receiver.url, "events": EVENTS}), 201)
    task = alice.start("backup", claim=True)
    expect(alice.post(f"/task/{task['id']}/question", json={"message": "Go?"}), 201)
    alice.report(task, status="error")
    target.add(source.export())
    assert imported.task(task)["status"] == "error"
    # The hook was not told that the agent is broken.
    imported.report(imported.start("backup", claim=True), status="complete")
    told = expect(imported.get(f"/hook/{hook['id']}/deliveries"), 200)
    assert [delivery["event"] for delivery in told] == ["task.ended"]


@both_ways
def test_export_of_an_import_has_the_same_bytes(
    source: Place, target: Place, receiver: Receiver, standard_config: Config, databases: Databases,
    apps: Apps, tmp_path: Path,
) -> None:  # fmt: skip
    fill(source.app, receiver)
    target.add(source.export())
    once = target.export()
    with new_place("sqlite", standard_config, databases, apps, tmp_path / "third") as third:
        third.add(once)
        assert third.export() == once


@both_ways
def test_import_again_changes_nothing(source: Place, target: Place, receiver: Receiver) -> None:
    fill(source.app, receiver, ("alice",))
    exported = source.export()
    first = target.add(exported)
    before = rows(target.app)
    second = target.add(exported)
    assert second == {
        "tasks": 0, "existing_tasks": first["tasks"], "users": [], "agents": 0, "hooks": 0,
    }  # fmt: skip
    assert rows(target.app) == before
    shown = target.run("import", stdin=exported).stdout.decode()
    assert (
        f"0 tasks imported, {first['tasks']} already existed; 0 users, 0 agents and 0 hooks"
        in shown
    )


@both_ways
def test_import_into_other_data_adds_what_is_missing_and_changes_nothing_else(
    source: Place, target: Place, receiver: Receiver
) -> None:
    fill(source.app, receiver, ("alice",))
    alice = add_user(target.app, "alice")
    alice.register("summarizer", name="Mine")
    headers = {"Idempotency-Key": "once"}
    kept_task = expect(alice.post("/task", json={"agentId": "summarizer"}, headers=headers), 201)
    kept_task = alice.report(kept_task, name="mine too")
    before = rows(target.app)
    imported = target.add(source.export())
    assert imported["users"] == []
    # The agent `idle` is new.
    assert imported["agents"] == 1
    after = rows(target.app)
    # The state of an agent follows from all of its tasks.
    unchanged = before.keys() - {"agents"}
    assert all(set(before[name]) <= set(after[name]) for name in unchanged)
    assert alice.task(kept_task) == kept_task
    assert expect(alice.get("/agent/summarizer"), 200)["name"] == "Mine"
    again = expect(alice.post("/task", json={"agentId": "summarizer"}, headers=headers), 201)
    assert again["id"] == kept_task["id"]
    listed = expect(alice.get("/task"), 200)
    assert {task["userId"] for task in listed} == {kept_task["userId"]}
    assert len(listed) == imported["tasks"] + 1


@both_ways
def test_requests_can_be_repeated_after_an_import(source: Place, target: Place) -> None:
    alice = add_user(source.app, "alice")
    alice.register("summarizer")
    body, headers = {"agentId": "summarizer", "input": {"a": 1}}, {"Idempotency-Key": "once"}
    task = expect(alice.post("/task", json=body, headers=headers), 201)
    expect(alice.post("/agent/summarizer/claim"), 200)
    alice.append(task, "one", "two", writer="w", seq=1)
    target.add(source.export())
    moved = target.person("alice")
    again = moved.post("/task", json=body, headers=headers)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert expect(again, 201)["id"] == task["id"]
    assert moved.append(task, "two", "three", writer="w", seq=2)["logCount"] == 3
    assert moved.report(task, status="complete")["logs"] == ["one", "two", "three"]


@both_ways
def test_pending_delivery_keeps_its_attempts_and_sends_nothing(
    source: Place, target: Place, receiver: Receiver
) -> None:
    receiver.answer = answer(503)
    alice = add_user(source.app, "alice")
    task = alice.start(claim=True, callback=receiver.url)
    alice.report(task, status="complete")
    pending = the_delivery(alice, task)
    target.add(source.export())
    moved = target.person("alice")
    delivery = the_delivery(moved, task)
    assert delivery == pending | {"state": "cancelled", "nextAttemptAt": None}
    assert len(receiver.requests) == 1
    # It can be sent again by hand, signed with a new secret.
    receiver.answer = answer(200)
    expect(moved.post(f"/task/{task['id']}/deliveries"), 202)


def test_keys_and_secrets_are_not_exported(source: Place, receiver: Receiver) -> None:
    (alice,) = fill(source.app, receiver, ("alice",))
    exported = source.export().decode()
    secret = expect(alice.get("/callback-secret"), 200)["secret"]
    digests = [str(row[4]) for row in rows(source.app)["api_keys"]]
    assert not [hidden for hidden in (alice.key, secret, *digests) if hidden in exported]
    assert '"name":"expired"' not in exported


# --- which tasks -------------------------------------------------------------------------


@both_ways
def test_export_of_one_user_and_since_a_time(source: Place, target: Place) -> None:
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
    # Its parent is not there.
    target.add(source.export("--since", "2026-02-01T00:00:00Z"))
    assert target.person("alice").task(child)["parentId"] is None


def test_unknown_user_and_wrong_time_are_refused(source: Place) -> None:
    done = source.run("export", "--user", "nobody")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"There is no user nobody" in done.stderr
    done = source.run("export", "--since", "yesterday")
    assert done.returncode == 2
    assert b"Must be an RFC 3339 time" in done.stderr


@both_ways
def test_exports_of_older_and_later_versions_are_imported(source: Place, target: Place) -> None:
    alice = add_user(source.app, "alice")
    task = alice.start(claim=True)
    question = {"message": "Deploy?"}
    expect(alice.post(f"/task/{task['id']}/question", json=question), 201)
    asking, lines = alice.task(task), source.export()

    def change(line: Json) -> None:
        line.pop("hooks", None)
        line.pop("startedBy", None)
        line.pop("answeredBy", None)
        line["colour"] = "red"

    for kind in ("user", "task", "question"):
        lines = with_line(lines, change, kind)
    target.add(lines)
    assert target.person("alice").task(task) == asking | {"startedBy": None}


@both_ways
def test_expected_runs_count_from_the_import(source: Place, target: Place) -> None:
    alice = add_user(source.app, "alice")
    cron = {"cron": "0 2 * * *", "timeZone": "Europe/Berlin", "grace": 60}
    alice.register("nightly", expect=cron)
    alice.register("hourly", expect={"every": 3_600})
    exported, before = source.export(), clock.now()
    target.add(exported)
    assert target.export() == exported
    nightly = expect(target.person("alice").get("/agent/nightly?expand=health"), 200)
    assert nightly["expect"] == cron
    assert nightly["health"]["dueAt"] > before
    hourly = expect(target.person("alice").get("/agent/hourly?expand=health"), 200)
    assert hourly["health"]["dueAt"] >= clock.moved(before, 3_600)


@both_ways
def test_export_of_an_empty_database_is_imported(source: Place, target: Place) -> None:
    assert target.add(source.export())["tasks"] == 0


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
    assert documented == {name: exported.get(name, {"taskId"}) - {"type"} for name in documented}
    assert list(documented) == list(export_lines.LINES)


# --- refused -----------------------------------------------------------------------------

REUSED = "conflicts with the database: "
WRONG: dict[str, tuple[str, Callable[[Json], Any], str]] = {
    "missing field": ("task", lambda line: line.pop("status"), "status: Missing data"),
    "name of another type": ("user", lambda line: line.update(name={}), "name: Not a valid string"),
    "id of another type": ("task", lambda line: line.update(id=[1]), "id: Not a valid string"),
    "wrong status": ("task", lambda line: line.update(status="done"), "status: Must be one of"),
    "no such agent": ("task", lambda line: line.update(agentId="x"), "agentId: No earlier line"),
    "no such user": ("agent", lambda line: line.update(userId=OTHER_ID), "userId: No earlier line"),
    "ended twice": ("task", lambda line: line.update(status="complete"), "finishedAt: Must match"),
    "failed, but running": ("task", lambda line: line.update(error=FAILED), "error: Must match"),
    "other format": ("export", lambda line: line.update(format=2), "format: must be 1, not 2"),
    "other type": ("agent", lambda line: line.update(type="x"), "its type must be one of"),
    "wrong time": ("log", lambda line: line.update(at="then"), "at: Must be an RFC 3339 time"),
    "no times": ("log", lambda line: line.update(at=[]), "at: Must have one time for each"),
    "a gap": ("log", lambda line: line.update(first=2), "first: The next line of the log is 1."),
    "a line too many": ("log", lambda line: line["lines"].append("x"), "at: Must have one time"),
    "too many lines": ("task", lambda line: line.update(logCount=9_999), "logCount: The last line"),
    "too many bytes": ("task", lambda line: line.update(logBytes=10**7), "logBytes: The log has"),
    "a full log": ("task", lambda line: line.update(logBytes=10**15), "logBytes: Must be"),
    "wrong count": ("end", lambda line: line.update(tasks=1), "tasks: the export contains"),
    "wrong cron": (
        "agent",
        lambda line: line.update(expect={"cron": "x", "timeZone": "UTC", "grace": 0}),
        "expect: cron: Not a cron expression",
    ),
    "late for good": (
        "agent", lambda line: line.update(expect={"every": 1e300, "grace": -1e18}), "expect: every:"
    ),
    "line feed": ("agent", lambda line: line.update(id="summarizer\n"), "id: String does not"),
    "wrong input schema": (
        "agent", lambda line: line.update(inputSchema={"type": "x"}), "inputSchema: "
    ),
    "wrong hint": (
        "agent", lambda line: line.update(annotations={"readOnlyHint": 1}), "annotations: readOnly"
    ),
    "wrong question": ("question", lambda line: line.update(schema={}), "schema: Must have the"),
    "unanswered": ("question", lambda line: line.update(answer=None), "answer: Must match"),
    "wrong answer": ("question", lambda line: line.update(answer={"a": 1}), "content.a: Unknown"),
    "question of another task": (
        "question",
        lambda line: line.update(taskId=OTHER_ID),
        "taskId: Must be the ID of the preceding task.",
    ),
    "log of another task": (
        "log",
        lambda line: line.update(taskId=OTHER_ID),
        "taskId: Must be the ID of the preceding task.",
    ),
    "wrong callback": (
        "task", lambda line: line.update(callback="http://["), "callback: The URL's host or port"
    ),
    "wrong attempt": (
        "delivery", lambda line: line["attempts"][0].update(statusCode=1e9), "attempts: 0: statusC"
    ),
    "wrong hook": (
        "user", lambda line: line["hooks"][0].update(target="file:///x"), "target: The URL does not"
    ),
    "hook without events": (
        "user", lambda line: line["hooks"][0].update(events=[]), "hooks: 0: events: Must have at"
    ),
}  # fmt: skip


@pytest.mark.parametrize("target", ["sqlite"], indirect=True)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_wrong_line_is_named_and_nothing_is_imported(
    source: Place, target: Place, receiver: Receiver, subtests: pytest.Subtests
) -> None:
    fill(source.app, receiver, ("alice",))
    exported = source.export()
    for name, (kind, change, reason) in WRONG.items():
        with subtests.test(name):
            line = target.refuse(with_line(exported, change, kind))
            number = next(n for n, row in enumerate(parsed(exported), 1) if row["type"] == kind)
            assert f"Nothing was imported: line {number}: {reason}" in line


@both_ways
def test_file_that_is_cut_off_is_refused(source: Place, target: Place, receiver: Receiver) -> None:
    fill(source.app, receiver, ("alice",))
    exported = source.export()
    lines = exported.splitlines(keepends=True)
    cut = {
        "the end": lines[:-1], "half a line": [*lines[:-1], lines[-1][:9]], "all": [],
        "text": [b"task\n"], "more": [*lines, lines[2]],
    }  # fmt: skip
    for what, rest in cut.items():
        assert "Nothing was imported: line " in target.refuse(b"".join(rest)), what
    # What the database itself refuses: a user's ID that has another name.
    other = with_line(exported, lambda line: line.update(name="other"), "user")
    target.add(exported)
    assert REUSED in target.refuse(other)


def test_export_ends_quietly_with_its_reader_and_import_needs_its_input(source: Place) -> None:
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
    closed = ForkedPopen(
        [*COMMAND, "import"], env=settings, closed=[0], stderr=subprocess.PIPE, text=True
    )
    _, errors = closed.communicate(timeout=60)
    assert (closed.returncode, len(without_database(errors).splitlines())) == (1, 1)
    assert "the export is incomplete" in errors


@both_ways
def test_running_service_is_exported_and_imported_into(
    database_url: str, tmp_path: Path, target: Place
) -> None:
    with Service(tmp_path / "data", DATABASE_URL=database_url) as service:
        alice = service.add_user("alice")
        task = alice.start(claim=True)
        exported = service.run("export").stdout.encode()
        target.add(exported)
        alice.request("DELETE", f"/task/{task['id']}").raise_for_status()
        other = Place(tmp_path, database_url, target.app)
        assert other.add(exported)["tasks"] == 1
        assert alice.request("GET", f"/task/{task['id']}").json() == task


@pytest.mark.parametrize("target", ["sqlite"], indirect=True)
def test_task_whose_log_goes_while_it_is_exported_is_exported_as_it_is_then(
    source: Place, target: Place
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
    assert [line["type"] for line in parsed(exported)].count("void") == 2
    assert target.add(exported)["tasks"] == 2
    moved = target.person("alice")
    assert [task["name"] for task in expect(moved.get("/task"), 200)] == ["loses its log", "stays"]
    assert moved.task(tasks[2])["logs"] == []
    assert target.export() == source.export()


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


@both_ways
def test_many_tasks_and_a_full_log_are_exported_and_imported_in_bounded_memory(
    source: Place, target: Place, tmp_path: Path
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
    began = time.monotonic()
    with open(exported, "rb") as file:
        import_cost = memory_of(target.folder, "import", database=target.url, stdin=file)
    print(f"import {import_cost} MiB, {time.monotonic() - began:.0f} s")
    assert target.export() == exported.read_bytes()
    assert cost < 100
    assert import_cost < 150


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
