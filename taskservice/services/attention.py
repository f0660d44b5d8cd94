"""The items that need attention, read by queries that use indexes and precomputed columns."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from flask import current_app
from sqlalchemy import bindparam, case, exists, func, or_, select, text, tuple_
from sqlalchemy.orm import aliased

from taskservice import terms
from taskservice.auth import Caller, is_of_agent, visible_agents, visible_tasks, worker_claims
from taskservice.database import clock, models
from taskservice.database.connections import Statement
from taskservice.database.files import last_backup
from taskservice.database.models import Agent, Attempt, Delivery, Question, Task
from taskservice.database.rows import AgentRow
from taskservice.database.transactions import database_time, read_all, read_one
from taskservice.database.types import AnyRow
from taskservice.quantities import seconds_text
from taskservice.reasons import is_generic, reason_line
from taskservice.schemas.fields import open_questions
from taskservice.services import hooks, logs, mutes
from taskservice.services.tasks import (
    NEWEST_FAILURE,
    is_claimed_by_worker,
    is_unclaimed,
    of_this_agent,
)
from taskservice.terminal import shortened

MAX_ITEMS = 100
# The kinds of items that concern an agent; an agent can have items of several kinds.
OF_AGENTS = (terms.BROKEN, terms.LATE, terms.HANGING, terms.NO_WORKER, terms.CALLBACK_FAILED)
# The maximum number of characters of an item's text.
MAX_TEXT = 200
# How long, in seconds, a task may wait while no worker asks for tasks of its agent.
QUIET_SECONDS = 600.0
# How long, in seconds, a failed callback is listed.
CALLBACK_SECONDS = 7 * 86_400.0
# The age, in seconds, above which the last backup is too old. Backups are made each night.
BACKUP_SECONDS = 2 * 86_400.0

_quiet_since: Any = bindparam("quiet_since")
_oldest_question = (
    select(func.min(Question.asked_at))
    # Write the condition exactly as in the index, so that the database uses the index.
    .where(Question.task_id == Task.id, text("questions.state = 'open'"))
    .scalar_subquery()
)
_ASKING = Statement[AnyRow](
    select(Task.id, Task.agent_id, Task.questions)
    .where(visible_tasks, models.IS_ASKING)
    .order_by(_oldest_question)
    .limit(MAX_ITEMS)
)
_is_late_alone = Agent.state.is_distinct_from(terms.BROKEN)
_IN_TROUBLE = Statement[AnyRow](
    select(Agent.id, Agent.state, Agent.state_since, Agent.failures, Agent.late_since)
    # Write the condition exactly as in the index, so that the database uses the index.
    .where(visible_agents, text(f"({models.IN_TROUBLE.text})"))
    .order_by(_is_late_alone, case((_is_late_alone, Agent.late_since), else_=Agent.state_since))
    .limit(MAX_ITEMS)
)
_HANGING = Statement[AnyRow](
    select(Task.id, Task.agent_id, Task.hanging_since, Task.hanging_reason)
    .where(visible_tasks, models.IS_HANGING)
    .order_by(Task.hanging_since)
    .limit(MAX_ITEMS)
)
_IS_WORKING = Statement[AnyRow](
    select(Task.id).where(*of_this_agent, is_claimed_by_worker).limit(1)
)


def _first_task(condition: Any) -> Any:
    """The oldest task of an agent that meets a condition.

    Without ORDER BY, PostgreSQL would read all tasks.
    """
    ids = select(Task.id).where(is_of_agent, condition)
    order = (Task.created_at, Task.id) if condition is is_unclaimed else (Task.claimed_at,)
    return ids.order_by(*order).limit(1).correlate(Agent).scalar_subquery()


_waiting = aliased(Task)
_WITHOUT_WORKER = Statement[AnyRow](
    select(Agent.id, Agent.worker_seen_at, _waiting.id.label("task_id"), _waiting.created_at)
    .join(_waiting, _waiting.id == _first_task(is_unclaimed))
    .where(
        visible_agents,
        or_(Agent.worker_seen_at.is_(None), Agent.worker_seen_at < _quiet_since),
        _waiting.created_at < _quiet_since,
        _first_task(is_claimed_by_worker).is_(None),
    )
    .order_by(_waiting.created_at)
    .limit(MAX_ITEMS)
)
_later = aliased(Delivery)
_last_message = (
    select(Attempt.message)
    .where(Attempt.delivery_id == Delivery.id)
    .order_by(Attempt.id.desc())
    .limit(1)
    .scalar_subquery()
)
_FAILED_CALLBACKS = Statement[AnyRow](
    select(Delivery.task_id, Task.agent_id, Delivery.created_at, _last_message.label("message"))
    .join(Task, Task.id == Delivery.task_id)
    .where(
        Delivery.user_id == bindparam("user_id"),
        text("deliveries.state = 'failed'"),
        Delivery.hook_id.is_(None),
        Delivery.created_at > bindparam("failed_after"),
        ~exists().where(
            _later.task_id == Delivery.task_id,
            _later.hook_id.is_(None),
            tuple_(_later.created_at, _later.id) > tuple_(Delivery.created_at, Delivery.id),
        ),
    )
    .order_by(Delivery.created_at)
    .limit(MAX_ITEMS)
)


def list_all(caller: Caller) -> list[dict[str, Any]]:
    """The first MAX_ITEMS items, with the fields of AttentionSchema."""
    listed = items(caller)[:MAX_ITEMS]
    for item in listed:
        if muted := item.pop("muted"):
            item["text"] += f"; {mutes.sentence(muted)}"
    return listed


def items(caller: Caller) -> list[dict[str, Any]]:
    """Items in the order of ATTENTION, the oldest of each kind first; items of muted agents last.

    The `muted` of an item contains the end of the mute and the name of the key that muted the
    agent; it is None if the agent is not muted.
    """
    for_user_key = (_failed_callbacks, _hooks, _old_backup) if caller.agent_id is None else ()
    now = database_time()
    values = {**caller.scope, "user_id": caller.user_id, "now": now}
    values["quiet_since"] = clock.moved(now, -QUIET_SECONDS)
    finders = (_questions, _in_trouble, _hanging, _without_worker, *for_user_key)
    names = ("kind", "agentId", "taskId", "since", "text")
    attention = [dict(zip(names, item, strict=True)) for find in finders for item in find(values)]
    muted = mutes.of_user(caller)
    for item in attention:
        item["muted"] = muted.get(item["agentId"]) if item["kind"] in OF_AGENTS else None
    urgency = terms.ATTENTION.index
    attention.sort(key=lambda item: (bool(item["muted"]), urgency(item["kind"]), item["since"]))
    return attention


# The items of each agent, by agent ID and then by kind.
Alarms = dict[str, dict[str, list[dict[str, Any]]]]


def by_agent(items: Sequence[dict[str, Any]]) -> Alarms:
    """The items of each agent by their kind, in the given order."""
    alarms: Alarms = {}
    for item in items:
        if item["kind"] in OF_AGENTS:
            alarms.setdefault(item["agentId"], {}).setdefault(item["kind"], []).append(item)
    return alarms


def counts(items: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many questions, unmuted agents, hooks and backups these items concern."""
    kinds = Counter(item["kind"] for item in items)
    return {
        "question": kinds[terms.QUESTION],
        "agent": len(by_agent([item for item in items if not item["muted"]])),
        "notification": kinds[terms.HOOK_FAILING] + kinds[terms.HOOK_OFF],
        "backup": kinds[terms.BACKUP_OLD],
    }


