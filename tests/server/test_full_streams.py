"""Commands whose stdout or stderr is closed or on a full disk."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from tests.support.commands import one_line, run
from tests.support.fork_server import run_forked
from tests.support.service import COMMAND, Service, environment


@pytest.fixture(scope="module")
def full() -> Iterator[IO[str]]:
    """A file on a full disk."""
    with open("/dev/full", "w") as full:
        yield full


def run_with(data: Path, *arguments: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    """Run a command with these standard files; what it writes to the others is returned."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return run_forked(
        [*COMMAND, *arguments], env=environment(data), text=True, timeout=60, **options
    )


def redirected(redirection: str, *arguments: str) -> list[str]:
    """A command as a shell starts it with this redirection."""
    return ["sh", "-c", f'exec "$@" {redirection}', "sh", *COMMAND, *arguments]


def keys(data: Path) -> list[str]:
    listed = run(data, "key", "list", "--json")
    return [key["name"] for key in map(json.loads, listed.stdout.splitlines())]


def test_result_that_cannot_be_printed_is_one_line(
    tmp_path: Path, full: IO[str], subtests: pytest.Subtests
) -> None:
    run(tmp_path, "user", "add", "alice")
    for command in ("user list", "key list --json", "db upgrade", "db check"):
        with subtests.test(command):
            line = one_line(run_with(tmp_path, *command.split(), stdout=full), 1)
            assert line == "taskservice: stdout can't be written: No space left on device"


def test_exit_code_is_the_same_where_stderr_cannot_be_written(
    tmp_path: Path, full: IO[str]
) -> None:
    for streams in ({"stderr": full}, {"closed": [2]}):
        failed = run_with(tmp_path, "key", "revoke", "x", **streams)
        assert (failed.returncode, failed.stdout) == (1, "")


@pytest.mark.parametrize("unwritable", ["full stderr", "full", "closed"])
def test_service_runs_where_its_log_cannot_be_written(
    tmp_path: Path, full: IO[str], unwritable: str
) -> None:
    service = Service(tmp_path / "data")
    service.streams = {"stderr": full} | ({"stdout": full} if unwritable == "full" else {})
    if unwritable == "closed":
        # This service starts as users start it.
        service.command = redirected("<&- >&- 2>&-", "serve")
    with service:
        alice = service.add_user()
        task = alice.start()
        assert alice.request("GET", f"/task/{task['id']}").json() == task
        assert service.stop() == 0
    assert service.run("db", "check").returncode == 0
