"""`taskservice task` and `grep`: start, list, follow, search and manage tasks."""

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial, wraps
from heapq import merge
from itertools import islice
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple, NoReturn

import click

from taskservice import terms
from taskservice.cli import options, questions, task_text
from taskservice.cli.service_client import (
    UNAVAILABLE,
    WRONG_USE,
    find_task_id,
    program_client,
    registered_agent_id,
    service_client,
)
from taskservice.client import Client, NotFound, Refused, Task
from taskservice.client.client import PAGE_TASKS
from taskservice.client.responses import FOUND, NEW_LINES
from taskservice.client.task import SHORT_FIELDS, Line, not_none, pages, path_to
from taskservice.quantities import plural
from taskservice.terminal import (
    exit_with_error,
    local_time,
    notice,
    print_json,
    print_line,
    print_log_line,
)

# The default number of rows in the table that `list` prints.
ROWS = 20
# How long `follow` retries, in seconds; a restart of the service takes less time.
FOLLOW_SECONDS = 60.0
# The exit statuses of `follow`, by the type of error; click uses 2 for wrong arguments.
OUTCOMES = {terms.FAILED: 1, terms.CANCELLED: 3, terms.TIMEOUT: 4}
DELETED = 5
# The types of error that `--failed` includes.
FAILURES = (terms.FAILED, terms.TIMEOUT)
# The states for which `list` has an option, with the filters for each state.
STATES: dict[str, dict[str, Any]] = {
    "asking": {"asking": True},
    "hanging": {"hanging": True},
    "waiting": {"status": terms.RUNNING, "claimed": False},
    terms.FAILED: {"error_types": FAILURES},
    terms.CANCELLED: {"error_types": (terms.CANCELLED,)},
    terms.TIMEOUT: {"error_types": (terms.TIMEOUT,)},
}

task_argument = click.argument("task_id", type=options.text)
times_option = options.flag("--times", help="Prefix each line with its time.")
follow_option = options.flag(
    "--follow", "is_followed", help="Print the log until the task ends, like `follow`."
)


@click.group("task", cls=options.Group)
def command() -> None:
    """Start, list, follow and manage tasks.

    TASK_ID can be any unique prefix of a task's ID.
    """


command.add_command(questions.answer_command)


@command.command(
    "start",
    '--agent summarizer --input \'{"mailbox": "office"}\'',
    "--agent summarizer --input @input.json --label env=prod --follow",
)
@options.agent_option(required=True, help="Agent that runs the task.")
@options.task_options("the worker", options.Duration(maximum=terms.MAX_TIMEOUT))
@follow_option
@options.json_object
def start(agent: str, is_followed: bool, as_json: bool, **fields: Any) -> None:
    """Start a task for a worker, and print its ID.

    The task waits until a worker of the agent claims it.
    """
    with service_client() as client:
        task = client.start(registered_agent_id(client, agent), claim=False, **fields)
        _announce(task, is_followed, as_json)


@command.command("list", "--failed --since 12h", "--agent summarizer --label env=prod --json")
@options.agent_filter
@click.option(
    "--status",
    type=click.Choice([*terms.STATUSES, *STATES]),
    metavar="STATUS",
    help=f"Only tasks with this status: {', '.join([*terms.STATUSES, *STATES])}.",
)
@options.flag("--waiting", help="Only tasks that no worker has claimed.")
@options.flag("--asking", help="Only tasks with open questions.")
@options.flag("--hanging", help="Only tasks that have run, or been silent, for too long.")
@options.failed_filter
@options.flag("--cancelled", help="Only tasks that were cancelled.")
@options.flag("--timeout", help="Only tasks that timed out.")
@options.label_filter
@options.text_option("--parent", metavar="TASK_ID", help="Only children of this task.")
@options.text_option("--q", help="Only tasks whose name contains this text.")
@options.since_option("created_after", help="Only tasks started in the last TIME, such as 12h.")
@options.limit_option(help=f"Maximum number of tasks (default: {ROWS}; with --json, all).")
@options.json_lines
def list_all(
    agent: str | None, parent: str | None, limit: int | None, as_json: bool, **others: Any
) -> None:
    """List tasks, newest first."""
    filters = _filters(others)
    with service_client() as client:
        if agent is not None:
            filters["agent_id"] = registered_agent_id(client, agent)
        if parent is not None:
            filters["parent_id"] = find_task_id(client, parent)
        if as_json:
            page = min(limit or PAGE_TASKS, PAGE_TASKS)
            tasks = _tasks(client, **filters, fields=SHORT_FIELDS, page_size=page)
            for task in islice(tasks, limit):
                print_json(task.data)
        else:
            # Request one more row than the table shows, to find out whether there are more tasks.
            rows = limit or ROWS
            page = min(rows + 1, PAGE_TASKS)
            tasks = _tasks(client, **filters, fields=task_text.ROW_FIELDS, page_size=page)
            newest = list(islice(tasks, rows + 1))
            task_text.print_tasks(newest[:rows])
            if len(newest) > rows:
                shown = "task is" if rows == 1 else f"{rows} tasks are"
                notice(f"only the newest {shown} shown; use --limit N or --json for more")


