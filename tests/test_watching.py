"""Reads a log, long-polls, and follows a task live."""

import os
import signal
import socket
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask

from taskservice import resources
from taskservice.database.watcher import WaitSlots, Watcher
from taskservice.services import tasks
from taskservice.web import waiting as task_events
from tests.support import conformance
from tests.support.api_client import API, ApiClient, RemoteClient, expect, problem
from tests.support.concurrency import at_once
from tests.support.followers import (
    Event,
    Follower,
    append_surely,
    events,
    numbered,
    open_stream,
    until_answered,
)
from tests.support.marks import one_database
from tests.support.service import Service
from tests.support.waiting import until

# How long news may take at most on a machine that is busy with other tests.
SOON = 25.0
TEXT = {"Accept": "text/plain"}


def logs(person: ApiClient, task: dict[str, Any], query: str = "", **options: Any) -> Any:
    return expect(person.get(f"/task/{task['id']}/logs{query}", **options), 200)


@pytest.fixture
def task(alice: ApiClient) -> dict[str, Any]:
    return alice.start()


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


def test_log_of_another_user_is_not_found(
    alice: ApiClient, bob: ApiClient, task: dict[str, Any], subtests: pytest.Subtests
) -> None:
    for path in (f"/task/{task['id']}/logs", f"/task/{task['id']}/events", "/task/none/events"):
        with subtests.test(path):
            assert problem(bob.get(path), 404)["detail"] == "Task's ID is not found"


# --- waiting -----------------------------------------------------------------------------


