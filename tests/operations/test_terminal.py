"""Commands print text from other people escaped on a terminal."""

import ast
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import requests

from taskservice.app import create_app
from taskservice.cli import main
from taskservice.config import Config
from taskservice.database.engine import dispose
from taskservice.services import users as user_service
from tests.support.agent_machine import AgentMachine, objects
from tests.support.api_client import RemoteClient
from tests.support.documents import ROOT
from tests.support.pseudo_terminal import NASTY, SHOWN, obeyed, on_terminal
from tests.support.receiver import Receiver
from tests.support.service import COMMAND, Service, environment
from tests.support.waiting import until

COLOURED = "\x1b[1;31mred\x1b[0m"


@pytest.fixture(scope="module")
def shared_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("terminal") / "data") as service:
        yield service


@pytest.fixture(scope="module")
def nasty(shared_service: Service) -> RemoteClient:
    """A user whose name, keys and tasks hold what terminals obey."""
    person = shared_service.add_user(NASTY)
    app = create_app(Config.from_environment(shared_service.environment))
    with app.app_context():
        user_service.add_key(NASTY, NASTY, None, None)
    dispose(app)
    return person


@pytest.fixture
def machine(nasty: RemoteClient, tmp_path: Path) -> AgentMachine:
    return AgentMachine(tmp_path / "home", nasty)


def start(person: RemoteClient, **fields: object) -> str:
    return str(person.start("one", name=NASTY, **fields)["id"])


def change(person: RemoteClient, task_id: str, **changes: object) -> None:
    person.request("PATCH", f"/task/{task_id}", json=changes).raise_for_status()


def on_server(service: Service, *arguments: str) -> str:
    """What a command on the server shows, on a terminal and in a pipe alike."""
    shown = on_terminal([*COMMAND, *arguments], service.environment)
    piped = service.run(*arguments)
    assert piped.stdout + piped.stderr == shown
    return shown


# --- on the server -----------------------------------------------------------------------


def test_users_and_keys_are_listed_escaped(shared_service: Service, nasty: RemoteClient) -> None:
    for kind in ("user", "key"):
        shown = on_server(shared_service, kind, "list")
        assert obeyed(shown) == []
        assert SHOWN in shown
        # A table stays a table.
        assert len({line.index(" 20") for line in shown.splitlines()[1:]}) == 1


def test_deliveries_are_shown_escaped(shared_service: Service, nasty: RemoteClient) -> None:
    with Receiver() as receiver:
        change(nasty, start(nasty, callback=receiver.url), status="complete")
    shown = on_server(shared_service, "delivery", "list")
    assert obeyed(shown) == []
    assert SHOWN in shown
    (delivery,) = objects(shared_service.run("delivery", "list", "--json").stdout)
    shown = on_server(shared_service, "delivery", "show", delivery["id"])
    assert obeyed(shown) == []
    assert SHOWN in shown


def test_errors_that_quote_a_name_are_escaped(shared_service: Service, nasty: RemoteClient) -> None:
    for arguments in (
        ["user", "add", NASTY],
        ["key", "add", f"no {NASTY}", "--name", "x"],
        ["delivery", "show", NASTY],
        ["callback", "test", "http://127.0.0.1/", "--user", f"no {NASTY}"],
    ):
        shown = on_server(shared_service, *arguments)
        assert obeyed(shown) == []
        assert SHOWN in shown
        assert len(shown.splitlines()) == 1


def test_json_is_complete_and_has_no_control_characters(
    shared_service: Service, nasty: RemoteClient, machine: AgentMachine
) -> None:
    task_id = start(nasty, input={NASTY: NASTY})
    for command, place in (
        ([*COMMAND, "user", "list", "--json"], shared_service.environment),
        ([*COMMAND, "key", "list", "--json"], shared_service.environment),
        ([*COMMAND, "task", "show", task_id, "--json"], machine.environment),
    ):
        shown = on_terminal(command, place)
        assert obeyed(shown) == []
        assert NASTY in {task["name"] for task in objects(shown)}


def test_log_of_the_service_is_escaped(shared_service: Service) -> None:
    requests.get(f"{shared_service.url}/log%1b%5b2J%c2%9b%e2%80%ae%e2%80%a8%7f", timeout=10)
    line = until(lambda: re.search(r".*GET /log.*", shared_service.log.read_text()))[0]
    assert r"/log\u001b[2J\u009b\u202e\u2028\u007f" in line
    assert obeyed(shared_service.log.read_text()) == []


# --- on the agent's side -----------------------------------------------------------------


def test_tasks_are_listed_and_shown_escaped(nasty: RemoteClient, machine: AgentMachine) -> None:
    task_id = start(nasty, input={NASTY: [NASTY]})
    change(nasty, task_id, status="error", output={"a": NASTY}, error={"message": NASTY})
    wide = machine.environment | {"COLUMNS": "400", "NO_COLOR": "1"}
    for arguments in (["list"], ["show", task_id], ["follow", task_id]):
        shown = on_terminal([*COMMAND, "task", *arguments], wide)
        assert obeyed(shown) == []
        assert SHOWN in shown
    assert f'"{SHOWN}": [' in on_terminal([*COMMAND, "task", "show", task_id], machine.environment)