def _filters(values: dict[str, Any]) -> dict[str, Any]:
    """The filters for these options; the options in STATES exclude each other."""
    states = [state for state in STATES if values.pop(state, False)]
    states += [status] if (status := values.pop("status")) else []
    if len(states) > 1:
        raise click.UsageError(f"--{states[0]} can't be used with another status.")
    return values | (STATES.get(states[0], {"status": states[0]}) if states else {})


def _tasks(
    client: Client, error_types: Iterable[terms.ErrorType | None] = (None,), **filters: Any
) -> Iterator[Task]:
    """The tasks that match, newest first, from one list for each type of error."""
    lists = (client.tasks(error_type=kind, **filters) for kind in error_types)
    # Newer tasks have greater IDs.
    return merge(*lists, key=attrgetter("id"), reverse=True)


@command.command("show", "01a20e63-9249-713c")
@task_argument
@options.json_object
def show(task_id: str, as_json: bool) -> None:
    """Show a task without its log."""
    with service_client() as client:
        task = client.task(find_task_id(client, task_id))
        if as_json:
            print_json(task.data)
        else:
            for line in task_text.details(task):
                print_line(line)
            for question in task.questions:
                questions.print_open(task, question)


@command.command(
    "logs", "01a20e63-9249-713c --times", "01a20e63-9249-713c --tail 100 --grep error -f"
)
@task_argument
@click.option("--tail", type=click.IntRange(0), metavar="N", help="Only the last N lines.")
@options.since_option(help="Only lines printed in the last TIME, such as 10m.")
@options.text_option(
    "--grep", "text", help="Only lines that contain this text, in upper or lower case."
)
@times_option
@options.flag(
    "-f",
    "--follow",
    "is_followed",
    help="Also print new lines until the task ends, like `follow`.",
)
@options.json_lines
def logs(task_id: str, is_followed: bool, **others: Any) -> None:
    """Print the log of a task."""
    shown = _Lines(**others)
    if is_followed:
        _follow(task_id, shown)
    with service_client() as client:
        task = client.task(find_task_id(client, task_id))
        for line in task.lines(*shown.to_read(task)):
            shown.show(line)


@command.command("new-lines", "01a20e63-9249-713c")
@task_argument
@options.text_option(
    "--against",
    metavar="TASK_ID",
    help="Task to compare with (default: the agent's last complete task before this one).",
)
@options.json_object
def new_lines(task_id: str, against: str | None, as_json: bool) -> None:
    """Print the lines that are new since the last good run.

    A line is not new if it differs from a line of that run only in numbers, times, IDs or temporary
    paths. Exit status: 0 the runs were compared, 1 no such task or no earlier good run, 2 invalid
    usage or key, 69 the service is unavailable.
    """
    with service_client(failure=UNAVAILABLE) as client:
        path = path_to("task", find_task_id(client, task_id), "new-lines")
        query = {"against": against and find_task_id(client, against)}
        try:
            comparison = client.connection.call("GET", path, NEW_LINES, params=query).data
        except Refused as error:
            if error.status not in (404, 422):
                raise
            exit_with_error(str(error))
        if as_json:
            print_json(comparison)
            return
        for line in comparison["lines"]:
            print_log_line(f"{line['line']}: {line['text']}")
        cut = "; some lines were left out" if comparison["cut"] else ""
        notice(f"compared with task {comparison['against']['id']}{cut}")


@command.command("follow", "01a20e63-9249-713c && echo complete")
@task_argument
@times_option
@options.json_lines
def follow(task_id: str, times: bool, as_json: bool) -> None:
    """Print the log as it grows, until the task ends.

    Open questions are printed on stderr, with the commands that answer them. Exit status:
    0 complete, 1 failed, 3 cancelled, 4 timeout, 5 deleted or unknown, 69 the service is
    unavailable.
    """
    _follow(task_id, _Lines(times, as_json))


CHOICES = ("agent", "status", "failed", "labels", "created_before")
PARTICIPLES = {terms.CANCEL: "cancelled", terms.DELETE: "deleted", terms.RERUN: "started again"}


