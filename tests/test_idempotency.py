"""Idempotency: a repeated request counts once, even concurrently in another process."""

import threading
from collections import Counter
from functools import partial
from typing import Any
from uuid import uuid4

from flask import Flask

from tests.support import receiver as play
from tests.support.api_client import ApiClient, RemoteClient, expect, problem
from tests.support.concurrency import at_once, copies
from tests.support.receiver import Receiver
from tests.support.service import Service

Task = dict[str, Any]

CALLERS = 24
WISHES = {"agentId": "summarizer", "input": {"a": 1, "b": [2, None]}}


def start(person: ApiClient, key: str, **fields: Any) -> Any:
    return person.post("/task", json=WISHES | fields, headers={"Idempotency-Key": key})


def is_replay(response: Any) -> bool:
    assert response.headers.get("Idempotency-Replayed") in (None, "true")
    return "Idempotency-Replayed" in response.headers


# --- one after the other -----------------------------------------------------------------


def test_replay_is_the_task_as_it_now_is(alice: ApiClient) -> None:
    alice.register()
    task = expect(start(alice, "k"), 201)
    alice.append(task, "meanwhile")
    alice.report(task, status="complete", output={"sum": 3}, name="renamed")
    again = start(alice, "k")
    assert is_replay(again)
    assert expect(again, 201) == alice.task(task)
    assert again.headers["Location"] == f"task/{task['id']}"


def test_body_may_be_written_another_way(alice: ApiClient) -> None:
    alice.register()
    first = start(alice, "k")
    headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
    for text in (
        b'{"agentId":"summarizer","input":{"a":1,"b":[2,null]}}',
        b' {\n"input": {"b": [2, null], "a": 1},\t"agentId": "summarizer"} ',
        b'{"agentId":"summari\\u007aer","input":{"\\u0061":1,"b":[2,null]}}',
    ):
        again = alice.post("/task", data=text, headers=headers)
        assert is_replay(again)
        assert expect(again, 201) == expect(first, 201)


OTHER_WISHES: tuple[dict[str, Any], ...] = (
    {"name": "x"},
    {"input": {"a": 1, "b": [None, 2]}},
    {"input": {}},
    {"claim": True},
    {"timeout": 60},
    {"callback": "https://example.com/"},
)


def test_another_body_under_the_same_key_is_422(alice: ApiClient) -> None:
    alice.register()
    task = expect(start(alice, "k"), 201)
    for other in OTHER_WISHES:
        problem(start(alice, "k", **other), 422)
    assert expect(alice.get("/task"), 200) == [task]
    assert expect(start(alice, "k"), 201) == task


def test_key_is_taken_as_it_is(alice: ApiClient) -> None:
    alice.register()
    keys = ("k", "K", "kk", "x" * 255, "x" * 254, "a b  c", "a b c", '"k"', "%_\\'", "clé", "a,b")
    tasks = []
    for key in keys:
        first = start(alice, key)
        assert not is_replay(first)
        tasks.append(expect(first, 201))
    assert [expect(start(alice, key), 201) for key in keys] == tasks
    assert len(expect(alice.get("/task"), 200)) == len(keys)


def test_refused_start_leaves_its_key_free(alice: ApiClient) -> None:
    problem(start(alice, "k"), 422)  # the agent is not registered
    alice.register()
    problem(start(alice, "k", callback="ftp://example.com"), 422)
    first = start(alice, "k")
    expect(first, 201)
    assert not is_replay(first)


def test_team_shares_its_keys(alice: ApiClient, app: Flask) -> None:
    """The key is unique per user, whichever of the user's API keys it comes with."""
    alice.register()
    created = expect(alice.post("/key", json={"name": "colleague"}), 201)
    colleague, agent = ApiClient(app, "alice", created["key"]), alice.agent_key()
    task = expect(start(alice, "k"), 201)
    for person in (colleague, agent):
        assert expect(start(person, "k"), 201) == task


