"""`taskservice status`: what needs attention, and the exit statuses for it."""

import os
from pathlib import Path

from tests.support.agent_machine import AgentMachine, objects
from tests.support.pseudo_terminal import NASTY
from tests.support.service import free_port


def test_status_prints_what_needs_attention(machine: AgentMachine) -> None:
    task = machine.user.start("backup", claim=True)
    path = f"/task/{task['id']}"
    machine.user.request("POST", f"{path}/question", json={"message": NASTY}).raise_for_status()
    failed = machine.user.start("report", claim=True)
    report = {"status": "error", "error": {"message": "no"}}
    machine.user.report(failed, **report)
    shown = machine.run("status")
    assert (shown.returncode, shown.stderr) == (1, "")
    header, asks, broken = shown.stdout.splitlines()
    assert header.split() == ["KIND", "SINCE", "AGENT", "TASK", "TEXT"]
    assert asks.split()[0] == "question"
    assert broken.split()[0] == "broken"
    assert broken.endswith(f"  report  {str(failed['id'])[:13]}  The last task failed: no")
    as_json = machine.run("status", "--json")
    assert as_json.returncode == 1
    assert objects(as_json.stdout) == machine.user.read("/attention")
    assert [item["taskId"] for item in objects(as_json.stdout)] == [task["id"], failed["id"]]


def test_status_exits_with_0_when_nothing_needs_attention(machine: AgentMachine) -> None:
    shown = machine.run("status")
    assert (shown.returncode, shown.stdout) == (0, "")
    as_json = machine.run("status", "--json")
    assert (as_json.returncode, as_json.stdout) == (0, "")


def test_status_tells_of_an_old_backup(own_machine: AgentMachine, tmp_path: Path) -> None:
    (tmp_path / "data/last_backup").touch()
    assert own_machine.run("status").returncode == 0
    os.utime(tmp_path / "data/last_backup", (0, 0))
    shown = own_machine.run("status")
    assert shown.returncode == 1
    assert "No backup has succeeded yet" in shown.stdout


def test_status_that_is_unknown_has_other_exit_codes(machine: AgentMachine) -> None:
    assert machine.run("status", "now").returncode == 2
    machine.key += "x"
    assert machine.run("status").returncode == 2
    machine.give_up_soon()
    machine.url = f"http://127.0.0.1:{free_port()}"
    shown = machine.run("status")
    assert (shown.returncode, shown.stdout) == (69, "")
    assert len(shown.stderr.splitlines()) == 1
