"""One action on many tasks, each as if it were the only one."""

import hashlib
from collections.abc import Iterable
from typing import Any

from taskservice import resources
from taskservice.auth import Caller
from taskservice.errors import Problem, require
from taskservice.schemas.fields import parse_id
from taskservice.services import deliveries, reports, tasks
from taskservice.services.tasks import Idempotency
from taskservice.terms import CANCEL, DELETE, RERUN

# Tasks between two pauses. In a pause another process gets its turn to write: one that waits asks
# once a millisecond.
BATCH = 10
PAUSE_SECONDS = 0.01


def run(
    caller: Caller, action: str, task_ids: Iterable[str], key: str | None = None
) -> dict[str, Any]:
    """Cancel, delete or rerun tasks; returns the result, as in BulkResultSchema.

    Each task has a transaction of its own. The loop sends the webhooks. A rerun that is repeated
    with the same idempotency `key` starts nothing.
    """
    named = {parse_id(text) or text: text for text in task_ids}
    refused, started, webhooks = [], [], []
    for number, (task_id, text) in enumerate(named.items(), 1):
        try:
            require(parse_id(task_id), "task")
            if action == CANCEL:
                webhooks.append(reports.end_by_cancel(caller, task_id)[1])
            elif action == DELETE:
                tasks.delete(caller, task_id)
            else:
                own_key = key and hashlib.sha256(f"{key} {task_id}".encode()).hexdigest()
                again = Idempotency.of(own_key, {}, rerun_of=task_id)
                started.append(tasks.rerun(caller, task_id, {}, again)[0].id)
        except Problem as problem:
            refused.append({"id": text, "code": problem.code})
        if number % BATCH == 0 or number == len(named):
            deliveries.release([leased for leased in webhooks if leased])
            webhooks.clear()
            resources.stopping.wait(PAUSE_SECONDS)
    result = {"done": len(named) - len(refused), "refused": refused}
    return result | ({"tasks": started} if action == RERUN else {})
