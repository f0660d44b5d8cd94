"""The whole API, called in any order, behaves like a plain Python model of it."""

import json
import os
from collections import Counter
from itertools import count
from typing import Any
from unittest.mock import ANY
from urllib.parse import urlencode
from uuid import uuid4

import pytest
from flask import Flask
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from standardwebhooks import Webhook

from taskservice.services.users import MAX_SIGNING
from tests.support.api_client import ApiClient, add_user, expect, of_task, problem
from tests.support.internals import end_for_silence
from tests.support.model import (
    NOW,
    Json,
    Key,
    Task,
    User,
    fresh_lines,
    lines_of,
    listed,
    reported,
    same,
    stored,
)
from tests.support.paging import in_pages
from tests.support.receiver import Receiver

EXAMPLES = int(os.environ.get("STATES_EXAMPLES", "100"))
STEPS = 50
LEAST_STEPS = 20 * EXAMPLES

numbers = count(1)

AGENTS = ("summarizer", "translator")

# Few of each, so that they meet.
agent_ids = st.sampled_from([*AGENTS, *AGENTS, "0.a_b-c"])
input_schemas = st.sampled_from(
    [None, None, {"type": "object"}, {"type": "object", "maxProperties": 0}]
)
names = st.sampled_from(["Nightly", "nightly run", "Straße", "100%", "a\0b", "x"])
writers = st.sampled_from(["", "", "w"])
idempotency_keys = st.sampled_from([None, None, "k", "K"])
texts = st.text("ab\r\n\0ü\u2028", max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=3,
)  # fmt: skip
objects = st.dictionaries(st.sampled_from(["a", "b"]), values, max_size=2)
# Which of the two users.
either = st.sampled_from([0, 1])
# The caller of a request; most often one that is allowed to make it.
callers = st.sampled_from(
    ["user", "user", "user", "its agent", "its agent", "other agent", "stranger"]
)
more_fields = st.fixed_dictionaries(
    {},
    optional={
        "name": names,
        "input": objects,
        "claim": st.booleans(),
        "labels": st.dictionaries(st.sampled_from("ab"), st.sampled_from("xy"), max_size=2),
    },
)
# How far the first line is from the one that comes next; None: it has no number at all.
distances = st.sampled_from([None, None, 0, 0, 0, -1, -2, -5, 1])
appends = st.tuples(st.lists(texts, max_size=3), writers, distances, st.booleans())
statuses = st.sampled_from(["complete", "error", "running"])
messages = st.fixed_dictionaries({"message": st.sampled_from("xy")})
reports = st.one_of(
    st.fixed_dictionaries({"status": statuses}, optional={"output": objects, "name": names}),
    st.fixed_dictionaries({"status": st.just("error"), "error": st.none() | messages}),
    st.fixed_dictionaries({"output": objects}, optional={"name": names}),
    # Any combination, valid or not.
    st.fixed_dictionaries({}, optional={"status": statuses, "error": messages, "name": names}),
    st.fixed_dictionaries(
        {},
        optional={
            "status": statuses,
            "progress": st.sampled_from([None, 0, 0.5, 1]),
            "seconds": st.sampled_from([None, 0, 12.5]),
            "note": st.sampled_from([None, "", "ü"]),
            "labels": st.dictionaries(st.sampled_from("ab"), st.sampled_from([None, "x", "y"])),
        },
    ),
)
filters = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from(["running", "complete", "error"]),
        "agentId": agent_ids,
        "q": st.sampled_from(["NIGHT", "strasse", "%", "\0", "zzz"]),
        "sort": st.sampled_from(["-createdAt", "createdAt", "finishedAt"]),
    },
)
# Each bound, and the member of a task that it is compared with.
BOUNDS = {"createdAfter": "createdAt", "createdBefore": "createdAt", "finishedAfter": "finishedAt"}
bounds = st.sampled_from(["finishedAfter", None, *BOUNDS])


shapes = st.lists(
    st.sampled_from(["id", "name", "logs", "input", "output", "status", "error"]),
    max_size=3,
    unique=True,
)
# After which line to read on; logs are short here.
places = st.sampled_from([0, 0, 0, 1, 2, 9])
expansions = st.lists(st.sampled_from(["agent", "user"]), max_size=2, unique=True)


def kept(value: Any) -> Any:
    """A JSON value as it is stored."""
    return json.loads(json.dumps(value, ensure_ascii=False).replace("\\u0000", "\ufffd"))


