"""The documents: sessions run as printed, tables say what the code says, links lead somewhere."""

import os
import re
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from functools import partial
from pathlib import Path

import click
import pytest
from flask import Flask

from taskservice import cli, config
from taskservice.database import engine, postgresql
from taskservice.schemas import strict_json
from taskservice.webhooks.retries import JITTER, SCHEDULE
from tests.support.api_client import RemoteClient
from tests.support.documents import (
    DOCUMENTS,
    ROOT,
    Terminal,
    anchors,
    blocks,
    command_lines,
    install_commands,
    links,
    paths,
    section,
    table,
)
from tests.support.internals import is_page
from tests.support.packages import EXTRAS, dependencies
from tests.support.service import Service, free_port
from tests.support.waiting import until

README = "README.md"
RELIABILITY = "docs/reliability.md"
# What looks like a path and is none of ours.
# Names of MCP look like paths too.
NAMES_OF_MCP = (
    "tools/",
    "tasks/",
    "notifications/",
    "io.modelcontextprotocol/",
    "taskservice/idempotencyKey",
)
NO_PATHS = ("text/", "application/", "receiver/", ".venv/", ".vscode/", *NAMES_OF_MCP)

# --- sessions ----------------------------------------------------------------------------


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_first_session_shows_callbacks(
    service: Service, terminal: Terminal, tmp_path: Path
) -> None:
    key = str(service.add_user().session.headers["apikey"])
    (listen,) = blocks(README, "session: listen")
    (run,) = blocks(README, "session: run")
    (printed,) = blocks(README, "session: printed")
    folder = install_commands(tmp_path / ".venv" / "bin")
    path, state = f"export PATH={folder}:$PATH PYTHONPATH={ROOT}", f"XDG_STATE_HOME={tmp_path}"
    (folder / "activate").write_text(f"{path} {state}\n")
    # Only what differs from machine to machine: the address, the key, and the port.
    activate, url, key_line, command = listen.splitlines()
    assert url == "export TASKSERVICE_URL=http://127.0.0.1:8000"
    assert key_line == "export TASKSERVICE_APIKEY=tsk_user_..."
    first_lines = (
        f"{activate}\nexport TASKSERVICE_URL={service.url}\nexport TASKSERVICE_APIKEY={key}"
    )
    port = str(free_port())
    terminal.type(f"{first_lines}\n{command} --port {port}")
    terminal.wait_for("are verified and shown here")
    with Terminal(tmp_path) as third:
        third.run(first_lines)
        assert '1\n2\n3\n4\n5\n{"sum": 15}' in third.run(run.replace("9000", port))
    lines = printed.splitlines()
    terminal.wait_for(lines[-1])
    shown = re.findall(r"^[0-9a-f-]{36} (.*)$", terminal.screen, re.MULTILINE)
    assert shown == lines


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_session_with_curl_runs_as_printed(
    service: Service, terminal: Terminal, tmp_path: Path
) -> None:
    alice = service.add_user()
    variables, install, register, work, delete = blocks("docs/callbacks.md", "session")
    (receiver,) = blocks("docs/callbacks.md", "receiver.py")
    (watch,) = blocks("docs/callbacks.md", "watch")
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
        lines = until(partial(has_lines, alice, task_id, number))
        assert lines == [f"line {count}" for count in range(1, len(lines) + 1)]
        # They arrive while the program runs.
        assert number > 1 or len(lines) < 5
    terminal.wait_for("counter complete {'sum': 15}")
    watched = terminal.run(f"TASK={task_id}\n{watch}")
    assert '"status":"complete"' in watched
    assert "Task's ID is not found" in terminal.run(delete)


