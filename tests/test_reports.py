"""Reports: changes of a task's status, output, error and name, valid and invalid."""

import json
import time
from functools import partial
from typing import Any

import pytest
from flask import Flask

from taskservice.terms import MAX_MESSAGE, MAX_OBJECT
from tests.support.api_client import ApiClient, check_invalid_fields, expect, problem
from tests.support.internals import column, end_for_silence, moment, rows
from tests.support.marks import one_database
from tests.support.receiver import Receiver

Task = dict[str, Any]

OUTCOMES: dict[str, Task] = {
    "complete": {"status": "complete", "output": {"answer": 42}},
    "failed": {
        "status": "error",
        "output": {"answer": 42},
        "error": {"type": "failed", "message": "out of paper"},
    },
}
LATE_WORDS = (
    {"status": "complete", "output": {"late": True}},
    {"status": "error", "error": {"message": "late, and failed"}},
)


def path(task: Task) -> str:
    return f"/task/{task['id']}"


def report_text(person: ApiClient, task: Task, body: bytes) -> Any:
    """Report with exactly these bytes; `json=` would sort keys and respell numbers."""
    return person.patch(path(task), data=body, content_type="application/json")


def summary(task: Task) -> Task:
    """What a 409 tells of a task."""
    return {name: task[name] for name in ("id", "status", "error")}


# --- a running task ----------------------------------------------------------------------


def test_complete_ends_the_task(alice: ApiClient) -> None:
    task = alice.start()
    time.sleep(0.002)
    response = alice.patch(path(task), json={"status": "complete", "output": {"answer": 42}})
    ended = expect(response, 200)
    assert response.headers["Callback-Status"] == "none"
    assert ended["updatedAt"] == ended["finishedAt"] > task["updatedAt"]
    changes = {name: ended[name] for name in ("updatedAt", "finishedAt", "endedBy")}
    assert ended == task | {"status": "complete", "output": {"answer": 42}} | changes
    assert alice.task(task) == ended


def test_error_ends_the_task_as_failed(alice: ApiClient) -> None:
    task = alice.start()
    ended = alice.report(task, status="error", error={"message": "out of paper"})
    assert ended["status"] == "error"
    assert ended["error"] == {"type": "failed", "message": "out of paper"}
    assert ended["finishedAt"] == ended["updatedAt"]
    assert alice.task(task) == ended


def test_error_without_a_message_gets_one(alice: ApiClient) -> None:
    forms: tuple[Task, ...] = ({}, {"error": None})
    for fields in forms:
        ended = alice.report(alice.start(), status="error", **fields)
        assert ended["error"]["type"] == "failed"
        assert ended["error"]["message"]


def test_interim_report_leaves_the_task_running(alice: ApiClient) -> None:
    task = alice.start()
    time.sleep(0.002)
    changed = alice.report(task, status="running", output={"percent": 40}, name="half way")
    assert (changed["status"], changed["finishedAt"]) == ("running", None)
    assert (changed["output"], changed["name"]) == ({"percent": 40}, "half way")
    assert moment(changed["updatedAt"]) > moment(task["updatedAt"])
    assert alice.task(task) == changed


def test_each_given_key_replaces_that_key_whole(alice: ApiClient) -> None:
    task = alice.start()
    alice.report(task, output={"a": {"x": 1, "y": 2}, "b": [1, 2], "c": "kept"})
    changed = alice.report(task, output={"a": {"x": 3}, "b": [], "d": None})
    assert changed["output"] == {"a": {"x": 3}, "b": [], "c": "kept", "d": None}
    assert alice.task(task) == changed


def test_keys_stay_in_the_order_in_which_they_came(alice: ApiClient) -> None:
    task = alice.start()
    expect(report_text(alice, task, b'{"output":{"z":1,"a":{"y":2,"b":3}}}'), 200)
    expect(report_text(alice, task, b'{"output":{"m":4,"z":5}}'), 200)
    assert b'"output":{"z":5,"a":{"y":2,"b":3},"m":4}' in alice.get(path(task)).data


def test_keys_with_unusual_characters_are_keys(alice: ApiClient) -> None:
    odd = {"": 1, "status": 2, "a.b": 3, "ü𝛂": 4, " ": 5, "a\nb": 6, "__proto__": 7, "\ufffd": 8}
    task = alice.start()
    assert alice.report(task, output=odd)["output"] == odd
    assert alice.report(task, output={"": 9})["output"] == odd | {"": 9}


