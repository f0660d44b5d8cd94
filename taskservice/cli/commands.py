"""The commands of `taskservice` by name; each command is imported only when it is called."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import takewhile
from typing import Any

import click
from click.exceptions import NoArgsIsHelpError

from taskservice import __version__
from taskservice.installation import install_command
from taskservice.terminal import escaped, exit_with_error
from taskservice.terms import PROFILE_VARIABLE

# Client commands must not import Flask or SQLAlchemy, which only the server needs.
CLIENT_COMMANDS = {
    "login": "taskservice.cli.login",
    "logout": "taskservice.cli.login",
    "run": "taskservice.cli.run",
    "work": "taskservice.cli.work",
    "progress": "taskservice.cli.questions",
    "ask": "taskservice.cli.questions",
    "approve": "taskservice.cli.approve",
    "task": "taskservice.cli.task",
    "agent": "taskservice.cli.agent",
    "grep": "taskservice.cli.task",
    "status": "taskservice.cli.status",
    "hook": "taskservice.cli.hook",
    "mcp-config": "taskservice.cli.mcp_config",
}
SERVER_COMMANDS = {
    "demo": "taskservice.cli.demo",
    "serve": "taskservice.cli.serve",
    "background": "taskservice.cli.serve",
    "user": "taskservice.cli.user",
    "key": "taskservice.cli.user",
    "sign-in-link": "taskservice.cli.sign_in_link",
    "callback": "taskservice.cli.callback",
    "delivery": "taskservice.cli.callback",
    "db": "taskservice.cli.db",
    "prune": "taskservice.cli.prune",
    "export": "taskservice.cli.export",
}
GROUPS = {
    "Client commands (they need `taskservice login`)": CLIENT_COMMANDS,
    "Server commands": SERVER_COMMANDS,
}
COMMANDS = CLIENT_COMMANDS | SERVER_COMMANDS


@contextmanager
def _readable_errors(calls_approve: Callable[[], bool]) -> Iterator[None]:
    """Escape the quoted parts of click's errors: arguments, or names from the service."""
    try:
        yield
    except click.ClickException as error:
        # Coding agents run `approve` as a hook, and treat its exit status 2 as a denial.
        if isinstance(error, click.UsageError) and calls_approve():
            vars(error)["exit_code"] = 1
        # The message of NoArgsIsHelpError is the help text, whose line breaks must not be escaped.
        if not isinstance(error, NoArgsIsHelpError):
            vars(error)["message"] = escaped(error.message)
        raise


def _restart_in_utf8() -> None:
    """In an ASCII locale, restart Python in its UTF-8 mode, so that text passes unchanged."""
    # Otherwise, names in arguments would be refused, and letters would be printed as "?".
    if sys.getfilesystemencoding() == "ascii":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606


class _CommandsOnDemand(click.Group):
    def main(self, args: Sequence[str] | None = None, *others: Any, **options: Any) -> Any:
        if args is None:
            _restart_in_utf8()
        return super().main(args, *others, **options)

    def make_context(
        self, info_name: str | None, args: list[str], *others: Any, **options: Any
    ) -> click.Context:
        # Copy the arguments, since click removes those that it has parsed. The arguments after `--`
        # belong to a program.
        names = list(takewhile(lambda text: text != "--", args))
        with _readable_errors(lambda: "approve" in names):
            return super().make_context(info_name, args, *others, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with _readable_errors(lambda: ctx.invoked_subcommand == "approve"):
            return super().invoke(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _load(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, names in GROUPS.items():
            with formatter.section(heading):
                formatter.write_dl([(name, _load(name).get_short_help_str(60)) for name in names])


def _load(name: str) -> click.Command:
    """Load a command; without the server's packages, a server command only prints what it needs."""
    try:
        module = import_module(COMMANDS[name])
    except ModuleNotFoundError as error:
        if name in CLIENT_COMMANDS or str(error.name).startswith("taskservice"):
            raise
        sentence = f"{name} needs taskservice[server]: {install_command('server')}"
        return click.Command(
            name,
            callback=lambda: exit_with_error(sentence, 2),
            short_help="needs taskservice[server]",
            add_help_option=False,
            context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        )
    # A module names its first command `command`, and each other command `NAME_command`.
    command: click.Command = getattr(module, f"{name}_command", None) or module.command
    return command


def _choose_profile(ctx: click.Context, param: click.Parameter, name: str | None) -> None:
    # Set the variable, so that programs that the command starts use the same profile.
    if name is not None:
        os.environ[PROFILE_VARIABLE] = name


@click.group(
    cls=_CommandsOnDemand,
    commands=[click.Command(name) for name in COMMANDS],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="taskservice")
@click.option(
    "--profile",
    metavar="NAME",
    expose_value=False,
    callback=_choose_profile,
    help=f"Profile to use, from `login --profile NAME` (default: {PROFILE_VARIABLE}).",
)
def main() -> None:
    """Record each run of an agent with its live log, and send a signed webhook when it ends.

    Settings are environment variables; `taskservice serve --help` lists the settings of the server.
    `taskservice COMMAND --help` shows examples.
    """
