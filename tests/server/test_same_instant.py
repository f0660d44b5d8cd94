"""Many requests at the same instant, over two processes: each counts once."""

import os
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.api_client import RemoteClient, is_replay
from tests.support.concurrency import at_once, copies
from tests.support.receiver import Receiver
from tests.support.service import Service
from tests.support.waiting import PATIENCE_SECONDS

CALLERS = 24
FIELDS = {"agentId": "summarizer", "input": {"a": 1, "b": [2, None]}}


def start_remotely(person: RemoteClient, key: str, **fields: Any) -> Any:
    headers = {"Idempotency-Key": key}
    return person.request("POST", "/task", json=FIELDS | fields, headers=headers)


# --- starts ------------------------------------------------------------------------------


def test_same_key_at_the_same_instant_starts_one_task(two_workers: Service) -> None:
    alice = two_workers.add_user()
    alice.request("PUT", "/agent/summarizer")
    people = copies(alice, CALLERS)
    for round_ in range(3):
        key = f"key {round_}"
        answers = at_once([partial(start_remotely, one, key) for one in people])
        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert Counter(map(is_replay, answers)) == {False: 1, True: CALLERS - 1}
    assert len(alice.request("GET", "/task").json()) == 3


def test_two_bodies_under_one_key_at_the_same_instant_start_one_task(two_workers: Service) -> None:
    alice = two_workers.add_user()
    alice.request("PUT", "/agent/summarizer")
    people = copies(alice, CALLERS)
    for round_ in range(2):
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


def test_deletion_at_that_time_frees_the_key_and_fails_no_request(two_workers: Service) -> None:
    """Each task that was ever started was answered to exactly one caller as new."""
    times = 20
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
    assert replayed
    assert replayed <= set(new)
    assert deletions[200]
    assert deletions.keys() <= {200, 404}
    assert len(alice.request("GET", "/task").json()) == len(new) - deletions[200] <= 1


def test_rerun_with_one_key_at_the_same_instant_starts_one_task(two_workers: Service) -> None:
    alice = two_workers.add_user()
    task, other = alice.start(), alice.start()
    people = copies(alice, 16)
    for round_ in range(3):
        key = {"Idempotency-Key": f"key {round_}"}
        # One of four asks for the other task with the same key.
        asked = [(task, other)[number % 4 == 0] for number in range(len(people))]
        answers = at_once(
            [
                partial(person.request, "POST", f"/task/{task['id']}/rerun", headers=key)
                for person, task in zip(people, asked, strict=True)
            ]
        )
        started = [answer for answer in answers if answer.status_code == 201]
        assert {answer.status_code for answer in answers} == {201, 422}
        assert len(started) in (4, 12)
        assert len({answer.json()["id"] for answer in started}) == 1
        is_new = ["Idempotency-Replayed" not in answer.headers for answer in started]
        assert is_new.count(True) == 1
    assert len(alice.request("GET", "/task").json()) == 5


def test_parent_can_be_deleted_while_children_are_started(two_workers: Service) -> None:
    """No child is left that names a parent which is not there."""
    alice = two_workers.add_user()
    parent = alice.start()
    child = {"agentId": "summarizer", "parentId": parent["id"]}
    path = f"/task/{parent['id']}"
    started, are_some_started = list[str](), threading.Event()

    def start_until_refused(person: RemoteClient, path: str, body: Any) -> int:
        """The status of the refusal, which comes once the parent is deleted."""
        while (answer := person.request("POST", path, json=body)).status_code == 201:
            started.append(answer.json()["id"])
            if len(started) >= 10:
                are_some_started.set()
        return answer.status_code

    def delete_after_some(person: RemoteClient) -> int:
        assert are_some_started.wait(PATIENCE_SECONDS)
        return person.request("DELETE", path).status_code

    people = copies(alice, 12)
    statuses = at_once([
        *(partial(start_until_refused, one, "/task", child) for one in people[:5]),
        *(partial(start_until_refused, one, f"{path}/rerun", None) for one in people[5:10]),
        *(partial(delete_after_some, one) for one in people[10:]),
    ])  # fmt: skip
    assert statuses[:10] == [422] * 5 + [404] * 5
    assert sorted(statuses[10:]) == [200, 404]
    left = alice.request("GET", "/task").json()
    assert {task["id"] for task in left} == set(started)
    assert {(task["parentId"], task["rerunOf"]) for task in left} == {(None, None)}