def test_agent_key_gets_no_task_of_another_agent_by_its_idempotency_key(alice: ApiClient) -> None:
    alice.register("summarizer")
    task = expect(start(alice, "k"), 201)
    translator = alice.agent_key("translator")
    problem(translator.get(f"/task/{task['id']}"), 404)
    unfit = problem(start(translator, "k"), 422)
    assert list(unfit["errors"]) == ["agentId"]


# --- at the same instant -----------------------------------------------------------------


def start_remotely(person: RemoteClient, key: str, **fields: Any) -> Any:
    headers = {"Idempotency-Key": key}
    return person.request("POST", "/task", json=WISHES | fields, headers=headers)


def test_same_key_at_the_same_instant_starts_one_task(two_workers: Service) -> None:
    alice = two_workers.add_user()
    alice.request("PUT", "/agent/summarizer")
    people = copies(alice, CALLERS)
    for round_ in range(6):
        key = f"key {round_}"
        answers = at_once([partial(start_remotely, one, key) for one in people])
        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert Counter(map(is_replay, answers)) == {False: 1, True: CALLERS - 1}
    assert len(alice.request("GET", "/task").json()) == 6


def test_two_bodies_under_one_key_at_the_same_instant_start_one_task(
    two_workers: Service,
) -> None:
    alice = two_workers.add_user()
    alice.request("PUT", "/agent/summarizer")
    people = copies(alice, CALLERS)
    for round_ in range(4):
        answers = at_once(
            [
                partial(start_remotely, one, f"key {round_}", name=("odd", "even")[number % 2])
                for number, one in enumerate(people)
            ]
        )
        assert Counter(answer.status_code for answer in answers) == {
            201: CALLERS // 2,
            422: CALLERS // 2,
        }
        started = [answer for answer in answers if answer.status_code == 201]
        assert len({answer.json()["id"] for answer in started}) == 1
        assert [is_replay(answer) for answer in started].count(False) == 1


def test_deletion_meanwhile_frees_the_key_and_fails_no_request(two_workers: Service) -> None:
    """Each task that was ever started was answered to exactly one caller as new."""
    times = 50
    alice = two_workers.add_user()
    alice.request("PUT", "/agent/summarizer")
    answers: list[Any] = []
    deletions: Counter[int] = Counter()
    finished = threading.Event()

    def start_often(person: RemoteClient) -> None:
        for _ in range(times):
            answers.append(start_remotely(person, "the one key"))

    def delete_always(person: RemoteClient) -> None:
        while not finished.is_set():
            for task in person.request("GET", "/task?fields=id").json():
                deletions[person.request("DELETE", f"/task/{task['id']}").status_code] += 1

    starters, deleters = copies(alice, 12), copies(alice, 3)
    threads = [threading.Thread(target=delete_always, args=(one,)) for one in deleters]
    for thread in threads:
        thread.start()
    at_once([partial(start_often, one) for one in starters])
    finished.set()
    for thread in threads:
        thread.join()
    assert Counter(answer.status_code for answer in answers) == {201: 12 * times}
    new = [answer.json()["id"] for answer in answers if not is_replay(answer)]
    replayed = {answer.json()["id"] for answer in answers if is_replay(answer)}
    assert len(new) == len(set(new))
    assert replayed <= set(new)
    assert deletions.keys() <= {200, 404}
    assert len(alice.request("GET", "/task").json()) == len(new) - deletions[200] <= 1


def test_same_lines_at_the_same_instant_are_stored_once(two_workers: Service) -> None:
    alice = two_workers.add_user()
    task = alice.start()
    path = f"/task/{task['id']}/logs"
    people = copies(alice, CALLERS)
    for first in range(1, 13, 3):
        body = {"logs": [f"line {number}" for number in range(first, first + 3)], "seq": first}
        ask = [partial(one.request, "POST", path, json=body) for one in people]
        answers = at_once(ask)
        assert {answer.status_code for answer in answers} == {201}
        assert {answer.json()["logCount"] for answer in answers} == {first + 2}
    stored = alice.request("GET", f"/task/{task['id']}").json()
    assert stored["logs"] == [f"line {number}" for number in range(1, 13)]