def test_names_of_fields_of_a_question_are_escaped(
    nasty: RemoteClient, machine: AgentMachine
) -> None:
    task_id = start(nasty, claim=True)
    properties = {NASTY: {"type": "boolean"}, "n": {"type": "number"}}
    question = {"message": "ok?", "schema": {"type": "object", "properties": properties}}
    nasty.request("POST", f"/task/{task_id}/question", json=question).raise_for_status()
    for values in (["wrong"], [f"{NASTY}=maybe"], [f"{NASTY}=true", f"{NASTY}=false"], []):
        shown = on_terminal([*COMMAND, "task", "answer", task_id, *values], machine.environment)
        assert obeyed(shown) == []
        assert SHOWN in shown


def _paths(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _paths(inner, (*path, name))


def test_wrong_use_of_each_command_is_quoted_escaped(
    machine: AgentMachine, subtests: pytest.Subtests
) -> None:
    for path in _paths(main):
        with subtests.test(" ".join(path)):
            wrong = machine.run(*path, f"--{NASTY}")
            # Coding agents take 2 for a denial.
            assert wrong.returncode == (1 if path == ("approve",) else 2)
            assert obeyed(wrong.stdout + wrong.stderr) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["task", "start", "--agent", "one", "--input", f"@{NASTY}"],
        ["agent", "add", "one", "--input-schema", f"@{NASTY}"],
        ["task", "answer", NASTY, "--accept", "--decline"],
        ["hook", "add", "mailto:a@b.example", "--token-file", NASTY],
        ["export", "--since", NASTY],
        [NASTY],
    ],
)
def test_wrong_value_of_an_option_is_quoted_escaped(
    machine: AgentMachine, arguments: list[str]
) -> None:
    wrong = machine.run(*arguments)
    assert wrong.returncode == 2
    assert obeyed(wrong.stdout + wrong.stderr) == []


def test_follow_prints_colours_and_no_other_control_characters(
    nasty: RemoteClient, machine: AgentMachine
) -> None:
    task_id = start(nasty)
    lines = [f"{COLOURED} {NASTY}", "\x1b[31mred to the end", "a\tb\rc", "\x1b[31;5Hmoved"]
    nasty.request("POST", f"/task/{task_id}/logs", json={"logs": lines})
    change(nasty, task_id, status="complete")
    follow = [*COMMAND, "task", "follow", task_id]
    shown = on_terminal(follow, machine.environment).splitlines()
    assert shown == [
        f"{COLOURED} {SHOWN}\x1b[0m", "\x1b[31mred to the end\x1b[0m", "a\tb\\rc",
        r"\u001b[31;5Hmoved", "complete",
    ]  # fmt: skip
    logs = on_terminal([*COMMAND, "task", "logs", task_id], machine.environment)
    assert logs.splitlines() == shown[:-1]
    # A file or a pipe gets the lines unchanged.
    piped: Any = machine.run("task", "follow", task_id, text=False).stdout
    assert piped.decode() == "".join(f"{line}\n" for line in lines)


def test_notices_of_run_are_escaped(machine: AgentMachine, tmp_path: Path) -> None:
    program = str(tmp_path / NASTY.replace("/", "-"))
    shown = on_terminal([*COMMAND, "run", "--agent", "one", "--", program], machine.environment)
    assert obeyed(shown) == []
    assert SHOWN in shown


def test_wrong_setting_is_quoted_escaped(tmp_path: Path) -> None:
    for name in ("DATABASE_URL", "BIND", "THREADS", "CALLBACK_ALLOWED"):
        shown = on_terminal(
            [*COMMAND, "serve"], environment(tmp_path / "data", **{name: f"x{NASTY}"})
        )
        assert obeyed(shown) == [], name


def test_commands_write_by_the_one_module_that_escapes() -> None:
    for path in (ROOT / "taskservice").rglob("*.py"):
        if path.name != "terminal.py":
            calls = (
                node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
            )
            names = {ast.unparse(call.func).split(".")[-1] for call in calls}
            assert not names & {"echo", "print"}, path


def test_notice_is_one_write(tmp_path: Path) -> None:
    """A program that `run` has started writes to the same stderr: no line of it cuts a notice."""
    # Each write arrives as a separate packet.
    ours, stderr = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, stderr:
        command = [*COMMAND, "progress", "1/2"]
        subprocess.run(
            command, env=environment(tmp_path), stderr=stderr.fileno(), timeout=60, check=False
        )
        stderr.close()
        packets = list(iter(lambda: ours.recv(65_536), b""))
    assert [packet.endswith(b"\n") for packet in packets] == [True]
