"""Read keys: what each kind of key may call, by the declarations of the routes."""

import re
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from tests import reference_pages
from tests.support.api_client import ApiClient, expect, problem
from tests.support.html_page import Page
from tests.support.internals import FITTING_BODIES, filled, rows, rules
from tests.support.marks import one_database
from tests.support.mcp import FORMS, TASKS, McpClient
from tests.support.plain_browser import Browser, signed_in

PREFIX = "/api/v1"
ENDED = {"status": "complete", "output": {"sum": 15}}


def path_of(rule: str, task: dict[str, Any]) -> str:
    return filled(rule, task_id=task["id"], agent_id=task["agentId"])


def test_each_kind_of_key_may_call_what_the_routes_declare(
    alice: ApiClient, subtests: pytest.Subtests
) -> None:
    """The table of the security model is made of the same declarations."""
    task = alice.start(claim=True)
    alice.report(task, **ENDED)
    keys = [alice, alice.agent_key(), alice.read_key(), alice.read_key("summarizer")]
    for method, rule, allowed in reference_pages.operations():
        rule = rule.removeprefix(PREFIX)
        # Nothing that exists is changed before the last kind has called.
        path = path_of(rule, task if method == "GET" else task | {"id": str(uuid4())})
        body = FITTING_BODIES.get((method, rule))
        for kind, key, may in zip(reference_pages.KINDS, keys, allowed, strict=True):
            with subtests.test(f"{method} {rule} with a {kind}"):
                response = key.request(method, path, json=body)
                # A stream to its end.
                response.get_data()
                if may:
                    assert response.status_code != 403
                else:
                    is_agent = "agent" in kind
                    codes = {"read_only" if "read" in kind else "user_key_required"}
                    # Both are true of a read key of an agent.
                    codes |= {"user_key_required"} if is_agent else set()
                    assert problem(response, 403)["code"] in codes
        with subtests.test(f"{method} {rule} without a key"):
            problem(alice.request(method, path, json=body, headers={"apikey": ""}), 401)


def test_read_key_changes_nothing_by_any_method_on_any_path(alice: ApiClient) -> None:
    task = alice.start(claim=True, callback="https://receiver.invalid/")
    alice.append(task, "a line")
    keys = alice.read_key(), alice.read_key("summarizer")
    before = rows(alice.app)
    for key in keys:
        calls = [*rules(alice.app), ("POST", "/nothing"), ("TRACE", "/task"), ("DELETE", "/user")]
        for method, rule in calls:
            # A link gives only the rights that the key has.
            if method not in ("GET", "HEAD") and rule != "/sign-in-link":
                body = FITTING_BODIES.get((method, rule))
                refused = key.request(method, path_of(rule, task), json=body)
                assert problem(refused, 403)["code"] == "read_only"
    assert rows(alice.app) == before


