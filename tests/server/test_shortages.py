"""The service recovers from a short lack of memory or threads."""

import threading
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import Connection, event

from taskservice import resources
from taskservice.database.engine import Database
from taskservice.database.watcher import CHANGE_QUERIES, Watcher
from taskservice.operations.health import DatabaseProbe
from tests.support.api_client import ApiClient, expect
from tests.support.gunicorn_process import THREADS, started
from tests.support.waiting import until

thread_exits_are_expected = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)
only_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def watchers() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "watcher" and each.is_alive()]


@only_sqlite
@thread_exits_are_expected
def test_watcher_that_died_is_replaced(alice: ApiClient) -> None:
    ended = threading.Event()

    def end(connection: Connection, _cursor: object, statement: str, *_more: object) -> None:
        if statement in CHANGE_QUERIES.values() and not ended.is_set():
            ended.set()
            # SQLAlchemy drops it without closing it when the thread ends.
            connection.connection.driver_connection.close()  # type: ignore[union-attr]
            raise SystemExit

    event.listen(resources.find(Database, alice.app).reads.engine, "before_cursor_execute", end)
    with resources.find(Watcher, alice.app).watching():
        assert ended.wait(30)
        until(lambda: not watchers())
        task = alice.start()
        expect(alice.get(f"/task/{task['id']}/logs", headers={"Prefer": "wait=1"}), 200)
        assert watchers()


@only_sqlite
@thread_exits_are_expected
def test_probe_whose_thread_died_asks_again(app: Flask) -> None:
    ends = iter([SystemExit()])

    def query() -> str:
        for end in ends:
            raise end
        return "answer"

    probe: DatabaseProbe[str] = DatabaseProbe(app, query)
    with pytest.raises(TimeoutError):
        probe.result(0.2)
    assert until(lambda: probe.result(5)) == "answer"


def test_failures_of_any_kind_leave_the_server_all_its_threads(tmp_path: Path) -> None:
    with started(tmp_path) as server:
        for _ in range(THREADS + 1):
            with pytest.raises(ConnectionResetError):
                server.get("/end-thread")
        assert server.get("/hello") == b"hello"


def test_lack_of_memory_is_503(tmp_path: Path) -> None:
    with started(tmp_path) as server:
        answer = server.ask(b"GET /no-memory HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 2\r\n" in answer
        assert b"too little memory" in answer


class Code(str):
    """Text that is put into the settings as it is."""

    __repr__ = str.__str__


def test_worker_whose_background_thread_died_makes_way_for_another(tmp_path: Path) -> None:
    dead = Code("[__import__('threading').Thread()]")
    with started(tmp_path, attributes={"background_threads": dead}) as server:
        until(lambda: server.log.count("A background thread has died") > 1)
        assert server.get("/hello") == b"hello"
