"""A handler for Python's `logging` that adds each record to a task's log."""

import logging
from threading import current_thread
from typing import Any

from taskservice.client.responses import TaskServiceError
from taskservice.client.sender import Sender
from taskservice.client.task import Task

# Without the time, which each line of a log has anyway.
_FORMATTER = logging.Formatter("%(levelname)s %(name)s: %(message)s")


class TaskHandler(logging.Handler):
    """A handler for `logging` that adds each record to a task's log, with the record's time.

    Without a formatter, a line has the level, the logger and the message.
    Logging never raises TaskServiceError: a cancellation is raised by the next call of the
    task's own methods. Like `Task.log`, it blocks only while 16 MiB of lines are waiting.
    Records of DEBUG and INFO of the HTTP libraries that send the lines are left out.

    Args:
        task: The task, from `Client.start`, `Client.claim` or `current`.
        level: Records below this level are ignored (default: none).

    Example:
        >>> import logging
        >>> handler = TaskHandler(task)
        >>> logger = logging.getLogger("reader")
        >>> logger.addHandler(handler)
        >>> logger.warning("page %d is empty", 3)
        >>> logger.removeHandler(handler)
    """

    def __init__(self, task: Task, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self._task = task

    def handle(self, record: logging.LogRecord) -> bool:
        """Like Handler.handle, without the lock: waiting for space must block no other thread."""
        # A record about sending lines would add another line to send, and without space the sender
        # would wait for itself.
        is_of_request = record.name.startswith(("urllib3", "requests"))
        is_minor = is_of_request and record.levelno < logging.WARNING
        if is_minor or isinstance(current_thread(), Sender):
            return False
        result: Any = self.filter(record)  # since Python 3.12 it can be another record
        if result:
            self.emit(result if isinstance(result, logging.LogRecord) else record)
        return bool(result)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = (self.formatter or _FORMATTER).format(record)
            self._task.log_at(int(record.created * 1000), text)
        except TaskServiceError:
            return  # the task's own methods raise it too
        except Exception:
            self.handleError(record)