def test_numbers_are_kept_exactly(alice: ApiClient) -> None:
    numbers = (
        b'{"a":9223372036854775808,"b":-9223372036854775809,"c":0.1,"d":3.14159265358979323846,'
        b'"e":123456789012345678901234567890,"f":1e-400,"g":18446744073709551616}'
    )
    task = alice.start()
    response = report_text(alice, task, b'{"output":' + numbers + b"}")
    expect(response, 200)
    assert numbers in response.data
    # They survive the next merge too.
    alice.report(task, output={"z": 1})
    assert numbers[:-1] + b',"z":1}' in alice.get(path(task)).data


def test_empty_report_is_a_heartbeat_and_changes_nothing_visible(
    alice: ApiClient, app: Flask
) -> None:
    task = alice.start(claim=True)
    before = column(app, task, "last_heartbeat_at"), column(app, task, "version")
    beats: tuple[Task, ...] = ({}, {"status": "running"}, {"output": {}}, {"error": None})
    for fields in beats:
        time.sleep(0.002)
        response = alice.patch(path(task), json=fields)
        assert expect(response, 200) == task
        assert response.headers["Callback-Status"] == "none"
        assert alice.task(task) == task
        after = column(app, task, "last_heartbeat_at"), column(app, task, "version")
        assert after[0] > before[0]
        assert after[1] == before[1]
        before = after


@one_database
def test_report_without_any_body_is_a_heartbeat(alice: ApiClient) -> None:
    task = alice.start()
    assert expect(alice.patch(path(task)), 200) == task


def test_report_of_the_present_values_changes_nothing(alice: ApiClient) -> None:
    task = alice.start(name="a name")
    changed = alice.report(task, output={"a": 1}, name="other")
    time.sleep(0.002)
    assert alice.report(task, output={"a": 1}, name="other", status="running") == changed


# --- what is unfit -----------------------------------------------------------------------

