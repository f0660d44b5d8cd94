"""Deliveries after their first attempt: repeated until they succeed, and never lost."""

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import delete, insert, text

from taskservice import resources
from taskservice.background import delivery_loop
from taskservice.background.delivery_loop import MAX_RECENT, MAX_RUNNING
from taskservice.database import clock
from taskservice.database.models import Attempt, Task
from taskservice.database.transactions import transaction
from taskservice.database.types import database_now
from taskservice.services import attempts
from taskservice.services import deliveries as delivery_service
from taskservice.services.deliveries import MAX_PER_RECEIVER
from taskservice.terms import MAX_ATTEMPTS
from taskservice.webhooks.circuit_breaker import MAX_FAILURES
from taskservice.webhooks.destinations import Destinations
from taskservice.webhooks.retry_schedule import JITTER, SCHEDULE
from tests.support import receiver as play
from tests.support.api_client import ApiClient, expect, problem
from tests.support.certificates import Authority
from tests.support.deliveries import (
    addresses,
    change,
    columns,
    deleting_first,
    deliveries_of,
    enqueue_each,
    enqueue_many,
    finish,
    looping,
    make_due,
    the_delivery,
)
from tests.support.internals import before_reads, end_for_silence, set_clock
from tests.support.marks import one_database
from tests.support.receiver import Behaviour, Exchange, Receiver
from tests.support.waiting import PATIENCE_SECONDS, until


@pytest.fixture
def loop(app: Flask) -> Iterator[None]:
    with looping(app):
        yield


def one_after_another(*behaviours: Behaviour) -> Behaviour:
    """Each of these once; the last one from then on."""
    left = list(behaviours)
    return lambda exchange: (left.pop(0) if len(left) > 1 else left[0])(exchange)


def hold_and_check() -> tuple[Behaviour, Behaviour, list[bytes]]:
    """No answer to one request; at the next, what the first connection has: b"" once it is closed.

    If it is open, the next gets no answer either.
    """
    held: list[socket.socket] = []
    received: list[bytes] = []

    def hold(exchange: Exchange) -> None:
        held.append(exchange.connection.dup())
        exchange.stopping.wait()

    def check(exchange: Exchange) -> None:
        with held[0] as first:
            received.append(first.recv(1, socket.MSG_DONTWAIT))
        play.answer(204)(exchange)

    return hold, check, received


def redeliver(person: ApiClient, task: dict[str, Any]) -> dict[str, Any]:
    delivery: dict[str, Any] = expect(person.post(f"/task/{task['id']}/deliveries"), 202)
    return delivery


def until_attempts(person: ApiClient, task: dict[str, Any], count: int) -> dict[str, Any]:
    """The only delivery of a task, as soon as it has this many attempts."""
    until(lambda: len(the_delivery(person, task)["attempts"]) >= count)
    return the_delivery(person, task)


# --- the loop ----------------------------------------------------------------------------


def test_failed_attempt_is_repeated_under_the_same_id_until_it_is_delivered(
    alice: ApiClient, app: Flask, receiver: Receiver, loop: None
) -> None:
    receiver.answer = one_after_another(play.answer(500), play.reset(), play.answer(204))
    task = alice.start(callback=receiver.url)
    assert finish(alice, task) == "pending"
    for count in (2, 3):
        make_due(app)
        delivery = until_attempts(alice, task, count)
    assert delivery["state"] == "delivered"
    assert delivery["nextAttemptAt"] is None
    assert [attempt["statusCode"] for attempt in delivery["attempts"]] == [500, None, 204]
    assert "500" in delivery["attempts"][0]["message"]
    assert {request.headers["webhook-id"] for request in receiver.requests} == {delivery["id"]}
    assert all(json.loads(request.body)["id"] == task["id"] for request in receiver.requests)


def test_second_attempt_comes_by_itself_after_the_first_pause(
    alice: ApiClient, receiver: Receiver, loop: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_service, "SCHEDULE", (1, *SCHEDULE[1:]))
    receiver.answer = one_after_another(play.answer(503), play.answer(204))
    finish(alice, alice.start(callback=receiver.url))
    first, second = receiver.wait_for(2)
    assert second.at - first.at >= 1 - JITTER - 0.1


