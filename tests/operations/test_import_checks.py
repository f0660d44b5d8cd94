"""`import` of altered exports: each is refused as the API would refuse it, or harms nothing."""

import copy
import functools
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import closing
from io import BytesIO
from operator import getitem
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import delete

from taskservice.background.maintenance import Maintenance
from taskservice.database.transactions import transaction
from taskservice.database.types import db
from taskservice.errors import Problem
from taskservice.services import exports, imports
from taskservice.services import users as user_service
from taskservice.services.imports import InvalidExport
from taskservice.terms import MAX_HOOKS
from tests.support.api_client import ApiClient, add_user, expect
from tests.support.deliveries import the_delivery
from tests.support.internals import end_for_silence, rows, set_columns
from tests.support.maintenance import DAY, end
from tests.support.marks import one_database
from tests.support.mcp import McpClient
from tests.support.plain_browser import Browser

Json = dict[str, Any]

# From one alteration to the next; 1 tries all of them.
STEP = int(os.environ.get("IMPORT_STEP", "193"))
CLOSED = "http://127.0.0.1:9/callback"
SCHEMA = {
    "type": "object",
    "properties": {
        "deploy": {"type": "boolean", "title": "Deploy"},
        "where": {"type": "string", "enum": ["here", "there"], "enumNames": ["Here", "There"]},
        "which": {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}},
        "count": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["deploy"],
}
INPUT_SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0}}}
OTHER_ID = "0193a6f0-0000-7000-8000-000000000001"
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 7, 0.5, 1.5, 2**31, 2**53, 2**63 - 1, 2**63, 10**15, -(10**18),
    1e300, "", "x", "X", " ", "a\nb", "\r\n", "\0", "\x1b[31m", "\u202e", "<script>", "x" * 300,
    "x" * 70_000, "x\n", "summarizer\n", "-1", "é", "\U0001f600", "running", "complete", "error",
    "open", "answered", "pending", "delivered", "failed", "cancelled", "timeout", "active", "off",
    "ntfy", "mail", "mcp", "http://[", "http://", "https://a b/", "ftp://x/", "http://u:p@x/",
    "http://x/#y", "mailto:x", "http://[::1", "//", "\\", "now", "2026", "0000-00-00T00:00:00Z",
    "0001-01-01T00:00:00.000Z", "0001-01-01T00:00:00+23:59", "1969-12-31T23:59:59.999Z",
    "2026-11-24T13:36:00", "9999-12-31T23:59:59.999Z", "9999-12-31T23:59:59-23:59", OTHER_ID,
    OTHER_ID.upper(), "0" * 32, "nil", "Europe/Berlin", "* * * * *", "0 0 30 2 *", "61 * * * *",
    "* * * * * *", [], [None], [[]], [{}], [1], ["x"], ["x\ny"], ["x"] * 5,
    ["2026-11-24T13:36:00Z"], ["task.ended"], {}, {"": 0}, {"x": None}, {"x": 2**60}, {"w": -1},
    {"type": "object"}, {"type": "x"}, {"type": "object", "properties": 1},
    {"type": "object", "properties": {"a": {}}},
    {"type": "object", "properties": {"a": {"type": "string", "enum": 1}}},
    {"type": "object", "properties": {"a": {"type": "array", "items": {"anyOf": [1]}}}},
    {"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}},
    {"every": 60}, {"every": 1e300, "grace": 0}, {"every": 60, "grace": -1e18},
    {"cron": "* * * * *"}, {"type": "failed", "message": "x"}, {"type": "timeout", "message": None},
    {"type": "x", "message": "x"}, {"key": "x", "digest": "x"}, {"x" * 100: "y"},
    {"key": "x" * 256, "digest": "0" * 64}, {"title": 1}, {"readOnlyHint": "x"},
]  # fmt: skip


