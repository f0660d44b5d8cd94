"""PostgreSQL that has no connection left, and a standby as the only host."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import psycopg
import pytest
import requests

from tests.support import receiver as play
from tests.support.api_client import RemoteClient
from tests.support.commands import check, one_line, run
from tests.support.concurrency import copies
from tests.support.databases import Databases
from tests.support.every_write import EveryWrite
from tests.support.postgresql_server import PostgresqlServer, make_standby, postgresql_server
from tests.support.receiver import Receiver
from tests.support.service import Service
from tests.support.waiting import until

CONNECTIONS = 24


@pytest.fixture
def primary(databases: Databases) -> Iterator[PostgresqlServer]:
    """A server with few connections, and a database of the role `service`."""
    with postgresql_server(databases.programs) as server:
        server.create(max_connections=str(CONNECTIONS))
        server.execute("CREATE ROLE service LOGIN")
        server.execute("CREATE DATABASE tasks OWNER service")
        yield server


def url_of(server: PostgresqlServer) -> str:
    return f"postgresql://service@{server.host}/tasks"


def take_all_connections(url: str, stack: ExitStack) -> None:
    """Connect until the server refuses."""
    assert any(is_refused(url, stack) for _ in range(CONNECTIONS))


def is_refused(url: str, stack: ExitStack) -> bool:
    try:
        stack.enter_context(psycopg.connect(url))
    except psycopg.OperationalError:
        return True
    return False


def test_service_continues_after_all_connections_were_taken(
    primary: PostgresqlServer, tmp_path: Path
) -> None:
    url = url_of(primary)
    with Service(tmp_path / "data", DATABASE_URL=url, THREADS="4") as service, Receiver() as hook:
        alice = service.add_user()
        pending = alice.start(callback=hook.url)
        hook.answer = play.answer(500)
        alice.request("PATCH", f"/task/{pending['id']}", json={"status": "complete"})
        hook.answer = play.answer(200)
        people = copies(alice, 4)
        with ExitStack() as others, ThreadPoolExecutor(4) as pool:
            take_all_connections(url, others)
            assert "connection slots" in one_line(
                run(tmp_path, "user", "list", DATABASE_URL=url), 1
            )
            # Those reserved for superusers are left. While it holds the lock, each thread of the
            # service needs a separate connection.
            with psycopg.connect(primary.url("tasks")) as operator:
                operator.execute("LOCK TABLE tasks IN EXCLUSIVE MODE")
                starts = {
                    str(n): pool.submit(
                        one.request, "POST", "/task", json={"agentId": "summarizer", "name": str(n)}
                    )
                    for n, one in enumerate(people)
                }
                until(lambda: [start for start in starts.values() if start.done()])
            answers = {name: start.result().status_code for name, start in starts.items()}
            assert set(answers.values()) <= {201, 503}
            assert 503 in answers.values()
            assert "connection slots" in service.log.read_text()
        started = {name for name, status in answers.items() if status == 201}
        names = {task["name"] for task in alice.request("GET", "/task").json()}
        assert names == started | {pending["name"]}
        until(lambda: requests.get(f"{service.url}/readyz", timeout=30).ok)
        for number, one in enumerate(people):
            assert one.start(name=f"after {number}")["status"] == "running"
        until(partial(is_delivered, alice, pending["id"]))


def is_delivered(alice: RemoteClient, task_id: str) -> bool:
    (delivery,) = alice.request("GET", f"/task/{task_id}/deliveries").json()
    return bool(delivery["state"] == "delivered")


def test_standby_is_503_for_writes_until_it_is_promoted(
    primary: PostgresqlServer, databases: Databases, tmp_path: Path
) -> None:
    with postgresql_server(databases.programs) as standby:
        make_standby(standby, primary)
        url = url_of(standby)
        # Nothing can be made there.
        for command in ("serve", "user add alice", "db upgrade"):
            line = one_line(run(tmp_path, *command.split(), DATABASE_URL=url), 1)
            assert "in a read-only transaction" in line
        with Service(tmp_path / "data", DATABASE_URL=url_of(primary)) as service:
            writes = EveryWrite(service.add_user())
        until(lambda: is_as_new(standby, primary))
        finding = check(tmp_path, 1, DATABASE_URL=url)["server"]
        assert finding["state"] == "error"
        assert finding["message"].endswith("it is read-only, like a standby")
        at_standby = Service(tmp_path / "data", DATABASE_URL=url)
        at_standby.ready_path = "/livez"
        with at_standby as service:
            writes.alice.url = service.url
            writes.are_refused()
            assert "Traceback" not in service.log.read_text()
            standby.promote()
            writes.succeed()


def is_as_new(standby: PostgresqlServer, primary: PostgresqlServer) -> bool:
    written = primary.ask("SELECT pg_current_wal_lsn()")
    return bool(standby.ask(f"SELECT pg_last_wal_replay_lsn() >= '{written}'"))
