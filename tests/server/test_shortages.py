"""The service recovers from a short lack of memory or threads."""

import fcntl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import Connection, event
from sqlalchemy.exc import OperationalError

from taskservice import resources, threads
from taskservice.database.engine import Database
from taskservice.database.watcher import CHANGE_QUERIES, Watcher
from taskservice.database.writer_queue import WriterQueue
from taskservice.operations.health import DatabaseProbe
from tests.support.api_client import ApiClient, expect
from tests.support.gunicorn_process import THREADS, started
from tests.support.receiver import Receiver
from tests.support.waiting import until

thread_exits_are_expected = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)
only_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
OWN_THREADS = {"health", "watcher", "first attempt", "writer turn"}


@contextmanager
def births_that_fail(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each new thread of the service ends before it has begun, as a MemoryError ends it there."""
    bootstrap = threading.Thread._bootstrap_inner  # type: ignore[attr-defined]

    def begin(thread: threading.Thread) -> None:
        if thread.name not in OWN_THREADS:
            bootstrap(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threads, "BEGIN_SECONDS", 0.05)
        patch.setattr(threading.Thread, "_bootstrap_inner", begin)
        yield


def watchers() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "watcher" and each.is_alive()]


def test_threads_that_die_at_birth_block_nothing_and_leave_nothing_behind(
    app: Flask, alice: ApiClient, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = alice.start(callback=receiver.url)
    operator = app.test_client()
    with births_that_fail(monkeypatch):
        assert operator.get("/readyz").status_code == 503
        assert "taskservice_database_up 0" in operator.get("/metrics").text
        expect(alice.get(f"/task/{task['id']}/logs", headers={"Prefer": "wait=1"}), 200)
        reported = alice.patch(f"/task/{task['id']}", json={"status": "complete"})
        assert reported.headers["Callback-Status"] == "delivered"
        assert watchers() == []
    until(lambda: operator.get("/readyz").status_code == 200)
    until(lambda: "taskservice_database_up 1" in operator.get("/metrics").text)


def test_thread_that_begins_too_late_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "BEGIN_SECONDS", 0.05)
    may_begin, ended, runs = threading.Event(), threading.Event(), list[str]()
    bootstrap = threading.Thread._bootstrap_inner  # type: ignore[attr-defined]

    def late(thread: threading.Thread) -> None:
        may_begin.wait()
        bootstrap(thread)
        ended.set()

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "_bootstrap_inner", late)
        with pytest.raises(RuntimeError, match="did not begin"):
            threads.start_thread("late", lambda: runs.append("run"))
        may_begin.set()
        assert ended.wait(30)
    assert runs == []


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


def test_turn_to_write_comes_after_the_thread_that_waited_for_it_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "queue"
    queue = WriterQueue(str(path))
    with path.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with births_that_fail(monkeypatch), pytest.raises(OperationalError), queue.turn(1):
            pass
    with queue.turn(1):
        pass


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
