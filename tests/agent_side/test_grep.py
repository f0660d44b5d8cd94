"""`taskservice grep` and `taskservice task new-lines`: what they print, and their exit statuses."""

from typing import Any
from uuid import uuid4

from tests.support import receiver as play
from tests.support.agent_machine import AgentMachine, objects
from tests.support.api_client import RemoteClient
from tests.support.receiver import Exchange, Receiver
from tests.support.service import free_port
from tests.support.service_answers import PROBLEM


def with_log(person: RemoteClient, *lines: str, agent_id: str = "backup", **report: Any) -> str:
    task = person.start(agent_id, claim=True, labels={"env": agent_id})
    path = f"/task/{task['id']}"
    person.request("POST", f"{path}/logs", json={"logs": list(lines)}).raise_for_status()
    person.request("PATCH", path, json=report).raise_for_status()
    return str(task["id"])


FAILED: dict[str, Any] = {"status": "error", "error": {"message": "no"}}


def test_grep_prints_each_line_with_its_task(machine: AgentMachine) -> None:
    first = with_log(machine.user, "one", "Disk full: 50%", "disk again", **FAILED)
    second = with_log(machine.user, "no\tdisk é", agent_id="report")
    shown = machine.run("grep", "disk")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.splitlines() == [
        f"{second}:1: no\tdisk é",
        f"{first}:2: Disk full: 50%",
        f"{first}:3: disk again",
    ]
    as_json = objects(machine.run("grep", "disk", "--json").stdout)
    path = "/search?text=disk&limit=1000"
    assert as_json == machine.user.read(path)["hits"]
    for options in (["--agent", "bac"], ["--label", "env=backup"], ["--failed"]):
        assert machine.run("grep", "disk", *options).stdout.splitlines() == [
            f"{first}:2: Disk full: 50%",
            f"{first}:3: disk again",
        ]
    assert machine.run("grep", "disk", "--since", "0d").returncode == 1
    limited = machine.run("grep", "i", "--limit", "2", "--since", "1h")
    assert (limited.returncode, len(limited.stdout.splitlines())) == (0, 2)


def test_grep_continues_and_waits_while_too_many_search(
    machine: AgentMachine, receiver: Receiver
) -> None:
    task = with_log(machine.user, *(f"hit {number}" for number in range(1, 1_102)))
    full = play.answer(503, {**PROBLEM, "Retry-After": "1"}, b"{}")

    def pass_on(exchange: Exchange) -> None:
        if len(receiver.requests) == 2:
            full(exchange)
            return
        answer = machine.user.request("GET", exchange.request.path.removeprefix("/api/v1"))
        names = ("Content-Type", "Link")
        headers = {name: answer.headers[name] for name in names if name in answer.headers}
        play.answer(answer.status_code, headers, answer.content)(exchange)

    receiver.answer = pass_on
    machine.url = receiver.url
    shown = machine.run("grep", "hit")
    assert (shown.returncode, len(receiver.requests)) == (0, 3)
    expected = [f"{task}:{number}: hit {number}" for number in range(1, 1_102)]
    assert shown.stdout.splitlines() == expected


def test_grep_has_exit_codes(machine: AgentMachine) -> None:
    with_log(machine.user, "one")
    nothing = machine.run("grep", "two")
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (1, "", "")
    for arguments in (["x" * 201], [""], ["one", "--agent", "NOT one"], ["one", "--limit", "0"]):
        wrong = machine.run("grep", *arguments)
        assert (wrong.returncode, wrong.stdout) == (2, "")
    machine.key += "x"
    assert machine.run("grep", "one").returncode == 2


def test_both_have_an_exit_code_without_a_service(machine: AgentMachine) -> None:
    machine.give_up_soon()
    machine.url = f"http://127.0.0.1:{free_port()}"
    assert machine.run("grep", "one").returncode == 69
    assert machine.run("task", "new-lines", str(uuid4())).returncode == 69


def test_new_lines_are_printed(machine: AgentMachine) -> None:
    first = with_log(machine.user, "page 1", "boom", **FAILED)
    nothing = machine.run("task", "new-lines", first)
    assert (nothing.returncode, nothing.stdout) == (1, "")
    good = with_log(machine.user, "page 1", status="complete")
    failed = with_log(machine.user, "page 2", "boom", **FAILED)
    shown = machine.run("task", "new-lines", failed)
    assert (shown.returncode, shown.stdout) == (0, "2: boom\n")
    assert good in shown.stderr
    as_json = objects(machine.run("task", "new-lines", failed, "--against", first, "--json").stdout)
    assert as_json == [machine.user.read(f"/task/{failed}/new-lines?against={first}")]
