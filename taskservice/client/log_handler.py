"""A handler for Python's `logging` that adds each record to a task's log."""

import logging
from threading import current_thread
from typing import Any

from taskservice.client.responses import TaskServiceError
from taskservice.client.sender import Sender
from taskservice.client.task import Task

# The format contains no time, since the service stores the time of each line.
_FORMATTER = logging.Formatter("%(levelname)s %(name)s: %(message)s")


class TaskHandler(logging.Handler):
    """A handler for `logging` that adds each record to a task's log, with the record's time.

    Without a formatter, a line contains the level, the name of the logger, and the message.
    Logging never raises TaskServiceError: if the task was cancelled, the next method call
    on the task raises TaskCancelled. Like `Task.log`, logging blocks only while 16 MiB of lines
    are waiting to be sent. DEBUG and INFO records of the HTTP libraries that send the lines are
    ignored.

    Args:
        task: A task that `Client.start`, `Client.claim` or `current` returned.
        level: Records below this level are ignored (default: no records are ignored).

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
        """Like `Handler.handle`, but without the handler's lock, since `emit` can block."""
        # Sending lines creates log records. If these records were sent too, each request would
        # cause another request, and a sender with a full buffer would wait for itself.
        is_of_request = record.name.startswith(("urllib3", "requests"))
        is_minor = is_of_request and record.levelno < logging.WARNING
        if is_minor or isinstance(current_thread(), Sender):
            return False
        result: Any = self.filter(record)  # since Python 3.12, a filter can replace the record
        if result:
            self.emit(result if isinstance(result, logging.LogRecord) else record)
        return bool(result)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = (self.formatter or _FORMATTER).format(record)
            self._task.log_at(int(record.created * 1000), text)
        except TaskServiceError:
            return  # the next method call on the task raises this error too
        except Exception:
            self.handleError(record)
