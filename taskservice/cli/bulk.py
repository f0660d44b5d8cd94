"""The tasks that `taskservice task cancel`, `delete` and `rerun` change, if they are several."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import click

from taskservice.cli.options import Duration, Label, known_agent, known_task, time_before
from taskservice.cli.service_client import find_task_id
from taskservice.client import Client
from taskservice.terminal import notice, print_json, print_line
from taskservice.terms import CANCEL, DELETE, FAILED, MAX_LIMIT, RERUN, STATUSES, BulkAction

# A century, in seconds.
MAX_AGE = 100 * 366 * 86_400
PARTICIPLES = {CANCEL: "cancelled", DELETE: "deleted", RERUN: "started again"}

_OPTIONS = (
    click.argument("task_ids", metavar="[TASK_ID]...", type=known_task, nargs=-1),
    click.option(
        "--agent", type=known_agent, metavar="ID", help="All tasks of this agent (its whole id)."
    ),
    click.option("--status", type=click.Choice(STATUSES), help="All tasks with this status."),
    click.option("--failed", is_flag=True, help="All tasks that failed."),
    click.option(
        "--label",
        "labels",
        type=Label(),
        metavar="K=V",
        multiple=True,
        help="All tasks with this label. Repeat to require several.",
    ),
    click.option(
        "--before",
        type=Duration(maximum=MAX_AGE, needs_unit=True),
        metavar="TIME",
        help="All tasks started longer ago than this, such as 30d.",
    ),
    click.option("--yes", is_flag=True, help="Do not ask before several tasks are changed."),
)


class Choice(NamedTuple):
    """The ids that a command names, or the filters of the tasks that it means."""

    task_ids: tuple[str, ...]
    filters: dict[str, Any]
    yes: bool

    @property
    def one_id(self) -> str | None:
        return self.task_ids[0] if len(self.task_ids) == 1 else None


def choice_of_tasks(function: Callable[..., None]) -> Callable[..., None]:
    """The arguments and options that choose tasks; the command gets a Choice of them."""

    @wraps(function)
    def command(
        task_ids: tuple[str, ...],
        agent: str | None,
        status: str | None,
        failed: bool,
        labels: tuple[tuple[str, str], ...],
        before: int | None,
        yes: bool,
        **options: Any,
    ) -> None:
        filters = {
            "agent_id": agent,
            "status": status,
            "error_type": FAILED if failed else None,
            "labels": dict(labels),
            "created_before": time_before(before),
        }
        # An empty text is a filter too, which no task matches.
        given = {name: value for name, value in filters.items() if value not in (None, {})}
        if bool(task_ids) == bool(given):
            raise click.UsageError("Name tasks by TASK_ID, or choose them by options.")
        if failed and status:
            raise click.UsageError("--failed can't be used with another status.")
        function(Choice(task_ids, given, yes), **options)

    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def change(client: Client, action: BulkAction, choice: Choice, as_json: bool) -> None:
    """Change the chosen tasks after a question, and exit with 1 if any of them is refused."""
    if choice.task_ids:
        ids = [find_task_id(client, text) for text in choice.task_ids]
    else:
        found = client.tasks(**choice.filters, fields="id", page=MAX_LIMIT)
        ids = [task.id for task in found]
    count = f"{len(ids)} task{'' if len(ids) == 1 else 's'}"
    if ids and not choice.yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"{count}: --yes is needed without a terminal.")
        click.confirm(f"{action.capitalize()} {count}?", abort=True, err=True)
    result = client.bulk(action, ids)
    if as_json:
        print_json(result)
    for task_id in () if as_json else result["tasks"]:
        print_line(task_id)
    notice(f"{result['done']} of {count} {PARTICIPLES[action]}")
    for refused in result["refused"]:
        notice(f"{refused['id']}: {refused['code']}")
    sys.exit(1 if result["refused"] else 0)
