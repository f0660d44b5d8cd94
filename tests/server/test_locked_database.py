"""Another program locks the database while many write."""

import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager

import psycopg

from taskservice.database.engine import BUSY_SECONDS
from tests.support.concurrency import copies
from tests.support.every_write import EveryWrite
from tests.support.marks import one_database
from tests.support.service import Service

# Twice as many as the service has threads.
WRITERS = 32


@contextmanager
def locked(url: str) -> Iterator[None]:
    """The writers' lock of SQLite, or all locks of a table on PostgreSQL."""
    if url.startswith("sqlite"):
        path = url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            yield
    else:
        with psycopg.connect(url) as other:
            other.execute("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
            yield
            other.rollback()


def test_many_writers_at_a_lock_are_answered_in_time_and_keep_no_other_waiting(
    service: Service, database_url: str
) -> None:
    writes = EveryWrite(service.add_user())
    task, writers = writes.tasks["append"], copies(writes.alice, WRITERS)
    is_sqlite = database_url.startswith("sqlite")
    probes = {"/livez": 200, "/readyz": 503, "/metrics": 200}
    # On PostgreSQL such a lock stops readers too, and ends well before the writers give up.
    rounds = [probes | {"/api/v1/task": 200}]
    if not is_sqlite:
        rounds = [{path: status} for path, status in probes.items()]
    answers = []
    for statuses in rounds:
        with ThreadPoolExecutor(WRITERS) as pool:
            with locked(database_url):
                appends = [
                    pool.submit(
                        one.request, "POST", f"/task/{task['id']}/logs", json={"logs": ["a"]}
                    )
                    for one in writers
                ]
                for path, status in statuses.items():
                    began = time.monotonic()
                    assert writes.probe(path) == status, path
                    # A writer gives up after this time; none was waited for.
                    assert time.monotonic() - began < BUSY_SECONDS, path
                if is_sqlite:
                    wait(appends)
            answers += [append.result() for append in appends]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in refused)
    accepted = [answer for answer in answers if answer.status_code == 201]
    assert len(refused) + len(accepted) == len(answers)
    # On PostgreSQL the lock ends before most writers give up, on a slow machine before some.
    assert bool(accepted) is not is_sqlite
    stored = writes.alice.request("GET", f"/task/{task['id']}").json()
    assert stored["logs"] == ["a"] * len(accepted)


@one_database
def test_every_write_at_a_lock_is_503_and_continues_without_it(
    service: Service, database_url: str
) -> None:
    writes = EveryWrite(service.add_user())
    with locked(database_url):
        writes.are_refused()
    writes.succeed()
