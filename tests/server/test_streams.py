"""Streams and waits of a running service, also over two processes."""

import os
import signal
import socket
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import requests
from sqlalchemy import update

from taskservice.config import Config
from taskservice.database.models import Question
from taskservice.database.transactions import transaction
from taskservice.database.types import database_now
from taskservice.services import questions as question_service
from tests.support import conformance
from tests.support.api_client import API, RemoteClient
from tests.support.apps import without_routes
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
from tests.support.service import Service
from tests.support.waiting import PATIENCE_SECONDS, until

Json = dict[str, Any]
# How long news may take at most on a machine that is busy with other tests.
SOON = 25.0


def append(person: RemoteClient, task: dict[str, Any], *lines: str) -> None:
    """On a separate connection, which either process may answer."""
    headers = {"apikey": person.key}
    url = f"{person.url}{API}/task/{task['id']}/logs"
    requests.post(url, headers=headers, json={"logs": lines}, timeout=30).raise_for_status()


# --- following ---------------------------------------------------------------------------


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
        headers = {"apikey": person.key}
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
        headers = {"Prefer": "wait=60", "apikey": person.key}
        url = f"{person.url}{API}/task/{task['id']}/logs"
        answers.append(requests.get(url, headers=headers, timeout=30))

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    with open_stream(person, task) as response:
        stream = events(response)
        next(stream)
        until(lambda: open_waits(service) == 2)
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < SOON
        assert list(stream) == []
    waiter.join(SOON)
    assert answers[0].json() == {"logs": [], "next": 0, "status": "running"}


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


# --- slots -------------------------------------------------------------------------------


def test_task_is_not_given_to_a_client_that_disconnected_while_waiting(service: Service) -> None:
    alice = service.add_user()
    alice.request("PUT", "/agent/summarizer").raise_for_status()
    key = alice.key
    head = f"POST {API}/agent/summarizer/claim HTTP/1.1\r\nHost: x\r\napikey: {key}\r\n"
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", service.port)) as waiting:
            waiting.sendall(f"{head}Prefer: wait=20\r\n\r\n".encode())
            until(lambda: open_waits(service) == 1)
        task = alice.start()
        until(lambda: open_waits(service) == 0)
        assert alice.request("POST", "/agent/summarizer/claim").json()["id"] == task["id"]


def test_wait_ends_for_another_user_before_an_older_stream_does(tmp_path: Path) -> None:
    with Service(tmp_path / "data", WAITS="2") as service, ExitStack() as stack:
        alice, bob = service.add_user("alice"), service.add_user("bob")
        task, his = alice.start(), bob.start()
        stream = events(stack.enter_context(open_stream(alice, task)))
        assert next(stream).kind == "task"
        with ThreadPoolExecutor(1) as pool:
            path, prefer = f"/task/{task['id']}", {"Prefer": "wait=60"}
            person = RemoteClient(service.url, alice.key)
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
            person = RemoteClient(service.url, alice.key)
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
        people = [(RemoteClient(service.url, alice.key), task) for _ in range(2)]
        streams = [
            events(stack.enter_context(open_stream(*pair))) for pair in [*people, (bob, his)]
        ]
        next(streams[0])
        assert list(streams[0]) == []
        append(alice, task, "one")
        append(bob, his, "one")
        for stream in streams[1:]:
            assert [event.kind for event in islice(stream, 2)] == ["task", "log"]


# --- questions ---------------------------------------------------------------------------


def test_each_change_of_a_question_is_an_event_in_every_process(two_workers: Service) -> None:
    person = two_workers.add_user()
    task = person.start(claim=True)
    followers = [Follower(person, task) for _ in range(6)]
    for follower in followers:
        follower.start()
    expected: list[list[str]] = []

    def seen(*questions: Json) -> None:
        """Wait until each follower knows that these are open."""
        expected.append([question["id"] for question in questions])
        until(lambda: all(opened(follower)[-1:] == expected[-1:] for follower in followers))

    def change(method: str, end: str, **body: Any) -> Json:
        """Make a request on a separate connection, which either process may answer."""
        other = RemoteClient(two_workers.url, person.key)
        answer = other.request(method, f"/task/{task['id']}{end}", json=body or None)
        answer.raise_for_status()
        return dict(answer.json())

    seen()
    for method, end, body in (
        ("POST", "/question/{}/answer", {"action": "accept", "content": {"answer": "yes"}}),
        ("POST", "/question/{}/answer", {"action": "decline"}),
        ("DELETE", "/question/{}", {}),
    ):
        question = change("POST", "/question", message="Deploy?")
        seen(question)
        change(method, end.format(question["id"]), **body)
        seen()
    question = change("POST", "/question", message="Deploy?", timeout=60)
    seen(question)
    with without_routes(Config.from_environment(two_workers.environment)):
        expire(question)
    seen()
    seen(change("POST", "/question", message="Deploy?"))
    change("PATCH", "", status="complete")
    expected.append([])
    for follower in followers:
        follower.join(PATIENCE_SECONDS)
        assert follower.states[-1]["status"] == "complete"
        assert (opened(follower), follower.connections) == (expected, 1)


def opened(follower: Follower) -> list[list[str]]:
    """The IDs of the open questions, in each event of a task."""
    return [[question["id"] for question in state["questions"]] for state in follower.states]


def expire(question: Json) -> None:
    """What maintenance does when the time of a question has come."""
    with transaction() as connection:
        its = update(Question).where(Question.id == question["id"])
        connection.execute(its.values(expires_at=database_now()))
    question_service.expire()


def test_waits_for_an_answer_end_in_every_process(two_workers: Service) -> None:
    person = two_workers.add_user()
    key = person.key
    task = person.start(claim=True)
    body = {"message": "Deploy?"}
    question = person.request("POST", f"/task/{task['id']}/question", json=body).json()
    path = f"/task/{task['id']}/question/{question['id']}"

    def wait() -> Any:
        asker = RemoteClient(two_workers.url, key)
        return asker.request("GET", path, headers={"Prefer": "wait=60"})

    with ThreadPoolExecutor(6) as threads:
        waits = [threads.submit(wait) for _ in range(6)]
        answered = {"action": "accept", "content": {"answer": "yes"}}
        person.request("POST", f"{path}/answer", json=answered).raise_for_status()
        for waiting in waits:
            answer = waiting.result(PATIENCE_SECONDS)
            assert answer.json()["answer"] == {"answer": "yes"}
            assert answer.headers["Preference-Applied"] == "wait=60"
