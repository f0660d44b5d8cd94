"""A handler for Python's logging: each record becomes lines of a task's log."""

import logging
from threading import current_thread
from typing import Any

from taskservice.client.errors import TaskServiceError
from taskservice.client.sender import Sender
from taskservice.client.tasks import Task


class TaskHandler(logging.Handler):
    """Sends each record as lines of a task's log.

    Logging raises no TaskServiceError: a cancel shows when the program calls the task.
    """

    def __init__(self, task: Task, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self._task = task
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def handle(self, record: logging.LogRecord) -> bool:
        """Like Handler.handle, without the lock: waiting for space must block no other thread."""
        if _is_of_sending(record):
            return False
        kept: Any = self.filter(record)  # since Python 3.12 it may be another record
        if kept:
            self.emit(kept if isinstance(kept, logging.LogRecord) else record)
        return bool(kept)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._task.log_at(int(record.created * 1000), self.format(record))
        except TaskServiceError:
            return  # the task's own methods raise it too
        except Exception:
            self.handleError(record)


def _is_of_sending(record: logging.LogRecord) -> bool:
    """Whether this is logged because lines are sent: sending a line would log the next one."""
    is_request = record.name.startswith(("urllib3", "requests"))
    # A sender would wait for itself when there is no space.
    return isinstance(current_thread(), Sender) or (is_request and record.levelno < logging.WARNING)