def test_attempts_come_further_and_further_apart_and_then_no_more(
    alice: ApiClient, app: Flask, receiver: Receiver, loop: None
) -> None:
    receiver.answer = play.answer(500)
    task = alice.start(callback=receiver.url)
    finish(alice, task)
    for count, seconds in enumerate(SCHEDULE, start=1):
        delivery = until_attempts(alice, task, count)
        assert delivery["state"] == "pending"
        last = datetime.fromisoformat(delivery["attempts"][-1]["at"])
        wait = (datetime.fromisoformat(delivery["nextAttemptAt"]) - last).total_seconds()
        assert seconds * (1 - JITTER) <= wait <= seconds * (1 + JITTER) + 5
        make_due(app)
    delivery = until_attempts(alice, task, len(SCHEDULE) + 1)
    assert (delivery["state"], delivery["nextAttemptAt"]) == ("failed", None)
    assert columns(app, "lease", "leased_until") == [(None, None)]


def test_retry_after_postpones_the_next_attempt(
    alice: ApiClient, app: Flask, receiver: Receiver, loop: None
) -> None:
    receiver.answer = one_after_another(play.answer(500), play.answer(429, {"Retry-After": "7200"}))
    task = alice.start(callback=receiver.url)
    finish(alice, task)
    make_due(app)
    delivery = until_attempts(alice, task, 2)
    last, due = map(
        datetime.fromisoformat, (delivery["attempts"][1]["at"], delivery["nextAttemptAt"])
    )
    assert 7190 < (due - last).total_seconds() < 7260


def test_gone_receiver_is_not_posted_to_again(
    alice: ApiClient, app: Flask, receiver: Receiver, loop: None
) -> None:
    receiver.answer = one_after_another(play.answer(500), play.answer(410))
    task = alice.start(callback=receiver.url)
    finish(alice, task)
    make_due(app)
    assert until_attempts(alice, task, 2)["state"] == "failed"
    make_due(app)
    other = alice.start(callback=receiver.url)
    finish(alice, other)
    assert len(receiver.wait_for(3)) == 3


def test_receiver_that_calls_back_sees_the_committed_task_and_may_change_its_name(
    alice: ApiClient, app: Flask, receiver: Receiver, loop: None
) -> None:
    """In the first attempt, which the report waits for, and in one of the loop."""
    seen, names = list[dict[str, Any]](), ["first", "second"]

    def call_back(exchange: Exchange) -> None:
        task_id = json.loads(exchange.request.body)["id"]
        # A separate client, since this is another thread.
        caller = ApiClient(app, alice.name, alice.key)
        seen.append(expect(caller.get(f"/task/{task_id}"), 200))
        caller.report(seen[-1], name=names[len(seen) - 1])
        play.answer(500 if len(seen) == 1 else 204)(exchange)

    receiver.answer = call_back
    task = alice.start(callback=receiver.url)
    assert finish(alice, task) == "pending"
    assert alice.task(task)["name"] == "first"
    make_due(app)
    assert until_attempts(alice, task, 2)["state"] == "delivered"
    assert [body["status"] for body in seen] == ["complete", "complete"]
    assert alice.task(task)["name"] == "second"


def test_deleted_task_is_not_posted(
    alice: ApiClient, app: Flask, receiver: Receiver, loop: None
) -> None:
    receiver.answer = one_after_another(play.answer(500), play.answer(204))
    deleted, kept = (alice.start(callback=receiver.url) for _ in range(2))
    finish(alice, deleted)
    expect(alice.delete(f"/task/{deleted['id']}"), 200)
    assert problem(alice.get(f"/task/{deleted['id']}/deliveries"), 404)
    make_due(app)
    finish(alice, kept)
    *_, second = receiver.wait_for(2)
    assert json.loads(second.body)["id"] == kept["id"]
    assert columns(app, "state") == [("delivered",)]


