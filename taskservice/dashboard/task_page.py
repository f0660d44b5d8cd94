"""What the page of a task shows beside it: questions, relatives, and when it should end."""

from typing import Any, NamedTuple

from taskservice.auth import Caller
from taskservice.dashboard import question_forms
from taskservice.database import clock
from taskservice.database.types import AnyRow, TaskRow
from taskservice.schemas import strict_json
from taskservice.schemas.fields import open_questions
from taskservice.services import agents, tasks
from taskservice.terms import RUNNING

MAX_CHILDREN = 50
# The width of the waterfall, in units of its own.
WIDTH = 1_000
# A running bar grows in steps, so that the page of a long task seldom changes.
STEP_SECONDS = 10
# After this time without a worker the page says how to start one.
LONG_WAIT_SECONDS = 30
# What would take longer than this many seconds has no expected end: a year.
LONGEST = 366 * 86_400


class Bar(NamedTuple):
    """A child, and where its bar begins and how long it is."""

    task: AnyRow
    x: int
    width: int


class Waterfall(NamedTuple):
    """The first children of a task over time."""

    bars: list[Bar]
    has_more: bool


class Waiting(NamedTuple):
    """When the agent of a waiting task claimed the last one, and whether it needs a worker."""

    last_claim: str | None
    needs_worker: bool


def values(caller: Caller, task: TaskRow) -> dict[str, Any]:
    """The values of the page's template."""
    return {
        "labels": [(f"{key}:{value}", value, key) for key, value in _labels(task)],
        "parent": tasks.find(caller, task.parent_id) if task.parent_id else None,
        "original": tasks.find(caller, task.rerun_of) if task.rerun_of else None,
        "again": tasks.newest_rerun(caller, task.id),
        "children": _waterfall(tasks.children(caller, task.id, MAX_CHILDREN + 1)),
        "questions": question_forms.of_task(task),
        "ended_questions": question_forms.ended(task.id),
        "waiting": _waiting(task),
        "expected": _expected_end(caller, task),
    }


def _labels(task: TaskRow) -> list[tuple[str, str]]:
    return list(strict_json.loads(task.labels.encode()).items())


def _waiting(task: TaskRow) -> Waiting | None:
    if task.status != RUNNING or task.claimed_at is not None:
        return None
    last_claim = agents.last_claim(task.user_id, task.agent_id)
    is_long = _seconds(task.created_at, clock.now()) >= LONG_WAIT_SECONDS
    return Waiting(last_claim, needs_worker=is_long or last_claim is None)


def _expected_end(caller: Caller, task: TaskRow) -> str | None:
    """When a running task should end: by its progress, or as its agent's tasks usually do."""
    if task.status != RUNNING or task.claimed_at is None or open_questions(task.questions):
        # The time until an answer is a person's.
        return None
    progress = float(task.progress or 0)
    if progress > 0:
        spent = clock.seconds_between(task.claimed_at, task.updated_at)
        seconds = max(0.0, spent) / progress
        return clock.moved(task.claimed_at, seconds) if seconds < LONGEST else None
    agent = agents.get(caller, task.agent_id)
    usual = agents.health([agent])[agent.id]["medianSeconds"]
    return None if usual is None else clock.moved(task.claimed_at, usual)


def _waterfall(children: list[AnyRow]) -> Waterfall | None:
    if not children:
        return None
    shown = children[:MAX_CHILDREN]
    start = min(child.created_at for child in shown)
    ends = [_seconds(start, child.finished_at or clock.now()) for child in shown]
    if any(child.finished_at is None for child in shown):
        ends.append(max(ends) // STEP_SECONDS * STEP_SECONDS + STEP_SECONDS)
    scale = WIDTH / max(*ends, 0.001)
    return Waterfall([_bar(child, start, scale) for child in shown], len(children) > len(shown))


def _bar(child: AnyRow, start: str, scale: float) -> Bar:
    x = round(_seconds(start, child.claimed_at or child.created_at) * scale)
    # What runs reaches to the right end, which is now.
    end = WIDTH if child.finished_at is None else round(_seconds(start, child.finished_at) * scale)
    # A short one can be seen too.
    return Bar(child, min(x, WIDTH - 4), max(4, end - x))


def _seconds(since: str, until: str) -> float:
    return max(0.0, clock.seconds_between(since, until))
