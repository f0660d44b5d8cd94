"""The task of the `taskservice run` or `work` that started this program."""

import os
from uuid import uuid4

from taskservice.client import api
from taskservice.client.errors import SettingError
from taskservice.client.http import Connection
from taskservice.client.tasks import Task


def own_task_id() -> str:
    """The id of the task that this program was started for; empty outside of a task."""
    # Bytes that are no text make no id; the service then says so.
    return os.environ.get("TASKSERVICE_TASK_ID", "").encode(errors="replace").decode()


def require_task_id() -> str:
    """The same; raises SettingError outside of a task."""
    task_id = own_task_id()
    if not task_id:
        raise SettingError(
            "TASKSERVICE_TASK_ID is not set: this program was not started by `taskservice run`"
        )
    return task_id


def current(connection: Connection | None = None) -> Task:
    """The task of the `taskservice run` or `work` that started this program.

    Lines that the program logs to it appear beside those that it prints. They are sent
    before the program ends, also without `with`. Raises SettingError outside of a task.
    """
    task_id = require_task_id()
    connection = connection or Connection()
    writer = os.environ.get("TASKSERVICE_WRITER", "python").encode(errors="replace").decode()
    data = api.read_task(connection, task_id)
    # Several processes may call this; each numbers its own lines.
    return Task(connection, data, f"{writer[:40]}-{uuid4().hex[:12]}", reports_end=False)
