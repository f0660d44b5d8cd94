"""What a program logs, with Python's logging, becomes lines of its task."""

import logging

from taskservice.client.errors import TaskServiceError
from taskservice.client.tasks import Task


class TaskHandler(logging.Handler):
    """Sends each record as lines of a task's log.

    Nothing is raised where a program only logs: a cancel shows at the task's own methods.
    """

    def __init__(self, task: Task, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self._task = task
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(("urllib3", "requests")) and record.levelno < logging.WARNING:
            return  # sending a line would make the next one
        try:
            self._task.log(self.format(record))
        except TaskServiceError:
            return  # the task has ended; the program hears of it from the task
        except Exception:
            self.handleError(record)
