"""Many tasks at once in the dashboard: what is selected is said before, and the list stays."""

import re
from html import unescape
from typing import Any

from flask import Flask

from tests.support.api_client import ApiClient, expect
from tests.support.internals import copy_task
from tests.support.marks import one_database
from tests.support.plain_browser import Browser, hidden, signed_in

Task = dict[str, Any]


def ask(window: Browser, path: str, action: str, *tasks: Task, **data: str) -> tuple[str, str]:
    """Send the form of a list; returns its address, and the page that it leads to."""
    response = window.get(path)
    (target,) = re.findall('id="selected" action="([^"]+)"', response.text)
    form: Any = {**hidden(response), "action": action, **data}
    form["taskId"] = [task["id"] for task in tasks]
    page = window.post(unescape(target), form)
    assert page.status_code == 200, page.text
    return unescape(target), page.text


def confirm(window: Browser, target: str, page: str) -> str:
    """Send the form of the confirmation; returns where it leads."""
    form = dict(re.findall('type="hidden" name="([^"]+)" value="([^"]+)"', page))
    response = window.post(target, form)
    assert response.status_code == 303, response.text
    return str(response.location)


def main_text(page: str) -> str:
    return " ".join(re.sub("<[^>]+>", "", unescape(page.partition("<main")[2])).split())


def left(person: ApiClient) -> set[str]:
    return {task["name"] for task in expect(person.get("/task"), 200)}


def test_checked_tasks_are_deleted_after_a_page_that_says_which(
    window: Browser, alice: ApiClient
) -> None:
    one, two = alice.start("one", name="A & B"), alice.start("two", name="C", claim=True)
    alice.start("one", name="Third")
    target, page = ask(window, "/?sort=createdAt", "delete", one, two)
    text = main_text(page)
    assert "Delete 2 tasks?" in text
    assert "one (1), two (1) · started" in text
    assert "2 of them are still running" in text
    assert ("A & B" in text, "Third" in text) == (True, False)
    assert left(alice) == {"A & B", "C", "Third"}
    assert confirm(window, target, page) == "/?sort=createdAt"
    assert left(alice) == {"Third"}
    assert "2 tasks deleted." in window.get("/?sort=createdAt").text
    # The same form again, as after going back.
    confirm(window, target, page)
    assert "2 tasks not changed" in window.get("/").text


def test_all_that_match_are_deleted_and_the_filters_stay(window: Browser, alice: ApiClient) -> None:
    for number in range(60):
        alice.start(name=f"Test {number}", labels={"env": "test"})
    other, late = alice.start(name="Other"), "?label=env:test&q=test"
    assert "all 60 that match" in main_text(window.get(f"/{late}").text)
    target, page = ask(window, f"/{late}", "delete", other, all="all")
    assert "Delete 60 tasks?" in main_text(page)
    alice.start(name="Test later", labels={"env": "test"})
    assert confirm(window, target, page) == f"/{late}"
    assert left(alice) == {"Other", "Test later"}


@one_database
def test_more_than_a_thousand_that_match_are_said(
    window: Browser, alice: ApiClient, app: Flask
) -> None:
    ids = [alice.start()["id"]]
    ids += copy_task(app, {"id": ids[0]}, 1_000)
    target, page = ask(window, "/", "delete", all="all")
    assert "Delete 1,000 tasks?" in main_text(page)
    assert "More tasks match: only 1,000 tasks are selected." in main_text(page)
    confirm(window, target, page)
    assert [task["id"] for task in expect(alice.get("/task"), 200)] == ids[:1]
    _, page = ask(window, "/", "delete", all="all")
    assert "There are more" not in page


def test_page_of_the_list_is_kept(window: Browser, alice: ApiClient) -> None:
    tasks = [alice.start(name=str(number)) for number in range(55)]
    (following,) = re.findall('href="([^"]+)" rel="next"', window.get("/").text)
    second = f"/{unescape(following)}"
    target, page = ask(window, second, "delete", tasks[2])
    back = confirm(window, target, page)
    shown = window.get(back).text
    assert re.findall('id="task-([^"]+)"', shown) == [tasks[n]["id"] for n in (4, 3, 1, 0)]


def test_only_running_tasks_are_cancelled(window: Browser, alice: ApiClient) -> None:
    running, done = alice.start(claim=True, name="runs"), alice.start(claim=True, name="done")
    alice.report(done, status="complete")
    for choice, data in (([running, done], {}), ([], {"all": "all"})):
        target, page = ask(window, "/", "cancel", *choice, **data)
        assert "Cancel 1 task?" in main_text(page)
        assert "taskservice run and work stop its program within seconds" in main_text(page)
    assert confirm(window, target, page) == "/"
    assert alice.task(running)["error"]["type"] == "cancelled"
    assert alice.task(done)["status"] == "complete"


def test_tasks_are_run_again_once(window: Browser, alice: ApiClient) -> None:
    tasks = [alice.start(name=str(number)) for number in range(2)]
    target, page = ask(window, "/", "rerun", *tasks)
    for _ in range(2):
        confirm(window, target, page)
    listed = expect(alice.get("/task"), 200)
    assert [task["rerunOf"] for task in listed if task["rerunOf"]] == [
        task["id"] for task in tasks[::-1]
    ]


@one_database
def test_nothing_selected_changes_nothing(
    window: Browser, alice: ApiClient, bob: ApiClient
) -> None:
    task, other = alice.start(), bob.start()
    form: Any = hidden(window.get("/"))
    for choice in ({}, {"taskId": other["id"]}, {"taskId": "none"}, {"action": "no"}):
        data = {**form, "action": "delete", "taskId": [], **choice}
        response = window.post("/tasks/selected?status=running", data)
        assert (response.status_code, response.location) == (303, "/?status=running")
    forged = {**form, "action": "delete", "ids": other["id"]}
    assert window.post("/tasks/selected", forged).status_code == 303
    assert window.post("/tasks/selected", {**forged, "token": "x"}).status_code == 403
    assert window.post("/tasks/selected", {**forged, "ids": ""}).status_code == 422
    assert window.post("/tasks/selected?nonsense=1", {**form, "all": "all"}).status_code == 422
    assert (bob.task(other), alice.task(task)) == (other, task)


@one_database
def test_agent_key_selects_nothing(app: Flask, alice: ApiClient) -> None:
    task = alice.start()
    window = signed_in(alice.agent_key())
    page = window.get("/")
    assert 'id="selected"' not in page.text
    assert 'name="taskId"' not in page.text
    form = {**hidden(window.get(f"/tasks/{task['id']}/rerun")), "action": "delete"}
    assert window.post("/tasks/selected", {**form, "ids": task["id"]}).status_code == 403
