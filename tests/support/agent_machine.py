"""A machine on the agent's side: runs the commands with a key and a separate home."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.api_client import RemoteClient
from tests.support.fork_server import ForkedPopen, run_forked
from tests.support.service import Service

# The agent's side as it is, but the pauses between its requests are short.
COMMAND = """
from taskservice.cli import listen, main
from taskservice.client import http

http.FIRST_DELAY, http.LONGEST_DELAY, listen.POLL_SECONDS = 0.05, 0.3, 0.1
{}
main(prog_name="taskservice")
"""
# For a service that stays away, or gives no answer that helps: it is soon given up.
GIVE_UP_SOON = """
from taskservice.cli import service_client, task
from taskservice.runner import run

service_client.PATIENCE_SECONDS = task.LONG_PATIENCE_SECONDS = run.MIN_SILENCE_SECONDS = 0.3

def start_task(self, original=run.Run._start_task, **options):
    # Limits only the retries: a slow response is still waited for.
    return original(self, **options | {"patience": min(options["patience"], 0.3)})

run.Run._start_task = start_task
"""


class AgentMachine:
    """Runs the agent's side of `taskservice` as a person would.

    `url`, `key` and `settings`, more variables of its environment, may be changed.
    """

    def __init__(self, home: Path, url: str, key: str) -> None:
        home.mkdir(exist_ok=True)
        self.home, self.url, self.key = home, url, key
        self.settings: dict[str, str] = {}
        self._spawned: list[subprocess.Popen[str]] = []
        self.patch("")

    def patch(self, statements: str) -> None:
        """These statements run in its commands before they begin."""
        self.command = [sys.executable, "-c", COMMAND.format(statements)]

    def beat_often(self) -> None:
        """From now on its commands hear sooner of a cancel."""
        self.patch("from taskservice.client import sender; sender.HEARTBEAT_SECONDS = 0.3")

    def give_up_soon(self) -> None:
        """From now on its commands wait hardly at all for a service that is away."""
        self.patch(GIVE_UP_SOON)

    def start_without_service(self) -> None:
        """From now on its runs wait hardly at all for the start of their task, else as usual."""
        self.patch("from taskservice.runner import run; run.START_SECONDS = 0.3")

    def wait_as_usual(self) -> None:
        """From now on its commands wait for a busy service again."""
        self.patch("")

    @property
    def environment(self) -> dict[str, str]:
        clean = {name: text for name, text in os.environ.items() if "TASKSERVICE" not in name}
        own = {"TASKSERVICE_URL": self.url, "TASKSERVICE_APIKEY": self.key}
        given = {name: text for name, text in own.items() if text}
        places = {"HOME": str(self.home)}
        places |= {
            f"XDG_{kind}_HOME": str(self.home / kind.lower()) for kind in ("CONFIG", "STATE")
        }
        return clean | given | places | self.settings

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"capture_output": True, "text": True, "timeout": 100, "check": False} | options
        return run_forked([*self.command, *arguments], env=self.environment, **options)

    def spawn(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        self._spawned.append(
            ForkedPopen([*self.command, *arguments], env=self.environment, **options)
        )
        return self._spawned[-1]

    def kill_left(self) -> None:
        """Kill what a failed test has left, which would disturb the next one."""
        for process in self._spawned:
            if process.poll() is None:
                process.kill()
                with process:
                    pass

    def python(self, program: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """A program in Python that uses the client."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        command = [sys.executable, "-c", program, *arguments]
        return ForkedPopen(command, env=self.environment, **options)

    def left_runs(self) -> list[Path]:
        """The runs that are kept on the disk, alive or left."""
        return sorted((self.home / "state").glob("taskservice/runs/*"))


def has_ended(machine: AgentMachine) -> bool:
    """Whether the program of the one run has ended."""
    return any(_has_report(folder / "run.json") for folder in machine.left_runs())


def _has_report(record: Path) -> bool:
    try:
        return '"report": null' not in record.read_text()
    except FileNotFoundError:
        # Its folder got its final name, or was removed.
        return False


def machine_of(person: RemoteClient, home: Path) -> AgentMachine:
    return AgentMachine(home, person.url, str(person.session.headers["apikey"]))


def tasks(person: RemoteClient, **query: str) -> list[dict[str, Any]]:
    """All tasks, newest first, with their logs."""
    answer = person.request("GET", "/task", params=query)
    assert answer.ok, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found


def the_task(person: RemoteClient) -> dict[str, Any]:
    """The one task that there is."""
    (task,) = tasks(person)
    return task


def kill(service: Service) -> None:
    """End the service as a power failure would: no process of it has a last word."""
    workers = service.workers()
    service.stop(9)
    for worker in workers:
        # A worker exits by itself when its parent has ended.
        with suppress(ProcessLookupError):
            os.kill(worker, 9)


def objects(text: str) -> list[Any]:
    """What a command printed with --json."""
    return [json.loads(line) for line in text.splitlines()]


def the_log(person: RemoteClient) -> list[str]:
    found = person.request("GET", "/task").json()
    return found[0]["logs"] if found else []


def end_for_silence(service: Service) -> None:
    """What maintenance does to running tasks whose machine sleeps, without the wait for it."""
    path = Path(service.environment["TASKSERVICE_DATA"]) / "taskservice.db"
    connection = sqlite3.connect(path, timeout=20)
    connection.execute(
        "UPDATE tasks SET status = 'error', error_type = 'timeout', error_message = 'silent', "
        "finished_at = updated_at, version = version + 1 WHERE status = 'running'"
    )
    connection.commit()
    connection.close()
