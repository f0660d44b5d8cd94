"""The webhook of a task as a command for a shell."""

import shlex

from taskservice.auth import Caller
from taskservice.database.types import TaskRow
from taskservice.errors import Problem
from taskservice.services import attempts
from taskservice.services import deliveries as delivery_queries
from taskservice.terms import NO_DELIVERY


def curl(caller: Caller, task: TaskRow) -> str:
    """A command that sends the newest webhook of a task, signed now; raises 409 without one.

    The body goes through a pipe, since an argument of a program has at most 128 KiB.
    """
    deliveries = delivery_queries.list_of_task(caller, task.id)
    if not deliveries:
        raise Problem(409, "The task has no webhook", code=NO_DELIVERY)
    headers, body = attempts.webhook_of(task, deliveries[0].id)
    options = [f"--header {shlex.quote(f'{name}: {value}')}" for name, value in headers.items()]
    url = shlex.quote(deliveries[0].callback_url)
    parts = ["curl --globoff", *options, "--data-binary @-", f"--url {url}"]
    return f"printf %s {shlex.quote(body.decode())} |\n  " + " \\\n  ".join(parts) + "\n"