def test_read_key_reads_all_of_its_user_or_of_one_agent(alice: ApiClient, bob: ApiClient) -> None:
    mine, other = alice.start(claim=True), alice.start("translator")
    alice.append(mine, "one", "two")
    alice.append(other, "one")
    alice.report(mine, **ENDED)
    foreign = bob.start()
    screen, narrow = alice.read_key(), alice.read_key("summarizer")
    assert expect(alice.with_key("full").get("/user"), 200)["key"]["access"] == "full"
    shown = expect(screen.get("/user"), 200)["key"]
    assert (shown["access"], shown["agentId"], shown["login"]) == ("read", None, False)
    assert shown["hint"].startswith("tsk_read_")
    assert narrow.key.startswith("tsk_read_")
    assert [task["id"] for task in expect(screen.get("/task"), 200)] == [other["id"], mine["id"]]
    assert [task["id"] for task in expect(narrow.get("/task"), 200)] == [mine["id"]]
    for key in (screen, narrow):
        path = f"/task/{mine['id']}"
        assert expect(key.get(path), 200) == alice.task(mine)
        assert key.request("HEAD", path).status_code == 200
        assert "event: log" in key.get(f"{path}/events").text
        assert expect(key.get(f"{path}/logs", headers={"Prefer": "wait=1"}), 200)["next"] == 2
        problem(key.get(f"/task/{foreign['id']}"), 404)
        new = expect(key.get(f"{path}/new-lines?against={mine['id']}"), 200)
        assert new["against"]["id"] == mine["id"]
    for key, visible in ((screen, [other, mine]), (narrow, [mine])):
        hits = expect(key.get("/search?text=one"), 200)["hits"]
        assert [hit["taskId"] for hit in hits] == [task["id"] for task in visible]
    problem(narrow.get(f"/task/{other['id']}"), 404)
    problem(narrow.get(f"/task/{mine['id']}/new-lines?against={other['id']}"), 404)
    assert expect(screen.get("/hook"), 200) == []
    assert problem(narrow.get("/hook"), 403)["code"] == "user_key_required"
    target = {"target": "https://hooks.invalid/"}
    assert problem(screen.post("/hook", json=target), 403)["code"] == "read_only"
    assert problem(screen.get("/callback-secret"), 403)["code"] == "read_only"
    assert screen.request("HEAD", "/callback-secret").status_code == 403
    assert problem(narrow.get("/key"), 403)["code"] == "user_key_required"


def test_read_key_does_not_count_as_the_last_key_of_its_user(alice: ApiClient) -> None:
    screen = alice.read_key()
    key = expect(alice.get("/user"), 200)["key"]
    assert problem(alice.delete(f"/key/{key['id']}"), 409)["code"] == "last_user_key"
    shown = expect(screen.get("/user"), 200)["key"]
    assert expect(alice.delete(f"/key/{shown['id']}"), 200)["revokedAt"]
    problem(screen.get("/user"), 401)


# --- MCP -----------------------------------------------------------------------------------


def refused(answer: Any) -> bool:
    return bool(answer.status == 403 and answer.json["code"] == "read_only")


@one_database
def test_read_key_has_the_mcp_tools_that_only_read(alice: ApiClient) -> None:
    alice.register("reader", annotations={"readOnlyHint": True})
    task = alice.start(claim=True)
    alice.append(task, "a line")
    asked = alice.post(f"/task/{task['id']}/question", json={"message": "Deploy?"})
    question = expect(asked, 201)
    screen = McpClient(alice.read_key(), FORMS, TASKS)
    tools = screen.modern("tools/list").result["tools"]
    names = {tool["name"] for tool in tools}
    assert names == {"wait_task", "read_log", "list_tasks", "search_logs", "attention"}
    assert all(tool["annotations"]["readOnlyHint"] for tool in tools)
    before = rows(alice.app)

    def call(name: str, **arguments: Any) -> Any:
        return screen.modern("tools/call", {"name": name, "arguments": arguments})

    of_task = {"taskId": task["id"]}
    assert call("list_tasks").result["structuredContent"]["tasks"][0]["taskId"] == task["id"]
    assert call("read_log", **of_task).result["structuredContent"]["lines"] == ["a line"]
    assert call("attention").result["structuredContent"]["items"][0]["kind"] == "question"
    (hit,) = call("search_logs", text="LINE").result["structuredContent"]["hits"]
    assert (hit["taskId"], hit["text"]) == (task["id"], "a line")
    # It gets the question as text, not as a form, whose answer would be refused.
    waited = call("wait_task", **of_task).result
    assert waited["structuredContent"]["questions"][0]["questionId"] == question["id"]
    assert "inputRequests" not in screen.modern("tasks/get", of_task).result
    answer = {question["id"]: {"action": "accept", "content": {"answer": "yes"}}}
    for response in (
        call("start_task", agentId="summarizer"),
        call("rerun_task", **of_task),
        call("reader"),
        call("cancel_task", **of_task),
        call("answer_task", questionId=question["id"], decline=True, **of_task),
        screen.modern("tools/call", {"name": "wait_task", "arguments": of_task,
                                     "inputResponses": answer}),
        screen.modern("tasks/update", of_task | {"inputResponses": answer}),
        screen.modern("tasks/cancel", of_task),
    ):  # fmt: skip
        assert refused(response), response
    assert rows(alice.app) == before


