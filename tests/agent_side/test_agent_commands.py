"""`taskservice agent`: agents listed, registered and deleted."""

import json
import re

from taskservice.database import clock
from taskservice.terminal import local_time, with_offset
from tests.support.agent_machine import AgentMachine, objects
from tests.support.pseudo_terminal import NASTY, SHOWN, obeyed, on_terminal


def test_add_registers_and_changes(machine: AgentMachine) -> None:
    added = machine.run("agent", "add", "added-agent")
    assert (added.stdout, added.stderr) == ("added-agent is registered\n", "")
    assert machine.user.read("/agent/added-agent")["name"] == "added-agent"
    machine.run("agent", "add", "added-agent", "--name", "Other", "--description", "Does it.")
    changed = machine.user.read("/agent/added-agent")
    assert (changed["name"], changed["description"]) == ("Other", "Does it.")
    refused = machine.run("agent", "add", "B@D")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert len(refused.stderr.splitlines()) == 1


def test_add_takes_the_schema_of_the_input_and_the_hints_of_a_tool(machine: AgentMachine) -> None:
    schema = {"type": "object", "properties": {"day": {"type": "string"}}, "required": ["day"]}
    (machine.home / "input.json").write_text(json.dumps(schema))
    file = f"@{machine.home / 'input.json'}"
    machine.run("agent", "add", "checked", "--input-schema", file, "--no-tool")
    machine.run("agent", "add", "checked", "--annotations", '{"readOnlyHint": true}')
    (agent,) = (
        agent
        for agent in objects(machine.run("agent", "list", "--json").stdout)
        if agent["id"] == "checked"
    )
    assert (agent["inputSchema"], agent["tool"]) == (schema, False)
    assert agent["annotations"]["readOnlyHint"]
    machine.run("agent", "add", "checked", "--tool")
    assert machine.user.read("/agent/checked")["tool"]
    refused = machine.run("task", "start", "--agent", "checked", "--input", '{"day": 1}')
    assert refused.returncode == 1
    assert "input.day: Must be a string." in refused.stderr
    refused = machine.run("agent", "add", "checked", "--input-schema", '{"type": "array"}')
    assert refused.returncode == 1
    assert 'Must have "type": "object".' in refused.stderr


def test_add_takes_when_runs_are_expected(machine: AgentMachine) -> None:
    def expected() -> object:
        return machine.user.read("/agent/expected")["expect"]

    machine.run("agent", "add", "expected", "--every", "25h")
    assert expected() == {"every": 90_000, "grace": 3_600}
    (row,) = (
        line
        for line in machine.run("agent", "list").stdout.splitlines()
        if line.startswith("expected ")
    )
    agent = machine.user.read("/agent/expected?expand=health")
    assert row.endswith(f"  {local_time(agent['health']['dueAt'])}")
    machine.run("agent", "add", "expected", "--name", "Still expected")
    assert expected() is not None
    cron = ("--cron", "0 2 * * 1-5", "--time-zone", "Europe/Berlin", "--grace", "30m")
    zone = {"timeZone": "Europe/Berlin", "grace": 1_800}
    machine.run("agent", "add", "expected", *cron, "--max-duration", "2h")
    assert expected() == {"cron": "0 2 * * 1-5", **zone, "maxDuration": 7_200}
    # Each of the two keeps the other.
    machine.run("agent", "add", "expected", "--max-duration", "1h")
    assert expected() == {"cron": "0 2 * * 1-5", **zone, "maxDuration": 3_600}
    machine.run("agent", "add", "expected", "--every", "25h")
    assert expected() == {"every": 90_000, "grace": 3_600, "maxDuration": 3_600}
    for wrong, message in (
        ("--cron", "expect: cron: Not a cron expression of five fields: Wrong number of fields."),
        ("--time-zone", "expect: timeZone: Only allowed with `cron`."),
    ):
        refused = machine.run("agent", "add", "expected", wrong, "daily")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr == f"taskservice: {message}\n"
    machine.run("agent", "add", "expected", "--every", "0")
    assert expected() is None


def test_agent_is_muted_shown_and_unmuted(machine: AgentMachine) -> None:
    machine.user.write("PUT", "/agent/loud-agent", name=NASTY)
    muted = machine.run("agent", "mute", "loud", "8h")
    agent = machine.user.read("/agent/loud-agent")
    assert (muted.returncode, muted.stderr) == (0, "")
    assert muted.stdout == f"loud-agent is muted until {local_time(agent['mutedUntil'])}\n"
    assert clock.now(7.9 * 3_600) < agent["mutedUntil"] <= clock.now(8 * 3_600)
    lines = machine.run("agent", "show", "loud").stdout.splitlines()
    shown = dict(re.split("  +", line, maxsplit=1) for line in lines)
    assert shown["muted until"] == with_offset(agent["mutedUntil"])
    assert shown["muted by"] == agent["mutedBy"]
    assert shown["name"] == SHOWN
    assert shown["state"] == "-"
    (as_json,) = objects(machine.run("agent", "show", "loud", "--json").stdout)
    assert as_json == machine.user.read("/agent/loud-agent?expand=health")
    assert machine.run("agent", "unmute", "loud").stdout == "loud-agent is not muted\n"
    assert machine.user.read("/agent/loud-agent")["mutedUntil"] is None
    for wrong in ("0s", "91d", "8", "soon"):
        assert machine.run("agent", "mute", "loud", wrong).returncode == 2
    assert machine.run("agent", "mute", "unknown", "8h").returncode == 1


