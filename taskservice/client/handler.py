"""A handler for Python's logging: each record becomes lines of a task's log."""

import logging

from taskservice.client.errors import TaskServiceError
from taskservice.client.tasks import Task


class TaskHandler(logging.Handler):
    """Sends each record as lines of a task's log.

    Logging raises no TaskServiceError: a cancel shows when the program calls the task.
    """

    def __init__(self, task: Task, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self._task = task
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(("urllib3", "requests")) and record.levelno < logging.WARNING:
            return  # sending a line would log the next one
        try:
            self._task.log(self.format(record))
        except TaskServiceError:
            return  # the task's own methods raise it too
        except Exception:
            self.handleError(record)
