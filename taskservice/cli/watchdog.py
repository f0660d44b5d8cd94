"""Ends the task of a question even if the command that asks is killed."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from taskservice.client import Task
from taskservice.client.http import Connection
from taskservice.client.task import end_interrupted

# Ctrl-C sends SIGINT, a service manager sends SIGTERM, and a closed terminal sends SIGHUP.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MAX_RETRY_SECONDS = 86_400.0
_ENDED = b"."


@contextmanager
def ended_if_killed(
    connection: Connection, retry_timeout: float
) -> Iterator[Callable[[Task], object]]:
    """Yield a function to call with a task; the task is ended unless the `with` block succeeds.

    The task is ended even after SIGKILL: another process waits for the end of this process. It then
    tries for `retry_timeout` seconds, at most for a day, to end the task. If this other process
    can't be started, the block runs without it.
    """
    reader, writer = os.pipe()

    def send(data: bytes) -> None:
        with suppress(BrokenPipeError):
            os.write(writer, data)

    # Block the signals, since Python discards an exception that a handler raises during the fork.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    # OSError: there are too many processes, or no child to wait for because SIGCHLD is ignored.
    with suppress(OSError):
        child = os.fork()
        if not child:
            connection.retry_timeout = min(retry_timeout, MAX_RETRY_SECONDS)
            _watch(connection, reader)
        os.waitpid(child, 0)
    os.close(reader)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        yield lambda task: send(task.id.encode())
        send(_ENDED)
    finally:
        os.close(writer)


def _watch(connection: Connection, reader: int) -> NoReturn:
    """In the child process: end the task whose ID arrives, unless the block has succeeded."""
    try:
        _handle_signals(signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        # A signal to the caller's process group, or to its children, does not reach a grandchild in
        # its own session.
        os.setsid()
        if os.fork():
            os._exit(0)
        # Close the output, since the program that started the command reads the output until all
        # processes have closed it.
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        # Close the other inherited files: the caller's locks and pipes, and the pipe's write end.
        for number in map(int, os.listdir("/dev/fd")):
            if number > 2 and number != reader:
                os.closerange(number, number + 1)  # unlike `close`, ignores a closed file
        with open(reader, "rb") as pipe:
            task_id = pipe.read()
        _handle_signals(signal.SIG_DFL)
        if task_id and not task_id.endswith(_ENDED):
            end_interrupted(Task(connection, {"id": task_id.decode()}))
    finally:
        os._exit(0)


def _handle_signals(handler: signal.Handlers) -> None:
    for number in SIGNALS:
        signal.signal(number, handler)
