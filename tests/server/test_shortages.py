"""The service recovers from a short lack of memory or threads."""

from pathlib import Path

import pytest

from tests.support.gunicorn_process import THREADS, started
from tests.support.waiting import until


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