class Api(RuleBasedStateMachine):
    """Users with keys call the service; the model says what each call has to answer."""

    steps_in_all = 0

    tasks: Bundle[Task] = Bundle("tasks")

    def __init__(self, app: Flask, receiver: Receiver) -> None:
        super().__init__()
        self.app, self.receiver = app, receiver
        self.users: list[User] = []
        self.posted = len(receiver.requests)
        self.secrets: set[str] = set()
        self.rotations: Counter[int] = Counter()

    # --- users, and who calls

    @initialize(target=tasks)
    def begin(self) -> Any:
        """Two users, each with two agents and a task of each."""
        self.users = [self.new_user(), self.new_user()]
        bodies = [{"agentId": agent_id} for agent_id in AGENTS]
        pairs = [(user, body) for user in self.users for body in bodies]
        return multiple(*(self.started(self.caller(user), body, None) for user, body in pairs))

    def new_user(self) -> User:
        person = add_user(self.app, f"user {next(numbers)} {uuid4()}")
        me = expect(person.get("/user"), 200)
        user = User(me["id"], me["name"])
        user.keys.append(Key(me["key"]["id"], user, person))
        for agent_id in AGENTS:
            user.agents[agent_id] = person.register(agent_id)
            self.new_key(user, agent_id)
        return user

    def new_key(self, user: User, agent_id: str | None) -> None:
        caller = self.caller(user)
        made = expect(caller.person.post("/key", json={"name": "k", "agentId": agent_id}), 201)
        person = ApiClient(self.app, user.name, made["key"])
        user.keys.append(Key(made["id"], user, person, agent_id))

    def caller(self, user: User, who: str = "user", agent_id: str = "") -> Key:
        """A key that is valid; of an agent only while it has one."""
        if who == "stranger":
            user = next(other for other in self.users if other is not user)
        other_agent = next(other for other in AGENTS if other != agent_id)
        key_agent = {"its agent": agent_id, "other agent": other_agent}.get(who)
        key = user.caller(key_agent) or user.caller()
        assert key is not None, "the last user key is never revoked"
        return key

    # --- keys

    @rule(user=either, agent_id=st.none() | agent_ids, who=callers)
    def create_key(self, user: int, agent_id: str | None, who: str) -> None:
        key = self.caller(self.users[user], who, AGENTS[0])
        if key.agent_id is None and (agent_id is None or agent_id in key.user.agents):
            self.new_key(key.user, agent_id)
        else:
            fields = {"name": "k", "agentId": agent_id}
            problem(key.person.post("/key", json=fields), 422 if key.agent_id is None else 403)

    @rule(user=either, number=st.integers(0, 5), who=callers)
    def revoke_key(self, user: int, number: int, who: str) -> None:
        owner = self.users[user]
        key, other = self.caller(owner, who, AGENTS[0]), owner.keys[number % len(owner.keys)]
        response = key.person.delete(f"/key/{other.id}")
        if key.agent_id is not None:
            problem(response, 403)
        elif other not in key.user.keys:
            problem(response, 404)
        elif other.is_the_last():
            problem(response, 409)
        else:
            assert expect(response, 200)["revokedAt"]
            other.valid = False
        keys = expect(self.caller(owner).person.get("/key"), 200)
        is_valid = {one["id"]: one["revokedAt"] is None for one in keys}
        assert is_valid == {one.id: one.valid for one in owner.keys}

    # --- agents

    @rule(
        user=either,
        who=callers,
        agent_id=agent_ids,
        name=names,
        description=st.none() | names,
        schema=input_schemas,
    )
    def put_agent(
        self,
        user: int,
        who: str,
        agent_id: str,
        name: str,
        description: str | None,
        schema: Json | None,
    ) -> None:
        key = self.caller(self.users[user], who, agent_id)
        fields = {"name": name, "description": description, "inputSchema": schema}
        response = key.person.put(f"/agent/{agent_id}", json=fields)
        if key.agent_id not in (None, agent_id):
            problem(response, 404)
            return
        known = key.user.agents.get(agent_id)
        agent = expect(response, 200 if known else 201)
        before = known or {
            "id": agent_id, "description": "", "userId": key.user.id,
            "createdAt": agent["createdAt"], "inputSchema": {"type": "object"}, "annotations": ANY,
            "tool": None, "expect": None, "mutedUntil": None, "mutedBy": None,
        }  # fmt: skip
        changes: Json = {
            field: stored(text)
            for field, text in (("name", name), ("description", description))
            if text is not None
        }
        if schema is not None:
            changes["inputSchema"] = schema
        assert agent == before | changes
        key.user.agents[agent_id] = agent
        visible = [key.user.agents[one] for one in sorted(key.user.agents) if key.sees_agent(one)]
        assert expect(key.person.get("/agent"), 200) == visible

    @rule(user=either, who=callers, agent_id=st.sampled_from(["0.a_b-c", "0.a_b-c", *AGENTS]))
    def delete_agent(self, user: int, who: str, agent_id: str) -> None:
        key = self.caller(self.users[user], who, agent_id)
        response = key.person.delete(f"/agent/{agent_id}")
        if key.agent_id is not None:
            problem(response, 403)
        elif agent_id not in key.user.agents:
            problem(response, 404)
        elif any(task.json["agentId"] == agent_id for task in key.user.tasks):
            problem(response, 409)
        else:
            assert expect(response, 200) == key.user.agents.pop(agent_id)
            for gone in [one for one in key.user.keys if one.agent_id == agent_id]:
                key.user.keys.remove(gone)
                problem(gone.person.get("/user"), 401)

    # --- start and claim

    @rule(
        target=tasks,
        user=either,
        who=callers,
        agent_id=agent_ids,
        fields=more_fields,
        called_back=st.booleans(),
        idempotency_key=idempotency_keys,
    )
    def start(
        self,
        user: int,
        who: str,
        agent_id: str,
        fields: Json,
        called_back: bool,
        idempotency_key: str | None,
    ) -> Any:
        key = self.caller(self.users[user], who, agent_id)
        body = {"agentId": agent_id, **fields}
        if called_back:
            body["callback"] = self.receiver.url
        return self.started(key, body, idempotency_key)

    @rule(task=tasks, who=callers)
    def start_again(self, task: Task, who: str) -> None:
        """The same as before; without a key for it, it starts another task."""
        if task.idempotency_key is not None:
            key = self.caller(task.user, who, task.json["agentId"])
            if key.user is task.user:
                assert task.body is not None
                self.started(key, task.body, task.idempotency_key)

    def started(self, key: Key, body: Json, idempotency_key: str | None) -> Any:
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        response = key.person.post("/task", json=body, headers=headers)
        known = key.user.task_of(idempotency_key)
        another_body = known is not None and not same(body, known.body)
        if not key.sees_agent(body["agentId"]) or another_body:
            problem(response, 422)
            return multiple()
        claimed = body.get("claim") or key.agent_id is not None
        if not (known or claimed or self.fits(key, body["agentId"], body.get("input"))):
            assert list(problem(response, 422)["errors"]) == ["input"]
            return multiple()
        seen = expect(response, 201)
        assert ("Idempotency-Replayed" in response.headers) == (known is not None)
        if known is not None:
            assert seen == known.json
            return multiple()
        assert seen == self.new_task(key, body, seen)
        task = Task(key.user, seen, idempotency_key, body)
        key.user.tasks.append(task)
        return task

    def fits(self, key: Key, agent_id: str, input_: Json | None) -> bool:
        """Whether an input fits the schema of its agent, which is one of `input_schemas`."""
        schema: Json = key.user.agents[agent_id]["inputSchema"]
        return "maxProperties" not in schema or not input_

    def new_task(self, key: Key, body: Json, seen: Json) -> Json:
        moment = seen["createdAt"]
        claimed = body.get("claim") or key.agent_id is not None
        return {
            "id": seen["id"],
            "name": stored(body.get("name") or key.user.agents[body["agentId"]]["name"]),
            "agentId": body["agentId"],
            "userId": key.user.id,
            "createdAt": moment,
            "updatedAt": moment,
            "claimedAt": moment if claimed else None,
            "finishedAt": None,
            "input": kept(body.get("input", {})),
            "logs": [],
            "firstLog": 1,
            "logCount": 0,
            "output": {},
            "status": "running",
            "error": None,
            "startedBy": "first" if key is key.user.keys[0] else "k",
            "endedBy": None,
            "hangingSince": None,
            "progress": None,
            "seconds": None,
            "note": None,
            "labels": body.get("labels", {}),
            "parentId": None,
            "rerunOf": None,
            "questions": [],
            "callback": body.get("callback"),
        }

    @rule(user=either, who=callers, agent_id=agent_ids, times=st.integers(1, 3))
    def claim(self, user: int, who: str, agent_id: str, times: int) -> None:
        for _ in range(times):
            self.claim_once(self.caller(self.users[user], who, agent_id), agent_id)

    def claim_once(self, key: Key, agent_id: str) -> None:
        response = key.person.post(f"/agent/{agent_id}/claim")
        if not key.sees_agent(agent_id):
            problem(response, 404)
            return
        task = key.user.oldest_waiting(agent_id)
        if task is None:
            assert response.status_code == 204
            return
        task.changed_to(expect(response, 200), task.json | {"claimedAt": NOW})

    # --- append, report, cancel, delete

    @rule(task=tasks, who=callers, parts=st.lists(appends, min_size=1, max_size=4))
    def append(self, task: Task, who: str, parts: list[tuple[Any, ...]]) -> None:
        for part in parts:
            self.append_once(self.caller(task.user, who, task.json["agentId"]), task, *part)
        self.read_log_from(self.caller(task.user), task, 0, 1)

    def append_once(
        self,
        key: Key,
        task: Task,
        sent: list[str],
        writer: str,
        distance: int | None,
        as_text: bool,
    ) -> None:
        known = task.writers.get(writer, 0)
        seq = None if distance is None else max(1, known + 1 + distance)
        path = f"/task/{task.json['id']}/logs"
        if as_text:
            text = "".join(sent)
            query = {"writer": writer} | ({"seq": seq} if seq else {})
            response = key.person.put(path, query_string=query, data=text.encode())
            lines = lines_of([text]) if text else []
        else:
            body = {"logs": sent, "seq": seq, "writer": writer}
            response = key.person.post(path, json=body)
            lines = lines_of(sent)
        fresh = fresh_lines(task, lines, writer, seq)
        if not key.sees(task):
            problem(response, 404)
        elif not task.is_open:
            self.is_finished(response, task)
        elif fresh is None:
            assert problem(response, 409)["expected"] == known + 1
        else:
            total = task.json["logCount"] + len(fresh)
            assert expect(response, 201) == {"logCount": total, "status": task.json["status"]}
            task.writers[writer] = known + len(fresh)
            now = task.json | {"logs": task.json["logs"] + fresh, "logCount": total}
            task.changed_to(key.person.task(task.json), now)

    @rule(task=tasks, who=callers, several=st.lists(reports, min_size=1, max_size=3))
    def report(self, task: Task, who: str, several: list[Json]) -> None:
        for changes in several:
            self.report_once(self.caller(task.user, who, task.json["agentId"]), task, changes)

    def report_once(self, key: Key, task: Task, changes: Json) -> None:
        response = key.person.patch(f"/task/{task.json['id']}", json=changes)
        if changes.get("error") and changes.get("status") != "error":
            problem(response, 422)
            return
        if "output" in changes:
            changes = changes | {"output": kept(changes["output"])}
        expected = reported(task, changes)
        if not key.sees(task):
            problem(response, 404)
        elif expected is None:
            self.is_finished(response, task)
        else:
            task.changed_to(expect(response, 200), expected)
            self.is_called_back(response, task, expected["finishedAt"] is NOW)

    @rule(task=tasks, who=callers)
    def cancel(self, task: Task, who: str) -> None:
        key = self.caller(task.user, who, task.json["agentId"])
        response = key.person.post(f"/task/{task.json['id']}/cancel")
        if key.agent_id is not None:
            problem(response, 403)
        elif not key.sees(task):
            problem(response, 404)
        elif task.running:
            error = {"type": "cancelled", "message": ANY}
            ended = {"status": "error", "error": error, "finishedAt": NOW, "endedBy": ANY}
            task.changed_to(expect(response, 200), task.json | ended)
            self.is_called_back(response, task, True)
        elif task.error_type == "cancelled":
            task.changed_to(expect(response, 200), task.json)
            self.is_called_back(response, task, False)
        else:
            self.is_finished(response, task)

    def is_finished(self, response: Any, task: Task) -> None:
        told = {name: task.json[name] for name in ("id", "status", "error")}
        assert problem(response, 409)["task"] == told

    def is_called_back(self, response: Any, task: Task, ended: bool) -> None:
        """The callback of a task that ended now was called once, and otherwise was not."""
        has_webhook = ended and task.json["callback"] is not None
        assert response.headers["Callback-Status"] == ("delivered" if has_webhook else "none")
        self.posted += has_webhook
        assert len(self.receiver.requests) == self.posted
        if has_webhook:
            assert json.loads(self.receiver.requests[-1].body) == task.json
            self.is_signed_by_the_newest(task)
            # A new delivery replaces the pending one.
            replaced = ["cancelled" if one == "pending" else one for one in task.deliveries]
            task.deliveries = [*replaced, "delivered"]

    def is_signed_by_the_newest(self, task: Task) -> None:
        secret = expect(self.caller(task.user).person.get("/callback-secret"), 200)["secret"]
        webhook = self.receiver.requests[-1]
        Webhook(secret).verify(webhook.body, dict(webhook.headers))

    @rule(task=tasks)
    def fall_silent(self, task: Task) -> None:
        """What the service does to a running task whose agent is silent."""
        if task.running:
            end_for_silence(self.app, task.json)
            error = {"type": "timeout", "message": ANY}
            ended = {"status": "error", "error": error, "finishedAt": NOW, "endedBy": "service"}
            seen = self.caller(task.user).person.task(task.json)
            task.changed_to(seen, task.json | ended)

    @rule(target=tasks, task=tasks, who=callers)
    def run_again(self, task: Task, who: str) -> Any:
        key = self.caller(task.user, who, task.json["agentId"])
        response = key.person.post(f"/task/{task.json['id']}/rerun")
        if not key.sees(task):
            problem(response, 404)
            return multiple()
        if not self.fits(key, task.json["agentId"], task.json["input"]):
            assert list(problem(response, 422)["errors"]) == ["input"]
            return multiple()
        seen = expect(response, 201)
        same_fields = ("name", "input", "labels", "callback")
        expected = self.new_task(key, {"agentId": task.json["agentId"]}, seen) | {
            **{name: task.json[name] for name in same_fields},
            "claimedAt": None,
            "rerunOf": task.json["id"],
        }
        assert seen == expected
        again = Task(key.user, seen)
        key.user.tasks.append(again)
        return again

    @rule(task=consumes(tasks))
    def delete(self, task: Task) -> None:
        path = f"/task/{task.json['id']}"
        for who, status in (("stranger", 404), ("its agent", 403), ("other agent", 403)):
            key = self.caller(task.user, who, task.json["agentId"])
            if key.user is not task.user or key.agent_id is not None:
                problem(key.person.delete(path), status)
        assert expect(self.caller(task.user).person.delete(path), 200) == task.json
        task.user.tasks.remove(task)
        for other in task.user.tasks:
            if other.json["rerunOf"] == task.json["id"]:
                seen = self.caller(task.user).person.task(other.json)
                other.changed_to(seen, other.json | {"rerunOf": None})
        self.is_gone(self.caller(task.user).person, path)

    def is_gone(self, person: ApiClient, path: str) -> None:
        for response in (
            person.get(path),
            person.patch(path, json={}),
            person.post(f"{path}/logs", json={"logs": []}),
            person.post(f"{path}/cancel"),
            person.delete(path),
        ):
            problem(response, 404)

    # --- get and list

    @rule(task=tasks, who=callers)
    def get(self, task: Task, who: str) -> None:
        key, path = self.caller(task.user, who, task.json["agentId"]), f"/task/{task.json['id']}"
        response = key.person.get(path, headers={"If-None-Match": task.etag})
        if not key.sees(task):
            problem(response, 404)
        elif task.json is task.known:
            assert (response.status_code, response.data) == (304, b"")
        else:
            assert expect(response, 200) == task.json
            task.etag, task.known = response.headers["ETag"], task.json

    @rule(user=either, who=callers, fields=filters, limit=st.integers(1, 4), bound=bounds,
          place=st.integers(0, 9))  # fmt: skip
    def list_tasks(
        self, user: int, who: str, fields: Json, limit: int, bound: str | None, place: int
    ) -> None:
        key = self.caller(self.users[user], who, AGENTS[0])
        if bound is not None:
            tasks = [task for task in key.user.tasks if task.json[BOUNDS[bound]]]
            if tasks:
                fields = fields | {bound: tasks[place % len(tasks)].json[BOUNDS[bound]]}
        expected = listed(key, {name: stored(value) for name, value in fields.items()})
        assert expect(key.person.get("/task", query_string=fields), 200) == expected
        assert in_pages(key.person.get, urlencode(fields | {"limit": limit})) == expected

    @rule(task=tasks, who=callers, after=places, limit=st.sampled_from([None, 1, 1, 2]))
    def read_log(self, task: Task, who: str, after: int, limit: int | None) -> None:
        self.read_log_from(self.caller(task.user, who, task.json["agentId"]), task, after, limit)

    def read_log_from(self, key: Key, task: Task, after: int, limit: int | None) -> None:
        lines, path = task.json["logs"], f"/task/{task.json['id']}/logs"
        place = {"after": after} | ({"limit": limit} if limit else {})
        page = key.person.get(path, query_string=place)
        text = key.person.get(path, query_string=place, headers={"Accept": "text/plain"})
        if not key.sees(task):
            problem(page, 404)
            problem(text, 404)
            return
        selected = lines[after:][:limit]
        end = max(after, after + len(selected))
        status = task.json["status"]
        assert expect(page, 200) == {"logs": selected, "next": end, "status": status}
        assert text.get_data() == "".join(f"{line}\n" for line in selected).encode()

    @rule(user=either, who=callers, names=shapes, expand=expansions)
    def list_shaped(self, user: int, who: str, names: list[str], expand: list[str]) -> None:
        key = self.caller(self.users[user], who, AGENTS[0])
        fields = {"fields": ",".join(names), "expand": ",".join(expand)}
        fields = {name: text for name, text in fields.items() if text}
        expected = [self.shaped(key, task, names, expand) for task in listed(key, {})]
        assert expect(key.person.get("/task", query_string=fields), 200) == expected
        assert in_pages(key.person.get, urlencode(fields | {"limit": 2})) == expected
        for task in expected[:1]:
            path = f"/task/{listed(key, {})[0]['id']}"
            assert expect(key.person.get(path, query_string=fields), 200) == task

    def shaped(self, key: Key, task: Json, names: list[str], expand: list[str]) -> Json:
        user = key.user
        created = expect(key.person.get("/user"), 200)["createdAt"]
        embedded = {
            "agent": of_task(user.agents[task["agentId"]]),
            "user": {"id": user.id, "name": user.name, "createdAt": created},
        }
        shown = {name: value for name, value in task.items() if not names or name in names}
        return shown | {name: embedded[name] for name in expand}

    # --- deliveries and secrets

    @rule(task=tasks, who=callers, again=st.booleans())
    def look_at_deliveries(self, task: Task, who: str, again: bool) -> None:
        key = self.caller(task.user, who, task.json["agentId"])
        path = f"/task/{task.json['id']}/deliveries"
        response = key.person.get(path)
        if key.agent_id is not None:
            problem(response, 403)
            problem(key.person.post(path), 403)
        elif not key.sees(task):
            problem(response, 404)
            problem(key.person.post(path), 404)
        else:
            states = [delivery["state"] for delivery in expect(response, 200)]
            assert states == task.deliveries[::-1]
            if again:
                self.deliver_again(key, task, path)

    def deliver_again(self, key: Key, task: Task, path: str) -> None:
        """The loops do not run here, so nothing posts it."""
        response = key.person.post(path)
        if not task.deliveries:
            problem(response, 409)
            return
        assert expect(response, 202)["state"] == "pending"
        task.deliveries[-1] = "pending"

    @rule(user=either, who=callers)
    def rotate_secret(self, user: int, who: str) -> None:
        key = self.caller(self.users[user], who, AGENTS[0])
        response = key.person.post("/callback-secret")
        if key.agent_id is not None:
            problem(response, 403)
            return
        owner = self.users.index(key.user)
        self.rotations[owner] += 1
        if self.rotations[owner] >= MAX_SIGNING:
            problem(response, 429)
            return
        made = expect(response, 201)
        assert expect(key.person.get("/callback-secret"), 200) == made
        assert made["secret"] not in self.secrets
        self.secrets.add(made["secret"])

    # --- at every step, and at the end

    @invariant()
    def count_step(self) -> None:
        Api.steps_in_all += 1

    def teardown(self) -> None:
        for user in self.users:
            for key in user.keys:
                if key.valid:
                    assert expect(key.person.get("/task"), 200) == listed(key, {})
                else:
                    problem(key.person.get("/task"), 401)


@pytest.mark.timeout(600)
def test_api_does_what_its_model_does(app: Flask, receiver: Receiver) -> None:
    class Here(Api):
        def __init__(self) -> None:
            super().__init__(app, receiver)

    Api.steps_in_all = 0
    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
            # Without the explanation, which takes long and helps little here.
            phases=[Phase.generate, Phase.shrink],
        ),
    )
    print(f"\n{Api.steps_in_all} steps")
    assert Api.steps_in_all >= LEAST_STEPS