# --- claims ------------------------------------------------------------------------------


def sockets(process: int) -> int:
    """How many sockets a process has open."""
    links = Path(f"/proc/{process}/fd").iterdir()
    return sum(os.readlink(link).startswith("socket:") for link in links)


def test_hundred_claimers_over_two_processes_get_a_hundred_tasks(
    database_url: str, tmp_path: Path
) -> None:
    with Service(tmp_path / "data", DATABASE_URL=database_url, WORKERS="2") as service:
        alice = service.add_user()
        started = [alice.start()["id"]]
        for _ in range(99):
            response = alice.request("POST", "/task", json={"agentId": "summarizer"})
            started.append(response.json()["id"])
        idle = [sockets(worker) for worker in service.workers()]
        people = copies(alice, 100)
        # Both processes have their share of the callers.
        busy = [sockets(worker) for worker in service.workers()]
        assert all(now > before for before, now in zip(idle, busy, strict=True))
        ask = ("POST", "/agent/summarizer/claim")
        answers = at_once([partial(one.request, *ask) for one in people])
        assert {answer.status_code for answer in answers} == {200}
        assert sorted(answer.json()["id"] for answer in answers) == sorted(started)
        assert alice.request(*ask).status_code == 204
        stored = alice.request("GET", "/task?fields=claimedAt").json()
        assert len([task for task in stored if task["claimedAt"]]) == 100


def test_same_claim_at_the_same_instant_takes_one_task(two_workers: Service) -> None:
    alice = two_workers.add_user()
    for _ in range(8):
        alice.start()
    headers = {"Idempotency-Key": "k"}
    ask = ("POST", "/agent/summarizer/claim")
    answers = at_once([partial(one.request, *ask, headers=headers) for one in copies(alice, 8)])
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    stored = alice.request("GET", "/task?fields=claimedAt").json()
    assert len([task for task in stored if task["claimedAt"]]) == 1


# --- lines and reports -------------------------------------------------------------------


def test_same_lines_at_the_same_instant_are_stored_once(two_workers: Service) -> None:
    alice = two_workers.add_user()
    task = alice.start()
    path = f"/task/{task['id']}/logs"
    people = copies(alice, CALLERS)
    for first in range(1, 7, 3):
        body = {"logs": [f"line {number}" for number in range(first, first + 3)], "seq": first}
        ask = [partial(one.request, "POST", path, json=body) for one in people]
        answers = at_once(ask)
        assert {answer.status_code for answer in answers} == {201}
        assert {answer.json()["logCount"] for answer in answers} == {first + 2}
    stored = alice.request("GET", f"/task/{task['id']}").json()
    assert stored["logs"] == [f"line {number}" for number in range(1, 7)]


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
        # One kind comes first: its four requests get 200, the others 409.
        assert Counter(answer.status_code for answer in answers) == {200: 4, 409: 4}
        good = [answer for answer in answers if answer.status_code == 200]
        assert callback_statuses(good) == {"delivered": 1, "none": 3}
    assert len(receiver.requests) == 5


def test_concurrent_reports_on_a_large_output_lose_nothing(two_workers: Service) -> None:
    alice = two_workers.add_user()
    task = alice.start(claim=True)
    path = f"/task/{task['id']}"
    large: dict[str, Any] = {"large": [{}] * 20_000}
    alice.request("PATCH", path, json={"output": large}).raise_for_status()

    def report(person: RemoteClient, writer: int) -> list[int]:
        changes = [{"output": {f"{writer}": number}} for number in range(4)]
        return [person.request("PATCH", path, json=change).status_code for change in changes]

    reports = [partial(report, person, n) for n, person in enumerate(copies(alice, 4))]
    assert at_once(reports) == [[200] * 4] * 4
    task = alice.request("GET", path).json()
    assert task["output"] == large | {f"{writer}": 3 for writer in range(4)}
