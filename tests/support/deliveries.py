"""Changes deliveries in the database, so that tests need not wait for hours."""

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask import Flask
from sqlalchemy import insert, select, update

from taskservice.background import delivery_loop
from taskservice.background.delivery_loop import DeliveryLoop
from taskservice.database import clock
from taskservice.database.models import Delivery, Hook, Task
from taskservice.database.transactions import reading, transaction
from taskservice.database.types import database_now
from taskservice.terms import COMPLETE, PENDING
from tests.support.api_client import ApiClient, expect
from tests.support.internals import before_reads
from tests.support.receiver import Receiver
from tests.support.waiting import PATIENCE_SECONDS


def finish(person: ApiClient, task: dict[str, Any], **changes: Any) -> str:
    """Report a task complete; returns the Callback-Status."""
    response = person.patch(f"/task/{task['id']}", json={"status": "complete", **changes})
    expect(response, 200)
    return response.headers["Callback-Status"]


def deliveries_of(person: ApiClient, task: dict[str, Any]) -> list[dict[str, Any]]:
    """The deliveries of a task, newest first, as its user sees them."""
    deliveries: list[dict[str, Any]] = expect(person.get(f"/task/{task['id']}/deliveries"), 200)
    return deliveries


def the_delivery(person: ApiClient, task: dict[str, Any]) -> dict[str, Any]:
    """The only delivery of a task."""
    (delivery,) = deliveries_of(person, task)
    return delivery


def columns(app: Flask, *names: str) -> list[tuple[Any, ...]]:
    """These columns of each delivery, oldest first."""
    columns = [getattr(Delivery, name) for name in names]
    with app.app_context(), reading() as connection:
        return [tuple(row) for row in connection.execute(select(*columns).order_by(Delivery.id))]


def make_due(app: Flask) -> None:
    """As if all pending deliveries had become due while the loop slept."""
    change(app, next_attempt_at=database_now(-1))


def make_message_due(app: Flask) -> None:
    """As if the pause of all hooks for people, and the wait after a failure, were over."""
    with app.app_context(), transaction() as connection:
        connection.execute(update(Hook).values(quiet_until=None))
        waiting = update(Hook).where(Hook.next_attempt_at.is_not(None))
        connection.execute(waiting.values(next_attempt_at=database_now(-1)))


def change(app: Flask, **values: Any) -> None:
    """Change columns of all pending deliveries, without waking the loops."""
    with app.app_context(), transaction() as connection:
        connection.execute(update(Delivery).where(Delivery.state == PENDING).values(values))


@contextmanager
def looping(app: Flask, stop_seconds: float = delivery_loop.STOP_SECONDS) -> Iterator[None]:
    """The loop that posts what is due, in this process, as each worker process has it.

    It notices due deliveries at once, a service within a second. With `stop_seconds=0` it stops
    without a wait for receivers that hang.
    """
    loop = DeliveryLoop(app)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delivery_loop, "ROUND_SECONDS", 0.05)
        patch.setattr(delivery_loop, "STOP_SECONDS", stop_seconds)
        loop.start()
        try:
            yield
        finally:
            _stop(loop)


def _stop(loop: DeliveryLoop) -> None:
    loop.stop()
    loop.join(PATIENCE_SECONDS)
    assert not loop.is_alive()
    # Abandoned attempts may still be running, and use the database.
    for thread in threading.enumerate():
        if thread.name == "attempt":
            thread.join(PATIENCE_SECONDS)


def enqueue_many(app: Flask, person: ApiClient, url: str, count: int) -> None:
    """Make this many finished tasks whose deliveries to `url` are due."""
    enqueue_each(app, person, [url] * count)


def enqueue_each(app: Flask, person: ApiClient, urls: Iterable[str]) -> None:
    """Make a finished task for each of these URLs, whose delivery to it is due."""
    task = person.start()
    with app.app_context(), reading() as connection:
        row = connection.execute(select(Task.__table__).where(Task.id == task["id"])).one()
    now = clock.now()
    ended = {**row._asdict(), "status": COMPLETE, "finished_at": now}
    pending = {"user_id": row.user_id, "state": PENDING, "created_at": now, "attempt_count": 0,
               "next_attempt_at": now}  # fmt: skip
    tasks, deliveries = [], []
    for url in urls:
        task_id = clock.new_id()
        tasks.append({**ended, "id": task_id, "callback_url": url})
        place = {"task_id": task_id, "callback_url": url, "host": urlsplit(url).netloc}
        deliveries.append({**pending, **place, "id": clock.new_id()})
    with app.app_context(), transaction() as connection:
        connection.execute(insert(Task), tasks)
        connection.execute(insert(Delivery), deliveries)


def addresses(receiver: Receiver, path: str, count: int, first: int = 0) -> list[str]:
    """This many URLs of one receiver on 0.0.0.0, each with a different address."""
    return [
        f"http://127.{n // 62_500 + 1}.{n // 250 % 250}.{n % 250 + 1}:{receiver.port}/{path}"
        for n in range(first, first + count)
    ]


@contextmanager
def deleting_first(app: Flask, person: ApiClient, task: dict[str, Any]) -> Iterator[None]:
    """Delete a task once in this block, just before its deliveries are read."""
    deletions: list[bool] = []

    def delete_first(statement: str, _: Any) -> None:
        if "FROM deliveries" in statement and not deletions:
            deletions.append(True)
            with ThreadPoolExecutor(1) as pool:
                other = ApiClient(app, person.name, person.key)
                expect(pool.submit(other.delete, f"/task/{task['id']}").result(), 200)

    with before_reads(app, delete_first):
        yield
    assert deletions