@one_database
def test_read_key_of_an_agent_cannot_use_mcp(alice: ApiClient) -> None:
    alice.register()
    narrow = McpClient(alice.read_key("summarizer"))
    for method in ("initialize", "ping", "tools/list", "tasks/get"):
        assert refused(narrow.legacy(method, {}))


# --- the dashboard ---------------------------------------------------------------------------


def check_offers(browser: Browser, page: TestResponse) -> None:
    """No form of a page changes anything, and each of its links works."""
    assert page.status_code == 200
    elements = Page(page.text).elements
    posts = [attributes["action"] for name, attributes in elements
             if name == "form" and attributes.get("method") == "post"]  # fmt: skip
    assert posts == ["/sign-out"]
    for name, attributes in elements:
        for link in (attributes.get("href"), attributes.get("data-copy")):
            if name in ("a", "button") and link and not link.startswith(("#", "?")):
                with browser.get(link, buffered=False) as response:
                    assert response.status_code in (200, 303), link


@one_database
def test_dashboard_of_a_read_key_offers_nothing_that_would_fail(
    app: Flask, alice: ApiClient, subtests: pytest.Subtests
) -> None:
    hook = expect(alice.post("/hook", json={"target": "https://hooks.invalid/"}), 201)
    for status in ("complete", "error"):
        task = alice.start(claim=True, callback="http://127.0.0.1:1/", labels={"env": "prod"})
        alice.report(task, status=status)
    asking = alice.start(claim=True, parentId=task["id"])
    asked = alice.post(f"/task/{asking['id']}/question", json={"message": "Deploy?"})
    question = expect(asked, 201)
    alice.start()
    key = expect(alice.get("/user"), 200)["key"]["id"]
    pages = ["/", "/agents", "/agents/summarizer", f"/tasks/{task['id']}",
             f"/tasks/{asking['id']}", f"/tasks/{asking['id']}/questions/{question['id']}",
             "/?callback=failed"]  # fmt: skip
    forms = [f"/tasks/{task['id']}/{part}" for part in ("rerun", "cancel", "delete")]
    forms += ["/agents/summarizer/run", "/agents/summarizer/edit", "/keys", f"/keys/{key}/revoke",
              "/callback-secret/rotate", "/notifications", f"/notifications/{hook['id']}",
              f"/notifications/{hook['id']}/delete"]  # fmt: skip
    posts = [*forms, f"/tasks/{task['id']}/redeliver", "/tasks/selected",
             f"/tasks/{asking['id']}/questions/{question['id']}",
             f"/notifications/{hook['id']}/test"]  # fmt: skip
    for name, reader in (("user", alice.read_key()), ("agent", alice.read_key("summarizer"))):
        browser = signed_in(reader)
        before = rows(app)
        for path in pages if name == "user" else pages[:-2]:
            with subtests.test(f"{path} of {name}"):
                check_offers(browser, browser.get(path))
        (token,) = set(re.findall(r'name="token" value="([^"]+)"', browser.get("/").text))
        for path in forms:
            assert browser.get(path).status_code == 403, path
        for path in posts:
            assert browser.post(path, {"token": token}).status_code in (403, 405), path
        assert rows(app) == before
        assert browser.post("/sign-out", {"token": token}).status_code == 303
        assert browser.get("/").status_code == 303


@one_database
def test_read_key_is_made_on_the_page_of_keys(app: Flask, alice: ApiClient) -> None:
    browser = signed_in(alice)
    made = browser.send("/keys", name="wall", access="read")
    (key,) = set(re.findall(r"tsk_read_[0-9A-Za-z]{40,}", made.text))
    assert "everything, read only" in made.text
    screen = ApiClient(app, "alice", key)
    assert expect(screen.get("/user"), 200)["key"]["access"] == "read"
    assert "Run again" not in signed_in(screen).get(f"/tasks/{alice.start()['id']}").text