def test_list_says_how_the_last_tasks_went(machine: AgentMachine) -> None:
    for status in ("complete", "error"):
        task = machine.user.start("listed-agent", claim=True)
        end = {"status": status} | ({"error": {"message": "no"}} if status == "error" else {})
        machine.user.report(task, **end)
    machine.user.write("PUT", "/agent/unused-agent", name=NASTY)
    header, *rows = machine.run("agent", "list").stdout.splitlines()
    assert header.split("  ")[0] == "ID"
    shown = {row.split()[0]: row for row in rows}
    assert shown["listed-agent"].split()[2:5] == ["broken", "50%", "2"]
    assert shown["listed-agent"].split()[-2:] == ["s", "-"]
    assert shown["unused-agent"].split()[-6:] == ["-", "-", "0", "-", "-", "-"]
    listed = objects(machine.run("agent", "list", "--json").stdout)
    agents = {agent["id"]: agent for agent in listed}
    assert agents["listed-agent"]["health"]["successRate"] == 0.5
    wide = machine.environment | {"COLUMNS": "200", "NO_COLOR": "1"}
    terminal = on_terminal([*machine.command, "agent", "list"], wide)
    assert obeyed(terminal) == []
    assert SHOWN in terminal


def test_list_counts_and_rounds_as_the_dashboard_does(machine: AgentMachine) -> None:
    # One more was cancelled. The dashboard says the same of these: see tests/dashboard.
    for agent_id, complete, failed, shown_rate in (
        ("two-of-three", 2, 1, ["ok", "67%", "3"]),
        ("none-of-two", 0, 2, ["broken", "0%", "2"]),
    ):
        ends = ["complete"] * complete + ["error"] * failed
        for task in [machine.user.start(agent_id, claim=True) for _ in ends]:
            report = {"status": ends.pop()}
            machine.user.report(task, **report)
        task = machine.user.start(agent_id)
        machine.user.cancel(task)
        lines = machine.run("agent", "list").stdout.splitlines()
        (row,) = [line.split() for line in lines if line.startswith(agent_id)]
        assert row[1:4] == shown_rate


def test_delete_takes_the_beginning_of_an_id(machine: AgentMachine) -> None:
    for agent_id in ("twin", "twin-one", "twin-two", "busy"):
        machine.user.register(agent_id)
    several = machine.run("agent", "delete", "twin-")
    assert (several.returncode, several.stdout) == (2, "")
    assert several.stderr == "taskservice: Several agents match twin-: twin-one, twin-two\n"
    assert machine.run("agent", "delete", "twin").stdout == "twin is deleted\n"
    assert machine.run("agent", "delete", "twin-o").stdout == "twin-one is deleted\n"
    unknown = machine.run("agent", "delete", "nobody")
    assert (unknown.returncode, unknown.stderr) == (1, "taskservice: There is no agent nobody\n")
    machine.user.start("busy")
    busy = machine.run("agent", "delete", "busy")
    assert busy.returncode == 1
    assert "tasks" in busy.stderr


def test_tasks_are_started_and_listed_by_the_beginning_of_an_agents_id(
    machine: AgentMachine,
) -> None:
    for agent_id in ("mail-reader", "mail-sorter"):
        machine.user.register(agent_id)
    (task,) = objects(machine.run("task", "start", "--agent", "mail-r", "--json").stdout)
    assert task["agentId"] == "mail-reader"
    several = machine.run("task", "start", "--agent", "mail")
    assert several.returncode == 2
    assert "Several agents match mail: mail-reader, mail-sorter" in several.stderr
    listed = objects(machine.run("task", "list", "--agent", "mail-r", "--json").stdout)
    assert [task["id"] for task in listed] == [task["id"]]
    assert objects(machine.run("task", "list", "--agent", "mail-s", "--json").stdout) == []
    # Another agent may have such an ID.
    machine.run("run", "--agent", "mail-r", "--", "true")
    registered = [agent["id"] for agent in machine.user.read("/agent")]
    assert {"mail-r", "mail-reader", "mail-sorter"} <= set(registered)


def test_list_as_json_has_the_numbers_of_the_outputs(machine: AgentMachine) -> None:
    task = machine.user.start("counted", claim=True)
    report = {"status": "complete", "output": {"usage": {"tokens": 1_843}}}
    machine.user.report(task, **report)
    agents = objects(machine.run("agent", "list", "--json").stdout)
    numbers = {agent["id"]: agent["numbers"] for agent in agents}
    assert numbers["counted"] == [{"path": "usage.tokens", "last": 1_843, "count": 1}]
