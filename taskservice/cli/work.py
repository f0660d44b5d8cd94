"""`taskservice work`: a worker that runs a program for each task of an agent."""

import click

from taskservice.cli.agent_command import the_service
from taskservice.runner.signals import forward_signals
from taskservice.runner.worker import Worker
from taskservice.terminal import open_standard_files


@click.command("work")
@click.option("--agent", required=True, metavar="ID", help="Whose tasks; registered if it is new.")
@click.option("--parallel", default=1, type=click.IntRange(1, 256), help="How many tasks at once.")
@click.argument("command_line", metavar="-- CMD ...", nargs=-1, required=True)
def command(agent: str, parallel: int, command_line: tuple[str, ...]) -> None:
    """Wait for tasks of an agent, and run CMD for each, as `run` does.

    CMD gets the task's input on its stdin, as JSON. Each task goes to one worker only,
    however many there are, on whatever machines. A signal goes on to the programs that
    run, and ends the worker after them.
    """
    open_standard_files()
    # It waits itself, and for as long as it takes.
    with the_service(patience=0) as client:
        worker = Worker(client, agent, command_line, parallel)
        forward_signals(worker.stop)
        worker.work()
