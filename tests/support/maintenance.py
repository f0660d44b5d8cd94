"""Makes tasks old, and runs rounds of maintenance."""

import time
from collections.abc import Callable
from typing import Any

from flask import Flask
from sqlalchemy import func, select, update

from taskservice.background.maintenance import Maintenance
from taskservice.database.models import Log
from taskservice.database.models import Task as TaskModel
from taskservice.database.transactions import reading, transaction
from taskservice.database.types import database_now
from tests.support.api_client import ApiClient
from tests.support.waiting import until

DAY = 86_400.0


def end(app: Flask, person: ApiClient, task: dict[str, Any], days: float) -> None:
    """Finish a task, and set back when that was."""
    person.report(task, status="complete", output={"sum": 15})
    with app.app_context(), transaction() as connection:
        of_task = update(TaskModel).where(TaskModel.id == task["id"])
        connection.execute(of_task.values(finished_at=database_now(-days * DAY)))


def fall_silent(app: Flask, task: dict[str, Any], seconds: float) -> None:
    """Set back the last heartbeat of the task."""
    of_its_own = TaskModel.timeout.is_not(None)
    moments = {"last_heartbeat_at": database_now(-seconds)}
    with app.app_context(), transaction() as connection:
        of_task = update(TaskModel).where(TaskModel.id == task["id"])
        connection.execute(of_task.values(moments))
        heartbeat_deadline = database_now(TaskModel.timeout - seconds)
        connection.execute(of_task.where(of_its_own).values(heartbeat_deadline=heartbeat_deadline))


def rounds(
    maintenance: Maintenance, seconds: float, done: Callable[[], bool] = lambda: False
) -> None:
    """Do rounds until `done` returns true, or for at most `seconds`."""
    until = time.monotonic() + seconds
    while not done() and time.monotonic() < until:
        maintenance.do_round()
        time.sleep(0.02)


def set_back_drops(app: Flask) -> None:
    """Make dropped logs look as if they were dropped before all present reads."""
    with app.app_context(), transaction() as connection:
        dropped = update(Log).where(Log.dropped_at.is_not(None))
        connection.execute(dropped.values(dropped_at=database_now(-3600)))


def count(app: Flask, model: Any) -> int:
    with app.app_context(), reading() as connection:
        return connection.scalar(select(func.count()).select_from(model)) or 0


def fill(person: ApiClient, task: dict[str, Any], lines: int, length: int = 200) -> None:
    body = ("x" * length + "\n") * 5_000
    for _ in range(lines // 5_000):
        answer = person.put(f"/task/{task['id']}/logs", data=body.encode())
        assert answer.status_code == 201


def until_gone(app: Flask, maintenance: Maintenance, model: Any, left: int) -> None:
    """Do rounds, since each has a time limit, until this many rows are left."""

    def round_and_look() -> bool:
        maintenance.do_round()
        return count(app, model) == left

    until(round_and_look)