# --- reports -----------------------------------------------------------------------------


def callback_statuses(answers: list[Any]) -> Counter[str]:
    return Counter(answer.headers["Callback-Status"] for answer in answers)


def test_equal_reports_at_the_same_instant_send_one_callback(
    two_workers: Service, receiver: Receiver
) -> None:
    alice = two_workers.add_user()
    people = copies(alice, CALLERS)
    for round_ in range(3):
        task = alice.start(callback=f"{receiver.url}round{round_}")
        changes = {"status": "complete", "output": {"sum": round_}}
        path = f"/task/{task['id']}"
        answers = at_once([partial(one.request, "PATCH", path, json=changes) for one in people])
        assert {answer.status_code for answer in answers} == {200}
        assert callback_statuses(answers) == {"delivered": 1, "none": CALLERS - 1}
        assert len({answer.text for answer in answers}) == 1
    assert [request.path for request in receiver.requests] == ["/round0", "/round1", "/round2"]


def test_different_reports_at_the_same_instant_leave_one_and_send_it(
    two_workers: Service, receiver: Receiver
) -> None:
    alice = two_workers.add_user()
    people = copies(alice, CALLERS)
    task = alice.start(callback=receiver.url)
    path = f"/task/{task['id']}"
    answers = at_once(
        [
            partial(one.request, "PATCH", path, json={"status": "complete", "output": {"by": n}})
            for n, one in enumerate(people)
        ]
    )
    assert Counter(answer.status_code for answer in answers) == {200: 1, 409: CALLERS - 1}
    (kept,) = (answer.json() for answer in answers if answer.status_code == 200)
    assert alice.request("GET", path).json() == kept
    assert len(receiver.requests) == 1


def test_report_and_cancel_at_the_same_instant_send_one_callback(
    two_workers: Service, receiver: Receiver
) -> None:
    alice = two_workers.add_user()
    people = copies(alice, 8)
    for round_ in range(5):
        task = alice.start(callback=f"{receiver.url}round{round_}")
        path = f"/task/{task['id']}"
        answers = at_once(
            [
                partial(one.request, "PATCH", path, json={"status": "complete"})
                if number % 2
                else partial(one.request, "POST", f"{path}/cancel")
                for number, one in enumerate(people)
            ]
        )
        # One kind comes first: its four requests are answered 200, the others 409.
        assert Counter(answer.status_code for answer in answers) == {200: 4, 409: 4}
        good = [answer for answer in answers if answer.status_code == 200]
        assert callback_statuses(good) == {"delivered": 1, "none": 3}
    assert len(receiver.requests) == 5


def test_equal_report_while_the_callback_is_on_its_way_does_not_wait_for_it(
    alice: ApiClient, app: Flask, receiver: Receiver
) -> None:
    released = threading.Event()

    def answer_when_released(exchange: play.Exchange) -> None:
        released.wait(5)
        play.answer(204)(exchange)

    receiver.answer = answer_when_released
    task = alice.start(callback=receiver.url, name=str(uuid4()))
    path, changes = f"/task/{task['id']}", {"status": "complete"}
    app.config["CALLBACK_TIMEOUT"] = 10.0
    sender = ApiClient(app, alice.name, alice.key)
    slow: list[Any] = []
    thread = threading.Thread(target=lambda: slow.append(sender.patch(path, json=changes)))
    thread.start()
    receiver.wait_for(1)
    again = alice.patch(path, json=changes)
    assert slow == []
    released.set()
    thread.join()
    assert expect(again, 200) == expect(slow[0], 200)
    assert again.headers["Callback-Status"] == "none"
    assert slow[0].headers["Callback-Status"] == "delivered"
    assert len(receiver.requests) == 1
