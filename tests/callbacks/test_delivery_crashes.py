"""Kills the service repeatedly, at any time: no webhook is lost or invented."""

import json
import os
import time
from collections import defaultdict
from pathlib import Path

import pytest
from flask import Flask

from tests.support import receiver as play
from tests.support.api_client import ApiClient
from tests.support.background_process import working
from tests.support.crashing_service import (
    POINTS,
    Client,
    CrashingService,
    Scenario,
    failing_at_first,
    survives,
    wait_until_all_is_delivered,
)
from tests.support.deliveries import addresses, deliveries_of, enqueue_each, enqueue_many
from tests.support.receiver import Receiver
from tests.support.waiting import until

# A queue by time would already hold up the others with a few hundred; 100,000 show slow queries.
MANY = int(os.environ.get("CALLBACK_MANY", "100000"))
# The points from one kill to the next.
STEP = int(os.environ.get("CALLBACK_STEP", "1"))


# --- at each point -----------------------------------------------------------------------


def finish_and_redeliver(client: Client) -> None:
    """Its webhook is repeated, and then delivered again."""
    path = client.start()
    client.call("PATCH", path, json={"status": "complete"})
    client.until_posted(path, 2)
    # A new delivery is refused with 409 until the attempt is recorded.
    client.until(lambda: client.person.request("POST", f"{path}/deliveries").status_code != 409)
    client.until_posted(path, 3)
    client.until_delivered(path)


def cancel(client: Client) -> None:
    path = client.start()
    client.call("POST", f"{path}/cancel")
    client.until_posted(path, 2)
    client.until_delivered(path)


def send_a_late_report(client: Client) -> None:
    """The webhook of its end replaces the pending one of its silence, wherever it is."""
    path = client.start(claim=True, timeout=1)
    client.until_posted(path, 1)
    client.call("PATCH", path, json={"status": "complete"})
    client.until_delivered(path)


def finish_and_delete(client: Client) -> None:
    """While its webhook is pending, or just being posted by the loop."""
    path = client.start()
    client.call("PATCH", path, json={"status": "complete"})
    client.until_posted(path, 1)
    client.call("DELETE", path)


SCENARIOS: dict[Scenario, int] = {
    finish_and_redeliver: 20,
    cancel: 14,
    send_a_late_report: 14,
    finish_and_delete: 10,
}


def wait_until_all_is_put_right(alice: ApiClient) -> None:
    """What a crash has left: agents that are silent, and pending webhooks."""

    def unheard() -> list[str]:
        tasks = alice.get("/task?status=running&fields=id,claimedAt").json or []
        return [task["id"] for task in tasks if task["claimedAt"]]

    until(lambda: not unheard())
    wait_until_all_is_delivered(alice.app)


def check_that_nothing_is_lost_or_invented(alice: ApiClient, receiver: Receiver) -> None:
    """Each finished task was posted as it now is; all else that came is of deleted ones."""
    tasks = {task["id"]: task for task in alice.get("/task?fields=id,status").json or []}
    last, ids = {}, defaultdict(set)
    for request in list(receiver.requests):
        body = json.loads(request.body)
        last[body["id"]] = body["status"]
        ids[body["id"]].add(request.headers["webhook-id"])
    finished = {task_id for task_id, task in tasks.items() if task["status"] != "running"}
    assert {task_id: last.get(task_id) for task_id in finished} == {
        task_id: tasks[task_id]["status"] for task_id in finished
    }
    assert not (last.keys() - finished) & tasks.keys()
    for task_id in finished:
        assert ids[task_id] <= {delivery["id"] for delivery in deliveries_of(alice, tasks[task_id])}


def crash_at(
    point: int, scenario: Scenario, service: CrashingService, alice: ApiClient, receiver: Receiver
) -> bool:
    """Put right what the last crash has left, then live through a scenario till this point.

    Returns whether the service was alive at the end of it.
    """
    service.crash_at(point)
    service.start()
    try:
        wait_until_all_is_put_right(alice)
        check_that_nothing_is_lost_or_invented(alice, receiver)
        service.armed.touch()
        return survives(scenario, Client(service, alice.key, receiver))
    finally:
        service.armed.unlink(missing_ok=True)
        service.kill()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("database_url", "scenario"),
    # Each takes minutes, and the other scenarios differ little between the databases.
    [("postgresql", finish_and_redeliver), *(("sqlite", scenario) for scenario in SCENARIOS)],
    indirect=["database_url"],
)
def test_killed_at_any_time_no_webhook_is_lost_or_invented(
    app: Flask, alice: ApiClient, receiver: Receiver, tmp_path: Path, scenario: Scenario
) -> None:
    alice.register("worker")
    receiver.answer = failing_at_first()
    service = CrashingService(app, tmp_path, lease=1.0)
    point = next(
        point
        for point in range(1, POINTS, STEP)
        if crash_at(point, scenario, service, alice, receiver)
    )
    check_that_nothing_is_lost_or_invented(alice, receiver)
    # Points are for example each commit and each send, in requests and in the loop.
    assert point > SCENARIOS[scenario]
    print(f"\n{scenario.__name__}: {point // STEP} crashes, {len(receiver.requests)} posts")


# --- and with many at it -----------------------------------------------------------------


@pytest.mark.timeout(600)
@pytest.mark.parametrize("has_one_host", [True, False])
def test_very_many_due_deliveries_of_one_user_delay_no_other_user(
    app: Flask, alice: ApiClient, bob: ApiClient, receiver: Receiver, has_one_host: bool
) -> None:
    """They hang, all on one address or each on a different one."""
    with Receiver(host="0.0.0.0", answer=play.silence) as hanging:
        for first in range(0, MANY, 1_000):
            same = addresses(hanging, "", 1) * 1_000
            urls = same if has_one_host else addresses(hanging, "", 1_000, first)
            enqueue_each(app, alice, urls)
        with working(app):
            until(lambda: hanging.connections)
            began = time.monotonic()
            enqueue_many(app, bob, receiver.url, 100)
            receiver.wait_for(100)
            print(f"\n100 deliveries of another user in {time.monotonic() - began:.1f} s")
