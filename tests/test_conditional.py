"""Conditional requests: weak ETags and 304; also HEAD and OPTIONS."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from tests.support.api_client import ApiClient, expect, problem
from tests.support.internals import end_for_silence, reads, rules

Task = dict[str, Any]


def etag(person: ApiClient, task: Task, query: str = "") -> str:
    response = person.get(f"/task/{task['id']}{query}")
    expect(response, 200)
    return str(response.headers["ETag"])


def ask_again(person: ApiClient, task: Task, known: str, query: str = "", **options: Any) -> Any:
    headers = {"If-None-Match": known}
    return person.get(f"/task/{task['id']}{query}", headers=headers, **options)


@pytest.fixture
def task(alice: ApiClient) -> Task:
    task = alice.start(name="first name")
    alice.append(task, "a line")
    return alice.task(task)


# --- the ETag ----------------------------------------------------------------------------


def test_etag_is_weak_and_stays_while_nothing_changes(alice: ApiClient, task: Task) -> None:
    first = etag(alice, task)
    assert re.fullmatch(r'W/"[\x21\x23-\x7e]+"', first)
    assert etag(alice, task) == first
    agent = alice.agent_key()
    assert etag(agent, task) == first


def test_etag_changes_with_every_change(alice: ApiClient) -> None:
    alice.start(), alice.start()
    oldest = expect(alice.get("/task?sort=createdAt&limit=1"), 200)[0]
    path = f"/task/{oldest['id']}"

    def changes() -> Iterator[Any]:
        yield alice.post("/agent/summarizer/claim")
        yield alice.post(f"{path}/logs", json={"logs": ["one"]})
        yield alice.post(f"{path}/logs", json={"logs": ["one"]})
        yield alice.put(f"{path}/logs", data=b"text\n")
        yield alice.post(f"{path}/logs", json={"logs": ["x"], "seq": 1, "writer": "w"})
        yield alice.patch(path, json={"output": {"so far": 1}})
        yield alice.patch(path, json={"output": {"so far": None}})
        yield alice.patch(path, json={"name": "second name"})
        yield alice.patch(path, json={"status": "complete"})
        yield alice.patch(path, json={"name": "third name"})

    seen = [etag(alice, oldest)]
    for response in changes():
        assert response.status_code in (200, 201), response.text
        seen.append(etag(alice, oldest))
        assert ask_again(alice, oldest, seen[-2]).status_code == 200
    assert len(set(seen)) == len(seen) == 11


def test_etag_changes_with_cancel_and_with_the_end_for_silence(
    alice: ApiClient, app: Flask
) -> None:
    cancelled, silent = alice.start(), alice.start()
    before = [etag(alice, task) for task in (cancelled, silent)]
    expect(alice.post(f"/task/{cancelled['id']}/cancel"), 200)
    end_for_silence(app, silent)
    after = [etag(alice, task) for task in (cancelled, silent)]
    assert after[0] != before[0]
    assert after[1] != before[1]
    alice.report(silent, status="complete")
    assert etag(alice, silent) != after[1]


def test_unchanged_task_keeps_its_etag(alice: ApiClient, task: Task) -> None:
    path = f"/task/{task['id']}"
    alice.append(task, "sent twice", seq=1, writer="w")
    alice.report(task, output={"a": 1}, name="its name")
    before = etag(alice, task)
    expect(alice.post(f"{path}/logs", json={"logs": []}), 201)
    alice.append(task, "sent twice", seq=1, writer="w")
    for changes in ({}, {"output": {"a": 1}}, {"name": "its name"}, {"status": "running"}):
        alice.report(task, **changes)
    problem(alice.patch(path, json={"status": "complete", "error": {"message": "x"}}), 422)
    problem(alice.post(f"{path}/logs", json={"logs": ["x"], "seq": 9, "writer": "w"}), 409)
    assert etag(alice, task) == before
    assert ask_again(alice, task, before).status_code == 304


def test_etag_differs_by_fields_whatever_their_order(alice: ApiClient, task: Task) -> None:
    names = ["", "?fields=id", "?fields=logs", "?fields=id,logs", "?fields=id,logs,name"]
    tags = [etag(alice, task, query) for query in names]
    assert len(set(tags)) == len(tags)
    assert etag(alice, task, "?fields=logs,id") == etag(alice, task, "?fields=id,logs")
    for query, tag in zip(names, tags, strict=True):
        assert ask_again(alice, task, tag, query).status_code == 304
        for other in set(names) - {query}:
            assert ask_again(alice, task, tag, other).status_code == 200


def test_there_is_no_etag_with_expand(alice: ApiClient, task: Task) -> None:
    """Embedded objects have no version, so an ETag would miss a renamed agent."""
    for query in ("?expand=agent", "?expand=agent,user", "?fields=id&expand=user"):
        response = alice.get(f"/task/{task['id']}{query}")
        assert "ETag" not in response.headers
        for known in (etag(alice, task), "*"):
            assert expect(ask_again(alice, task, known, query), 200) == response.json


def test_no_other_answer_has_an_etag(alice: ApiClient, task: Task) -> None:
    path = f"/task/{task['id']}"
    known = {"If-None-Match": f'{etag(alice, task)}, "x"'}
    for response in (
        alice.get("/task", headers=known),
        alice.get("/task?limit=1", headers=known),
        alice.patch(path, json={"output": {"a": 1}}, headers=known),
        alice.post("/task", json={"agentId": "summarizer"}, headers=known),
        alice.get("/agent/summarizer", headers=known),
        alice.delete(path, headers=known),
    ):
        assert response.status_code in (200, 201)
        assert "ETag" not in response.headers


# --- 304 ---------------------------------------------------------------------------------


def test_known_task_is_304_without_a_body(alice: ApiClient, task: Task) -> None:
    known = etag(alice, task)
    response = ask_again(alice, task, known)
    assert (response.status_code, response.data) == (304, b"")
    assert response.headers["ETag"] == known
    assert not response.headers.get("Content-Type", "").startswith("text/html")
    alice.append(task, "another")
    response = ask_again(alice, task, known)
    assert expect(response, 200) == alice.task(task)
    assert response.headers["ETag"] != known


HEADERS = (
    ("{etag}", 304), ("{strong}", 304), ('"other", {etag}', 304), ('{etag},W/"other"', 304),
    ('"one" , "two" ,\t{etag}', 304), ("*", 304), ('"other"', 200), ('W/"other", "another"', 200),
    ('""', 200), ("", 200), ("nonsense", 200), ('"', 200), ("ü", 200), ("," * 500, 200),
)  # fmt: skip


def test_if_none_match_lists_what_is_known(
    alice: ApiClient, task: Task, subtests: pytest.Subtests
) -> None:
    weak = etag(alice, task)
    for header, status in HEADERS:
        with subtests.test(header[:20]):
            known = header.format(etag=weak, strong=weak.removeprefix("W/"))
            assert ask_again(alice, task, known).status_code == status


def test_304_is_found_before_the_log_is_read(alice: ApiClient, app: Flask, task: Task) -> None:
    known = etag(alice, task)

    def ask(known: str, status: int) -> str:
        def deed() -> None:
            assert ask_again(alice, task, known).status_code == status

        return " ".join(statement for statement, _ in reads(app, deed))

    not_modified = ask(known, 304)
    assert not_modified
    assert "log_chunks" not in not_modified
    assert "log_chunks" in ask('"other"', 200)


def test_304_is_only_for_keys_that_may_see_the_task(
    alice: ApiClient, bob: ApiClient, app: Flask, task: Task
) -> None:
    other_agent = alice.agent_key("translator")
    for known in (etag(alice, task), "*"):
        problem(ask_again(bob, task, known), 404)
        problem(ask_again(other_agent, task, known), 404)
        problem(ask_again(ApiClient(app, "nobody", "wrong"), task, known), 401)
    problem(ask_again(alice, task, "*", "?nonsense=1"), 422)
    known = etag(alice, task)
    expect(alice.delete(f"/task/{task['id']}"), 200)
    problem(ask_again(alice, task, known), 404)


# --- HEAD and OPTIONS --------------------------------------------------------------------


def test_head_of_a_known_task_is_304(alice: ApiClient, task: Task) -> None:
    known = etag(alice, task)
    path = f"/task/{task['id']}"
    head = alice.request("HEAD", path, headers={"If-None-Match": known})
    assert (head.status_code, head.data) == (304, b"")
    assert head.headers["ETag"] == known


def test_options_name_the_methods_of_every_route(
    alice: ApiClient, app: Flask, task: Task, subtests: pytest.Subtests
) -> None:
    methods: dict[str, set[str]] = {}
    for method, rule in rules(app):
        path = rule.replace("<task_id>", task["id"]).replace("<agent_id>", "summarizer")
        methods.setdefault(path.replace("<key_id>", task["id"]), set()).add(method)
    for path, allowed in methods.items():
        with subtests.test(path):
            response = alice.request("OPTIONS", path)
            assert response.status_code in (200, 204)
            assert set(re.split(r",\s*", response.headers["Allow"])) == allowed
            assert response.data == b""
    # OPTIONS changes nothing.
    assert alice.task(task) == task


def test_answer_without_a_body_is_not_called_html(alice: ApiClient, task: Task) -> None:
    expect(alice.post("/agent/summarizer/claim"), 200)
    nothing_left = alice.post("/agent/summarizer/claim")
    assert nothing_left.status_code == 204
    for response in (nothing_left, alice.request("OPTIONS", "/task")):
        assert response.data == b""
        assert not (response.content_type or "").startswith("text/html")


def test_log_varies_by_the_type_that_is_asked_for(alice: ApiClient, task: Task) -> None:
    for kind in ("application/json", "text/plain"):
        response = alice.get(f"/task/{task['id']}/logs", headers={"Accept": kind})
        assert (response.status_code, response.mimetype) == (200, kind)
        assert "Accept" in ", ".join(response.headers.getlist("Vary")).split(", ")
