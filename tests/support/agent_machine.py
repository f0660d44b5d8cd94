"""A machine on the agent's side: runs the commands with a key and a separate home."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, Any

from tests.support.api_client import RemoteClient
from tests.support.fork_server import ForkedPopen, run_forked
from tests.support.receiver import unused_port
from tests.support.service import Service
from tests.support.waiting import PATIENCE_SECONDS

# The agent's side as it is, but the pauses between its requests are short.
COMMAND = """
from taskservice.cli import main
from taskservice.client import http

http.FIRST_DELAY, http.LONGEST_DELAY = 0.05, 0.3
{}
main(prog_name="taskservice")
"""
# For a service that remains unavailable, or refuses requests: attempts end soon.
GIVE_UP_SOON = """
from taskservice.cli import service_client, task
from taskservice.runner import run

service_client.PROGRAM_SECONDS = service_client.PERSON_SECONDS = 0.3
task.FOLLOW_SECONDS = run.MIN_SILENCE_SECONDS = 0.3

def start_task(self, original=run.Run._start_task, **options):
    # Limits only the retries: a slow response is still waited for.
    return original(self, **options | {"retry_timeout": min(options["retry_timeout"], 0.3)})

run.Run._start_task = start_task
"""
# As on a machine with too many processes, in a process that has forked as often as it may.
FORKS_FAIL = """
import os

def fork(successes=[os.fork] * {}):
    if not successes:
        raise BlockingIOError("too many processes")
    return successes.pop()()

