"""Sends what runs have left on the disk: those that are over, and those that were killed."""

import contextlib
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from taskservice.client.answers import USER
from taskservice.client.http import Connection
from taskservice.client.log_text import line_count
from taskservice.client.sender import Sender
from taskservice.runner.files import make_private
from taskservice.runner.record import Record, left_runs, remove_drafts, state_folder
from taskservice.runner.run import WRITER, failed, remark, wait_for
from taskservice.runner.spool import Spool

UNKNOWN_END = "How the program ended is unknown: `taskservice run` was killed while it ran"


def resend(connection: Connection, tell: Callable[[str], None]) -> bool:
    """Send everything that can be sent, oldest first; whether nothing is left.

    `tell` gets a line for each run that is delivered. Raises OSError where there is no home, or
    the folder of the runs is another user's.
    """
    is_done = True
    caller = cache(lambda: connection.call("GET", "/user", USER).data)
    runs = state_folder()
    if not runs.exists():
        return True
    make_private(runs)
    remove_drafts(runs)
    for folder in left_runs(runs):
        try:
            left = _load(folder)
        except (OSError, ValueError) as error:
            remark(f"{folder} can't be read: {error}")
            is_done = False
            continue
        if left is not None:
            record, spool = left
            obstacle = _obstacle(connection, record, caller)
            if obstacle is not None:
                remark(f"{obstacle}; it stays in {folder}")
            is_sent = obstacle is None and _resend_one(connection, record, spool, tell)
            is_done = is_sent and is_done
            spool.close()
            record.release()
    return is_done


def _load(folder: Path) -> tuple[Record, Spool] | None:
    """A run that has been left, locked, and its lines. Raises OSError and ValueError."""
    record = Record.load(folder)
    if record is None:
        return None
    try:
        return record, Spool.load(folder)
    except (OSError, ValueError):
        record.release()
        raise


def _obstacle(
    connection: Connection, record: Record, caller: Callable[[], dict[str, Any]]
) -> str | None:
    """Why a run is not for this service and this key: asked before anything is sent."""
    if record.url != connection.url:
        return f"a run for {record.url} is left; TASKSERVICE_URL is {connection.url}"
    if not record.is_seen_by(caller()):
        return f"a run of {record.agent_id} is left; the key is another user's or agent's"
    return None


def _resend_one(
    connection: Connection, record: Record, spool: Spool, tell: Callable[[str], None]
) -> bool:
    lines = line_count(spool.count())
    sender = _sender(connection, record, spool)
    sender.start()
    sender.finish(record.report or failed(UNKNOWN_END))
    wait_for(sender, threading.Event())
    is_unwanted = record.is_unwanted(sender.stop_reason)
    if sender.is_delivered or is_unwanted:
        word = "is not wanted any more" if is_unwanted else f"got {lines} and its end"
        tell(f"{record.task_id} {word}")
        spool.discard()
        record.remove()
        return True
    sender.abandon()
    why = sender.stop_reason or sender.outage
    remark(
        f"{record.task_id or 'a task'}: {why}; "
        f"it stays in {record.folder}, remove that to forget it"
    )
    return False


def _sender(connection: Connection, record: Record, spool: Spool) -> Sender:
    def task_id() -> str:
        if record.task_id is None:
            record.made_task(connection, remark, patience=0)
            with contextlib.suppress(OSError):  # the task is made once, however often it is asked
                record.write()
        assert record.task_id is not None
        return record.task_id

    sender = Sender(connection, spool, WRITER, task_id, log_bytes=spool.sent_bytes)
    sender.last_answer_at = float("-inf")  # there was none yet
    return sender
