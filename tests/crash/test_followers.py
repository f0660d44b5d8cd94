"""Followers of a log while one of their workers is killed."""

import os
import signal
import time

from tests.support.followers import Follower, append_surely, numbered, until_answered
from tests.support.service import Service
from tests.support.waiting import PATIENCE_SECONDS, until


def test_ten_followers_have_every_line_once_though_workers_are_killed(two_workers: Service) -> None:
    """One writer at 500 lines a second; each worker has 16 threads, so eight slots."""
    person = two_workers.add_user()
    task = person.start()
    followers = [Follower(person, task) for _ in range(10)]
    for follower in followers:
        follower.start()
    total, batch = 5_000, 25
    began = time.monotonic()
    # All followers may be on one worker.
    until(lambda: len(two_workers.workers()) == 2)
    one, other = two_workers.workers()
    kills = {total // 2 + 1: one, total // 4 * 3 + 1: other}
    for first in range(1, total + 1, batch):
        if first in kills:
            os.kill(kills[first], signal.SIGKILL)
        append_surely(person, task, first, numbered(first, first + batch - 1))
        time.sleep(max(0.0, began + first / 500 - time.monotonic()))
    report = {"json": {"status": "complete"}}
    until_answered(lambda: person.request("PATCH", f"/task/{task['id']}", **report))
    expected = [(str(number), f"line {number}") for number in range(1, total + 1)]
    for follower in followers:
        follower.join(PATIENCE_SECONDS)
        assert follower.lines == expected
        assert follower.states[-1]["status"] == "complete"
    # Otherwise no client was cut off, and the test shows nothing.
    assert sum(follower.connections for follower in followers) > len(followers)
