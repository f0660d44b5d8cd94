"""`taskservice hook`: hooks added, listed, shown, changed, tested and deleted."""

import json
import re
from typing import Any

from standardwebhooks import Webhook

from taskservice.event_kinds import DEFAULT_EVENTS
from tests.support.agent_machine import AgentMachine, objects
from tests.support.receiver import Receiver, answer, in_turn
from tests.support.waiting import until


def add(machine: AgentMachine, *arguments: str, **options: str) -> str:
    """The ID of a new hook."""
    added = machine.run("hook", "add", *arguments, **options)
    assert added.returncode == 0, added.stderr
    return added.stdout.strip()


def fail(machine: AgentMachine, agent: str) -> None:
    assert machine.run("run", "--agent", agent, "--", "false").returncode == 1


def test_added_hook_is_told_when_an_agent_breaks(machine: AgentMachine, receiver: Receiver) -> None:
    added = machine.run("hook", "add", f"{receiver.url}hook")
    hook_id = added.stdout.strip()
    assert added.stderr == f"taskservice: send a test with: taskservice hook test {hook_id}\n"
    hook = machine.user.read(f"/hook/{hook_id}")
    assert (hook["format"], hook["events"]) == ("standard", list(DEFAULT_EVENTS))
    fail(machine, "nightly")
    (webhook,) = receiver.wait_for(1)
    secret = machine.user.read("/callback-secret")["secret"]
    event = Webhook(secret).verify(webhook.body, webhook.headers)
    assert (event["type"], event["data"]["agent"]["id"]) == ("agent.broken", "nightly")
    until(lambda: "delivered" in machine.run("hook", "show", hook_id).stdout.splitlines()[-1])
    header, row = machine.run("hook", "list").stdout.splitlines()
    assert header.split("  ")[0] == "ID"
    name = f"127.0.0.1:{receiver.port}/hook"
    assert row.split()[:6] == [hook_id[:13], "active", name, "-", "standard", "default"]
    (listed,) = objects(machine.run("hook", "list", "--json").stdout)
    assert listed["lastDeliveredAt"] is not None


def test_options_say_what_is_told_and_how(machine: AgentMachine, receiver: Receiver) -> None:
    for agent_id in ("reader", "reviewer"):
        machine.user.register(agent_id)
    options = ["--name", "Phone", "--format", "ntfy", "--event", "task.ended", "--event"]
    options += ["task.asks", "--agent", "read", "--label", "env=prod", "--answer-links", "--json"]
    options += ["--after", "3"]
    target = f"{receiver.url}alerts"
    (hook,) = objects(add(machine, target, *options, "--token-file", "-", input="tk_from_stdin\n"))
    (shown,) = objects(machine.run("hook", "show", hook["id"], "--json").stdout)
    assert shown == hook | {"deliveries": []}
    fields = {
        "name": "Phone", "target": target, "format": "ntfy", "events": ["task.ended", "task.asks"],
        "agentId": "reader", "label": "env:prod", "answerLinks": True,
        "after": 3,
    }  # fmt: skip
    assert hook | fields == hook
    file = machine.home / "token.txt"
    file.write_text("tk_from_file\n")
    other = add(machine, f"{target}-2", "--format", "ntfy", "--token-file", str(file))
    for hook_id, token, topic in (
        (hook["id"], "tk_from_stdin", "alerts"),
        (other, "tk_from_file", "alerts-2"),
    ):
        assert machine.run("hook", "test", hook_id).returncode == 0
        *_, request = receiver.requests
        assert request.headers["authorization"] == f"Bearer {token}"
        assert json.loads(request.body)["topic"] == topic


def test_agent_that_does_not_exist_is_named_with_similar_ones(
    machine: AgentMachine, receiver: Receiver
) -> None:
    machine.user.register("summarizer")
    added = machine.run("hook", "add", receiver.url, "--agent", "sumarizer")
    first = "no agent sumarizer is registered yet; did you mean summarizer?"
    assert added.stderr.splitlines()[0] == f"taskservice: {first}"
    hook = machine.user.read(f"/hook/{added.stdout.strip()}")
    assert hook["agentId"] == "sumarizer"


def test_wrong_hook_is_refused_in_one_line(machine: AgentMachine, receiver: Receiver) -> None:
    for arguments, reason in (
        (["http://169.254.169.254/"], "target: "),
        (["mailto:ann@example.org"], "SMTP_URL"),
        ([receiver.url, "--format", "ntfy"], "topic"),
    ):
        assert reason in machine.fail("hook", "add", *arguments)
    assert machine.run("hook", "add", receiver.url, "--event", "task.started").returncode == 2
    assert machine.run("hook", "add", receiver.url, "--token-file", "/nowhere").returncode == 2
    assert objects(machine.run("hook", "list", "--json").stdout) == []


def test_agent_key_is_told_that_hooks_need_a_user_key(
    machine: AgentMachine, receiver: Receiver
) -> None:
    machine.user.register("reader")
    fields = {"name": "machine", "agentId": "reader"}
    machine.key = machine.user.request("POST", "/key", json=fields).json()["key"]
    for arguments in (["add", receiver.url], ["list"], ["show", "01"]):
        assert "user key" in machine.fail("hook", *arguments)


