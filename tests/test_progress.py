"""Progress and note: how a running task stands; who started it, and who ended it."""

from collections.abc import Iterable
from functools import partial
from typing import Any, cast

import pytest
from flask import Flask

from tests.support.api_client import ApiClient, check_invalid_fields, expect, problem
from tests.support.internals import end_for_silence
from tests.support.marks import one_database


@pytest.mark.parametrize("progress", [0, 1, 0.5, 1 / 3, 0.1 + 0.2, 5e-324, 1e-7, None])
def test_progress_is_answered_as_it_was_sent(
    alice: ApiClient, task: dict[str, Any], progress: float | None
) -> None:
    assert alice.report(task, progress=progress)["progress"] == progress
    assert alice.task(task)["progress"] == progress
    assert expect(alice.get("/task"), 200)[0]["progress"] == progress


def test_progress_and_note_raise_the_version_and_stay_at_the_end(
    alice: ApiClient, task: dict[str, Any]
) -> None:
    before = alice.get(f"/task/{task['id']}").headers["ETag"]
    alice.report(task, progress=0.5, note="34 of 68 pages")
    assert alice.get(f"/task/{task['id']}").headers["ETag"] != before
    ended = alice.report(task, status="error", error={"message": "no paper"})
    assert (ended["progress"], ended["note"]) == (0.5, "34 of 68 pages")


@one_database
def test_invalid_progress_note_or_duration_is_422(
    alice: ApiClient, task: dict[str, Any], subtests: pytest.Subtests
) -> None:
    invalid: dict[str, list[Any]] = {
        "progress": [-0.1, 1.01, "0.5", True], "seconds": [-1, 1e9, "12"], "note": ["x" * 201, 5],
    }  # fmt: skip
    check_invalid_fields(partial(alice.patch, f"/task/{task['id']}"), {}, invalid, subtests)
    assert alice.task(task) == task


def test_reported_duration_is_the_task_s_and_counts_for_its_agent(alice: ApiClient) -> None:
    task = alice.start(claim=True)
    ended = alice.report(task, status="complete", seconds=12.5)
    assert ended["seconds"] == alice.task(task)["seconds"] == 12.5
    # The same report again changes nothing.
    assert alice.report(task, status="complete", seconds=12.5) == ended
    problem(alice.patch(f"/task/{task['id']}", json={"seconds": 13}), 409)
    agent = expect(alice.get(f"/agent/{task['agentId']}?expand=health"), 200)
    assert agent["health"]["medianSeconds"] == agent["health"]["recent"][0]["seconds"] == 12.5


def test_finished_task_takes_no_progress(alice: ApiClient, task: dict[str, Any]) -> None:
    alice.report(task, progress=0.5, status="complete")
    for change in ({"progress": 0.6}, {"note": "late"}, {"progress": None}):
        problem(alice.patch(f"/task/{task['id']}", json=change), 409)
    # What changes nothing does not count as a report.
    assert alice.report(task, progress=0.5)["progress"] == 0.5


def test_progress_is_an_event(alice: ApiClient, task: dict[str, Any]) -> None:
    stream = alice.get(f"/task/{task['id']}/events")
    pieces = cast(Iterable[bytes], stream.response)
    assert b'"progress":null' in next(iter(pieces))
    alice.report(task, progress=0.25, note="a quarter")
    alice.report(task, status="complete")
    text = b"".join(pieces)
    assert b'"status":"complete"' in text
    assert b'"progress":0.25' in text


def test_started_by_is_the_name_of_the_key(alice: ApiClient) -> None:
    task = alice.with_key("laptop").start()
    assert task["startedBy"] == "laptop"
    assert alice.task(task) == task
    assert expect(alice.get("/task"), 200) == [task]
    assert expect(alice.get("/task?fields=startedBy"), 200) == [{"startedBy": "laptop"}]
    by_agent = alice.agent_key().start()
    assert by_agent["startedBy"] == "agent"


def test_rerun_is_started_by_the_key_that_reran_it(alice: ApiClient, task: dict[str, Any]) -> None:
    again = expect(alice.with_key("phone").post(f"/task/{task['id']}/rerun"), 201)
    assert again["startedBy"] == "phone"
    assert alice.task(task)["startedBy"] == "first"


def test_ended_by_is_the_name_of_the_key(alice: ApiClient, task: dict[str, Any]) -> None:
    name = expect(alice.get("/user"), 200)["key"]["name"]
    assert alice.report(task, status="complete")["endedBy"] == name
    assert alice.task(task)["endedBy"] == name
    cancelled = alice.start()
    expect(alice.post(f"/task/{cancelled['id']}/cancel"), 200)
    assert alice.task(cancelled)["endedBy"] == name
    by_agent = alice.agent_key()
    assert by_agent.report(by_agent.start(), status="error")["endedBy"] == "agent"


def test_late_report_ends_it_again(alice: ApiClient, app: Flask) -> None:
    task = alice.start(claim=True)
    end_for_silence(app, task)
    assert alice.task(task)["endedBy"] == "service"
    name = expect(alice.get("/user"), 200)["key"]["name"]
    assert alice.report(task, status="complete")["endedBy"] == name
