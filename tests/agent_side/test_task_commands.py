"""`taskservice task`: tasks listed, shown, followed, cancelled and deleted."""

import signal
import subprocess
import threading

from tests.support import receiver as play
from tests.support.agent_machine import AgentMachine, end_for_silence, objects
from tests.support.api_client import RemoteClient
from tests.support.receiver import Receiver
from tests.support.service import Service


def report(person: RemoteClient, task: dict[str, object], **changes: object) -> None:
    person.request("PATCH", f"/task/{task['id']}", json=changes).raise_for_status()


def append(person: RemoteClient, task: dict[str, object], *lines: str) -> None:
    body = {"logs": list(lines)}
    person.request("POST", f"/task/{task['id']}/logs", json=body).raise_for_status()


def test_list_has_a_line_for_each_task(remote_alice: RemoteClient, machine: AgentMachine) -> None:
    first = remote_alice.start("one", name="first")
    second = remote_alice.start("two", name="bad \x1b[2J\nname")
    report(remote_alice, first, status="error", error={"message": "no"})
    newest, oldest = machine.run("task", "list").stdout.splitlines()
    assert str(second["id"]) in newest
    assert newest.endswith(r"two  bad \u001b[2J\nname")
    assert oldest.split()[:2] == [first["id"], "failed"]
    only = machine.run("task", "list", "--agent", "one", "--status", "error", "--q", "FIRST")
    assert only.stdout == oldest + "\n"
    limited = machine.run("task", "list", "--limit", "1", "--json")
    assert [task["id"] for task in objects(limited.stdout)] == [second["id"]]


def test_show_has_everything_but_the_log(remote_alice: RemoteClient, machine: AgentMachine) -> None:
    task = remote_alice.start("one", name="first", input={"day": 1})
    append(remote_alice, task, "one", "two")
    report(remote_alice, task, status="error", error={"message": "no"}, output={"sum": 15})
    shown = machine.run("task", "show", str(task["id"]))
    words = {line.split()[0]: line for line in shown.stdout.splitlines()}
    assert words["status"].split(maxsplit=1)[1] == "error: failed: no"
    assert words["lines"].split()[1] == "2"
    assert words['"sum":'].strip() == '"sum": 15'
    as_json = machine.run("task", "show", str(task["id"]), "--json")
    (found,) = objects(as_json.stdout)
    assert found["input"] == {"day": 1}


