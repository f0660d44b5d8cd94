"""The task that `taskservice run` or `work` started this program for."""

import os
from uuid import uuid4

from taskservice.client.http import Connection
from taskservice.client.responses import SettingError
from taskservice.client.task import Task, read_task


def current_task_id() -> str:
    """The ID of the task that this program was started for; empty outside of a task."""
    # If the value has undecodable bytes, the result is an invalid ID, which the service rejects.
    return os.environ.get("TASKSERVICE_TASK_ID", "").encode(errors="replace").decode()


def require_task_id() -> str:
    """Like `current_task_id`, but raises SettingError outside of a task."""
    if task_id := current_task_id():
        return task_id
    # `run` always sets this variable.
    is_in_run = "TASKSERVICE_WRITER" in os.environ
    reason = "`taskservice run` has not reached the service before it started this program"
    if not is_in_run:
        reason = "this program was not started by `taskservice run`"
    raise SettingError(f"TASKSERVICE_TASK_ID is not set: {reason}")


def current(connection: Connection | None = None) -> Task:
    """Return the task that `taskservice run` or `taskservice work` started this program for.

    Logged lines appear in the task's log together with the lines that the program prints. `run`
    or `work` reports the final status, so leaving a `with current()` block does not end the
    task: it sends the remaining lines and the output. Blocks for one request. Each call returns
    a new object.

    Args:
        connection: The `connection` of a Client (default: a new one from the environment).

    Raises:
        SettingError: The program was not started by `run` or `work`, or a setting is missing.
        NotFound: The task was deleted.
        Unreachable, Unavailable: The service did not respond within `retry_timeout` seconds.
    """
    task_id = require_task_id()
    connection = connection or Connection()
    writer = os.environ.get("TASKSERVICE_WRITER", "python").encode(errors="replace").decode()
    data = read_task(connection, task_id)
    # Several processes may call this function, and each numbers its own lines.
    return Task(connection, data, f"{writer[:40]}-{uuid4().hex[:12]}", reports_end=False)
