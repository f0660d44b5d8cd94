"""Commands whose stdout or stderr is closed or on a full disk."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import one_line, run
from tests.support.service import COMMAND, Service, environment


def run_to(data: Path, redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a shell does with this redirection."""
    return subprocess.run(
        redirected(redirection, *arguments), env=environment(data), capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip


def redirected(redirection: str, *arguments: str) -> list[str]:
    return ["sh", "-c", f'exec "$@" {redirection}', "sh", *COMMAND, *arguments]


def keys(data: Path) -> list[str]:
    listed = run(data, "key", "list", "--json")
    return [key["name"] for key in map(json.loads, listed.stdout.splitlines())]


def test_key_that_cannot_be_printed_is_one_line_that_says_how_to_get_another(
    tmp_path: Path,
) -> None:
    line = one_line(run_to(tmp_path, ">/dev/full", "user", "add", "alice b"), 1)
    assert "No space left on device" in line
    assert "`taskservice key add 'alice b' --name NAME`" in line
    assert keys(tmp_path) == ["first"]
    another = ("key", "add", "alice b", "--name", "laptop")
    line = one_line(run_to(tmp_path, ">/dev/full", *another), 1)
    revoke = line.partition("`taskservice ")[2].partition("`")[0]
    assert run(tmp_path, *revoke.split()).returncode == 0
    assert run(tmp_path, *another).stdout.startswith("tsk_user_")


def test_nothing_is_added_where_stdout_is_closed(tmp_path: Path) -> None:
    assert "stdout is closed" in one_line(run_to(tmp_path, ">&-", "user", "add", "alice"), 1)
    run(tmp_path, "user", "add", "alice")
    added = run_to(tmp_path, ">&-", "key", "add", "alice", "--name", "laptop")
    assert "stdout is closed" in one_line(added, 1)
    assert keys(tmp_path) == ["first"]


@pytest.mark.parametrize("command", ["user list", "key list --json", "db upgrade", "db check"])
def test_result_that_cannot_be_printed_is_one_line(tmp_path: Path, command: str) -> None:
    run(tmp_path, "user", "add", "alice")
    line = one_line(run_to(tmp_path, ">/dev/full", *command.split()), 1)
    assert line == "taskservice: stdout can't be written: No space left on device"


def test_exit_code_is_the_same_where_stderr_cannot_be_written(tmp_path: Path) -> None:
    for redirection in ("2>/dev/full", "2>&-"):
        failed = run_to(tmp_path, redirection, "key", "revoke", "x")
        assert (failed.returncode, failed.stdout) == (1, "")


@pytest.mark.parametrize("redirection", ["2>/dev/full", ">/dev/full 2>&1", "<&- >&- 2>&-"])
def test_service_runs_where_its_log_cannot_be_written(tmp_path: Path, redirection: str) -> None:
    service = Service(tmp_path / "data")
    service.command = redirected(redirection, "serve")
    with service:
        alice = service.add_user()
        task = alice.start()
        assert alice.request("GET", f"/task/{task['id']}").json() == task
        assert service.stop() == 0
    assert service.run("db", "check").returncode == 0
