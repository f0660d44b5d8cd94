"""No file descriptors are left to the running service: 503, and then it continues."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg

from tests.support.databases import Databases
from tests.support.every_write import EveryWrite
from tests.support.marks import one_database
from tests.support.service import Service


@contextmanager
def limited(kind: int, pid: int, limit: int) -> Iterator[None]:
    """The running process has this limit, as one that has used up what it may."""
    before = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, kind, before)


def free_descriptor(pid: int) -> int:
    """The number of the next file that the process opens, and not one that it closes just now."""
    return min(_free_descriptor(pid) for _ in range(20))


def _free_descriptor(pid: int) -> int:
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    return next(number for number in count() if number not in used)


@one_database
def test_writes_without_a_file_descriptor_are_503_and_continue_with_one(service: Service) -> None:
    writes = EveryWrite(service.add_user())
    (worker,) = service.workers()
    # The connection of this client is open already, and those to the database.
    before = writes.state()
    with limited(resource.RLIMIT_NOFILE, worker, free_descriptor(worker)):
        for name, (method, path, body) in writes.requests().items():
            answer = writes.alice.request(method, path, json=body)
            assert answer.status_code == 503, (name, answer.text)
            assert int(answer.headers["Retry-After"]) > 0
        assert writes.state() == before
    writes.succeed()
    assert service.workers() == [worker]


def test_lost_database_is_not_reached_without_a_file_descriptor_and_then_it_is(
    databases: Databases, tmp_path: Path
) -> None:
    url = databases.new_postgresql()
    with Service(tmp_path / "data", DATABASE_URL=url) as service:
        writes = EveryWrite(service.add_user())
        (worker,) = service.workers()
        # The descriptors of the lost connections, then free, are past the limit too.
        with limited(resource.RLIMIT_NOFILE, worker, 3):
            end_connections(url)
            for name, (method, path, body) in writes.requests().items():
                answer = writes.alice.request(method, path, json=body)
                assert answer.status_code == 503, (name, answer.text)
            assert writes.alice.session.get(f"{service.url}/livez", timeout=30).status_code == 200
            assert writes.alice.session.get(f"{service.url}/readyz", timeout=30).status_code == 503
        writes.succeed()
        assert service.workers() == [worker]


def end_connections(url: str) -> None:
    """End the service's connections, as a restart of PostgreSQL does."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
