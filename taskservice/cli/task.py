"""`taskservice task`: list, show, follow, cancel and delete tasks."""

import json
import sys
from collections.abc import Iterator
from itertools import islice

import click

from taskservice.cli.options import Text, json_lines
from taskservice.cli.service_client import service_client
from taskservice.client import NotFound, Task
from taskservice.client.answers import SHORT_FIELDS
from taskservice.client.client import PAGE_TASKS
from taskservice.contract.terminal import exit_with_error, print_json, print_line, print_log_line
from taskservice.contract.terms import CANCELLED, FAILED, STATUSES, TIMEOUT, Status

# How long `follow` retries while the service is away.
FOLLOW_PATIENCE_SECONDS = 60.0
# The exit codes of `follow`, by the type of error; click uses 2 for wrong arguments.
OUTCOMES = {FAILED: 1, CANCELLED: 3, TIMEOUT: 4}
DELETED = 5
INTERRUPTED = 130
UNAVAILABLE = 69  # EX_UNAVAILABLE in sysexits.h


@click.group("task")
def command() -> None:
    """The tasks that the API key in TASKSERVICE_APIKEY may see."""


@command.command("list")
@click.option("--agent", "agent_id", type=Text(), metavar="ID", help="Only tasks of this agent.")
@click.option("--status", type=click.Choice(STATUSES), help="Only tasks with this status.")
@click.option("--q", type=Text(), help="Only tasks with this text in their name.")
@click.option("--limit", type=click.IntRange(1), help="Maximum number; all by default.")
@json_lines
def list_all(
    agent_id: str | None, status: Status | None, q: str | None, limit: int | None, as_json: bool
) -> None:
    """List tasks, newest first."""
    with service_client() as client:
        # Only the fields that are shown: an output can be long.
        fields = SHORT_FIELDS if as_json else "id,name,agentId,createdAt,logCount,status,error"
        page = min(limit or PAGE_TASKS, PAGE_TASKS)
        found = client.tasks(agent_id=agent_id, status=status, q=q, fields=fields, page=page)
        for task in islice(found, limit):
            print_json(task.data) if as_json else print_line(_row(task))


@command.command("show")
@click.argument("task_id", type=Text())
@json_lines
def show(task_id: str, as_json: bool) -> None:
    """Show a task without its log, which `follow` prints."""
    with service_client() as client:
        task = client.task(task_id)
        if as_json:
            print_json(task.data)
        else:
            for line in _details(task):
                print_line(line)


@command.command("follow")
@click.argument("task_id", type=Text())
@json_lines
def follow(task_id: str, as_json: bool) -> None:
    """Print the log as it grows, until the task ends.

    The exit code tells the outcome: 0 complete, 1 failed, 3 cancelled, 4 timeout, 5 deleted
    or unknown; 69 if the service does not answer.
    """
    # The service restarts in less time.
    with service_client(FOLLOW_PATIENCE_SECONDS, failure=UNAVAILABLE) as client:
        try:
            task = client.task(task_id)
        except NotFound as error:
            exit_with_error(str(error), DELETED)
        try:
            for line in task.follow(times=as_json):
                print_json(line._asdict()) if as_json else print_log_line(line.text)
        except NotFound:
            exit_with_error("The task was deleted", DELETED)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        print_json(task.data) if as_json else print_line(_outcome(task), err=True)
        sys.exit(OUTCOMES.get(task.error["type"], 1) if task.error else 0)


@command.command("cancel")
@click.argument("task_id", type=Text())
@json_lines
def cancel(task_id: str, as_json: bool) -> None:
    """Cancel a task, which stops its program."""
    with service_client() as client:
        task = client.task(task_id).cancel()
        print_json(task.data) if as_json else print_line(_outcome(task))


@command.command("delete")
@click.argument("task_id", type=Text())
@json_lines
def delete(task_id: str, as_json: bool) -> None:
    """Delete a task for good, with its log."""
    with service_client() as client:
        task = client.task(task_id)
        task.delete()
        print_json(task.data) if as_json else print_line(f"{task.id} is deleted")


def _row(task: Task) -> str:
    word = task.error["type"] if task.error else task.status
    created = task.data["createdAt"][:19].replace("T", " ")
    lines = f"{task.data['logCount']:>8}"
    return f"{task.id}  {word:9}  {created}  {lines}  {task.agent_id}  {task.name}"


def _details(task: Task) -> Iterator[str]:
    yield f"{'name':10}  {task.name}"
    yield f"{'status':10}  {_outcome(task)}"
    moments = {"created": "createdAt", "claimed": "claimedAt", "finished": "finishedAt"}
    fields = {"id": "id", "agent": "agentId", **moments, "callback": "callback"}
    for word, field in fields.items():
        yield f"{word:10}  {task.data[field] or '-'}"
    yield f"{'lines':10}  {task.data['logCount']}"
    for word in ("input", "output"):
        first, *others = json.dumps(task.data[word], indent=2, ensure_ascii=False).split("\n")
        yield f"{word:10}  {first}"
        yield from (f"{'':12}{line}" for line in others)


def _outcome(task: Task) -> str:
    if not task.error:
        return task.status
    return f"{task.status}: {task.error['type']}: {task.error['message']}"
