"""Children in the list of tasks: folded under their parents, and shown by every filter."""

import re
from html import unescape
from typing import Any

import pytest
from flask import Flask

from taskservice.dashboard import filters
from taskservice.services import lists
from tests.support.api_client import ApiClient
from tests.support.internals import copy_task, plan_of, reads
from tests.support.marks import one_database
from tests.support.plain_browser import Browser, hidden, signed_in

Task = dict[str, Any]


def names(html: str) -> list[str]:
    """The names of the tasks of a list."""
    return re.findall(r'<th scope="row"><a [^>]*><bdi>([^<]+)', html)


def fold(html: str, task: Task) -> str:
    """The link that opens or closes the children of a task."""
    (link,) = re.findall(f'id="children-{task["id"]}" href="([^"]+)"', html)
    return unescape(link)


def fold_text(html: str, task: Task) -> str:
    (text,) = re.findall(f'id="children-{task["id"]}"[^>]*>(.*?)</a>', html)
    return re.sub("<[^>]+>", "", text)


@pytest.fixture
def parent(alice: ApiClient) -> Task:
    """A task with three children, one of which failed; one child has a child too."""
    parent = alice.start(name="Parent", claim=True)
    children = [
        alice.start(name=f"Child {number}", claim=True, parentId=parent["id"])
        for number in range(3)
    ]
    alice.start("other", name="Grandchild", parentId=children[0]["id"])
    alice.report(children[1], status="error")
    alice.start(name="Single")
    return parent


def test_children_are_folded_until_their_parent_is_opened(
    window: Browser, alice: ApiClient, parent: Task
) -> None:
    html = window.read("/")
    assert names(html) == ["Single", "Parent"]
    assert fold_text(html, parent) == "+ 3 1 failed"
    assert 'id="tab-all"' in html
    assert "all 6 that match" in re.sub(r"\s+", " ", html)
    opened = window.read(fold(html, parent))
    assert names(opened) == ["Single", "Parent", "Child 0", "Child 1", "Child 2"]
    child = {"id": re.findall('id="children-([^"]+)"', opened)[1]}
    both = window.read(fold(opened, child))
    assert names(both) == ["Single", "Parent", "Child 0", "Grandchild", "Child 1", "Child 2"]
    assert names(window.read(fold(both, parent))) == ["Single", "Parent"]
    # Deleting the parent leaves its children to the list.
    alice.delete(f"/task/{parent['id']}")
    assert names(window.read("/")) == ["Single", "Child 2", "Child 1", "Child 0"]


def test_every_filter_shows_the_children_that_match(
    window: Browser, alice: ApiClient, parent: Task
) -> None:
    for query, expected in {
        "q=child": ["Grandchild", "Child 2", "Child 1", "Child 0"],
        "agentId=other": ["Grandchild"],
        "errorType=failed": ["Child 1"],
        "started=1h": ["Single", "Grandchild", "Child 2", "Child 1", "Child 0", "Parent"],
        f"parentId={parent['id']}": ["Child 2", "Child 1", "Child 0"],
    }.items():
        html = window.read(f"/?{query}&open={parent['id']}")
        assert names(html) == expected
        assert 'class="chip children"' not in html
    # Each names its parent.
    assert f'in <a href="/tasks/{parent["id"]}' in window.read("/?errorType=failed")
    # An order is not a filter.
    assert names(window.read("/?sort=createdAt")) == ["Parent", "Single"]


@one_database
def test_deletion_of_a_folded_parent_leaves_its_children(
    window: Browser, alice: ApiClient, parent: Task
) -> None:
    form: Any = {**hidden(window.get("/")), "action": "delete", "taskId": parent["id"]}
    assert "Their children are not deleted" in window.post("/tasks/selected", form).text
    single = next(task for task in alice.get("/task").json or () if task["name"] == "Single")
    assert "children" not in window.post("/tasks/selected", {**form, "taskId": single["id"]}).text


@one_database
def test_pages_have_their_size_in_parents(
    window: Browser, alice: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filters, "PAGE_SIZE", 2)
    parents = [alice.start(name=f"Parent {number}") for number in range(3)]
    for child in range(9):
        alice.start(name=f"Child {child}", parentId=parents[child % 3]["id"])
    first = window.read("/")
    assert names(first) == ["Parent 2", "Parent 1"]
    (following,) = re.findall(r'href="(\?[^"]+)" rel="next"', first)
    second = window.read(f"/{unescape(following)}")
    assert names(second) == ["Parent 0"]
    # The page stays when a parent is opened.
    opened = window.read(fold(second, parents[0]))
    assert names(opened) == ["Parent 0", "Child 0", "Child 3", "Child 6"]


@one_database
def test_many_children_are_counted_up_to_a_limit_and_have_a_list(
    app: Flask, window: Browser, alice: ApiClient
) -> None:
    parent = alice.start(name="Parent")
    child = alice.start(name="Child", parentId=parent["id"])
    copy_task(app, child, lists.MAX_CHILDREN)
    html = window.read("/")
    assert fold_text(html, parent) == "+ 100+"
    opened = window.read(fold(html, parent))
    assert names(opened) == ["Parent", *["Child"] * 50]
    (link,) = re.findall('href="([^"]+)">All children', opened)
    assert names(window.read(unescape(link))) == ["Child"] * 50
    assert window.get("/?open=nonsense").status_code == 200


@one_database
def test_agent_key_sees_children_of_parents_that_it_cannot_see(
    alice: ApiClient, parent: Task
) -> None:
    html = signed_in(alice.agent_key("other")).read("/")
    assert names(html) == ["Grandchild"]
    assert "Child 0" not in html


@one_database
def test_folded_list_reads_a_part_of_an_index(
    app: Flask, window: Browser, alice: ApiClient, parent: Task
) -> None:
    statements = [read for read in reads(app, lambda: window.get("/")) if "FROM tasks" in read[0]]
    assert any("parent_id IS NULL" in sql for sql, _ in statements)
    plan = [step for sql, values in statements for step in plan_of(app, sql, values)]
    scans = [step for step in plan if step.startswith("SCAN") and "json_each" not in step]
    assert not [step for step in scans if "tasks" in step], plan
    assert any("tasks_by_creation" in step for step in plan), plan
    assert any("tasks_by_parent" in step for step in plan), plan