def missing_worker(agent: AgentRow) -> str | None:
    """A message if no worker would run a new task of this agent; otherwise None."""
    now = database_time()
    # The times of the latest claims are read from memory, since they are stored with a delay.
    seen_at = worker_claims.get((agent.user_id, agent.id), agent.worker_seen_at) or ""
    is_seen = seen_at >= clock.moved(now, -QUIET_SECONDS)
    if is_seen or read_one(_IS_WORKING, user_id=agent.user_id, agent_id=agent.id):
        return None
    return _no_worker(agent.worker_seen_at, now)


def failures_text(failures: int) -> str:
    return "The last task failed" if failures == 1 else f"Failed {failures:,} times in a row"


# Tuples of kind, agent ID, task ID, `since` and text.
Items = Iterator[tuple[str, str | None, str | None, str, str]]


def _questions(values: dict[str, Any]) -> Items:
    for task in read_all(_ASKING, **values):
        for question in open_questions(task.questions):
            message = _line(question["message"])
            yield terms.QUESTION, task.agent_id, task.id, question["askedAt"], message


def _in_trouble(values: dict[str, Any]) -> Items:
    agents = read_all(_IN_TROUBLE, **values)
    broken = [agent.id for agent in agents if agent.state == terms.BROKEN]
    newest = {id_: read_one(NEWEST_FAILURE, **values, agent_id=id_) for id_ in broken}
    tasks = list(filter(None, newest.values()))
    log_ends = logs.ends([task.id for task in tasks if is_generic(task.error_message)])
    for agent in agents:
        if agent.state == terms.BROKEN:
            task, reason = newest[agent.id], failures_text(agent.failures)
            why = task and reason_line(task.error_message, log_ends.get(task.id, ""))
            if why and why != terms.NO_MESSAGE:
                reason = _line(f"{reason}: {why}")
            yield terms.BROKEN, agent.id, task and task.id, agent.state_since, reason
        if agent.late_since is not None:
            yield terms.LATE, agent.id, None, agent.late_since, "The expected run did not start"


