"""`taskservice status`: what needs attention."""

import sys
from typing import Any

import click

from taskservice.cli.options import examples, json_lines
from taskservice.cli.service_client import UNAVAILABLE, service_client
from taskservice.cli.task_text import local_time
from taskservice.terminal import print_rows


@click.command(
    "status",
    epilog=examples("taskservice status", "taskservice status --json | jq -r .agentId"),
)
@json_lines
def command(as_json: bool) -> None:
    """Print what needs attention.

    These are open questions, agents whose last task failed, agents that are late, tasks that hang,
    tasks that no worker claims, callbacks that failed in the last 7 days, and hooks that are off.
    Exit codes: 0 nothing, 1 something, 2 wrong use or key, 69 the service is unavailable.
    """
    with service_client(failure=UNAVAILABLE) as client:
        items: list[dict[str, Any]] = [{**item} for item in client.attention()]
    for item in items if not as_json else ():
        item["since"] = local_time(item["since"])
    if items:
        print_rows(items, ["kind", "since", "agentId", "taskId", "text"], as_json)
    sys.exit(1 if items else 0)