def test_follow_prints_the_log_as_it_grows(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    task = remote_alice.start("one")
    append(remote_alice, task, "one")
    process = machine.spawn("task", "follow", str(task["id"]))
    assert process.stdout is not None
    assert process.stdout.readline() == "one\n"
    append(remote_alice, task, "two")
    assert process.stdout.readline() == "two\n"
    report(remote_alice, task, status="complete")
    printed, remarks = process.communicate(timeout=40)
    assert (printed, remarks, process.returncode) == ("", "complete\n", 0)
    as_json = machine.run("task", "follow", str(task["id"]), "--json")
    first, second, last = objects(as_json.stdout)
    assert [line | {"at": None} for line in (first, second)] == [
        {"number": 1, "text": "one", "at": None},
        {"number": 2, "text": "two", "at": None},
    ]
    assert str(task["createdAt"]) <= first["at"] <= second["at"]
    assert last["status"] == "complete"


def test_follow_keeps_colours_in_a_file(remote_alice: RemoteClient, machine: AgentMachine) -> None:
    task = remote_alice.start("one")
    append(remote_alice, task, "\x1b[31mred\x1b[0m ü")
    report(remote_alice, task, status="complete")
    followed = machine.run("task", "follow", str(task["id"]))
    assert followed.stdout == "\x1b[31mred\x1b[0m ü\n"


def test_terminal_that_lacks_a_character_is_no_failure(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    remote_alice.start("one", name="nächtlich ☾")
    command = [*machine.command, "task", "list"]
    environment = {**machine.environment, "PYTHONIOENCODING": "latin-1"}
    listed = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert listed.stdout.decode("latin-1").endswith("nächtlich ?\n")


def test_short_list_asks_for_no_more_than_it_shows(machine: AgentMachine) -> None:
    with Receiver() as receiver:
        receiver.answer = play.answer(200, {"Content-Type": "application/json"}, b"[]")
        machine.url = receiver.url
        assert machine.run("task", "list", "--limit", "1").returncode == 0
    (request,) = receiver.requests
    assert "limit=1" in request.path
    assert "output" not in request.path


def test_follow_exits_by_the_outcome(
    remote_alice: RemoteClient, machine: AgentMachine, shared_service: Service
) -> None:
    failed, cancelled, silent = (remote_alice.start("one") for _ in range(3))
    report(remote_alice, failed, status="error", error={"message": "no"})
    remote_alice.request("POST", f"/task/{cancelled['id']}/cancel").raise_for_status()
    end_for_silence(shared_service)
    for task, code in ((failed, 1), (cancelled, 3), (silent, 4)):
        result = machine.run("task", "follow", str(task["id"]))
        assert (result.returncode, result.stdout) == (code, "")
        assert result.stderr.startswith("error: ")


def test_follow_of_a_task_that_is_deleted_says_so(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    task = remote_alice.start("one")
    append(remote_alice, task, "one")
    process = machine.spawn("task", "follow", str(task["id"]))
    assert process.stdout is not None
    process.stdout.readline()
    remote_alice.request("DELETE", f"/task/{task['id']}").raise_for_status()
    _, remarks = process.communicate(timeout=40)
    assert (process.returncode, remarks) == (5, "taskservice: The task was deleted\n")


def test_follow_tells_a_failed_task_from_one_that_cannot_be_asked(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    unknown = machine.run("task", "follow", "nonsense")
    assert (unknown.returncode, unknown.stderr) == (5, "taskservice: Task's ID is not found\n")
    with Receiver() as receiver:
        receiver.answer = play.answer(503, {"Retry-After": "1000"})
        machine.url = receiver.url
        away = machine.run("task", "follow", "nonsense")
    assert away.returncode == 69


def test_follow_ends_at_ctrl_c(remote_alice: RemoteClient, machine: AgentMachine) -> None:
    task = remote_alice.start("one")
    append(remote_alice, task, "one")
    process = machine.spawn("task", "follow", str(task["id"]))
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, remarks = process.communicate(timeout=40)
    assert (process.returncode, remarks) == (130, "")


def test_cancel_and_delete(remote_alice: RemoteClient, machine: AgentMachine) -> None:
    task_id = str(remote_alice.start("one")["id"])
    cancelled = machine.run("task", "cancel", task_id)
    assert cancelled.stdout == "error: cancelled: Cancelled by its user\n"
    deleted = machine.run("task", "delete", task_id)
    assert deleted.stdout == f"{task_id} is deleted\n"
    again = machine.run("task", "delete", task_id)
    assert (again.returncode, again.stderr) == (1, "taskservice: Task's ID is not found\n")


def test_refusals_are_one_line(remote_alice: RemoteClient, machine: AgentMachine) -> None:
    remote_alice.start("one")
    done = remote_alice.start("one")
    report(remote_alice, done, status="complete")
    for arguments, sentence in (
        (["cancel", str(done["id"])], "The task is finished"),
        (["show", "nonsense"], "Task's ID is not found"),
        (["show", "../user"], "Task's ID is not found"),
        (["list", "--agent", "B@D"], "agentId: "),
    ):
        result = machine.run("task", *arguments)
        assert (result.returncode, result.stdout) == (1, "")
        (line,) = result.stderr.splitlines()
        assert sentence in line


def test_closed_output_is_no_failure_of_ours(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    for _ in range(3):
        remote_alice.start("one")
    process = machine.spawn("task", "list")
    with process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_follow_waits_for_lines(remote_alice: RemoteClient, machine: AgentMachine) -> None:
    task = remote_alice.start("one")
    timer = threading.Timer(1, lambda: report(remote_alice, task, status="complete"))
    timer.start()
    result = machine.run("task", "follow", str(task["id"]))
    timer.join()
    assert result.returncode == 0
