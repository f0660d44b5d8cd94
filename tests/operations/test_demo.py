"""`taskservice demo`: a service with made-up data, which are removed at its end."""

import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from taskservice.demo.history import LONG_LOG_LINES
from tests.support.api_client import RemoteClient
from tests.support.service import COMMAND, environment, free_port
from tests.support.waiting import until


@contextmanager
def demo(folder: Path, **settings: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A demo that can be used, its sign-in link and its key; its data are in `folder`."""
    variables = environment(folder / "unused", **settings) | {"TMPDIR": str(folder)}
    arguments = [*COMMAND, "demo", "--no-browser", "--port", str(free_port())]
    with subprocess.Popen(arguments, env=variables, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            link, key = (process.stdout.readline().split()[-1] for _ in range(2))
            yield process, link, key
        finally:
            process.kill()


def test_demo_has_a_full_world_and_leaves_nothing_behind(tmp_path: Path) -> None:
    # Settings of the environment do not count.
    settings = {"BIND": "nonsense", "DATABASE_URL": "postgresql://nobody"}
    with demo(tmp_path, **settings) as (process, link, key):
        client = RemoteClient(link.partition("/sign-in/")[0], key)

        def read(path: str) -> Any:
            return client.request("GET", path).json()

        attention = Counter(item["kind"] for item in read("/attention"))
        assert attention["late"] == attention["hanging"] == attention["broken"] == 1
        until(lambda: len(read("/task?asking=true")) == 2)
        assert len(read("/agent")) == 8
        [video] = read("/task?status=running&agentId=video-encoder")
        until(lambda: read(f"/task/{video['id']}")["logCount"] > video["logCount"])
        counts = [task["logCount"] for task in read("/task?fields=logCount")]
        assert max(counts) == LONG_LOG_LINES
        assert len(counts) > 1_000
        session = requests.Session()
        token = re.search(r'name="token" value="([^"]+)"', session.get(link).text)
        assert token
        page = session.post(link, data={"token": token[1]})
        assert page.url.endswith("/")
        assert "Invoice import" in page.text
        assert [path.name for path in tmp_path.iterdir()] != []
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert list(tmp_path.iterdir()) == []


def test_demo_on_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with demo(tmp_path) as (_, link, _):
        port = link.split("/")[2].split(":")[1]
        second = subprocess.run(
            [*COMMAND, "demo", "--no-browser", "--port", port],
            env=environment(tmp_path / "unused") | {"TMPDIR": str(tmp_path)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert second.returncode == 1
    assert port in second.stderr
    assert "Traceback" not in second.stderr