def waiting(person: ApiClient, path: str, seconds: int = 20, method: str = "GET") -> Any:
    """Ask, and prefer to wait, from a thread of its own; returns how to get the answer.

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


@one_database
def test_wait_survives_a_shortage_of_threads_and_is_quick_after_it(
    alice: ApiClient, task: dict[str, Any]
) -> None:
    # A stack larger than all of the address space: the machine refuses each new thread.
    threading.stack_size(2**47)
    try:
        short = logs(alice, task, headers={"Prefer": "wait=1"})
    finally:
        threading.stack_size(0)
    assert short == {"logs": [], "next": 0, "status": "running"}
    answer = waiting(alice, f"/task/{task['id']}/logs")
    assert "watcher" in {thread.name for thread in threading.enumerate()}
    alice.append(task, "one")
    assert answer().json["logs"] == ["one"]


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


def test_task_is_not_given_to_a_client_that_disconnected_while_waiting(service: Service) -> None:
    alice = service.add_user()
    alice.request("PUT", "/agent/summarizer").raise_for_status()
    key = str(alice.session.headers["apikey"])
    head = f"POST {API}/agent/summarizer/claim HTTP/1.1\r\nHost: x\r\napikey: {key}\r\n"
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", service.port)) as waiting:
            waiting.sendall(f"{head}Prefer: wait=20\r\n\r\n".encode())
            time.sleep(0.3)
        task = alice.start()
        time.sleep(0.3)
        assert alice.request("POST", "/agent/summarizer/claim").json()["id"] == task["id"]


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


def test_key_that_expires_ends_its_waits(alice: ApiClient, task: dict[str, Any]) -> None:
    alice.register("idle")
    ahead = datetime.now(UTC) + timedelta(seconds=1)
    guest, _ = guest_of(alice, expiresAt=ahead.isoformat())
    waits = [
        waiting(guest, f"/task/{task['id']}/logs"),
        waiting(guest, "/agent/idle/claim", method="POST"),
    ]
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


def test_claim_says_that_its_key_went_with_its_agent(
    alice: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice.register()
    look = tasks.has_task_for_claim

    def look_after_deletion(*arguments: Any) -> bool:
        with ThreadPoolExecutor(1) as another:
            expect(another.submit(alice.delete, "/agent/summarizer").result(), 200)
        return look(*arguments)

    agent = alice.agent_key()
    monkeypatch.setattr(tasks, "has_task_for_claim", look_after_deletion)
    problem(agent.post("/agent/summarizer/claim", headers={"Prefer": "wait=20"}), 401)


@one_database
def test_meaningless_preference_is_ignored(alice: ApiClient, task: dict[str, Any]) -> None:
    for prefer in (
        "wait", "wait=", "wait=soon", "wait=-1", "wait=0", "respond-async", "wait=soon, wait=1",
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
    """The app of the tests has two places."""
    path = f"/task/{task['id']}/logs"
    answers = [waiting(alice, path) for _ in range(2)]
    third = alice.get(path, headers={"Prefer": "wait=20"})
    assert "Preference-Applied" not in third.headers
    assert third.headers["Retry-After"] == "10"
    alice.append(task, "one")
    assert [answer().json["logs"] for answer in answers] == [["one"], ["one"]]
    # Their places are free again.
    assert "Preference-Applied" in alice.get(path, headers={"Prefer": "wait=1"}).headers


def places(app: Flask) -> list[str]:
    """The users who hold a place now, in the order in which they came."""
    return [slot.user_id for slot in resources.find(WaitSlots, app)._held]


def test_user_who_holds_all_places_leaves_one_to_another(
    app: Flask, alice: ApiClient, bob: ApiClient, task: dict[str, Any]
) -> None:
    """The app of the tests has two places."""
    path, his = f"/task/{task['id']}/logs", bob.start()
    first, second = waiting(alice, path), waiting(alice, path)
    with ThreadPoolExecutor(1) as pool:
        prefer = {"Prefer": "wait=20"}
        bobs = pool.submit(bob.get, f"/task/{his['id']}/logs", headers=prefer)
        until(lambda: places(app) == [task["userId"], his["userId"]])
        assert first().json == {"logs": [], "next": 0, "status": "running"}
        # Neither takes the other's only place.
        assert "Preference-Applied" not in alice.get(path, headers=prefer).headers
        alice.append(task, "hers")
        bob.append(his, "his")
        assert second().json["logs"] == ["hers"]
        assert expect(bobs.result(), 200)["logs"] == ["his"]
    for answer in (second(), bobs.result()):
        assert answer.headers["Preference-Applied"] == "wait=20"
    assert first().headers["Retry-After"] == "10"


def test_wait_ends_for_another_user_before_an_older_stream_does(tmp_path: Path) -> None:
    with Service(tmp_path / "data", WAITS="2") as service, ExitStack() as stack:
        alice, bob = service.add_user("alice"), service.add_user("bob")
        task, his = alice.start(), bob.start()
        stream = events(stack.enter_context(open_stream(alice, task)))
        assert next(stream).kind == "task"
        with ThreadPoolExecutor(1) as pool:
            path, prefer = f"/task/{task['id']}", {"Prefer": "wait=60"}
            person = RemoteClient(service.url, key_of(alice))
            wait = pool.submit(person.request, "GET", path, headers=prefer)
            until(lambda: open_waits(service) == 2)
            followed = events(stack.enter_context(open_stream(bob, his)))
            assert next(followed).kind == "task"
            assert wait.result().json()["status"] == "running"
        append(alice, task, "one")
        assert next(stream).data == "one"


def test_stream_takes_the_place_of_a_wait_of_its_user_and_else_is_503(tmp_path: Path) -> None:
    with Service(tmp_path / "data", WAITS="2") as service, ExitStack() as stack:
        alice = service.add_user("alice")
        task = alice.start()
        first = events(stack.enter_context(open_stream(alice, task)))
        assert next(first).kind == "task"
        with ThreadPoolExecutor(1) as pool:
            path, prefer = f"/task/{task['id']}", {"Prefer": "wait=60"}
            person = RemoteClient(service.url, key_of(alice))
            wait = pool.submit(person.request, "GET", path, headers=prefer)
            until(lambda: open_waits(service) == 2)
            second = events(stack.enter_context(open_stream(alice, task)))
            assert next(second).kind == "task"
            assert wait.result().json()["status"] == "running"
        refused = alice.request("GET", f"/task/{task['id']}/events")
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert int(refused.headers["Retry-After"]) > 0
        append(alice, task, "one")
        assert [next(first).data, next(second).data] == ["one", "one"]


def open_waits(service: Service) -> int:
    text = requests.get(f"{service.url}/metrics", timeout=30).text
    return int(dict(line.rsplit(" ", 1) for line in text.splitlines())["taskservice_waits"])


def test_oldest_stream_of_a_user_who_holds_all_places_ends_for_another(tmp_path: Path) -> None:
    with Service(tmp_path / "data", WAITS="2") as service, ExitStack() as stack:
        alice, bob = service.add_user("alice"), service.add_user("bob")
        task, his = alice.start(), bob.start()
        people = [(RemoteClient(service.url, key_of(alice)), task) for _ in range(2)]
        streams = [
            events(stack.enter_context(open_stream(*each))) for each in [*people, (bob, his)]
        ]
        next(streams[0])
        assert list(streams[0]) == []
        append(alice, task, "one")
        append(bob, his, "one")
        for stream in streams[1:]:
            assert [event.kind for event in islice(stream, 2)] == ["task", "log"]


def key_of(person: RemoteClient) -> str:
    return str(person.session.headers["apikey"])


# --- following ---------------------------------------------------------------------------


def append(person: RemoteClient, task: dict[str, Any], *lines: str) -> None:
    """On a connection of its own, which either process may answer."""
    headers = {"apikey": str(person.session.headers["apikey"])}
    url = f"{person.url}{API}/task/{task['id']}/logs"
    requests.post(url, headers=headers, json={"logs": lines}, timeout=30).raise_for_status()


def test_follower_sees_the_task_what_there_was_and_what_comes(two_workers: Service) -> None:
    person = two_workers.add_user()
    task = person.start()
    append(person, task, "one", "two")
    with open_stream(person, task) as response:
        path = f"{API}/task/{task['id']}/events"
        conformance.check_head("GET", path, response.status_code, response.headers)
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert response.headers["Cache-Control"] == "no-store"
        stream = events(response)
        first = next(stream)
        expected = person.request("GET", f"/task/{task['id']}").json()
        del expected["logs"]
        assert first == Event("task", "", expected)
        assert list(islice(stream, 2)) == [Event("log", "1", "one"), Event("log", "2", "two")]
        append(person, task, 'three "3"\x85')
        assert next(stream) == Event("log", "3", 'three "3"\x85')
        person.request("PATCH", f"/task/{task['id']}", json={"output": {"sum": 1}})
        assert next(stream).data["output"] == {"sum": 1}
        append(person, task, "four")
        person.request("PATCH", f"/task/{task['id']}", json={"status": "complete"})
        rest = list(stream)
        assert rest[0] == Event("log", "4", "four")
        assert [event.kind for event in rest] == ["log", "task"]
        assert (rest[-1].data["status"], rest[-1].data["logCount"]) == ("complete", 4)


def test_follower_of_a_finished_task_gets_all_and_then_its_end(two_workers: Service) -> None:
    person = two_workers.add_user()
    task = person.start()
    append(person, task, *numbered(1, 3_000))
    person.request("POST", f"/task/{task['id']}/cancel")
    with open_stream(person, task) as response:
        came = list(events(response))
    assert [event.kind for event in came] == ["task", *["log"] * 3_000, "task"]
    assert [event.data for event in came[1:-1]] == numbered(1, 3_000)
    assert came[-1].data["error"]["type"] == "cancelled"
    with open_stream(person, task, "3000") as response:
        assert [event.kind for event in events(response)] == ["task"]


def test_follower_resumes_at_its_last_line(two_workers: Service) -> None:
    person = two_workers.add_user()
    task = person.start()
    append(person, task, *numbered(1, 10))
    with open_stream(person, task) as response:
        seen = list(islice(events(response), 5))
    append(person, task, "line 11")
    with open_stream(person, task, seen[-1].id) as response:
        seen += list(islice(events(response), 1, 8))
    assert [event.data for event in seen if event.kind == "log"] == numbered(1, 11)


def test_follower_from_past_the_end_misses_nothing_that_comes(service: Service) -> None:
    alice = service.add_user()
    task = alice.start()
    append(alice, task, "one")
    stream = open_stream(alice, task, after="10")
    seen = events(stream)
    assert next(seen).kind == "task"
    append(alice, task, "two", "three")
    assert [next(seen)[1:] for _ in range(2)] == [("2", "two"), ("3", "three")]
    stream.close()


def test_deletion_ends_the_stream(two_workers: Service) -> None:
    person = two_workers.add_user()
    task = person.start()
    with open_stream(person, task) as response:
        stream = events(response)
        next(stream)
        headers = {"apikey": str(person.session.headers["apikey"])}
        requests.delete(f"{person.url}{API}/task/{task['id']}", headers=headers, timeout=30)
        assert list(stream) == []


def test_revoked_key_hears_no_more_of_an_open_stream(service: Service) -> None:
    person = service.add_user()
    task = person.start()
    guest = person.request("POST", "/key", json={"name": "guest"}).json()
    left = threading.Event()

    def write() -> None:
        while not left.wait(0.1):
            append(person, task, "not for the guest")

    writer = threading.Thread(target=write, daemon=True)
    with open_stream(RemoteClient(service.url, guest["key"]), task) as response:
        stream = events(response)
        next(stream)
        # It is never quiet.
        writer.start()
        person.request("DELETE", f"/key/{guest['id']}")
        for _ in stream:
            pass
    left.set()
    writer.join(SOON)
    assert person.request("GET", f"/task/{task['id']}").json()["status"] == "running"


def test_stop_of_the_service_ends_streams_and_waits(service: Service) -> None:
    person = service.add_user()
    task = person.start()
    answers: list[Any] = []

    def wait() -> None:
        headers = {"Prefer": "wait=60", "apikey": str(person.session.headers["apikey"])}
        url = f"{person.url}{API}/task/{task['id']}/logs"
        answers.append(requests.get(url, headers=headers, timeout=30))

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    with open_stream(person, task) as response:
        stream = events(response)
        next(stream)
        time.sleep(0.3)
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < SOON
        assert list(stream) == []
    waiter.join(SOON)
    assert answers[0].json() == {"logs": [], "next": 0, "status": "running"}


@one_database
def test_cursor_that_is_no_number_is_422(alice: ApiClient, task: dict[str, Any]) -> None:
    for cursor in ("x", "-1", "1.5", "٣", "9" * 30):
        headers = {"Last-Event-ID": cursor.encode().decode("latin-1")}
        problem(alice.get(f"/task/{task['id']}/events", headers=headers), 422)


@one_database
def test_head_of_a_stream_takes_no_place(alice: ApiClient, task: dict[str, Any]) -> None:
    for _ in range(5):
        response = alice.request("HEAD", f"/task/{task['id']}/events")
        assert (response.status_code, response.data) == (200, b"")


@one_database
def test_stream_that_is_quiet_says_so(
    alice: ApiClient, task: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_events, "COMMENT_SECONDS", 0.5)
    path = f"{API}/task/{task['id']}/events"
    with alice.app.test_client().get(path, headers={"apikey": alice.key}) as response:
        pieces = response.iter_encoded()
        assert next(pieces).startswith(b"event: task\n")
        assert next(pieces) == b":\n\n"


def test_slot_of_a_disconnected_follower_is_free_again(database_url: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Service(data, DATABASE_URL=database_url, WAITS="2") as service:
        person = service.add_user()
        task = person.start()
        with open_stream(person, task) as first, open_stream(person, task) as second:
            assert (first.status_code, second.status_code) == (200, 200)
            with open_stream(person, task) as refused:
                assert refused.status_code == 503
        deadline = time.monotonic() + SOON
        while True:
            with open_stream(person, task) as response:
                if response.status_code == 200:
                    break
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_followers_in_two_processes_see_the_same(two_workers: Service) -> None:
    person = two_workers.add_user()
    task = person.start()
    followers = [Follower(person, task) for _ in range(6)]
    for follower in followers:
        follower.start()
    at_once([partial(append, person, task, *numbered(n, n)) for n in range(1, 31)])
    person.request("PATCH", f"/task/{task['id']}", json={"status": "complete"})
    log = person.request("GET", f"/task/{task['id']}").json()["logs"]
    assert sorted(log) == sorted(numbered(1, 30))
    for follower in followers:
        follower.join(SOON)
        assert [line for _, line in follower.lines] == log
        assert [number for number, _ in follower.lines] == [str(n) for n in range(1, 31)]
        assert follower.connections == 1


def test_line_is_soon_with_its_follower(two_workers: Service) -> None:
    """Within 300 ms; a slow machine has three times that."""
    person = two_workers.add_user()
    task = person.start()
    with open_stream(person, task) as response:
        stream = events(response)
        next(stream)
        delays = []
        for number in range(15):
            began = time.monotonic()
            append(person, task, f"line {number}")
            next(stream)
            delays.append(time.monotonic() - began)
    assert statistics.median(delays) < 0.9


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_follower_has_every_line_once_though_the_service_is_restarted(service: Service) -> None:
    person = service.add_user()
    task = person.start()
    follower = Follower(person, task)
    follower.start()
    for first in (1, 11, 21):
        append_surely(person, task, first, numbered(first, first + 9))
        deadline = time.monotonic() + SOON
        while len(follower.lines) < first + 9:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if first == 1:
            os.kill(service.workers()[0], signal.SIGKILL)
        elif first == 11:
            service.stop()
            service.start()
    report = {"json": {"status": "complete"}}
    until_answered(lambda: person.request("PATCH", f"/task/{task['id']}", **report))
    follower.join(SOON)
    assert [line for _, line in follower.lines] == numbered(1, 30)
    assert follower.connections >= 3
