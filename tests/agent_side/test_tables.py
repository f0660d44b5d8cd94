"""Tables of the commands: at most as wide as the terminal, with what matters, and in colour."""

import re

import pytest

from tests.support.agent_machine import AgentMachine, change_rows, objects
from tests.support.pseudo_terminal import on_terminal
from tests.support.service import Service

WIDTHS = (80, 100, 200)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
REASON = "The disk is full: /var/backups has 12 MiB left, of which none can be used"
SECRET = "Xy7Rq2ZpLm4Tn8Wv"


@pytest.fixture
def night(machine: AgentMachine) -> AgentMachine:
    """Tasks, an agent in trouble, a question and a hook."""
    user = machine.user
    labels = {"env": "production", "region": "eu-central-1"}
    for agent_id, name in (("etl-orders", "nightly load"), ("backup", "of the database")):
        task = user.start(agent_id, claim=True, name=name, labels=labels)
        user.request("POST", f"/task/{task['id']}/logs", json={"logs": ["one", "disk"]})
        user.report(task, status="error", error={"message": f"{REASON}\nmore"})
    asking = user.start("release", claim=True, name="release 2.1 of the shop")
    question = {"message": "Deploy to production? The tests of three modules were skipped."}
    user.request("POST", f"/task/{asking['id']}/question", json=question).raise_for_status()
    target = f"https://hooks.slack.com/services/T00000000/B024BE7LH/{SECRET}"
    user.request("POST", "/hook", json={"target": target}).raise_for_status()
    named = {"target": f"https://ntfy.sh/{SECRET}", "name": "the phone of ann"}
    user.request("POST", "/hook", json=named).raise_for_status()
    return machine


def at_width(machine: AgentMachine, width: int, *command: str) -> list[str]:
    """The lines that a terminal shows of a table, without colours; none is too long."""
    environment = machine.environment | {"COLUMNS": str(width)}
    shown = on_terminal([*machine.command, *command], environment)
    assert COLOUR.search(shown)
    lines = COLOUR.sub("", shown).splitlines()
    assert max(map(len, lines)) <= width
    assert "\x1b" not in on_terminal([*machine.command, *command], environment | {"NO_COLOR": "1"})
    return lines


def test_list_of_tasks_keeps_names_and_reasons(night: AgentMachine) -> None:
    columns = {
        80: "ID STATUS STARTED AGENT NAME NOTE",
        100: "ID STATUS STARTED AGENT NAME NOTE",
        200: "ID STATUS STARTED TOOK LINES AGENT NAME NOTE LABELS",
    }
    for width in WIDTHS:
        header, asks, backup, orders, *omitted = at_width(night, width, "task", "list")
        assert header.split() == columns[width].split()
        # A column that does not fit is named, so that nobody takes the table for all there is.
        not_shown = "Not shown: TOOK, LINES, LABELS (--json prints all)"
        assert omitted == ([] if width == 200 else [not_shown])
        assert "  etl-orders  nightly load" in orders
        assert "  backup      of the data" in backup
        assert f"  {REASON[:11]}" in orders
        assert "  asks: Deploy" in asks
    piped = night.run("task", "list").stdout.splitlines()
    assert piped[0].split() == columns[200].split()
    assert "env=production region=eu-central-1" in piped[2]


def test_status_has_short_ids_and_its_texts(night: AgentMachine) -> None:
    ids = {task["agentId"]: task["id"][:13] for task in night.user.tasks()}
    for width in WIDTHS:
        header, asks, *broken = at_width(night, width, "status")
        assert header.split() == ["KIND", "SINCE", "AGENT", "TASK", "TEXT"]
        assert f"  release     {ids['release']}  Deploy to production? " in asks
        assert [line.split()[0] for line in broken] == ["broken", "broken"]
        assert f"  etl-orders  {ids['etl-orders']}  The last task " in broken[0]
    environment = night.environment | {"COLUMNS": "80"}
    shown = on_terminal([*night.command, "status"], environment)
    assert "\x1b[33mquestion\x1b[0m" in shown
    assert shown.count("\x1b[31mbroken\x1b[0m") == 2
    assert objects(night.run("status", "--json").stdout) == night.user.read("/attention")


