"""The commands of `taskservice`; a command's module is imported when the command is called."""

import gc
from importlib import import_module
from typing import Any

import click

from taskservice import __version__
from taskservice.terminal import exit_with_error

# Commands on the agent's side must not load Flask or SQLAlchemy.
ON_THE_AGENTS_SIDE = {
    "run": "taskservice.cli.run",
    "work": "taskservice.cli.work",
    "progress": "taskservice.cli.ask",
    "ask": "taskservice.cli.ask",
    "task": "taskservice.cli.task",
    "agent": "taskservice.cli.agent",
    "listen": "taskservice.cli.listen",
    "mcp-config": "taskservice.cli.agent",
}
ON_THE_SERVER = {
    "serve": "taskservice.cli.serve",
    "worker": "taskservice.cli.serve",
    "user": "taskservice.cli.user",
    "key": "taskservice.cli.user",
    "callback": "taskservice.cli.callback",
    "delivery": "taskservice.cli.callback",
    "db": "taskservice.cli.database",
    "prune": "taskservice.cli.database",
    "export": "taskservice.cli.transfer",
    "import": "taskservice.cli.transfer",
}
GROUPS = {
    "On the agent's side (TASKSERVICE_URL, TASKSERVICE_APIKEY)": ON_THE_AGENTS_SIDE,
    "On the server": ON_THE_SERVER,
}
COMMANDS = ON_THE_AGENTS_SIDE | ON_THE_SERVER


class _CommandsOnDemand(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return _load(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, names in GROUPS.items():
            commands = [(name, self.get_command(ctx, name)) for name in names]
            with formatter.section(heading):
                formatter.write_dl(
                    [(name, each.get_short_help_str(60)) for name, each in commands if each]
                )


def quick_import(name: str) -> Any:
    """The module of this name; for the main thread, before there are others."""
    # What modules create is no garbage; looking for it takes a tenth of the time.
    gc.disable()
    try:
        return import_module(name)
    finally:
        gc.freeze()
        gc.enable()


def _load(name: str) -> click.Command:
    try:
        module = quick_import(COMMANDS[name])
    except ModuleNotFoundError as error:
        if name in ON_THE_AGENTS_SIDE or str(error.name).startswith("taskservice"):
            raise
        return _command_without_server(name)
    # A module of several commands names each of them.
    name = name.replace("-", "_")
    command: click.Command = getattr(module, f"{name}_command", None) or module.command
    return command


def _command_without_server(name: str) -> click.Command:
    """The command on the server, where only the agent's side is installed."""
    sentence = f"{name} needs taskservice[server]: pip install 'taskservice[server]'"
    return click.Command(
        name,
        callback=lambda: exit_with_error(sentence, 2),
        short_help="needs taskservice[server]",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )


@click.group(cls=_CommandsOnDemand)
@click.version_option(__version__, prog_name="taskservice")
def main() -> None:
    """Keep the tasks of agents with their logs, and send signed callbacks.

    Settings come from the environment; `taskservice serve --help` lists those of the server.
    `taskservice COMMAND --help` has examples.
    """
