"""The agent's side where HOME is not there, and where the disk of the service is full."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agent_machine import AgentMachine
from tests.support.api_client import RemoteClient
from tests.support.databases import Databases
from tests.support.mounts import empty_log, fill, small_disk
from tests.support.service import Service
from tests.support.waiting import until


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "data", "4m") as disk:
        yield disk


@pytest.fixture
def service(disk: Path, databases: Databases) -> Iterator[Service]:
    databases.copy_sqlite(disk)
    with Service(disk) as service:
        yield service


@pytest.fixture
def alice(service: Service) -> RemoteClient:
    return service.add_user()


@pytest.fixture
def machine(alice: RemoteClient, tmp_path: Path) -> AgentMachine:
    return AgentMachine(tmp_path / "home", alice)


def test_program_is_run_where_home_is_not_there(
    alice: RemoteClient, machine: AgentMachine, tmp_path: Path
) -> None:
    machine.settings = {"HOME": "/dev/null/home", "XDG_STATE_HOME": ""}
    ran = machine.run("run", "--agent", "a", "--", "echo", "from run", cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (0, "from run\n")
    (notice,) = ran.stderr.splitlines()
    assert "can't write to the disk, log lines are queued in memory" in notice
    alice.start("w")
    worker = machine.spawn("work", "--agent", "w", "--", "echo", "from work", cwd=tmp_path)
    until(lambda: {task["status"] for task in alice.tasks()} == {"complete"})
    _, notices = worker.end()
    assert "log lines are queued in memory" in notices
    assert [task["logs"] for task in alice.tasks()] == [["from work"], ["from run"]]
    assert not list(tmp_path.glob("**/taskservice/runs"))


def test_command_that_meets_a_full_disk_of_the_service_is_one_line(
    alice: RemoteClient, machine: AgentMachine, disk: Path, subtests: pytest.Subtests
) -> None:
    task = alice.start("a", claim=True)
    empty_log(disk)
    fill(disk)
    machine.give_up_soon()
    for command in (
        "run --agent a --strict -- true", "task start --agent a", "task cancel", "task delete",
        "task rerun", "agent add b",
    ):  # fmt: skip
        with subtests.test(command):
            task_ids = [task["id"]] if command.split()[1] in ("cancel", "delete", "rerun") else []
            failed = machine.run(*command.split(), *task_ids)
            code = 1 if "--strict" in command else 69
            assert (failed.returncode, failed.stdout) == (code, "")
            (message,) = failed.stderr.splitlines()
            assert message.endswith("The database is busy, full or unavailable")
    assert [started["status"] for started in alice.tasks()] == ["running"]


def test_programs_continue_while_the_disk_of_the_service_is_full(
    alice: RemoteClient, machine: AgentMachine, disk: Path, tmp_path: Path
) -> None:
    asker, waiting = alice.start("asker", claim=True), alice.start("worker")
    empty_log(disk)
    filler = fill(disk)
    before = alice.tasks()
    mark, go_on = tmp_path / "it runs", tmp_path / "go on"
    script = f"seq 1000; touch '{mark}'; while ! test -e '{go_on}'; do sleep 0.1; done"
    run = machine.spawn("run", "--agent", "runner", "--", "sh", "-c", script)
    worker = machine.spawn("work", "--agent", "worker", "--", "echo", "worked")
    machine.settings = {"TASKSERVICE_TASK_ID": asker["id"]}
    ask = machine.spawn("ask", "Deploy?")
    until(mark.exists)
    assert alice.tasks() == before
    filler.unlink()
    until(lambda: alice.read(f"/task/{waiting['id']}")["status"] == "complete")
    question = until(lambda: alice.read(f"/task/{asker['id']}/question"))[0]
    answer = {"action": "accept", "content": {"answer": "yes"}}
    path = f"/task/{asker['id']}/question/{question['id']}/answer"
    alice.request("POST", path, json=answer).raise_for_status()
    assert ask.communicate(timeout=60)[0] == "yes\n"
    go_on.touch()
    run.communicate(timeout=60)
    worker.end()
    logs = {task["agentId"]: task["logs"] for task in alice.tasks()}
    assert logs["runner"] == [str(number) for number in range(1, 1001)]
    assert logs["worker"] == ["worked"]