def test_what_hangs_is_late_or_muted_is_marked(
    night: AgentMachine, shared_service: Service
) -> None:
    task = night.user.start("poll", claim=True)
    hangs = "SET hanging_since = updated_at, hanging_reason = 'hangs' WHERE agent_id = 'poll'"
    change_rows(shared_service, f"UPDATE tasks {hangs}")
    late = "SET late_since = created_at WHERE id IN ('poll', 'backup')"
    change_rows(shared_service, f"UPDATE agents {late}")
    night.run("agent", "mute", "backup", "8h")
    shown = on_terminal([*night.command, "agent", "list"], night.environment)
    assert "\x1b[31mhanging, late\x1b[0m" in shown
    assert "\x1b[90mmuted, broken, late\x1b[0m" in shown
    (row,) = [line for line in at_width(night, 80, "task", "list") if "poll" in line]
    assert row.split()[1] == "hanging"
    details = night.run("task", "show", task["id"][:13]).stdout
    assert re.search("^status +hanging$", details, re.M)
    assert re.search("^hanging +20", details, re.M)
    assert [line.split()[0] for line in at_width(night, 80, "status") if "  poll  " in line] == [
        "late",
        "hanging",
    ]


def test_list_of_agents_marks_what_is_wrong(night: AgentMachine) -> None:
    for width in WIDTHS:
        header, *rows = at_width(night, width, "agent", "list")
        assert header.split()[:2] == ["ID", "STATE"]
        states = {row.split()[0]: row.split()[1] for row in rows}
        assert states == {"backup": "broken", "etl-orders": "broken", "release": "-"}
    shown = on_terminal([*night.command, "agent", "list"], night.environment)
    assert shown.count("\x1b[31mbroken\x1b[0m") == 2


def test_list_of_hooks_has_addresses_without_secrets(night: AgentMachine) -> None:
    night.user.request("POST", "/hook", json={"target": "mailto:ann@example.org"})
    for width in WIDTHS:
        environment = night.environment | {"COLUMNS": str(width)}
        shown = on_terminal([*night.command, "hook", "list"], environment)
        assert max(map(len, shown.splitlines())) <= width
        assert SECRET not in shown
        header, slack, phone, *_ = shown.splitlines()
        assert header.startswith("ID             STATE   ADDRESS ")
        assert "  active  hooks.slack.com/B024BE7LH  " in slack
        assert "  active  ntfy.sh/Xy7Rq2Zp…  " in phone
        assert ("the phone of ann" in phone) == ("NAME" in header)


def test_hook_that_fails_is_red_with_its_reason(
    night: AgentMachine, shared_service: Service
) -> None:
    (hook, _) = night.user.read("/hook")
    failures = "attempt_count = 2, last_error = 'The receiver responded with 503.'"
    since = "failed_since = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-180 seconds')"
    is_this = f"id = '{hook['id'].replace('-', '')}'"
    change_rows(shared_service, f"UPDATE hooks SET {failures}, {since} WHERE {is_this}")
    shown = on_terminal([*night.command, "hook", "list"], night.environment)
    _, failing, works, *_ = shown.splitlines()
    assert "\x1b[31mfailing\x1b[0m" in failing
    assert "The receiver" in failing
    assert "\x1b[31m" not in works


def test_grep_names_the_agent_and_the_task_on_a_terminal(night: AgentMachine) -> None:
    backup, orders = (
        night.user.tasks(agentId="backup")[0],
        night.user.tasks(agentId="etl-orders")[0],
    )
    shown = on_terminal([*night.command, "grep", "disk"], night.environment)
    assert shown.splitlines() == [
        f"{backup['id'][:18]}  backup  of the database  error",
        "      2: disk",
        f"{orders['id'][:18]}  etl-orders  nightly load  error",
        "      2: disk",
    ]
    piped = night.run("grep", "disk", "--agent", "etl").stdout
    assert piped == f"{orders['id']}:2: disk\n"
    unknown = night.run("grep", "disk", "--agent", "etl-order-s")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "There is no agent etl-order-s; did you mean etl-orders?" in unknown.stderr


def test_table_without_rows_is_its_header(machine: AgentMachine) -> None:
    header = on_terminal([*machine.command, "hook", "list"], machine.environment)
    assert header.startswith("ID  STATE  ADDRESS")


@pytest.mark.parametrize("width", [20, 40, 60])
def test_narrow_terminal_gets_the_first_columns(night: AgentMachine, width: int) -> None:
    for command in ("task", "agent", "hook"):
        environment = night.environment | {"COLUMNS": str(width), "NO_COLOR": "1"}
        shown = on_terminal([*night.command, command, "list"], environment).splitlines()
        assert max(map(len, shown)) <= width
        assert shown[0].startswith("ID")
