"""Sessions of README, tutorial, guide, and the page of the API: they run as they are printed."""

import os
import re
import shutil
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from taskservice.schemas import examples
from tests.support.api_client import RemoteClient
from tests.support.documents import ROOT, Terminal, blocks, install_commands
from tests.support.html_page import Page
from tests.support.requirements import needs
from tests.support.service import Service, free_port, is_port_free
from tests.support.waiting import until

README = "README.md"
TUTORIAL = "docs/tutorial.md"
HOOK = {"target": "https://hooks.invalid/", "events": ["task.ended"]}

# It is the same on every database.
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def settings_of(block: str, person: RemoteClient, folder: Path) -> str:
    """The first lines of a session, with only what differs from machine to machine."""
    activate, login = block.splitlines()
    assert login == "taskservice login http://127.0.0.1:8000"
    commands = folder / ".venv" / "bin"
    if not commands.exists():
        install_commands(commands)
        path = f"export PATH={commands}:$PATH PYTHONPATH={ROOT}"
        homes = f"XDG_CONFIG_HOME={folder} XDG_STATE_HOME={folder}"
        (commands / "activate").write_text(f"{path} {homes}\n")
    secret = person.session.headers["apikey"]
    return f"{activate}\necho {secret!s} | taskservice login {person.url}"


def newest(person: RemoteClient, name: str) -> dict[str, Any] | None:
    """The newest task, if it has this name."""
    (task,) = person.request("GET", "/task?limit=1").json() or [{"name": None}]
    return task if task["name"] == name else None


def asking(person: RemoteClient, name: str) -> dict[str, Any] | None:
    """The newest task, if it has this name and asks something."""
    task = newest(person, name)
    return task if task and task["questions"] else None


def test_first_session_shows_a_live_log_and_a_question(
    service: Service, terminal: Terminal, tmp_path: Path
) -> None:
    alice = service.add_user()
    settings, log, question, printed = (
        blocks(README, f"first session: {part}")[0]
        for part in ("settings", "log", "question", "printed")
    )
    terminal.run(settings_of(settings, alice, tmp_path))
    terminal.type(log)
    counting = until(lambda: newest(alice, "count"))
    lines = until(partial(has_lines, alice, counting["id"], 1))
    # They arrive while the program runs.
    assert lines == [f"line {number}" for number in range(1, len(lines) + 1)]
    assert len(lines) < 5
    path = f"/task/{counting['id']}"
    until(lambda: alice.request("GET", path).json()["status"] == "complete")
    assert alice.request("GET", path).json()["output"] == {"sum": 15}
    terminal.type(question)
    asked = until(lambda: asking(alice, "deploy"))
    # What the button of the dashboard sends is tested with the dashboard.
    path = f"/task/{asked['id']}/question/{asked['questions'][0]['id']}/answer"
    answer = {"action": "accept", "content": {"answer": "yes"}}
    alice.request("POST", path, json=answer).raise_for_status()
    terminal.wait_for(printed)


def test_tutorial_runs_as_printed(service: Service, terminal: Terminal, tmp_path: Path) -> None:
    alice = service.add_user()

    def block(part: str, mark: str = "tutorial") -> str:
        (lines,) = blocks(TUTORIAL, f"{mark}: {part}")
        return lines

    first_lines = settings_of(block("settings"), alice, tmp_path)
    (tmp_path / "report.sh").write_text(block("report.sh"))
    with Terminal(tmp_path) as third:
        terminal.run(first_lines)
        # A program as a task.
        assert terminal.run(block("first")).splitlines()[-1] == '{"sum": 6}'
        first = newest(alice, "first")
        assert first is not None
        listed = terminal.run(block("list"))
        assert first["id"][:13] in listed
        assert listed.splitlines()[0].split() == block("listed").splitlines()[0].split()
        shown = terminal.run(block("show").replace("ID", first["id"][:13]))
        assert re.search(r'^output +\{\s*"sum": 6\s*\}', shown, re.MULTILINE)
        assert re.search(r"^\S+ .*line 3$", shown, re.MULTILINE)
        # A failure.
        assert terminal.run(block("failure")).splitlines()[-1] == "3"
        assert "failed" in terminal.run(block("failed"))
        # A question, answered from another terminal.
        terminal.type(block("report"))
        report = until(lambda: asking(alice, "weekly"))
        assert (report["progress"], report["note"]) == (1, "4 of 4 pages")
        answered = third.run(block("answer").replace("ID", report["id"][:13]))
        assert "Publish the report?" in answered
        terminal.wait_for(block("answered"))
        # A task that is cancelled.
        terminal.type(f"{block('long')}\necho exit $?")
        long = until(lambda: newest(alice, "long"))
        third.run(block("cancel").replace("ID", long["id"][:13]))
        terminal.wait_for("the task was cancelled")
        terminal.wait_for("exit 143")
        # Webhooks.
        port = str(free_port())
        receiver = block("receiver.py", "session").replace("9000", port)
        (tmp_path / "receiver.py").write_text(receiver)
        terminal.type(f"{block('receive', 'session').strip()} & OTHER=$!")
        until(lambda: not is_port_free(int(port)))
        ran = third.run(block("run", "session").replace("9000", port))
        assert '1\n2\n3\n4\n5\n{"sum": 15}' in ran
        lines = block("printed", "session").splitlines()
        terminal.wait_for(lines[-1])
        printed = re.findall(r"^(?:count|sum|fail) .*$", terminal.screen, re.MULTILINE)
        assert printed == lines
        # A worker.
        terminal.run("kill $OTHER; wait $OTHER")
        terminal.type(f"{block('worker').strip()} & OTHER=$!")
        terminal.wait_for("waiting for tasks of agent shout")
        assert '{"TEXT": "HELLO"}' in third.run(block("start"))
        terminal.run("kill $OTHER; wait $OTHER")