def _hanging(values: dict[str, Any]) -> Items:
    for task in read_all(_HANGING, **values):
        reason = task.hanging_reason[0].upper() + task.hanging_reason[1:]
        yield terms.HANGING, task.agent_id, task.id, task.hanging_since, reason


def _without_worker(values: dict[str, Any]) -> Items:
    for agent in read_all(_WITHOUT_WORKER, **values):
        reason = _no_worker(agent.worker_seen_at, values["now"])
        yield terms.NO_WORKER, agent.id, agent.task_id, agent.created_at, reason


def _no_worker(seen_at: str | None, now: str) -> str:
    sentence = "No worker has asked for a task of this agent"
    if seen_at is None:
        return f"{sentence} yet"
    # Round down to minutes, since `worker_seen_at` is stored without seconds.
    seconds = clock.seconds_between(seen_at, now) // 60 * 60
    return f"{sentence} for {seconds_text(max(seconds, 60))}"


def _failed_callbacks(values: dict[str, Any]) -> Items:
    failed_after = clock.moved(values["now"], -CALLBACK_SECONDS)
    for row in read_all(_FAILED_CALLBACKS, **values, failed_after=failed_after):
        reason = _line(f"The callback was not delivered: {row.message}")
        yield terms.CALLBACK_FAILED, row.agent_id, row.task_id, row.created_at, reason


def _hooks(values: dict[str, Any]) -> Items:
    for hook in read_all(hooks.IN_TROUBLE, **values):
        kind, state, since = terms.HOOK_FAILING, "is failing", hook.failing_since
        if since is None:
            kind, state = terms.HOOK_OFF, "is off"
            since = hook.last_delivered_at or hook.created_at
        reason = _line(f"The hook {hook.name} {state}: {hook.reason}")
        yield kind, hook.agent_id, None, since, reason


def _old_backup(_here: dict[str, Any]) -> Items:
    backup = last_backup(current_app.config["DATA"])
    if backup and (age := time.time() - backup.st_mtime) > BACKUP_SECONDS:
        reason = f"The last backup is {seconds_text(age)} old"
        if not backup.st_mtime:
            reason = "No backup has succeeded yet"
        since = clock.from_milliseconds(int((backup.st_mtime or backup.st_ctime) * 1000))
        yield terms.BACKUP_OLD, None, None, since, reason


def _line(words: str) -> str:
    return shortened(" ".join(words.split()), MAX_TEXT)
