"""A worker: claims an agent's tasks as they come, and runs a program for each."""

import contextlib
import threading
import time
from collections.abc import Sequence
from difflib import get_close_matches
from uuid import uuid4

from taskservice.client import answers
from taskservice.client.client import Client
from taskservice.client.errors import RETRYABLE, NotFound, NotTheService, TaskServiceError
from taskservice.client.http import PATIENCE_SECONDS, delays, pause_after
from taskservice.client.tasks import Task
from taskservice.runner.process import FOR_ITSELF
from taskservice.runner.run import Run, failed, remark

# A claim waits so long on the service; after a signal it is waited for, and what it brings
# is still run.
CLAIM_SECONDS = 2
# A person should soon see whether it works.
FIRST_TIMEOUTS = (2.0, 3.0)


class Worker:
    """Runs at most `parallel` tasks at once; `work` ends after `stop`."""

    def __init__(
        self, client: Client, agent_id: str, command: Sequence[str], parallel: int = 1
    ) -> None:
        self._client, self._agent_id = client, agent_id
        self._command = command
        self._slots = threading.Semaphore(parallel)
        self._parallel = parallel
        self._runs: dict[str, Run] = {}
        self._stopping = False
        self._key = uuid4().hex  # of a claim, until it is answered
        self._is_registered = False
        self._has_begun = False

    def stop(self, number: int, is_from_terminal: bool = False) -> None:
        """Claim nothing more, and pass the signal on to the programs that run."""
        if number not in FOR_ITSELF:
            self._stopping = True
        for run in list(self._runs.values()):
            run.forward(number, is_from_terminal)

    def work(self) -> None:
        """Until `stop`, and until the programs that run then have ended.

        Raises TaskServiceError for what waiting does not mend.
        """
        pauses, is_away = delays(), False
        while self._has_slot():
            try:
                self._register()
                task = self._claim()
            except (*RETRYABLE, NotTheService) as error:
                self._slots.release()
                # At first it is a wrong URL; later, a proxy whose service is away.
                if not (self._has_begun or isinstance(error, RETRYABLE)):
                    raise
                if not is_away:
                    remark(f"{error}; trying again until it is back")
                is_away = True
                self._rest(pause_after(error, next(pauses)))
                continue
            pauses, is_away = delays(), False
            if task is None:
                self._slots.release()
            else:
                self._begin(task)
        for _ in range(self._parallel):
            while not self._slots.acquire(timeout=0.2):
                pass  # and let signal handlers run

    def _has_slot(self) -> bool:
        """Wait until another program may be run; false when it is time to stop."""
        while not self._stopping:
            if self._slots.acquire(timeout=0.2):
                if not self._stopping:
                    return True
                self._slots.release()
        return False

    def _claim(self) -> Task | None:
        try:
            task = self._client.claim_once(self._agent_id, CLAIM_SECONDS, self._key)
        except NotFound:  # the agent was deleted
            self._is_registered = False
            return None
        self._key = uuid4().hex
        return task

    def _register(self) -> None:
        """Say for which agent it waits; where that is new, register it and name similar ones."""
        if self._is_registered:
            return
        connection = self._client.connection
        agents = connection.call("GET", "/agent", answers.AGENTS, timeout=FIRST_TIMEOUTS).data
        known = [agent["id"] for agent in agents]
        if self._agent_id not in known:
            self._client.register(self._agent_id)
            similar = get_close_matches(self._agent_id, known)
            question = f"; did you mean {' or '.join(similar)}?" if similar else ""
            remark(f"agent {self._agent_id} is new, it was registered just now{question}")
        remark(f"waiting for tasks of agent {self._agent_id}")
        self._is_registered = self._has_begun = True

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stopping and time.monotonic() < until:
            time.sleep(0.1)

    def _begin(self, task: Task) -> None:
        try:
            threading.Thread(target=self._do, args=[task], name=task.id).start()
        except RuntimeError as error:  # there are no more threads to be had
            self._fail(task, error)
            self._slots.release()

    def _do(self, task: Task) -> None:
        try:
            remark(f"task {task.id} {task.name}")
            run = self._runs[task.id] = Run(self._client.connection, self._command, task=task)
            run.start()
            run.execute()
        except TaskServiceError as error:
            remark(f"task {task.id}: {error}")
        except (OSError, RuntimeError) as error:
            self._fail(task, error)
        finally:
            self._runs.pop(task.id, None)
            self._slots.release()

    def _fail(self, task: Task, error: Exception) -> None:
        """Report a task that can't be run; claimed, it would wait for nobody."""
        text = f"Its worker could not run it: {error}"
        remark(f"task {task.id}: {text}")
        with contextlib.suppress(TaskServiceError):
            self._client.connection.call(
                "PATCH", f"/task/{task.id}", answers.task("id"), params={"fields": "id"},
                json=failed(text), patience=PATIENCE_SECONDS,
            )  # fmt: skip
