"""The current task: the task for which `taskservice run` or `work` started this program."""

import os
from uuid import uuid4

from taskservice.client.http import Connection
from taskservice.client.responses import SettingError
from taskservice.client.task import Task, read_task


def current_task_id() -> str:
    """The ID of the current task; empty if this program was started without a task."""
    # Bytes that are not UTF-8 become "?", and the service rejects an ID that contains "?".
    return os.environ.get("TASKSERVICE_TASK_ID", "").encode(errors="replace").decode()


def require_task_id() -> str:
    """The ID of the current task. Raises SettingError if there is no current task."""
    if task_id := current_task_id():
        return task_id
    # `taskservice run` sets TASKSERVICE_WRITER even if the service is unreachable.
    is_in_run = "TASKSERVICE_WRITER" in os.environ
    reason = "`taskservice run` has not reached the service before it started this program"
    if not is_in_run:
        reason = "this program was not started by `taskservice run`"
    raise SettingError(f"TASKSERVICE_TASK_ID is not set: {reason}")


def current(connection: Connection | None = None) -> Task:
    """Return the task for which `taskservice run` or `taskservice work` started this program.

    Logged lines appear in the task's log together with the lines that the program prints. At its
    end, a `with current()` block sends the remaining lines and the output, but does not end the
    task, since `run` or `work` reports the final status. Blocks until the service has responded.
    Each call returns a new object.

    Args:
        connection: The `connection` attribute of a Client. By default, a new connection is made.

    Raises:
        SettingError: The program was not started by `run` or `work`, or a setting is missing.
        NotFound: The task was deleted.
        Unreachable, Unavailable: The service did not respond within `retry_timeout` seconds.
    """
    task_id = require_task_id()
    connection = connection or Connection()
    writer = os.environ.get("TASKSERVICE_WRITER", "python").encode(errors="replace").decode()
    data = read_task(connection, task_id)
    # Each call needs a unique writer name, since every writer numbers its lines from 1.
    return Task(connection, data, f"{writer[:40]}-{uuid4().hex[:12]}", reports_end=False)