def test_test_says_what_happened(machine: AgentMachine, receiver: Receiver) -> None:
    receiver.answer = in_turn(answer(204), answer(500), answer(500))
    first, second, third = (add(machine, f"{receiver.url}hook{number}") for number in range(3))
    done = machine.run("hook", "test", first)
    assert (done.returncode, done.stderr) == (0, "")
    assert "204" in done.stdout
    failed = machine.run("hook", "test", second)
    assert (failed.returncode, failed.stderr) == (1, "")
    assert "500" in failed.stdout
    failed = machine.run("hook", "test", third, "--json")
    assert failed.returncode == 1
    (outcome,) = objects(failed.stdout)
    assert (outcome["delivered"], outcome["statusCode"]) == (False, 500)
    refused = machine.fail("hook", "test", third)
    assert "A test was sent to this address less than 10 s ago" in refused


def test_hook_that_was_turned_off_says_why_and_is_turned_on(
    machine: AgentMachine, receiver: Receiver
) -> None:
    receiver.answer = in_turn(answer(410), answer(204))
    hook_id = add(machine, f"{receiver.url}hook", "--event", "task.failed")
    fail(machine, "gone")
    until(lambda: " off " in machine.run("hook", "list").stdout)
    _, row = machine.run("hook", "list").stdout.splitlines()
    assert "410" in row
    shown = machine.run("hook", "show", hook_id).stdout.splitlines()
    assert re.search("^state +off$", "\n".join(shown), re.MULTILINE)
    (reason,) = (line for line in shown if line.startswith("reason "))
    assert "410" in reason
    assert " task.failed " in shown[-1]
    assert " failed " in shown[-1]
    assert "410" in shown[-1]
    # Nothing is sent while it is off.
    fail(machine, "gone")
    assert machine.run("hook", "on", hook_id).stdout == f"{hook_id} is on\n"
    fail(machine, "gone")
    receiver.wait_for(2)
    states = machine.run("hook", "show", hook_id, "--json").stdout
    (hook,) = objects(states)
    assert (hook["state"], hook["reason"], len(hook["deliveries"])) == ("active", None, 2)


def test_hook_is_found_by_the_beginning_of_its_id(
    machine: AgentMachine, receiver: Receiver
) -> None:
    first, second = (add(machine, f"{receiver.url}{name}") for name in ("one", "two"))
    # It begins with the digits of the time.
    assert f"Several IDs match {first[:4]}, such as {first} and {second}" in machine.fail(
        "hook", "delete", first[:4], code=2
    )
    for unknown in ("ffff", "no-id", ""):
        result = machine.run("hook", "show", unknown)
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr == f"taskservice: No hook matches {unknown}".rstrip() + "\n"
    assert machine.run("hook", "delete", first[:18].upper()).stdout == f"{first} is deleted\n"
    (left,) = objects(machine.run("hook", "list", "--json").stdout)
    assert left["id"] == second
    (deleted,) = objects(machine.run("hook", "delete", second, "--json").stdout)
    assert deleted == left


def test_hook_is_turned_off_and_on(machine: AgentMachine, receiver: Receiver) -> None:
    hook_id = add(machine, f"{receiver.url}hook")
    assert machine.run("hook", "off", hook_id[:18]).stdout == f"{hook_id} is off\n"
    assert machine.user.read(f"/hook/{hook_id}")["state"] == "off"
    (hook,) = objects(machine.run("hook", "on", hook_id, "--json").stdout)
    assert hook["state"] == "active"
    (hook,) = objects(machine.run("hook", "off", hook_id, "--json").stdout)
    assert (hook["state"], hook["reason"]) == ("off", None)


def test_only_what_is_named_is_edited(machine: AgentMachine, receiver: Receiver) -> None:
    for agent_id in ("reader", "reviewer"):
        machine.user.register(agent_id)
    options = ["--name", "Phone", "--format", "ntfy", "--event", "task.ended", "--answer-links"]
    hook_id = add(machine, f"{receiver.url}alerts", *options, "--agent", "read", "--label", "a=b")

    def edit(*arguments: str, **settings: str) -> dict[str, Any]:
        """The hook before and after, without what has not changed."""
        before = machine.user.read(f"/hook/{hook_id}")
        edited = machine.run("hook", "edit", hook_id[:18], *arguments, **settings)
        assert edited.stdout == f"{hook_id} is changed\n", edited.stderr
        after = machine.user.read(f"/hook/{hook_id}")
        return {name: value for name, value in after.items() if before[name] != value}

    assert edit("--name", "Ann's phone") == {"name": "Ann's phone"}
    events = ["agent.broken", "task.asks"]
    assert edit("--event", events[0], "--event", events[1]) == {"events": events}
    assert edit("--agent", "revi", "--label", "a=c") == {"agentId": "reviewer", "label": "a:c"}
    assert edit("--agent", "", "--label", "") == {"agentId": None, "label": None}
    assert edit("--no-answer-links") == {"answerLinks": False}
    assert edit("--target", f"{receiver.url}nights") == {"target": f"{receiver.url}nights"}
    assert edit("--token-file", "-", input="tk_new\n") == {}
    assert machine.run("hook", "test", hook_id).returncode == 0
    *_, request = receiver.requests
    assert request.headers["authorization"] == "Bearer tk_new"
    assert json.loads(request.body)["topic"] == "nights"
    assert edit("--format", "standard") == {"format": "standard"}
    assert "at least one option" in machine.run("hook", "edit", hook_id).stderr
    assert "target: " in machine.fail(
        "hook", "edit", hook_id, "--target", "http://169.254.169.254/"
    )