def _for_tasks(action: terms.BulkAction, function: Callable[..., None]) -> Callable[..., None]:
    """Call the command if one TASK_ID is given; otherwise change all selected tasks."""

    @click.argument("task_ids", metavar="[TASK_ID]...", type=options.text, nargs=-1)
    @options.agent_filter
    @click.option(
        "--status", type=click.Choice(terms.STATUSES), help="Only tasks with this status."
    )
    @options.failed_filter
    @options.label_filter
    @click.option(
        "--before",
        "created_before",
        type=options.Duration(maximum=options.A_CENTURY, needs_unit=True),
        callback=options.time_before,
        help="Only tasks started more than TIME ago, such as 30d.",
    )
    @options.flag("--yes", help="Change several tasks without asking for confirmation.")
    @wraps(function)
    def command(task_ids: tuple[str, ...], yes: bool, as_json: bool, **others: Any) -> None:
        # An empty string is a filter too: no agent matches it.
        filters = not_none(**_filters({name: others.pop(name) for name in CHOICES}))
        if bool(task_ids) == bool(filters):
            raise click.UsageError("Name tasks by TASK_ID, or choose them by options.")
        if len(task_ids) != 1 and any(value not in (None, False) for value in others.values()):
            raise click.UsageError("--input and --follow need exactly one TASK_ID.")
        with service_client() as client:
            ids = [find_task_id(client, text) for text in task_ids]
            if len(ids) == 1:
                function(client.task(ids[0]), as_json=as_json, **others)
                return
            of_agent = ""
            if "agent" in filters:
                filters["agent_id"] = registered_agent_id(client, filters.pop("agent"))
                of_agent = f" of agent {filters['agent_id']}"
            if not ids:
                running = {"status": terms.RUNNING} if action == terms.CANCEL else {}
                tasks = _tasks(client, **running | filters, fields="id", page_size=terms.MAX_LIMIT)
                ids = [task.id for task in tasks]
            _change_all(client, action, ids, of_agent, yes, as_json)

    return command


def _change_all(
    client: Client,
    action: terms.BulkAction,
    ids: list[str],
    of_agent: str,
    yes: bool,
    as_json: bool,
) -> NoReturn:
    """Change tasks after a person confirms; exits with 1 if a change is refused, otherwise 0."""
    count = plural(len(ids), "task") + of_agent
    if ids and not yes:
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


@command.command(
    "rerun",
    "01a20e63-9249-713c --follow",
    '01a20e63-9249-713c --input \'{"mailbox": "sales"}\'',
    "--agent summarizer --failed",
)
@partial(_for_tasks, terms.RERUN)
@options.task_input()
@follow_option
@options.json_object
def rerun(task: Task, input: dict[str, Any] | None, is_followed: bool, as_json: bool) -> None:
    """Start tasks again, and print the IDs of the new tasks.

    A new task has the same agent, name, callback, timeout and labels, and the same input unless
    --input is given. The new task waits for a worker. --input and --follow need exactly one
    TASK_ID. Without TASK_ID, all tasks that match the options are started again.
    """
    _announce(task.rerun(input), is_followed, as_json)


@command.command("cancel", "01a20e63-9249-713c", "--agent summarizer --label env=test")
@partial(_for_tasks, terms.CANCEL)
@options.json_object
def cancel(task: Task, as_json: bool) -> None:
    """Cancel tasks and stop their programs.

    Without TASK_ID, all running tasks that match the options are cancelled.
    """
    task.cancel()
    print_json(task.data) if as_json else print_line(task_text.outcome(task))


@command.command("delete", "01a20e63-9249-713c", "--agent summarizer --failed --before 30d --yes")
@partial(_for_tasks, terms.DELETE)
@options.json_object
def delete(task: Task, as_json: bool) -> None:
    """Delete tasks permanently, with their logs.

    Without TASK_ID, all tasks that match the options are deleted.
    """
    task.delete()
    print_json(task.data) if as_json else print_line(f"{task.id} is deleted")


@command.command("link", "01a20e63-9249-713c --expires 30d")
@task_argument
@click.option(
    "--expires",
    type=options.Duration(minimum=1, maximum=terms.MAX_LINK_DAYS * 86_400, needs_unit=True),
    help=f"Time until the link expires, up to {terms.MAX_LINK_DAYS}d "
    f"(default: {terms.LINK_DAYS}d).",
)
@options.json_object
def link(task_id: str, expires: int | None, as_json: bool) -> None:
    """Print a link with which anyone can read a task without a key.

    Use the task page in the dashboard to list or revoke the links.
    """
    with service_client() as client:
        created = client.task(find_task_id(client, task_id)).link(expires)
        print_json(created) if as_json else print_line(created["url"])