MESSAGE = {"message": "m"}
INVALID: dict[str, list[Any]] = {
    "output": [None, [], "text", 5],
    "status": [
        None, "", "done", "Complete", "cancelled", "timeout", 1, ["complete"],
    ],
    "name": [None, "", "x" * 201, 5],
    "error": [MESSAGE],
    "id": ["x"], "agentId": ["summarizer"], "userId": ["x"], "createdAt": ["2026-01-01T00:00:00Z"],
    "updatedAt": [None], "claimedAt": [None], "finishedAt": [None], "input": [{}], "logs": [["x"]],
    "firstLog": [1], "logCount": [0], "callback": ["https://example.com/"], "agent": [{}],
    "user": [{}], "timeout": [5], "claim": [True], "nonsense": [1], "Status": ["complete"],
}  # fmt: skip
# By the status of the report.
INVALID_ERRORS: dict[str, list[Any]] = {
    "running": [MESSAGE],
    "complete": [MESSAGE, {"type": "failed", **MESSAGE}],
    "error": [
        {}, "text", [], {"type": "failed"}, {"type": "cancelled", **MESSAGE},
        {"type": "timeout", **MESSAGE}, {"type": "other", **MESSAGE}, {"type": None, **MESSAGE},
        {"message": None}, {"message": 5}, {"code": 5, **MESSAGE},
        {"message": "ü" * (MAX_MESSAGE // 2) + "x"},
    ],
}  # fmt: skip


@one_database
def test_invalid_report_is_422_names_its_field_and_changes_nothing(
    alice: ApiClient, app: Flask, subtests: pytest.Subtests
) -> None:
    task = alice.start()
    before = rows(app)
    patch = partial(alice.patch, path(task))
    valid = {"name": "half", "output": {"half": 1}}
    check_invalid_fields(patch, valid, INVALID, subtests)
    for status, errors in INVALID_ERRORS.items():
        check_invalid_fields(patch, {**valid, "status": status}, {"error": errors}, subtests)
    assert rows(app) == before


def test_longest_message_is_fit(alice: ApiClient) -> None:
    message = "ü" * (MAX_MESSAGE // 2)
    ended = alice.report(alice.start(), status="error", error={"message": message})
    assert ended["error"]["message"] == message


def test_output_of_1_mib_is_fit_and_one_byte_more_is_not(alice: ApiClient) -> None:
    room = MAX_OBJECT - len('{"x":""}')
    assert MAX_OBJECT == 1024 * 1024
    task = alice.start()
    problem(alice.patch(path(task), json={"output": {"x": "y" * (room + 1)}}), 422)
    assert alice.task(task) == task
    largest = {"x": "ü" * (room // 2)}
    body = json.dumps({"output": largest}, ensure_ascii=False).encode()
    assert expect(report_text(alice, task, body), 200)["output"] == largest


def test_output_is_measured_after_merging(alice: ApiClient) -> None:
    task = alice.start()
    half = "y" * (MAX_OBJECT // 2)
    first = alice.report(task, output={"a": half})
    room = MAX_OBJECT - len(json.dumps({"a": half, "b": ""}, separators=(",", ":")))
    too_large = {"status": "complete", "name": "new", "output": {"b": "y" * (room + 1)}}
    body = problem(alice.patch(path(task), json=too_large), 422)
    assert list(body["errors"]) == ["output"]
    assert alice.task(task) == first
    # Replacing a key frees the space of its old value.
    assert alice.report(task, output={"a": half[:-1], "b": "y" * (room + 1)})["status"] == "running"


@one_database
def test_spaces_of_the_body_do_not_count(alice: ApiClient) -> None:
    body = b'{"output": {"a":' + b" " * MAX_OBJECT + b"1}}"
    assert expect(report_text(alice, alice.start(), body), 200)["output"] == {"a": 1}


# --- a finished task ---------------------------------------------------------------------


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_equal_report_on_a_finished_task_is_200_and_sends_nothing(
    alice: ApiClient, receiver: Receiver, outcome: str
) -> None:
    report = OUTCOMES[outcome]
    task = alice.start(callback=receiver.url, name="same")
    ended = alice.report(task, **report)
    assert len(receiver.requests) == 1
    time.sleep(0.002)
    equals: tuple[Task, ...] = (
        report, {}, {"status": report["status"]}, {"output": report["output"]},
        {"output": {}}, {"name": "same"}, {"error": None}, report | {"name": "same"},
    )  # fmt: skip
    for again in equals:
        response = alice.patch(path(task), json=again)
        assert expect(response, 200) == ended
        assert response.headers["Callback-Status"] == "none"
    assert alice.task(task) == ended
    assert len(receiver.requests) == 1


@one_database
def test_equal_report_is_equal_however_it_is_spelled(alice: ApiClient) -> None:
    task = alice.start()
    first = b'{"status":"complete","output":{"a":{"x":1.5,"y":[{"p":2,"q":3}]},"b":"\xc3\xbc"}}'
    ended = expect(report_text(alice, task, first), 200)
    again = (
        b' { "output" : {"b" : "\\u00fc", "a" : {"y":[{"q":3,"p":2}], "x":1.50}},'
        b' "status" : "complete" } '
    )
    assert expect(report_text(alice, task, again), 200) == ended


@pytest.mark.parametrize("outcome", [*OUTCOMES, "cancelled"])
def test_any_change_of_a_finished_task_is_409(
    alice: ApiClient, app: Flask, receiver: Receiver, outcome: str, subtests: pytest.Subtests
) -> None:
    task = alice.start(callback=receiver.url)
    if outcome == "cancelled":
        ended = expect(alice.post(f"{path(task)}/cancel"), 200)
    else:
        ended = alice.report(task, **OUTCOMES[outcome])
    before = rows(app)
    for changes in (
        {"status": "running"},
        {"output": {"answer": 43}},
        {"output": {"more": 1}},
        {"output": {"more": None}},
        {"status": "error", "error": {"message": "another"}},
        {"status": "complete" if ended["status"] == "error" else "error"},
        {"status": ended["status"], "output": {"more": 1}},
        {"name": "new", "output": {"more": 1}},
    ):
        with subtests.test(str(changes)):
            body = problem(alice.patch(path(task), json=changes), 409)
            assert body["task"] == summary(ended)
            assert rows(app) == before
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_name_of_a_finished_task_stays_editable(
    alice: ApiClient, receiver: Receiver, outcome: str
) -> None:
    task = alice.start(callback=receiver.url)
    ended = alice.report(task, **OUTCOMES[outcome])
    time.sleep(0.002)
    response = alice.patch(path(task), json={"name": "new", **OUTCOMES[outcome]})
    renamed = expect(response, 200)
    assert renamed["updatedAt"] > ended["updatedAt"]
    assert renamed == ended | {"name": "new", "updatedAt": renamed["updatedAt"]}
    assert response.headers["Callback-Status"] == "none"
    assert len(receiver.requests) == 1


@one_database
def test_unfit_comes_before_finished(alice: ApiClient) -> None:
    task = alice.start()
    alice.report(task, status="complete")
    problem(alice.patch(path(task), json={"status": "complete", "error": {"message": "m"}}), 422)
    problem(alice.patch(path(task), json={"nonsense": 1}), 422)


# --- the late report -----------------------------------------------------------------------


@pytest.mark.parametrize("word", LATE_WORDS, ids=lambda word: str(word["status"]))
@pytest.mark.parametrize("by_agent", [False, True], ids=["user-key", "agent-key"])
def test_task_that_the_service_ended_is_finished_by_a_late_report(
    alice: ApiClient, app: Flask, receiver: Receiver, word: Task, by_agent: bool
) -> None:
    task = alice.start(callback=receiver.url, claim=True)
    alice.report(task, output={"early": True})
    end_for_silence(app, task)
    silent = alice.task(task)
    assert silent["error"]["type"] == "timeout"
    time.sleep(0.002)
    speaker = alice.agent_key() if by_agent else alice
    response = speaker.patch(path(task), json=word)
    ended = expect(response, 200)
    assert response.headers["Callback-Status"] == "delivered"
    assert ended["status"] == word["status"]
    assert ended["output"] == {"early": True, **word.get("output", {})}
    failure = {"type": "failed", "message": "late, and failed"} if "error" in word else None
    assert ended["error"] == failure
    assert ended["finishedAt"] == ended["updatedAt"] > silent["finishedAt"]
    assert alice.task(task) == ended
    (webhook,) = receiver.requests
    assert json.loads(webhook.body) == ended
    # After that the task accepts nothing.
    problem(alice.patch(path(task), json={"output": {"later": 1}}), 409)
    problem(alice.post(f"{path(task)}/logs", json={"logs": ["later"]}), 409)


def test_late_error_without_a_message_is_a_failure(alice: ApiClient, app: Flask) -> None:
    task = alice.start(claim=True)
    end_for_silence(app, task)
    ended = alice.report(task, status="error")
    assert ended["error"]["type"] == "failed"
    assert ended["error"]["message"] != "Its agent fell silent"


def test_task_that_the_service_ended_may_be_appended_to(alice: ApiClient, app: Flask) -> None:
    task = alice.start(claim=True)
    alice.append(task, "early")
    end_for_silence(app, task)
    assert alice.append(task, "late") == {"logCount": 2, "status": "error"}
    assert alice.append(task) == {"logCount": 2, "status": "error"}
    late = alice.task(task)
    assert late["logs"] == ["early", "late"]
    assert (late["status"], late["error"]["type"]) == ("error", "timeout")


def test_late_report_must_end_the_task(alice: ApiClient, app: Flask) -> None:
    task = alice.start(claim=True)
    end_for_silence(app, task)
    silent, before = alice.task(task), rows(app)
    for changes in (
        {"status": "running"},
        {"output": {"late": 1}},
        {"status": "running", "output": {"late": 1}},
        {"name": "new", "output": {"late": 1}},
    ):
        body = problem(alice.patch(path(task), json=changes), 409)
        assert body["task"] == summary(silent)
    assert problem(alice.post(f"{path(task)}/cancel"), 409)["task"] == summary(silent)
    assert rows(app) == before
    assert expect(alice.patch(path(task), json={}), 200) == silent
    assert alice.report(task, name="new")["error"] == silent["error"]


@pytest.mark.parametrize("word", LATE_WORDS, ids=lambda word: str(word["status"]))
def test_cancelled_task_hears_no_late_report(
    alice: ApiClient, receiver: Receiver, word: Task
) -> None:
    task = alice.start(callback=receiver.url)
    cancelled = expect(alice.post(f"{path(task)}/cancel"), 200)
    for response in (
        alice.patch(path(task), json=word),
        alice.post(f"{path(task)}/logs", json={"logs": ["late"]}),
        alice.post(f"{path(task)}/logs", json={"logs": []}),
    ):
        assert problem(response, 409)["task"] == summary(cancelled)
    assert alice.task(task) == cancelled
    assert len(receiver.requests) == 1
