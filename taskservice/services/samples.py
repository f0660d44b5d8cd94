"""Creates the sample event for a test of a hook: one of the hook's events, with fictional data."""

from types import SimpleNamespace
from typing import Any, NamedTuple

from taskservice import terms
from taskservice.database import clock
from taskservice.database.models import Agent, Question, Task
from taskservice.database.rows import HookRow, TaskRow
from taskservice.event_kinds import KINDS, SAMPLE_TEXT, TASK_ASKS
from taskservice.schemas import strict_json
from taskservice.services import agents
from taskservice.services.events import WITH_TASKS

HOUR_SECONDS = 3_600.0
RUN_SECONDS = 42.0
# The schema of a question that can be answered with the buttons Yes and No.
YES_OR_NO = {"type": "object", "properties": {"answer": {"type": "boolean"}}}


class Sample(NamedTuple):
    """An event with its agent, task and question, each in the form of a database row."""

    event: Any
    agent: Any
    task: Any | None
    question: Any | None


def sample(hook: HookRow) -> Sample:
    """A sample of the first kind of event that the hook selects, with the current time."""
    kind = KINDS[strict_json.loads(hook.events.encode())[0]]
    now, earlier = clock.now(), clock.now(-HOUR_SECONDS)
    agent = _agent(hook, earlier)
    task = _task(hook, agent.id, kind.sample_status, now) if kind.sample_status else None
    question = _question(now) if kind == TASK_ASKS else None
    since = {kind.since: earlier} if kind.since else {}
    event: dict[str, Any] = {column.key or "": None for column in WITH_TASKS.selected_columns}
    event |= {"name": kind.name, "at": now, "user_id": hook.user_id}
    event |= {
        "agent_id": agent.id,
        "agent_name": f"Test: {agent.name}",
        "error_message": SAMPLE_TEXT,
    }
    event["details"] = strict_json.dumps({**since, **kind.sample_data}).decode()
    if task is not None:
        event |= {"task_id": task.id, "task_name": task.name}
        event |= {"claimed_at": task.claimed_at, "finished_at": task.finished_at}
    if question is not None:
        event |= {"question_id": question.id, "question": question.message}
        event |= {"question_schema": question.schema, "question_state": question.state}
    return Sample(SimpleNamespace(**event), agent, task, question)


def _row(model: Any, **values: Any) -> Any:
    empty = {column.key: None for column in model.__table__.columns}
    return SimpleNamespace(**empty | values)


def _agent(hook: HookRow, created_at: str) -> Any:
    agent_id = hook.agent_id or "sample"
    sample_agent = _row(
        Agent,
        id=agent_id,
        name=agent_id,
        description=SAMPLE_TEXT,
        user_id=hook.user_id,
        created_at=created_at,
    )
    return agents.by_id(hook.user_id, [agent_id]).get(agent_id, sample_agent)


def _task(hook: HookRow, agent_id: str, status: terms.Status, now: str) -> TaskRow:
    began = clock.moved(now, -RUN_SECONDS)
    has_failed, is_running = status == terms.ERROR, status == terms.RUNNING
    key, _, value = (hook.label or "").partition(":")
    task: TaskRow = _row(
        Task,
        id=clock.new_id(),
        user_id=hook.user_id,
        agent_id=agent_id,
        name="test",
        status=status,
        error_type=terms.FAILED if has_failed else None,
        error_message=SAMPLE_TEXT if has_failed else None,
        input="{}",
        output="{}",
        labels=strict_json.dumps({key: value} if key else {}).decode(),
        questions="[]",
        created_at=began,
        updated_at=now,
        claimed_at=began,
        finished_at=None if is_running else now,
        first_log=1,
        log_count=1,
        log_bytes=len(SAMPLE_TEXT) + 1,
        version=1,
    )
    return task


def _question(now: str) -> Any:
    return _row(
        Question,
        id=clock.new_id(),
        message=SAMPLE_TEXT,
        schema=strict_json.dumps(YES_OR_NO | {"required": ["answer"]}).decode(),
        state=terms.OPEN,
        asked_at=now,
        expires_at=clock.moved(now, float(terms.QUESTION_TIMEOUT)),
    )
