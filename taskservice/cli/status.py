"""`taskservice status`: what needs attention."""

import sys
from typing import Any

from taskservice.cli import options
from taskservice.cli.service_client import UNAVAILABLE, service_client
from taskservice.terminal import local_time, print_rows


@options.command("taskservice status", "", "--json | jq -r .agentId")
@options.json_lines
def command(as_json: bool) -> None:
    """Print what needs attention.

    These are open questions, agents whose last task failed, agents that are late, tasks that hang,
    tasks that no worker claims, callbacks that failed in the last 7 days, hooks that fail or
    are off, and backups of the service that fail.
    Exit codes: 0 nothing, 1 something, 2 wrong use or key, 69 the service is unavailable.
    """
    with service_client(failure=UNAVAILABLE) as client:
        items: list[dict[str, Any]] = [{**item} for item in client.attention()]
    for item in items if not as_json else ():
        item["since"] = local_time(item["since"])
    if items:
        print_rows(items, ["kind", "since", "agentId", "taskId", "text"], as_json)
    sys.exit(1 if items else 0)
