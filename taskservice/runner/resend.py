"""Sends what runs have left on the disk: those that are over, and those that were killed."""

import threading
from collections.abc import Callable
from pathlib import Path

from taskservice.client.errors import NotFound, TaskCancelled
from taskservice.client.http import Connection
from taskservice.client.sender import Sender
from taskservice.runner.record import Record, left_runs, state_folder
from taskservice.runner.run import WRITER, counted, failed, remark, wait_for
from taskservice.runner.spool import Spool

UNKNOWN_END = "How the program ended is unknown: `taskservice run` was killed while it ran"


def resend(connection: Connection, tell: Callable[[str], None]) -> bool:
    """Send everything that can be sent, oldest first; whether nothing is left.

    `tell` gets a line for each run that is delivered.
    """
    is_done = True
    for folder in left_runs(state_folder()):
        try:
            record = Record.load(folder)
        except (OSError, ValueError, KeyError) as error:
            remark(f"{folder} can't be read: {error}")
            is_done = False
            continue
        if record is not None:
            is_done = _resend_one(connection, record, folder, tell) and is_done
            record.release()
    return is_done


def _resend_one(
    connection: Connection, record: Record, folder: Path, tell: Callable[[str], None]
) -> bool:
    if record.url != connection.url:
        remark(f"a run for {record.url} is left; TASKSERVICE_URL is {connection.url}")
        return False
    spool = Spool.load(folder)
    lines = counted(spool.count())
    sender = _sender(connection, record, spool)
    sender.start()
    sender.finish(record.report or failed(UNKNOWN_END))
    wait_for(sender, threading.Event())
    is_unwanted = isinstance(sender.stopped, TaskCancelled | NotFound)
    if sender.delivered or is_unwanted:
        word = "is not wanted any more" if is_unwanted else f"got {lines} and its end"
        tell(f"{record.task_id} {word}")
        record.remove()
        return True
    sender.abandon()
    spool.close()
    remark(f"{record.task_id or 'a task'}: {sender.stopped or sender.trouble}; it stays for later")
    return False


def _sender(connection: Connection, record: Record, spool: Spool) -> Sender:
    def task_id() -> str:
        if record.task_id is None:
            record.made_task(connection, patience=0)
            record.write()
        assert record.task_id is not None
        return record.task_id

    sender = Sender(connection, spool, WRITER, task_id, log_bytes=spool.sent_bytes)
    sender.last_answer = float("-inf")  # there was none yet
    return sender
