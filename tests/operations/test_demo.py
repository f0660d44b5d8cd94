"""`taskservice demo`: a service with made-up data, which are removed at its end."""

import errno
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
import requests
from flask import Flask

from taskservice.database.clock import rfc3339
from taskservice.demo.history import LONG_LOG_LINES
from tests.support.api_client import expect
from tests.support.demo import DEMO, demo_environment, demo_user, running_demo
from tests.support.marks import one_database
from tests.support.service import free_port
from tests.support.waiting import PATIENCE_SECONDS, until

# The demo in a process that gets a signal while it makes its data.
INTERRUPTED = """
import os, signal
from taskservice.__main__ import main
from taskservice.demo.history import History

def add_day(self, day):
    print("makes", flush=True)
    os.kill(os.getpid(), signal.SIGINT)

History._add_day = add_day
main()
"""


def test_demo_has_a_full_world_and_leaves_nothing_behind(tmp_path: Path) -> None:
    # Settings of the environment do not count.
    settings = {"BIND": "nonsense", "DATABASE_URL": "postgresql://nobody"}
    with running_demo(tmp_path, **settings) as demo:
        read = demo.client.read
        attention = Counter(item["kind"] for item in read("/attention"))
        assert attention["late"] == attention["hanging"] == attention["broken"] == 1
        assert attention["question"] == 2
        assert demo.process.stdout
        assert demo.process.stdout.readline() == "Ctrl+C ends the demo and removes its data.\n"
        assert len(read("/agent")) == 8
        [video] = read("/task?status=running&agentId=video-encoder")
        until(lambda: read(f"/task/{video['id']}")["logCount"] > video["logCount"])
        counts = [task["logCount"] for task in read("/task?fields=logCount")]
        assert max(counts) == LONG_LOG_LINES
        assert len(counts) > 1_000
        session = requests.Session()
        token = re.search(r'name="token" value="([^"]+)"', session.get(demo.link).text)
        assert token
        page = session.post(demo.link, data={"token": token[1]})
        assert page.url.endswith("/")
        assert "Invoice import" in page.text
        assert [path.name for path in tmp_path.iterdir()] != []
        # `make` sends a second signal to its command after the terminal's.
        for _ in range(100):
            demo.process.send_signal(signal.SIGINT)
        assert demo.process.wait(PATIENCE_SECONDS) == 0
        assert "could not be sent" not in str(demo.process.stderr and demo.process.stderr.read())
    assert list(tmp_path.iterdir()) == []


@one_database
def test_numbers_of_the_demo_fit(app: Flask) -> None:
    person = demo_user(app, days=30)
    outcomes: Counter[str] = Counter()
    for task in expect(person.get("/task?limit=1000"), 200):
        lines = expect(person.get(f"/task/{task['id']}/logs?times=true"), 200)
        assert lines["times"] == sorted(lines["times"])
        end = task["finishedAt"] or rfc3339(datetime.now(UTC))
        assert all(task["createdAt"] <= at <= end for at in lines["times"]), task
        error = task["error"] or {"type": task["status"], "message": ""}
        outcomes[error["type"]] += 1
        if error["type"] == "failed":
            assert "\n".join(lines["logs"]).endswith(error["message"])
        if count := re.match(r"([\d,]+) of ([\d,]+) ", task["note"] or ""):
            done, total = (int(number.replace(",", "")) for number in count.groups())
            assert task["progress"] == pytest.approx(done / total)
    assert min(outcomes[kind] for kind in ("failed", "cancelled", "timeout", "running")) > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_demo_that_ends_before_it_is_ready_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals
) -> None:
    with subprocess.Popen(DEMO, env=demo_environment(tmp_path)) as process:
        until(lambda: list(tmp_path.glob("*/taskservice.db")))
        # `make` sends a second signal to its command after the terminal's.
        for _ in range(2):
            process.send_signal(number)
        assert process.wait(PATIENCE_SECONDS) == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_demo_that_ends_while_it_makes_its_data_does_not_make_all_of_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, "demo", "--no-browser", "--port"]
    done = subprocess.run(
        [*command, str(free_port())], env=demo_environment(tmp_path),
        capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (128 + signal.SIGINT, "makes\n")
    assert list(tmp_path.iterdir()) == []


def test_demo_that_nohup_starts_ignores_a_hangup(tmp_path: Path) -> None:
    with subprocess.Popen(["nohup", *DEMO], env=demo_environment(tmp_path)) as process:
        until(lambda: list(tmp_path.glob("*/taskservice.db")))
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 128 + signal.SIGTERM


def test_demo_on_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with running_demo(tmp_path) as demo:
        port = demo.client.url.rpartition(":")[2]
        second = subprocess.run(
            [*DEMO, "--port", port], env=demo_environment(tmp_path),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert (second.returncode, second.stdout) == (1, "")
    [line] = second.stderr.splitlines()
    assert line.startswith(f"taskservice: can't listen on 127.0.0.1:{port}: Address already in use")
    assert "--port" in line


def test_demo_that_cannot_print_its_link_leaves_no_service(tmp_path: Path) -> None:
    port = free_port()
    command = [*DEMO, "--port", str(port)]
    variables = demo_environment(tmp_path)
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.close()
        assert process.wait(PATIENCE_SECONDS) == 1
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED
    assert list(tmp_path.iterdir()) == []