def test_session_with_curl_runs_as_printed(service: Service, terminal: Terminal) -> None:
    alice = service.add_user()
    variables, register, work, delete = blocks("docs/guides/http.md", "session")
    (watch,) = blocks("docs/guides/http.md", "watch")
    # Only what differs from machine to machine: the key, and the port.
    terminal.run(f"API={service.url}/api/v1\nKEY={alice.key}")
    assert variables == "API=http://127.0.0.1:8000/api/v1\nKEY=tsk_user_...\n"
    task_id = terminal.run(register).split()[-1]
    terminal.type(work)
    for number in range(1, 6):
        terminal.wait_for(f"line {number}\n")
        lines = until(partial(has_lines, alice, task_id, number))
        assert lines == [f"line {count}" for count in range(1, len(lines) + 1)]
        # They arrive while the program runs.
        assert number > 1 or len(lines) < 5
    terminal.wait_for('"output":{"sum":15}')
    watched = terminal.run(f"TASK={task_id}\n{watch}")
    assert '"status":"complete"' in watched
    assert "Task's ID is not found" in terminal.run(delete)


def has_lines(person: RemoteClient, task_id: str, count: int) -> list[str] | None:
    """The log, if it has this many lines or more."""
    lines: list[str] = person.request("GET", f"/task/{task_id}?fields=logs").json()["logs"]
    return lines if len(lines) >= count else None


def test_commands_on_the_page_of_the_api_run_as_printed(
    service: Service, subtests: pytest.Subtests
) -> None:
    if shutil.which("curl") is None:
        needs("curl", "install the package curl")
    alice = service.add_user()
    html = requests.get(f"{service.url}/docs", timeout=60).text
    variables = {"URL": service.url, "KEY": alice.key}
    commands = [code for code in Page(html).codes if code.startswith("curl ")]
    assert len(commands) > 20
    for command in commands:
        with subtests.test(command):
            # curl prints the status last.
            script = fitting(command, alice).replace("curl", "curl -sw '%{http_code}'", 1)
            printed = shown_by(script, os.environ | variables)
            while printed.endswith("409") and "is being posted" in printed:
                # On a slow machine the next attempt may be under way.
                time.sleep(0.2)
                printed = shown_by(script, os.environ | variables)
            assert re.search(r"2\d\d$", printed), printed


def shown_by(script: str, environment: dict[str, str]) -> str:
    result = subprocess.run(
        ["sh", "-c", script],
        env=environment, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    return result.stdout


def fitting(command: str, person: RemoteClient) -> str:
    """The command, with things that are there instead of those in the example."""
    person.request("PUT", "/agent/summarizer")
    if examples.TASK in command:
        if "/new-lines" in command:
            good = person.start(claim=True)
            person.request("PATCH", f"/task/{good['id']}", json={"status": "complete"})
        task = person.start(claim=True, callback=f"{person.url}/livez")
        if examples.QUESTION in command:
            # What the example of an answer answers.
            schema = {"type": "object", "properties": {"deploy": {"type": "boolean"}}}
            asked = {"message": "Deploy?", "schema": schema}
            question = person.request("POST", f"/task/{task['id']}/question", json=asked).json()
            command = command.replace(examples.QUESTION, question["id"])
        if examples.LINK in command:
            link = person.request("POST", f"/task/{task['id']}/link").json()
            command = command.replace(examples.LINK, link["id"])
        if "/events" in command or "/deliveries" in command:
            # The stream ends with the task, and a finished task has a delivery.
            person.request("POST", f"/task/{task['id']}/cancel").raise_for_status()
        return command.replace(examples.TASK, task["id"])
    if examples.HOOK in command:
        hook = person.request("POST", "/hook", json=HOOK).json()
        command = command.replace(examples.HOOK, hook["id"])
        task = person.start(claim=True)
        person.request("PATCH", f"/task/{task['id']}", json={"status": "complete"})
        [delivery] = person.request("GET", f"/hook/{hook['id']}/deliveries").json()
        return command.replace(examples.DELIVERY, delivery["id"])
    if examples.KEY in command:
        key = person.request("POST", "/key", json={"name": "another"}).json()
        return command.replace(examples.KEY, key["id"])
    if "DELETE" in command:
        person.request("PUT", "/agent/idle")
        return command.replace("/agent/summarizer", "/agent/idle")
    return command
