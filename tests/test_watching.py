"""Reads a log, long-polls, and follows a task live."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from flask import Flask

from taskservice import resources
from taskservice.database.watcher import WaitSlots, Watcher
from taskservice.web import waiting as task_events
from tests.support.api_client import API, ApiClient, expect, problem
from tests.support.clocks import Clocks
from tests.support.followers import numbered
from tests.support.marks import one_database
from tests.support.waiting import until

# How long news may take at most on a machine that is busy with other tests.
SOON = 25.0
TEXT = {"Accept": "text/plain"}


def logs(person: ApiClient, task: dict[str, Any], query: str = "", **options: Any) -> Any:
    return expect(person.get(f"/task/{task['id']}/logs{query}", **options), 200)


# --- pages of a log ----------------------------------------------------------------------


def test_log_is_read_in_pages_by_one_cursor(alice: ApiClient, task: dict[str, Any]) -> None:
    for first in range(1, 26, 5):
        alice.append(task, *numbered(first, first + 4))
    seen: list[str] = []
    after = 0
    while page := logs(alice, task, f"?after={after}&limit=7")["logs"]:
        seen += page
        after = logs(alice, task, f"?after={after}&limit=7")["next"]
    assert seen == numbered(1, 25)
    assert after == 25


def test_page_has_the_status_of_the_task(alice: ApiClient, task: dict[str, Any]) -> None:
    assert logs(alice, task) == {"logs": [], "next": 0, "status": "running"}
    alice.append(task, "one")
    alice.report(task, status="complete")
    assert logs(alice, task) == {"logs": ["one"], "next": 1, "status": "complete"}
    assert logs(alice, task, "?after=1") == {"logs": [], "next": 1, "status": "complete"}


def test_page_has_a_thousand_lines_unless_told(alice: ApiClient, task: dict[str, Any]) -> None:
    alice.append(task, *numbered(1, 10_050))
    assert logs(alice, task)["logs"] == numbered(1, 1_000)
    most = logs(alice, task, "?limit=10000&after=20")
    assert (most["logs"], most["next"]) == (numbered(21, 10_020), 10_020)


def test_cursor_past_the_end_stays(alice: ApiClient, task: dict[str, Any]) -> None:
    alice.append(task, "one")
    assert logs(alice, task, "?after=7") == {"logs": [], "next": 7, "status": "running"}


def test_text_is_the_lines_as_they_are(alice: ApiClient, task: dict[str, Any]) -> None:
    alice.append(task, "ein\tZeichen", "", "\u2028 und \u0085", "\x1b[31mrot")
    response = alice.get(f"/task/{task['id']}/logs", headers=TEXT)
    assert response.content_type == "text/plain; charset=utf-8"
    assert response.text == "ein\tZeichen\n\n\u2028 und \u0085\n\x1b[31mrot\n"


def test_text_is_the_whole_log_unless_told(alice: ApiClient, task: dict[str, Any]) -> None:
    alice.append(task, *numbered(1, 10_050))
    path = f"/task/{task['id']}/logs"
    assert alice.get(path, headers=TEXT).text.splitlines() == numbered(1, 10_050)
    some = alice.get(f"{path}?after=10&limit=2", headers=TEXT)
    assert some.text == "line 11\nline 12\n"


@one_database
def test_log_is_text_where_text_is_rather_wanted(
    alice: ApiClient, task: dict[str, Any], subtests: pytest.Subtests
) -> None:
    alice.append(task, "one")
    for accept in (
        "text/plain", "text/plain;charset=utf-8", "text/plain; charset=UTF-8", "text/*",
        "application/json;q=0.1, text/plain;charset=utf-8;q=0.5", "Text/Plain",
    ):  # fmt: skip
        with subtests.test(accept):
            response = alice.get(f"/task/{task['id']}/logs", headers={"Accept": accept})
            assert (response.mimetype, response.text) == ("text/plain", "one\n")


@one_database
def test_log_is_json_unless_text_is_rather_wanted(alice: ApiClient, task: dict[str, Any]) -> None:
    for accept in ("*/*", "application/json, text/plain", "text/*;q=0.5, */*"):
        assert logs(alice, task, headers={"Accept": accept})["logs"] == []


@one_database
def test_wrong_page_is_422(
    alice: ApiClient, task: dict[str, Any], subtests: pytest.Subtests
) -> None:
    for query in (
        "after=-1", "after=x", "after=1.0", f"after={10**24}", "limit=0", "limit=-1", "limit=10001",
        f"limit={10**24}", "limit=abc", "after=1&after=2", "from=1", "after=",
    ):  # fmt: skip
        with subtests.test(query):
            problem(alice.get(f"/task/{task['id']}/logs?{query}"), 422)


# --- waiting -----------------------------------------------------------------------------


def waiting(person: ApiClient, path: str, seconds: int = 20, method: str = "GET") -> Any:
    """Ask, and prefer to wait, from a separate thread; returns how to get the answer.

    It is asked when this returns: it waits, or its answer has come.
    """
    answers: list[Any] = []
    watcher = resources.find(Watcher, person.app)
    others = watcher._watching
    asker = ApiClient(person.app, person.name, person.key)

    def ask() -> None:
        answers.append(asker.request(method, path, headers={"Prefer": f"wait={seconds}"}))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    until(lambda: watcher._watching > others or answers)

    def answer() -> Any:
        thread.join(SOON)
        assert answers, f"No answer came to {path}"
        return answers[0]

    return answer


def test_log_waits_for_a_line(alice: ApiClient, task: dict[str, Any]) -> None:
    alice.append(task, "one")
    answer = waiting(alice, f"/task/{task['id']}/logs?after=1")
    alice.append(task, "two")
    assert answer().headers["Preference-Applied"] == "wait=20"
    assert answer().json == {"logs": ["two"], "next": 2, "status": "running"}


def test_log_waits_for_the_end(alice: ApiClient, task: dict[str, Any]) -> None:
    answer = waiting(alice, f"/task/{task['id']}/logs")
    alice.report(task, status="complete")
    assert answer().json == {"logs": [], "next": 0, "status": "complete"}


def test_log_that_has_news_does_not_wait(alice: ApiClient, task: dict[str, Any]) -> None:
    alice.append(task, "one")
    assert waiting(alice, f"/task/{task['id']}/logs", 60)().json["logs"] == ["one"]


def test_wait_is_over_after_its_time(alice: ApiClient, task: dict[str, Any]) -> None:
    began = time.monotonic()
    response = alice.get(f"/task/{task['id']}/logs", headers={"Prefer": "wait=1"})
    assert time.monotonic() - began >= 1
    assert response.json == {"logs": [], "next": 0, "status": "running"}
    assert "Retry-After" not in response.headers


def test_deletion_ends_a_wait(alice: ApiClient, task: dict[str, Any]) -> None:
    answer = waiting(alice, f"/task/{task['id']}/logs")
    expect(alice.delete(f"/task/{task['id']}"), 200)
    problem(answer(), 404)


def test_task_waits_for_its_end(alice: ApiClient, task: dict[str, Any]) -> None:
    answer = waiting(alice, f"/task/{task['id']}")
    alice.append(task, "one")
    alice.report(task, status="complete", output={"sum": 15})
    assert answer().json == alice.task(task)
    assert answer().json["logs"] == ["one"]


def test_known_task_waits_too(alice: ApiClient, task: dict[str, Any]) -> None:
    path = f"/task/{task['id']}"
    etag = alice.get(path).headers["ETag"]
    response = alice.get(path, headers={"If-None-Match": etag, "Prefer": "wait=1"})
    assert response.status_code == 304
    assert response.headers["Preference-Applied"] == "wait=1"


def test_claim_waits_for_a_task(alice: ApiClient) -> None:
    alice.register()
    answer = waiting(alice, "/agent/summarizer/claim", method="POST")
    task = alice.start()
    assert answer().json["id"] == task["id"]
    assert answer().json["claimedAt"]


def test_two_waiting_claims_get_two_tasks(alice: ApiClient) -> None:
    alice.register()
    ask = partial(waiting, alice, "/agent/summarizer/claim", method="POST")
    answers = [ask(), ask()]
    started = {alice.start()["id"], alice.start()["id"]}
    assert {answer().json["id"] for answer in answers} == started


def test_claim_for_an_unknown_agent_does_not_wait(alice: ApiClient) -> None:
    problem(waiting(alice, "/agent/unknown/claim", method="POST")(), 404)


def guest_of(alice: ApiClient, **fields: Any) -> tuple[ApiClient, str]:
    """Alice with another key of hers, and the path of that key."""
    key = expect(alice.post("/key", json={"name": "guest", **fields}), 201)
    return ApiClient(alice.app, alice.name, key["key"]), f"/key/{key['id']}"


def test_key_that_is_revoked_while_its_claim_waits_gets_no_task(alice: ApiClient) -> None:
    alice.register()
    for fields in ({}, {"agentId": "summarizer"}):
        guest, path = guest_of(alice, **fields)
        answer = waiting(guest, "/agent/summarizer/claim", method="POST")
        expect(alice.delete(path), 200)
        task = alice.start()
        assert problem(answer(), 401)["detail"] == "API key is invalid"
        assert alice.task(task) == task
        alice.report(task, status="complete")


def test_key_that_is_revoked_ends_its_waits(alice: ApiClient, task: dict[str, Any]) -> None:
    alice.register()
    guest, key = guest_of(alice)
    waits = [
        waiting(guest, f"/task/{task['id']}"),
        waiting(guest, f"/task/{task['id']}/logs", method="HEAD"),
    ]
    expect(alice.delete(key), 200)
    alice.append(task, "not for the guest")
    assert [answer().status_code for answer in waits] == [401, 401]


def test_key_that_expires_ends_its_waits(
    alice: ApiClient, task: dict[str, Any], clocks: Clocks
) -> None:
    alice.register("idle")
    ahead = datetime.now(UTC) + timedelta(hours=1)
    guest, _ = guest_of(alice, expiresAt=ahead.isoformat())
    waits = [
        waiting(guest, f"/task/{task['id']}/logs"),
        waiting(guest, "/agent/idle/claim", method="POST"),
    ]
    clocks.go_on(3_600)
    for answer in waits:
        problem(answer(), 401)


def test_agent_that_is_deleted_ends_the_claims_that_wait_for_it(alice: ApiClient) -> None:
    alice.register()
    waits = [
        waiting(person, "/agent/summarizer/claim", method="POST")
        for person in (alice, alice.agent_key())
    ]
    expect(alice.delete("/agent/summarizer"), 200)
    problem(waits[0](), 404)
    problem(waits[1](), 401)


@one_database
def test_meaningless_preference_is_ignored(alice: ApiClient, task: dict[str, Any]) -> None:
    for prefer in (
        "wait", "wait=", "wait=soon", "wait=-1", "wait=0", "respond-async",
        f"wait={'0' * 8_000}x",
    ):  # fmt: skip
        response = alice.get(f"/task/{task['id']}/logs", headers={"Prefer": prefer})
        assert response.status_code == 200
        assert "Preference-Applied" not in response.headers, prefer


@one_database
def test_preference_is_understood_as_it_may_be_written(
    alice: ApiClient, task: dict[str, Any]
) -> None:
    alice.append(task, "one")
    for prefer in (
        "WAIT=1", "respond-async, wAiT=1", "wait=1, wait=50", 'wait="1"', f"wait={'1':0>25}",
    ):  # fmt: skip
        response = alice.get(f"/task/{task['id']}/logs", headers={"Prefer": prefer})
        assert response.headers["Preference-Applied"] == "wait=1", prefer


@one_database
def test_wait_has_an_upper_limit(alice: ApiClient, task: dict[str, Any]) -> None:
    alice.append(task, "one")
    headers = {"Prefer": "respond-async, wait=3600; why=not"}
    response = alice.get(f"/task/{task['id']}/logs", headers=headers)
    assert response.headers["Preference-Applied"] == "wait=60"


def test_wait_without_a_place_is_answered_at_once(alice: ApiClient, task: dict[str, Any]) -> None:
    """The app of the tests has two slots."""
    path = f"/task/{task['id']}/logs"
    answers = [waiting(alice, path) for _ in range(2)]
    third = alice.get(path, headers={"Prefer": "wait=20"})
    assert "Preference-Applied" not in third.headers
    assert third.headers["Retry-After"] == "15"
    alice.append(task, "one")
    assert [answer().json["logs"] for answer in answers] == [["one"], ["one"]]
    # Their slots are free again.
    assert "Preference-Applied" in alice.get(path, headers={"Prefer": "wait=1"}).headers


def places(app: Flask) -> list[str]:
    """The users who hold a slot now, in the order in which they came."""
    return [slot.user_id for slot in resources.find(WaitSlots, app)._held]


def test_user_who_holds_all_places_leaves_one_to_another(
    app: Flask, alice: ApiClient, bob: ApiClient, task: dict[str, Any]
) -> None:
    """The app of the tests has two slots."""
    path, his = f"/task/{task['id']}/logs", bob.start()
    first, second = waiting(alice, path), waiting(alice, path)
    with ThreadPoolExecutor(1) as pool:
        prefer = {"Prefer": "wait=20"}
        bobs = pool.submit(bob.get, f"/task/{his['id']}/logs", headers=prefer)
        until(lambda: places(app) == [task["userId"], his["userId"]])
        assert first().json == {"logs": [], "next": 0, "status": "running"}
        # Neither takes the other's only slot.
        assert "Preference-Applied" not in alice.get(path, headers=prefer).headers
        alice.append(task, "hers")
        bob.append(his, "his")
        assert second().json["logs"] == ["hers"]
        assert expect(bobs.result(), 200)["logs"] == ["his"]
    for answer in (second(), bobs.result()):
        assert answer.headers["Preference-Applied"] == "wait=20"
    assert first().headers["Retry-After"] == "15"


# --- following ---------------------------------------------------------------------------


@one_database
def test_head_of_a_stream_takes_no_place(alice: ApiClient, task: dict[str, Any]) -> None:
    for _ in range(5):
        response = alice.request("HEAD", f"/task/{task['id']}/events")
        assert (response.status_code, response.data) == (200, b"")


@one_database
def test_quiet_stream_sends_comments(
    alice: ApiClient, task: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_events, "COMMENT_SECONDS", 0.5)
    path = f"{API}/task/{task['id']}/events"
    with alice.app.test_client().get(path, headers={"apikey": alice.key}) as response:
        pieces = response.iter_encoded()
        assert next(pieces).startswith(b"event: task\n")
        assert next(pieces) == b":\n\n"
