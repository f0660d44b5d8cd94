"""Data in every table, created through HTTP, and all that the API returns of it."""

from collections.abc import Sequence
from typing import Any

from flask import Flask

from taskservice.operations import health
from tests.support.api_client import ApiClient, add_user, expect
from tests.support.internals import end_for_silence, expire, set_columns
from tests.support.receiver import Receiver, answer

PEOPLE = ("alice", "bob")
# Texts that databases sort, fold, escape and measure in different ways.
ODD_TEXTS = ["ß İı ſ \u00e9 e\u0301", "\U0001f600 漢字 \u202e", "a\tb\\n'\"%_ \x01\x7f", "Z a B A"]


def fill(app: Flask, receiver: Receiver, names: Sequence[str] = PEOPLE) -> list[ApiClient]:
    """Fill every table, for each of these users; returns them."""
    people = [add_user(app, name) for name in names]
    for person in people:
        _fill_for(app, person, receiver)
    with app.app_context():
        health.record()
    return people


def _fill_for(app: Flask, person: ApiClient, receiver: Receiver) -> None:
    person.register("summarizer", name=ODD_TEXTS[0], description=ODD_TEXTS[1])
    person.register(
        "idle", tool=False, inputSchema={"type": "object", "maxProperties": 0},
        annotations={"readOnlyHint": True},
    )  # fmt: skip
    started = {
        "agentId": "summarizer", "claim": True, "timeout": 60,
        "labels": {"env": "prod", "odd": ODD_TEXTS[2]},
        "input": {"numbers": [1e300, 0.1, -0.0, 2**53, None], ODD_TEXTS[0]: ODD_TEXTS},
    }  # fmt: skip
    parent = expect(person.post("/task", json=started, headers={"Idempotency-Key": "once"}), 201)
    expect(person.post(f"/task/{parent['id']}/link"), 201)
    person.report(parent, progress=0.50, note=ODD_TEXTS[3], seconds=1.50)
    _append(person, parent)
    _ask(app, person, parent)
    for name in ODD_TEXTS:
        person.start(name=name, parentId=parent["id"])
    claimed = person.post("/agent/summarizer/claim", headers={"Idempotency-Key": "claim"})
    claimed_task = expect(claimed, 200)
    _deliver(app, person, receiver)
    again = expect(person.post(f"/task/{claimed_task['id']}/rerun", json={"input": {}}), 201)
    set_columns(app, again, created_at="1999-12-31T23:59:59.000Z")
    expect(person.post(f"/task/{claimed_task['id']}/cancel"), 200)
    person.agent_key("idle")
    person.read_key("idle")
    _tell(person)
    expired = expect(person.post("/key", json={"name": "expired"}), 201)
    expire(app, expired)
    revoked = expect(person.post("/key", json={"name": "revoked"}), 201)
    expect(person.delete(f"/key/{revoked['id']}"), 200)
    expect(person.post("/callback-secret"), 201)
    expect(person.post("/sign-in-link"), 201)


def _tell(person: ApiClient) -> None:
    hook = {"target": "https://hooks.invalid/?a=b", "token": "secret", "events": ["task.failed"]}
    added = person.post("/hook", json=hook | {"name": ODD_TEXTS[1], "agentId": "idle"})
    expect(person.post(f"/hook/{expect(added, 201)['id']}/test"), 200)
    person.report(person.start("idle", claim=True), status="error")


def _append(person: ApiClient, task: dict[str, Any]) -> None:
    person.append(task, *ODD_TEXTS[:3], at=[task["createdAt"]] * 2 + ["2100-01-01T00:00:00Z"])
    person.append(task, "one", "two", writer="first", seq=1)
    person.append(task, "", writer="second")
    person.append(task, *(f"line {number}" for number in range(5_000)))


def _ask(app: Flask, person: ApiClient, task: dict[str, Any]) -> None:
    path = f"/task/{task['id']}/question"
    asked: list[dict[str, Any]] = []
    # A migration must not mistake the last one for the end of a question.
    for text in ("May I?", "And now?", "Whom?", f'{ODD_TEXTS[1]}","answer":null}}'):
        headers = {"Idempotency-Key": f"ask {len(asked)}"}
        asked.append(expect(person.post(path, json={"message": text}, headers=headers), 201))
    accept = {"action": "accept", "content": {"answer": ODD_TEXTS[0]}}
    expect(person.post(f"{path}/{asked[0]['id']}/answer", json=accept), 200)
    expect(person.post(f"{path}/{asked[1]['id']}/answer", json={"action": "decline"}), 200)
    expect(person.delete(f"{path}/{asked[2]['id']}"), 200)


def _deliver(app: Flask, person: ApiClient, receiver: Receiver) -> None:
    for status in (200, 410, 503):
        receiver.answer = answer(status, body=ODD_TEXTS[1].encode())
        task = person.start(claim=True, callback=receiver.url)
        person.report(task, status="complete", output={"status": status})
    silent = person.start(claim=True, callback=receiver.url)
    end_for_silence(app, silent)
    failed = person.start(claim=True)
    person.report(failed, status="error", error={"message": ODD_TEXTS[2]})


def seen(person: ApiClient) -> dict[str, Any]:
    """Everything that the API returns to this person."""
    tasks = expect(person.get("/task?expand=agent,user"), 200)
    answers = {path: expect(person.get(path), 200) for path in ("/agent?expand=health", "/key")}
    answers |= {path: expect(person.get(path), 200) for path in ("/user", "/callback-secret")}
    answers["/hook"] = hooks = expect(person.get("/hook"), 200)
    for hook in hooks:
        path = f"/hook/{hook['id']}/deliveries"
        answers[path] = expect(person.get(path), 200)
    for task in tasks:
        for end in ("", "/deliveries", "/question", "/link", "/logs?times=true&limit=10000"):
            path = f"/task/{task['id']}{end}"
            answers[path] = expect(person.get(path), 200)
    for query in ("sort=finishedAt", "label=env:prod", "q=%C4%B0", "status=error", "limit=3"):
        answers[query] = [task["id"] for task in expect(person.get(f"/task?{query}"), 200)]
    return answers | {"/task": tasks}


def as_before(app: Flask, person: ApiClient) -> ApiClient:
    """The same person, who calls another app with the same key."""
    return ApiClient(app, person.name, person.key)
