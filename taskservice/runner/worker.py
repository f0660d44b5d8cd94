"""A worker: claims an agent's tasks as they come, and runs a program for each."""

import threading
import time
from collections.abc import Sequence

from taskservice.client.errors import PASSING, NotFound, TaskServiceError
from taskservice.client.http import delays, pause_after
from taskservice.client.tasks import Client, Task
from taskservice.runner.process import FOR_ITSELF, signal_name
from taskservice.runner.run import Run, failed, remark

# A claim waits so long on the service; after a signal it is waited for.
CLAIM_SECONDS = 5.0


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
        self._stopping: int | None = None

    def stop(self, number: int, is_from_terminal: bool = False) -> None:
        """Claim nothing more, and pass the signal on to the programs that run."""
        if number not in FOR_ITSELF:
            self._stopping = number
        for run in list(self._runs.values()):
            run.forward(number, is_from_terminal)

    def work(self) -> None:
        """Until `stop`, and until the programs that run then have ended.

        Raises TaskServiceError for what waiting does not mend.
        """
        pauses, is_away = delays(), False
        while self._has_slot():
            try:
                task = self._claim()
            except PASSING as error:
                self._slots.release()
                if not is_away:
                    remark(f"{error}; trying again until it is back")
                is_away = True
                self._rest(pause_after(error, next(pauses)))
                continue
            pauses, is_away = delays(), False
            if task is None:
                self._slots.release()
            else:
                threading.Thread(target=self._do, args=[task], name=task.id).start()
        for _ in range(self._parallel):
            while not self._slots.acquire(timeout=0.2):
                pass  # and let signal handlers run

    def _has_slot(self) -> bool:
        """Wait until another program may be run; false when it is time to stop."""
        while self._stopping is None:
            if self._slots.acquire(timeout=0.2):
                if self._stopping is None:
                    return True
                self._slots.release()
        return False

    def _claim(self) -> Task | None:
        try:
            return self._client.claim(self._agent_id, CLAIM_SECONDS)
        except NotFound:  # the agent is new
            self._client.register(self._agent_id)
            return None

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._stopping is None and time.monotonic() < until:
            time.sleep(0.1)

    def _do(self, task: Task) -> None:
        try:
            if self._stopping is not None:
                name = signal_name(self._stopping)
                error = failed(f"Its worker was stopped by {name} before it could run it")
                task.report(**error)
                return
            remark(f"task {task.id} {task.name}")
            run = self._runs[task.id] = Run(self._client.connection, self._command, task=task)
            run.start()
            run.execute()
        except TaskServiceError as error:
            remark(f"task {task.id}: {error}")
        finally:
            self._runs.pop(task.id, None)
            self._slots.release()
