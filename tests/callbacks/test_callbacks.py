"""The callback of a finished task: when it is sent, its content, and that it fails no report."""

import gzip
import json
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select, update
from standardwebhooks import Webhook, WebhookVerificationError

from taskservice import resources
from taskservice.database.engine import Database
from taskservice.database.models import Attempt, CallbackSecret, Delivery
from taskservice.database.transactions import reading, transaction
from tests.support import receiver as play
from tests.support.api_client import ApiClient, expect
from tests.support.deliveries import finish
from tests.support.internals import in_use
from tests.support.receiver import Exchange, Receiver

GZIP_BOMB = gzip.compress(bytes(30_000_000))


def head_of(length: int) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode()


def verified(person: ApiClient, receiver: Receiver, number: int = 0) -> dict[str, Any]:
    """The receiver's webhook of this number, verified as a user would."""
    request = receiver.requests[number]
    secret = expect(person.get("/callback-secret"), 200)["secret"]
    task: dict[str, Any] = Webhook(secret).verify(request.body, request.headers)
    return task


def deliveries(app: Flask) -> list[Any]:
    with app.app_context(), reading() as connection:
        return list(connection.execute(select(Delivery.__table__).order_by(Delivery.id)))


def attempts(app: Flask) -> list[Any]:
    with app.app_context(), reading() as connection:
        return list(connection.execute(select(Attempt.__table__).order_by(Attempt.id)))


def test_complete_task_is_posted_signed_as_get_returns_it(
    alice: ApiClient, receiver: Receiver
) -> None:
    task = alice.start(callback=f"{receiver.url}hook?of=alice", input={"a": 1})
    alice.append(task, "one", "two")
    assert finish(alice, task, output={"sum": 3}) == "delivered"
    (request,) = receiver.requests
    assert (request.method, request.path) == ("POST", "/hook?of=alice")
    assert request.headers["content-type"] == "application/json"
    assert verified(alice, receiver) == alice.task(task)
    assert json.loads(request.body)["status"] == "complete"


def test_webhook_of_another_secret_does_not_verify(
    alice: ApiClient, bob: ApiClient, receiver: Receiver
) -> None:
    finish(alice, alice.start(callback=receiver.url))
    with pytest.raises(WebhookVerificationError):
        verified(bob, receiver)


def test_failed_task_is_posted(alice: ApiClient, receiver: Receiver) -> None:
    task = alice.start(callback=receiver.url)
    alice.report(task, status="error", error={"message": "out of paper"})
    assert verified(alice, receiver)["error"] == {"type": "failed", "message": "out of paper"}


def test_cancelled_task_is_posted_once(alice: ApiClient, receiver: Receiver) -> None:
    task = alice.start(callback=receiver.url)
    answers = [alice.post(f"/task/{task['id']}/cancel") for _ in range(2)]
    assert [answer.headers["Callback-Status"] for answer in answers] == ["delivered", "none"]
    assert verified(alice, receiver)["error"]["type"] == "cancelled"
    assert len(receiver.requests) == 1


def test_only_the_end_of_a_task_with_a_callback_is_posted(
    alice: ApiClient, app: Flask, receiver: Receiver
) -> None:
    assert finish(alice, alice.start()) == "none"
    assert deliveries(app) == []
    task = alice.start(callback=receiver.url)
    alice.report(task, output={"so far": 1}, status="running")
    assert receiver.requests == []
    assert finish(alice, task) == "delivered"
    # An equal report changes nothing.
    assert finish(alice, task) == "none"
    assert len(receiver.requests) == 1


def test_only_the_end_of_a_long_log_is_posted(alice: ApiClient, receiver: Receiver) -> None:
    task = alice.start(callback=receiver.url)
    alice.append(task, *[f"line {number}" for number in range(1, 1501)])
    finish(alice, task)
    posted = verified(alice, receiver)
    assert (posted["firstLog"], posted["logCount"]) == (501, 1500)
    assert (posted["logs"][0], posted["logs"][-1]) == ("line 501", "line 1500")
    assert len(posted["logs"]) == 1000


def test_at_most_256_kib_of_lines_are_posted(alice: ApiClient, receiver: Receiver) -> None:
    task = alice.start(callback=receiver.url)
    for number in range(10):
        alice.append(task, f"{number}" * 60 * 1024)
    finish(alice, task)
    posted = verified(alice, receiver)
    assert (posted["firstLog"], len(posted["logs"])) == (7, 4)
    assert posted["logs"][0][0] == "6"


