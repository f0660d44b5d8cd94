"""From the dashboard to a phone and back: a real ntfy, and a script that asks."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import Browser, expect

from tests.support.agent_machine import AgentMachine, Command, change_rows
from tests.support.api_client import RemoteClient
from tests.support.browser import Visitor, check_accessible
from tests.support.permission_prompts import CLAUDE, CODEX, decision
from tests.support.readiness import is_up
from tests.support.receiver import Receiver, answer
from tests.support.requirements import needs
from tests.support.service import Service, free_port
from tests.support.waiting import PATIENCE_SECONDS, until


@pytest.fixture(scope="module")
def ntfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server of ntfy."""
    program = shutil.which("ntfy") or needs("ntfy", "install the package ntfy")
    url = f"http://127.0.0.1:{free_port()}"
    folder = tmp_path_factory.mktemp("ntfy")
    (folder / "server.yml").touch()
    options = ["--config", "server.yml", "--cache-file", "cache.db", "--base-url", url]
    # Otherwise it refuses requests of this machine after the first sixty.
    options += ["--visitor-request-limit-exempt-hosts", "127.0.0.1"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [program, "serve", *options, "--listen-http", url.removeprefix("http://")],
            cwd=folder, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        until(lambda: is_up(f"{url}/v1/health"))
        yield url
    finally:
        server.kill()
        server.wait(PATIENCE_SECONDS)


@pytest.fixture
def machine(alice: RemoteClient, tmp_path: Path) -> Iterator[AgentMachine]:
    machine = AgentMachine(tmp_path / "home", alice)
    yield machine
    machine.kill_left()


def message(topic: str, number: int) -> dict[str, Any]:
    """A message of a topic, as the phone has it, as soon as it is there; the first is 1."""
    stream = requests.get(f"{topic}/json?since=all", stream=True, timeout=PATIENCE_SECONDS)
    with stream as response:
        told = (json.loads(line) for line in response.iter_lines(chunk_size=1))
        messages = (event for event in told if event["event"] == "message")
        return dict(next(islice(messages, number - 1, None)))


def add(visitor: Visitor, topic: str) -> None:
    """Add a notification of a phone, as a newcomer does: with an address and no documents."""
    page = visitor.go()
    page.get_by_role("link", name="Notifications").click()
    page.get_by_role("textbox", name="Address").fill(topic)
    page.get_by_label("Phone").check()
    page.get_by_text("More:").click()
    page.get_by_role("group", name="Answer links").get_by_label("Yes").check()
    page.get_by_role("button", name="Add").click()
    page.get_by_role("button", name="Send a test").click()
    expect(page.get_by_text("The test was delivered.")).to_be_visible()


def test_form_recognizes_the_format_while_the_address_is_typed(
    visitor: Visitor, alice: RemoteClient
) -> None:
    page = visitor.go("/notifications")
    address = page.get_by_role("textbox", name="Address")
    slack = "https://hooks.slack.com/services/T0/B0/x"
    for text, kind in (
        ("https://ntfy.sh/alerts", ": Phone (ntfy)"),
        ("https://discord.com/api/webhooks/1/x/slack", ": Chat (Slack, Mattermost or Discord)"),
        ("https://example.org/hook", ": Program (signed webhooks)"),
        ("https://", ""),
        # This service sends none.
        ("ann@example.org", ""),
        (slack, ": Chat (Slack, Mattermost or Discord)"),
    ):
        address.fill(text)
        expect(page.get_by_label(f"By the address{kind}", exact=True)).to_be_checked()
    check_accessible(page)
    page.get_by_role("button", name="Add").click()
    expect(page.get_by_role("heading", name="hooks.slack.com/B0")).to_be_visible()
    (hook,) = alice.request("GET", "/hook").json()
    assert (hook["format"], hook["target"]) == ("slack", slack)


def test_phone_is_told_of_a_failure_and_answers_a_script(
    chromium: Browser, service: Service, alice: RemoteClient, machine: AgentMachine, ntfy: str
) -> None:
    visitor = Visitor(chromium, service.url)
    visitor.sign_in(alice.key)
    add(visitor, f"{ntfy}/nights")
    assert message(f"{ntfy}/nights", 1)["title"]
    assert machine.run("run", "--agent", "backup", "--", "sh", "-c", "exit 3").returncode == 3
    failure = message(f"{ntfy}/nights", 2)
    assert failure["title"] == "backup failed"
    assert "Exit status 3" in failure["message"]
    visitor.page.goto(failure["click"])
    expect(visitor.page.get_by_role("heading", name="backup")).to_be_visible()

    # For the same topic, this one would wait until half a minute has passed.
    add(visitor, f"{ntfy}/questions")
    ask = [sys.executable, "-m", "taskservice", "ask", "Deploy?", "--choice=yes", "--choice=no"]
    script = machine.spawn("run", "--agent", "deploy", "--", *ask)
    question = message(f"{ntfy}/questions", 2)
    assert "Deploy?" in question["message"]
    (yes,) = (action for action in question["actions"] if action["label"] == "yes")
    assert yes["action"] == "http"
    pressed = requests.request(
        yes["method"], yes["url"], headers=yes.get("headers"), data=yes.get("body"), timeout=30
    )
    assert pressed.ok, pressed.text
    printed, _ = script.communicate(timeout=PATIENCE_SECONDS)
    assert script.returncode == 0
    assert printed.splitlines()[-1] == "yes"
    visitor.close()


def prompted(machine: AgentMachine, prompt: dict[str, Any], *options: str) -> Command:
    """The hook of a coding agent that shows this permission prompt."""
    machine.settings["CLAUDECODE"] = "1"
    process = machine.spawn("approve", *options, stdin=subprocess.PIPE)
    process.stdin.write(json.dumps(prompt))
    process.stdin.close()
    process.stdin = None  # type: ignore[assignment]
    return process


def notify_of_questions(person: RemoteClient, topic: str) -> None:
    hook = {"format": "ntfy", "answerLinks": True, "events": ["task.asks"]}
    person.write("POST", "/hook", target=topic, **hook)


def tap(button: dict[str, Any]) -> requests.Response:
    """What the app does when somebody taps a button of a message."""
    return requests.request(
        button["method"], button["url"], headers=button["headers"], data=button["body"]
    )


@pytest.mark.parametrize(("agent", "prompt"), [("claude-code", CLAUDE), ("codex", CODEX)])
def test_tap_on_the_phone_answers_a_coding_agent(
    alice: RemoteClient, machine: AgentMachine, ntfy: str, agent: str, prompt: dict[str, Any]
) -> None:
    topic = f"{ntfy}/{agent}"
    notify_of_questions(alice, topic)
    process = prompted(machine, prompt)
    question = message(topic, 1)
    assert question["title"] == f"{agent} asks"
    assert "rm -rf build" in question["message"]
    allow, deny = question["actions"]
    assert (allow["label"], deny["label"]) == ("allow", "deny")
    assert tap(allow).ok
    printed, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert decision(printed) == {"behavior": "allow"}
    assert tap(deny).status_code == 404


@pytest.mark.parametrize("length", [1_500, 3_900, 20_000], ids=("whole", "long", "cut before"))
def test_phone_allows_only_what_it_shows(
    visitor: Visitor, alice: RemoteClient, machine: AgentMachine, ntfy: str, length: int
) -> None:
    topic = f"{ntfy}/shown-{length}"
    notify_of_questions(alice, topic)
    lines = [f"rm -f build/{number:04}" for number in range(length // 18)]
    command = "\n".join([*lines, "git push --force origin main"])
    process = prompted(machine, CLAUDE | {"tool_input": {"command": command}})
    question = message(topic, 1)
    assert "attachment" not in question
    labels = [button["label"] for button in question["actions"]]
    if length == 1_500:
        assert command in question["message"]
        assert labels == ["allow", "deny"]
    else:
        assert "\n".join(lines[:90]) in question["message"]
        assert "… (cut; open the link to read all of it)\n" in question["message"]
        assert labels == ["Open"]
        visitor.page.goto(question["actions"][0]["url"])
        expect(visitor.page.locator(".question")).to_contain_text("git push --force origin main")
    process.kill()


def test_tap_after_the_timeout_allows_nothing(
    service: Service, alice: RemoteClient, machine: AgentMachine, ntfy: str
) -> None:
    notify_of_questions(alice, f"{ntfy}/late")
    process = prompted(machine, CLAUDE)
    allow, _ = message(f"{ntfy}/late", 1)["actions"]
    # Only now, since the message has buttons only while the question is open.
    change_rows(service, "UPDATE questions SET expires_at = asked_at WHERE state = 'open'")
    printed, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, printed) == (0, "")
    tapped = tap(allow)
    assert tapped.status_code == 404
    assert "The link has expired" in tapped.text
    (task,) = alice.tasks()
    assert (task["status"], task["output"]) == ("complete", {"state": "expired"})


def test_page_of_a_hook_is_short_on_a_phone(visitor: Visitor, alice: RemoteClient) -> None:
    with Receiver(answer=answer(500, body=b"The queue is full. " * 60)) as receiver:
        fields = {"target": receiver.url, "events": ["task.ended"]}
        hook = alice.request("POST", "/hook", json=fields).json()
        for number in range(30):
            task = alice.start(f"import-of-the-orders-of-the-night-{number}", claim=True)
            alice.report(task, status="error", error={"message": "The disk is full. " * 30})
        path = f"/hook/{hook['id']}/deliveries"
        until(lambda: all(row["attempts"] for row in alice.request("GET", path).json()))
    page = visitor.page
    page.set_viewport_size({"width": 390, "height": 844})
    visitor.go(f"/notifications/{hook['id']}")
    expect(page.get_by_text("10 older")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollHeight") < 6_000
    check_accessible(page)