os.fork = fork
"""


# Runs a program as a task on a new terminal; returns the terminal's other end too.
AtTerminal = Callable[..., tuple[subprocess.Popen[bytes], int]]


class Command(ForkedPopen):
    """A running command, whose output a test reads as it arrives."""

    stdin: IO[str]
    stdout: IO[str]
    stderr: IO[str]

    def read_line(self) -> str:
        """The next line that it prints."""
        return self.stdout.readline()

    def read_error(self) -> str:
        """The next line of its stderr."""
        return self.stderr.readline()

    def end(self, number: int = signal.SIGTERM) -> tuple[str, str]:
        """Send a signal, and wait for the exit; returns the rest of stdout and stderr."""
        self.send_signal(number)
        return self.communicate(timeout=PATIENCE_SECONDS)


class AgentMachine:
    """Runs the agent's side of `taskservice` as a person would, with the key of a `user`.

    `url`, `key` and `settings`, more variables of its environment, may be changed.
    """

    def __init__(self, home: Path, user: RemoteClient) -> None:
        home.mkdir(exist_ok=True)
        self.home, self.user, self.url, self.key = home, user, user.url, user.key
        self.settings: dict[str, str] = {}
        self._spawned: list[Command] = []
        self.patch("")

    def patch(self, statements: str) -> None:
        """These statements run in its commands before they begin."""
        self.command = [sys.executable, "-c", COMMAND.format(statements)]

    def beat_often(self) -> None:
        """From now on its commands notice a cancel sooner."""
        self.patch("from taskservice.client import sender; sender.HEARTBEAT_SECONDS = 0.3")

    def give_up_soon(self) -> None:
        """From now on its commands hardly wait for an unavailable service."""
        self.patch(GIVE_UP_SOON)

    def lose_service(self) -> None:
        """From now on no service listens at its address, and its commands soon fail."""
        self.url = f"http://127.0.0.1:{unused_port()}"
        self.give_up_soon()

    def start_without_service(self) -> None:
        """From now on its runs hardly wait for the start of their task."""
        self.patch("from taskservice.runner import run; run.START_SECONDS = 0.3")

    @property
    def environment(self) -> dict[str, str]:
        clean = {name: text for name, text in os.environ.items() if "TASKSERVICE" not in name}
        settings = {"TASKSERVICE_URL": self.url, "TASKSERVICE_APIKEY": self.key}
        nonempty = {name: text for name, text in settings.items() if text}
        places = {"HOME": str(self.home)}
        places |= {
            f"XDG_{kind}_HOME": str(self.home / kind.lower()) for kind in ("CONFIG", "STATE")
        }
        return clean | nonempty | places | self.settings

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"capture_output": True, "text": True, "timeout": 100, "check": False} | options
        return run_forked([*self.command, *arguments], env=self.environment, **options)

    def fail(self, *arguments: str, code: int = 1) -> str:
        """Run a command that must fail with one line, or a line about its use; returns stderr."""
        done = self.run(*arguments)
        assert (done.returncode, done.stdout) == (code, ""), done
        assert done.stderr.startswith("Usage: ") or done.stderr.count("\n") == 1
        return done.stderr

    def spawn(self, *arguments: str, **options: Any) -> Command:
        return self._spawn([*self.command, *arguments], options)

    def python(self, program: str, *arguments: str, **options: Any) -> Command:
        """A program in Python that uses the client."""
        return self._spawn([sys.executable, "-c", program, *arguments], options)

    def _spawn(self, command: list[str], options: dict[str, Any]) -> Command:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        self._spawned.append(Command(command, env=self.environment, **options))
        return self._spawned[-1]

    def run_script(
        self, script: str, *options: str, **others: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell script as a task of the agent `a`."""
        return self.run("run", "--agent", "a", *options, "--", "sh", "-c", script, **others)

    def spawn_script(self, script: str, **options: Any) -> Command:
        """Start a shell script as a task of the agent `a`; it can read from a pipe."""
        options = {"stdin": subprocess.PIPE} | options
        return self.spawn("run", "--agent", "a", "--", "sh", "-c", script, **options)

    def resend(self) -> subprocess.CompletedProcess[str]:
        """Send saved runs to the service of its user, as if the service had moved there."""
        for folder in self.left_runs():
            record = folder / "run.json"
            text = re.sub('"url": "[^"]*"', f'"url": "{self.user.url}"', record.read_text())
            record.write_text(text)
        self.url = self.user.url
        self.patch("")
        return self.run("run", "--resend")

    def kill_left(self) -> None:
        """Kill the processes of a failed test, which would disturb the next one."""
        for process in self._spawned:
            if process.poll() is None:
                process.kill()
                with process:
                    pass

    def left_runs(self) -> list[Path]:
        """The runs that are saved on the disk, running or ended."""
        return sorted((self.home / "state").glob("taskservice/runs/*"))


def has_ended(machine: AgentMachine) -> bool:
    """Whether the program of the only run has ended."""
    return any(_has_report(folder / "run.json") for folder in machine.left_runs())


def _has_report(record: Path) -> bool:
    try:
        return '"report": null' not in record.read_text()
    except FileNotFoundError:
        # Its directory got its final name, or was removed.
        return False


def kill(service: Service) -> None:
    """End the service as a power failure would: without a last action of any process."""
    workers = service.workers()
    service.stop(9)
    for worker in workers:
        # A worker exits by itself when its parent has ended.
        with suppress(ProcessLookupError):
            os.kill(worker, 9)


def objects(text: str) -> list[Any]:
    """The output of a command with --json."""
    return [json.loads(line) for line in text.splitlines()]


def end_for_silence(service: Service) -> None:
    """Do what maintenance does to running tasks whose machine sleeps, without the wait."""
    change_rows(
        service,
        "UPDATE tasks SET status = 'error', error_type = 'timeout', error_message = 'silent', "
        "finished_at = updated_at, version = version + 1 WHERE status = 'running'",
    )


def change_rows(service: Service, statement: str) -> None:
    """Do in the database what maintenance does after a long time."""
    path = Path(service.environment["TASKSERVICE_DATA"]) / "taskservice.db"
    with closing(sqlite3.connect(path, timeout=20)) as connection:
        connection.execute(statement)
        connection.commit()
