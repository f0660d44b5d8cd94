"""`taskservice grep`: the lines of all logs that contain a text."""

import sys
from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import islice
from operator import itemgetter
from typing import Any

import click

from taskservice.cli.options import (
    Duration,
    Text,
    examples,
    json_lines,
    known_agent,
    label_filter,
    time_before,
)
from taskservice.cli.service_client import (
    UNAVAILABLE,
    WRONG_SETTING,
    agent_ids,
    find_agent_id,
    service_client,
)
from taskservice.client import Client, Invalid
from taskservice.client.responses import FOUND
from taskservice.client.task import pages
from taskservice.terminal import exit_with_error, print_json, print_log_line
from taskservice.terms import FAILED, MAX_LIMIT, TIMEOUT

# How long one part of a search is retried while the service is busy or unavailable.
PATIENCE_SECONDS = 60.0


@click.command(
    "grep",
    epilog=examples(
        'taskservice grep "disk full" --failed --since 7d',
        "taskservice grep timeout --agent summarizer --json | jq -r .taskId",
    ),
)
@click.argument("text", type=Text())
@click.option("--agent", type=known_agent, help="Only tasks of this agent.")
@label_filter
@click.option("--failed", is_flag=True, help="Only tasks that failed or timed out.")
@click.option("--since", type=Duration(), help="Only tasks started within this time, such as 7d.")
@click.option("--limit", type=click.IntRange(1), help="Maximum number of lines (default: all).")
@json_lines
def command(
    text: str,
    agent: str | None,
    labels: Sequence[tuple[str, str]],
    failed: bool,
    since: int | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Search the logs of all tasks for TEXT.

    Each line that contains TEXT is printed as ID:LINE: text, the newest task first. TEXT is taken
    literally; ASCII letters match in any case. Exit codes: 0 found, 1 not found, 2 wrong use or
    key, 69 the service is unavailable.
    """
    query: dict[str, Any] = {"text": text, "limit": str(min(limit or MAX_LIMIT, MAX_LIMIT))}
    query |= {"createdAfter": time_before(since), "label": [f"{k}:{v}" for k, v in labels]}
    is_found = False
    with service_client(PATIENCE_SECONDS, failure=UNAVAILABLE) as client:
        if agent is not None:
            query["agentId"] = find_agent_id(agent_ids(client), agent)
        try:
            for hit in islice(_hits(client, query, failed), limit):
                is_found = True
                line = f"{hit['taskId']}:{hit['line']}: {hit['text']}"
                print_json(hit) if as_json else print_log_line(line)
        except Invalid as error:
            exit_with_error(str(error), WRONG_SETTING)
    sys.exit(0 if is_found else 1)


def _hits(client: Client, query: dict[str, Any], failed: bool) -> Iterator[dict[str, Any]]:
    """The hits, newest task first; with `failed`, of two searches, since each has one type."""
    queries = [query | {"errorType": kind} for kind in (FAILED, TIMEOUT)] if failed else [query]
    # The ids of tasks sort by their start.
    found = (_found(client, each) for each in queries)
    return merge(*found, key=itemgetter("taskId"), reverse=True)


def _found(client: Client, query: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for response in pages(client.connection, "/search", query, FOUND):
        yield from response.data["hits"]