def test_task_that_is_deleted_between_claim_and_post_is_not_posted(
    alice: ApiClient, app: Flask, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    task = alice.start(callback=receiver.url)
    receiver.answer = one_after_another(play.answer(500), play.answer(204))
    finish(alice, task)
    make_due(app)
    leases: list[Any] = []

    def delete_first(statement: str, _: Any) -> None:
        is_attempt = threading.current_thread().name == "attempt"
        if is_attempt and "FROM tasks" in statement and not leases:
            leases.extend(columns(app, "lease"))
            with ThreadPoolExecutor(1) as pool:
                person = ApiClient(app, alice.name, alice.key)
                expect(pool.submit(person.delete, f"/task/{task['id']}").result(), 200)

    with before_reads(app, delete_first), looping(app):
        until(lambda: "The task was deleted." in caplog.text)
    assert leases != [(None,)]
    assert len(receiver.requests) == 1
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.fixture
def slow_receiver(authority: Authority, trusted: None) -> Iterator[Receiver]:
    """A receiver over TLS, which takes connections and starts the handshake only on request."""
    with Receiver(tls=authority.server("127.0.0.1")) as receiver:
        receiver.shakes_hands.clear()
        yield receiver


def delete_task(alice: ApiClient, task: dict[str, Any]) -> None:
    expect(alice.delete(f"/task/{task['id']}"), 200)


def replace_by_a_late_report(alice: ApiClient, task: dict[str, Any]) -> None:
    end_for_silence(alice.app, task)
    assert finish(alice, task) == "pending"


def let_the_lease_run_out(alice: ApiClient, task: dict[str, Any]) -> None:
    change(alice.app, leased_until=database_now(-1))


@pytest.mark.parametrize(
    ("meddle", "status", "posts"),
    [
        (delete_task, "failed", []),
        (replace_by_a_late_report, "failed", ["complete"]),
        (let_the_lease_run_out, "pending", ["error"]),
    ],
)
def test_delivery_that_is_no_longer_due_after_the_handshake_is_not_posted(
    alice: ApiClient,
    app: Flask,
    slow_receiver: Receiver,
    meddle: Any,
    status: str,
    posts: list[str],
) -> None:
    app.config["CALLBACK_TIMEOUT"] = 30.0
    task = alice.start(callback=slow_receiver.url)
    reporter = ApiClient(app, alice.name, alice.key)
    with ThreadPoolExecutor(1) as pool:
        report = pool.submit(finish, reporter, task, status="error")
        until(lambda: slow_receiver.connections)
        meddle(alice, task)
        slow_receiver.shakes_hands.set()
        assert report.result() == status
    assert slow_receiver.requests == []
    with looping(app):
        until(lambda: not {("pending",)} & set(columns(app, "state")))
    assert [json.loads(request.body)["status"] for request in slow_receiver.requests] == posts


def test_task_that_is_deleted_while_the_loop_shakes_hands_is_not_posted(
    alice: ApiClient, app: Flask, slow_receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    app.config["CALLBACK_TIMEOUT"] = 30.0
    enqueue_many(app, alice, slow_receiver.url, 1)
    with looping(app):
        until(lambda: slow_receiver.connections)
        for task in expect(alice.get("/task"), 200):
            delete_task(alice, task)
        slow_receiver.shakes_hands.set()
        until(lambda: "The task was deleted." in caplog.text)
    assert slow_receiver.requests == []


@pytest.fixture
def soon_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt that has taken a fifth of a second, not a whole one, leaves its slot."""
    monkeypatch.setattr(delivery_loop, "SLOW_SECONDS", 0.2)


def test_hosts_that_hang_on_all_senders_do_not_hold_up_the_others(
    alice: ApiClient, app: Flask, receiver: Receiver, soon_slow: None
) -> None:
    app.config["CALLBACK_TIMEOUT"] = 30.0
    with ExitStack() as stack:
        count = MAX_RECENT // MAX_PER_RECEIVER
        hosts = [stack.enter_context(Receiver(answer=play.silence)) for _ in range(count)]
        for hanging in hosts:
            enqueue_many(app, alice, hanging.url, 2 * MAX_RECENT)
        enqueue_many(app, alice, receiver.url, 2)
        with looping(app, stop_seconds=0):
            receiver.wait_for(2)
            # Each of them still gets its share.
            for hanging in hosts:
                hanging.wait_for(MAX_PER_RECEIVER)
                assert len(hanging.requests) == MAX_PER_RECEIVER


@one_database
def test_attempts_under_way_have_an_upper_limit(
    alice: ApiClient, app: Flask, soon_slow: None
) -> None:
    app.config["CALLBACK_TIMEOUT"] = 30.0
    hosts = MAX_RUNNING // MAX_PER_RECEIVER + 1
    with ExitStack() as stack:
        hanging = [stack.enter_context(Receiver(answer=play.silence)) for _ in range(hosts)]
        for host in hanging:
            enqueue_many(app, alice, host.url, MAX_PER_RECEIVER)
        with looping(app, stop_seconds=0):
            until(lambda: sum(host.connections for host in hanging) >= MAX_RUNNING)
            time.sleep(2 * delivery_loop.SLOW_SECONDS)
            assert sum(host.connections for host in hanging) == MAX_RUNNING


def test_hosts_that_keep_failing_get_one_sender_each_and_half_of_them_together(
    alice: ApiClient, app: Flask, receiver: Receiver, soon_slow: None
) -> None:
    app.config["CALLBACK_TIMEOUT"] = 30.0
    with ExitStack() as stack:
        failing = [stack.enter_context(Receiver(answer=play.answer(500))) for _ in range(10)]
        for host in failing:
            for _ in range(MAX_FAILURES):
                finish(alice, alice.start(callback=host.url))
            host.answer = play.silence
            host.requests.clear()
        make_due(app)
        enqueue_many(app, alice, receiver.url, 1)
        with looping(app, stop_seconds=0):
            receiver.wait_for(1)
            until(lambda: sum(len(host.requests) for host in failing) >= MAX_RECENT // 2)
            time.sleep(2 * delivery_loop.SLOW_SECONDS)
            assert sorted(len(host.requests) for host in failing) == [0] * 2 + [1] * 8


# --- users take turns --------------------------------------------------------------------


@pytest.fixture
def hanging() -> Iterator[Receiver]:
    with Receiver(host="0.0.0.0", answer=play.silence) as receiver:
        yield receiver


def test_user_whose_callbacks_hang_does_not_hold_up_others_at_the_same_host(
    alice: ApiClient, bob: ApiClient, app: Flask, receiver: Receiver, soon_slow: None
) -> None:
    app.config["CALLBACK_TIMEOUT"] = 10 * PATIENCE_SECONDS
    receiver.paths["/alice"] = play.silence
    enqueue_many(app, alice, f"{receiver.url}alice", 2 * MAX_RECENT)
    with looping(app, stop_seconds=0):
        receiver.wait_for(MAX_PER_RECEIVER)
        enqueue_many(app, bob, f"{receiver.url}bob", 3 * MAX_PER_RECEIVER)
        posts = receiver.wait_for(4 * MAX_PER_RECEIVER)
    # Each user has the slots of a host.
    assert Counter(post.path for post in posts) == {
        "/alice": MAX_PER_RECEIVER,
        "/bob": 3 * MAX_PER_RECEIVER,
    }


def test_host_that_fails_for_one_user_is_posted_to_at_once_for_another(
    alice: ApiClient, bob: ApiClient, receiver: Receiver
) -> None:
    receiver.paths["/alice"] = play.answer(500)
    for _ in range(MAX_FAILURES):
        finish(alice, alice.start(callback=f"{receiver.url}alice"))
    assert finish(bob, bob.start(callback=f"{receiver.url}bob")) == "delivered"
    # A success of another does not count for her.
    task = alice.start(callback=f"{receiver.url}alice")
    assert finish(alice, task) == "pending"
    assert the_delivery(alice, task)["attempts"] == []


def test_user_with_more_leases_in_other_processes_comes_later(
    alice: ApiClient,
    bob: ApiClient,
    app: Flask,
    hanging: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app.config["CALLBACK_TIMEOUT"] = 30.0
    # On a busy machine an attempt may take a second to arrive, and must not leave its slot.
    monkeypatch.setattr(delivery_loop, "SLOW_SECONDS", 30.0)
    enqueue_many(app, alice, hanging.url, MAX_RECENT + 1)
    change(app, lease=clock.new_id(), leased_until=database_now(30))
    enqueue_each(app, alice, addresses(hanging, "alice", MAX_RECENT))
    enqueue_each(app, bob, addresses(hanging, "bob", MAX_RECENT))
    with looping(app, stop_seconds=0):
        posts = hanging.wait_for(MAX_RECENT)[:MAX_RECENT]
    assert {post.path for post in posts} == {"/bob"}


def test_users_with_equal_leases_share_the_senders(
    alice: ApiClient, bob: ApiClient, app: Flask, hanging: Receiver, soon_slow: None
) -> None:
    app.config["CALLBACK_TIMEOUT"] = 30.0
    enqueue_each(app, alice, addresses(hanging, "alice", MAX_RUNNING))
    enqueue_each(app, bob, addresses(hanging, "bob", MAX_RUNNING))
    with looping(app, stop_seconds=0):
        posts = hanging.wait_for(MAX_RUNNING)
    assert Counter(post.path for post in posts) == {"/alice": 32, "/bob": 32}


def test_last_place_for_a_first_attempt_is_for_another_user(
    alice: ApiClient, bob: ApiClient, app: Flask, receiver: Receiver, hanging: Receiver
) -> None:
    """Of 12 threads 3 may be held by first attempts."""
    app.config |= {"THREADS": 12, "CALLBACK_TIMEOUT": 30.0}
    attempts.init_app(app)
    urls = addresses(hanging, "", 3)
    tasks = [alice.start(callback=url) for url in urls]
    people = [ApiClient(app, alice.name, alice.key) for _ in tasks]
    answering = threading.Event()

    def wait(exchange: Exchange) -> None:
        answering.wait(PATIENCE_SECONDS)
        play.answer(204)(exchange)

    hanging.answer = wait
    with ThreadPoolExecutor(2) as pool:
        held = [
            pool.submit(finish, person, task)
            for person, task in zip(people[:2], tasks[:2], strict=True)
        ]
        hanging.wait_for(2)
        assert finish(people[2], tasks[2]) == "pending"
        assert finish(bob, bob.start(callback=receiver.url)) == "delivered"
        answering.set()
        assert [attempt.result() for attempt in held] == ["delivered"] * 2
    # Past their share of the threads, first attempts are left to the loop.
    assert the_delivery(alice, tasks[2])["attempts"] == []
    with looping(app):
        assert until_attempts(alice, tasks[2], 1)["state"] == "delivered"
    assert finish(alice, alice.start(callback=receiver.url)) == "delivered"


# --- leases ------------------------------------------------------------------------------


def test_lease_of_another_holds_until_it_has_run_out(
    alice: ApiClient, app: Flask, receiver: Receiver, loop: None
) -> None:
    receiver.answer = one_after_another(play.answer(500), play.answer(204))
    task, other = (alice.start(callback=receiver.url) for _ in range(2))
    finish(alice, task)
    lease = {"lease": clock.new_id(), "leased_until": database_now(60)}
    change(app, next_attempt_at=database_now(-1), **lease)
    # When the loop has sent the other one, it has also looked at the leased one.
    finish(alice, other)
    redeliver(alice, other)
    until_attempts(alice, other, 2)
    assert len(the_delivery(alice, task)["attempts"]) == 1
    change(app, leased_until=database_now(-1))
    assert until_attempts(alice, task, 2)["state"] == "delivered"


@pytest.mark.parametrize(
    # The next round would begin 20 s after the first. The second lease was given before the clock
    # was set back.
    "seconds",
    [0.5, 3600],
    ids=["short", "too long"],
)
def test_lease_that_runs_out_wakes_the_loop(
    alice: ApiClient, app: Flask, receiver: Receiver, seconds: float
) -> None:
    receiver.answer = one_after_another(play.answer(500), play.answer(204))
    task = alice.start(callback=receiver.url)
    finish(alice, task)
    lease = {"lease": clock.new_id(), "leased_until": database_now(seconds)}
    change(app, next_attempt_at=database_now(-1), **lease)
    with looping(app):
        assert until_attempts(alice, task, 2)["state"] == "delivered"


def fail_often(alice: ApiClient, receiver: Receiver) -> None:
    """Let the receiver fail until its host is left to the loop."""
    receiver.answer = play.answer(500)
    for _ in range(MAX_FAILURES):
        finish(alice, alice.start(callback=receiver.url))


def test_webhook_is_due_by_the_clock_of_the_database(
    alice: ApiClient, app: Flask, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that is pending at a node whose own clock is an hour ahead."""
    set_clock(monkeypatch, 3600)
    fail_often(alice, receiver)
    task = alice.start(callback=receiver.url)
    assert finish(alice, task) == "pending"
    receiver.answer = play.answer(204)
    with looping(app):
        assert until_attempts(alice, task, 1)["state"] == "delivered"


def test_attempt_that_cannot_be_recorded_fails_no_report_and_is_repeated(
    alice: ApiClient, app: Flask, receiver: Receiver
) -> None:
    def rename(before: str, after: str) -> None:
        with app.app_context(), transaction() as connection:
            connection.execute(text(f"ALTER TABLE {before} RENAME TO {after}"))

    def lose_table(exchange: Exchange) -> None:
        rename("attempts", "gone")
        play.answer(204)(exchange)

    receiver.answer = one_after_another(lose_table, play.answer(204))
    task = alice.start(callback=receiver.url)
    assert finish(alice, task) == "pending"
    rename("gone", "attempts")
    change(app, leased_until=database_now(-1))
    with looping(app):
        assert until_attempts(alice, task, 1)["state"] == "delivered"
    first, second = receiver.requests
    assert first.headers["webhook-id"] == second.headers["webhook-id"]


def test_task_that_is_deleted_while_its_attempt_is_recorded_is_not_an_error(
    alice: ApiClient, app: Flask, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    task = alice.start(callback=receiver.url)
    is_deleting, may_commit = threading.Event(), threading.Event()

    def delete_slowly() -> None:
        with app.app_context(), transaction() as connection:
            connection.execute(delete(Task).where(Task.id == task["id"]))
            is_deleting.set()
            may_commit.wait(PATIENCE_SECONDS)
            # In nearly all runs the recording of the attempt now waits for this transaction.
            time.sleep(0.3)

    def answer(exchange: Exchange) -> None:
        deletion = pool.submit(delete_slowly)
        is_deleting.wait(PATIENCE_SECONDS)
        play.answer(204)(exchange)
        may_commit.set()
        deletion.result()

    receiver.answer = answer
    with ThreadPoolExecutor(1) as pool:
        assert finish(alice, task) == "delivered"
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []
    problem(alice.get(f"/task/{task['id']}"), 404)


def test_stopping_loop_breaks_its_connections_and_then_releases_its_leases(
    alice: ApiClient, app: Flask, receiver: Receiver
) -> None:
    app.config["CALLBACK_TIMEOUT"] = 30.0
    hold, check, received = hold_and_check()
    receiver.answer = one_after_another(play.answer(500), hold, check)
    task = alice.start(callback=receiver.url)
    finish(alice, task)
    make_due(app)
    with looping(app, stop_seconds=0):
        receiver.wait_for(2)
        assert columns(app, "lease") != [(None,)]
    # An interrupted attempt does not count.
    assert columns(app, "state", "lease", "leased_until", "attempt_count") == [
        ("pending", None, None, 1)
    ]
    with looping(app):
        delivery = until_attempts(alice, task, 2)
    assert received == [b""]
    assert [attempt["statusCode"] for attempt in delivery["attempts"]] == [500, 204]


def test_first_attempt_is_interrupted_before_another_process_may_post(
    alice: ApiClient, app: Flask, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.config["CALLBACK_TIMEOUT"] = 30.0
    stop = threading.Event()
    monkeypatch.setattr(resources, "stopping", stop)
    hold, check, received = hold_and_check()
    receiver.answer = one_after_another(hold, check)
    task = alice.start(callback=receiver.url)
    with ThreadPoolExecutor(1) as pool:
        report = pool.submit(finish, ApiClient(app, alice.name, alice.key), task)
        receiver.wait_for(1)
        stop.set()
        assert report.result() == "pending"
    assert columns(app, "lease", "attempt_count") == [(None, 0)]
    with looping(app):
        assert [
            attempt["statusCode"] for attempt in until_attempts(alice, task, 1)["attempts"]
        ] == [204]
    assert received == [b""]


def test_late_report_takes_the_place_of_a_pending_delivery(
    alice: ApiClient, app: Flask, receiver: Receiver
) -> None:
    receiver.answer = one_after_another(play.answer(500), play.answer(204))
    task = alice.start(callback=receiver.url, claim=True)
    alice.report(task, status="error")
    end_for_silence(app, task)
    assert finish(alice, task, output={"late": True}) == "delivered"
    newer, older = deliveries_of(alice, task)
    assert (newer["state"], older["state"]) == ("delivered", "cancelled")
    assert (older["nextAttemptAt"], len(older["attempts"])) == (None, 1)
    assert columns(app, "lease", "leased_until") == [(None, None), (None, None)]
    assert json.loads(receiver.requests[-1].body)["output"] == {"late": True}


# --- first attempts that are left to the loop --------------------------------------------


def test_host_that_keeps_failing_is_left_to_the_loop_until_it_answers(
    alice: ApiClient, app: Flask, receiver: Receiver
) -> None:
    fail_often(alice, receiver)
    task = alice.start(callback=receiver.url)
    assert finish(alice, task) == "pending"
    assert the_delivery(alice, task)["attempts"] == []
    with Receiver() as other:
        assert finish(alice, alice.start(callback=other.url)) == "delivered"
    receiver.answer = play.answer(204)
    with looping(app):
        assert until_attempts(alice, task, 1)["state"] == "delivered"
    assert finish(alice, alice.start(callback=receiver.url)) == "delivered"


@one_database
def test_unsent_attempt_does_not_reset_the_circuit_breaker(
    alice: ApiClient, app: Flask, receiver: Receiver
) -> None:
    fail_often(alice, receiver)
    refused, task = (alice.start(callback=receiver.url) for _ in range(2))
    allowed = app.config["CALLBACK_ALLOWED"]
    app.config["CALLBACK_ALLOWED"] = Destinations.parse("external")
    assert finish(alice, refused) == "pending"
    with looping(app):
        assert until_attempts(alice, refused, 1)["state"] == "failed"
    app.config["CALLBACK_ALLOWED"] = allowed
    assert finish(alice, task) == "pending"
    assert the_delivery(alice, task)["attempts"] == []


# --- seen, and asked for again -----------------------------------------------------------


def test_delivery_is_shown_with_its_attempts(alice: ApiClient, receiver: Receiver) -> None:
    receiver.answer = play.answer(503)
    task = alice.start(callback=f"{receiver.url}hook?of=alice")
    assert deliveries_of(alice, task) == []
    finish(alice, task)
    delivery = the_delivery(alice, task)
    (attempt,) = delivery["attempts"]
    assert delivery["callback"] == task["callback"]
    assert delivery["id"] == receiver.requests[0].headers["webhook-id"]
    assert delivery["createdAt"] == alice.task(task)["finishedAt"]
    assert attempt["statusCode"] == 503
    assert attempt["message"] == "The receiver responded with 503 Service Unavailable."
    assert attempt["durationMs"] < 10_000
    assert delivery["createdAt"] <= attempt["at"] < delivery["nextAttemptAt"]


def test_redelivery_posts_the_task_as_it_is_now_under_the_same_id(
    alice: ApiClient, receiver: Receiver, loop: None
) -> None:
    task = alice.start(callback=receiver.url)
    finish(alice, task)
    alice.report(task, name="renamed since")
    delivery = redeliver(alice, task)
    assert delivery["state"] == "pending"
    assert delivery["nextAttemptAt"] is not None
    assert until_attempts(alice, task, 2)["state"] == "delivered"
    first, second = receiver.requests
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == delivery["id"]
    assert json.loads(second.body)["name"] == "renamed since"


def test_redelivery_of_a_task_that_is_being_deleted_is_404(
    alice: ApiClient, app: Flask, receiver: Receiver
) -> None:
    task = alice.start(callback=receiver.url)
    finish(alice, task)
    with deleting_first(app, alice, task):
        problem(alice.post(f"/task/{task['id']}/deliveries"), 404)


def test_only_the_newest_attempts_are_kept(
    alice: ApiClient, app: Flask, receiver: Receiver
) -> None:
    tasks = [alice.start(callback=receiver.url) for _ in range(2)]
    for task in tasks:
        finish(alice, task)
    ids = [deliveries_of(alice, task)[0]["id"] for task in tasks]
    older = [
        {
            "delivery_id": delivery_id,
            "at": "2026-11-24T13:36:00.000Z",
            "duration_ms": 1,
            "message": "old",
        }
        for delivery_id in ids
        for _ in range(120)
    ]
    with app.app_context(), transaction() as connection:
        connection.execute(insert(Attempt), older)
    redeliver(alice, tasks[0])
    with looping(app):
        receiver.wait_for(3)
        until(lambda: deliveries_of(alice, tasks[0])[0]["state"] == "delivered")
    kept, others = (deliveries_of(alice, task)[0]["attempts"] for task in tasks)
    assert len(kept) == MAX_ATTEMPTS
    assert [attempt["statusCode"] for attempt in kept] == [None] * (MAX_ATTEMPTS - 1) + [204]
    assert len(others) == 121


@pytest.mark.parametrize(
    ("first", "status"),
    [(play.answer(410), "failed"), (play.answer(503, {"Retry-After": "3600"}), "pending")],
    ids=["failed", "pending"],
)
def test_redelivery_is_immediate_and_begins_a_new_round(
    alice: ApiClient, app: Flask, receiver: Receiver, loop: None, first: Behaviour, status: str
) -> None:
    receiver.answer = one_after_another(first, play.answer(500))
    task = alice.start(callback=receiver.url)
    assert finish(alice, task) == status
    redeliver(alice, task)
    delivery = until_attempts(alice, task, 2)
    assert delivery["state"] == "pending"
    assert columns(app, "attempt_count") == [(1,)]


def test_without_a_delivery_there_is_nothing_to_deliver_again(
    alice: ApiClient, receiver: Receiver
) -> None:
    running, silent = alice.start(callback=receiver.url), alice.start()
    finish(alice, silent)
    for task in (running, silent):
        refused = problem(alice.post(f"/task/{task['id']}/deliveries"), 409)
        assert "no delivery" in refused["detail"]


def test_delivery_that_is_being_posted_is_not_delivered_again(
    alice: ApiClient, app: Flask, receiver: Receiver
) -> None:
    refused = []

    def ask(exchange: Exchange) -> None:
        task_id = json.loads(exchange.request.body)["id"]
        response = ApiClient(app, alice.name, alice.key).post(f"/task/{task_id}/deliveries")
        refused.append(problem(response, 409)["code"])
        play.answer(204)(exchange)

    receiver.answer = ask
    task = alice.start(callback=receiver.url)
    assert finish(alice, task) == "delivered"
    assert refused == ["delivery_under_way"]
    assert the_delivery(alice, task)["state"] == "delivered"


def test_deliveries_are_for_their_users_own_eyes(
    alice: ApiClient, bob: ApiClient, receiver: Receiver
) -> None:
    task = alice.start(callback=receiver.url)
    finish(alice, task)
    path = f"/task/{task['id']}/deliveries"
    for method in ("GET", "POST"):
        assert problem(bob.request(method, path), 404)["detail"] == "Task's ID is not found"
        problem(alice.agent_key().request(method, path), 403)
    assert len(receiver.requests) == 1
