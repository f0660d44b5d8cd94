"""The columns that reads give, and what a row is called."""

from typing import Any, TypeAlias

from sqlalchemy import Row, Select

from taskservice.database.models import Agent, ApiKey, Attempt, Delivery, Task

# The columns of a task that answers are made of, and `log_id`, where its lines are:
# a row of the database, or a namespace of the same names.
TaskRow: TypeAlias = Any
AnySelect: TypeAlias = Select[*tuple[Any, ...]]
AnyRow: TypeAlias = Row[*tuple[Any, ...]]
# About how much of the database a read takes into memory at once.
PAGE_BYTES = 1024 * 1024
TASK_COLUMNS = (
    Task.id,
    Task.name,
    Task.agent_id,
    Task.user_id,
    Task.created_at,
    Task.updated_at,
    Task.claimed_at,
    Task.finished_at,
    Task.input,
    Task.first_log,
    Task.log_count,
    Task.log_bytes,
    Task.output,
    Task.status,
    Task.error_type,
    Task.error_message,
    Task.callback_url,
    Task.version,
)
# Those that may have a megabyte, by their names.
LARGE_COLUMNS = {"input": Task.input, "output": Task.output}
AGENT_COLUMNS = (Agent.id, Agent.name, Agent.description, Agent.user_id, Agent.created_at)
KEY_COLUMNS = (
    ApiKey.id,
    ApiKey.user_id,
    ApiKey.agent_id,
    ApiKey.name,
    ApiKey.hint,
    ApiKey.created_at,
    ApiKey.expires_at,
    ApiKey.last_used_at,
    ApiKey.revoked_at,
)
DELIVERY_COLUMNS = (
    Delivery.id,
    Delivery.task_id,
    Delivery.callback_url,
    Delivery.state,
    Delivery.created_at,
    Delivery.next_attempt_at,
)
ATTEMPT_COLUMNS = (
    Attempt.delivery_id,
    Attempt.at,
    Attempt.duration_ms,
    Attempt.status_code,
    Attempt.message,
)


def next_limit(count: int, size: int, most: int) -> int:
    """How many rows to read next, where `count` rows came to `size` bytes."""
    return max(1, min(most, 4 * count, count * PAGE_BYTES // max(size, 1)))
