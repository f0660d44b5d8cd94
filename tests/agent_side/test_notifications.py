"""The guide to notifications: its commands notify a stand-in for a phone, chat or mailbox."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
import requests

from taskservice.event_kinds import DEFAULT_EVENTS, EVENTS
from tests.support.agent_machine import AgentMachine, Command, objects
from tests.support.api_client import RemoteClient
from tests.support.documents import Terminal, blocks, table
from tests.support.mail_server import MailServer
from tests.support.plain_browser import hidden_text
from tests.support.receiver import Receiver
from tests.support.service import Service, free_port

GUIDE = "docs/guides/notifications.md"


def block(part: str) -> str:
    (text,) = blocks(GUIDE, f"notifications: {part}")
    return text


@pytest.fixture
def stand_in() -> Iterator[Receiver]:
    """Instead of the servers of ntfy and of the chats; their formats have their own tests."""
    with Receiver() as receiver:
        yield receiver


def test_phone_is_told_of_a_failure(
    remote_alice: RemoteClient, agents_terminal: Terminal, stand_in: Receiver
) -> None:
    command = block("phone")
    topic = "https://ntfy.sh/backups-7Kq2vX9mTz"
    assert topic in command
    # The format follows from the public server only.
    target = f"{stand_in.url}backups-7Kq2vX9mTz --format ntfy"
    assert "204" in agents_terminal.run(command.replace(topic, target))
    agents_terminal.run(block("failure"))
    _, request = stand_in.wait_for(2)
    message = json.loads(request.body)
    assert message["topic"] == "backups-7Kq2vX9mTz"
    assert message["title"] == "backup failed"
    assert "Exit status 3" in message["message"]
    assert message["click"] == f"{remote_alice.url}/tasks/{remote_alice.the_task()['id']}"
    shown = agents_terminal.run(block("look"))
    (hook,) = remote_alice.read("/hook")
    assert hook["id"][:13] in shown
    assert "agent.broken" in shown.splitlines()[-1]


def test_page_needs_the_address_of_a_phone_only(
    remote_alice: RemoteClient, stand_in: Receiver
) -> None:
    window = requests.Session()
    sign_in, page = f"{remote_alice.url}/sign-in", f"{remote_alice.url}/notifications"
    window.post(sign_in, {**hidden_text(window.get(sign_in).text), "key": remote_alice.key})
    form = window.get(page).text
    fields = re.findall(r'name="(field\.\w+)" value="([^"]+)" checked', form)
    # The format follows from the public server only.
    fields.remove(("field.format", "&#34;&#34;"))
    fields.append(("field.format", '"ntfy"'))
    fields += [*hidden_text(form).items(), ("field.target", f"{stand_in.url}backups")]
    added = window.post(page, [(name, unescape(value)) for name, value in fields])
    assert ">Add<" in form
    assert ">Send a test<" in added.text
    tested = window.post(f"{added.url}/test", hidden_text(added.text))
    assert "The test was delivered." in tested.text
    assert json.loads(stand_in.requests[0].body)["topic"] == "backups"


def test_button_of_a_message_answers(agents_terminal: Terminal, stand_in: Receiver) -> None:
    topic = "https://ntfy.sh/deploy-Xq81LmPzR4"
    target = f"{stand_in.url}deploy-Xq81LmPzR4 --format ntfy"
    agents_terminal.type(block("answer").replace(topic, target))
    (request,) = stand_in.wait_for(1)
    message = json.loads(request.body)
    assert (message["title"], message["message"].split("\n")[0]) == (
        "deploy asks",
        "Deploy to production?",
    )
    yes, no = message["actions"]
    assert (yes["label"], no["label"]) == ("yes", "no")
    # As the app does it.
    tapped = requests.request(yes["method"], yes["url"], headers=yes["headers"], data=yes["body"])
    assert tapped.status_code == 200
    agents_terminal.wait_for("\nyes\n")


def test_own_server_gets_the_token(
    agents_terminal: Terminal, machine: AgentMachine, stand_in: Receiver, tmp_path: Path
) -> None:
    (tmp_path / "token.txt").write_text("tk_secret\n")
    command = block("own server").replace("https://ntfy.example.org/", stand_in.url)
    hook_id = agents_terminal.run(command).splitlines()[0]
    assert machine.run("hook", "test", hook_id).returncode == 0
    assert stand_in.requests[0].headers["authorization"] == "Bearer tk_secret"


def test_chats_get_a_text(
    agents_terminal: Terminal, machine: AgentMachine, stand_in: Receiver
) -> None:
    # As printed they are not sent to, since only this machine may be.
    agents_terminal.run(block("chats"))
    added = machine.user.read("/hook")
    assert [hook["format"] for hook in added] == ["slack", "slack", "slack"]
    for hook in added:
        path = f"/hook/{hook['id']}"
        changes = {"target": f"{stand_in.url}{hook['id']}"}
        machine.user.request("PATCH", path, json=changes).raise_for_status()
        assert machine.run("hook", "test", hook["id"]).returncode == 0
    for request in stand_in.requests:
        assert list(json.loads(request.body)) == ["text"]


def test_mailbox_is_told_of_a_failure(tmp_path: Path) -> None:
    lines = shlex.split(block("settings"))
    settings = dict(line.removeprefix("TASKSERVICE_").split("=", 1) for line in lines)
    with MailServer() as server:
        settings["SMTP_URL"] = server.url
        with Service(tmp_path / "data", **settings) as service:
            machine = AgentMachine(tmp_path / "home", service.add_user())
            words = block("mail").split()
            assert words[0] == "taskservice"
            assert machine.run(*words[1:]).returncode == 0
            assert machine.run("run", "--agent", "backup", "--", "false").returncode == 1
            (mail,) = server.wait_for(1)
    assert mail.message["From"] == "Tasks <tasks@example.org>"
    assert (mail.sender, mail.recipients) == ("tasks@example.org", ["ann@example.org"])
    assert mail.message["Subject"] == "backup failed: Exit status 1"
    assert "https://tasks.example.org/tasks/" in mail.text


def test_documented_runs_are_expected(
    remote_alice: RemoteClient, agents_terminal: Terminal
) -> None:
    agents_terminal.run(block("late"))
    backup, report = remote_alice.read("/agent?expand=health")
    assert backup["expect"] == {"every": 90_000, "grace": 3_600, "maxDuration": 7_200}
    cron = {"cron": "0 2 * * 1-5", "timeZone": "Europe/Berlin", "grace": 1_800}
    assert report["expect"] == cron
    assert backup["health"]["dueAt"] is not None
    assert report["health"]["dueAt"][14:16] == "00"


def test_program_is_told_as_the_guide_shows(
    machine: AgentMachine, agents_terminal: Terminal
) -> None:
    with Receiver() as local:
        agents_terminal.run(block("program").replace("9000", str(local.port)))
        machine.run("run", "--agent", "backup", "--label", "env=prod", "--", "false")
        events = [json.loads(request.body) for request in local.wait_for(2)]
        page = f"{machine.user.url}/tasks/{machine.user.the_task()['id']}"
        assert {event["type"]: event["data"]["url"] for event in events} == {
            "agent.broken": page, "task.ended": page,
        }  # fmt: skip
        machine.run("run", "--agent", "other", "--", "false")
        (hook,) = objects(machine.run("hook", "list", "--json").stdout)
        (shown,) = objects(machine.run("hook", "show", hook["id"], "--json").stdout)
    assert len(shown["deliveries"]) == 2


def test_receiver_of_webhooks_receives_events_too(machine: AgentMachine) -> None:
    (receiver,) = blocks("docs/guides/receivers.md", "receiver: python")
    lines, port = receiver.splitlines(), str(free_port())
    for name, line in zip(("verify(", "print("), block("receiver").splitlines(), strict=True):
        (place,) = (number for number, text in enumerate(lines) if name in text)
        indent = lines[place][: len(lines[place]) - len(lines[place].lstrip())]
        lines[place] = indent + line.strip()
    program = "\n".join(lines).replace("9000", port)
    secret = machine.user.read("/callback-secret")["secret"]
    process = Command(
        [sys.executable, "-c", program],
        env={**machine.environment, "CALLBACK_SECRET": secret},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        machine.run("hook", "add", f"http://127.0.0.1:{port}/", "--event", "task.failed")
        machine.run("run", "--agent", "backup", "--", "false")
        page = f"{machine.user.url}/tasks/{machine.user.the_task()['id']}"
        assert process.read_line() == f"task.failed {page}\n"
    finally:
        process.kill()
        process.communicate()


def test_documented_body_of_an_event_is_what_is_sent(
    machine: AgentMachine, stand_in: Receiver
) -> None:
    machine.run("hook", "add", f"{stand_in.url}hook", "--event", "agent.broken")
    machine.run("run", "--agent", "backup", "--", "false")
    (request,) = stand_in.wait_for(1)
    sent, documented = json.loads(request.body), json.loads(block("body"))
    assert sent.keys() == documented.keys()
    assert list(sent["data"]) == list(documented["data"])
    assert sent["data"]["agent"].keys() == documented["data"]["agent"].keys()
    assert sent["data"]["task"]["id"] == machine.user.the_task()["id"]


def test_table_has_every_event_those_told_by_default_first() -> None:
    documented = [row[0].strip("`") for row in table(GUIDE, "## Events of a hook")]
    assert set(documented) == set(EVENTS)
    assert set(documented[: len(DEFAULT_EVENTS)]) == set(DEFAULT_EVENTS)
