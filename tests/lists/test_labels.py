"""Labels: set at the start, merged by reports, and found by a filter."""

from functools import partial
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask

from tests.support.api_client import ApiClient, expect, problem
from tests.support.concurrency import at_once, copies
from tests.support.internals import rows
from tests.support.marks import one_database
from tests.support.paging import in_pages
from tests.support.service import Service

UNUSUAL = {"a": "=", "b": ":", "c": "k:v=w", "d": "🙂" * 256, "0._-z": " ", "e": "a&b#%\x7f"}


def names_with(alice: ApiClient, *labels: str) -> list[str]:
    query = "&".join(f"label={quote(label)}" for label in labels)
    names = [task["name"] for task in expect(alice.get(f"/task?{query}"), 200)]
    assert [task["name"] for task in in_pages(alice.get, f"{query}&limit=1")] == names
    return names


def test_labels_are_kept_as_they_were_set(alice: ApiClient) -> None:
    task = alice.start(labels=UNUSUAL)
    assert task["labels"] == UNUSUAL
    assert alice.task(task)["labels"] == UNUSUAL
    assert expect(alice.get("/task"), 200)[0]["labels"] == UNUSUAL


def test_task_without_labels_has_an_empty_object(alice: ApiClient) -> None:
    assert alice.start()["labels"] == {}
    assert alice.start(labels=None)["labels"] == {}


def test_every_label_finds_its_task(alice: ApiClient) -> None:
    alice.start(name="other", labels={key: f"{value[:200]}-" for key, value in UNUSUAL.items()})
    alice.start(name="wanted", labels=UNUSUAL)
    for key, value in UNUSUAL.items():
        assert names_with(alice, f"{key}:{value}") == ["wanted"]
    assert names_with(alice, *(f"{key}:{value}" for key, value in UNUSUAL.items())) == ["wanted"]


def test_several_labels_must_all_fit(alice: ApiClient) -> None:
    alice.start(name="one", labels={"env": "prod", "team": "a"})
    alice.start(name="two", labels={"env": "prod", "team": "b"})
    assert names_with(alice, "env:prod") == ["two", "one"]
    assert names_with(alice, "env:prod", "team:a") == ["one"]
    assert names_with(alice, "env:prod", "env:prod") == ["two", "one"]
    assert names_with(alice, "env:prod", "env:test") == []
    assert names_with(alice, "team:c") == []


def test_labels_of_others_are_not_names_with(alice: ApiClient, bob: ApiClient) -> None:
    bob.start(labels={"env": "prod"})
    assert names_with(alice, "env:prod") == []


def test_report_merges_labels_and_null_removes_one(alice: ApiClient, app: Flask) -> None:
    task = alice.start(name="it", labels={"env": "test", "team": "a"})
    changed = alice.report(task, labels={"env": "prod", "team": None, "new": "1"})
    assert changed["labels"] == {"env": "prod", "new": "1"}
    assert alice.task(task) == changed
    assert names_with(alice, "env:prod") == ["it"]
    assert names_with(alice, "env:test") == []
    assert names_with(alice, "team:a") == []
    assert len(rows(app)["task_labels"]) == 2


def test_same_labels_change_nothing(alice: ApiClient) -> None:
    task = alice.start(labels={"env": "prod"})
    before = alice.get(f"/task/{task['id']}")
    alice.report(task, labels={"env": "prod", "absent": None})
    assert alice.get(f"/task/{task['id']}").headers["ETag"] == before.headers["ETag"]


def test_labels_of_a_finished_task_stay_editable(alice: ApiClient) -> None:
    task = alice.start(name="it", labels={"env": "test"})
    alice.report(task, status="complete")
    assert alice.report(task, labels={"env": "prod"})["labels"] == {"env": "prod"}
    assert names_with(alice, "env:prod") == ["it"]
    response = alice.patch(f"/task/{task['id']}", json={"labels": {"a": "b"}, "note": "n"})
    assert problem(response, 409)["code"] == "task_finished"
    assert names_with(alice, "a:b") == []


def test_deleted_task_leaves_no_label(alice: ApiClient, app: Flask) -> None:
    task = alice.start(labels={"env": "prod"})
    expect(alice.delete(f"/task/{task['id']}"), 200)
    assert rows(app)["task_labels"] == []
    assert names_with(alice, "env:prod") == []


@pytest.mark.parametrize(
    "labels",
    [
        {"": "x"}, {"A": "x"}, {"a b": "x"}, {"a\n": "x"}, {"x" * 65: "x"}, {"-a": "x"},
        {"a": ""}, {"a": "x" * 257}, {"a": 5}, {"a": None}, {"a": ["x"]}, [], "a:b",
        {f"k{number}": "v" for number in range(17)},
    ],
)  # fmt: skip
@one_database
def test_unfit_labels_are_422(alice: ApiClient, labels: Any) -> None:
    alice.register()
    body = {"agentId": "summarizer", "labels": labels}
    assert list(problem(alice.post("/task", json=body), 422)["errors"]) == ["labels"]
    task = alice.start(labels={f"l{number}": "v" for number in range(16)})
    if labels != {"a": None}:
        answer = alice.patch(f"/task/{task['id']}", json={"labels": labels})
        assert list(problem(answer, 422)["errors"]) == ["labels"]
    assert len(alice.task(task)["labels"]) == 16


@one_database
def test_merged_labels_are_at_most_16(alice: ApiClient) -> None:
    task = alice.start(labels={f"l{number}": "v" for number in range(16)})
    answer = alice.patch(f"/task/{task['id']}", json={"labels": {"one": "more"}})
    assert list(problem(answer, 422)["errors"]) == ["labels"]
    changed = alice.report(task, labels={"one": "more", "l0": None})
    assert len(changed["labels"]) == 16


def test_labels_that_are_set_at_the_same_instant_are_all_kept(two_workers: Service) -> None:
    alice = two_workers.add_user()
    task = alice.start(labels={f"l{number}": "old" for number in range(8)})
    path = f"/task/{task['id']}"
    # Each replaces one label and removes another.
    changes = [{f"l{number}": "new", f"l{number + 4}": None} for number in range(4)]
    changes += [{f"m{number}": "new"} for number in range(4)]
    answers = at_once(
        [
            partial(person.request, "PATCH", path, json={"labels": change})
            for person, change in zip(copies(alice, 8), changes, strict=True)
        ]
    )
    assert {answer.status_code for answer in answers} == {200}
    expected = {f"{name}{number}": "new" for name in "lm" for number in range(4)}
    assert alice.request("GET", path).json()["labels"] == expected
    for key in expected:
        (labelled,) = alice.request("GET", f"/task?label={key}:new").json()
        assert labelled["id"] == task["id"]
    assert alice.request("GET", "/task?label=l4:old").json() == []


@one_database
def test_link_keeps_all_labels(alice: ApiClient) -> None:
    for _ in range(3):
        alice.start(labels={"env": "prod", "team": "a"})
    link = alice.get("/task?label=env:prod&label=team:a&limit=1").headers["Link"]
    assert "label=env%3Aprod&label=team%3Aa" in link