@pytest.fixture
def exported(app: Flask) -> list[Json]:
    """The lines of a small export with something in each field; the database is empty again."""
    alice = add_user(app, "alice")
    alice.register(
        "summarizer", description="Sums up", inputSchema=INPUT_SCHEMA,
        annotations={"title": "Sum", "readOnlyHint": True}, expect={"every": 3_600, "grace": 60},
    )  # fmt: skip
    alice.register("nightly", expect={"cron": "0 2 * * *", "timeZone": "Europe/Berlin"}, tool=False)
    start = {"agentId": "summarizer", "claim": True, "callback": CLOSED, "timeout": 60}
    start |= {"labels": {"env": "prod"}, "input": {"n": 1}}
    keyed = alice.post("/task", json=start, headers={"Idempotency-Key": "once"})
    asking = expect(keyed, 201)
    alice.report(asking, progress=0.5, note="half")
    now = asking["createdAt"]
    alice.append(asking, "one", "two", at=[now, "2100-01-01T00:00:00Z"])
    alice.append(asking, "three", writer="w")
    path = f"/task/{asking['id']}/question"
    questions = [
        expect(alice.post(path, json={"message": text, "schema": SCHEMA}), 201)
        for text in ("Now?", "Then?")
    ]
    again = {"message": "Which?"}
    expect(alice.post(path, json=again, headers={"Idempotency-Key": "ask"}), 201)
    answer = {"action": "accept", "content": {"deploy": True, "where": "here", "which": ["a"]}}
    expect(alice.post(f"{path}/{questions[0]['id']}/answer", json=answer), 200)
    waiting = alice.start("nightly", parentId=asking["id"], callback=CLOSED)
    failed = alice.start("summarizer", claim=True, callback=CLOSED)
    alice.append(failed, "lost")
    alice.report(failed, status="error", error={"message": "broken"}, output={"cost": 1.5})
    assert the_delivery(alice, failed)["attempts"]
    expect(alice.post(f"/task/{failed['id']}/rerun", json={"input": {}}), 201)
    complete = alice.start("summarizer", claim=True)
    end(app, alice, complete, 1 / DAY)
    silent = alice.start("nightly", claim=True)
    end_for_silence(app, silent)
    expect(alice.post(f"/task/{waiting['id']}/rerun", json={}), 201)
    hooks: list[Json] = [
        {"target": CLOSED, "agentId": "nightly", "label": "env:prod", "events": ["task.ended"]},
        {"target": "https://ntfy.sh/topic", "token": "tk_secret"},
    ]
    for hook in hooks:
        expect(alice.post("/hook", json=hook), 201)
    with app.app_context():
        lines = [json.loads(line) for line in exports.lines()]
    empty(app)
    return lines


def empty(app: Flask) -> None:
    with app.app_context(), transaction() as connection:
        for table in reversed(db.metadata.sorted_tables):
            connection.execute(delete(table))


