"""`taskservice work`: a worker that runs a program for each task of an agent."""

import click

from taskservice.cli.options import Text, examples
from taskservice.cli.service_client import service_client
from taskservice.runner.process import forward_signals
from taskservice.runner.worker import Worker
from taskservice.terminal import open_standard_files


@click.command(
    "work",
    short_help="Claim tasks of an agent, and run a program for each.",
    epilog=examples(
        "taskservice work --agent summarizer -- python -u summarize.py",
        "taskservice work --agent summarizer --parallel 4 -- ./summarize.sh",
    ),
)
@click.option(
    "--agent",
    required=True,
    type=Text(),
    metavar="ID",
    help="The agent whose tasks to claim; registered if new.",
)
@click.option(
    "--parallel", default=1, type=click.IntRange(1, 256), help="Maximum number of tasks at a time."
)
@click.argument(
    "command_line", metavar="-- CMD ...", nargs=-1, required=True, type=click.UNPROCESSED
)
def command(agent: str, parallel: int, command_line: tuple[str, ...]) -> None:
    """Claim the tasks of an agent as they come, and run CMD for each, as `run` does.

    CMD reads the task's input as JSON from stdin. Any number of workers may run, on any
    machines: each task goes to only one of them. The worker forwards signals to its running
    programs, and ends when they have ended.
    """
    open_standard_files()
    # The worker itself retries, without a limit.
    with service_client(patience=0) as client:
        worker = Worker(client, agent, command_line, parallel)
        forward_signals(worker.stop)
        worker.work()
