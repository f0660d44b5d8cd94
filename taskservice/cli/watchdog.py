"""Ends the task of a question even if the command that asks is killed."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from taskservice.client import Task
from taskservice.client.http import Connection
from taskservice.client.task import end_interrupted

_ENDED = b"."


@contextmanager
def ended_if_killed(connection: Connection, patience: float) -> Iterator[Callable[[Task], object]]:
    """Yield a function to call with the task, which then ends even after SIGKILL.

    A process waits for the end of this one, and then tries for `patience` seconds to end the task.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(writer)
        connection.patience = patience
        _watch(connection, reader)
    os.close(reader)
    with suppress(ChildProcessError):  # if SIGCHLD is ignored
        os.waitpid(child, 0)
    try:
        yield lambda task: os.write(writer, task.id.encode())
    finally:
        with suppress(BrokenPipeError):
            os.write(writer, _ENDED)
        os.close(writer)


def _watch(connection: Connection, reader: int) -> NoReturn:
    """In a child: end the task whose ID arrives, unless its end is reported after it."""
    try:
        # What kills a process group or the children of a process does not reach the grandchild.
        os.setsid()
        if os.fork():
            os._exit(0)
        # The agent reads the output of the command until nobody can write to it.
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        with open(reader, "rb") as pipe:
            task_id = pipe.read()
        if task_id and not task_id.endswith(_ENDED):
            end_interrupted(Task(connection, {"id": task_id.decode()}))
    finally:
        os._exit(0)
