"""The commands on the server, run as processes."""

import json
import subprocess
from pathlib import Path

from tests.support.fork_server import run_forked
from tests.support.service import COMMAND, environment


def run(data: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return run_forked(
        [*COMMAND, *arguments],
        env=environment(data, **settings),
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=60,
    )


def one_line(result: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line on stderr of a command that must have failed with this exit code."""
    assert result.returncode == code, result
    assert not result.stdout
    (line,) = result.stderr.splitlines()
    return line


def check(data: Path, code: int = 0, **settings: str) -> dict[str, dict[str, str]]:
    """What `db check` finds, by the name of each check; it must exit with this code."""
    result = run(data, "db", "check", "--json", **settings)
    assert result.returncode == code, result
    assert result.stderr == ""
    return {line["check"]: line for line in map(json.loads, result.stdout.splitlines())}
