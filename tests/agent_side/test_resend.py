"""`taskservice run --resend` sends the runs that are left on the disk."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from taskservice.client.spool import Spool, now
from taskservice.database import clock
from taskservice.runner.saved_run import SavedRun
from tests.support import receiver as play
from tests.support import service_answers as played
from tests.support.agent_machine import AgentMachine, machine_of, tasks, the_task
from tests.support.api_client import RemoteClient
from tests.support.mounts import fill, small_disk
from tests.support.receiver import Receiver, unused_port
from tests.support.requirements import needs
from tests.support.service import Service
from tests.support.waiting import until


def killed_run(person: RemoteClient, machine: AgentMachine) -> Path:
    """The folder of a run whose task is made, and that was killed before its end."""
    process = machine.spawn("run", "--agent", "a", "--", "sh", "-c", "echo ready; sleep 1000")
    until(lambda: [task for task in tasks(person) if task["logs"] == ["ready"]])
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    (folder,) = machine.left_runs()
    return folder


def run_without_a_task(machine: AgentMachine, agent_id: str = "a", **fields: object) -> Path:
    """The folder of a run that ended while the service was away."""
    run = SavedRun(machine.url, {"agentId": agent_id, "claim": True, **fields})
    run.report = {"status": "complete"}
    run.create_folder(machine.home / "state" / "taskservice" / "runs")
    assert run.folder is not None
    spool = Spool(run.folder)
    spool.put(b"from afar\n", now())
    spool.close()
    run.release()
    return run.folder


def agent_key(person: RemoteClient, agent_id: str) -> str:
    person.request("PUT", f"/agent/{agent_id}").raise_for_status()
    fields = {"name": agent_id, "agentId": agent_id}
    return str(person.request("POST", "/key", json=fields).json()["key"])


def test_run_of_another_user_is_kept(
    remote_alice: RemoteClient, machine: AgentMachine, shared_service: Service, tmp_path: Path
) -> None:
    folder = killed_run(remote_alice, machine)
    own_key, machine.key = (
        machine.key,
        str(shared_service.add_user("bob").session.headers["apikey"]),
    )
    foreign = machine.run("run", "--resend")
    assert (foreign.returncode, foreign.stdout) == (1, "")
    assert f"but the key to another user or agent; the run stays in {folder}" in foreign.stderr
    assert machine.left_runs() == [folder]
    machine.key = own_key
    assert machine.run("run", "--resend").returncode == 0
    assert the_task(remote_alice)["logs"] == ["ready"]
    assert machine.left_runs() == []


def test_run_that_is_sent_later_took_as_long_as_its_program(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    url, machine.url = machine.url, f"http://127.0.0.1:{unused_port()}"
    assert machine.run("run", "--agent", "a", "--", "true").returncode == 0
    (folder,) = machine.left_runs()
    machine.url = url
    run = json.loads((folder / "run.json").read_text())
    # As if it had ended hours ago.
    run["startFields"]["claimedAt"] = clock.now(-4 * 3600)
    (folder / "run.json").write_text(json.dumps(run | {"url": url}))
    assert machine.run("run", "--resend").returncode == 0
    assert the_task(remote_alice)["seconds"] < 3600
    header, row = machine.run("task", "list").stdout.splitlines()
    assert re.match(r"(< )?[0-9.]+ s ", row[header.index("TOOK") :]), row


def test_run_that_was_copied_without_its_lock_is_sent(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    (run_without_a_task(machine) / "lock").unlink()
    resent = machine.run("run", "--resend")
    assert (resent.returncode, resent.stderr) == (0, "")
    assert the_task(remote_alice)["logs"] == ["from afar"]
    assert machine.left_runs() == []


def test_file_that_is_no_run_is_left_alone(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    note = run_without_a_task(machine).with_name("notes.txt")
    note.write_text("mine")
    resent = machine.run("run", "--resend")
    assert (resent.returncode, resent.stderr) == (0, "")
    assert the_task(remote_alice)["logs"] == ["from afar"]
    assert machine.left_runs() == [note]


def test_run_of_another_agent_is_kept(remote_alice: RemoteClient, machine: AgentMachine) -> None:
    folder = run_without_a_task(machine)
    machine.key = agent_key(remote_alice, "other")
    foreign = machine.run("run", "--resend")
    assert (foreign.returncode, foreign.stdout) == (1, "")
    assert "but the key to another user or agent" in foreign.stderr
    assert machine.left_runs() == [folder]
    machine.key = agent_key(remote_alice, "a")
    assert machine.run("run", "--resend").returncode == 0
    assert the_task(remote_alice)["logs"] == ["from afar"]


def test_run_that_is_refused_says_how_to_forget_it(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    folder = run_without_a_task(machine, "A b")
    refused = machine.run("run", "--resend")
    assert refused.returncode == 1
    assert f"the run stays in {folder}; remove that folder to discard it" in refused.stderr
    assert machine.left_runs() == [folder]


def test_callback_that_is_refused_is_left_out(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    run_without_a_task(machine, callback="nonsense")
    resent = machine.run("run", "--resend")
    assert resent.returncode == 0
    assert "http:// or https://; the task is started without callback" in resent.stderr
    task = the_task(remote_alice)
    assert (task["logs"], task["callback"]) == (["from afar"], None)


def test_not_found_is_no_deletion_of_a_task_that_was_never_made(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    folder = run_without_a_task(machine)
    user = remote_alice.request("GET", "/user").content
    with Receiver() as receiver:
        receiver.answer = played.problem(404, "No such agent", code="not_found")
        receiver.paths["/api/v1/user"] = play.answer(
            200, {"Content-Type": "application/json"}, user
        )
        machine.url = receiver.url.rstrip("/")
        record = folder / "run.json"
        record.write_text(record.read_text().replace(remote_alice.url, machine.url))
        refused = machine.run("run", "--resend")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert machine.left_runs() == [folder]


def test_resend_gives_up_a_deleted_task(remote_alice: RemoteClient, machine: AgentMachine) -> None:
    killed_run(remote_alice, machine)
    task_id = the_task(remote_alice)["id"]
    remote_alice.request("DELETE", f"/task/{task_id}").raise_for_status()
    unwanted = machine.run("run", "--resend")
    assert (unwanted.returncode, unwanted.stdout) == (0, f"{task_id} was cancelled or deleted\n")
    assert machine.left_runs() == []


def test_agent_that_the_key_may_not_see_does_not_stop_the_program(
    shared_service: Service, tmp_path: Path
) -> None:
    """The service is away at the start, and then makes no task for this key."""
    machine = machine_of(shared_service.add_user("carol"), tmp_path / "home")
    with Receiver() as receiver:
        receiver.answer = play.answer(503)
        machine.url = receiver.url
        machine.start_without_service()
        script = "echo ready; read word; sleep 0.5; echo done; exit 7"
        process = machine.spawn(
            "run", "--agent", "a", "--", "sh", "-c", script, stdin=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        receiver.answer = played.problem(404, "No such agent", code="not_found")
        printed, remarks = process.communicate("go on\n", timeout=30)
    assert (process.returncode, printed) == (7, "done\n")
    assert "the service refused a request: No such agent; the program continues" in remarks
    assert len(machine.left_runs()) == 1


def test_lines_come_once_where_their_number_was_lost(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    folder = run_without_a_task(machine)
    task = remote_alice.start("a")
    lines = {"logs": ["one", "two"], "seq": 1, "writer": "run"}
    remote_alice.request("POST", f"/task/{task['id']}/logs", json=lines).raise_for_status()
    record = folder / "run.json"
    record.write_text(record.read_text().replace('"taskId": null', f'"taskId": "{task["id"]}"'))
    (folder / "position").write_bytes(b"")
    resent = machine.run("run", "--resend")
    assert (resent.returncode, resent.stderr) == (0, "")
    assert the_task(remote_alice)["logs"] == ["one", "two", "from afar"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    with small_disk(tmp_path / "tiny", "1m") as folder:
        yield folder


def test_disk_that_fills_up_is_reported_and_keeps_the_end(
    remote_alice: RemoteClient, machine: AgentMachine, tiny_disk: Path
) -> None:
    machine.home = tiny_disk
    script = (
        "echo first; sleep 0.3; head -c 2000000 /dev/zero 2>&- > $HOME/filler; sleep 0.1; "
        "seq 2 100000; exit 3"
    )
    away = machine.url = f"http://127.0.0.1:{unused_port()}"
    machine.give_up_soon()
    result = machine.run("run", "--agent", "a", "--", "sh", "-c", script)
    assert result.returncode == 3
    assert "No space left on device" in result.stderr
    said = re.search(r"([0-9,]+) lines were lost because the disk is full", result.stderr)
    assert said is not None
    (tiny_disk / "filler").unlink()
    (folder,) = machine.left_runs()
    record = folder / "run.json"
    record.write_text(record.read_text().replace(away, remote_alice.url))
    machine.url = remote_alice.url
    machine.wait_as_usual()
    resent = machine.run("run", "--resend")
    assert (resent.returncode, resent.stderr) == (0, "")
    task = the_task(remote_alice)
    assert task["error"]["message"] == "Exit status 3"
    marks = [line for line in task["logs"] if "left out here" in line]
    left_out = sum(int(mark.split()[1].replace(",", "")) for mark in marks)
    assert left_out == int(said[1].replace(",", ""))
    assert left_out + len(task["logs"]) - len(marks) == 100_000
    assert machine.left_runs() == []


def test_program_gets_no_output_file_on_a_full_disk(
    remote_alice: RemoteClient, machine: AgentMachine, tiny_disk: Path
) -> None:
    machine.home = tiny_disk
    fill(tiny_disk)
    script = "echo '{}' > ${TASKSERVICE_OUTPUT:-/dev/null}"
    result = machine.run("run", "--agent", "a", "--", "sh", "-c", script)
    (said,) = result.stderr.splitlines()
    assert "can't write to the disk" in said
    assert (result.returncode, the_task(remote_alice)["status"]) == (0, "complete")


def test_concurrent_resends_send_each_run_once(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    for _ in range(20):
        run_without_a_task(machine)
    processes = [machine.spawn("run", "--resend") for _ in range(4)]
    said = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said
    assert sum(printed.count("sent: 1 line and the exit status") for printed, _ in said) == 20
    assert [task["logs"] for task in tasks(remote_alice)] == [["from afar"]] * 20
    assert machine.left_runs() == []


def test_reading_a_removed_run_does_not_recreate_it(machine: AgentMachine) -> None:
    folders = [run_without_a_task(machine) for _ in range(30)]
    with ThreadPoolExecutor(4) as pool:
        for folder in folders:
            run = SavedRun.load(folder)
            assert run is not None
            looks = [pool.submit(look_often, folder) for _ in range(3)]
            run.remove()
            assert [look.result() for look in looks] == [None] * 3
    assert machine.left_runs() == []


def look_often(folder: Path) -> SavedRun | None:
    looks = (SavedRun.load(folder) for _ in range(50))
    return next(filter(None, looks), None)


def _replace_with_fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _replace_with_link(path: Path, target: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _replace_with_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def _change_record(folder: Path, **changes: object) -> None:
    record = folder / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | changes))


# Each gets the folder of a run, and a file elsewhere with a line in it.
SPOILS: dict[str, Callable[[Path, Path], object]] = {
    "an array": lambda folder, _: (folder / "run.json").write_text("[]"),
    "no JSON": lambda folder, _: (folder / "run.json").write_bytes(b"\xff"),
    "a deep one": lambda folder, _: (folder / "run.json").write_text("[" * 100_000),
    "no fields": lambda folder, _: (folder / "run.json").write_text("{}"),
    "a FIFO as record": lambda folder, _: _replace_with_fifo(folder / "run.json"),
    "a FIFO as lock": lambda folder, _: _replace_with_fifo(folder / "lock"),
    "a FIFO as position": lambda folder, _: _replace_with_fifo(folder / "position"),
    "a FIFO as lines": lambda folder, _: _replace_with_fifo(folder / LINES),
    "a folder as position": lambda folder, _: _replace_with_folder(folder / "position"),
    "a folder as lines": lambda folder, _: _replace_with_folder(folder / LINES),
    "a link as record": lambda folder, file: _replace_with_link(folder / "run.json", file),
    "a link as position": lambda folder, file: _replace_with_link(folder / "position", file),
    "a link as lines": lambda folder, file: _replace_with_link(folder / LINES, file),
    "others may write": lambda folder, _: folder.chmod(0o777),
    "another's": lambda folder, _: _give_away(folder),
}
LINES = "lines"


def _give_away(path: Path) -> None:
    try:
        os.chown(path, 54321, 54321)
    except PermissionError:
        needs("right to give a folder away", "run the tests as root")


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_damaged_run_is_reported_and_does_not_stop_newer_runs(
    remote_alice: RemoteClient, machine: AgentMachine, spoil: Callable[[Path, Path], object]
) -> None:
    file = machine.home / "elsewhere"
    file.write_text("a secret line\n")
    bad = run_without_a_task(machine)
    spoil(bad, file)
    os.utime(bad, (1, 1))
    newer = run_without_a_task(machine)
    resent = machine.run("run", "--resend", timeout=20)
    assert resent.returncode == 1
    (sentence,) = resent.stderr.splitlines()[:-1]
    assert str(bad) in sentence
    assert [task["logs"] for task in tasks(remote_alice)] == [["from afar"]]
    assert bad in machine.left_runs()
    assert newer not in machine.left_runs()
    assert file.read_text() == "a secret line\n"


def test_link_among_the_runs_is_not_followed(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    folder = run_without_a_task(machine)
    elsewhere = folder.rename(machine.home / "elsewhere")
    folder.symlink_to(elsewhere)
    resent = machine.run("run", "--resend")
    assert resent.returncode == 1
    assert str(folder) in resent.stderr
    assert tasks(remote_alice) == []
    assert (elsewhere / LINES).read_text().endswith(" from afar\n")


def test_runs_are_kept_where_no_other_user_may_enter(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    runs = machine.home / "state" / "taskservice" / "runs"
    runs.mkdir(parents=True)
    runs.chmod(0o777)
    script = "stat -c %a $(dirname $TASKSERVICE_OUTPUT)"
    result = machine.run("run", "--agent", "a", "--", "sh", "-c", script)
    assert (result.stdout, result.stderr) == ("700\n", "")
    assert runs.stat().st_mode & 0o777 == 0o700


def test_folder_of_another_user_keeps_no_runs(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    runs = machine.home / "state" / "taskservice" / "runs"
    run_without_a_task(machine)
    _give_away(runs)
    result = machine.run("run", "--agent", "a", "--", "echo", "done")
    assert (result.returncode, result.stdout) == (0, "done\n")
    assert "can't write to the disk" in result.stderr
    assert the_task(remote_alice)["logs"] == ["done"]
    resent = machine.run("run", "--resend")
    assert resent.returncode == 1
    assert "It belongs to another user" in resent.stderr
    assert "PosixPath" not in resent.stderr
    assert len(machine.left_runs()) == 1


def test_machine_without_a_home_has_nothing_to_resend(machine: AgentMachine) -> None:
    environment = {**machine.environment, "XDG_STATE_HOME": "", "HOME": ""}
    del environment["HOME"]
    command = ["setpriv", "--reuid", "54321", "--clear-groups", *machine.command, "run", "--resend"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "setpriv" in result.stderr:
        needs("right to become another user", "run the tests as root")
    assert result.returncode == 1
    assert result.stderr.startswith("taskservice: neither XDG_STATE_HOME nor HOME is set")
