"""`taskservice work`: runs a program for each task of an agent."""

import contextlib
import math
import threading
import time
from collections.abc import Sequence
from typing import Any

import click

from taskservice.cli import options
from taskservice.cli.service_client import did_you_mean, program_client
from taskservice.client import responses
from taskservice.client.http import RETRY_SECONDS, Connection
from taskservice.client.responses import NotFound, TaskServiceError
from taskservice.client.task import Task, claim_task, register_agent
from taskservice.runner.process import PROGRAM_ONLY, forward_signals
from taskservice.runner.run import Run, check_program, failed
from taskservice.terminal import notice, open_standard_files


@options.command(
    "taskservice work",
    "--agent summarizer -- python -u summarize.py",
    "--agent summarizer --parallel 4 -- ./summarize.sh",
    short_help="Claim tasks of an agent, and run a program for each.",
)
@options.agent_option(required=True, help="Agent whose tasks are claimed; registered if new.")
@click.option(
    "--parallel",
    default=1,
    type=click.IntRange(1, 256),
    metavar="N",
    help="Maximum number of tasks at a time (default: 1).",
)
@click.argument(
    "command_line", metavar="-- CMD ...", nargs=-1, required=True, type=click.UNPROCESSED
)
def command(agent: str, parallel: int, command_line: tuple[str, ...]) -> None:
    """Claim the tasks of an agent as they arrive, and run CMD for each task, as `run` does.

    CMD reads the task's input as JSON from stdin. Each task is given to only one worker, even if
    many workers run on several machines. The worker forwards signals to its running programs, and
    ends when they have ended. If CMD can't be started, the worker exits at once with 127 (not
    found) or 126 (not executable).
    """
    open_standard_files()
    check_program(command_line)
    with program_client(RETRY_SECONDS) as client:
        worker = Worker(client.connection, agent, command_line, parallel)
        forward_signals(worker.stop)
        worker.work()


class Worker:
    """Runs at most `parallel` tasks at once, until `stop` is called."""

    def __init__(
        self, connection: Connection, agent_id: str, command: Sequence[str], parallel: int = 1
    ) -> None:
        self._connection, self._agent_id = connection, agent_id
        self._command, self._parallel = command, parallel
        self._slots = threading.Semaphore(parallel)
        self._runs: dict[str, Run] = {}
        self._stopping = False
        self._is_registered = False
        self._printed: type[Exception] | None = None  # the type of the last printed error

    def stop(self, number: int, is_from_terminal: bool = False) -> None:
        """Forward a signal to the programs; unless it is PROGRAM_ONLY, claim no more tasks."""
        if number not in PROGRAM_ONLY:
            self._stopping = True
        for run in list(self._runs.values()):
            run.forward(number, is_from_terminal)

    def work(self) -> None:
        """Claim tasks until `stop`, then wait for the programs. Raises TaskServiceError."""
        while not self._stopping:
            if not self._slots.acquire(timeout=0.2):
                continue
            task = None if self._stopping else self._claim()
            if task is None:
                self._slots.release()
                self._pause(self._connection.seconds_before_repeat())
            else:
                threading.Thread(target=self._run_task, args=[task], name=task.id).start()
        for _ in range(self._parallel):
            while not self._slots.acquire(timeout=0.2):
                pass  # signal handlers run between the attempts

    def _claim(self) -> Task | None:
        retries: dict[str, Any] = {"retry_timeout": math.inf, "pause": self._pause}
        try:
            if not self._is_registered:
                self._register(**retries)
            # A claim waits for at most 2 s, since signals do not interrupt it. A task that the
            # claim returns is run even if the worker is stopping.
            task = claim_task(self._connection, self._agent_id, 2, **retries)
        except NotFound:  # the agent was deleted
            self._is_registered = False
            return None
        except TaskServiceError:
            if self._stopping:
                return None
            raise
        self._printed = None
        return task

    def _register(self, **retries: Any) -> None:
        """Print the agent whose tasks are claimed; register a new agent and print similar IDs."""
        # Short timeouts, so that a person soon sees whether the first request works.
        retries["timeout"] = (2.0, 3.0)
        agents = self._connection.call("GET", "/agent", responses.AGENTS, **retries).data
        known = [agent["id"] for agent in agents]
        if self._agent_id not in known:
            register_agent(self._connection, self._agent_id, **retries)
            similar = did_you_mean(known, self._agent_id)
            notice(f"agent {self._agent_id} was registered just now{similar}")
        notice(f"waiting for tasks of agent {self._agent_id}")
        self._is_registered = True

    def _pause(self, seconds: float, error: TaskServiceError | None = None) -> None:
        """Wait; print an `error` that causes the wait, and raise it if the worker stops."""
        if error is not None and type(error) is not self._printed:
            self._printed = type(error)
            notice(f"{error}; retrying")
        until = time.monotonic() + seconds
        while not self._stopping and time.monotonic() < until:
            time.sleep(0.1)
        if error is not None and self._stopping:
            raise error

    def _run_task(self, task: Task) -> None:
        try:
            notice(f"task {task.id} {task.name}")
            run = self._runs[task.id] = Run(self._connection, self._command, task=task)
            run.start()
            run.execute()
        except TaskServiceError as error:
            notice(f"task {task.id}: {error}")
        except (OSError, RuntimeError) as error:
            text = f"The worker could not start the program: {error}"
            notice(f"task {task.id}: {text}")
            # Report the failure, since no other worker can run a task that is claimed.
            with contextlib.suppress(TaskServiceError):
                task.report(**failed(text))
        finally:
            self._runs.pop(task.id, None)
            self._slots.release()
