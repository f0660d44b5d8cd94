"""The README: its session runs as printed, and its tables say what the code says."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import click
import pytest
from flask import Flask

from taskservice import cli, config
from tests.conftest import needs
from tests.support.api_client import RemoteClient
from tests.support.internals import is_page
from tests.support.service import Service, free_port

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(mark: str) -> list[str]:
    """The code blocks that follow this mark, in their order."""
    pattern = rf"<!-- {re.escape(mark)} -->\n```\w+\n(.*?)```"
    return re.findall(pattern, README, re.DOTALL)


def table_column(heading: str) -> list[str]:
    """The first column of the first table below a heading, without its head."""
    section = README.split(f"\n{heading}\n")[1]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    end = next((n for n, line in enumerate(section.splitlines()) if line.startswith("#")), None)
    rows = [line for line in section.splitlines()[:end] if line.startswith("|")]
    return [row.split("|")[1].strip() for row in rows[2:]]


class Terminal:
    """A shell that is typed into, block by block, as a person would."""

    def __init__(self, folder: Path) -> None:
        self._transcript = folder / "transcript"
        with open(self._transcript, "wb") as out:
            self._shell = subprocess.Popen(
                ["sh"], cwd=folder, stdin=subprocess.PIPE, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip

    def type(self, text: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(text.encode() + b"\n")
        self._shell.stdin.flush()

    @property
    def screen(self) -> str:
        return self._transcript.read_text()

    def wait_for(self, text: str, seconds: float = 90) -> None:
        until = time.monotonic() + seconds
        while text not in self.screen:
            assert time.monotonic() < until, self.screen
            time.sleep(0.05)

    def run(self, text: str) -> str:
        """Type a block, wait until it is done, and return what it printed."""
        before, mark = len(self.screen), f"done {time.monotonic_ns()}"
        self.type(f"{text}\necho\necho {mark!r}")
        self.wait_for(mark)
        return self.screen[before:].replace(mark, "").strip()

    def close(self) -> None:

        assert self._shell.stdin is not None
        self._shell.stdin.close()
        os.killpg(self._shell.pid, signal.SIGTERM)
        self._shell.wait(timeout=10)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    if shutil.which("curl") is None:
        needs("curl", "the README's session is written with it")
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.close()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_session_runs_as_printed(service: Service, terminal: Terminal, tmp_path: Path) -> None:
    alice = service.add_user()
    variables, install, register, work, delete = blocks("session")
    (receiver,) = blocks("receiver.py")
    (watch,) = blocks("watch")
    port = str(free_port())
    (tmp_path / "receiver.py").write_text(receiver.replace("9000", port))
    # Only what differs from machine to machine: the key, and the ports.
    key = str(alice.session.headers["apikey"])
    terminal.run(f"API={service.url}/api/v1\nKEY={key}")
    assert variables == "API=http://127.0.0.1:8000/api/v1\nKEY=tsk_user_...\n"
    terminal.run(installation(install, tmp_path))
    task_id = terminal.run(register.replace("9000", port)).split()[-1]
    terminal.type(work)
    for number in range(1, 6):
        terminal.wait_for(f"line {number}\n")
        lines = wait_for_line(alice, task_id, number)
        assert lines == [f"line {count}" for count in range(1, number + 1)]
    terminal.wait_for("counter complete {'sum': 15}")
    watched = terminal.run(f"TASK={task_id}\n{watch}")
    assert '"status":"complete"' in watched
    assert "Task's ID is not found" in terminal.run(delete)


def installation(block: str, folder: Path) -> str:
    """The block that installs and starts the receiver; CI takes it as printed.

    A machine may have no network, and the tests' own environment has the package already.
    """
    if os.environ.get("CI"):
        return block
    install, installed, start = block.partition("standardwebhooks\n")
    assert installed
    assert install.startswith("python3 -m venv receiver\n")
    python = folder / "receiver" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return start


def wait_for_line(person: RemoteClient, task_id: str, number: int) -> list[str]:
    """The log as soon as it has a line of this number: before the next one is written."""
    until = time.monotonic() + 0.9
    while time.monotonic() < until:
        lines: list[str] = person.request("GET", f"/task/{task_id}?fields=logs").json()["logs"]
        if len(lines) >= number:
            return lines
        time.sleep(0.02)
    raise AssertionError(f"Line {number} did not arrive in time")


def test_table_of_the_api_is_the_routes(app: Flask) -> None:
    documented = set()
    for row in table_column("## The API"):
        methods, _, path = row.rpartition(" ")
        documented |= {(method, path.strip("`")) for method in methods.split(", ")}
    routes = {
        (method, re.sub(r"<(?:\w+:)?(\w+)_id>", r"{\1Id}", rule.rule))
        for rule in app.url_map.iter_rules()
        if not is_page(rule)
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert documented == routes


def test_table_of_settings_is_the_settings() -> None:
    rows = re.findall(r"^\| `(TASKSERVICE_\w+)` \| (?:`(.*?)`)? ?\| (.*) \|$", README, re.MULTILINE)
    assert rows == config.documented()


def test_table_of_commands_is_the_commands() -> None:
    def paths(command: click.Command, prefix: str) -> Iterator[str]:
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                yield from paths(inner, f"{prefix} {name}")
        else:
            arguments = [p.make_metavar(click.Context(command)) for p in command.params
                         if isinstance(p, click.Argument)]  # fmt: skip
            yield " ".join([prefix, *arguments])

    # Two tables: on the server, and on the agent's side.
    rows = [row for row in table_column("## Commands") if row.startswith("`")]
    documented = {row.strip("`") for row in rows}
    assert documented == set(paths(cli.main, "taskservice"))


def test_layout_names_every_module() -> None:
    documented = re.findall(r"`(\w+)(?:\.py|/)`", "\n".join(table_column("### Layout")))
    there = {path.stem for path in (ROOT / "taskservice").iterdir()
             if path.suffix == ".py" or (path.is_dir() and path.name != "__pycache__")}  # fmt: skip
    assert set(documented) == there - {"__main__"}


def test_every_dependency_has_its_reason() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lists = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    named = {re.split(r"[\[ ]", line)[0] for text in lists for line in text.split("\n") if line}
    reasons = re.findall(r"[\w-]+", " ".join(table_column("### Dependencies")))
    assert named <= set(reasons)


def test_every_proof_that_is_named_is_there() -> None:
    named = re.findall(r"(tests/\w+\.py)(?:::(\w+))?", README)
    assert len(named) > 10
    for path, name in named:
        assert f"def {name}" in (ROOT / path).read_text(), f"{path}::{name}"
