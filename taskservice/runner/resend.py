"""Sends the runs that are left on the disk, unsent or killed."""

import contextlib
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from taskservice.client.answers import USER
from taskservice.client.http import Connection
from taskservice.client.sender import Sender, line_count
from taskservice.runner.files import make_private
from taskservice.runner.run import WRITER, deliver, failed
from taskservice.runner.saved_run import SavedRun, leftover_runs, remove_incomplete, runs_folder
from taskservice.runner.spool import Spool
from taskservice.terminal import remark

UNKNOWN_END = "How the program ended is unknown: `taskservice run` was killed while it ran"


def resend(connection: Connection, print_line: Callable[[str], None]) -> bool:
    """Send all runs that can be sent, oldest first; whether none is left.

    `print_line` is called for each run that is sent. Raises OSError if the user has no home
    or the folder of the runs belongs to another user.
    """
    is_done = True
    caller = cache(lambda: connection.call("GET", "/user", USER).data)
    runs = runs_folder()
    if not runs.exists():
        return True
    make_private(runs)
    remove_incomplete(runs)
    for folder in leftover_runs(runs):
        try:
            found = _open_run(folder)
        except (OSError, ValueError) as error:
            remark(f"{folder} can't be read: {error}")
            is_done = False
            continue
        if found is not None:
            run, spool = found
            obstacle = _reason_not_to_send(connection, run, caller)
            if obstacle is not None:
                remark(f"{obstacle}; it stays in {folder}")
            is_run_sent = obstacle is None and _send_run(connection, run, spool, print_line)
            is_done = is_run_sent and is_done
            spool.close()
            run.release()
    return is_done


def _open_run(folder: Path) -> tuple[SavedRun, Spool] | None:
    """A run whose process is gone, locked, and its lines. Raises OSError and ValueError."""
    run = SavedRun.load(folder)
    if run is None:
        return None
    try:
        return run, Spool.load(folder)
    except (OSError, ValueError):
        run.release()
        raise


def _reason_not_to_send(
    connection: Connection, run: SavedRun, caller: Callable[[], dict[str, Any]]
) -> str | None:
    """Why this service or this key can't take a run; checked before anything is sent."""
    if run.url != connection.url:
        return f"a run for {run.url} is left; TASKSERVICE_URL is {connection.url}"
    if not run.is_sendable_by(caller()):
        return f"a run of agent {run.agent_id} is left; the key belongs to another user or agent"
    return None


def _send_run(
    connection: Connection, run: SavedRun, spool: Spool, print_line: Callable[[str], None]
) -> bool:
    lines = line_count(spool.count())
    sender = _sender(connection, run, spool)
    sender.start()
    deliver(sender, run.report or failed(UNKNOWN_END), threading.Event())
    is_unwanted = run.is_cancelled_or_deleted(sender.stop_reason)
    if sender.is_delivered or is_unwanted:
        result = "was cancelled or deleted" if is_unwanted else f"got {lines} and its end"
        print_line(f"{run.task_id} {result}")
        spool.discard()
        run.remove()
        return True
    sender.abandon()
    why = sender.stop_reason or sender.outage
    remark(
        f"{run.task_id or 'a task'}: {why}; "
        f"it stays in {run.folder}; remove that folder to discard it"
    )
    return False


def _sender(connection: Connection, run: SavedRun, spool: Spool) -> Sender:
    def task_id() -> str:
        if run.task_id is not None:
            return run.task_id
        started = run.ensure_task(connection, remark, patience=0)
        with contextlib.suppress(OSError):  # a repeated start makes no second task
            run.write()
        return started

    sender = Sender(connection, spool, WRITER, task_id, log_bytes=spool.sent_bytes)
    sender.last_answer_at = float("-inf")  # no answer came yet
    return sender