# One of each kind; `test_transport` has all.
OUTCOMES: tuple[tuple[play.Behaviour, str, int | None, str], ...] = (
    (play.answer(299), "delivered", 299, "299"),
    (play.endless(bytes(65_536), first=head_of(1_000_000_000)), "delivered", 200, "200"),
    (play.answer(200, {"Content-Encoding": "gzip"}, GZIP_BOMB), "delivered", 200, "200"),
    (play.answer(301, {"Location": "http://10.0.0.1/"}), "pending", 301, "redirect"),
    (play.answer(410), "failed", 410, "410"),
    (play.answer(503, {"Retry-After": "9" * 99}), "pending", 503, "503"),
    (play.reset(b"HTTP/1.1 200 OK\r\nContent-Le"), "pending", None, "closed the connection"),
    (play.raw(b"no HTTP at all\r\n\r\n"), "pending", None, "not HTTP"),
)
HANGING = (
    (play.drip(b"x" * 99, every=0.05, first=head_of(99)), "delivered", 200, "200"),
    (play.silence, "pending", None, "1 s"),
)


def test_outcome_is_recorded_and_the_report_is_200(
    alice: ApiClient, app: Flask, subtests: pytest.Subtests
) -> None:
    for behaviour, status, code, sentence in (*OUTCOMES, *HANGING):
        app.config["CALLBACK_TIMEOUT"] = 10.0 if len(deliveries(app)) < len(OUTCOMES) else 1.0
        with subtests.test(f"{status} {code} {sentence}"), Receiver(answer=behaviour) as receiver:
            task = alice.start(callback=receiver.url)
            assert finish(alice, task) == status
            assert alice.task(task)["status"] == "complete"
            attempt, delivery = attempts(app)[-1], deliveries(app)[-1]
            assert attempt.status_code == code
            assert sentence in attempt.message
            assert (delivery.task_id, delivery.state) == (task["id"], status)
            assert attempt.delivery_id == delivery.id == receiver.requests[0].headers["webhook-id"]
            assert (delivery.lease, delivery.leased_until) == (None, None)
            assert (delivery.next_attempt_at is not None) == (status == "pending")
    assert len(attempts(app)) == len(deliveries(app)) == len(OUTCOMES) + len(HANGING)


def test_failure_in_the_service_itself_counts_as_an_attempt(
    alice: ApiClient, app: Flask, receiver: Receiver
) -> None:
    """Uncounted, it would be repeated without end."""
    task = alice.start(callback=receiver.url)
    expect(alice.get("/callback-secret"), 200)
    with app.app_context(), transaction() as connection:
        connection.execute(update(CallbackSecret).values(secret="whsec_"))
    assert finish(alice, task) == "pending"
    (attempt,) = attempts(app)
    assert attempt.message == "The service could not post the webhook; see the service's log."
    (delivery,) = deliveries(app)
    assert (delivery.attempt_count, delivery.lease) == (1, None)
    assert receiver.requests == []


def test_dead_receiver_does_not_fail_the_report(alice: ApiClient) -> None:
    with Receiver() as gone:
        task = alice.start(callback=gone.url)
    assert finish(alice, task) == "pending"


def test_callback_to_a_forbidden_address_fails_with_a_sentence(
    alice: ApiClient, app: Flask
) -> None:
    """The start can only judge a literal; a name is judged where it leads."""
    app.config["CALLBACK_ALLOWED"] = type(app.config["CALLBACK_ALLOWED"]).parse("external")
    assert finish(alice, alice.start(callback="http://localhost:9/")) == "failed"
    (attempt,) = attempts(app)
    assert "localhost resolves to" in attempt.message
    assert "add it to TASKSERVICE_CALLBACK_ALLOWED" in attempt.message


def test_no_connection_is_held_while_the_receiver_answers(
    alice: ApiClient, app: Flask, receiver: Receiver
) -> None:
    held = []

    def count(exchange: Exchange) -> None:
        database = resources.find(Database, app)
        held.append((in_use(database.writes), in_use(database.reads)))
        play.answer(204)(exchange)

    receiver.answer = count
    finish(alice, alice.start(callback=receiver.url))
    assert held == [(0, 0)]


def test_task_deleted_while_its_callback_is_posted_is_not_a_failure(
    alice: ApiClient, app: Flask, receiver: Receiver
) -> None:
    def delete(exchange: Exchange) -> None:
        task_id = json.loads(exchange.request.body)["id"]
        expect(ApiClient(app, alice.name, alice.key).delete(f"/task/{task_id}"), 200)
        play.answer(204)(exchange)

    receiver.answer = delete
    assert finish(alice, alice.start(callback=receiver.url)) == "delivered"
    assert (deliveries(app), attempts(app)) == ([], [])


def test_replaced_secret_signs_too(alice: ApiClient, receiver: Receiver) -> None:
    old = expect(alice.get("/callback-secret"), 200)["secret"]
    new = expect(alice.post("/callback-secret"), 201)["secret"]
    finish(alice, alice.start(callback=receiver.url))
    request = receiver.requests[0]
    for secret in (old, new):
        assert Webhook(secret).verify(request.body, request.headers)["status"] == "complete"
