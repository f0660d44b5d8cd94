"""The server recovers from the end of a thread."""

from pathlib import Path

from tests.support.gunicorn_process import Code, started
from tests.support.waiting import until


def test_worker_whose_background_thread_died_makes_way_for_another(tmp_path: Path) -> None:
    dead = Code("[__import__('threading').Thread()]")
    with started(tmp_path, attributes={"background_threads": dead}) as server:
        until(lambda: server.log.count("A background thread has died") > 1)
        assert server.get("/hello") == b"hello"
