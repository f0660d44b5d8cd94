"""`taskservice run` and `work`: any program becomes a task, or does each task of an agent."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import click

from taskservice.cli import options
from taskservice.cli.service_client import did_you_mean, service_client
from taskservice.client import own_task_id, responses
from taskservice.client.http import PATIENCE_SECONDS, Connection, delays, pause_after
from taskservice.client.responses import RETRYABLE, NotFound, NotTheService, TaskServiceError
from taskservice.client.spool import now, rfc3339
from taskservice.client.task import Task, change_task, claim_task, given, register_agent
from taskservice.runner.process import PROGRAM_ONLY, forward_signals
from taskservice.runner.program_output import Masker
from taskservice.runner.run import Run, become_program, failed, resend
from taskservice.terminal import exit_with_error, notice, open_standard_files
from taskservice.terms import AGENT_ID, MAX_LABELS, label_problem


@options.command(
    "taskservice run",
    "--agent backup -- ./backup.sh --all",
    "--agent reader --input box=office --label env=prod -- python -u read.py",
    short_help="Run any program as a task.",
)
@options.agent_option(help="Agent of the task; registered if new.")
@options.task_options("this command", options.Duration())
@options.flag(
    "--tty", "is_tty", help="Give CMD a terminal, so that it prints line by line and in colour."
)
@options.flag("--strict", "is_strict", help="Do not run CMD if the task can't be started.")
@options.flag("--resend", "is_resend", help="Send the saved data of earlier runs, then exit.")
@click.argument("command_line", metavar="-- CMD ...", nargs=-1, type=click.UNPROCESSED)
def run_command(
    agent: str | None,
    is_tty: bool,
    is_strict: bool,
    is_resend: bool,
    labels: dict[str, str] | None,
    command_line: tuple[str, ...],
    **fields: Any,
) -> None:
    """Run CMD as a task: its output becomes the log, its exit status the outcome.

    The JSON object that CMD writes to the file $TASKSERVICE_OUTPUT becomes the task's output.
    If there is none, the last line of CMD does, if it is a JSON object. The exit code is the
    exit code of CMD, or 128 + n if signal n killed it. The environment of CMD contains
    TASKSERVICE_TASK_ID, TASKSERVICE_TASK_URL and TASKSERVICE_WRITER. Its stdout is a pipe, to
    which many programs print in blocks; with --tty it is a terminal. The values of variables
    with secrets, such as $API_KEY, are stored and sent as ***.

    If the service is unavailable or refuses the task, CMD runs anyway, unless --strict is
    given, and unsent data stays on the disk for --resend. A callback, input, label, name,
    parent, timeout or time of its start that the service refuses is left out. If the agent's id
    is invalid, CMD runs without a task. A task started inside another task becomes its child.
    """
    open_standard_files()
    if is_resend:
        _resend(agent, command_line)
    if agent is None:
        raise click.UsageError("Missing option '--agent'.")
    if not command_line:
        raise click.UsageError("Missing the program: taskservice run --agent ID -- CMD ...")
    if not AGENT_ID.fullmatch(agent):
        problem = f"agentId: {agent} must match {AGENT_ID.pattern}"
        if is_strict:
            exit_with_error(problem)
        notice(f"{problem}; the program runs without a task, and nothing is recorded")
        become_program(command_line)
    masker = Masker(os.environ)
    valid = _valid_labels(masker.mask_json(labels or {}), is_strict)
    fields |= {name: masker.mask_json(fields[name]) for name in ("name", "input")}
    fields = given(**fields, labels=valid or None, parentId=own_task_id() or None)
    with service_client() as client:
        fields = {"agentId": agent, **fields, "claim": True, "claimedAt": rfc3339(now())}
        run = Run(client.connection, command_line, fields, is_tty=is_tty)
        forward_signals(run.forward)
        if is_tty:
            signal.signal(signal.SIGWINCH, lambda number, frame: run.resize())
        run.start(is_strict)
        sys.exit(run.execute())


def _valid_labels(labels: Mapping[str, str], is_strict: bool) -> dict[str, str]:
    """The valid labels; with `is_strict`, exits if a label is invalid."""
    valid: dict[str, str] = {}
    for key, value in labels.items():
        problem = label_problem(key, value)
        if problem is None and len(valid) == MAX_LABELS:
            problem = f"A task has at most {MAX_LABELS} labels."
        if problem is None:
            valid[key] = value
        elif is_strict:
            exit_with_error(f"labels: {key}: {problem}")
        else:
            notice(f"labels: {key}: {problem} The task is started without this label")
    return valid


def _resend(agent: str | None, command_line: tuple[str, ...]) -> None:
    if agent is not None or command_line:
        raise click.UsageError("--resend takes no other arguments.")
    with service_client() as client:
        try:
            is_done = resend(client.connection)
        except OSError as error:
            exit_with_error(str(error))
        if not is_done:
            exit_with_error("Not everything could be sent")
    sys.exit(0)


@options.command(
    "taskservice work",
    "--agent summarizer -- python -u summarize.py",
    "--agent summarizer --parallel 4 -- ./summarize.sh",
    short_help="Claim tasks of an agent, and run a program for each.",
)
@options.agent_option(required=True, help="Agent whose tasks to claim; registered if new.")
@click.option(
    "--parallel", default=1, type=click.IntRange(1, 256), help="Maximum number of tasks at a time."
)
@click.argument(
    "command_line", metavar="-- CMD ...", nargs=-1, required=True, type=click.UNPROCESSED
)
def work_command(agent: str, parallel: int, command_line: tuple[str, ...]) -> None:
    """Claim the tasks of an agent as they come, and run CMD for each, as `run` does.

    CMD reads the task's input as JSON from stdin. Any number of workers can run, on any
    machines: each task is given to only one of them. The worker forwards signals to its running
    programs, and ends when they have ended.
    """
    open_standard_files()
    # The worker itself retries, without a limit.
    with service_client(patience=0) as client:
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
        self._claim_key = uuid4().hex  # the Idempotency-Key of a claim, until its response
        self._is_registered = False
        self._has_begun = False

    def stop(self, number: int, is_from_terminal: bool = False) -> None:
        """Forward a signal to the programs; unless it is only for them, claim no more tasks."""
        if number not in PROGRAM_ONLY:
            self._stopping = True
        for run in list(self._runs.values()):
            run.forward(number, is_from_terminal)

    def work(self) -> None:
        """Claim tasks until `stop`, then wait for the programs. Raises TaskServiceError."""
        printed: type[Exception] | None = None
        pauses = delays()
        while not self._stopping:
            if not self._slots.acquire(timeout=0.2):
                continue
            try:
                task = None if self._stopping else self._claim()
            except (*RETRYABLE, NotTheService) as error:
                self._slots.release()
                # At first this means a wrong URL; later, a proxy whose service is unavailable.
                if not (self._has_begun or isinstance(error, RETRYABLE)):
                    raise
                if type(error) is not printed:
                    notice(f"{error}; retrying")
                printed = type(error)
                self._pause(pause_after(error, next(pauses)))
                continue
            pauses, printed = delays(), None
            if task is None:
                self._slots.release()
                self._pause(self._connection.seconds_before_repeat())
            else:
                threading.Thread(target=self._run_task, args=[task], name=task.id).start()
        for _ in range(self._parallel):
            while not self._slots.acquire(timeout=0.2):
                pass  # signal handlers run between the attempts

    def _claim(self) -> Task | None:
        if not self._is_registered:
            self._register()
        try:
            # Held for 2 s at most: no signal interrupts it, and a task in its response still runs.
            task = claim_task(self._connection, self._agent_id, 2, self._claim_key)
        except NotFound:  # the agent was deleted
            self._is_registered = False
            return None
        self._claim_key = uuid4().hex
        return task

    def _register(self) -> None:
        """Print the agent whose tasks it claims; register a new agent and print similar ids."""
        # A person should soon see whether the first request works.
        agents = self._connection.call("GET", "/agent", responses.AGENTS, timeout=(2.0, 3.0)).data
        known = [agent["id"] for agent in agents]
        if self._agent_id not in known:
            register_agent(self._connection, self._agent_id)
            similar = did_you_mean(known, self._agent_id)
            notice(f"agent {self._agent_id} was registered just now{similar}")
        notice(f"waiting for tasks of agent {self._agent_id}")
        self._is_registered = self._has_begun = True

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stopping and time.monotonic() < until:
            time.sleep(0.1)

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
            # No other worker would take the task.
            with contextlib.suppress(TaskServiceError):
                change_task(self._connection, task.id, failed(text), patience=PATIENCE_SECONDS)
        finally:
            self._runs.pop(task.id, None)
            self._slots.release()