def _announce(task: Task, is_followed: bool, as_json: bool) -> None:
    """Print the ID of a started task, or follow the task."""
    if is_followed:
        notice(f"task {task.id}: {task.page_url}")
        _follow(task.id, _Lines(times=False, as_json=as_json))
    data = {name: task.data[name] for name in SHORT_FIELDS.split(",")}
    print_json(data) if as_json else print_line(task.id)
    notice(f"waiting for a worker of agent {task.agent_id}: {task.page_url}")


class _Lines(NamedTuple):
    """Which lines of a log are printed, and how."""

    times: bool
    as_json: bool
    tail: int | None = None
    since: str | None = None
    text: str | None = None

    def to_read(self, task: Task) -> tuple[int, bool]:
        """The number of the last line to skip, and whether to read times."""
        after = 0 if self.tail is None else max(task.data["logCount"] - self.tail, 0)
        return after, self.times or self.as_json or self.since is not None

    def show(self, line: Line) -> None:
        is_older = self.since is not None and (line.at or "") < self.since
        if is_older or (self.text or "").lower() not in line.text.lower():
            return
        if self.as_json:
            print_json(line._asdict())
        else:
            time = f"{local_time(line.at, 'milliseconds')} " if self.times else ""
            print_log_line(time + line.text)


def _follow(task_id: str, shown: _Lines) -> NoReturn:
    with program_client(FOLLOW_SECONDS, failure=UNAVAILABLE) as client:
        try:
            task = client.task(find_task_id(client, task_id, DELETED))
        except NotFound as error:
            exit_with_error(str(error), DELETED)
        try:
            on_question = partial(questions.print_open, task, err=True)
            for line in task.follow(*shown.to_read(task), on_question):
                shown.show(line)
        except NotFound:
            exit_with_error("The task was deleted", DELETED)
        except KeyboardInterrupt:
            sys.exit(questions.INTERRUPTED)
    print_json(task.data) if shown.as_json else print_line(task_text.outcome(task), err=True)
    sys.exit(OUTCOMES.get(task.error["type"], 1) if task.error else 0)


@options.command(
    "taskservice grep",
    '"disk full" --failed --since 7d',
    "timeout --agent summarizer --json | jq -r .taskId",
)
@click.argument("text", type=options.text)
@options.agent_filter
@options.label_filter
@options.failed_filter
@options.since_option("createdAfter", help="Only tasks started in the last TIME, such as 7d.")
@options.limit_option(help="Maximum number of lines (default: all).")
@options.json_lines
def grep_command(
    agent: str | None, failed: bool, limit: int | None, as_json: bool, **query: Any
) -> None:
    """Search the logs of all tasks for TEXT.

    Each line that contains TEXT is printed in the format `ID:LINE: text`. The lines of the newest
    task come first. On a terminal, the format is `LINE: text`, under a heading with the ID, the
    agent and the name of the task.
    TEXT is not a pattern; the case of ASCII letters is ignored. Exit status: 0 found, 1 not found,
    2 invalid usage or key, 69 the service is unavailable.
    """
    query["limit"] = str(min(limit or terms.MAX_LIMIT, terms.MAX_LIMIT))
    query["label"] = [f"{key}:{value}" for key, value in (query.pop("labels") or {}).items()]
    task_id = None
    with service_client(failure=UNAVAILABLE) as client:
        if agent is not None:
            query["agentId"] = registered_agent_id(client, agent, WRONG_USE)
        for hit in islice(_hits(client, query, failed), limit):
            is_first, task_id = hit["taskId"] != task_id, hit["taskId"]
            if as_json:
                print_json(hit)
            elif not sys.stdout.isatty():
                print_log_line(f"{task_id}:{hit['line']}: {hit['text']}")
            else:
                if is_first:
                    print_line(task_text.heading(hit))
                print_log_line(f"{hit['line']:>7}: {hit['text']}")
    sys.exit(0 if task_id else 1)


def _hits(client: Client, query: dict[str, Any], failed: bool) -> Iterator[dict[str, Any]]:
    """The hits, newest task first; with `failed`, from one search for each type of error."""

    def search(kind: str | None) -> Iterator[dict[str, Any]]:
        for page in pages(client.connection, "/search", query | {"errorType": kind}, FOUND):
            yield from page.data["hits"]

    kinds = FAILURES if failed else (None,)
    # Newer tasks have greater IDs.
    return merge(*map(search, kinds), key=itemgetter("taskId"), reverse=True)