def installation(block: str, folder: Path) -> str:
    """The block that installs and starts the receiver; CI takes it as printed.

    A laptop may have no network, and the tests' own environment has the package already.
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


def has_lines(person: RemoteClient, task_id: str, count: int) -> list[str] | None:
    """The log, if it has this many lines or more."""
    lines: list[str] = person.request("GET", f"/task/{task_id}?fields=logs").json()["logs"]
    return lines if len(lines) >= count else None


def test_packages_to_install_are_those_of_ci() -> None:
    named, installed = (
        {
            word
            for command in re.findall(r"apt-get install ((?:.*\\\n)*.*)", path.read_text())
            for word in command.replace(">/dev/null", "").split()
            if not word.startswith(("-", "\\"))
        }
        for path in (ROOT / "CONTRIBUTING.md", ROOT / ".ci/packages")
    )
    # Another one has it in some systems.
    assert installed - {"$chromium", "curl", "git", "make"} == named - {"chromium-headless-shell"}


# --- tables ------------------------------------------------------------------------------


def test_table_of_routes_is_the_routes(app: Flask) -> None:
    documented = set()
    for row in table("docs/api.md", "## Routes"):
        methods, _, path = row[0].rpartition(" ")
        documented |= {(method, path.strip("`")) for method in methods.split(", ")}
    routes = {
        (method, re.sub(r"<(?:\w+:)?(\w+)_id>", r"{\1Id}", rule.rule))
        for rule in app.url_map.iter_rules()
        if not is_page(rule) and rule.endpoint != "mcp.refuse"
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert documented == routes


def test_table_of_settings_is_the_settings() -> None:
    rows = [
        (name.strip("`"), default.strip("`"), help)
        for name, default, help in table("docs/operations.md", "## Settings")
    ]
    assert rows == config.documented()


def test_tables_of_commands_are_the_commands() -> None:
    def spelled(command: click.Command, prefix: str) -> Iterator[str]:
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                yield from spelled(inner, f"{prefix} {name}")
        else:
            arguments = [p.make_metavar(click.Context(command)) for p in command.params
                         if isinstance(p, click.Argument)]  # fmt: skip
            yield " ".join([prefix, *arguments])

    documented = [
        row[0].strip("`")
        for name in ("docs/operations.md", "docs/agent-side.md")
        for row in table(name, "## Commands")
    ]
    assert sorted(documented) == sorted(spelled(cli.main, "taskservice"))


def test_every_dependency_has_its_reason() -> None:
    named = {name for extra in (None, *EXTRAS) for name in dependencies(extra)}
    cells = [row[0] for row in table("docs/decisions.md", "## Dependencies")]
    assert named <= set(re.findall(r"[\w-]+", " ".join(cells)))


def test_documented_retry_schedule_is_the_schedule() -> None:
    def spoken(seconds: int) -> str:
        size, unit = next(u for u in ((3600, "h"), (60, "min"), (1, "s")) if seconds % u[0] == 0)
        return f"{seconds // size} {unit}"

    *others, last = map(spoken, SCHEDULE)
    text = " ".join(section("docs/callbacks.md", "## Attempts").split())
    documented = f"after {', '.join(others)} and {last}, each plus or minus {JITTER * 100:g} %."
    assert documented in text


def test_documented_time_of_a_server_that_does_not_answer_is_that_of_the_code() -> None:
    *_, (cause, seconds) = table("docs/operations.md", "## When the database does not answer")
    once = engine.BUSY_SECONDS * engine.STATEMENT_FACTOR + postgresql.LAST_SECONDS
    assert "does not even answer" in cause
    assert seconds == f"{once:g} s once, then {engine.BUSY_SECONDS:g} s"


def test_documented_files_are_those_of_a_service(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Service(data, SECRET_KEY=""):
        found = {path.name for path in data.iterdir()}
    _, _, rest = section("docs/operations.md", "## SQLite or PostgreSQL").partition("**Files.**")
    text, _, _ = rest.partition("\n\n")
    assert set(re.findall(r"`(taskservice\.db[\w-]*|secret_key)`", text)) == found


def test_commands_need_no_newer_curl_than_old_systems_have() -> None:
    """`--json` came with curl 7.82."""
    start_page = (ROOT / "taskservice/dashboard/templates/dashboard/no_tasks.html").read_text()
    for text in (*DOCUMENTS.values(), start_page):
        assert not re.findall(r".*--json ['\"$].*", text)


def test_documented_depth_of_an_output_is_that_of_a_body_without_the_report() -> None:
    text = " ".join(DOCUMENTS["docs/agent-side.md"].split())
    assert f"if it is nested deeper than {strict_json.MAX_DEPTH - 1} levels." in text


# --- names and links ---------------------------------------------------------------------


def test_readme_is_short_and_leads_to_every_document() -> None:
    assert len(DOCUMENTS[README].splitlines()) <= 200
    assert set(DOCUMENTS) - {README} <= set(links(README))


def test_description_on_a_package_index_needs_no_other_file() -> None:
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    name = settings["metadata"]["long_description"].removeprefix("file: ")
    assert not re.findall(r"\]\((?!https://)", (ROOT / name).read_text())


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_somewhere(name: str) -> None:
    for link in links(name):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(str(target.resolve().relative_to(ROOT))), link


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_that_is_named_is_there(name: str) -> None:
    """In the architecture, paths begin inside the package."""
    for path in paths(name):
        if not path.startswith(NO_PATHS) and "NAME" not in path:
            assert (ROOT / path).exists() or (ROOT / "taskservice" / path).exists(), path


def test_every_name_in_a_recipe_is_in_its_file() -> None:
    """A name belongs to the file before it in its step, or to the one that follows with `in`."""
    recipes = DOCUMENTS["CONTRIBUTING.md"]
    pairs = re.findall(r"`(\w+)` in\s+`(\w+/[\w/.]+)`", recipes)
    for step in re.findall(r"^\d\. .*(?:\n   .*)*", recipes, re.MULTILINE):
        path = ""
        for code in re.findall(r"`([^`]+)`", step):
            if "/" in code:
                path = code if "." in code and "NAME" not in code else ""
            elif path and code.isidentifier():
                pairs.append((code, path))
    assert len(pairs) > 15
    for name, path in pairs:
        assert re.search(rf"\b{name}\b", (ROOT / path).read_text()), f"{name} in {path}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_that_is_named_is_there(name: str) -> None:
    for words in command_lines(name):
        command: click.Command = cli.main
        for word in words.split():
            if isinstance(command, click.Group):
                inner = command.get_command(click.Context(command), word)
                assert inner is not None, f"taskservice {words}"
                command = inner


@pytest.mark.parametrize("name", ["docs/callbacks.md", "docs/reliability.md"])
def test_every_proof_that_is_named_is_there(name: str) -> None:
    named = re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", DOCUMENTS[name])
    assert len(named) > 10
    for path, test in named:
        assert f"\ndef {test or 'test_'}" in (ROOT / path).read_text(), f"{path}::{test}"


def test_every_promise_and_every_fault_names_its_proof() -> None:
    promises = re.split(r"^(?=\*\*)", section(RELIABILITY, "## Promises"), flags=re.MULTILINE)[1:]
    assert len(promises) >= 7
    for promise in promises:
        assert "    pytest tests/" in promise, promise
    faults = table(RELIABILITY, "## What happens if")
    assert len(faults) >= 30
    for fault, promised, tests in faults:
        # A row in bold letters is the heading of those below it.
        assert fault.startswith("**") or (promised and "`tests/" in tests), fault


def test_make_targets_that_are_named_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name, text in DOCUMENTS.items():
        named = re.findall(r"(?:`|^| {4})make ([a-z-]+)", text, re.MULTILINE)
        assert set(named) <= targets, name
