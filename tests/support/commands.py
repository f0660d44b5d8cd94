"""All commands, and those on the server, run as processes."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from taskservice import cli
from tests.support.fork_server import run_forked
from tests.support.service import COMMAND, environment


def all_commands() -> dict[str, click.Command]:
    """Every command except the groups, by its words."""

    def below(command: click.Command, words: str) -> Iterator[tuple[str, click.Command]]:
        if not isinstance(command, click.Group):
            yield words, command
            return
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from below(inner, f"{words} {name}".strip())

    return dict(below(cli.main, ""))


def run(data: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return run_forked(
        [*COMMAND, *arguments],
        env=environment(data, **settings),
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=60,
    )


def without_database(stderr: str) -> str:
    """What a command printed on stderr, without the name of a database other than the default."""
    return re.sub(r"^taskservice: database .*\n", "", stderr)


def one_line(result: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line on stderr of a command that must have failed with this exit status."""
    assert result.returncode == code, result
    assert not result.stdout
    (line,) = without_database(result.stderr).splitlines()
    return line


def check(data: Path, code: int = 0, **settings: str) -> dict[str, dict[str, str]]:
    """The findings of `db check`, by the name of each check; it must exit with this status."""
    result = run(data, "db", "check", "--json", **settings)
    assert result.returncode == code, result
    assert without_database(result.stderr) == ""
    return {line["check"]: line for line in map(json.loads, result.stdout.splitlines())}


# Runs a command, and writes to a file how many KiB its memory has grown at most.
_MEASURED = """
import sys
from pathlib import Path
from taskservice.cli import main


def memory(which):
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(which)).split()[1])

Path("/proc/self/clear_refs").write_text("5")
before, path = memory("VmRSS"), Path(sys.argv.pop(1))
try:
    main(prog_name="taskservice")
finally:
    path.write_text(str(memory("VmHWM") - before))
"""


def memory_of(data: Path, *arguments: str, database: str, **files: Any) -> int:
    """How many MiB the memory of a command has grown at most."""
    peak = data / "peak memory"
    run_forked(
        [sys.executable, "-c", _MEASURED, str(peak), *arguments],
        env=environment(data, DATABASE_URL=database), timeout=280, check=True, **files,
    )  # fmt: skip
    return int(peak.read_text()) // 1024