def to_bytes(lines: list[Json]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def load(app: Flask, data: bytes) -> str | None:
    """Import an export; returns why it is refused, after a look that nothing has changed."""
    before = rows(app)
    try:
        with app.app_context():
            imports.import_from(BytesIO(data))
    except InvalidExport as error:
        reason = str(error)
        assert rows(app) == before
        assert reason.startswith("line ")
        return reason
    return None


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values inside of a line."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in inside:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


def alterations(lines: list[Json]) -> Iterator[tuple[str, list[Json]]]:
    """The export with one value of a line replaced by one of VALUES, or removed."""
    seen: set[Any] = set()
    for number, line in enumerate(lines):
        form = (line["type"], line.get("status"), line.get("state"), line.get("name") == "nightly")
        paths = [path for path in places(line) if (form, path) not in seen and path != ("type",)]
        seen.update((form, path) for path in paths)
        for path, value in itertools.product(paths, (*VALUES, KeyError)):
            shown = "missing" if value is KeyError else json.dumps(value)[:60]
            name = f"{line['type']} {number + 1} {'.'.join(map(str, path))}: {shown}"
            yield name, [*lines[:number], altered(line, path, value), *lines[number + 1 :]]


def altered(line: Json, path: tuple[Any, ...], value: Any) -> Json:
    changed = copy.deepcopy(line)
    place: Any = functools.reduce(getitem, path[:-1], changed)
    if value is KeyError:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return changed


class User:
    """One who calls everything, and finds no failure of the service."""

    def __init__(self, app: Flask, name: str) -> None:
        with app.app_context():
            key = user_service.add_key(name, "new", None, None).text
        self._person = ApiClient(app, name, key)
        self._client = app.test_client()
        self._browser = Browser(app)
        self._browser.sign_in(key)

    def call(self, path: str, method: str = "GET", json: Any = None) -> Any:
        options = {"headers": {"apikey": self._person.key}, "json": json}
        response = self._client.open(f"/api/v1{path}", method=method, **options)
        assert response.status_code < 500, (method, path, response.text)
        return response.json if response.is_json else None

    def look(self) -> None:
        for path in ("/attention", "/search?text=o", "/task?sort=finishedAt&limit=2"):
            self.call(path)
        pages = ["/", "/tasks", "/agents", "/notifications", "/keys", "/search?text=o"]
        for task in self.call("/task"):
            of_task = f"/task/{task['id']}"
            parts = ("/question", "/deliveries", "/logs?times=true", "/link", "/new-lines")
            for part in ("?expand=agent,user", *parts):
                self.call(of_task + part)
            parts = ("", "/log.txt", "/new-lines", "/rerun", "/lines?after=0")
            page = f"/tasks/{task['id']}"
            pages += [page + part for part in parts]
            pages += [f"{page}/questions/{question['id']}" for question in task["questions"]]
        for agent in self.call("/agent?expand=health"):
            self.call(f"/agent/{agent['id']}/numbers")
            pages += [f"/agents/{agent['id']}{part}" for part in ("", "/edit", "/run")]
        pages += [f"/notifications/{hook['id']}" for hook in self.call("/hook")]
        for page in pages:
            with closing(self._browser.get(page)) as response:
                assert response.status_code < 500, (page, response.text)
        assert McpClient(self._person).legacy("tools/list").result["tools"]

    def act(self) -> None:
        tasks = self.call("/task")
        for hook in self.call("/hook"):
            self.call(f"/hook/{hook['id']}", "PATCH", {"state": "active"})
        for agent in self.call("/agent"):
            self.call("/task", "POST", {"agentId": agent["id"], "input": {"n": 1}})
            self.call(f"/agent/{agent['id']}/claim", "POST")
            self.call(f"/agent/{agent['id']}", "PUT", {"description": "changed"})
        for task in tasks:
            of_task = f"/task/{task['id']}"
            self.call(f"{of_task}/logs", "POST", {"logs": ["more"]})
            self.call(f"{of_task}/logs", "POST", {"logs": ["more"], "writer": "w"})
            for question in task["questions"]:
                answer = {"action": "accept", "content": {"answer": "yes"}}
                self.call(f"{of_task}/question/{question['id']}/answer", "POST", answer)
            self.call(f"{of_task}/question", "POST", {"message": "Really?"})
            self.call(f"{of_task}/rerun", "POST", {})
            self.call(of_task, "PATCH", {"status": "complete", "labels": {"a": "b"}})
            assert self.call(of_task)["status"] != "running"
            self.call(f"{of_task}/deliveries", "POST")


def use(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    """All that the users of a database can read and do, which must not fail."""
    caplog.clear()
    with app.app_context():
        exported = b"".join(exports.lines())
        users = [User(app, user.name) for user in user_service.list_all()]
    for user in users:
        user.look()
        user.act()
    Maintenance(app, serves=True).do_round()
    for user in users:
        user.look()
    assert not [record for record in caplog.records if record.levelname == "ERROR"], caplog.text
    empty(app)
    assert load(app, exported) is None


@pytest.mark.timeout(900)
def test_each_altered_field_is_refused_or_harms_nothing(
    app: Flask, exported: list[Json], caplog: pytest.LogCaptureFixture, subtests: pytest.Subtests
) -> None:
    refused = accepted = 0
    for name, lines in itertools.islice(alterations(exported), 0, None, STEP):
        with subtests.test(name):
            if load(app, to_bytes(lines)) is None:
                accepted += 1
                use(app, caplog)
            else:
                refused += 1
        empty(app)
    print(f"{refused} refused, {accepted} accepted")
    assert refused > accepted > 0


# What is not JSON as the API reads it, and the reason.
UNREADABLE = {
    "text": (b"task", "Expecting value"),
    "no object": (b'["task"]', "its type must be one of"),
    "no type": (b"{}", "its type must be one of"),
    "a type of another kind": (b'{"type": ["task"]}', "its type must be one of"),
    "nesting": (b'{"type": ' * 100_000, "nested deeper than 64 levels"),
    "arrays": (b'{"type": "user", "id": ' + b"[" * 100_000, "nested deeper than 64 levels"),
    "a long line": (b'{"type": "' + b"x" * imports.MAX_LINE_BYTES + b'"}', "longer than"),
    "not UTF-8": (b'{"type": "\xff"}', "is not UTF-8"),
    "a lone surrogate": (b'{"type": "user", "id": "\\ud800"}', "a lone surrogate"),
    "a key twice": (b'{"type": "end", "type": "end"}', "the same key twice"),
    "a large number": (b'{"type": "end", "tasks": 1e999}', "too large"),
    "no number": (b'{"type": "end", "tasks": NaN}', "NaN is not JSON"),
}


@one_database
def test_unreadable_line_is_named(app: Flask, subtests: pytest.Subtests) -> None:
    first = b'{"type": "export", "format": 1}\n'
    for name, (line, reason) in UNREADABLE.items():
        with subtests.test(name):
            refused = load(app, first + line + b"\n")
            assert refused
            assert refused.startswith("line 2: ")
            assert reason in refused


def of_kind(lines: list[Json], kind: str) -> Json:
    return next(line for line in lines if line["type"] == kind)


def test_lines_of_one_task_change_no_other_task(app: Flask, exported: list[Json]) -> None:
    bob = add_user(app, "bob")
    task = bob.start(claim=True)
    for kind in ("question", "delivery", "log"):
        lines = copy.deepcopy(exported)
        of_kind(lines, kind)["taskId"] = task["id"]
        assert "taskId: Must be the ID of the preceding task." in str(load(app, to_bytes(lines)))
    first = next(number for number, line in enumerate(exported) if line["type"] == "task")
    void = {"type": "void", "taskId": task["id"]}
    lines = [*exported[: first + 1], void, *exported[first + 1 :]]
    assert (
        load(app, to_bytes(lines))
        == f"line {first + 2}: taskId: Must be the ID of the preceding task."
    )
    assert bob.task(task) == task


def test_ids_of_another_user_are_refused(app: Flask, exported: list[Json]) -> None:
    bob = add_user(app, "bob")
    task = bob.start()
    hook = expect(bob.post("/hook", json={"target": CLOSED}), 201)
    text = to_bytes(exported).decode()
    of_task = text.replace(of_kind(exported, "task")["id"], task["id"])
    assert ": id: Belongs to another user." in str(load(app, of_task.encode()))
    of_hook = text.replace(exported[1]["hooks"][0]["id"], hook["id"])
    assert load(app, of_hook.encode()) == "line 2: id: Belongs to another user."


def test_parent_of_another_user_is_left_out(app: Flask, exported: list[Json]) -> None:
    task = add_user(app, "bob").start()
    child = next(line for line in exported if line["type"] == "task" and line["parentId"])
    child["parentId"] = task["id"]
    assert load(app, to_bytes(exported)) is None
    with app.app_context():
        key = user_service.add_key("alice", "new", None, None).text
    assert ApiClient(app, "alice", key).task(child)["parentId"] is None


def test_tasks_that_are_parents_of_each_other_harm_nothing(
    app: Flask, exported: list[Json], caplog: pytest.LogCaptureFixture
) -> None:
    first, second, *_ = (line for line in exported if line["type"] == "task")
    first["parentId"], second["parentId"] = second["id"], first["id"]
    first["rerunOf"] = first["id"]
    assert load(app, to_bytes(exported)) is None
    use(app, caplog)


def test_imported_hooks_are_off_until_their_user_turns_them_on(
    app: Flask, exported: list[Json]
) -> None:
    text = to_bytes(exported).decode()
    assert "tk_secret" not in text
    assert load(app, text.encode()) is None
    with app.app_context():
        alice = ApiClient(app, "alice", user_service.add_key("alice", "new", None, None).text)
    hooks = expect(alice.get("/hook"), 200)
    # Whether a hook fails is not exported.
    off = {"state": "off", "reason": imports.IMPORTED, "failingSince": None}
    assert hooks == [{**hook, **off} for hook in exported[1]["hooks"]]
    assert [item["text"] for item in expect(alice.get("/attention"), 200)][-2:] == [
        f"The hook {hook['name']} is off: {imports.IMPORTED}" for hook in hooks
    ]
    path = f"/hook/{hooks[0]['id']}"
    assert expect(alice.patch(path, json={"state": "active"}), 200)["reason"] is None
    # Again, it adds nothing and turns nothing off.
    assert load(app, text.encode()) is None
    assert expect(alice.get(path), 200)["state"] == "active"
    assert len(expect(alice.get("/hook"), 200)) == len(hooks)


def test_import_leaves_a_user_no_more_hooks_than_the_api(app: Flask, exported: list[Json]) -> None:
    alice = add_user(app, "alice")
    for _ in range(MAX_HOOKS - 1):
        expect(alice.post("/hook", json={"target": CLOSED}), 201)
    refused = load(app, to_bytes(exported))
    assert refused == f"line 2: hooks: The user has {MAX_HOOKS} hooks already."
    [hook, _] = exported[1]["hooks"]
    exported[1]["hooks"] = [hook]
    assert load(app, to_bytes(exported)) is None


def test_import_takes_no_question_that_the_api_refuses(app: Flask, exported: list[Json]) -> None:
    number = next(n for n, line in enumerate(exported) if line["type"] == "question")
    fields = {f"f{number}": {"type": "string"} for number in range(51)}
    schema = {"type": "object", "properties": fields}
    wide = altered(exported[number], ("schema",), schema)
    reason = load(app, to_bytes([*exported[:number], wide, *exported[number + 1 :]]))
    assert reason == f"line {number + 1}: schema: More than 50 properties."
    assert load(app, to_bytes(exported)) is None


def test_log_that_lacks_lines_ends_an_export(app: Flask) -> None:
    alice = add_user(app, "alice")
    task = alice.start(claim=True)
    alice.append(task, "one")
    # As imports once allowed.
    set_columns(app, task, log_count=2)
    with app.app_context(), pytest.raises(Problem, match=f"log of task {task['id']}"):
        b"".join(exports.lines())
