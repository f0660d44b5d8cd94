"""`taskservice status`: what needs attention."""

import sys

from taskservice.cli import options
from taskservice.cli.service_client import UNAVAILABLE, service_client
from taskservice.cli.task_text import id_length
from taskservice.client import Attention
from taskservice.terminal import local_time, print_json, print_table
from taskservice.terms import ATTENTION, LATE, NO_WORKER, QUESTION

HEADER = ("KIND", "SINCE", "AGENT", "TASK", "TEXT")
# ANSI colours: failures are red; items that wait for a person, a run or a worker are yellow.
COLOURS = dict.fromkeys(ATTENTION, "31") | dict.fromkeys((QUESTION, LATE, NO_WORKER), "33")


@options.command("taskservice status", "", "--json | jq -r .agentId")
@options.json_lines
def command(as_json: bool) -> None:
    """Print what needs attention.

    This includes open questions, agents whose last task failed or timed out, late agents, tasks
    that hang, tasks that no worker claims, callbacks that failed in the last 7 days, hooks that
    fail or are off, and an old backup of the service. Exit status: 0 nothing needs attention, 1
    something does, 2 invalid usage or key, 69 the service is unavailable.
    """
    with service_client(failure=UNAVAILABLE) as client:
        items = client.attention()
    if as_json:
        for item in items:
            print_json(item)
    elif items:
        length = id_length({item["taskId"] or "" for item in items})
        rows = (_row(item, length) for item in items)
        print_table([HEADER, *rows], colours={"KIND": COLOURS}, optional=())
    sys.exit(1 if items else 0)


def _row(item: Attention, length: int) -> tuple[str, ...]:
    task_id, agent_id = (item["taskId"] or "-")[:length], item["agentId"] or "-"
    return (item["kind"], local_time(item["since"]), agent_id, task_id, item["text"])
