"""Makes tasks old, and runs rounds of the upkeep."""

import time
from collections.abc import Callable
from typing import Any

from flask import Flask
from sqlalchemy import update

from taskservice.background.upkeep import Upkeep
from taskservice.database.models import Task as TaskModel
from taskservice.database.transactions import transaction
from taskservice.database.types import database_now
from tests.support.api_client import ApiClient

DAY = 86_400.0


def end(app: Flask, person: ApiClient, task: dict[str, Any], days: float) -> None:
    """Finish a task, and set back when that was."""
    person.report(task, status="complete", output={"sum": 15})
    with app.app_context(), transaction() as connection:
        of_task = update(TaskModel).where(TaskModel.id == task["id"])
        connection.execute(of_task.values(finished_at=database_now(-days * DAY)))


def fall_silent(app: Flask, task: dict[str, Any], seconds: float) -> None:
    """Set back when the task was last heard of."""
    of_its_own = TaskModel.timeout.is_not(None)
    moments = {"last_heartbeat_at": database_now(-seconds)}
    with app.app_context(), transaction() as connection:
        here = update(TaskModel).where(TaskModel.id == task["id"])
        connection.execute(here.values(moments))
        heartbeat_deadline = database_now(TaskModel.timeout - seconds)
        connection.execute(here.where(of_its_own).values(heartbeat_deadline=heartbeat_deadline))


def rounds(upkeep: Upkeep, seconds: float, done: Callable[[], bool] = lambda: False) -> None:
    """Do rounds until `done` returns true, or for at most `seconds`."""
    until = time.monotonic() + seconds
    while not done() and time.monotonic() < until:
        upkeep.do_round()
        time.sleep(0.02)
